//! Errors across the border: `anabranch.Error` with its kind, and back.

use std::error::Error as StdError;

use anabranch::{Error, ErrorKind};
use pyo3::exceptions::{PyConnectionError, PyTimeoutError};
use pyo3::prelude::*;

/// The exception of an error: its class tells the kind, its text is the whole report. What a
/// connector in Python raised is its cause.
pub(crate) fn raised(py: Python<'_>, error: &Error) -> PyErr {
    let made = py.import("anabranch._errors").and_then(|m| m.call_method1("of", (error.kind().name(), error.report())));
    match made {
        Ok(exception) => {
            let raised = PyErr::from_value(exception);
            if let Some(cause) = of_python(error) {
                raised.set_cause(py, Some(cause.clone_ref(py)));
            }
            raised
        }
        Err(defect) => defect,
    }
}

/// For `?` in functions that are called from Python.
pub(crate) trait OrRaise<T> {
    fn or_raise(self, py: Python<'_>) -> PyResult<T>;
}

impl<T> OrRaise<T> for anabranch::Result<T> {
    fn or_raise(self, py: Python<'_>) -> PyResult<T> {
        self.map_err(|e| raised(py, &e))
    }
}

/// The exception in the chain of an error.
fn of_python(error: &Error) -> Option<&PyErr> {
    let mut cause: Option<&(dyn StdError + 'static)> = error.source();
    while let Some(link) = cause {
        if let Some(exception) = link.downcast_ref::<PyErr>() {
            return Some(exception);
        }
        cause = link.source();
    }
    None
}

/// An exception that a connector in Python raised. `anabranch.Error` keeps its kind; a connection or a
/// time that ran out is worth another try (`lost` says which); everything else is a defect.
pub(crate) fn caught(py: Python<'_>, exception: PyErr, doing: &str, lost: ErrorKind) -> Error {
    let value = exception.value(py);
    let kind = value.getattr("kind").and_then(|k| k.extract::<String>()).ok();
    let own = py.import("anabranch._errors").and_then(|m| m.getattr("Error")).ok();
    if own.is_some_and(|class| value.is_instance(&class).unwrap_or(false)) {
        let kind = match kind.as_deref() {
            Some("transient") => ErrorKind::Transient,
            Some("indeterminate") => ErrorKind::Indeterminate,
            Some("rejected") => ErrorKind::Rejected,
            Some("fenced") => ErrorKind::Fenced,
            Some("config") => ErrorKind::Config,
            _ => ErrorKind::Fatal,
        };
        return Error::new(kind, value.to_string());
    }
    let lost_it = exception.is_instance_of::<PyConnectionError>(py) || exception.is_instance_of::<PyTimeoutError>(py);
    let kind = if lost_it { lost } else { ErrorKind::Fatal };
    Error::new(kind, format!("{doing} raised an exception")).because(exception)
}
