//! What the tasks of a run and its handle share.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::status::{Known, PartitionState, Phase, ShardState, SnapshotState, Status, lag_seconds, skew_seconds};
use super::stored::Stored;
use crate::control::drain::Durable;
use crate::error::{Error, ErrorKind};
use crate::metrics::{Health, Meters, Pulse};
use crate::model::{
    ChangeBatch, Checkpoint, Counters, PartitionId, Position, SnapshotProgress, SourceIdentity, TableName, Timestamp,
};
use crate::runtime::leave_alone;
use crate::source::{RetentionLeft, Source};

/// What the tasks of a run and its handle share. Locks are held for a copy, never over an await.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    /// The figures of what is shown here. A part of a pipeline has none: the whole shows its own.
    meters: Option<Meters>,
    pulse: Arc<Pulse>,
    progressed: AtomicBool,
    watermark: watch::Sender<Watermark>,
    phase: watch::Sender<Phase>,
}

#[derive(Debug, Default)]
struct State {
    epoch: u64,
    identity: SourceIdentity,
    safe_time: Option<Timestamp>,
    lag_bytes: Option<u64>,
    lag_changes: u64,
    counters: Counters,
    dead_letters_open: u64,
    retention: Option<RetentionLeft>,
    snapshot: Option<SnapshotState>,
    last_error: Option<(ErrorKind, String)>,
    failures: u32,
    /// Tables that appeared in the stream and were not there when the run began.
    new_tables: HashSet<TableName>,
    shards: BTreeMap<String, ShardState>,
    shard_health: BTreeMap<usize, ShardHealth>,
    /// A halted shard answers again: the next attempt takes it in.
    resuming: bool,
}

/// How often a shard failed since it worked last.
#[derive(Debug, Clone)]
struct ShardHealth {
    failures: u32,
    reason: String,
    /// It is not asked before.
    ask_at: Instant,
    /// It has answered since it failed last.
    answers: bool,
}

/// What is durable in the target.
#[derive(Debug, Clone, Default)]
pub(crate) struct Watermark {
    pub(crate) durable: Durable,
    pub(crate) safe_times: BTreeMap<PartitionId, Timestamp>,
    pub(crate) owners: BTreeMap<PartitionId, String>,
}

impl Shared {
    /// Whether this table has not been asked about since the pipeline was started.
    pub(crate) fn first_sight(&self, table: &TableName) -> bool {
        self.with(|s| s.new_tables.insert(table.clone()))
    }

    pub(crate) fn new(pipeline: &Arc<str>) -> Self {
        Self::with_pulse(Some(Meters::new(pipeline)), Arc::new(Pulse::new(pipeline)))
    }

    /// Of a part of this pipeline: its signs of life are the whole's.
    pub(crate) fn part(&self) -> Self {
        Self::with_pulse(None, self.pulse())
    }

    fn with_pulse(meters: Option<Meters>, pulse: Arc<Pulse>) -> Self {
        Self {
            state: Mutex::default(),
            meters,
            pulse,
            progressed: AtomicBool::new(false),
            watermark: watch::Sender::default(),
            phase: watch::Sender::new(Phase::Starting),
        }
    }

    pub(crate) fn pulse(&self) -> Arc<Pulse> {
        Arc::clone(&self.pulse)
    }

    fn measure(&self, set: impl FnOnce(&Meters)) {
        if let Some(meters) = &self.meters {
            set(meters);
        }
    }

    pub(crate) fn phase(&self, phase: Phase) {
        if phase == Phase::Streaming {
            // Nothing is streamed before every table is copied.
            self.with(|s| s.snapshot.iter_mut().for_each(|snapshot| snapshot.done = true));
        }
        let before = self.phase.send_replace(phase);
        self.pulse.phase(before, phase);
        self.measure(|m| m.phase(phase));
    }

    /// Whether the data path lives: nothing may be silent for longer than `bound`.
    pub(crate) fn health(&self, bound: Duration) -> Health {
        let (waiting, last) = self.with(|s| (s.lag_changes, s.last_error.as_ref().map(|(_, text)| text.clone())));
        let phase = *self.phase.borrow();
        self.pulse.health(phase, waiting, last.as_deref(), bound)
    }

    pub(crate) fn phases(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    pub(crate) fn watermarks(&self) -> watch::Receiver<Watermark> {
        self.watermark.subscribe()
    }

    pub(crate) fn opened(&self, checkpoint: &Checkpoint, counters: Counters) {
        self.measure(|m| {
            m.epoch(checkpoint.epoch);
            m.counters(&counters);
            m.snapshot(&SnapshotState::from(&checkpoint.snapshot));
        });
        self.with(|s| {
            s.epoch = checkpoint.epoch;
            s.identity = checkpoint.identity.clone();
            s.counters = counters;
            s.snapshot = Some(SnapshotState::from(&checkpoint.snapshot));
        });
    }

    pub(crate) fn copied(&self, counters: Counters, snapshot: &SnapshotProgress) {
        self.progressed();
        let state = SnapshotState::from(snapshot);
        self.measure(|m| {
            m.counters(&counters);
            m.snapshot(&state);
        });
        self.with(|s| {
            s.counters = counters;
            s.snapshot = Some(state);
        });
    }

    /// The source has given a batch, if only an empty one.
    pub(crate) fn heard(&self, batch: &ChangeBatch) {
        self.pulse.read(batch);
        if let Some(bytes) = batch.lag_bytes() {
            self.measure(|m| m.lag_bytes(bytes));
            self.with(|s| s.lag_bytes = Some(bytes));
        }
    }

    pub(crate) fn retention(&self, left: RetentionLeft) {
        self.measure(|m| m.retention(&left));
        self.with(|s| s.retention = Some(left));
    }

    pub(crate) fn watermark(&self, now: Watermark, safe_time: Option<Timestamp>, counters: Counters, waiting: u64) {
        self.measure(|m| {
            m.counters(&counters);
            m.watermark(safe_time, waiting, now.durable.dead_letters_open, now.durable.open.len());
        });
        self.with(|s| {
            // Never backwards, also when a replay begins behind what was shown before.
            s.safe_time = s.safe_time.max(safe_time);
            s.counters = counters;
            s.lag_changes = waiting;
            s.dead_letters_open = now.durable.dead_letters_open;
        });
        self.watermark.send_replace(now);
    }

    /// How far the parts of this run are together: the figures of the whole.
    pub(crate) fn told(&self, status: &Status) {
        self.measure(|m| {
            m.epoch(status.epoch);
            m.counters(&status.counters);
            m.watermark(status.safe_time, status.lag_changes, status.dead_letters_open, status.partitions.len());
            status.shards.iter().for_each(|(name, state)| m.shard(name, state));
        });
        // Whether it lives depends on it.
        self.with(|s| s.lag_changes = status.lag_changes);
    }

    /// Changes received and not yet applied.
    pub(crate) fn waiting(&self) -> u64 {
        self.with(|s| s.lag_changes)
    }

    /// Something was made durable.
    pub(crate) fn progressed(&self) {
        self.progressed.store(true, Ordering::Relaxed);
        self.pulse.progressed();
    }

    pub(crate) fn take_progressed(&self) -> bool {
        self.progressed.swap(false, Ordering::Relaxed)
    }

    pub(crate) fn failed(&self, error: &Error, failures: u32) {
        self.pulse.failed(error.kind());
        self.with(|s| {
            s.last_error = Some((error.kind(), error.report()));
            s.failures = failures;
        });
    }

    /// What dead letters that were tried again have come to.
    pub(crate) fn replayed(&self, counters: Counters, dead_letters_open: u64) {
        self.progressed();
        // Nothing is read from the source meanwhile.
        self.pulse.heard();
        self.measure(|m| {
            m.counters(&counters);
            m.open_dead_letters(dead_letters_open);
        });
        self.with(|s| (s.counters, s.dead_letters_open) = (counters, dead_letters_open));
    }

    /// A shard failed. How often it has, since it worked last.
    pub(crate) fn shard_failed(&self, shard: usize, reason: &str) -> u32 {
        self.with(|s| {
            let fresh = ShardHealth { failures: 0, reason: String::new(), ask_at: Instant::now(), answers: false };
            let health = s.shard_health.entry(shard).or_insert(fresh);
            health.failures += 1;
            reason.clone_into(&mut health.reason);
            health.answers = false;
            health.ask_at = Instant::now() + leave_alone(health.failures);
            health.failures
        })
    }

    /// A shard has made something durable.
    pub(crate) fn shard_works(&self, shard: usize) {
        self.with(|s| s.shard_health.remove(&shard));
    }

    /// Shards that have failed this often and did not answer since, with the reason.
    pub(crate) fn halted_shards(&self, failures: u32) -> BTreeMap<usize, String> {
        self.with(|s| {
            let halted = s.shard_health.iter().filter(|(_, h)| h.failures >= failures && !h.answers);
            halted.map(|(shard, h)| (*shard, h.reason.clone())).collect()
        })
    }

    pub(crate) fn may_ask(&self, shard: usize) -> bool {
        self.with(|s| s.shard_health.get(&shard).is_none_or(|h| h.ask_at <= Instant::now()))
    }

    /// A halted shard answers: the next attempt begins at once.
    pub(crate) fn shard_answers(&self, shard: usize) {
        self.with(|s| {
            s.resuming = true;
            if let Some(health) = s.shard_health.get_mut(&shard) {
                health.answers = true;
            }
        });
    }

    pub(crate) fn still_halted(&self, shard: usize, reason: &str) {
        self.with(|s| {
            if let Some(health) = s.shard_health.get_mut(&shard) {
                reason.clone_into(&mut health.reason);
                health.ask_at = Instant::now() + leave_alone(health.failures);
            }
        });
    }

    pub(crate) fn take_resuming(&self) -> bool {
        self.with(|s| std::mem::take(&mut s.resuming))
    }

    /// Shows how far each shard is.
    pub(crate) fn shards(&self, names: &[Arc<str>], known: Known<'_>, safe_time: Option<Timestamp>) {
        let state = |(at, name): (usize, &Arc<str>)| {
            let counters = known.counters.get(&**name).copied().unwrap_or_default();
            let letters = known.letters.get(&**name).copied().unwrap_or_default();
            let halted = known.halted.get(&at).cloned();
            (name.to_string(), ShardState::new(halted, known.waits[at], counters, letters, safe_time))
        };
        let shards: BTreeMap<String, ShardState> = names.iter().enumerate().map(state).collect();
        self.measure(|m| shards.iter().for_each(|(name, state)| m.shard(name, state)));
        self.with(|s| s.shards = shards);
    }

    pub(crate) fn status(&self, pipeline: &str, source: &dyn Source) -> Status {
        let partitions = self.watermark.borrow().states(source);
        let phase = *self.phase.borrow();
        let skew_seconds = skew_seconds(&partitions);
        self.with(|s| Status {
            pipeline: pipeline.to_owned(),
            phase,
            last_seen: Some(Timestamp::now()),
            epoch: s.epoch,
            safe_time: s.safe_time,
            lag_seconds: lag_seconds(s.safe_time),
            lag_bytes: s.lag_bytes,
            lag_changes: s.lag_changes,
            skew_seconds,
            counters: s.counters,
            dead_letters_open: s.dead_letters_open,
            retention: s.retention.clone().map(|left| left.counted_down(s.safe_time)),
            snapshot: s.snapshot,
            partitions,
            shards: s.shards.clone(),
            identity: s.identity.clone(),
            last_error: s.last_error.as_ref().map(|(_, text)| text.clone()),
            last_error_kind: s.last_error.as_ref().map(|(kind, _)| *kind),
            failures: s.failures,
        })
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        // Every update writes whole values: a panic under the lock leaves nothing half done.
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Watermark {
    pub(super) fn states(&self, source: &dyn Source) -> BTreeMap<PartitionId, PartitionState> {
        let state = |(id, position): (&PartitionId, &Option<Position>)| {
            let owner = self.owners.get(id).cloned();
            let position = match position {
                Some(position) => source.describe(position),
                None => "its start".to_owned(),
            };
            let safe_time = self.safe_times.get(id).copied();
            (id.clone(), PartitionState { position, safe_time, lag_seconds: lag_seconds(safe_time), owner })
        };
        self.durable.open.iter().map(state).collect()
    }

    /// What the stores tell, as a watermark.
    pub(crate) fn of(stored: &Stored, dead_letters_open: u64) -> Self {
        let safe_times = stored.open().filter_map(|(id, p)| Some((id.clone(), p.safe_time?))).collect();
        Self { durable: stored.durable(dead_letters_open), safe_times, owners: stored.owners.clone() }
    }
}
