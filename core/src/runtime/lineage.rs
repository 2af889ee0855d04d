//! The partition engine: which partitions are read, which wait for their parents, which are done.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use crate::model::{Partition, PartitionId, PartitionProgress, PartitionStatus, Position, Progress, Rank, Timestamp};

type Partitions = BTreeMap<PartitionId, PartitionProgress>;

/// How many forgotten partitions a run still knows to be finished, for a drain whose marker names one
/// of them and that has not looked yet.
const REMEMBERED: usize = 4096;

/// Every partition that is known, and how far it is.
///
/// A child is opened only when all its parents are finished; a parent is finished when it is closed,
/// everything in it is durable, and a checkpoint that names its children is saved. A parent that is not
/// known yet is waited for. Once a child is open its parents do not matter any more; a checkpoint that
/// has it as [`PartitionStatus::Running`] need not have them.
#[derive(Debug)]
pub(crate) struct Lineage {
    partitions: Partitions,
    reading: HashMap<PartitionId, Read>,
    /// Finished according to a checkpoint that was saved, those forgotten last included.
    finished: Arc<HashSet<PartitionId>>,
    /// The oldest first.
    forgotten: VecDeque<PartitionId>,
    /// Forgotten since [`Lineage::take_forgotten`].
    untold: Vec<PartitionId>,
    /// Listed by the source at the start: never forgotten, or it would be read again.
    listed: HashSet<PartitionId>,
    /// Heard of from a reader that closed, and in no checkpoint yet.
    unsaved: HashSet<PartitionId>,
    moved: bool,
    wants_saving: bool,
}

#[derive(Debug)]
struct Read {
    /// The end of what was received: a reader that stopped is opened again from here.
    received: Option<Position>,
    acknowledged: watch::Sender<Option<Position>>,
    open: bool,
    closed: bool,
}

impl Lineage {
    /// What the checkpoint knows, and the roots that the source knows now.
    pub(crate) fn new(mut partitions: Partitions, known: Vec<Partition>) -> Self {
        let listed = known.iter().map(|p| p.id.clone()).collect();
        for partition in known {
            let entry = partitions.entry(partition.id).or_default();
            entry.parents = partition.parents;
            entry.start = entry.start.take().or(partition.start);
        }
        let done = |p: &PartitionProgress| p.status == PartitionStatus::Finished;
        let finished: HashSet<_> = partitions.iter().filter(|(_, p)| done(p)).map(|(id, _)| id.clone()).collect();
        Self {
            partitions,
            reading: HashMap::new(),
            finished: Arc::new(finished),
            forgotten: VecDeque::new(),
            untold: Vec::new(),
            listed,
            unsaved: HashSet::new(),
            moved: false,
            wants_saving: false,
        }
    }

    /// The partitions that are not finished, with where they resume and the parents that they wait for.
    pub(crate) fn unfinished(&self) -> Vec<(Partition, Option<Progress>)> {
        let open = self.partitions.iter().filter(|(_, p)| p.status != PartitionStatus::Finished);
        let waits_for = |p: &PartitionProgress| match p.status {
            PartitionStatus::Created => p.parents.iter().filter(|id| !self.finished.contains(*id)).cloned().collect(),
            _ => Vec::new(),
        };
        open.map(|(id, p)| (Partition { parents: waits_for(p), ..partition(id, p) }, progress(id, p))).collect()
    }

    /// A child as the orderer has to know it: with the parents that are not finished yet.
    pub(crate) fn waiting(&self, child: &Partition) -> Partition {
        let parents = child.parents.iter().filter(|id| !self.finished.contains(*id)).cloned().collect();
        Partition { parents, ..child.clone() }
    }

    /// Whether nothing is left to read.
    pub(crate) fn is_finished(&self) -> bool {
        self.partitions.values().all(|p| p.status == PartitionStatus::Finished)
    }

    /// The partitions to open now, each with where to start and the acknowledgements it will get.
    pub(crate) fn openable(&mut self) -> Vec<(Partition, Option<Position>, watch::Receiver<Option<Position>>)> {
        let mut open = Vec::new();
        for (id, p) in &mut self.partitions {
            let may_open = match p.status {
                PartitionStatus::Finished => false,
                PartitionStatus::Running => true,
                PartitionStatus::Created => p.parents.iter().all(|parent| self.finished.contains(parent)),
            };
            if !may_open {
                continue;
            }
            let read = self.reading.entry(id.clone()).or_insert_with(|| Read {
                received: p.position.clone(),
                acknowledged: watch::Sender::new(p.position.clone()),
                open: false,
                closed: false,
            });
            if !read.open && !read.closed {
                read.open = true;
                p.status = PartitionStatus::Running;
                let from = read.received.clone().or_else(|| p.start.clone());
                open.push((partition(id, p), from, read.acknowledged.subscribe()));
            }
        }
        if !open.is_empty() {
            self.forget();
        }
        open
    }

    /// Drops finished partitions whose children are all being read or finished.
    fn forget(&mut self) {
        let waiting = self.partitions.values().filter(|p| p.status == PartitionStatus::Created);
        let needed: HashSet<PartitionId> = waiting.flat_map(|p| p.parents.iter().cloned()).collect();
        let before = self.partitions.len();
        let (finished, listed, forgotten) = (&self.finished, &self.listed, &mut self.forgotten);
        let untold = &mut self.untold;
        self.partitions.retain(|id, p| {
            let done = p.status == PartitionStatus::Finished && finished.contains(id);
            let keep = !done || listed.contains(id) || needed.contains(id);
            if !keep {
                forgotten.push_back(id.clone());
                untold.push(id.clone());
            }
            keep
        });
        self.moved |= self.partitions.len() < before;
        while self.forgotten.len() > REMEMBERED
            && let Some(oldest) = self.forgotten.pop_front()
        {
            Arc::make_mut(&mut self.finished).remove(&oldest);
        }
    }

    /// The partitions that were forgotten since the last call.
    pub(crate) fn take_forgotten(&mut self) -> Vec<PartitionId> {
        std::mem::take(&mut self.untold)
    }

    /// A batch that ends here was received. Gives the token of where the one before it ended.
    pub(crate) fn received(&mut self, id: &PartitionId, end: &Position) -> Bytes {
        let before = self.reading.get_mut(id).and_then(|read| read.received.replace(end.clone()));
        before.map(|at| at.token).unwrap_or_default()
    }

    pub(crate) fn stopped(&mut self, id: &PartitionId) {
        if let Some(read) = self.reading.get_mut(id) {
            read.open = false;
        }
    }

    pub(crate) fn closed(&mut self, id: &PartitionId, children: Vec<Partition>) {
        // What its own readers proved is true of what comes after it, too.
        let inherited = self.partitions.get(id).and_then(|p| p.safe_time);
        for child in children {
            if !self.partitions.contains_key(&child.id) {
                self.unsaved.insert(child.id.clone());
            }
            // A merged child is reported by each of its parents: it is one partition. Each may know
            // parents that the others do not, and the last one where it really begins.
            let known = self
                .partitions
                .entry(child.id)
                .or_insert_with(|| PartitionProgress { safe_time: inherited, ..Default::default() });
            if known.status != PartitionStatus::Created {
                continue;
            }
            let new: Vec<_> = child.parents.into_iter().filter(|p| !known.parents.contains(p)).collect();
            known.parents.extend(new);
            let rank = |at: &Option<Position>| at.as_ref().map(|at| at.rank.clone());
            if rank(&known.start) < rank(&child.start) {
                known.start = child.start;
            }
        }
        if let Some(read) = self.reading.get_mut(id) {
            read.closed = true;
        }
        self.wants_saving = true;
        self.moved = true;
    }

    /// Takes over the orderer's low watermark.
    pub(crate) fn advance(&mut self, low: &BTreeMap<PartitionId, Progress>) {
        for (id, progress) in low {
            let Some(p) = self.partitions.get_mut(id) else { continue };
            if p.position.as_ref().is_none_or(|at| at.rank < progress.position.rank) {
                p.position = Some(progress.position.clone());
                self.moved = true;
            }
            if p.safe_time < progress.safe_time {
                p.safe_time = progress.safe_time;
                self.moved = true;
            }
        }
        let mut closed: Vec<(PartitionId, Option<Timestamp>)> = Vec::new();
        for (id, read) in self.reading.iter().filter(|(_, r)| r.closed) {
            let Some(p) = self.partitions.get_mut(id) else { continue };
            let rank = |at: &Option<Position>| at.as_ref().map_or_else(Rank::default, |at| at.rank.clone());
            if p.status != PartitionStatus::Finished && rank(&p.position) >= rank(&read.received) {
                p.status = PartitionStatus::Finished;
                self.moved = true;
                self.wants_saving = true;
                closed.push((id.clone(), p.safe_time));
            }
        }
        // A parent leaves the least of all safe times: its children, which begin after it, stay at
        // least where it was, so that the least never goes back.
        for (parent, safe_time) in closed {
            for child in self.partitions.values_mut().filter(|p| p.parents.contains(&parent)) {
                child.safe_time = child.safe_time.max(safe_time);
            }
        }
    }

    /// How many partitions there are.
    pub(crate) fn len(&self) -> usize {
        self.partitions.len()
    }

    /// Whether something moved since the last [`Lineage::snapshot`].
    pub(crate) fn moved(&self) -> bool {
        self.moved
    }

    /// Whether it should be saved at once, for a partition waits for that.
    pub(crate) fn wants_saving(&self) -> bool {
        self.wants_saving
    }

    /// What to save.
    pub(crate) fn snapshot(&mut self) -> Partitions {
        self.moved = false;
        self.wants_saving = false;
        self.partitions.clone()
    }

    /// A checkpoint was saved: acknowledge what it has, and count its finished partitions as such.
    pub(crate) fn saved(&mut self, saved: &Partitions) {
        for (id, p) in saved {
            self.unsaved.remove(id);
            if let Some(position) = &p.position {
                self.stored(id, position);
            }
            if p.status == PartitionStatus::Finished && !self.finished.contains(id) {
                Arc::make_mut(&mut self.finished).insert(id.clone());
                self.reading.remove(id);
            }
        }
    }

    /// The partitions that are finished for good: those that the checkpoint has, and those forgotten last.
    pub(crate) fn finished(&self) -> Arc<HashSet<PartitionId>> {
        Arc::clone(&self.finished)
    }

    /// The partitions that no checkpoint has yet.
    pub(crate) fn unsaved(&self) -> HashSet<PartitionId> {
        self.unsaved.clone()
    }

    /// This progress is durable where a restart will find it: the source may forget what lies before.
    pub(crate) fn stored(&mut self, id: &PartitionId, position: &Position) {
        if let Some(read) = self.reading.get(id) {
            read.acknowledged.send_if_modified(|at| {
                let forward = at.as_ref().is_none_or(|at| at.rank < position.rank);
                if forward {
                    *at = Some(position.clone());
                }
                forward
            });
        }
    }

    /// The time up to which every partition is durable; `None` while one does not say. A partition
    /// that waits for its parents holds only what is after them: those that are unfinished speak for it.
    /// When nothing is left to read: the last time that was durable.
    pub(crate) fn safe_time(&self) -> Option<Timestamp> {
        let unfinished = |p: &PartitionProgress| p.status != PartitionStatus::Finished;
        let waits = |p: &PartitionProgress| {
            p.status == PartitionStatus::Created
                && p.parents.iter().any(|id| self.partitions.get(id).is_some_and(unfinished))
        };
        let mut open = self.partitions.values().filter(|p| unfinished(p) && !waits(p)).peekable();
        if open.peek().is_none() {
            return self.partitions.values().filter_map(|p| p.safe_time).max();
        }
        open.map(|p| p.safe_time).min()?
    }
}

fn partition(id: &PartitionId, p: &PartitionProgress) -> Partition {
    Partition { id: id.clone(), parents: p.parents.clone(), start: p.start.clone() }
}

fn progress(id: &PartitionId, p: &PartitionProgress) -> Option<Progress> {
    Some(Progress { partition: id.clone(), position: p.position.clone()?, safe_time: p.safe_time })
}

#[cfg(test)]
#[path = "lineage_tests.rs"]
mod tests;
