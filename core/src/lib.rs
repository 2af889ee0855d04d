//! anabranch-core: the contract of anabranch. This page is the map.
//!
//! ```text
//!             one byte budget, acknowledgements flow back
//!        ┌────────────────────────────────────────────────────┐
//!        v                                                    │
//!  Source ─ partitions ─> ChangeReader ─> Transform ─> Orderer ─ units ─> SinkWriter (a lane) ─> Sink
//!    │                    batches of                   which unit,          one target transaction:
//!    │                    changes                      which lane           rows + progress + epoch
//!    └─ Snapshotter ─ chunks ──────────────────────────────────────────────────> SinkWriter
//!                                                                  Checkpointer: checkpoint, by compare-and-set
//!                                                                  DeadLetterStore: what the target refused
//! ```
//!
//! # Nouns
//! - [`ChangeBatch`]: changes of one partition, with the memory of all their values. A change is an
//!   insert, update, delete, truncate, message or schema change of a [`TableSchema`]; its rows tell
//!   NULL, a value and "not sent" apart ([`ValueRef`]).
//! - [`Position`]: a place in a partition: a rank that is compared, a token that resumes.
//! - [`Unit`]: what a sink applies as one target transaction, or as a part of one that is larger
//!   than the byte budget.
//! - [`Partition`]: with its parents; the runtime opens it once they are processed and durable.
//! - [`Checkpoint`]: what survives. [`ProgressStore`]: progress that a target stores with the rows.
//! - [`Lease`]: of several processes that share the partitions of a source, which has which. A leased
//!   partition is a pipeline of its own.
//! - Safe time: a commit time such that everything committed at or before it is in the target.
//!
//! # The contract
//! 1. A position is acknowledged to the source only when all before it is durable in the target, or
//!    in the dead-letter store, and a restart will find it.
//! 2. Progress goes into the target transaction of its rows, with the fencing epoch. After a crash
//!    at any instruction the next run reads it and goes on behind it.
//! 3. Every error has a kind that says what to do ([`ErrorKind`]); connectors classify, the runtime decides.
//! 4. Reads may be dropped at any await; writes never are.
//! 5. Nothing is unbounded: batches by the byte budget, units by limits, lanes by two units each.
//!
//! # Where to read next
//! [`Pipeline`] builds and starts; `runtime/mod.rs` runs (attempts), `runtime/stream.rs` is its loop;
//! `runtime/workers` shares partitions, [`leases`] says how; `runtime/shard_writers` writes each shard by
//! itself; `control` decides about drain and pause;
//! [`orderer`] decides the order; [`net_effect`] folds a unit for bulk writing; [`memory`] has the
//! reference source and sink, the shortest complete connectors there are.

mod by_shard;
pub mod checkpointer;
pub mod control;
pub mod dead_letter;
mod durable_file;
mod error;
mod hash;
pub mod leases;
pub mod mapping;
pub mod memory;
pub mod metrics;
mod model;
pub mod net_effect;
pub mod orderer;
pub mod pipeline;
mod runtime;
mod secret;
pub mod sharded;
mod sink;
mod source;
pub mod transform;
mod verifier;
pub mod versions;

pub use by_shard::{ByShard, ShardList, WriterState, WriterStatus};
pub use checkpointer::{Checkpointer, Saved, Version};
pub use dead_letter::{DeadLetter, DeadLetterStore, LetterClass, LetterState};
pub use error::{Error, ErrorKind, Result};
pub use leases::{Lease, Leases};
pub use mapping::{Contract, Fidelity, TargetSchema, TargetTable};
pub use model::*;
pub use orderer::Orderer;
pub use pipeline::{
    Arrival, ByKey, ByTransaction, ByWindow, Order, Pipeline, PipelineBuilder, RunningPipeline, Status,
};
pub use secret::{Exposed, Secret};
pub use sharded::Sharded;
pub use sink::{
    Claim, Durability, Lane, LaneProgress, LanePurpose, ProgressStore, RejectedChange, Relay, Sink, SinkInfo,
    SinkWriter, Written,
};
pub use source::{
    ChangeReader, ChangedRows, Chunk, GoesOn, HEARTBEAT, Marker, Next, Retention, RetentionLeft, Snapshot, Snapshotter,
    Source, SourceInfo, SourceOrder, StartFrom,
};
pub use transform::Transform;
pub use verifier::{MAX_KEYS, RowReader, Verifier};
