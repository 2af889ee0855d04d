//! How long the streams keep what the pipeline still needs.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anabranch_core::{PartitionId, Rank, Result, Retention, RetentionLeft, Timestamp};
use async_trait::async_trait;

use super::{DynamoDb, RETENTION};

/// When so much of the retention is used, it is told as a warning: six of 24 hours are left then.
const WARN_AFTER_MICROS: i64 = 18 * 3600 * 1_000_000;

/// Between two warnings: the runtime asks every few seconds.
const WARN_EVERY: Duration = Duration::from_secs(300);

/// Since when each shard's records are needed. Shared by the readers.
#[derive(Debug, Default)]
pub(crate) struct Needed {
    shards: Mutex<BTreeMap<PartitionId, Shard>>,
    warned: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct Shard {
    /// Batches that are not durable yet: the end, and the time of the first record.
    given: VecDeque<(Rank, Timestamp)>,
    /// Everything before was given.
    reached: Option<Timestamp>,
}

impl Needed {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<PartitionId, Shard>> {
        self.shards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is time for a warning.
    fn warns(&self) -> bool {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        let due = warned.is_none_or(|at| at.elapsed() >= WARN_EVERY);
        if due {
            *warned = Some(Instant::now());
        }
        due
    }

    /// A shard is read; what was made since `since` is needed.
    pub(super) fn opened(&self, shard: &PartitionId, since: Option<Timestamp>) {
        self.lock().insert(shard.clone(), Shard { given: VecDeque::new(), reached: since });
    }

    /// Records were given.
    pub(super) fn given(&self, shard: &PartitionId, end: &Rank, first: Timestamp, last: Timestamp) {
        let mut all = self.lock();
        let shard = all.entry(shard.clone()).or_default();
        shard.given.push_back((end.clone(), first));
        shard.reached = shard.reached.max(Some(last));
    }

    /// A read gave nothing.
    pub(super) fn idle(&self, shard: &PartitionId, now: Timestamp) {
        let mut all = self.lock();
        let shard = all.entry(shard.clone()).or_default();
        shard.reached = shard.reached.max(Some(now));
    }

    /// Everything up to here is durable.
    pub(super) fn durable(&self, shard: &PartitionId, through: &Rank) {
        if let Some(shard) = self.lock().get_mut(shard) {
            while shard.given.front().is_some_and(|(end, _)| *end <= *through) {
                shard.given.pop_front();
            }
        }
    }

    /// Up to when everything of a shard was given; `None` if that is not known, or it is not read.
    pub(super) fn reached(&self, shard: &PartitionId) -> Option<Timestamp> {
        self.lock().get(shard)?.reached
    }

    /// Up to when all shards that are read of a table were given; `None` if that is not known of one of them.
    pub(super) fn all_reached(&self, table: &str) -> Option<Timestamp> {
        let all = self.lock();
        let of_table = |id: &PartitionId| id.as_str().split_once('/').is_some_and(|(t, _)| t == table);
        // A shard of which nothing is known is less than all others.
        all.iter().filter(|(id, _)| of_table(id)).map(|(_, s)| s.reached).min()?
    }

    /// A shard, or a scan, is done with.
    pub(super) fn closed(&self, shard: &PartitionId) {
        self.lock().remove(shard);
    }

    /// The oldest that is needed, of which shard.
    fn oldest(&self) -> Option<(PartitionId, Timestamp)> {
        let all = self.lock();
        let since = |s: &Shard| s.given.front().map(|(_, t)| *t).into_iter().chain(s.reached).min();
        all.iter().filter_map(|(id, s)| Some((id.clone(), since(s)?))).min_by_key(|(_, t)| *t)
    }
}

#[async_trait]
impl Retention for DynamoDb {
    async fn left(&self) -> Result<RetentionLeft> {
        let connected = self.connected();
        let now = connected.now();
        let Some((shard, since)) = connected.needed().oldest() else {
            return Ok(RetentionLeft { at: Some(now), ..RetentionLeft::default() });
        };
        let age = now.micros_since(since).max(0);
        let left = (RETENTION.as_micros() as i64).saturating_sub(age).max(0);
        if age > WARN_AFTER_MICROS && connected.needed().warns() {
            let minutes = left / 60_000_000;
            tracing::warn!(shard = %shard, "data is lost in {} h {} min: DynamoDB keeps it for 24 hours", minutes / 60, minutes % 60);
        }
        Ok(RetentionLeft { seconds: Some(left as f64 / 1e6), at: Some(now), ..RetentionLeft::default() })
    }
}
