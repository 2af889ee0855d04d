//! How far each partition is: what was given to lanes, and what is durable, without a hole.
//!
//! A partition is a row of marks, each with the work that lies between it and the mark before:
//!
//! ```text
//!          T1        T2     T3 (open)
//!   ───────┬─────────┬──────╌╌╌
//!   to give    0         2      5      given passes T1
//!   to finish  1         2      5      low watermark is before T1
//! ```
//!
//! Its memory is bounded by the number of pieces and batches that wait.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::model::{ChangeBatch, Partition, PartitionId, Piece, Position, Progress, Rank, Timestamp};

/// The place of a partition in the ledger.
pub(super) type Track = usize;

/// Work that belongs to a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Work {
    pub(super) track: Track,
    pub(super) mark: u64,
    pub(super) count: u64,
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    places: HashMap<PartitionId, Track>,
    tracks: Vec<Marks>,
    /// Tracks of partitions that were forgotten, for others.
    free: Vec<Track>,
    low: BTreeMap<PartitionId, Progress>,
    /// Tracks whose given position or safe time moved since [`Ledger::news`].
    moved: BTreeSet<Track>,
}

#[derive(Debug)]
struct Marks {
    partition: PartitionId,
    /// The number of the first mark in `marks`.
    first: u64,
    marks: VecDeque<Mark>,
    /// Marks below this number are given.
    given_to: u64,
    given: Reach,
    done: Reach,
    /// Where reading resumes that has to see the open transaction again.
    token: Bytes,
    /// The last piece: its transaction and the least number its next change can have.
    last: Option<(Bytes, u64)>,
    /// A transaction that gave changes and has not ended.
    unended: Option<Bytes>,
    /// Where its reader resumed: what it gives up to here it has given in an earlier run.
    resumed: Option<Progress>,
}

#[derive(Debug)]
struct Mark {
    position: Option<Position>,
    safe_time: Option<Timestamp>,
    /// More work may still belong to it.
    open: bool,
    to_give: u64,
    to_finish: u64,
}

/// A position that only moves forward.
#[derive(Debug, Clone, Default)]
struct Reach {
    position: Option<Position>,
    safe_time: Option<Timestamp>,
}

impl Reach {
    fn pass(&mut self, mark: &Mark) {
        if let Some(to) = &mark.position
            && self.position.as_ref().is_none_or(|p| p.rank <= to.rank)
        {
            self.position = Some(to.clone());
        }
        self.safe_time = self.safe_time.max(mark.safe_time);
    }

    fn progress(&self, partition: &PartitionId) -> Option<Progress> {
        let position = self.position.clone()?;
        Some(Progress { partition: partition.clone(), position, safe_time: self.safe_time })
    }
}

impl Ledger {
    /// A partition takes part. Called again for one that is known, it changes nothing.
    pub(super) fn open(&mut self, partition: &Partition, from: Option<&Progress>) -> Track {
        if let Some(&track) = self.places.get(&partition.id) {
            return track;
        }
        let reach = Reach { position: from.map(|p| p.position.clone()), safe_time: from.and_then(|p| p.safe_time) };
        let start = reach.position.as_ref().or(partition.start.as_ref());
        let marks = Marks {
            partition: partition.id.clone(),
            first: 0,
            marks: VecDeque::new(),
            given_to: 0,
            token: start.map(|p| p.token.clone()).unwrap_or_default(),
            given: reach.clone(),
            done: reach,
            last: None,
            unended: None,
            resumed: from.cloned(),
        };
        let track = match self.free.pop() {
            Some(track) => {
                self.tracks[track] = marks;
                track
            }
            None => {
                self.tracks.push(marks);
                self.tracks.len() - 1
            }
        };
        if let Some(from) = from {
            self.low.insert(partition.id.clone(), from.clone());
        }
        self.places.insert(partition.id.clone(), track);
        track
    }

    /// Nothing of the partition is under way, and nothing more will come. Gives its track, which another
    /// partition may get.
    pub(super) fn forget(&mut self, partition: &PartitionId) -> Option<Track> {
        let track = self.places.remove(partition)?;
        self.low.remove(partition);
        self.moved.remove(&track);
        self.free.push(track);
        Some(track)
    }

    /// The track of the batch's partition, after a check that it goes on where the last one ended.
    ///
    /// # Errors
    /// [`Fatal`](crate::ErrorKind::Fatal) if the partition was not opened, or its ranks do not grow.
    pub(super) fn admit(&mut self, batch: &ChangeBatch) -> Result<Track> {
        let Some(&track) = self.places.get(batch.partition()) else {
            return Err(Error::fatal(format!("a batch of partition {} came before it was opened", batch.partition())));
        };
        let marks = &mut self.tracks[track];
        for piece in batch.pieces() {
            let rank = &piece.transaction.rank;
            let next = piece.first_sequence + piece.changes.len() as u64;
            if let Some((last, least)) = &marks.last
                && (rank, piece.first_sequence) < (last, *least)
            {
                return Err(Error::fatal(format!(
                    "partition {} went back from rank {:?} to {:?}",
                    batch.partition(),
                    Rank::of_change(last, *least),
                    Rank::of_change(rank, piece.first_sequence),
                )));
            }
            marks.last = Some((rank.clone(), next));
        }
        Ok(track)
    }

    /// Whether the piece goes on with a transaction that an earlier piece gave changes of.
    pub(super) fn goes_on(&mut self, track: Track, piece: &Piece) -> bool {
        let unended = &mut self.tracks[track].unended;
        let goes_on = unended.as_ref() == Some(&piece.transaction.rank);
        if piece.end.is_some() {
            *unended = None;
        } else if !piece.changes.is_empty() {
            *unended = Some(piece.transaction.rank.clone());
        }
        goes_on
    }

    /// Begins a mark; the one before it gets no more work.
    pub(super) fn begin(&mut self, track: Track) -> u64 {
        self.seal(track);
        self.tracks[track].marks.push_back(Mark {
            position: None,
            safe_time: None,
            open: true,
            to_give: 0,
            to_finish: 0,
        });
        self.last(track)
    }

    /// The number of the last mark.
    pub(super) fn last(&self, track: Track) -> u64 {
        let marks = &self.tracks[track];
        (marks.first + marks.marks.len() as u64).saturating_sub(1)
    }

    /// Adds work to the last mark.
    pub(super) fn add_to_last(&mut self, track: Track, count: u64) -> Work {
        let marks = &mut self.tracks[track];
        if let Some(mark) = marks.marks.back_mut() {
            mark.to_give += count;
            mark.to_finish += count;
        }
        Work { track, mark: self.last(track), count }
    }

    /// Where the partition is once the last mark is passed.
    pub(super) fn place(&mut self, track: Track, position: Position) {
        if let Some(mark) = self.tracks[track].marks.back_mut() {
            mark.position = Some(position);
        }
    }

    /// The last mark gets no more work.
    pub(super) fn seal(&mut self, track: Track) {
        if let Some(mark) = self.tracks[track].marks.back_mut() {
            mark.open = false;
        }
        self.pass(track);
    }

    /// The work's mark gets no more of it.
    pub(super) fn seal_mark(&mut self, track: Track, mark: u64) {
        if let Some(mark) = self.mark(track, mark) {
            mark.open = false;
        }
        self.pass(track);
    }

    /// Whether a change of this rank comes again, from before where the reader resumed.
    pub(super) fn is_replay(&self, track: Track, rank: &Rank) -> bool {
        self.tracks[track].resumed.as_ref().is_some_and(|r| *rank <= r.position.rank)
    }

    /// The safe time with which the reader resumed.
    pub(super) fn resumed_safe_time(&self, track: Track) -> Option<Timestamp> {
        self.tracks[track].resumed.as_ref().and_then(|p| p.safe_time)
    }

    /// Whether more work may belong to the last mark.
    pub(super) fn is_open(&self, track: Track) -> bool {
        self.tracks[track].marks.back().is_some_and(|m| m.open)
    }

    /// A batch was taken in whole. Its safe time is passed with the last mark.
    pub(super) fn end_of_batch(&mut self, track: Track, batch: &ChangeBatch) {
        let marks = &mut self.tracks[track];
        marks.token = batch.end().token.clone();
        let last_given = marks.first + marks.marks.len() as u64 <= marks.given_to;
        match marks.marks.back_mut() {
            Some(last) if last.open => last.safe_time = last.safe_time.max(batch.safe_time()),
            // A row of heartbeats behind work that takes long is one mark.
            Some(last) if last.to_finish == 0 => {
                last.safe_time = last.safe_time.max(batch.safe_time());
                if last.position.as_ref().is_none_or(|p| p.rank <= batch.end().rank) {
                    last.position = Some(batch.end().clone());
                }
                if last_given {
                    marks.given.pass(last);
                    self.moved.insert(track);
                }
            }
            _ => marks.marks.push_back(Mark {
                position: Some(batch.end().clone()),
                safe_time: batch.safe_time(),
                open: false,
                to_give: 0,
                to_finish: 0,
            }),
        }
        self.pass(track);
    }

    /// Work was given to its lane.
    pub(super) fn give(&mut self, work: Work) {
        if let Some(mark) = self.mark(work.track, work.mark) {
            mark.to_give = mark.to_give.saturating_sub(work.count);
        }
        self.pass(work.track);
    }

    /// Work is durable.
    pub(super) fn finish(&mut self, work: Work) {
        if let Some(mark) = self.mark(work.track, work.mark) {
            mark.to_finish = mark.to_finish.saturating_sub(work.count);
        }
        self.pass(work.track);
    }

    /// How far everything of the partition was given.
    pub(super) fn given(&self, track: Track) -> Option<Progress> {
        let marks = &self.tracks[track];
        marks.given.progress(&marks.partition)
    }

    /// How far everything was given of each partition for which that moved since the last call.
    pub(super) fn news(&mut self) -> Vec<Progress> {
        std::mem::take(&mut self.moved).into_iter().filter_map(|track| self.given(track)).collect()
    }

    /// The token that resumes before the transaction that is being pushed.
    pub(super) fn token(&self, track: Track) -> &Bytes {
        &self.tracks[track].token
    }

    /// A transaction ended here: reading may resume after it.
    pub(super) fn set_token(&mut self, track: Track, token: &Bytes) {
        self.tracks[track].token.clone_from(token);
    }

    pub(super) fn partition(&self, track: Track) -> &PartitionId {
        &self.tracks[track].partition
    }

    pub(super) fn low(&self) -> &BTreeMap<PartitionId, Progress> {
        &self.low
    }

    fn mark(&mut self, track: Track, mark: u64) -> Option<&mut Mark> {
        let marks = &mut self.tracks[track];
        let at = mark.checked_sub(marks.first)?;
        marks.marks.get_mut(at as usize)
    }

    fn pass(&mut self, track: Track) {
        let marks = &mut self.tracks[track];
        while let Some(mark) = marks.marks.get((marks.given_to - marks.first) as usize) {
            if mark.open || mark.to_give > 0 {
                break;
            }
            marks.given.pass(mark);
            marks.given_to += 1;
            self.moved.insert(track);
        }
        let mut moved = false;
        while marks.first < marks.given_to && marks.marks.front().is_some_and(|m| m.to_finish == 0) {
            if let Some(mark) = marks.marks.pop_front() {
                marks.done.pass(&mark);
                marks.first += 1;
                moved = true;
            }
        }
        if moved && let Some(progress) = marks.done.progress(&marks.partition) {
            self.low.insert(marks.partition.clone(), progress);
        }
    }
}
