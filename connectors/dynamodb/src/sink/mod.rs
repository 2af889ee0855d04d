//! DynamoDB as a target of any source.
//!
//! Three modes ([`Mode`]) say how a unit becomes calls; `README.md` of this crate says what each
//! promises and costs.

mod batch;
mod config;
mod fold;
mod guarded;
mod item;
mod progress;
mod strip;
mod table;
mod target;
mod transactional;
mod verifier;
mod version;
mod writer;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anabranch_core::{
    Checkpointer, DeadLetterStore, Error, Lane, ProgressStore, Result, Sink, SinkInfo, SinkWriter, SourceIdentity,
    TargetSchema, Verifier,
};
use async_trait::async_trait;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;

pub use config::DynamoDbSinkConfig;
pub use item::Nulls;
pub use strip::Stripped;

use crate::limiter::Limiter;
use crate::store::{self, Store};
use crate::types::Item;
use crate::{Access, DynamoDbCheckpointer, DynamoDbDeadLetters, bookkeeping};
use table::Table;
use version::Version;

/// How units are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Each item by a conditional call of its own: a write whose version is not newer than the
    /// item's does nothing. A crash, a replay and a worker that lost its lease do no harm.
    #[default]
    Guarded,
    /// By `BatchWriteItem`, 25 items a call, without conditions. One writer at a time is what keeps
    /// items from going backwards; after a crash they do until the replay is through.
    Batch,
    /// Source transactions of up to 100 items and 4 MB each by one `TransactWriteItems`, with the
    /// progress and the fencing epoch in it.
    Transactional,
}

/// How the guarded mode remembers deleted items.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Versions {
    /// In the items: an attribute with the version, and tombstones that readers have to leave out.
    #[default]
    Attribute,
    /// In the table `anabranch_version`: readers see what the source has and nothing else. Each
    /// write is a transaction over two items, which costs four times the capacity.
    Table,
}

/// What becomes of a source transaction that no `TransactWriteItems` can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Oversized {
    /// It is rejected, with the limit named.
    #[default]
    Reject,
    /// It is applied as in the guarded mode, item by item: exactly once in effect, not atomic.
    /// Every item then has a version, and deleted ones leave tombstones.
    Guarded,
}

/// Everything that can be set.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) access: Access,
    pub(crate) mode: Mode,
    pub(crate) versions: Versions,
    pub(crate) oversized: Oversized,
    pub(crate) nulls: Nulls,
    pub(crate) version_attribute: String,
    pub(crate) origin_attribute: Option<String>,
    pub(crate) deleted_attribute: String,
    pub(crate) expires_attribute: String,
    pub(crate) tombstones: Duration,
    pub(crate) concurrency: usize,
}

impl Settings {
    /// Whether items carry a version.
    pub(crate) fn stamps_versions(&self) -> bool {
        match self.mode {
            Mode::Guarded => self.versions == Versions::Attribute,
            Mode::Batch => false,
            Mode::Transactional => self.oversized == Oversized::Guarded,
        }
    }

    /// Adds what marks an item as written by this pipeline as of `version`.
    pub(crate) fn stamp(&self, item: &mut Item, pipeline: &str, version: &Version) {
        if self.stamps_versions() {
            item.insert(self.version_attribute.clone(), version.attribute());
        }
        if let Some(origin) = &self.origin_attribute {
            item.insert(origin.clone(), store::s(bookkeeping::origin(pipeline, &version.hex())));
        }
    }

    /// What stands for a deleted item.
    pub(crate) fn tombstone(&self, key: &Item, pipeline: &str, version: &Version) -> Item {
        let mut item = key.clone();
        self.stamp(&mut item, pipeline, version);
        item.insert(self.deleted_attribute.clone(), AttributeValue::Bool(true));
        item.insert(self.expires_attribute.clone(), store::n(self.expiry()));
        item
    }

    /// When something that is deleted now may be forgotten, in seconds since 1970.
    pub(crate) fn expiry(&self) -> i64 {
        anabranch_core::Timestamp::now().as_micros() / 1_000_000 + self.tombstones.as_secs() as i64
    }
}

/// DynamoDB as a target, and as a place for checkpoints and dead letters.
///
/// Setters never fail and nothing is connected before the first use. Clones share one client.
///
/// ```
/// use anabranch_dynamodb::{Access, DynamoDbSink, Mode};
/// let sink = DynamoDbSink::new(Access::new().region("eu-west-1")).mode(Mode::Transactional);
/// sink.check()?;
/// # Ok::<(), anabranch_core::Error>(())
/// ```
#[derive(Clone)]
#[must_use]
pub struct DynamoDbSink {
    pub(crate) shared: Arc<Shared>,
}

/// What the parts of one sink share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) store: Arc<Store>,
    tables: Mutex<HashMap<String, Arc<Table>>>,
    limiters: Mutex<HashMap<String, Arc<Limiter>>>,
    /// Of the last claim: whose rows an emptied table is to lose for good.
    claimed: Mutex<Option<SourceIdentity>>,
}

impl DynamoDbSink {
    /// A target that is reached by `access`, in the guarded mode.
    pub fn new(access: Access) -> Self {
        Self::with(Settings {
            access,
            mode: Mode::default(),
            versions: Versions::default(),
            oversized: Oversized::default(),
            nulls: Nulls::default(),
            version_attribute: bookkeeping::VERSION.to_owned(),
            origin_attribute: Some(bookkeeping::ORIGIN.to_owned()),
            deleted_attribute: bookkeeping::DELETED.to_owned(),
            expires_attribute: bookkeeping::EXPIRES.to_owned(),
            // Longer than a process can be paused and than a replay can reach back.
            tombstones: Duration::from_secs(7 * 24 * 3600),
            concurrency: 128,
        })
    }

    /// How units are applied.
    pub fn mode(self, mode: Mode) -> Self {
        self.set(|s| s.mode = mode)
    }

    /// Where the guarded mode keeps versions.
    pub fn versions(self, versions: Versions) -> Self {
        self.set(|s| s.versions = versions)
    }

    /// What the transactional mode does with transactions that are too large.
    pub fn oversized(self, oversized: Oversized) -> Self {
        self.set(|s| s.oversized = oversized)
    }

    /// What becomes of NULL.
    pub fn nulls(self, nulls: Nulls) -> Self {
        self.set(|s| s.nulls = nulls)
    }

    /// The attribute that holds an item's version; `anabranch:version` by default.
    pub fn version_attribute(self, name: impl Into<String>) -> Self {
        let name = name.into();
        self.set(|s| s.version_attribute = name)
    }

    /// The attribute that marks every item that is written (`anabranch:origin` by default), so that a
    /// pipeline in the other direction can leave it out; an empty name switches it off. Items that
    /// are deleted without a tombstone cannot be marked.
    pub fn origin_attribute(self, name: impl Into<String>) -> Self {
        let name = name.into();
        self.set(|s| s.origin_attribute = (!name.is_empty()).then_some(name))
    }

    /// The attribute by which DynamoDB's time to live removes tombstones: that of the table, if it
    /// has one already. `anabranch:expires` by default.
    pub fn expires_attribute(self, name: impl Into<String>) -> Self {
        let name = name.into();
        self.set(|s| s.expires_attribute = name)
    }

    /// How long tombstones are kept; 7 days by default. It must be longer than the longest pause of
    /// a process that could go on writing after it, and than a pipeline may stand still and then
    /// replay what it had not recorded.
    pub fn tombstones(self, keep: Duration) -> Self {
        self.set(|s| s.tombstones = keep)
    }

    /// How many calls to one table may be under way at most; 128 by default. Throttling lowers it.
    pub fn concurrency(self, calls: usize) -> Self {
        self.set(|s| s.concurrency = calls)
    }

    /// A checkpointer in the same place.
    #[must_use]
    pub fn checkpointer(&self) -> DynamoDbCheckpointer {
        DynamoDbCheckpointer::with(Arc::clone(&self.shared.store))
    }

    /// A dead-letter store in the same place.
    #[must_use]
    pub fn dead_letters(&self) -> DynamoDbDeadLetters {
        DynamoDbDeadLetters::with(Arc::clone(&self.shared.store))
    }

    /// Finds what can be found without connecting.
    ///
    /// # Errors
    /// [`Config`](anabranch_core::ErrorKind::Config), naming the key.
    pub fn check(&self) -> Result<()> {
        let s = &self.shared.settings;
        let empty = |key: &str| Error::config(key, "is empty").hint("name an attribute, or leave the key out");
        for (key, name) in [("version_attribute", &s.version_attribute), ("expires_attribute", &s.expires_attribute)] {
            if name.is_empty() {
                return Err(empty(&format!("sink.{key}")));
            }
        }
        if s.concurrency == 0 {
            return Err(Error::config("sink.concurrency", "is 0").hint("allow at least one call at a time"));
        }
        if s.mode != Mode::Guarded && s.versions == Versions::Table {
            return Err(Error::config("sink.versions", "only the guarded mode keeps versions in a table")
                .hint("leave it out, or set mode = \"guarded\""));
        }
        if s.mode != Mode::Transactional && s.oversized != Oversized::Reject {
            return Err(Error::config("sink.oversized", "is for the transactional mode only")
                .hint("leave it out, or set mode = \"transactional\""));
        }
        Ok(())
    }

    fn set(self, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = self.shared.settings.clone();
        change(&mut settings);
        Self::with(settings)
    }

    fn with(settings: Settings) -> Self {
        let store = Arc::new(Store::new(settings.access.clone(), "sink"));
        let (tables, limiters, claimed) = Default::default();
        Self { shared: Arc::new(Shared { settings, store, tables, limiters, claimed }) }
    }
}

impl Shared {
    pub(crate) async fn client(&self) -> Result<&Client> {
        self.store.client().await
    }

    /// A table of the target, as it was described first.
    pub(crate) async fn table(&self, name: &str) -> Result<Option<Arc<Table>>> {
        if let Some(known) = locked(&self.tables).get(name) {
            return Ok(Some(Arc::clone(known)));
        }
        let Some(found) = store::describe(self.client().await?, name).await? else { return Ok(None) };
        let table = Arc::new(Table::from_description(name, &found)?);
        locked(&self.tables).insert(name.to_owned(), Arc::clone(&table));
        Ok(Some(table))
    }

    /// The limiter of a table's calls.
    pub(crate) fn limiter(&self, table: &str) -> Arc<Limiter> {
        let mut limiters = locked(&self.limiters);
        if let Some(known) = limiters.get(table) {
            return Arc::clone(known);
        }
        let limiter = Arc::new(Limiter::new(self.settings.concurrency));
        limiters.insert(table.to_owned(), Arc::clone(&limiter));
        limiter
    }

    pub(crate) fn claim(&self, identity: &SourceIdentity) {
        *locked(&self.claimed) = Some(identity.clone());
    }

    pub(crate) fn claimed(&self) -> Option<SourceIdentity> {
        locked(&self.claimed).clone()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A panic under these locks leaves whole entries behind.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Sink for DynamoDbSink {
    fn info(&self) -> SinkInfo {
        let transactional = self.shared.settings.mode == Mode::Transactional;
        SinkInfo { name: "dynamodb", transactional, max_lanes: 64, schemas: false }
    }

    async fn open(&self, lane: Lane) -> Result<Box<dyn SinkWriter>> {
        Ok(Box::new(writer::Writer::open(Arc::clone(&self.shared), lane).await?))
    }

    fn progress(&self) -> Option<&dyn ProgressStore> {
        Some(self)
    }

    fn checkpointer(&self) -> Option<Arc<dyn Checkpointer>> {
        Some(Arc::new(Self::checkpointer(self)))
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetterStore>> {
        Some(Arc::new(Self::dead_letters(self)))
    }

    fn target(&self) -> Option<&dyn TargetSchema> {
        Some(self)
    }

    fn verifier(&self) -> Option<&dyn Verifier> {
        Some(self)
    }
}

impl fmt::Debug for DynamoDbSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DynamoDbSink").field("settings", &self.shared.settings).finish_non_exhaustive()
    }
}
