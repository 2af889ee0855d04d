//! Runs a pipeline: read, order, transform, apply, commit. The only place that spawns, sleeps or retries.
//!
//! Every attempt begins from what is stored, as after a crash: an error that may mend itself ends
//! the attempt, and the next one takes over, reads the progress and replays. There is no other way
//! of recovery, so the way that a crash takes is the way that is taken all the time.

mod batches;
mod in_order;
mod keeper;
mod lane;
mod letters;
mod lineage;
mod parking;
mod reader;
mod replay;
mod retry;
mod saver;
mod session;
mod shard_writers;
mod shards;
mod snapshot;
mod stream;
mod tally;
mod verify;
mod workers;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

pub(crate) use batches::Budget;
pub use letters::OnRejected;
pub(crate) use letters::{LetterPolicy, OpenLetters};
pub(crate) use reader::Transforms;
pub use retry::RetryLimits;
pub(crate) use session::{merge_progress, transformed};
pub(crate) use shard_writers::{write_each, write_shards};
pub(crate) use shards::leave_alone;
pub(crate) use tally::{TALLY, Tally};
pub(crate) use verify::verify;
pub(crate) use workers::change_record;

use crate::control::pause::{Pause, Step};
use crate::error::{Error, Result};
use crate::pipeline::{Phase, Role, Shared, SnapshotMode, Spec};
use retry::{Decision, Retry};
use session::Session;

/// How often the checkpoint is asked whether an operator has paused the pipeline.
const ASK_PAUSED: Duration = Duration::from_secs(2);

/// Runs attempts until one ends well, or an error asks for more than another try. `ready` hears of
/// the first attempt's preparation.
pub(crate) async fn supervise(
    spec: Arc<Spec>,
    transforms: Transforms,
    shared: Arc<Shared>,
    stop: CancellationToken,
    ready: oneshot::Sender<Result<()>>,
) -> Result<()> {
    let mut retry = Retry::new(spec.retry);
    let mut ready = Some(ready);
    let mut paused = false;
    loop {
        while_paused(&spec, paused, &shared, &stop, &mut ready).await;
        paused = false;
        if stop.is_cancelled() {
            shared.phase(Phase::Stopped);
            return Ok(());
        }
        let error = match until_paused(&spec, &transforms, &shared, &stop, &mut ready).await {
            Ok(Ended::Done) => {
                shared.phase(Phase::Stopped);
                return Ok(());
            }
            Ok(Ended::Paused) => {
                paused = true;
                continue;
            }
            Err(e) => e,
        };
        if shared.take_progressed() {
            retry.progressed();
        }
        if shared.take_resuming() && !stop.is_cancelled() {
            // Not a failure: a halted shard answers again, and the next attempt takes it in.
            continue;
        }
        let decision = retry.decide(&error, rand::random());
        shared.failed(&error, retry.failures());
        let Decision::Again(wait) = decision else {
            shared.phase(Phase::Failed);
            tell_ready(&mut ready, &error);
            return Err(error);
        };
        tracing::warn!(pipeline = %spec.name, error = %error.report(), wait_ms = wait.as_millis() as u64, "begins again");
        // A source or target that is down now does not fail the start: it is waited for.
        if let Some(ready) = ready.take() {
            let _ = ready.send(Ok(()));
        }
        shared.phase(Phase::Retrying);
        tokio::select! {
            biased;
            // 1. Stopping while waiting is an orderly end: nothing is under way.
            () = stop.cancelled() => {
                shared.phase(Phase::Stopped);
                return Ok(());
            }
            // 2. The wait is over.
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// How an attempt ended well.
enum Ended {
    /// It was stopped, or had no more to do.
    Done,
    /// An operator paused the pipeline.
    Paused,
}

/// Whether an operator has marked the pipeline as paused, as the store tells it.
async fn is_paused(spec: &Spec) -> Result<bool> {
    let stored = spec.checkpointer.load(&spec.name).await?;
    Ok(stored.is_some_and(|(_, checkpoint)| checkpoint.paused))
}

/// Waits until the pipeline is not paused, or is stopped. A part of a pipeline is paused with the whole.
/// `paused`: the mark was seen before.
async fn while_paused(
    spec: &Spec,
    mut paused: bool,
    shared: &Shared,
    stop: &CancellationToken,
    ready: &mut Option<oneshot::Sender<Result<()>>>,
) {
    while spec.role == Role::Whole && !stop.is_cancelled() {
        match is_paused(spec).await {
            Ok(marked) => paused = marked,
            // A store that is down takes no mark away. Where none was seen, the attempt tells what is wrong with it.
            Err(e) if paused => {
                tracing::warn!(pipeline = %spec.name, error = %e.report(), "stays paused: the mark cannot be read now");
            }
            Err(_) => {}
        }
        if !paused {
            return;
        }
        shared.phase(Phase::Paused);
        if let Some(ready) = ready.take() {
            let _ = ready.send(Ok(()));
        }
        tokio::select! {
            biased;
            // 1. Stopping ends the waiting.
            () = stop.cancelled() => return,
            // 2. Ask again.
            () = tokio::time::sleep(ASK_PAUSED) => {}
        }
    }
}

/// One attempt, which ends in an orderly way when the pipeline is paused.
async fn until_paused(
    spec: &Arc<Spec>,
    transforms: &Transforms,
    shared: &Arc<Shared>,
    stop: &CancellationToken,
    ready: &mut Option<oneshot::Sender<Result<()>>>,
) -> Result<Ended> {
    let halt = stop.child_token();
    let mut pause = Pause::Running;
    let result = {
        let mut run: BoxFuture<'_, Result<()>> = match spec.workers {
            Some(_) if spec.role == Role::Whole => Box::pin(workers::share(spec, transforms, shared, &halt, ready)),
            _ => Box::pin(attempt(spec, transforms, shared, &halt, ready)),
        };
        let mut ask = tokio::time::interval(ASK_PAUSED);
        ask.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                // 1. The end.
                result = &mut run => break result,
                // 2. The mark. Asking holds up nothing but this loop: the attempt has tasks of its own
                // for whatever must not wait.
                _ = ask.tick(), if spec.role == Role::Whole && pause == Pause::Running => {
                    let asked = is_paused(spec);
                    let marked = tokio::select! {
                        biased;
                        result = &mut run => break result,
                        marked = asked => marked,
                    };
                    // A store that does not answer now is asked again; it stops a run by other ways.
                    if pause.seen(marked.unwrap_or(false)) == Step::Finish {
                        tracing::info!(pipeline = %spec.name, "paused by an operator");
                        halt.cancel();
                    }
                }
            }
        }
    };
    pause.ended();
    match (result, pause) {
        (Ok(()), Pause::Paused) if !stop.is_cancelled() => Ok(Ended::Paused),
        (result, _) => result.map(|()| Ended::Done),
    }
}

/// One attempt: take over, copy, stream.
async fn attempt(
    spec: &Arc<Spec>,
    transforms: &Transforms,
    shared: &Arc<Shared>,
    stop: &CancellationToken,
    ready: &mut Option<oneshot::Sender<Result<()>>>,
) -> Result<()> {
    shared.phase(Phase::Starting);
    let mut session = Session::open(spec, transforms, shared).await?;
    shared.opened(&session.keeper.checkpoint, session.counters());
    if let Some(ready) = ready.take() {
        let _ = ready.send(Ok(()));
    }
    if spec.mode.replays() {
        return replay::replay(session, shared).await;
    }
    let copied = snapshot::copy(&mut session, shared, stop).await?;
    if !copied || spec.snapshot == SnapshotMode::Only || spec.role == Role::Setup || stop.is_cancelled() {
        return session.keeper.save_end().await;
    }
    stream::stream(session, shared, stop).await
}

/// The same error cannot be given twice: the one who starts gets a copy of its text and kind.
fn tell_ready(ready: &mut Option<oneshot::Sender<Result<()>>>, error: &Error) {
    if let Some(ready) = ready.take() {
        let _ = ready.send(Err(Error::new(error.kind(), error.report())));
    }
}
