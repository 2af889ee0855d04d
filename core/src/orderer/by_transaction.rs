//! Whole transactions, in commit order, one after another.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use super::ledger::{Ledger, Track, Work};
use super::merge::Merge;
use super::transactions::{Run, Transactions, Waiting, change_bytes};
use super::{Orderer, UnitLimits};
use crate::error::{Error, Result};
use crate::model::{
    BatchId, ChangeBatch, OrderedUnit, Partition, PartitionId, Piece, Position, Progress, Rank, UnitId,
};

/// Applies transactions whole and in commit order, on one lane.
///
/// Consecutive transactions are merged into one unit, up to the limits. A transaction above the
/// limits is handed out in parts of one target transaction, alone. Of a source with one partition
/// it is handed out while it still arrives; if it is below the limits it is held until it ends.
///
/// A unit stores, for every partition that moved, how far everything of it was handed out. Its own
/// memory is bounded by the number of pieces that wait.
#[derive(Debug)]
pub struct ByTransaction {
    ledger: Ledger,
    transactions: Transactions,
    mode: Mode,
}

#[derive(Debug)]
enum Mode {
    /// Transactions come one after another. The one that is being pushed: its partition and rank.
    Single(Option<(PartitionId, Bytes)>),
    /// Transactions are spread over partitions.
    Merged(Spread),
}

/// Transactions that are spread over partitions.
#[derive(Debug)]
struct Spread {
    merge: Merge<(Run, Work)>,
    /// For each partition the transaction of its open mark.
    open: HashMap<Track, Bytes>,
}

impl ByTransaction {
    /// For a source of whole transactions in commit order
    /// ([`SourceOrder::Transactions`](crate::SourceOrder::Transactions)).
    pub fn single(limits: UnitLimits) -> Self {
        Self::of_mode(limits, Mode::Single(None))
    }

    /// For a source whose partitions give their parts of transactions in the order of commit times
    /// ([`SourceOrder::CommitTimePerPartition`](crate::SourceOrder::CommitTimePerPartition)).
    ///
    /// A transaction is let go when every partition was heard up to its commit time, with the
    /// changes of all partitions in the order of their numbers. If each piece tells
    /// [`Transaction::total`](crate::Transaction::total), it must be reached: a transform that
    /// leaves changes out clears it.
    pub fn merged(limits: UnitLimits) -> Self {
        Self::of_mode(limits, Mode::Merged(Spread { merge: Merge::new(true), open: HashMap::new() }))
    }

    /// For partitions that share no transactions and whose commit times may go back: each keeps its own order,
    /// and what comes later is taken to be committed no earlier.
    #[must_use]
    pub fn times_may_go_back(mut self) -> Self {
        if let Mode::Merged(spread) = &mut self.mode {
            spread.merge.times_may_go_back();
        }
        self
    }

    fn of_mode(limits: UnitLimits, mode: Mode) -> Self {
        Self { ledger: Ledger::default(), transactions: Transactions::new(limits), mode }
    }
}

impl Orderer for ByTransaction {
    fn has_room(&self) -> bool {
        self.transactions.has_room()
    }

    fn opened(&mut self, partition: &Partition, from: Option<&Progress>) {
        self.ledger.open(partition, from);
        if let Mode::Merged(spread) = &mut self.mode {
            spread.merge.opened(partition, from);
        }
    }

    fn closed(&mut self, partition: &PartitionId) {
        if let Mode::Merged(spread) = &mut self.mode {
            spread.merge.closed(partition);
        }
    }

    fn forget(&mut self, partition: &PartitionId) {
        let track = self.ledger.forget(partition);
        if let Mode::Merged(spread) = &mut self.mode {
            spread.merge.forget(partition);
            track.and_then(|track| spread.open.remove(&track));
        }
    }

    fn push(&mut self, id: BatchId, batch: &ChangeBatch) -> Result<()> {
        let track = self.ledger.admit(batch)?;
        let change_bytes = change_bytes(batch);
        for piece in batch.pieces() {
            let replay = self.ledger.is_replay(track, &Rank::of_change(&piece.transaction.rank, piece.first_sequence));
            let run = Run { batch: id, changes: piece.changes.clone(), change_bytes, replay };
            match &mut self.mode {
                Mode::Single(open) => {
                    push_single(&mut self.ledger, &mut self.transactions, open, track, piece, run)?;
                }
                Mode::Merged(spread) => spread.push(&mut self.ledger, track, piece, run)?,
            }
        }
        if let Mode::Merged(spread) = &mut self.mode {
            if self.ledger.is_open(track) {
                // The source may not tell that the transaction ends here; the frontier does, later.
                self.ledger.place(track, batch.end().clone());
            }
            spread.merge.end_of_batch(batch);
        }
        self.ledger.end_of_batch(track, batch);
        Ok(())
    }

    fn next_ready(&mut self) -> Result<Option<OrderedUnit>> {
        if let Mode::Merged(spread) = &mut self.mode {
            spread.release(&mut self.ledger, &mut self.transactions)?;
        }
        Ok(self.transactions.next(&mut self.ledger))
    }

    fn complete(&mut self, unit: UnitId) {
        self.transactions.complete(&mut self.ledger, unit);
    }

    fn low_watermark(&self) -> &BTreeMap<PartitionId, Progress> {
        self.ledger.low()
    }
}

fn push_single(
    ledger: &mut Ledger,
    transactions: &mut Transactions,
    open: &mut Option<(PartitionId, Bytes)>,
    track: Track,
    piece: &Piece,
    run: Run,
) -> Result<()> {
    let rank = &piece.transaction.rank;
    let partition = ledger.partition(track);
    match open {
        Some((p, r)) if (&*p, &*r) != (partition, rank) => {
            return Err(Error::fatal(format!(
                "partition {partition} gave {:?} before the end of {:?}",
                Rank::new(rank.clone()),
                Rank::new(r.clone()),
            )));
        }
        Some(_) => {}
        None => {
            *open = Some((partition.clone(), rank.clone()));
            ledger.begin(track);
        }
    }
    if transactions.is_open() {
        transactions.extend(run, None, piece.end.is_some());
    } else if !piece.changes.is_empty() {
        let work = ledger.add_to_last(track, 1);
        transactions.extend(run, Some(work), piece.end.is_some());
    }
    if let Some(end) = &piece.end {
        ledger.place(track, end.clone());
        ledger.seal(track);
        *open = None;
    }
    Ok(())
}

impl Spread {
    fn push(&mut self, ledger: &mut Ledger, track: Track, piece: &Piece, run: Run) -> Result<()> {
        let rank = &piece.transaction.rank;
        if !(ledger.is_open(track) && self.open.get(&track) == Some(rank)) {
            ledger.begin(track);
        }
        self.open.insert(track, rank.clone());
        let work = ledger.add_to_last(track, 1);
        if let Some(end) = &piece.end {
            ledger.place(track, end.clone());
            ledger.set_token(track, &end.token);
            ledger.seal(track);
        } else if !piece.changes.is_empty() {
            let last = Rank::of_change(rank, piece.first_sequence + piece.changes.len() as u64 - 1);
            let token = ledger.token(track).clone();
            ledger.place(track, Position::new(last, token));
        }
        if let Some((_, work)) = self.merge.push(ledger.partition(track), piece, run.replay, (run, work))? {
            pass(ledger, &[work]);
        }
        Ok(())
    }

    /// Queues the transactions that every partition has passed.
    fn release(&mut self, ledger: &mut Ledger, transactions: &mut Transactions) -> Result<()> {
        let through = self.merge.through();
        while let Some((_, parts)) = self.merge.pop(through)? {
            let (runs, work): (Vec<Run>, Vec<Work>) = parts.into_iter().unzip();
            work.iter().for_each(|w| ledger.seal_mark(w.track, w.mark));
            if runs.iter().all(|run| run.changes.is_empty()) {
                pass(ledger, &work);
            } else {
                transactions.push(Waiting::whole(runs, work));
            }
        }
        Ok(())
    }
}

/// There is nothing to hand out.
fn pass(ledger: &mut Ledger, work: &[Work]) {
    for &work in work {
        ledger.seal_mark(work.track, work.mark);
        ledger.give(work);
        ledger.finish(work);
    }
}
