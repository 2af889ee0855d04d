//! The source: tables by scan, changes by their streams.
//!
//! ```text
//!   orders ──┬── orders/shardId-1 ──── orders/shardId-3 ──┬── ..       a child opens when its
//!   (root)   └── orders/shardId-2                         └── ..       parent is durable
//! ```
//!
//! The root of a table is a partition without records: its reader lists the stream and closes, with
//! the shards as its children. So shards are named only by readers that close, and those that are
//! finished can be forgotten.

mod children;
mod layout;
mod marker;
mod pace;
pub(crate) mod position;
mod record;
mod retention;
mod root;
mod scan;
mod setup;
mod shard;
mod shards;
mod spool;
mod verifier;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anabranch_core::{
    ChangeReader, Checkpoint, Error, Marker, Partition, PartitionId, Position, Result, Retention, Snapshotter, Source,
    SourceIdentity, SourceInfo, SourceOrder, StartFrom, TableSchema, Timestamp, Verifier,
};
use async_trait::async_trait;
use tokio::sync::{OnceCell, Semaphore};

use crate::client::{Access, ServerClock};
use crate::config::{DeclaredColumn, Document, OnMismatch, TtlDeletes};
use retention::Needed;
use setup::Table;
use spool::SpoolSettings;

/// How long a stream keeps a record (developer guide, "DynamoDB Streams").
pub(crate) const RETENTION: Duration = Duration::from_secs(24 * 3600);

/// A source of DynamoDB tables.
///
/// ```
/// use anabranch_dynamodb::{Access, DynamoDb};
/// let source = DynamoDb::new().access(Access::new().region("eu-west-1")).table("orders");
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct DynamoDb {
    settings: Settings,
    shared: Arc<Shared>,
}

/// What was configured.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    access: Access,
    streams_endpoint: Option<String>,
    tables: Vec<String>,
    create: bool,
    document: Document,
    document_column: String,
    columns: Vec<DeclaredColumn>,
    on_mismatch: OnMismatch,
    old_items: bool,
    ttl_deletes: TtlDeletes,
    strip: Vec<String>,
    global_table_attributes: bool,
    skip_origins: Vec<String>,
    poll: (Duration, Duration),
    max_concurrent_reads: usize,
    idle_safe_time: bool,
    scan_segments: Option<u32>,
    scan_capacity: Option<f64>,
    spool: Option<SpoolSettings>,
}

/// What the parts of a source share.
#[derive(Debug)]
pub(crate) struct Shared {
    clients: OnceCell<Clients>,
    tables: Mutex<BTreeMap<String, Arc<Table>>>,
    needed: Needed,
    clock: ServerClock,
}

/// The clients.
#[derive(Debug)]
pub(crate) struct Clients {
    pub(crate) tables: aws_sdk_dynamodb::Client,
    pub(crate) streams: aws_sdk_dynamodbstreams::Client,
    /// Pages in memory at one instant.
    pub(crate) reads: Arc<Semaphore>,
}

/// A source that is connected: what readers work with.
#[derive(Debug, Clone)]
pub(crate) struct Connected {
    pub(crate) settings: Arc<Settings>,
    pub(crate) shared: Arc<Shared>,
}

impl Default for DynamoDb {
    fn default() -> Self {
        Self::new()
    }
}

macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $type:ty;)*) => {
        $($(#[$doc])* pub fn $name(mut self, $name: $type) -> Self {
            self.settings.$name = $name;
            self
        })*
    };
}

impl DynamoDb {
    /// No tables yet; everything else by default.
    pub fn new() -> Self {
        let settings = Settings {
            access: Access::new(),
            streams_endpoint: None,
            tables: Vec::new(),
            create: true,
            document: Document::default(),
            document_column: "item".to_owned(),
            columns: Vec::new(),
            on_mismatch: OnMismatch::default(),
            old_items: false,
            ttl_deletes: TtlDeletes::default(),
            strip: Vec::new(),
            global_table_attributes: false,
            skip_origins: Vec::new(),
            poll: (Duration::from_millis(100), Duration::from_secs(1)),
            max_concurrent_reads: 32,
            idle_safe_time: false,
            scan_segments: None,
            scan_capacity: None,
            spool: None,
        };
        Self { settings, shared: Arc::new(Shared::default()) }
    }

    /// Adds a table.
    pub fn table(mut self, name: impl Into<String>) -> Self {
        self.settings.tables.push(name.into());
        self
    }

    /// Sends an attribute as a column of its own.
    pub fn column(mut self, column: DeclaredColumn) -> Self {
        self.settings.columns.push(column);
        self
    }

    /// The address of the streams, where it is not that of the tables.
    pub fn streams_endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.settings.streams_endpoint = Some(endpoint.into());
        self
    }

    /// The name of the document's column; `item` if not set.
    pub fn document_column(mut self, name: impl Into<String>) -> Self {
        self.settings.document_column = name.into();
        self
    }

    /// The shortest and the longest pause between two reads of a shard that gave nothing.
    pub fn poll(mut self, min: Duration, max: Duration) -> Self {
        self.settings.poll = (min, max);
        self
    }

    /// Segments of a table's scan; by its size if not set.
    pub fn scan_segments(mut self, segments: u32) -> Self {
        self.settings.scan_segments = Some(segments);
        self
    }

    /// Read capacity units a second that the scan of a table may consume; no limit if not set.
    pub fn scan_capacity(mut self, units: f64) -> Self {
        self.settings.scan_capacity = Some(units);
        self
    }

    /// A folder on a local disk, of this pipeline alone. While tables are copied, what their streams
    /// give is kept there, so that a copy may take longer than the 24 hours that DynamoDB keeps it.
    pub fn spool(mut self, folder: impl Into<PathBuf>) -> Self {
        let max_bytes = self.settings.spool.map_or(spool::MAX_BYTES, |s| s.max_bytes);
        self.settings.spool = Some(SpoolSettings { folder: folder.into(), max_bytes });
        self
    }

    /// How many bytes [`spool`](Self::spool) may take; 50 GB if not set. What comes after that has to
    /// wait in the stream. Set after the folder.
    pub fn spool_max_bytes(mut self, bytes: u64) -> Self {
        if let Some(spool) = &mut self.settings.spool {
            spool.max_bytes = bytes;
        }
        self
    }

    setters! {
        /// How to reach the tables, and the streams unless told otherwise.
        access: Access;
        /// Whether a missing stream may be enabled; yes if not set.
        create: bool;
        /// How the whole item is sent.
        document: Document;
        /// What to do with an attribute that does not go into its declared column.
        on_mismatch: OnMismatch;
        /// Whether updates carry the whole old item too.
        old_items: bool;
        /// What to do with deletes that DynamoDB's time to live made.
        ttl_deletes: TtlDeletes;
        /// Attributes to leave out of documents.
        strip: Vec<String>;
        /// Whether to keep `aws:rep:*`.
        global_table_attributes: bool;
        /// Origins whose writes are left out.
        skip_origins: Vec<String>;
        /// How many shards are read at one instant.
        max_concurrent_reads: usize;
        /// Whether a shard that gave nothing for a while counts as read up to then.
        idle_safe_time: bool;
    }

    /// Every error that can be known without a connection.
    ///
    /// # Errors
    /// [`Config`](anabranch_core::ErrorKind::Config), naming the key.
    pub fn check_settings(&self) -> Result<()> {
        let s = &self.settings;
        if s.tables.is_empty() || s.tables.iter().any(String::is_empty) {
            return Err(Error::config("source.tables", "names no table").hint("write tables = [\"orders\"]"));
        }
        if let Some(twice) = s.tables.iter().enumerate().find(|(n, t)| s.tables[..*n].contains(t)) {
            return Err(Error::config("source.tables", format!("names {} twice", twice.1)));
        }
        for column in &s.columns {
            column.column()?;
            if let Some(table) = column.table.as_ref().filter(|t| !s.tables.contains(t)) {
                return Err(Error::config("source.columns", format!("{}: {table} is not in tables", column.name)));
            }
        }
        if s.document_column.is_empty() {
            return Err(Error::config("source.document_column", "is empty"));
        }
        if s.poll.0.is_zero() || s.poll.0 > s.poll.1 || s.poll.1 > anabranch_core::HEARTBEAT {
            let problem = format!("{} to {} ms", s.poll.0.as_millis(), s.poll.1.as_millis());
            return Err(Error::config("source.poll_min_ms", problem)
                .hint("poll_min_ms must be above 0 and at most poll_max_ms, which is at most 5000"));
        }
        if s.max_concurrent_reads == 0 {
            return Err(Error::config("source.max_concurrent_reads", "must be at least 1"));
        }
        if s.scan_segments.is_some_and(|n| !(1..=1_000_000).contains(&n)) {
            return Err(Error::config("source.scan_segments", "must be from 1 to 1000000"));
        }
        if s.scan_capacity.is_some_and(|c| !c.is_finite() || c <= 0.0) {
            return Err(Error::config("source.scan_capacity", "must be above 0"));
        }
        if s.spool.as_ref().is_some_and(|s| s.folder.as_os_str().is_empty()) {
            return Err(Error::config("source.spool", "is empty").hint("name a folder, or leave it out"));
        }
        Ok(())
    }

    fn connected(&self) -> Connected {
        Connected { settings: Arc::new(self.settings.clone()), shared: Arc::clone(&self.shared) }
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            clients: OnceCell::new(),
            tables: Mutex::default(),
            needed: Needed::default(),
            clock: ServerClock::default(),
        }
    }
}

impl Connected {
    pub(crate) async fn clients(&self) -> Result<&Clients> {
        let connect = || async {
            let access = self.settings.access.clone().clock(self.shared.clock.clone());
            let streams = match &self.settings.streams_endpoint {
                Some(endpoint) => access.clone().endpoint(endpoint),
                None => access.clone(),
            };
            Ok(Clients {
                tables: access.dynamodb("source").await?,
                streams: streams.streams("source").await?,
                reads: Arc::new(Semaphore::new(self.settings.max_concurrent_reads)),
            })
        };
        self.shared.clients.get_or_try_init(connect).await
    }

    /// The clients, once there are any: after [`Source::prepare`].
    pub(crate) fn connected(&self) -> Result<&Clients> {
        self.shared.clients.get().ok_or_else(|| Error::fatal("the source was not prepared"))
    }

    /// The tables in the order of their configuration, as [`Source::prepare`] found them.
    pub(crate) fn tables(&self) -> Result<Vec<Arc<Table>>> {
        let tables = self.shared.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let found = self.settings.tables.iter().map(|name| tables.get(name).cloned());
        found.collect::<Option<_>>().ok_or_else(|| Error::fatal("the source was not prepared"))
    }

    fn found(&self, tables: Vec<Table>) {
        let tables = tables.into_iter().map(|t| (t.name.clone(), Arc::new(t))).collect();
        *self.shared.tables.lock().unwrap_or_else(PoisonError::into_inner) = tables;
    }

    pub(crate) fn needed(&self) -> &Needed {
        &self.shared.needed
    }

    /// Now, by the servers' clock.
    pub(crate) fn now(&self) -> Timestamp {
        self.shared.clock.now()
    }
}

/// The name of a shard's partition.
pub(crate) fn shard_partition(table: &str, shard: &str) -> PartitionId {
    PartitionId::new(format!("{table}/{shard}"))
}

/// The partition that stands for the end of a stream that was disabled.
pub(crate) const END: &str = "end";

#[async_trait]
impl Source for DynamoDb {
    fn info(&self) -> SourceInfo {
        SourceInfo { name: "dynamodb", order: SourceOrder::Key }
    }

    async fn prepare(&self, resume: Option<&Checkpoint>) -> Result<SourceIdentity> {
        self.check_settings()?;
        let connected = self.connected();
        let mut tables = setup::inspect(&connected, resume).await?;
        setup::enable_streams(&connected, &mut tables).await?;
        let identity = setup::identity(&tables);
        connected.found(tables);
        Ok(identity)
    }

    async fn check(&self, resume: Option<&Checkpoint>) -> Result<Vec<String>> {
        self.check_settings()?;
        let connected = self.connected();
        let tables = setup::inspect(&connected, resume).await?;
        let statements = setup::statements(&connected, &tables);
        connected.found(tables);
        Ok(statements)
    }

    async fn tables(&self) -> Result<Vec<TableSchema>> {
        Ok(self.connected().tables()?.iter().map(|t| TableSchema::clone(t.layout.schema())).collect())
    }

    async fn partitions(&self) -> Result<Vec<Partition>> {
        Ok(self.connected().tables()?.iter().map(|t| Partition::root(PartitionId::new(t.name.as_str()))).collect())
    }

    async fn open(&self, partition: &Partition, from: &StartFrom) -> Result<Box<dyn ChangeReader>> {
        let connected = self.connected();
        let (table, shard) = match partition.id.as_str().split_once('/') {
            Some((table, shard)) => (table, Some(shard)),
            None => (partition.id.as_str(), None),
        };
        let tables = connected.tables()?;
        let table = tables.into_iter().find(|t| t.name == table).ok_or_else(|| {
            Error::config("source.tables", format!("has no {table}, which this pipeline read before"))
                .hint("put it back; to stop reading it, begin with a new pipeline name")
        })?;
        if shard == Some(END) {
            return Err(setup::ended(&table));
        }
        if let Some(settings) = &connected.settings.spool
            && let Some(reader) = spool::SpooledReader::open(&connected, settings, &table, partition, from)?
        {
            return Ok(Box::new(reader));
        }
        match shard {
            None => Ok(Box::new(root::RootReader::new(connected, table, from))),
            Some(shard) => Ok(Box::new(shard::ShardReader::new(connected, table, shard, partition, from)?)),
        }
    }

    fn snapshotter(&self) -> Option<&dyn Snapshotter> {
        Some(self)
    }

    fn marker(&self) -> Option<&dyn Marker> {
        Some(self)
    }

    fn retention(&self) -> Option<&dyn Retention> {
        Some(self)
    }

    fn verifier(&self) -> Option<&dyn Verifier> {
        Some(self)
    }

    fn describe(&self, position: &Position) -> String {
        position::describe(position)
    }
}
