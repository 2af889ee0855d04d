//! In which order, and on which lane, changes are applied.
//!
//! | order | source gives | applied | lanes |
//! |---|---|---|---|
//! | [`ByTransaction`] | whole transactions, or parts of them by commit time | whole, in commit order | 1 |
//! | [`ByShard`] | as `ByTransaction` | each shard's part of a transaction whole, in commit order | one a shard |
//! | [`ByKey`] | each key's changes in order | each key's changes in order | several |
//! | [`ByWindow`] | changes by commit time | each shard sorted, window by window | several |
//! | [`Arrival`] | anything | as it comes | 1 |

mod arrival;
mod by_key;
mod by_shard;
mod by_transaction;
mod by_window;
mod frontier;
mod lanes;
mod ledger;
mod merge;
mod route;
mod transactions;

use std::collections::BTreeMap;
use std::fmt::Debug;

use crate::error::Result;
use crate::model::{BatchId, ChangeBatch, OrderedUnit, Partition, PartitionId, Progress, UnitId};

pub use arrival::Arrival;
pub use by_key::ByKey;
pub use by_shard::ByShard;
pub use by_transaction::ByTransaction;
pub use by_window::ByWindow;
pub use route::ShardLanes;
use transactions::Size;

/// How large a unit may become. A unit is cut, or a transaction passed on in parts, before it
/// exceeds either; one change is always taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnitLimits {
    /// Bytes of memory of its changes, about.
    pub max_bytes: usize,
    /// Changes.
    pub max_changes: usize,
}

impl UnitLimits {
    /// What fits beside this.
    fn room(&self, size: Size) -> Size {
        Size { changes: self.max_changes, bytes: self.max_bytes }.minus(size)
    }
}

/// Units that are handed out on a lane and not yet complete: one that is written, and one that
/// waits so that the writer never does. Everything else is held back, so that small transactions
/// merge while the writer is busy.
const MAX_IN_FLIGHT: usize = 2;

/// Decides the order of application.
///
/// Pure: no async, no clock, no I/O. It keeps no batch, only ids and numbers, so that the runtime
/// may spill a batch to disk while it waits. The runtime calls it from one task:
///
/// 1. [`Orderer::opened`] before the first batch of a partition, and for partitions that wait for
///    their parents; [`Orderer::closed`] after the last.
/// 2. [`Orderer::push`] for each batch, in the order of its partition, while [`Orderer::has_room`]
///    (an orderer that waits for another partition may be pushed beyond that: the batch is spilled).
/// 3. [`Orderer::next_ready`] until `None`, after every push, close and completion.
/// 4. [`Orderer::complete`] once a unit is durable, in any order between lanes.
///
/// Every change that was pushed is emitted exactly once.
pub trait Orderer: Debug + Send {
    /// Whether another batch is welcome now.
    fn has_room(&self) -> bool;

    /// A partition takes part from now on. `from` is where its reader resumed; what it gives up to
    /// there is handed out too, for the lane to skip.
    ///
    /// At the start, all partitions that are known are opened before the first push. A child is
    /// opened before its parent is closed, and waits for all parents that it names, known or not: one
    /// that is finished already, or whose child is being read already, is not named. Opening a
    /// partition again adds parents.
    fn opened(&mut self, partition: &Partition, from: Option<&Progress>);

    /// A partition ended: no batch of it follows. Until its children speak for themselves they have
    /// proved as much as it had: their changes were committed after its own.
    fn closed(&mut self, partition: &PartitionId);

    /// A partition that closed is finished, everything that it gave is complete, and its children are being
    /// read: nobody names it any more. What is kept of it may go. The default keeps it.
    fn forget(&mut self, _partition: &PartitionId) {}

    /// Takes a batch in.
    ///
    /// # Errors
    /// [`Fatal`](crate::ErrorKind::Fatal) if a source breaks its own order: ranks of a partition grow,
    /// also over a reader that stopped and was opened again.
    fn push(&mut self, id: BatchId, batch: &ChangeBatch) -> Result<()>;

    /// The next unit that may be applied now, if there is one.
    ///
    /// # Errors
    /// [`Fatal`](crate::ErrorKind::Fatal) if a source sent less or more of a transaction than it announced.
    fn next_ready(&mut self) -> Result<Option<OrderedUnit>>;

    /// A unit is durable. A part that does not end its target transaction may be completed when it
    /// is taken, or together with the last part.
    fn complete(&mut self, unit: UnitId);

    /// For each partition, how far everything is durable without a hole. Moves forward only.
    fn low_watermark(&self) -> &BTreeMap<PartitionId, Progress>;
}
