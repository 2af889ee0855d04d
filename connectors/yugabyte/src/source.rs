//! YugabyteDB as a source: one slot, one partition, whole transactions in the order of their commit times.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anabranch_core::{
    ChangeReader, Checkpoint, Error, Marker, Partition, PartitionId, Position, Result, Retention, RetentionLeft,
    Secret, Snapshotter, Source, SourceIdentity, SourceInfo, SourceOrder, StartFrom, TableName, TableSchema, Verifier,
};
use anabranch_postgres::layer::{
    Published, Server, Stream, before_time, check_names, classify, ident, literal, resume_at, table_name, time_of,
};
use anabranch_postgres::{Endpoint, Lsn, SchemaChange};
use async_trait::async_trait;

use crate::config::{LsnType, Plugin};
use crate::slot::{self, Slot};
use crate::{marker, publication, setup};

/// A publication, read through a logical replication slot with yboutput or pgoutput.
///
/// Works with YugabyteDB 2025.1 and later. The role needs `LOGIN`, `REPLICATION`, `SELECT` on the
/// published tables for the copy, `INSERT` and `UPDATE` on the marker table, and what creating marker table and
/// publication needs unless they are there. See
/// [`YugabyteSourceConfig`](crate::YugabyteSourceConfig) for what each setting means.
///
/// ```no_run
/// use anabranch_yugabyte::Yugabyte;
/// let source = Yugabyte::new("postgresql://replicator@yb1:5433/shop").publication("orders").slot("orders_dr");
/// ```
#[derive(Debug)]
pub struct Yugabyte {
    url: Secret,
    password: Option<Secret>,
    publication: String,
    slot: String,
    tables: Vec<String>,
    create: bool,
    plugin: Plugin,
    lsn_type: Option<LsnType>,
    marker_table: String,
    heartbeat: Duration,
    retention: Duration,
    max_clock_skew: Duration,
    pub(crate) read_time_procedure: Option<String>,
    pub(crate) chunks: Option<u32>,
    on_schema_change: SchemaChange,
    server: OnceLock<Server>,
    /// The tables as they were when [`Source::tables`] was last asked: what the pipeline was checked with.
    known: Mutex<Vec<Published>>,
    /// The pipeline has applied something already: a copy's point must lie behind that.
    pub(crate) resumed: AtomicBool,
}

/// How often something is committed on a source that is quiet, unless told otherwise: with it safe time is
/// never much older.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// The server's default for both flags that limit it (YugabyteDB's manual, "Advanced configuration").
const RETENTION: Duration = Duration::from_secs(8 * 3600);

/// The server's default for `max_clock_skew_usec`.
const MAX_CLOCK_SKEW: Duration = Duration::from_millis(500);

impl Yugabyte {
    /// The server and database of this URL: `postgresql://user@host:5433/database`.
    pub fn new(url: impl Into<Secret>) -> Self {
        Self {
            url: url.into(),
            password: None,
            publication: String::new(),
            slot: String::new(),
            tables: Vec::new(),
            create: true,
            plugin: Plugin::default(),
            lsn_type: None,
            marker_table: "public.anabranch_marker".to_owned(),
            heartbeat: HEARTBEAT,
            retention: RETENTION,
            max_clock_skew: MAX_CLOCK_SKEW,
            read_time_procedure: None,
            chunks: None,
            on_schema_change: SchemaChange::default(),
            server: OnceLock::new(),
            known: Mutex::default(),
            resumed: AtomicBool::new(false),
        }
    }

    /// The password, if it is not in the URL.
    #[must_use]
    pub fn password(mut self, password: impl Into<Secret>) -> Self {
        self.password = Some(password.into());
        self
    }

    /// The publication to read.
    #[must_use]
    pub fn publication(mut self, name: impl Into<String>) -> Self {
        self.publication = name.into();
        self
    }

    /// The replication slot to read through.
    #[must_use]
    pub fn slot(mut self, name: impl Into<String>) -> Self {
        self.slot = name.into();
        self
    }

    /// The tables to create a missing publication with, as `schema.table`. None: all tables.
    #[must_use]
    pub fn tables(mut self, tables: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.tables = tables.into_iter().map(Into::into).collect();
        self
    }

    /// Whether a missing marker table, publication and slot may be created.
    #[must_use]
    pub fn create(mut self, allowed: bool) -> Self {
        self.create = allowed;
        self
    }

    /// What writes the messages of the stream.
    #[must_use]
    pub fn plugin(mut self, plugin: Plugin) -> Self {
        self.plugin = plugin;
        self
    }

    /// What the LSNs of the slot are.
    #[must_use]
    pub fn lsn_type(mut self, lsn_type: LsnType) -> Self {
        self.lsn_type = Some(lsn_type);
        self
    }

    /// The table that heartbeats and marks are written to, as `schema.table`.
    #[must_use]
    pub fn marker_table(mut self, table: impl Into<String>) -> Self {
        self.marker_table = table.into();
        self
    }

    /// How long nothing may be committed in the stream before a heartbeat is.
    #[must_use]
    pub fn heartbeat(mut self, every: Duration) -> Self {
        self.heartbeat = every;
        self
    }

    /// How long the server keeps what a slot needs.
    #[must_use]
    pub fn retention(mut self, time: Duration) -> Self {
        self.retention = time;
        self
    }

    /// How far the clocks of the servers may be apart.
    #[must_use]
    pub fn max_clock_skew(mut self, skew: Duration) -> Self {
        self.max_clock_skew = skew;
        self
    }

    /// A procedure that sets `yb_read_time` for a user who is no superuser, as `schema.procedure`.
    #[must_use]
    pub fn read_time_procedure(mut self, procedure: impl Into<String>) -> Self {
        self.read_time_procedure = Some(procedure.into());
        self
    }

    /// Chunks of a table that is sharded by hash.
    #[must_use]
    pub fn chunks(mut self, chunks: u32) -> Self {
        self.chunks = Some(chunks.clamp(1, 65_536));
        self
    }

    /// What to do when a table changes.
    #[must_use]
    pub fn on_schema_change(mut self, policy: SchemaChange) -> Self {
        self.on_schema_change = policy;
        self
    }

    /// Checks what can be checked without a connection.
    ///
    /// # Errors
    /// [`Config`](anabranch_core::ErrorKind::Config), naming the key.
    pub fn check(&self) -> Result<()> {
        check_names(&self.publication, &self.slot)?;
        self.table_names()?;
        self.marker_table_name()?;
        if let Some(procedure) = &self.read_time_procedure {
            table_name("source.read_time_procedure", procedure)?;
        }
        self.server().map(drop)
    }

    pub(crate) fn server(&self) -> Result<&Server> {
        if let Some(server) = self.server.get() {
            return Ok(server);
        }
        let endpoint = Endpoint::of_source(&self.url, self.password.as_ref())?;
        Ok(self.server.get_or_init(|| Server::new(endpoint)))
    }

    pub(crate) fn partition(&self) -> PartitionId {
        PartitionId::new(self.slot.as_str())
    }

    pub(crate) fn slot_name(&self) -> &str {
        &self.slot
    }

    pub(crate) fn publication_name(&self) -> &str {
        &self.publication
    }

    pub(crate) fn may_create(&self) -> bool {
        self.create
    }

    pub(crate) fn plugin_of_slot(&self) -> Plugin {
        self.plugin
    }

    pub(crate) fn lsn_type_wanted(&self) -> Option<LsnType> {
        self.lsn_type
    }

    pub(crate) fn retention_of_server(&self) -> Duration {
        self.retention
    }

    pub(crate) fn marker_table_name(&self) -> Result<TableName> {
        table_name("source.marker_table", &self.marker_table)
    }

    pub(crate) fn table_names(&self) -> Result<Vec<TableName>> {
        self.tables.iter().map(|t| table_name("source.tables", t)).collect()
    }

    pub(crate) fn note_resumed(&self, resumed: bool) {
        self.resumed.store(resumed, Ordering::Relaxed);
    }

    /// The published tables, the marker's included; before a publication exists that may be created: those
    /// it will have.
    pub(crate) async fn published(&self) -> Result<Vec<Published>> {
        let server = self.server()?;
        let published = server.published(&self.publication).await?;
        let client = server.client().await?;
        if !published.is_empty() || !self.create || publication::exists(&client, &self.publication).await? {
            return Ok(published);
        }
        server.planned(&self.table_names()?).await
    }

    fn start_replication(&self, at: Lsn) -> String {
        // The option's value is itself a list of quoted names. YugabyteDB documents these two options
        // and no others.
        let publication = literal(&ident(&self.publication));
        let slot = ident(&self.slot);
        format!(
            "START_REPLICATION SLOT {slot} LOGICAL {at} (proto_version '1', publication_names {})",
            publication.trim_start()
        )
    }

    /// The slot as it is, checked.
    async fn usable_slot(&self, from: Option<&Position>) -> Result<Slot> {
        let client = self.server()?.client().await?;
        let time = from.map(time_of).transpose()?;
        let slot = slot::read(&client, &self.slot).await?;
        let slot = slot.ok_or_else(|| slot::missing(&self.slot, self.plugin, time))?;
        slot.check(&setup::wanted(self)?, time)?;
        slot.check_reaches(from.map(resume_at).transpose()?)?;
        Ok(slot)
    }
}

#[async_trait]
impl Source for Yugabyte {
    fn info(&self) -> SourceInfo {
        SourceInfo { name: "yugabyte", order: SourceOrder::Transactions }
    }

    async fn prepare(&self, resume: Option<&Checkpoint>) -> Result<SourceIdentity> {
        Yugabyte::check(self)?;
        setup::prepare(self, resume).await
    }

    async fn check(&self, resume: Option<&Checkpoint>) -> Result<Vec<String>> {
        Yugabyte::check(self)?;
        setup::check(self, resume).await
    }

    async fn tables(&self) -> Result<Vec<TableSchema>> {
        let (tables, marker) = (self.published().await?, self.marker_table_name()?);
        let schemas = tables.iter().map(Published::schema).filter(|s| s.name != marker);
        let schemas = schemas.map(|s| TableSchema::clone(s)).collect();
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = tables;
        Ok(schemas)
    }

    async fn partitions(&self) -> Result<Vec<Partition>> {
        Ok(vec![Partition::root(self.partition())])
    }

    async fn open(&self, partition: &Partition, from: &StartFrom) -> Result<Box<dyn ChangeReader>> {
        if partition.id != self.partition() {
            return Err(Error::fatal(format!("the slot {} has no partition {:?}", self.slot, partition.id)));
        }
        let start = from.position.as_ref().or(partition.start.as_ref());
        let slot = self.usable_slot(start).await?;
        let start = match start {
            Some(position) => position.clone(),
            None => before_time(slot::time_of(slot.restart), slot.confirmed),
        };
        let copied: HashMap<_, _> = from
            .snapshots
            .iter()
            .map(|(table, copy)| Ok((table.clone(), time_of(&copy.point)?)))
            .collect::<Result<_>>()?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if known.is_empty() {
            known = self.published().await?;
        }
        let marker = self.marker_table_name()?;
        let stream = Stream {
            partition: self.partition(),
            command: self.start_replication(resume_at(&start)?),
            start,
            publication: self.publication.clone(),
            known,
            copied,
            beat: Some((marker::beat(&marker, &self.slot), self.heartbeat)),
            silent: vec![marker],
            on_schema_change: self.on_schema_change,
        };
        self.server()?.stream(stream).await
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
        match (time_of(position), resume_at(position)) {
            (Ok(time), Ok(at)) => format!("{time} ({at})"),
            _ => format!("{:?}", position.rank),
        }
    }
}

#[async_trait]
impl Retention for Yugabyte {
    async fn left(&self) -> Result<RetentionLeft> {
        let client = self.server()?.client().await?;
        let slot = slot::read(&client, &self.slot).await?;
        Ok(slot.ok_or_else(|| slot::missing(&self.slot, self.plugin, None))?.left(self.retention))
    }
}

impl Yugabyte {
    pub(crate) fn skew(&self) -> Duration {
        self.max_clock_skew
    }

    /// The server's hybrid time, now.
    pub(crate) async fn hybrid_time(&self) -> Result<u64> {
        let client = self.server()?.client().await?;
        let row = client.query_one("SELECT yb_get_current_hybrid_time_lsn()", &[]).await;
        Ok(row.map_err(|e| classify(e, "cannot read the server's hybrid time"))?.get::<_, i64>(0) as u64)
    }
}
