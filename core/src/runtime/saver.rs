//! Saves the checkpoint beside the stream, so that a slow checkpointer does not hold it up.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::keeper::Keeper;
use crate::error::{Error, Result};
use crate::model::{Counters, PartitionId, PartitionProgress};

type Partitions = BTreeMap<PartitionId, PartitionProgress>;
/// Of all, and of each shard.
type Counted = (Counters, BTreeMap<String, Counters>);

/// How long a run may be silent: it saves at least this often, moved or not, so that `status` of
/// another process can tell a quiet pipeline from one whose process is gone.
pub(crate) const BEAT: Duration = Duration::from_secs(10);

/// What to save, and whether the run ends with it.
type Wanted = (Partitions, Counted, bool);

/// The task that owns the checkpoint.
pub(crate) struct SaveTask {
    pub(crate) keeper: Keeper,
}

impl SaveTask {
    async fn run(mut self, mut wanted: mpsc::Receiver<Wanted>, saved: mpsc::Sender<Result<Partitions>>) {
        while let Some((partitions, (counters, shards), ended)) = wanted.recv().await {
            self.keeper.checkpoint.partitions = partitions;
            self.keeper.checkpoint.counters = counters;
            self.keeper.checkpoint.shards = shards;
            self.keeper.checkpoint.ended = ended;
            let result = self.keeper.save().await.map(|()| self.keeper.checkpoint.partitions.clone());
            let failed = result.is_err();
            if saved.send(result).await.is_err() || failed {
                break;
            }
        }
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
    /// stores the progress itself; then it is only for idle progress and for `status`.
    pub(crate) fn period(&self, stored_in_target: bool) -> Duration {
        if stored_in_target { Duration::from_secs(1) } else { Duration::from_millis(500) }
    }

    pub(crate) fn is_idle(&self) -> bool {
        !self.under_way
    }

    /// Begins to save. Only while [`Saver::is_idle`].
    pub(crate) fn save(&mut self, partitions: Partitions, counters: Counted) {
        self.put(partitions, counters, false);
    }

    fn put(&mut self, partitions: Partitions, counters: Counted, ended: bool) {
        self.last = Instant::now();
        self.under_way = self.wanted.try_send((partitions, counters, ended)).is_ok();
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
    pub(crate) async fn finish(&mut self, partitions: Partitions, counters: Counted) -> Result<Partitions> {
        if self.under_way {
            self.saved().await?;
        }
        self.put(partitions, counters, true);
        self.saved().await
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        self.task.abort();
    }
}
