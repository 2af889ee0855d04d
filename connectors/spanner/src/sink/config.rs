//! The keys of `[sink]`, `[checkpoint]` and `[dead_letters]` with `type = "spanner"`.

use anabranch_core::{Error, Result};
use serde::Deserialize;

use super::SpannerSink;

/// The keys of a configuration table for Spanner as a target.
///
/// ```toml
/// [sink]
/// type = "spanner"
/// database = "projects/p/instances/i/databases/d"
/// endpoint = "http://localhost:9010"      # optional: an emulator
/// role = "replicator"                     # optional: a database role
/// tag = "txBy=orders"                     # optional: txBy= and the pipeline's name
/// exclude_from_change_streams = true      # optional
/// commit_timestamps = ["Orders.Written"]  # optional: filled in with the times of the target's commits
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpannerSinkConfig {
    /// The database, in full: `projects/PROJECT/instances/INSTANCE/databases/DATABASE`.
    pub database: String,
    /// The service's address, if it is not Google's: `http://host:port` for an emulator.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// The address of the REST administration, which creates tables. Google's if not given, or ten ports
    /// above an emulator's.
    #[serde(default)]
    pub admin_endpoint: Option<String>,
    /// The database role to take on.
    #[serde(default)]
    pub role: Option<String>,
    /// The tag of every transaction, at most 50 characters; `txBy=` and the pipeline's name if not
    /// given. An empty one sets none.
    #[serde(default)]
    pub tag: Option<String>,
    /// Whether change streams with `allow_txn_exclusion = true` leave the sink's transactions out. True
    /// if not given.
    #[serde(default)]
    pub exclude_from_change_streams: Option<bool>,
    /// Columns, as `table.column`, that get the time of the target's commit whatever the source sends.
    #[serde(default)]
    pub commit_timestamps: Vec<String>,
}

impl TryFrom<SpannerSinkConfig> for SpannerSink {
    type Error = Error;

    fn try_from(config: SpannerSinkConfig) -> Result<Self> {
        let mut sink = Self::new(config.database);
        if let Some(endpoint) = config.endpoint {
            sink = sink.endpoint(endpoint);
        }
        if let Some(endpoint) = config.admin_endpoint {
            sink = sink.admin_endpoint(endpoint);
        }
        if let Some(role) = config.role {
            sink = sink.role(role);
        }
        if let Some(tag) = config.tag {
            sink = sink.tag(tag);
        }
        sink = sink.exclude_from_change_streams(config.exclude_from_change_streams.unwrap_or(true));
        for column in config.commit_timestamps {
            sink = sink.commit_timestamp(column);
        }
        sink.check()?;
        Ok(sink)
    }
}
