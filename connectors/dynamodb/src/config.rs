//! The keys of `[source] type = "dynamodb"`.

use std::path::PathBuf;
use std::time::Duration;

use anabranch_core::{Column, DataType, Error, Result, Secret};
use serde::Deserialize;

use crate::client::Access;
use crate::source::DynamoDb;
use crate::types;

/// How the whole item is sent, beside its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Document {
    /// As DynamoDB-JSON, `{"n":{"N":"1"}}`: loses nothing, and a DynamoDB sink makes the same item of it.
    #[default]
    Tagged,
    /// As JSON, `{"n":1}`: for SQL. Sets become arrays and binary values base64.
    Plain,
    /// Not at all: only keys and declared columns.
    None,
}

/// What to do with an attribute that does not go into its declared column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnMismatch {
    /// Stop with an error that names item and attribute.
    #[default]
    Stop,
    /// Send NULL. With a document column nothing is lost by it.
    Null,
}

/// What to do with deletes that DynamoDB's time to live made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TtlDeletes {
    /// As with any other delete; its transaction has the tag `ttl`.
    #[default]
    Apply,
    /// Leave them out: the target expires items by itself, or keeps them.
    Skip,
}

/// A declared column: an attribute that is sent as a column of its own.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeclaredColumn {
    /// The table; every table if it is left out.
    #[serde(default)]
    pub table: Option<String>,
    /// The attribute.
    pub name: String,
    /// `text`, `bytes`, `bool`, `int16`, `int32`, `int64`, `float64`, `decimal`, `decimal(12,2)`,
    /// `text[]`, `decimal[]`, `bytes[]` (the sets), `json` (any attribute, plain) or `attribute`
    /// (any attribute, DynamoDB-JSON).
    #[serde(rename = "type")]
    pub data_type: String,
}

/// The configuration of the source.
///
/// ```toml
/// [source]
/// type = "dynamodb"
/// region = "eu-west-1"
/// tables = ["orders", "customers"]
/// ```
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DynamoDbSourceConfig {
    /// The tables.
    pub tables: Vec<String>,
    /// The region. Default: by the SDK's usual chain.
    #[serde(default)]
    pub region: Option<String>,
    /// A profile of the AWS configuration files. Default: by the usual chain.
    #[serde(default)]
    pub profile: Option<String>,
    /// The address of the tables. Default: the region's own.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// The address of the streams. Default: `endpoint`, else the region's own.
    #[serde(default)]
    pub streams_endpoint: Option<String>,
    /// An access key. Default: by the usual chain.
    #[serde(default)]
    pub access_key_id: Option<Secret>,
    /// Its secret.
    #[serde(default)]
    pub secret_access_key: Option<Secret>,
    /// The token of a temporary access key.
    #[serde(default)]
    pub session_token: Option<Secret>,
    /// Whether a missing stream may be enabled. Default: yes.
    #[serde(default = "yes")]
    pub create: bool,
    /// See [`Document`]. Default: `tagged`.
    #[serde(default)]
    pub document: Document,
    /// The name of the document's column. Default: `item`.
    #[serde(default)]
    pub document_column: Option<String>,
    /// See [`DeclaredColumn`].
    #[serde(default)]
    pub columns: Vec<DeclaredColumn>,
    /// See [`OnMismatch`]. Default: `stop`.
    #[serde(default)]
    pub on_mismatch: OnMismatch,
    /// Whether updates carry the whole old item too (a stream of `NEW_AND_OLD_IMAGES` has it).
    /// Deletes always do. Default: no.
    #[serde(default)]
    pub old_items: bool,
    /// See [`TtlDeletes`]. Default: `apply`.
    #[serde(default)]
    pub ttl_deletes: TtlDeletes,
    /// Attributes to leave out of documents: for a sink's version attribute under a name of its own.
    /// What begins with `anabranch:` is always left out.
    #[serde(default)]
    pub strip: Vec<String>,
    /// Whether to keep `aws:rep:*`, which global tables of 2017 add to items. Default: no.
    #[serde(default)]
    pub global_table_attributes: bool,
    /// Writes with one of these origins (attribute `anabranch:origin`) are left out: what a pipeline
    /// in the other direction wrote.
    #[serde(default)]
    pub skip_origins: Vec<String>,
    /// The shortest and the longest pause between two reads of a shard that gave nothing, in
    /// milliseconds. Default: 100 and 1000.
    #[serde(default)]
    pub poll_min_ms: Option<u64>,
    /// See `poll_min_ms`.
    #[serde(default)]
    pub poll_max_ms: Option<u64>,
    /// How many shards are read at one instant. Each holds a page of up to 1 MB. Default: 32.
    #[serde(default)]
    pub max_concurrent_reads: Option<usize>,
    /// Whether a shard that gave nothing for a while counts as read up to then. A heuristic, for
    /// DynamoDB does not tell; see the README. Default: no.
    #[serde(default)]
    pub idle_safe_time: bool,
    /// Segments of a table's scan. Default: by its size.
    #[serde(default)]
    pub scan_segments: Option<u32>,
    /// Read capacity units a second that the scan of a table may consume. Default: no limit.
    #[serde(default)]
    pub scan_capacity: Option<f64>,
    /// A folder on a local disk, of this pipeline alone: there what the streams give is kept while tables
    /// are copied, so that a copy may take longer than 24 hours. Default: none.
    #[serde(default)]
    pub spool: Option<PathBuf>,
    /// How large the spool may become, in GB. Default: 50.
    #[serde(default)]
    pub spool_max_gb: Option<f64>,
}

fn yes() -> bool {
    true
}

impl TryFrom<DynamoDbSourceConfig> for DynamoDb {
    type Error = Error;

    /// # Errors
    /// [`Config`](anabranch_core::ErrorKind::Config), naming the key, for everything that can be
    /// known without a connection.
    fn try_from(config: DynamoDbSourceConfig) -> Result<Self> {
        let mut access = Access::new();
        if let Some(region) = config.region {
            access = access.region(region);
        }
        if let Some(profile) = config.profile {
            access = access.profile(profile);
        }
        if let Some(endpoint) = config.endpoint {
            access = access.endpoint(endpoint);
        }
        match (config.access_key_id, config.secret_access_key) {
            (Some(id), Some(secret)) => access = access.credentials(id, secret, config.session_token),
            (None, None) => {}
            (Some(_), None) => {
                return Err(Error::config("source.secret_access_key", "is missing").hint("access_key_id needs it"));
            }
            (None, Some(_)) => {
                return Err(Error::config("source.access_key_id", "is missing").hint("secret_access_key needs it"));
            }
        }
        let mut source = DynamoDb::new()
            .access(access)
            .create(config.create)
            .document(config.document)
            .on_mismatch(config.on_mismatch)
            .old_items(config.old_items)
            .ttl_deletes(config.ttl_deletes)
            .strip(config.strip)
            .global_table_attributes(config.global_table_attributes)
            .skip_origins(config.skip_origins)
            .idle_safe_time(config.idle_safe_time);
        for table in config.tables {
            source = source.table(table);
        }
        for column in config.columns {
            source = source.column(column);
        }
        if let Some(endpoint) = config.streams_endpoint {
            source = source.streams_endpoint(endpoint);
        }
        if let Some(name) = config.document_column {
            source = source.document_column(name);
        }
        let (min, max) = (config.poll_min_ms, config.poll_max_ms);
        if min.is_some() || max.is_some() {
            let (min, max) = (min.unwrap_or(100), max.unwrap_or(1000));
            source = source.poll(Duration::from_millis(min), Duration::from_millis(max));
        }
        if let Some(reads) = config.max_concurrent_reads {
            source = source.max_concurrent_reads(reads);
        }
        if let Some(segments) = config.scan_segments {
            source = source.scan_segments(segments);
        }
        if let Some(capacity) = config.scan_capacity {
            source = source.scan_capacity(capacity);
        }
        if let Some(folder) = config.spool {
            source = source.spool(folder);
        } else if config.spool_max_gb.is_some() {
            return Err(Error::config("source.spool_max_gb", "is of no use without spool").hint("name a folder"));
        }
        if let Some(gb) = config.spool_max_gb {
            if !gb.is_finite() || gb <= 0.0 {
                return Err(Error::config("source.spool_max_gb", "must be above 0"));
            }
            source = source.spool_max_bytes((gb * f64::from(1 << 30)) as u64);
        }
        source.check_settings()?;
        Ok(source)
    }
}

impl DeclaredColumn {
    /// The column that it declares.
    pub(crate) fn column(&self) -> Result<Column> {
        let native = |native: &str| types::column(&self.name, native);
        let typed = |data_type| Some(Column::new(&self.name, data_type));
        let column = match self.data_type.trim() {
            "text" => native("S"),
            "bytes" => native("B"),
            "bool" => native("BOOL"),
            "decimal" => native("N"),
            "text[]" => native("SS"),
            "decimal[]" => native("NS"),
            "bytes[]" => native("BS"),
            "json" => native(types::JSON),
            "attribute" => native(types::ATTRIBUTE),
            "int16" => typed(DataType::Int16),
            "int32" => typed(DataType::Int32),
            "int64" => typed(DataType::Int64),
            "float64" => typed(DataType::Float64),
            other => limits(other).and_then(|(precision, scale)| {
                typed(DataType::Decimal { precision: Some(precision), scale: Some(scale) })
            }),
        };
        column.ok_or_else(|| {
            Error::config("source.columns", format!("{}: {:?} is not a type", self.name, self.data_type)).hint(
                "write text, bytes, bool, int16, int32, int64, float64, decimal, decimal(12,2), text[], decimal[], \
                 bytes[], json or attribute",
            )
        })
    }
}

/// Precision and scale of `decimal(12,2)`.
fn limits(text: &str) -> Option<(u32, i32)> {
    let inner = text.strip_prefix("decimal(")?.strip_suffix(')')?;
    let (precision, scale) = inner.split_once(',').unwrap_or((inner, "0"));
    let (precision, scale) = (precision.trim().parse().ok()?, scale.trim().parse().ok()?);
    (precision > 0 && scale >= 0 && scale as u32 <= precision).then_some((precision, scale))
}
