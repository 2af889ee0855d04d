//! A lane's writer: one transaction per unit, fenced, with its progress.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_core::{
    Error, ErrorKind, Lane, Part, PartitionId, Progress, Result, SinkWriter, Unit, UnitKind, Written,
};
use async_trait::async_trait;

use super::Shared;
use super::plan::Plans;
use super::program::Program;
use super::run::Apply;

/// Columns written, from which on a unit of several source transactions becomes several target
/// transactions: far below Spanner's limit of 80,000, for those of secondary indexes count too.
const MERGE_MUTATIONS: usize = 20_000;
/// Bytes of the same.
const MERGE_BYTES: usize = 16 << 20;

/// Writes the units of one lane.
pub(crate) struct SpannerWriter {
    shared: Arc<Shared>,
    lane: Lane,
    plans: Plans,
    /// Parts of a transaction that goes on.
    staged: Program,
    staged_changes: u64,
    staged_transactions: u64,
    /// Its first part was taken.
    open: bool,
}

impl SpannerWriter {
    pub(crate) fn new(shared: Arc<Shared>, lane: Lane) -> Self {
        let (staged, plans) = (Program::default(), Plans::default());
        Self { shared, lane, plans, staged, staged_changes: 0, staged_transactions: 0, open: false }
    }

    async fn stage(&mut self, unit: &Unit) -> Result<()> {
        let added = self.staged.add(&self.shared, &mut self.plans, unit).await;
        self.staged_changes += unit.row_changes();
        self.staged_transactions += unit.transactions;
        if added.is_err() {
            self.forget();
        }
        added
    }

    fn forget(&mut self) {
        self.staged = Program::default();
        (self.staged_changes, self.staged_transactions, self.open) = (0, 0, false);
        // What went wrong may be that someone changed a table: describe them anew.
        self.plans.clear();
    }

    /// Commits what is staged, with this progress.
    async fn commit(&mut self, progress: &[Progress]) -> Result<()> {
        let dialect = self.shared.dialect().await?;
        let program = std::mem::take(&mut self.staged);
        let (changes, transactions) = (self.staged_changes, self.staged_transactions);
        let stopped = None;
        let mut work = Apply { dialect, lane: &self.lane, program: &program, changes, transactions, progress, stopped };
        let done = self.shared.transact(&self.lane.pipeline, &mut work).await;
        let done = done.map(drop).map_err(|e| work.failed(e));
        match &done {
            Ok(()) => (self.staged_changes, self.staged_transactions, self.open) = (0, 0, false),
            Err(_) => self.forget(),
        }
        done
    }
}

#[async_trait]
impl SinkWriter for SpannerWriter {
    async fn write(&mut self, unit: &Unit) -> Result<Written> {
        if !unit.part.ends() {
            self.stage(unit).await?;
            self.open = true;
            return Ok(Written::accepted());
        }
        // Its parts may have no rows so far: messages, rows that are left out.
        if unit.part == Part::Last && !self.open {
            return Err(Error::fatal("a unit ends a transaction that was not begun"));
        }
        let pieces = if unit.part == Part::Whole { pieces(unit) } else { vec![unit.clone()] };
        let count = pieces.len();
        for (number, piece) in pieces.into_iter().enumerate() {
            let done = match self.stage(&piece).await {
                Ok(()) => self.commit(&piece.progress).await,
                Err(error) => Err(error),
            };
            done.map_err(|error| after_others(error, number, count, unit.kind))?;
        }
        Ok(Written::durable())
    }

    async fn flush(&mut self) -> Result<()> {
        // Every unit is durable when its write returns; parts take effect with the last.
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// A piece failed and those before it are in the target, with their progress: that tells the runtime
/// where to go on. A copy has none, and may be written again whole.
fn after_others(error: Error, number: usize, count: usize, kind: UnitKind) -> Error {
    let retried = matches!(error.kind(), ErrorKind::Transient | ErrorKind::Rejected);
    if number == 0 || kind == UnitKind::Snapshot || !retried {
        return error;
    }
    error
        .context(format!("in target transaction {} of {count} of a unit", number + 1))
        .with_kind(ErrorKind::Indeterminate)
}

/// The target transactions of a unit: one, unless it is too large for that and has several source
/// transactions, or is part of a copy.
fn pieces(unit: &Unit) -> Vec<Unit> {
    let room = |unit: &Unit| weight(unit).0 <= MERGE_MUTATIONS && weight(unit).1 <= MERGE_BYTES;
    if room(unit) {
        return vec![unit.clone()];
    }
    if unit.kind == UnitKind::Snapshot {
        let (mutations, bytes) = weight(unit);
        let count = (mutations / MERGE_MUTATIONS).max(bytes / MERGE_BYTES) + 1;
        let step = unit.len().div_ceil(count).max(1);
        let part = |start: usize| unit.part_of(start..(start + step).min(unit.len()), Vec::new());
        return (0..unit.len()).step_by(step).map(part).collect();
    }
    let mut pieces: Vec<Unit> = Vec::new();
    let mut used = (0, 0);
    for next in unit.split_by_transaction() {
        let size = weight(&next);
        let fits = used.0 + size.0 <= MERGE_MUTATIONS && used.1 + size.1 <= MERGE_BYTES;
        match pieces.last_mut().filter(|_| fits) {
            Some(piece) => {
                merge(piece, next);
                used = (used.0 + size.0, used.1 + size.1);
            }
            None => {
                pieces.push(next);
                used = size;
            }
        }
    }
    pieces
}

fn merge(piece: &mut Unit, next: Unit) {
    piece.slices.extend(next.slices);
    piece.transactions += next.transactions;
    let old = std::mem::take(&mut piece.progress);
    let by_partition: BTreeMap<PartitionId, Progress> =
        old.into_iter().chain(next.progress).map(|p| (p.partition.clone(), p)).collect();
    piece.progress = by_partition.into_values().collect();
}

/// About how many mutations and bytes a unit becomes.
fn weight(unit: &Unit) -> (usize, usize) {
    let mutations = unit.changes().map(|c| c.table().map_or(0, |t| t.columns.len())).sum();
    // A batch's memory, by the share of its changes that the unit has.
    let share = |s: &anabranch_core::UnitSlice| s.batch.memory_size() * s.changes.len() / s.batch.len().max(1);
    (mutations, unit.slices.iter().map(share).sum())
}
