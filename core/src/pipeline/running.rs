//! The handle of a running pipeline.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Phase, Shared, Spec, Status};
use crate::error::{Error, Result};
use crate::model::{PartitionId, Position, Progress};
use crate::source::SourceOrder;

/// A pipeline that runs. Dropping it stops it, without waiting; [`RunningPipeline::stop`] waits.
#[derive(Debug)]
pub struct RunningPipeline {
    pub(super) spec: Arc<Spec>,
    pub(super) shared: Arc<Shared>,
    pub(super) stop: CancellationToken,
    pub(super) task: Option<JoinHandle<Result<()>>>,
    pub(super) retention: Option<JoinHandle<()>>,
    pub(super) _stop_on_drop: DropGuard,
}

/// Tells the status of a running pipeline; it does not keep it running.
#[derive(Debug, Clone)]
pub struct Monitor {
    spec: Arc<Spec>,
    shared: Arc<Shared>,
}

impl Monitor {
    /// How far it is, now. Cheap.
    pub fn status(&self) -> Status {
        self.shared.status(&self.spec.name, self.spec.source.as_ref())
    }
}

/// The answer of [`RunningPipeline::drain`].
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Drained {
    /// Whether everything committed on the source before the call is durable in the target.
    pub drained: bool,
    /// Whether the marker was reached: with open dead letters that is not enough.
    pub marker_reached: bool,
    /// The place that was to be reached, for each partition.
    pub marker: BTreeMap<PartitionId, String>,
    /// What the target has, for each partition.
    pub reached: BTreeMap<PartitionId, String>,
    /// Dead letters that are open or held: with one of them the target is not whole.
    pub dead_letters_open: u64,
}

impl RunningPipeline {
    /// How far it is, now. Cheap.
    pub fn status(&self) -> Status {
        self.shared.status(&self.spec.name, self.spec.source.as_ref())
    }

    /// Marks the present on the source and waits until everything committed before is durable in
    /// the target, at most for `deadline` (`None`: without end). With dead letters open the answer
    /// is `drained: false` as soon as the marker is reached.
    ///
    /// # Errors
    /// If the source cannot mark its present, or the pipeline ends meanwhile.
    pub async fn drain(&mut self, deadline: Option<Duration>) -> Result<Drained> {
        let source = self.spec.source.as_ref();
        let name = source.info().name;
        let marker = source
            .marker()
            .ok_or_else(|| Error::config("source.type", format!("the source {name} cannot mark its present")))?
            .mark()
            .await?;
        let reached = match deadline {
            Some(deadline) => timeout(deadline, self.reach(&marker)).await.unwrap_or(Ok(false))?,
            None => self.reach(&marker).await?,
        };
        let now = self.shared.watermarks().borrow().clone();
        let words = |at: &Position| source.describe(at);
        Ok(Drained {
            drained: reached && now.dead_letters_open == 0,
            marker_reached: reached,
            marker: marker.iter().map(|(id, p)| (id.clone(), words(p))).collect(),
            reached: now.partitions.iter().map(|(id, p)| (id.clone(), words(&p.position))).collect(),
            dead_letters_open: now.dead_letters_open,
        })
    }

    /// True once every partition has reached its marker. One that is finished has; where partitions
    /// give changes by commit time, what followed it must have, too.
    async fn reach(&self, marker: &BTreeMap<PartitionId, Position>) -> Result<bool> {
        let by_time = self.spec.source.info().order == SourceOrder::CommitTimePerPartition;
        let mut watermark = self.shared.watermarks();
        let mut phases = self.shared.phases();
        loop {
            {
                let now = watermark.borrow_and_update();
                let has = |p: &Progress, at: &Position| p.position.rank >= at.rank;
                let passed = |(id, at): (&PartitionId, &Position)| match now.partitions.get(id) {
                    Some(p) => has(p, at),
                    None => now.finished.contains(id) && (!by_time || now.partitions.values().all(|p| has(p, at))),
                };
                if marker.iter().all(passed) {
                    return Ok(true);
                }
            }
            if matches!(*phases.borrow_and_update(), Phase::Failed | Phase::Stopped) {
                return Err(Error::fatal("the pipeline ended before it was drained")
                    .hint(self.status().last_error.unwrap_or_default()));
            }
            tokio::select! {
                biased;
                // 1. and 2. Whatever moves first is looked at; senders live as long as `self`.
                _ = watermark.changed() => {}
                _ = phases.changed() => {}
            }
        }
    }

    /// Waits until it ends by itself: by an error, or because a snapshot was all it had to do.
    pub async fn wait(&mut self) -> Result<()> {
        let result = match self.task.as_mut() {
            Some(task) => match task.await {
                Ok(result) => result,
                Err(e) => Err(Error::fatal("the pipeline panicked").because(e)),
            },
            None => Ok(()),
        };
        self.task = None;
        if let Some(retention) = self.retention.take() {
            retention.abort();
        }
        result
    }

    /// Finishes what is under way, flushes, saves and closes.
    pub async fn stop(mut self) -> Result<()> {
        self.stop.cancel();
        self.wait().await
    }

    /// A handle that tells the status while this one is busy.
    pub fn monitor(&self) -> Monitor {
        Monitor { spec: Arc::clone(&self.spec), shared: Arc::clone(&self.shared) }
    }

    /// A token that stops it when cancelled: for signal handlers, which a library does not install.
    pub fn stopper(&self) -> CancellationToken {
        self.stop.clone()
    }
}
