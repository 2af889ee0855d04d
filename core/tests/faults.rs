//! The runtime while everything around it fails at random: nothing lost, doubled, backwards or torn.
//! The seed is printed; `SEED=n cargo test --test faults` replays one, `SEEDS=1000` tries so many.

use std::sync::Arc;
use std::time::Duration;

use anabranch_core::memory::{MemorySink, MemorySource, MemoryTables};
use anabranch_core::pipeline::OnRejected;
use anabranch_core::transform::Shard;
use anabranch_core::{
    Arrival, ByKey, ByTransaction, ByWindow, ErrorKind, LetterState, Order, Pipeline, Rank, Sink, UnitKind, Value,
};
use anabranch_testkit::faults::{Call, Fault, FaultySink, FaultySource, Schedule};
use anabranch_testkit::generator::{Generator, customers, events, lines, waits};

/// Every failure that a database and a network can make of a call.
fn faults() -> Vec<(Call, Fault)> {
    let mut faults = vec![(Call::Next, Fault::Stop)];
    for call in [Call::Open, Call::Write, Call::Flush, Call::TakeOver, Call::Prepare, Call::Next, Call::Acknowledge] {
        faults.push((call, Fault::Fail(ErrorKind::Transient)));
        faults.push((call, Fault::DoneThenFail(ErrorKind::Indeterminate)));
    }
    faults
}

struct Run {
    source: MemorySource,
    sink: MemorySink,
    /// The source after each of its transactions.
    states: Vec<MemoryTables>,
    /// The last point at which a table was copied: from there on the target is a source state.
    copied: Rank,
}

async fn run(seed: u64, order: impl Into<Order>, confirms_early: bool) -> Run {
    let mut generator = Generator::new(seed, vec![customers(), lines(), events(), waits()]);
    let source = generator.source().batch_changes(5).chunk_rows(3).heartbeat(Duration::from_millis(100));
    let sink = MemorySink::new();
    let schedule = Schedule::new().random(seed, 0.05, &faults());
    let faulty = FaultySink::new(Arc::new(sink.clone()), schedule.clone());
    let faulty = if confirms_early { faulty.confirms_early() } else { faulty };
    let mut states = vec![source.tables()];
    for _ in 0..20 {
        generator.write(&source, 1, 6);
        states.push(source.tables());
    }
    let started = Pipeline::builder("faults")
        .source(FaultySource::new(Arc::new(source.clone()), schedule.clone()))
        .sink(faulty)
        .order(order)
        .create_tables(true)
        .build()
        .unwrap()
        .start()
        .await;
    let mut running = started.unwrap();
    for _ in 0..150 {
        generator.write(&source, 1, 6);
        states.push(source.tables());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    schedule.heal();
    let drained = running.drain(Some(Duration::from_secs(3600))).await.unwrap();
    assert!(drained.drained, "seed {seed}: {drained:?}, {:?}", running.status());
    running.stop().await.unwrap();
    assert!(schedule.happened() > 0, "seed {seed}: nothing went wrong");
    let (_, checkpoint) = sink.checkpointer().unwrap().load("faults").await.unwrap().unwrap();
    let copied = checkpoint.snapshot.tables.values().map(|t| t.point.rank.clone()).max().unwrap();
    Run { source, sink, states, copied }
}

fn seeds() -> Vec<u64> {
    match std::env::var("SEED") {
        Ok(seed) => vec![seed.parse().expect("SEED is a number")],
        Err(_) => (0..std::env::var("SEEDS").map_or(40, |n| n.parse().expect("SEEDS is a number"))).collect(),
    }
}

/// The first difference between the source and the target at the end, and the first target state
/// that is no source state, or an older one than was seen before.
fn problem(run: &Run, keeps_transactions: bool) -> Option<String> {
    if let Some(difference) = run.source.tables().difference(&run.sink.tables()) {
        return Some(format!("at the end: {difference}"));
    }
    let (mut at, mut problem) = (0, None);
    run.sink.replay(|commit, tables| {
        let copied = commit.progress.iter().any(|p| p.position.rank >= run.copied);
        if !keeps_transactions || commit.kind == UnitKind::Snapshot || !copied || problem.is_some() {
            return;
        }
        match (at..run.states.len()).find(|&n| run.states[n].difference(tables).is_none()) {
            Some(n) => at = n,
            None => problem = Some(format!("after source state {at} the target has a state that the source never had")),
        }
    });
    problem
}

#[tokio::test(start_paused = true)]
async fn in_transaction_order_every_state_is_one_of_the_source() {
    for seed in seeds() {
        let run = run(seed, ByTransaction::new(), false).await;
        assert_eq!(problem(&run, true), None, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn in_key_order_on_three_lanes_both_sides_are_equal_at_the_end() {
    for seed in seeds() {
        let run = run(seed, ByKey::new(3), false).await;
        assert_eq!(problem(&run, false), None, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn in_windows_on_two_lanes_both_sides_are_equal_at_the_end() {
    for seed in seeds() {
        let run = run(seed, ByWindow::new(Duration::from_millis(5)).lanes(2), false).await;
        assert_eq!(problem(&run, false), None, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn in_arrival_order_both_sides_are_equal_at_the_end() {
    for seed in seeds() {
        let run = run(seed, Arrival, false).await;
        assert_eq!(problem(&run, false), None, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_confirms_too_early_is_found() {
    let mut found = 0;
    for seed in 0..10 {
        // It may also be stopped by the source, which has forgotten what it was told to forget.
        let run = tokio::spawn(run(seed, ByTransaction::new(), true)).await;
        found += u32::from(run.is_err() || run.is_ok_and(|run| problem(&run, true).is_some()));
    }
    assert!(found > 0, "no run with a lying sink was found out");
}

#[tokio::test(start_paused = true)]
async fn a_refused_transaction_waits_as_a_dead_letter_and_is_applied_by_a_retry() {
    let mut generator = Generator::new(7, vec![customers()]).without_truncates();
    let source = generator.source();
    let sink = MemorySink::new();
    let schedule = Schedule::new();
    let mut running = Pipeline::builder("letters")
        .source(source.clone())
        .sink(FaultySink::new(Arc::new(sink.clone()), schedule.clone()))
        .create_tables(true)
        .on_rejected(OnRejected::DeadLetter)
        .build()
        .unwrap()
        .start()
        .await
        .unwrap();
    running.drain(None).await.unwrap();
    let refuse = |n| (schedule.calls(Call::Write) + n, Fault::Fail(ErrorKind::Rejected));
    // Merged at first, then alone: refused both times.
    let (first, fault) = refuse(1);
    let _ = schedule.clone().at(Call::Write, first, fault).at(Call::Write, first + 1, fault);
    generator.write(&source, 30, 4);
    let drained = running.drain(Some(Duration::from_secs(5))).await.unwrap();
    assert!(drained.marker_reached && !drained.drained && drained.dead_letters_open > 0, "{drained:?}");
    let store = sink.dead_letters().unwrap();
    let open = store.list("letters", &[LetterState::Open, LetterState::Held], None, 1000).await.unwrap();
    assert_eq!(
        open.iter().filter(|l| l.state == LetterState::Open).count(),
        2,
        "one transaction of two changes: {open:?}"
    );
    assert!(open.iter().any(|l| l.state == LetterState::Held));

    // The retry comes by itself, and what was held behind the letter follows.
    tokio::time::sleep(Duration::from_secs(30)).await;
    let drained = running.drain(Some(Duration::from_secs(60))).await.unwrap();
    assert!(drained.drained, "{drained:?}");
    assert_eq!(source.tables().difference(&sink.tables()), None);
    assert!(!store.list("letters", &[LetterState::Applied], None, 1000).await.unwrap().is_empty());
    running.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn by_default_a_refused_row_stops_the_pipeline_at_its_place() {
    let mut generator = Generator::new(7, vec![customers()]).without_truncates();
    let source = generator.source();
    let sink = MemorySink::new();
    let schedule = Schedule::new();
    let mut running = Pipeline::builder("letters")
        .source(source.clone())
        .sink(FaultySink::new(Arc::new(sink.clone()), schedule.clone()))
        .create_tables(true)
        .build()
        .unwrap()
        .start()
        .await
        .unwrap();
    running.drain(None).await.unwrap();
    let first = schedule.calls(Call::Write) + 1;
    let rejected = Fault::Fail(ErrorKind::Rejected);
    let _ = schedule.clone().at(Call::Write, first, rejected).at(Call::Write, first + 1, rejected);
    generator.write(&source, 5, 4);
    let error = running.wait().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert!(error.report().contains("public.customers"), "{}", error.report());
}

#[tokio::test(start_paused = true)]
async fn a_refused_row_halts_its_shard_and_the_others_go_on() {
    let table = customers();
    let source = MemorySource::new("db").table(table.clone());
    let sink = MemorySink::new();
    let schedule = Schedule::new();
    let shard_of_name = Shard::column(["*"], "name");
    let mut running = Pipeline::builder("shards")
        .source(source.clone())
        .sink(FaultySink::new(Arc::new(sink.clone()), schedule.clone()))
        .order(ByKey::new(1))
        .transform(shard_of_name)
        .create_tables(true)
        .on_rejected(OnRejected::HaltShard)
        .build()
        .unwrap()
        .start()
        .await
        .unwrap();
    running.drain(None).await.unwrap();
    let insert = |id: i64, shard: &str| {
        let row = vec![Value::Int(id), Value::from("e"), Value::from(shard), Value::Null];
        source.transaction().insert(&table.name, row).commit().unwrap();
    };
    let first = schedule.calls(Call::Write) + 1;
    let _ = schedule.clone().at(Call::Write, first, Fault::Fail(ErrorKind::Rejected));
    insert(1, "north");
    running.drain(None).await.unwrap();
    for id in 2..6 {
        insert(id, if id % 2 == 0 { "south" } else { "north" });
    }
    let drained = running.drain(Some(Duration::from_secs(5))).await.unwrap();
    assert!(drained.marker_reached && !drained.drained, "{drained:?}");
    let ids = |sink: &MemorySink| sink.rows(&table.name).len();
    assert_eq!((ids(&sink), drained.dead_letters_open), (2, 3), "south has arrived, north is parked");

    // Tried again, in order, and then the shard is open again.
    tokio::time::sleep(Duration::from_secs(30)).await;
    insert(7, "north");
    let drained = running.drain(Some(Duration::from_secs(60))).await.unwrap();
    assert!(drained.drained, "{drained:?}");
    assert_eq!(source.tables().difference(&sink.tables()), None);
    running.stop().await.unwrap();
}
