//! The heart of a run: read, order, apply, commit, until it is stopped or something fails.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::batches::{Batches, Budget, Loaded};
use super::lane::{Applied, LaneTask, Work};
use super::lineage::Lineage;
use super::reader::{ReaderTask, Reading};
use super::saver::{SaveTask, Saver, Wanted};
use super::session::Session;
use super::shards::{blame, lane_name};
use super::snapshot::copies;
use super::tally::Tally;
use crate::control::drain::Durable;
use crate::error::{Error, Result};
use crate::model::{BatchId, ChangeBatch, Counters, OrderedUnit, Position, Progress, TableName, Timestamp, UnitId};
use crate::orderer::Orderer;
use crate::pipeline::{Known, Phase, Role, Shared, Spec, Watermark};
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
    async fn start(session: Session, shared: &Arc<Shared>) -> Result<Self> {
        let spec = Arc::clone(&session.spec);
        let budget = spec.budget.clone();
        let pinned = session.preflight.pinned_groups();
        let orderer = spec.order.orderer(spec.source.info().order, spec.unit_limits(), pinned, spec.shard_lanes());
        let (applied_out, applied) = mpsc::channel(READ_AHEAD);
        let (out, readings) = mpsc::channel(READ_AHEAD);
        let group = if spec.sink.sharded().is_some() { spec.order.lanes() } else { spec.lanes() } as usize;
        let mut lanes = Vec::new();
        let mut lane_tasks = JoinSet::new();
        for index in 0..spec.lanes() {
            let lane = session.lane(index, LanePurpose::Stream);
            let committed = session.committed.get(index as usize).cloned().unwrap_or_default();
            let (inbox, work) = mpsc::channel(UNITS_AT_LANE);
            let at = index as usize;
            let writer = match session.halted.contains_key(&(at / group)) {
                true => None,
                false => Some(spec.sink.open(lane).await.map_err(|e| blame(&spec, shared, at / group, e))?),
            };
            let task = LaneTask {
                name: lane_name(&spec, index),
                writer,
                tally: session.tallies.get(at).copied().unwrap_or_default(),
                untold: Tally::default(),
                committed,
                letters: Arc::clone(&session.letters),
                index: at,
                pulse: shared.pulse(),
                inbox: work,
                out: applied_out.clone(),
            };
            lane_tasks.spawn(async move { (at, task.run().await) }.instrument(tracing::info_span!("lane", lane = at)));
            lanes.push(LaneHandle { inbox, ready: VecDeque::new(), at_lane: 0, under_way: 0, in_parts: false });
        }
        let copied = copies(&session).then(|| session.tables.iter().map(|(_, target)| target.name.clone()).collect());
        let mut checkpoint = session.keeper.checkpoint.clone();
        let listed = spec.source.partitions().await?;
        let lineage = Lineage::new(std::mem::take(&mut checkpoint.partitions), listed);
        let transforms = session.transforms.clone();
        let (stores, relays) = (spec.sink.progress().is_some(), spec.sink.relay().is_some());
        let sink = Arc::clone(&spec.sink);
        let mut this = Self {
            shared: Arc::clone(shared),
            lane_counters: session.lane_counters,
            snapshot_rows: session.snapshot_rows,
            parts: vec![Counters::default(); lanes.len()],
            // Letters come first: what waits behind them is applied before anything new.
            retrying: vec![
                if session.letters.open() > 0 { Retrying::Waiting } else { Retrying::No };
                lanes.len() / group
            ],
            letters: session.letters,
            group,
            halted: session.halted,
            asking: JoinSet::new(),
            snapshot: checkpoint.snapshot,
            copied,
            stop_deadline: spec.stop_deadline,
            orderer,
            batches: Batches::new(budget.clone()),
            stores_progress_in_one_lane: stores && spec.lanes() == 1 && spec.sink.sharded().is_none(),
            relays,
            lanes,
            lane_tasks,
            applied,
            in_flight: HashMap::new(),
            reader_seed: ReaderSeed { spec, transforms, budget, out, stop: CancellationToken::new() },
            readers: JoinSet::new(),
            readings,
            lineage,
            unshown: false,
            saver: Saver::start(SaveTask { keeper: session.keeper, sink }),
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

    fn on_applied(&mut self, applied: Applied) -> Result<()> {
        match applied {
            Applied::Taken(id, counters) => {
                let Some(unit) = self.in_flight.get_mut(&id) else { return Ok(()) };
                // Parts are counted with the last of them, which makes the transaction durable.
                self.parts[unit.lane] += counters;
                if unit.ends {
                    unit.counters = std::mem::take(&mut self.parts[unit.lane]);
                }
                for (batch, changes) in unit.slices.drain(..) {
                    self.batches.applied(batch, changes);
                }
                self.batches.unload(std::mem::take(&mut unit.loaded));
                // None while a run ends: then nothing is sent any more.
                if let Some(lane) = self.lanes.get_mut(unit.lane) {
                    lane.at_lane -= 1;
                    lane.under_way -= usize::from(!unit.ends);
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
                    self.count(unit.lane, unit.counters);
                    if let Some(lane) = self.lanes.get_mut(unit.lane) {
                        lane.under_way -= 1;
                    }
                    if !self.halted.contains_key(&(unit.lane / self.group)) {
                        self.shared.shard_works(unit.lane / self.group);
                    }
                    if self.stores_progress_in_one_lane {
                        for progress in &unit.progress {
                            self.lineage.stored(&progress.partition, &progress.position);
                        }
                    }
                }
                self.shared.progressed();
                self.publish_soon();
            }
            Applied::Retried(lane, counters) => {
                self.retrying[lane / self.group] = Retrying::No;
                self.count(lane, counters);
                self.publish();
            }
        }
        Ok(())
    }

    fn count(&mut self, lane: usize, counters: Counters) {
        // A target that does not count has one sum.
        let at = lane.min(self.lane_counters.len().saturating_sub(1));
        if let Some(sum) = self.lane_counters.get_mut(at) {
            *sum += counters;
        }
    }

    fn counters(&self) -> Counters {
        let mut sum = Counters { snapshot_rows: self.snapshot_rows, ..Counters::default() };
        for lane in &self.lane_counters {
            sum += Counters { snapshot_rows: 0, ..*lane };
        }
        sum.dead_letters += self.letters.put_count();
        sum
    }

    /// What each shard has counted; empty where there are none.
    fn shard_counters(&self) -> BTreeMap<String, Counters> {
        let Some(sharded) = self.reader_seed.spec.sink.sharded() else { return BTreeMap::new() };
        let sum = |lanes: &[Counters]| {
            lanes.iter().fold(Counters::default(), |mut sum, lane| {
                sum += *lane;
                sum
            })
        };
        let by_shard = self.lane_counters.chunks(self.group).map(sum);
        sharded.names().iter().map(|name| name.to_string()).zip(by_shard).collect()
    }

    /// Has the letters of each group tried again, once its lanes are idle.
    fn retry_letters(&mut self) {
        if self.letters.open() == 0 {
            return;
        }
        for (group, retrying) in self.retrying.iter_mut().enumerate() {
            if *retrying == Retrying::No && !self.halted.contains_key(&group) {
                *retrying = Retrying::Waiting;
            }
        }
    }

    /// Asks the halted shards whose time it is.
    fn ask_halted(&mut self) {
        if !self.asking.is_empty() {
            return;
        }
        let spec = &self.reader_seed.spec;
        let Some(sharded) = spec.sink.sharded() else { return };
        for &shard in self.halted.keys().filter(|shard| self.shared.may_ask(**shard)) {
            let Some(sink) = sharded.shard(shard).cloned() else { continue };
            let pipeline = Arc::clone(&spec.name);
            self.asking.spawn(async move {
                let answer = match sink.progress() {
                    Some(store) => store.read(&pipeline).await.map(|_| ()),
                    None => Ok(()),
                };
                (shard, answer)
            });
        }
    }

    fn on_answer(&mut self, shard: usize, answer: Result<()>) -> Result<()> {
        match answer {
            Ok(()) => {
                self.shared.shard_answers(shard);
                Err(Error::transient("a halted shard answers again: its changes are applied"))
            }
            Err(e) => {
                self.shared.still_halted(shard, &e.report());
                Ok(())
            }
        }
    }

    /// A lane failed: its shard is to blame, where there are shards.
    fn lane_failed(&self, ended: Result<(usize, Result<()>), tokio::task::JoinError>) -> Error {
        match ended {
            Ok((_, Ok(()))) => Error::transient("a lane ended"),
            Ok((lane, Err(e))) => blame(&self.reader_seed.spec, &self.shared, lane / self.group, e),
            Err(e) => panicked(e),
        }
    }

    /// Gives the lanes what the orderer has ready.
    fn hand_out(&mut self) -> Result<()> {
        for group in 0..self.retrying.len() {
            let lanes = &self.lanes[group * self.group..(group + 1) * self.group];
            let idle = lanes.iter().all(|l| l.under_way == 0 && !l.in_parts);
            if self.retrying[group] == Retrying::Waiting && idle {
                self.retrying[group] = Retrying::Running;
                self.send(group * self.group, Work::RetryLetters)?;
            }
        }
        while let Some(ordered) = self.orderer.next_ready()? {
            let lane = ordered.lane as usize;
            let slices = ordered.slices.iter().map(|s| (s.batch, s.changes.len())).collect();
            let (ends, progress) = (ordered.part.ends(), ordered.progress.clone());
            let (loaded, counters) = (Loaded::default(), Counters::default());
            self.in_flight.insert(ordered.id, InFlight { lane, slices, loaded, ends, progress, counters });
            let handle = self
                .lanes
                .get_mut(lane)
                .ok_or_else(|| Error::fatal(format!("the orderer chose lane {lane}, which is not there")))?;
            handle.ready.push_back(ordered);
        }
        for lane in 0..self.lanes.len() {
            let retrying = self.retrying[lane / self.group];
            let handle = &mut self.lanes[lane];
            let mut units = Vec::new();
            let batches = &mut self.batches;
            // A transaction that is open in parts is ended before letters are tried again.
            while handle.at_lane < UNITS_AT_LANE
                && (retrying == Retrying::No || (retrying == Retrying::Waiting && handle.in_parts))
                && handle.ready.front().is_some_and(|unit| batches.has_room_for(unit))
                && let Some(ordered) = handle.ready.pop_front()
            {
                let (unit, loaded) = batches.resolve(ordered)?;
                if let Some(unit) = self.in_flight.get_mut(&unit.id) {
                    unit.loaded = loaded;
                }
                handle.at_lane += 1;
                handle.under_way += 1;
                handle.in_parts = !unit.part.ends();
                units.push(unit);
            }
            for unit in units {
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
            let span = tracing::info_span!("reader", partition = %partition.id);
            let read = async move {
                let reader = source.open(&partition, &from).await?;
                let from = from.position.map(|p| p.rank);
                ReaderTask { from, partition: partition.id, reader, transforms, budget, out, acknowledged, stop }
                    .run()
                    .await
            };
            self.readers.spawn(read.instrument(span));
        }
        for partition in self.lineage.take_forgotten() {
            self.orderer.forget(&partition);
        }
    }

    fn save_if_moved(&mut self) {
        self.lineage.advance(self.orderer.low_watermark());
        if (self.lineage.moved() || self.saver.is_silent()) && self.saver.is_idle() {
            let wanted = self.wanted();
            self.saver.save(wanted);
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
        let open = self.lineage.unfinished();
        let (counters, safe_time) = (self.counters(), self.safe_time());
        let now = Watermark {
            safe_times: open.iter().filter_map(|(p, at)| Some((p.id.clone(), at.as_ref()?.safe_time?))).collect(),
            durable: Durable {
                // One that has given nothing yet is where it starts.
                open: open.into_iter().map(|(p, at)| (p.id, at.map(|at| at.position).or(p.start))).collect(),
                finished: self.lineage.finished(),
                unsaved: self.lineage.unsaved(),
                copying: false,
                dead_letters_open: self.letters.open(),
            },
            owners: BTreeMap::new(),
        };
        self.shared.watermark(now, safe_time, counters, waiting);
        if let Some(sharded) = self.reader_seed.spec.sink.sharded() {
            let known = Known {
                counters: self.shard_counters(),
                halted: &self.halted,
                letters: self.letters.open_by_shard(),
                waits: sharded.names().iter().map(|name| self.letters.is_halted(name)).collect(),
            };
            self.shared.shards(sharded.names(), known, safe_time);
        }
        if self.lineage.wants_saving() && self.saver.is_idle() {
            self.save_if_moved();
        }
    }

    /// Everything committed at or before this is durable; `None` while no time can be said: the stream
    /// has not passed the point of every copy.
    fn safe_time(&self) -> Option<Timestamp> {
        let visible = |p: &Position| self.snapshot.tables.values().all(|t| t.point.rank <= p.rank);
        let whole = self.lineage.unfinished().iter().filter_map(|(_, p)| p.as_ref()).all(|p| visible(&p.position));
        self.lineage.safe_time().filter(|_| whole)
    }

    /// What a save would store now.
    fn wanted(&mut self) -> Wanted {
        let (counters, shards) = (self.counters(), self.shard_counters());
        let safe_time = self.safe_time();
        Wanted { partitions: self.lineage.snapshot(), counters, shards, safe_time, ended: false }
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
                let wanted = self.wanted();
                let saved = self.saver.finish(wanted).await?;
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
                    return ended.map(|e| e.map_or_else(|e| Err(panicked(e)), |(_, result)| result));
                }
            }
        }
    }
}

fn panicked(e: tokio::task::JoinError) -> Error {
    Error::fatal("a task of the pipeline panicked").because(e)
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
