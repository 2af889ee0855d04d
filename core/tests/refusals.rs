//! Rows that the target refuses, while everything else fails too: what was set aside is neither lost nor
//! applied twice, and nothing overtakes it.

mod scripted;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anabranch_core::checkpointer::MemoryCheckpointer;
use anabranch_core::memory::{MemorySink, MemorySource};
use anabranch_core::pipeline::{OnRejected, SnapshotMode, Workers};
use anabranch_core::transform::{Custom, rewrite};
use anabranch_core::{
    Arrival, ByKey, ByTransaction, ErrorKind, LetterClass, LetterState, Op, Order, Pipeline, RunningPipeline, Sink,
    SourceOrder, Value, ValueRef,
};
use anabranch_testkit::faults::{Call, Fault, FaultySink, Schedule};
use anabranch_testkit::generator::{Generator, customers, events, lines, waits};
use anabranch_testkit::scripted::{Scripted, Tx, child};
use scripted::{LONG, ids, scripted, start};

/// A check of the target that an operator can take away.
#[derive(Clone, Default)]
struct Check(Arc<AtomicBool>);

impl Check {
    fn drop_it(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// The sink refuses these rows until then.
    fn on(
        &self,
        sink: &MemorySink,
        schedule: &Schedule,
        refused: impl Fn(i64) -> bool + Send + Sync + 'static,
    ) -> FaultySink {
        let dropped = Arc::clone(&self.0);
        FaultySink::new(Arc::new(sink.clone()), schedule.clone()).refuses(move |change| {
            let row = change.new_row().filter(|_| matches!(change.op(), Op::Insert | Op::Update));
            let id = row.map(|row| row.get(0).to_owned());
            !dropped.load(Ordering::Relaxed) && matches!(id, Some(Value::Int(id)) if refused(id))
        })
    }
}

/// A unit is refused once and divided; the first half is written, and the run dies before the second.
/// The target has stored how far the first half went, or it comes again.
#[tokio::test(start_paused = true)]
async fn half_of_a_refused_unit_is_not_applied_twice() {
    let orders: [(&str, Order); 2] = [("key", ByKey::new(1).into()), ("arrival", Arrival.into())];
    for (name, order) in orders {
        let (sink, schedule) = (MemorySink::new(), Schedule::new());
        let source = Scripted::new(SourceOrder::Key, &["a", "b"]);
        let faulty = FaultySink::new(Arc::new(sink.clone()), schedule.clone());
        // Both partitions are in the first half; nothing was ever stored of them.
        source.give("a", &[Tx::new(1).insert(1, "").insert(2, "").insert(3, "").insert(4, "")]);
        source.give("b", &[Tx::new(1).insert(11, "").insert(12, "").insert(13, "").insert(14, "")]);
        let _ = (schedule.clone()).at(Call::Write, 1, Fault::Fail(ErrorKind::Rejected)).at(
            Call::Write,
            3,
            Fault::Fail(ErrorKind::Transient),
        );
        let mut running = start(scripted(&source, faulty).order(order)).await;
        let drained = running.drain(LONG).await;
        assert!(drained.is_ok_and(|d| d.drained), "{name}: {:?}", running.status().last_error);
        assert_eq!(ids(&sink), [1, 2, 3, 4, 11, 12, 13, 14], "{name}");
        running.stop().await.unwrap();
    }
}

/// Two transactions of two partitions in one unit, of which the second is refused. The first is written
/// alone, and the run dies: each partition must know that it has it.
#[tokio::test(start_paused = true)]
async fn a_transaction_before_a_refused_one_is_not_applied_twice() {
    let (sink, schedule, check) = (MemorySink::new(), Schedule::new(), Check::default());
    let source = Scripted::new(SourceOrder::CommitTimePerPartition, &["a", "b"]);
    source.give("a", &[Tx::new(1).insert(1, ""), Tx::new(2).insert(2, "")]);
    source.give("b", &[Tx::new(1).from(2).insert(11, ""), Tx::new(2).from(2).insert(12, "")]);
    // Both at once, then the first alone, then the second.
    let _ = schedule.clone().at(Call::Write, 2, Fault::Fail(ErrorKind::Transient));
    let faulty = check.on(&sink, &schedule, |id| id == 2);
    let builder = scripted(&source, faulty).order(ByTransaction::new()).on_rejected(OnRejected::DeadLetter);
    let mut running = start(builder).await;
    let drained = running.drain(LONG).await.unwrap();
    assert!(drained.marker_reached && drained.dead_letters_open == 2, "{drained:?} {:?}", running.status());
    assert_eq!(ids(&sink), [1, 11]);
    check.drop_it();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(running.drain(LONG).await.unwrap().drained, "{:?}", running.status());
    assert_eq!(ids(&sink), [1, 2, 11, 12]);
    running.stop().await.unwrap();
}

/// As before, of one partition, where a transaction's end comes in a batch without changes of it.
#[tokio::test(start_paused = true)]
async fn a_transaction_whose_end_comes_later_is_not_applied_twice() {
    let (sink, schedule, check) = (MemorySink::new(), Schedule::new(), Check::default());
    let source = Scripted::new(SourceOrder::Transactions, &["a"]);
    source.give("a", &[Tx::new(1).insert(1, "").open()]);
    source.give("a", &[Tx::new(1).from(2), Tx::new(2).insert(2, "")]);
    let _ = schedule.clone().at(Call::Write, 2, Fault::Fail(ErrorKind::Transient));
    let faulty = check.on(&sink, &schedule, |id| id == 2);
    let builder = scripted(&source, faulty).order(ByTransaction::new()).on_rejected(OnRejected::DeadLetter);
    let mut running = start(builder).await;
    let drained = running.drain(LONG).await.unwrap();
    assert!(drained.marker_reached && drained.dead_letters_open == 1, "{drained:?} {:?}", running.status());
    assert_eq!(ids(&sink), [1]);
    running.stop().await.unwrap();
}

/// A partition that is begun while another one has an open letter must leave that alone.
#[tokio::test(start_paused = true)]
async fn a_new_partition_of_a_shared_pipeline_leaves_the_letters_of_the_others() {
    let (sink, schedule, check) = (MemorySink::new(), Schedule::new(), Check::default());
    let source = Scripted::new(SourceOrder::Key, &["a", "b"]);
    let faulty = check.on(&sink, &schedule, |id| id == 2);
    let builder = scripted(&source, faulty)
        .order(ByKey::new(1))
        .on_rejected(OnRejected::DeadLetter)
        .checkpointer(MemoryCheckpointer::new())
        .workers(Workers::new().failover(Duration::from_secs(1)));
    let mut running = start(builder).await;
    source.give("a", &[Tx::new(1).insert(1, ""), Tx::new(2).insert(2, ""), Tx::new(3).insert(3, "")]);
    let open = |running: &RunningPipeline| running.status().dead_letters_open;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while open(&running) == 0 {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", running.status());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    source.give("b", &[Tx::new(4).insert(4, "")]);
    source.close("b", &[child("c", &["b"])]);
    source.give("c", &[Tx::new(5).insert(5, "")]);
    running.drain(LONG).await.unwrap();
    assert_eq!(ids(&sink), [1, 3, 4, 5]);
    let store = sink.dead_letters().unwrap();
    assert_eq!(store.open_count("p").await.unwrap(), 1, "the row that was set aside is lost");
    check.drop_it();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(running.drain(LONG).await.unwrap().drained, "{:?}", running.status());
    assert_eq!(ids(&sink), [1, 2, 3, 4, 5]);
    running.stop().await.unwrap();
}

/// A transaction of more letters than one pass tries is tried whole.
#[tokio::test(start_paused = true)]
async fn a_large_transaction_that_was_set_aside_comes_back_whole() {
    let (sink, schedule, check) = (MemorySink::new(), Schedule::new(), Check::default());
    let source = Scripted::new(SourceOrder::Transactions, &["a"]);
    let faulty = check.on(&sink, &schedule, |id| id == 0);
    let builder = || {
        let faulty = check.on(&sink, &schedule, |id| id == 0);
        scripted(&source, faulty).order(ByTransaction::new()).on_rejected(OnRejected::DeadLetter)
    };
    let rows = 6_000;
    source.give("a", &[(0..rows).fold(Tx::new(1), |tx, id| tx.insert(id, ""))]);
    let mut running =
        start(scripted(&source, faulty).order(ByTransaction::new()).on_rejected(OnRejected::DeadLetter)).await;
    let drained = running.drain(LONG).await.unwrap();
    assert_eq!((drained.marker_reached, drained.dead_letters_open), (true, rows as u64), "{:?}", running.status());
    running.stop().await.unwrap();
    check.drop_it();
    // It dies after the letters were applied, before they are marked as that.
    let first = schedule.calls(Call::Write) + 1;
    let _ = schedule.clone().at(Call::Write, first, Fault::DoneThenFail(ErrorKind::Indeterminate));
    let mut running = start(builder()).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(running.drain(LONG).await.unwrap().drained, "{:?}", running.status());
    running.stop().await.unwrap();
    assert_eq!(ids(&sink).len(), rows as usize);
    let sizes: Vec<usize> = sink.history().iter().map(|c| c.rows().count()).filter(|n| *n > 0).collect();
    assert_eq!(sizes, [rows as usize], "a reader saw a part of it");
}

/// A truncate cannot be a letter: to set the rest of its transaction aside would leave it out.
#[tokio::test(start_paused = true)]
async fn a_truncate_in_a_refused_transaction_is_not_left_out() {
    let table = customers();
    let source = MemorySource::new("db").table(table.clone());
    let (sink, schedule, check) = (MemorySink::new(), Schedule::new(), Check::default());
    let row = |id: i64| vec![Value::Int(id), Value::from(id.to_string().as_str()), Value::from("n"), Value::Null];
    source.transaction().insert(&table.name, row(1)).commit().unwrap();
    let builder = || {
        Pipeline::builder("p")
            .source(source.clone())
            .sink(check.on(&sink, &schedule, |id| id == 2))
            .create_tables(true)
            .on_rejected(OnRejected::DeadLetter)
    };
    let mut running = start(builder()).await;
    assert!(running.drain(LONG).await.unwrap().drained);
    source.transaction().truncate(&table.name).insert(&table.name, row(2)).commit().unwrap();
    let ended = tokio::time::timeout(LONG.unwrap(), running.wait()).await;
    let error = ended.expect("it went on without the truncate").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected, "{error:?}");
    assert!(error.report().contains("truncate"), "{}", error.report());
    check.drop_it();
    let mut running = start(builder()).await;
    assert!(running.drain(LONG).await.unwrap().drained);
    assert_eq!(source.tables().difference(&sink.tables()), None);
    running.stop().await.unwrap();
}

/// In one unit: a transaction that waits behind a letter, with a row of another table, and a truncate of that.
#[tokio::test(start_paused = true)]
async fn a_truncate_does_not_overtake_what_came_to_wait_just_now() {
    let orders: [(&str, Order); 2] = [("transaction", ByTransaction::new().into()), ("key", ByKey::new(1).into())];
    for (name, order) in orders {
        let (customers, lines) = (customers(), lines());
        let source = MemorySource::new("db").table(customers.clone()).table(lines.clone());
        let (sink, schedule, check) = (MemorySink::new(), Schedule::new(), Check::default());
        let row = |id: i64, email: &str| vec![Value::Int(id), Value::from(email), Value::Null, Value::Null];
        let line = |n: i64| vec![Value::Null, Value::Int(n), Value::Int(n), Value::Null];
        let builder = || {
            let builder = Pipeline::builder("p").source(source.clone()).sink(check.on(&sink, &schedule, |id| id == 2));
            builder.order(order.clone()).create_tables(true).on_rejected(OnRejected::DeadLetter)
        };
        let mut running = start(builder()).await;
        source.transaction().insert(&customers.name, row(2, "a")).commit().unwrap();
        assert_eq!(running.drain(LONG).await.unwrap().dead_letters_open, 1, "{name}");
        let both = source.transaction().update(&customers.name, vec![Value::Int(2)], row(2, "b"));
        both.insert(&lines.name, line(1)).commit().unwrap();
        source.transaction().truncate(&lines.name).commit().unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(5), running.wait()).await;
        // By key the line is not of the letter's key, and does not wait.
        assert_eq!(ended.is_ok_and(|ended| ended.is_err()), name == "transaction");
        drop(running);
        check.drop_it();
        let mut running = start(builder()).await;
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert!(running.drain(LONG).await.unwrap().drained, "{name}: {:?}", running.status());
        assert_eq!(source.tables().difference(&sink.tables()), None, "{name}");
        running.stop().await.unwrap();
    }
}

/// A transform finds a change that can never be applied: its transaction is set aside whole.
#[tokio::test(start_paused = true)]
async fn a_change_that_a_transform_refuses_takes_its_transaction_along() {
    let sink = MemorySink::new();
    let source = Scripted::new(SourceOrder::Transactions, &["a"]);
    let refuse = Custom::new(|batch| {
        rewrite(&batch, |change, out| {
            match change.new_row().map(|row| row.get(0)) {
                Some(ValueRef::Int(3)) => out.leave_out(change, LetterClass::Severe, "never"),
                _ => out.keep(change),
            }
            Ok(())
        })
    });
    let faulty = FaultySink::new(Arc::new(sink.clone()), Schedule::new());
    let builder = scripted(&source, faulty).order(ByTransaction::new()).on_rejected(OnRejected::DeadLetter);
    let mut running = start(builder.transform(refuse)).await;
    source.give("a", &[Tx::new(1).insert(1, ""), Tx::new(2).insert(2, "").insert(3, "").insert(4, "")]);
    source.give("a", &[Tx::new(3).update(4, "waits"), Tx::new(4).insert(5, "")]);
    let drained = running.drain(LONG).await.unwrap();
    assert_eq!((drained.marker_reached, drained.dead_letters_open), (true, 4), "{:?}", running.status());
    assert_eq!(ids(&sink), [1, 5], "a part of a transaction is in the target");
    running.stop().await.unwrap();
}

/// Rows of a table without a key cannot be told apart: all of it waits behind a letter of one of them.
#[tokio::test(start_paused = true)]
async fn a_table_without_a_key_waits_behind_its_letter() {
    for truncates in [false, true] {
        let table = events();
        let source = MemorySource::new("db").table(table.clone());
        let (sink, schedule, check) = (MemorySink::new(), Schedule::new(), Check::default());
        let row = |at: i64| vec![Value::Int(at), Value::from("x")];
        let builder = || {
            Pipeline::builder("p")
                .source(source.clone())
                .sink(check.on(&sink, &schedule, |id| id == 2))
                .order(ByKey::new(1))
                .create_tables(true)
                .on_rejected(OnRejected::DeadLetter)
        };
        let mut running = start(builder()).await;
        assert!(running.drain(LONG).await.unwrap().drained);
        source.transaction().insert(&table.name, row(2)).commit().unwrap();
        assert_eq!(running.drain(LONG).await.unwrap().dead_letters_open, 1);
        if truncates {
            source.transaction().truncate(&table.name).commit().unwrap();
            let ended = tokio::time::timeout(LONG.unwrap(), running.wait()).await;
            let error = ended.expect("the truncate overtook the letter").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Rejected, "{error:?}");
        } else {
            source.transaction().insert(&table.name, row(3)).commit().unwrap();
            source.transaction().delete(&table.name, row(2)).commit().unwrap();
            assert_eq!(running.drain(LONG).await.unwrap().dead_letters_open, 3);
            running.stop().await.unwrap();
        }
        check.drop_it();
        let mut running = start(builder()).await;
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert!(running.drain(LONG).await.unwrap().drained, "{:?}", running.status());
        assert_eq!(source.tables().difference(&sink.tables()), None, "truncates: {truncates}");
        running.stop().await.unwrap();
    }
}

/// Units are refused at random, while calls fail at random: what is set aside comes back, in order and once.
async fn at_random(seed: u64, order: impl Into<Order>) {
    let order = order.into();
    let mut generator = Generator::new(seed, vec![customers(), lines(), events(), waits()]);
    let source = generator.source().batch_changes(5).heartbeat(Duration::from_millis(100));
    let (sink, mut schedule) = (MemorySink::new(), Schedule::new());
    let mut faults =
        vec![(Call::Write, Fault::Fail(ErrorKind::Rejected)), (Call::Write, Fault::Fail(ErrorKind::Rejected))];
    for call in [Call::Open, Call::Write, Call::Flush, Call::TakeOver] {
        faults.push((call, Fault::Fail(ErrorKind::Transient)));
        faults.push((call, Fault::DoneThenFail(ErrorKind::Indeterminate)));
    }
    let begin = |schedule: &Schedule| {
        let faulty = FaultySink::new(Arc::new(sink.clone()), schedule.clone());
        let builder = Pipeline::builder("p").source(source.clone()).sink(faulty).order(order.clone());
        builder.snapshot(SnapshotMode::Never).create_tables(true).on_rejected(OnRejected::DeadLetter).build().unwrap()
    };
    // The tables are made before anything fails.
    begin(&schedule).start().await.unwrap().stop().await.unwrap();
    for round in 0..6 {
        schedule = Schedule::new().random(seed * 100 + round, 0.25, &faults);
        // A refused truncate, or one behind a letter, ends a run; the next one tries the letters first.
        if let Ok(running) = begin(&schedule).start().await {
            for _ in 0..25 {
                generator.write(&source, 1, 6);
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            drop(running.stop().await);
        }
    }
    for _ in 0..20 {
        let mut running = begin(&Schedule::new()).start().await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        if running.drain(LONG).await.is_ok_and(|d| d.drained) {
            running.stop().await.unwrap();
            assert_eq!(source.tables().difference(&sink.tables()), None, "seed {seed}");
            return;
        }
        let store = sink.dead_letters().unwrap();
        let open = store.list("p", &[LetterState::Open, LetterState::Held], None, 3).await.unwrap();
        println!("{:?} {open:#?}", running.status().last_error);
    }
    panic!("seed {seed}: letters stay open");
}

fn seeds() -> Vec<u64> {
    match std::env::var("SEED") {
        Ok(seed) => vec![seed.parse().expect("SEED is a number")],
        Err(_) => (0..std::env::var("SEEDS").map_or(10, |n| n.parse().expect("SEEDS is a number"))).collect(),
    }
}

#[tokio::test(start_paused = true)]
async fn refused_at_random_in_transaction_order() {
    for seed in seeds() {
        at_random(seed, ByTransaction::new()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn refused_at_random_in_key_order_on_three_lanes() {
    for seed in seeds() {
        at_random(seed, ByKey::new(3)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn refused_at_random_in_arrival_order() {
    for seed in seeds() {
        at_random(seed, Arrival).await;
    }
}
