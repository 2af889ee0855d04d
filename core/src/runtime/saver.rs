//! Saves the checkpoint beside the stream, so that a slow checkpointer does not hold it up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::keeper::Keeper;
use crate::error::{Error, Result};
use crate::model::{Counters, LaneReached, PartitionId, PartitionProgress, Timestamp};
use crate::sink::Sink;

type Partitions = BTreeMap<PartitionId, PartitionProgress>;

/// How long a run may be silent: it saves at least this often, moved or not, so that `status` of
/// another process can tell a quiet pipeline from one whose process is gone.
pub(crate) const BEAT: Duration = Duration::from_secs(10);

/// What to save.
pub(crate) struct Wanted {
    pub(crate) partitions: Partitions,
    /// What was applied, to all shards and to each.
    pub(crate) counters: Counters,
    pub(crate) shards: BTreeMap<String, Counters>,
    /// What lanes have stored since the run began.
    pub(crate) reached: Vec<LaneReached>,
    /// The time up to which everything is durable.
    pub(crate) safe_time: Option<Timestamp>,
    /// Whether the run ends with it.
    pub(crate) ended: bool,
}

/// The task that owns the checkpoint.
pub(crate) struct SaveTask {
    pub(crate) keeper: Keeper,
    /// Told the safe time, if it hands that on.
    pub(crate) sink: Arc<dyn Sink>,
}

impl SaveTask {
    async fn run(mut self, mut wanted: mpsc::Receiver<Wanted>, saved: mpsc::Sender<Result<Partitions>>) {
        while let Some(wanted) = wanted.recv().await {
            let result = self.save(wanted).await;
            let failed = result.is_err();
            if saved.send(result).await.is_err() || failed {
                break;
            }
        }
    }

    async fn save(&mut self, wanted: Wanted) -> Result<Partitions> {
        let checkpoint = &mut self.keeper.checkpoint;
        (checkpoint.partitions, checkpoint.counters) = (wanted.partitions, wanted.counters);
        (checkpoint.shards, checkpoint.ended) = (wanted.shards, wanted.ended);
        for now in wanted.reached {
            // What the others have stored in an earlier run is there still.
            checkpoint.reached.retain(|r| (&r.shard, r.lane) != (&now.shard, now.lane));
            checkpoint.reached.push(now);
        }
        self.keeper.save().await?;
        if let (Some(relay), Some(time)) = (self.sink.relay(), wanted.safe_time) {
            relay.safe_time(self.keeper.checkpoint.epoch, time).await?;
        }
        Ok(self.keeper.checkpoint.partitions.clone())
    }
}

/// The coordinator's end of it: at most one save is under way.
pub(crate) struct Saver {
    wanted: mpsc::Sender<Wanted>,
    saved: mpsc::Receiver<Result<Partitions>>,
    under_way: bool,
    last: Instant,
    task: JoinHandle<()>,
}

impl Saver {
    pub(crate) fn start(task: SaveTask) -> Self {
        let (wanted, wanted_by) = mpsc::channel(1);
        let (saved_by, saved) = mpsc::channel(1);
        Self {
            wanted,
            saved,
            under_way: false,
            last: Instant::now(),
            task: tokio::spawn(task.run(wanted_by, saved_by)),
        }
    }

    /// How often a moved checkpoint is saved: a replay after a crash begins there, unless the target
    /// stores the progress itself; then it is only for idle progress and for `status`. A sink that
    /// hands the safe time on has readers who wait for it.
    pub(crate) fn period(&self, stored_in_target: bool, relays: bool) -> Duration {
        if stored_in_target && !relays { Duration::from_secs(1) } else { Duration::from_millis(500) }
    }

    pub(crate) fn is_idle(&self) -> bool {
        !self.under_way
    }

    /// Begins to save. Only while [`Saver::is_idle`].
    pub(crate) fn save(&mut self, wanted: Wanted) {
        self.last = Instant::now();
        self.under_way = self.wanted.try_send(wanted).is_ok();
    }

    /// Whether nothing has been saved for so long that a sign of life is due.
    pub(crate) fn is_silent(&self) -> bool {
        self.last.elapsed() >= BEAT
    }

    /// What the save under way has stored; pending while there is none. Cancel safe.
    pub(crate) async fn saved(&mut self) -> Result<Partitions> {
        if !self.under_way {
            std::future::pending::<()>().await;
        }
        let saved = self.saved.recv().await;
        self.under_way = false;
        saved.unwrap_or_else(|| Err(Error::fatal("the task that saves checkpoints ended")))
    }

    /// The last save of a run.
    pub(crate) async fn finish(&mut self, wanted: Wanted) -> Result<Partitions> {
        if self.under_way {
            self.saved().await?;
        }
        self.save(Wanted { ended: true, ..wanted });
        self.saved().await
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        self.task.abort();
    }
}
