//! The suites of core for sinks, checkpointers and dead-letter stores; errors that ask for another try.

use std::sync::Arc;
use std::time::Duration;

use anabranch_core::memory::MemorySource;
use anabranch_core::pipeline::{RetryLimits, SnapshotMode};
use anabranch_core::*;
use anabranch_postgres::Privilege;
use anabranch_testkit::conformance::{self, sink::SinkUnderTest};
use anabranch_yugabyte::YugabyteSink;
use anabranch_yugabyte_fake::Options;
use async_trait::async_trait;

use crate::support::{Universe, universe};

struct Target {
    universe: Universe,
    replica_role: Privilege,
}

#[async_trait]
impl SinkUnderTest for Target {
    async fn connect(&self) -> Arc<dyn Sink> {
        Arc::new(YugabyteSink::new(self.universe.url()).replica_role(self.replica_role))
    }

    async fn create_table(&self, table: &TableSchema, unique: &[&str]) {
        self.connect().await.target().unwrap().create(table).await.unwrap();
        for column in unique {
            self.universe.exec(&format!("ALTER TABLE \"{}\" ADD UNIQUE (\"{column}\")", table.name.name));
        }
    }

    async fn read_table(&self, table: &TableSchema) -> Vec<Vec<Option<String>>> {
        let columns: Vec<String> = table.columns.iter().map(|c| format!("\"{}\"", c.name)).collect();
        self.universe.exec(&format!("SELECT {} FROM \"{}\"", columns.join(", "), table.name.name))
    }
}

async fn conforms(replica_role: Privilege) {
    let Some(universe) = universe(Options::default()).await else { return };
    let target = Target { universe, replica_role };
    conformance::sink::run(&target).await;
    assert_eq!(target.universe.fake.refused(), Vec::<String>::new(), "what YSQL does not have was asked for");
}

#[tokio::test(flavor = "multi_thread")]
async fn sink() {
    conforms(Privilege::Auto).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sink_with_triggers_and_foreign_keys() {
    conforms(Privilege::Off).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpointer() {
    let Some(universe) = universe(Options::default()).await else { return };
    let open = async || YugabyteSink::new(universe.url()).checkpointer().unwrap();
    conformance::checkpointer::run(open).await;
    assert_eq!(universe.fake.refused(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters() {
    let Some(universe) = universe(Options::default()).await else { return };
    let open = async || YugabyteSink::new(universe.url()).dead_letters().unwrap();
    conformance::dead_letter::run(open).await;
    assert_eq!(universe.fake.refused(), Vec::<String>::new());
}

/// Every unit that meets one is applied again whole: at the end each change is there once.
#[tokio::test(flavor = "multi_thread")]
async fn errors_that_ask_for_another_try_lose_and_double_nothing() {
    let Some(universe) = universe(Options { refuse_one_of: 16, ..Options::default() }).await else { return };
    let columns = vec![Column::new("id", DataType::Int64), Column::new("n", DataType::Int64)];
    let table = TableSchema { name: TableName::new("public", "t"), columns, key: vec![0] };
    let name = table.name.clone();
    let source = MemorySource::new("shop").table(table);
    let mut running = Pipeline::builder("retried")
        .source(source.clone())
        .sink(YugabyteSink::new(universe.url()))
        .order(ByTransaction::new())
        .create_tables(true)
        .snapshot(SnapshotMode::Never)
        .retry(RetryLimits { first: Duration::from_millis(5), longest: Duration::from_millis(50), attempts: None })
        .build()
        .unwrap()
        .start()
        .await
        .unwrap();
    let row = |id: i64, n: i64| vec![Value::Int(id), Value::Int(n)];
    for n in 0..40_i64 {
        let mut transaction = source.transaction().insert(&name, row(n, 0));
        if n >= 5 {
            transaction = transaction.update(&name, vec![Value::Int(n - 5)], row(n - 5, n));
        }
        transaction.commit().unwrap();
        if n % 4 == 0 {
            // So that there are many units.
            assert!(running.drain(None).await.unwrap().drained);
        }
    }
    assert!(running.drain(None).await.unwrap().drained);
    let counters = running.status().counters;
    running.stop().await.unwrap();
    let rows = universe.exec("SELECT id, n FROM t ORDER BY id");
    let expected: Vec<Vec<Option<String>>> = (0..40_i64)
        .map(|n| vec![Some(n.to_string()), Some(if n < 35 { (n + 5).to_string() } else { "0".to_owned() })])
        .collect();
    assert_eq!(rows, expected);
    assert_eq!((counters.changes, counters.transactions), (75, 40), "counted with the rows, once");
    assert!(universe.fake.injected() > 3, "{} errors are too few to mean anything", universe.fake.injected());
}
