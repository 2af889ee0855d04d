//! What an orderer emits and a sink applies.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{ChangeBatch, ChangeRef, Op, PartitionId, Position, Timestamp};

/// Names a batch within one run of a pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchId(pub u64);

/// Names a unit within one run of a pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitId(pub u64);

/// Which changes of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// A run of them.
    Range(Range<u32>),
    /// These, in this order.
    List(Vec<u32>),
}

impl Selection {
    /// How many changes.
    pub fn len(&self) -> usize {
        match self {
            Self::Range(r) => r.len(),
            Self::List(l) => l.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The change's index at place `at` of this selection.
    pub fn at(&self, at: usize) -> u32 {
        match self {
            Self::Range(r) => r.start + at as u32,
            Self::List(l) => l[at],
        }
    }

    /// The indices, in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        (0..self.len()).map(|i| self.at(i))
    }
}

/// Whether a unit is a whole target transaction, or a part of one that the sink keeps open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// A target transaction of its own.
    Whole,
    /// Opens a target transaction and leaves it open.
    First,
    /// Goes on with it.
    Middle,
    /// Ends it.
    Last,
}

impl Part {
    /// Whether the target transaction ends with it.
    pub fn ends(self) -> bool {
        matches!(self, Self::Whole | Self::Last)
    }
}

/// How far a partition is once a unit is applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The partition.
    pub partition: PartitionId,
    /// Everything of it at or before this is applied (for the lane that stores it).
    pub position: Position,
    /// The safe time that goes with the position.
    pub safe_time: Option<Timestamp>,
}

/// Changes of one batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// The batch.
    pub batch: BatchId,
    /// Which of its changes.
    pub changes: Selection,
}

/// What an orderer decides: these changes, in this order, on this lane, as one target transaction
/// (or a part of one).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderedUnit {
    /// Its name; [`Orderer::complete`](crate::Orderer::complete) is told it.
    pub id: UnitId,
    /// The lane that applies it.
    pub lane: u32,
    /// Whole, or a part.
    pub part: Part,
    /// The changes.
    pub slices: Vec<Slice>,
    /// Source transactions that end in it.
    pub transactions: u64,
    /// What to store with it; empty unless [`Part::ends`].
    pub progress: Vec<Progress>,
}

/// Where the rows of a unit come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UnitKind {
    /// The change stream.
    Stream,
    /// A snapshot chunk: inserts of one table that no stream change of this run has touched yet.
    Snapshot,
}

/// Changes of one batch, with the batch.
#[derive(Debug, Clone)]
pub struct UnitSlice {
    /// The batch.
    pub batch: Arc<ChangeBatch>,
    /// Which of its changes.
    pub changes: Selection,
}

/// What a sink applies: changes in order, in one target transaction (or a part of one), and the
/// progress to store with them.
#[derive(Debug, Clone)]
pub struct Unit {
    /// Its name.
    pub id: UnitId,
    /// Stream or snapshot.
    pub kind: UnitKind,
    /// Whole, or a part.
    pub part: Part,
    /// The changes.
    pub slices: Vec<UnitSlice>,
    /// Source transactions that end in it.
    pub transactions: u64,
    /// What to store in the same target transaction.
    pub progress: Vec<Progress>,
}

impl Unit {
    /// The changes, in order.
    pub fn changes(&self) -> impl Iterator<Item = ChangeRef<'_>> {
        self.slices.iter().flat_map(|s| s.changes.iter().map(|i| s.batch.change(i as usize)))
    }

    /// How many changes.
    pub fn len(&self) -> usize {
        self.slices.iter().map(|s| s.changes.len()).sum()
    }

    /// Whether it only carries progress.
    pub fn is_empty(&self) -> bool {
        self.slices.iter().all(|s| s.changes.is_empty())
    }

    /// How many changes of rows: without messages and schema changes.
    pub fn row_changes(&self) -> u64 {
        self.changes().filter(|c| !matches!(c.op(), Op::Message | Op::Schema)).count() as u64
    }

    /// The unit with only those changes for which `keep` is true; everything else as it is.
    #[must_use]
    pub fn retain(&self, mut keep: impl FnMut(ChangeRef<'_>) -> bool) -> Unit {
        let mut slices = Vec::with_capacity(self.slices.len());
        for slice in &self.slices {
            let kept: Vec<u32> = slice.changes.iter().filter(|&i| keep(slice.batch.change(i as usize))).collect();
            if !kept.is_empty() {
                slices.push(UnitSlice { batch: Arc::clone(&slice.batch), changes: Selection::List(kept) });
            }
        }
        Unit { slices, progress: self.progress.clone(), ..*self }
    }

    /// The changes at places `range` of this unit, with the progress `progress`.
    #[must_use]
    pub fn part_of(&self, range: Range<usize>, progress: Vec<Progress>) -> Unit {
        let mut place = 0;
        let mut part = self.retain(|_| {
            place += 1;
            range.contains(&(place - 1))
        });
        part.progress = progress;
        part.transactions = 0;
        part
    }

    /// One unit for each source transaction in it, in order, each with the progress that goes with
    /// it; the last carries what this unit carries. A unit of one transaction gives itself.
    #[must_use]
    pub fn split_by_transaction(&self) -> Vec<Unit> {
        let mut units: Vec<Unit> = Vec::new();
        for slice in &self.slices {
            let mut run: Vec<u32> = Vec::new();
            let indices: Vec<u32> = slice.changes.iter().collect();
            for (n, &index) in indices.iter().enumerate() {
                run.push(index);
                let piece = slice.batch.piece_of(index);
                let last_of_piece = indices.get(n + 1).is_none_or(|next| !piece.changes.contains(next));
                if last_of_piece {
                    let ended = piece.end.as_ref().filter(|_| index + 1 == piece.changes.end);
                    self.append_run(&mut units, slice, std::mem::take(&mut run), ended);
                }
            }
        }
        match units.last_mut() {
            Some(last) => last.progress.clone_from(&self.progress),
            None => units.push(self.clone()),
        }
        units
    }

    fn append_run(&self, units: &mut Vec<Unit>, slice: &UnitSlice, run: Vec<u32>, ended: Option<&Position>) {
        let rank = &slice.batch.piece_of(run[0]).transaction.rank;
        let slice_of_run = UnitSlice { batch: Arc::clone(&slice.batch), changes: Selection::List(run) };
        let same =
            units.last().is_some_and(|u| u.changes().last().is_some_and(|c| c.piece().transaction.rank == *rank));
        if !same {
            units.push(Unit {
                id: self.id,
                kind: self.kind,
                part: self.part,
                slices: Vec::new(),
                transactions: 0,
                progress: Vec::new(),
            });
        }
        let Some(unit) = units.last_mut() else { return };
        unit.slices.push(slice_of_run);
        if let Some(end) = ended {
            unit.transactions = 1;
            // A transaction that is spread over partitions ends in each of them.
            let partition = slice.batch.partition();
            unit.progress.retain(|p| p.partition != *partition);
            unit.progress.push(Progress { partition: partition.clone(), position: end.clone(), safe_time: None });
        }
    }
}
