//! Several databases behind one sink: each as exact as one alone, whatever befalls the others.
//! The seed is printed; `SEED=n cargo test --test sharded` replays one, `SEEDS=1000` tries so many.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anabranch_core::checkpointer::MemoryCheckpointer;
use anabranch_core::dead_letter::MemoryDeadLetters;
use anabranch_core::memory::{MemorySink, MemorySource};
use anabranch_core::pipeline::{Drained, OnRejected, RunMode, RunningPipeline, ShardPhase, SnapshotMode};
use anabranch_core::transform::Shard;
use anabranch_core::{
    ByKey, ByTransaction, ByWindow, Checkpointer, Column, DataType, DeadLetterStore, Error, ErrorKind, LetterClass,
    LetterState, Order, Pipeline, PipelineBuilder, Sharded, Sink, TableName, TableSchema, Value, ValueRef,
};
use anabranch_testkit::faults::{Call, Fault, FaultySink, Schedule};
use anabranch_testkit::shards::{ShardWriter, Shards, items};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

/// How long anything may take that should happen soon.
const DEADLINE: Duration = Duration::from_secs(60);

const NAMES: [&str; 3] = ["north", "south", "west"];

fn orders() -> TableSchema {
    TableSchema {
        name: TableName::new("public", "orders"),
        columns: vec![
            Column::new("id", DataType::Int64),
            Column::new("shard", DataType::Text { max_chars: None }),
            Column::new("note", DataType::Text { max_chars: None }),
        ],
        key: vec![0, 1],
    }
}

fn row(id: i64, shard: &str, note: &str) -> Vec<Value> {
    vec![Value::Int(id), Value::from(shard), Value::from(note)]
}

fn key(id: i64, shard: &str) -> Vec<Value> {
    vec![Value::Int(id), Value::from(shard)]
}

/// Each of these calls fails.
fn fails(schedule: &Schedule, calls: &[Call], kind: ErrorKind) {
    let faults: Vec<_> = calls.iter().map(|call| (*call, Fault::Fail(kind))).collect();
    let _ = schedule.clone().random(0, 1.0, &faults);
}

/// A sharded target whose shards can be made to fail.
struct Target {
    sinks: Vec<MemorySink>,
    schedules: Vec<Schedule>,
    letters: MemoryDeadLetters,
    checkpoints: MemoryCheckpointer,
}

impl Target {
    fn new() -> Self {
        let sinks = NAMES.map(|_| MemorySink::new()).to_vec();
        let schedules = NAMES.map(|_| Schedule::new()).to_vec();
        Self { sinks, schedules, letters: MemoryDeadLetters::new(), checkpoints: MemoryCheckpointer::new() }
    }

    fn sharded(&self) -> Sharded {
        let shards = NAMES.iter().zip(&self.sinks).zip(&self.schedules).map(|((name, sink), schedule)| {
            (*name, Arc::new(FaultySink::new(Arc::new(sink.clone()), schedule.clone())) as Arc<dyn Sink>)
        });
        Sharded::new(shards).unwrap()
    }

    fn pipeline(&self, source: &MemorySource, order: impl Into<Order>) -> PipelineBuilder {
        Pipeline::builder("shards")
            .source(source.clone())
            .sink(self.sharded())
            .order(order)
            .transform(Shard::column(["*"], "shard"))
            .checkpointer(self.checkpoints.clone())
            .dead_letters(Arc::new(self.letters.clone()))
            .create_tables(true)
    }

    /// What each shard has must be the rows of the source that name it.
    fn compare(&self, source: &MemorySource) {
        let name = orders().name;
        for (shard, sink) in NAMES.iter().zip(&self.sinks) {
            let mine = |row: &Vec<Value>| row[1] == Value::from(*shard);
            let sorted = |mut rows: Vec<Vec<Value>>| {
                rows.sort_by_key(|r| format!("{r:?}"));
                rows
            };
            let expected: Vec<_> = source.tables().rows(&name).into_iter().filter(mine).collect();
            assert_eq!(sorted(sink.rows(&name)), sorted(expected), "shard {shard}");
        }
    }
}

/// Transactions over several shards: inserts, updates, deletes.
fn write(rng: &mut StdRng, source: &MemorySource, live: &mut BTreeMap<i64, &'static str>, next: &mut i64) {
    let name = orders().name;
    let mut transaction = source.transaction();
    let mut touched = Vec::new();
    for _ in 0..rng.random_range(1..6) {
        let known: Vec<i64> = live.keys().copied().filter(|id| !touched.contains(id)).collect();
        let pick = (!known.is_empty()).then(|| known[rng.random_range(0..known.len())]);
        match (rng.random_range(0..3), pick) {
            (0, Some(id)) => {
                let shard = live.remove(&id).unwrap();
                transaction = transaction.delete(&name, vec![Value::Int(id), Value::from(shard)]);
                touched.push(id);
            }
            (1, Some(id)) => {
                let note = format!("n{}", rng.next_u32());
                transaction =
                    transaction.update(&name, vec![Value::Int(id), Value::from(live[&id])], row(id, live[&id], &note));
                touched.push(id);
            }
            _ => {
                *next += 1;
                let shard = NAMES[rng.random_range(0..NAMES.len())];
                live.insert(*next, shard);
                touched.push(*next);
                transaction = transaction.insert(&name, row(*next, shard, "new"));
            }
        }
    }
    transaction.commit().unwrap();
}

fn seeds() -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    match number("SEED") {
        Some(seed) => vec![seed],
        None => (0..number("SEEDS").unwrap_or(12)).collect(),
    }
}

/// Drains it, though shards were halted until now.
async fn drained_when_healed(running: &mut RunningPipeline) -> Drained {
    // A halted shard is left alone for a minute at most.
    let mut drained = running.drain(Some(Duration::from_secs(600))).await.unwrap();
    for _ in 0..60 {
        if drained.drained {
            break;
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
        drained = running.drain(Some(Duration::from_secs(600))).await.unwrap();
    }
    drained
}

/// Every failure that a database and a network can make of a call, to any shard, at any time; with the
/// strict sink a change that comes twice, or not at all, is refused.
async fn survives(seed: u64, order: impl Into<Order>, batch: usize) {
    eprintln!("SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let source = MemorySource::new("db").table(orders()).batch_changes(batch).heartbeat(Duration::from_millis(100));
    let target = Target::new();
    let faults: Vec<(Call, Fault)> = [Call::Open, Call::Write, Call::Flush, Call::TakeOver]
        .into_iter()
        .flat_map(|call| {
            let after = Fault::DoneThenFail(ErrorKind::Indeterminate);
            [(call, Fault::Fail(ErrorKind::Transient)), (call, after), (call, Fault::Fail(ErrorKind::Config))]
        })
        .collect();
    let pipeline = target.pipeline(&source, order).on_rejected(OnRejected::HaltShard).build().unwrap();
    let mut running = pipeline.start().await.unwrap();
    for (at, schedule) in target.schedules.iter().enumerate() {
        let _ = schedule.clone().random(seed.wrapping_mul(31) + at as u64, 0.15, &faults);
    }
    let (mut live, mut next) = (BTreeMap::new(), 0);
    for _ in 0..200 {
        write(&mut rng, &source, &mut live, &mut next);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for schedule in &target.schedules {
        schedule.heal();
    }
    let drained = drained_when_healed(&mut running).await;
    let status = running.status();
    assert!(drained.drained, "{drained:?} {status:?}");
    target.compare(&source);
    running.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn every_shard_is_exact_whatever_befalls_the_others() {
    for seed in seeds() {
        survives(seed, ByTransaction::new(), 5).await;
        survives(seed, ByKey::new(1), 3).await;
        survives(seed, ByKey::new(3), 4).await;
        survives(seed, ByWindow::new(Duration::from_millis(100)), 4).await;
    }
}

/// A transaction far larger than the byte budget: each shard's part of it is one target transaction.
#[tokio::test(start_paused = true)]
async fn a_large_transaction_is_whole_in_each_shard() {
    let source = MemorySource::new("db").table(orders()).batch_changes(100).chunk_rows(7);
    let target = Target::new();
    let name = orders().name;
    // What is there before is copied, each row to its shard.
    for id in 10_000..10_050 {
        source.transaction().insert(&name, row(id, NAMES[id as usize % 3], "copied")).commit().unwrap();
    }
    let pipeline = target.pipeline(&source, ByTransaction::new()).memory(1 << 20).build().unwrap();
    let mut running = pipeline.start().await.unwrap();
    running.drain(None).await.unwrap();
    let before: Vec<usize> = target.sinks.iter().map(|s| s.history().len()).collect();
    let mut transaction = source.transaction();
    for id in 0..9_000 {
        transaction = transaction.insert(&name, row(id, NAMES[id as usize % 2], &"x".repeat(200)));
    }
    transaction.commit().unwrap();
    let drained = running.drain(Some(Duration::from_secs(600))).await.unwrap();
    assert!(drained.drained, "{drained:?}");
    target.compare(&source);
    for (sink, before) in target.sinks.iter().zip(before) {
        let with_rows = sink.history()[before..].iter().filter(|c| c.rows().count() > 0).count();
        assert!(with_rows <= 1, "{with_rows} commits of one transaction");
    }
    running.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn counters_are_exact_and_an_unknown_shard_is_severe_at_once() {
    let source = MemorySource::new("db").table(orders());
    let target = Target::new();
    let pipeline = target.pipeline(&source, ByKey::new(2)).on_rejected(OnRejected::DeadLetter).build().unwrap();
    let mut running = pipeline.start().await.unwrap();
    let name = orders().name;
    source.transaction().insert(&name, row(1, "north", "a")).insert(&name, row(2, "east", "b")).commit().unwrap();
    source.transaction().insert(&name, vec![Value::Int(3), Value::Null, Value::Null]).commit().unwrap();
    source.transaction().insert(&name, row(4, "south", "c")).commit().unwrap();
    let drained = running.drain(Some(Duration::from_secs(60))).await.unwrap();
    assert_eq!((drained.marker_reached, drained.dead_letters_open), (true, 2), "{drained:?}");
    let letters = target.letters.list("shards", &[LetterState::Open], None, 10).await.unwrap();
    let reasons: Vec<_> = letters.iter().map(|l| (l.class, l.attempts, l.reason.as_str())).collect();
    assert_eq!(reasons[0], (LetterClass::Severe, 0, "there is no shard east (known: north, south, west)"));
    assert!(reasons[1].2.contains("does not tell its shard"), "{reasons:?}");
    let status = running.status();
    let changes = |shard: &str| status.shards[shard].counters.changes;
    assert_eq!((changes("north"), changes("south"), changes("west")), (1, 1, 0));
    assert_eq!(status.counters.changes, 2);
    running.stop().await.unwrap();

    // By default it stops the pipeline at its place, and nothing is lost.
    let (source, target) = (MemorySource::new("db").table(orders()), Target::new());
    let mut running = target.pipeline(&source, ByTransaction::new()).build().unwrap().start().await.unwrap();
    source.transaction().insert(&name, row(2, "east", "b")).commit().unwrap();
    let error = running.wait().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert!(error.report().contains("there is no shard east"), "{}", error.report());
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_is_down_is_parked_and_resumed_over_a_restart() {
    let source = MemorySource::new("db").table(orders());
    let target = Target::new();
    let name = orders().name;
    let build = || target.pipeline(&source, ByTransaction::new()).on_rejected(OnRejected::HaltShard).build().unwrap();
    let mut running = build().start().await.unwrap();
    source.transaction().insert(&name, row(1, "north", "a")).insert(&name, row(2, "south", "a")).commit().unwrap();
    running.drain(None).await.unwrap();
    fails(&target.schedules[0], &[Call::Open, Call::Write, Call::TakeOver], ErrorKind::Transient);
    for id in 3..40 {
        let shard = NAMES[id as usize % 3];
        source.transaction().insert(&name, row(id, shard, "b")).commit().unwrap();
    }
    source.transaction().update(&name, key(1, "north"), row(1, "north", "c")).commit().unwrap();
    let drained = running.drain(Some(Duration::from_secs(120))).await.unwrap();
    assert!(drained.marker_reached && !drained.drained, "{drained:?}");
    assert_eq!(target.sinks[1].rows(&name).len(), 13, "the others have gone on");
    let status = running.status();
    assert_eq!(status.shards["north"].phase, ShardPhase::Halted);
    assert_eq!(status.shards["north"].retryable, drained.dead_letters_open);
    assert_eq!(status.shards["south"].phase, ShardPhase::Running);
    drop(running);

    // The next process finds it down too, and parks on.
    let mut running = build().start().await.unwrap();
    source.transaction().update(&name, key(1, "north"), row(1, "north", "d")).commit().unwrap();
    let drained = running.drain(Some(Duration::from_secs(120))).await.unwrap();
    assert!(drained.marker_reached && !drained.drained, "{drained:?}");
    target.schedules[0].heal();
    tokio::time::sleep(Duration::from_secs(90)).await;
    let drained = running.drain(Some(Duration::from_secs(60))).await.unwrap();
    assert!(drained.drained, "{drained:?} {:?}", running.status());
    target.compare(&source);
    // Exact: every change once, parked or not.
    let status = running.status();
    assert_eq!(status.counters.changes, 2 + 37 + 2, "{:?}", status.shards);
    assert_eq!(status.shards["north"].phase, ShardPhase::Running);
    running.stop().await.unwrap();
    let stored = build().stored_status().await.unwrap().unwrap();
    assert_eq!(stored.counters.changes, 41);
}

#[tokio::test(start_paused = true)]
async fn the_run_modes_try_severe_or_all_letters_and_end() {
    let source = MemorySource::new("db").table(orders());
    let target = Target::new();
    let name = orders().name;
    let build = |mode| {
        let builder = target.pipeline(&source, ByKey::new(1)).on_rejected(OnRejected::DeadLetter).max_attempts(1);
        builder.mode(mode).build().unwrap()
    };
    let mut running = build(RunMode::Regular).start().await.unwrap();
    source.transaction().insert(&name, row(1, "west", "a")).commit().unwrap();
    running.drain(None).await.unwrap();
    let schedule = &target.schedules[0];
    let _ = schedule.clone().at(Call::Write, schedule.calls(Call::Write) + 1, Fault::Fail(ErrorKind::Rejected));
    source.transaction().insert(&name, row(2, "north", "a")).commit().unwrap();
    source.transaction().insert(&name, row(3, "south", "a")).commit().unwrap();
    let drained = running.drain(Some(Duration::from_secs(5))).await.unwrap();
    assert_eq!((drained.marker_reached, drained.dead_letters_open), (true, 1), "{drained:?}");
    running.stop().await.unwrap();

    // It is refused a second time, and is severe from then on; that mode leaves nothing else open.
    let _ = schedule.clone().at(Call::Write, schedule.calls(Call::Write) + 1, Fault::Fail(ErrorKind::Rejected));
    let mut replaying = build(RunMode::RetryAllDlq).start().await.unwrap();
    replaying.wait().await.unwrap();
    assert_eq!(replaying.status().dead_letters_open, 1);
    let all = target.letters.list("shards", &[LetterState::Open], None, 10).await.unwrap();
    assert_eq!((all[0].class, all[0].attempts), (LetterClass::Severe, 1));

    // A regular run leaves it alone; the mode for severe ones applies it, and ends.
    let mut running = build(RunMode::Regular).start().await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let drained = running.drain(Some(Duration::from_secs(5))).await.unwrap();
    assert_eq!(drained.dead_letters_open, 1);
    running.stop().await.unwrap();
    let mut replaying = build(RunMode::RetryDlq).start().await.unwrap();
    replaying.wait().await.unwrap();
    assert_eq!(replaying.status().dead_letters_open, 0);
    target.compare(&source);
}

/// Partitions end, and are forgotten, while a shard does not answer: what of them was parked for it
/// does not come again from the source, and is applied from its letters.
#[tokio::test(start_paused = true)]
async fn what_was_parked_of_partitions_that_ended_meanwhile_is_applied() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = ShardWriter::create(folder.path(), 4).unwrap();
    let target = Target::new();
    let by_id = Shard::by(|change| {
        let row = change.identity_row().ok_or_else(|| Error::rejected("a change without a row"))?;
        let ValueRef::Int(id) = row.get(0) else { return Ok(None) };
        Ok(Some(NAMES[(id % 3) as usize].to_owned()))
    });
    let pipeline = Pipeline::builder("shards")
        .source(Shards::new(folder.path()))
        .sink(target.sharded())
        .order(ByKey::new(2))
        .transform(by_id)
        .checkpointer(target.checkpoints.clone())
        .dead_letters(Arc::new(target.letters.clone()))
        .snapshot(SnapshotMode::Never)
        .create_tables(true)
        .on_rejected(OnRejected::HaltShard)
        .build()
        .unwrap();
    let write_all = |writer: &mut ShardWriter, names: &[String]| {
        for (n, name) in names.iter().enumerate() {
            for id in 0..12 {
                writer.write(name, n as i64 * 12 + id, id == 5).unwrap();
            }
        }
    };
    let mut names = writer.open_partitions();
    write_all(&mut writer, &names);
    let mut running = pipeline.start().await.unwrap();
    assert!(running.drain(Some(DEADLINE)).await.unwrap().drained);

    fails(&target.schedules[0], &[Call::Open, Call::Write, Call::TakeOver], ErrorKind::Transient);
    for round in 0..3 {
        write_all(&mut writer, &names);
        let children: Vec<String> = (0..names.len()).map(|n| format!("r{round}n{n}")).collect();
        for (parent, child) in names.iter().zip(&children) {
            writer.close(&[parent], &[child]).unwrap();
        }
        names = children;
    }
    write_all(&mut writer, &names);
    let halted = running.drain(Some(DEADLINE)).await.unwrap();
    assert!(halted.marker_reached && halted.dead_letters_open > 0, "{halted:?}");
    let known = || async {
        let (_, checkpoint) = target.checkpoints.load("shards").await.unwrap().unwrap();
        checkpoint.partitions.into_keys().map(|id| id.as_str().to_owned()).collect::<Vec<_>>()
    };
    let until = tokio::time::Instant::now() + DEADLINE;
    // The first ones stay known, for the source lists them at every start.
    while known().await.iter().any(|name| name.starts_with("r0") || name.starts_with("r1")) {
        assert!(tokio::time::Instant::now() < until, "ended partitions are still known: {:?}", known().await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    target.schedules[0].heal();
    let drained = drained_when_healed(&mut running).await;
    assert!(drained.drained, "{drained:?} {:?}", running.status());
    let rows = target.sinks.iter().flat_map(|sink| sink.rows(&items().name));
    let found: BTreeMap<i64, u64> = rows
        .map(|row| match row[..] {
            [Value::Int(id), Value::Int(number), ..] => (id, number as u64),
            _ => panic!("{row:?}"),
        })
        .collect();
    assert_eq!(found, *writer.rows());
    running.stop().await.unwrap();
}

/// Two names for one database would take the progress of one another for their own.
#[tokio::test(start_paused = true)]
async fn two_shards_that_are_one_database_are_refused() {
    let source = MemorySource::new("db").table(orders());
    let name = orders().name;
    let mut target = Target::new();
    target.sinks[1] = target.sinks[0].clone();
    let build = || target.pipeline(&source, ByTransaction::new()).on_rejected(OnRejected::HaltShard).build().unwrap();
    let error = match build().start().await {
        Err(error) => error,
        Ok(mut running) => {
            // What becomes of it where it is not refused: north fails, south goes on.
            source.transaction().insert(&name, row(1, "north", "a")).commit().unwrap();
            running.drain(None).await.unwrap();
            fails(&target.schedules[0], &[Call::Open, Call::Write, Call::TakeOver], ErrorKind::Transient);
            source.transaction().insert(&name, row(2, "north", "a")).commit().unwrap();
            source.transaction().insert(&name, row(3, "south", "a")).commit().unwrap();
            running.drain(Some(Duration::from_secs(120))).await.unwrap();
            target.schedules[0].heal();
            let drained = drained_when_healed(&mut running).await;
            panic!("drained: {}, and 3 rows became {}", drained.drained, target.sinks[0].rows(&name).len());
        }
    };
    let report = error.report();
    assert!(error.kind() == ErrorKind::Config && report.contains("the database of south is that of north"), "{report}");
    assert!(report.contains("a database of its own"), "{report}");
    assert!(target.sinks[0].rows(&name).is_empty());
}

/// The URLs of two shards were taken for one another: no row goes to the wrong one.
#[tokio::test(start_paused = true)]
async fn databases_that_were_exchanged_get_nothing_of_one_another() {
    for policy in [OnRejected::Stop, OnRejected::HaltShard] {
        let source = MemorySource::new("db").table(orders());
        let name = orders().name;
        let mut target = Target::new();
        let mut running =
            target.pipeline(&source, ByTransaction::new()).on_rejected(policy).build().unwrap().start().await.unwrap();
        source.transaction().insert(&name, row(1, "north", "a")).insert(&name, row(2, "south", "a")).commit().unwrap();
        running.drain(None).await.unwrap();
        running.stop().await.unwrap();
        source.transaction().insert(&name, row(3, "north", "a")).insert(&name, row(4, "west", "a")).commit().unwrap();

        target.sinks.swap(0, 1);
        let begun = target.pipeline(&source, ByTransaction::new()).on_rejected(policy).build().unwrap().start().await;
        let told = match begun {
            Err(error) => error.report(),
            Ok(mut running) => running
                .drain(Some(Duration::from_secs(120)))
                .await
                .map_or_else(|e| e.report(), |_| running.status().shards["north"].reason.clone().unwrap_or_default()),
        };
        assert!(told.contains("the database of north is that of south"), "{policy:?}: {told}");
        assert!(target.sinks[0].rows(&name).iter().all(|r| r[1] == Value::from("south")), "{policy:?}");

        // Mended, it goes on with nothing lost. A shard may also get another name, or another place.
        target.sinks.swap(0, 1);
        let pipeline = target.pipeline(&source, ByTransaction::new()).on_rejected(policy).build().unwrap();
        let mut running = pipeline.start().await.unwrap();
        assert!(drained_when_healed(&mut running).await.drained, "{policy:?} {:?}", running.status());
        target.compare(&source);
        running.stop().await.unwrap();
    }
}

/// A shard is given a database in which the pipeline has written nothing, though it had written that shard.
#[tokio::test(start_paused = true)]
async fn a_shard_whose_database_was_replaced_is_not_gone_on_with() {
    let source = MemorySource::new("db").table(orders());
    let name = orders().name;
    let mut target = Target::new();
    let build = |target: &Target| target.pipeline(&source, ByTransaction::new()).build().unwrap();
    let mut running = build(&target).start().await.unwrap();
    source.transaction().insert(&name, row(1, "north", "a")).insert(&name, row(2, "south", "a")).commit().unwrap();
    running.drain(None).await.unwrap();
    running.stop().await.unwrap();

    // One that has the tables.
    let empty = MemorySink::new();
    empty.target().unwrap().create(&orders()).await.unwrap();
    let before = std::mem::replace(&mut target.sinks[0], empty.clone());
    let error = match build(&target).start().await {
        Err(error) => error.report(),
        Ok(mut running) => {
            source.transaction().insert(&name, row(3, "north", "a")).commit().unwrap();
            let drained = running.drain(Some(Duration::from_secs(120))).await.unwrap();
            running.stop().await.unwrap();
            panic!("drained: {}, and 2 rows became {}", drained.drained, target.sinks[0].rows(&name).len());
        }
    };
    assert!(error.contains("north") && error.contains("anabranch_lane"), "{error}");

    // West has never had a change: it may be replaced.
    (target.sinks[0], target.sinks[2]) = (before, empty);
    let mut running = build(&target).start().await.unwrap();
    source.transaction().insert(&name, row(4, "west", "a")).commit().unwrap();
    assert!(running.drain(None).await.unwrap().drained);
    target.compare(&source);
    running.stop().await.unwrap();
}
