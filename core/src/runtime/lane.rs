//! Applies the units of one lane: the task that owns a `SinkWriter`.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::letters::{LaneName, Letters};
use super::tally::Tally;
use crate::error::{Error, Result};
use crate::metrics::Pulse;
use crate::model::{Counters, Part, PartitionId, Progress, Rank, Unit, UnitId};
use crate::sink::{Durability, SinkWriter};

/// What a lane tells the coordinator.
#[derive(Debug)]
pub(crate) enum Applied {
    /// The sink has taken the unit: its memory may go. With what it applied, without what it skipped.
    Taken(UnitId, Counters),
    /// The units are durable.
    Durable(Vec<UnitId>),
    /// The open dead letters of this lane's shard, or all, were tried again.
    Retried(usize, Counters),
}

/// What the coordinator asks of a lane.
#[derive(Debug)]
pub(crate) enum Work {
    Apply(Unit),
    /// Try the open dead letters again. Sent only while every lane (of the shard) is idle.
    RetryLetters,
}

/// What a lane task works with.
pub(crate) struct LaneTask {
    pub(crate) name: LaneName,
    /// `None`: its shard does not answer, and its changes are parked.
    pub(crate) writer: Option<Box<dyn SinkWriter>>,
    /// What was left out since the pipeline exists, as it is stored or goes with the next unit.
    pub(crate) tally: Tally,
    /// What this lane had committed when the run began: a replay up to there is skipped.
    pub(crate) committed: HashMap<PartitionId, Progress>,
    pub(crate) letters: Arc<Letters>,
    /// Hears of each write.
    pub(crate) pulse: Arc<Pulse>,
    /// Of the lanes of this pipeline.
    pub(crate) index: usize,
    /// What was left out since a unit stored the tally.
    pub(crate) untold: Tally,
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
                        self.flush().await?;
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
                    let (durability, counters) = match self.apply(unit).await? {
                        Some(applied) => applied,
                        // The target has it since before; that says nothing of what was accepted since.
                        None if accepted.is_empty() => (Durability::Durable, Counters::default()),
                        None => (Durability::Accepted, Counters::default()),
                    };
                    tell(&self.out, Applied::Taken(id, counters)).await?;
                    accepted.push(id);
                    if durability == Durability::Durable {
                        tell(&self.out, Applied::Durable(std::mem::take(&mut accepted))).await?;
                    }
                }
                Work::RetryLetters => {
                    let applied = match (&mut self.writer, &self.name.shard) {
                        (Some(writer), Some(shard)) => self.letters.resume_shard(writer.as_mut(), shard).await?,
                        (Some(writer), None) => self.letters.retry(writer.as_mut()).await?,
                        (None, _) => Counters::default(),
                    };
                    tell(&self.out, Applied::Retried(self.index, applied)).await?;
                }
            }
        }
        if !in_parts {
            self.flush().await?;
            if !accepted.is_empty() {
                tell(&self.out, Applied::Durable(accepted)).await?;
            }
        }
        match self.writer {
            Some(writer) => writer.close().await,
            None => Ok(()),
        }
    }

    async fn flush(&mut self) -> Result<()> {
        let _writing = self.pulse.writing();
        match &mut self.writer {
            Some(writer) => writer.flush().await,
            None => Ok(()),
        }
    }

    /// `None`: the target had all of it when the run began.
    async fn apply(&mut self, unit: Unit) -> Result<Option<(Durability, Counters)>> {
        let _writing = self.pulse.writing();
        let Some(unit) = self.skip_committed(unit) else { return Ok(None) };
        let (mut unit, left_out) = self.letters.leave_out(unit, &self.name, self.writer.is_none()).await?;
        let Some(writer) = &mut self.writer else {
            self.letters.park(&unit, &self.name, "parked: the shard does not answer").await?;
            return Ok(Some((Durability::Durable, Counters::default())));
        };
        self.tally += left_out;
        self.untold += left_out;
        if unit.part.ends() && !self.untold.is_empty() {
            unit.progress.push(self.tally.progress());
            self.untold = Tally::default();
        }
        let unit = self.letters.hold(unit, &self.name).await?;
        let (durability, mut counters) = self.letters.apply(writer.as_mut(), &unit, &self.name).await?;
        counters += left_out.counters();
        Ok(Some((durability, counters)))
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

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::memory::MemorySource;
    use crate::model::{BatchBuilder, Position, Selection, Transaction, UnitKind, UnitSlice};
    use crate::runtime::letters::LetterPolicy;
    use crate::sink::Written;

    /// Takes everything, and loses it.
    struct Buffer;

    #[async_trait]
    impl SinkWriter for Buffer {
        async fn write(&mut self, _: &Unit) -> Result<Written> {
            Ok(Written::accepted())
        }

        async fn flush(&mut self) -> Result<()> {
            Err(Error::transient("it is gone"))
        }

        async fn close(self: Box<Self>) -> Result<()> {
            Ok(())
        }
    }

    fn unit(number: u64, partition: &str) -> Unit {
        let partition = PartitionId::new(partition);
        let end = Position::new(Rank::of_end(&[1]), Vec::new());
        let mut batch = BatchBuilder::new(partition.clone());
        batch.begin(Transaction { rank: vec![1].into(), ..Transaction::default() }, 1);
        batch.message("", b"");
        batch.commit(end.clone());
        let batch = Arc::new(batch.finish(end.clone(), None).unwrap());
        let slices = vec![UnitSlice { batch, changes: Selection::Range(0..1) }];
        let progress = vec![Progress { partition, position: end, safe_time: None }];
        Unit { id: UnitId(number), kind: UnitKind::Stream, part: Part::Whole, slices, transactions: 1, progress }
    }

    /// A unit of one partition was accepted, one of another was committed before the run began.
    #[tokio::test]
    async fn what_is_skipped_makes_nothing_durable() {
        let source = Arc::new(MemorySource::new("db"));
        let letters = Letters::load("p".into(), source, None, LetterPolicy::default(), false, true, None);
        let (work, inbox) = mpsc::channel(2);
        let (out, mut told) = mpsc::channel(9);
        let task = LaneTask {
            name: LaneName::default(),
            writer: Some(Box::new(Buffer)),
            tally: Tally::default(),
            committed: unit(0, "old").progress.into_iter().map(|p| (p.partition.clone(), p)).collect(),
            letters: Arc::new(letters.await.unwrap()),
            pulse: Arc::new(Pulse::new(&"p".into())),
            index: 0,
            untold: Tally::default(),
            inbox,
            out,
        };
        work.try_send(Work::Apply(unit(1, "new"))).unwrap();
        work.try_send(Work::Apply(unit(2, "old"))).unwrap();
        assert!(task.run().await.is_err());
        let mut all = Vec::new();
        while let Some(applied) = told.recv().await {
            all.push(applied);
        }
        assert!(matches!(&all[..], [Applied::Taken(..), Applied::Taken(..)]), "{all:?}");
    }
}
