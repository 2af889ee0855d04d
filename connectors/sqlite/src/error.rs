//! What SQLite's result codes ask for.
//!
//! Source: <https://www.sqlite.org/rescode.html>.

use std::fmt::Display;
use std::path::Path;

use anabranch_core::{Error, ErrorKind};
use rusqlite::ffi::{self, ErrorCode};

/// An error of anything but COMMIT, by its code: `doing` says what was tried, `key` names the path in
/// the configuration.
pub(crate) fn failed(key: &str, path: &Path, doing: impl Display, error: rusqlite::Error) -> Error {
    let file = path.display();
    let text = message(&error);
    let Some(code) = code(&error) else {
        return Error::fatal(format!("{file}: {doing}: {text}"));
    };
    let (kind, hint) = match code {
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::FileLockingProtocolFailed => {
            (ErrorKind::Transient, "another connection holds the write lock")
        }
        ErrorCode::DiskFull => (ErrorKind::Transient, "the disk is full: free some space"),
        ErrorCode::SystemIoFailure | ErrorCode::OutOfMemory | ErrorCode::OperationInterrupted => {
            (ErrorKind::Transient, "")
        }
        ErrorCode::ReadOnly => (ErrorKind::Config, "make the file and its folder writable"),
        ErrorCode::CannotOpen | ErrorCode::PermissionDenied => {
            (ErrorKind::Config, "check the path and the rights of its folder")
        }
        ErrorCode::NotADatabase => (ErrorKind::Config, "the file is not an SQLite database: name another one"),
        ErrorCode::ConstraintViolation
        | ErrorCode::TypeMismatch
        | ErrorCode::TooBig
        | ErrorCode::ParameterOutOfRange => (ErrorKind::Rejected, ""),
        ErrorCode::DatabaseCorrupt => (ErrorKind::Fatal, "the file is damaged: restore it, or copy anew"),
        // A statement that does not fit the tables: they were changed by someone else.
        ErrorCode::Unknown | ErrorCode::SchemaChanged | ErrorCode::AuthorizationForStatementDenied => {
            (ErrorKind::Config, "")
        }
        _ => (ErrorKind::Fatal, ""),
    };
    let error = match kind {
        ErrorKind::Config => Error::config(key, format!("{file}: {doing}: {text}")),
        _ => Error::new(kind, format!("{file}: {doing}: {text}")),
    };
    if hint.is_empty() { error } else { error.hint(hint) }
}

/// An error of COMMIT. Only a lock that was not had is known to have done nothing: the commit
/// record may have reached the log before the write or the sync after it failed, and recovery
/// would then find it.
pub(crate) fn commit_failed(key: &str, path: &Path, error: rusqlite::Error) -> Error {
    let busy = matches!(code(&error), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked));
    let error = failed(key, path, "cannot commit", error);
    if busy { error } else { error.with_kind(ErrorKind::Indeterminate) }
}

/// Whether a unique key refused the row, which another order of rows may cure.
pub(crate) fn is_unique_violation(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|e| {
        matches!(
            e.extended_code,
            ffi::SQLITE_CONSTRAINT_UNIQUE | ffi::SQLITE_CONSTRAINT_PRIMARYKEY | ffi::SQLITE_CONSTRAINT_ROWID
        )
    })
}

fn code(error: &rusqlite::Error) -> Option<ErrorCode> {
    match error {
        rusqlite::Error::SqlInputError { error, .. } => Some(error.code),
        other => other.sqlite_error_code(),
    }
}

fn message(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqliteFailure(_, Some(text)) => text.clone(),
        rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: i32) -> rusqlite::Error {
        rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some("said SQLite".to_owned()))
    }

    #[test]
    fn codes_ask_for_what_they_should() {
        let cases = [
            (ffi::SQLITE_BUSY, ErrorKind::Transient),
            (ffi::SQLITE_LOCKED, ErrorKind::Transient),
            (ffi::SQLITE_FULL, ErrorKind::Transient),
            (ffi::SQLITE_IOERR_FSYNC, ErrorKind::Transient),
            (ffi::SQLITE_READONLY, ErrorKind::Config),
            (ffi::SQLITE_CANTOPEN, ErrorKind::Config),
            (ffi::SQLITE_NOTADB, ErrorKind::Config),
            (ffi::SQLITE_CONSTRAINT_CHECK, ErrorKind::Rejected),
            (ffi::SQLITE_CONSTRAINT_DATATYPE, ErrorKind::Rejected),
            (ffi::SQLITE_MISMATCH, ErrorKind::Rejected),
            (ffi::SQLITE_TOOBIG, ErrorKind::Rejected),
            (ffi::SQLITE_CORRUPT, ErrorKind::Fatal),
        ];
        for (code, kind) in cases {
            let error = failed("sink.path", Path::new("/data/t.db"), "cannot write", of(code));
            assert_eq!(error.kind(), kind, "{error}");
            let key = if kind == ErrorKind::Config { "sink.path: " } else { "" };
            assert!(error.to_string().starts_with(&format!("{key}/data/t.db: cannot write: said SQLite")), "{error}");
        }
    }

    #[test]
    fn a_commit_that_failed_may_have_happened() {
        let kind = |code| commit_failed("sink.path", Path::new("t.db"), of(code)).kind();
        assert_eq!(kind(ffi::SQLITE_BUSY), ErrorKind::Transient);
        assert_eq!(kind(ffi::SQLITE_FULL), ErrorKind::Indeterminate);
        assert_eq!(kind(ffi::SQLITE_IOERR_FSYNC), ErrorKind::Indeterminate);
    }
}
