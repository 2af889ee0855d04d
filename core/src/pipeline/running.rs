//! The handle of a running pipeline.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Board, Drained, Phase, Shared, Spec, Status};
use crate::control::drain::Drain;
use crate::error::{Error, Result};
use crate::metrics::Health;

/// A pipeline that runs. Dropping it stops it, without waiting; [`RunningPipeline::stop`] waits.
///
/// ```
/// use std::time::Duration;
///
/// use anabranch_core::Pipeline;
/// use anabranch_core::memory::{MemorySink, MemorySource};
/// use anabranch_core::metrics::Life;
/// use anabranch_core::pipeline::Phase;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> anabranch_core::Result<()> {
/// let pipeline = Pipeline::builder("orders-dr").source(MemorySource::new("shop")).sink(MemorySink::new());
/// let mut running = pipeline.build()?.start().await?;
/// // What was committed before this call is in the target.
/// assert!(running.drain(Some(Duration::from_secs(60))).await?.drained);
/// // A monitor tells how it is while the handle waits, or after it has ended.
/// let monitor = running.monitor();
/// assert_ne!(monitor.health(Duration::from_secs(60)).life, Life::Dead);
/// running.stop().await?;
/// assert_eq!(monitor.status().phase, Phase::Stopped);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct RunningPipeline {
    pub(super) spec: Arc<Spec>,
    pub(super) shared: Arc<Shared>,
    /// Its shards, where each has a pipeline of its own.
    pub(super) board: Option<Arc<Board>>,
    pub(super) stop: CancellationToken,
    pub(super) task: Option<JoinHandle<Result<()>>>,
    pub(super) retention: Option<JoinHandle<()>>,
    pub(super) _stop_on_drop: DropGuard,
}

/// Tells the status of a running pipeline, and drains it; it does not keep it running.
#[derive(Debug, Clone)]
pub struct Monitor {
    pub(super) spec: Arc<Spec>,
    pub(super) shared: Arc<Shared>,
    pub(super) board: Option<Arc<Board>>,
}

impl Monitor {
    /// How far it is, now. Cheap.
    pub fn status(&self) -> Status {
        let status = self.shared.status(&self.spec.name, self.spec.source.as_ref());
        match &self.board {
            Some(board) => board.status(status),
            None => status,
        }
    }

    /// Whether the target has everything that is on the source now.
    pub(crate) async fn has_all(&self) -> Result<bool> {
        let Some(marker) = self.spec.source.marker() else { return Ok(false) };
        let mut drain = Drain::new(marker.mark().await?, self.spec.source.info().order);
        Ok(drain.see(self.shared.watermarks().borrow().durable.clone()))
    }

    /// Whether the data path lives: neither the source nor the target may be silent for longer than
    /// `bound`. A minute is right for most: idle sources say every few seconds that there is nothing
    /// new, and failures are retried at most a minute apart.
    pub fn health(&self, bound: Duration) -> Health {
        self.shared.health(bound)
    }

    /// The pipeline's name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// As [`RunningPipeline::drain`], also while that handle waits for the end.
    ///
    /// # Errors
    /// If the source cannot mark its present, or the pipeline ends meanwhile.
    pub async fn drain(&self, deadline: Option<Duration>) -> Result<Drained> {
        if let Some(board) = &self.board {
            return board.drain(&self.shared, deadline).await;
        }
        let source = self.spec.source.as_ref();
        let name = source.info().name;
        let marker = source
            .marker()
            .ok_or_else(|| Error::config("source.type", format!("the source {name} cannot mark its present")))?
            .mark()
            .await?;
        let mut drain = Drain::new(marker, source.info().order);
        match deadline {
            Some(deadline) => timeout(deadline, self.reach(&mut drain)).await.unwrap_or(Ok(()))?,
            None => self.reach(&mut drain).await?,
        }
        drain.see(self.shared.watermarks().borrow().durable.clone());
        Ok(drain.answer(|at| source.describe(at)))
    }

    /// Returns once every partition has reached its marker.
    async fn reach(&self, drain: &mut Drain) -> Result<()> {
        let mut watermark = self.shared.watermarks();
        let mut phases = self.shared.phases();
        loop {
            if drain.see(watermark.borrow_and_update().durable.clone()) {
                return Ok(());
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
}

impl RunningPipeline {
    /// How far it is, now. Cheap.
    pub fn status(&self) -> Status {
        self.monitor().status()
    }

    /// Marks the present on the source and waits until everything committed before is durable in
    /// the target, at most for `deadline` (`None`: without end). With dead letters open the answer
    /// is `drained: false` as soon as the marker is reached.
    ///
    /// # Errors
    /// If the source cannot mark its present, or the pipeline ends meanwhile.
    pub async fn drain(&mut self, deadline: Option<Duration>) -> Result<Drained> {
        self.monitor().drain(deadline).await
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
        Monitor { spec: Arc::clone(&self.spec), shared: Arc::clone(&self.shared), board: self.board.clone() }
    }

    /// A token that stops it when cancelled: for signal handlers, which a library does not install.
    pub fn stopper(&self) -> CancellationToken {
        self.stop.clone()
    }
}
