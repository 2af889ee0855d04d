//! Tries dead letters again, for all the workers: one of them has the lease for that.
//!
//! A partition that put a letter holds the later changes of its key until it sees, while none of its
//! lanes writes, that no letter of the key is open any more. So what is applied here is never
//! overtaken, nor overtakes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::held::Held;
use crate::dead_letter::{DeadLetter, DeadLetterStore};
use crate::error::{ErrorKind, Result};
use crate::leases::pipeline_of;
use crate::model::PartitionId;
use crate::pipeline::Spec;
use crate::runtime::in_order::InOrder;
use crate::runtime::keeper::Keeper;
use crate::runtime::letters::{Letters, RETRIED};
use crate::sink::{Claim, Lane, LaneProgress, LanePurpose};

/// How often open letters are tried again, and the wait after an error.
const EVERY: Duration = Duration::from_secs(10);

/// Until `stop`.
pub(super) async fn tend(spec: &Spec, held: &Arc<Held>, stop: &CancellationToken) -> Result<()> {
    loop {
        match until_error(spec, held, stop).await {
            Err(e) if matches!(e.kind(), ErrorKind::Transient | ErrorKind::Indeterminate) => {
                tracing::warn!(error = %e.report(), "dead letters cannot be tried again now");
            }
            ended => return ended,
        }
        tokio::select! {
            biased;
            // 1. Stopping ends the wait.
            () = stop.cancelled() => return Ok(()),
            // 2. Take over anew: what had been applied is read from the target.
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

async fn until_error(spec: &Spec, held: &Arc<Held>, stop: &CancellationToken) -> Result<()> {
    let Some(store) = &spec.dead_letters else { return Ok(()) };
    let keeper = Keeper::take_over(Arc::clone(held) as _, Arc::clone(&spec.name)).await?;
    let (pipeline, epoch) = (Arc::clone(&spec.name), keeper.checkpoint.epoch);
    let identity = keeper.checkpoint.identity.clone();
    let stored = match spec.sink.progress() {
        Some(progress) => {
            progress.take_over(&Claim { pipeline: Arc::clone(&pipeline), epoch, lanes: 1, identity }).await?
        }
        None => Vec::new(),
    };
    let (of, letters) = (Arc::clone(&spec.letters_of), Some(Arc::clone(store)));
    let (source, policy) = (Arc::clone(&spec.source), spec.letters.clone());
    let letters = Letters::load(of, source, letters, policy, false, true, None).await?;
    if let Some(retried) = stored.iter().find_map(|l| l.partitions.get(RETRIED)) {
        letters.finish_interrupted_retry(&retried.position.token).await?;
    }
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            // 1. Stopping; never in the middle of a write.
            () = stop.cancelled() => return Ok(()),
            // 2. Time to look.
            _ = tick.tick() => {}
        }
        if store.open_count(&spec.letters_of).await? > 0 {
            let lane =
                Lane { pipeline: Arc::clone(&pipeline), index: 0, count: 1, epoch, purpose: LanePurpose::Stream };
            let mut writer = spec.sink.open(lane).await?;
            let passed = passed(spec, store).await?;
            letters.retry_those(writer.as_mut(), |letter| stands(letter, &passed)).await?;
            writer.close().await?;
        }
    }
}

/// What the lanes have passed of each partition that has open letters. `None`: the target does not tell.
type Passed = Option<HashMap<PartitionId, Vec<LaneProgress>>>;

/// Reads it anew: the partitions are written to by other workers meanwhile, and only ever move on.
async fn passed(spec: &Spec, store: &Arc<dyn DeadLetterStore>) -> Result<Passed> {
    let Some(progress) = spec.sink.progress() else { return Ok(None) };
    let open = InOrder::begin(Arc::clone(store), Arc::clone(&spec.letters_of)).await?;
    let mut passed = HashMap::new();
    for partition in open.partitions() {
        passed.insert(partition.clone(), progress.read(&pipeline_of(&spec.letters_of, partition)).await?);
    }
    Ok(Some(passed))
}

/// Whether the lane that put the letter has passed its change: else whoever reads the partition after
/// a crash is given the change again.
fn stands(letter: &DeadLetter, passed: &Passed) -> bool {
    let (Some(by), Some(passed)) = (&letter.lane, passed) else { return true };
    let lanes = passed.get(&letter.partition).map_or(&[][..], Vec::as_slice);
    let has = |lane: &LaneProgress| {
        lane.partitions.get(&letter.partition).is_some_and(|p| letter.position.rank <= p.position.rank)
    };
    match lanes.iter().find(|l| l.lane == by.lane) {
        Some(lane) => has(lane),
        // There were more lanes then.
        None => !lanes.is_empty() && lanes.iter().all(has),
    }
}
