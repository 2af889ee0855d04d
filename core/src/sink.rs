//! Where changes go.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::checkpointer::Checkpointer;
use crate::dead_letter::DeadLetterStore;
use crate::error::{Error, Result};
use crate::mapping::TargetSchema;
use crate::model::{Counters, PartitionId, Progress, SourceIdentity, TableSchema, Timestamp, Unit};
use crate::sharded::Sharded;
use crate::verifier::Verifier;

/// A database that changes are applied to.
#[async_trait]
pub trait Sink: Debug + Send + Sync + 'static {
    /// What it is and what it can do. Constant; needs no connection.
    fn info(&self) -> SinkInfo;

    /// A writer of one lane. At most one is open for a lane at a time; different lanes write
    /// concurrently.
    async fn open(&self, lane: Lane) -> Result<Box<dyn SinkWriter>>;

    /// Progress stored in the target in the same transaction as the rows, if this sink does so.
    fn progress(&self) -> Option<&dyn ProgressStore> {
        None
    }

    /// A checkpointer in the target: the default where there is one.
    fn checkpointer(&self) -> Option<Arc<dyn Checkpointer>> {
        None
    }

    /// A dead-letter store in the target: the default where there is one.
    fn dead_letters(&self) -> Option<Arc<dyn DeadLetterStore>> {
        None
    }

    /// The target's tables: for preflight, and to create missing ones.
    fn target(&self) -> Option<&dyn TargetSchema> {
        None
    }

    /// Reads rows back, if this sink can: without it the two sides cannot be compared.
    fn verifier(&self) -> Option<&dyn Verifier> {
        None
    }

    /// The shards behind it, if it is several databases: each has lanes of its own.
    fn sharded(&self) -> Option<&Sharded> {
        None
    }

    /// Hears what another pipeline has to know that reads the target, if it hands that on.
    fn relay(&self) -> Option<&dyn Relay> {
        None
    }
}

/// What a sink is.
#[derive(Debug, Clone)]
pub struct SinkInfo {
    /// The connector's name: `sqlite`.
    pub name: &'static str,
    /// Whether a unit, with its progress, takes effect wholly or not at all.
    pub transactional: bool,
    /// How many lanes can write at a time. 1 for a database with one writer.
    pub max_lanes: u32,
    /// Whether its tables live in schemas. If not, a table's schema is left out.
    pub schemas: bool,
}

/// One of the writers of a sink.
#[derive(Debug, Clone)]
pub struct Lane {
    /// The pipeline's name.
    pub pipeline: Arc<str>,
    /// This lane, from 0.
    pub index: u32,
    /// How many lanes there are.
    pub count: u32,
    /// The fencing epoch of this run. A transactional sink checks it in every target transaction.
    pub epoch: u64,
    /// What it will write.
    pub purpose: LanePurpose,
}

/// What a lane writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LanePurpose {
    /// Units of the stream, with progress.
    Stream,
    /// Chunks of a snapshot, without progress; still fenced by the epoch. Inserts, of rows that may be
    /// there already; deletes only into tables of which the sink says that it
    /// [`resumes_copies`](crate::TargetSchema::resumes_copies).
    Snapshot,
}

/// Writes the units of one lane, in the order it is given them. One owner.
#[async_trait]
pub trait SinkWriter: Send {
    /// Applies a unit: all of it with its progress, or nothing. Waits here when the target is full.
    ///
    /// Never dropped in the middle of a call. Units that are parts are given in order, `First` to
    /// `Last`, and take effect with the last; after an error within them the writer is closed.
    /// After [`Rejected`](crate::ErrorKind::Rejected) the writer goes on: nothing of the unit is in
    /// the target, and the runtime gives smaller units to find the row at fault.
    ///
    /// # Errors
    /// [`Transient`](crate::ErrorKind::Transient): nothing happened.
    /// [`Indeterminate`](crate::ErrorKind::Indeterminate): the connection was lost while committing.
    /// [`Rejected`](crate::ErrorKind::Rejected): a row can never be applied.
    /// [`Fenced`](crate::ErrorKind::Fenced): the target has seen a newer epoch.
    async fn write(&mut self, unit: &Unit) -> Result<Written>;

    /// Returns when every accepted unit is durable.
    async fn flush(&mut self) -> Result<()>;

    /// Ends the writing in an orderly way. What was not flushed may be lost.
    async fn close(self: Box<Self>) -> Result<()>;
}

/// What became of a unit.
#[derive(Debug, Default)]
#[must_use]
pub struct Written {
    /// Whether it survives a crash of the target from here on.
    pub durability: Durability,
    /// Changes that the target refused while it took the others: only of sinks without transactions that
    /// do not store progress. Letters are put after this was returned: a sink whose progress has passed
    /// them by then would lose them in a crash. It refuses the unit instead.
    pub rejected: Vec<RejectedChange>,
    /// Changes of rows that did nothing, because the target's row was as new or newer.
    pub stale: u64,
}

impl Written {
    /// Everything is applied and survives a crash.
    pub fn durable() -> Self {
        Self { durability: Durability::Durable, rejected: Vec::new(), stale: 0 }
    }

    /// Everything is taken, and durable after the next flush, or the next durable unit of this writer.
    pub fn accepted() -> Self {
        Self { durability: Durability::Accepted, rejected: Vec::new(), stale: 0 }
    }
}

/// Whether a unit survives a crash of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Taken; durable later.
    #[default]
    Accepted,
    /// It survives. Only this moves the low watermark.
    Durable,
}

/// A change that the target refused.
#[derive(Debug)]
pub struct RejectedChange {
    /// Its place among the changes of the unit.
    pub index: usize,
    /// Why.
    pub error: Error,
}

/// Progress that lives in the target, with the data.
#[async_trait]
pub trait ProgressStore: Send + Sync {
    /// Takes the pipeline over for the epoch of `claim`, so that writers of an older epoch fail
    /// with `Fenced`, and gives back what each lane has committed. Creates what it needs to store.
    ///
    /// # Errors
    /// [`Fenced`](crate::ErrorKind::Fenced) if the target has seen a newer epoch.
    async fn take_over(&self, claim: &Claim) -> Result<Vec<LaneProgress>>;

    /// What each lane has committed, without taking over: for `status`. Empty if nothing is stored.
    async fn read(&self, pipeline: &str) -> Result<Vec<LaneProgress>>;
}

/// A sink from which another pipeline reads: files, a queue. It is told what no unit tells.
///
/// The calls of one run do not overlap each other, but writing.
#[async_trait]
pub trait Relay: Send + Sync {
    /// The tables, as the units of this run will have them. Called at every start, before the first unit.
    ///
    /// # Errors
    /// [`Fenced`](crate::ErrorKind::Fenced) if the epoch does not own the pipeline any more.
    async fn tables(&self, epoch: u64, tables: &[TableSchema]) -> Result<()>;

    /// Everything that the source committed at or before `time` is durable, here or in the dead-letter
    /// store. Called when that moves, also on an idle source, after the checkpoint that has it was saved.
    ///
    /// # Errors
    /// [`Fenced`](crate::ErrorKind::Fenced) if the epoch does not own the pipeline any more.
    async fn safe_time(&self, epoch: u64, time: Timestamp) -> Result<()>;
}

/// A claim to a pipeline.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The pipeline's name.
    pub pipeline: Arc<str>,
    /// The epoch of the run that claims it.
    pub epoch: u64,
    /// How many lanes it will write with. Rows of lanes beyond it are kept and returned.
    pub lanes: u32,
    /// The source that the progress belongs to. Stored; the runtime compares it.
    pub identity: SourceIdentity,
}

/// What one lane has committed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LaneProgress {
    /// The lane.
    pub lane: u32,
    /// The number of lanes when it was stored; 0 if nothing was.
    pub lanes: u32,
    /// The source that it belongs to.
    pub identity: SourceIdentity,
    /// How far it is in each partition.
    pub partitions: BTreeMap<PartitionId, Progress>,
    /// What it has applied since the pipeline exists.
    pub counters: Counters,
}
