//! Sorts the transactions of several partitions by commit time.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use super::frontier::Frontier;
use crate::error::{Error, Result};
use crate::model::{ChangeBatch, Partition, PartitionId, Piece, Progress, Rank, Timestamp};

/// What transactions are sorted by: commit time, then the rank, which is the same in all partitions.
type Key = (Timestamp, Bytes);

/// Transactions that wait until every partition was heard up to their commit time. `P` is what is
/// kept of a piece.
#[derive(Debug)]
pub(super) struct Merge<P> {
    frontier: Frontier,
    pending: BTreeMap<Key, Pending<P>>,
    /// The last transaction that was let go.
    released: Option<Key>,
    whole: bool,
    /// Where commit times of a partition may go back: the last transaction of each, with the time it is
    /// sorted by.
    times: Option<HashMap<PartitionId, (Bytes, Timestamp)>>,
}

/// A transaction as far as it has arrived.
#[derive(Debug)]
struct Pending<P> {
    /// Its pieces with the number of their first change.
    pieces: Vec<(u64, P)>,
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

impl<P> Merge<P> {
    /// `whole`: partitions resume between transactions, so that each arrives whole, and is checked to.
    pub(super) fn new(whole: bool) -> Self {
        Self { frontier: Frontier::default(), pending: BTreeMap::new(), released: None, whole, times: None }
    }

    /// For partitions that give their changes in an order which is not quite that of commit times, and that
    /// share no transactions: what comes later is taken to be committed no earlier.
    pub(super) fn times_may_go_back(&mut self) {
        self.times = Some(HashMap::new());
    }

    /// The time that the piece's transaction is sorted by.
    fn time_of(&mut self, partition: &PartitionId, piece: &Piece, replay: bool) -> Option<Timestamp> {
        let told = piece.transaction.commit_time;
        let Some(times) = &mut self.times else { return told };
        let rank = &piece.transaction.rank;
        let last = times.get(partition);
        if let Some((_, time)) = last.filter(|(of, _)| of == rank) {
            return Some(*time);
        }
        let after = if replay { None } else { self.frontier.after(partition) };
        let time = told.max(after).max(last.map(|(_, time)| *time)).unwrap_or(Timestamp::from_micros(0));
        times.insert(partition.clone(), (rank.clone(), time));
        Some(time)
    }

    pub(super) fn opened(&mut self, partition: &Partition, from: Option<&Progress>) {
        self.frontier.opened(partition, from);
    }

    pub(super) fn closed(&mut self, partition: &PartitionId) {
        self.frontier.closed(partition);
        if let Some(times) = &mut self.times {
            times.remove(partition);
        }
    }

    pub(super) fn forget(&mut self, partition: &PartitionId) {
        self.frontier.forget(partition);
    }

    /// Everything committed at or before this has arrived.
    pub(super) fn through(&self) -> Timestamp {
        self.frontier.through()
    }

    /// As `through`, but not after the last time at which a partition closed.
    pub(super) fn through_closed(&self) -> Timestamp {
        self.frontier.through_closed()
    }

    /// Takes a piece in, and `kept` for it; gives that back if the piece is the bare end of a
    /// transaction that was let go. `replay`: the piece was given in an earlier run, when all
    /// partitions had been heard; other partitions need not give their part of it again.
    ///
    /// # Errors
    /// [`Fatal`](crate::ErrorKind::Fatal) without a commit time, or if it comes after a later one was let go.
    pub(super) fn push(&mut self, partition: &PartitionId, piece: &Piece, replay: bool, kept: P) -> Result<Option<P>> {
        let Some(time) = self.time_of(partition, piece, replay) else {
            if piece.changes.is_empty() {
                return Ok(Some(kept));
            }
            return Err(Error::fatal(format!("partition {partition} gave a transaction without a commit time")));
        };
        let key = (time, piece.transaction.rank.clone());
        if !replay {
            self.frontier.change(partition, time)?;
            if self.released.as_ref().is_some_and(|r| *r >= key) {
                if piece.changes.is_empty() {
                    return Ok(Some(kept));
                }
                return Err(Error::fatal(format!(
                    "partition {partition} gave a change committed at {time}, which all partitions had passed"
                )));
            }
        }
        // A bare end comes alone where the changes before it were passed in an earlier run.
        let alone = piece.changes.is_empty() && !self.pending.contains_key(&key);
        let told = piece.transaction.total.filter(|_| self.whole && !replay && !alone);
        let total = told.map_or(Total::Unknown, Total::Told);
        let pending = self.pending.entry(key).or_insert_with(|| Pending { pieces: Vec::new(), changes: 0, total });
        if pending.total != total {
            pending.total = Total::Unknown;
        }
        pending.changes += piece.changes.len() as u64;
        pending.pieces.push((piece.first_sequence, kept));
        Ok(None)
    }

    /// The batch was taken in.
    pub(super) fn end_of_batch(&mut self, batch: &ChangeBatch) {
        if let Some(time) = batch.safe_time() {
            self.frontier.safe(batch.partition(), time);
        }
    }

    /// The first transaction, if it was committed at or before `through`, in the order of its changes.
    ///
    /// # Errors
    /// [`Fatal`](crate::ErrorKind::Fatal) if it has not as many changes as its source told.
    pub(super) fn pop(&mut self, through: Timestamp) -> Result<Option<(Timestamp, Vec<P>)>> {
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
        if self.released.as_ref().is_none_or(|r| *r < key) {
            self.released = Some(key.clone());
        }
        Ok(Some((key.0, pending.pieces.into_iter().map(|(_, kept)| kept).collect())))
    }
}
