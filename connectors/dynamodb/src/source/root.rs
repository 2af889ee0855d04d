//! The root of a table: lists its stream and closes, with the shards as its children.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anabranch_core::{
    BatchBuilder, ChangeReader, Next, Partition, PartitionId, Position, Result, StartFrom, Timestamp,
};
use async_trait::async_trait;
use aws_sdk_dynamodbstreams::types::ShardIteratorType;
use tokio::time::Instant;

use super::position::Start;
use super::setup::Table;
use super::shards::{Listed, Listing, first_number};
use super::{Connected, scan, shard_partition};
use crate::error::{classify, code, is_throttle};

/// Lists; a long listing gives a sign of life this often.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);

/// Reads the root.
pub(super) struct RootReader {
    connected: Connected,
    table: Arc<Table>,
    /// What was written before is not needed.
    since: Timestamp,
    listing: Listing,
    listed: Option<Listed>,
    /// Parents that are not listed, to be asked for by name.
    missing: Vec<String>,
    /// Those that are there nevertheless.
    found: BTreeSet<String>,
    heartbeat: Instant,
}

impl RootReader {
    pub(super) fn new(connected: Connected, table: Arc<Table>, from: &StartFrom) -> Self {
        let copied = from.snapshots.get(&table.layout.schema().name);
        let since = copied.and_then(|c| scan::begun(&c.point)).unwrap_or_else(|| connected.now());
        Self {
            connected,
            table,
            since,
            listing: Listing::all(),
            listed: None,
            missing: Vec::new(),
            found: BTreeSet::new(),
            heartbeat: Instant::now() + SIGN_OF_LIFE,
        }
    }

    /// A step of the listing; the children when it is done. Cancel safe: one call a step.
    async fn step(&mut self) -> Result<Option<Vec<Partition>>> {
        if self.listed.is_none() {
            let Some(listed) = self.listing.step(&self.connected, &self.table).await? else { return Ok(None) };
            self.missing = listed.missing_parents();
            self.listed = Some(listed);
        }
        if let Some(parent) = self.missing.last() {
            let exists = self.exists(parent).await?;
            if let (Some(parent), Some(true)) = (self.missing.pop_if(|_| exists.is_some()), exists) {
                self.found.insert(parent);
            }
            return Ok(None);
        }
        Ok(self.listed.as_ref().map(|listed| self.children(listed)))
    }

    /// Whether a shard that is not listed is there: a split between two pages can hide one. `None`:
    /// ask again.
    async fn exists(&self, shard: &str) -> Result<Option<bool>> {
        let stream = self.table.stream()?;
        let call = self.connected.clients().await?.streams.get_shard_iterator().stream_arn(&stream.arn);
        let call = call.shard_id(shard).shard_iterator_type(ShardIteratorType::TrimHorizon);
        match call.send().await {
            Ok(_) => Ok(Some(true)),
            Err(e) if matches!(code(&e), Some("ResourceNotFoundException" | "TrimmedDataAccessException")) => {
                Ok(Some(false))
            }
            Err(e) if code(&e).is_some_and(is_throttle) => {
                tokio::time::sleep(Duration::from_millis(200)).await;
                Ok(None)
            }
            Err(e) => Err(classify("dynamodb:GetShardIterator", format!("the shard {shard}"), e)),
        }
    }

    /// Every shard, below its parent if that is still there, and else below the root: none is read before a
    /// checkpoint has them all. Until then the next run has to find this list, and the spool keeps it.
    fn children(&self, listed: &Listed) -> Vec<Partition> {
        let table = &self.table.name;
        let root = PartitionId::new(table.as_str());
        let start = |first| Start { first, since: Some(self.since), safe: None }.position();
        let hidden = self.found.iter().map(|id| Partition {
            id: shard_partition(table, id),
            parents: vec![root.clone()],
            start: Some(start(None)),
        });
        let there = |id: &str| listed.shards.contains_key(id) || self.found.contains(id);
        let shards = listed.shards.iter().map(|(id, shard)| Partition {
            id: shard_partition(table, id),
            // A parent that was trimmed away has nothing left to wait for.
            parents: vec![
                shard
                    .parent_shard_id()
                    .filter(|p| there(p))
                    .map_or_else(|| root.clone(), |p| shard_partition(table, p)),
            ],
            start: Some(start(first_number(shard))),
        });
        hidden.chain(shards).collect()
    }
}

#[async_trait]
impl ChangeReader for RootReader {
    async fn next(&mut self) -> Result<Next> {
        loop {
            if Instant::now() >= self.heartbeat {
                self.heartbeat = Instant::now() + SIGN_OF_LIFE;
                let batch = BatchBuilder::new(PartitionId::new(self.table.name.as_str()));
                return batch.finish(Position::default(), None).map(Next::Batch);
            }
            if let Some(children) = self.step().await? {
                tracing::info!(table = self.table.name, shards = children.len(), "the stream is listed");
                return Ok(Next::Closed { children });
            }
        }
    }

    async fn acknowledge(&mut self, _: Option<&Position>) -> Result<()> {
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
