//! The runtime against the databases in memory: copy, stream, drain, stop, go on, fence.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anabranch_core::checkpointer::MemoryCheckpointer;
use anabranch_core::memory::{MemorySink, MemorySource};
use anabranch_core::pipeline::{OnRejected, Phase, PipelineBuilder};
use anabranch_core::{
    ByKey, ByTransaction, ByWindow, Checkpoint, Checkpointer, Column, DataType, Error, ErrorKind, Order, Pipeline,
    Result, RunningPipeline, Saved, TableName, TableSchema, Value, Version,
};
use anabranch_testkit::faults::{Call, Fault, FaultySink, Schedule};
use async_trait::async_trait;

fn accounts() -> TableSchema {
    TableSchema {
        name: TableName::new("public", "accounts"),
        columns: vec![Column::new("id", DataType::Int64), Column::new("balance", DataType::Int64)],
        key: vec![0],
    }
}

fn row(id: i64, balance: i64) -> Vec<Value> {
    vec![Value::Int(id), Value::Int(balance)]
}

fn insert(source: &MemorySource, ids: std::ops::Range<i64>) {
    let table = accounts().name;
    let mut transaction = source.transaction();
    for id in ids {
        transaction = transaction.insert(&table, row(id, 100));
    }
    transaction.commit().unwrap();
}

fn transfer(source: &MemorySource, from: i64, to: i64, balances: (i64, i64)) {
    let table = accounts().name;
    source
        .transaction()
        .update(&table, vec![Value::Int(from)], row(from, balances.0))
        .update(&table, vec![Value::Int(to)], row(to, balances.1))
        .commit()
        .unwrap();
}

fn pipeline(source: &MemorySource, sink: &MemorySink) -> PipelineBuilder {
    Pipeline::builder("test").source(source.clone()).sink(sink.clone()).create_tables(true)
}

async fn start(builder: PipelineBuilder) -> RunningPipeline {
    builder.build().unwrap().start().await.unwrap()
}

async fn drained(running: &mut RunningPipeline) {
    let drained = running.drain(Some(Duration::from_secs(60))).await.unwrap();
    assert!(drained.drained, "{drained:?} {:?}", running.status());
}

fn assert_equal(source: &MemorySource, sink: &MemorySink) {
    assert_eq!(source.tables().difference(&sink.tables()), None);
}

#[tokio::test(start_paused = true)]
async fn copies_streams_drains_and_goes_on_after_a_stop() {
    let source = MemorySource::new("db").table(accounts()).chunk_rows(7);
    let sink = MemorySink::new();
    insert(&source, 0..50);

    let mut running = start(pipeline(&source, &sink)).await;
    for i in 0..20 {
        transfer(&source, i, i + 1, (i, 2 * i));
    }
    drained(&mut running).await;
    assert_equal(&source, &sink);
    let status = running.status();
    assert_eq!(status.counters.snapshot_rows, 50);
    assert!(status.safe_time.is_some());
    running.stop().await.unwrap();

    insert(&source, 50..60);
    let mut running = start(pipeline(&source, &sink)).await;
    drained(&mut running).await;
    assert_equal(&source, &sink);
    let counters = running.status().counters;
    assert_eq!((counters.snapshot_rows, counters.changes), (50, 50));
    running.stop().await.unwrap();
    assert_eq!(source.acknowledged(), source.committed());
}

#[tokio::test(start_paused = true)]
async fn a_transaction_above_the_budget_arrives_whole() {
    let source = MemorySource::new("db").table(accounts()).batch_changes(500);
    let sink = MemorySink::new();
    let mut running = start(pipeline(&source, &sink).memory(1 << 20)).await;
    drained(&mut running).await;
    insert(&source, 0..100_000);
    drained(&mut running).await;
    assert_equal(&source, &sink);
    // The one target transaction that has rows has all of them.
    let sizes: Vec<usize> = sink.history().iter().map(|c| c.rows().count()).filter(|&n| n > 0).collect();
    assert_eq!(sizes, [100_000]);
    assert_eq!(running.status().counters.changes, 100_000, "its parts are counted");
    running.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_second_runner_takes_over_and_the_first_stops_fenced() {
    let source = MemorySource::new("db").table(accounts());
    let sink = MemorySink::new();
    insert(&source, 0..10);
    let mut first = start(pipeline(&source, &sink)).await;
    drained(&mut first).await;

    let mut second = start(pipeline(&source, &sink)).await;
    insert(&source, 10..20);
    drained(&mut second).await;
    let ended = first.wait().await.unwrap_err();
    assert_eq!(ended.kind(), ErrorKind::Fenced, "{ended:?}");
    assert_equal(&source, &sink);
    second.stop().await.unwrap();
}

/// A window holds back five times the byte budget: without spilling, reading would stop for good,
/// for only reading tells that the window is over.
#[tokio::test]
async fn what_waits_beyond_the_budget_is_spilled_to_disk() {
    let source = MemorySource::new("db").table(accounts()).batch_changes(100).heartbeat(Duration::from_millis(50));
    let sink = MemorySink::new();
    let window = ByWindow::new(Duration::from_secs(2));
    let mut running = start(pipeline(&source, &sink).order(window).memory(1 << 20)).await;
    for n in 0..50 {
        insert(&source, n * 2_000..(n + 1) * 2_000);
    }
    drained(&mut running).await;
    assert_equal(&source, &sink);
    assert_eq!(sink.rows(&accounts().name).len(), 100_000);
    running.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn safe_time_moves_on_an_idle_source_after_a_restart() {
    let source = MemorySource::new("shop").table(accounts()).heartbeat(Duration::from_millis(100));
    let sink = MemorySink::new();
    insert(&source, 0..3);
    let mut running = start(pipeline(&source, &sink)).await;
    drained(&mut running).await;
    running.stop().await.unwrap();

    let running = start(pipeline(&source, &sink)).await;
    let restarted = anabranch_core::Timestamp::now();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while running.status().safe_time < Some(restarted) {
        assert!(tokio::time::Instant::now() < deadline, "the safe time stands still: {:?}", running.status());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    running.stop().await.unwrap();
}

/// A letter is put, and the run ends before its lane has stored that it passed the change. The source
/// gives the change again, and the letter must not be applied beside it.
#[tokio::test(start_paused = true)]
async fn a_letter_whose_change_comes_again_is_not_applied_too() {
    let orders: [fn() -> Order; 2] = [|| ByTransaction::new().into(), || ByKey::new(1).into()];
    for order in orders {
        let (source, sink, schedule) = (MemorySource::new("db").table(accounts()), MemorySink::new(), Schedule::new());
        let faulty = FaultySink::new(Arc::new(sink.clone()), schedule.clone());
        let builder = Pipeline::builder("test").source(source.clone()).sink(faulty).create_tables(true);
        let builder = builder.order(order()).on_rejected(OnRejected::DeadLetter);
        let mut running = start(builder).await;
        insert(&source, 0..2);
        drained(&mut running).await;
        let write = schedule.calls(Call::Write);
        // The change, then the progress that passes it.
        let refused = schedule.clone().at(Call::Write, write + 1, Fault::Fail(ErrorKind::Rejected));
        let _ = refused.at(Call::Write, write + 2, Fault::Fail(ErrorKind::Transient));
        insert(&source, 2..3);
        drained(&mut running).await;
        insert(&source, 3..4);
        drained(&mut running).await;
        assert_equal(&source, &sink);
        assert_eq!((running.status().dead_letters_open, running.status().failures > 0), (0, true));
        running.stop().await.unwrap();
    }
}

/// A checkpointer that does not answer while it is told so.
#[derive(Debug, Clone, Default)]
struct Store {
    inner: Arc<MemoryCheckpointer>,
    down: Arc<AtomicBool>,
}

#[async_trait]
impl Checkpointer for Store {
    async fn load(&self, pipeline: &str) -> Result<Option<(Version, Checkpoint)>> {
        // For one question alone: who asks again is answered.
        if self.down.swap(false, Ordering::Relaxed) {
            return Err(Error::transient("the store is down"));
        }
        self.inner.load(pipeline).await
    }

    async fn save(&self, pipeline: &str, expected: Option<Version>, next: &Checkpoint) -> Result<Saved> {
        self.inner.save(pipeline, expected, next).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_paused_pipeline_stays_paused_while_its_checkpoint_cannot_be_read() {
    let (source, sink, store) = (MemorySource::new("db").table(accounts()), MemorySink::new(), Store::default());
    let builder = || pipeline(&source, &sink).checkpointer(store.clone());
    let operator = builder().build().unwrap();
    let mut running = start(builder()).await;
    drained(&mut running).await;
    assert!(operator.pause().await.unwrap());
    while running.status().phase != Phase::Paused {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let epoch = running.status().epoch;
    insert(&source, 0..10);
    for _ in 0..10 {
        store.down.store(true, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(3)).await;
        // Nobody took the pipeline over to write.
        assert_eq!((running.status().phase, running.status().epoch), (Phase::Paused, epoch));
    }
    assert!(sink.rows(&accounts().name).is_empty());
    assert!(operator.resume().await.unwrap());
    drained(&mut running).await;
    assert_equal(&source, &sink);
    running.stop().await.unwrap();
}
