//! Changes that wait for their lane, handed out as units with the progress of the lane.
//!
//! A lane is given the changes of a partition in the partition's order. So once it has taken a
//! change, it has everything of its own up to that change's rank; and once nothing of the partition
//! waits for it, it has everything up to where all lanes were given everything.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::ledger::{Ledger, Track, Work};
use super::transactions::{Size, append, change_bytes};
use super::{MAX_IN_FLIGHT, UnitLimits};
use crate::model::{
    BatchId, ChangeBatch, OrderedUnit, Part, Position, Progress, Rank, Selection, Slice, Timestamp, UnitId,
};

/// What is kept of a batch.
#[derive(Debug)]
pub(super) struct BatchNotes {
    pub(super) batch: BatchId,
    pub(super) track: Track,
    /// About what one change occupies, in bytes.
    change_bytes: usize,
    pieces: Vec<PieceNotes>,
}

#[derive(Debug)]
struct PieceNotes {
    changes: Range<u32>,
    first_sequence: u64,
    rank: Bytes,
    /// What resumes a reader before the transaction.
    token: Bytes,
    end: Option<Position>,
    ends_bare: bool,
    mark: u64,
}

impl BatchNotes {
    /// Makes a mark for each piece, with as much work as it has changes, and one for the batch.
    pub(super) fn take(ledger: &mut Ledger, track: Track, id: BatchId, batch: &ChangeBatch) -> Arc<Self> {
        let mut pieces = Vec::with_capacity(batch.pieces().len());
        for piece in batch.pieces() {
            ledger.begin(track);
            let goes_on = ledger.goes_on(track, piece);
            let ends_bare = goes_on && piece.changes.is_empty() && piece.end.is_some();
            let work = ledger.add_to_last(track, piece.changes.len() as u64 + u64::from(ends_bare));
            pieces.push(PieceNotes {
                changes: piece.changes.clone(),
                first_sequence: piece.first_sequence,
                rank: piece.transaction.rank.clone(),
                token: ledger.token(track).clone(),
                end: piece.end.clone(),
                ends_bare,
                mark: work.mark,
            });
            if let Some(end) = &piece.end {
                ledger.place(track, end.clone());
                ledger.set_token(track, &end.token);
            }
        }
        ledger.seal(track);
        ledger.end_of_batch(track, batch);
        Arc::new(Self { batch: id, track, change_bytes: change_bytes(batch), pieces })
    }

    /// Whether this piece ends a transaction whose changes were all in earlier ones: it is given to
    /// a lane without changes, to count the transaction.
    pub(super) fn ends_bare(&self, piece: usize) -> bool {
        self.pieces[piece].ends_bare
    }

    /// The rank of the piece's first change.
    pub(super) fn first_rank(&self, piece: usize) -> Rank {
        let piece = &self.pieces[piece];
        Rank::of_change(&piece.rank, piece.first_sequence)
    }

    fn piece_of(&self, change: u32) -> usize {
        self.pieces.partition_point(|p| p.changes.end <= change)
    }

    /// The changes, which ascend, with the places of their pieces.
    fn with_pieces(&self, changes: impl Iterator<Item = u32>) -> impl Iterator<Item = (u32, usize)> {
        let mut at = None;
        changes.map(move |change| {
            let mut piece = at.unwrap_or_else(|| self.piece_of(change));
            while self.pieces[piece].changes.end <= change {
                piece += 1;
            }
            at = Some(piece);
            (change, piece)
        })
    }

    /// How far a lane is that has taken everything of its own up to this change.
    fn position(&self, change: u32) -> Position {
        let piece = &self.pieces[self.piece_of(change)];
        match &piece.end {
            Some(end) if change + 1 == piece.changes.end => end.clone(),
            _ => {
                let sequence = piece.first_sequence + u64::from(change - piece.changes.start);
                Position::new(Rank::of_change(&piece.rank, sequence), piece.token.clone())
            }
        }
    }
}

/// Changes of one batch for one lane.
#[derive(Debug)]
pub(super) struct Share {
    pub(super) notes: Arc<BatchNotes>,
    picks: Picks,
    /// Do not merge it with what is before it, unless as much as this fits: it begins something that
    /// should stay together.
    pub(super) group: Option<Size>,
    /// What its group holds is one target transaction: handed out in parts if it is larger than the limits.
    pub(super) whole: bool,
}

#[derive(Debug)]
enum Picks {
    Run(Range<u32>),
    List(Vec<u32>, usize),
    /// The piece at this place, which has no changes and ends a transaction.
    End(usize),
}

impl Share {
    pub(super) fn run(notes: &Arc<BatchNotes>, run: Range<u32>) -> Self {
        Self { notes: Arc::clone(notes), picks: Picks::Run(run), group: None, whole: false }
    }

    pub(super) fn list(notes: &Arc<BatchNotes>, list: Vec<u32>) -> Self {
        Self { notes: Arc::clone(notes), picks: Picks::List(list, 0), group: None, whole: false }
    }

    pub(super) fn end(notes: &Arc<BatchNotes>, piece: usize) -> Self {
        Self { notes: Arc::clone(notes), picks: Picks::End(piece), group: None, whole: false }
    }

    /// Whether there is nothing to give.
    pub(super) fn is_empty(&self) -> bool {
        !matches!(self.picks, Picks::End(_)) && self.size().changes == 0
    }

    pub(super) fn size(&self) -> Size {
        let changes = match &self.picks {
            Picks::Run(run) => run.len(),
            Picks::List(list, at) => list.len() - at,
            Picks::End(_) => 0,
        };
        Size { changes, bytes: changes * self.notes.change_bytes }
    }

    fn changes(&self) -> impl DoubleEndedIterator<Item = u32> {
        let (run, list) = match &self.picks {
            Picks::Run(run) => (run.clone(), &[][..]),
            Picks::List(list, at) => (0..0, &list[*at..]),
            Picks::End(_) => (0..0, &[][..]),
        };
        run.chain(list.iter().copied())
    }

    /// All its work.
    fn work(&self) -> Vec<Work> {
        let mut all: Vec<Work> = Vec::new();
        let track = self.notes.track;
        let mut add = |piece: usize| match (all.last_mut(), self.notes.pieces[piece].mark) {
            (Some(last), mark) if last.mark == mark => last.count += 1,
            (_, mark) => all.push(Work { track, mark, count: 1 }),
        };
        match self.picks {
            Picks::End(piece) => add(piece),
            _ => self.notes.with_pieces(self.changes()).for_each(|(_, piece)| add(piece)),
        }
        all
    }

    /// Takes off the first `count` changes.
    fn split_front(&mut self, count: usize) -> Share {
        let front = match &mut self.picks {
            Picks::Run(run) => {
                let cut = run.start + count as u32;
                let front = run.start..cut;
                run.start = cut;
                Picks::Run(front)
            }
            Picks::List(list, at) if *at == 0 && count == list.len() => Picks::List(std::mem::take(list), 0),
            Picks::List(list, at) => {
                *at += count;
                Picks::List(list[*at - count..*at].to_vec(), 0)
            }
            Picks::End(piece) => Picks::End(*piece),
        };
        Share { notes: Arc::clone(&self.notes), picks: front, group: None, whole: self.whole }
    }

    /// Where the lane is after it, and how many transactions end in it.
    fn outcome(&self) -> (Option<Position>, u64) {
        let pieces = &self.notes.pieces;
        if let Picks::End(piece) = self.picks {
            return (pieces[piece].end.clone(), 1);
        }
        let last_of = |change: u32, piece: usize| change + 1 == pieces[piece].changes.end;
        let changes = self.notes.with_pieces(self.changes());
        let ended = changes.filter(|&(change, piece)| pieces[piece].end.is_some() && last_of(change, piece)).count();
        (self.changes().next_back().map(|last| self.notes.position(last)), ended as u64)
    }

    fn append_to(self, slices: &mut Vec<Slice>) {
        match self.picks {
            Picks::Run(run) => append(slices, self.notes.batch, run),
            Picks::List(list, _) => match slices.last_mut() {
                Some(Slice { batch, changes: Selection::List(last) }) if *batch == self.notes.batch => {
                    last.extend(list);
                }
                _ => slices.push(Slice { batch: self.notes.batch, changes: Selection::List(list) }),
            },
            Picks::End(_) => {}
        }
    }
}

/// The lanes of an orderer.
#[derive(Debug)]
pub(super) struct Lanes {
    limits: UnitLimits,
    lanes: Vec<Lane>,
    /// The lane that is asked first for the next unit.
    turn: usize,
    waiting: Size,
    next_unit: u64,
    flying: HashMap<UnitId, (usize, Vec<Work>)>,
}

#[derive(Debug, Default)]
struct Lane {
    queue: VecDeque<Share>,
    in_flight: usize,
    /// Shares of each partition that wait.
    left: HashMap<Track, usize>,
    /// The safe times that were stored last.
    safe_times: HashMap<Track, Option<Timestamp>>,
    /// A transaction that is handed out in parts.
    open: Option<Open>,
}

/// What is left of a transaction of which parts were handed out, and what its last part carries.
#[derive(Debug, Default)]
struct Open {
    changes: usize,
    work: Vec<Work>,
    cuts: Vec<(Track, Position)>,
}

impl Lanes {
    pub(super) fn new(lanes: u32, limits: UnitLimits) -> Self {
        Self {
            limits,
            lanes: (0..lanes.max(1)).map(|_| Lane::default()).collect(),
            turn: 0,
            waiting: Size::default(),
            next_unit: 0,
            flying: HashMap::new(),
        }
    }

    pub(super) fn count(&self) -> u32 {
        self.lanes.len() as u32
    }

    /// Whether there is room beside `more`: a full unit waits for each lane at most. True while
    /// nothing is in flight, for then completing makes no room.
    pub(super) fn has_room(&self, more: Size) -> bool {
        let lanes = self.lanes.len();
        let limits = UnitLimits {
            max_bytes: self.limits.max_bytes.saturating_mul(lanes),
            max_changes: self.limits.max_changes.saturating_mul(lanes),
        };
        self.flying.is_empty() || self.waiting.plus(more).fits(&limits)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.flying.is_empty() && self.lanes.iter().all(|l| l.queue.is_empty())
    }

    /// Gives a share to its lane.
    pub(super) fn give(&mut self, ledger: &mut Ledger, lane: u32, share: Share) {
        share.work().into_iter().for_each(|w| ledger.give(w));
        self.waiting = self.waiting.plus(share.size());
        let lane = &mut self.lanes[lane as usize];
        *lane.left.entry(share.notes.track).or_default() += 1;
        lane.queue.push_back(share);
    }

    /// The next unit of any lane that has something and is not busy.
    pub(super) fn next(&mut self, ledger: &Ledger) -> Option<OrderedUnit> {
        let lanes = self.lanes.len();
        let ready = |l: &Lane| !l.queue.is_empty() && l.in_flight < MAX_IN_FLIGHT;
        let lane = (0..lanes).map(|n| (self.turn + n) % lanes).find(|&n| ready(&self.lanes[n]))?;
        self.turn = (lane + 1) % lanes;
        self.next_unit += 1;
        let id = UnitId(self.next_unit);
        let (taken, part) = self.lanes[lane].next(&self.limits, ledger);
        self.waiting = self.waiting.minus(taken.size);
        self.flying.insert(id, (lane, taken.work));
        self.lanes[lane].in_flight += 1;
        Some(OrderedUnit {
            id,
            lane: lane as u32,
            part,
            slices: taken.slices,
            transactions: taken.transactions,
            progress: taken.progress,
        })
    }

    /// What is kept of a partition goes.
    pub(super) fn forget(&mut self, track: Track) {
        for lane in &mut self.lanes {
            lane.left.remove(&track);
            lane.safe_times.remove(&track);
        }
    }

    /// A unit is durable.
    pub(super) fn complete(&mut self, ledger: &mut Ledger, unit: UnitId) {
        if let Some((lane, work)) = self.flying.remove(&unit) {
            self.lanes[lane].in_flight -= 1;
            work.into_iter().for_each(|w| ledger.finish(w));
        }
    }
}

/// What a unit is made of.
#[derive(Default)]
struct Taken {
    slices: Vec<Slice>,
    work: Vec<Work>,
    size: Size,
    transactions: u64,
    /// Where the lane is in each partition that it took from.
    cuts: Vec<(Track, Position)>,
    progress: Vec<Progress>,
}

impl Taken {
    fn add(&mut self, share: Share) {
        let (cut, transactions) = share.outcome();
        let track = share.notes.track;
        if let Some(cut) = cut {
            match self.cuts.iter_mut().find(|(t, _)| *t == track) {
                Some((_, position)) => *position = cut,
                None => self.cuts.push((track, cut)),
            }
        }
        self.transactions += transactions;
        self.size = self.size.plus(share.size());
        self.work.extend(share.work());
        share.append_to(&mut self.slices);
    }
}

impl Lane {
    fn next(&mut self, limits: &UnitLimits, ledger: &Ledger) -> (Taken, Part) {
        let first = match (&self.open, self.queue.front()) {
            (Some(_), _) => false,
            (None, Some(Share { whole: true, group: Some(group), .. })) if !group.fits(limits) => {
                self.open = Some(Open { changes: group.changes, ..Open::default() });
                true
            }
            _ => return (self.take(limits, ledger), Part::Whole),
        };
        let left = self.open.as_ref().map_or(0, |open| open.changes);
        let within = UnitLimits { max_changes: limits.max_changes.min(left.max(1)), ..*limits };
        let mut taken = self.fill(&within);
        let mut open = self.open.take().unwrap_or_default();
        open.changes = open.changes.saturating_sub(taken.size.changes);
        // Nothing of it is done before its last part is.
        open.work.append(&mut taken.work);
        for cut in taken.cuts.drain(..) {
            open.cuts.retain(|(track, _)| *track != cut.0);
            open.cuts.push(cut);
        }
        if open.changes > 0 {
            self.open = Some(open);
            return (taken, if first { Part::First } else { Part::Middle });
        }
        (taken.work, taken.cuts) = (open.work, open.cuts);
        self.add_progress(&mut taken, ledger);
        (taken, if first { Part::Whole } else { Part::Last })
    }

    fn take(&mut self, limits: &UnitLimits, ledger: &Ledger) -> Taken {
        let mut taken = self.fill(limits);
        self.add_progress(&mut taken, ledger);
        taken
    }

    /// Takes as much as the limits allow, without progress.
    fn fill(&mut self, limits: &UnitLimits) -> Taken {
        let mut taken = Taken::default();
        while let Some(share) = self.queue.front_mut() {
            let begun = !taken.slices.is_empty();
            if begun && share.group.is_some_and(|g| !taken.size.plus(g).fits(limits)) {
                break;
            }
            let size = share.size();
            let room = limits.room(taken.size);
            let fit = room.changes.min(room.bytes / share.notes.change_bytes.max(1)).max(usize::from(!begun));
            let fit = fit.min(size.changes);
            if fit == 0 && size.changes > 0 {
                break;
            }
            share.group = None;
            taken.add(share.split_front(fit));
            if fit < size.changes {
                break;
            }
            if let Some(left) = self.left.get_mut(&share.notes.track) {
                *left -= 1;
            }
            self.queue.pop_front();
        }
        taken
    }

    fn add_progress(&mut self, taken: &mut Taken, ledger: &Ledger) {
        for (track, cut) in std::mem::take(&mut taken.cuts) {
            taken.progress.push(self.progress(ledger, track, cut));
        }
    }

    fn progress(&mut self, ledger: &Ledger, track: Track, cut: Position) -> Progress {
        let safe_time = self.safe_times.entry(track).or_insert_with(|| ledger.resumed_safe_time(track));
        let mut position = cut;
        if self.left.get(&track).is_none_or(|n| *n == 0) {
            // Nothing of it waits for this lane: the lane is where all lanes are.
            self.left.remove(&track);
            if let Some(given) = ledger.given(track) {
                *safe_time = given.safe_time.max(*safe_time);
                if given.position.rank > position.rank {
                    position = given.position;
                }
            }
        }
        Progress { partition: ledger.partition(track).clone(), position, safe_time: *safe_time }
    }
}
