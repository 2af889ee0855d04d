//! Lists the shards of a stream, page by page.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anabranch_core::{Error, Result};
use aws_sdk_dynamodbstreams::types::{Shard, ShardFilter, ShardFilterType, StreamStatus};
use tokio::time::Instant;

use super::Connected;
use super::setup::{COPY_AGAIN, Table};
use crate::error::{classify, code, is_throttle};

/// `DescribeStream` may be called ten times a second for a stream (developer guide, "Quotas").
const BETWEEN_PAGES: Duration = Duration::from_millis(110);

/// The longest pause after throttling.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A listing under way. Each step is one call and may be dropped: the pages read so far are kept,
/// so that a stream of any number of shards is listed in the end.
#[derive(Debug, Default)]
pub(super) struct Listing {
    filter: Option<String>,
    shards: BTreeMap<String, Shard>,
    after: Option<String>,
    enabled: bool,
    wake: Option<Instant>,
    pause: Duration,
}

/// The shards of a stream.
#[derive(Debug, Default, Clone)]
pub(super) struct Listed {
    /// In the order of their names; what the service gives has none.
    pub(super) shards: BTreeMap<String, Shard>,
    /// Whether the stream goes on.
    pub(super) enabled: bool,
}

impl Listing {
    /// All shards.
    pub(super) fn all() -> Self {
        Self::default()
    }

    /// The children of a shard, by the server's own filter. Servers that do not know it give all.
    pub(super) fn children(shard: &str) -> Self {
        Self { filter: Some(shard.to_owned()), ..Self::default() }
    }

    /// Reads a page; `Some` when it was the last. Cancel safe.
    ///
    /// # Errors
    /// `Fatal` if the stream is gone.
    pub(super) async fn step(&mut self, connected: &Connected, table: &Table) -> Result<Option<Listed>> {
        if let Some(wake) = self.wake {
            tokio::time::sleep_until(wake).await;
        }
        let stream = table.stream()?;
        let filter = self
            .filter
            .as_ref()
            .map(|shard| ShardFilter::builder().r#type(ShardFilterType::ChildShards).shard_id(shard).build());
        let call = connected.clients().await?.streams.describe_stream().stream_arn(&stream.arn);
        let call = call.set_exclusive_start_shard_id(self.after.clone()).set_shard_filter(filter);
        let answer = match call.send().await {
            Ok(answer) => answer,
            Err(e) if code(&e).is_some_and(is_throttle) => {
                self.pause = (self.pause * 2).clamp(BETWEEN_PAGES, LONGEST_PAUSE);
                self.wake = Some(Instant::now() + self.pause.mul_f64(1.0 + rand::random::<f64>() / 2.0));
                return Ok(None);
            }
            Err(e) if code(&e) == Some("ResourceNotFoundException") => return Err(vanished_stream(table)),
            Err(e) => return Err(classify("dynamodb:DescribeStream", format!("the stream of {}", table.name), e)),
        };
        self.pause = Duration::ZERO;
        self.wake = Some(Instant::now() + BETWEEN_PAGES);
        let description = answer.stream_description.ok_or_else(|| Error::fatal("a stream was described by nothing"))?;
        self.enabled = matches!(description.stream_status, Some(StreamStatus::Enabled | StreamStatus::Enabling));
        for shard in description.shards.unwrap_or_default() {
            // A page may repeat a shard that was split meanwhile: the later word counts.
            if let Some(id) = shard.shard_id.clone() {
                self.shards.insert(id, shard);
            }
        }
        self.after = description.last_evaluated_shard_id;
        if self.after.is_some() {
            return Ok(None);
        }
        Ok(Some(Listed { shards: std::mem::take(&mut self.shards), enabled: self.enabled }))
    }
}

/// The stream is gone with all that was in it.
pub(super) fn vanished_stream(table: &Table) -> Error {
    let arn = table.stream.as_ref().map_or("", |s| s.arn.as_str());
    Error::fatal(format!("the stream {arn} of {} is gone: what was not read yet is lost", table.name)).hint(COPY_AGAIN)
}

impl Listed {
    /// The children of a shard.
    pub(super) fn children_of(&self, shard: &str) -> impl Iterator<Item = &Shard> {
        self.shards.values().filter(move |s| s.parent_shard_id() == Some(shard))
    }

    /// The shards at the end of the lineage: those without children. Whether they are marked as open
    /// does not count: a page that was read before a split shows a shard with children as open.
    pub(super) fn leaves(&self) -> impl Iterator<Item = (&String, &Shard)> {
        let parents: BTreeSet<&str> = self.shards.values().filter_map(Shard::parent_shard_id).collect();
        self.shards.iter().filter(move |(id, _)| !parents.contains(id.as_str()))
    }

    /// Parents that are named and not listed: trimmed away, or missed between two pages.
    pub(super) fn missing_parents(&self) -> Vec<String> {
        let parents: BTreeSet<&str> = self.shards.values().filter_map(Shard::parent_shard_id).collect();
        parents.into_iter().filter(|p| !self.shards.contains_key(*p)).map(str::to_owned).collect()
    }
}

/// The number that a shard begins with.
pub(super) fn first_number(shard: &Shard) -> Option<String> {
    shard.sequence_number_range()?.starting_sequence_number().map(str::to_owned)
}
