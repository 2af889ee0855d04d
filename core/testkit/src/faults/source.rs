//! A source that fails.

use std::sync::Arc;

use anabranch_core::{
    ByShard, ChangeReader, Checkpoint, Marker, Next, Partition, Position, Result, Retention, Snapshotter, Source,
    SourceIdentity, SourceInfo, StartFrom, TableSchema, Verifier,
};
use async_trait::async_trait;

use super::{Call, Fault, Schedule, injected};

/// Another source, with faults. Checks, snapshots, markers and retention have none.
#[derive(Debug)]
pub struct FaultySource {
    inner: Arc<dyn Source>,
    schedule: Schedule,
}

impl FaultySource {
    /// `inner`, with the faults of `schedule`.
    pub fn new(inner: Arc<dyn Source>, schedule: Schedule) -> Self {
        Self { inner, schedule }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Source for FaultySource {
    fn info(&self) -> SourceInfo {
        self.inner.info()
    }

    async fn prepare(&self, resume: Option<&Checkpoint>) -> Result<SourceIdentity> {
        self.schedule.run(Call::Prepare, self.inner.prepare(resume), SourceIdentity::default).await
    }

    async fn check(&self, resume: Option<&Checkpoint>) -> Result<Vec<String>> {
        self.inner.check(resume).await
    }

    async fn tables(&self) -> Result<Vec<TableSchema>> {
        self.inner.tables().await
    }

    async fn partitions(&self) -> Result<Vec<Partition>> {
        self.inner.partitions().await
    }

    fn ends(&self) -> bool {
        self.inner.ends()
    }

    async fn open(&self, partition: &Partition, from: &StartFrom) -> Result<Box<dyn ChangeReader>> {
        // An opening cannot be lied about: there is nothing to give.
        let inner = match self.schedule.next(Call::Open) {
            Some(Fault::Fail(kind) | Fault::DoneThenFail(kind)) => return Err(injected(Call::Open, kind)),
            _ => self.inner.open(partition, from).await?,
        };
        Ok(Box::new(FaultyReader { inner, schedule: self.schedule.clone() }))
    }

    fn snapshotter(&self) -> Option<&dyn Snapshotter> {
        self.inner.snapshotter()
    }

    fn marker(&self) -> Option<&dyn Marker> {
        self.inner.marker()
    }

    fn retention(&self) -> Option<&dyn Retention> {
        self.inner.retention()
    }

    fn verifier(&self) -> Option<&dyn Verifier> {
        self.inner.verifier()
    }

    fn by_shard(&self) -> Option<&dyn ByShard> {
        self.inner.by_shard()
    }

    fn describe(&self, position: &Position) -> String {
        self.inner.describe(position)
    }
}

struct FaultyReader {
    inner: Box<dyn ChangeReader>,
    schedule: Schedule,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ChangeReader for FaultyReader {
    async fn next(&mut self) -> Result<Next> {
        // Decided after the inner call, so that a dropped call neither counts nor loses a batch.
        let next = self.inner.next().await?;
        match self.schedule.next(Call::Next) {
            None => Ok(next),
            Some(Fault::Stop) => Ok(Next::Stopped),
            Some(Fault::Fail(kind) | Fault::DoneThenFail(kind)) => Err(injected(Call::Next, kind)),
            Some(Fault::Lie) => Err(injected(Call::Next, anabranch_core::ErrorKind::Transient)),
        }
    }

    async fn acknowledge(&mut self, through: Option<&Position>) -> Result<()> {
        self.schedule.run(Call::Acknowledge, self.inner.acknowledge(through), || ()).await
    }

    async fn close(self: Box<Self>) -> Result<()> {
        self.inner.close().await
    }
}
