//! A pipeline for each shard of a source that keeps them apart.

use std::fmt;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{Board, Pipeline, RunMode};
use crate::by_shard::{ByShard, WriterState, WriterStatus};
use crate::error::{Error, Result};
use crate::runtime::write_shards;
use crate::source::Source;

type Make = dyn Fn(&str) -> Result<Pipeline> + Send + Sync;

/// Writes each shard of a source by a pipeline of its own: one that fails halts alone, and the others go on.
///
/// A pipeline with [`each_shard`](crate::PipelineBuilder::each_shard) is built of this; a service that
/// wants another pipeline for each shard builds them itself. `anabranch_files::ShardWriters` has an example.
#[derive(Clone)]
pub struct ShardWriters {
    source: Arc<dyn Source>,
    /// Keeps several writers of one source apart; empty where there is but one.
    name: Arc<str>,
    mode: RunMode,
    make: Arc<Make>,
}

impl ShardWriters {
    /// Of this source, each shard by the pipeline that `make` builds for its name. [`RunMode::Regular`] unless set.
    pub fn new(source: impl Source, make: impl Fn(&str) -> Result<Pipeline> + Send + Sync + 'static) -> Self {
        Self::of(Arc::new(source), Arc::from(""), RunMode::Regular, make)
    }

    pub(super) fn of(
        source: Arc<dyn Source>,
        name: Arc<str>,
        mode: RunMode,
        make: impl Fn(&str) -> Result<Pipeline> + Send + Sync + 'static,
    ) -> Self {
        Self { source, name, mode, make: Arc::new(make) }
    }

    /// Which shards are written.
    #[must_use]
    pub fn mode(self, mode: RunMode) -> Self {
        Self { mode, ..self }
    }

    /// Writes until `stop` is cancelled or every shard was halted; then tells how each of them fares.
    /// An error of one shard halts that shard alone. One that another process has taken over is left to it.
    ///
    /// # Errors
    /// If the source does not keep shards apart, or cannot be read.
    pub async fn run(&self, stop: CancellationToken) -> Result<Vec<WriterStatus>> {
        let stop = stop.child_token();
        let board = Arc::new(Board::new(None, self.mode.takes_all()));
        let result = write_shards(self, &board, &stop, &mut None).await;
        // Whatever ended it: nothing that was started runs on.
        stop.cancel();
        result.map(|()| board.writers().into_values().map(|w| w.record).collect())
    }

    /// What is stored about each shard.
    ///
    /// # Errors
    /// If the source cannot be read.
    pub async fn status(&self) -> Result<Vec<WriterStatus>> {
        let by = self.by_shard()?;
        let mut all = Vec::new();
        for shard in by.shards().await?.names {
            all.extend(by.load(&self.name, &shard).await?);
        }
        Ok(all)
    }

    /// Marks a shard for [`RunMode::Reprocess`].
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) if there is no such shard.
    pub async fn reprocess(&self, shard: &str) -> Result<()> {
        let by = self.by_shard()?;
        let names = by.shards().await?.names;
        if !names.iter().any(|name| name == shard) {
            let known = if names.is_empty() { "there is none yet".to_owned() } else { names.join(", ") };
            return Err(Error::config("SHARD", format!("the source has no shard \"{shard}\""))
                .hint(format!("its shards: {known}")));
        }
        let before = by.load(&self.name, shard).await?;
        let (reached, error) = before.map_or((None, None), |b| (b.reached, b.error));
        let marked = WriterStatus { state: WriterState::Reprocess, error, ..WriterStatus::now(shard, reached, None) };
        by.save(&self.name, &marked).await
    }

    pub(crate) fn by_shard(&self) -> Result<&dyn ByShard> {
        let problem = || format!("the source {} does not keep shards apart", self.source.info().name);
        self.source.by_shard().ok_or_else(|| Error::config("source.type", problem()))
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn run_mode(&self) -> RunMode {
        self.mode
    }

    /// The pipeline of a shard.
    pub(crate) fn pipeline(&self, shard: &str) -> Result<Pipeline> {
        (self.make)(shard)
    }
}

impl fmt::Debug for ShardWriters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardWriters").field("source", &self.source).field("mode", &self.mode).finish_non_exhaustive()
    }
}
