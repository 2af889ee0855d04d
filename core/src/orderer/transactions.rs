//! Whole transactions in their order, handed out as units on one lane.

use std::collections::VecDeque;
use std::ops::Range;

use super::ledger::{Ledger, Work};
use super::{MAX_IN_FLIGHT, UnitLimits};
use crate::model::{BatchId, ChangeBatch, OrderedUnit, Part, Selection, Slice, UnitId};

/// Changes of one batch that stand together.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub(super) batch: BatchId,
    pub(super) changes: Range<u32>,
    /// About what one change occupies, in bytes.
    pub(super) change_bytes: usize,
    /// It was given in an earlier run too.
    pub(super) replay: bool,
}

impl Run {
    fn size(&self) -> Size {
        Size { changes: self.changes.len(), bytes: self.changes.len() * self.change_bytes }
    }

    /// Takes off as many changes as fit, at least one if `anyway`.
    fn split_front(&mut self, room: Size, anyway: bool) -> Option<Run> {
        let fit = room.changes.min(room.bytes / self.change_bytes.max(1)).max(usize::from(anyway));
        let fit = fit.min(self.changes.len()) as u32;
        let cut = self.changes.start + fit;
        let front = Run { changes: self.changes.start..cut, ..*self };
        self.changes.start = cut;
        (fit > 0).then_some(front)
    }
}

/// About what one change of this batch occupies, in bytes.
pub(super) fn change_bytes(batch: &ChangeBatch) -> usize {
    batch.memory_size().div_ceil(batch.len().max(1))
}

/// Appends a run; one that goes on where the last one ended becomes part of it.
pub(super) fn append(slices: &mut Vec<Slice>, of: BatchId, run: Range<u32>) {
    if let Some(Slice { batch, changes: Selection::Range(last) }) = slices.last_mut()
        && *batch == of
        && last.end == run.start
    {
        last.end = run.end;
        return;
    }
    slices.push(Slice { batch: of, changes: Selection::Range(run) });
}

/// A number of changes and their bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Size {
    pub(super) changes: usize,
    pub(super) bytes: usize,
}

impl Size {
    /// Fits nowhere.
    pub(super) const MAX: Self = Self { changes: usize::MAX, bytes: usize::MAX };

    pub(super) fn fits(self, limits: &UnitLimits) -> bool {
        self.changes <= limits.max_changes && self.bytes <= limits.max_bytes
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self { changes: self.changes.saturating_add(other.changes), bytes: self.bytes.saturating_add(other.bytes) }
    }

    pub(super) fn minus(self, other: Self) -> Self {
        Self { changes: self.changes.saturating_sub(other.changes), bytes: self.bytes.saturating_sub(other.bytes) }
    }
}

/// A transaction that waits for its turn, or what is left of it.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub(super) runs: VecDeque<Run>,
    pub(super) size: Size,
    /// Nothing of it is to come.
    pub(super) ended: bool,
    /// Some of it was given in an earlier run too.
    replay: bool,
    pub(super) work: Vec<Work>,
}

impl Waiting {
    /// A transaction of which everything has arrived.
    pub(super) fn whole(runs: impl IntoIterator<Item = Run>, work: Vec<Work>) -> Self {
        let mut whole = Self { ended: true, work, ..Self::default() };
        runs.into_iter().for_each(|run| whole.push(run));
        whole
    }

    fn push(&mut self, run: Run) {
        if run.changes.is_empty() {
            return;
        }
        self.size = self.size.plus(run.size());
        self.replay |= run.replay;
        self.runs.push_back(run);
    }

    /// Moves as many changes as the limits allow into `slices`.
    fn take(&mut self, limits: &UnitLimits, slices: &mut Vec<Slice>) {
        let mut room = limits.room(Size::default());
        while let Some(run) = self.runs.front_mut() {
            let Some(front) = run.split_front(room, slices.is_empty()) else { return };
            if run.changes.is_empty() {
                self.runs.pop_front();
            }
            let size = front.size();
            room = room.minus(size);
            self.size = self.size.minus(size);
            append(slices, front.batch, front.changes);
        }
    }
}

/// The queue of transactions and the units that were made of them.
#[derive(Debug)]
pub(super) struct Transactions {
    limits: UnitLimits,
    queue: VecDeque<Waiting>,
    size: Size,
    /// The first transaction of the queue has been handed out in part.
    in_parts: bool,
    next_unit: u64,
    /// Handed out, in order. Parts that do not end their target transaction are not among them: a
    /// sink may make them durable only with the last one, so waiting for them would be for ever.
    flying: VecDeque<Flying>,
}

#[derive(Debug)]
struct Flying {
    unit: UnitId,
    done: bool,
    work: Vec<Work>,
}

impl Transactions {
    pub(super) fn new(limits: UnitLimits) -> Self {
        Self {
            limits,
            queue: VecDeque::new(),
            size: Size::default(),
            in_parts: false,
            next_unit: 0,
            flying: VecDeque::new(),
        }
    }

    /// False only while two units are in flight: completing one makes room.
    pub(super) fn has_room(&self) -> bool {
        !self.is_busy() || self.size.fits(&self.limits)
    }

    /// A transaction that is complete.
    pub(super) fn push(&mut self, transaction: Waiting) {
        self.size = self.size.plus(transaction.size);
        self.queue.push_back(transaction);
    }

    /// Goes on with the transaction that is being pushed, or begins it.
    pub(super) fn extend(&mut self, run: Run, work: Option<Work>, ended: bool) {
        if self.queue.back().is_none_or(|t| t.ended) {
            self.queue.push_back(Waiting::default());
        }
        let Some(last) = self.queue.back_mut() else { return };
        last.work.extend(work);
        last.ended = ended;
        self.size = self.size.plus(run.size());
        last.push(run);
    }

    /// Whether the last transaction goes on.
    pub(super) fn is_open(&self) -> bool {
        self.queue.back().is_some_and(|t| !t.ended)
    }

    /// The next unit. It stores how far everything was given, it included.
    pub(super) fn next(&mut self, ledger: &mut Ledger) -> Option<OrderedUnit> {
        if self.is_busy() {
            return None;
        }
        let first = self.queue.front()?;
        let in_parts = self.in_parts || !first.size.fits(&self.limits);
        let (part, slices, work, transactions) = if in_parts { self.take_part() } else { self.take_whole() }?;
        self.next_unit += 1;
        let id = UnitId(self.next_unit);
        let mut progress = Vec::new();
        if part.ends() {
            work.iter().for_each(|w| ledger.give(*w));
            progress = ledger.news();
            self.flying.push_back(Flying { unit: id, done: false, work });
        }
        Some(OrderedUnit { id, lane: 0, part, slices, transactions, progress })
    }

    /// A unit is durable. The lane applies in order, so work is finished in order too.
    pub(super) fn complete(&mut self, ledger: &mut Ledger, unit: UnitId) {
        if let Some(flying) = self.flying.iter_mut().find(|f| f.unit == unit) {
            flying.done = true;
        }
        while self.flying.front().is_some_and(|f| f.done) {
            let work = self.flying.pop_front().map(|f| f.work).unwrap_or_default();
            work.iter().for_each(|w| ledger.finish(*w));
        }
    }

    fn is_busy(&self) -> bool {
        self.flying.iter().filter(|f| !f.done).count() >= MAX_IN_FLIGHT
    }

    /// As many transactions as fit, of which nothing is to come. What was given in an earlier run
    /// may be committed, so it stays apart: then a unit is skipped whole and counts nothing twice.
    fn take_whole(&mut self) -> Option<Taken> {
        let (mut slices, mut work, mut size, mut transactions) = (Vec::new(), Vec::new(), Size::default(), 0);
        let replay = self.queue.front()?.replay;
        let fits = |t: &Waiting, size: Size| t.ended && t.replay == replay && size.plus(t.size).fits(&self.limits);
        while self.queue.front().is_some_and(|t| fits(t, size)) {
            let Some(whole) = self.queue.pop_front() else { break };
            whole.runs.into_iter().for_each(|run| append(&mut slices, run.batch, run.changes));
            work.extend(whole.work);
            size = size.plus(whole.size);
            transactions += 1;
        }
        self.size = self.size.minus(size);
        (transactions > 0).then_some((Part::Whole, slices, work, transactions))
    }

    /// A part of the first transaction: a full one, or what is left of it.
    fn take_part(&mut self) -> Option<Taken> {
        let first = self.queue.front_mut()?;
        if !first.ended && first.size.fits(&self.limits) {
            return None;
        }
        let before = first.size;
        let mut slices = Vec::new();
        first.take(&self.limits, &mut slices);
        self.size = self.size.minus(before.minus(first.size));
        let ends = first.ended && first.runs.is_empty();
        let part = match (self.in_parts, ends) {
            (false, true) => Part::Whole,
            (false, false) => Part::First,
            (true, false) => Part::Middle,
            (true, true) => Part::Last,
        };
        self.in_parts = !ends;
        let work = if ends { self.queue.pop_front().map(|t| t.work).unwrap_or_default() } else { Vec::new() };
        Some((part, slices, work, u64::from(ends)))
    }
}

/// What a unit is made of: part, changes, work, transactions that end.
type Taken = (Part, Vec<Slice>, Vec<Work>, u64);
