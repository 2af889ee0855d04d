//! As the source gives them.

use std::collections::BTreeMap;

use super::lanes::{BatchNotes, Lanes, Share};
use super::ledger::Ledger;
use super::transactions::Size;
use super::{Orderer, UnitLimits};
use crate::error::Result;
use crate::model::{BatchId, ChangeBatch, OrderedUnit, Partition, PartitionId, Progress, UnitId};

/// Applies changes as they come, on one lane. A unit may end amid a transaction.
///
/// For sources whose partitions need no order between them, and targets that take changes one by
/// one. Its own memory is bounded by the number of pieces that wait.
#[derive(Debug)]
pub struct Arrival {
    ledger: Ledger,
    lanes: Lanes,
}

impl Arrival {
    /// Units are filled up to these limits while the lane is busy.
    pub fn new(limits: UnitLimits) -> Self {
        Self { ledger: Ledger::default(), lanes: Lanes::new(1, limits) }
    }
}

impl Orderer for Arrival {
    fn has_room(&self) -> bool {
        self.lanes.has_room(Size::default())
    }

    fn opened(&mut self, partition: &Partition, from: Option<&Progress>) {
        self.ledger.open(partition, from);
    }

    fn closed(&mut self, _partition: &PartitionId) {}

    fn forget(&mut self, partition: &PartitionId) {
        if let Some(track) = self.ledger.forget(partition) {
            self.lanes.forget(track);
        }
    }

    fn push(&mut self, id: BatchId, batch: &ChangeBatch) -> Result<()> {
        let track = self.ledger.admit(batch)?;
        let notes = BatchNotes::take(&mut self.ledger, track, id, batch);
        for (at, piece) in batch.pieces().iter().enumerate() {
            let share =
                if notes.ends_bare(at) { Share::end(&notes, at) } else { Share::run(&notes, piece.changes.clone()) };
            if !share.is_empty() {
                self.lanes.give(&mut self.ledger, 0, share);
            }
        }
        Ok(())
    }

    fn next_ready(&mut self) -> Result<Option<OrderedUnit>> {
        Ok(self.lanes.next(&self.ledger))
    }

    fn complete(&mut self, unit: UnitId) {
        self.lanes.complete(&mut self.ledger, unit);
    }

    fn low_watermark(&self) -> &BTreeMap<PartitionId, Progress> {
        self.ledger.low()
    }
}
