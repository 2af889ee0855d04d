//! Whole transactions, in commit order, one after another.

use std::collections::BTreeMap;

use super::ledger::Ledger;
use super::transactions::{Run, Transactions, change_bytes};
use super::{Orderer, UnitLimits};
use crate::error::{Error, Result};
use crate::model::{BatchId, ChangeBatch, OrderedUnit, Partition, PartitionId, Piece, Progress, Rank, UnitId};

/// Applies transactions whole and in commit order, on one lane.
///
/// Consecutive transactions are merged into one unit, up to the limits. A transaction above the
/// limits is handed out in parts of one target transaction, alone, while it still arrives; one that
/// has not ended and is below the limits is held until it ends.
///
/// Its own memory is bounded by the number of pieces that wait.
#[derive(Debug)]
pub struct ByTransaction {
    ledger: Ledger,
    transactions: Transactions,
    /// The transaction that is being pushed: its partition and rank.
    open: Option<(PartitionId, bytes::Bytes)>,
}

impl ByTransaction {
    /// For a source of whole transactions in commit order
    /// ([`SourceOrder::Transactions`](crate::SourceOrder::Transactions)).
    pub fn single(limits: UnitLimits) -> Self {
        Self { ledger: Ledger::default(), transactions: Transactions::new(limits), open: None }
    }

    fn push_piece(&mut self, track: usize, id: BatchId, batch: &ChangeBatch, piece: &Piece) -> Result<()> {
        let this = (batch.partition().clone(), piece.transaction.rank.clone());
        match &self.open {
            Some(open) if *open != this => {
                return Err(Error::fatal(format!(
                    "partition {} went on with {:?} before the end of {:?}",
                    this.0,
                    Rank::new(this.1),
                    Rank::new(open.1.clone()),
                )));
            }
            Some(_) => {}
            None => {
                self.ledger.begin(track);
                self.open = Some(this);
            }
        }
        let ended = piece.end.is_some();
        if !piece.changes.is_empty() || self.transactions.is_open() {
            let work = (!self.transactions.is_open()).then(|| self.ledger.add_to_last(track, 1));
            let run = Run { batch: id, changes: piece.changes.clone(), change_bytes: change_bytes(batch) };
            self.transactions.extend(run, work, ended);
        }
        if let Some(end) = &piece.end {
            self.ledger.place(track, end.clone());
            self.ledger.seal(track);
            self.open = None;
        }
        Ok(())
    }
}

impl Orderer for ByTransaction {
    fn has_room(&self) -> bool {
        self.transactions.has_room()
    }

    fn opened(&mut self, partition: &Partition, from: Option<&Progress>) {
        self.ledger.open(partition, from);
    }

    fn closed(&mut self, _partition: &PartitionId) {}

    fn push(&mut self, id: BatchId, batch: &ChangeBatch) -> Result<()> {
        let track = self.ledger.admit(batch)?;
        for piece in batch.pieces() {
            self.push_piece(track, id, batch, piece)?;
        }
        self.ledger.end_of_batch(track, batch);
        Ok(())
    }

    fn next_ready(&mut self) -> Result<Option<OrderedUnit>> {
        Ok(self.transactions.next(&mut self.ledger))
    }

    fn complete(&mut self, unit: UnitId) {
        self.transactions.complete(&mut self.ledger, unit);
    }

    fn low_watermark(&self) -> &BTreeMap<PartitionId, Progress> {
        self.ledger.low()
    }
}
