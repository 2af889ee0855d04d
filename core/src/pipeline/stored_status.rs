//! The status of a pipeline as its stores tell it, wherever it runs.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::timeout;

use super::status::{Phase, ShardState, SnapshotState, Status, lag_seconds, skew_seconds};
use super::{Spec, Watermark, stored};
use crate::dead_letter::{DeadLetterStore, LetterState};
use crate::error::{Error, ErrorKind, Result};
use crate::model::SnapshotPhase;
use crate::runtime::OpenLetters;
use crate::source::RetentionLeft;

/// What the stores tell of a pipeline that runs elsewhere, or not at all. Its phase is the one in which
/// its process was last seen: `Stopped` only after an orderly end, `Paused` if an operator said so. The
/// stores do not know whether a process is alive, but when it last was.
pub(crate) async fn from_stores(spec: &Spec) -> Result<Option<Status>> {
    let (loaded, silent) = match stored::load(spec).await {
        // A target that is down must not hide how far the pipeline is, where the checkpoint lies elsewhere.
        Err(e) if e.kind() == ErrorKind::Transient => match stored::load_without_target(spec).await {
            Ok(loaded) => (loaded, Some(e)),
            Err(_) => return Err(e),
        },
        other => (other?, None),
    };
    let Some(stored) = loaded else { return Ok(None) };
    let open = match &spec.dead_letters {
        Some(store) => match store.open_count(&spec.name).await {
            Err(_) if silent.is_some() => stored.checkpoint.counters.dead_letters,
            other => other?,
        },
        None => 0,
    };
    let safe_time = stored.safe_time();
    let retention = retention(spec).await.map(|left| left.counted_down(safe_time));
    let partitions = Watermark::of(&stored, open).states(spec.source.as_ref());
    let letters = match &spec.dead_letters {
        Some(store) if !stored.shards.is_empty() && open > 0 => open_by_shard(store.as_ref(), &spec.name).await?,
        _ => BTreeMap::new(),
    };
    let shard = |shard: stored::ShardTold| {
        let letters = letters.get(&shard.name).copied().unwrap_or_default();
        let waits = letters.retryable + letters.severe > 0;
        (shard.name, ShardState::new(shard.silent, waits, shard.counters, letters, safe_time))
    };
    let shards = stored.shards.into_iter().map(shard).collect();
    let checkpoint = stored.checkpoint;
    Ok(Some(Status {
        pipeline: spec.name.to_string(),
        phase: match checkpoint.snapshot.phase {
            _ if checkpoint.paused => Phase::Paused,
            _ if checkpoint.ended => Phase::Stopped,
            SnapshotPhase::Pending => Phase::Starting,
            SnapshotPhase::Copying => Phase::Snapshot,
            SnapshotPhase::Done => Phase::Streaming,
        },
        last_seen: checkpoint.saved_at,
        epoch: checkpoint.epoch,
        safe_time,
        lag_seconds: lag_seconds(safe_time),
        lag_bytes: retention.as_ref().and_then(|left| left.unread_bytes),
        lag_changes: 0,
        skew_seconds: skew_seconds(&partitions),
        counters: checkpoint.counters,
        dead_letters_open: open,
        retention,
        snapshot: Some(SnapshotState::from(&checkpoint.snapshot)),
        partitions,
        shards,
        identity: checkpoint.identity,
        last_error: silent.as_ref().map(Error::report),
        last_error_kind: silent.as_ref().map(Error::kind),
        failures: 0,
    }))
}

/// How long the source may take to say what it keeps: a status is not to wait for one that is down.
const ANSWER: Duration = Duration::from_secs(5);

/// What the source keeps, if it can say.
async fn retention(spec: &Spec) -> Option<RetentionLeft> {
    timeout(ANSWER, spec.source.retention()?.left()).await.ok()?.ok()
}

/// Open letters by shard, page by page.
async fn open_by_shard(store: &dyn DeadLetterStore, pipeline: &str) -> Result<BTreeMap<String, OpenLetters>> {
    let mut open: BTreeMap<String, OpenLetters> = BTreeMap::new();
    let mut after: Option<String> = None;
    loop {
        let page = store.list(pipeline, &[LetterState::Open, LetterState::Held], after.as_deref(), 500).await?;
        let Some(last) = page.last() else { return Ok(open) };
        after = Some(last.id.clone());
        for letter in &page {
            open.entry(letter.shard.clone().unwrap_or_default()).or_default().add(letter);
        }
    }
}
