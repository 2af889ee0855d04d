//! What comes after the end of a shard.

use std::collections::BTreeSet;
use std::time::Duration;

use anabranch_core::{Error, Partition, PartitionId, Result, Timestamp};
use aws_sdk_dynamodbstreams::types::Shard;
use tokio::time::{Instant, sleep_until};

use super::position::Start;
use super::setup::{COPY_AGAIN, Table};
use super::shards::{Listed, Listing, first_number};
use super::{Connected, END, shard_partition};

/// A shard that ended a moment ago may have children that are not listed yet: asked again after
/// growing pauses.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The filter by parent is asked this often before everything is listed.
const FILTERED: u32 = 3;

/// A stream that goes on without this shard's children has lost them.
const GIVE_UP: Duration = Duration::from_secs(15 * 60);

/// A split lists two children, maybe not in one instant: they are taken when two answers, so long
/// apart, agree.
pub(super) const AGREE_AFTER: Duration = Duration::from_secs(1);

/// Finds the children of a shard that ended.
#[derive(Debug)]
pub(super) struct Children {
    shard: String,
    listing: Listing,
    tries: u32,
    wake: Option<Instant>,
    began: Instant,
    /// The end is news: one answer is not enough.
    fresh: bool,
    seen: Option<BTreeSet<String>>,
}

/// What a step came to.
#[derive(Debug)]
pub(super) enum Found {
    /// Ask again.
    NotYet,
    /// These, at least one.
    Children(Vec<Partition>),
}

impl Children {
    pub(super) fn of(shard: &str, fresh: bool) -> Self {
        Self {
            shard: shard.to_owned(),
            listing: Listing::children(shard),
            tries: 0,
            wake: None,
            began: Instant::now(),
            fresh,
            seen: None,
        }
    }

    /// One call. Cancel safe.
    ///
    /// # Errors
    /// `Fatal` if the stream goes on and this shard has no children after all this time.
    pub(super) async fn step(
        &mut self,
        connected: &Connected,
        table: &Table,
        safe: Option<Timestamp>,
    ) -> Result<Found> {
        if let Some(wake) = self.wake {
            sleep_until(wake).await;
        }
        let listed = match self.listing.step(connected, table).await {
            Ok(None) => return Ok(Found::NotYet),
            Ok(Some(listed)) => listed,
            // A server that does not know the filter.
            Err(e) if self.tries < FILTERED && e.kind() == anabranch_core::ErrorKind::Config => {
                tracing::debug!(error = %e.report(), "children are not told by filter: everything is listed");
                self.tries = FILTERED;
                self.listing = Listing::all();
                return Ok(Found::NotYet);
            }
            Err(e) => return Err(e),
        };
        self.tries += 1;
        let children: BTreeSet<String> =
            listed.children_of(&self.shard).filter_map(Shard::shard_id).map(str::to_owned).collect();
        if children.is_empty() {
            return self.none(table, &listed);
        }
        let agreed = self.seen.replace(children.clone()) == Some(children);
        // One that is open may be of a split a moment ago, whoever saw it: after a restart too.
        let is_open = |s: &Shard| s.sequence_number_range().is_none_or(|r| r.ending_sequence_number().is_none());
        if (self.fresh || listed.children_of(&self.shard).any(is_open)) && !agreed {
            self.again(AGREE_AFTER);
            return Ok(Found::NotYet);
        }
        Ok(Found::Children(self.partitions(table, &listed, safe)))
    }

    /// No children: the stream was disabled, or they are not listed yet.
    fn none(&mut self, table: &Table, listed: &Listed) -> Result<Found> {
        // Only a full listing tells which shards are at the end of a stream.
        if !listed.enabled && self.tries > FILTERED {
            let leaves = listed.leaves().map(|(id, _)| shard_partition(&table.name, id));
            let own = shard_partition(&table.name, &self.shard);
            let parents: BTreeSet<PartitionId> = leaves.chain([own]).collect();
            let id = shard_partition(&table.name, END);
            return Ok(Found::Children(vec![Partition { id, parents: parents.into_iter().collect(), start: None }]));
        }
        if listed.enabled && self.began.elapsed() > GIVE_UP {
            return Err(Error::fatal(format!(
                "the shard {} of {} ended without children, and the stream goes on: what followed in them is lost",
                self.shard, table.name
            ))
            .hint(COPY_AGAIN));
        }
        let pause = FIRST_PAUSE * 2u32.saturating_pow(self.tries.min(10));
        self.again(pause.min(LONGEST_PAUSE));
        Ok(Found::NotYet)
    }

    fn again(&mut self, pause: Duration) {
        let jitter = 0.8 + 0.4 * rand::random::<f64>();
        self.wake = Some(Instant::now() + pause.mul_f64(jitter));
        self.listing = if self.tries < FILTERED { Listing::children(&self.shard) } else { Listing::all() };
    }

    /// The children as partitions, which begin with the safe time of their parent.
    pub(super) fn partitions(&self, table: &Table, listed: &Listed, safe: Option<Timestamp>) -> Vec<Partition> {
        let parent = shard_partition(&table.name, &self.shard);
        let partition = |shard: &Shard| {
            let start = Start { first: first_number(shard), since: None, safe };
            Some(Partition {
                id: shard_partition(&table.name, shard.shard_id()?),
                parents: vec![parent.clone()],
                start: Some(start.position()),
            })
        };
        listed.children_of(&self.shard).filter_map(partition).collect()
    }
}
