//! Drives an orderer through a history, with everything in random order that may come in any order,
//! and checks what holds for all orderers.

use std::collections::{BTreeMap, HashMap};

use anabranch_core::{BatchId, OrderedUnit, Orderer, Part, PartitionId, Progress, UnitId};
use anabranch_testkit::generators::{Change, Dice, History};

/// A change: its log, and its place in it.
pub(crate) type At = (usize, usize);

/// A unit, and when things happened to it.
#[derive(Debug)]
pub(crate) struct Emitted {
    pub(crate) unit: OrderedUnit,
    pub(crate) changes: Vec<At>,
    pub(crate) emitted: usize,
    pub(crate) completed: Option<usize>,
    /// It was applied before a crash.
    skipped: bool,
}

pub(crate) struct Drive<'h> {
    history: &'h History,
    orderer: Box<dyn Orderer>,
    dice: Dice,
    step: usize,
    pushed: Vec<usize>,
    opened: Vec<bool>,
    closed: Vec<bool>,
    batches: HashMap<BatchId, At>,
    emitted: Vec<Emitted>,
    /// Whether each change was emitted, and is complete.
    state: Vec<Vec<(bool, bool)>>,
    low: BTreeMap<PartitionId, Progress>,
    /// What was applied before the crash, and what the lanes had stored.
    before: Vec<Emitted>,
    committed: HashMap<(u32, usize), Progress>,
    /// Parts are complete when they are taken, and not only with the last one.
    early_parts: bool,
}

/// Drives to the end; gives the units in the order in which they were emitted.
pub(crate) fn drive(history: &History, orderer: Box<dyn Orderer>, seed: u64) -> Vec<Emitted> {
    let mut drive = Drive::new(history, orderer, seed, Crash::default());
    while drive.turn() {}
    drive.check_end();
    drive.emitted
}

/// Crashes after so many turns and goes on with another orderer; gives the units that were applied.
pub(crate) fn drive_with_crash(
    history: &History,
    orderer: impl Fn() -> Box<dyn Orderer>,
    lanes: u32,
    turns: usize,
    seed: u64,
) -> Vec<Emitted> {
    let mut first = Drive::new(history, orderer(), seed, Crash::default());
    for _ in 0..turns {
        first.turn();
    }
    let mut second = Drive::new(history, orderer(), seed + 1, first.crash(lanes));
    while second.turn() {}
    second.check_end();
    let mut all = second.before;
    all.extend(second.emitted);
    all.retain(|e| !e.skipped);
    all
}

/// What is left after a crash.
#[derive(Default)]
struct Crash {
    step: usize,
    /// The units whose target transactions were committed.
    applied: Vec<Emitted>,
    /// What each lane stored for each log.
    committed: HashMap<(u32, usize), Progress>,
    /// Where each log is resumed.
    from: HashMap<usize, Progress>,
}

impl<'h> Drive<'h> {
    fn new(history: &'h History, orderer: Box<dyn Orderer>, seed: u64, crash: Crash) -> Self {
        let logs = history.logs.len();
        let mut dice = Dice::new(seed);
        let early_parts = dice.percent(50);
        let mut drive = Self {
            history,
            orderer,
            dice,
            step: crash.step,
            pushed: vec![0; logs],
            opened: vec![false; logs],
            closed: vec![false; logs],
            batches: HashMap::new(),
            emitted: Vec::new(),
            state: history.logs.iter().map(|l| vec![(false, false); l.changes.len()]).collect(),
            low: BTreeMap::new(),
            before: crash.applied,
            committed: crash.committed,
            early_parts,
        };
        for &(log, at) in drive.before.iter().flat_map(|e| &e.changes) {
            drive.state[log][at].1 = true;
        }
        for (log, from) in &crash.from {
            drive.resume(*log, from);
        }
        for log in 0..logs {
            if history.logs[log].partition.parents.is_empty() {
                drive.opened[log] = true;
                drive.orderer.opened(&history.logs[log].partition, crash.from.get(&log));
            }
        }
        drive
    }

    /// Begins with the batch that holds the first change after the position's token.
    fn resume(&mut self, log: usize, from: &Progress) {
        let token = String::from_utf8_lossy(&from.position.token);
        let last = match (&*token, token.split_once('/')) {
            ("end", _) => usize::MAX,
            (_, Some((_, transaction))) => transaction.parse().expect("a token of this history"),
            _ => return,
        };
        let l = &self.history.logs[log];
        let first = l.changes.iter().position(|c| c.transaction > last && last != usize::MAX);
        let mut changes = 0;
        let holds = |b: &anabranch_core::ChangeBatch| {
            changes += b.len();
            first.is_some_and(|first| changes > first)
        };
        self.pushed[log] = l.batches.iter().position(holds).unwrap_or(l.batches.len() - 1);
        let skipped = l.batches[..self.pushed[log]].iter().map(|b| b.len()).sum();
        for (at, state) in self.state[log][..skipped].iter_mut().enumerate() {
            assert!(state.1, "change {at} of log {log} is before {from:?} and was not applied");
            state.0 = true;
        }
    }

    /// Stops here. Of each lane, the unit that was being written may have been committed.
    fn crash(mut self, lanes: u32) -> Crash {
        let mut crash = Crash { step: self.step + 1, ..Crash::default() };
        for lane in 0..lanes {
            let mut parts: Vec<Emitted> = Vec::new();
            let (units, others) = self.emitted.into_iter().partition(|e| e.unit.lane == lane);
            self.emitted = others;
            for mut e in units {
                let (ends, durable) = (e.unit.part.ends(), e.completed.is_some());
                let indeterminate = ends && !durable && self.dice.percent(50);
                e.completed = Some(e.completed.unwrap_or(self.step));
                parts.push(e);
                if ends && (durable || indeterminate) {
                    crash.applied.append(&mut parts);
                }
                if ends && !durable {
                    break;
                }
            }
        }
        crash.applied.sort_by_key(|e| e.emitted);
        for e in &crash.applied {
            for p in &e.unit.progress {
                let log = place(self.history, &p.partition);
                crash.committed.insert((e.unit.lane, log), p.clone());
            }
        }
        let stale = self.dice.percent(30);
        for (log, l) in self.history.logs.iter().enumerate() {
            let stored = (0..lanes).map(|lane| crash.committed.get(&(lane, log)).cloned());
            let least =
                stored.reduce(|a, b| a.zip(b).map(|(a, b)| if a.position.rank < b.position.rank { a } else { b }));
            let low = self.low.get(&l.partition.id).filter(|_| !stale).cloned();
            let from = least.flatten().into_iter().chain(low).max_by(|a, b| a.position.rank.cmp(&b.position.rank));
            crash.from.extend(from.map(|from| (log, from)));
        }
        crash
    }

    pub(crate) fn change(&self, at: At) -> &'h Change {
        &self.history.logs[at.0].changes[at.1]
    }

    fn open(&mut self, log: usize) {
        self.opened[log] = true;
        self.orderer.opened(&self.history.logs[log].partition, None);
    }

    /// One random action; false at the end.
    fn turn(&mut self) -> bool {
        self.step += 1;
        let completable = self.completable();
        let room = self.orderer.has_room();
        assert!(room || !completable.is_empty(), "no room, and nothing that could make some");
        let readable: Vec<usize> = (0..self.history.logs.len()).filter(|&l| self.is_readable(l)).collect();
        let read = room && !readable.is_empty();
        if read && (completable.is_empty() || self.dice.percent(60)) {
            let log = readable[self.dice.below(readable.len())];
            self.read(log);
        } else if !completable.is_empty() {
            let at = completable[self.dice.below(completable.len())];
            self.complete(at);
        } else {
            return false;
        }
        while let Some(unit) = self.orderer.next_ready().expect("a valid history") {
            self.emit(unit);
        }
        self.check_low();
        true
    }

    /// A child is read only when its parents are processed and durable.
    fn is_readable(&self, log: usize) -> bool {
        let durable = |p: &PartitionId| {
            let parent = place(self.history, p);
            self.closed[parent] && self.state[parent].iter().all(|s| s.1)
        };
        self.opened[log]
            && !self.closed[log]
            && self.left(log)
            && self.history.logs[log].partition.parents.iter().all(durable)
    }

    fn left(&self, log: usize) -> bool {
        self.pushed[log] < self.history.logs[log].batches.len() || self.history.logs[log].closes
    }

    fn read(&mut self, log: usize) {
        let batches = &self.history.logs[log].batches;
        let Some(batch) = batches.get(self.pushed[log]) else {
            let id = self.history.logs[log].partition.id.clone();
            for child in 0..self.history.logs.len() {
                if !self.opened[child] && self.history.logs[child].partition.parents.contains(&id) {
                    self.open(child);
                }
            }
            self.closed[log] = true;
            self.orderer.closed(&id);
            return;
        };
        let id = BatchId(self.batches.len() as u64 + 1);
        let first = batches[..self.pushed[log]].iter().map(|b| b.len()).sum();
        self.batches.insert(id, (log, first));
        self.pushed[log] += 1;
        self.orderer.push(id, batch).expect("a valid history");
    }

    fn emit(&mut self, mut unit: OrderedUnit) {
        let mut changes = Vec::new();
        for slice in &unit.slices {
            let (log, first) = self.batches[&slice.batch];
            for index in slice.changes.iter() {
                let at = (log, first + index as usize);
                let state = &mut self.state[log][at.1];
                assert!(!state.0, "change {at:?} was emitted twice");
                state.0 = true;
                let change = &self.history.logs[log].changes[at.1];
                let stored = self.committed.get(&(unit.lane, log));
                if stored.is_some_and(|p| change.rank <= p.position.rank) {
                    assert!(state.1, "{change:?} is skipped and was not applied, lane {} has {stored:?}", unit.lane);
                } else {
                    assert!(!state.1, "{change:?} is applied twice, lane {} has {stored:?}", unit.lane);
                    changes.push(at);
                }
            }
        }
        assert!(unit.part.ends() || unit.progress.is_empty(), "progress amid a target transaction");
        let goes_on = unit.part == Part::Last && self.emitted.last().is_some_and(|e| e.skipped);
        let skipped = changes.is_empty() && (!unit.slices.is_empty() || goes_on);
        if skipped {
            unit.transactions = 0;
        }
        // As the lane of the runtime does it.
        unit.progress.retain_mut(|p| {
            let stored = self.committed.get(&(unit.lane, place(self.history, &p.partition)));
            p.safe_time = p.safe_time.max(stored.and_then(|s| s.safe_time));
            stored.is_none_or(|stored| p.position.rank > stored.position.rank)
        });
        self.emitted.push(Emitted { unit, changes, emitted: self.step, completed: None, skipped });
        let lanes: std::collections::BTreeSet<u32> = self.emitted.iter().map(|e| e.unit.lane).collect();
        for lane in lanes {
            let flying = self.flying().filter(|e| e.unit.lane == lane && e.unit.part.ends()).count();
            assert!(flying <= 2, "{flying} units in flight on lane {lane}");
        }
    }

    fn flying(&self) -> impl Iterator<Item = &Emitted> {
        self.emitted.iter().filter(|e| e.completed.is_none())
    }

    /// The first unit in flight of each lane, where it can be completed now.
    fn completable(&self) -> Vec<UnitId> {
        let mut first: BTreeMap<u32, UnitId> = BTreeMap::new();
        for e in self.flying() {
            first.entry(e.unit.lane).or_insert(e.unit.id);
        }
        let can = |lane: u32| {
            let mut units = self.flying().filter(|e| e.unit.lane == lane);
            self.early_parts || units.any(|e| e.unit.part.ends())
        };
        first.into_iter().filter(|(lane, _)| can(*lane)).map(|(_, id)| id).collect()
    }

    fn complete(&mut self, id: UnitId) {
        let mut at = self.emitted.iter().position(|e| e.unit.id == id).expect("an emitted unit");
        let lane = self.emitted[at].unit.lane;
        loop {
            if self.emitted[at].unit.lane == lane {
                self.emitted[at].completed = Some(self.step);
                for &(log, change) in &self.emitted[at].changes {
                    self.state[log][change].1 = true;
                }
                let (id, ends) = (self.emitted[at].unit.id, self.emitted[at].unit.part.ends());
                self.orderer.complete(id);
                if ends || self.early_parts {
                    return;
                }
            }
            at += 1;
        }
    }

    fn check_low(&mut self) {
        let low = self.orderer.low_watermark().clone();
        for (id, progress) in &low {
            let log = place(self.history, id);
            if let Some(before) = self.low.get(id) {
                assert!(progress.position.rank >= before.position.rank, "{id} went back");
                assert!(progress.safe_time >= before.safe_time, "the safe time of {id} went back");
            }
            let open: Vec<&Emitted> = self.flying().collect();
            for (at, state) in self.state[log].iter().enumerate() {
                let change = &self.history.logs[log].changes[at];
                let passed = change.rank <= progress.position.rank || Some(change.commit_time) <= progress.safe_time;
                assert!(!passed || state.1, "{change:?} is not complete, low is {progress:?}, in flight {open:?}");
            }
        }
        self.low = low;
    }

    fn check_end(&self) {
        for (at, log) in self.history.logs.iter().enumerate() {
            assert!(self.opened[at] && self.pushed[at] == log.batches.len(), "{:?} was not read", log.partition);
            assert!(self.state[at].iter().all(|s| s.0 && s.1), "a change of {:?} was lost", log.partition);
            let end = log.batches.last().expect("a last heartbeat");
            let low = self.low.get(&log.partition.id).expect("low reaches the end");
            assert_eq!((&low.position, low.safe_time), (end.end(), end.safe_time()));
        }
        self.check_progress();
    }

    /// What a lane stores is exact: all that it was given until then, and nothing of what it is given later.
    fn check_progress(&self) {
        let mut stored = self.committed.clone();
        let mut pending: HashMap<u32, Vec<At>> = HashMap::new();
        for e in &self.emitted {
            let lane = e.unit.lane;
            for &(log, at) in &e.changes {
                let change = self.change((log, at));
                if let Some(p) = stored.get(&(lane, log)) {
                    assert!(change.rank > p.position.rank, "lane {lane} was told {p:?}, then given {change:?}");
                    assert!(
                        Some(change.commit_time) > p.safe_time,
                        "lane {lane} was told {p:?}, then given {change:?}"
                    );
                }
            }
            pending.entry(lane).or_default().extend(&e.changes);
            if !e.unit.part.ends() {
                continue;
            }
            for p in &e.unit.progress {
                let log = place(self.history, &p.partition);
                if let Some(old) = stored.insert((lane, log), p.clone()) {
                    assert!(old.position.rank <= p.position.rank && old.safe_time <= p.safe_time);
                }
            }
            for at in pending.remove(&lane).unwrap_or_default() {
                let p = stored.get(&(lane, at.0)).expect("progress of a partition with changes");
                let rank = &self.change(at).rank;
                assert!(*rank <= p.position.rank, "{rank:?} is committed and would be given again after {p:?}");
            }
        }
    }
}

fn place(history: &History, partition: &PartitionId) -> usize {
    history.logs.iter().position(|l| l.partition.id == *partition).expect("a known partition")
}

/// The changes that sort by `key`, in that order.
pub(crate) fn sorted<K: Ord>(history: &History, key: impl Fn(&Change) -> K) -> Vec<At> {
    let mut all: Vec<At> = Vec::new();
    for (log, l) in history.logs.iter().enumerate() {
        all.extend((0..l.changes.len()).map(|c| (log, c)));
    }
    all.sort_by_key(|&(l, c)| key(&history.logs[l].changes[c]));
    all
}

/// How many transactions the history has, as far as they have changes.
pub(crate) fn transactions(history: &History) -> u64 {
    let all: std::collections::BTreeSet<usize> =
        history.logs.iter().flat_map(|l| l.changes.iter().map(|c| c.transaction)).collect();
    all.len() as u64
}

/// Whole transactions, in order, and parts of one only where they must be.
pub(crate) fn check_transactions(history: &History, emitted: &[Emitted], max_changes: usize) {
    let order: Vec<At> = emitted.iter().flat_map(|e| e.changes.iter().copied()).collect();
    assert_eq!(order, sorted(history, |c| (c.transaction, c.sequence)));
    let transaction = |at: &At| history.logs[at.0].changes[at.1].transaction;
    let mut open: Option<usize> = None;
    for (n, e) in emitted.iter().enumerate() {
        assert!(e.changes.len() <= max_changes);
        let first = e.changes.first().map(transaction);
        let last = e.changes.last().map(transaction);
        match e.unit.part {
            Part::Whole => assert!(open.is_none() && first.is_some()),
            Part::First => {
                assert!(open.is_none() && first == last);
                open = first;
            }
            Part::Middle => assert!(open.is_some() && first == open && last == open),
            Part::Last => {
                assert!(open.is_some() && (first.is_none() || first == open && last == open));
                open = None;
            }
        }
        if e.unit.part.ends() {
            let next = emitted[n + 1..].iter().find_map(|e| e.changes.first()).map(transaction);
            assert!(next.is_none() || last.is_none() || next > last, "a transaction was cut");
        }
    }
    assert_eq!(emitted.iter().map(|e| e.unit.transactions).sum::<u64>(), transactions(history));
}
