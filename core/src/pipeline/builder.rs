//! Builds a pipeline: setters never fail, `build` finds every error of configuration.

use std::sync::Arc;
use std::time::Duration;

use super::each_shard::{self, Stores};
use super::{LetterPolicy, OnRejected, Order, Pipeline, RetryLimits, Role, RunMode, SnapshotMode, Spec, Workers};
use crate::checkpointer::Checkpointer;
use crate::dead_letter::{Classes, DeadLetterStore};
use crate::error::{Error, Result};
use crate::mapping::preflight::LossyConsent;
use crate::runtime::{Budget, Transforms};
use crate::sink::Sink;
use crate::source::Source;
use crate::transform::Transform;

/// The byte budget unless set. An allocator that keeps freed memory in pieces (glibc's) makes the
/// process take about twice as much: 64 MiB were measured as 140. More is not faster.
const MEMORY: usize = 32 << 20;

/// Collects what a pipeline needs. Setters never fail; [`PipelineBuilder::build`] finds every mistake.
///
/// ```
/// use std::time::Duration;
///
/// use anabranch_core::dead_letter::MemoryDeadLetters;
/// use anabranch_core::memory::{MemorySink, MemorySource};
/// use anabranch_core::pipeline::{OnRejected, RetryLimits, SnapshotMode};
/// use anabranch_core::transform::{Filter, Rename};
/// use anabranch_core::{ByKey, Pipeline};
///
/// let pipeline = Pipeline::builder("orders-dr")
///     .source(MemorySource::new("shop"))
///     .sink(MemorySink::new().max_lanes(8))
///     .order(ByKey::new(8))
///     .snapshot(SnapshotMode::Never)
///     .memory(64 << 20)
///     .retry(RetryLimits { attempts: Some(20), ..RetryLimits::default() })
///     .stop_deadline(Duration::from_secs(10))
///     .dead_letters(std::sync::Arc::new(MemoryDeadLetters::new()))
///     .on_rejected(OnRejected::DeadLetter)
///     .transform(Filter::new().exclude("public.audit_*"))
///     .transform(Rename::new().schema("public", "shop"))
///     .build()?;
/// assert_eq!(pipeline.name(), "orders-dr");
///
/// let error = Pipeline::builder("orders-dr").source(MemorySource::new("shop")).build().unwrap_err();
/// assert_eq!(error.to_string(), "sink: is missing (call .sink(..))");
/// # Ok::<(), anabranch_core::Error>(())
/// ```
#[derive(Debug)]
#[must_use]
pub struct PipelineBuilder {
    name: String,
    source: Option<Arc<dyn Source>>,
    sink: Option<Arc<dyn Sink>>,
    order: Order,
    checkpointer: Option<Arc<dyn Checkpointer>>,
    dead_letters: Option<Arc<dyn DeadLetterStore>>,
    letters: LetterPolicy,
    mode: RunMode,
    consent: LossyConsent,
    create_tables: bool,
    snapshot: SnapshotMode,
    snapshot_workers: u32,
    memory: usize,
    retry: RetryLimits,
    stop_deadline: Duration,
    transforms: Vec<Box<dyn Transform>>,
    workers: Option<Workers>,
    each_shard: bool,
}

impl PipelineBuilder {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            source: None,
            sink: None,
            order: Order::Transaction,
            checkpointer: None,
            dead_letters: None,
            letters: LetterPolicy::default(),
            mode: RunMode::Regular,
            consent: LossyConsent::default(),
            create_tables: false,
            snapshot: SnapshotMode::Initial,
            snapshot_workers: 4,
            memory: MEMORY,
            retry: RetryLimits::default(),
            stop_deadline: Duration::from_secs(30),
            transforms: Vec::new(),
            workers: None,
            each_shard: false,
        }
    }

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
        self.letters.on_rejected = policy;
        self
    }

    /// How often a dead letter is tried again by itself; then it is severe. Default 500.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.letters.max_attempts = attempts;
        self
    }

    /// How long a dead letter waits between two tries. Default, and least: 10 s.
    pub fn retry_letters_after(mut self, wait: Duration) -> Self {
        self.letters.retry_after = wait;
        self
    }

    /// Which refusals may mend themselves. Default: see [`Classes`].
    pub fn classes(mut self, classes: Classes) -> Self {
        self.letters.classes = classes;
        self
    }

    /// Whether changes that transforms left out are kept in the dead-letter store, closed: those of a
    /// filter, and those of tables that a mapping does not have. Default: both. They are always counted.
    pub fn keep_left_out(mut self, filtered: bool, skipped: bool) -> Self {
        (self.letters.keep_filtered, self.letters.keep_skipped) = (filtered, skipped);
        self
    }

    /// What the run does. Default: [`RunMode::Regular`].
    pub fn mode(mut self, mode: RunMode) -> Self {
        self.mode = mode;
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

    /// Shares the partitions of the source with other processes that run the same pipeline, in the
    /// orders `key`, `window` and `arrival`. Default: one process runs all of it.
    pub fn workers(mut self, workers: Workers) -> Self {
        self.workers = Some(workers);
        self
    }

    /// Writes each shard by a pipeline of its own, of a source that keeps shards apart (window files) into a
    /// [`Sharded`](crate::Sharded) sink: `NAME/SHARD`, whose checkpoint and dead letters are in the shard unless
    /// set. A shard that fails halts alone and stays halted until a run takes it up again; [`RunMode`] tells which
    /// shards a run takes. Default: one pipeline writes all of them.
    pub fn each_shard(mut self, each: bool) -> Self {
        self.each_shard = each;
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
        let stores = Stores { checkpointer: self.checkpointer.clone(), dead_letters: self.dead_letters.clone() };
        let checkpointer = if self.each_shard {
            each_shard::check(source.as_ref(), sink.as_ref(), self.workers.is_some())?;
            each_shard::no_checkpoint()
        } else {
            each_shard::check_mode(self.mode)?;
            self.checkpointer.or_else(|| sink.checkpointer()).ok_or_else(|| {
                missing(
                    "checkpoint",
                    "this sink keeps no checkpoints: set one, of type \"sqlite\" or \"file\" for instance",
                )
            })?
        };
        check_lanes(&self.order, sink.as_ref())?;
        if self.memory < 1 << 20 {
            return Err(Error::config("pipeline.memory_mib", "must be at least 1"));
        }
        if self.snapshot_workers == 0 {
            return Err(Error::config("pipeline.snapshot_workers", "must be at least 1"));
        }
        let dead_letters = self.dead_letters.or_else(|| sink.dead_letters());
        if !self.each_shard && self.mode.replays() && dead_letters.is_none() {
            return Err(missing("dead_letters.type", "there is no store whose letters could be tried again"));
        }
        if !self.each_shard && self.letters.on_rejected != OnRejected::Stop && dead_letters.is_none() {
            return Err(missing("dead_letters.type", "on_rejected needs a store: \"sqlite\" or \"file\" for instance"));
        }
        if let Some(workers) = &self.workers {
            workers.check(&self.order)?;
        }
        let name: Arc<str> = self.name.into();
        let spec = Spec {
            letters_of: Arc::clone(&name),
            name,
            role: Role::Whole,
            workers: self.workers,
            budget: Budget::new(self.memory),
            source,
            sink,
            order: self.order,
            checkpointer,
            dead_letters,
            letters: self.letters,
            mode: self.mode,
            consent: self.consent,
            create_tables: self.create_tables,
            snapshot: self.snapshot,
            snapshot_workers: self.snapshot_workers,
            memory: self.memory,
            retry: self.retry,
            stop_deadline: self.stop_deadline,
        };
        let transforms = Transforms::new(self.transforms);
        let each_shard = match self.each_shard {
            true => Some(Arc::new(each_shard::writers(&spec, &transforms, &stores)?)),
            false => None,
        };
        Ok(Pipeline { spec: Arc::new(spec), transforms, each_shard })
    }
}

fn check_lanes(order: &Order, sink: &dyn Sink) -> Result<()> {
    let (most, name) = match sink.sharded() {
        Some(sharded) => (sharded.max_lanes_per_shard(), "each shard".to_owned()),
        None => (sink.info().max_lanes, sink.info().name.to_owned()),
    };
    if order.lanes() == 0 || order.lanes() > most {
        let range = if most == 1 { "1".to_owned() } else { format!("from 1 to {most}") };
        return Err(Error::config("pipeline.lanes", format!("must be {range} for {name}")));
    }
    if sink.sharded().is_some() && matches!(order, Order::Window { .. }) && order.lanes() > 1 {
        let problem = "must be 1: a shard's windows are applied one after another";
        return Err(Error::config("pipeline.lanes", problem).hint("set order = \"key\" for several lanes to a shard"));
    }
    Ok(())
}
