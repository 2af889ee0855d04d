//! Up to which commit time every partition was heard: what is at or before it can be sorted.
//!
//! A change committed at `t` proves that everything *before* `t` was given by its partition, for
//! more may follow with the same time; a safe time `t` proves everything *at or before* `t`. The
//! frontier is the least of what the unfinished partitions prove. A partition that waits for its
//! parents holds all that is after them, so its unfinished parents speak for it (of one that is not
//! known yet: what it will come of); from the close of the last of them on it has proved as much as
//! they did.

use std::cell::Cell;
use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::model::{Partition, PartitionId, Progress, Timestamp};

/// Everything is proven: no partition is left.
const ALL: Timestamp = Timestamp::from_micros(i64::MAX);
/// Nothing is proven.
const NOTHING: Timestamp = Timestamp::from_micros(i64::MIN);

#[derive(Debug, Default)]
pub(super) struct Frontier {
    partitions: HashMap<PartitionId, Heard>,
    /// The end of the latest partition that closed.
    ended: Option<Timestamp>,
    /// What [`Frontier::through`] found, until the partition that bounds it has proved more: with a
    /// thousand partitions it is asked far more often than it moves.
    found: Cell<Option<Timestamp>>,
}

/// What was heard of a partition.
#[derive(Debug)]
struct Heard {
    parents: Vec<PartitionId>,
    /// Every change with a commit time at or before this one was given.
    proven: Timestamp,
    /// The latest commit time that was seen.
    latest: Timestamp,
    closed: bool,
}

impl Frontier {
    pub(super) fn opened(&mut self, partition: &Partition, from: Option<&Progress>) {
        self.found.set(None);
        if let Some(known) = self.partitions.get_mut(&partition.id) {
            // Each parent of a merged partition may name parents that the others do not.
            let new: Vec<_> = partition.parents.iter().filter(|p| !known.parents.contains(p)).cloned().collect();
            known.parents.extend(new);
            return;
        }
        let parents = partition.parents.iter().filter_map(|p| self.partitions.get(p));
        // Parents that closed before this call have nothing after what they proved.
        let inherited = parents.filter(|p| p.closed).map(Heard::end).max().unwrap_or(NOTHING);
        let proven = from.and_then(|p| p.safe_time).unwrap_or(NOTHING).max(inherited);
        let heard = Heard { parents: partition.parents.clone(), proven, latest: NOTHING, closed: false };
        self.partitions.insert(partition.id.clone(), heard);
    }

    pub(super) fn closed(&mut self, partition: &PartitionId) {
        let Some(heard) = self.partitions.get_mut(partition) else { return };
        heard.closed = true;
        self.found.set(None);
        let end = heard.end();
        self.ended = self.ended.max(Some(end));
        for child in self.partitions.values_mut().filter(|p| p.parents.contains(partition)) {
            child.proven = child.proven.max(end);
        }
    }

    /// A partition that closed long ago: no child waits for it.
    pub(super) fn forget(&mut self, partition: &PartitionId) {
        if self.partitions.get(partition).is_some_and(|p| p.closed) {
            self.partitions.remove(partition);
            self.partitions.values_mut().for_each(|p| p.parents.retain(|parent| parent != partition));
        }
    }

    /// A change committed at `time` was given.
    ///
    /// # Errors
    /// [`Fatal`](crate::ErrorKind::Fatal) if the partition gave a later time before.
    pub(super) fn change(&mut self, partition: &PartitionId, time: Timestamp) -> Result<()> {
        let Some(heard) = self.partitions.get_mut(partition) else { return Ok(()) };
        if time < heard.latest {
            let latest = heard.latest;
            return Err(Error::fatal(format!(
                "partition {partition} gave a change committed at {time} after one committed at {latest}"
            )));
        }
        heard.latest = time;
        heard.prove(time.minus_micros(1), &self.found);
        Ok(())
    }

    /// The first time that a change of the partition may have.
    pub(super) fn after(&self, partition: &PartitionId) -> Option<Timestamp> {
        let heard = self.partitions.get(partition).filter(|p| p.proven != NOTHING)?;
        Some(Timestamp::from_micros(heard.proven.as_micros().saturating_add(1)))
    }

    /// All changes committed at or before `time` were given.
    pub(super) fn safe(&mut self, partition: &PartitionId, time: Timestamp) {
        if let Some(heard) = self.partitions.get_mut(partition) {
            heard.prove(time, &self.found);
        }
    }

    /// Everything committed at or before this was given by all partitions.
    pub(super) fn through(&self) -> Timestamp {
        if let Some(found) = self.found.get() {
            return found;
        }
        let bounds = self.partitions.values().filter(|p| !p.closed && !self.waits(p));
        let least = bounds.map(|p| p.proven).min().unwrap_or(ALL);
        self.found.set(Some(least));
        least
    }

    /// As [`Frontier::through`], but not after the last time at which a partition closed.
    pub(super) fn through_closed(&self) -> Timestamp {
        self.through().min(self.ended.unwrap_or(NOTHING))
    }

    fn waits(&self, partition: &Heard) -> bool {
        partition.parents.iter().any(|p| self.partitions.get(p).is_none_or(|p| !p.closed))
    }
}

impl Heard {
    fn prove(&mut self, time: Timestamp, found: &Cell<Option<Timestamp>>) {
        if time > self.proven {
            if found.get() == Some(self.proven) {
                found.set(None);
            }
            self.proven = time;
        }
    }

    fn end(&self) -> Timestamp {
        self.latest.max(self.proven)
    }
}
