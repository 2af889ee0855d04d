//! Applies the units of one lane: the task that owns a `SinkWriter`.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::letters::Letters;
use crate::error::{Error, Result};
use crate::model::{Counters, Part, PartitionId, Progress, Rank, Unit, UnitId};
use crate::sink::{Durability, SinkWriter};

/// What a lane tells the coordinator.
#[derive(Debug)]
pub(crate) enum Applied {
    /// The sink has taken the unit: its memory may go. With what it applied, without what it skipped.
    Taken(UnitId, Counters),
    /// The units are durable.
    Durable(Vec<UnitId>),
    /// The open dead letters were tried again.
    Retried,
}

/// What the coordinator asks of a lane.
#[derive(Debug)]
pub(crate) enum Work {
    Apply(Unit),
    /// Try the open dead letters again. Sent only while every lane is idle.
    RetryLetters,
}

/// What a lane task works with.
pub(crate) struct LaneTask {
    pub(crate) writer: Box<dyn SinkWriter>,
    /// What this lane had committed when the run began: a replay up to there is skipped.
    pub(crate) committed: HashMap<PartitionId, Progress>,
    /// For each partition the token that resumes it at or before what this lane has stored.
    pub(crate) tokens: HashMap<PartitionId, Bytes>,
    pub(crate) letters: Arc<Letters>,
    pub(crate) inbox: mpsc::Receiver<Work>,
    pub(crate) out: mpsc::Sender<Applied>,
}

impl LaneTask {
    /// Applies until the coordinator has nothing more, then flushes and closes.
    pub(crate) async fn run(mut self) -> Result<()> {
        let mut accepted: Vec<UnitId> = Vec::new();
        let mut in_parts = false;
        loop {
            let work = match self.inbox.try_recv() {
                Ok(work) => work,
                Err(_) => {
                    // Nothing waits: make durable what was only accepted, unless a target
                    // transaction is open in the middle of its parts.
                    if !accepted.is_empty() && !in_parts {
                        self.writer.flush().await?;
                        tell(&self.out, Applied::Durable(std::mem::take(&mut accepted))).await?;
                    }
                    match self.inbox.recv().await {
                        Some(work) => work,
                        None => break,
                    }
                }
            };
            match work {
                Work::Apply(unit) => {
                    in_parts = !unit.part.ends();
                    let id = unit.id;
                    let (durability, counters) = self.apply(unit).await?;
                    tell(&self.out, Applied::Taken(id, counters)).await?;
                    accepted.push(id);
                    if durability == Durability::Durable {
                        tell(&self.out, Applied::Durable(std::mem::take(&mut accepted))).await?;
                    }
                }
                Work::RetryLetters => {
                    self.letters.retry(self.writer.as_mut()).await?;
                    tell(&self.out, Applied::Retried).await?;
                }
            }
        }
        if !in_parts {
            self.writer.flush().await?;
            if !accepted.is_empty() {
                tell(&self.out, Applied::Durable(accepted)).await?;
            }
        }
        self.writer.close().await
    }

    async fn apply(&mut self, unit: Unit) -> Result<(Durability, Counters)> {
        let Some(unit) = self.skip_committed(unit) else { return Ok((Durability::Durable, Counters::default())) };
        let unit = if unit.part == Part::Whole {
            self.letters.hold(unit).await?
        } else {
            self.letters.refuse_to_overtake(&unit)?;
            unit
        };
        let durability = self.letters.apply(self.writer.as_mut(), &unit, &self.tokens).await?;
        let counters = Counters { changes: unit.row_changes(), transactions: unit.transactions, ..Counters::default() };
        for progress in unit.progress {
            self.tokens.insert(progress.partition, progress.position.token);
        }
        Ok((durability, counters))
    }

    /// The unit without what this lane had committed before the run began; `None` if nothing is left.
    fn skip_committed(&mut self, unit: Unit) -> Option<Unit> {
        if self.committed.is_empty() {
            return Some(unit);
        }
        let committed = &self.committed;
        let is_new = |p: &PartitionId, rank: &Rank| committed.get(p).is_none_or(|c| *rank > c.position.rank);
        let mut fresh = unit.retain(|change| is_new(change.partition(), &change.rank()));
        fresh.progress.retain(|p| is_new(&p.partition, &p.position.rank));
        if fresh.is_empty() && !unit.is_empty() {
            fresh.transactions = 0;
            if fresh.progress.is_empty() && unit.part == Part::Whole {
                return None;
            }
        }
        for progress in &mut fresh.progress {
            // Past the replay: no later change of this partition can be an old one.
            let before = self.committed.remove(&progress.partition);
            progress.safe_time = progress.safe_time.max(before.and_then(|p| p.safe_time));
        }
        Some(fresh)
    }
}

async fn tell(out: &mpsc::Sender<Applied>, applied: Applied) -> Result<()> {
    out.send(applied).await.map_err(|_| Error::transient("the pipeline ended"))
}
