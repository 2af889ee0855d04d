//! What users build and run.

mod board;
mod builder;
mod config;
mod configured;
mod each_letters;
mod each_shard;
mod keys;
mod order;
mod registry;
mod running;
mod shard_writers;
mod shared;
mod status;
pub(crate) mod stored;
mod stored_status;
mod workers;

use std::sync::Arc;
use std::time::Duration;

pub use crate::control::drain::Drained;
pub(crate) use board::{Board, Fate};
pub use builder::PipelineBuilder;
pub use config::{
    CheckpointConfig, DeadLetterConfig, KeepName, MappingConfig, MetricsConfig, PipelineConfig, PipelineSection,
};
pub use configured::Pipeline;
pub(crate) use each_shard::{halted as halted_shards, refuse_each_shard};
pub use keys::keys;
pub use order::{Arrival, ByKey, ByTransaction, ByWindow, Order};
pub use registry::Registry;
pub use running::{Monitor, RunningPipeline};
pub use shard_writers::ShardWriters;
pub(crate) use shared::{Shared, Watermark};
pub(crate) use status::Known;
pub use status::{PartitionState, Phase, ShardPhase, ShardState, SnapshotState, Status};

pub(crate) use crate::runtime::LetterPolicy;
pub use crate::runtime::{OnRejected, RetryLimits};
pub use workers::{Workers, WorkersConfig};

use crate::checkpointer::Checkpointer;
use crate::dead_letter::DeadLetterStore;
use crate::error::Result;
use crate::leases::{CheckpointLeases, Leases};
use crate::mapping::preflight::LossyConsent;
use crate::orderer::{ShardLanes, UnitLimits};
use crate::runtime::Budget;
use crate::sharded::Sharded;
use crate::sink::Sink;
use crate::source::Source;

/// Whether tables are copied before the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotMode {
    /// Copy the tables once, then stream.
    #[default]
    Initial,
    /// Stream only: the target already holds what the source held when the slot was created.
    Never,
    /// Copy the tables and end.
    Only,
}

/// What a run is of its pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// All of it.
    Whole,
    /// The copying, before several workers share the partitions.
    Setup,
    /// One leased partition. It ends when the partition does.
    Partition,
}

/// What a run does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunMode {
    /// Streams, and tries letters that may succeed by themselves again.
    #[default]
    Regular,
    /// Tries the severe letters again, once, with what waits behind them, and ends. Nothing is read
    /// from the source.
    RetryDlq,
    /// Tries every open letter again, once, and ends. Nothing is read from the source.
    RetryAllDlq,
    /// Where each shard has a pipeline of its own: those that did not fail.
    ResumeSuccess,
    /// There: those that failed, from the start of the window in which they did, without the changes
    /// that were applied.
    ResumeFailed,
    /// There: those that an operator has marked with [`Pipeline::reprocess`].
    Reprocess,
    /// There: all shards, also those that appear later, as [`RunMode::Regular`] does.
    ResumeAll,
}

impl RunMode {
    /// Its name in the configuration file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Regular => "regular",
            Self::RetryDlq => "retry_dlq",
            Self::RetryAllDlq => "retry_all_dlq",
            Self::ResumeSuccess => "resume_success",
            Self::ResumeFailed => "resume_failed",
            Self::Reprocess => "reprocess",
            Self::ResumeAll => "resume_all",
        }
    }

    /// Whether it tries dead letters again and ends.
    pub const fn replays(self) -> bool {
        matches!(self, Self::RetryDlq | Self::RetryAllDlq)
    }

    /// Whether it chooses shards, where each has a pipeline of its own. [`RunMode::Regular`] takes all.
    pub const fn chooses_shards(self) -> bool {
        matches!(self, Self::ResumeSuccess | Self::ResumeFailed | Self::Reprocess | Self::ResumeAll)
    }

    /// Whether it takes every shard, also one that appears later.
    pub(crate) const fn takes_all(self) -> bool {
        matches!(self, Self::Regular | Self::ResumeAll)
    }
}

/// Everything that a run needs, checked by the builder.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    pub(crate) name: Arc<str>,
    pub(crate) role: Role,
    /// The name under which dead letters are kept: the pipeline's, also in a part of it.
    pub(crate) letters_of: Arc<str>,
    /// How it shares the partitions with other processes, if it does.
    pub(crate) workers: Option<Workers>,
    pub(crate) source: Arc<dyn Source>,
    pub(crate) sink: Arc<dyn Sink>,
    pub(crate) order: Order,
    pub(crate) checkpointer: Arc<dyn Checkpointer>,
    pub(crate) dead_letters: Option<Arc<dyn DeadLetterStore>>,
    pub(crate) letters: LetterPolicy,
    pub(crate) mode: RunMode,
    pub(crate) consent: LossyConsent,
    pub(crate) create_tables: bool,
    pub(crate) snapshot: SnapshotMode,
    pub(crate) snapshot_workers: u32,
    /// The byte budget of batches in memory; `budget` is what is left of it.
    pub(crate) memory: usize,
    pub(crate) budget: Budget,
    pub(crate) retry: RetryLimits,
    pub(crate) stop_deadline: Duration,
}

impl Spec {
    /// How many dead letters are open.
    pub(crate) async fn open_letters(&self) -> Result<u64> {
        match &self.dead_letters {
            Some(store) => store.open_count(&self.name).await,
            None => Ok(0),
        }
    }

    /// Where the leases are, if partitions are shared.
    pub(crate) fn leases(&self) -> Option<Arc<dyn Leases>> {
        let workers = self.workers.as_ref()?;
        let default = || Arc::new(CheckpointLeases::new(Arc::clone(&self.checkpointer))) as Arc<dyn Leases>;
        Some(workers.leases.clone().unwrap_or_else(default))
    }

    /// How many lanes it writes with, to all shards together.
    pub(crate) fn lanes(&self) -> u32 {
        self.order.lanes() * self.sink.sharded().map_or(1, Sharded::count)
    }

    /// Which lanes write to which shard.
    pub(crate) fn shard_lanes(&self) -> Option<ShardLanes> {
        let sharded = self.sink.sharded()?;
        Some(ShardLanes::new(sharded.names().iter().cloned(), self.order.lanes()))
    }

    /// Whether a shard that fails is halted, alone.
    pub(crate) fn halts_shards(&self) -> bool {
        self.letters.on_rejected == OnRejected::HaltShard && self.sink.sharded().is_some()
    }

    /// Units of an eighth of the budget: two are at a lane, one is being filled, and the readers
    /// need room meanwhile. Beyond 8 MiB a bigger unit is not applied faster per row.
    pub(crate) fn unit_limits(&self) -> UnitLimits {
        UnitLimits { max_bytes: (self.memory / 8).clamp(16 << 10, 8 << 20), max_changes: 50_000 }
    }
}
