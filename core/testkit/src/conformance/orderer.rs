//! What every [`Orderer`] over one partition of whole transactions must do.
//!
//! Random histories are pushed batch by batch, units are completed in any order between lanes, and
//! what the orderer emitted is applied to a [`MemorySink`], which refuses a row that is changed out
//! of its order.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use anabranch_core::memory::MemorySink;
use anabranch_core::{
    BatchId, ChangeBatch, Claim, Lane, LanePurpose, OrderedUnit, Orderer, Part, Partition, PartitionId, Progress,
    ProgressStore, Rank, Sink, SinkWriter, SourceIdentity, StartFrom, Unit, UnitId, UnitKind, UnitSlice,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::generator::{Generator, customers, events, lines, waits};
use crate::units;

/// What an orderer promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// Target transactions end only where source transactions end, in commit order.
    Transactions,
    /// The changes of one key take effect in their order.
    Keys,
}

/// Random histories, by seed. The seed is in the message of a failure.
const SEEDS: u64 = 40;

/// Runs every check on orderers that `make` gives.
///
/// # Panics
/// With what the orderer did wrong.
pub async fn run(promise: Promise, make: impl Fn() -> Box<dyn Orderer>) {
    nothing_comes_from_nothing(make());
    for seed in 0..SEEDS {
        Run::new(seed, promise, make()).await.run().await;
    }
}

fn nothing_comes_from_nothing(mut orderer: Box<dyn Orderer>) {
    assert!(orderer.has_room(), "a new orderer has no room");
    assert!(orderer.next_ready().unwrap().is_none(), "a new orderer has a unit");
    assert!(orderer.low_watermark().is_empty(), "a new orderer has a watermark");
}

struct Run {
    seed: u64,
    promise: Promise,
    random: StdRng,
    orderer: Box<dyn Orderer>,
    source: anabranch_core::memory::MemorySource,
    batches: Vec<Arc<ChangeBatch>>,
    partition: PartitionId,
    sink: MemorySink,
    writers: HashMap<u32, Box<dyn SinkWriter>>,
    /// Units that were emitted and are not complete, by lane.
    waiting: BTreeMap<u32, VecDeque<OrderedUnit>>,
    /// Lanes whose last unit was a part that does not end.
    in_parts: HashMap<u32, bool>,
    /// Every change by rank: whether it was emitted, and whether its unit is complete.
    changes: BTreeMap<Rank, (bool, bool)>,
    units: Vec<UnitId>,
    watermark: Option<Progress>,
}

impl Run {
    async fn new(seed: u64, promise: Promise, orderer: Box<dyn Orderer>) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let mut generator = Generator::new(seed, vec![customers(), lines(), events(), waits()]).keys(12);
        let mut source = generator.source().batch_changes(random.random_range(1..25));
        if seed % 2 == 1 {
            source = source.unsent_columns(&customers().name, &[3]).full_old_rows(&lines().name);
        }
        generator.write(&source, 25, 12);
        let batches = units::read_source(&source, &StartFrom::default(), &source.end()).await;
        let changes = batches.iter().flat_map(|b| b.changes().map(|c| (c.rank(), (false, false)))).collect();
        let sink = MemorySink::new();
        let claim = Claim { pipeline: "p".into(), epoch: 1, lanes: 1, identity: SourceIdentity::default() };
        sink.take_over(&claim).await.expect("take over");
        let partition = batches[0].partition().clone();
        Self {
            seed,
            promise,
            random,
            orderer,
            source,
            batches,
            partition,
            sink,
            writers: HashMap::new(),
            waiting: BTreeMap::new(),
            in_parts: HashMap::new(),
            changes,
            units: Vec::new(),
            watermark: None,
        }
    }

    async fn run(mut self) {
        self.orderer.opened(&Partition::root(self.partition.clone()), None);
        for id in 0..self.batches.len() {
            // As the runtime does: no batch while there is no room. With nothing left to complete,
            // an orderer without room would stand still for ever.
            while !self.orderer.has_room() {
                self.take_ready();
                assert!(
                    self.waiting.values().any(|l| !l.is_empty()),
                    "{}: no room, and nothing to complete",
                    self.seed
                );
                self.complete_one().await;
            }
            let batch = Arc::clone(&self.batches[id]);
            self.orderer.push(BatchId(id as u64), &batch).expect("push");
            self.check_watermark();
            self.take_ready();
            while self.random.random_bool(0.4) && self.waiting.values().any(|l| !l.is_empty()) {
                self.complete_one().await;
            }
        }
        if self.random.random_bool(0.5) {
            self.orderer.closed(&self.partition);
        }
        self.take_ready();
        while self.waiting.values().any(|lane| !lane.is_empty()) {
            self.complete_one().await;
        }
        self.check_end();
    }

    /// Takes every unit that is ready.
    fn take_ready(&mut self) {
        while let Some(unit) = self.orderer.next_ready().expect("the next unit") {
            let seed = self.seed;
            assert!(!self.units.contains(&unit.id), "{seed}: two units are called {:?}", unit.id);
            self.units.push(unit.id);
            let open = self.in_parts.insert(unit.lane, !unit.part.ends()).unwrap_or(false);
            let goes_on = matches!(unit.part, Part::Middle | Part::Last);
            assert_eq!(open, goes_on, "{seed}: {:?} on lane {}", unit.part, unit.lane);
            assert!(unit.part.ends() || unit.progress.is_empty(), "{seed}: progress before the last part");
            for slice in &unit.slices {
                let batch = &self.batches[slice.batch.0 as usize];
                for index in slice.changes.iter() {
                    let rank = batch.change(index as usize).rank();
                    let (emitted, _) = self.changes.get_mut(&rank).expect("a change that was pushed");
                    assert!(!*emitted, "{seed}: the change {rank:?} is emitted twice");
                    *emitted = true;
                }
            }
            if self.promise == Promise::Transactions {
                self.check_boundary(&unit);
            }
            self.waiting.entry(unit.lane).or_default().push_back(unit);
        }
    }

    /// In transaction order what was emitted is all up to a rank; at the end of a target
    /// transaction that rank is the end of a source transaction.
    fn check_boundary(&self, unit: &OrderedUnit) {
        let emitted = self.changes.values().take_while(|(emitted, _)| *emitted).count();
        let all = self.changes.values().filter(|(emitted, _)| *emitted).count();
        assert_eq!(emitted, all, "{}: changes out of commit order", self.seed);
        if unit.part.ends() {
            let last = self.changes.keys().take(emitted).last();
            let next = self.changes.keys().nth(emitted);
            let prefix = |rank: &Rank| rank.as_bytes()[..8].to_vec();
            assert!(
                last.is_none() || last.map(prefix) != next.map(prefix),
                "{}: a target transaction ends within a source transaction",
                self.seed
            );
        }
    }

    /// Applies and completes the oldest unit of any lane.
    async fn complete_one(&mut self) {
        let lanes: Vec<u32> =
            self.waiting.iter().filter(|(_, units)| !units.is_empty()).map(|(lane, _)| *lane).collect();
        let lane = lanes[self.random.random_range(0..lanes.len())];
        let Some(ordered) = self.waiting.get_mut(&lane).and_then(VecDeque::pop_front) else { return };
        let slice = |s: &anabranch_core::Slice| UnitSlice {
            batch: Arc::clone(&self.batches[s.batch.0 as usize]),
            changes: s.changes.clone(),
        };
        let unit = Unit {
            id: ordered.id,
            kind: UnitKind::Stream,
            part: ordered.part,
            slices: ordered.slices.iter().map(slice).collect(),
            transactions: ordered.transactions,
            progress: ordered.progress.clone(),
        };
        if !self.writers.contains_key(&lane) {
            let purpose = LanePurpose::Stream;
            let lane_of_sink = Lane { pipeline: "p".into(), index: lane, count: lane + 1, epoch: 1, purpose };
            self.writers.insert(lane, self.sink.open(lane_of_sink).await.expect("open"));
        }
        let Some(writer) = self.writers.get_mut(&lane) else { return };
        let written = writer.write(&unit).await;
        let _ = written.unwrap_or_else(|e| panic!("{}: out of order: {}", self.seed, e.report()));
        for rank in unit.changes().map(|c| c.rank()) {
            if let Some((_, complete)) = self.changes.get_mut(&rank) {
                *complete = true;
            }
        }
        self.orderer.complete(ordered.id);
        self.check_watermark();
        self.take_ready();
    }

    /// The watermark moves forward only, and everything at or before it is complete.
    fn check_watermark(&mut self) {
        let Some(now) = self.orderer.low_watermark().get(&self.partition).cloned() else { return };
        if let Some(before) = &self.watermark {
            assert!(now.position.rank >= before.position.rank, "{}: the watermark goes back", self.seed);
            assert!(now.safe_time >= before.safe_time, "{}: the safe time goes back", self.seed);
        }
        let hole = self.changes.range(..=now.position.rank.clone()).find(|(_, (_, complete))| !complete);
        assert!(hole.is_none(), "{}: the watermark {:?} has passed {hole:?}", self.seed, now.position.rank);
        self.watermark = Some(now);
    }

    /// Everything was emitted, is applied, and the watermark is at the end.
    fn check_end(&mut self) {
        let seed = self.seed;
        let missing: Vec<_> = self.changes.iter().filter(|(_, (emitted, _))| !emitted).map(|(rank, _)| rank).collect();
        assert!(missing.is_empty(), "{seed}: never emitted: {missing:?}");
        assert!(self.in_parts.values().all(|open| !open), "{seed}: parts without the last");
        assert_eq!(self.source.tables().difference(&self.sink.tables()), None, "{seed}: source and target");
        self.check_watermark();
        let end = self.batches.last().map(|b| b.end().clone());
        assert_eq!(self.watermark.as_ref().map(|w| w.position.clone()), end, "{seed}: the watermark at the end");
        let last = self.batches.last().and_then(|b| b.safe_time());
        assert_eq!(self.watermark.as_ref().and_then(|w| w.safe_time), last, "{seed}: the safe time at the end");
        assert!(self.orderer.has_room(), "{seed}: no room although nothing is left");
    }
}
