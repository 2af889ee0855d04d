//! From what PostgreSQL answers to what the runtime does.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt::Write as _;
use std::io;

use anabranch_core::{Error, ErrorKind};

/// What the server said: the fields of an ErrorResponse (its manual, "Error and Notice Message Fields").
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ServerError {
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) detail: Option<String>,
    pub(crate) hint: Option<String>,
}

impl ServerError {
    /// The error to return; `what` says what was being done.
    pub(crate) fn into_error(self, what: &str) -> Error {
        let mut text = format!("{what}: {} (SQLSTATE {})", self.message, self.code);
        if let Some(detail) = &self.detail {
            let _ = write!(text, "; {detail}");
        }
        let (kind, known) = match yugabyte(&self.code, &self.message) {
            Some((kind, hint)) => (kind, hint),
            None => (kind_of(&self.code), None),
        };
        let error = Error::new(kind, text);
        match known.map(str::to_owned).or(self.hint) {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

/// What a SQLSTATE asks for (PostgreSQL's manual, appendix A).
pub(crate) fn kind_of(code: &str) -> ErrorKind {
    match code {
        // Serialization failure, deadlock, lock not available, object in use, statement cancelled; refused
        // because a statement before it was: whoever repeats the transaction sees why.
        "40001" | "40P01" | "55P03" | "55006" | "57014" | "25P02" => ErrorKind::Transient,
        // Read-only transaction: the URL points to a standby, or the server is fenced.
        "25006" => ErrorKind::Config,
        _ => match code.get(..2) {
            // Connection lost; out of resources; the server stops or starts.
            Some("08" | "53" | "57") => ErrorKind::Transient,
            // A value or a constraint.
            Some("22" | "23") => ErrorKind::Rejected,
            // Authentication, rights, names that do not exist, features that do not exist.
            Some("28" | "42" | "3D" | "3F" | "0A") => ErrorKind::Config,
            _ => ErrorKind::Fatal,
        },
    }
}

/// What YugabyteDB's own errors ask for. Its storage layer's come as internal errors, or under a code that
/// says less than the text, which no PostgreSQL writes (yugabyte-db: `status.cc`, `pg_yb_utils.c`,
/// `transaction.cc`, `cdc_service.cc`).
fn yugabyte(code: &str, message: &str) -> Option<(ErrorKind, Option<&'static str>)> {
    const AGAIN: [&str; 16] = [
        "catalog version mismatch",
        "catalog snapshot used for this transaction has been invalidated",
        "schema version mismatch",
        "restart read required",
        "expired or aborted by a conflict",
        "conflicts with higher priority transaction",
        "unknown transaction, could be recently aborted",
        "transaction was recently aborted",
        "not the leader",
        "leader not ready",
        "leader does not have a valid lease",
        "leader is not available",
        "service is shutting down",
        "timed out: ",
        "network error",
        "try again",
    ];
    const GONE: [&str; 6] = [
        "already gced intents",
        "has expired",
        "is expired",
        "checkpoint_too_old",
        "checkpoint too old",
        "has been garbage collected",
    ];
    if !matches!(code, "XX000" | "40001" | "58000") {
        return None;
    }
    let text = message.to_ascii_lowercase();
    let has = |texts: &[&str]| texts.iter().any(|t| text.contains(t));
    if code != "40001" && has(&GONE) && (text.contains("stream") || text.contains("cdcsdk") || text.contains("slot")) {
        return Some((ErrorKind::Fatal, Some(LAPSED)));
    }
    has(&AGAIN).then_some((ErrorKind::Transient, None))
}

/// What to do when YugabyteDB has dropped what a slot still needed.
pub(crate) const LAPSED: &str = "the slot was not read for longer than cdc_intent_retention_ms and \
    cdc_wal_retention_time_secs (8 hours unless set), or too slowly, and the server has dropped changes that were not \
    applied yet: they are lost to this slot. Drop it with pg_drop_replication_slot, start the pipeline anew with a fresh \
    checkpoint and a fresh copy, or compare and repair with `anabranch verify --repair`; raise both limits (24 hours at most) first";

/// Converts an error of the driver; `what` says what was being done. The server's message and detail
/// are kept, and no statement's parameters.
pub(crate) fn classify(e: tokio_postgres::Error, what: &str) -> Error {
    if let Some(db) = e.as_db_error() {
        return ServerError {
            code: db.code().code().to_owned(),
            message: db.message().to_owned(),
            detail: db.detail().map(str::to_owned),
            hint: db.hint().map(str::to_owned),
        }
        .into_error(what);
    }
    let text = chain(&e);
    let lost = e.is_closed() || text.starts_with("timeout");
    let kind = if lost { ErrorKind::Transient } else { kind_of_chain(&e) };
    Error::new(kind, format!("{what}: {text}"))
}

/// Converts an error of a socket.
pub(crate) fn socket(e: io::Error, what: &str) -> Error {
    Error::new(kind_of_chain(&e), format!("{what}: {}", chain(&e)))
}

/// A server that does not speak the protocol as its manual says.
pub(crate) fn protocol(what: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Fatal, what)
}

fn kind_of_chain(e: &(dyn StdError + 'static)) -> ErrorKind {
    let mut next = Some(e);
    let mut socket = false;
    while let Some(e) = next {
        if let Some(tls) = e.downcast_ref::<rustls::Error>() {
            // A certificate does not mend itself; anything else may be a cut connection.
            return match tls {
                rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => ErrorKind::Config,
                _ => ErrorKind::Transient,
            };
        }
        if let Some(io) = e.downcast_ref::<io::Error>() {
            socket = true;
            if let Some(inner) = io.get_ref() {
                let inner: &(dyn StdError + 'static) = inner;
                if inner.downcast_ref::<rustls::Error>().is_some() {
                    next = Some(inner);
                    continue;
                }
            }
        }
        next = e.source();
    }
    if socket { ErrorKind::Transient } else { ErrorKind::Config }
}

/// The chain in one line, without repeating what an outer message has already said.
pub(crate) fn chain(e: &(dyn StdError + 'static)) -> String {
    let mut text = e.to_string();
    let mut next = e.source();
    while let Some(e) = next {
        let inner = e.to_string();
        if !text.contains(&inner) {
            let _ = write!(text, ": {inner}");
        }
        next = e.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlstates_ask_for_the_right_thing() {
        for (code, kind) in [
            ("08006", ErrorKind::Transient),
            ("57P01", ErrorKind::Transient),
            ("53300", ErrorKind::Transient),
            ("40001", ErrorKind::Transient),
            ("40P01", ErrorKind::Transient),
            ("55P03", ErrorKind::Transient),
            ("25P02", ErrorKind::Transient),
            ("22003", ErrorKind::Rejected),
            ("23505", ErrorKind::Rejected),
            ("28P01", ErrorKind::Config),
            ("42501", ErrorKind::Config),
            ("3D000", ErrorKind::Config),
            ("42P01", ErrorKind::Config),
            ("XX000", ErrorKind::Fatal),
            ("", ErrorKind::Fatal),
        ] {
            assert_eq!(kind_of(code), kind, "{code}");
        }
    }

    #[test]
    fn errors_of_yugabytedb_are_told_by_their_texts() {
        for (code, message, kind) in [
            ("40001", "Restart read required at: { read: 1 }", ErrorKind::Transient),
            ("XX000", "Query error: Restart read required at: { read: 1 }", ErrorKind::Transient),
            (
                "XX000",
                "Catalog Version Mismatch: A DDL occurred while processing this query. Try again.",
                ErrorKind::Transient,
            ),
            ("XX000", "schema version mismatch for table 1: expected 3, got 2", ErrorKind::Transient),
            ("XX000", "Illegal state: Not the leader", ErrorKind::Transient),
            ("40001", "Operation expired: Transaction a expired or aborted by a conflict", ErrorKind::Transient),
            ("XX000", "Timed out: Perform RPC to 10.0.0.1:9100 timed out after 60.000s", ErrorKind::Transient),
            ("XX000", "CDCSDK Trying to fetch already GCed intents for transaction 4ef7", ErrorKind::Fatal),
            ("XX000", "Stream ID abc is expired for Tablet ID def", ErrorKind::Fatal),
            ("XX000", "cache lookup failed for type 7", ErrorKind::Fatal),
            ("22003", "try again", ErrorKind::Rejected),
        ] {
            let error = ServerError { code: code.to_owned(), message: message.to_owned(), ..ServerError::default() };
            assert_eq!(error.into_error("x").kind(), kind, "{message}");
        }
    }

    #[test]
    fn a_refused_connection_is_transient() {
        let e = socket(io::Error::from(io::ErrorKind::ConnectionRefused), "cannot connect");
        assert_eq!(e.kind(), ErrorKind::Transient);
    }
}
