//! Builds a pipeline: setters never fail, `build` finds every error of configuration.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{OnRejected, Order, RetryLimits, RunningPipeline, Shared, SnapshotMode, Spec, Status, status};
use crate::checkpointer::Checkpointer;
use crate::dead_letter::DeadLetterStore;
use crate::error::{Error, Result};
use crate::mapping::preflight::{LossyConsent, Preflight, preflight};
use crate::runtime::{Transforms, merge_progress, supervise, transformed};
use crate::sink::Sink;
use crate::source::Source;
use crate::transform::Transform;

/// How often the source is asked how long it keeps what is needed.
const ASK_RETENTION: Duration = Duration::from_secs(10);

/// The byte budget unless set. An allocator that keeps freed memory in pieces (glibc's) makes the
/// process take about twice as much: 64 MiB were measured as 140. More is not faster.
const MEMORY: usize = 32 << 20;

/// A pipeline that is configured and not started.
#[derive(Debug)]
pub struct Pipeline {
    spec: Arc<Spec>,
    transforms: Transforms,
}

impl Pipeline {
    /// A pipeline of this name. The name is the key of its progress: two pipelines must not share it.
    pub fn builder(name: impl Into<String>) -> PipelineBuilder {
        PipelineBuilder {
            name: name.into(),
            source: None,
            sink: None,
            order: Order::Transaction,
            checkpointer: None,
            dead_letters: None,
            on_rejected: OnRejected::Stop,
            max_attempts: 10,
            consent: LossyConsent::default(),
            create_tables: false,
            snapshot: SnapshotMode::Initial,
            snapshot_workers: 4,
            memory: MEMORY,
            retry: RetryLimits::default(),
            stop_deadline: Duration::from_secs(30),
            transforms: Vec::new(),
        }
    }

    /// Takes the pipeline over, checks both databases and starts it on the current tokio runtime.
    /// A database that is down is waited for in the background; everything that waiting cannot mend
    /// is an error here.
    pub async fn start(self) -> Result<RunningPipeline> {
        let shared = Arc::new(Shared::new());
        let stop = CancellationToken::new();
        let (ready, prepared) = oneshot::channel();
        let run = supervise(Arc::clone(&self.spec), self.transforms, Arc::clone(&shared), stop.clone(), ready);
        let task = tokio::spawn(run);
        let running = RunningPipeline {
            retention: Some(tokio::spawn(watch_retention(Arc::clone(&self.spec), Arc::clone(&shared), stop.clone()))),
            spec: self.spec,
            shared,
            _stop_on_drop: stop.clone().drop_guard(),
            stop,
            task: Some(task),
        };
        match prepared.await {
            Ok(Ok(())) => Ok(running),
            Ok(Err(e)) => Err(e),
            Err(_) => Err(Error::fatal("the pipeline ended while it started")),
        }
    }

    /// Connects to both sides and compares them, without changing anything on either. What a start
    /// would run on the source is in [`Preflight::source_statements`].
    ///
    /// # Errors
    /// What would keep the pipeline from starting, with the statement that mends it, where there is
    /// one. What does not fit between source and target is in the result.
    pub async fn check(&self) -> Result<Preflight> {
        let spec = &self.spec;
        let mut stored = spec.checkpointer.load(&spec.name).await?.map(|(_, checkpoint)| checkpoint);
        if let (Some(checkpoint), Some(store)) = (&mut stored, spec.sink.progress()) {
            merge_progress(checkpoint, &store.read(&spec.name).await?, spec.lanes(), !spec.source.lists_finished());
        }
        let resume = stored.as_ref().filter(|c| !c.identity.0.is_empty());
        let source_statements = spec.source.check(resume).await?;
        let tables = transformed(spec.source.tables().await?, &self.transforms)?;
        let targets: Vec<_> = tables.into_iter().map(|(_, target)| target).collect();
        let found = preflight(&targets, spec.sink.as_ref(), &spec.consent, spec.create_tables).await?;
        Ok(Preflight { source_statements, ..found })
    }

    /// What the stores tell of this pipeline, wherever it runs. `None` if it never ran.
    pub async fn stored_status(&self) -> Result<Option<Status>> {
        let s = &self.spec;
        status::from_stores(
            &s.name,
            s.source.as_ref(),
            s.sink.as_ref(),
            s.checkpointer.as_ref(),
            s.dead_letters.as_deref(),
        )
        .await
    }

    /// The store of its dead letters, if it has one.
    pub fn dead_letters(&self) -> Option<Arc<dyn DeadLetterStore>> {
        self.spec.dead_letters.clone()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }
}

async fn watch_retention(spec: Arc<Spec>, shared: Arc<Shared>, stop: CancellationToken) {
    let Some(retention) = spec.source.retention() else { return };
    let mut tick = tokio::time::interval(ASK_RETENTION);
    loop {
        tokio::select! {
            biased;
            // 1. Stopping ends it at once.
            () = stop.cancelled() => return,
            // 2. A source that cannot answer now is asked again: status shows the last answer.
            _ = tick.tick() => if let Ok(left) = retention.left().await {
                shared.retention(left);
            },
        }
    }
}

/// Collects what a pipeline needs.
#[derive(Debug)]
#[must_use]
pub struct PipelineBuilder {
    name: String,
    source: Option<Arc<dyn Source>>,
    sink: Option<Arc<dyn Sink>>,
    order: Order,
    checkpointer: Option<Arc<dyn Checkpointer>>,
    dead_letters: Option<Arc<dyn DeadLetterStore>>,
    on_rejected: OnRejected,
    max_attempts: u32,
    consent: LossyConsent,
    create_tables: bool,
    snapshot: SnapshotMode,
    snapshot_workers: u32,
    memory: usize,
    retry: RetryLimits,
    stop_deadline: Duration,
    transforms: Vec<Box<dyn Transform>>,
}

impl PipelineBuilder {
    /// Where changes come from. Required.
    pub fn source(self, source: impl Source) -> Self {
        self.source_arc(Arc::new(source))
    }

    /// As [`PipelineBuilder::source`], for one that is shared or chosen at run time.
    pub fn source_arc(mut self, source: Arc<dyn Source>) -> Self {
        self.source = Some(source);
        self
    }

    /// Where changes go. Required.
    pub fn sink(self, sink: impl Sink) -> Self {
        self.sink_arc(Arc::new(sink))
    }

    /// As [`PipelineBuilder::sink`], for one that is shared or chosen at run time.
    pub fn sink_arc(mut self, sink: Arc<dyn Sink>) -> Self {
        self.sink = Some(sink);
        self
    }

    /// How changes are ordered. Default: [`ByTransaction`](super::ByTransaction).
    pub fn order(mut self, order: impl Into<Order>) -> Self {
        self.order = order.into();
        self
    }

    /// Where the checkpoint is kept. Default: in the sink, where it can.
    pub fn checkpointer(self, checkpointer: impl Checkpointer) -> Self {
        self.checkpointer_arc(Arc::new(checkpointer))
    }

    /// As [`PipelineBuilder::checkpointer`], for one that is shared or chosen at run time.
    pub fn checkpointer_arc(mut self, checkpointer: Arc<dyn Checkpointer>) -> Self {
        self.checkpointer = Some(checkpointer);
        self
    }

    /// Where dead letters are kept. Default: in the sink, where it can.
    pub fn dead_letters(mut self, store: Arc<dyn DeadLetterStore>) -> Self {
        self.dead_letters = Some(store);
        self
    }

    /// What happens to a row that the target refuses. Default: [`OnRejected::Stop`].
    pub fn on_rejected(mut self, policy: OnRejected) -> Self {
        self.on_rejected = policy;
        self
    }

    /// How often a dead letter is tried again by itself. Default 10.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts;
        self
    }

    /// Which lossy type pairs are accepted. Default: none.
    pub fn accept_lossy(mut self, consent: LossyConsent) -> Self {
        self.consent = consent;
        self
    }

    /// Creates missing target tables from the source's schema. Default: no.
    pub fn create_tables(mut self, create: bool) -> Self {
        self.create_tables = create;
        self
    }

    /// Whether tables are copied first. Default: [`SnapshotMode::Initial`].
    pub fn snapshot(mut self, mode: SnapshotMode) -> Self {
        self.snapshot = mode;
        self
    }

    /// How many chunks are copied at a time. Default 4.
    pub fn snapshot_workers(mut self, workers: u32) -> Self {
        self.snapshot_workers = workers;
        self
    }

    /// The byte budget of changes in memory. Default 32 MiB.
    pub fn memory(mut self, bytes: usize) -> Self {
        self.memory = bytes;
        self
    }

    /// How failures are retried. Default: without end, at most a minute apart.
    pub fn retry(mut self, limits: RetryLimits) -> Self {
        self.retry = limits;
        self
    }

    /// How long stopping may take before what is under way is dropped. Default 30 s.
    pub fn stop_deadline(mut self, deadline: Duration) -> Self {
        self.stop_deadline = deadline;
        self
    }

    /// Adds a transform; they run in the order in which they were added.
    pub fn transform(self, transform: impl Transform + 'static) -> Self {
        self.transform_boxed(Box::new(transform))
    }

    /// As [`PipelineBuilder::transform`], for one that is chosen at run time.
    pub fn transform_boxed(mut self, transform: Box<dyn Transform>) -> Self {
        self.transforms.push(transform);
        self
    }

    /// The pipeline.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config), naming what is missing or wrong. No connection is made.
    pub fn build(self) -> Result<Pipeline> {
        let missing = |key: &str, fix: &'static str| Error::config(key, "is missing").hint(fix);
        if self.name.is_empty() || self.name.len() > 100 {
            return Err(Error::config("pipeline.name", "must have 1 to 100 characters"));
        }
        let source = self.source.ok_or_else(|| missing("source", "call .source(..)"))?;
        let sink = self.sink.ok_or_else(|| missing("sink", "call .sink(..)"))?;
        let checkpointer = self.checkpointer.or_else(|| sink.checkpointer()).ok_or_else(|| {
            missing(
                "checkpoint",
                "this sink keeps no checkpoints: set one, of type \"sqlite\" or \"file\" for instance",
            )
        })?;
        let most = sink.info().max_lanes;
        if self.order.lanes() == 0 || self.order.lanes() > most {
            let range = if most == 1 { "1".to_owned() } else { format!("from 1 to {most}") };
            return Err(Error::config("pipeline.lanes", format!("must be {range} for {}", sink.info().name)));
        }
        if self.memory < 1 << 20 {
            return Err(Error::config("pipeline.memory_mib", "must be at least 1"));
        }
        if self.snapshot_workers == 0 {
            return Err(Error::config("pipeline.snapshot_workers", "must be at least 1"));
        }
        let dead_letters = self.dead_letters.or_else(|| sink.dead_letters());
        if self.on_rejected != OnRejected::Stop && dead_letters.is_none() {
            return Err(missing("dead_letters.type", "on_rejected needs a store: \"sqlite\" or \"file\" for instance"));
        }
        let spec = Spec {
            name: self.name.into(),
            source,
            sink,
            order: self.order,
            checkpointer,
            dead_letters,
            on_rejected: self.on_rejected,
            max_attempts: self.max_attempts,
            consent: self.consent,
            create_tables: self.create_tables,
            snapshot: self.snapshot,
            snapshot_workers: self.snapshot_workers,
            memory: self.memory,
            retry: self.retry,
            stop_deadline: self.stop_deadline,
        };
        Ok(Pipeline { spec: Arc::new(spec), transforms: Transforms::new(self.transforms) })
    }
}
