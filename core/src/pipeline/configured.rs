//! A pipeline that is configured: what can be done with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::time::{interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::each_letters::EachLetters;
use super::{
    Board, Drained, Monitor, PipelineBuilder, RunMode, RunningPipeline, ShardWriters, Shared, Spec, Status, stored,
    stored_status,
};
use crate::control::drain::{Drain, Durable};
use crate::control::verify::{TableVerified, Verified, VerifyOptions};
use crate::dead_letter::DeadLetterStore;
use crate::error::{Error, ErrorKind, Result};
use crate::mapping::preflight::{Preflight, preflight};
use crate::runtime::{Transforms, change_record, supervise, transformed, verify, write_each};

/// How often the source is asked how long it keeps what is needed: one small query.
const ASK_RETENTION: Duration = Duration::from_secs(5);

/// How often a drain looks at the stores.
const LOOK: Duration = Duration::from_millis(500);

/// A pipeline that is configured and not started.
///
/// ```
/// use anabranch_core::memory::{MemorySink, MemorySource};
/// use anabranch_core::*;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<()> {
/// let orders = TableSchema {
///     name: TableName::new("public", "orders"),
///     columns: vec![Column::new("id", DataType::Int64), Column::new("state", DataType::Text { max_chars: None })],
///     key: vec![0],
/// };
/// let (source, sink) = (MemorySource::new("shop").table(orders.clone()), MemorySink::new());
/// let mut running = Pipeline::builder("orders-dr")
///     .source(source.clone())
///     .sink(sink.clone())
///     .create_tables(true)
///     .build()?
///     .start()
///     .await?;
/// source.transaction().insert(&orders.name, ["1".into(), "new".into()]).commit()?;
/// assert!(running.drain(None).await?.drained);
/// assert_eq!(sink.rows(&orders.name), [["1".into(), "new".into()]]);
/// # running.stop().await }
/// ```
#[derive(Debug)]
pub struct Pipeline {
    pub(crate) spec: Arc<Spec>,
    pub(crate) transforms: Transforms,
    /// Where each shard has a pipeline of its own. The spec is that of the whole then.
    pub(super) each_shard: Option<Arc<ShardWriters>>,
}

impl Pipeline {
    /// A pipeline of this name. The name is the key of its progress: two pipelines must not share it.
    pub fn builder(name: impl Into<String>) -> PipelineBuilder {
        PipelineBuilder::new(name.into())
    }

    /// Takes the pipeline over, checks both databases and starts it on the current tokio runtime.
    /// A database that is down is waited for in the background; everything that waiting cannot mend
    /// is an error here.
    pub async fn start(self) -> Result<RunningPipeline> {
        let shared = Arc::new(Shared::new(&self.spec.name));
        let started = self.start_with(shared, CancellationToken::new()).await?;
        started.ok_or_else(|| Error::fatal("the pipeline was stopped while it started"))
    }

    /// Starts it as a run that tells this, until `stop` is cancelled. `None`: that was so before it had begun.
    pub(crate) async fn start_with(
        self,
        shared: Arc<Shared>,
        stop: CancellationToken,
    ) -> Result<Option<RunningPipeline>> {
        let (ready, prepared) = oneshot::channel();
        let mut board = None;
        let run: BoxFuture<'static, Result<()>> = match self.each_shard {
            Some(writers) => {
                let takes_all = writers.run_mode().takes_all();
                let shards = board.insert(Arc::new(Board::new(Some(Arc::clone(&shared)), takes_all)));
                write_each(writers, Arc::clone(shards), Arc::clone(&shared), stop.clone(), ready)
            }
            None => {
                let spec = Arc::clone(&self.spec);
                Box::pin(supervise(spec, self.transforms, Arc::clone(&shared), stop.clone(), ready))
            }
        };
        let task = tokio::spawn(run.instrument(tracing::info_span!("pipeline", name = %self.spec.name)));
        let running = RunningPipeline {
            retention: Some(tokio::spawn(watch_retention(Arc::clone(&self.spec), Arc::clone(&shared), stop.clone()))),
            spec: self.spec,
            shared,
            board,
            _stop_on_drop: stop.clone().drop_guard(),
            stop: stop.clone(),
            task: Some(task),
        };
        match prepared.await {
            Ok(Ok(())) => Ok(Some(running)),
            Ok(Err(e)) => Err(e),
            Err(_) if stop.is_cancelled() => Ok(None),
            Err(_) => Err(Error::fatal("the pipeline ended while it started")),
        }
    }

    /// Tells the status of the run that shares this.
    pub(crate) fn monitor(&self, shared: &Arc<Shared>) -> Monitor {
        Monitor { spec: Arc::clone(&self.spec), shared: Arc::clone(shared), board: None }
    }

    /// Refuses to begin as the pipeline of one shard of `whole` what has been run as one pipeline for all of
    /// them: its progress would be begun anew. A target that does not answer is found here too.
    pub(crate) async fn refuse_whole(&self, whole: &str) -> Result<()> {
        let known = match self.spec.checkpointer.load(whole).await {
            Ok(Some((_, checkpoint))) if !checkpoint.identity.0.is_empty() => true,
            Ok(_) => match self.spec.sink.progress() {
                Some(store) => !store.read(whole).await.map_err(at_first)?.is_empty(),
                None => false,
            },
            Err(e) => return Err(at_first(e)),
        };
        if !known {
            return Ok(());
        }
        let problem = format!("{whole} has been run as one pipeline for all shards");
        Err(Error::config("pipeline.name", problem)
            .hint("leave pipeline.each_shard out, or give this pipeline another name, which begins anew"))
    }

    /// Refuses to begin a shard anew that was written before: its database is another one, or was emptied.
    pub(crate) async fn refuse_blank(&self, shard: &str, reached: &str) -> Result<()> {
        let name = &self.spec.name;
        let known = match self.spec.checkpointer.load(name).await.map_err(at_first)? {
            Some(_) => true,
            None => match self.spec.sink.progress() {
                Some(store) => !store.read(name).await.map_err(at_first)?.is_empty(),
                None => true,
            },
        };
        if known {
            return Ok(());
        }
        let problem = format!("the shard {shard} was written up to {reached}, and its database has nothing of it");
        Err(Error::config("sink.shards", problem).hint(
            "give the shard the database that it had: it may have been taken for that of another one, or emptied; to begin \
             anew, give the pipeline another name",
        ))
    }

    /// Connects to both sides and compares them, without changing anything on either. What a start
    /// would run on the source is in [`Preflight::source_statements`].
    ///
    /// # Errors
    /// What would keep the pipeline from starting, with the statement that mends it, where there is
    /// one. What does not fit between source and target is in the result.
    pub async fn check(&self) -> Result<Preflight> {
        let spec = &self.spec;
        let stored = stored::load(spec).await?.map(|s| s.checkpoint);
        let resume = stored.as_ref().filter(|c| !c.identity.0.is_empty());
        let source_statements = spec.source.check(resume).await?;
        let tables = transformed(spec.source.tables().await?, &self.transforms)?;
        let targets: Vec<_> = tables.into_iter().map(|(_, target)| target).collect();
        let found = preflight(&targets, spec.sink.as_ref(), &spec.consent, spec.create_tables).await?;
        Ok(Preflight { source_statements, ..found })
    }

    /// Compares the rows of both sides, while a pipeline runs between them or not. See
    /// [`control::verify`](crate::control::verify). `tell` hears of each table when it is done.
    ///
    /// # Errors
    /// If a side cannot be read, or the target does not reach the source's present in
    /// [`VerifyOptions::wait`] while rows differ. A difference is no error: it is in the result.
    pub async fn verify(
        &self,
        options: &VerifyOptions,
        tell: &mut (dyn FnMut(&TableVerified) + Send),
    ) -> Result<Verified> {
        verify(&self.spec, &self.transforms, options, tell).await
    }

    /// What the stores tell of this pipeline, wherever it runs. `None` if it never ran.
    pub async fn stored_status(&self) -> Result<Option<Status>> {
        match &self.each_shard {
            Some(writers) => writers.stored_status().await,
            None => stored_status::from_stores(&self.spec).await,
        }
    }

    /// Marks a shard for a run of the mode [`RunMode::Reprocess`], where each shard has a pipeline of its own.
    /// The mark is taken away by the run that takes the shard and goes well.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) if no shard has one, or there is no such shard.
    pub async fn reprocess(&self, shard: &str) -> Result<()> {
        let Some(writers) = &self.each_shard else {
            return Err(Error::config("pipeline.each_shard", "is not set: no shard has a pipeline of its own")
                .hint("what a shard has missed is applied by itself: start the pipeline"));
        };
        writers.reprocess(shard).await
    }

    /// Marks the pipeline as paused, wherever it runs: the process that runs it, or each of its
    /// workers, finishes what is under way within a few seconds and waits. The mark survives
    /// restarts. False if it was paused already.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) if the pipeline never ran.
    pub async fn pause(&self) -> Result<bool> {
        self.set_paused(true).await
    }

    /// Takes the mark away: the process that waits goes on within a few seconds. False if it was not paused.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) if the pipeline never ran.
    pub async fn resume(&self) -> Result<bool> {
        self.set_paused(false).await
    }

    async fn set_paused(&self, paused: bool) -> Result<bool> {
        let changed = match &self.each_shard {
            Some(writers) => writers.set_paused(paused).await?,
            None => self.mark_paused(paused).await?,
        };
        changed.ok_or_else(|| self.never_ran())
    }

    /// Whether that changed anything; `None` if it never ran.
    pub(super) async fn mark_paused(&self, paused: bool) -> Result<Option<bool>> {
        let changed = AtomicBool::new(false);
        let known = change_record(self.spec.checkpointer.as_ref(), &self.spec.name, false, |checkpoint| {
            let change = checkpoint.paused != paused;
            checkpoint.paused = paused;
            changed.store(change, Ordering::Relaxed);
            Ok(change)
        });
        Ok(known.await?.then(|| changed.load(Ordering::Relaxed)))
    }

    /// Marks the present on the source and waits until everything committed before is durable in the
    /// target, as the stores tell it: another process runs the pipeline, or several do. The answer
    /// is `drained: false` at the deadline (`None`: there is none), and with dead letters open as
    /// soon as the marker is reached.
    ///
    /// # Errors
    /// If the source cannot mark its present, or the pipeline never ran. A store or source that is
    /// down is asked again until the deadline.
    pub async fn drain(&self, deadline: Option<Duration>) -> Result<Drained> {
        let source = self.spec.source.as_ref();
        let name = source.info().name;
        let marker = source
            .marker()
            .ok_or_else(|| Error::config("source.type", format!("the source {name} cannot mark its present")))?;
        let mark = match &self.each_shard {
            Some(writers) => {
                writers.stored_status().await?.ok_or_else(|| self.never_ran())?;
                writers.mark().await?
            }
            None => {
                let stored = stored::load(&self.spec).await?.ok_or_else(|| self.never_ran())?;
                // Positions of another source, or of another life of it, mean nothing here.
                stored::checked(&self.spec, Some(stored)).await?;
                marker.mark().await?
            }
        };
        let mut drain = Drain::new(mark, source.info().order);
        let reached = self.reach(&mut drain);
        match deadline {
            Some(deadline) => timeout(deadline, reached).await.unwrap_or(Ok(()))?,
            None => reached.await?,
        }
        Ok(drain.answer(|at| source.describe(at)))
    }

    async fn reach(&self, drain: &mut Drain) -> Result<()> {
        let mut tick = interval(LOOK);
        loop {
            tick.tick().await;
            match self.look().await {
                Ok((Some(now), _)) if drain.see(now.clone()) => return Ok(()),
                // Waiting does not mend it.
                Ok((_, Some(halted))) => return Err(halted),
                // What is not known is not drained.
                Ok(_) => {}
                Err(e) if matches!(e.kind(), ErrorKind::Transient | ErrorKind::Indeterminate) => {
                    tracing::warn!(pipeline = %self.spec.name, error = %e.report(), "cannot see how far it is");
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// What the stores tell is durable, and a shard's error that keeps it from becoming more.
    async fn look(&self) -> Result<(Option<Durable>, Option<Error>)> {
        if let Some(writers) = &self.each_shard {
            return writers.durable().await;
        }
        Ok((stored::durable(&self.spec).await?, None))
    }

    fn never_ran(&self) -> Error {
        Error::config("pipeline.name", format!("the pipeline {} has never run", self.spec.name))
    }

    /// The store of its dead letters, if it has one.
    pub fn dead_letters(&self) -> Option<Arc<dyn DeadLetterStore>> {
        let (Some(writers), Some(sharded)) = (&self.each_shard, self.spec.sink.sharded()) else {
            return self.spec.dead_letters.clone();
        };
        let of_shard = |shard: &Arc<str>| {
            let spec = writers.pipeline(shard).ok()?.spec;
            Some((shard.to_string(), Arc::clone(&spec.name), spec.dead_letters.clone()?))
        };
        let shards: Option<Vec<_>> = sharded.names().iter().map(of_shard).collect();
        Some(Arc::new(EachLetters { shards: shards? }))
    }

    /// What a run of it does.
    pub fn mode(&self) -> RunMode {
        self.spec.mode
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }
}

/// What is wrong before a shard was ever written is told at once: nobody waits for it.
fn at_first(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Transient | ErrorKind::Indeterminate => error.with_kind(ErrorKind::Config),
        _ => error,
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
