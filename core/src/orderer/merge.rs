//! Sorts the transactions of several partitions by commit time.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use super::frontier::Frontier;
use super::ledger::{Ledger, Track, Work};
use crate::error::{Error, Result};
use crate::model::{ChangeBatch, Partition, PartitionId, Piece, Position, Progress, Rank, Timestamp};

/// What transactions are sorted by: commit time, then the rank, which is the same in all partitions.
pub(super) type Key = (Timestamp, Bytes);

/// Transactions that wait until every partition was heard up to their commit time. `P` is what is
/// kept of a piece.
#[derive(Debug)]
pub(super) struct Merge<P> {
    frontier: Frontier,
    pending: BTreeMap<Key, Pending<P>>,
    /// The last transaction that was let go.
    released: Option<Key>,
    /// For each partition the transaction of its open mark.
    open: HashMap<Track, Bytes>,
}

/// A transaction as far as it has arrived.
#[derive(Debug)]
pub(super) struct Pending<P> {
    /// Its pieces with the number of their first change.
    pub(super) pieces: Vec<(u64, P)>,
    /// One piece of work for each partition: to hand out the transaction.
    pub(super) work: Vec<Work>,
    changes: u64,
    total: Total,
}

/// How many changes a transaction has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Total {
    /// Every piece so far says so.
    Told(u64),
    /// A piece does not say, or comes from before a restart.
    Unknown,
}

impl<P> Default for Merge<P> {
    fn default() -> Self {
        Self { frontier: Frontier::default(), pending: BTreeMap::new(), released: None, open: HashMap::new() }
    }
}

impl<P> Merge<P> {
    pub(super) fn opened(&mut self, partition: &Partition, from: Option<&Progress>) {
        self.frontier.opened(partition, from);
    }

    pub(super) fn closed(&mut self, partition: &PartitionId) {
        self.frontier.closed(partition);
    }

    /// Everything committed at or before this has arrived.
    pub(super) fn through(&self) -> Timestamp {
        self.frontier.through()
    }

    /// Takes a piece in: gives the transaction that it belongs to, for the caller to add what it
    /// keeps, and the mark of the partition. No transaction: there is nothing to keep.
    ///
    /// # Errors
    /// [`Fatal`](crate::ErrorKind::Fatal) without a commit time, or if it comes after a later one was let go.
    pub(super) fn push(
        &mut self,
        ledger: &mut Ledger,
        track: Track,
        piece: &Piece,
    ) -> Result<(Option<&mut Pending<P>>, u64)> {
        let partition = ledger.partition(track).clone();
        let rank = &piece.transaction.rank;
        let mark = self.mark(ledger, track, piece);
        let Some(time) = piece.transaction.commit_time else {
            if piece.changes.is_empty() {
                return Ok((None, mark));
            }
            return Err(Error::fatal(format!("partition {partition} gave a transaction without a commit time")));
        };
        let key = (time, rank.clone());
        let replay = ledger.is_replay(track, &Rank::of_change(rank, piece.first_sequence));
        if !replay {
            self.frontier.change(&partition, time)?;
            if self.released.as_ref().is_some_and(|r| *r >= key) {
                if piece.changes.is_empty() {
                    return Ok((None, mark));
                }
                return Err(Error::fatal(format!(
                    "partition {partition} gave a change committed at {time}, which all partitions had passed"
                )));
            }
        }
        let total = piece.transaction.total.filter(|_| !replay).map_or(Total::Unknown, Total::Told);
        let pending = self.pending.entry(key).or_insert_with(|| Pending {
            pieces: Vec::new(),
            work: Vec::new(),
            changes: 0,
            total,
        });
        if pending.total != total {
            pending.total = Total::Unknown;
        }
        pending.changes += piece.changes.len() as u64;
        if !pending.work.iter().any(|w| (w.track, w.mark) == (track, mark)) {
            pending.work.push(ledger.add_to_last(track, 1));
        }
        Ok((Some(pending), mark))
    }

    /// The piece's mark, begun if the transaction is new in this partition.
    fn mark(&mut self, ledger: &mut Ledger, track: Track, piece: &Piece) -> u64 {
        let rank = &piece.transaction.rank;
        let goes_on = ledger.is_open(track) && self.open.get(&track) == Some(rank);
        let mark = if goes_on { ledger.last(track) } else { ledger.begin(track) };
        self.open.insert(track, rank.clone());
        match (&piece.end, piece.changes.len() as u64) {
            (Some(end), _) => {
                ledger.place(track, end.clone());
                ledger.set_token(track, &end.token);
            }
            (None, 0) => {}
            (None, len) => {
                let last = Rank::of_change(rank, piece.first_sequence + len - 1);
                let token = ledger.token(track).clone();
                ledger.place(track, Position::new(last, token));
            }
        }
        mark
    }

    /// The piece was taken in, with its work.
    pub(super) fn end_of_piece(&mut self, ledger: &mut Ledger, track: Track, piece: &Piece) {
        if piece.end.is_some() {
            self.open.remove(&track);
            ledger.seal(track);
        }
    }

    /// The batch was taken in.
    pub(super) fn end_of_batch(&mut self, ledger: &mut Ledger, track: Track, batch: &ChangeBatch) {
        if ledger.is_open(track) {
            // The source may not tell that the transaction ends here; the frontier does, later.
            ledger.place(track, batch.end().clone());
        }
        ledger.end_of_batch(track, batch);
        if let Some(time) = batch.safe_time() {
            self.frontier.safe(batch.partition(), time);
        }
    }

    /// The first transaction, if it was committed at or before `through`, in the order of its changes.
    ///
    /// # Errors
    /// [`Fatal`](crate::ErrorKind::Fatal) if it has not as many changes as its source told.
    pub(super) fn pop(&mut self, ledger: &mut Ledger, through: Timestamp) -> Result<Option<(Key, Pending<P>)>> {
        let Some(first) = self.pending.first_entry() else { return Ok(None) };
        let (time, rank) = first.key();
        if *time > through {
            return Ok(None);
        }
        if let Total::Told(total) = first.get().total
            && total != first.get().changes
        {
            return Err(Error::fatal(format!(
                "the source told of {total} changes in the transaction {:?} committed at {time} and gave {}",
                Rank::new(rank.clone()),
                first.get().changes
            )));
        }
        let (key, mut pending) = first.remove_entry();
        pending.pieces.sort_by_key(|(first, _)| *first);
        for work in &pending.work {
            ledger.seal_mark(work.track, work.mark);
        }
        if self.released.as_ref().is_none_or(|r| *r < key) {
            self.released = Some(key.clone());
        }
        Ok(Some((key, pending)))
    }
}
