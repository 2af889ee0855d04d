//! Whole transactions, in commit order, split by shard.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::lanes::{BatchNotes, Lanes, Share};
use super::ledger::{Ledger, Track};
use super::merge::Merge;
use super::route::ShardLanes;
use super::transactions::Size;
use super::{Orderer, UnitLimits};
use crate::error::Result;
use crate::model::{BatchId, ChangeBatch, OrderedUnit, Partition, PartitionId, Piece, Progress, UnitId};

/// Applies to each shard its part of every transaction, whole and in commit order. Shards do not wait
/// for each other.
///
/// Of consecutive transactions the parts for one shard are merged into one unit, up to the limits; a
/// part above the limits is handed out in parts of one target transaction. A transaction is let go
/// when all of it was read, and, of a source with several partitions, when every partition was heard
/// up to its commit time. Its own memory is bounded by the number of pieces and, at four bytes each,
/// of changes that wait.
#[derive(Debug)]
pub struct ByShard {
    ledger: Ledger,
    lanes: Lanes,
    shards: ShardLanes,
    mode: Mode,
    /// What is read and not yet let go.
    waiting: Size,
    /// The lane of each partition's last change.
    tails: HashMap<Track, u32>,
}

type Shares = Vec<(u32, Share)>;

#[derive(Debug)]
enum Mode {
    /// Transactions come one after another. The one that is being read.
    Single(Shares),
    /// Transactions are spread over partitions.
    Merged(Merge<Shares>),
}

impl ByShard {
    /// For a source of whole transactions in commit order
    /// ([`SourceOrder::Transactions`](crate::SourceOrder::Transactions)).
    pub fn single(shards: ShardLanes, limits: UnitLimits) -> Self {
        Self::of_mode(shards, limits, Mode::Single(Vec::new()))
    }

    /// For a source whose partitions give their parts of transactions in the order of commit times
    /// ([`SourceOrder::CommitTimePerPartition`](crate::SourceOrder::CommitTimePerPartition)).
    pub fn merged(shards: ShardLanes, limits: UnitLimits) -> Self {
        // A partition may resume within a transaction: one shard had it and another had not.
        Self::of_mode(shards, limits, Mode::Merged(Merge::new(false)))
    }

    /// For partitions that share no transactions and whose commit times may go back: each keeps its own order,
    /// and what comes later is taken to be committed no earlier.
    #[must_use]
    pub fn times_may_go_back(mut self) -> Self {
        if let Mode::Merged(merge) = &mut self.mode {
            merge.times_may_go_back();
        }
        self
    }

    fn of_mode(shards: ShardLanes, limits: UnitLimits, mode: Mode) -> Self {
        Self {
            ledger: Ledger::default(),
            lanes: Lanes::new(shards.count(), limits),
            shards,
            mode,
            waiting: Size::default(),
            tails: HashMap::new(),
        }
    }

    /// The piece's changes by lane.
    fn split(&mut self, notes: &Arc<BatchNotes>, batch: &ChangeBatch, at: usize, piece: &Piece) -> Shares {
        let tail = self.tails.entry(notes.track).or_default();
        if notes.ends_bare(at) {
            return vec![(*tail, Share::end(notes, at))];
        }
        let mut lists: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for index in piece.changes.clone() {
            *tail = self.shards.first(batch.change(index as usize));
            lists.entry(*tail).or_default().push(index);
        }
        lists.into_iter().map(|(lane, list)| (lane, Share::list(notes, list))).collect()
    }

    /// Lets go every transaction that all partitions have passed.
    fn release(&mut self) -> Result<()> {
        while let Mode::Merged(merge) = &mut self.mode {
            let Some((_, parts)) = merge.pop(merge.through())? else { break };
            self.give(parts.into_iter().flatten().collect());
        }
        Ok(())
    }

    /// Gives a transaction to its lanes.
    fn give(&mut self, mut shares: Shares) {
        // Stable: within a lane they stay in the order of the transaction.
        shares.sort_by_key(|(lane, _)| *lane);
        let mut sizes: HashMap<u32, Size> = HashMap::new();
        for (lane, share) in &shares {
            let size = sizes.entry(*lane).or_default();
            *size = size.plus(share.size());
            self.waiting = self.waiting.minus(share.size());
        }
        for (lane, mut share) in shares {
            // Only the first share of a lane finds the size of all of them.
            share.group = sizes.remove(&lane);
            share.whole = true;
            self.lanes.give(&mut self.ledger, lane, share);
        }
    }
}

impl Orderer for ByShard {
    fn has_room(&self) -> bool {
        self.lanes.has_room(self.waiting)
    }

    fn opened(&mut self, partition: &Partition, from: Option<&Progress>) {
        self.ledger.open(partition, from);
        if let Mode::Merged(merge) = &mut self.mode {
            merge.opened(partition, from);
        }
    }

    fn closed(&mut self, partition: &PartitionId) {
        if let Mode::Merged(merge) = &mut self.mode {
            merge.closed(partition);
        }
    }

    fn forget(&mut self, partition: &PartitionId) {
        if let Mode::Merged(merge) = &mut self.mode {
            merge.forget(partition);
        }
        if let Some(track) = self.ledger.forget(partition) {
            self.lanes.forget(track);
            self.tails.remove(&track);
        }
    }

    fn push(&mut self, id: BatchId, batch: &ChangeBatch) -> Result<()> {
        let track = self.ledger.admit(batch)?;
        let notes = BatchNotes::take(&mut self.ledger, track, id, batch);
        for (at, piece) in batch.pieces().iter().enumerate() {
            let shares = self.split(&notes, batch, at, piece);
            let size = shares.iter().fold(Size::default(), |size, (_, share)| size.plus(share.size()));
            self.waiting = self.waiting.plus(size);
            let replay = self.ledger.is_replay(track, &notes.first_rank(at));
            match &mut self.mode {
                Mode::Single(open) => {
                    open.extend(shares);
                    if piece.end.is_some() {
                        let ended = std::mem::take(open);
                        self.give(ended);
                    }
                }
                Mode::Merged(merge) => {
                    if let Some(bare) = merge.push(batch.partition(), piece, replay, shares)? {
                        self.give(bare);
                    }
                }
            }
        }
        if let Mode::Merged(merge) = &mut self.mode {
            merge.end_of_batch(batch);
        }
        Ok(())
    }

    fn next_ready(&mut self) -> Result<Option<OrderedUnit>> {
        self.release()?;
        Ok(self.lanes.next(&self.ledger))
    }

    fn complete(&mut self, unit: UnitId) {
        self.lanes.complete(&mut self.ledger, unit);
    }

    fn low_watermark(&self) -> &BTreeMap<PartitionId, Progress> {
        self.ledger.low()
    }
}
