//! Sources that keep the changes of shards apart, and what is known of those who write them.

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::model::Timestamp;
use crate::source::Source;

/// Reads each shard by itself, and keeps beside the changes how the writer of each shard fares: a
/// target that is down could not.
///
/// [`ShardWriters`](crate::pipeline::ShardWriters), and a pipeline with
/// [`each_shard`](crate::PipelineBuilder::each_shard), call it from one task, about once a second.
#[async_trait]
pub trait ByShard: Send + Sync {
    /// The shards that there are now.
    async fn shards(&self) -> Result<ShardList>;

    /// The changes of one of them alone.
    fn shard(&self, name: &str) -> Arc<dyn Source>;

    /// What is stored of a shard, by the writer of this name.
    async fn load(&self, writer: &str, shard: &str) -> Result<Option<WriterStatus>>;

    /// Stores it, durably.
    async fn save(&self, writer: &str, status: &WriterStatus) -> Result<()>;
}

/// The shards of a source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShardList {
    /// Their names; the empty one is that of rows without a shard. Messages alone make no shard.
    pub names: Vec<String>,
    /// No other shard has a change that was committed at or before this.
    pub through: Option<Timestamp>,
}

/// How a shard fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WriterState {
    /// It goes on, or was stopped in an orderly way, or died without an error of its own.
    Success,
    /// It was halted by an error that waiting does not mend.
    Error,
    /// An operator wants it to be tried again.
    Reprocess,
}

/// The state of a shard, as it is stored beside the changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriterStatus {
    /// The shard; empty for changes without one.
    pub shard: String,
    /// How it fares.
    pub state: WriterState,
    /// The place that it has reached, as the source writes it.
    pub reached: Option<String>,
    /// What halted it.
    pub error: Option<String>,
    /// When this was stored.
    pub at: Timestamp,
}

impl WriterStatus {
    /// Of a shard that goes on, or was halted by this error, now.
    pub(crate) fn now(shard: &str, reached: Option<String>, error: Option<&Error>) -> Self {
        let state = if error.is_some() { WriterState::Error } else { WriterState::Success };
        Self { shard: shard.to_owned(), state, reached, error: error.map(Error::report), at: Timestamp::now() }
    }
}
