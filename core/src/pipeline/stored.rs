//! How far a pipeline is, as its stores tell it: one process or several, running or not.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::Spec;
use crate::control::drain::Durable;
use crate::error::{ErrorKind, Result};
use crate::leases::{LETTERS, Lease, SETUP};
use crate::model::{Checkpoint, Counters, PartitionId, PartitionProgress, PartitionStatus, SnapshotPhase, Timestamp};
use crate::runtime::{TALLY, Tally, merge_progress};
use crate::sink::LaneProgress;

/// What is stored of a pipeline.
#[derive(Debug, Default)]
pub(crate) struct Stored {
    /// With the progress of all lanes, or of all leases, in it.
    pub(crate) checkpoint: Checkpoint,
    /// Who has which partition, where several workers share them.
    pub(crate) owners: BTreeMap<PartitionId, String>,
    /// What each shard tells, where the target is sharded.
    pub(crate) shards: Vec<ShardTold>,
}

/// What a shard tells.
#[derive(Debug)]
pub(crate) struct ShardTold {
    pub(crate) name: String,
    /// Why it does not answer.
    pub(crate) silent: Option<String>,
    /// What it has counted; of one that is silent, as far as it told last.
    pub(crate) counters: Counters,
}

/// Reads the stores. `None` if the pipeline never ran.
pub(crate) async fn load(spec: &Spec) -> Result<Option<Stored>> {
    let Some((_, mut checkpoint)) = spec.checkpointer.load(&spec.name).await? else { return Ok(None) };
    if let (true, Some(leases)) = (checkpoint.sharing.is_some(), spec.leases()) {
        let listed = leases.list(&spec.name).await?;
        let counted = leases.counted(&spec.name).await?;
        return Ok(Some(of_leases(checkpoint, &listed, counted)));
    }
    let (lanes, shards) = told(spec, &checkpoint).await?;
    checkpoint.counters = counters(&checkpoint, &lanes, &shards);
    if !lanes.is_empty() {
        let count = checkpoint.lanes;
        merge_progress(&mut checkpoint, &lanes, count);
    }
    Ok(Some(Stored { checkpoint, owners: BTreeMap::new(), shards }))
}

/// Checks that the source still is the one that the stores, of which `stored` was read, know; beside a process
/// that may run the pipeline. Gives what they tell: it may have been read anew.
///
/// # Errors
/// As [`Source::check`](crate::Source::check).
pub(crate) async fn checked(spec: &Spec, mut stored: Option<Stored>) -> Result<Option<Stored>> {
    let mut before: Option<Checkpoint> = None;
    loop {
        let known = stored.as_ref().map(|s| &s.checkpoint).filter(|c| !c.identity.0.is_empty());
        match spec.source.check(known).await {
            // While it was asked the pipeline may have gone on, and let the source forget what lies before: then
            // what was read of the stores is out of date, and tells of a gap that is none.
            Err(e)
                if e.kind() == ErrorKind::Fatal
                    && known.map(|c| &c.partitions) != before.map(|c| c.partitions).as_ref() =>
            {
                before = known.cloned();
                stored = load(spec).await?;
            }
            Err(e) => return Err(e),
            Ok(_) => return Ok(stored),
        }
    }
}

/// What the stores tell is durable; `None` if the pipeline never ran. The letters are counted after the
/// positions are read: a row is a letter before its position is passed.
pub(crate) async fn durable(spec: &Spec) -> Result<Option<Durable>> {
    let Some(stored) = load(spec).await? else { return Ok(None) };
    Ok(Some(stored.durable(spec.open_letters().await?)))
}

/// As [`load`], while the target does not answer: what the checkpointer knows, which may be older.
pub(crate) async fn load_without_target(spec: &Spec) -> Result<Option<Stored>> {
    let loaded = spec.checkpointer.load(&spec.name).await?;
    Ok(loaded.map(|(_, checkpoint)| Stored { checkpoint, ..Stored::default() }))
}

/// What the target tells, each shard by itself: one that does not answer hides none of the others.
async fn told(spec: &Spec, checkpoint: &Checkpoint) -> Result<(Vec<LaneProgress>, Vec<ShardTold>)> {
    let Some(sharded) = spec.sink.sharded() else {
        return Ok(match spec.sink.progress() {
            Some(store) => (store.read(&spec.name).await?, Vec::new()),
            None => (Vec::new(), Vec::new()),
        });
    };
    let (mut lanes, mut shards) = (Vec::new(), Vec::new());
    for (name, answer) in sharded.names().iter().zip(sharded.read_each(&spec.name).await) {
        let (silent, counters) = match answer {
            Ok(answer) => {
                let counters = sum(&answer);
                lanes.extend(answer);
                (None, counters)
            }
            Err(e) => (Some(e.report()), checkpoint.shards.get(&**name).copied().unwrap_or_default()),
        };
        shards.push(ShardTold { name: name.to_string(), silent, counters });
    }
    Ok((lanes, shards))
}

fn counters(checkpoint: &Checkpoint, lanes: &[LaneProgress], shards: &[ShardTold]) -> Counters {
    let known = checkpoint.counters;
    let counters = match (shards.is_empty(), lanes.is_empty()) {
        (true, true) => return known,
        (true, false) => sum(lanes),
        (false, _) => shards.iter().fold(Counters::default(), |mut all, shard| {
            all += shard.counters;
            all
        }),
    };
    Counters { snapshot_rows: known.snapshot_rows, dead_letters: known.dead_letters, ..counters }
}

fn sum(lanes: &[LaneProgress]) -> Counters {
    let mut sum = Counters::default();
    for lane in lanes {
        sum += Counters { snapshot_rows: 0, ..lane.counters };
        sum += Tally::read(lane.partitions.get(TALLY)).counters();
    }
    sum
}

/// What the leases tell, as one checkpoint. `control`: the pipeline's own record.
pub(crate) fn of_leases(control: Checkpoint, leases: &[Lease], counted: Counters) -> Stored {
    let mut stored = Stored { checkpoint: control, ..Stored::default() };
    stored.checkpoint.counters += counted;
    stored.checkpoint.ended = leases.iter().all(|l| l.owner.is_none());
    for lease in leases {
        stored.checkpoint.counters += lease.checkpoint.counters;
        stored.checkpoint.epoch = stored.checkpoint.epoch.max(lease.checkpoint.epoch);
        stored.checkpoint.saved_at = stored.checkpoint.saved_at.max(lease.checkpoint.saved_at);
        if let Some(owner) = &lease.owner {
            stored.owners.insert(lease.id().clone(), owner.clone());
        }
        match lease.id().as_str() {
            SETUP if !lease.finished => stored.checkpoint.snapshot = lease.checkpoint.snapshot.clone(),
            SETUP | LETTERS => {}
            _ => {
                stored.checkpoint.partitions.insert(lease.id().clone(), progress(lease));
            }
        }
    }
    stored
}

fn progress(lease: &Lease) -> PartitionProgress {
    let known = lease.checkpoint.partitions.get(lease.id());
    PartitionProgress {
        parents: lease.partition.parents.clone(),
        start: lease.partition.start.clone(),
        position: known.and_then(|p| p.position.clone()),
        safe_time: known.and_then(|p| p.safe_time),
        status: match (&lease.owner, lease.finished) {
            (_, true) => PartitionStatus::Finished,
            (Some(_), _) => PartitionStatus::Running,
            (None, _) => PartitionStatus::Created,
        },
    }
}

impl Stored {
    /// The partitions that are not finished.
    pub(crate) fn open(&self) -> impl Iterator<Item = (&PartitionId, &PartitionProgress)> {
        self.checkpoint.partitions.iter().filter(|(_, p)| p.status != PartitionStatus::Finished)
    }

    /// Whether the copied rows are all there and no open partition lies before their point: before
    /// that a target is no state that the source ever had.
    fn is_whole(&self) -> bool {
        let snapshot = &self.checkpoint.snapshot;
        let point = snapshot.tables.values().map(|t| &t.point.rank).max();
        let behind = |p: &PartitionProgress| p.position.as_ref().is_some_and(|p| Some(&p.rank) >= point);
        snapshot.phase == SnapshotPhase::Done && (point.is_none() || self.open().all(|(_, p)| behind(p)))
    }

    /// The time up to which everything is in the target; `None` while a partition does not say. When
    /// nothing is left to read: the last time that was durable.
    pub(crate) fn safe_time(&self) -> Option<Timestamp> {
        let mut open = self.open().map(|(_, p)| self.safe_time_of(p)).peekable();
        let safe_time = match open.peek() {
            Some(_) => open.min()?,
            None => self.checkpoint.partitions.values().filter_map(|p| p.safe_time).max(),
        };
        safe_time.filter(|_| self.is_whole())
    }

    /// What a partition has proved. One that has not spoken yet begins where its parents ended: they
    /// have proved as much for it.
    fn safe_time_of(&self, p: &PartitionProgress) -> Option<Timestamp> {
        let inherited = || {
            let parents = p.parents.iter().map(|id| self.checkpoint.partitions.get(id).and_then(|p| p.safe_time));
            parents.min().flatten()
        };
        p.safe_time.or_else(inherited)
    }

    /// As a drain looks at it.
    pub(crate) fn durable(&self, dead_letters_open: u64) -> Durable {
        let done = |(_, p): &(&PartitionId, &PartitionProgress)| p.status == PartitionStatus::Finished;
        let finished = self.checkpoint.partitions.iter().filter(done).map(|(id, _)| id.clone());
        Durable {
            open: self.open().map(|(id, p)| (id.clone(), p.position.clone().or_else(|| p.start.clone()))).collect(),
            finished: Arc::new(finished.collect()),
            unsaved: HashSet::new(),
            copying: self.checkpoint.snapshot.phase != SnapshotPhase::Done,
            dead_letters_open,
        }
    }
}
