//! Copies tables: chunks in parallel, each in one target transaction, resumable table by table, and
//! within a table where the source can tell what changed meanwhile.

mod resume;
mod transforms;
mod worker;

use std::sync::{Arc, Mutex};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::saver::BEAT;
use super::session::Session;
use crate::error::{Error, Result};
use crate::mapping::TargetSchema;
use crate::model::{SnapshotPhase, TableName, TableSchema, TableSnapshot};
use crate::pipeline::{Phase, Shared, SnapshotMode};
use crate::sink::LanePurpose;
use crate::source::{ChangedRows, Chunk, Snapshot};
use resume::Resumed;
use worker::{ChunkDone, Queue, Worker};

/// Copies every table that is not copied yet, also one that was published after the others were
/// copied: the stream has only its later changes. Returns false if it was stopped before it was done.
pub(crate) async fn copy(session: &mut Session, shared: &Shared, stop: &CancellationToken) -> Result<bool> {
    let spec = Arc::clone(&session.spec);
    transforms::begin_anew(session)?;
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
    if !left.is_empty() {
        shared.phase(Phase::Snapshot);
    }
    let Some(resumed) = resume::resume(session, snapshotter, &left, stop).await? else { return Ok(false) };
    prepare_targets(session, &resumed).await?;
    if !left.is_empty() {
        let goes_on = resumed.snapshot.is_some();
        let snapshot: Arc<dyn Snapshot> = match resumed.snapshot.clone() {
            Some(snapshot) => snapshot,
            None => Arc::from(snapshotter.begin(&left).await?),
        };
        tracing::info!(pipeline = %spec.name, tables = left.len(), chunks = snapshot.chunks().len(), goes_on, "the snapshot begins");
        plan(session, snapshot.as_ref(), &left, &resumed).await?;
        if !copy_all(session, &snapshot, &resumed, shared, stop).await? {
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

/// Empty targets are required at first; what an interrupted copy left is removed, unless it goes on.
async fn prepare_targets(session: &mut Session, resumed: &Resumed) -> Result<()> {
    let target = session.spec.sink.target();
    let mut emptied = Vec::new();
    let snapshot = &mut session.keeper.checkpoint.snapshot;
    for (source, goal) in &session.tables {
        match snapshot.tables.get_mut(&source.name) {
            Some(table) if table.finished || resumed.goes_on(&source.name) => continue,
            // Before a row of it is removed it must be known that nothing of it is copied: the run after
            // a crash in between could go on with chunks that are not there any more.
            Some(table) if table.into.as_ref().is_none_or(|into| *into == goal.name) => {
                *table = into(goal);
                emptied.push(&goal.name);
            }
            // New, or to be copied into another table than before, whose rows may be anybody's.
            _ => {
                if let Some(target) = target {
                    require_empty(target, goal).await?;
                }
                snapshot.tables.insert(source.name.clone(), into(goal));
            }
        }
    }
    // Stored before the first row is copied, so that a run that finds rows knows that they are ours.
    snapshot.phase = SnapshotPhase::Copying;
    session.keeper.save().await?;
    if let Some(target) = target {
        for name in emptied {
            target.clear(name).await?;
        }
    }
    Ok(())
}

/// Nothing of it is copied yet.
fn into(goal: &TableSchema) -> TableSnapshot {
    TableSnapshot { into: Some(goal.name.clone()), ..TableSnapshot::default() }
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

async fn plan(session: &mut Session, snapshot: &dyn Snapshot, tables: &[TableSchema], resumed: &Resumed) -> Result<()> {
    let transforms = session.transforms.digest()?;
    for table in tables {
        let chunks = snapshot.chunks().iter().filter(|c| c.table == table.name).count() as u32;
        let goal = session.tables.iter().find(|(source, _)| source.name == table.name).map(|(_, goal)| goal);
        let (into, goal) = (goal.map(|goal| goal.name.clone()), goal.map(TableSchema::digest));
        let progress = &mut session.keeper.checkpoint.snapshot;
        if let Some(before) = progress.tables.get(&table.name).filter(|_| resumed.goes_on(&table.name)) {
            if before.chunks != chunks {
                let (planned, table) = (before.chunks, &table.name);
                return Err(Error::fatal(format!("the copy of {table} goes on in {chunks} chunks and had {planned}")));
            }
            continue;
        }
        let finished = chunks == 0;
        let (plan, target) = if finished { (None, None) } else { (snapshot.plan(&table.name), goal) };
        let (point, transforms) = (snapshot.point(), Some(transforms.clone()));
        let planned =
            TableSnapshot { point, chunks, finished, plan, target, into, transforms, ..TableSnapshot::default() };
        progress.tables.insert(table.name.clone(), planned);
    }
    session.keeper.save().await
}

/// Tables whose copies go on come first: the longer they wait, the more rows change.
async fn copy_all(
    session: &mut Session,
    snapshot: &Arc<dyn Snapshot>,
    resumed: &Resumed,
    shared: &Shared,
    stop: &CancellationToken,
) -> Result<bool> {
    let done = &session.keeper.checkpoint.snapshot.tables;
    let is_done = |c: &Chunk| done.get(&c.table).is_some_and(|t| t.done_chunks.contains(&c.index));
    let left = snapshot.chunks().iter().filter(|c| !is_done(c)).cloned();
    let (changed, others): (Vec<Chunk>, Vec<Chunk>) = left.partition(|c| resumed.changed.contains_key(&c.table));
    let of_changed =
        |chunks: fn(&ChangedRows) -> &Vec<Chunk>| resumed.changed.values().flat_map(chunks).cloned().collect();
    // Each pass is durable before the next begins. Those over changed rows have one lane, for they
    // touch rows all over the table: two of them could wait for each other's locks.
    let passes =
        [(Pass::Keys, of_changed(|c| &c.keys)), (Pass::Changed, changed), (Pass::Rows, of_changed(|c| &c.rows))];
    for (pass, chunks) in passes {
        if !run(session, snapshot, pass, chunks, shared, stop).await? {
            return Ok(false);
        }
    }
    finish(session, snapshot.as_ref(), resumed, shared).await?;
    run(session, snapshot, Pass::Whole, others, shared, stop).await
}

/// The tables that went on are whole now, and as they were at the new point.
async fn finish(session: &mut Session, snapshot: &dyn Snapshot, resumed: &Resumed, shared: &Shared) -> Result<()> {
    if resumed.changed.is_empty() {
        return Ok(());
    }
    let progress = &mut session.keeper.checkpoint.snapshot;
    for name in resumed.changed.keys() {
        let Some(table) = progress.tables.get_mut(name) else { continue };
        if table.done != table.chunks {
            return Err(Error::fatal(format!("{} of {} chunks of {name} are copied", table.done, table.chunks)));
        }
        table.point = snapshot.point();
        table.end();
    }
    let counters = session.counters();
    shared.copied(counters, &session.keeper.checkpoint.snapshot);
    session.keeper.save().await
}

/// What chunks are copied for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// The keys of changed rows are removed.
    Keys,
    /// The rest of a table that goes on.
    Changed,
    /// The changed rows come back.
    Rows,
    /// Tables that need no more than their chunks.
    Whole,
}

/// Copies these chunks. Returns false if it was stopped before they were done.
async fn run(
    session: &mut Session,
    snapshot: &Arc<dyn Snapshot>,
    pass: Pass,
    chunks: Vec<Chunk>,
    shared: &Shared,
    stop: &CancellationToken,
) -> Result<bool> {
    if chunks.is_empty() {
        return Ok(true);
    }
    let mut left = chunks.len();
    let lanes = if matches!(pass, Pass::Keys | Pass::Rows) { 1 } else { session.spec.snapshot_workers };
    let workers = lanes.min(session.spec.sink.info().max_lanes).min(chunks.len() as u32);
    let queue: Queue = Arc::new(Mutex::new(chunks.into()));
    let (tell, mut done) = mpsc::channel::<ChunkDone>(64);
    // A failing worker stops the others between two batches: nothing is dropped in the middle of a write.
    let halt = stop.child_token();
    let mut tasks = JoinSet::new();
    for index in 0..workers.max(1) {
        let writer = session.spec.sink.open(session.lane(index, LanePurpose::Snapshot)).await?;
        let worker = Worker {
            snapshot: Arc::clone(snapshot),
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
                left -= 1;
                if let Err(e) = record(session, shared, pass, &chunk).await {
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
        left -= 1;
        record(session, shared, pass, &chunk).await?;
    }
    match failure {
        Some(e) => Err(e),
        None => Ok(left == 0),
    }
}

async fn record(session: &mut Session, shared: &Shared, pass: Pass, chunk: &ChunkDone) -> Result<()> {
    if pass == Pass::Keys {
        // A run after a crash removes them again, with those that changed meanwhile.
        return Ok(());
    }
    let checkpoint = &mut session.keeper.checkpoint;
    let Some(table) = checkpoint.snapshot.tables.get_mut(&chunk.table) else { return Ok(()) };
    table.rows += chunk.rows;
    if pass != Pass::Rows {
        table.done += 1;
        table.done_chunks.insert(chunk.index);
    }
    if pass == Pass::Whole && table.done == table.chunks {
        table.end();
    }
    checkpoint.counters.snapshot_rows += chunk.rows;
    session.snapshot_rows += chunk.rows;
    let counters = session.counters();
    shared.copied(counters, &session.keeper.checkpoint.snapshot);
    session.keeper.save().await
}
