//! The suite for orderers accepts a plain one, and finds broken ones.

use std::collections::{BTreeMap, VecDeque};

use anabranch_core::{
    BatchId, ChangeBatch, OrderedUnit, Orderer, Part, Partition, PartitionId, Progress, Result, Selection, Slice,
    UnitId,
};
use anabranch_testkit::conformance::orderer::{Promise, run};

/// One unit for each transaction, on one lane. `flaw` says what it does wrong.
#[derive(Debug, Default)]
struct Plain {
    flaw: Flaw,
    units: u64,
    slices: Vec<Slice>,
    ready: VecDeque<OrderedUnit>,
    /// Units in order, with the progress that their completion allows.
    open: VecDeque<(UnitId, bool, Progress)>,
    watermark: BTreeMap<PartitionId, Progress>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum Flaw {
    #[default]
    None,
    SplitsTransactions,
    UsesTwoLanes,
    WatermarkTooEarly,
    LosesAChange,
}

impl Plain {
    fn emit(&mut self, progress: Progress, end: bool) {
        self.units += 1;
        let id = UnitId(self.units);
        let slices = std::mem::take(&mut self.slices);
        let progress_of_unit = if end { vec![progress.clone()] } else { Vec::new() };
        let lane = if self.flaw == Flaw::UsesTwoLanes { (self.units % 2) as u32 } else { 0 };
        let unit = OrderedUnit {
            id,
            lane,
            part: Part::Whole,
            slices,
            transactions: u64::from(end),
            progress: progress_of_unit,
        };
        self.ready.push_back(unit);
        self.open.push_back((id, false, progress));
    }
}

impl Orderer for Plain {
    fn has_room(&self) -> bool {
        self.open.len() < 5
    }

    fn opened(&mut self, _partition: &Partition, _from: Option<&Progress>) {}

    fn closed(&mut self, _partition: &PartitionId) {}

    fn push(&mut self, id: BatchId, batch: &ChangeBatch) -> Result<()> {
        let progress = |position: &anabranch_core::Position, safe_time| Progress {
            partition: batch.partition().clone(),
            position: position.clone(),
            safe_time,
        };
        for piece in batch.pieces() {
            let mut changes = piece.changes.clone();
            if self.flaw == Flaw::LosesAChange && changes.len() > 3 {
                changes.end -= 1;
            }
            self.slices.push(Slice { batch: id, changes: Selection::Range(changes) });
            match &piece.end {
                Some(end) => self.emit(progress(end, piece.transaction.commit_time), true),
                None if self.flaw == Flaw::SplitsTransactions => self.emit(progress(batch.end(), None), false),
                None => {}
            }
        }
        if self.slices.is_empty() {
            // The batch says more than its last transaction: how far safe time is.
            self.emit(progress(batch.end(), batch.safe_time()), true);
        }
        if self.flaw == Flaw::WatermarkTooEarly {
            self.watermark.insert(batch.partition().clone(), progress(batch.end(), batch.safe_time()));
        }
        Ok(())
    }

    fn next_ready(&mut self) -> Result<Option<OrderedUnit>> {
        Ok(self.ready.pop_front())
    }

    fn complete(&mut self, unit: UnitId) {
        self.open.iter_mut().filter(|(id, ..)| *id == unit).for_each(|(_, complete, _)| *complete = true);
        while let Some((_, true, progress)) = self.open.front() {
            self.watermark.insert(progress.partition.clone(), progress.clone());
            self.open.pop_front();
        }
    }

    fn low_watermark(&self) -> &BTreeMap<PartitionId, Progress> {
        &self.watermark
    }
}

#[tokio::test]
async fn a_plain_orderer_passes() {
    run(Promise::Transactions, || Box::new(Plain::default())).await;
    run(Promise::Keys, || Box::new(Plain::default())).await;
}

async fn is_found(flaw: Flaw, promise: Promise, says: &str) {
    let run = tokio::spawn(run(promise, move || Box::new(Plain { flaw, ..Plain::default() })));
    let panic = run.await.expect_err("the suite finds it").into_panic();
    let message = panic.downcast_ref::<String>().expect("a message");
    assert!(message.contains(says), "{message}");
}

#[tokio::test]
async fn a_split_transaction_is_found() {
    is_found(Flaw::SplitsTransactions, Promise::Transactions, "ends within a source transaction").await;
}

#[tokio::test]
async fn changes_out_of_order_are_found() {
    is_found(Flaw::UsesTwoLanes, Promise::Keys, "out of order").await;
}

#[tokio::test]
async fn an_early_watermark_is_found() {
    is_found(Flaw::WatermarkTooEarly, Promise::Keys, "has passed").await;
}

#[tokio::test]
async fn a_lost_change_is_found() {
    is_found(Flaw::LosesAChange, Promise::Keys, "has passed").await;
}
