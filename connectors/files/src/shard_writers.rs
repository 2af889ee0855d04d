//! One pipeline for each shard of a run: a shard that fails halts alone, and the others go on.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anabranch_core::{Error, Pipeline, Result, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::error::damaged;
use crate::names;
use crate::source::{Shards, WindowSource};
use crate::store::Store;

/// How often new shards are looked for, and the state of running ones is stored.
const LOOK: Duration = Duration::from_secs(1);

/// Which shards are written.
///
/// Where a shard goes on is never chosen: its pipeline's checkpoint, which is in the target with the
/// rows, tells it to the change. The modes only choose shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunMode {
    /// All shards, also those that appear later.
    #[default]
    Regular,
    /// Those that did not fail.
    ResumeSuccess,
    /// Those that failed: from the start of the window in which they did, without the changes that were applied.
    ResumeFailed,
    /// Those that were marked by [`ShardWriters::reprocess`].
    Reprocess,
    /// All shards that did not fail, that failed or that are new.
    ResumeAll,
}

/// How a shard fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShardState {
    /// It goes on, or was stopped in an orderly way, or died without an error of its own.
    Success,
    /// It was halted by an error that waiting does not mend.
    Error,
    /// An operator wants it to be tried again.
    Reprocess,
}

/// The state of a shard, as it is stored beside the files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardStatus {
    /// The shard; empty for changes without one.
    pub shard: String,
    /// How it fares.
    pub state: ShardState,
    /// The file and line that it has reached.
    pub reached: Option<String>,
    /// What halted it.
    pub error: Option<String>,
    /// When this was stored.
    pub at: Timestamp,
}

type Make = dyn Fn(&str, WindowSource) -> Result<Pipeline> + Send + Sync;

/// Writes each shard of a run by a pipeline of its own.
///
/// ```no_run
/// use anabranch_core::{ByTransaction, Pipeline, memory::MemorySink, checkpointer::FileCheckpointer};
/// use anabranch_files::{RunMode, ShardWriters, WindowSource};
/// # async fn example(stop: tokio_util::sync::CancellationToken) -> anabranch_core::Result<()> {
/// let source = WindowSource::new("gs://bucket/orders").run("2026-11");
/// let ended = ShardWriters::new(source, |shard, source| {
///     Pipeline::builder(format!("orders/{shard}"))   // a name of its own for each
///         .source(source)
///         .sink(MemorySink::new())                   // the database of this shard
///         .checkpointer(FileCheckpointer::new("state"))
///         .order(ByTransaction::new())
///         .snapshot(anabranch_core::pipeline::SnapshotMode::Never)
///         .build()
/// })
/// .mode(RunMode::ResumeAll)
/// .run(stop)
/// .await?;
/// # Ok(()) }
/// ```
pub struct ShardWriters {
    source: WindowSource,
    make: Arc<Make>,
    mode: RunMode,
}

/// A shard's pipeline that ended.
type Ended = (String, Option<String>, Result<()>);

impl ShardWriters {
    /// Of this run, each shard by the pipeline that `make` builds of its name and source.
    pub fn new(
        source: WindowSource,
        make: impl Fn(&str, WindowSource) -> Result<Pipeline> + Send + Sync + 'static,
    ) -> Self {
        Self { source, make: Arc::new(make), mode: RunMode::Regular }
    }

    /// Which shards are written. [`RunMode::Regular`] unless set.
    #[must_use]
    pub fn mode(self, mode: RunMode) -> Self {
        Self { mode, ..self }
    }

    /// What is stored about each shard.
    ///
    /// # Errors
    /// If the run cannot be read.
    pub async fn status(&self) -> Result<Vec<ShardStatus>> {
        let store = self.source.store()?;
        let mut all = Vec::new();
        for shard in self.shards().await? {
            all.extend(load(&store, self.run_name(), &shard).await?);
        }
        Ok(all)
    }

    /// Marks a shard for [`RunMode::Reprocess`].
    ///
    /// # Errors
    /// [`Config`](anabranch_core::ErrorKind::Config) if the run has no such shard.
    pub async fn reprocess(&self, shard: &str) -> Result<()> {
        let store = self.source.store()?;
        if !self.shards().await?.iter().any(|s| s == shard) {
            return Err(Error::config("shard", format!("the run {} has no shard \"{shard}\"", self.run_name())));
        }
        let before = load(&store, self.run_name(), shard).await?;
        let (reached, error) = before.map_or((None, None), |b| (b.reached, b.error));
        let status =
            ShardStatus { shard: shard.to_owned(), state: ShardState::Reprocess, reached, error, at: Timestamp::now() };
        self.save(&store, &status).await
    }

    /// Writes until `stop` is cancelled or every shard was halted; then tells how each of them fares.
    /// An error of one shard halts that shard alone.
    ///
    /// # Errors
    /// If the run itself cannot be read.
    pub async fn run(&self, stop: CancellationToken) -> Result<Vec<ShardStatus>> {
        let store = self.source.store()?;
        let stop = stop.child_token();
        let result = self.supervise(&store, &stop).await;
        // Whatever ended it: nothing that was started runs on.
        stop.cancel();
        result
    }

    async fn supervise(&self, store: &Store, stop: &CancellationToken) -> Result<Vec<ShardStatus>> {
        let mut statuses: BTreeMap<String, ShardStatus> = BTreeMap::new();
        let mut tasks: JoinSet<Ended> = JoinSet::new();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut first = true;
        loop {
            tokio::select! {
                biased;
                // 1. What ended is recorded.
                Some(ended) = tasks.join_next() => {
                    let (shard, reached, result) =
                        ended.map_err(|e| Error::fatal("a task of a shard panicked").because(e))?;
                    let status = told(&shard, reached, result.err());
                    self.save(store, &status).await?;
                    statuses.insert(shard, status);
                }
                // 2. Stopping: every pipeline has the same token, and ends in an orderly way.
                () = stop.cancelled(), if tasks.is_empty() => return Ok(statuses.into_values().collect()),
                // 3. New shards.
                _ = look.tick(), if !stop.is_cancelled() => {
                    for shard in self.shards().await?.into_iter().filter(|s| !statuses.contains_key(s)).collect::<Vec<_>>() {
                        let before = load(store, self.run_name(), &shard).await?;
                        if !self.wants(before.as_ref(), first) {
                            continue;
                        }
                        let status = before.unwrap_or_else(|| told(&shard, None, None));
                        self.save(store, &status).await?;
                        statuses.insert(shard.clone(), status.clone());
                        tasks.spawn(self.write(store.clone(), status, stop.clone()));
                    }
                    first = false;
                    if tasks.is_empty() && !self.waits_for_new() {
                        return Ok(statuses.into_values().collect());
                    }
                }
            }
            if tasks.is_empty() && !first && (stop.is_cancelled() || !self.waits_for_new()) {
                return Ok(statuses.into_values().collect());
            }
        }
    }

    /// Whether the mode takes this shard.
    fn wants(&self, before: Option<&ShardStatus>, first: bool) -> bool {
        match (self.mode, before.map(|b| b.state)) {
            (RunMode::Regular | RunMode::ResumeAll, _) => true,
            (RunMode::ResumeSuccess, state) => first && state == Some(ShardState::Success),
            (RunMode::ResumeFailed, state) => first && state == Some(ShardState::Error),
            (RunMode::Reprocess, state) => first && state == Some(ShardState::Reprocess),
        }
    }

    fn waits_for_new(&self) -> bool {
        matches!(self.mode, RunMode::Regular | RunMode::ResumeAll)
    }

    /// Runs the pipeline of one shard to its end.
    fn write(
        &self,
        store: Store,
        mut status: ShardStatus,
        stop: CancellationToken,
    ) -> impl Future<Output = Ended> + Send + 'static {
        let (make, source) = (Arc::clone(&self.make), self.source.clone().shard(status.shard.clone()));
        let run = self.run_name().to_owned();
        async move {
            let shard = status.shard.clone();
            let pipeline = match make(&shard, source) {
                Ok(pipeline) => pipeline,
                Err(e) => return (shard, status.reached, Err(e)),
            };
            let mut running = match pipeline.start().await {
                Ok(running) => running,
                Err(e) => return (shard, status.reached, Err(e)),
            };
            let (monitor, stopper) = (running.monitor(), running.stopper());
            let mut tick = interval(LOOK);
            let result = loop {
                tokio::select! {
                    biased;
                    // 1. It ended.
                    result = running.wait() => break result,
                    // 2. It has to.
                    () = stop.cancelled(), if !stopper.is_cancelled() => stopper.cancel(),
                    // 3. A shard that had failed and goes on again is a success.
                    _ = tick.tick() => {
                        let reached = reached(&monitor.status());
                        if status.state != ShardState::Success && reached.is_some() && reached != status.reached {
                            status = told(&shard, reached, None);
                            let _ = save(&store, &run, &status).await;
                        }
                    }
                }
            };
            (shard, reached(&monitor.status()).or(status.reached), result)
        }
    }

    async fn shards(&self) -> Result<Vec<String>> {
        Ok(match &self.source.settings.shards {
            Shards::All => self.source.known_shards().await?,
            Shards::These(shards) => shards.clone(),
            Shards::One(shard) => vec![shard.clone()],
        })
    }

    fn run_name(&self) -> &str {
        &self.source.settings.run
    }

    async fn save(&self, store: &Store, status: &ShardStatus) -> Result<()> {
        save(store, self.run_name(), status).await
    }
}

fn told(shard: &str, reached: Option<String>, error: Option<Error>) -> ShardStatus {
    let state = if error.is_some() { ShardState::Error } else { ShardState::Success };
    ShardStatus { shard: shard.to_owned(), state, reached, error: error.map(|e| e.report()), at: Timestamp::now() }
}

fn reached(status: &anabranch_core::Status) -> Option<String> {
    status.partitions.values().next().map(|p| p.position.clone())
}

async fn load(store: &Store, run: &str, shard: &str) -> Result<Option<ShardStatus>> {
    let name = names::status(run, &names::shard(Some(shard)));
    let Some((bytes, _)) = store.get(&name).await? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|e| damaged(&store.show(&name), e))
}

async fn save(store: &Store, run: &str, status: &ShardStatus) -> Result<()> {
    let content = serde_json::to_vec(status).map_err(|e| Error::fatal("cannot write a status as JSON").because(e))?;
    store.put(&names::status(run, &names::shard(Some(&status.shard))), content.into()).await
}

impl fmt::Debug for ShardWriters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardWriters").field("source", &self.source).field("mode", &self.mode).finish_non_exhaustive()
    }
}
