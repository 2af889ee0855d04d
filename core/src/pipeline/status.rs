//! What a pipeline tells of itself.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::Spec;
use super::stored::{self, Stored};
use crate::control::drain::Durable;
use crate::dead_letter::{DeadLetterStore, LetterState};
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::{Health, Meters, Pulse};
use crate::model::{
    ChangeBatch, Checkpoint, Counters, PartitionId, Position, SnapshotPhase, SnapshotProgress, SourceIdentity,
    TableName, Timestamp,
};
use crate::runtime::{OpenLetters, leave_alone};
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
    /// Waiting for an operator who has paused it.
    Paused,
    /// Ended on request, or done.
    Stopped,
    /// Ended by an error.
    Failed,
}

impl Phase {
    /// Every phase.
    pub const ALL: [Self; 7] =
        [Self::Starting, Self::Snapshot, Self::Streaming, Self::Retrying, Self::Paused, Self::Stopped, Self::Failed];

    /// Its name, as in JSON and in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Snapshot => "snapshot",
            Self::Streaming => "streaming",
            Self::Retrying => "retrying",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }
}

/// How far a pipeline is. Times are of the source's clock unless said otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The pipeline's name.
    pub pipeline: String,
    /// What it is doing.
    pub phase: Phase,
    /// When the process that runs it was last seen: now, if that is this one; else when it last stored
    /// anything, by its own clock, which it does every ten seconds at least.
    #[serde(default)]
    pub last_seen: Option<Timestamp>,
    /// The fencing epoch of this run.
    pub epoch: u64,
    /// Every source transaction committed at or before this time is in the target. `None` while
    /// that is not so of any time: during a snapshot, or before the first word from the source.
    pub safe_time: Option<Timestamp>,
    /// Seconds from safe time to this machine's clock.
    pub lag_seconds: Option<f64>,
    /// Bytes of log that the source has written after what was received last.
    pub lag_bytes: Option<u64>,
    /// Changes received and not yet applied. Only the process that runs the pipeline knows: 0 elsewhere.
    pub lag_changes: u64,
    /// Seconds from the safe time of the partition that is furthest behind to that of the one that is
    /// furthest ahead.
    #[serde(default)]
    pub skew_seconds: Option<f64>,
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
    /// How far each shard of a sharded target is.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub shards: BTreeMap<String, ShardState>,
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
    /// Seconds from that time to this machine's clock.
    #[serde(default)]
    pub lag_seconds: Option<f64>,
    /// The worker that has it, where several share the partitions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

/// What a shard is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShardPhase {
    /// Changes are applied as they come.
    Running,
    /// It has refused a change: all later ones of it wait in the dead-letter store.
    Waiting,
    /// It does not answer: its changes are parked in the dead-letter store. Where each shard has a pipeline of
    /// its own: that ended by an error.
    Halted,
    /// Where each shard has a pipeline of its own: that was stopped in an orderly way.
    Stopped,
    /// There: an operator has marked it, for a run of the mode `reprocess`.
    Reprocess,
}

impl ShardPhase {
    /// Its name, as in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Halted => "halted",
            Self::Stopped => "stopped",
            Self::Reprocess => "reprocess",
        }
    }
}

/// How far a shard is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShardState {
    /// What it is doing.
    pub phase: ShardPhase,
    /// Why it is not running.
    pub reason: Option<String>,
    /// What was applied and left out since the pipeline exists; of a halted shard, as far as it told last.
    pub counters: Counters,
    /// Its dead letters that are tried again by themselves, with what waits behind others.
    pub retryable: u64,
    /// Its dead letters that need a person.
    pub severe: u64,
    /// Everything that was committed for it at or before this time is in it.
    pub safe_time: Option<Timestamp>,
    /// Seconds from that time to this machine's clock.
    pub lag_seconds: Option<f64>,
}

impl ShardState {
    /// Of a shard of which nothing is known yet.
    pub(super) fn unknown() -> Self {
        Self::new(None, false, Counters::default(), OpenLetters::default(), None)
    }

    fn new(
        halted: Option<String>,
        waits: bool,
        counters: Counters,
        letters: OpenLetters,
        safe_time: Option<Timestamp>,
    ) -> Self {
        let phase = match (&halted, waits) {
            (Some(_), _) => ShardPhase::Halted,
            (None, true) => ShardPhase::Waiting,
            (None, false) => ShardPhase::Running,
        };
        // What is older than its oldest letter is in it.
        let before = letters.oldest.map(|t| t.minus_micros(1));
        let safe_time = match before {
            Some(before) => safe_time.map(|t| t.min(before)),
            None => safe_time,
        };
        Self {
            phase,
            reason: halted,
            counters,
            retryable: letters.retryable,
            severe: letters.severe,
            safe_time,
            lag_seconds: lag_seconds(safe_time),
        }
    }
}

/// What a run knows of its shards.
pub(crate) struct Known<'a> {
    pub(crate) counters: BTreeMap<String, Counters>,
    pub(crate) halted: &'a BTreeMap<usize, String>,
    pub(crate) letters: BTreeMap<String, OpenLetters>,
    /// Those whose changes wait behind letters.
    pub(crate) waits: Vec<bool>,
}

impl Status {
    /// Of a pipeline of which nothing is known but its name.
    pub(super) fn unknown(pipeline: &str) -> Self {
        Self {
            pipeline: pipeline.to_owned(),
            phase: Phase::Stopped,
            last_seen: None,
            epoch: 0,
            safe_time: None,
            lag_seconds: None,
            lag_bytes: None,
            lag_changes: 0,
            skew_seconds: None,
            counters: Counters::default(),
            dead_letters_open: 0,
            retention: None,
            snapshot: None,
            partitions: BTreeMap::new(),
            shards: BTreeMap::new(),
            identity: SourceIdentity::default(),
            last_error: None,
            last_error_kind: None,
            failures: 0,
        }
    }

    /// With this safe time, and what follows from it.
    pub(super) fn with_safe_time(self, safe_time: Option<Timestamp>) -> Self {
        let skew_seconds = skew_seconds(&self.partitions);
        Self { safe_time, lag_seconds: lag_seconds(safe_time), skew_seconds, ..self }
    }
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

fn skew_seconds(partitions: &BTreeMap<PartitionId, PartitionState>) -> Option<f64> {
    let times = || partitions.values().filter_map(|p| p.safe_time);
    Some(times().max()?.micros_since(times().min()?) as f64 / 1e6)
}

fn lag_seconds(safe_time: Option<Timestamp>) -> Option<f64> {
    safe_time.map(|t| (Timestamp::now().micros_since(t) as f64 / 1e6).max(0.0))
}

impl Watermark {
    fn states(&self, source: &dyn Source) -> BTreeMap<PartitionId, PartitionState> {
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

/// What the stores tell of a pipeline that runs elsewhere, or not at all. Its phase is the one in which
/// its process was last seen: `Stopped` only after an orderly end, `Paused` if an operator said so. The
/// stores do not know whether a process is alive, but when it last was.
pub(crate) async fn from_stores(spec: &Spec) -> Result<Option<Status>> {
    let (loaded, silent) = match stored::load(spec).await {
        // A target that is down must not hide how far the pipeline is, where the checkpoint lies elsewhere.
        Err(e) if e.kind() == ErrorKind::Transient => match stored::load_without_target(spec).await {
            Ok(loaded) => (loaded, Some(e)),
            Err(_) => return Err(e),
        },
        other => (other?, None),
    };
    let Some(stored) = loaded else { return Ok(None) };
    let open = match &spec.dead_letters {
        Some(store) => match store.open_count(&spec.name).await {
            Err(_) if silent.is_some() => stored.checkpoint.counters.dead_letters,
            other => other?,
        },
        None => 0,
    };
    let safe_time = stored.safe_time();
    let retention = retention(spec).await.map(|left| left.counted_down(safe_time));
    let partitions = Watermark::of(&stored, open).states(spec.source.as_ref());
    let letters = match &spec.dead_letters {
        Some(store) if !stored.shards.is_empty() && open > 0 => open_by_shard(store.as_ref(), &spec.name).await?,
        _ => BTreeMap::new(),
    };
    let shard = |shard: stored::ShardTold| {
        let letters = letters.get(&shard.name).copied().unwrap_or_default();
        let waits = letters.retryable + letters.severe > 0;
        (shard.name, ShardState::new(shard.silent, waits, shard.counters, letters, safe_time))
    };
    let shards = stored.shards.into_iter().map(shard).collect();
    let checkpoint = stored.checkpoint;
    Ok(Some(Status {
        pipeline: spec.name.to_string(),
        phase: match checkpoint.snapshot.phase {
            _ if checkpoint.paused => Phase::Paused,
            _ if checkpoint.ended => Phase::Stopped,
            SnapshotPhase::Pending => Phase::Starting,
            SnapshotPhase::Copying => Phase::Snapshot,
            SnapshotPhase::Done => Phase::Streaming,
        },
        last_seen: checkpoint.saved_at,
        epoch: checkpoint.epoch,
        safe_time,
        lag_seconds: lag_seconds(safe_time),
        lag_bytes: retention.as_ref().and_then(|left| left.unread_bytes),
        lag_changes: 0,
        skew_seconds: skew_seconds(&partitions),
        counters: checkpoint.counters,
        dead_letters_open: open,
        retention,
        snapshot: Some(SnapshotState::from(&checkpoint.snapshot)),
        partitions,
        shards,
        identity: checkpoint.identity,
        last_error: silent.as_ref().map(Error::report),
        last_error_kind: silent.as_ref().map(Error::kind),
        failures: 0,
    }))
}

/// How long the source may take to say what it keeps: a status is not to wait for one that is down.
const ANSWER: Duration = Duration::from_secs(5);

/// What the source keeps, if it can say.
async fn retention(spec: &Spec) -> Option<RetentionLeft> {
    timeout(ANSWER, spec.source.retention()?.left()).await.ok()?.ok()
}

/// Open letters by shard, page by page.
async fn open_by_shard(store: &dyn DeadLetterStore, pipeline: &str) -> Result<BTreeMap<String, OpenLetters>> {
    let mut open: BTreeMap<String, OpenLetters> = BTreeMap::new();
    let mut after: Option<String> = None;
    loop {
        let page = store.list(pipeline, &[LetterState::Open, LetterState::Held], after.as_deref(), 500).await?;
        let Some(last) = page.last() else { return Ok(open) };
        after = Some(last.id.clone());
        for letter in &page {
            open.entry(letter.shard.clone().unwrap_or_default()).or_default().add(letter);
        }
    }
}
