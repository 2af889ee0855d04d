//! The heart of a run: read, order, apply, commit, until it is stopped or something fails.

mod end;
mod halted;
mod lanes;
mod start;
mod watermark;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::batches::{Batches, Budget, Loaded};
use super::lane::{Applied, Work};
use super::lineage::Lineage;
use super::reader::Reading;
use super::saver::{Saver, Wanted};
use super::session::Session;
use crate::error::{Error, Result};
use crate::model::{BatchId, ChangeBatch, Counters, OrderedUnit, PartitionId, Progress, Rank, TableName, UnitId};
use crate::orderer::Orderer;
use crate::pipeline::{Role, Shared, Spec};

/// How many units a lane has at most: one it writes, and one that is ready when it is done.
const UNITS_AT_LANE: usize = 2;

/// How often the watermark of many partitions is shown.
const SHOW: Duration = Duration::from_millis(50);

/// How often open dead letters are tried again, and an operator's decisions about them are seen.
const RETRY_LETTERS: Duration = Duration::from_secs(10);

/// How often halted shards are asked whether they answer again.
const ASK_HALTED: Duration = Duration::from_secs(1);

/// Streams until `stop`, then finishes what is under way.
pub(crate) async fn stream(session: Session, shared: &Arc<Shared>, stop: &CancellationToken) -> Result<()> {
    let mut coordinator = Coordinator::start(session, shared).await?;
    let result = coordinator.run(stop).await;
    let ended = coordinator.end(result.is_ok()).await;
    result.and(ended)
}

struct Coordinator {
    shared: Arc<Shared>,
    /// What each lane has counted.
    lane_counters: Vec<Counters>,
    snapshot_rows: u64,
    /// Of each lane, parts whose target transaction is open.
    parts: Vec<Counters>,
    letters: Arc<super::letters::Letters>,
    snapshot: crate::model::SnapshotProgress,
    /// The tables, in the target's names, that were there when the run began and are copied: one
    /// that is published later has to be. `None`: this pipeline copies none.
    copied: Option<HashSet<TableName>>,
    stop_deadline: Duration,
    orderer: Box<dyn Orderer>,
    batches: Batches,
    lanes: Vec<LaneHandle>,
    lane_tasks: JoinSet<(usize, Result<()>)>,
    /// Lanes of one shard; all of them where there are no shards.
    group: usize,
    /// Shards that do not answer, and why.
    halted: BTreeMap<usize, String>,
    /// Halted shards that are being asked whether they answer again.
    asking: JoinSet<(usize, Result<()>)>,
    applied: mpsc::Receiver<Applied>,
    in_flight: HashMap<UnitId, InFlight>,
    /// For each lane of a target that stores progress: what it has stored last.
    reached: BTreeMap<usize, (PartitionId, Rank)>,
    reader_seed: ReaderSeed,
    readers: JoinSet<Result<()>>,
    readings: mpsc::Receiver<Reading>,
    lineage: Lineage,
    /// Something moved that the watermark does not show yet.
    unshown: bool,
    saver: Saver,
    /// Progress that is stored in the target with the data may be acknowledged at once.
    stores_progress_in_one_lane: bool,
    /// For each group of lanes.
    retrying: Vec<Retrying>,
    /// The sink hands the safe time on.
    relays: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Retrying {
    No,
    /// Nothing is handed out to the group until each of its lanes is idle.
    Waiting,
    Running,
}

struct LaneHandle {
    inbox: mpsc::Sender<Work>,
    /// Without their batches yet: a transaction that was spilled may be larger than the memory.
    ready: VecDeque<OrderedUnit>,
    at_lane: usize,
    /// Units that were sent and are not done.
    under_way: usize,
    /// A target transaction is open: its last part was not sent.
    in_parts: bool,
}

struct InFlight {
    lane: usize,
    slices: Vec<(BatchId, usize)>,
    loaded: Loaded,
    ends: bool,
    progress: Vec<Progress>,
    counters: Counters,
}

/// What every reader task gets.
struct ReaderSeed {
    spec: Arc<Spec>,
    transforms: super::reader::Transforms,
    budget: Budget,
    out: mpsc::Sender<Reading>,
    stop: CancellationToken,
}

impl Coordinator {
    /// The loop. Every arm does one thing and goes round.
    async fn run(&mut self, stop: &CancellationToken) -> Result<()> {
        let mut save = interval(self.saver.period(self.stores_progress_in_one_lane, self.relays));
        save.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut retry = interval(RETRY_LETTERS);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ask = interval(ASK_HALTED);
        ask.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut show = interval(SHOW);
        show.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stopping = false;
        loop {
            self.hand_out()?;
            if (stopping || self.finished()) && self.in_flight.is_empty() {
                return Ok(());
            }
            let hungry = !stopping && (self.orderer.has_room() || self.in_flight.is_empty());
            tokio::select! {
                biased;
                // 1. What lanes have done frees memory and moves the watermark.
                Some(applied) = self.applied.recv() => self.on_applied(applied)?,
                // 2. A lane ends only by failing while its inbox is open.
                Some(ended) = self.lane_tasks.join_next() => return Err(self.lane_failed(ended)),
                // 3. What is saved may be acknowledged, and children of finished partitions opened.
                saved = self.saver.saved() => {
                    let saved = saved?;
                    self.lineage.saved(&saved);
                    self.open_readers();
                    self.publish();
                }
                // 4. A reader that failed fails the run. One that ended has told why before.
                Some(ended) = self.readers.join_next() => ended.unwrap_or_else(|e| Err(panicked(e)))?,
                // 5. Stopping: nothing more is taken in; what is under way is finished.
                () = stop.cancelled(), if !stopping => stopping = true,
                // 6. to 8. Timers; an operator's marks on letters are seen with one of them.
                _ = save.tick() => self.save_if_moved(),
                _ = show.tick(), if self.unshown => self.publish(),
                _ = retry.tick() => self.retry_letters(),
                _ = ask.tick() => self.ask_halted(),
                // 9. A halted shard that answers is taken in by a new attempt.
                Some(Ok((shard, answer))) = self.asking.join_next(), if !stopping => self.on_answer(shard, answer)?,
                // 10. New batches come last: taking them in makes work for all the others.
                Some(reading) = self.readings.recv(), if hungry => self.on_reading(reading)?,
            }
        }
    }

    /// Whether there is an end (this run is for one partition, or the source has one), and everything
    /// before it is durable.
    fn finished(&self) -> bool {
        let spec = &self.reader_seed.spec;
        // What is parked for a halted shard is applied when it answers.
        let ends = spec.role == Role::Partition || (spec.source.ends() && self.halted.is_empty());
        ends && self.lineage.is_finished()
    }

    fn on_reading(&mut self, reading: Reading) -> Result<()> {
        match reading {
            Reading::Batch(batch, permit) => {
                self.stop_at_new_table(&batch)?;
                let before = self.lineage.received(batch.partition(), batch.end());
                let batch = Arc::new(batch.resumed_from(before));
                self.shared.heard(&batch);
                let id = self.batches.add(Arc::clone(&batch), permit);
                self.orderer.push(id, &batch)?;
                if batch.is_empty() {
                    self.publish_soon();
                }
            }
            Reading::Closed(id, children) => {
                for child in &children {
                    self.orderer.opened(&self.lineage.waiting(child), None);
                }
                self.orderer.closed(&id);
                self.lineage.closed(&id, children);
                self.publish_soon();
            }
            Reading::Stopped(id) => {
                self.lineage.stopped(&id);
                self.open_readers();
            }
        }
        Ok(())
    }

    /// A table that was published while this run goes on may hold rows that no stream will ever
    /// bring: begin again, which copies it first. Once: a table that is gone by then needs no copy.
    fn stop_at_new_table(&self, batch: &ChangeBatch) -> Result<()> {
        let Some(copied) = &self.copied else { return Ok(()) };
        match batch.schemas().iter().find(|s| !copied.contains(&s.name) && self.shared.first_sight(&s.name)) {
            Some(new) => Err(Error::transient(format!("the table {} is new: it is copied first", new.name))),
            None => Ok(()),
        }
    }

    fn save_if_moved(&mut self) {
        self.lineage.advance(self.orderer.low_watermark());
        if (self.lineage.moved() || self.saver.is_silent()) && self.saver.is_idle() {
            let wanted = self.wanted();
            self.saver.save(wanted);
        }
    }

    /// What a save would store now.
    fn wanted(&mut self) -> Wanted {
        let (counters, shards) = (self.counters(), self.shard_counters());
        let safe_time = self.safe_time();
        let reached = self.reached();
        Wanted { partitions: self.lineage.snapshot(), counters, shards, reached, safe_time, ended: false }
    }
}

fn panicked(e: tokio::task::JoinError) -> Error {
    Error::fatal("a task of the pipeline panicked").because(e)
}

#[cfg(test)]
mod tests;
