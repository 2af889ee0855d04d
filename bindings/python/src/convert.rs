//! Plain data across the border: configuration in, results out.

use anabranch::mapping::preflight::{ColumnReport, Preflight, Problem, TableReport};
use anabranch::{Error, Timestamp};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};
use serde_json::json;
use toml::{Table, Value};

use crate::error::raised;

/// A configuration value. `None` in a dict means that the key is not set.
///
/// # Errors
/// `ConfigError`, naming the key (`at`) and the type of what stands there; never the value.
pub(crate) fn config(at: &str, value: &Bound<'_, PyAny>) -> PyResult<Value> {
    if let Ok(value) = value.cast::<PyString>() {
        return Ok(Value::String(value.extract()?));
    }
    if let Ok(value) = value.cast::<PyBool>() {
        return Ok(Value::Boolean(value.is_true()));
    }
    if value.is_instance_of::<PyInt>() {
        let number = value.extract::<i64>();
        return number.map(Value::Integer).map_err(|_| wrong(value.py(), at, "is a number of more than 64 bits"));
    }
    if let Ok(value) = value.cast::<PyFloat>() {
        return Ok(Value::Float(value.value()));
    }
    if let Ok(dict) = value.cast::<PyDict>() {
        return table(at, dict).map(Value::Table);
    }
    if value.is_instance_of::<PyList>() || value.is_instance_of::<PyTuple>() {
        let mut list = Vec::new();
        for (n, item) in value.try_iter()?.enumerate() {
            list.push(config(&format!("{at}[{n}]"), &item?)?);
        }
        return Ok(Value::Array(list));
    }
    // Paths, and durations in seconds, as people have them at hand.
    if value.hasattr("__fspath__")? {
        let path = value.py().import("os")?.call_method1("fspath", (value,))?;
        return path.extract::<String>().map(Value::String);
    }
    if let Ok(seconds) = value.call_method0("total_seconds") {
        return seconds.extract::<f64>().map(Value::Float);
    }
    let type_name = value.get_type().name()?.to_string();
    let fix = format!("is a {type_name}; give a text, a number, True or False, a list or a dict");
    Err(wrong(value.py(), at, &fix))
}

/// As [`config`], of a whole dict.
pub(crate) fn table(at: &str, dict: &Bound<'_, PyDict>) -> PyResult<Table> {
    let mut table = Table::new();
    for (key, value) in dict.iter() {
        let Ok(key) = key.extract::<String>() else {
            return Err(wrong(dict.py(), at, "has a key that is no text"));
        };
        if !value.is_none() {
            let inner = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
            table.insert(key, config(&inner, &value)?);
        }
    }
    Ok(table)
}

fn wrong(py: Python<'_>, at: &str, problem: &str) -> PyErr {
    raised(py, &Error::config(at, problem))
}

/// JSON text as Python has it.
pub(crate) fn loads(py: Python<'_>, text: &str) -> PyResult<Py<PyAny>> {
    Ok(py.import("json")?.call_method1("loads", (text,))?.unbind())
}

/// What the library tells, as the JSON that the command line prints too.
macro_rules! as_json {
    ($py:expr, $value:expr) => {
        match serde_json::to_string($value) {
            Ok(text) => $crate::convert::loads($py, &text),
            Err(e) => Err($crate::convert::not_json(e)),
        }
    };
}
pub(crate) use as_json;

pub(crate) fn not_json(error: serde_json::Error) -> PyErr {
    PyValueError::new_err(format!("cannot write JSON: {error}"))
}

/// Seconds of a caller, as a duration; `None` is without end.
pub(crate) fn seconds(py: Python<'_>, argument: &str, value: Option<f64>) -> PyResult<Option<std::time::Duration>> {
    let made = value.map(std::time::Duration::try_from_secs_f64).transpose();
    made.map_err(|_| raised(py, &Error::config(argument, "must be a number of seconds, not negative")))
}

/// An instant as an aware `datetime`; of one that Python cannot have, the nearest.
pub(crate) fn datetime<'py>(py: Python<'py>, time: Timestamp) -> PyResult<Bound<'py, PyAny>> {
    py.import("anabranch._types")?.call_method1("instant", (time.as_micros(),))
}

/// An aware `datetime` as an instant.
pub(crate) fn timestamp(argument: &str, value: &Bound<'_, PyAny>) -> PyResult<Timestamp> {
    let micros = value.py().import("anabranch._types")?.call_method1("micros", (argument, value))?;
    Ok(Timestamp::from_micros(micros.extract()?))
}

/// What a check found, as the other results are told.
pub(crate) fn preflight(found: &Preflight) -> serde_json::Value {
    let table = |t: &TableReport| {
        let column = |c: &ColumnReport| {
            json!({
                "name": c.name, "source_type": c.source_type, "target_type": c.target_type,
                "fidelity": c.fidelity, "note": c.note, "consented": c.consented,
            })
        };
        let problem = |p: &Problem| json!({ "key": p.key, "problem": p.problem, "fix": p.fix });
        json!({
            "source": t.source.to_string(), "target": t.target.to_string(), "exists": t.exists,
            "create": t.create.as_ref().map(|(_, statement)| statement),
            "columns": t.columns.iter().map(column).collect::<Vec<_>>(),
            "problems": t.problems.iter().map(problem).collect::<Vec<_>>(),
            "notes": t.notes,
        })
    };
    json!({
        "tables": found.tables.iter().map(table).collect::<Vec<_>>(),
        "source_statements": found.source_statements,
        "text": found.to_string(),
        "verdict": found.verdict().err().map(|e| e.report()),
    })
}
