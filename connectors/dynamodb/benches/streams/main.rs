//! The source beside a bare loop of the official client, on the same server, in the same run.
//!
//! ```sh
//! cargo bench -p anabranch-dynamodb --bench streams              # BENCH_RECORDS=200000, BENCH_SHARDS=1,16,64,256,
//!                                                                # BENCH_TABLE_RECORDS=20000
//! ```
//!
//! | run | what |
//! |---|---|
//! | stream | records that wait in shards, read into a sink that forgets them; as the shards grow |
//! | copy | items of a table, scanned in four segments, into the same |
//! | to a table | a stream of one DynamoDB Local into a table of another, both in memory |
//!
//! The server of the first two is the fake of the tests: it keeps everything in memory, in this process.
//! So what is compared is the work around the calls. A ratio of 1 is the bare loop.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "a load run")]

mod table;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anabranch_core::checkpointer::MemoryCheckpointer;
use anabranch_core::pipeline::{ByKey, SnapshotMode};
use anabranch_core::{Lane, Pipeline, Result, Secret, Sink, SinkInfo, SinkWriter, Unit, Written};
use anabranch_dynamodb::{Access, DynamoDb};
use anabranch_dynamodb_fake::{Fake, n, s};
use async_trait::async_trait;
use aws_sdk_dynamodbstreams::types::ShardIteratorType;
use tokio::task::JoinSet;

const SEGMENTS: u32 = 4;
/// The best of so many runs counts, of both: the machine has other things to do too.
const ROUNDS: u64 = 3;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// Counts rows, and forgets them.
#[derive(Debug, Clone, Default)]
struct Null(Arc<AtomicU64>);

#[async_trait]
impl Sink for Null {
    fn info(&self) -> SinkInfo {
        SinkInfo { name: "null", transactional: false, max_lanes: 8, schemas: false }
    }

    async fn open(&self, _: Lane) -> Result<Box<dyn SinkWriter>> {
        Ok(Box::new(self.clone()))
    }
}

#[async_trait]
impl SinkWriter for Null {
    async fn write(&mut self, unit: &Unit) -> Result<Written> {
        self.0.fetch_add(unit.changes().count() as u64, Ordering::Relaxed);
        Ok(Written::durable())
    }

    async fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

fn access(fake: &Fake) -> Access {
    let key = || Secret::new("local");
    Access::new().region("local").endpoint(fake.endpoint()).credentials(key(), key(), None)
}

async fn filled(records: u64, shards: u64) -> Fake {
    let fake = Fake::start().await;
    fake.create_table("orders", &[("id", "N")]);
    fake.state().spread("orders", shards);
    for id in 0..records {
        fake.put(
            "orders",
            &[("id", n(id)), ("note", s("a hundred bytes or so of text, as items have it: ............")), ("v", n(1))],
        );
    }
    fake
}

/// The official client alone: all shards at a time, each to the last record that is there.
async fn bare_stream(fake: &Fake, records: u64) -> Duration {
    let client = access(fake).streams("bench").await.unwrap();
    let (arn, shards) = {
        let state = fake.state();
        (state.tables["orders"].stream.clone().unwrap(), state.stream("orders").open_shards())
    };
    let begun = Instant::now();
    let read = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for shard in shards {
        let (client, arn, read) = (client.clone(), arn.clone(), Arc::clone(&read));
        tasks.spawn(async move {
            let call = client.get_shard_iterator().stream_arn(arn).shard_id(shard);
            let first = call.shard_iterator_type(ShardIteratorType::TrimHorizon).send().await.unwrap();
            let mut iterator = first.shard_iterator;
            while let Some(at) = iterator {
                let page = client.get_records().shard_iterator(at).send().await.unwrap();
                let count = page.records().len() as u64;
                iterator = page.next_shard_iterator.filter(|_| count > 0);
                read.fetch_add(count, Ordering::Relaxed);
            }
        });
    }
    while tasks.join_next().await.is_some() {}
    assert_eq!(read.load(Ordering::Relaxed), records);
    begun.elapsed()
}

async fn bare_scan(fake: &Fake, records: u64) -> Duration {
    let client = access(fake).dynamodb("bench").await.unwrap();
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for segment in 0..SEGMENTS {
        let scan = client.scan().table_name("orders").segment(segment as i32).total_segments(SEGMENTS as i32);
        tasks.spawn(async move {
            let (mut pages, mut count) = (scan.into_paginator().send(), 0);
            while let Some(page) = pages.next().await {
                count += page.unwrap().items().len() as u64;
            }
            count
        });
    }
    let mut read = 0;
    while let Some(count) = tasks.join_next().await {
        read += count.unwrap();
    }
    assert_eq!(read, records);
    begun.elapsed()
}

async fn ours(fake: &Fake, records: u64, snapshot: SnapshotMode) -> Duration {
    let sink = Null::default();
    let source = DynamoDb::new().access(access(fake)).table("orders").scan_segments(SEGMENTS);
    let pipeline = Pipeline::builder("bench").source(source).sink(sink.clone()).order(ByKey::new(2));
    let pipeline = pipeline.checkpointer(MemoryCheckpointer::new()).snapshot(snapshot).build().unwrap();
    let begun = Instant::now();
    let mut running = pipeline.start().await.unwrap();
    if snapshot == SnapshotMode::Only {
        running.wait().await.unwrap();
        assert_eq!(sink.0.load(Ordering::Relaxed), records);
        return begun.elapsed();
    }
    while sink.0.load(Ordering::Relaxed) < records {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let took = begun.elapsed();
    running.stop().await.unwrap();
    took
}

fn tell(what: &str, records: u64, bare: Duration, ours: Duration) {
    let rate = |took: Duration| records as f64 / took.as_secs_f64();
    println!(
        "{what:<22} {records:>8} rows   bare {:>9.0}/s   anabranch {:>9.0}/s   ratio {:.2}",
        rate(bare),
        rate(ours),
        bare.as_secs_f64() / ours.as_secs_f64()
    );
}

#[tokio::main]
async fn main() {
    let records = number("BENCH_RECORDS", 200_000);
    let shards = std::env::var("BENCH_SHARDS").unwrap_or_else(|_| "1,16,64,256".to_owned());
    for shards in shards.split(',').filter_map(|s| s.trim().parse().ok()) {
        let fake = filled(records, shards).await;
        let (mut bare, mut took) = (Duration::MAX, Duration::MAX);
        for _ in 0..ROUNDS {
            bare = bare.min(bare_stream(&fake, records).await);
            took = took.min(ours(&fake, records, SnapshotMode::Never).await);
        }
        tell(&format!("stream, {shards} shards"), records, bare, took);
    }
    let fake = filled(records, 1).await;
    let (mut bare, mut took) = (Duration::MAX, Duration::MAX);
    for _ in 0..ROUNDS {
        bare = bare.min(bare_scan(&fake, records).await);
        took = took.min(ours(&fake, records, SnapshotMode::Only).await);
    }
    tell("copy", records, bare, took);
    table::run(number("BENCH_TABLE_RECORDS", 20_000)).await;
}
