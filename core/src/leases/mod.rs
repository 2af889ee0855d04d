//! Leases: which of several workers reads which partition.
//!
//! A leased partition is a pipeline of its own: it has its own checkpoint, in its lease, and its own
//! progress in the target, under the name that [`pipeline_of`] gives. Whoever takes the lease takes
//! the next fencing epoch with it; a worker that lost its lease is refused by the lease (its counter
//! has moved) and by every sink that checks the epoch in its transaction.
//!
//! The time after which a lease has expired is measured by each observer, with its own monotonic
//! clock, from the moment at which it saw the counter move last. No two clocks are compared.

mod checkpoints;

pub use checkpoints::CheckpointLeases;

use std::fmt::{Debug, Write};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::Result;
use crate::model::{Checkpoint, Counters, Partition, PartitionId};

/// Keeps the leases of pipelines whose partitions are shared by several workers.
///
/// Called by every worker at the same time, for the same leases. Every write of a lease is
/// conditional on the counter that the caller has seen, so that of two writers one succeeds. A call
/// that fails with [`Transient`](crate::ErrorKind::Transient) or
/// [`Indeterminate`](crate::ErrorKind::Indeterminate) may have happened: the caller repeats it, with
/// the same arguments, and a lease that the caller still owns counts as not lost
/// (see [`Leases::store`]). No call sleeps or retries, but for conflicts with other callers.
#[async_trait]
pub trait Leases: Debug + Send + Sync + 'static {
    /// Every lease of the pipeline, in any order; also the finished ones until they are forgotten.
    /// Empty if there are none.
    async fn list(&self, pipeline: &str) -> Result<Vec<Lease>>;

    /// Creates leases for these partitions, durably on return. One that is there already, finished
    /// or not, is left as it is: every parent of a merged partition creates it.
    async fn create(&self, pipeline: &str, partitions: &[Partition]) -> Result<()>;

    /// Gives the lease to `worker` if its counter still is `seen.counter`, whoever owned it. Moves
    /// the counter, adds one to the checkpoint's epoch and clears [`Lease::wanted_by`]. Gives the
    /// lease as it is now, with the checkpoint as stored by the last owner; `None` if somebody was first.
    async fn take(&self, pipeline: &str, seen: &Lease, worker: &str) -> Result<Option<Lease>>;

    /// Stores `held.checkpoint` and moves the counter, if the counter still is `held.counter`. This
    /// is how a lease is renewed, too: with the checkpoint unchanged. Gives the new counter; `None`
    /// if the lease was lost.
    ///
    /// A worker's name is never used twice and its calls for one lease do not overlap. So if the
    /// counter has moved but the owner still is `held.owner`, an earlier call of the same worker
    /// happened whose answer was lost: then it stores over that.
    async fn store(&self, pipeline: &str, held: &Lease) -> Result<Option<u64>>;

    /// Stores `held.checkpoint` as [`Leases::store`] does, and leaves the lease without an owner;
    /// `finished`: for good, for everything in the partition is durable and its children have leases.
    /// False if it was lost before.
    async fn release(&self, pipeline: &str, held: &Lease, finished: bool) -> Result<bool>;

    /// Asks the owner to release the lease to `worker`: sets [`Lease::wanted_by`] if it is not set
    /// yet, without moving the counter and without disturbing the owner's next [`Leases::store`].
    /// The owner sees it when it lists the leases.
    async fn ask(&self, pipeline: &str, partition: &PartitionId, worker: &str) -> Result<()>;

    /// Removes these leases if they are finished. What they had counted stays in [`Leases::counted`].
    async fn forget(&self, pipeline: &str, finished: &[PartitionId]) -> Result<()>;

    /// What was counted by leases whose checkpoint [`Leases::list`] does not show, or shows without
    /// counters: those that were forgotten, and finished ones if the implementation likes.
    async fn counted(&self, pipeline: &str) -> Result<Counters>;
}

/// The right to work on one partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The partition, with its parents and where it starts.
    pub partition: Partition,
    /// The worker that has it; `None`: nobody.
    pub owner: Option<String>,
    /// Moves with every [`take`](Leases::take), [`store`](Leases::store) and
    /// [`release`](Leases::release). It only grows. 0: nobody ever had it.
    pub counter: u64,
    /// A worker that waits for the owner to release it.
    pub wanted_by: Option<String>,
    /// Everything in it is durable, and its children have leases.
    pub finished: bool,
    /// How far the partition is: the checkpoint of its own pipeline. Its epoch is the fencing epoch.
    pub checkpoint: Checkpoint,
}

impl Lease {
    /// A lease that nobody had yet.
    pub fn new(partition: Partition) -> Self {
        let checkpoint = Checkpoint::default();
        Self { partition, owner: None, counter: 0, wanted_by: None, finished: false, checkpoint }
    }

    /// The partition's name.
    pub fn id(&self) -> &PartitionId {
        &self.partition.id
    }
}

/// How long the names of a pipeline and a partition may be together. Servers cut the names of
/// sessions (PostgreSQL to 63 bytes), and two partitions must not be taken for one.
const READABLE: usize = 38;

/// What [`CheckpointLeases`] calls its list of partitions.
const INDEX: &str = "partitions";

/// The name of the pipeline that a leased partition is: the key of its progress in the target.
///
/// `{pipeline}/{partition}` if that is short, else with the first 16 hexadecimal digits of the
/// partition's SHA-256 in place of it.
///
/// ```
/// use anabranch_core::{PartitionId, leases::pipeline_of};
/// assert_eq!(pipeline_of("orders", &PartitionId::new("shard-7")), "orders/shard-7");
/// let long = PartitionId::new("shardId-00000001414576573621-f55eea83");
/// assert_eq!(pipeline_of("orders", &long), "orders/972dae165a5cc64a");
/// ```
pub fn pipeline_of(pipeline: &str, partition: &PartitionId) -> String {
    let id = partition.as_str();
    // The word that the index of `CheckpointLeases` has.
    let plain = id != INDEX && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.:".contains(&b));
    if plain && pipeline.len() + id.len() <= READABLE {
        return format!("{pipeline}/{id}");
    }
    let digest = Sha256::digest(id.as_bytes());
    let mut name = format!("{pipeline}/");
    for byte in digest.iter().take(8) {
        // Writing into a String cannot fail.
        let _ = write!(name, "{byte:02x}");
    }
    name
}
