//! The source of a leased partition: that one, as if it had neither parents nor children.

use std::sync::Arc;

use async_trait::async_trait;

use crate::error::{Error, Result};
use crate::leases::Leases;
use crate::model::{Checkpoint, Partition, Position, SourceIdentity, TableSchema};
use crate::source::{ChangeReader, Next, Source, SourceInfo, StartFrom};

/// Shows one partition of a source that is prepared already.
#[derive(Debug)]
pub(super) struct PartitionSource {
    pub(super) inner: Arc<dyn Source>,
    pub(super) partition: Partition,
    pub(super) identity: SourceIdentity,
    pub(super) leases: Arc<dyn Leases>,
    /// The pipeline that all the workers share.
    pub(super) pipeline: Arc<str>,
}

#[async_trait]
impl Source for PartitionSource {
    fn info(&self) -> SourceInfo {
        self.inner.info()
    }

    async fn prepare(&self, resume: Option<&Checkpoint>) -> Result<SourceIdentity> {
        match resume.map(|c| &c.identity) {
            Some(other) if *other != self.identity => Err(Error::fatal(format!(
                "the lease of {} belongs to the source {other:?}, this is {:?}",
                self.partition.id, self.identity
            ))),
            _ => Ok(self.identity.clone()),
        }
    }

    async fn check(&self, resume: Option<&Checkpoint>) -> Result<Vec<String>> {
        self.prepare(resume).await.map(|_| Vec::new())
    }

    async fn tables(&self) -> Result<Vec<TableSchema>> {
        self.inner.tables().await
    }

    async fn partitions(&self) -> Result<Vec<Partition>> {
        // It has a lease that may be taken: its parents are finished.
        Ok(vec![Partition { parents: Vec::new(), ..self.partition.clone() }])
    }

    async fn open(&self, _: &Partition, from: &StartFrom) -> Result<Box<dyn ChangeReader>> {
        let inner = self.inner.open(&self.partition, from).await?;
        let (leases, pipeline) = (Arc::clone(&self.leases), Arc::clone(&self.pipeline));
        Ok(Box::new(PartitionReader { inner, leases, pipeline, children: None }))
    }

    fn describe(&self, position: &Position) -> String {
        self.inner.describe(position)
    }
}

/// Creates the leases of the children before anybody hears that the partition is closed.
struct PartitionReader {
    inner: Box<dyn ChangeReader>,
    leases: Arc<dyn Leases>,
    pipeline: Arc<str>,
    /// The partition is closed, and this is what goes on where it ended. Kept here while their
    /// leases are created, for that may be dropped and done again.
    children: Option<Vec<Partition>>,
}

#[async_trait]
impl ChangeReader for PartitionReader {
    async fn next(&mut self) -> Result<Next> {
        let children = match &self.children {
            Some(children) => children,
            None => match self.inner.next().await? {
                Next::Closed { children } => self.children.insert(children),
                other => return Ok(other),
            },
        };
        self.leases.create(&self.pipeline, children).await?;
        Ok(Next::Closed { children: Vec::new() })
    }

    async fn acknowledge(&mut self, through: Option<&Position>) -> Result<()> {
        self.inner.acknowledge(through).await
    }

    async fn close(self: Box<Self>) -> Result<()> {
        self.inner.close().await
    }
}
