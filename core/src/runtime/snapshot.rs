//! Copies tables: chunks in parallel, each in one target transaction, resumable table by table.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::reader::Transforms;
use super::saver::BEAT;
use super::session::Session;
use crate::dead_letter::LetterClass;
use crate::error::{Error, Result};
use crate::mapping::TargetSchema;
use crate::metrics::Pulse;
use crate::model::{
    ChangeBatch, Part, Selection, SnapshotPhase, TableName, TableSchema, TableSnapshot, Timestamp, Unit, UnitId,
    UnitKind, UnitSlice,
};
use crate::pipeline::{Phase, Shared, SnapshotMode};
use crate::sink::{LanePurpose, SinkWriter};
use crate::source::{ChangeReader, Chunk, Next, Snapshot};
use crate::transform::rewrite;

/// Copies every table that is not copied yet, also one that was published after the others were
/// copied: the stream has only its later changes. Returns false if it was stopped before it was done.
pub(crate) async fn copy(session: &mut Session, shared: &Shared, stop: &CancellationToken) -> Result<bool> {
    let spec = Arc::clone(&session.spec);
    if session.keeper.checkpoint.snapshot.phase == SnapshotPhase::Done
        && (!copies(session) || unfinished(session).is_empty())
    {
        return Ok(true);
    }
    let snapshotter = match (spec.snapshot, spec.source.snapshotter()) {
        (SnapshotMode::Never, _) => {
            session.keeper.checkpoint.snapshot.phase = SnapshotPhase::Done;
            session.keeper.checkpoint.snapshot.skipped = true;
            session.keeper.save().await?;
            return Ok(true);
        }
        (_, None) => {
            let name = spec.source.info().name;
            return Err(Error::config("source.snapshot", format!("the source {name} cannot copy tables"))
                .hint("set snapshot = \"never\""));
        }
        (_, Some(snapshotter)) => snapshotter,
    };
    let left = unfinished(session);
    let interrupted = left.iter().any(|t| is_planned(session, &t.name));
    let resumed = match interrupted {
        true => snapshotter.resume(&left, &session.keeper.checkpoint.snapshot.tables).await?,
        false => None,
    };
    prepare_targets(session, resumed.is_some()).await?;
    if !left.is_empty() {
        shared.phase(Phase::Snapshot);
        let goes_on = resumed.is_some();
        let snapshot: Arc<dyn Snapshot> = match resumed {
            Some(snapshot) => Arc::from(snapshot),
            None => Arc::from(snapshotter.begin(&left).await?),
        };
        tracing::info!(pipeline = %spec.name, tables = left.len(), chunks = snapshot.chunks().len(), goes_on, "the snapshot begins");
        plan(session, snapshot.as_ref(), &left, goes_on).await?;
        if !run(session, snapshot, shared, stop).await? {
            return Ok(false);
        }
    }
    session.keeper.checkpoint.snapshot.phase = SnapshotPhase::Done;
    session.keeper.save().await?;
    Ok(true)
}

/// Whether this pipeline copies tables: also those that are published while it runs.
pub(crate) fn copies(session: &Session) -> bool {
    session.spec.snapshot != SnapshotMode::Never && !session.keeper.checkpoint.snapshot.skipped
}

fn unfinished(session: &Session) -> Vec<TableSchema> {
    let done = &session.keeper.checkpoint.snapshot.tables;
    let is_done = |name: &TableName| done.get(name).is_some_and(|t| t.finished);
    session.tables.iter().map(|(source, _)| source).filter(|t| !is_done(&t.name)).cloned().collect()
}

/// Whether a copy of this table was begun.
fn is_planned(session: &Session, name: &TableName) -> bool {
    session.keeper.checkpoint.snapshot.tables.get(name).is_some_and(|t| t.chunks > 0)
}

/// Empty targets are required at first; what an interrupted copy left is removed, unless it goes on.
async fn prepare_targets(session: &mut Session, goes_on: bool) -> Result<()> {
    if let Some(target) = session.spec.sink.target() {
        let snapshot = &session.keeper.checkpoint.snapshot;
        for (source, goal) in &session.tables {
            match snapshot.tables.get(&source.name) {
                Some(table) if table.finished || goes_on && table.chunks > 0 => {}
                Some(_) => target.clear(&goal.name).await?,
                None => require_empty(target, goal).await?,
            }
        }
    }
    // Stored before the first row is copied, so that a run that finds rows knows that they are ours.
    let snapshot = &mut session.keeper.checkpoint.snapshot;
    snapshot.phase = SnapshotPhase::Copying;
    for (source, _) in &session.tables {
        snapshot.tables.entry(source.name.clone()).or_default();
    }
    session.keeper.save().await
}

async fn require_empty(target: &dyn TargetSchema, table: &TableSchema) -> Result<()> {
    if target.describe(&table.name).await?.is_some() && !target.is_empty(&table.name).await? {
        return Err(Error::config("source.snapshot", format!("the target table {} already has rows", table.name))
            .hint(
                "this pipeline has not copied it: empty it, or set snapshot = \"never\" if it holds the source's rows \
                 already",
            ));
    }
    Ok(())
}

async fn plan(session: &mut Session, snapshot: &dyn Snapshot, tables: &[TableSchema], goes_on: bool) -> Result<()> {
    let progress = &mut session.keeper.checkpoint.snapshot;
    for table in tables {
        let chunks = snapshot.chunks().iter().filter(|c| c.table == table.name).count() as u32;
        match progress.tables.get(&table.name) {
            Some(before) if goes_on && before.chunks == chunks => continue,
            Some(before) if goes_on && before.chunks > 0 => {
                let planned = before.chunks;
                let table = &table.name;
                return Err(Error::fatal(format!("the copy of {table} goes on in {chunks} chunks and had {planned}")));
            }
            _ => {}
        }
        let planned = TableSnapshot { point: snapshot.point(), chunks, finished: chunks == 0, ..Default::default() };
        progress.tables.insert(table.name.clone(), planned);
    }
    session.keeper.save().await
}

/// What a worker tells when a chunk is durable.
struct ChunkDone {
    table: TableName,
    index: u32,
    rows: u64,
}

async fn run(
    session: &mut Session,
    snapshot: Arc<dyn Snapshot>,
    shared: &Shared,
    stop: &CancellationToken,
) -> Result<bool> {
    let workers =
        session.spec.snapshot_workers.min(session.spec.sink.info().max_lanes).min(snapshot.chunks().len() as u32);
    let done = &session.keeper.checkpoint.snapshot.tables;
    let is_done = |c: &Chunk| done.get(&c.table).is_some_and(|t| t.done_chunks.contains(&c.index));
    let queue: Queue = Arc::new(Mutex::new(snapshot.chunks().iter().filter(|c| !is_done(c)).cloned().collect()));
    let (tell, mut done) = mpsc::channel::<ChunkDone>(64);
    // A failing worker stops the others between two batches: nothing is dropped in the middle of a write.
    let halt = stop.child_token();
    let mut tasks = JoinSet::new();
    for index in 0..workers.max(1) {
        let writer = session.spec.sink.open(session.lane(index, LanePurpose::Snapshot)).await?;
        let worker = Worker {
            snapshot: Arc::clone(&snapshot),
            queue: Arc::clone(&queue),
            writer,
            transforms: session.transforms.clone(),
            pulse: shared.pulse(),
            tell: tell.clone(),
            halt: halt.clone(),
            max_bytes: session.spec.memory / (2 * workers.max(1) as usize),
        };
        tasks.spawn(worker.run().instrument(tracing::info_span!("copy", worker = index)));
    }
    drop(tell);
    let mut failure = None;
    let mut beat = interval(BEAT);
    loop {
        tokio::select! {
            biased;
            // 1. What is durable is recorded first, also when a worker has failed.
            Some(chunk) = done.recv() => {
                if let Err(e) = record(session, shared, &chunk).await {
                    halt.cancel();
                    failure.get_or_insert(e);
                }
            }
            // 2. A worker ended.
            ended = tasks.join_next() => match ended {
                None => break,
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err(e))) => {
                    halt.cancel();
                    failure.get_or_insert(e);
                }
                Some(Err(e)) => {
                    halt.cancel();
                    failure.get_or_insert_with(|| Error::fatal("a snapshot worker panicked").because(e));
                }
            },
            // 3. A sign of life, however long a chunk takes.
            _ = beat.tick(), if failure.is_none() => if let Err(e) = session.keeper.save().await {
                halt.cancel();
                failure.get_or_insert(e);
            },
        }
    }
    while let Ok(chunk) = done.try_recv() {
        record(session, shared, &chunk).await?;
    }
    match failure {
        Some(e) => Err(e),
        None => Ok(unfinished(session).is_empty()),
    }
}

async fn record(session: &mut Session, shared: &Shared, chunk: &ChunkDone) -> Result<()> {
    let checkpoint = &mut session.keeper.checkpoint;
    let Some(table) = checkpoint.snapshot.tables.get_mut(&chunk.table) else { return Ok(()) };
    table.done += 1;
    table.rows += chunk.rows;
    table.done_chunks.insert(chunk.index);
    table.finished = table.done == table.chunks;
    if table.finished {
        table.done_chunks.clear();
        table.finished_at = Some(Timestamp::now());
    }
    checkpoint.counters.snapshot_rows += chunk.rows;
    session.snapshot_rows += chunk.rows;
    let counters = session.counters();
    shared.copied(counters, &session.keeper.checkpoint.snapshot);
    session.keeper.save().await
}

type Queue = Arc<Mutex<VecDeque<Chunk>>>;

struct Worker {
    snapshot: Arc<dyn Snapshot>,
    queue: Queue,
    writer: Box<dyn SinkWriter>,
    transforms: Transforms,
    pulse: Arc<Pulse>,
    tell: mpsc::Sender<ChunkDone>,
    halt: CancellationToken,
    max_bytes: usize,
}

impl Worker {
    async fn run(mut self) -> Result<()> {
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
            if self.halt.is_cancelled() {
                return Ok(None);
            }
            match reader.next().await? {
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
