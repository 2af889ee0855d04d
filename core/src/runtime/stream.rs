//! The heart of a run: read, order, apply, commit, until it is stopped or something fails.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::batches::{Batches, Budget};
use super::lane::{Applied, LaneTask, Work};
use super::lineage::Lineage;
use super::reader::{ReaderTask, Reading};
use super::saver::{SaveTask, Saver};
use super::session::Session;
use super::snapshot::copies;
use crate::error::{Error, Result};
use crate::model::{BatchId, ChangeBatch, Counters, PartitionId, Position, Progress, TableName, Unit, UnitId};
use crate::orderer::Orderer;
use crate::pipeline::{Phase, Shared};
use crate::sink::LanePurpose;
use crate::source::StartFrom;

/// How many read batches wait for the orderer at most. The byte budget is the real bound; this one
/// keeps a flood of tiny batches from running ahead.
const READ_AHEAD: usize = 64;

/// How many units a lane has at most: one it writes, and one that is ready when it is done.
const UNITS_AT_LANE: usize = 2;

/// Above this many partitions the watermark is shown at times, not after each batch: it takes a look
/// at all of them.
const FEW_PARTITIONS: usize = 16;

/// How often it is shown then.
const SHOW: Duration = Duration::from_millis(50);

/// How often open dead letters are tried again, and an operator's decisions about them are seen.
const RETRY_LETTERS: Duration = Duration::from_secs(10);

/// Streams until `stop`, then finishes what is under way.
pub(crate) async fn stream(session: Session, shared: &Arc<Shared>, stop: &CancellationToken) -> Result<()> {
    let mut coordinator = Coordinator::start(session, shared).await?;
    let result = coordinator.run(stop).await;
    let ended = coordinator.end(result.is_ok()).await;
    result.and(ended)
}

struct Coordinator {
    shared: Arc<Shared>,
    counters: Counters,
    /// Of parts whose target transaction is open.
    parts: Counters,
    letters: Arc<super::letters::Letters>,
    snapshot: crate::model::SnapshotProgress,
    /// The tables, in the target's names, that were there when the run began and are copied: one
    /// that is published later has to be. `None`: this pipeline copies none.
    copied: Option<HashSet<TableName>>,
    stop_deadline: Duration,
    orderer: Box<dyn Orderer>,
    batches: Batches,
    lanes: Vec<LaneHandle>,
    lane_tasks: JoinSet<Result<()>>,
    applied: mpsc::Receiver<Applied>,
    in_flight: HashMap<UnitId, InFlight>,
    reader_seed: ReaderSeed,
    readers: JoinSet<Result<()>>,
    readings: mpsc::Receiver<Reading>,
    lineage: Lineage,
    /// Something moved that the watermark does not show yet.
    unshown: bool,
    saver: Saver,
    /// Progress that is stored in the target with the data may be acknowledged at once.
    stores_progress_in_one_lane: bool,
    retrying: Retrying,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Retrying {
    No,
    /// Nothing is handed out until every lane is idle.
    Waiting,
    Running,
}

struct LaneHandle {
    inbox: mpsc::Sender<Work>,
    ready: VecDeque<Unit>,
    at_lane: usize,
}

struct InFlight {
    lane: usize,
    slices: Vec<(BatchId, usize)>,
    ends: bool,
    progress: Vec<Progress>,
    counters: Counters,
}

/// What every reader task gets.
struct ReaderSeed {
    spec: Arc<crate::pipeline::Spec>,
    transforms: super::reader::Transforms,
    budget: Budget,
    out: mpsc::Sender<Reading>,
    stop: CancellationToken,
}

impl Coordinator {
    async fn start(session: Session, shared: &Arc<Shared>) -> Result<Self> {
        let spec = Arc::clone(&session.spec);
        let budget = Budget::new(spec.memory);
        let pinned = session.preflight.pinned_groups();
        let orderer = spec.order.orderer(spec.source.info().order, spec.unit_limits(), pinned);
        let (applied_out, applied) = mpsc::channel(READ_AHEAD);
        let (out, readings) = mpsc::channel(READ_AHEAD);
        let mut lanes = Vec::new();
        let mut lane_tasks = JoinSet::new();
        for index in 0..spec.lanes() {
            let lane = session.lane(index, LanePurpose::Stream);
            let committed = session.committed.get(index as usize).cloned().unwrap_or_default();
            let (inbox, work) = mpsc::channel(UNITS_AT_LANE);
            let low = &session.keeper.checkpoint.partitions;
            let tokens =
                low.iter().filter_map(|(id, p)| Some((id.clone(), p.position.as_ref()?.token.clone()))).collect();
            let writer = spec.sink.open(lane).await?;
            let letters = Arc::clone(&session.letters);
            let task = LaneTask { writer, committed, tokens, letters, inbox: work, out: applied_out.clone() };
            lane_tasks.spawn(task.run());
            lanes.push(LaneHandle { inbox, ready: VecDeque::new(), at_lane: 0 });
        }
        let copied = copies(&session).then(|| session.tables.iter().map(|(_, target)| target.name.clone()).collect());
        let mut checkpoint = session.keeper.checkpoint.clone();
        let listed = spec.source.partitions().await?;
        let forgets = !spec.source.lists_finished();
        let lineage = Lineage::new(std::mem::take(&mut checkpoint.partitions), listed, forgets);
        let transforms = session.transforms.clone();
        let stores = spec.sink.progress().is_some();
        let mut this = Self {
            shared: Arc::clone(shared),
            counters: session.counters,
            parts: Counters::default(),
            letters: session.letters,
            snapshot: checkpoint.snapshot,
            copied,
            stop_deadline: spec.stop_deadline,
            orderer,
            batches: Batches::new(budget.clone()),
            stores_progress_in_one_lane: stores && spec.lanes() == 1,
            lanes,
            lane_tasks,
            applied,
            in_flight: HashMap::new(),
            reader_seed: ReaderSeed { spec, transforms, budget, out, stop: CancellationToken::new() },
            readers: JoinSet::new(),
            readings,
            lineage,
            unshown: false,
            saver: Saver::start(SaveTask { keeper: session.keeper }),
            retrying: Retrying::No,
        };
        for (partition, progress) in this.lineage.unfinished() {
            this.orderer.opened(&partition, progress.as_ref());
        }
        this.open_readers();
        this.publish();
        shared.phase(Phase::Streaming);
        Ok(this)
    }

    /// The loop. Every arm does one thing and goes round.
    async fn run(&mut self, stop: &CancellationToken) -> Result<()> {
        let mut save = interval(self.saver.period(self.stores_progress_in_one_lane));
        save.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut retry = interval(RETRY_LETTERS);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut show = interval(SHOW);
        show.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stopping = false;
        loop {
            self.hand_out()?;
            if stopping && self.in_flight.is_empty() {
                return Ok(());
            }
            let hungry = !stopping && (self.orderer.has_room() || self.in_flight.is_empty());
            tokio::select! {
                biased;
                // 1. What lanes have done frees memory and moves the watermark.
                Some(applied) = self.applied.recv() => self.on_applied(applied)?,
                // 2. A lane ends only by failing while its inbox is open.
                Some(ended) = self.lane_tasks.join_next() => return Err(failure(ended, "a lane ended")),
                // 3. What is saved may be acknowledged, and children of finished partitions opened.
                saved = self.saver.saved() => {
                    let saved = saved?;
                    self.lineage.saved(&saved);
                    self.open_readers();
                }
                // 4. A reader that failed fails the run. One that ended has told why before.
                Some(ended) = self.readers.join_next() => ended.unwrap_or_else(|e| Err(panicked(e)))?,
                // 5. Stopping: nothing more is taken in; what is under way is finished.
                () = stop.cancelled(), if !stopping => stopping = true,
                // 6. to 8. Timers.
                _ = save.tick() => self.save_if_moved(),
                _ = show.tick(), if self.unshown => self.publish(),
                _ = retry.tick() => if self.letters.open() > 0 && self.retrying == Retrying::No {
                    self.retrying = Retrying::Waiting;
                },
                // 9. New batches come last: taking them in makes work for all the others.
                Some(reading) = self.readings.recv(), if hungry => self.on_reading(reading)?,
            }
        }
    }

    fn on_reading(&mut self, reading: Reading) -> Result<()> {
        match reading {
            Reading::Batch(batch, permit) => {
                self.stop_at_new_table(&batch)?;
                let batch = Arc::new(batch);
                self.lineage.received(batch.partition(), batch.end());
                self.shared.heard(batch.lag_bytes());
                let id = self.batches.add(Arc::clone(&batch), permit);
                self.orderer.push(id, &batch)?;
                if batch.is_empty() {
                    self.publish_soon();
                }
            }
            Reading::Closed(id, children) => {
                for child in &children {
                    self.orderer.opened(child, None);
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

    fn on_applied(&mut self, applied: Applied) -> Result<()> {
        match applied {
            Applied::Taken(id, counters) => {
                let Some(unit) = self.in_flight.get_mut(&id) else { return Ok(()) };
                // Parts are counted with the last of them, which makes the transaction durable.
                self.parts += counters;
                if unit.ends {
                    unit.counters = std::mem::take(&mut self.parts);
                }
                for (batch, changes) in unit.slices.drain(..) {
                    self.batches.applied(batch, changes);
                }
                if let Some(lane) = self.lanes.get_mut(unit.lane) {
                    lane.at_lane -= 1;
                }
                if !unit.ends {
                    // Parts before the last carry no progress: done once they are taken.
                    self.in_flight.remove(&id);
                    self.orderer.complete(id);
                }
            }
            Applied::Durable(ids) => {
                for id in ids {
                    let Some(unit) = self.in_flight.remove(&id) else { continue };
                    self.orderer.complete(id);
                    self.counters += unit.counters;
                    if self.stores_progress_in_one_lane {
                        for progress in &unit.progress {
                            self.lineage.stored(&progress.partition, &progress.position);
                        }
                    }
                }
                self.shared.progressed();
                self.publish_soon();
            }
            Applied::Retried => self.retrying = Retrying::No,
        }
        Ok(())
    }

    fn counters(&self) -> Counters {
        Counters { dead_letters: self.counters.dead_letters + self.letters.put_count(), ..self.counters }
    }

    /// Gives the lanes what the orderer has ready.
    fn hand_out(&mut self) -> Result<()> {
        if self.retrying == Retrying::Waiting && self.in_flight.is_empty() {
            self.retrying = Retrying::Running;
            self.send(0, Work::RetryLetters)?;
        }
        if self.retrying != Retrying::No {
            return Ok(());
        }
        while let Some(ordered) = self.orderer.next_ready()? {
            let lane = ordered.lane as usize;
            let slices = ordered.slices.iter().map(|s| (s.batch, s.changes.len())).collect();
            let unit = self.batches.resolve(ordered)?;
            let ends = unit.part.ends();
            self.in_flight.insert(
                unit.id,
                InFlight { lane, slices, ends, progress: unit.progress.clone(), counters: Counters::default() },
            );
            let handle = self
                .lanes
                .get_mut(lane)
                .ok_or_else(|| Error::fatal(format!("the orderer chose lane {lane}, which is not there")))?;
            handle.ready.push_back(unit);
        }
        for lane in 0..self.lanes.len() {
            while self.lanes[lane].at_lane < UNITS_AT_LANE
                && let Some(unit) = self.lanes[lane].ready.pop_front()
            {
                self.lanes[lane].at_lane += 1;
                self.send(lane, Work::Apply(unit))?;
            }
        }
        if self.in_flight.is_empty() {
            self.batches.spill_if_tight()?;
        }
        Ok(())
    }

    fn send(&self, lane: usize, work: Work) -> Result<()> {
        match self.lanes[lane].inbox.try_send(work) {
            // A closed inbox: the lane has failed, and the loop is about to hear why.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => Err(Error::fatal("a lane was given more units than it takes")),
        }
    }

    fn open_readers(&mut self) {
        for (partition, position, acknowledged) in self.lineage.openable() {
            let seed = &self.reader_seed;
            let from = StartFrom { position, snapshots: self.snapshot.tables.clone() };
            let source = Arc::clone(&seed.spec.source);
            let (transforms, budget) = (seed.transforms.clone(), seed.budget.clone());
            let (out, stop) = (seed.out.clone(), seed.stop.clone());
            self.readers.spawn(async move {
                let reader = source.open(&partition, &from).await?;
                let from = from.position.map(|p| p.rank);
                ReaderTask { from, partition: partition.id, reader, transforms, budget, out, acknowledged, stop }
                    .run()
                    .await
            });
        }
    }

    fn save_if_moved(&mut self) {
        self.lineage.advance(self.orderer.low_watermark());
        if self.lineage.moved() && self.saver.is_idle() {
            let counters = self.counters();
            self.saver.save(self.lineage.snapshot(), counters);
        }
    }

    fn publish_soon(&mut self) {
        match self.lineage.len() <= FEW_PARTITIONS {
            true => self.publish(),
            false => self.unshown = true,
        }
    }

    /// Shows the watermark to whoever waits for it.
    fn publish(&mut self) {
        self.unshown = false;
        let low = self.orderer.low_watermark();
        self.lineage.advance(low);
        let waiting = self.batches.waiting_changes();
        let progress: BTreeMap<PartitionId, Progress> = self.lineage.durable();
        let counters = self.counters();
        let visible = |p: &Position| self.snapshot.tables.values().all(|t| t.point.rank <= p.rank);
        let whole = progress.values().all(|p| visible(&p.position));
        let safe_time = self.lineage.safe_time().filter(|_| whole);
        let finished = self.lineage.finished_of_listed();
        self.shared.watermark(progress, finished, safe_time, counters, waiting, self.letters.open());
        if self.lineage.wants_saving() && self.saver.is_idle() {
            self.save_if_moved();
        }
    }

    /// Ends every task: lanes finish the write they are in, readers say goodbye, the checkpoint is
    /// saved if the run ended well. What is not done by the deadline is dropped.
    async fn end(mut self, well: bool) -> Result<()> {
        let deadline = self.stop_deadline;
        let orderly = async {
            self.lanes.clear();
            let mut result = Ok(());
            while let Some(ended) = self.drain_lane().await {
                result = result.and(ended);
            }
            if well && result.is_ok() {
                self.publish();
                self.lineage.advance(self.orderer.low_watermark());
                let counters = self.counters();
                let saved = self.saver.finish(self.lineage.snapshot(), counters).await?;
                self.lineage.saved(&saved);
            }
            self.reader_seed.stop.cancel();
            while let Some(ended) = self.readers.join_next().await {
                let ended = ended.unwrap_or_else(|e| Err(panicked(e)));
                result = result.and(if well { ended } else { Ok(()) });
            }
            result
        };
        match timeout(deadline, orderly).await {
            Ok(result) => result,
            Err(_) => Err(Error::transient(format!("stopping took longer than {} s", deadline.as_secs()))),
        }
    }

    /// The next lane that ended, taking in what lanes report meanwhile.
    async fn drain_lane(&mut self) -> Option<Result<()>> {
        loop {
            tokio::select! {
                biased;
                // 1. Reports first: the last ones come just before a lane ends.
                Some(applied) = self.applied.recv() => if let Err(e) = self.on_applied(applied) {
                    return Some(Err(e));
                },
                // 2. A lane ended.
                ended = self.lane_tasks.join_next() => {
                    return ended.map(|e| e.unwrap_or_else(|e| Err(panicked(e))));
                }
            }
        }
    }
}

fn failure(ended: Result<Result<()>, tokio::task::JoinError>, what: &'static str) -> Error {
    match ended {
        Ok(Ok(())) => Error::transient(what),
        Ok(Err(e)) => e,
        Err(e) => panicked(e),
    }
}

fn panicked(e: tokio::task::JoinError) -> Error {
    Error::fatal("a task of the pipeline panicked").because(e)
}
