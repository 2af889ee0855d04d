//! The orders that a pipeline can keep.

use std::collections::HashMap;
use std::time::Duration;

use crate::model::TableName;
use crate::orderer::{self, Orderer, ShardLanes, UnitLimits};
use crate::source::SourceOrder;

/// How changes are ordered at the target.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Order {
    /// Whole source transactions in commit order. See [`ByTransaction`].
    Transaction,
    /// Per primary key, in parallel lanes. See [`ByKey`].
    Key {
        /// How many lanes write at a time.
        lanes: u32,
    },
    /// Per shard, sorted in windows of commit time. See [`ByWindow`].
    Window {
        /// The window's length.
        length: Duration,
        /// How many lanes write at a time; a shard stays on one.
        lanes: u32,
    },
    /// As the source gives them. See [`Arrival`].
    Arrival,
}

/// Source commit order, whole transactions: no reader of a transactional target sees part of one.
///
/// ```
/// use anabranch_core::{ByTransaction, Order};
/// assert_eq!(Order::from(ByTransaction::new()).lanes(), 1);
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct ByTransaction;

impl ByTransaction {
    /// The default order.
    pub fn new() -> Self {
        Self
    }
}

/// Per-key order on several lanes: transactions are not kept together.
///
/// ```
/// use anabranch_core::{ByKey, Order};
/// assert_eq!(Order::from(ByKey::new(8)).name(), "key");
/// ```
#[derive(Debug, Clone, Copy)]
pub struct ByKey {
    lanes: u32,
}

impl ByKey {
    /// With this many lanes, each a connection of the sink.
    pub fn new(lanes: u32) -> Self {
        Self { lanes }
    }
}

/// Per shard, sorted by commit time, transaction and sequence in fixed windows.
///
/// ```
/// use std::time::Duration;
///
/// use anabranch_core::{ByWindow, Order};
/// assert_eq!(Order::from(ByWindow::new(Duration::from_secs(10)).lanes(4)).lanes(), 4);
/// ```
#[derive(Debug, Clone, Copy)]
pub struct ByWindow {
    length: Duration,
    lanes: u32,
}

impl ByWindow {
    /// Windows of this length on one lane.
    pub fn new(length: Duration) -> Self {
        Self { length, lanes: 1 }
    }

    /// On several lanes.
    #[must_use]
    pub fn lanes(self, lanes: u32) -> Self {
        Self { lanes, ..self }
    }
}

/// In the order in which the source gives changes, cut wherever a unit is full.
#[derive(Debug, Clone, Copy, Default)]
pub struct Arrival;

impl From<ByTransaction> for Order {
    fn from(_: ByTransaction) -> Self {
        Self::Transaction
    }
}

impl From<ByKey> for Order {
    fn from(by: ByKey) -> Self {
        Self::Key { lanes: by.lanes }
    }
}

impl From<ByWindow> for Order {
    fn from(by: ByWindow) -> Self {
        Self::Window { length: by.length, lanes: by.lanes }
    }
}

impl From<Arrival> for Order {
    fn from(_: Arrival) -> Self {
        Self::Arrival
    }
}

impl Order {
    /// The name in the configuration file.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Transaction => "transaction",
            Self::Key { .. } => "key",
            Self::Window { .. } => "window",
            Self::Arrival => "arrival",
        }
    }

    /// How many lanes it writes with: to each shard, where the sink is sharded.
    pub fn lanes(&self) -> u32 {
        match self {
            Self::Key { lanes } | Self::Window { lanes, .. } => *lanes,
            Self::Transaction | Self::Arrival => 1,
        }
    }

    /// How rows are routed to lanes, as text that changes when the routing does.
    pub(crate) fn routing(&self, pinned: &HashMap<TableName, u32>) -> String {
        match self {
            Self::Key { .. } => {
                let mut groups: Vec<String> = pinned.iter().map(|(table, group)| format!("{table}={group}")).collect();
                groups.sort_unstable();
                format!("key {}", groups.join(" "))
            }
            other => other.name().to_owned(),
        }
    }

    pub(crate) fn keeps_transactions(&self) -> bool {
        matches!(self, Self::Transaction)
    }

    pub(crate) fn orderer(
        &self,
        source: SourceOrder,
        limits: UnitLimits,
        pinned: HashMap<TableName, u32>,
        shards: Option<ShardLanes>,
    ) -> Box<dyn Orderer> {
        let by_time = source == SourceOrder::CommitTimePerPartition;
        let window = |made: orderer::ByWindow| if by_time { made } else { made.times_may_go_back() };
        if let Some(shards) = shards {
            return match (self, source) {
                (Self::Key { .. } | Self::Arrival, _) => {
                    Box::new(orderer::ByKey::new(1, limits).pinned(pinned).sharded(shards, limits))
                }
                (Self::Window { length, .. }, _) => {
                    Box::new(window(orderer::ByWindow::new(*length, 1, limits).sharded(shards, limits)))
                }
                (Self::Transaction, SourceOrder::Transactions) => Box::new(orderer::ByShard::single(shards, limits)),
                (Self::Transaction, SourceOrder::CommitTimePerPartition) => {
                    Box::new(orderer::ByShard::merged(shards, limits))
                }
                (Self::Transaction, SourceOrder::Key) => {
                    Box::new(orderer::ByShard::merged(shards, limits).times_may_go_back())
                }
            };
        }
        match (self, source) {
            (Self::Transaction, SourceOrder::Transactions) => Box::new(orderer::ByTransaction::single(limits)),
            (Self::Transaction, SourceOrder::CommitTimePerPartition) => {
                Box::new(orderer::ByTransaction::merged(limits))
            }
            (Self::Transaction, SourceOrder::Key) => {
                Box::new(orderer::ByTransaction::merged(limits).times_may_go_back())
            }
            (Self::Key { lanes }, _) => Box::new(orderer::ByKey::new(*lanes, limits).pinned(pinned)),
            (Self::Window { length, lanes }, _) => Box::new(window(orderer::ByWindow::new(*length, *lanes, limits))),
            (Self::Arrival, _) => Box::new(orderer::Arrival::new(limits)),
        }
    }
}
