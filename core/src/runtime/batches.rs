//! The batches between the readers and the lanes: one byte budget, and a file for what waits too long.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::Arc;

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
    Disk { at: u64, len: usize, schemas: Vec<Arc<TableSchema>> },
}

impl Batches {
    pub(crate) fn new(budget: Budget) -> Self {
        Self { budget, next: 0, entries: BTreeMap::new(), spill: None }
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
            entry.place = Place::Disk { at, len, schemas: batch.schemas().to_vec() };
        }
        Ok(())
    }

    fn get(&mut self, id: BatchId) -> Result<Arc<ChangeBatch>> {
        let entry = self
            .entries
            .get(&id)
            .ok_or_else(|| Error::fatal(format!("the orderer emitted batch {} which is not waiting", id.0)))?;
        match (&entry.place, &mut self.spill) {
            (Place::Memory(batch, _), _) => Ok(Arc::clone(batch)),
            (Place::Disk { at, len, schemas }, Some(file)) => {
                ChangeBatch::unspill(schemas.clone(), &file.read(*at, *len)?).map(Arc::new)
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
