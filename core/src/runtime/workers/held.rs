//! A lease that this process has, and the checkpointer of the pipeline that it is.

use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::checkpointer::{Checkpointer, Saved, Version};
use crate::error::{Error, Result};
use crate::leases::{Lease, Leases};
use crate::model::{Checkpoint, PartitionId, PartitionStatus};

/// How many times a lease is renewed within the failover time.
pub(super) const RENEWALS: u32 = 3;

/// A held lease. All writes of it go through here, one at a time.
///
/// As a [`Checkpointer`] it has one record, the lease's checkpoint. Its versions count the saves of
/// this process: renewals between two saves of a run do not make a conflict, a lost lease does.
pub(crate) struct Held {
    leases: Arc<dyn Leases>,
    pipeline: Arc<str>,
    id: PartitionId,
    state: tokio::sync::Mutex<State>,
    /// When the last successful write began, by this machine's monotonic clock.
    renewed: std::sync::Mutex<Instant>,
    /// Cancelled when the lease is lost, or could not be renewed for the failover time.
    lost: CancellationToken,
}

struct State {
    lease: Lease,
    saves: u64,
    released: bool,
}

impl Held {
    /// A lease that was taken by a call that began at `began`.
    pub(super) fn new(leases: Arc<dyn Leases>, pipeline: Arc<str>, lease: Lease, began: Instant) -> Self {
        Self {
            leases,
            pipeline,
            id: lease.id().clone(),
            state: tokio::sync::Mutex::new(State { lease, saves: 1, released: false }),
            renewed: std::sync::Mutex::new(began),
            lost: CancellationToken::new(),
        }
    }

    /// Cancelled when the lease is not this process's any more.
    pub(super) fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    /// The checkpoint as this process knows it.
    pub(super) async fn checkpoint(&self) -> Checkpoint {
        self.state.lock().await.lease.checkpoint.clone()
    }

    /// Whether everything in the partition is durable.
    pub(super) async fn is_finished(&self) -> bool {
        let state = self.state.lock().await;
        let progress = state.lease.checkpoint.partitions.get(&self.id);
        progress.is_some_and(|p| p.status == PartitionStatus::Finished)
    }

    /// Renews the lease until it is lost or released, and gives it up for lost when that does not
    /// succeed for the failover time: by then others may have taken it.
    pub(super) async fn keep(&self, failover: Duration) {
        let mut tick = interval(failover / RENEWALS);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let deadline = *self.renewed.lock().unwrap_or_else(PoisonError::into_inner) + failover;
            let renewed = timeout_at(deadline, async {
                let mut state = self.state.lock().await;
                if state.released { Ok(false) } else { self.write(&mut state).await }
            });
            match renewed.await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => return,
                Ok(Err(error)) if Instant::now() < deadline => {
                    tracing::warn!(partition = %self.id, error = %error.report(), "the lease was not renewed");
                }
                Ok(Err(_)) | Err(_) => {
                    tracing::warn!(partition = %self.id, "the lease could not be renewed in time and is given up");
                    self.lost.cancel();
                    return;
                }
            }
        }
    }

    /// Stores what is known and moves the counter. What could not be stored now is stored with the
    /// next write: it is true already.
    async fn write(&self, state: &mut State) -> Result<bool> {
        if self.lost.is_cancelled() {
            return Ok(false);
        }
        let began = Instant::now();
        match self.leases.store(&self.pipeline, &state.lease).await? {
            Some(counter) => {
                state.lease.counter = counter;
                *self.renewed.lock().unwrap_or_else(PoisonError::into_inner) = began;
                Ok(true)
            }
            None => {
                self.lost.cancel();
                Ok(false)
            }
        }
    }

    /// Renews the lease now, before something is done that is this worker's alone.
    ///
    /// # Errors
    /// [`Fenced`](crate::ErrorKind::Fenced) if it was lost.
    pub(super) async fn confirm(&self) -> Result<()> {
        let mut state = self.state.lock().await;
        if !state.released && self.write(&mut state).await? {
            return Ok(());
        }
        Err(Error::fenced(format!("the lease of {} is another worker's now", self.id)))
    }

    /// Gives the lease back; false if it was lost before.
    pub(super) async fn release(&self, finished: bool) -> Result<bool> {
        let mut state = self.state.lock().await;
        if self.lost.is_cancelled() {
            return Ok(false);
        }
        let released = self.leases.release(&self.pipeline, &state.lease, finished).await?;
        state.released = true;
        Ok(released)
    }
}

#[async_trait]
impl Checkpointer for Held {
    async fn load(&self, _: &str) -> Result<Option<(Version, Checkpoint)>> {
        let state = self.state.lock().await;
        Ok(Some((Version(state.saves), state.lease.checkpoint.clone())))
    }

    async fn save(&self, _: &str, expected: Option<Version>, next: &Checkpoint) -> Result<Saved> {
        let mut state = self.state.lock().await;
        if expected != Some(Version(state.saves)) || state.released {
            return Ok(Saved::Conflict);
        }
        state.lease.checkpoint = next.clone();
        if !self.write(&mut state).await? {
            return Ok(Saved::Conflict);
        }
        state.saves += 1;
        Ok(Saved::Committed(Version(state.saves)))
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("pipeline", &self.pipeline).field("id", &self.id).finish_non_exhaustive()
    }
}
