//! How far a pipeline is, as its stores tell it: one process or several, running or not.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Spec;
use crate::control::drain::Durable;
use crate::error::Result;
use crate::leases::{LETTERS, Lease, SETUP};
use crate::model::{Checkpoint, Counters, PartitionId, PartitionProgress, PartitionStatus, SnapshotPhase, Timestamp};
use crate::runtime::merge_progress;

/// What is stored of a pipeline.
#[derive(Debug, Default)]
pub(crate) struct Stored {
    /// With the progress of all lanes, or of all leases, in it.
    pub(crate) checkpoint: Checkpoint,
    /// Who has which partition, where several workers share them.
    pub(crate) owners: BTreeMap<PartitionId, String>,
}

/// Reads the stores. `None` if the pipeline never ran.
pub(crate) async fn load(spec: &Spec) -> Result<Option<Stored>> {
    let Some((_, mut checkpoint)) = spec.checkpointer.load(&spec.name).await? else { return Ok(None) };
    if let (true, Some(leases)) = (checkpoint.sharing.is_some(), spec.leases()) {
        let listed = leases.list(&spec.name).await?;
        let counted = leases.counted(&spec.name).await?;
        return Ok(Some(of_leases(checkpoint, &listed, counted)));
    }
    let lanes = match spec.sink.progress() {
        Some(store) => store.read(&spec.name).await?,
        None => Vec::new(),
    };
    if !lanes.is_empty() {
        let before = checkpoint.counters;
        checkpoint.counters = Counters::default();
        lanes.iter().for_each(|lane| checkpoint.counters += lane.counters);
        checkpoint.counters.snapshot_rows = before.snapshot_rows;
        checkpoint.counters.dead_letters = before.dead_letters;
        let count = checkpoint.lanes;
        merge_progress(&mut checkpoint, &lanes, count);
    }
    Ok(Some(Stored { checkpoint, owners: BTreeMap::new() }))
}

/// What the leases tell, as one checkpoint. `control`: the pipeline's own record.
pub(crate) fn of_leases(control: Checkpoint, leases: &[Lease], counted: Counters) -> Stored {
    let mut stored = Stored { checkpoint: control, owners: BTreeMap::new() };
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

    /// The time up to which everything is in the target; `None` while a partition does not say.
    pub(crate) fn safe_time(&self) -> Option<Timestamp> {
        let mut open = self.open().map(|(_, p)| self.safe_time_of(p)).peekable();
        open.peek()?;
        open.min()?.filter(|_| self.is_whole())
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
            copying: self.checkpoint.snapshot.phase != SnapshotPhase::Done,
            dead_letters_open,
        }
    }
}
