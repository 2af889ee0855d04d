//! PostgreSQL as a source: one slot, one partition, whole transactions in commit order.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, OnceLock, PoisonError};

use anabranch_core::{
    ChangeReader, Checkpoint, Error, Marker, Partition, PartitionId, Position, Result, Retention, RetentionLeft,
    Secret, Snapshotter, Source, SourceIdentity, SourceInfo, SourceOrder, StartFrom, TableSchema, Verifier,
};
use async_trait::async_trait;

use crate::catalog::{self, CatalogTable};
use crate::config::{OriginFilter, SchemaChange};
use crate::connect::Endpoint;
use crate::error::classify;
use crate::lsn::{Lsn, Ranking};
use crate::reader::Reader;
use crate::reader::assemble::{Assembler, Start};
use crate::reader::relation::Relations;
use crate::session::Session;
use crate::setup::System;
use crate::setup::publication;
use crate::setup::slot::{self, Slot};
use crate::wire::Connection;
use crate::{setup, sql};

/// A publication, read through a logical replication slot with pgoutput.
///
/// Works with PostgreSQL 15 to 18. The role needs `LOGIN`, `REPLICATION`, `SELECT` on the published
/// tables for the snapshot, and what creating a publication needs unless there is one already. See
/// [`PostgresSourceConfig`](crate::PostgresSourceConfig) for what each setting means.
///
/// ```no_run
/// use anabranch_postgres::Postgres;
/// let source = Postgres::new("postgresql://replicator@db1/shop").publication("orders").slot("orders_dr");
/// ```
#[derive(Debug)]
pub struct Postgres {
    url: Secret,
    password: Option<Secret>,
    pub(crate) publication: String,
    pub(crate) slot: String,
    pub(crate) tables: Vec<String>,
    pub(crate) create: bool,
    pub(crate) failover: bool,
    streaming: bool,
    origin: OriginFilter,
    on_schema_change: SchemaChange,
    pub(crate) chunk_pages: u32,
    session: OnceLock<Session>,
    /// The tables as they were when [`Source::tables`] was last asked: what the pipeline was checked with.
    known: Mutex<Vec<CatalogTable>>,
    version: OnceLock<u32>,
    /// The server that was checked last.
    checked: Mutex<Option<System>>,
}

/// 64 MiB: large enough to make a connection for each chunk cheap, small enough to copy a large table
/// in parallel and to read little twice when a copy is interrupted. Pages of 8 KiB.
const CHUNK_PAGES: u32 = 8192;

impl Postgres {
    /// The server and database of this URL: `postgresql://user@host:5432/database`.
    pub fn new(url: impl Into<Secret>) -> Self {
        Self {
            url: url.into(),
            password: None,
            publication: String::new(),
            slot: String::new(),
            tables: Vec::new(),
            create: true,
            failover: false,
            streaming: false,
            origin: OriginFilter::default(),
            on_schema_change: SchemaChange::default(),
            chunk_pages: CHUNK_PAGES,
            session: OnceLock::new(),
            known: Mutex::default(),
            version: OnceLock::new(),
            checked: Mutex::default(),
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

    /// Whether a missing publication and slot may be created.
    #[must_use]
    pub fn create(mut self, allowed: bool) -> Self {
        self.create = allowed;
        self
    }

    /// Whether a slot that is created is kept on standbys too (PostgreSQL 17 and later).
    #[must_use]
    pub fn failover(mut self, failover: bool) -> Self {
        self.failover = failover;
        self
    }

    /// Whether the server sends large transactions before they end.
    #[must_use]
    pub fn streaming(mut self, streaming: bool) -> Self {
        self.streaming = streaming;
        self
    }

    /// Which transactions to read, by where they were first made.
    #[must_use]
    pub fn origin(mut self, origin: OriginFilter) -> Self {
        self.origin = origin;
        self
    }

    /// What to do when a table changes.
    #[must_use]
    pub fn on_schema_change(mut self, policy: SchemaChange) -> Self {
        self.on_schema_change = policy;
        self
    }

    /// How many pages a chunk of a snapshot has.
    #[must_use]
    pub fn chunk_pages(mut self, pages: u32) -> Self {
        self.chunk_pages = pages.max(1);
        self
    }

    /// Checks what can be checked without a connection.
    ///
    /// # Errors
    /// [`Config`](anabranch_core::ErrorKind::Config), naming the key.
    pub fn check(&self) -> Result<()> {
        setup::check_names(&self.publication, &self.slot)?;
        setup::check_table_names(&self.tables)?;
        self.session().map(drop)
    }

    pub(crate) fn session(&self) -> Result<&Session> {
        if let Some(session) = self.session.get() {
            return Ok(session);
        }
        let endpoint = Endpoint::of_source(&self.url, self.password.as_ref())?;
        Ok(self.session.get_or_init(|| Session::new(endpoint)))
    }

    pub(crate) fn note_checked(&self, system: System) {
        *self.checked.lock().unwrap_or_else(PoisonError::into_inner) = Some(system);
    }

    pub(crate) fn partition(&self) -> PartitionId {
        PartitionId::new(self.slot.as_str())
    }

    /// The server's version, as `server_version_num` gives it.
    pub(crate) async fn version(&self) -> Result<u32> {
        if let Some(version) = self.version.get() {
            return Ok(*version);
        }
        let version = setup::version(&*self.session()?.client().await?).await?;
        Ok(*self.version.get_or_init(|| version))
    }

    /// The published tables; before a publication exists that may be created: those it will have.
    pub(crate) async fn catalog(&self) -> Result<Vec<CatalogTable>> {
        let client = self.session()?.client().await?;
        let published = catalog::published(&client, &self.publication).await?.0;
        if !published.is_empty() || !self.create || publication::exists(&client, &self.publication).await? {
            return Ok(published);
        }
        catalog::planned(&client, &publication::table_names(&self.tables)?).await
    }

    /// As the stream is read.
    fn start_replication(&self, at: Lsn, version: u32) -> String {
        self.read_slot(at, version, self.origin, self.streaming)
    }

    /// Reads the slot from `at`, what transactions of `origin` bring.
    pub(crate) fn read_slot(&self, at: Lsn, version: u32, origin: OriginFilter, streaming: bool) -> String {
        // The option's value is itself a list of quoted names.
        let publication = sql::literal(&sql::ident(&self.publication));
        let origin = match origin {
            OriginFilter::None if version >= 160_000 => ", origin 'none'",
            _ => "",
        };
        let protocol = if streaming { "proto_version '2', streaming 'on'" } else { "proto_version '1'" };
        format!(
            "START_REPLICATION SLOT {} LOGICAL {at} ({protocol}, publication_names {publication}, \
             messages 'true'{origin})",
            sql::ident(&self.slot)
        )
    }

    /// The slot as it is, checked to reach back to `from`.
    pub(crate) async fn usable_slot(&self, from: Option<Lsn>) -> Result<Slot> {
        let client = self.session()?.client().await?;
        let slot = slot::read(&client, &self.slot).await?;
        let Some(slot) = slot else { return Err(slot::missing(&self.slot, from)) };
        slot.check(self.session()?.endpoint().database(), from)?;
        slot.check_reaches(from)?;
        Ok(slot)
    }
}

#[async_trait]
impl Source for Postgres {
    fn info(&self) -> SourceInfo {
        SourceInfo { name: "postgres", order: SourceOrder::Transactions }
    }

    async fn prepare(&self, resume: Option<&Checkpoint>) -> Result<SourceIdentity> {
        Postgres::check(self)?;
        setup::prepare(self, resume).await
    }

    async fn check(&self, resume: Option<&Checkpoint>) -> Result<Vec<String>> {
        Postgres::check(self)?;
        setup::check(self, resume).await
    }

    async fn tables(&self) -> Result<Vec<TableSchema>> {
        let tables = self.catalog().await?;
        let schemas = tables.iter().map(|t| TableSchema::clone(&t.schema)).collect();
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
        let copied: HashMap<_, _> = from
            .snapshots
            .iter()
            .map(|(table, copy)| Ok((table.clone(), Lsn::of_rank(&copy.point)?.0)))
            .collect::<Result<_>>()?;
        let reach = match start {
            Some(position) => Some(Lsn::of_token(position)?),
            None => copied.values().min().copied(),
        };
        let slot = self.usable_slot(reach).await?;
        let start = start.cloned().unwrap_or_else(|| slot.confirmed_flush.as_position());

        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if known.is_empty() {
            known = self.catalog().await?;
        }
        let version = self.version().await?;
        let relations = Relations::new(known, copied, self.on_schema_change);
        let command = self.start_replication(Lsn::of_token(&start)?, version);
        let start = Start { position: start, drop_origins: self.origin == OriginFilter::None, ranking: Ranking::Log };
        let assembler = Assembler::new(self.partition(), relations, start)?;

        let session = self.session()?.clone();
        let mut connection = Connection::open(session.endpoint(), "anabranch stream").await?;
        let checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(checked) = checked {
            setup::check_same(&mut connection, &checked).await?;
        }
        connection.start_replication(&command, &format!("cannot read the slot {}", self.slot)).await?;
        Ok(Box::new(Reader::new(connection, assembler, session, self.publication.clone(), None)))
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
        // A change has no token of its own: the commit of its transaction tells where it is.
        Lsn::of_token(position).map_or_else(|_| format!("{:?}", position.rank), |lsn| lsn.to_string())
    }
}

#[async_trait]
impl Marker for Postgres {
    /// Writes a logical message in a transaction of its own. What was committed before has a commit
    /// record before the message.
    async fn mark(&self) -> Result<BTreeMap<PartitionId, Position>> {
        let client = self.session()?.client().await?;
        let row = client
            .query_one("SELECT pg_logical_emit_message(true, 'anabranch', 'drain')::text", &[])
            .await
            .map_err(|e| classify(e, "cannot write a marker to the source"))?;
        let at: Lsn = row.get::<_, &str>(0).parse()?;
        Ok(BTreeMap::from([(self.partition(), at.as_position())]))
    }
}

#[async_trait]
impl Retention for Postgres {
    async fn left(&self) -> Result<RetentionLeft> {
        slot::retention(&*self.session()?.client().await?, &self.slot).await
    }
}
