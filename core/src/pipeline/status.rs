//! What a pipeline tells of itself.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::checkpointer::Checkpointer;
use crate::dead_letter::DeadLetterStore;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{
    Checkpoint, Counters, PartitionId, Position, Progress, SnapshotPhase, SnapshotProgress, SourceIdentity, TableName,
    Timestamp,
};
use crate::sink::Sink;
use crate::source::{RetentionLeft, Source};

/// What a pipeline is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Taking over, connecting, checking.
    Starting,
    /// Copying tables.
    Snapshot,
    /// Streaming changes.
    Streaming,
    /// Waiting to begin again after an error.
    Retrying,
    /// Ended on request, or done.
    Stopped,
    /// Ended by an error.
    Failed,
}

/// How far a pipeline is. Times are of the source's clock unless said otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The pipeline's name.
    pub pipeline: String,
    /// What it is doing.
    pub phase: Phase,
    /// The fencing epoch of this run.
    pub epoch: u64,
    /// Every source transaction committed at or before this time is in the target. `None` while
    /// that is not so of any time: during a snapshot, or before the first word from the source.
    pub safe_time: Option<Timestamp>,
    /// Seconds from safe time to this machine's clock.
    pub lag_seconds: Option<f64>,
    /// Bytes of log that the source has written after what was received last.
    pub lag_bytes: Option<u64>,
    /// Changes received and not yet applied.
    pub lag_changes: u64,
    /// What was applied since the pipeline exists.
    pub counters: Counters,
    /// Dead letters that are open or held.
    pub dead_letters_open: u64,
    /// How long the source keeps what is needed.
    pub retention: Option<RetentionLeft>,
    /// The snapshot, while it runs and after.
    pub snapshot: Option<SnapshotState>,
    /// How far each partition is.
    pub partitions: BTreeMap<PartitionId, PartitionState>,
    /// The source.
    pub identity: SourceIdentity,
    /// The error that ended the last attempt, if one did.
    pub last_error: Option<String>,
    /// What that error asked for.
    pub last_error_kind: Option<ErrorKind>,
    /// Attempts that failed since the last progress.
    pub failures: u32,
}

/// How far a partition is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PartitionState {
    /// The position as the source's users write it.
    pub position: String,
    /// The partition's own safe time.
    pub safe_time: Option<Timestamp>,
}

/// How far a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotState {
    /// Tables to copy.
    pub tables: usize,
    /// Tables copied.
    pub tables_done: usize,
    /// Chunks planned.
    pub chunks: u32,
    /// Chunks copied.
    pub chunks_done: u32,
    /// Rows copied.
    pub rows: u64,
    /// Whether every table is copied.
    pub done: bool,
}

impl From<&SnapshotProgress> for SnapshotState {
    fn from(progress: &SnapshotProgress) -> Self {
        let tables = progress.tables.values();
        Self {
            tables: tables.len(),
            tables_done: tables.clone().filter(|t| t.finished).count(),
            chunks: tables.clone().map(|t| t.chunks).sum(),
            chunks_done: tables.clone().map(|t| t.done).sum(),
            rows: tables.map(|t| t.rows).sum(),
            done: progress.phase == SnapshotPhase::Done,
        }
    }
}

/// What the tasks of a run and its handle share. Locks are held for a copy, never over an await.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
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
}

/// What is durable in the target.
#[derive(Debug, Clone, Default)]
pub(crate) struct Watermark {
    pub(crate) partitions: BTreeMap<PartitionId, Progress>,
    /// Partitions that the source listed at the start and that are finished.
    pub(crate) finished: BTreeSet<PartitionId>,
    pub(crate) dead_letters_open: u64,
}

impl Shared {
    /// Whether this table has not been asked about since the pipeline was started.
    pub(crate) fn first_sight(&self, table: &TableName) -> bool {
        self.with(|s| s.new_tables.insert(table.clone()))
    }

    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::default(),
            progressed: AtomicBool::new(false),
            watermark: watch::Sender::default(),
            phase: watch::Sender::new(Phase::Starting),
        }
    }

    pub(crate) fn phase(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    pub(crate) fn phases(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    pub(crate) fn watermarks(&self) -> watch::Receiver<Watermark> {
        self.watermark.subscribe()
    }

    pub(crate) fn opened(&self, checkpoint: &Checkpoint, counters: Counters) {
        self.with(|s| {
            s.epoch = checkpoint.epoch;
            s.identity = checkpoint.identity.clone();
            s.counters = counters;
            s.snapshot = Some(SnapshotState::from(&checkpoint.snapshot));
        });
    }

    pub(crate) fn copied(&self, counters: Counters, snapshot: &SnapshotProgress) {
        self.progressed();
        self.with(|s| {
            s.counters = counters;
            s.snapshot = Some(SnapshotState::from(snapshot));
        });
    }

    pub(crate) fn heard(&self, lag_bytes: Option<u64>) {
        if lag_bytes.is_some() {
            self.with(|s| s.lag_bytes = lag_bytes);
        }
    }

    pub(crate) fn retention(&self, left: RetentionLeft) {
        self.with(|s| s.retention = Some(left));
    }

    pub(crate) fn watermark(
        &self,
        partitions: BTreeMap<PartitionId, Progress>,
        finished: BTreeSet<PartitionId>,
        safe_time: Option<Timestamp>,
        counters: Counters,
        waiting: u64,
        dead_letters_open: u64,
    ) {
        self.with(|s| {
            // Never backwards, also when a replay begins behind what was shown before.
            s.safe_time = s.safe_time.max(safe_time);
            s.counters = counters;
            s.lag_changes = waiting;
            s.dead_letters_open = dead_letters_open;
        });
        self.watermark.send_replace(Watermark { partitions, finished, dead_letters_open });
    }

    /// Something was made durable.
    pub(crate) fn progressed(&self) {
        self.progressed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn take_progressed(&self) -> bool {
        self.progressed.swap(false, Ordering::Relaxed)
    }

    pub(crate) fn failed(&self, error: &Error, failures: u32) {
        self.with(|s| {
            s.last_error = Some((error.kind(), error.report()));
            s.failures = failures;
        });
    }

    pub(crate) fn status(&self, pipeline: &str, source: &dyn Source) -> Status {
        let partitions = self.watermark.borrow().partitions.clone();
        let phase = *self.phase.borrow();
        self.with(|s| Status {
            pipeline: pipeline.to_owned(),
            phase,
            epoch: s.epoch,
            safe_time: s.safe_time,
            lag_seconds: lag_seconds(s.safe_time),
            lag_bytes: s.lag_bytes,
            lag_changes: s.lag_changes,
            counters: s.counters,
            dead_letters_open: s.dead_letters_open,
            retention: s.retention.clone(),
            snapshot: s.snapshot,
            partitions: describe(source, partitions.iter().map(|(id, p)| (id, &p.position, p.safe_time))),
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

fn lag_seconds(safe_time: Option<Timestamp>) -> Option<f64> {
    safe_time.map(|t| (Timestamp::now().micros_since(t) as f64 / 1e6).max(0.0))
}

fn describe<'a>(
    source: &dyn Source,
    all: impl Iterator<Item = (&'a PartitionId, &'a Position, Option<Timestamp>)>,
) -> BTreeMap<PartitionId, PartitionState> {
    all.map(|(id, position, safe_time)| (id.clone(), PartitionState { position: source.describe(position), safe_time }))
        .collect()
}

/// What the stores tell of a pipeline that runs elsewhere, or not at all. Its phase is `Stopped`
/// unless the snapshot is under way; the stores do not know whether a process is alive.
pub(crate) async fn from_stores(
    pipeline: &str,
    source: &dyn Source,
    sink: &dyn Sink,
    checkpointer: &dyn Checkpointer,
    dead_letters: Option<&dyn DeadLetterStore>,
) -> Result<Option<Status>> {
    let Some((_, checkpoint)) = checkpointer.load(pipeline).await? else { return Ok(None) };
    let lanes = match sink.progress() {
        Some(store) => store.read(pipeline).await?,
        None => Vec::new(),
    };
    let mut counters = checkpoint.counters;
    if !lanes.is_empty() {
        let mut sum = Counters { snapshot_rows: counters.snapshot_rows, ..Counters::default() };
        for lane in &lanes {
            sum += Counters { snapshot_rows: 0, ..lane.counters };
        }
        sum.dead_letters = counters.dead_letters;
        counters = sum;
    }
    let mut partitions = BTreeMap::new();
    for (id, p) in &checkpoint.partitions {
        let stored =
            lanes.iter().filter_map(|l| l.partitions.get(id)).min_by(|a, b| a.position.rank.cmp(&b.position.rank));
        let newer = |at: &Position| p.position.as_ref().is_none_or(|own| own.rank < at.rank);
        let (position, safe_time) = match stored.filter(|s| lanes.len() == 1 && newer(&s.position)) {
            Some(stored) => (Some(stored.position.clone()), stored.safe_time.max(p.safe_time)),
            None => (p.position.clone(), p.safe_time),
        };
        if let Some(position) = position {
            partitions.insert(id.clone(), (position, safe_time));
        }
    }
    let points = checkpoint.snapshot.tables.values().map(|t| &t.point.rank);
    let whole = points.max().is_none_or(|point| partitions.values().all(|(p, _)| p.rank >= *point));
    let done = checkpoint.snapshot.phase == SnapshotPhase::Done;
    let safe_time = partitions.values().map(|(_, t)| *t).min().flatten().filter(|_| whole && done);
    let open = match dead_letters {
        Some(store) => store.open_count(pipeline).await?,
        None => 0,
    };
    Ok(Some(Status {
        pipeline: pipeline.to_owned(),
        phase: if checkpoint.snapshot.phase == SnapshotPhase::Copying { Phase::Snapshot } else { Phase::Stopped },
        epoch: checkpoint.epoch,
        safe_time,
        lag_seconds: lag_seconds(safe_time),
        lag_bytes: None,
        lag_changes: 0,
        counters,
        dead_letters_open: open,
        retention: None,
        snapshot: Some(SnapshotState::from(&checkpoint.snapshot)),
        partitions: describe(source, partitions.iter().map(|(id, (p, t))| (id, p, *t))),
        identity: checkpoint.identity,
        last_error: None,
        last_error_kind: None,
        failures: 0,
    }))
}
