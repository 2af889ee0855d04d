//! Tables, columns and positions, as Python has them.

use std::sync::Arc;

use anabranch::{Column, DataType, Error, Rank, TableName, TableSchema};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::raised;

/// A column: its name and its type, as `anabranch check` writes it (`int64`, `decimal(10,2)`, `text`).
#[pyclass(frozen, module = "anabranch", name = "Column", eq)]
#[derive(Clone, PartialEq)]
pub(crate) struct PyColumn {
    pub(crate) column: Column,
}

#[pymethods]
impl PyColumn {
    #[new]
    #[pyo3(signature = (name, r#type, *, nullable=true, native=None, generated=false, labels=None))]
    fn new(
        py: Python<'_>,
        name: String,
        r#type: &str,
        nullable: bool,
        native: Option<String>,
        generated: bool,
        labels: Option<Vec<String>>,
    ) -> PyResult<Self> {
        let unknown = || {
            let problem = format!("the type {type} is not known (known: {KNOWN})", r#type = r#type);
            raised(py, &Error::config(format!("column {name}"), problem))
        };
        let data_type = match (r#type, labels) {
            ("enum", labels) => DataType::Enum { labels: labels.unwrap_or_default() },
            (name, _) => parse(name).ok_or_else(unknown)?,
        };
        let mut column = Column::new(name, data_type);
        (column.nullable, column.generated) = (nullable, generated);
        if let Some(native) = native {
            column.native = native;
        }
        Ok(Self { column })
    }

    #[getter]
    fn name(&self) -> &str {
        &self.column.name
    }

    #[getter(r#type)]
    fn type_(&self) -> String {
        self.column.data_type.to_string()
    }

    #[getter]
    fn native(&self) -> &str {
        &self.column.native
    }

    #[getter]
    fn nullable(&self) -> bool {
        self.column.nullable
    }

    #[getter]
    fn generated(&self) -> bool {
        self.column.generated
    }

    fn __repr__(&self) -> String {
        format!("Column({:?}, {:?})", self.column.name, self.column.data_type.to_string())
    }
}

const KNOWN: &str = "bool, int16, int32, int64, uint64, float32, float64, decimal, decimal(p,s), text, text(n), \
                     char(n), bytes, date, time, timetz, timestamp, timestamptz, interval, uuid, json, bit(n), \
                     varbit, varbit(n), enum, and any of them with []; other(name)";

/// The type of this name: the inverse of its `Display`.
fn parse(name: &str) -> Option<DataType> {
    if let Some(of) = name.strip_suffix("[]") {
        return Some(DataType::Array(Box::new(parse(of)?)));
    }
    let (word, arguments) = match name.split_once('(') {
        Some((word, rest)) => (word, Some(rest.strip_suffix(')')?)),
        None => (name, None),
    };
    let number = || arguments.map(|a| a.trim().parse::<u32>().ok());
    Some(match (word, arguments) {
        ("bool", None) => DataType::Bool,
        ("int16", None) => DataType::Int16,
        ("int32", None) => DataType::Int32,
        ("int64", None) => DataType::Int64,
        ("uint64", None) => DataType::UInt64,
        ("float32", None) => DataType::Float32,
        ("float64", None) => DataType::Float64,
        ("decimal", None) => DataType::Decimal { precision: None, scale: None },
        ("decimal", Some(both)) => {
            let (precision, scale) = both.split_once(',').unwrap_or((both, "0"));
            DataType::Decimal {
                precision: Some(precision.trim().parse().ok()?),
                scale: Some(scale.trim().parse().ok()?),
            }
        }
        ("text", None) => DataType::Text { max_chars: None },
        ("text", Some(_)) => DataType::Text { max_chars: Some(number()??) },
        ("char", Some(_)) => DataType::Char { chars: number()?? },
        ("bytes", None) => DataType::Bytes,
        ("date", None) => DataType::Date,
        ("time", None) => DataType::Time,
        ("timetz", None) => DataType::TimeTz,
        ("timestamp", None) => DataType::Timestamp,
        ("timestamptz", None) => DataType::TimestampTz,
        ("interval", None) => DataType::Interval,
        ("uuid", None) => DataType::Uuid,
        ("json", None) => DataType::Json,
        ("bit", Some(_)) => DataType::Bit { length: Some(number()??), varying: false },
        ("varbit", None) => DataType::Bit { length: None, varying: true },
        ("varbit", Some(_)) => DataType::Bit { length: Some(number()??), varying: true },
        ("other", Some(name)) => DataType::Other(name.to_owned()),
        _ => return None,
    })
}

/// A table: its columns, and which of them identify a row.
#[pyclass(frozen, module = "anabranch", name = "Table")]
#[derive(Clone)]
pub(crate) struct PyTable {
    pub(crate) schema: Arc<TableSchema>,
}

#[pymethods]
impl PyTable {
    #[new]
    #[pyo3(signature = (name, columns, *, key, schema=""))]
    fn new(
        py: Python<'_>,
        name: String,
        columns: Vec<Bound<'_, PyColumn>>,
        key: Vec<String>,
        schema: &str,
    ) -> PyResult<Self> {
        let columns: Vec<Column> = columns.iter().map(|c| c.get().column.clone()).collect();
        let mut places = Vec::with_capacity(key.len());
        for column in &key {
            let at = columns.iter().position(|c| c.name == *column);
            let at = at.and_then(|at| u16::try_from(at).ok());
            let missing = || Error::config("key", format!("the table {name} has no column {column}"));
            places.push(at.ok_or_else(|| raised(py, &missing()))?);
        }
        let name = TableName::new(schema, name);
        Ok(Self { schema: Arc::new(TableSchema { name, columns, key: places }) })
    }

    #[getter]
    fn name(&self) -> &str {
        &self.schema.name.name
    }

    #[getter]
    fn schema(&self) -> &str {
        &self.schema.name.schema
    }

    /// `schema.name`, or the name.
    #[getter]
    fn full_name(&self) -> String {
        self.schema.name.to_string()
    }

    #[getter]
    fn columns(&self) -> Vec<PyColumn> {
        self.schema.columns.iter().map(|column| PyColumn { column: column.clone() }).collect()
    }

    #[getter]
    fn column_names(&self) -> Vec<&str> {
        self.schema.columns.iter().map(|c| c.name.as_str()).collect()
    }

    /// The names of the columns that identify a row, in key order.
    #[getter]
    fn key(&self) -> Vec<&str> {
        self.schema.key_columns().map(|c| c.name.as_str()).collect()
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
        other.cast::<Self>().is_ok_and(|other| other.get().schema == self.schema)
    }

    fn __hash__(&self) -> u64 {
        use std::hash::{DefaultHasher, Hash as _, Hasher as _};
        let mut hasher = DefaultHasher::new();
        self.schema.name.hash(&mut hasher);
        hasher.finish()
    }

    fn __repr__(&self) -> String {
        let columns: Vec<_> = self.schema.columns.iter().map(|c| format!("{} {}", c.name, c.data_type)).collect();
        format!("<Table {} ({}) key ({})>", self.schema.name, columns.join(", "), self.key().join(", "))
    }
}

/// A place in a partition: `rank` is compared, `token` resumes.
#[pyclass(frozen, module = "anabranch", name = "Position", eq, ord, hash)]
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PyPosition {
    rank: Rank,
    token: Vec<u8>,
}

impl PyPosition {
    pub(crate) fn of(position: &anabranch::Position) -> Self {
        Self { rank: position.rank.clone(), token: position.token.to_vec() }
    }

    pub(crate) fn position(&self) -> anabranch::Position {
        anabranch::Position::new(self.rank.clone(), self.token.clone())
    }
}

#[pymethods]
impl PyPosition {
    #[new]
    fn new(rank: Vec<u8>, token: Vec<u8>) -> Self {
        Self { rank: Rank::new(rank), token }
    }

    /// The place after the transaction of this rank.
    #[staticmethod]
    fn after(transaction: Vec<u8>, token: Vec<u8>) -> Self {
        Self { rank: Rank::of_end(&transaction), token }
    }

    #[getter]
    fn rank<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.rank.as_bytes())
    }

    #[getter]
    fn token<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.token)
    }

    fn __repr__(&self) -> String {
        format!("Position(rank={:?}, token={:?})", self.rank, String::from_utf8_lossy(&self.token))
    }
}
