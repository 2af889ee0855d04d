//! Reads one partition: the task that owns a `ChangeReader`.

use std::sync::{Arc, Mutex};

use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::batches::Budget;
use crate::error::{Error, Result};
use crate::hash::Fnv;
use crate::model::{ChangeBatch, Partition, PartitionId, Position, Rank};
use crate::source::{ChangeReader, HEARTBEAT, Next};
use crate::transform::{Transform, after};

/// The pipeline's transforms. Shared by the readers: each batch is transformed under the lock.
#[derive(Debug, Clone, Default)]
pub(crate) struct Transforms(Arc<Mutex<Vec<Box<dyn Transform>>>>);

impl Transforms {
    pub(crate) fn new(transforms: Vec<Box<dyn Transform>>) -> Self {
        Self(Arc::new(Mutex::new(transforms)))
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().is_ok_and(|transforms| transforms.is_empty())
    }

    /// Whether all of them say so.
    pub(crate) fn keep_keys(&self) -> bool {
        self.0.lock().is_ok_and(|transforms| transforms.iter().all(|t| t.keeps_keys()))
    }

    /// Tells these from others: 16 hexadecimal digits. One that tells nothing of itself is known by its place alone.
    pub(crate) fn digest(&self) -> Result<String> {
        let transforms = self.0.lock().map_err(|_| Error::fatal("a transform panicked"))?;
        let of_each = transforms.iter().map(|t| t.digest().unwrap_or_else(|| "?".to_owned()));
        let hash =
            of_each.fold(Fnv::new(), |hash, text| hash.with(&(text.len() as u64).to_be_bytes()).with(text.as_bytes()));
        Ok(format!("{:016x}", hash.value()))
    }

    pub(crate) fn apply(&self, mut batch: ChangeBatch) -> Result<ChangeBatch> {
        let mut transforms = self.0.lock().map_err(|_| Error::fatal("a transform panicked"))?;
        for transform in transforms.iter_mut() {
            batch = transform.apply(batch)?;
        }
        Ok(batch)
    }
}

/// What a reader task tells the coordinator.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "nearly all of them are batches")]
pub(crate) enum Reading {
    Batch(ChangeBatch, OwnedSemaphorePermit),
    Closed(PartitionId, Vec<Partition>),
    Stopped(PartitionId),
}

/// What a reader task works with.
pub(crate) struct ReaderTask {
    pub(crate) partition: PartitionId,
    /// Where it resumed: a reader may give again what lies before, back to the start of a transaction.
    pub(crate) from: Option<Rank>,
    pub(crate) reader: Box<dyn ChangeReader>,
    pub(crate) transforms: Transforms,
    pub(crate) budget: Budget,
    pub(crate) out: mpsc::Sender<Reading>,
    pub(crate) acknowledged: watch::Receiver<Option<Position>>,
    pub(crate) stop: CancellationToken,
}

impl ReaderTask {
    /// Reads until the partition ends, the pipeline stops, or something fails.
    pub(crate) async fn run(mut self) -> Result<()> {
        let mut heartbeat = interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut waiting: Option<ChangeBatch> = None;
        let (budget, out) = (self.budget.clone(), self.out.clone());
        loop {
            tokio::select! {
                biased;
                // 1. Stopping comes first: nothing that is read from here on would be used.
                () = self.stop.cancelled() => break,
                // 2. Acknowledgements before reading, or a busy source would never hear one.
                moved = self.acknowledged.changed() => {
                    if moved.is_err() {
                        break;
                    }
                    self.acknowledge().await?;
                    heartbeat.reset();
                }
                // 3. The heartbeat that keeps the connection open while there is no room.
                _ = heartbeat.tick() => self.acknowledge().await?,
                // 4. Hand on what was read, as soon as the budget has room.
                room = room(&budget, &out, waiting.as_ref()), if waiting.is_some() => {
                    let (permit, slot) = room?;
                    if let Some(batch) = waiting.take() {
                        slot.send(Reading::Batch(batch, permit));
                    }
                }
                // 5. Read. Dropped whenever another arm is first: `next` is cancel safe.
                next = self.reader.next(), if waiting.is_none() => match next? {
                    Next::Batch(batch) => if let Some(batch) = self.not_given_before(batch)? {
                        waiting = Some(self.transforms.apply(batch)?);
                    },
                    Next::Closed { children } => {
                        tell(&self.out, Reading::Closed(self.partition.clone(), children), &self.stop).await?;
                        break;
                    }
                    Next::Stopped => {
                        tell(&self.out, Reading::Stopped(self.partition.clone()), &self.stop).await?;
                        break;
                    }
                },
            }
        }
        self.acknowledge().await?;
        self.reader.close().await
    }

    /// The batch without what lies at or before the place where the reading resumed.
    fn not_given_before(&mut self, batch: ChangeBatch) -> Result<Option<ChangeBatch>> {
        let Some(from) = &self.from else { return Ok(Some(batch)) };
        if batch.end().rank < *from {
            return Ok(None);
        }
        let rest = after(&batch, from)?;
        // A source that is idle where it resumed says so, for its safe time moves. What lies before may
        // still be given again after that.
        if batch.end().rank > *from {
            self.from = None;
        }
        Ok(Some(rest))
    }

    async fn acknowledge(&mut self) -> Result<()> {
        let through = self.acknowledged.borrow_and_update().clone();
        self.reader.acknowledge(through.as_ref()).await
    }
}

/// Tells how the reading ended, unless the pipeline stops: then nobody listens any more, and the next run
/// hears it.
async fn tell(out: &mpsc::Sender<Reading>, reading: Reading, stop: &CancellationToken) -> Result<()> {
    tokio::select! {
        biased;
        // 1. Stopping.
        () = stop.cancelled() => Ok(()),
        // 2. There is room.
        sent = out.send(reading) => sent.map_err(|_| Error::transient("the pipeline ended")),
    }
}

/// Waits until the budget and the channel have room. Cancel safe: both are given back.
async fn room<'a>(
    budget: &Budget,
    out: &'a mpsc::Sender<Reading>,
    batch: Option<&ChangeBatch>,
) -> Result<(OwnedSemaphorePermit, mpsc::Permit<'a, Reading>)> {
    let permit = budget.reserve(batch.map_or(0, ChangeBatch::memory_size)).await?;
    let slot = out.reserve().await.map_err(|_| Error::transient("the pipeline ended"))?;
    Ok((permit, slot))
}
