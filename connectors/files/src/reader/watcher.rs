//! Waits for shards that appear while a run is read.

use std::time::Duration;

use anabranch_core::{BatchBuilder, ChangeReader, Next, Partition, PartitionId, Position, Result, Timestamp};
use async_trait::async_trait;
use tokio::time::{Instant, sleep_until};

use super::{HEARTBEAT, SHORTEST};
use crate::source::{WindowSource, next_watcher};
use crate::store::Store;

/// The reader of a partition without changes: it closes with the new shards, and another one of its
/// kind, as its children. While it is open its safe time tells that no shard is unknown up to there.
pub(crate) struct Watcher {
    source: WindowSource,
    store: Store,
    partition: PartitionId,
    generation: u64,
    safe_time: Option<Timestamp>,
    given: Instant,
    look: Instant,
    wait: Duration,
}

impl Watcher {
    pub(crate) fn new(source: WindowSource, store: Store, partition: PartitionId, generation: u64) -> Self {
        let now = Instant::now();
        Self { source, store, partition, generation, safe_time: None, given: now, look: now, wait: SHORTEST }
    }
}

#[async_trait]
impl ChangeReader for Watcher {
    async fn next(&mut self) -> Result<Next> {
        loop {
            sleep_until(self.look).await;
            let ledger = self.source.ledger(&self.store, self.look).await?;
            let shards = ledger.iter().flat_map(|l| l.shards.keys());
            let new: Vec<String> = shards.filter(|shard| self.source.is_new(shard)).cloned().collect();
            if !new.is_empty() {
                let child = |shard: &String| Partition {
                    id: PartitionId::new(shard.clone()),
                    parents: vec![self.partition.clone()],
                    start: None,
                };
                let next = next_watcher(&self.partition, self.generation);
                let children = new.iter().map(child).chain([next]).collect();
                new.iter().for_each(|shard| self.source.learn(shard));
                return Ok(Next::Closed { children });
            }
            self.wait = (self.wait * 2).min(self.source.settings.poll);
            self.look = Instant::now() + self.wait;
            let safe_time = ledger.and_then(|l| l.safe_time);
            if safe_time > self.safe_time || self.given.elapsed() >= HEARTBEAT {
                self.safe_time = self.safe_time.max(safe_time);
                self.given = Instant::now();
                let batch = BatchBuilder::new(self.partition.clone());
                return batch.finish(Position::default(), self.safe_time).map(Next::Batch);
            }
        }
    }

    async fn acknowledge(&mut self, _through: Option<&Position>) -> Result<()> {
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
