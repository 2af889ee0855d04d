//! The keys of `[source] type = "spanner"`.

use anabranch_core::{Error, Result};
use serde::Deserialize;

use crate::client::Instant;
use crate::source::Spanner;

/// The configuration of the source.
///
/// ```toml
/// [source]
/// type = "spanner"
/// database = "projects/p/instances/i/databases/shop"
/// change_stream = "orders"
/// ```
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpannerSourceConfig {
    /// `projects/PROJECT/instances/INSTANCE/databases/DATABASE`.
    pub database: String,
    /// The change stream.
    pub change_stream: String,
    /// The address of the service; `http://host:port` for an emulator. Default: `SPANNER_EMULATOR_HOST`
    /// if it is set, else Google's.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// The address of the REST administration, which creates change streams. Default: Google's, or ten
    /// ports above an emulator's.
    #[serde(default)]
    pub admin_endpoint: Option<String>,
    /// The database role to take on.
    #[serde(default)]
    pub role: Option<String>,
    /// Whether a missing change stream may be created. Default: yes.
    #[serde(default = "yes")]
    pub create: bool,
    /// Tables to create the change stream with, as `name` or `schema.name`. Empty: all tables.
    #[serde(default)]
    pub tables: Vec<String>,
    /// How long a change stream that is created keeps changes. Default: `7d`.
    #[serde(default)]
    pub retention: Option<String>,
    /// Where a new pipeline begins, as RFC 3339. Default: now.
    #[serde(default)]
    pub start: Option<String>,
    /// Where the pipeline ends, inclusive, as RFC 3339: by itself, once everything up to there is in the
    /// target. Default: never.
    #[serde(default)]
    pub end: Option<String>,
    /// How often a quiet partition tells how far it is, in milliseconds, 1000 to 300,000. Default: 1000.
    #[serde(default)]
    pub heartbeat_ms: Option<u32>,
    /// How many parts a table is copied in at most. Default: 64.
    #[serde(default)]
    pub chunks: Option<u32>,
}

fn yes() -> bool {
    true
}

impl TryFrom<SpannerSourceConfig> for Spanner {
    type Error = Error;

    /// # Errors
    /// [`Config`](anabranch_core::ErrorKind::Config), naming the key, for everything that can be
    /// known without a connection.
    fn try_from(config: SpannerSourceConfig) -> Result<Self> {
        let mut source = Spanner::new(config.database)
            .change_stream(config.change_stream)
            .create(config.create)
            .tables(config.tables);
        if let Some(endpoint) = config.endpoint {
            source = source.endpoint(endpoint);
        }
        if let Some(endpoint) = config.admin_endpoint {
            source = source.admin_endpoint(endpoint);
        }
        if let Some(role) = config.role {
            source = source.role(role);
        }
        if let Some(retention) = config.retention {
            source = source.retention_period(retention);
        }
        if let Some(at) = config.start {
            source = source.start(time("source.start", &at)?);
        }
        if let Some(at) = config.end {
            source = source.end(time("source.end", &at)?);
        }
        if let Some(ms) = config.heartbeat_ms {
            source = source.heartbeat_ms(ms);
        }
        if let Some(chunks) = config.chunks {
            source = source.chunks(chunks);
        }
        source.check_keys()?;
        Ok(source)
    }
}

fn time(key: &str, text: &str) -> Result<Instant> {
    text.parse().map_err(|e| Error::config(key, e).hint("write it as 2026-01-02T03:04:05Z"))
}
