//! Changes of one table as an Arrow record batch, by the PyCapsule interface: no Python object for a value.
//!
//! The columns are `_op` (`insert`, `update`, `delete`), `_index` (the place among all changes of the
//! unit, for the order between tables), `_unchanged` (the columns that were not sent, or null), and
//! those of the table: the new row, of a delete the old one. `old` has the old rows, where they were
//! sent. See the [specification](https://arrow.apache.org/docs/format/CDataInterface/PyCapsuleInterface.html).

use std::sync::Arc;

use anabranch::{ChangeBatch, ChangeRef, Column, DataType, Op, RowRef, TableSchema, ValueRef};
use arrow_array::builder::{
    BinaryBuilder, BooleanBuilder, Date32Builder, Decimal128Builder, FixedSizeBinaryBuilder, ListBuilder,
    PrimitiveBuilder, StringBuilder, Time64MicrosecondBuilder, TimestampMicrosecondBuilder, UInt64Builder,
};
use arrow_array::ffi::{FFI_ArrowSchema, to_ffi};
use arrow_array::ffi_stream::FFI_ArrowArrayStream;
use arrow_array::types::{ArrowPrimitiveType, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type, UInt64Type};
use arrow_array::{Array as _, ArrayRef, RecordBatch, RecordBatchIterator, StructArray};
use arrow_schema::{ArrowError, DataType as Arrow, Field, Schema, TimeUnit};
use chrono::{NaiveDate, NaiveTime};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyCapsule;

use crate::batch::{by_schema, op_word};
use crate::model::PyTable;
use crate::value::{bytes, canonical, clock, offset};

/// More digits than this are text: Arrow has 256 bits too, but few who read it do.
const DIGITS: u32 = 38;

/// Inserts, updates and deletes of one table, in order.
#[pyclass(frozen, module = "anabranch", name = "TableChanges")]
#[derive(Clone)]
pub(crate) struct PyTableChanges {
    schema: Arc<TableSchema>,
    places: Arc<Vec<(Arc<ChangeBatch>, u32, u64)>>,
    old: bool,
}

impl PyTableChanges {
    pub(crate) fn group(places: impl Iterator<Item = (Arc<ChangeBatch>, u32)>) -> Vec<Self> {
        let of = |(schema, places)| Self { schema, places: Arc::new(places), old: false };
        by_schema(places).into_iter().map(of).collect()
    }

    fn changes(&self) -> impl Iterator<Item = (ChangeRef<'_>, u64)> {
        self.places.iter().map(|(batch, index, at)| (batch.change(*index as usize), *at))
    }

    /// The row of each change: `None` where there is none, for the old rows.
    fn row<'a>(&self, change: ChangeRef<'a>) -> Option<RowRef<'a>> {
        match (self.old, change.op()) {
            (false, Op::Delete) | (true, _) => change.old_row(),
            _ => change.new_row(),
        }
    }

    fn record_batch(&self) -> Result<RecordBatch, ArrowError> {
        let (mut ops, mut at, mut unsent) =
            (StringBuilder::new(), UInt64Builder::new(), ListBuilder::new(StringBuilder::new()));
        for (change, index) in self.changes() {
            ops.append_value(op_word(change.op()));
            at.append_value(index);
            let row = self.row(change);
            match row.filter(|row| !row.is_complete()) {
                Some(row) => {
                    let names = row.values().zip(&self.schema.columns).filter(|(value, _)| value.is_unchanged());
                    names.for_each(|(_, column)| unsent.values().append_value(&column.name));
                    unsent.append(true);
                }
                None => unsent.append(false),
            }
        }
        let mut arrays: Vec<ArrayRef> = vec![Arc::new(ops.finish()), Arc::new(at.finish()), Arc::new(unsent.finish())];
        for (place, column) in self.schema.columns.iter().enumerate() {
            let values =
                self.changes().map(|(change, _)| self.row(change).map_or(ValueRef::Null, |row| row.get(place)));
            arrays.push(array(column, values).map_err(ArrowError::InvalidArgumentError)?);
        }
        RecordBatch::try_new(Arc::new(schema(&self.schema)), arrays)
    }
}

fn schema(table: &TableSchema) -> Schema {
    let unsent = Field::new_list_field(Arrow::Utf8, true);
    let mut fields = vec![
        Field::new("_op", Arrow::Utf8, false),
        Field::new("_index", Arrow::UInt64, false),
        Field::new("_unchanged", Arrow::List(Arc::new(unsent)), true),
    ];
    fields.extend(table.columns.iter().map(field));
    Schema::new(fields)
}

/// Every column may be null: what was not sent is.
fn field(column: &Column) -> Field {
    let field = Field::new(&column.name, arrow_type(&column.data_type), true);
    match column.data_type {
        DataType::Uuid => {
            let extension = ("ARROW:extension:name".to_owned(), "arrow.uuid".to_owned());
            field.with_metadata(std::collections::HashMap::from([extension]))
        }
        _ => field,
    }
}

fn arrow_type(of: &DataType) -> Arrow {
    match of {
        DataType::Bool => Arrow::Boolean,
        DataType::Int16 => Arrow::Int16,
        DataType::Int32 => Arrow::Int32,
        DataType::Int64 => Arrow::Int64,
        DataType::UInt64 => Arrow::UInt64,
        DataType::Float32 => Arrow::Float32,
        DataType::Float64 => Arrow::Float64,
        DataType::Decimal { precision, scale } => match digits(*precision, *scale) {
            Some((precision, scale)) => Arrow::Decimal128(precision, scale),
            None => Arrow::Utf8,
        },
        DataType::Bytes => Arrow::Binary,
        DataType::Date => Arrow::Date32,
        DataType::Time => Arrow::Time64(TimeUnit::Microsecond),
        DataType::Timestamp => Arrow::Timestamp(TimeUnit::Microsecond, None),
        DataType::TimestampTz => Arrow::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        DataType::Uuid => Arrow::FixedSizeBinary(16),
        _ => Arrow::Utf8,
    }
}

/// Precision and scale as Arrow has them, where it does: the scale between 0 and the precision.
fn digits(precision: Option<u32>, scale: Option<i32>) -> Option<(u8, i8)> {
    let (precision, scale) = (precision?, scale.unwrap_or(0));
    let precision = match u32::try_from(scale) {
        Ok(scale) => precision.max(scale),
        Err(_) => precision.checked_add(scale.unsigned_abs())?,
    };
    (precision <= DIGITS).then_some((precision as u8, scale.max(0) as i8))
}

/// The values of one column.
fn array<'a>(column: &Column, values: impl Iterator<Item = ValueRef<'a>>) -> Result<ArrayRef, String> {
    Ok(match &column.data_type {
        DataType::Bool => {
            let mut out = BooleanBuilder::new();
            each(
                column,
                values,
                |value| out.append_option(value),
                |value| match value {
                    ValueRef::Bool(v) => Some(v),
                    ValueRef::Int(v) => Some(v != 0),
                    ValueRef::Text("t" | "true" | "1") => Some(true),
                    ValueRef::Text("f" | "false" | "0") => Some(false),
                    _ => None,
                },
            )?;
            Arc::new(out.finish())
        }
        DataType::Int16 => numbers::<Int16Type>(column, values, |v| v.try_into().ok())?,
        DataType::Int32 => numbers::<Int32Type>(column, values, |v| v.try_into().ok())?,
        DataType::Int64 => numbers::<Int64Type>(column, values, |v| v.try_into().ok())?,
        DataType::UInt64 => numbers::<UInt64Type>(column, values, |v| v.try_into().ok())?,
        DataType::Float32 => floats::<Float32Type>(column, values, |v| v as f32)?,
        DataType::Float64 => floats::<Float64Type>(column, values, |v| v)?,
        DataType::Decimal { precision, scale } => match digits(*precision, *scale) {
            Some((precision, scale)) => decimals(column, values, precision, scale)?,
            None => texts(values),
        },
        DataType::Bytes => {
            let mut out = BinaryBuilder::new();
            for value in values {
                match value {
                    ValueRef::Null | ValueRef::Unchanged => out.append_null(),
                    ValueRef::Bytes(v) => out.append_value(v),
                    ValueRef::Text(v) => out.append_value(bytes(v).ok_or_else(|| refused(column, value))?),
                    _ => return Err(refused(column, value)),
                }
            }
            Arc::new(out.finish())
        }
        DataType::Date => {
            let mut out = Date32Builder::new();
            each(column, values, |v| out.append_option(v), |v| text(v).and_then(days))?;
            Arc::new(out.finish())
        }
        DataType::Time => {
            let mut out = Time64MicrosecondBuilder::new();
            each(column, values, |v| out.append_option(v), |v| text(v).and_then(micros_of_day))?;
            Arc::new(out.finish())
        }
        DataType::Timestamp => {
            let mut out = TimestampMicrosecondBuilder::new();
            each(column, values, |v| out.append_option(v), |v| text(v).and_then(|t| micros(t, false)))?;
            Arc::new(out.finish())
        }
        DataType::TimestampTz => {
            let mut out = TimestampMicrosecondBuilder::new().with_timezone("UTC");
            each(column, values, |v| out.append_option(v), |v| text(v).and_then(|t| micros(t, true)))?;
            Arc::new(out.finish())
        }
        DataType::Uuid => uuids(column, values)?,
        _ => texts(values),
    })
}

/// Why a value is not there: told with the column, never with the value.
fn refused(column: &Column, value: ValueRef<'_>) -> String {
    let kind = match value {
        ValueRef::Text(_) => "a text",
        _ => "a value",
    };
    format!("the column {} ({}) holds {kind} that Arrow's type cannot: read it as text", column.name, column.data_type)
}

fn text(value: ValueRef<'_>) -> Option<&str> {
    match value {
        ValueRef::Text(text) => Some(text),
        _ => None,
    }
}

/// Appends what `read` makes of each value; NULL and what was not sent are null.
fn each<'a, T>(
    column: &Column,
    values: impl Iterator<Item = ValueRef<'a>>,
    mut append: impl FnMut(Option<T>),
    read: impl Fn(ValueRef<'a>) -> Option<T>,
) -> Result<(), String> {
    for value in values {
        match value {
            ValueRef::Null | ValueRef::Unchanged => append(None),
            value => append(Some(read(value).ok_or_else(|| refused(column, value))?)),
        }
    }
    Ok(())
}

fn numbers<'a, T: ArrowPrimitiveType>(
    column: &Column,
    values: impl Iterator<Item = ValueRef<'a>>,
    fit: impl Fn(i128) -> Option<T::Native>,
) -> Result<ArrayRef, String>
where
    T::Native: Sized,
{
    let mut out = PrimitiveBuilder::<T>::new();
    each(
        column,
        values,
        |v| out.append_option(v),
        |value| match value {
            ValueRef::Int(v) => fit(v.into()),
            ValueRef::Text(v) => fit(v.parse().ok()?),
            _ => None,
        },
    )?;
    Ok(Arc::new(out.finish()))
}

fn floats<'a, T: ArrowPrimitiveType>(
    column: &Column,
    values: impl Iterator<Item = ValueRef<'a>>,
    fit: impl Fn(f64) -> T::Native,
) -> Result<ArrayRef, String> {
    let mut out = PrimitiveBuilder::<T>::new();
    each(
        column,
        values,
        |v| out.append_option(v),
        |value| match value {
            ValueRef::Float(v) => Some(fit(v)),
            ValueRef::Int(v) => Some(fit(v as f64)),
            ValueRef::Text(v) => v.parse().ok().map(&fit),
            _ => None,
        },
    )?;
    Ok(Arc::new(out.finish()))
}

fn decimals<'a>(
    column: &Column,
    values: impl Iterator<Item = ValueRef<'a>>,
    precision: u8,
    scale: i8,
) -> Result<ArrayRef, String> {
    let out = Decimal128Builder::new().with_precision_and_scale(precision, scale);
    let mut out = out.map_err(|e| e.to_string())?;
    each(
        column,
        values,
        |v| out.append_option(v),
        |value| match value {
            ValueRef::Int(v) => scaled(&v.to_string(), scale as usize),
            ValueRef::Text(v) => scaled(v, scale as usize),
            _ => None,
        },
    )?;
    Ok(Arc::new(out.finish()))
}

/// The digits of a decimal number, as a whole number of the smallest unit.
fn scaled(text: &str, scale: usize) -> Option<i128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let fraction = fraction.trim_end_matches('0');
    if fraction.len() > scale || whole.is_empty() {
        return None;
    }
    let zeros = std::iter::repeat_n(b'0', scale - fraction.len());
    let number = whole.bytes().chain(fraction.bytes()).chain(zeros).try_fold(0_i128, |number, digit| {
        let digit = digit.is_ascii_digit().then(|| i128::from(digit - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })?;
    Some(if negative { -number } else { number })
}

fn texts<'a>(values: impl Iterator<Item = ValueRef<'a>>) -> ArrayRef {
    let mut out = StringBuilder::new();
    for value in values {
        match value {
            ValueRef::Text(v) => out.append_value(v),
            other => out.append_option(canonical(other)),
        }
    }
    Arc::new(out.finish())
}

fn uuids<'a>(column: &Column, values: impl Iterator<Item = ValueRef<'a>>) -> Result<ArrayRef, String> {
    let mut out = FixedSizeBinaryBuilder::new(16);
    for value in values {
        match value {
            ValueRef::Null | ValueRef::Unchanged => out.append_null(),
            value => {
                let digits = text(value).map(|t| format!("\\x{}", t.replace('-', "")));
                let bytes = digits.and_then(|d| bytes(&d)).ok_or_else(|| refused(column, value))?;
                out.append_value(bytes).map_err(|_| refused(column, value))?;
            }
        }
    }
    Ok(Arc::new(out.finish()))
}

/// Any year: Arrow counts days, also before the year 1.
fn day(text: &str) -> Option<NaiveDate> {
    let (text, before) = match text.strip_suffix(" BC") {
        Some(text) => (text, true),
        None => (text, false),
    };
    let mut parts = text.splitn(3, '-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    let year: i32 = year.parse().ok()?;
    NaiveDate::from_ymd_opt(if before { 1 - year } else { year }, month.parse().ok()?, day.parse().ok()?)
}

fn days(text: &str) -> Option<i32> {
    let since = day(text)?.signed_duration_since(NaiveDate::default()).num_days();
    i32::try_from(since).ok()
}

/// Arrow's day ends before 24:00:00.
fn micros_of_day(text: &str) -> Option<i64> {
    let (h, m, s, micros) = clock(text)?;
    let time = NaiveTime::from_hms_micro_opt(h, m, s, micros)?;
    time.signed_duration_since(NaiveTime::MIN).num_microseconds()
}

fn micros(text: &str, zoned: bool) -> Option<i64> {
    let (text, era) = match text.strip_suffix(" BC") {
        Some(text) => (text, " BC"),
        None => (text, ""),
    };
    let (date, time) = text.split_once(' ')?;
    let (time, east) = if zoned { offset(time)? } else { (time, 0) };
    let days = i64::from(days(&format!("{date}{era}"))?);
    let micros = days.checked_mul(86_400_000_000)?.checked_add(micros_of_day(time)?)?;
    micros.checked_sub(i64::from(east) * 1_000_000)
}

fn wrong(error: &ArrowError) -> PyErr {
    let text = match error {
        ArrowError::InvalidArgumentError(text) => text.clone(),
        other => other.to_string(),
    };
    PyValueError::new_err(text)
}

fn capsule<T: Send + 'static>(py: Python<'_>, value: T, name: &'static std::ffi::CStr) -> PyResult<Py<PyCapsule>> {
    PyCapsule::new_with_value(py, value, name).map(Bound::unbind)
}

#[pymethods]
impl PyTableChanges {
    #[getter]
    fn table(&self) -> PyTable {
        PyTable { schema: Arc::clone(&self.schema) }
    }

    /// The rows as they were before, as far as they were sent: as many as there are changes.
    #[getter]
    fn old(&self) -> Self {
        Self { old: true, ..self.clone() }
    }

    fn __len__(&self) -> usize {
        self.places.len()
    }

    fn __arrow_c_schema__(&self, py: Python<'_>) -> PyResult<Py<PyCapsule>> {
        let schema = FFI_ArrowSchema::try_from(&schema(&self.schema)).map_err(|e| wrong(&e))?;
        capsule(py, schema, c"arrow_schema")
    }

    /// The two capsules of a struct array. Another schema than its own cannot be asked for.
    #[pyo3(signature = (requested_schema=None))]
    fn __arrow_c_array__(
        &self,
        py: Python<'_>,
        requested_schema: Option<Py<PyAny>>,
    ) -> PyResult<(Py<PyCapsule>, Py<PyCapsule>)> {
        drop(requested_schema);
        let batch = py.detach(|| self.record_batch()).map_err(|e| wrong(&e))?;
        let schema = FFI_ArrowSchema::try_from(batch.schema().as_ref()).map_err(|e| wrong(&e))?;
        let (array, _) = to_ffi(&StructArray::from(batch).to_data()).map_err(|e| wrong(&e))?;
        Ok((capsule(py, schema, c"arrow_schema")?, capsule(py, array, c"arrow_array")?))
    }

    /// A stream of one record batch.
    #[pyo3(signature = (requested_schema=None))]
    fn __arrow_c_stream__(&self, py: Python<'_>, requested_schema: Option<Py<PyAny>>) -> PyResult<Py<PyCapsule>> {
        drop(requested_schema);
        let batch = py.detach(|| self.record_batch()).map_err(|e| wrong(&e))?;
        let schema = batch.schema();
        let reader = RecordBatchIterator::new(std::iter::once(Ok(batch)), schema);
        capsule(py, FFI_ArrowArrayStream::new(Box::new(reader)), c"arrow_array_stream")
    }

    fn __repr__(&self) -> String {
        let which = if self.old { "old rows" } else { "changes" };
        format!("<TableChanges of {}: {} {which}>", self.schema.name, self.places.len())
    }
}
