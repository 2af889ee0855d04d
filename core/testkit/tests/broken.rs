//! The suites find what is broken.

mod support;

use std::sync::Arc;

use anabranch_core::memory::{MemorySink, MemorySource};
use anabranch_core::{
    ChangeReader, Claim, Error, ErrorKind, Lane, LaneProgress, LanePurpose, Next, Partition, Position, ProgressStore,
    Result, Sink, SinkInfo, SinkWriter, Source, SourceIdentity, SourceInfo, StartFrom, TableSchema, Unit, UnitKind,
    Written,
};
use anabranch_testkit::faults::{Call, Fault, FaultySink, FaultySource, Schedule};
use anabranch_testkit::{conformance, units};
use async_trait::async_trait;

use support::{SinkOf, SourceOf};

async fn sink_fails(wrap: impl Fn(MemorySink) -> Arc<dyn Sink> + Send + Sync + 'static) -> String {
    failure(async move { conformance::sink::run(&SinkOf::new(MemorySink::new(), wrap)).await }).await
}

async fn source_fails(wrap: impl Fn(MemorySource) -> Arc<dyn Source> + Send + Sync + 'static) -> String {
    failure(async move { conformance::source::run(&SourceOf::new(3, wrap)).await }).await
}

/// What a suite that has to fail says.
async fn failure(suite: impl Future<Output = ()> + 'static) -> String {
    let run = tokio::task::LocalSet::new();
    let ended = run.run_until(async { tokio::task::spawn_local(suite).await }).await;
    let panic = ended.expect_err("the suite finds it").into_panic();
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).expect("a message")
}

#[tokio::test]
async fn a_sink_that_confirms_too_early() {
    let message = sink_fails(|sink| Arc::new(FaultySink::new(Arc::new(sink), Schedule::new()).confirms_early())).await;
    assert!(message.contains("rows of"), "{message}");
}

#[tokio::test]
async fn a_sink_that_loses_one_unit() {
    for number in [1, 10, 30] {
        let schedule = Schedule::new().at(Call::Write, number, Fault::Lie);
        sink_fails(move |sink| Arc::new(FaultySink::new(Arc::new(sink), schedule.clone()))).await;
    }
}

#[tokio::test]
async fn a_sink_that_fails_or_loses_an_answer() {
    for fault in [Fault::Fail(ErrorKind::Transient), Fault::DoneThenFail(ErrorKind::Indeterminate)] {
        let schedule = Schedule::new().at(Call::Write, 5, fault);
        let message = sink_fails(move |sink| Arc::new(FaultySink::new(Arc::new(sink), schedule.clone()))).await;
        assert!(message.contains("injected into Write"), "{message}");
    }
}

/// Writes with the epoch that owns the pipeline, whatever its own is.
#[derive(Debug)]
struct NotFenced {
    sink: MemorySink,
    shows_parts: bool,
}

struct NotFencedWriter {
    sink: MemorySink,
    lane: Lane,
    shows_parts: bool,
    parts: Vec<Unit>,
}

#[async_trait]
impl Sink for NotFenced {
    fn info(&self) -> SinkInfo {
        self.sink.info()
    }

    async fn open(&self, lane: Lane) -> Result<Box<dyn SinkWriter>> {
        let (sink, shows_parts) = (self.sink.clone(), self.shows_parts);
        Ok(Box::new(NotFencedWriter { sink, lane, shows_parts, parts: Vec::new() }))
    }

    fn progress(&self) -> Option<&dyn ProgressStore> {
        self.sink.progress()
    }
}

#[async_trait]
impl SinkWriter for NotFencedWriter {
    async fn write(&mut self, unit: &Unit) -> Result<Written> {
        self.parts.push(unit.clone());
        if !unit.part.ends() && !self.shows_parts {
            return Ok(Written::accepted());
        }
        let mut unit = units::merge(&std::mem::take(&mut self.parts));
        unit.kind = if self.lane.purpose == LanePurpose::Snapshot { UnitKind::Snapshot } else { UnitKind::Stream };
        for epoch in (1..100).rev() {
            if let Ok(mut writer) = self.sink.open(Lane { epoch, ..self.lane.clone() }).await {
                return writer.write(&unit).await;
            }
        }
        Err(Error::fatal("nobody owns the pipeline"))
    }

    async fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_sink_that_shows_parts() {
    let message = sink_fails(|sink| Arc::new(NotFenced { sink, shows_parts: true })).await;
    assert!(message.contains("before the last part"), "{message}");
}

#[tokio::test]
async fn a_sink_that_does_not_fence() {
    let message = sink_fails(|sink| Arc::new(NotFenced { sink, shows_parts: false })).await;
    assert!(message.contains("the write of a fenced writer"), "{message}");
}

/// Keeps its progress beside the data, one unit behind.
#[derive(Debug)]
struct LateProgress(MemorySink);

#[async_trait]
impl Sink for LateProgress {
    fn info(&self) -> SinkInfo {
        self.0.info()
    }

    async fn open(&self, lane: Lane) -> Result<Box<dyn SinkWriter>> {
        self.0.open(lane).await
    }

    fn progress(&self) -> Option<&dyn ProgressStore> {
        Some(self)
    }
}

#[async_trait]
impl ProgressStore for LateProgress {
    async fn take_over(&self, claim: &Claim) -> Result<Vec<LaneProgress>> {
        ProgressStore::take_over(&self.0, claim).await
    }

    async fn read(&self, pipeline: &str) -> Result<Vec<LaneProgress>> {
        let mut lanes = ProgressStore::read(&self.0, pipeline).await?;
        lanes.iter_mut().for_each(|lane| lane.partitions.clear());
        Ok(lanes)
    }
}

#[tokio::test]
async fn a_sink_that_forgets_its_progress() {
    let message = sink_fails(|sink| Arc::new(LateProgress(sink))).await;
    assert!(message.contains("stored progress"), "{message}");
}

/// A source whose readers have a flaw.
#[derive(Debug)]
struct Flawed(MemorySource, Flaw);

#[derive(Debug, Clone, Copy)]
enum Flaw {
    /// Awaits something between taking a batch and giving it.
    NotCancelSafe,
    /// Resumes at the beginning.
    StartsAgain,
    /// Gives the changes that a snapshot has.
    ForgetsSnapshots,
}

struct FlawedReader(Box<dyn ChangeReader>, Flaw);

#[async_trait]
impl Source for Flawed {
    fn info(&self) -> SourceInfo {
        self.0.info()
    }

    async fn prepare(&self, resume: Option<&anabranch_core::Checkpoint>) -> Result<SourceIdentity> {
        self.0.prepare(resume).await
    }

    async fn check(&self, resume: Option<&anabranch_core::Checkpoint>) -> Result<Vec<String>> {
        self.0.check(resume).await
    }

    async fn tables(&self) -> Result<Vec<TableSchema>> {
        Source::tables(&self.0).await
    }

    async fn partitions(&self) -> Result<Vec<Partition>> {
        self.0.partitions().await
    }

    async fn open(&self, partition: &Partition, from: &StartFrom) -> Result<Box<dyn ChangeReader>> {
        let mut from = from.clone();
        match self.1 {
            Flaw::StartsAgain if self.0.acknowledged() == 0 => from.position = None,
            Flaw::StartsAgain => from.position = Some(acknowledged(&self.0)),
            Flaw::ForgetsSnapshots => from.snapshots.clear(),
            Flaw::NotCancelSafe => {}
        }
        Ok(Box::new(FlawedReader(self.0.open(partition, &from).await?, self.1)))
    }

    fn snapshotter(&self) -> Option<&dyn anabranch_core::Snapshotter> {
        self.0.snapshotter()
    }
}

/// Where the source in memory would let a reader start.
fn acknowledged(source: &MemorySource) -> Position {
    let number = source.acknowledged();
    Position::new(anabranch_core::Rank::of_end(&number.to_be_bytes()), number.to_string())
}

#[async_trait]
impl ChangeReader for FlawedReader {
    async fn next(&mut self) -> Result<Next> {
        let next = self.0.next().await;
        if matches!(self.1, Flaw::NotCancelSafe) {
            tokio::task::yield_now().await;
        }
        next
    }

    async fn acknowledge(&mut self, through: Option<&Position>) -> Result<()> {
        self.0.acknowledge(through).await
    }

    async fn close(self: Box<Self>) -> Result<()> {
        self.0.close().await
    }
}

#[tokio::test]
async fn a_reader_that_loses_a_batch_when_it_is_dropped() {
    let message = source_fails(|source| Arc::new(Flawed(source, Flaw::NotCancelSafe))).await;
    assert!(message.contains("transaction"), "{message}");
}

#[tokio::test]
async fn a_reader_that_does_not_resume() {
    let message = source_fails(|source| Arc::new(Flawed(source, Flaw::StartsAgain))).await;
    assert!(message.contains("resumed"), "{message}");
}

#[tokio::test]
async fn a_reader_that_gives_what_was_copied() {
    let message = source_fails(|source| Arc::new(Flawed(source, Flaw::ForgetsSnapshots))).await;
    assert!(message.contains("transactions (left: read)"), "{message}");
}

#[tokio::test]
async fn a_reader_that_stops() {
    let schedule = Schedule::new().at(Call::Next, 9, Fault::Stop);
    let message = source_fails(move |source| Arc::new(FaultySource::new(Arc::new(source), schedule.clone()))).await;
    assert!(message.contains("Stopped"), "{message}");
}
