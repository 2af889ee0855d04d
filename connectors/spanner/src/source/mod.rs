//! Spanner as a source: a change stream, read partition by partition.

mod assemble;
mod catalog;
mod hold;
mod lineage;
mod marks;
mod place;
mod query;
mod reader;
mod rows;
mod setup;
mod tables;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use anabranch_core::{
    ChangeReader, Checkpoint, Error, ErrorKind, Marker, Partition, PartitionId, Position, Result, Retention,
    RetentionLeft, Snapshotter, Source, SourceIdentity, SourceInfo, SourceOrder, StartFrom, TableName, TableSchema,
    Verifier,
};
use async_trait::async_trait;
use tokio::sync::OnceCell;

use crate::client::{Client, Code, Instant, Official, ReadAt};
use crate::decode::Form;
use assemble::{Assembler, Skip};
pub use catalog::Dialect;
pub(crate) use catalog::Table;
use catalog::{Catalog, Stream};
use marks::Marks;
pub(crate) use place::through;
pub use place::transaction;
use reader::Reader;
use tables::Tables;

/// A change stream of a Spanner database, of either dialect.
///
/// The account needs `spanner.databases.select` (or the role that reads the change stream and the
/// information schema), and `spanner.databases.updateDdl` if the change stream is to be created. See
/// [`SpannerSourceConfig`](crate::SpannerSourceConfig) for what each setting means.
///
/// ```no_run
/// use anabranch_spanner::Spanner;
/// let source = Spanner::new("projects/p/instances/i/databases/shop").change_stream("orders");
/// ```
#[derive(Debug)]
pub struct Spanner {
    pub(crate) database: String,
    pub(crate) change_stream: String,
    endpoint: Option<String>,
    admin_endpoint: Option<String>,
    role: Option<String>,
    pub(crate) create: bool,
    pub(crate) tables: Vec<String>,
    pub(crate) retention: String,
    pub(crate) start: Option<Instant>,
    pub(crate) end: Option<Instant>,
    pub(crate) heartbeat_ms: u32,
    pub(crate) chunks: u32,
    pub(crate) marks: Marks,
    client: OnceCell<Arc<dyn Client>>,
    prepared: Mutex<Option<Arc<Prepared>>>,
}

/// What a start found.
pub(crate) struct Prepared {
    pub(crate) client: Arc<dyn Client>,
    pub(crate) dialect: Dialect,
    pub(crate) form: Form,
    pub(crate) stream_name: String,
    pub(crate) stream: Stream,
    pub(crate) tables: BTreeMap<TableName, Table>,
    pub(crate) start: Instant,
    pub(crate) end: Option<Instant>,
    pub(crate) heartbeat_ms: u32,
    pub(crate) chunks: u32,
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepared").field("stream", &self.stream).field("start", &self.start).finish_non_exhaustive()
    }
}

/// One heartbeat a second, Spanner's least: safe time, and what is held back until a time is over,
/// wait for it. Milliseconds.
const HEARTBEAT_MS: u32 = 1000;

/// How many parts a table is copied in at most.
const CHUNKS: u32 = 64;

impl Spanner {
    /// The database `projects/P/instances/I/databases/D`.
    pub fn new(database: impl Into<String>) -> Self {
        Self {
            database: database.into(),
            change_stream: String::new(),
            endpoint: None,
            admin_endpoint: None,
            role: None,
            create: true,
            tables: Vec::new(),
            retention: "7d".to_owned(),
            start: None,
            end: None,
            heartbeat_ms: HEARTBEAT_MS,
            chunks: CHUNKS,
            marks: Marks::default(),
            client: OnceCell::new(),
            prepared: Mutex::new(None),
        }
    }

    /// The change stream to read.
    #[must_use]
    pub fn change_stream(mut self, name: impl Into<String>) -> Self {
        self.change_stream = name.into();
        self
    }

    /// The address of the service: `http://host:port` of an emulator. Default: `SPANNER_EMULATOR_HOST`
    /// if it is set, else Google's.
    #[must_use]
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoint = Some(endpoint.into());
        self
    }

    /// The address of the REST administration, which creates change streams.
    #[must_use]
    pub fn admin_endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.admin_endpoint = Some(endpoint.into());
        self
    }

    /// The database role to take on.
    #[must_use]
    pub fn role(mut self, role: impl Into<String>) -> Self {
        self.role = Some(role.into());
        self
    }

    /// Whether a missing change stream may be created.
    #[must_use]
    pub fn create(mut self, allowed: bool) -> Self {
        self.create = allowed;
        self
    }

    /// The tables to create a missing change stream with, as `name` or `schema.name`. None: all tables.
    #[must_use]
    pub fn tables(mut self, tables: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.tables = tables.into_iter().map(Into::into).collect();
        self
    }

    /// How long a change stream that is created keeps changes: `1d` to `30d`.
    #[must_use]
    pub fn retention_period(mut self, period: impl Into<String>) -> Self {
        self.retention = period.into();
        self
    }

    /// Where a new pipeline begins to read. Default: now.
    #[must_use]
    pub fn start(mut self, at: Instant) -> Self {
        self.start = Some(at);
        self
    }

    /// Where every pipeline ends, inclusive: by itself, once everything up to there is durable. Default:
    /// never.
    #[must_use]
    pub fn end(mut self, at: Instant) -> Self {
        self.end = Some(at);
        self
    }

    /// How often a quiet partition tells how far it is, in milliseconds: 1000 to 300,000.
    #[must_use]
    pub fn heartbeat_ms(mut self, ms: u32) -> Self {
        self.heartbeat_ms = ms;
        self
    }

    /// How many parts a table is copied in at most.
    #[must_use]
    pub fn chunks(mut self, chunks: u32) -> Self {
        self.chunks = chunks.max(1);
        self
    }

    /// Another client than the official one.
    #[must_use]
    pub fn client(mut self, client: Arc<dyn Client>) -> Self {
        self.client = OnceCell::new_with(Some(client));
        self
    }

    /// Checks what can be checked without a connection.
    ///
    /// # Errors
    /// [`Config`](anabranch_core::ErrorKind::Config), naming the key.
    pub fn check_keys(&self) -> Result<()> {
        setup::check_keys(self)
    }

    pub(crate) async fn connected(&self) -> Result<Arc<dyn Client>> {
        let client = self.client.get_or_try_init(async || {
            let mut builder = Official::builder(&self.database);
            if let Some(endpoint) = &self.endpoint {
                builder = builder.endpoint(endpoint);
            }
            if let Some(endpoint) = &self.admin_endpoint {
                builder = builder.admin_endpoint(endpoint);
            }
            if let Some(role) = &self.role {
                builder = builder.role(role);
            }
            Ok::<Arc<dyn Client>, Error>(Arc::new(builder.connect().await?))
        });
        Ok(Arc::clone(client.await?))
    }

    pub(crate) fn prepared(&self) -> Result<Arc<Prepared>> {
        let prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        prepared.clone().ok_or_else(|| Error::fatal("the source was not prepared"))
    }

    fn keep(&self, prepared: Prepared) {
        *self.prepared.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(prepared));
    }
}

#[async_trait]
impl Source for Spanner {
    fn info(&self) -> SourceInfo {
        SourceInfo { name: "spanner", order: SourceOrder::CommitTimePerPartition }
    }

    async fn prepare(&self, resume: Option<&Checkpoint>) -> Result<SourceIdentity> {
        setup::check_keys(self)?;
        let client = self.connected().await?;
        let mut plan = setup::plan(self, Arc::clone(&client), resume).await?;
        if let Some(statement) = plan.create.take() {
            client.apply_ddl(vec![statement]).await.map_err(|e| {
                // Another change of the schema is under way: Spanner does one at a time.
                let busy = e.code == Code::FailedPrecondition && e.message.contains("concurrent schema change");
                let error = e.into_core(format!("cannot create the change stream {}", self.change_stream));
                if busy { error.with_kind(ErrorKind::Transient) } else { error }
            })?;
            // As it is now, and from a time on that it knows.
            plan = setup::plan(self, client, resume).await?;
        }
        plan.remarks.iter().for_each(|remark| tracing::warn!("{}", remark.trim_start_matches("-- ")));
        self.keep(plan.prepared);
        Ok(plan.identity)
    }

    async fn check(&self, resume: Option<&Checkpoint>) -> Result<Vec<String>> {
        setup::check_keys(self)?;
        let plan = setup::plan(self, self.connected().await?, resume).await?;
        self.keep(plan.prepared);
        Ok(plan.remarks.into_iter().chain(plan.create).collect())
    }

    async fn tables(&self) -> Result<Vec<TableSchema>> {
        let prepared = self.prepared()?;
        Ok(prepared.tables.values().map(|t| TableSchema::clone(&t.schema)).collect())
    }

    /// The one that gives the others.
    async fn partitions(&self) -> Result<Vec<Partition>> {
        Ok(vec![lineage::root(self.prepared()?.start)])
    }

    fn ends(&self) -> bool {
        self.end.is_some()
    }

    async fn open(&self, partition: &Partition, from: &StartFrom) -> Result<Box<dyn ChangeReader>> {
        let prepared = self.prepared()?;
        let kind = lineage::kind(&partition.id, prepared.stream.mutable);
        let start = lineage::start(partition, from.position.as_ref()).cloned();
        let start = start.unwrap_or_else(|| place::before(prepared.start));
        let at = place::time(&start)?;
        let copied: HashMap<TableName, Instant> = from
            .snapshots
            .iter()
            .filter(|(_, copy)| !copy.point.token.is_empty())
            .map(|(table, copy)| Ok((table.clone(), place::time(&copy.point)?)))
            .collect::<Result<_>>()?;
        // Of a partition that was begun amid a time, the place tells until the time is over.
        let amid = [Some(&start), partition.start.as_ref()].into_iter().flatten();
        let amid = amid.filter_map(|p| Some((place::time(p).ok()?, place::skipped(p)?))).max();
        let tables = Tables::new(prepared.dialect, prepared.tables.clone());
        let whole = !prepared.stream.mutable;
        let assembler = Assembler::new(partition.id.clone(), tables, start, Skip { copied, amid }, whole);
        let mark = self.marks.open(&partition.id, at);
        Ok(Box::new(Reader::new(prepared, partition, kind, at, assembler, mark)))
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

    /// RFC 3339, with nanoseconds.
    fn describe(&self, position: &Position) -> String {
        place::time(position).map_or_else(|_| format!("{:?}", position.rank), |at| at.to_string())
    }
}

#[async_trait]
impl Marker for Spanner {
    /// The time of a strong read: it sees whatever was committed before, so that has this commit time or an
    /// earlier one. The clock of a server may be behind that. It is told of the first partition, whose
    /// descendants must all have passed it.
    async fn mark(&self) -> Result<BTreeMap<PartitionId, Position>> {
        let read = self.connected().await?.batch_read(ReadAt::Strong).await;
        let read = read.map_err(|e| e.into_core("cannot ask for the time of a read"))?;
        Ok(BTreeMap::from([(lineage::root_id(), place::through(read.at()))]))
    }
}

#[async_trait]
impl Retention for Spanner {
    async fn left(&self) -> Result<RetentionLeft> {
        let prepared = self.prepared()?;
        let now = catalog::now(&*prepared.client).await?;
        let oldest = self.marks.oldest().unwrap_or(prepared.start);
        // Asked anew: it may have been altered.
        let catalog = Catalog::open(&*prepared.client).await?;
        let stream = catalog.stream(&prepared.stream_name).await?;
        let retention = stream.map_or(prepared.stream.retention, |s| s.retention);
        let seconds = (retention as f64 - now.seconds_since(oldest)).max(0.0);
        Ok(RetentionLeft { seconds: Some(seconds), at: Some(now.timestamp()), ..RetentionLeft::default() })
    }
}
