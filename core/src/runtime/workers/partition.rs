//! The source of a leased partition: that one, as if it had neither parents nor children.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::OnceCell;

use super::control;
use super::held::Held;
use crate::error::{Error, Result};
use crate::leases::Leases;
use crate::model::{Checkpoint, Partition, Position, SourceIdentity, TableSchema};
use crate::pipeline::{Spec, stored};
use crate::source::{ChangeReader, Next, Source, SourceInfo, StartFrom};

/// Prepares the source for all leases of this process: once, when the first of them is worked on, for
/// a source that only one process can read (a slot) is not free before.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) spec: Arc<Spec>,
    pub(super) leases: Arc<dyn Leases>,
    /// The pipeline's own record.
    pub(super) control: Checkpoint,
    pub(super) done: OnceCell<()>,
}

impl Prepared {
    async fn prepare(&self) -> Result<()> {
        let name = &self.spec.name;
        let listed = self.leases.list(name).await?;
        let now = stored::of_leases(self.control.clone(), &listed, self.leases.counted(name).await?);
        let identity = self.spec.source.prepare(Some(&now.checkpoint)).await?;
        if identity != self.control.identity {
            return Err(Error::fatal(format!(
                "this is the source {identity:?}, and the pipeline has been set up with {:?}",
                self.control.identity
            )));
        }
        control::no_new_tables(&self.spec, &self.control.snapshot).await
    }
}

/// Shows one partition of a source.
#[derive(Debug)]
pub(super) struct PartitionSource {
    pub(super) inner: Arc<dyn Source>,
    pub(super) partition: Partition,
    pub(super) prepared: Arc<Prepared>,
    pub(super) leases: Arc<dyn Leases>,
    /// The pipeline that all the workers share.
    pub(super) pipeline: Arc<str>,
    pub(super) held: Arc<Held>,
}

#[async_trait]
impl Source for PartitionSource {
    fn info(&self) -> SourceInfo {
        self.inner.info()
    }

    async fn prepare(&self, resume: Option<&Checkpoint>) -> Result<SourceIdentity> {
        // Until the first succeeds the others wait: preparing never overlaps with anything.
        self.prepared.done.get_or_try_init(|| self.prepared.prepare()).await?;
        let identity = &self.prepared.control.identity;
        match resume.map(|c| &c.identity) {
            Some(other) if other != identity => Err(Error::fatal(format!(
                "the lease of {} belongs to the source {other:?}, this is {identity:?}",
                self.partition.id
            ))),
            _ => Ok(identity.clone()),
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
        let (leases, pipeline, held) = (Arc::clone(&self.leases), Arc::clone(&self.pipeline), Arc::clone(&self.held));
        Ok(Box::new(PartitionReader { inner, leases, pipeline, held, children: None }))
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
    held: Arc<Held>,
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
        // A worker that was frozen since it read the end: others may have read the children meanwhile, and
        // have forgotten their leases. They would be read from their beginnings again.
        self.held.confirm().await?;
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

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::checkpointer::MemoryCheckpointer;
    use crate::error::ErrorKind;
    use crate::leases::{CheckpointLeases, Lease};
    use crate::model::PartitionId;

    /// A partition that ended, with one child.
    struct Ended;

    #[async_trait]
    impl ChangeReader for Ended {
        async fn next(&mut self) -> Result<Next> {
            Ok(Next::Closed { children: vec![child()] })
        }

        async fn acknowledge(&mut self, _: Option<&Position>) -> Result<()> {
            Ok(())
        }

        async fn close(self: Box<Self>) -> Result<()> {
            Ok(())
        }
    }

    fn child() -> Partition {
        Partition { id: PartitionId::new("child"), parents: vec![PartitionId::new("parent")], start: None }
    }

    async fn parent(leases: &dyn Leases) -> Option<Lease> {
        let listed = leases.list("p").await.unwrap();
        listed.into_iter().find(|l| l.id().as_str() == "parent")
    }

    /// The children were read to their ends by another worker, and their leases forgotten, when the one that
    /// had read the end of the parent first wakes up.
    #[tokio::test]
    async fn a_worker_that_lost_the_lease_creates_no_leases_of_children() {
        let leases: Arc<dyn Leases> = Arc::new(CheckpointLeases::new(Arc::new(MemoryCheckpointer::new())));
        leases.create("p", &[Partition::root(PartitionId::new("parent"))]).await.unwrap();
        let seen = parent(&*leases).await.unwrap();
        let lease = leases.take("p", &seen, "frozen").await.unwrap().unwrap();
        let held = Arc::new(Held::new(Arc::clone(&leases), "p".into(), lease, Instant::now()));
        let reader = |held: &Arc<Held>| PartitionReader {
            inner: Box::new(Ended),
            leases: Arc::clone(&leases),
            pipeline: "p".into(),
            held: Arc::clone(held),
            children: None,
        };

        let seen = parent(&*leases).await.unwrap();
        let other = leases.take("p", &seen, "other").await.unwrap().unwrap();
        let error = reader(&held).next().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
        assert_eq!(leases.list("p").await.unwrap().len(), 1, "no lease of the child");

        let held = Arc::new(Held::new(Arc::clone(&leases), "p".into(), other, Instant::now()));
        assert!(matches!(reader(&held).next().await.unwrap(), Next::Closed { .. }));
        assert_eq!(leases.list("p").await.unwrap().len(), 2, "whoever has the lease creates it");
    }
}
