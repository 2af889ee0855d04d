//! Copies that are interrupted and go on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anabranch_core::checkpointer::MemoryCheckpointer;
use anabranch_core::memory::{MemorySink, MemorySource};
use anabranch_core::*;
use anabranch_testkit::faults::{Call, Fault, FaultySink, Schedule};
use async_trait::async_trait;

/// Its copies go on as they were: the stream brings all that changed since.
#[derive(Debug, Clone)]
struct GoingOn(MemorySource);

#[async_trait]
impl Source for GoingOn {
    fn info(&self) -> SourceInfo {
        self.0.info()
    }

    async fn prepare(&self, resume: Option<&Checkpoint>) -> Result<SourceIdentity> {
        self.0.prepare(resume).await
    }

    async fn check(&self, resume: Option<&Checkpoint>) -> Result<Vec<String>> {
        Source::check(&self.0, resume).await
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

    fn snapshotter(&self) -> Option<&dyn Snapshotter> {
        Some(self)
    }

    fn marker(&self) -> Option<&dyn Marker> {
        self.0.marker()
    }
}

#[async_trait]
impl Snapshotter for GoingOn {
    async fn begin(&self, tables: &[TableSchema]) -> Result<Box<dyn Snapshot>> {
        self.0.begin(tables).await
    }

    async fn resume(
        &self,
        tables: &[TableSchema],
        _: &BTreeMap<TableName, TableSnapshot>,
    ) -> Result<Option<Box<dyn Snapshot>>> {
        self.0.begin(tables).await.map(Some)
    }
}

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
