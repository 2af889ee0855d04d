//! The keys of `[sink]`, `[checkpoint]` and `[dead_letters]` with `type = "sqlite"`.

use std::path::PathBuf;
use std::time::Duration;

use anabranch_core::{Error, Result};
use serde::Deserialize;

use crate::Sqlite;

/// The keys of a configuration table for SQLite.
///
/// ```toml
/// [sink]
/// type = "sqlite"
/// path = "replica.db"
/// busy_timeout_ms = 5000   # optional
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SqliteConfig {
    /// The database file. It is created if it is missing; its folder must exist.
    pub path: PathBuf,
    /// How long to wait for a lock that another process holds, in milliseconds. 5000 if not given.
    #[serde(default)]
    pub busy_timeout_ms: Option<u64>,
}

impl SqliteConfig {
    /// The file, whose errors call its path `key`: `sink.path`, `checkpoint.path`, `dead_letters.path`.
    ///
    /// # Errors
    /// [`Config`](anabranch_core::ErrorKind::Config), naming `key`.
    pub fn open(self, key: &'static str) -> Result<Sqlite> {
        let mut sqlite = Sqlite::open(self.path).named(key);
        if let Some(ms) = self.busy_timeout_ms {
            sqlite = sqlite.busy_timeout(Duration::from_millis(ms));
        }
        sqlite.check()?;
        Ok(sqlite)
    }
}

impl TryFrom<SqliteConfig> for Sqlite {
    type Error = Error;

    fn try_from(config: SqliteConfig) -> Result<Self> {
        config.open("sink.path")
    }
}
