//! The keys of `[source] type = "postgres"`.

use anabranch_core::{Error, Result, Secret};
use serde::Deserialize;

use crate::source::Postgres;

/// What to do when a published table changes its columns, its name or its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SchemaChange {
    /// Stop with an error that says what changed and where, after everything before it was read.
    #[default]
    Stop,
    /// Go on if columns were only added; stop otherwise.
    AddColumns,
    /// Go on. Columns that the target lacks are the sink's matter.
    Ignore,
}

/// Which transactions to read, by where they were first made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OriginFilter {
    /// All.
    #[default]
    Any,
    /// Only those made on this server: what a replication applied here (this library's sink, or
    /// PostgreSQL's own subscriptions) is left out. For replication in both directions.
    None,
}

/// The configuration of the source.
///
/// ```toml
/// [source]
/// type = "postgres"
/// url = "postgresql://replicator@db1/shop?sslmode=verify-full"
/// password = "env:REPLICATOR_PASSWORD"
/// publication = "orders"
/// slot = "orders_dr"
/// ```
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostgresSourceConfig {
    /// `postgresql://user@host:5432/database`, with libpq's options: `sslmode`, `sslrootcert`,
    /// `sslcert`, `sslkey`, `connect_timeout`, `application_name` and so on.
    pub url: Secret,
    /// The password, if it is not in the URL.
    #[serde(default)]
    pub password: Option<Secret>,
    /// The publication.
    pub publication: String,
    /// The replication slot: lower-case letters, digits and underscores.
    pub slot: String,
    /// Tables to create the publication with, as `schema.table`. Empty: all tables.
    #[serde(default)]
    pub tables: Vec<String>,
    /// Whether a missing publication and slot may be created. Default: yes.
    #[serde(default = "yes")]
    pub create: bool,
    /// Whether a slot that is created is kept on standbys too (PostgreSQL 17 and later). Default: no.
    #[serde(default)]
    pub failover: bool,
    /// Whether the server sends large transactions before they end (those above its
    /// `logical_decoding_work_mem`), which shortens the delay after their commit. They are kept in
    /// temporary files until then. Default: no.
    #[serde(default)]
    pub streaming: bool,
    /// See [`OriginFilter`]. Default: `any`.
    #[serde(default)]
    pub origin: OriginFilter,
    /// See [`SchemaChange`]. Default: `stop`.
    #[serde(default)]
    pub on_schema_change: SchemaChange,
    /// Pages of 8 KiB in a chunk of a snapshot. Default: 8192, which is 64 MiB.
    #[serde(default)]
    pub chunk_pages: Option<u32>,
}

fn yes() -> bool {
    true
}

impl TryFrom<PostgresSourceConfig> for Postgres {
    type Error = Error;

    /// # Errors
    /// [`Config`](anabranch_core::ErrorKind::Config), naming the key, for everything that can be
    /// known without a connection.
    fn try_from(config: PostgresSourceConfig) -> Result<Self> {
        let mut source = Postgres::new(config.url)
            .publication(config.publication)
            .slot(config.slot)
            .tables(config.tables)
            .create(config.create)
            .failover(config.failover)
            .streaming(config.streaming)
            .origin(config.origin)
            .on_schema_change(config.on_schema_change);
        if let Some(password) = config.password {
            source = source.password(password);
        }
        if let Some(pages) = config.chunk_pages {
            source = source.chunk_pages(pages);
        }
        source.check()?;
        Ok(source)
    }
}
