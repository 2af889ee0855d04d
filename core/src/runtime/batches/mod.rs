//! The batches between the readers and the lanes: one byte budget, and a file for what waits too long.

mod recent;
mod spill;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use self::recent::{Key, Recent};
use self::spill::{SpillFiles, Spilled};
use crate::error::{Error, Result};
use crate::model::{BatchId, ChangeBatch, OrderedUnit, Selection, Slice, Unit, UnitKind, UnitSlice};
use crate::transform::part;

/// The byte budget of a pipeline. A batch holds its share from the moment it was read until it is
/// applied (or spilled). One batch more than the budget may be in memory at each reader: it must be
/// read before its size is known. What is read back of spilled batches takes as much as three
/// quarters of the budget beside it, however many partitions it comes from: see [`Batches::has_room_for`].
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    permits: Arc<Semaphore>,
    total: u32,
}

/// A permit stands for this many bytes, so that a budget of terabytes still fits a semaphore.
const BYTES_PER_PERMIT: usize = 1024;

impl Budget {
    pub(crate) fn new(bytes: usize) -> Self {
        let total = (bytes / BYTES_PER_PERMIT).clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize)) as u32;
        Self { permits: Arc::new(Semaphore::new(total as usize)), total }
    }

    /// Waits for room for `bytes`. A batch larger than the budget takes all of it.
    pub(crate) async fn reserve(&self, bytes: usize) -> Result<OwnedSemaphorePermit> {
        let permits = (bytes.div_ceil(BYTES_PER_PERMIT) as u32).clamp(1, self.total);
        Arc::clone(&self.permits)
            .acquire_many_owned(permits)
            .await
            .map_err(|_| Error::fatal("the byte budget was closed"))
    }

    /// Whether less than a quarter is free: then waiting batches are worth spilling.
    fn is_tight(&self) -> bool {
        self.permits.available_permits() < self.total as usize / 4
    }
}

/// Holds every batch that was read and not yet applied.
#[derive(Debug)]
pub(crate) struct Batches {
    budget: Budget,
    next: u64,
    entries: BTreeMap<BatchId, Entry>,
    spill: SpillFiles,
    recent: Recent,
    /// What units that are not applied yet have of spilled batches, in bytes, and at most.
    loaded: usize,
    limit: usize,
}

#[derive(Debug)]
struct Entry {
    /// Changes that no lane has applied yet.
    remaining: usize,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Memory(Arc<ChangeBatch>, #[allow(dead_code, reason = "held for its drop")] OwnedSemaphorePermit),
    Disk(Spilled),
}

/// What a unit has of spilled batches, in bytes: to be given back with [`Batches::unload`].
#[derive(Debug, Default)]
#[must_use]
pub(crate) struct Loaded(usize);

impl Batches {
    pub(crate) fn new(budget: Budget) -> Self {
        let quarter = budget.total as usize * BYTES_PER_PERMIT / 4;
        Self {
            budget,
            next: 0,
            entries: BTreeMap::new(),
            spill: SpillFiles::default(),
            recent: Recent::new(quarter),
            loaded: 0,
            limit: 2 * quarter,
        }
    }

    /// Keeps a batch. One without changes needs no keeping; it still gets an id.
    pub(crate) fn add(&mut self, batch: Arc<ChangeBatch>, permit: OwnedSemaphorePermit) -> BatchId {
        self.next += 1;
        let id = BatchId(self.next);
        if !batch.is_empty() {
            self.entries.insert(id, Entry { remaining: batch.len(), place: Place::Memory(batch, permit) });
        }
        id
    }

    /// Changes that were read and not yet applied.
    pub(crate) fn waiting_changes(&self) -> u64 {
        self.entries.values().map(|e| e.remaining as u64).sum()
    }

    /// Whether what the unit has of spilled batches may be read back now: not more than half of the budget
    /// at a time (four units), or one unit. Applying one makes room.
    pub(crate) fn has_room_for(&self, unit: &OrderedUnit) -> bool {
        let of_slice = |slice: &Slice| match self.entries.get(&slice.batch).map(|e| &e.place) {
            Some(Place::Disk(spilled)) => spilled.bytes(slice.changes.len()),
            _ => 0,
        };
        let bytes: usize = unit.slices.iter().map(of_slice).sum();
        bytes == 0 || self.loaded == 0 || self.loaded + bytes <= self.limit
    }

    /// The unit with its batches: of those that were spilled the changes alone that it has.
    pub(crate) fn resolve(&mut self, ordered: OrderedUnit) -> Result<(Unit, Loaded)> {
        // Each segment once, with all that the unit has of it.
        let mut wanted: BTreeMap<Key, Range<u32>> = BTreeMap::new();
        for slice in &ordered.slices {
            let Some(Entry { place: Place::Disk(spilled), .. }) = self.entries.get(&slice.batch) else { continue };
            for (segment, changes) in cut(spilled, &slice.changes) {
                let more = bounds(&changes);
                let range = wanted.entry((slice.batch, segment)).or_insert_with(|| more.clone());
                *range = range.start.min(more.start)..range.end.max(more.end);
            }
        }
        let (mut read, mut loaded) = (HashMap::with_capacity(wanted.len()), 0);
        for (key, range) in wanted {
            let (batch, start) = self.load(key, range)?;
            loaded += batch.memory_size();
            read.insert(key, (batch, start));
        }
        let mut slices = Vec::with_capacity(ordered.slices.len());
        for Slice { batch: id, changes } in ordered.slices {
            match self.entries.get(&id).map(|e| &e.place) {
                Some(Place::Memory(batch, _)) => slices.push(UnitSlice { batch: Arc::clone(batch), changes }),
                Some(Place::Disk(spilled)) => {
                    slices.extend(cut(spilled, &changes).into_iter().filter_map(|(segment, changes)| {
                        let (batch, start) = read.get(&(id, segment))?;
                        Some(UnitSlice { batch: Arc::clone(batch), changes: counted_from(changes, *start) })
                    }))
                }
                None => {
                    let problem = format!("the orderer emitted batch {} which is not waiting", id.0);
                    return Err(Error::fatal(problem));
                }
            }
        }
        self.loaded += loaded;
        let unit = Unit {
            id: ordered.id,
            kind: UnitKind::Stream,
            part: ordered.part,
            slices,
            transactions: ordered.transactions,
            progress: ordered.progress,
        };
        Ok((unit, Loaded(loaded)))
    }

    /// These changes of a segment, in a batch; and the number of its first change in the batch that was spilled.
    fn load(&mut self, key: Key, changes: Range<u32>) -> Result<(Arc<ChangeBatch>, u32)> {
        let (id, segment) = key;
        let Some(Entry { place: Place::Disk(spilled), .. }) = self.entries.get(&id) else {
            return Err(Error::fatal(format!("batch {} was not spilled", id.0)));
        };
        let of_segment = spilled.changes(segment);
        let batch = match self.recent.get(key) {
            Some(batch) => batch,
            None => {
                let batch = Arc::new(spilled.read(segment)?);
                self.recent.keep(key, &batch);
                batch
            }
        };
        // Half of it or more: nothing is gained by a copy.
        if changes.len() * 2 >= batch.len() {
            return Ok((batch, of_segment.start));
        }
        let within = changes.start - of_segment.start..changes.end - of_segment.start;
        Ok((Arc::new(part(&batch, within)?), changes.start))
    }

    /// What units have of spilled batches, in bytes.
    #[cfg(test)]
    pub(crate) fn loaded(&self) -> usize {
        self.loaded
    }

    /// The unit is applied: its memory is free.
    pub(crate) fn unload(&mut self, Loaded(bytes): Loaded) {
        self.loaded -= bytes;
    }

    /// These many changes of the batch are applied; the last ones free it.
    pub(crate) fn applied(&mut self, id: BatchId, changes: usize) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.remaining = entry.remaining.saturating_sub(changes);
            if entry.remaining == 0
                && let Some(Entry { place: Place::Disk(spilled), .. }) = self.entries.remove(&id)
            {
                (0..spilled.segments()).for_each(|segment| self.recent.forget((id, segment)));
            }
        }
        if self.entries.is_empty() {
            self.spill.clear();
        }
    }

    /// Writes waiting batches to disk if the budget is tight, newest first: the oldest are needed
    /// first. Called only while nothing is being applied, for then nothing else frees the budget.
    pub(crate) fn spill_if_tight(&mut self) -> Result<()> {
        if !self.budget.is_tight() {
            return Ok(());
        }
        for entry in self.entries.values_mut().rev() {
            if let Place::Memory(batch, _) = &entry.place {
                entry.place = Place::Disk(self.spill.write(batch)?);
            }
        }
        Ok(())
    }
}

/// The changes by segment.
fn cut(spilled: &Spilled, changes: &Selection) -> Vec<(usize, Selection)> {
    match changes {
        Selection::Range(range) => {
            let (mut all, mut start) = (Vec::new(), range.start);
            while start < range.end {
                let segment = spilled.segment_of(start);
                let end = spilled.changes(segment).end.min(range.end);
                all.push((segment, Selection::Range(start..end)));
                start = end;
            }
            all
        }
        Selection::List(list) => {
            let runs = list.chunk_by(|a, b| spilled.segment_of(*a) == spilled.segment_of(*b));
            runs.map(|run| (spilled.segment_of(run[0]), Selection::List(run.to_vec()))).collect()
        }
    }
}

/// The range that has these changes.
fn bounds(changes: &Selection) -> Range<u32> {
    match changes {
        Selection::Range(range) => range.clone(),
        Selection::List(list) => {
            let (first, last) = (list.iter().min(), list.iter().max());
            first.copied().unwrap_or_default()..last.map_or(0, |c| c + 1)
        }
    }
}

fn counted_from(changes: Selection, start: u32) -> Selection {
    match changes {
        Selection::Range(range) => Selection::Range(range.start - start..range.end - start),
        Selection::List(list) => Selection::List(list.into_iter().map(|c| c - start).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        BatchBuilder, Column, DataType, Op, PartitionId, Position, TableName, TableSchema, Transaction, ValueRef,
    };

    fn batch(rows: i64) -> Arc<ChangeBatch> {
        let schema = Arc::new(TableSchema {
            name: TableName::new("public", "t"),
            columns: vec![Column::new("id", DataType::Int64)],
            key: vec![0],
        });
        let mut batch = BatchBuilder::new(PartitionId::new("all"));
        let slot = batch.schema(&schema);
        batch.begin(Transaction::default(), 1);
        for id in 0..rows {
            batch.change(Op::Insert, slot);
            batch.new_row();
            batch.push(ValueRef::Int(id));
        }
        batch.commit(Position::default());
        Arc::new(batch.finish(Position::default(), None).unwrap())
    }

    fn ordered(id: u64, slices: Vec<Slice>) -> OrderedUnit {
        let (lane, part, transactions, progress) = (0, crate::model::Part::Whole, 1, Vec::new());
        OrderedUnit { id: crate::model::UnitId(id), lane, part, slices, transactions, progress }
    }

    /// What all batches occupy that a unit refers to.
    fn held(unit: &Unit) -> usize {
        let mut all: Vec<_> = unit.slices.iter().map(|s| &s.batch).collect();
        all.sort_by_key(|batch| Arc::as_ptr(batch));
        all.dedup_by_key(|batch| Arc::as_ptr(batch));
        all.into_iter().map(|batch| batch.memory_size()).sum()
    }

    /// Transactions over all partitions are merged out of spilled batches, four to a unit.
    #[tokio::test]
    async fn memory_is_bounded_however_many_partitions_there_are() {
        const MEMORY: usize = 64 << 10;
        const ROWS: i64 = 500;
        for partitions in [4, 40, 400] {
            let budget = Budget::new(MEMORY);
            let mut batches = Batches::new(budget.clone());
            let mut ids = Vec::new();
            let size = batch(ROWS).memory_size();
            for _ in 0..partitions {
                ids.push(batches.add(batch(ROWS), budget.reserve(size).await.unwrap()));
                batches.spill_if_tight().unwrap();
            }
            // Nothing is in memory but what units have, and what was read last.
            while !budget.is_tight() {
                ids.push(batches.add(batch(ROWS), budget.reserve(size).await.unwrap()));
            }
            batches.spill_if_tight().unwrap();
            assert_eq!(budget.permits.available_permits(), budget.total as usize);
            let mut most = 0;
            for first in (0..20_u32).step_by(4) {
                let one = |id: &BatchId, at: u32| Slice { batch: *id, changes: Selection::Range(at..at + 1) };
                let all = (first..first + 4).flat_map(|at| ids.iter().map(move |id| one(id, at)));
                let (unit, loaded) = batches.resolve(ordered(1, all.collect())).unwrap();
                assert_eq!(unit.len(), 4 * ids.len());
                for (n, change) in unit.changes().enumerate() {
                    let at = i64::from(first) + (n / ids.len()) as i64;
                    assert_eq!(change.new_row().unwrap().get(0), ValueRef::Int(at));
                }
                assert_eq!(loaded.0, held(&unit));
                // As large as an orderer makes a unit, and not yet applied.
                assert!(!batches.has_room_for(&ordered(0, vec![one(&ids[0], 0); MEMORY / 2])));
                most = most.max(held(&unit) + batches.recent.bytes());
                batches.unload(loaded);
            }
            // A batch of four changes has its own overhead.
            let unit = ids.len() * 1024;
            assert!(most <= MEMORY / 4 + unit, "{partitions} partitions: {most} bytes, of {}", ids.len() * size);
            ids.iter().for_each(|id| batches.applied(*id, ROWS as usize));
            assert_eq!((batches.recent.bytes(), batches.loaded), (0, 0));
        }
    }

    /// Any selection of a batch is the same from memory and from disk.
    #[tokio::test]
    async fn what_was_spilled_comes_back() {
        let budget = Budget::new(16 << 10);
        let mut batches = Batches::new(budget.clone());
        let whole = batch(3000);
        let id = batches.add(Arc::clone(&whole), budget.reserve(whole.memory_size()).await.unwrap());
        batches.spill_if_tight().unwrap();
        let odd = Selection::List((0..3000).filter(|n| n % 7 == 3).collect());
        for changes in [Selection::Range(0..3000), Selection::Range(5..6), Selection::Range(900..2500), odd] {
            let slice = Slice { batch: id, changes: changes.clone() };
            let (unit, loaded) = batches.resolve(ordered(1, vec![slice])).unwrap();
            let ranks: Vec<_> = changes.iter().map(|at| whole.change(at as usize).rank()).collect();
            assert_eq!(unit.changes().map(|c| c.rank()).collect::<Vec<_>>(), ranks);
            batches.unload(loaded);
        }
    }
}
