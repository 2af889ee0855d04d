//! A source whose copies go on as they were.

use std::collections::BTreeMap;

use anabranch_core::memory::MemorySource;
use anabranch_core::*;
use async_trait::async_trait;

/// Its copies go on as they were: the stream brings all that changed since.
#[derive(Debug, Clone)]
pub(crate) struct GoingOn(pub(crate) MemorySource);

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
