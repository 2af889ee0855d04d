//! Comparing both sides: every planted difference is found, nothing on its way is taken for one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anabranch_core::control::verify::{DifferenceKind, Verified, VerifyOptions};
use anabranch_core::memory::{MemorySink, MemorySource};
use anabranch_core::pipeline::{OnRejected, SnapshotMode};
use anabranch_core::{
    Column, DataType, ErrorKind, Op, Pipeline, PipelineBuilder, RunningPipeline, TableName, TableSchema, Value,
    ValueRef,
};
use anabranch_testkit::faults::{FaultySink, Schedule};

fn accounts() -> TableSchema {
    TableSchema {
        name: TableName::new("public", "accounts"),
        columns: vec![Column::new("id", DataType::Int64), Column::new("owner", DataType::Text { max_chars: None })],
        key: vec![0],
    }
}

/// The same without a key.
fn notes() -> TableSchema {
    TableSchema { name: TableName::new("public", "notes"), key: Vec::new(), ..accounts() }
}

fn row(id: i64, owner: &str) -> Vec<Value> {
    vec![Value::Int(id), Value::from(owner)]
}

fn filled(rows: i64) -> MemorySource {
    let source = MemorySource::new("bank").table(accounts()).table(notes()).full_old_rows(&notes().name);
    let mut transaction = source.transaction();
    for id in 0..rows {
        transaction = transaction.insert(&accounts().name, row(id, "ada")).insert(&notes().name, row(id / 2, "note"));
    }
    transaction.commit().unwrap();
    source
}

fn pipeline(source: &MemorySource, sink: &MemorySink) -> PipelineBuilder {
    Pipeline::builder("bank").source(source.clone()).sink(sink.clone()).create_tables(true)
}

async fn started(source: &MemorySource, sink: &MemorySink) -> RunningPipeline {
    let mut running = pipeline(source, sink).build().unwrap().start().await.unwrap();
    assert!(running.drain(Some(Duration::from_secs(60))).await.unwrap().drained);
    running
}

async fn verified(source: &MemorySource, sink: &MemorySink, options: &VerifyOptions) -> Verified {
    let mut told = 0;
    let verified = pipeline(source, sink).build().unwrap().verify(options, &mut |_| told += 1).await.unwrap();
    assert_eq!(told, verified.tables.len());
    verified
}

/// Changes the target behind the pipeline's back: by a pipeline of another name.
async fn spoil(sink: &MemorySink, spoil: impl FnOnce(&MemorySource)) {
    let other = MemorySource::new("intruder").table(accounts()).table(notes()).full_old_rows(&notes().name);
    let mut before = other.transaction();
    for id in 0..1000 {
        before = before.insert(&accounts().name, row(id, "ada"));
    }
    for note in sink.rows(&notes().name) {
        before = before.insert(&notes().name, note);
    }
    before.commit().unwrap();
    let builder = Pipeline::builder("intruder").source(other.clone()).sink(SkipFirst::over(sink.clone()));
    let mut running = builder.snapshot(SnapshotMode::Never).build().unwrap().start().await.unwrap();
    spoil(&other);
    assert!(running.drain(Some(Duration::from_secs(60))).await.unwrap().drained);
    running.stop().await.unwrap();
}

use skip::SkipFirst;

/// A sink that leaves out the first transaction, with which the intruder's source filled itself.
mod skip {
    use anabranch_core::memory::MemorySink;
    use anabranch_core::{
        Checkpointer, Lane, ProgressStore, Result, Sink, SinkInfo, SinkWriter, TargetSchema, Unit, Written,
    };
    use async_trait::async_trait;
    use std::sync::Arc;

    #[derive(Debug)]
    pub(super) struct SkipFirst(MemorySink);

    impl SkipFirst {
        pub(super) fn over(sink: MemorySink) -> Self {
            Self(sink)
        }
    }

    #[async_trait]
    impl Sink for SkipFirst {
        fn info(&self) -> SinkInfo {
            self.0.info()
        }
        async fn open(&self, lane: Lane) -> Result<Box<dyn SinkWriter>> {
            Ok(Box::new(Writer(self.0.open(lane).await?)))
        }
        fn progress(&self) -> Option<&dyn ProgressStore> {
            self.0.progress()
        }
        fn checkpointer(&self) -> Option<Arc<dyn Checkpointer>> {
            self.0.checkpointer()
        }
        fn target(&self) -> Option<&dyn TargetSchema> {
            self.0.target()
        }
    }

    struct Writer(Box<dyn SinkWriter>);

    #[async_trait]
    impl SinkWriter for Writer {
        async fn write(&mut self, unit: &Unit) -> Result<Written> {
            let first = 1_u64.to_be_bytes();
            self.0.write(&unit.retain(|change| *change.piece().transaction.rank != first)).await
        }
        async fn flush(&mut self) -> Result<()> {
            self.0.flush().await
        }
        async fn close(self: Box<Self>) -> Result<()> {
            self.0.close().await
        }
    }
}

#[tokio::test(start_paused = true)]
async fn equal_tables_are_equal_with_a_key_and_without() {
    let (source, sink) = (filled(1000), MemorySink::new());
    let running = started(&source, &sink).await;
    let verified = verified(&source, &sink, &VerifyOptions::default()).await;
    assert!(verified.equal, "{verified}");
    assert_eq!(verified.tables.iter().map(|t| (t.source_rows, t.target_rows)).collect::<Vec<_>>(), [(1000, 1000); 2]);
    running.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn every_planted_difference_is_found_and_named_and_repaired() {
    let (source, sink) = (filled(1000), MemorySink::new());
    let running = started(&source, &sink).await;
    spoil(&sink, |target| {
        let (accounts, notes) = (&accounts().name, &notes().name);
        let changes = target.transaction().delete(accounts, [Value::Int(7)]).insert(accounts, row(5000, "eve"));
        let changes = changes.update(accounts, [Value::Int(8)], row(8, "Ada"));
        changes.update(accounts, [Value::Int(9)], row(9, "ada ")).delete(notes, row(3, "note")).commit().unwrap();
    })
    .await;
    let found = verified(&source, &sink, &VerifyOptions::default()).await;
    assert!(!found.equal);
    let (accounts, notes) = (&found.tables[0], &found.tables[1]);
    assert_eq!((accounts.missing, accounts.extra, accounts.changed), (1, 1, 2), "{accounts}");
    assert_eq!((notes.missing, notes.extra, notes.changed), (1, 0, 0), "{notes}");
    assert_eq!(accounts.unsettled + notes.unsettled, 0);
    assert!(!accounts.confirmed_at.is_empty());
    let listed: Vec<_> =
        accounts.differences.iter().map(|d| (d.kind, d.key[0].1.as_str(), d.columns.join(","))).collect();
    assert_eq!(
        listed,
        [
            (DifferenceKind::Extra, "5000", String::new()),
            (DifferenceKind::Missing, "7", String::new()),
            (DifferenceKind::Changed, "8", "owner".to_owned()),
            (DifferenceKind::Changed, "9", "owner".to_owned()),
        ]
    );

    // A table without a key cannot be repaired: its rows cannot be told apart.
    let repair = VerifyOptions { repair: true, ..VerifyOptions::default() };
    let repaired = verified(&source, &sink, &repair).await;
    assert_eq!((repaired.tables[0].repaired, repaired.tables[1].repaired, repaired.equal), (4, 0, false));
    // It took the pipeline over.
    assert_eq!(running.stop().await.unwrap_err().kind(), ErrorKind::Fenced);
    assert_eq!(source.tables().rows(&self::accounts().name), sink.rows(&self::accounts().name));
    let running = started(&source, &sink).await;
    let only = VerifyOptions { tables: [self::accounts().name].into(), ..repair };
    assert!(verified(&source, &sink, &only).await.equal);
    running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rows_on_their_way_raise_no_alarm() {
    let (source, sink) = (filled(2000), MemorySink::new());
    let running = started(&source, &sink).await;
    let done = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (source, done) = (source.clone(), Arc::clone(&done));
        async move {
            let mut number = 0_i64;
            while !done.load(Ordering::Relaxed) {
                number += 1;
                let (id, table) = (number * 7919 % 2000, accounts().name);
                let owner = format!("owner {number}");
                source.transaction().update(&table, [Value::Int(id)], row(id, &owner)).commit().unwrap();
                source.transaction().insert(&table, row(10_000 + number, "new")).commit().unwrap();
                if number % 3 == 0 {
                    source.transaction().delete(&table, [Value::Int(10_000 + number)]).commit().unwrap();
                }
                tokio::task::yield_now().await;
                if number % 50 == 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
    });
    for _ in 0..20 {
        let options = VerifyOptions { tables: [accounts().name].into(), ..VerifyOptions::default() };
        let verified = verified(&source, &sink, &options).await;
        let table = &verified.tables[0];
        assert_eq!(table.differing(), 0, "{verified}");
    }
    done.store(true, Ordering::Relaxed);
    writer.await.unwrap();
    running.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn without_a_running_pipeline_it_says_that_it_cannot_tell() {
    let (source, sink) = (filled(10), MemorySink::new());
    started(&source, &sink).await.stop().await.unwrap();
    source.transaction().insert(&accounts().name, row(100, "late")).commit().unwrap();
    let error =
        pipeline(&source, &sink).build().unwrap().verify(&VerifyOptions::default(), &mut |_| {}).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error:?}");
    let at_rest = VerifyOptions { wait: None, ..VerifyOptions::default() };
    let found = verified(&source, &sink, &at_rest).await;
    assert_eq!((found.tables[0].missing, found.tables[1].differing()), (1, 0), "{found}");
}

/// More keys than are looked at together.
#[tokio::test(start_paused = true)]
async fn a_flood_of_rows_on_their_way_raises_no_alarm_and_a_difference_among_them_is_found() {
    const ROWS: i64 = 10_500;
    let (source, sink) = (filled(ROWS), MemorySink::new());
    started(&source, &sink).await.stop().await.unwrap();
    let flood = |owner: &str| {
        let table = accounts().name;
        let changes = (0..ROWS).fold(source.transaction(), |t, id| t.update(&table, [Value::Int(id)], row(id, owner)));
        changes.commit().unwrap();
    };
    let only = VerifyOptions { tables: [accounts().name].into(), ..VerifyOptions::default() };
    for planted in [0, 1] {
        flood(&format!("owner {planted}"));
        let (of, into) = (source.clone(), sink.clone());
        // It begins while the target is waited for.
        let late = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            started(&of, &into).await
        });
        let found = verified(&source, &sink, &only).await;
        let table = &found.tables[0];
        assert_eq!((table.differing(), table.unsettled, found.equal), (planted, 0, planted == 0), "{found}");
        // With a difference at hand the others need not be looked at.
        assert!(!table.more || planted == 1);
        late.await.unwrap().stop().await.unwrap();
        if planted == 0 {
            spoil(&sink, |target| {
                target.transaction().insert(&accounts().name, row(-1, "eve")).commit().unwrap();
            })
            .await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_table_is_found_by_the_name_that_is_told() {
    let orders = TableSchema { name: TableName::new("", "eu.orders"), ..accounts() };
    let source = MemorySource::new("shop").table(orders.clone());
    source.transaction().insert(&orders.name, row(1, "ada")).commit().unwrap();
    let sink = MemorySink::new();
    let running = started(&source, &sink).await;
    let only = VerifyOptions { tables: [TableName::new("eu", "orders")].into(), ..VerifyOptions::default() };
    assert_eq!(verified(&source, &sink, &only).await.tables.len(), 1);
    running.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_wait_without_end_is_one() {
    let (source, sink) = (filled(10), MemorySink::new());
    started(&source, &sink).await.stop().await.unwrap();
    source.transaction().insert(&accounts().name, row(100, "late")).commit().unwrap();
    let (of, into) = (source.clone(), sink.clone());
    let late = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        started(&of, &into).await
    });
    let options = VerifyOptions { wait: Some(Duration::MAX), ..VerifyOptions::default() };
    assert!(verified(&source, &sink, &options).await.equal);
    late.await.unwrap().stop().await.unwrap();
}

/// A letter of the row is tried again later: it would write what it has over what was repaired.
#[tokio::test(start_paused = true)]
async fn a_row_with_an_open_dead_letter_is_left_to_it() {
    let (source, sink) = (filled(10), MemorySink::new());
    let refusing = FaultySink::new(Arc::new(sink.clone()), Schedule::new())
        .refuses(|change| change.op() == Op::Update && change.new_row().is_some_and(|r| r.get(0) == ValueRef::Int(3)));
    let builder = Pipeline::builder("bank").source(source.clone()).sink(refusing).create_tables(true);
    let mut running = builder.on_rejected(OnRejected::DeadLetter).build().unwrap().start().await.unwrap();
    let key = || vec![Value::Int(3)];
    source.transaction().update(&accounts().name, key(), row(3, "bob")).commit().unwrap();
    source.transaction().update(&accounts().name, key(), row(3, "cy")).commit().unwrap();
    assert_eq!(running.drain(Some(Duration::from_secs(60))).await.unwrap().dead_letters_open, 2);

    let repair = VerifyOptions { repair: true, ..VerifyOptions::default() };
    let found = verified(&source, &sink, &repair).await;
    assert_eq!((found.tables[0].changed, found.tables[0].repaired, found.equal), (1, 0, false), "{found}");
    drop(running);

    let builder = pipeline(&source, &sink).on_rejected(OnRejected::DeadLetter);
    let mut running = builder.build().unwrap().start().await.unwrap();
    let mut waited = 0;
    while !running.drain(Some(Duration::from_secs(60))).await.unwrap().drained {
        waited += 1;
        assert!(waited < 100, "the letters are not applied");
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    running.stop().await.unwrap();
    let mut owners = Vec::new();
    for commit in sink.history() {
        owners.extend(commit.rows().filter_map(|(_, _, after)| after.filter(|r| r[0] == Value::Int(3)).cloned()));
    }
    let of_accounts = |owner: &str| owners.iter().filter(|r| r[1] == Value::from(owner)).count();
    assert_eq!((of_accounts("bob"), of_accounts("cy")), (1, 1), "{owners:?}");
    assert_eq!(source.tables().difference(&sink.tables()), None);
}
