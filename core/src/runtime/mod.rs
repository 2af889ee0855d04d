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
mod shards;
mod snapshot;
mod stream;
mod tally;

use std::sync::Arc;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

pub use letters::OnRejected;
pub(crate) use letters::{LetterPolicy, OpenLetters};
pub(crate) use reader::Transforms;
pub use retry::RetryLimits;
pub(crate) use session::{merge_progress, transformed};
pub(crate) use shards::leave_alone;
pub(crate) use tally::{TALLY, Tally};

use crate::error::{Error, Result};
use crate::pipeline::{Phase, RunMode, Shared, SnapshotMode, Spec};
use retry::{Decision, Retry};
use session::Session;

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
    loop {
        let error = match attempt(&spec, &transforms, &shared, &stop, &mut ready).await {
            Ok(()) => {
                shared.phase(Phase::Stopped);
                return Ok(());
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
    if spec.mode != RunMode::Regular {
        return replay::replay(session, shared).await;
    }
    let copied = snapshot::copy(&mut session, shared, stop).await?;
    if !copied || spec.snapshot == SnapshotMode::Only || stop.is_cancelled() {
        return Ok(());
    }
    stream::stream(session, shared, stop).await
}

/// The same error cannot be given twice: the one who starts gets a copy of its text and kind.
fn tell_ready(ready: &mut Option<oneshot::Sender<Result<()>>>, error: &Error) {
    if let Some(ready) = ready.take() {
        let _ = ready.send(Err(Error::new(error.kind(), error.report())));
    }
}
