//! Transforms that are others when an interrupted copy goes on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anabranch_core::checkpointer::MemoryCheckpointer;
use anabranch_core::memory::{MemorySink, MemorySource};
use anabranch_core::pipeline::PipelineBuilder;
use anabranch_core::transform::{Custom, Mask, MaskRule, Rename, Transform};
use anabranch_core::*;
use anabranch_testkit::faults::{Call, Fault, FaultySink, Schedule};
use going_on::GoingOn;

mod going_on;

/// A database with two tables of 50 rows, and what a pipeline from it has stored.
struct World {
    source: MemorySource,
    sink: MemorySink,
    checkpoints: MemoryCheckpointer,
}

fn table(name: &str) -> TableSchema {
    TableSchema {
        name: TableName::new("public", name),
        columns: vec![Column::new("id", DataType::Int64), Column::new("mail", DataType::Text { max_chars: None })],
        key: vec![0],
    }
}

impl World {
    fn new() -> Self {
        let tables = [table("accounts"), table("orders")];
        let source = tables.iter().fold(MemorySource::new("db"), |s, t| s.table(t.clone())).chunk_rows(5);
        let mut transaction = source.transaction();
        for id in 0..50 {
            for table in &tables {
                transaction = transaction.insert(&table.name, vec![Value::Int(id), Value::Text("a@b".to_owned())]);
            }
        }
        transaction.commit().unwrap();
        Self { source, sink: MemorySink::new(), checkpoints: MemoryCheckpointer::new() }
    }

    fn pipeline(&self, sink: Arc<dyn Sink>, transform: Box<dyn Transform>) -> PipelineBuilder {
        let source = GoingOn(self.source.clone());
        let builder = Pipeline::builder("test").source(source).sink_arc(sink).create_tables(true).snapshot_workers(1);
        builder.checkpointer(self.checkpoints.clone()).transform_boxed(transform)
    }

    /// Copies until the write with this number.
    async fn interrupted(&self, at: u64, transform: impl Transform + 'static) {
        let schedule = Schedule::new().at(Call::Write, at, Fault::Fail(ErrorKind::Fatal));
        let faulty = Arc::new(FaultySink::new(Arc::new(self.sink.clone()), schedule));
        let pipeline = self.pipeline(faulty, Box::new(transform)).build().unwrap();
        pipeline.start().await.unwrap().wait().await.unwrap_err();
    }

    /// Goes on to the end. Gives how many rows were copied in all.
    async fn gone_on(&self, transform: impl Transform + 'static) -> u64 {
        let pipeline = self.pipeline(Arc::new(self.sink.clone()), Box::new(transform)).build().unwrap();
        let mut running = pipeline.start().await.unwrap();
        assert!(running.drain(Some(Duration::from_secs(60))).await.unwrap().drained);
        let rows = running.status().counters.snapshot_rows;
        running.stop().await.unwrap();
        rows
    }

    /// What stands in the column `mail`.
    fn mails(&self, name: &str) -> BTreeSet<String> {
        let rows = self.sink.rows(&TableName::new("public", name));
        assert_eq!(rows.len(), 50, "{name}");
        rows.iter().map(|row| format!("{:?}", row[1])).collect()
    }
}

fn mask(key: &str) -> Mask {
    Mask::new(["public.*"], [("mail".to_owned(), MaskRule::Sha256 { key: key.into() })]).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_copy_under_another_secret_begins_anew() {
    // In the middle of the first table, and of the second.
    for at in [4, 14] {
        let world = World::new();
        world.interrupted(at, mask("a long secret")).await;
        world.gone_on(mask("another secret")).await;
        let (accounts, orders) = (world.mails("accounts"), world.mails("orders"));
        assert_eq!((accounts.len(), &accounts), (1, &orders), "interrupted at {at}: rows under both secrets");
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_under_the_same_transforms_goes_on() {
    let world = World::new();
    world.interrupted(14, mask("a long secret")).await;
    assert_eq!(world.gone_on(mask("a long secret")).await, 100);
    let world = World::new();
    world.interrupted(14, Custom::new(Ok)).await;
    assert_eq!(world.gone_on(Custom::new(Ok)).await, 100);
}

/// Once the stream has begun other transforms hold from there on, and copy nothing again.
#[tokio::test(start_paused = true)]
async fn a_copy_that_is_done_stays() {
    let world = World::new();
    assert_eq!(world.gone_on(mask("a long secret")).await, 100);
    assert_eq!(world.gone_on(mask("another secret")).await, 100);
}

/// The table that it goes to now is somebody else's.
#[tokio::test(start_paused = true)]
async fn a_table_that_a_new_name_leads_to_is_not_emptied() {
    let world = World::new();
    let other = MemorySource::new("other").table(table("theirs"));
    other.transaction().insert(&table("theirs").name, vec![Value::Int(1), Value::Null]).commit().unwrap();
    let foreign = Pipeline::builder("foreign").source(other).sink(world.sink.clone()).create_tables(true);
    let mut running = foreign.checkpointer(MemoryCheckpointer::new()).build().unwrap().start().await.unwrap();
    assert!(running.drain(Some(Duration::from_secs(60))).await.unwrap().drained);
    running.stop().await.unwrap();

    world.interrupted(4, Rename::new()).await;
    let renamed = Rename::new().table("public.accounts", "public.theirs");
    let pipeline = world.pipeline(Arc::new(world.sink.clone()), Box::new(renamed)).build().unwrap();
    let error = match pipeline.start().await {
        Err(error) => error,
        Ok(mut running) => {
            let ended = tokio::time::timeout(Duration::from_secs(600), running.wait()).await;
            ended.expect("it goes on, into somebody else's table").unwrap_err()
        }
    };
    assert!(error.report().contains("public.theirs already has rows"), "{}", error.report());
    assert_eq!(world.sink.rows(&table("theirs").name), [vec![Value::Int(1), Value::Null]]);

    let renamed = Rename::new().table("public.accounts", "public.ours");
    world.gone_on(renamed).await;
    assert_eq!(world.mails("ours").len(), 1);
}
