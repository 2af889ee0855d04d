//! Per key, on several lanes.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use super::lanes::{BatchNotes, Lanes, Share};
use super::ledger::Ledger;
use super::route::{Router, ShardLanes};
use super::transactions::Size;
use super::{Orderer, UnitLimits};
use crate::error::Result;
use crate::model::{BatchId, ChangeBatch, OrderedUnit, Partition, PartitionId, Progress, TableName, UnitId};

/// Applies the changes of one key in their order, and changes of different keys concurrently.
///
/// Each change goes to a lane:
///
/// - a row of a table with a comparable key: the FNV-1a hash (64 bits) of schema, a zero byte,
///   table, a zero byte and [`key_bytes`](crate::net_effect::key_bytes), modulo the number of lanes;
/// - a table in `pinned`: its group modulo the number of lanes;
/// - a table without a comparable key: the hash as above, without a key;
/// - a message, which belongs to no key: lane 0.
///
/// This does not change with the version of the library, for a lane that goes on after a restart
/// skips what it has applied. Number of lanes and `pinned` may change only when everything that was
/// read is durable on all lanes.
///
/// What concerns several lanes is applied alone, when everything before it is durable: an update
/// that moves a row to the key of another lane, a truncate, a change of a table's schema, a change
/// of a row of whose key a column was not sent. Transactions are not kept together. Per-key order over several partitions
/// is given where a child is read after its parents are durable.
///
/// Its own memory is bounded by the number of pieces and, at four bytes each, of changes that wait.
#[derive(Debug)]
pub struct ByKey {
    ledger: Ledger,
    lanes: Lanes,
    router: Router,
    /// What waits behind a change that is applied alone, that change included.
    staged: VecDeque<Staged>,
    staged_size: Size,
    /// A change is being applied alone.
    alone: bool,
    /// The lane of each partition's last change.
    tails: HashMap<usize, u32>,
}

/// A step of what waits.
#[derive(Debug)]
enum Staged {
    /// Shares for their lanes, all at once.
    Together(Vec<(u32, Share)>),
    /// A change that is applied alone.
    Alone(u32, Share),
}

impl ByKey {
    /// This many lanes, at least one.
    pub fn new(lanes: u32, limits: UnitLimits) -> Self {
        let lanes = Lanes::new(lanes, limits);
        Self {
            ledger: Ledger::default(),
            router: Router::new(lanes.count()),
            lanes,
            staged: VecDeque::new(),
            staged_size: Size::default(),
            alone: false,
            tails: HashMap::new(),
        }
    }

    /// All changes of tables of one group stay on one lane, in order: tables with a unique key
    /// beside the primary one, tables with foreign keys and those they refer to.
    #[must_use]
    pub fn pinned(mut self, groups: HashMap<TableName, u32>) -> Self {
        self.router.pin(groups);
        self
    }

    /// Each shard has lanes of its own, in place of those of [`ByKey::new`].
    #[must_use]
    pub fn sharded(mut self, shards: ShardLanes, limits: UnitLimits) -> Self {
        self.lanes = Lanes::new(shards.count(), limits);
        self.router.shards(shards);
        self
    }

    /// The steps of a batch.
    fn split(&mut self, notes: &Arc<BatchNotes>, batch: &ChangeBatch) -> Vec<Staged> {
        let mut steps = Vec::new();
        let mut lists: Vec<Vec<u32>> = vec![Vec::new(); self.lanes.count() as usize];
        let mut shares: Vec<(u32, Share)> = Vec::new();
        let tail = self.tails.entry(notes.track).or_default();
        let mut routes = self.router.of_batch(batch);
        for (at, piece) in batch.pieces().iter().enumerate() {
            if notes.ends_bare(at) {
                let before = std::mem::take(&mut lists[*tail as usize]);
                shares.extend([(*tail, Share::list(notes, before)), (*tail, Share::end(notes, at))]);
            }
            for index in piece.changes.clone() {
                let route = routes.of(batch.change(index as usize));
                *tail = route.lane;
                if !route.alone {
                    lists[*tail as usize].push(index);
                    continue;
                }
                steps.extend(Staged::together(notes, &mut shares, &mut lists));
                steps.push(Staged::Alone(*tail, Share::run(notes, index..index + 1)));
            }
        }
        steps.extend(Staged::together(notes, &mut shares, &mut lists));
        steps
    }

    /// Lets go what waits, if nothing is before it any more; false if there was nothing.
    fn advance(&mut self) -> bool {
        if self.alone {
            return false;
        }
        match self.staged.front() {
            None => return false,
            Some(Staged::Alone(..)) if !self.lanes.is_idle() => return false,
            Some(_) => {}
        }
        let Some(step) = self.staged.pop_front() else { return false };
        self.staged_size = self.staged_size.minus(step.size());
        match step {
            Staged::Together(shares) => {
                for (lane, share) in shares {
                    self.lanes.give(&mut self.ledger, lane, share);
                }
            }
            Staged::Alone(lane, share) => {
                self.lanes.give(&mut self.ledger, lane, share);
                self.alone = true;
            }
        }
        true
    }
}

impl Staged {
    fn together(notes: &Arc<BatchNotes>, shares: &mut Vec<(u32, Share)>, lists: &mut [Vec<u32>]) -> Option<Self> {
        let lists = lists.iter_mut().map(|list| Share::list(notes, std::mem::take(list)));
        let mut all = std::mem::take(shares);
        all.extend((0..).zip(lists));
        all.retain(|(_, share)| !share.is_empty());
        (!all.is_empty()).then_some(Self::Together(all))
    }

    fn size(&self) -> Size {
        match self {
            Self::Together(shares) => shares.iter().fold(Size::default(), |size, (_, s)| size.plus(s.size())),
            Self::Alone(_, share) => share.size(),
        }
    }
}

impl Orderer for ByKey {
    fn has_room(&self) -> bool {
        self.lanes.has_room(self.staged_size)
    }

    fn opened(&mut self, partition: &Partition, from: Option<&Progress>) {
        self.ledger.open(partition, from);
    }

    fn closed(&mut self, _partition: &PartitionId) {}

    fn forget(&mut self, partition: &PartitionId) {
        if let Some(track) = self.ledger.forget(partition) {
            self.lanes.forget(track);
            self.tails.remove(&track);
        }
    }

    fn push(&mut self, id: BatchId, batch: &ChangeBatch) -> Result<()> {
        let track = self.ledger.admit(batch)?;
        let notes = BatchNotes::take(&mut self.ledger, track, id, batch);
        for step in self.split(&notes, batch) {
            self.staged_size = self.staged_size.plus(step.size());
            self.staged.push_back(step);
        }
        while matches!(self.staged.front(), Some(Staged::Together(_))) && self.advance() {}
        Ok(())
    }

    fn next_ready(&mut self) -> Result<Option<OrderedUnit>> {
        while self.advance() {}
        Ok(self.lanes.next(&self.ledger))
    }

    fn complete(&mut self, unit: UnitId) {
        self.lanes.complete(&mut self.ledger, unit);
        self.alone &= !self.lanes.is_idle();
    }

    fn low_watermark(&self) -> &BTreeMap<PartitionId, Progress> {
        self.ledger.low()
    }
}
