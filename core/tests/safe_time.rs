//! Safe time: everything committed at or before it is in the target, at every moment that somebody
//! looks, while everything around the pipeline fails at random. `SEED=n` replays a run.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anabranch_core::memory::{MemorySink, MemorySource};
use anabranch_core::pipeline::PipelineBuilder;
use anabranch_core::{
    Arrival, ByKey, ByTransaction, ByWindow, Column, DataType, ErrorKind, Order, Pipeline, TableName, TableSchema,
    Timestamp, Value,
};
use anabranch_testkit::faults::{Call, Fault, FaultySink, FaultySource, Schedule};
use anabranch_testkit::generators::Dice;

const ROWS: i64 = 20;
const HEARTBEAT: Duration = Duration::from_millis(200);

fn table() -> TableSchema {
    TableSchema {
        name: TableName::new("public", "rows"),
        columns: vec![Column::new("id", DataType::Int64), Column::new("n", DataType::Int64)],
        key: vec![0],
    }
}

/// What was committed: when it was over at the latest, and the rows, which hold its number since.
struct Committed {
    by: Timestamp,
    rows: Vec<i64>,
}

struct History {
    source: MemorySource,
    sink: MemorySink,
    committed: Vec<Committed>,
    dice: Dice,
    /// The highest safe time that was told.
    told: Option<Timestamp>,
    checks: usize,
}

impl History {
    fn new(seed: u64) -> Self {
        let source = MemorySource::new("db").table(table()).heartbeat(HEARTBEAT).batch_changes(7).chunk_rows(6);
        let mut first = source.transaction();
        for id in 0..ROWS {
            first = first.insert(&table().name, vec![Value::Int(id), Value::Int(0)]);
        }
        first.commit().unwrap();
        let dice = Dice::new(seed);
        Self { source, sink: MemorySink::new(), committed: Vec::new(), dice, told: None, checks: 0 }
    }

    fn commit(&mut self) {
        let number = self.committed.len() as i64 + 1;
        let mut rows: Vec<i64> = (0..1 + self.dice.below(3)).map(|_| self.dice.below(ROWS as usize) as i64).collect();
        rows.sort_unstable();
        rows.dedup();
        let mut transaction = self.source.transaction();
        for &id in &rows {
            transaction =
                transaction.update(&table().name, vec![Value::Int(id)], vec![Value::Int(id), Value::Int(number)]);
        }
        transaction.commit().unwrap();
        self.committed.push(Committed { by: Timestamp::now(), rows });
    }

    /// The time was told before the target is looked at here.
    #[track_caller]
    fn check(&mut self, safe_time: Option<Timestamp>) {
        let Some(safe_time) = safe_time else { return };
        let int = |v: &Value| if let Value::Int(n) = v { *n } else { panic!("{v:?}") };
        let rows: Vec<(i64, i64)> = self.sink.rows(&table().name).iter().map(|r| (int(&r[0]), int(&r[1]))).collect();
        assert_eq!(rows.len(), ROWS as usize, "safe time is told before all is copied");
        for (at, committed) in self.committed.iter().enumerate().filter(|(_, c)| c.by < safe_time) {
            for id in &committed.rows {
                let there = rows.iter().find(|(row, _)| row == id).map(|(_, n)| *n);
                assert!(there >= Some(at as i64 + 1), "transaction {} is not in the target at {safe_time}", at + 1);
            }
        }
        self.checks += 1;
    }

    /// One handle never tells an earlier time than before.
    #[track_caller]
    fn told(&mut self, safe_time: Option<Timestamp>) {
        assert!(safe_time.is_none() || safe_time >= self.told, "{safe_time:?} after {:?}", self.told);
        self.told = self.told.max(safe_time);
    }
}

fn faults() -> Vec<(Call, Fault)> {
    let mut faults = vec![(Call::Next, Fault::Stop)];
    for call in [Call::Open, Call::Write, Call::TakeOver, Call::Prepare, Call::Next] {
        faults.push((call, Fault::Fail(ErrorKind::Transient)));
        faults.push((call, Fault::DoneThenFail(ErrorKind::Indeterminate)));
    }
    faults
}

async fn run(seed: u64, order: impl Into<Order>) {
    println!("SEED={seed}");
    let order = order.into();
    let mut history = History::new(seed);
    let schedule = Schedule::new().random(seed, 0.02, &faults());
    let builder = |h: &History| -> PipelineBuilder {
        Pipeline::builder("safe")
            .source(FaultySource::new(Arc::new(h.source.clone()), schedule.clone()))
            .sink(FaultySink::new(Arc::new(h.sink.clone()), schedule.clone()))
            .order(order.clone())
            .create_tables(true)
    };
    for round in 0..3 {
        let running = builder(&history).build().unwrap().start().await.unwrap();
        for _ in 0..60 {
            for _ in 0..history.dice.below(4) {
                history.commit();
            }
            tokio::time::sleep(Duration::from_millis(history.dice.below(30) as u64)).await;
            let status = running.status();
            history.check(status.safe_time);
            history.told(status.safe_time);
            if history.dice.percent(20) {
                let stored = builder(&history).build().unwrap().stored_status().await.unwrap().unwrap();
                history.check(stored.safe_time);
            }
        }
        if round < 2 {
            // An orderly end keeps it; after the last one the next run begins where that was.
            running.stop().await.unwrap_or_else(|e| assert_ne!(e.kind(), ErrorKind::Fatal, "{e:?}"));
            let stored = builder(&history).build().unwrap().stored_status().await.unwrap().unwrap();
            history.check(stored.safe_time);
            history.told = stored.safe_time;
        } else {
            schedule.heal();
            idle(&mut history, running, builder).await;
        }
    }
    assert!(history.checks > 60, "seed {seed}: only {} looks meant anything", history.checks);
}

/// On an idle source it is never older than the heartbeat interval plus a second.
async fn idle(
    history: &mut History,
    mut running: anabranch_core::RunningPipeline,
    builder: impl Fn(&History) -> PipelineBuilder,
) {
    assert!(running.drain(Some(Duration::from_secs(60))).await.unwrap().drained);
    let allowed = HEARTBEAT.as_micros() as i64 + 1_000_000;
    let (began, window) = (Instant::now(), Duration::from_secs(3));
    let mut late = 0;
    while began.elapsed() < window {
        let looked = Instant::now();
        tokio::time::sleep(Duration::from_millis(50)).await;
        // A machine that is busy with other things for so long says nothing about safe time.
        let busy = looked.elapsed() > Duration::from_millis(250);
        let safe_time = running.status().safe_time;
        history.check(safe_time);
        history.told(safe_time);
        let age = Timestamp::now().micros_since(safe_time.unwrap());
        late += u32::from(age > allowed && !busy && began.elapsed() > Duration::from_millis(1500));
    }
    assert_eq!(late, 0, "safe time stands still on an idle source");
    running.stop().await.unwrap();
    let stored = builder(history).build().unwrap().stored_status().await.unwrap().unwrap();
    history.told(stored.safe_time);
    let running = builder(history).build().unwrap().start().await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while running.status().safe_time.is_none() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    history.told(running.status().safe_time);
    assert!(running.status().safe_time.is_some());
    running.stop().await.unwrap();
}

fn seeds() -> Vec<u64> {
    match std::env::var("SEED").ok().and_then(|s| s.parse().ok()) {
        Some(seed) => vec![seed],
        None => vec![1, 2],
    }
}

#[tokio::test]
async fn by_transaction() {
    for seed in seeds() {
        run(seed, ByTransaction::new()).await;
    }
}

#[tokio::test]
async fn by_key() {
    for seed in seeds() {
        run(seed + 10, ByKey::new(3)).await;
    }
}

#[tokio::test]
async fn by_window() {
    for seed in seeds() {
        run(seed + 20, ByWindow::new(Duration::from_millis(100))).await;
    }
}

#[tokio::test]
async fn by_arrival() {
    for seed in seeds() {
        run(seed + 30, Arrival).await;
    }
}
