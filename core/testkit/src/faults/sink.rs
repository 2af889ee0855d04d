//! A sink that fails.

use std::fmt;
use std::sync::Arc;

use anabranch_core::{
    ChangeRef, Checkpointer, Claim, DeadLetterStore, Error, Lane, LaneProgress, ProgressStore, Relay, Result, Sharded,
    Sink, SinkInfo, SinkWriter, TargetSchema, Unit, Verifier, Written,
};
use async_trait::async_trait;

use super::{Call, Schedule};

/// Another sink, with faults.
#[derive(Debug)]
pub struct FaultySink {
    inner: Arc<dyn Sink>,
    schedule: Schedule,
    early: bool,
    refuses: Option<Refuses>,
}

#[derive(Clone)]
struct Refuses(Arc<dyn Fn(ChangeRef<'_>) -> bool + Send + Sync>);

impl fmt::Debug for Refuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Refuses")
    }
}

impl FaultySink {
    /// `inner`, with the faults of `schedule`.
    pub fn new(inner: Arc<dyn Sink>, schedule: Schedule) -> Self {
        Self { inner, schedule, early: false, refuses: None }
    }

    /// Refuses every unit with a change of which `refuses` says so, as a constraint of the target does.
    #[must_use]
    pub fn refuses(mut self, refuses: impl Fn(ChangeRef<'_>) -> bool + Send + Sync + 'static) -> Self {
        self.refuses = Some(Refuses(Arc::new(refuses)));
        self
    }

    /// Calls a unit durable while it still holds it, and writes it with the next one: a sink that
    /// confirms too early. What it holds when it is dropped is lost. A checker has to find it.
    #[must_use]
    pub fn confirms_early(mut self) -> Self {
        self.early = true;
        self
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Sink for FaultySink {
    fn info(&self) -> SinkInfo {
        self.inner.info()
    }

    async fn open(&self, lane: Lane) -> Result<Box<dyn SinkWriter>> {
        // An opening cannot be lied about: there is nothing to give.
        let writer = match self.schedule.next(Call::Open) {
            Some(super::Fault::Fail(kind) | super::Fault::DoneThenFail(kind)) => {
                return Err(super::injected(Call::Open, kind));
            }
            _ => self.inner.open(lane).await?,
        };
        let (schedule, refuses) = (self.schedule.clone(), self.refuses.clone());
        Ok(Box::new(FaultyWriter { inner: writer, schedule, early: self.early, refuses, held: None }))
    }

    fn progress(&self) -> Option<&dyn ProgressStore> {
        self.inner.progress().is_some().then_some(self)
    }

    fn checkpointer(&self) -> Option<Arc<dyn Checkpointer>> {
        self.inner.checkpointer()
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetterStore>> {
        self.inner.dead_letters()
    }

    fn target(&self) -> Option<&dyn TargetSchema> {
        self.inner.target()
    }

    fn verifier(&self) -> Option<&dyn Verifier> {
        self.inner.verifier()
    }

    fn sharded(&self) -> Option<&Sharded> {
        self.inner.sharded()
    }

    fn relay(&self) -> Option<&dyn Relay> {
        self.inner.relay()
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ProgressStore for FaultySink {
    async fn take_over(&self, claim: &Claim) -> Result<Vec<LaneProgress>> {
        let Some(inner) = self.inner.progress() else { return Ok(Vec::new()) };
        self.schedule.run(Call::TakeOver, inner.take_over(claim), Vec::new).await
    }

    async fn read(&self, pipeline: &str) -> Result<Vec<LaneProgress>> {
        match self.inner.progress() {
            Some(inner) => inner.read(pipeline).await,
            None => Ok(Vec::new()),
        }
    }
}

struct FaultyWriter {
    inner: Box<dyn SinkWriter>,
    schedule: Schedule,
    early: bool,
    refuses: Option<Refuses>,
    held: Option<Unit>,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl SinkWriter for FaultyWriter {
    async fn write(&mut self, unit: &Unit) -> Result<Written> {
        if let Some(Refuses(refuses)) = &self.refuses
            && unit.changes().any(|change| refuses(change))
        {
            return Err(Error::rejected("a check of the target fails"));
        }
        if self.early {
            if let Some(held) = self.held.replace(unit.clone()) {
                let _ = self.inner.write(&held).await?;
            }
            return Ok(Written::durable());
        }
        self.schedule.run(Call::Write, self.inner.write(unit), Written::durable).await
    }

    async fn flush(&mut self) -> Result<()> {
        self.schedule.run(Call::Flush, self.inner.flush(), || ()).await
    }

    async fn close(self: Box<Self>) -> Result<()> {
        self.inner.close().await
    }
}
