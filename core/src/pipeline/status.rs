//! What a pipeline tells of itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::ErrorKind;
use crate::model::{Counters, PartitionId, SnapshotPhase, SnapshotProgress, SourceIdentity, Timestamp};
use crate::runtime::OpenLetters;
use crate::source::RetentionLeft;

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

    pub(super) fn new(
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

pub(super) fn skew_seconds(partitions: &BTreeMap<PartitionId, PartitionState>) -> Option<f64> {
    let times = || partitions.values().filter_map(|p| p.safe_time);
    Some(times().max()?.micros_since(times().min()?) as f64 / 1e6)
}

pub(super) fn lag_seconds(safe_time: Option<Timestamp>) -> Option<f64> {
    safe_time.map(|t| (Timestamp::now().micros_since(t) as f64 / 1e6).max(0.0))
}
