//! Values of rows, as Python's own types and back.
//!
//! | column | Python |
//! |---|---|
//! | bool | `bool` |
//! | whole numbers | `int` |
//! | floats | `float` |
//! | decimal | `decimal.Decimal` |
//! | bytes | `bytes` |
//! | date, time, timetz, timestamp, timestamptz (UTC) | of `datetime` |
//! | uuid | `uuid.UUID` |
//! | json | `anabranch.Json`, a `str` with `loads()` |
//! | everything else | `str`, the canonical text |
//!
//! What Python cannot hold (`infinity`, years before 1 and after 9999, `24:00:00`) is the canonical
//! text, a `str`. NULL is `None`; what the source did not send is `anabranch.UNCHANGED`.

use anabranch::{Column, DataType, RowRef, Value, ValueRef};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyByteArray, PyBytes, PyFloat, PyInt, PyString};

/// What is asked of Python's own modules, found once.
struct Types {
    unchanged: Py<PyAny>,
    decimal: Py<PyAny>,
    uuid: Py<PyAny>,
    json: Py<PyAny>,
    date: Py<PyAny>,
    time: Py<PyAny>,
    datetime: Py<PyAny>,
    timezone: Py<PyAny>,
    utc: Py<PyAny>,
    /// Turns any other object into canonical text, or says why not.
    text: Py<PyAny>,
}

static TYPES: PyOnceLock<Types> = PyOnceLock::new();

fn types(py: Python<'_>) -> PyResult<&Types> {
    TYPES.get_or_try_init(py, || {
        let of = |module: &str, name: &str| py.import(module)?.getattr(name).map(Bound::unbind);
        Ok(Types {
            unchanged: of("anabranch._types", "UNCHANGED")?,
            decimal: of("decimal", "Decimal")?,
            uuid: of("uuid", "UUID")?,
            json: of("anabranch._types", "Json")?,
            date: of("datetime", "date")?,
            time: of("datetime", "time")?,
            datetime: of("datetime", "datetime")?,
            timezone: of("anabranch._types", "offset")?,
            utc: py.import("datetime")?.getattr("timezone")?.getattr("utc")?.unbind(),
            text: of("anabranch._types", "canonical")?,
        })
    })
}

/// A value as Python has it.
pub(crate) fn to_python<'py>(py: Python<'py>, value: ValueRef<'_>, column: &Column) -> PyResult<Bound<'py, PyAny>> {
    let text = match value {
        ValueRef::Null => return Ok(py.None().into_bound(py)),
        ValueRef::Unchanged => return Ok(types(py)?.unchanged.bind(py).clone()),
        ValueRef::Bool(v) => return Ok(PyBool::new(py, v).to_owned().into_any()),
        ValueRef::Int(v) if column.data_type == DataType::Bool => {
            return Ok(PyBool::new(py, v != 0).to_owned().into_any());
        }
        ValueRef::Int(v) if !matches!(column.data_type, DataType::Decimal { .. }) => {
            return Ok(v.into_pyobject(py)?.into_any());
        }
        ValueRef::Float(v) if !matches!(column.data_type, DataType::Decimal { .. }) => {
            return Ok(PyFloat::new(py, v).into_any());
        }
        ValueRef::Bytes(v) => return Ok(PyBytes::new(py, v).into_any()),
        ValueRef::Int(v) => return types(py)?.decimal.bind(py).call1((v,)),
        ValueRef::Float(v) => return types(py)?.decimal.bind(py).call1((v.to_string(),)),
        ValueRef::Text(text) => text,
    };
    let typed = typed(py, text, &column.data_type)?;
    Ok(typed.unwrap_or_else(|| PyString::new(py, text).into_any()))
}

/// What a canonical text stands for; `None` if Python has nothing for it but the text.
fn typed<'py>(py: Python<'py>, text: &str, of: &DataType) -> PyResult<Option<Bound<'py, PyAny>>> {
    let t = types(py)?;
    Ok(match of {
        DataType::Bool => match text {
            "t" | "true" | "1" => Some(PyBool::new(py, true).to_owned().into_any()),
            "f" | "false" | "0" => Some(PyBool::new(py, false).to_owned().into_any()),
            _ => None,
        },
        DataType::Int16 | DataType::Int32 | DataType::Int64 => match text.parse::<i64>() {
            Ok(v) => Some(v.into_pyobject(py)?.into_any()),
            Err(_) => None,
        },
        DataType::UInt64 => match text.parse::<u64>() {
            Ok(v) => Some(v.into_pyobject(py)?.into_any()),
            Err(_) => None,
        },
        DataType::Float32 | DataType::Float64 => match text.parse::<f64>() {
            Ok(v) => Some(PyFloat::new(py, v).into_any()),
            Err(_) => None,
        },
        DataType::Decimal { .. } => t.decimal.bind(py).call1((text,)).ok(),
        DataType::Bytes => bytes(text).map(|bytes| PyBytes::new(py, &bytes).into_any()),
        DataType::Date => match date(text) {
            Some(date) => t.date.bind(py).call1(date).ok(),
            None => None,
        },
        DataType::Time | DataType::TimeTz => time_of_day(py, t, text)?,
        DataType::Timestamp | DataType::TimestampTz => instant(py, t, text, *of == DataType::TimestampTz)?,
        DataType::Uuid => t.uuid.bind(py).call1((text,)).ok(),
        DataType::Json => Some(t.json.bind(py).call1((text,))?),
        _ => None,
    })
}

/// `\x` and hexadecimal digits.
pub(crate) fn bytes(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("\\x")?.as_bytes();
    let digit = |c: u8| (c as char).to_digit(16).map(|v| v as u8);
    let pair = |pair: &[u8]| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?);
    digits.chunks(2).map(pair).collect()
}

/// `YYYY-MM-DD` of the years 1 to 9999.
pub(crate) fn date(text: &str) -> Option<(i32, u32, u32)> {
    let mut parts = text.split('-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || year.len() != 4 {
        return None;
    }
    Some((year.parse().ok()?, month.parse().ok()?, day.parse().ok()?))
}

/// `HH:MM:SS[.ffffff]`: hours, minutes, seconds, microseconds.
pub(crate) fn clock(text: &str) -> Option<(u32, u32, u32, u32)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut parts = whole.split(':');
    let (h, m, s) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    if parts.next().is_some() || fraction.len() > 6 {
        return None;
    }
    let micros = format!("{fraction:0<6}").parse().ok()?;
    Some((h, m, s, micros))
}

/// Cuts the offset off: the text before, and the offset in seconds.
pub(crate) fn offset(text: &str) -> Option<(&str, i32)> {
    let at = text.rfind(['+', '-'])?;
    let sign = if text.as_bytes()[at] == b'-' { -1 } else { 1 };
    let mut seconds = 0;
    for (part, unit) in text[at + 1..].split(':').zip([3600, 60, 1]) {
        seconds += part.parse::<i32>().ok()? * unit;
    }
    Some((&text[..at], sign * seconds))
}

fn time_of_day<'py>(py: Python<'py>, t: &Types, text: &str) -> PyResult<Option<Bound<'py, PyAny>>> {
    let (text, zone) = match offset(text) {
        Some((text, seconds)) => (text, t.timezone.bind(py).call1((seconds,))?),
        None => (text, py.None().into_bound(py)),
    };
    Ok(clock(text).and_then(|(h, m, s, micros)| t.time.bind(py).call1((h, m, s, micros, zone)).ok()))
}

fn instant<'py>(py: Python<'py>, t: &Types, text: &str, zoned: bool) -> PyResult<Option<Bound<'py, PyAny>>> {
    let Some((day, rest)) = text.split_once(' ') else { return Ok(None) };
    let (rest, zone) = match (zoned, offset(rest)) {
        (false, _) => (rest, py.None().into_bound(py)),
        (true, Some((rest, 0))) => (rest, t.utc.bind(py).clone()),
        (true, Some((rest, seconds))) => (rest, t.timezone.bind(py).call1((seconds,))?),
        (true, None) => return Ok(None),
    };
    let (Some((year, month, day)), Some((h, m, s, micros))) = (date(day), clock(rest)) else { return Ok(None) };
    Ok(t.datetime.bind(py).call1((year, month, day, h, m, s, micros, zone)).ok())
}

/// The canonical text of a value; `None` for NULL and for what was not sent.
pub(crate) fn canonical(value: ValueRef<'_>) -> Option<String> {
    Some(match value {
        ValueRef::Null | ValueRef::Unchanged => return None,
        ValueRef::Bool(v) => if v { "t" } else { "f" }.to_owned(),
        ValueRef::Int(v) => v.to_string(),
        ValueRef::Float(v) if v.is_infinite() => if v > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
        ValueRef::Float(v) => v.to_string(),
        ValueRef::Text(v) => v.to_owned(),
        ValueRef::Bytes(v) => v.iter().fold("\\x".to_owned(), |text, byte| text + &format!("{byte:02x}")),
    })
}

/// A value of a connector or transform in Python, for this column.
///
/// # Errors
/// `TypeError`, naming the column, for a type that it does not take.
pub(crate) fn from_python(value: &Bound<'_, PyAny>, column: &Column) -> PyResult<Value> {
    let py = value.py();
    if value.is_none() {
        return Ok(Value::Null);
    }
    if value.is(types(py)?.unchanged.bind(py)) {
        return Ok(Value::Unchanged);
    }
    if let Ok(text) = value.cast::<PyString>() {
        return Ok(Value::Text(text.extract()?));
    }
    let made = match &column.data_type {
        DataType::Bool => value.cast::<PyBool>().ok().map(|v| Value::Bool(v.is_true())),
        DataType::Int16 | DataType::Int32 | DataType::Int64 | DataType::UInt64 if value.is_instance_of::<PyInt>() => {
            // More than 64 bits signed goes as its digits, of which Python writes only so many.
            Some(match value.extract::<i64>() {
                Ok(number) => Value::Int(number),
                Err(_) => Value::Text(value.str()?.extract()?),
            })
        }
        DataType::Float32 | DataType::Float64
            if value.is_instance_of::<PyFloat>() || value.is_instance_of::<PyInt>() =>
        {
            Some(Value::Float(value.extract()?))
        }
        DataType::Bytes => match (value.cast::<PyBytes>(), value.cast::<PyByteArray>()) {
            (Ok(bytes), _) => Some(Value::Bytes(bytes.as_bytes().to_vec().into())),
            (_, Ok(bytes)) => Some(Value::Bytes(bytes.to_vec().into())),
            _ => None,
        },
        _ => None,
    };
    if let Some(made) = made {
        return Ok(made);
    }
    let text = types(py)?.text.bind(py).call1((value, column.data_type.to_string()))?;
    if text.is_none() {
        let got = value.get_type().name()?.to_string();
        return Err(PyTypeError::new_err(format!(
            "the column {} ({}) does not take {got}",
            column.name, column.data_type
        )));
    }
    Ok(Value::Text(text.extract()?))
}

/// The values of a row.
pub(crate) fn row<'py>(py: Python<'py>, row: RowRef<'_>, columns: &[Column]) -> PyResult<Vec<Bound<'py, PyAny>>> {
    row.values().zip(columns).map(|(value, column)| to_python(py, value, column)).collect()
}
