//! Stream to table, from one DynamoDB Local to another, beside a loop of the official client that does the
//! same: it reads a page, writes its items as many at a time, and then keeps how far it came.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anabranch_core::pipeline::{ByKey, SnapshotMode};
use anabranch_core::{Pipeline, Secret};
use anabranch_dynamodb::{Access, DynamoDb, DynamoDbSink, Mode};
use anabranch_servers::{DynamoOptions, DynamoServer};
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType, PutRequest, ScalarAttributeType,
    StreamSpecification, StreamViewType, WriteRequest,
};
use aws_sdk_dynamodbstreams::types::{AttributeValue as Streamed, ShardIteratorType};
use futures_util::{StreamExt, stream};

use crate::{ROUNDS, tell};

type Item = HashMap<String, AttributeValue>;

const TABLE: &str = "orders";
/// Where the bare loop keeps its progress.
const PROGRESS: &str = "progress";
/// Calls under way at a time, of both.
const CALLS: usize = 32;
/// Items of a `BatchWriteItem`.
const ITEMS: usize = 25;
pub(crate) async fn run(records: u64) {
    let local = || DynamoOptions::new().in_memory().start().unwrap();
    let (Some(from), Some(to)) = (local(), local()) else { return };
    let ends = Ends { source: access(&from), target: access(&to) };
    ends.fill(records).await;
    for mode in [Mode::Guarded, Mode::Batch] {
        let (mut bare, mut ours) = (Duration::MAX, Duration::MAX);
        for round in 0..ROUNDS {
            bare = bare.min(ends.bare(mode, records).await);
            ours = ours.min(ends.ours(mode, records, round).await);
        }
        tell(&format!("to a table, {mode:?}").to_lowercase(), records, bare, ours);
    }
}

fn access(server: &DynamoServer) -> Access {
    let key = || Secret::new("local");
    Access::new().region("local").endpoint(server.endpoint()).credentials(key(), key(), None)
}

struct Ends {
    source: Access,
    target: Access,
}

impl Ends {
    async fn fill(&self, records: u64) {
        let client = self.source.dynamodb("bench").await.unwrap();
        create(&client, TABLE, true).await;
        let ids: Vec<u64> = (0..records).collect();
        let batches = ids.chunks(ITEMS).map(|ids| ids.iter().map(|id| put(item(*id))).collect::<Vec<_>>());
        let write = |batch| write_batch(&client, batch);
        stream::iter(batches).map(write).buffer_unordered(CALLS).collect::<Vec<()>>().await;
    }

    /// An empty table; the last run's is gone.
    async fn clean(&self) -> Client {
        let client = self.target.dynamodb("bench").await.unwrap();
        for name in [TABLE, PROGRESS] {
            // Not there before the first run.
            let _ = client.delete_table().table_name(name).send().await;
            create(&client, name, false).await;
        }
        client
    }

    async fn bare(&self, mode: Mode, records: u64) -> Duration {
        let (client, streams) = (self.clean().await, self.source.streams("bench").await.unwrap());
        let begun = Instant::now();
        let found = streams.list_streams().table_name(TABLE).send().await.unwrap();
        let arn = found.streams()[0].stream_arn().unwrap().to_owned();
        let shards = streams.describe_stream().stream_arn(&arn).send().await.unwrap().stream_description.unwrap();
        let mut read = 0;
        for shard in shards.shards() {
            let first = streams.get_shard_iterator().stream_arn(&arn).shard_id(shard.shard_id().unwrap());
            let first = first.shard_iterator_type(ShardIteratorType::TrimHorizon).send().await.unwrap();
            let mut iterator = first.shard_iterator;
            while let Some(at) = iterator {
                let page = streams.get_records().shard_iterator(at).send().await.unwrap();
                let records = page.records();
                read += records.len() as u64;
                let items: Vec<Item> = records.iter().map(new_item).collect();
                match mode {
                    Mode::Batch => batches(&client, items).await,
                    _ => guarded(&client, items).await,
                }
                if let Some(last) = records.last() {
                    let number = last.dynamodb().unwrap().sequence_number().unwrap().to_owned();
                    let progress = client.put_item().table_name(PROGRESS).item("id", AttributeValue::N("1".to_owned()));
                    progress.item("number", AttributeValue::S(number)).send().await.unwrap();
                }
                iterator = if records.is_empty() { None } else { page.next_shard_iterator.clone() };
            }
        }
        assert_eq!(read, records);
        begun.elapsed()
    }

    async fn ours(&self, mode: Mode, records: u64, round: u64) -> Duration {
        self.clean().await;
        let sink = DynamoDbSink::new(self.target.clone()).mode(mode).concurrency(CALLS);
        let pipeline = Pipeline::builder(format!("bench_{mode:?}_{round}").to_lowercase())
            .source(DynamoDb::new().access(self.source.clone()).table(TABLE))
            .sink(sink)
            .order(ByKey::new(2))
            .snapshot(SnapshotMode::Never);
        let pipeline = pipeline.build().unwrap();
        let begun = Instant::now();
        let running = pipeline.start().await.unwrap();
        while running.status().counters.changes < records {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let took = begun.elapsed();
        running.stop().await.unwrap();
        took
    }
}

fn item(id: u64) -> Item {
    let note = "a hundred bytes or so of text, as items have it: ............".to_owned();
    HashMap::from([
        ("id".to_owned(), AttributeValue::N(id.to_string())),
        ("note".to_owned(), AttributeValue::S(note)),
        ("v".to_owned(), AttributeValue::N("1".to_owned())),
    ])
}

fn put(item: Item) -> WriteRequest {
    WriteRequest::builder().put_request(PutRequest::builder().set_item(Some(item)).build().unwrap()).build()
}

async fn write_batch(client: &Client, batch: Vec<WriteRequest>) {
    let answer = client.batch_write_item().request_items(TABLE, batch).send().await.unwrap();
    assert!(answer.unprocessed_items().is_none_or(HashMap::is_empty));
}

async fn batches(client: &Client, items: Vec<Item>) {
    let batches: Vec<Vec<WriteRequest>> =
        items.chunks(ITEMS).map(|items| items.iter().cloned().map(put).collect()).collect();
    let write = |batch| write_batch(client, batch);
    stream::iter(batches).map(write).buffer_unordered(CALLS).collect::<Vec<()>>().await;
}

/// Only over what is older, as a loop has to that may be started again.
async fn guarded(client: &Client, items: Vec<Item>) {
    let write = |item: Item| async {
        let request = client.put_item().table_name(TABLE).set_item(Some(item));
        let request = request.condition_expression("attribute_not_exists(#v) OR #v < :v");
        let version = AttributeValue::S("1".to_owned());
        let request = request.expression_attribute_names("#v", "version").expression_attribute_values(":v", version);
        request.send().await.unwrap();
    };
    stream::iter(items).map(write).buffer_unordered(CALLS).collect::<Vec<()>>().await;
}

/// The item as of a record, with the record's number as its version.
fn new_item(record: &aws_sdk_dynamodbstreams::types::Record) -> Item {
    let data = record.dynamodb().unwrap();
    let value = |value: &Streamed| match value {
        Streamed::N(v) => AttributeValue::N(v.clone()),
        Streamed::S(v) => AttributeValue::S(v.clone()),
        other => panic!("no such attribute was written: {other:?}"),
    };
    let mut item: Item = data.new_image().unwrap().iter().map(|(name, v)| (name.clone(), value(v))).collect();
    item.insert("version".to_owned(), AttributeValue::S(data.sequence_number().unwrap().to_owned()));
    item
}

async fn create(client: &Client, name: &str, with_stream: bool) {
    let key = KeySchemaElement::builder().attribute_name("id").key_type(KeyType::Hash).build().unwrap();
    let id =
        AttributeDefinition::builder().attribute_name("id").attribute_type(ScalarAttributeType::N).build().unwrap();
    let mut table = client.create_table().table_name(name).key_schema(key).attribute_definitions(id);
    if with_stream {
        let images = StreamSpecification::builder().stream_enabled(true);
        let images = images.stream_view_type(StreamViewType::NewAndOldImages).build().unwrap();
        table = table.stream_specification(images);
    }
    table.billing_mode(BillingMode::PayPerRequest).send().await.unwrap();
}
