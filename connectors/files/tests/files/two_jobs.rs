//! Two pipelines with files between them, and failures everywhere: the target is what the source is.
//! The seed is printed; `SEED=n` replays one, `SEEDS=100` tries so many.

use std::sync::Arc;
use std::time::Duration;

use anabranch_core::checkpointer::MemoryCheckpointer;
use anabranch_core::memory::MemorySink;
use anabranch_core::pipeline::SnapshotMode;
use anabranch_core::transform::Shard;
use anabranch_core::{
    Arrival, ByKey, ByTransaction, ByWindow, ErrorKind, Order, Pipeline, PipelineBuilder, RunningPipeline,
};
use anabranch_files::{FilesCheckpointer, Processed, WindowFiles, WindowSource};
use anabranch_testkit::faults::{Call, Fault, FaultySink, FaultySource, Schedule};
use anabranch_testkit::generator::{Generator, customers, events, lines};

use crate::support::Folder;

/// Every failure that a store and a network can make of a call.
fn faults() -> Vec<(Call, Fault)> {
    let mut faults = vec![(Call::Next, Fault::Stop)];
    for call in [Call::Open, Call::Write, Call::Flush, Call::TakeOver, Call::Prepare, Call::Next, Call::Acknowledge] {
        faults.push((call, Fault::Fail(ErrorKind::Transient)));
        faults.push((call, Fault::DoneThenFail(ErrorKind::Indeterminate)));
    }
    faults
}

/// How the jobs are set.
struct Setting {
    first: Order,
    second: Order,
    sharded: bool,
    files: fn(WindowFiles) -> WindowFiles,
    source: fn(WindowSource) -> WindowSource,
}

impl Default for Setting {
    fn default() -> Self {
        let window = ByWindow::new(Duration::from_millis(150));
        Self { first: window.into(), second: window.into(), sharded: true, files: |f| f, source: |s| s }
    }
}

async fn started(builder: PipelineBuilder) -> RunningPipeline {
    builder.snapshot(SnapshotMode::Never).build().unwrap().start().await.unwrap()
}

async fn run(name: &str, setting: Setting) {
    let given = |name: &str| std::env::var(name).ok().and_then(|s| s.parse::<u64>().ok());
    let first = given("SEED").unwrap_or_else(|| u64::from(std::process::id()));
    for seed in first..first + given("SEEDS").unwrap_or(1) {
        println!("{name}: SEED={seed}");
        one(seed, &setting).await;
    }
}

async fn one(seed: u64, setting: &Setting) {
    let folder = Folder::new();
    let mut generator = Generator::new(seed, vec![customers(), lines(), events()]);
    let memory = generator.source().batch_changes(7).heartbeat(Duration::from_millis(20));
    let memory = [customers(), lines(), events()].iter().fold(memory, |m, t| m.full_old_rows(&t.name));
    let sink = MemorySink::new();
    let schedule = Schedule::new().random(seed, 0.02, &faults());

    let files = (setting.files)(folder.files.clone().window(Duration::from_millis(100)));
    let mut writing = Pipeline::builder("orders")
        .source(FaultySource::new(Arc::new(memory.clone()), schedule.clone()))
        .sink(FaultySink::new(Arc::new(files.clone()), schedule.clone()))
        .order(setting.first.clone());
    if setting.sharded {
        // Of a whole table, so that no row changes its shard, and a truncate has one.
        writing = writing.transform(Shard::by(|change| Ok(change.table().map(|t| t.name.name.clone()))));
    }
    let mut writing = started(writing).await;
    let source = (setting.source)(files.source().poll(Duration::from_millis(50)));
    let reading = Pipeline::builder("copy")
        .source(FaultySource::new(Arc::new(source), schedule.clone()))
        .sink(FaultySink::new(Arc::new(sink.clone()), schedule.clone()))
        .create_tables(true)
        .checkpointer(FilesCheckpointer::new(folder.path.join("state")))
        .order(setting.second.clone());
    let mut reading = started(reading).await;

    // Longer where chance has spared both until then.
    for round in 0..1000 {
        if round >= 60 && schedule.happened() > 0 {
            break;
        }
        generator.write(&memory, 1, 6);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    schedule.heal();
    for running in [&mut writing, &mut reading] {
        let drained = running.drain(Some(Duration::from_secs(60))).await.unwrap();
        assert!(drained.drained, "seed {seed}: {drained:?}, {:?}", running.status());
    }
    writing.stop().await.unwrap();
    reading.stop().await.unwrap();
    assert!(schedule.happened() > 0, "seed {seed}: nothing went wrong");
    assert_eq!(memory.tables().difference(&sink.tables()), None, "seed {seed} (left: source)");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_windows() {
    run("in windows", Setting::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn by_transaction_over_shards() {
    let setting = Setting { second: ByTransaction::new().into(), files: |f| f.max_file(700), ..Setting::default() };
    run("by transaction over shards", setting).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn by_key() {
    let setting =
        Setting { second: ByKey::new(1).into(), source: |s| s.processed(Processed::Delete), ..Setting::default() };
    run("by key", setting).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_transactions_of_one_shard() {
    let transaction = Order::from(ByTransaction::new());
    let setting = Setting {
        first: transaction.clone(),
        second: transaction,
        sharded: false,
        files: |f| f.max_file(500),
        source: |s| s.shard(""),
    };
    run("whole transactions of one shard", setting).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn as_they_come() {
    let setting = Setting { second: Arrival.into(), ..Setting::default() };
    run("as they come", setting).await;
}

/// A checkpoint that is lost is found in the files: nothing is written twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_checkpoint_is_found_in_the_files() {
    let folder = Folder::new();
    let mut generator = Generator::new(1, vec![customers()]);
    let memory = generator.source().heartbeat(Duration::from_millis(20));
    let mut written = 0;
    for _ in 0..3 {
        generator.write(&memory, 5, 4);
        let builder = Pipeline::builder("orders").source(memory.clone()).sink(folder.files.clone());
        let builder = builder.checkpointer(MemoryCheckpointer::new()).order(ByTransaction::new());
        let mut running = started(builder).await;
        running.drain(Some(Duration::from_secs(60))).await.unwrap();
        written = running.status().counters.changes;
        running.stop().await.unwrap();
    }
    let sink = MemorySink::new();
    let source = folder.source().shard("");
    let mut reading = started(Pipeline::builder("copy").source(source).sink(sink.clone()).create_tables(true)).await;
    assert!(reading.drain(Some(Duration::from_secs(60))).await.unwrap().drained);
    assert_eq!(memory.tables().difference(&sink.tables()), None);
    assert_eq!(reading.status().counters.changes, written);
}
