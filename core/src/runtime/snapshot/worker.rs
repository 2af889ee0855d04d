//! Copies chunks: the task that owns a snapshot's writer.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::dead_letter::LetterClass;
use crate::error::{Error, Result};
use crate::metrics::Pulse;
use crate::model::{ChangeBatch, Part, Selection, TableName, Unit, UnitId, UnitKind, UnitSlice};
use crate::runtime::reader::Transforms;
use crate::sink::SinkWriter;
use crate::source::{ChangeReader, Chunk, Next, Snapshot};
use crate::transform::rewrite;

/// What a worker tells when a chunk is durable.
pub(super) struct ChunkDone {
    pub(super) table: TableName,
    pub(super) index: u32,
    pub(super) rows: u64,
}

pub(super) type Queue = Arc<Mutex<VecDeque<Chunk>>>;

/// Copies one chunk after another.
pub(super) struct Worker {
    pub(super) snapshot: Arc<dyn Snapshot>,
    pub(super) queue: Queue,
    pub(super) writer: Box<dyn SinkWriter>,
    pub(super) transforms: Transforms,
    pub(super) pulse: Arc<Pulse>,
    pub(super) tell: mpsc::Sender<ChunkDone>,
    pub(super) halt: CancellationToken,
    pub(super) max_bytes: usize,
}

impl Worker {
    pub(super) async fn run(mut self) -> Result<()> {
        while !self.halt.is_cancelled() {
            let next = self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(chunk) = next else { break };
            let mut reader = self.snapshot.open(&chunk).await?;
            let Some(rows) = self.copy_chunk(reader.as_mut()).await? else { return Ok(()) };
            reader.close().await?;
            let done = ChunkDone { table: chunk.table, index: chunk.index, rows };
            self.tell.send(done).await.map_err(|_| Error::transient("the pipeline ended"))?;
        }
        self.writer.close().await
    }

    /// Copies a chunk as parts of one target transaction; `None` if it was stopped. One batch is
    /// held back, for only the end of the chunk tells which part is the last.
    async fn copy_chunk(&mut self, reader: &mut dyn ChangeReader) -> Result<Option<u64>> {
        let mut rows = 0;
        let mut opened = false;
        let mut held: Vec<ChangeBatch> = Vec::new();
        loop {
            let next = tokio::select! {
                biased;
                // 1. A read may be dropped, and may take long: of a limited rate, or from a slow server.
                () = self.halt.cancelled() => return Ok(None),
                // 2. What is next.
                next = reader.next() => next?,
            };
            match next {
                Next::Batch(batch) => {
                    self.pulse.read(&batch);
                    let size = |batches: &[ChangeBatch]| batches.iter().map(ChangeBatch::memory_size).sum::<usize>();
                    if !held.is_empty() && size(&held) + batch.memory_size() > self.max_bytes {
                        let part = if opened { Part::Middle } else { Part::First };
                        opened = true;
                        rows += self.write(std::mem::take(&mut held), part).await?;
                    }
                    let batch = without_left_out(self.transforms.apply(batch)?)?;
                    if !batch.is_empty() {
                        held.push(batch);
                    }
                }
                Next::Closed { .. } => break,
                Next::Stopped => return Err(Error::transient("the reading of a snapshot chunk stopped early")),
            }
        }
        if opened || !held.is_empty() {
            let part = if opened { Part::Last } else { Part::Whole };
            rows += self.write(held, part).await?;
            self.writer.flush().await?;
        }
        Ok(Some(rows))
    }

    async fn write(&mut self, batches: Vec<ChangeBatch>, part: Part) -> Result<u64> {
        let mut seen = HashSet::new();
        let slices: Vec<UnitSlice> = batches
            .into_iter()
            .map(|batch| {
                seen.extend(batch.schemas().iter().map(|s| s.name.clone()));
                let changes = Selection::Range(0..batch.len() as u32);
                UnitSlice { batch: Arc::new(batch), changes }
            })
            .collect();
        let unit =
            Unit { id: UnitId(0), kind: UnitKind::Snapshot, part, slices, transactions: 0, progress: Vec::new() };
        let rows = unit.len() as u64;
        let _writing = self.pulse.writing();
        let written = self.writer.write(&unit).await.map_err(|e| {
            let tables: Vec<String> = seen.iter().map(TableName::to_string).collect();
            e.context(format!("copying {}", tables.join(", ")))
        })?;
        match written.rejected.into_iter().next() {
            Some(rejected) => Err(rejected.error.context("the target refuses a row of the snapshot")),
            None => Ok(rows),
        }
    }
}

/// A copy has no place for what transforms leave out, except for what they refuse.
fn without_left_out(batch: ChangeBatch) -> Result<ChangeBatch> {
    if !batch.leaves_out() {
        return Ok(batch);
    }
    let refused = batch.changes().find_map(|c| c.left_out().filter(|why| why.class == LetterClass::Severe));
    if let Some(why) = refused {
        return Err(Error::rejected(why.reason.to_string()).context("a row of the snapshot"));
    }
    rewrite(&batch, |change, out| {
        if change.left_out().is_none() {
            out.keep(change);
        }
        Ok(())
    })
}
