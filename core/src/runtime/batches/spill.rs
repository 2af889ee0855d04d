//! Batches on disk: cut into segments, so that a unit reads no more than it needs.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::model::{ChangeBatch, TableSchema};
use crate::transform::part;

/// About the bytes of a segment in memory. Of a thousand partitions the heads are 8 MiB then, which stay in
/// memory beside the default budget; with a quarter of that a large transaction would be read slower.
pub(super) const SEGMENT: usize = 8 << 10;

/// When another file is begun: a file takes its space on the disk until nothing in it waits any more.
const FILE: u64 = 64 << 20;

/// A batch that was written to disk.
#[derive(Debug)]
pub(super) struct Spilled {
    file: Arc<File>,
    schemas: Vec<Arc<TableSchema>>,
    segments: Vec<Segment>,
    /// How many changes a segment has; the last one may have fewer.
    step: u32,
    /// About the bytes of a change in memory.
    change_bytes: usize,
}

#[derive(Debug)]
struct Segment {
    changes: Range<u32>,
    at: u64,
    len: usize,
}

impl Spilled {
    /// The place of the segment that has this change.
    pub(super) fn segment_of(&self, change: u32) -> usize {
        (change / self.step) as usize
    }

    /// How many segments it has.
    pub(super) fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Which changes of the batch it has.
    pub(super) fn changes(&self, segment: usize) -> Range<u32> {
        self.segments[segment].changes.clone()
    }

    /// About what these many changes occupy in memory.
    pub(super) fn bytes(&self, changes: usize) -> usize {
        self.change_bytes * changes
    }

    pub(super) fn read(&self, segment: usize) -> Result<ChangeBatch> {
        let Segment { at, len, .. } = self.segments[segment];
        let mut bytes = vec![0; len];
        let mut file = &*self.file;
        file.seek(SeekFrom::Start(at))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|e| Error::transient("cannot read the spill file").because(e))?;
        ChangeBatch::unspill(self.schemas.clone(), &bytes)
    }
}

/// Files without a name: gone when the process is, or when no batch is in them.
#[derive(Debug, Default)]
pub(super) struct SpillFiles {
    last: Option<(Arc<File>, u64)>,
}

impl SpillFiles {
    /// Writes a batch that has changes.
    pub(super) fn write(&mut self, batch: &ChangeBatch) -> Result<Spilled> {
        let (file, mut end) = match self.last.take().filter(|(_, end)| *end < FILE) {
            Some(last) => last,
            None => {
                let made = tempfile::tempfile().map_err(|e| Error::transient("cannot create a spill file").because(e));
                (Arc::new(made?), 0)
            }
        };
        let changes = batch.len() as u32;
        let change_bytes = batch.memory_size().div_ceil(batch.len().max(1));
        let step = (SEGMENT / change_bytes.max(1)).max(1).min(batch.len()) as u32;
        let (mut segments, mut bytes) = (Vec::with_capacity(changes.div_ceil(step) as usize), Vec::new());
        // All have the schemas of the batch, in its order.
        let schemas = batch.schemas().to_vec();
        for start in (0..changes).step_by(step as usize) {
            let range = start..changes.min(start + step);
            let segment =
                if range.len() == batch.len() { batch.spill()? } else { part(batch, range.clone())?.spill()? };
            segments.push(Segment { changes: range, at: end + bytes.len() as u64, len: segment.len() });
            bytes.extend_from_slice(&segment);
        }
        let mut writer = &*file;
        writer.seek(SeekFrom::Start(end)).and_then(|_| writer.write_all(&bytes)).map_err(|e| {
            Error::transient("cannot write to the spill file")
                .because(e)
                .hint("is the disk of the temporary folder full?")
        })?;
        end += bytes.len() as u64;
        self.last = Some((Arc::clone(&file), end));
        Ok(Spilled { file, schemas, segments, step, change_bytes })
    }

    /// Nothing is in any of them.
    pub(super) fn clear(&mut self) {
        self.last = None;
    }
}
