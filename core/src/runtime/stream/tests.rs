use async_trait::async_trait;

use super::*;
use crate::memory::{MemorySink, MemorySource};
use crate::model::{Checkpoint, Column, DataType, Partition, SourceIdentity, TableSchema, Value};
use crate::pipeline::{Pipeline, SnapshotMode};
use crate::source::{ChangeReader, Source, SourceInfo, SourceOrder, StartFrom};

/// A source whose transactions may be spread over partitions, for all that is known.
#[derive(Debug)]
struct Spread(MemorySource);

#[async_trait]
impl Source for Spread {
    fn info(&self) -> SourceInfo {
        SourceInfo { order: SourceOrder::CommitTimePerPartition, ..self.0.info() }
    }

    async fn prepare(&self, resume: Option<&Checkpoint>) -> Result<SourceIdentity> {
        self.0.prepare(resume).await
    }

    async fn check(&self, resume: Option<&Checkpoint>) -> Result<Vec<String>> {
        self.0.check(resume).await
    }

    async fn tables(&self) -> Result<Vec<TableSchema>> {
        Source::tables(&self.0).await
    }

    async fn partitions(&self) -> Result<Vec<Partition>> {
        self.0.partitions().await
    }

    async fn open(&self, partition: &Partition, from: &StartFrom) -> Result<Box<dyn ChangeReader>> {
        self.0.open(partition, from).await
    }
}

/// A transaction of ten times the budget waits on the disk until all of it was heard. When it is let go its
/// parts are ready all at once; in memory are only those that the lane has.
#[tokio::test(start_paused = true)]
async fn of_a_spilled_transaction_the_parts_at_the_lane_alone_are_in_memory() {
    const MEMORY: usize = 1 << 20;
    let table = TableSchema {
        name: TableName::new("public", "t"),
        columns: vec![Column::new("id", DataType::Int64)],
        key: vec![0],
    };
    let source = MemorySource::new("db").table(table.clone()).batch_changes(5_000);
    let rows = 100_000;
    let transaction = source.transaction();
    let all = (0..rows).fold(transaction, |t, id| t.insert(&table.name, vec![Value::Int(id)]));
    all.commit().unwrap();
    let (source, sink) = (Spread(source), MemorySink::new());
    let builder = Pipeline::builder("p").source(source).sink(sink.clone()).memory(MEMORY).create_tables(true);
    let pipeline = builder.snapshot(SnapshotMode::Never).build().unwrap();
    let shared = Arc::new(Shared::new(&pipeline.spec.name));
    let session = Session::open(&pipeline.spec, &pipeline.transforms, &shared).await.unwrap();
    let mut coordinator = Coordinator::start(session, &shared).await.unwrap();
    while coordinator.in_flight.is_empty() {
        let reading = coordinator.readings.recv().await.unwrap();
        coordinator.on_reading(reading).unwrap();
        coordinator.hand_out().unwrap();
    }
    let mut most = 0;
    while !coordinator.in_flight.is_empty() {
        most = most.max(coordinator.batches.loaded());
        let applied = coordinator.applied.recv().await.unwrap();
        coordinator.on_applied(applied).unwrap();
        coordinator.hand_out().unwrap();
    }
    assert_eq!(sink.rows(&table.name).len(), rows as usize);
    assert!(0 < most && most <= MEMORY / 2, "{most}");
    coordinator.end(true).await.unwrap();
}
