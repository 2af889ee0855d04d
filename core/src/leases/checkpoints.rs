//! Leases in any checkpointer, by compare-and-set.

use std::sync::Arc;

use async_trait::async_trait;

use super::{INDEX, Lease, Leases, pipeline_of};
use crate::checkpointer::{Checkpointer, Saved, Version};
use crate::error::{Error, Result};
use crate::model::{
    Checkpoint, Counters, Partition, PartitionId, PartitionProgress, PartitionStatus, Position, Sharing, Timestamp,
};

/// How often a change of the index is tried again after somebody else's: each conflict means that
/// another worker's change went through, so only a stampede of hundreds comes here.
const TRIES: usize = 1_000;

/// Keeps leases in the checkpointer of the pipeline: PostgreSQL, MySQL, SQLite, a folder, and any other.
///
/// - `{pipeline}/partitions`, the index: the partitions with their parents, which are finished, and
///   who asks for which ([`Sharing::wanted`]). Changed by everybody, rarely.
/// - [`pipeline_of`] each partition: its checkpoint, with its owner ([`Sharing::owner`]). Its version
///   is the lease's counter. Written by the owner, and by whoever takes it.
#[derive(Debug, Clone)]
pub struct CheckpointLeases {
    checkpointer: Arc<dyn Checkpointer>,
}

impl CheckpointLeases {
    /// In this checkpointer, which all workers share.
    pub fn new(checkpointer: Arc<dyn Checkpointer>) -> Self {
        Self { checkpointer }
    }

    async fn index(&self, pipeline: &str) -> Result<(Option<Version>, Checkpoint)> {
        Ok(match self.checkpointer.load(&index_of(pipeline)).await? {
            Some((version, index)) => (Some(version), index),
            None => (None, Checkpoint::default()),
        })
    }

    /// Changes the index; `change` tells whether it did, and is called anew after a conflict.
    async fn change_index(&self, pipeline: &str, mut change: impl FnMut(&mut Checkpoint) -> bool) -> Result<()> {
        for _ in 0..TRIES {
            let (version, mut index) = self.index(pipeline).await?;
            if !change(&mut index) {
                return Ok(());
            }
            index.saved_at = Some(Timestamp::now());
            if let Saved::Committed(_) = self.checkpointer.save(&index_of(pipeline), version, &index).await? {
                return Ok(());
            }
        }
        Err(Error::transient(format!("the list of partitions of {pipeline} changes too often")))
    }

    /// Writes the record of a partition over the version `expected`.
    async fn write(&self, pipeline: &str, expected: u64, lease: &Lease) -> Result<Option<u64>> {
        let mut record = lease.checkpoint.clone();
        record.saved_at = Some(Timestamp::now());
        record.sharing = Some(Sharing { owner: lease.owner.clone(), finished: lease.finished, ..Sharing::default() });
        let expected = (expected > 0).then_some(Version(expected));
        match self.checkpointer.save(&pipeline_of(pipeline, lease.id()), expected, &record).await? {
            Saved::Committed(version) => Ok(Some(version.0)),
            Saved::Conflict => Ok(None),
        }
    }

    /// Tells the index that a lease is finished, with all that anybody still wants to know of it. Once.
    async fn finish(&self, pipeline: &str, id: &PartitionId, last: &Checkpoint) -> Result<()> {
        self.change_index(pipeline, |index| {
            let Some(entry) = index.partitions.get_mut(id).filter(|e| e.status != PartitionStatus::Finished) else {
                return false;
            };
            if let Some(progress) = last.partitions.get(id) {
                (entry.position, entry.safe_time) = (progress.position.clone(), progress.safe_time);
            }
            entry.status = PartitionStatus::Finished;
            index.counters += last.counters;
            true
        })
        .await
    }

    /// Writes what the owner has: also over an earlier write of its own whose answer was lost.
    async fn write_own(&self, pipeline: &str, held: &Lease, next: &Lease) -> Result<Option<u64>> {
        if let Some(counter) = self.write(pipeline, held.counter, next).await? {
            return Ok(Some(counter));
        }
        // Who took it since has a higher epoch, and may have the same name: a process that was started again while
        // this one was frozen.
        let own = |record: &Checkpoint| {
            record.epoch <= held.checkpoint.epoch && record.sharing.as_ref().is_some_and(|s| s.owner == held.owner)
        };
        match self.checkpointer.load(&pipeline_of(pipeline, held.id())).await? {
            Some((version, record)) if own(&record) => self.write(pipeline, version.0, next).await,
            _ => Ok(None),
        }
    }
}

#[async_trait]
impl Leases for CheckpointLeases {
    async fn list(&self, pipeline: &str) -> Result<Vec<Lease>> {
        let (_, index) = self.index(pipeline).await?;
        let sharing = index.sharing.unwrap_or_default();
        let mut leases = Vec::with_capacity(index.partitions.len());
        for (id, entry) in index.partitions {
            let finished = entry.status == PartitionStatus::Finished;
            let mut lease =
                Lease::new(Partition { id: id.clone(), parents: entry.parents.clone(), start: entry.start.clone() });
            lease.wanted_by = sharing.wanted.get(&id).cloned();
            // What a finished one has is in the index too: a thousand of them cost nothing.
            if finished {
                lease.finished = true;
                lease.checkpoint.partitions.insert(id, entry);
            } else if let Some((version, mut record)) =
                self.checkpointer.load(&pipeline_of(pipeline, lease.id())).await?
            {
                let owned = record.sharing.take().unwrap_or_default();
                (lease.owner, lease.finished, lease.counter) = (owned.owner, owned.finished, version.0);
                lease.checkpoint = record;
            }
            leases.push(lease);
        }
        Ok(leases)
    }

    async fn create(&self, pipeline: &str, partitions: &[Partition]) -> Result<()> {
        self.change_index(pipeline, |index| {
            let mut changed = false;
            for p in partitions {
                let known = index.partitions.entry(p.id.clone()).or_insert_with(|| {
                    changed = true;
                    PartitionProgress { start: p.start.clone(), ..Default::default() }
                });
                if known.status == PartitionStatus::Finished {
                    continue;
                }
                let new: Vec<_> = p.parents.iter().filter(|parent| !known.parents.contains(parent)).cloned().collect();
                let rank = |at: &Option<Position>| at.as_ref().map(|at| at.rank.clone());
                if rank(&known.start) < rank(&p.start) {
                    known.start.clone_from(&p.start);
                    changed = true;
                }
                changed |= !new.is_empty();
                known.parents.extend(new);
            }
            changed
        })
        .await
    }

    async fn take(&self, pipeline: &str, seen: &Lease, worker: &str) -> Result<Option<Lease>> {
        let mut next = Lease { owner: Some(worker.to_owned()), wanted_by: None, ..seen.clone() };
        next.checkpoint.epoch += 1;
        let Some(counter) = self.write(pipeline, seen.counter, &next).await? else { return Ok(None) };
        next.counter = counter;
        if seen.wanted_by.is_some() {
            self.change_index(pipeline, |index| {
                index.sharing.as_mut().is_some_and(|s| s.wanted.remove(seen.id()).is_some())
            })
            .await?;
        }
        Ok(Some(next))
    }

    async fn store(&self, pipeline: &str, held: &Lease) -> Result<Option<u64>> {
        self.write_own(pipeline, held, held).await
    }

    async fn release(&self, pipeline: &str, held: &Lease, finished: bool) -> Result<bool> {
        let next = Lease { owner: None, finished, ..held.clone() };
        let written = self.write_own(pipeline, held, &next).await?.is_some();
        if written && finished {
            self.finish(pipeline, held.id(), &held.checkpoint).await?;
        }
        Ok(written)
    }

    async fn ask(&self, pipeline: &str, partition: &PartitionId, worker: &str) -> Result<()> {
        self.change_index(pipeline, |index| {
            let wanted = &mut index.sharing.get_or_insert_default().wanted;
            let free = !wanted.contains_key(partition);
            if free {
                wanted.insert(partition.clone(), worker.to_owned());
            }
            free
        })
        .await
    }

    async fn forget(&self, pipeline: &str, finished: &[PartitionId]) -> Result<()> {
        // A worker may have died after it finished a lease and before it told the index.
        for lease in self.list(pipeline).await?.iter().filter(|l| l.finished && finished.contains(l.id())) {
            self.finish(pipeline, lease.id(), &lease.checkpoint).await?;
        }
        self.change_index(pipeline, |index| {
            let before = index.partitions.len();
            for id in finished {
                if index.partitions.get(id).is_some_and(|p| p.status == PartitionStatus::Finished) {
                    index.partitions.remove(id);
                    index.sharing.get_or_insert_default().wanted.remove(id);
                }
            }
            index.partitions.len() != before
        })
        .await
    }

    async fn counted(&self, pipeline: &str) -> Result<Counters> {
        Ok(self.index(pipeline).await?.1.counters)
    }
}

fn index_of(pipeline: &str) -> String {
    format!("{pipeline}/{INDEX}")
}
