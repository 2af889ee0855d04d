//! What the server's and the driver's errors ask for.

use std::borrow::Cow;
use std::io;

use anabranch_core::{Error, ErrorKind};
use mysql_async::{DriverError, IoError, ServerError};

/// Why a statement did not do what it should.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The server or the connection.
    Driver { error: mysql_async::Error, table: Option<Cow<'static, str>> },
    /// This connector.
    Own(Error),
}

/// What was going on when it failed: it decides what a lost connection means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Connecting or setting up.
    Connect,
    /// Within a transaction: nothing is committed.
    Statement,
    /// A COMMIT, or a statement that commits itself, was on its way.
    Commit,
}

/// A duplicate key: the statement met a row that it did not mean.
const DUPLICATE: [u16; 3] = [1022, 1062, 1586];
/// The guard of an upsert met a row with another key (see `plan.rs`).
const GUARD: u16 = 1242;

impl Failure {
    pub(crate) fn driver(error: mysql_async::Error) -> Self {
        Self::Driver { error, table: None }
    }

    /// Whether applying in another way may succeed: a unique value was taken.
    pub(crate) fn is_conflict(&self) -> bool {
        self.code().is_some_and(|c| DUPLICATE.contains(&c) || c == GUARD)
    }

    /// Whether the server refused because of a duplicate.
    pub(crate) fn is_duplicate(&self) -> bool {
        self.code().is_some_and(|c| DUPLICATE.contains(&c))
    }

    /// The server's error number.
    pub(crate) fn code(&self) -> Option<u16> {
        match self {
            Self::Driver { error: mysql_async::Error::Server(e), .. } => Some(e.code),
            _ => None,
        }
    }

    /// At the border: once.
    pub(crate) fn into_error(self, phase: Phase) -> Error {
        match self {
            Self::Own(error) => error,
            Self::Driver { error, table } => {
                let error = driver_error(error, phase);
                match table {
                    Some(table) => error.context(format!("table {table}")),
                    None => error,
                }
            }
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Own(error)
    }
}

impl From<mysql_async::Error> for Failure {
    fn from(error: mysql_async::Error) -> Self {
        Self::driver(error)
    }
}

fn driver_error(error: mysql_async::Error, phase: Phase) -> Error {
    match error {
        mysql_async::Error::Server(e) => server_error(e, phase),
        mysql_async::Error::Url(e) => Error::config("sink.url", e.to_string()),
        mysql_async::Error::Io(IoError::Tls(e)) if phase == Phase::Connect => tls_error(e),
        // tokio-rustls wraps what rustls says: a certificate that is not trusted, a name that differs.
        mysql_async::Error::Io(IoError::Io(e)) if phase == Phase::Connect && e.kind() == io::ErrorKind::InvalidData => {
            tls_error(e)
        }
        mysql_async::Error::Driver(DriverError::NoClientSslFlagFromServer) => {
            Error::config("sink.tls", "the server does not offer TLS")
        }
        mysql_async::Error::Driver(DriverError::PacketTooLarge) => {
            Error::rejected("a row is larger than the server's max_allowed_packet").hint("raise it on the server")
        }
        mysql_async::Error::Driver(
            e @ (DriverError::UnknownAuthPlugin { .. }
            | DriverError::MysqlOldPasswordDisabled
            | DriverError::CleartextPluginDisabled
            | DriverError::NoKeyFound),
        ) => Error::config("sink", e.to_string()),
        // The driver's own wrappings repeat what they wrap.
        mysql_async::Error::Io(IoError::Io(e)) => lost(phase, e),
        mysql_async::Error::Io(IoError::Tls(e)) => lost(phase, e),
        mysql_async::Error::Driver(e) => lost(phase, e),
        mysql_async::Error::Other(e) => lost(phase, e),
    }
}

fn tls_error(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::config("sink.tls", "the TLS handshake failed")
        .hint("check the server's certificate and the tls keys")
        .because(cause)
}

fn lost(phase: Phase, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    match phase {
        Phase::Connect => Error::transient("no connection to the MySQL server"),
        Phase::Statement => Error::transient("the connection to the MySQL server is lost"),
        Phase::Commit => Error::indeterminate("the connection to the MySQL server was lost while committing"),
    }
    .because(cause)
}

fn server_error(e: ServerError, phase: Phase) -> Error {
    let kind = match (kind_of(&e), phase) {
        // The server gave up in the middle of a commit: what it had done by then is not known.
        (ErrorKind::Transient, Phase::Commit) if !rolled_back(e.code) => ErrorKind::Indeterminate,
        (_, Phase::Commit) if e.code == 1180 => ErrorKind::Indeterminate,
        (kind, _) => kind,
    };
    let error = Error::new(kind, format!("{} (MySQL error {})", e.message, e.code));
    match hint_of(e.code) {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// Transient errors after which the server has certainly committed nothing.
fn rolled_back(code: u16) -> bool {
    matches!(code, 1205 | 1213 | 1020 | 1290 | 1792 | 1836 | 3101 | 1047)
}

/// The numbers are those of the manuals' lists of server error messages (MySQL 8.0, MariaDB 10.11).
fn kind_of(e: &ServerError) -> ErrorKind {
    match e.code {
        // Locks, limits, shutdown, kill, disk full, cluster conflicts.
        1205
        | 1213
        | 1020
        | 1040
        | 1203
        | 1226
        | 1053
        | 1077
        | 1158..=1161
        | 1317
        | 1412
        | 1927
        | 1969
        | 3024
        | 4031
        | 1114
        | 1021
        | 1041
        | 1037
        | 3100
        | 3101
        | 1047
        | 1180
        | 1030
        | 1135 => ErrorKind::Transient,
        // Read-only servers. Rights, names, accounts, definitions, settings.
        1290 | 1792 | 1836 | 1044 | 1045 | 1046 | 1049 | 1050 | 1051 | 1054 | 1059 | 1060 | 1067 | 1071 | 1074
        | 1103 | 1113 | 1117 | 1129 | 1130 | 1142 | 1143 | 1146 | 1148 | 1227 | 1251 | 1273 | 1286 | 1348 | 1364
        | 1370 | 1410 | 1419 | 1665 | 1698 | 1820 | 1862 | 3105 | 3159 | 3750 | 3780 | 3948 | 4166 | 1906 => {
            ErrorKind::Config
        }
        // Values and constraints.
        1022
        | 1048
        | 1062
        | 1586
        | 1118
        | 1153
        | 1169
        | 1216
        | 1217
        | 1264
        | 1265
        | 1292
        | 1300
        | 1365
        | 1366
        | 1367
        | 1406
        | 1411
        | 1416
        | 1451
        | 1452
        | 1526
        | 1644
        | 1690
        | 3140..=3158
        | 3819
        | 4025
        | 3903
        | 1242 => ErrorKind::Rejected,
        // Our SQL, not the operator's.
        1064 | 1149 => ErrorKind::Fatal,
        // Many errors share the state HY000; the others tell their class.
        _ => match e.state.get(..2) {
            Some("22" | "23" | "44" | "45") => ErrorKind::Rejected,
            Some("08" | "40") => ErrorKind::Transient,
            Some("28" | "42") => ErrorKind::Config,
            _ => ErrorKind::Fatal,
        },
    }
}

fn hint_of(code: u16) -> Option<&'static str> {
    Some(match code {
        1114 | 1021 => "the target is full: free some space there",
        1290 | 1792 | 1836 => crate::rights::READ_ONLY,
        1153 => "raise max_allowed_packet on the server",
        1665 => "set binlog_format to ROW or MIXED on the server",
        1364 => "give that column a default, or let it be NULL",
        1044 | 1142 | 1143 | 1370 | 1227 => "grant the right to the sink's user",
        1045 | 1698 => "check the user and the password of sink.url",
        1049 => "create the database that sink.url names",
        1205 => "another transaction holds the row",
        1054 | 1146 => "was the table changed? It is described anew at the next try",
        4025 => "a CHECK constraint of the target refuses the row",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(code: u16, state: &str) -> mysql_async::Error {
        mysql_async::Error::Server(ServerError { code, message: "m".into(), state: state.into() })
    }

    #[test]
    fn a_lost_connection_is_indeterminate_only_while_committing() {
        let lost = || Failure::driver(mysql_async::Error::Driver(DriverError::ConnectionClosed));
        assert_eq!(lost().into_error(Phase::Statement).kind(), ErrorKind::Transient);
        assert_eq!(lost().into_error(Phase::Commit).kind(), ErrorKind::Indeterminate);
    }

    #[test]
    fn server_errors_say_what_to_do() {
        let cases = [
            (1213, "40001", ErrorKind::Transient),
            (1205, "HY000", ErrorKind::Transient),
            (1114, "HY000", ErrorKind::Transient),
            (1062, "23000", ErrorKind::Rejected),
            (4025, "23000", ErrorKind::Rejected),
            (1406, "22001", ErrorKind::Rejected),
            (9999, "22003", ErrorKind::Rejected),
            (1146, "42S02", ErrorKind::Config),
            (1290, "HY000", ErrorKind::Config),
            (1045, "28000", ErrorKind::Config),
            (1064, "42000", ErrorKind::Fatal),
            (9999, "HY000", ErrorKind::Fatal),
        ];
        for (code, state, kind) in cases {
            assert_eq!(Failure::driver(server(code, state)).into_error(Phase::Statement).kind(), kind, "{code}");
        }
        // A deadlock at COMMIT is a certain rollback (Galera), a shutdown at COMMIT is not.
        let at_commit = |code| Failure::driver(server(code, "HY000")).into_error(Phase::Commit).kind();
        assert_eq!(at_commit(1213), ErrorKind::Transient);
        assert_eq!(at_commit(1053), ErrorKind::Indeterminate);
    }
}
