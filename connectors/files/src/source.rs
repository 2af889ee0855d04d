//! Window files as a source.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anabranch_core::{
    ByShard, ChangeReader, Checkpoint, Error, Marker, Partition, PartitionId, Position, Rank, Result, Source,
    SourceIdentity, SourceInfo, SourceOrder, StartFrom, TableSchema,
};
use async_trait::async_trait;
use serde::Deserialize;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;

use crate::ledger::{Ledger, Tables};
use crate::location::Location;
use crate::names;
use crate::reader::{ShardReader, Token, Watcher};
use crate::store::Store;

/// The longest wait between two looks for new files unless set.
const POLL: Duration = Duration::from_secs(1);

/// The partition that waits for shards that are not known yet.
const NEW_SHARDS: &str = "_shards";

/// A run of window files, one partition for each shard.
///
/// Each shard's changes come in the order in which they were written, with the ranks, transactions and
/// commit times of their source. Orders: `key`, `window` and `arrival`; `transaction` over all shards
/// of a run that was written in the order `window`, or over one shard ([`WindowSource::shard`]) of any.
///
/// ```no_run
/// use anabranch_files::WindowSource;
/// let all = WindowSource::new("gs://bucket/orders").run("2026-11");
/// let one = WindowSource::new("gs://bucket/orders").run("2026-11").shard("eu");
/// ```
#[derive(Clone)]
pub struct WindowSource {
    pub(crate) settings: Settings,
    shared: Arc<Shared>,
}

#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) location: Location,
    pub(crate) run: String,
    pub(crate) shards: Shards,
    pub(crate) poll: Duration,
    pub(crate) processed: Processed,
}

/// Which shards are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Shards {
    All,
    These(Vec<String>),
    One(String),
}

/// What becomes of a file that is processed: durable downstream, and recorded so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Processed {
    /// It stays.
    #[default]
    Keep,
    /// It is deleted.
    Delete,
    /// It is moved into the folder `_processed` of its shard.
    Move,
}

#[derive(Default)]
struct Shared {
    /// The ledger as it was seen last. One look serves all readers that wait.
    seen: AsyncMutex<Option<(Instant, Arc<Ledger>)>>,
    /// Shards that the runtime knows.
    known: Mutex<BTreeSet<String>>,
}

impl WindowSource {
    /// Window files in this folder.
    pub fn new(location: impl Into<Location>) -> Self {
        Self::with(Settings {
            location: location.into().section("source"),
            run: "default".to_owned(),
            shards: Shards::All,
            poll: POLL,
            processed: Processed::Keep,
        })
    }

    /// The name of the run; `default` unless set.
    #[must_use]
    pub fn run(self, run: impl Into<String>) -> Self {
        Self::with(Settings { run: run.into(), ..self.settings })
    }

    /// Reads this shard alone; the empty name means the changes without a shard. Its transactions then
    /// come whole and in order, so that any order can be kept.
    #[must_use]
    pub fn shard(self, shard: impl Into<String>) -> Self {
        Self::with(Settings { shards: Shards::One(shard.into()), ..self.settings })
    }

    /// Reads these shards alone. Unless set, all are read, also those that appear later.
    #[must_use]
    pub fn shards<S: Into<String>>(self, shards: impl IntoIterator<Item = S>) -> Self {
        let shards = Shards::These(shards.into_iter().map(Into::into).collect());
        Self::with(Settings { shards, ..self.settings })
    }

    /// The longest wait between two looks for new files; 1 s unless set. A busy run is looked at more often.
    #[must_use]
    pub fn poll(self, poll: Duration) -> Self {
        Self::with(Settings { poll, ..self.settings })
    }

    /// What becomes of files that are processed. They stay unless set.
    #[must_use]
    pub fn processed(self, processed: Processed) -> Self {
        Self::with(Settings { processed, ..self.settings })
    }

    /// Finds what can be found without a connection.
    ///
    /// # Errors
    /// [`Config`](anabranch_core::ErrorKind::Config), naming the key.
    pub fn check_settings(&self) -> Result<()> {
        if self.settings.run.is_empty() {
            return Err(Error::config("source.run", "is empty").hint("name the run"));
        }
        if matches!(&self.settings.shards, Shards::These(shards) if shards.is_empty()) {
            return Err(Error::config("source.shards", "is empty").hint("leave it out to read all"));
        }
        if self.settings.poll.is_zero() {
            return Err(Error::config("source.poll_seconds", "must be more than 0"));
        }
        self.settings.location.check()
    }

    /// The shards that the run has now.
    ///
    /// # Errors
    /// If the run cannot be read.
    pub async fn known_shards(&self) -> Result<Vec<String>> {
        let ledger = Ledger::load(&self.store()?, &self.settings.run).await?;
        let entries = ledger.map(|(ledger, _)| ledger.shards).unwrap_or_default();
        Ok(entries.into_values().map(|entry| entry.name.unwrap_or_default()).collect())
    }

    pub(crate) fn store(&self) -> Result<Store> {
        self.settings.location.store()
    }

    /// The ledger, not older than `since`; `None` while nobody has begun the run.
    pub(crate) async fn ledger(&self, store: &Store, since: Instant) -> Result<Option<Arc<Ledger>>> {
        let mut seen = self.shared.seen.lock().await;
        if let Some((_, ledger)) = seen.as_ref().filter(|(at, _)| *at >= since) {
            return Ok(Some(Arc::clone(ledger)));
        }
        let now = Instant::now();
        let Some((ledger, _)) = Ledger::load(store, &self.settings.run).await? else { return Ok(None) };
        if seen.as_ref().is_some_and(|(_, before)| before.id != ledger.id || before.version > ledger.version) {
            return Err(Error::fatal(format!("the run {} was begun anew while it was read", self.settings.run))
                .hint("read a run under a name of its own; if a backup was restored, make the copy anew"));
        }
        let ledger = Arc::new(ledger);
        *seen = Some((now, Arc::clone(&ledger)));
        Ok(Some(ledger))
    }

    pub(crate) fn reads_all(&self) -> bool {
        self.settings.shards == Shards::All
    }

    /// Whether a partition for this shard is to come from the one that waits for new ones.
    pub(crate) fn is_new(&self, shard: &str) -> bool {
        !self.known().contains(shard)
    }

    pub(crate) fn learn(&self, shard: &str) {
        self.known().insert(shard.to_owned());
    }

    fn known(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        // A panic under the lock leaves a whole set behind.
        self.shared.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with(settings: Settings) -> Self {
        Self { settings, shared: Arc::default() }
    }

    async fn checked(&self, resume: Option<&Checkpoint>) -> Result<SourceIdentity> {
        self.check_settings()?;
        let run = &self.settings.run;
        let ledger = Ledger::load(&self.store()?, run).await?.map(|(ledger, _)| ledger);
        // A run that nobody has begun yet is waited for.
        let id = ledger.as_ref().map(|l| l.id.as_str());
        let identity = SourceIdentity::default().with("run", run.clone());
        let identity = id.into_iter().fold(identity, |identity, id| identity.with("id", id));
        let stored = resume.map(|r| &r.identity).filter(|identity| !identity.0.is_empty());
        if let Some(stored) = stored {
            let other = |key: &str, now: Option<&str>| stored.get(key).is_some_and(|before| Some(before) != now);
            if other("run", Some(run)) || other("id", id) {
                let before = stored.get("run").unwrap_or("none");
                let problem = format!("the checkpoint is of another run, of the name {before}; this is {run}");
                return Err(Error::fatal(problem).hint(
                    "set source.run and source.path to that one, or give the pipeline another name and copy the tables \
                     again",
                ));
            }
        }
        for (id, progress) in resume.iter().flat_map(|r| &r.partitions) {
            let Some(position) = progress.position.as_ref().filter(|p| !p.token.is_empty()) else { continue };
            let token = Token::of(position)?;
            let has = ledger.as_ref().and_then(|l| l.shards.get(id.as_str())).map_or(0, |s| s.files);
            if has < token.number {
                let problem =
                    format!("of the shard {id} file {} was processed, and the run {run} has {has}", token.number);
                return Err(Error::fatal(problem).hint(
                    "the run was begun anew, or a backup of it was restored: copy the tables again under another \
                     pipeline name",
                ));
            }
        }
        // Without its tables a target that lacks them would be taken for one that needs none.
        if ledger.is_none() || !Tables::load(&self.store()?, run).await?.are_stored() {
            return Err(Error::transient(format!("nobody has begun to write the run {run} yet"))
                .hint("start the pipeline that writes it; this one waits"));
        }
        Ok(identity)
    }
}

#[async_trait]
impl Source for WindowSource {
    fn info(&self) -> SourceInfo {
        let order = match self.settings.shards {
            Shards::One(_) => SourceOrder::Transactions,
            Shards::All | Shards::These(_) => SourceOrder::CommitTimePerPartition,
        };
        SourceInfo { name: "files", order }
    }

    async fn prepare(&self, resume: Option<&Checkpoint>) -> Result<SourceIdentity> {
        self.checked(resume).await
    }

    async fn check(&self, resume: Option<&Checkpoint>) -> Result<Vec<String>> {
        self.checked(resume).await.map(|_| Vec::new())
    }

    async fn tables(&self) -> Result<Vec<TableSchema>> {
        Ok(Tables::load(&self.store()?, &self.settings.run).await?.tables)
    }

    async fn partitions(&self) -> Result<Vec<Partition>> {
        let root = |folder: String| Partition::root(PartitionId::new(folder));
        Ok(match &self.settings.shards {
            Shards::One(shard) => vec![root(names::shard(Some(shard)))],
            Shards::These(shards) => shards.iter().map(|s| root(names::shard(Some(s)))).collect(),
            Shards::All => {
                let ledger = Ledger::load(&self.store()?, &self.settings.run).await?;
                let shards = ledger.map(|(ledger, _)| ledger.shards).unwrap_or_default();
                shards.keys().for_each(|shard| self.learn(shard));
                let waiting = root(format!("{NEW_SHARDS}/0"));
                shards.into_keys().map(root).chain([waiting]).collect()
            }
        })
    }

    async fn open(&self, partition: &Partition, from: &StartFrom) -> Result<Box<dyn ChangeReader>> {
        let store = self.store()?;
        if let Some(generation) = partition.id.as_str().strip_prefix(NEW_SHARDS).and_then(|g| g.strip_prefix('/')) {
            let generation = generation
                .parse()
                .map_err(|_| Error::fatal(format!("the checkpoint has an unknown partition {}", partition.id)))?;
            return Ok(Box::new(Watcher::new(self.clone(), store, partition.id.clone(), generation)));
        }
        Ok(Box::new(ShardReader::new(self.clone(), store, partition.id.clone(), from.position.as_ref())?))
    }

    fn marker(&self) -> Option<&dyn Marker> {
        Some(self)
    }

    fn by_shard(&self) -> Option<&dyn ByShard> {
        Some(self)
    }

    fn describe(&self, position: &Position) -> String {
        match Token::of(position) {
            Ok(token) if token.name.is_empty() => "the start".to_owned(),
            Ok(token) => token.shown(),
            Err(_) => format!("{:?}", position.rank),
        }
    }
}

/// Marks what is in the files now: for what the source of the run has, drain its writer before.
#[async_trait]
impl Marker for WindowSource {
    async fn mark(&self) -> Result<BTreeMap<PartitionId, Position>> {
        let Some((ledger, _)) = Ledger::load(&self.store()?, &self.settings.run).await? else {
            return Ok(BTreeMap::new());
        };
        let wanted = |folder: &str| match &self.settings.shards {
            Shards::All => true,
            Shards::These(shards) => shards.iter().any(|s| names::shard(Some(s)) == folder),
            Shards::One(shard) => names::shard(Some(shard)) == folder,
        };
        let entries = ledger.shards.iter().filter(|(folder, _)| wanted(folder));
        Ok(entries
            .map(|(folder, entry)| {
                let is_open = ledger.open.as_ref().is_some_and(|open| open.rank == entry.rank);
                let rank = match is_open {
                    true => Rank::of_change(&entry.rank, entry.sequence),
                    false => Rank::of_end(&entry.rank),
                };
                (PartitionId::new(folder.clone()), Position::new(rank, Token::end(entry.files, &entry.last).to_bytes()))
            })
            .collect())
    }
}

/// The partition that waits for shards, once it has found some.
pub(crate) fn next_watcher(parent: &PartitionId, generation: u64) -> Partition {
    Partition {
        id: PartitionId::new(format!("{NEW_SHARDS}/{}", generation + 1)),
        parents: vec![parent.clone()],
        start: None,
    }
}

impl fmt::Debug for WindowSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.settings.fmt(f)
    }
}
