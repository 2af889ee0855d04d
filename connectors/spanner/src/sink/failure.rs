//! What an error of a write asks for, by its code.

use anabranch_core::{Error, ErrorKind};

use crate::client::{Code, SpannerError};

/// For writes of rows: what Spanner refuses for the row's sake is `Rejected`.
///
/// | code | kind |
/// |---|---|
/// | any, when the commit was sent and its outcome is not known | `Indeterminate` |
/// | ABORTED, UNAVAILABLE, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, CANCELLED, INTERNAL, UNKNOWN | `Transient` |
/// | ALREADY_EXISTS, FAILED_PRECONDITION, INVALID_ARGUMENT, OUT_OF_RANGE, NOT_FOUND of a row | `Rejected` |
/// | PERMISSION_DENIED, UNAUTHENTICATED, NOT_FOUND of a table, column, database or session | `Config` |
/// | everything else | `Fatal` |
pub(crate) fn of_write(error: SpannerError, doing: &str) -> Error {
    let kind = match error.code {
        _ if error.may_have_happened => ErrorKind::Indeterminate,
        code if code.is_transient() => ErrorKind::Transient,
        Code::NotFound if is_of_schema(&error.message) => ErrorKind::Config,
        Code::AlreadyExists | Code::FailedPrecondition | Code::InvalidArgument | Code::OutOfRange | Code::NotFound => {
            ErrorKind::Rejected
        }
        Code::PermissionDenied | Code::Unauthenticated => ErrorKind::Config,
        _ => ErrorKind::Fatal,
    };
    let too_large = error.message.contains("too many mutations") || error.message.contains("maximum commit size");
    let new = Error::new(kind, doing.to_owned());
    let new = match error.code {
        Code::PermissionDenied => new.hint("grant roles/spanner.databaseUser to the account"),
        _ if too_large => new.hint("a Spanner transaction has 80,000 mutations (columns written, with those of secondary indexes) and 100 MiB at most: a source transaction beyond that cannot be applied in one"),
        Code::NotFound if error.message.contains("parent") => {
            new.hint("the parent's row is not in the target; with order = \"transaction\" it is written first")
        }
        _ => new,
    };
    new.because(error)
}

/// Rows that are not found are told by their keys.
fn is_of_schema(message: &str) -> bool {
    ["Table not found", "Column not found", "Database not found", "Session not found", "Instance not found"]
        .iter()
        .any(|what| message.contains(what))
}

/// Whether the server does not know the option to leave a transaction out of change streams.
pub(crate) fn refuses_exclusion(error: &SpannerError) -> bool {
    matches!(error.code, Code::InvalidArgument | Code::Unimplemented)
        && error.message.to_lowercase().contains("exclude")
        && !error.may_have_happened
}

/// A transaction that the server does not know any more was given up, as if aborted: the emulator
/// says so when another one came in between. If its commit was sent, it may also have been done, and
/// asked for again by the client over a new connection.
pub(crate) fn of_lost_transaction(mut error: SpannerError, commit_sent: bool) -> SpannerError {
    let forgotten = match error.code {
        Code::NotFound => error.message.contains("Transaction not found"),
        // The emulator's words for a transaction that was crowded out by another one.
        Code::FailedPrecondition => {
            error.message.contains("Invalid transaction ID")
                || error.message.contains("using a transaction after it has been committed or rolledback")
        }
        _ => false,
    };
    if forgotten {
        error.code = Code::Aborted;
        error.may_have_happened |= commit_sent;
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_tell_what_to_do() {
        let kind = |code, message: &str| of_write(SpannerError::new(code, message), "cannot write").kind();
        assert_eq!(kind(Code::Aborted, ""), ErrorKind::Transient);
        assert_eq!(kind(Code::AlreadyExists, "UNIQUE violation"), ErrorKind::Rejected);
        assert_eq!(kind(Code::NotFound, "Table T: Row {Int64(99)} not found."), ErrorKind::Rejected);
        assert_eq!(kind(Code::NotFound, "Table not found: T"), ErrorKind::Config);
        assert_eq!(kind(Code::PermissionDenied, ""), ErrorKind::Config);
        assert_eq!(kind(Code::DataLoss, ""), ErrorKind::Fatal);
        let lost = SpannerError { may_have_happened: true, ..SpannerError::new(Code::Unavailable, "") };
        assert_eq!(of_write(lost, "cannot commit").kind(), ErrorKind::Indeterminate);
        let forgotten = |sent| of_lost_transaction(SpannerError::new(Code::NotFound, "Transaction not found: 3"), sent);
        assert_eq!(of_write(forgotten(false), "cannot write").kind(), ErrorKind::Transient);
        assert_eq!(of_write(forgotten(true), "cannot write").kind(), ErrorKind::Indeterminate);
    }
}
