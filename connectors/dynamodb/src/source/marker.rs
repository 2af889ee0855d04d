//! Marks the present: items that are written to the tables, and seen in every open shard.
//!
//! DynamoDB tells of no shard how far it is. So an item is written whose record is looked for in the
//! stream; everything that was written to that shard before comes before it. Which shard an item goes
//! to is DynamoDB's matter: items with random keys are written until each open shard has one. They
//! carry [`MARKER`], are no rows for any reader of this library, and are deleted at once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use anabranch_core::{DataType, Error, Marker, PartitionId, Position, Result};
use async_trait::async_trait;
use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_dynamodbstreams::types::{Record, ShardIteratorType};
use aws_smithy_types::Blob;
use tokio::time::{Instant, sleep};

use super::children::AGREE_AFTER;
use super::setup::{Table, ended};
use super::shards::{Listed, Listing};
use super::{Connected, DynamoDb, position, shard_partition};
use crate::bookkeeping::MARKER;
use crate::error::{classify, code, is_throttle};
use crate::limiter::backoff;
use crate::types;

/// A table that does not show what was written in this time has another problem.
const PATIENCE: Duration = Duration::from_secs(120);

/// Markers written in one round for each shard that has none yet, at most so many.
const AT_ONCE: usize = 16;

/// The pause between two looks at the shards.
const LOOK: Duration = Duration::from_millis(100);

#[async_trait]
impl Marker for DynamoDb {
    async fn mark(&self) -> Result<BTreeMap<PartitionId, Position>> {
        let connected = self.connected();
        let mut marks = BTreeMap::new();
        let mut seen = Vec::new();
        for table in connected.tables()? {
            let leaves = leaves(&list(&connected, &table).await?);
            seen.push((table, leaves));
        }
        sleep(AGREE_AFTER).await;
        for (table, seen) in seen {
            let mut marking = Marking::begin(&connected, &table, seen).await?;
            let result = marking.run().await;
            let removed = marking.remove().await;
            marks.extend(result?);
            removed?;
        }
        Ok(marks)
    }
}

type Key = HashMap<String, AttributeValue>;

/// A mark under way in one table.
struct Marking<'a> {
    connected: &'a Connected,
    table: &'a Table,
    id: String,
    /// Open shards that have no marker yet, each with an iterator from before the first marker.
    waiting: BTreeMap<String, Option<String>>,
    written: Vec<Key>,
    marks: BTreeMap<PartitionId, Position>,
}

impl<'a> Marking<'a> {
    /// `seen`: the shards without children, as they were listed a while ago.
    async fn begin(connected: &'a Connected, table: &'a Table, seen: BTreeSet<String>) -> Result<Self> {
        let id = format!("{:032x}", rand::random::<u128>());
        let mut this =
            Self { connected, table, id, waiting: BTreeMap::new(), written: Vec::new(), marks: BTreeMap::new() };
        // The present is here: iterators at the end of every open shard, before anything is written.
        let listed = agreed(connected, table, seen).await?;
        if !listed.enabled {
            return Err(ended(table));
        }
        for (shard, _) in listed.leaves() {
            let iterator = this.iterator(shard, ShardIteratorType::Latest).await?;
            this.waiting.insert(shard.clone(), iterator);
        }
        Ok(this)
    }

    async fn iterator(&self, shard: &str, kind: ShardIteratorType) -> Result<Option<String>> {
        let stream = self.table.stream()?;
        loop {
            let call = self.connected.clients().await?.streams.get_shard_iterator().stream_arn(&stream.arn);
            match call.shard_id(shard).shard_iterator_type(kind.clone()).send().await {
                Ok(answer) => return Ok(answer.shard_iterator),
                Err(e) if code(&e).is_some_and(is_throttle) => sleep(LOOK).await,
                Err(e) => return Err(classify("dynamodb:GetShardIterator", format!("the shard {shard}"), e)),
            }
        }
    }

    async fn run(&mut self) -> Result<BTreeMap<PartitionId, Position>> {
        let deadline = Instant::now() + PATIENCE;
        while !self.waiting.is_empty() {
            if Instant::now() > deadline {
                let shards: Vec<&str> = self.waiting.keys().map(String::as_str).collect();
                let problem = format!("no marker was seen in shards {} of {}", shards.join(", "), self.table.name);
                return Err(Error::transient(problem));
            }
            for _ in 0..self.waiting.len().min(AT_ONCE) {
                self.write().await?;
            }
            self.look().await?;
            sleep(LOOK).await;
        }
        Ok(std::mem::take(&mut self.marks))
    }

    async fn write(&mut self) -> Result<()> {
        let mut key = Key::new();
        for column in self.table.layout.schema().key_columns() {
            let number = rand::random::<u128>();
            let value = match &column.data_type {
                // Thirty digits below zero: no key of anybody's.
                t if types::is_numeric(t) => {
                    AttributeValue::N(format!("-{}", 10u128.pow(29) + number % (9 * 10u128.pow(29))))
                }
                DataType::Bytes => AttributeValue::B(Blob::new(format!("{MARKER}{number:032x}"))),
                _ => AttributeValue::S(format!("{MARKER}{number:032x}")),
            };
            key.insert(column.name.clone(), value);
        }
        let call = self.connected.clients().await?.tables.put_item().table_name(&self.table.name);
        let call = call.set_item(Some(key.clone())).item(MARKER, AttributeValue::S(self.id.clone()));
        // Recorded first: what may have been written is deleted.
        self.written.push(key);
        match call.send().await {
            Ok(_) => Ok(()),
            Err(e) if code(&e).is_some_and(is_throttle) => Ok(()),
            Err(e) => Err(classify("dynamodb:PutItem", format!("the table {}, for a marker", self.table.name), e)),
        }
    }

    /// Reads a page of each shard that has no marker yet.
    async fn look(&mut self) -> Result<()> {
        let shards: Vec<(String, Option<String>)> = self.waiting.iter().map(|(s, i)| (s.clone(), i.clone())).collect();
        let mut ended = false;
        for (shard, iterator) in shards {
            let Some(iterator) = iterator else {
                ended = true;
                self.waiting.remove(&shard);
                continue;
            };
            let answer = self.connected.clients().await?.streams.get_records().shard_iterator(iterator).send().await;
            let page = match answer {
                Ok(page) => page,
                Err(e) if code(&e).is_some_and(is_throttle) => continue,
                Err(e) => return Err(classify("dynamodb:GetRecords", format!("the shard {shard}"), e)),
            };
            if let Some(sequence) = page.records().iter().find_map(|r| self.is_mine(r)) {
                let at = position::after(self.table.stream()?.epoch, sequence)?;
                self.marks.insert(shard_partition(&self.table.name, &shard), at);
                self.waiting.remove(&shard);
            } else {
                self.waiting.insert(shard, page.next_shard_iterator);
            }
        }
        if ended {
            self.follow().await?;
        }
        Ok(())
    }

    fn is_mine<'r>(&self, record: &'r Record) -> Option<&'r str> {
        let data = record.dynamodb()?;
        let marker = data.new_image().or(data.old_image())?.get(MARKER)?;
        marker.as_s().ok().filter(|id| **id == self.id)?;
        data.sequence_number()
    }

    /// Shards ended: what follows them is marked in their stead. They are read to their ends before.
    async fn follow(&mut self) -> Result<()> {
        let seen = leaves(&list(self.connected, self.table).await?);
        sleep(AGREE_AFTER).await;
        let listed = agreed(self.connected, self.table, seen).await?;
        let new: Vec<String> = listed
            .leaves()
            .map(|(shard, _)| shard.clone())
            .filter(|s| {
                !self.waiting.contains_key(s) && !self.marks.contains_key(&shard_partition(&self.table.name, s))
            })
            .collect();
        for shard in new {
            // Its marker may be there already.
            let iterator = self.iterator(&shard, ShardIteratorType::TrimHorizon).await?;
            self.waiting.insert(shard, iterator);
        }
        Ok(())
    }

    /// Deletes what was written. A table that is throttled is waited for: what stays is a row of the users'.
    async fn remove(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut throttled = 0;
        while let Some(key) = self.written.last() {
            let call = self.connected.clients().await?.tables.delete_item().table_name(&self.table.name);
            match call.set_key(Some(key.clone())).send().await {
                Ok(_) => throttled = 0,
                Err(e) if code(&e).is_some_and(is_throttle) && Instant::now() < deadline => {
                    throttled += 1;
                    sleep(backoff(throttled)).await;
                    continue;
                }
                Err(e) => {
                    return Err(classify(
                        "dynamodb:DeleteItem",
                        format!("the table {}, for a marker", self.table.name),
                        e,
                    ));
                }
            }
            self.written.pop();
        }
        Ok(())
    }
}

async fn list(connected: &Connected, table: &Table) -> Result<Listed> {
    let mut listing = Listing::all();
    loop {
        if let Some(listed) = listing.step(connected, table).await? {
            return Ok(listed);
        }
    }
}

fn leaves(listed: &Listed) -> BTreeSet<String> {
    listed.leaves().map(|(shard, _)| shard.clone()).collect()
}

/// Lists until two answers agree. A child of a split that is not listed yet may have been written to before
/// the mark was asked for: left out, it would be told as drained unread.
async fn agreed(connected: &Connected, table: &Table, mut seen: BTreeSet<String>) -> Result<Listed> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let listed = list(connected, table).await?;
        let found = leaves(&listed);
        if found == seen {
            return Ok(listed);
        }
        if Instant::now() > deadline {
            return Err(Error::transient(format!("the shards of {} change while they are listed", table.name)));
        }
        seen = found;
        sleep(AGREE_AFTER).await;
    }
}
