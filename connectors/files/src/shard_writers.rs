//! One pipeline for each shard of a run: a shard that fails halts alone, and the others go on.

pub use anabranch_core::pipeline::RunMode;
pub use anabranch_core::{WriterState as ShardState, WriterStatus as ShardStatus};

use anabranch_core::{Pipeline, Result, pipeline};
use tokio_util::sync::CancellationToken;

use crate::source::WindowSource;

/// Writes each shard of a run by a pipeline of its own. A pipeline of a configuration file does the same
/// with `each_shard`; this is for a service that builds another pipeline for each shard.
///
/// ```no_run
/// use anabranch_core::{ByTransaction, Pipeline, memory::MemorySink, checkpointer::FileCheckpointer};
/// use anabranch_files::{RunMode, ShardWriters, WindowSource};
/// # async fn example(stop: tokio_util::sync::CancellationToken) -> anabranch_core::Result<()> {
/// let source = WindowSource::new("gs://bucket/orders").run("2026-11");
/// let ended = ShardWriters::new(source, |shard, source| {
///     Pipeline::builder(format!("orders/{shard}"))   // a name of its own for each
///         .source(source)
///         .sink(MemorySink::new())                   // the database of this shard
///         .checkpointer(FileCheckpointer::new("state"))
///         .order(ByTransaction::new())
///         .snapshot(anabranch_core::pipeline::SnapshotMode::Never)
///         .build()
/// })
/// .mode(RunMode::ResumeAll)
/// .run(stop)
/// .await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct ShardWriters(pipeline::ShardWriters);

impl ShardWriters {
    /// Of this run, each shard by the pipeline that `make` builds of its name and source.
    pub fn new(
        source: WindowSource,
        make: impl Fn(&str, WindowSource) -> Result<Pipeline> + Send + Sync + 'static,
    ) -> Self {
        let whole = source.clone();
        Self(pipeline::ShardWriters::new(source, move |shard| make(shard, whole.clone().shard(shard))))
    }

    /// Which shards are written. [`RunMode::Regular`] unless set.
    #[must_use]
    pub fn mode(self, mode: RunMode) -> Self {
        Self(self.0.mode(mode))
    }

    /// What is stored about each shard.
    ///
    /// # Errors
    /// If the run cannot be read.
    pub async fn status(&self) -> Result<Vec<ShardStatus>> {
        self.0.status().await
    }

    /// Marks a shard for [`RunMode::Reprocess`].
    ///
    /// # Errors
    /// [`Config`](anabranch_core::ErrorKind::Config) if the run has no such shard.
    pub async fn reprocess(&self, shard: &str) -> Result<()> {
        self.0.reprocess(shard).await
    }

    /// Writes until `stop` is cancelled or every shard was halted; then tells how each of them fares.
    /// An error of one shard halts that shard alone; one that another process has taken over is left to it.
    ///
    /// # Errors
    /// If the run itself cannot be read.
    pub async fn run(&self, stop: CancellationToken) -> Result<Vec<ShardStatus>> {
        self.0.run(stop).await
    }
}
