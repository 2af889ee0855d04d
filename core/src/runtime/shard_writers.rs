//! Each shard by a pipeline of its own: which of them are taken, and what becomes of those that end.
//!
//! ```text
//!   every second:  which shards are there?  a new one that the mode wants is taken: a task that runs its pipeline
//!   a task ends:   in good order -> "success"   by an error -> "error", with the reason   fenced -> left to the other
//! ```
//!
//! Where a shard goes on is never chosen: its pipeline's progress, which is in the target with the
//! rows, tells it to the change. The modes only choose shards.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::tell_ready;
use crate::by_shard::{WriterState, WriterStatus};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Counters, Timestamp};
use crate::pipeline::{
    Board, Fate, Monitor, Phase, Pipeline, RunMode, RunningPipeline, ShardWriters, Shared, halted_shards,
};

/// How often new shards are looked for, and the state of running ones is stored.
const LOOK: Duration = Duration::from_secs(1);

/// A shard's pipeline that ended.
struct Ended {
    shard: String,
    /// When what is known of the shard was stored, if this process has stored or read it.
    known: Timestamp,
    reached: Option<String>,
    /// Whether it went well in this run: it has moved, or has everything that there is.
    well: bool,
    result: Result<()>,
}

/// The run of a pipeline that writes each shard by one of its own. `ready` hears when the shards are chosen.
pub(crate) fn write_each(
    writers: Arc<ShardWriters>,
    board: Arc<Board>,
    shared: Arc<Shared>,
    stop: CancellationToken,
    ready: oneshot::Sender<Result<()>>,
) -> BoxFuture<'static, Result<()>> {
    Box::pin(async move {
        let mut ready = Some(ready);
        shared.phase(Phase::Starting);
        let written = write_shards(&writers, &board, &stop, &mut ready).await;
        let result = match written {
            Ok(()) => verdict(&writers, &board).await,
            Err(e) => Err(e),
        };
        match &result {
            Ok(()) => shared.phase(Phase::Stopped),
            Err(e) => {
                shared.failed(e, 0);
                shared.phase(Phase::Failed);
                tell_ready(&mut ready, e);
            }
        }
        result
    })
}

/// Whether a person has to do something: not if somebody else has taken up since what was halted here.
async fn verdict(writers: &ShardWriters, board: &Board) -> Result<()> {
    let by = writers.by_shard()?;
    let all = board.writers();
    let mut halted = Vec::new();
    for (shard, writer) in all.iter().filter(|(_, w)| w.fate == Fate::Halted) {
        let stored = by.load(writers.name(), shard).await.ok().flatten();
        if stored.is_none_or(|now| now.at == writer.record.at) {
            halted.push((shard.clone(), writer.record.error.clone().unwrap_or_default()));
        }
    }
    let taken_over: Vec<&str> =
        all.iter().filter(|(_, w)| w.fate == Fate::TakenOver).map(|(shard, _)| shard.as_str()).collect();
    match (halted.is_empty(), taken_over.is_empty()) {
        (false, _) => Err(halted_shards(&halted, all.len())),
        (true, false) => Err(Error::fenced(format!("another process writes {} now", taken_over.join(", ")))),
        (true, true) => Ok(()),
    }
}

/// Writes until `stop` is cancelled, or every shard that the mode takes has ended.
///
/// # Errors
/// If the source cannot be read, and waiting does not mend it. An error of one shard is on the board.
pub(crate) async fn write_shards(
    writers: &ShardWriters,
    board: &Arc<Board>,
    stop: &CancellationToken,
    ready: &mut Option<oneshot::Sender<Result<()>>>,
) -> Result<()> {
    let mut run =
        Run { writers, board, stop: stop.child_token(), tasks: JoinSet::new(), first: true, unsaved: BTreeMap::new() };
    let result = run.supervise(ready).await;
    run.stop.cancel();
    while let Some(ended) = run.tasks.join_next().await {
        run.ended(ended).await?;
    }
    // What could not be stored before is tried a last time.
    result.and(run.save().await)
}

struct Run<'a> {
    writers: &'a ShardWriters,
    board: &'a Arc<Board>,
    stop: CancellationToken,
    tasks: JoinSet<Ended>,
    /// Nothing was listed yet: only then shards are chosen by their state.
    first: bool,
    /// States that are to be stored, with the time of those that they follow.
    unsaved: BTreeMap<String, (Timestamp, WriterStatus)>,
}

impl Run<'_> {
    async fn supervise(&mut self, ready: &mut Option<oneshot::Sender<Result<()>>>) -> Result<()> {
        let waits_for_new = self.writers.run_mode().takes_all();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                // 1. What ended is recorded.
                Some(ended) = self.tasks.join_next() => self.ended(ended).await?,
                // 2. Stopping: every pipeline has the same token, and ends in an orderly way.
                () = self.stop.cancelled(), if self.tasks.is_empty() => return Ok(()),
                // 3. New shards.
                _ = look.tick(), if !self.stop.is_cancelled() => self.look(ready).await?,
            }
            let has_ended = self.tasks.is_empty() && !self.first;
            // With every shard halted, a person is to be told.
            if has_ended && (self.stop.is_cancelled() || !waits_for_new || !self.board.is_empty()) {
                return Ok(());
            }
        }
    }

    /// Looks for new shards. A source that does not answer now is asked again.
    async fn look(&mut self, ready: &mut Option<oneshot::Sender<Result<()>>>) -> Result<()> {
        let told = match self.take().await {
            Err(e) if matches!(e.kind(), ErrorKind::Transient | ErrorKind::Indeterminate) => {
                tracing::warn!(pipeline = self.writers.name(), error = %e.report(), "cannot list the shards");
                Ok(())
            }
            other => other,
        };
        if let Err(e) = self.save().await {
            tracing::warn!(pipeline = self.writers.name(), error = %e.report(), "cannot store how shards fare");
        }
        told?;
        if let Some(ready) = ready.take() {
            let _ = ready.send(Ok(()));
        }
        self.board.tell();
        Ok(())
    }

    async fn take(&mut self) -> Result<()> {
        let by = self.writers.by_shard()?;
        self.board.looks();
        let list = by.shards().await?;
        // All of them are known before the first is taken, so that a try again chooses by the same states.
        let mut wanted = Vec::new();
        for shard in list.names.iter().filter(|s| !self.board.has(s)) {
            let before = by.load(self.writers.name(), shard).await?;
            if wants(self.writers.run_mode(), before.as_ref(), self.first) {
                wanted.push((shard, before));
            }
        }
        for (shard, before) in wanted {
            let record = match before {
                Some(record) => record,
                None => {
                    let record = WriterStatus::now(shard, None, None);
                    by.save(self.writers.name(), &record).await?;
                    record
                }
            };
            self.board.take(record.clone());
            self.tasks.spawn(write(self.writers.clone(), Arc::clone(self.board), record, self.stop.clone()));
        }
        self.first = false;
        self.board.chosen(list.through);
        Ok(())
    }

    async fn ended(&mut self, ended: Result<Ended, JoinError>) -> Result<()> {
        let ended = ended.map_err(|e| Error::fatal("a task of a shard panicked").because(e))?;
        let fate = match &ended.result {
            Ok(()) => Fate::Done,
            Err(e) if e.kind() == ErrorKind::Fenced => Fate::TakenOver,
            Err(_) => Fate::Halted,
        };
        match &ended.result {
            Ok(()) => {}
            Err(e) if fate == Fate::TakenOver => {
                tracing::warn!(shard = ended.shard, error = %e.report(), "another process writes the shard now");
            }
            Err(e) => tracing::warn!(shard = ended.shard, error = %e.report(), "the shard is halted"),
        }
        // A shard that had failed, and was stopped before it came further, is what it was.
        if fate == Fate::Halted || fate == Fate::Done && ended.well {
            let record = WriterStatus::now(&ended.shard, ended.reached, ended.result.as_ref().err());
            self.board.recorded(record.clone());
            self.unsaved.insert(ended.shard.clone(), (ended.known, record));
        }
        self.board.ended(&ended.shard, fate);
        if let Err(e) = self.save().await {
            tracing::warn!(shard = ended.shard, error = %e.report(), "cannot store how the shard fares: tried again");
        }
        Ok(())
    }

    /// Stores what is not yet stored. An orderly end replaces nothing that somebody else has stored
    /// meanwhile: the mark of an operator, or the state of one who has taken the shard over.
    async fn save(&mut self) -> Result<()> {
        let (by, name) = (self.writers.by_shard()?, self.writers.name());
        while let Some(entry) = self.unsaved.first_entry() {
            let (known, record) = entry.get();
            let stored = by.load(name, &record.shard).await?;
            if record.state == WriterState::Error || stored.is_none_or(|now| now.at == *known) {
                by.save(name, record).await?;
            }
            entry.remove();
        }
        Ok(())
    }
}

/// Whether the mode takes a shard of which this is stored.
fn wants(mode: RunMode, before: Option<&WriterStatus>, first: bool) -> bool {
    let state = before.map(|b| b.state);
    match mode {
        RunMode::Regular | RunMode::ResumeAll => true,
        RunMode::RetryDlq | RunMode::RetryAllDlq => first,
        RunMode::ResumeSuccess => first && state == Some(WriterState::Success),
        RunMode::ResumeFailed => first && state == Some(WriterState::Error),
        RunMode::Reprocess => first && state == Some(WriterState::Reprocess),
    }
}

/// Runs the pipeline of one shard to its end.
fn write(
    writers: ShardWriters,
    board: Arc<Board>,
    mut record: WriterStatus,
    stop: CancellationToken,
) -> BoxFuture<'static, Ended> {
    Box::pin(async move {
        let ended = |record: WriterStatus, reached: Option<String>, well: bool, result| Ended {
            shard: record.shard,
            known: record.at,
            reached: reached.or(record.reached),
            well,
            result,
        };
        let mut running = match begin(&writers, &board, &record, &stop).await {
            Ok(Some(running)) => running,
            Ok(None) => return ended(record, None, false, Ok(())),
            Err(e) => return ended(record, None, false, Err(e)),
        };
        let monitor = running.monitor();
        // What was counted when it was first seen to stream: more is something that was applied since.
        let mut counted = None;
        let mut tick = interval(LOOK);
        let result = loop {
            tokio::select! {
                biased;
                // 1. It ended: by an error, or because all were stopped.
                result = running.wait() => break result,
                // 2. A shard that had failed and goes on again is a success.
                _ = tick.tick() => {
                    if record.state != WriterState::Success && is_well(&mut counted, &monitor).await {
                        let now = WriterStatus::now(&record.shard, reached(&monitor), None);
                        let saved = match writers.by_shard() {
                            Ok(by) => by.save(writers.name(), &now).await,
                            Err(e) => Err(e),
                        };
                        // Else it is tried again at the next tick.
                        if saved.is_ok() {
                            board.recorded(now.clone());
                            record = now;
                        }
                    }
                }
            }
        };
        let well = result.is_ok() && (record.state == WriterState::Success || is_well(&mut counted, &monitor).await);
        let reached = reached(&monitor);
        ended(record, reached, well, result)
    })
}

fn reached(monitor: &Monitor) -> Option<String> {
    monitor.status().partitions.values().next().map(|p| p.position.clone())
}

/// Whether a shard has applied something in this run, or has everything that there is. Its position does not
/// tell the first: what the target had already is passed again.
async fn is_well(counted: &mut Option<Counters>, monitor: &Monitor) -> bool {
    let now = monitor.status();
    let applied = counted.is_some_and(|before| before != now.counters);
    if counted.is_none() && now.phase == Phase::Streaming {
        *counted = Some(now.counters);
    }
    applied || monitor.has_all().await.unwrap_or(false)
}

/// `None`: it was stopped before it had begun.
async fn begin(
    writers: &ShardWriters,
    board: &Board,
    record: &WriterStatus,
    stop: &CancellationToken,
) -> Result<Option<RunningPipeline>> {
    let pipeline = writers.pipeline(&record.shard)?;
    if !writers.name().is_empty() {
        match &record.reached {
            None => pipeline.refuse_whole(writers.name()).await?,
            Some(reached) => pipeline.refuse_blank(&record.shard, reached).await?,
        }
    }
    let shared = board.part(&Arc::from(pipeline.name()));
    board.watch(&record.shard, pipeline.monitor(&shared));
    // A token of its own: dropping the handle cancels it.
    start(pipeline, shared, stop.child_token()).await
}

/// Boxed: a pipeline of its own kind could be within it.
fn start(
    pipeline: Pipeline,
    shared: Arc<Shared>,
    stop: CancellationToken,
) -> BoxFuture<'static, Result<Option<RunningPipeline>>> {
    Box::pin(pipeline.start_with(shared, stop))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_takes_the_shards_that_are_meant() {
        let of = |state| WriterStatus { state, ..WriterStatus::now("eu", None, None) };
        let states = [None, Some(WriterState::Success), Some(WriterState::Error), Some(WriterState::Reprocess)];
        let taken = |mode| states.map(|state| wants(mode, state.map(of).as_ref(), true));
        assert_eq!(taken(RunMode::Regular), [true; 4]);
        assert_eq!(taken(RunMode::ResumeAll), [true; 4]);
        assert_eq!(taken(RunMode::ResumeSuccess), [false, true, false, false]);
        assert_eq!(taken(RunMode::ResumeFailed), [false, false, true, false]);
        assert_eq!(taken(RunMode::Reprocess), [false, false, false, true]);
        // What appears later belongs to those that take all.
        assert!(
            wants(RunMode::Regular, None, false)
                && !wants(RunMode::ResumeSuccess, Some(&of(WriterState::Success)), false)
        );
    }
}
