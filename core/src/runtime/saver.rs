//! Saves the checkpoint beside the stream, so that a slow checkpointer does not hold it up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::keeper::Keeper;
use crate::error::{Error, Result};
use crate::model::{Counters, PartitionId, PartitionProgress, Timestamp};
use crate::sink::Sink;

type Partitions = BTreeMap<PartitionId, PartitionProgress>;

/// What is saved: the partitions, what was applied, and the time up to which everything is durable.
type Wanted = (Partitions, Counters, Option<Timestamp>);

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

    async fn save(&mut self, (partitions, counters, safe_time): Wanted) -> Result<Partitions> {
        let checkpoint = &mut self.keeper.checkpoint;
        (checkpoint.partitions, checkpoint.counters) = (partitions, counters);
        self.keeper.save().await?;
        if let (Some(relay), Some(time)) = (self.sink.relay(), safe_time) {
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
    task: JoinHandle<()>,
}

impl Saver {
    pub(crate) fn start(task: SaveTask) -> Self {
        let (wanted, wanted_by) = mpsc::channel(1);
        let (saved_by, saved) = mpsc::channel(1);
        Self { wanted, saved, under_way: false, task: tokio::spawn(task.run(wanted_by, saved_by)) }
    }

    /// How often a moved checkpoint is saved: a replay after a crash begins there, unless the target
    /// stores the progress itself; then it is only for idle progress and for `status`. A sink that
    /// hands the safe time on has readers who wait for it.
    pub(crate) fn period(&self, stored_in_target: bool, relays: bool) -> Duration {
        if stored_in_target && !relays { Duration::from_secs(3) } else { Duration::from_millis(500) }
    }

    pub(crate) fn is_idle(&self) -> bool {
        !self.under_way
    }

    /// Begins to save. Only while [`Saver::is_idle`].
    pub(crate) fn save(&mut self, partitions: Partitions, counters: Counters, safe_time: Option<Timestamp>) {
        self.under_way = self.wanted.try_send((partitions, counters, safe_time)).is_ok();
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
    pub(crate) async fn finish(
        &mut self,
        partitions: Partitions,
        counters: Counters,
        safe_time: Option<Timestamp>,
    ) -> Result<Partitions> {
        if self.under_way {
            self.saved().await?;
        }
        self.save(partitions, counters, safe_time);
        self.saved().await
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        self.task.abort();
    }
}
