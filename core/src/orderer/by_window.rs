//! Per shard, in fixed windows of commit time.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::lanes::{BatchNotes, Lanes, Share};
use super::ledger::{Ledger, Track};
use super::merge::Merge;
use super::route::ShardLanes;
use super::transactions::Size;
use super::{Orderer, UnitLimits};
use crate::error::Result;
use crate::hash::Fnv;
use crate::model::{BatchId, ChangeBatch, OrderedUnit, Partition, PartitionId, Piece, Progress, Timestamp, UnitId};

/// Applies the changes of each shard sorted by commit time, transaction and number, window by window.
///
/// The windows are `[k * length, (k + 1) * length)` of commit time since 1970. A window is let go
/// when every partition was heard up to its end. A shard's changes go to the lane that the FNV-1a
/// hash (64 bits) of its name, modulo the number of lanes, tells (changes without a shard: of the
/// empty name); the number of lanes may change only when everything that was read is durable. What
/// one window has for the shards of one lane is one unit, or several if the limits ask for it: then
/// cut between transactions, unless one of them is larger than the limits. A window amid which a
/// partition closes is let go in two steps, sorted all the same.
///
/// For a source whose partitions give changes in the order of commit times. Its own memory is
/// bounded by the number of pieces and, at four bytes each, of changes that wait.
#[derive(Debug)]
pub struct ByWindow {
    length: i64,
    ledger: Ledger,
    merge: Merge<Vec<(u32, Share)>>,
    lanes: Lanes,
    /// The window of each lane's last change.
    windows: Vec<i64>,
    /// The lane of each partition's last change.
    tails: HashMap<Track, u32>,
    shards: Option<ShardLanes>,
}

impl ByWindow {
    /// Windows of this length (whole microseconds, at least one) on this many lanes (at least one).
    pub fn new(window: Duration, lanes: u32, limits: UnitLimits) -> Self {
        let lanes = Lanes::new(lanes, limits);
        Self {
            length: i64::try_from(window.as_micros()).unwrap_or(i64::MAX).max(1),
            ledger: Ledger::default(),
            merge: Merge::new(false),
            windows: vec![i64::MIN; lanes.count() as usize],
            lanes,
            tails: HashMap::new(),
            shards: None,
        }
    }

    /// For partitions that share no transactions and whose commit times may go back: each keeps its own order,
    /// and what comes later is taken to be committed no earlier.
    #[must_use]
    pub fn times_may_go_back(mut self) -> Self {
        self.merge.times_may_go_back();
        self
    }

    /// Each shard has a lane of its own, in place of those of [`ByWindow::new`].
    #[must_use]
    pub fn sharded(mut self, shards: ShardLanes, limits: UnitLimits) -> Self {
        self.lanes = Lanes::new(shards.count(), limits);
        self.windows = vec![i64::MIN; self.lanes.count() as usize];
        self.shards = Some(shards);
        self
    }

    /// The piece's changes by lane.
    fn split(&mut self, notes: &Arc<BatchNotes>, batch: &ChangeBatch, at: usize, piece: &Piece) -> Vec<(u32, Share)> {
        let tail = self.tails.entry(notes.track).or_default();
        if notes.ends_bare(at) {
            return vec![(*tail, Share::end(notes, at))];
        }
        let mut lists: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for index in piece.changes.clone() {
            let change = batch.change(index as usize);
            *tail = match &self.shards {
                Some(shards) => shards.first(change),
                None => {
                    let shard = change.shard().map_or("", |s| s);
                    Fnv::new().with(shard.as_bytes()).modulo(self.lanes.count())
                }
            };
            lists.entry(*tail).or_default().push(index);
        }
        lists.into_iter().map(|(lane, list)| (lane, Share::list(notes, list))).collect()
    }

    /// The last microsecond of the last window that every partition has passed, or the end of a
    /// partition that closed amid a later one: its children are read only when it is durable, so
    /// the window would wait for them for ever.
    fn through(&self) -> Timestamp {
        let through = self.merge.through().as_micros();
        let passed = match through.checked_add(1) {
            Some(next) => Timestamp::from_micros(next.saturating_sub(next.rem_euclid(self.length))).minus_micros(1),
            None => Timestamp::from_micros(through),
        };
        passed.max(self.merge.through_closed())
    }

    fn release(&mut self) -> Result<()> {
        let through = self.through();
        while let Some((time, parts)) = self.merge.pop(through)? {
            self.give(time.as_micros().div_euclid(self.length), parts.into_iter().flatten().collect());
        }
        Ok(())
    }

    /// Gives a transaction of this window to its lanes.
    fn give(&mut self, window: i64, mut shares: Vec<(u32, Share)>) {
        // Stable: within a lane they stay in the order of the transaction.
        shares.sort_by_key(|(lane, _)| *lane);
        let mut sizes: HashMap<u32, Size> = HashMap::new();
        for (lane, share) in &shares {
            let size = sizes.entry(*lane).or_default();
            *size = size.plus(share.size());
        }
        for (lane, mut share) in shares {
            // Only the first share of a lane finds the size of all of them.
            share.group = sizes.remove(&lane);
            let last = &mut self.windows[lane as usize];
            if *last != window {
                *last = window;
                share.group = Some(Size::MAX);
            }
            self.lanes.give(&mut self.ledger, lane, share);
        }
    }
}

impl Orderer for ByWindow {
    fn has_room(&self) -> bool {
        self.lanes.has_room(Size::default())
    }

    fn opened(&mut self, partition: &Partition, from: Option<&Progress>) {
        self.ledger.open(partition, from);
        self.merge.opened(partition, from);
    }

    fn closed(&mut self, partition: &PartitionId) {
        self.merge.closed(partition);
    }

    fn forget(&mut self, partition: &PartitionId) {
        self.merge.forget(partition);
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
            let replay = self.ledger.is_replay(track, &notes.first_rank(at));
            if let Some(bare) = self.merge.push(batch.partition(), piece, replay, shares)? {
                for (lane, share) in bare {
                    self.lanes.give(&mut self.ledger, lane, share);
                }
            }
        }
        self.merge.end_of_batch(batch);
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
