//! What a pipeline's status says, as figures.

use std::sync::Arc;

use metrics::{Counter, Gauge, counter, gauge};

use super::*;
use crate::model::{Counters, Timestamp};
use crate::pipeline::{Phase, ShardPhase, ShardState, SnapshotState};
use crate::source::RetentionLeft;

/// The figures of one pipeline. They are set where the status is, so the two cannot differ.
#[derive(Debug)]
pub(crate) struct Meters {
    pipeline: Arc<str>,
    changes: Counter,
    transactions: Counter,
    snapshot_rows: Counter,
    stale: Counter,
    filtered: Counter,
    skipped: Counter,
    dead_letters: Counter,
    waiting: Gauge,
    open_dead_letters: Gauge,
    partitions: Gauge,
}

impl Meters {
    pub(crate) fn new(pipeline: &Arc<str>) -> Self {
        let counts = |name: &'static str| counter!(name, "pipeline" => Arc::clone(pipeline));
        let shows = |name: &'static str| gauge!(name, "pipeline" => Arc::clone(pipeline));
        Self {
            changes: counts(CHANGES),
            transactions: counts(TRANSACTIONS),
            snapshot_rows: counts(SNAPSHOT_ROWS),
            stale: counts(STALE),
            filtered: counts(FILTERED),
            skipped: counts(SKIPPED),
            dead_letters: counts(DEAD_LETTERS),
            waiting: shows(WAITING_CHANGES),
            open_dead_letters: shows(OPEN_DEAD_LETTERS),
            partitions: shows(PARTITIONS),
            pipeline: Arc::clone(pipeline),
        }
    }

    fn shows(&self, name: &'static str) -> Gauge {
        gauge!(name, "pipeline" => Arc::clone(&self.pipeline))
    }

    fn shows_of(&self, name: &'static str, label: &'static str, value: &str) -> Gauge {
        gauge!(name, "pipeline" => Arc::clone(&self.pipeline), label => value.to_owned())
    }

    pub(crate) fn phase(&self, now: Phase) {
        for phase in Phase::ALL {
            self.shows_of(PHASE, "phase", phase.name()).set(if phase == now { 1.0 } else { 0.0 });
        }
    }

    pub(crate) fn epoch(&self, epoch: u64) {
        self.shows(EPOCH).set(epoch as f64);
    }

    pub(crate) fn counters(&self, counters: &Counters) {
        // What was applied since the pipeline exists, which survives restarts: set, not added to.
        self.changes.absolute(counters.changes);
        self.transactions.absolute(counters.transactions);
        self.snapshot_rows.absolute(counters.snapshot_rows);
        self.stale.absolute(counters.stale);
        self.filtered.absolute(counters.filtered);
        self.skipped.absolute(counters.skipped);
        self.dead_letters.absolute(counters.dead_letters);
    }

    pub(crate) fn watermark(&self, safe_time: Option<Timestamp>, waiting: u64, open_letters: u64, partitions: usize) {
        self.waiting.set(waiting as f64);
        self.open_dead_letters.set(open_letters as f64);
        self.partitions.set(partitions as f64);
        if let Some(time) = safe_time {
            self.shows(SAFE_TIME).set(seconds(time));
        }
    }

    pub(crate) fn open_dead_letters(&self, open: u64) {
        self.open_dead_letters.set(open as f64);
    }

    pub(crate) fn lag_bytes(&self, bytes: u64) {
        self.shows(LAG_BYTES).set(bytes as f64);
    }

    pub(crate) fn retention(&self, left: &RetentionLeft) {
        let figures = [
            (RETENTION_HELD_BYTES, left.held_bytes.map(|b| b as f64)),
            (RETENTION_LEFT_BYTES, left.bytes.map(|b| b as f64)),
            (RETENTION_LEFT_SECONDS, left.seconds),
        ];
        for (name, value) in figures {
            if let Some(value) = value {
                self.shows(name).set(value);
            }
        }
    }

    pub(crate) fn snapshot(&self, state: &SnapshotState) {
        self.shows_of(SNAPSHOT_TABLES, "state", "planned").set(state.tables as f64);
        self.shows_of(SNAPSHOT_TABLES, "state", "done").set(state.tables_done as f64);
        self.shows_of(SNAPSHOT_CHUNKS, "state", "planned").set(f64::from(state.chunks));
        self.shows_of(SNAPSHOT_CHUNKS, "state", "done").set(f64::from(state.chunks_done));
    }

    pub(crate) fn shard(&self, name: &str, state: &ShardState) {
        let halted = if state.phase == ShardPhase::Halted { 1.0 } else { 0.0 };
        self.shows_of(SHARD_HALTED, "shard", name).set(halted);
        for (class, open) in [("retryable", state.retryable), ("severe", state.severe)] {
            let (pipeline, shard) = (Arc::clone(&self.pipeline), name.to_owned());
            gauge!(SHARD_DEAD_LETTERS, "pipeline" => pipeline, "shard" => shard, "class" => class).set(open as f64);
        }
        if let Some(time) = state.safe_time {
            self.shows_of(SHARD_SAFE_TIME, "shard", name).set(seconds(time));
        }
    }
}

/// Seconds since 1970, as collectors write times.
pub(super) fn seconds(time: Timestamp) -> f64 {
    time.as_micros() as f64 / 1e6
}
