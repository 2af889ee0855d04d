//! Copies that are interrupted and go on.

use std::sync::Arc;
use std::time::Duration;

use anabranch_core::checkpointer::MemoryCheckpointer;
use anabranch_core::memory::{MemorySink, MemorySource};
use anabranch_core::*;
use anabranch_testkit::faults::{Call, Fault, FaultySink, Schedule};
use going_on::GoingOn;

mod going_on;

/// Ten chunks of five rows, of which `kept` says whether the target still has the first after the
/// interruption. Gives how many rows were copied in all.
async fn copied(kept: bool) -> u64 {
    let table = TableSchema {
        name: TableName::new("public", "accounts"),
        columns: vec![Column::new("id", DataType::Int64)],
        key: vec![0],
    };
    let source = MemorySource::new("db").table(table.clone()).chunk_rows(5);
    let mut transaction = source.transaction();
    for id in 0..50 {
        transaction = transaction.insert(&table.name, vec![Value::Int(id)]);
    }
    transaction.commit().unwrap();
    let checkpoints = MemoryCheckpointer::new();
    let pipeline = |sink: Arc<dyn Sink>| {
        let builder = Pipeline::builder("test").source(GoingOn(source.clone())).sink_arc(sink).create_tables(true);
        builder.snapshot_workers(1).checkpointer(checkpoints.clone()).build().unwrap()
    };
    let sink = MemorySink::new();
    let schedule = Schedule::new().at(Call::Write, 4, Fault::Fail(ErrorKind::Fatal));
    let faulty = Arc::new(FaultySink::new(Arc::new(sink.clone()), schedule));
    let mut running = pipeline(faulty).start().await.unwrap();
    running.wait().await.unwrap_err();
    assert_eq!(sink.rows(&table.name).len(), 15);

    let sink = if kept { sink } else { MemorySink::new() };
    let mut running = pipeline(Arc::new(sink.clone())).start().await.unwrap();
    assert!(running.drain(Some(Duration::from_secs(60))).await.unwrap().drained);
    assert_eq!(source.tables().difference(&sink.tables()), None, "kept: {kept}");
    let rows = running.status().counters.snapshot_rows;
    running.stop().await.unwrap();
    rows
}

#[tokio::test(start_paused = true)]
async fn a_copy_goes_on_as_it_was() {
    assert_eq!(copied(true).await, 50);
}

/// The target was restored, or made anew: what the checkpoint has as copied is not there.
#[tokio::test(start_paused = true)]
async fn a_copy_does_not_go_on_in_a_target_that_lost_it() {
    assert_eq!(copied(false).await, 15 + 50);
}
