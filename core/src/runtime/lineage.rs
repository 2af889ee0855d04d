//! The partition engine: which partitions are read, which wait for their parents, which are done.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use tokio::sync::watch;

use crate::model::{Partition, PartitionId, PartitionProgress, PartitionStatus, Position, Progress, Rank, Timestamp};

type Partitions = BTreeMap<PartitionId, PartitionProgress>;

/// Every partition that is known, and how far it is.
///
/// A child is opened only when all its parents are finished; a parent is finished when it is closed,
/// everything in it is durable, and a checkpoint that names its children is saved. From then on it
/// is forgotten, unless the source names it at every start: shards that roll every few hours would
/// fill the checkpoint.
#[derive(Debug)]
pub(crate) struct Lineage {
    partitions: Partitions,
    reading: HashMap<PartitionId, Read>,
    /// Finished according to a checkpoint that was saved, the forgotten ones of this run included.
    finished: Arc<HashSet<PartitionId>>,
    /// What the source names at every start: it is kept when it is finished, or it would begin anew.
    roots: HashSet<PartitionId>,
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
        let roots = known.iter().map(|p| p.id.clone()).collect();
        for partition in known {
            let entry = partitions.entry(partition.id).or_default();
            entry.parents = partition.parents;
            entry.start = entry.start.take().or(partition.start);
        }
        let done = |p: &PartitionProgress| p.status == PartitionStatus::Finished;
        let finished: HashSet<_> = partitions.iter().filter(|(_, p)| done(p)).map(|(id, _)| id.clone()).collect();
        let finished = Arc::new(finished);
        Self { partitions, reading: HashMap::new(), finished, roots, moved: false, wants_saving: false }
    }

    /// The partitions that are not finished, with where they resume.
    pub(crate) fn unfinished(&self) -> Vec<(Partition, Option<Progress>)> {
        let open = self.partitions.iter().filter(|(_, p)| p.status != PartitionStatus::Finished);
        open.map(|(id, p)| (partition(id, p), progress(id, p))).collect()
    }

    /// Whether nothing is left to read.
    pub(crate) fn is_finished(&self) -> bool {
        self.partitions.values().all(|p| p.status == PartitionStatus::Finished)
    }

    /// The partitions to open now, each with where to start and the acknowledgements it will get.
    pub(crate) fn openable(&mut self) -> Vec<(Partition, Option<Position>, watch::Receiver<Option<Position>>)> {
        let mut open = Vec::new();
        for (id, p) in &mut self.partitions {
            let parents_done = p.parents.iter().all(|parent| self.finished.contains(parent));
            if p.status == PartitionStatus::Finished || !parents_done {
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
        open
    }

    pub(crate) fn received(&mut self, id: &PartitionId, end: &Position) {
        if let Some(read) = self.reading.get_mut(id) {
            read.received = Some(end.clone());
        }
    }

    pub(crate) fn stopped(&mut self, id: &PartitionId) {
        if let Some(read) = self.reading.get_mut(id) {
            read.open = false;
        }
    }

    pub(crate) fn closed(&mut self, id: &PartitionId, children: Vec<Partition>) {
        for child in children {
            // A merged child is reported by each of its parents: it is one partition.
            self.partitions.entry(child.id).or_insert_with(|| PartitionProgress {
                parents: child.parents,
                start: child.start,
                ..Default::default()
            });
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
        for (id, read) in self.reading.iter().filter(|(_, r)| r.closed) {
            let Some(p) = self.partitions.get_mut(id) else { continue };
            let rank = |at: &Option<Position>| at.as_ref().map_or_else(Rank::default, |at| at.rank.clone());
            if p.status != PartitionStatus::Finished && rank(&p.position) >= rank(&read.received) {
                p.status = PartitionStatus::Finished;
                self.moved = true;
                self.wants_saving = true;
            }
        }
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
            if let Some(position) = &p.position {
                self.stored(id, position);
            }
            if p.status == PartitionStatus::Finished {
                if !self.finished.contains(id) {
                    Arc::make_mut(&mut self.finished).insert(id.clone());
                }
                self.reading.remove(id);
                self.forget(id);
            }
        }
    }

    /// Its children are stored and it is never read again: they need not wait for it any more.
    fn forget(&mut self, id: &PartitionId) {
        if self.roots.contains(id) || self.partitions.remove(id).is_none() {
            return;
        }
        for child in self.partitions.values_mut() {
            child.parents.retain(|parent| parent != id);
        }
        self.moved = true;
    }

    /// The partitions that are finished for good, of this run and those that it found so.
    pub(crate) fn finished(&self) -> Arc<HashSet<PartitionId>> {
        Arc::clone(&self.finished)
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
    pub(crate) fn safe_time(&self) -> Option<Timestamp> {
        let unfinished = |p: &PartitionProgress| p.status != PartitionStatus::Finished;
        let waits = |p: &PartitionProgress| p.parents.iter().any(|id| self.partitions.get(id).is_some_and(unfinished));
        let mut open = self.partitions.values().filter(|p| unfinished(p) && !waits(p)).peekable();
        open.peek()?;
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
mod tests {
    use super::*;

    fn child(id: &str, parent: &str) -> Partition {
        Partition { parents: vec![PartitionId::new(parent)], ..Partition::root(PartitionId::new(id)) }
    }

    fn names(partitions: &Partitions) -> Vec<&str> {
        partitions.keys().map(PartitionId::as_str).collect()
    }

    /// Closes a partition that is open, and saves what is to be saved.
    fn close(lineage: &mut Lineage, id: &str, children: Vec<Partition>) -> Partitions {
        lineage.openable();
        lineage.closed(&PartitionId::new(id), children);
        lineage.advance(&BTreeMap::new());
        let saved = lineage.snapshot();
        lineage.saved(&saved);
        saved
    }

    #[test]
    fn a_finished_partition_is_forgotten_and_a_root_is_not() {
        let root = || vec![Partition::root(PartitionId::new("root"))];
        let mut lineage = Lineage::new(Partitions::new(), root());
        close(&mut lineage, "root", vec![child("a", "root"), child("b", "a")]);
        let saved = close(&mut lineage, "a", vec![child("b", "a")]);
        assert_eq!(names(&saved), ["a", "b", "root"], "the checkpoint that finishes it still has it");
        assert_eq!(names(&lineage.snapshot()), ["b", "root"]);
        let open: Vec<PartitionId> = lineage.openable().into_iter().map(|(p, ..)| p.id).collect();
        assert_eq!(open, [PartitionId::new("b")], "its child waits for it no more");
        assert!(lineage.finished().contains("a"), "a drain that waits for it ends");

        let mut again = Lineage::new(lineage.snapshot(), root());
        let open: Vec<PartitionId> = again.openable().into_iter().map(|(p, ..)| p.id).collect();
        assert_eq!(open, [PartitionId::new("b")], "after a restart the root is not read again");
    }
}
