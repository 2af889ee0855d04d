//! Whole transactions, in commit order, one after another.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::ledger::{Ledger, Track};
use super::merge::Merge;
use super::transactions::{Run, Transactions, Waiting, change_bytes};
use super::{Orderer, UnitLimits};
use crate::error::{Error, Result};
use crate::model::{BatchId, ChangeBatch, OrderedUnit, Partition, PartitionId, Piece, Progress, Rank, UnitId};

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
    Merged(Merge<Run>),
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
        Self::of_mode(limits, Mode::Merged(Merge::default()))
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
        if let Mode::Merged(merge) = &mut self.mode {
            merge.opened(partition, from);
        }
    }

    fn closed(&mut self, partition: &PartitionId) {
        if let Mode::Merged(merge) = &mut self.mode {
            merge.closed(partition);
        }
    }

    fn push(&mut self, id: BatchId, batch: &ChangeBatch) -> Result<()> {
        let track = self.ledger.admit(batch)?;
        let change_bytes = change_bytes(batch);
        for piece in batch.pieces() {
            let run = Run { batch: id, changes: piece.changes.clone(), change_bytes };
            match &mut self.mode {
                Mode::Single(open) => {
                    push_single(&mut self.ledger, &mut self.transactions, open, track, piece, run)?;
                }
                Mode::Merged(merge) => push_merged(&mut self.ledger, merge, track, piece, run)?,
            }
        }
        match &mut self.mode {
            Mode::Single(_) => self.ledger.end_of_batch(track, batch),
            Mode::Merged(merge) => merge.end_of_batch(&mut self.ledger, track, batch),
        }
        Ok(())
    }

    fn next_ready(&mut self) -> Result<Option<OrderedUnit>> {
        if let Mode::Merged(merge) = &mut self.mode {
            let through = merge.through();
            while let Some((_, pending)) = merge.pop(&mut self.ledger, through)? {
                if pending.pieces.is_empty() {
                    // Its ends alone: nothing to hand out.
                    pending.work.iter().for_each(|w| self.ledger.give(*w));
                    pending.work.iter().for_each(|w| self.ledger.finish(*w));
                } else {
                    let runs = pending.pieces.into_iter().map(|(_, run)| run);
                    self.transactions.push(Waiting::whole(runs, pending.work));
                }
            }
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

fn push_merged(ledger: &mut Ledger, merge: &mut Merge<Run>, track: Track, piece: &Piece, run: Run) -> Result<()> {
    let (pending, _) = merge.push(ledger, track, piece)?;
    if let Some(pending) = pending
        && !piece.changes.is_empty()
    {
        pending.pieces.push((piece.first_sequence, run));
    }
    merge.end_of_piece(ledger, track, piece);
    Ok(())
}
