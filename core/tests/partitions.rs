//! Partitions that come, go and are shared, budgets that are too small for what comes, and the races of a
//! second process: what is told is true, and nothing stands still.

mod scripted;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anabranch_core::checkpointer::MemoryCheckpointer;
use anabranch_core::memory::{MemorySink, MemorySource};
use anabranch_core::pipeline::SnapshotMode;
use anabranch_core::transform::{Custom, rewrite};
use anabranch_core::{
    Arrival, ByKey, ByTransaction, ByWindow, Checkpoint, Checkpointer, Claim, Error, ErrorKind, Lane, LaneProgress,
    Pipeline, ProgressStore, Result, Saved, Sink, SinkInfo, SinkWriter, SourceOrder, TargetSchema, Value, ValueRef,
    Version,
};
use anabranch_testkit::faults::{Call, Fault, FaultySink, FaultySource, Schedule};
use anabranch_testkit::scripted::{Scripted, Tx, child, items};
use async_trait::async_trait;
use tokio::sync::Notify;

use scripted::{LONG, ids, scripted, start};

/// What waits for its end leaves three quarters of the budget free, and the batch that has the end needs more.
#[tokio::test(start_paused = true)]
async fn a_batch_that_needs_what_waits_is_not_waited_for_for_ever() {
    let sink = MemorySink::new();
    let source = Scripted::new(SourceOrder::Transactions, &["a"]);
    source.give("a", &[Tx::new(1).insert(1, "x".repeat(50 << 10)).open()]);
    source.give("a", &[Tx::new(1).from(2).insert(2, "y".repeat(3 << 20))]);
    let mut running = start(scripted(&source, sink.clone()).memory(1 << 20)).await;
    assert!(running.drain(LONG).await.unwrap().drained, "{:?}", running.status());
    assert_eq!(ids(&sink), [1, 2]);
    running.stop().await.unwrap();
}

/// As before, of two partitions: one has more than the other can have room for.
#[tokio::test(start_paused = true)]
async fn a_partition_that_waits_for_another_makes_room_for_it() {
    let sink = MemorySink::new();
    let source = Scripted::new(SourceOrder::CommitTimePerPartition, &["a", "b"]);
    let mut running = start(scripted(&source, sink.clone()).memory(1 << 20)).await;
    for n in 0..10 {
        source.give("a", &[Tx::new(2 * n + 2).insert(n as i64, "x".repeat(600 << 10))]);
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    source.give("b", &[Tx::new(1).insert(100, "y".repeat(900 << 10))]);
    source.give_safe("b", &[Tx::new(50).insert(101, "")], Some(50));
    source.give_safe("a", &[], Some(50));
    assert!(running.drain(LONG).await.unwrap().drained, "{:?}", running.status());
    assert_eq!(ids(&sink).len(), 12);
    running.stop().await.unwrap();
}

/// A checkpointer that does not save for a while.
#[derive(Debug, Clone, Default)]
struct Failing {
    inner: MemoryCheckpointer,
    once: Arc<AtomicBool>,
    away: Arc<AtomicBool>,
}

#[async_trait]
impl Checkpointer for Failing {
    async fn load(&self, pipeline: &str) -> Result<Option<(Version, Checkpoint)>> {
        self.inner.load(pipeline).await
    }

    async fn save(&self, pipeline: &str, expected: Option<Version>, next: &Checkpoint) -> Result<Saved> {
        if self.away.load(Ordering::Relaxed) {
            return Err(Error::transient("the store is away"));
        }
        // The first that knows the child.
        if next.partitions.len() > 1 && self.once.swap(false, Ordering::Relaxed) {
            return Err(Error::transient("the store is away"));
        }
        self.inner.save(pipeline, expected, next).await
    }
}

/// A child was heard of, and forgotten again with the attempt that heard of it. A drain must not take it
/// for one that was read to its end.
#[tokio::test(start_paused = true)]
async fn a_child_that_was_never_stored_is_not_drained() {
    let (sink, schedule, store) = (MemorySink::new(), Schedule::new(), Failing::default());
    let source = Scripted::new(SourceOrder::Key, &["a"]);
    let faulty = FaultySink::new(Arc::new(sink.clone()), schedule.clone());
    let builder = Pipeline::builder("p").source(source.clone()).sink(faulty).snapshot(SnapshotMode::Never);
    let mut running = start(builder.create_tables(true).order(ByKey::new(1)).checkpointer(store.clone())).await;
    source.give("a", &[Tx::new(1).insert(1, "")]);
    assert!(running.drain(LONG).await.unwrap().drained);
    store.once.store(true, Ordering::Relaxed);
    let _ = schedule.clone().random(1, 1.0, &[(Call::Write, Fault::Fail(ErrorKind::Transient))]);
    source.close("a", &[child("c", &["a"])]);
    source.give("c", &[Tx::new(2).insert(2, "")]);
    // On a task of its own, which looks whenever something moves.
    let monitor = running.monitor();
    let drain = tokio::spawn(async move { monitor.drain(Some(Duration::from_secs(60))).await });
    let drained = drain.await.unwrap().unwrap();
    assert!(!store.once.load(Ordering::Relaxed), "it was never asked to save the child");
    assert_eq!(drained.marker_reached, ids(&sink) == [1, 2], "{drained:?}");
    schedule.heal();
    assert!(running.drain(LONG).await.unwrap().drained);
    assert_eq!(ids(&sink), [1, 2]);
    running.stop().await.unwrap();
}

/// Many readers have something to tell, and nobody listens any more.
#[tokio::test(start_paused = true)]
async fn readers_that_have_something_to_tell_do_not_hold_up_a_stop() {
    let names: Vec<String> = (0..200).map(|n| format!("p{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let sink = MemorySink::new();
    let source = Scripted::new(SourceOrder::Key, &names);
    for name in &names {
        source.close(name, &[]);
    }
    let running = start(scripted(&source, sink.clone()).order(Arrival).stop_deadline(Duration::from_secs(3000))).await;
    let began = tokio::time::Instant::now();
    running.stop().await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
}

/// Transactions over a hundred partitions whose batches were spilled.
#[tokio::test(start_paused = true)]
async fn transactions_are_merged_out_of_spilled_batches() {
    const PARTITIONS: i64 = 60;
    const EACH: u64 = 30;
    let names: Vec<String> = (0..PARTITIONS).map(|n| format!("p{n:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let sink = MemorySink::new();
    let source = Scripted::new(SourceOrder::CommitTimePerPartition, &names);
    for (n, name) in names.iter().enumerate() {
        let transactions: Vec<Tx> = (1..=EACH)
            .map(|number| {
                let id = n as i64 + PARTITIONS * number as i64;
                Tx::new(number).from(n as u64 + 1).insert(id, "x".repeat(2000)).of(PARTITIONS as u64)
            })
            .collect();
        source.give(name, &transactions);
    }
    let mut running = start(scripted(&source, sink.clone()).order(ByTransaction::new()).memory(1 << 20)).await;
    assert!(running.drain(LONG).await.unwrap().drained, "{:?}", running.status());
    assert_eq!(ids(&sink).len() as u64, PARTITIONS as u64 * EACH);
    running.stop().await.unwrap();
}

/// The target that a second run sees, and somebody who does something before it is taken over.
#[derive(Debug)]
struct Watched {
    inner: MemorySink,
    read: Notify,
    go_on: Notify,
}

#[async_trait]
impl Sink for Watched {
    fn info(&self) -> SinkInfo {
        self.inner.info()
    }

    async fn open(&self, lane: Lane) -> Result<Box<dyn SinkWriter>> {
        self.inner.open(lane).await
    }

    fn progress(&self) -> Option<&dyn ProgressStore> {
        Some(self)
    }

    fn checkpointer(&self) -> Option<Arc<dyn Checkpointer>> {
        self.inner.checkpointer()
    }

    fn target(&self) -> Option<&dyn TargetSchema> {
        self.inner.target()
    }
}

#[async_trait]
impl ProgressStore for Watched {
    async fn take_over(&self, claim: &Claim) -> Result<Vec<LaneProgress>> {
        ProgressStore::take_over(&self.inner, claim).await
    }

    async fn read(&self, pipeline: &str) -> Result<Vec<LaneProgress>> {
        let read = ProgressStore::read(&self.inner, pipeline).await;
        self.read.notify_one();
        self.go_on.notified().await;
        read
    }
}

/// A run with another number of lanes looks whether all stand at one place, and one of them moves on before
/// it is fenced.
#[tokio::test(start_paused = true)]
async fn lanes_that_move_before_they_are_fenced_keep_their_number() {
    let (sink, schedule) = (MemorySink::new(), Schedule::new());
    let source = Scripted::new(SourceOrder::Key, &["a"]);
    let refuses = |id: i64| {
        let sink = FaultySink::new(Arc::new(sink.clone()), schedule.clone());
        sink.refuses(move |c| c.new_row().is_some_and(|row| row.get(0) == ValueRef::Int(id)))
    };
    let builder = || Pipeline::builder("p").source(source.clone()).snapshot(SnapshotMode::Never).create_tables(true);
    let mut first = start(builder().sink(refuses(17)).order(ByKey::new(2))).await;
    source.give("a", &(1..9).map(|n| Tx::new(n as u64).insert(n, "")).collect::<Vec<_>>());
    assert!(first.drain(LONG).await.unwrap().drained);
    // Then the checkpoint says that all lanes stand at one place.
    tokio::time::sleep(Duration::from_secs(10)).await;

    let watched = Arc::new(Watched { inner: sink.clone(), read: Notify::new(), go_on: Notify::new() });
    let second = builder().sink_arc(Arc::clone(&watched) as _).order(ByKey::new(3)).build().unwrap();
    let second = tokio::spawn(second.start());
    watched.read.notified().await;
    // The lane of the refused row stays where it is.
    source.give("a", &(9..25).map(|n| Tx::new(n as u64).insert(n, "")).collect::<Vec<_>>());
    first.wait().await.unwrap_err();
    let some = ids(&sink).len();
    assert!((9..24).contains(&some), "{some}");
    watched.go_on.notify_one();

    let error = second.await.unwrap().unwrap_err();
    assert!(error.report().contains("pipeline.lanes"), "{}", error.report());
    let mut third = start(builder().sink(sink.clone()).order(ByKey::new(2))).await;
    assert!(third.drain(LONG).await.unwrap().drained, "{:?}", third.status());
    assert_eq!(ids(&sink), (1..25).collect::<Vec<_>>());
    third.stop().await.unwrap();
}

/// One lane was killed, ahead of the checkpoint, and becomes three: what it has they have, also if the first
/// start fails after the target knows of them.
#[tokio::test(start_paused = true)]
async fn lanes_that_are_new_begin_where_the_one_lane_was() {
    let (sink, schedule, store) = (MemorySink::new(), Schedule::new(), Failing::default());
    let source = Scripted::new(SourceOrder::Key, &["a"]);
    let builder = || {
        let faulty = FaultySource::new(Arc::new(source.clone()), schedule.clone());
        let builder = Pipeline::builder("p").source(faulty).sink(sink.clone()).checkpointer(store.clone());
        builder.snapshot(SnapshotMode::Never).create_tables(true)
    };
    let mut one = start(builder().order(ByKey::new(1))).await;
    source.give("a", &(1..9).map(|n| Tx::new(n as u64).insert(n, "")).collect::<Vec<_>>());
    assert!(one.drain(LONG).await.unwrap().drained);
    tokio::time::sleep(Duration::from_secs(10)).await;
    store.away.store(true, Ordering::Relaxed);
    source.give("a", &(9..30).map(|n| Tx::new(n as u64).insert(n, "")).collect::<Vec<_>>());
    while ids(&sink).len() < 29 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Its end cannot be saved.
    drop(one.stop().await);
    store.away.store(false, Ordering::Relaxed);

    let next = schedule.calls(Call::Prepare) + 1;
    let _ = schedule.clone().at(Call::Prepare, next, Fault::Fail(ErrorKind::Transient));
    let mut three = start(builder().order(ByKey::new(3))).await;
    source.give("a", &[Tx::new(30).insert(30, "")]);
    let drained = three.drain(LONG).await;
    assert!(drained.is_ok_and(|d| d.drained), "{:?}", three.status().last_error);
    assert_eq!(ids(&sink), (1..31).collect::<Vec<_>>());
    three.stop().await.unwrap();
}

/// A source tells how many changes a transaction has, and a filter leaves some of them out: in the middle of
/// it, at its end, or all that a partition has.
#[tokio::test(start_paused = true)]
async fn a_filter_takes_from_the_number_of_changes_that_was_told() {
    for left_out in [1..2, 2..3, 3..4, 1..4, 11..12, 1..12] {
        let sink = MemorySink::new();
        let source = Scripted::new(SourceOrder::CommitTimePerPartition, &["a", "b"]);
        source.give("a", &[Tx::new(1).insert(1, "").of(4).open()]);
        source.give("a", &[Tx::new(1).from(2).insert(2, "").of(4).open()]);
        source.give("a", &[Tx::new(1).from(3).insert(3, "").of(4), Tx::new(2).insert(4, "").of(2)]);
        source.give("b", &[Tx::new(1).from(4).insert(11, "").of(4), Tx::new(2).from(2).insert(12, "").of(2)]);
        let range = left_out.clone();
        let filter = Custom::new(move |batch| {
            rewrite(&batch, |change, out| {
                let id = change.new_row().map(|row| row.get(0));
                if !matches!(id, Some(ValueRef::Int(id)) if range.contains(&id)) {
                    out.keep(change);
                }
                Ok(())
            })
        });
        let mut running = start(scripted(&source, sink.clone()).order(ByTransaction::new()).transform(filter)).await;
        let drained = running.drain(LONG).await;
        assert!(drained.is_ok_and(|d| d.drained), "{left_out:?}: {:?}", running.status().last_error);
        let stays: Vec<i64> = [1, 2, 3, 4, 11, 12].into_iter().filter(|id| !left_out.contains(id)).collect();
        assert_eq!(ids(&sink), stays);
        running.stop().await.unwrap();
    }
}

/// The checkpoint is of one source, and the target's progress under this name of another: its ranks would
/// pass for what this source never gave.
#[tokio::test(start_paused = true)]
async fn progress_of_another_source_is_refused() {
    let table = items();
    let insert = |source: &MemorySource, ids: std::ops::Range<i64>| {
        for id in ids {
            source.transaction().insert(&table.name, vec![Value::Int(id), Value::Null]).commit().unwrap();
        }
    };
    let (ours, theirs) =
        (MemorySource::new("ours").table(table.clone()), MemorySource::new("theirs").table(table.clone()));
    let (first, second, checkpoints) = (MemorySink::new(), MemorySink::new(), MemoryCheckpointer::new());
    let builder = |source: &MemorySource, sink: &MemorySink| {
        let builder = Pipeline::builder("p").source(source.clone()).sink(sink.clone());
        builder.snapshot(SnapshotMode::Never).create_tables(true)
    };
    insert(&theirs, 100..150);
    let mut running = start(builder(&theirs, &second)).await;
    assert!(running.drain(LONG).await.unwrap().drained);
    running.stop().await.unwrap();
    let mut running = start(builder(&ours, &first).checkpointer(checkpoints.clone())).await;
    assert!(running.drain(LONG).await.unwrap().drained);
    running.stop().await.unwrap();

    insert(&ours, 0..60);
    for _ in 0..2 {
        let started = builder(&ours, &second).checkpointer(checkpoints.clone()).build().unwrap().start().await;
        let error = started.expect_err("what the other source has passed is skipped");
        assert_eq!(error.kind(), ErrorKind::Fatal, "{error:?}");
        assert!(error.report().contains("theirs"), "{}", error.report());
    }
}

/// A source gives its transactions in the order in which they were committed, which is not that of their
/// times: clocks are set back, and some transactions have no time.
#[tokio::test(start_paused = true)]
async fn windows_of_a_source_whose_times_go_back_keep_its_order() {
    for order in [SourceOrder::Transactions, SourceOrder::Key] {
        let (sink, schedule) = (MemorySink::new(), Schedule::new());
        let source = Scripted::new(order, &["a"]);
        let faulty = FaultySink::new(Arc::new(sink.clone()), schedule.clone());
        let times = [100, 95, 20, 300, 299, 120, 500, 130];
        let time = |n: usize| Some(times[n]).filter(|t| *t != 20);
        for n in 0..times.len() {
            let tx = Tx::new(n as u64 + 1).at(time(n));
            let tx = if n == 0 { tx.insert(1, "") } else { tx.update(1, n.to_string()).insert(n as i64 + 1, "") };
            source.give_safe("a", &[tx], time(n).map(|t| t as u64 - 1));
        }
        source.give_safe("a", &[], Some(1000));
        let builder = Pipeline::builder("p").source(source.clone()).sink(faulty).snapshot(SnapshotMode::Never);
        let window = ByWindow::new(Duration::from_micros(50)).lanes(2);
        // It begins anew amid them too.
        let _ = schedule.clone().at(Call::Write, 3, Fault::DoneThenFail(ErrorKind::Indeterminate));
        let mut running = start(builder.create_tables(true).order(window)).await;
        let drained = running.drain(LONG).await;
        assert!(drained.is_ok_and(|d| d.drained), "{order:?}: {:?}", running.status().last_error);
        assert_eq!(ids(&sink), (1..9).collect::<Vec<_>>());
        assert_eq!(sink.rows(&items().name)[0][1], Value::from("7"));
        running.stop().await.unwrap();
    }
}
