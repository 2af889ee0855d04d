//! The keys of `[source]` and `[sink]` with `type = "yugabyte"`.

use std::fmt;
use std::time::Duration;

use anabranch_core::{Error, Result, Secret};
use anabranch_postgres::{Endpoint, Privilege, SchemaChange};
use serde::Deserialize;

use crate::sink::YugabyteSink;
use crate::source::Yugabyte;

/// What writes the messages of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Plugin {
    /// YugabyteDB's own, which knows the replica identity CHANGE.
    #[default]
    Yboutput,
    /// PostgreSQL's: every published table needs the identity DEFAULT or FULL.
    Pgoutput,
}

impl Plugin {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Yboutput => "yboutput",
            Self::Pgoutput => "pgoutput",
        }
    }
}

/// What the LSNs of a slot are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LsnType {
    /// A counter of the slot: it means nothing to any other slot. The server's default.
    Sequence,
    /// Commit hybrid times: comparable between slots.
    HybridTime,
}

impl fmt::Display for LsnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sequence => "SEQUENCE",
            Self::HybridTime => "HYBRID_TIME",
        })
    }
}

/// The configuration of the source.
///
/// ```toml
/// [source]
/// type = "yugabyte"
/// url = "postgresql://replicator@yb1:5433/shop?sslmode=verify-full"
/// password = "env:REPLICATOR_PASSWORD"
/// publication = "orders"
/// slot = "orders_dr"
/// tables = ["orders"]
/// ```
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct YugabyteSourceConfig {
    /// `postgresql://user@host:5433/database`, with libpq's options.
    pub url: Secret,
    /// The password, if it is not in the URL.
    #[serde(default)]
    pub password: Option<Secret>,
    /// The publication.
    pub publication: String,
    /// The replication slot: lower-case letters, digits and underscores, unique over all databases.
    pub slot: String,
    /// Tables to create the publication with, as `schema.table`. Empty: all tables.
    #[serde(default)]
    pub tables: Vec<String>,
    /// Whether a missing marker table, publication and slot may be created. Default: yes.
    #[serde(default = "yes")]
    pub create: bool,
    /// See [`Plugin`]. Default: `yboutput`.
    #[serde(default)]
    pub plugin: Plugin,
    /// See [`LsnType`]. Default: what the slot has; a slot that is created gets `sequence`.
    #[serde(default)]
    pub lsn_type: Option<LsnType>,
    /// The table that heartbeats and marks are written to. Default: `public.anabranch_marker`.
    #[serde(default)]
    pub marker_table: Option<String>,
    /// Seconds without a commit in the stream after which a heartbeat is written. Default: 1.
    #[serde(default)]
    pub heartbeat_seconds: Option<f64>,
    /// Hours that the server keeps what a slot needs: the smaller one of its flags
    /// `cdc_intent_retention_ms` and `cdc_wal_retention_time_secs`. Default: 8, as theirs.
    #[serde(default)]
    pub retention_hours: Option<f64>,
    /// The server's flag `max_clock_skew_usec`, in milliseconds. Default: 500, as there.
    #[serde(default)]
    pub max_clock_skew_ms: Option<u64>,
    /// A procedure that sets `yb_read_time` for a user who is no superuser, as `schema.procedure`.
    #[serde(default)]
    pub read_time_procedure: Option<String>,
    /// Chunks of a table that is sharded by hash. Default: as many as it has tablets.
    #[serde(default)]
    pub chunks: Option<u32>,
    /// What to do when a published table changes its columns, its name or its key. Default: `stop`.
    #[serde(default)]
    pub on_schema_change: SchemaChange,
}

fn yes() -> bool {
    true
}

/// Positive and finite, or the error that names the key.
fn duration(key: &str, value: f64, unit: f64) -> Result<Duration> {
    let seconds = value * unit;
    match seconds > 0.0 && seconds < 1e9 {
        true => Ok(Duration::from_secs_f64(seconds)),
        false => Err(Error::config(key, format!("{value} is no time to wait")).hint("write a number above 0")),
    }
}

impl TryFrom<YugabyteSourceConfig> for Yugabyte {
    type Error = Error;

    /// # Errors
    /// [`Config`](anabranch_core::ErrorKind::Config), naming the key, for everything that can be
    /// known without a connection.
    fn try_from(config: YugabyteSourceConfig) -> Result<Self> {
        let mut source = Yugabyte::new(config.url)
            .publication(config.publication)
            .slot(config.slot)
            .tables(config.tables)
            .create(config.create)
            .plugin(config.plugin)
            .on_schema_change(config.on_schema_change);
        if let Some(password) = config.password {
            source = source.password(password);
        }
        if let Some(lsn_type) = config.lsn_type {
            source = source.lsn_type(lsn_type);
        }
        if let Some(table) = config.marker_table {
            source = source.marker_table(table);
        }
        if let Some(seconds) = config.heartbeat_seconds {
            source = source.heartbeat(duration("source.heartbeat_seconds", seconds, 1.0)?);
        }
        if let Some(hours) = config.retention_hours {
            source = source.retention(duration("source.retention_hours", hours, 3600.0)?);
        }
        if let Some(skew) = config.max_clock_skew_ms {
            source = source.max_clock_skew(Duration::from_millis(skew));
        }
        if let Some(procedure) = config.read_time_procedure {
            source = source.read_time_procedure(procedure);
        }
        if let Some(chunks) = config.chunks {
            source = source.chunks(chunks);
        }
        source.check()?;
        Ok(source)
    }
}

/// The configuration of the sink, and of checkpoints and dead letters in a YugabyteDB.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct YugabyteSinkConfig {
    /// `postgresql://user@host:5433/database`, plain, `env:NAME` or `file:PATH`.
    pub url: Secret,
    /// The schema that keeps progress, checkpoints and dead letters. Default: `anabranch`.
    #[serde(default)]
    pub schema: Option<String>,
    /// Whether to write with `session_replication_role = replica`, so that triggers and foreign keys
    /// of the target do not act on replicated rows. Default: if the user may.
    #[serde(default)]
    pub replica_role: Privilege,
}

impl TryFrom<YugabyteSinkConfig> for YugabyteSink {
    type Error = Error;

    fn try_from(config: YugabyteSinkConfig) -> Result<Self> {
        Endpoint::parse("sink.url", config.url.resolve("sink.url")?.expose())?;
        let sink = YugabyteSink::new(config.url).replica_role(config.replica_role);
        match config.schema {
            Some(schema) if schema.is_empty() => {
                Err(Error::config("sink.schema", "is empty").hint("name a schema, or leave the key out"))
            }
            Some(schema) => Ok(sink.schema(schema)),
            None => Ok(sink),
        }
    }
}
