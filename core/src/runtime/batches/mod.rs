//! The batches between the readers and the lanes: one byte budget, and a file for what waits too long.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::{Arc, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Result};
use crate::model::{BatchId, ChangeBatch, OrderedUnit, TableSchema, Unit, UnitKind, UnitSlice};

/// The byte budget of a pipeline. A batch holds its share from the moment it was read until it is
/// applied (or spilled). One batch more than the budget may be in memory at each reader: it must be
/// read before its size is known.
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
    spill: Option<SpillFile>,
    recent: Recent,
}

/// Spilled batches that were read back last, the oldest first: of several partitions that are merged, each
/// transaction may be in another one's batch. They are beside the budget.
#[derive(Debug)]
struct Recent {
    batches: VecDeque<(BatchId, Arc<ChangeBatch>)>,
    bytes: usize,
    /// Half of the budget: the heads of a dozen partitions in the default one.
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
    /// `loaded` by a unit that is not applied yet, or lately.
    Disk {
        at: u64,
        len: usize,
        schemas: Vec<Arc<TableSchema>>,
        loaded: Weak<ChangeBatch>,
    },
}

impl Recent {
    /// This one is used now.
    fn touch(&mut self, id: BatchId, batch: &Arc<ChangeBatch>) {
        if self.batches.back().is_some_and(|(last, _)| *last == id) {
            return;
        }
        self.forget(id);
        self.bytes += batch.memory_size();
        self.batches.push_back((id, Arc::clone(batch)));
        while self.bytes > self.limit
            && self.batches.len() > 1
            && let Some((_, oldest)) = self.batches.pop_front()
        {
            self.bytes -= oldest.memory_size();
        }
    }

    fn forget(&mut self, id: BatchId) {
        if let Some(at) = self.batches.iter().position(|(known, _)| *known == id)
            && let Some((_, batch)) = self.batches.remove(at)
        {
            self.bytes -= batch.memory_size();
        }
    }
}

impl Batches {
    pub(crate) fn new(budget: Budget) -> Self {
        let limit = budget.total as usize * BYTES_PER_PERMIT / 2;
        let recent = Recent { batches: VecDeque::new(), bytes: 0, limit };
        Self { budget, next: 0, entries: BTreeMap::new(), spill: None, recent }
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

    /// The unit with its batches.
    pub(crate) fn resolve(&mut self, ordered: OrderedUnit) -> Result<Unit> {
        let mut slices = Vec::with_capacity(ordered.slices.len());
        for slice in ordered.slices {
            slices.push(UnitSlice { batch: self.get(slice.batch)?, changes: slice.changes });
        }
        Ok(Unit {
            id: ordered.id,
            kind: UnitKind::Stream,
            part: ordered.part,
            slices,
            transactions: ordered.transactions,
            progress: ordered.progress,
        })
    }

    /// These many changes of the batch are applied; the last ones free it.
    pub(crate) fn applied(&mut self, id: BatchId, changes: usize) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.remaining = entry.remaining.saturating_sub(changes);
            if entry.remaining == 0 {
                self.entries.remove(&id);
                self.recent.forget(id);
            }
        }
        if self.entries.is_empty() {
            // Nothing refers to the file any more: begin a new one when it is needed again.
            self.spill = None;
        }
    }

    /// Writes waiting batches to disk if the budget is tight, newest first: the oldest are needed
    /// first. Called only while nothing is being applied, for then nothing else frees the budget.
    pub(crate) fn spill_if_tight(&mut self) -> Result<()> {
        if !self.budget.is_tight() {
            return Ok(());
        }
        let mut waiting: VecDeque<BatchId> =
            self.entries.iter().filter(|(_, e)| matches!(e.place, Place::Memory(..))).map(|(id, _)| *id).collect();
        while let Some(id) = waiting.pop_back() {
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            let Place::Memory(batch, _) = &entry.place else { continue };
            let file = match &mut self.spill {
                Some(file) => file,
                none => none.insert(SpillFile::create()?),
            };
            let (at, len) = file.append(&batch.spill()?)?;
            entry.place = Place::Disk { at, len, schemas: batch.schemas().to_vec(), loaded: Weak::new() };
        }
        Ok(())
    }

    fn get(&mut self, id: BatchId) -> Result<Arc<ChangeBatch>> {
        let entry = self
            .entries
            .get_mut(&id)
            .ok_or_else(|| Error::fatal(format!("the orderer emitted batch {} which is not waiting", id.0)))?;
        match (&mut entry.place, &mut self.spill) {
            (Place::Memory(batch, _), _) => Ok(Arc::clone(batch)),
            (Place::Disk { at, len, schemas, loaded }, Some(file)) => {
                let batch = match loaded.upgrade() {
                    Some(batch) => batch,
                    None => Arc::new(ChangeBatch::unspill(schemas.clone(), &file.read(*at, *len)?)?),
                };
                *loaded = Arc::downgrade(&batch);
                self.recent.touch(id, &batch);
                Ok(batch)
            }
            (Place::Disk { .. }, None) => Err(Error::fatal("a spilled batch has no file")),
        }
    }
}

/// A temporary file without a name: gone when the process is.
#[derive(Debug)]
struct SpillFile {
    file: File,
    end: u64,
}

impl SpillFile {
    fn create() -> Result<Self> {
        let file = tempfile::tempfile().map_err(|e| Error::transient("cannot create a spill file").because(e))?;
        Ok(Self { file, end: 0 })
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(u64, usize)> {
        let at = self.end;
        self.file.seek(SeekFrom::Start(at)).and_then(|_| self.file.write_all(bytes)).map_err(|e| {
            Error::transient("cannot write to the spill file")
                .because(e)
                .hint("is the disk of the temporary folder full?")
        })?;
        self.end += bytes.len() as u64;
        Ok((at, bytes.len()))
    }

    fn read(&mut self, at: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.file
            .seek(SeekFrom::Start(at))
            .and_then(|_| self.file.read_exact(&mut bytes))
            .map_err(|e| Error::transient("cannot read the spill file").because(e))?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BatchBuilder, Column, DataType, Op, PartitionId, Position, TableName, Transaction, ValueRef};

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
            batch.push(ValueRef::Int(id));
        }
        batch.commit(Position::default());
        Arc::new(batch.finish(Position::default(), None).unwrap())
    }

    /// Transactions of several partitions are merged out of many spilled batches, one change at a time.
    #[tokio::test]
    async fn a_spilled_batch_is_read_once_while_it_is_used() {
        let budget = Budget::new(64 << 10);
        let mut batches = Batches::new(budget.clone());
        let mut ids = Vec::new();
        let size = batch(500).memory_size();
        while !budget.is_tight() {
            ids.push(batches.add(batch(500), budget.reserve(size).await.unwrap()));
        }
        batches.spill_if_tight().unwrap();
        assert!(batches.entries.values().all(|e| matches!(e.place, Place::Disk { .. })) && !budget.is_tight());

        // Shared as long as anybody has it.
        let held: Vec<_> = ids.iter().map(|id| batches.get(*id).unwrap()).collect();
        for (id, held) in ids.iter().zip(&held) {
            assert!(Arc::ptr_eq(held, &batches.get(*id).unwrap()) && held.len() == 500);
        }
        // And kept for a while after that, within the limit.
        drop(held);
        let kept = batches.recent.batches.len();
        assert!(kept >= 1 && batches.recent.bytes <= 32 << 10, "{kept} of {}", ids.len());
        let (id, last) = batches.recent.batches.back().cloned().unwrap();
        assert!(Arc::ptr_eq(&last, &batches.get(id).unwrap()));

        for id in ids {
            batches.applied(id, 500);
        }
        assert!(batches.recent.batches.is_empty() && batches.recent.bytes == 0 && batches.spill.is_none());
    }
}
