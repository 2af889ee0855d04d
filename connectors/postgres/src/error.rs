//! From the driver's errors to ours.

use anabranch_core::{Error, ErrorKind};

/// The error that `e`, met while doing `what`, means to the runtime.
pub(crate) fn classify(e: tokio_postgres::Error, what: &str) -> Error {
    let Some(db) = e.as_db_error() else { return Error::transient(what.to_owned()).because(e) };
    let code = db.code().code();
    let kind = match (&code[..2], code) {
        (_, "25006" | "42501") => ErrorKind::Config,
        ("08" | "40" | "53" | "55" | "57" | "58", _) => ErrorKind::Transient,
        ("22" | "23", _) => ErrorKind::Rejected,
        ("28" | "3D" | "3F" | "42" | "0A", _) => ErrorKind::Config,
        _ => ErrorKind::Fatal,
    };
    let mut text = format!("{what}: {}", db.message());
    if let Some(detail) = db.detail() {
        text.push_str(": ");
        text.push_str(detail);
    }
    Error::new(kind, text)
}
