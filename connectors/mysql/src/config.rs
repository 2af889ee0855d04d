//! The keys of a `[sink]` table with `type = "mysql"`.

use std::path::PathBuf;

use anabranch_core::{Error, Secret};
use serde::Deserialize;

use crate::MySql;

/// Settings of a MySQL or MariaDB sink, as a configuration file has them.
///
/// ```toml
/// [sink]
/// type = "mysql"
/// url = "mysql://app@db2:3306/shop"     # the database must exist
/// password = "env:MYSQL_PASSWORD"
/// tls = "verify"
/// tls_ca = "/etc/ssl/db2-ca.pem"
/// ```
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MySqlConfig {
    /// `mysql://user@host:port/database`; also `env:NAME` or `file:PATH`. Query parameters are those
    /// of the `mysql_async` driver (`?socket=/run/mysqld/mysqld.sock`).
    pub url: Secret,
    /// The password, where the URL has none.
    #[serde(default)]
    pub password: Option<Secret>,
    /// Whether and how the connection is encrypted.
    #[serde(default)]
    pub tls: Tls,
    /// Certificate authorities to trust instead of the built-in ones: a PEM file.
    #[serde(default)]
    pub tls_ca: Option<PathBuf>,
    /// The client's certificate: a PEM file.
    #[serde(default)]
    pub tls_cert: Option<PathBuf>,
    /// The key of the client's certificate: a PEM file.
    #[serde(default)]
    pub tls_key: Option<PathBuf>,
    /// Whether snapshots are copied with `LOAD DATA LOCAL`.
    #[serde(default)]
    pub local_infile: LocalInfile,
    /// Go on although the server may lose commits when it, or its machine, crashes
    /// (`innodb_flush_log_at_trx_commit` is not 1, or `sync_binlog` is not 1 with the binary log on).
    /// Without this it is an error: what is reported as durable would not be.
    #[serde(default)]
    pub accept_relaxed_durability: bool,
    /// Whether the version of every row is kept in a table beside its own, so that a change that is
    /// older than the row, or as old, does nothing. Default: no.
    #[serde(default)]
    pub versions: bool,
    /// What the names of those tables begin with. Default: `shadow_`.
    #[serde(default = "shadow")]
    pub versions_prefix: String,
    /// The offset from UTC, `+10:00`, of times in columns without one (DATETIME): an instant is
    /// stored as its local time there. Default: `+00:00`.
    #[serde(default)]
    pub time_zone: TimeZone,
}

pub(crate) fn shadow() -> String {
    "shadow_".to_owned()
}

/// Encryption of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tls {
    /// None, unless the URL asks for it.
    #[default]
    Off,
    /// Encrypted; the server's certificate and name are checked.
    Verify,
    /// Encrypted; the server may be anyone.
    Insecure,
}

/// Use of `LOAD DATA LOCAL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LocalInfile {
    /// Where the server allows it (`local_infile=1`).
    #[default]
    Auto,
    /// Never: snapshots are copied with `INSERT`.
    Off,
}

/// An offset from UTC, as `+HH:MM` or `-HH:MM`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TimeZone {
    /// Seconds east of Greenwich.
    pub(crate) seconds: i32,
}

impl<'de> Deserialize<'de> for TimeZone {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(|()| serde::de::Error::custom("must be an offset from UTC, from -14:00 to +14:00"))
    }
}

impl std::str::FromStr for TimeZone {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (sign, rest) = match text.split_at_checked(1) {
            Some(("+", rest)) => (1, rest),
            Some(("-", rest)) => (-1, rest),
            _ => return Err(()),
        };
        let (hours, minutes) = rest.split_once(':').ok_or(())?;
        let two = |t: &str| if t.len() == 2 && t.bytes().all(|b| b.is_ascii_digit()) { t.parse().ok() } else { None };
        let (hours, minutes): (i32, i32) = (two(hours).ok_or(())?, two(minutes).ok_or(())?);
        let seconds = hours * 3600 + minutes * 60;
        if minutes > 59 || seconds > 14 * 3600 { Err(()) } else { Ok(Self { seconds: sign * seconds }) }
    }
}

impl TryFrom<MySqlConfig> for MySql {
    type Error = Error;

    fn try_from(config: MySqlConfig) -> Result<Self, Error> {
        let sink = MySql::from_config(config);
        sink.check()?;
        Ok(sink)
    }
}
