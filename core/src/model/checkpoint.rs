//! What a pipeline remembers between runs.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{PartitionId, Position, Rank, TableName, Timestamp};
use crate::error::{Error, Result};

/// Everything that a pipeline needs to go on where it stopped. Stored as JSON; unknown fields of a
/// newer library are refused by [`Checkpoint::format`], missing ones of an older one get their defaults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The version of this form; 1 now.
    pub format: u32,
    /// The fencing epoch: each run takes the next one, and sinks refuse writes of an older one.
    pub epoch: u64,
    /// Which source this is; a different one at the next start is an error.
    #[serde(default)]
    pub identity: SourceIdentity,
    /// The order and its number of lanes; they change only when drained.
    #[serde(default)]
    pub order: String,
    /// Number of lanes.
    #[serde(default)]
    pub lanes: u32,
    /// Which lane a table's rows go to; like the lanes it changes only when drained.
    #[serde(default)]
    pub routing: String,
    /// How far each partition is.
    #[serde(default)]
    pub partitions: BTreeMap<PartitionId, PartitionProgress>,
    /// How far the snapshot is.
    #[serde(default)]
    pub snapshot: SnapshotProgress,
    /// What was applied since the pipeline exists.
    #[serde(default)]
    pub counters: Counters,
    /// Of it, what each shard of the target has counted: told while it does not answer.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub shards: BTreeMap<String, Counters>,
    /// Of each lane of a target that stores progress: what is durable there for sure. A target that has less
    /// has gone back: it was restored from a backup, or failed over to a replica that lacked changes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reached: Vec<LaneReached>,
    /// An operator paused the pipeline.
    #[serde(default)]
    pub paused: bool,
    /// When it was saved, by the clock of the machine that saved it.
    #[serde(default)]
    pub saved_at: Option<Timestamp>,
    /// Whether the run that saved it ended then, on request or because it was done.
    #[serde(default)]
    pub ended: bool,
    /// Set where several workers share the partitions of the source; see [`leases`](crate::leases).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sharing: Option<Sharing>,
}

/// What a lane has stored in the target, with the rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneReached {
    /// The shard of the target; `None` where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<String>,
    /// The lane, of those of the shard.
    pub lane: u32,
    /// The partition of which it stored progress last.
    pub partition: PartitionId,
    /// How far: everything of the lane at or before this is durable.
    pub rank: Rank,
}

/// What several workers keep in the checkpoints of a pipeline whose partitions they share.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sharing {
    /// In the checkpoint of a partition: the worker that has its lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// In the checkpoint of a partition: it is finished, and its children have leases.
    #[serde(default)]
    pub finished: bool,
    /// In the index of the partitions: which worker asks for which of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub wanted: BTreeMap<PartitionId, String>,
}

impl Checkpoint {
    /// The current [`Checkpoint::format`].
    pub const FORMAT: u32 = 1;

    /// Whether a partition was finished and is left out here since: a partition is stored before anything
    /// of it is read. A checkpoint without partitions was lost, or never saved.
    pub(crate) fn is_forgotten(&self, id: &PartitionId) -> bool {
        !self.partitions.is_empty() && !self.partitions.contains_key(id)
    }

    /// Whether all lanes are past this rank of the partition: the source does not give it again.
    pub(crate) fn is_passed(&self, id: &PartitionId, rank: &Rank) -> bool {
        match self.partitions.get(id) {
            Some(p) => p.position.as_ref().is_some_and(|low| *rank <= low.rank),
            None => self.is_forgotten(id),
        }
    }

    /// As stored: one line of JSON.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|e| Error::fatal("cannot write the checkpoint as JSON").because(e))
    }

    /// Reads what [`Checkpoint::to_json`] wrote, of this version of the library or an older one.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) for the format of a newer library;
    /// [`Fatal`](crate::ErrorKind::Fatal) for anything that is not a checkpoint.
    pub fn from_json(text: &str) -> Result<Self> {
        let damaged = |e| Error::fatal("the stored checkpoint is damaged").because(e);
        let value: serde_json::Value = serde_json::from_str(text).map_err(damaged)?;
        if !value.is_object() {
            return Err(Error::fatal("the stored checkpoint is damaged: it is not a JSON object"));
        }
        // Looked at first: a newer form need not fit the fields of this one.
        let format = value.get("format").and_then(serde_json::Value::as_u64).unwrap_or_default();
        if format > u64::from(Self::FORMAT) {
            let problem = format!("has format {format}, and this version of anabranch knows {}", Self::FORMAT);
            return Err(Error::config("checkpoint", problem).hint("run the version that wrote it, or a later one"));
        }
        serde_json::from_value(value).map_err(damaged)
    }
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self {
            format: Self::FORMAT,
            epoch: 0,
            identity: SourceIdentity::default(),
            order: String::new(),
            lanes: 0,
            routing: String::new(),
            partitions: BTreeMap::new(),
            snapshot: SnapshotProgress::default(),
            counters: Counters::default(),
            shards: BTreeMap::new(),
            reached: Vec::new(),
            paused: false,
            saved_at: None,
            ended: false,
            sharing: None,
        }
    }
}

/// What tells one source from another: system identifier, slot, stream label.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SourceIdentity(pub BTreeMap<String, String>);

impl SourceIdentity {
    /// Adds one fact.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.0.insert(key.into(), value.into());
        self
    }

    /// A fact.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }
}

/// Where a partition stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PartitionStatus {
    /// Known, not read yet: a parent is not finished.
    #[default]
    Created,
    /// Being read.
    Running,
    /// Read to its end, and everything in it is durable.
    Finished,
}

/// How far a partition is, and where it came from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PartitionProgress {
    /// Its parents.
    #[serde(default)]
    pub parents: Vec<PartitionId>,
    /// Where it starts.
    #[serde(default)]
    pub start: Option<Position>,
    /// Everything at or before this is durable in the target.
    #[serde(default)]
    pub position: Option<Position>,
    /// The safe time that goes with the position.
    #[serde(default)]
    pub safe_time: Option<Timestamp>,
    /// Where it stands.
    #[serde(default)]
    pub status: PartitionStatus,
}

/// Where the snapshot stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotPhase {
    /// Not begun.
    #[default]
    Pending,
    /// Tables are being copied.
    Copying,
    /// Every table is copied, or none was asked for.
    Done,
}

/// How far the snapshot is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SnapshotProgress {
    /// Where it stands.
    #[serde(default)]
    pub phase: SnapshotPhase,
    /// The tables, by name. A table that is finished is copied as of one point in time. A copy that
    /// was interrupted goes on under a later point, if the source can bring what was copied up to it;
    /// else it is done again whole.
    #[serde(default, with = "as_list")]
    pub tables: BTreeMap<TableName, TableSnapshot>,
    /// No copy was asked for when the pipeline began: the target held the rows already. Tables that
    /// are published later are not copied either.
    #[serde(default)]
    pub skipped: bool,
}

/// How far the snapshot of a table is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TableSnapshot {
    /// The point of the copy: changes at or before it are in the copied rows, and the stream skips them.
    /// Of a table that is not finished: the earliest point of any of its rows.
    pub point: Position,
    /// Chunks of the table.
    pub chunks: u32,
    /// Chunks that are durable in the target.
    pub done: u32,
    /// Rows copied.
    pub rows: u64,
    /// Every chunk is durable.
    pub finished: bool,
    /// The chunks that are durable, by number.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub done_chunks: BTreeSet<u32>,
    /// When the last chunk became durable, by the clock of the machine that copied it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// What the source needs to go on with this copy: [`Snapshot::plan`](crate::Snapshot::plan). Until
    /// it is finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
    /// Tells the target table, as it was planned to be written, from another. Until it is finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The table in the target that it is copied into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub into: Option<TableName>,
    /// Tells the transforms that its rows went through from others; see
    /// [`Transform::digest`](crate::Transform::digest).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transforms: Option<String>,
}

impl TableSnapshot {
    /// Every chunk is durable, now.
    pub(crate) fn end(&mut self) {
        self.finished = true;
        self.finished_at = Some(Timestamp::now());
        self.done_chunks.clear();
        (self.plan, self.target) = (None, None);
    }
}

/// What was applied since the pipeline exists. Stored with the data where the sink is transactional.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Changes of rows applied from the stream.
    pub changes: u64,
    /// Source transactions applied.
    pub transactions: u64,
    /// Rows copied by snapshots.
    pub snapshot_rows: u64,
    /// Changes put into the dead-letter store.
    pub dead_letters: u64,
    /// Changes of rows that a filter left out.
    #[serde(default)]
    pub filtered: u64,
    /// Changes of rows that a mapping left out: their table is not in the target.
    #[serde(default)]
    pub skipped: u64,
    /// Of `changes`, those that did nothing because the target's row was newer already.
    #[serde(default)]
    pub stale: u64,
}

impl Counters {
    /// Changes of rows that took effect.
    pub fn applied(&self) -> u64 {
        self.changes.saturating_sub(self.stale)
    }
}

impl std::ops::AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.changes += other.changes;
        self.transactions += other.transactions;
        self.snapshot_rows += other.snapshot_rows;
        self.dead_letters += other.dead_letters;
        self.filtered += other.filtered;
        self.skipped += other.skipped;
        self.stale += other.stale;
    }
}

/// A map with a structured key, as a list of pairs: JSON keys are text.
mod as_list {
    use super::*;
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        map: &BTreeMap<TableName, TableSnapshot>,
        s: S,
    ) -> std::result::Result<S::Ok, S::Error> {
        s.collect_seq(map.iter())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<TableName, TableSnapshot>, D::Error> {
        Ok(Vec::<(TableName, TableSnapshot)>::deserialize(d)?.into_iter().collect())
    }
}
