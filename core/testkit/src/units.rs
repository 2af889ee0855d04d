//! Units by hand: what an orderer and the runtime would make of a source.

use std::sync::Arc;

use anabranch_core::{
    BatchId, ChangeBatch, ChangeReader, Next, Part, Position, Progress, Selection, Source, StartFrom, Unit, UnitId,
    UnitKind, UnitSlice,
};

/// Everything that a reader has until it reaches `end`.
///
/// # Panics
/// If the reader fails, or ends before.
pub async fn read_through(reader: &mut dyn ChangeReader, end: &Position) -> Vec<Arc<ChangeBatch>> {
    let mut batches = Vec::new();
    loop {
        match reader.next().await.expect("read") {
            Next::Batch(batch) => {
                let done = batch.end().rank >= end.rank;
                batches.push(Arc::new(batch));
                if done {
                    return batches;
                }
            }
            other => panic!("the reader gave {other:?} before the end"),
        }
    }
}

/// Everything that the only partition of a source has until `end`.
///
/// # Panics
/// If the source fails.
pub async fn read_source(source: &dyn Source, from: &StartFrom, end: &Position) -> Vec<Arc<ChangeBatch>> {
    let partitions = source.partitions().await.expect("partitions");
    let mut reader = source.open(&partitions[0], from).await.expect("open");
    read_through(&mut *reader, end).await
}

/// One whole unit for each source transaction, in order.
pub fn by_transaction(batches: &[Arc<ChangeBatch>]) -> Vec<Unit> {
    let mut units = Vec::new();
    let mut slices = Vec::new();
    for batch in batches {
        for piece in batch.pieces() {
            slices.push(UnitSlice { batch: Arc::clone(batch), changes: Selection::Range(piece.changes.clone()) });
            if let Some(end) = &piece.end {
                let partition = batch.partition().clone();
                let progress = vec![Progress { partition, position: end.clone(), safe_time: batch.safe_time() }];
                units.push(unit(units.len() as u64, Part::Whole, std::mem::take(&mut slices), 1, progress));
            }
        }
    }
    units
}

/// One unit of several: the same changes, and the progress of the last.
///
/// # Panics
/// If there are none.
pub fn merge(units: &[Unit]) -> Unit {
    let last = units.last().expect("units to merge");
    let slices = units.iter().flat_map(|u| u.slices.clone()).collect();
    unit(last.id.0, Part::Whole, slices, units.iter().map(|u| u.transactions).sum(), last.progress.clone())
}

/// A unit as parts of one target transaction, with at most `changes` changes each. A unit that
/// is shorter stays whole.
pub fn in_parts(whole: &Unit, changes: usize) -> Vec<Unit> {
    let mut slices = Vec::new();
    for slice in &whole.slices {
        let indices: Vec<u32> = slice.changes.iter().collect();
        for run in indices.chunks(changes) {
            slices.push(UnitSlice { batch: Arc::clone(&slice.batch), changes: Selection::List(run.to_vec()) });
        }
    }
    if slices.len() < 2 {
        return vec![whole.clone()];
    }
    let last = slices.len() - 1;
    let part = |at| match at {
        0 => Part::First,
        at if at == last => Part::Last,
        _ => Part::Middle,
    };
    let make = |(at, slice)| {
        let (transactions, progress) =
            if at == last { (whole.transactions, whole.progress.clone()) } else { (0, Vec::new()) };
        unit(whole.id.0 * 1000 + at as u64, part(at), vec![slice], transactions, progress)
    };
    slices.into_iter().enumerate().map(make).collect()
}

fn unit(id: u64, part: Part, slices: Vec<UnitSlice>, transactions: u64, progress: Vec<Progress>) -> Unit {
    let slices = slices.into_iter().filter(|s| !s.changes.is_empty()).collect();
    Unit { id: UnitId(id), kind: UnitKind::Stream, part, slices, transactions, progress }
}

/// Batches with the ids that an orderer is told.
pub fn numbered(batches: &[Arc<ChangeBatch>]) -> impl Iterator<Item = (BatchId, &Arc<ChangeBatch>)> {
    batches.iter().enumerate().map(|(n, batch)| (BatchId(n as u64), batch))
}
