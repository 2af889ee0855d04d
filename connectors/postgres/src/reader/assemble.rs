//! From pgoutput's messages to batches, without a socket or a clock.

use std::sync::Arc;

use anabranch_core::{
    BatchBuilder, ChangeBatch, Op, PartitionId, Position, Result, Timestamp, Transaction, TruncateOptions,
};
use bytes::Bytes;

use super::output::{Open, Output, check_width, outside};
use super::relation::{Described, Relation, Relations, Resolved};
use super::streams::{Replay, Replayed, Streams};
use crate::decode::message::{Message, Old, decode};
use crate::decode::tuple::{Tuple, TupleValue};
use crate::error::protocol;
use crate::lsn::{Lsn, Ranking};

/// A batch is cut when it holds this much: large enough to make its fixed costs small, small enough
/// to bound memory and delay. Bytes.
pub(crate) const BATCH_BYTES: usize = 1 << 20;

/// A batch is cut at this many changes, however small they are.
pub(crate) const BATCH_CHANGES: usize = 8192;

/// What a message asks of the caller.
#[derive(Debug)]
pub(crate) enum Step {
    /// Nothing: go on.
    Done,
    /// Ask the catalog, then call [`Assembler::resolved`] before the next message.
    Describe(Described),
}

/// Where to begin, and what to leave out.
#[derive(Debug)]
pub(crate) struct Start {
    /// Everything at or before this is left out.
    pub(crate) position: Position,
    /// Leave out transactions that were replayed from another server.
    pub(crate) drop_origins: bool,
    /// What orders the transactions.
    pub(crate) ranking: Ranking,
}

/// Builds batches out of messages.
#[derive(Debug)]
pub(crate) struct Assembler {
    relations: Relations,
    output: Output,
    /// The place after the last whole transaction, or a later one that the server said to be reached.
    end: Position,
    /// The token of `end`.
    boundary: Lsn,
    /// The end of the last batch.
    given: Position,
    /// Changes at or before this place were given in an earlier run.
    skip: (Bytes, u64),
    drop_origins: bool,
    ranking: Ranking,
    /// The last transaction that ended: its rank and its time.
    last: Option<(Bytes, Timestamp)>,
    streams: Streams,
    /// A streamed transaction that was committed and is now read back.
    replay: Option<Replay>,
}

impl Assembler {
    pub(crate) fn new(partition: PartitionId, relations: Relations, start: Start) -> Result<Self> {
        let boundary = Lsn::of_token(&start.position)?;
        let (_, sequence) = Lsn::of_rank(&start.position)?;
        let rank = start.position.rank.as_bytes();
        let skip = (Bytes::copy_from_slice(&rank[..rank.len() - 8]), sequence);
        let batch = BatchBuilder::new(partition.clone());
        Ok(Self {
            relations,
            output: Output { partition, batch, generation: 1, open: None },
            end: start.position.clone(),
            given: start.position,
            boundary,
            skip,
            drop_origins: start.drop_origins,
            ranking: start.ranking,
            last: None,
            streams: Streams::default(),
            replay: None,
        })
    }

    /// Takes one pgoutput message. While [`Assembler::replay`] has something to do, it comes first.
    pub(crate) fn apply(&mut self, bytes: &[u8]) -> Result<Step> {
        let (message, xid) = read(bytes, self.streams.is_open())?;
        match message {
            Message::StreamStart { xid, first } => self.streams.start(xid, first)?,
            Message::StreamStop => self.streams.stop()?,
            _ if self.streams.is_open() => self.streams.keep(xid, bytes)?,
            Message::StreamAbort { xid, subxid } => self.streams.abort(xid, subxid),
            Message::StreamCommit { xid, commit_lsn, end_lsn, commit_time } => {
                self.replay = Some(self.streams.commit(xid, commit_lsn, end_lsn)?);
                self.begin(commit_lsn, commit_time)?;
            }
            message => return self.take_in(message),
        }
        Ok(Step::Done)
    }

    /// Takes one message of a streamed transaction that was committed; `None` if there is none.
    pub(crate) fn replay(&mut self) -> Result<Option<Step>> {
        let Some(mut replay) = self.replay.take() else { return Ok(None) };
        let step = match replay.next()? {
            Replayed::Message(bytes) => self.take_in(read(bytes, false)?.0)?,
            Replayed::RolledBack => Step::Done,
            Replayed::End => {
                self.commit(replay.commit_lsn, replay.end_lsn)?;
                return Ok(Some(Step::Done));
            }
        };
        self.replay = Some(replay);
        Ok(Some(step))
    }

    fn take_in(&mut self, message: Message<'_>) -> Result<Step> {
        if !matches!(message, Message::Relation(_) | Message::Type { .. }) {
            self.relations.interrupted();
        }
        match message {
            Message::Insert { relation, new } => self.insert(relation, new)?,
            Message::Update { relation, old, new } => self.update(relation, old, new)?,
            Message::Delete { relation, old } => self.delete(relation, old)?,
            Message::Begin { commit_lsn, commit_time } => self.begin(commit_lsn, commit_time)?,
            Message::Commit { commit_lsn, end_lsn, .. } => self.commit(commit_lsn, end_lsn)?,
            Message::Origin { name } => self.origin(name)?,
            Message::Relation(relation) => return self.relation(Described::of(relation)),
            Message::Truncate { relations, cascade, restart_identity } => {
                for relation in relations.iter() {
                    self.truncate(relation, TruncateOptions { cascade, restart_identity })?;
                }
            }
            Message::Logical { transactional: true, prefix, content } => self.logical(prefix, content)?,
            // It belongs to no transaction and may be sent again or never.
            Message::Logical { transactional: false, .. } => {}
            // Types are looked up in the catalog, where there is more about them.
            Message::Type { .. } => {}
            Message::StreamStart { .. }
            | Message::StreamStop
            | Message::StreamCommit { .. }
            | Message::StreamAbort { .. } => {
                return Err(protocol("a stream within a transaction"));
            }
        }
        Ok(Step::Done)
    }

    /// Takes the answer to [`Step::Describe`].
    pub(crate) fn resolved(&mut self, found: Resolved) -> Result<()> {
        let at = self.at();
        self.relations.resolved(found, at)
    }

    /// The server has sent everything that was committed before `wal_end`.
    pub(crate) fn keepalive(&mut self, wal_end: Lsn) {
        // Within a transaction the server's place says nothing that could be resumed from. At the
        // start it is the slot's restart place, which lies before ours.
        // YugabyteDB's place may be that of a transaction that it has read and not sent.
        if self.ranking == Ranking::Log && self.output.open.is_none() && wal_end > self.boundary {
            self.boundary = wal_end;
            self.end = wal_end.as_position();
        }
    }

    /// Whether the batch is large enough to be cut.
    pub(crate) fn is_full(&self) -> bool {
        self.output.batch.len() >= BATCH_CHANGES || self.output.batch.size() >= BATCH_BYTES
    }

    /// Whether there is something to give.
    pub(crate) fn has_changes(&self) -> bool {
        !self.output.batch.is_empty()
            || self.output.open.as_ref().is_some_and(|o| o.piece.is_some_and(|(g, _)| g == self.output.generation))
    }

    /// Whether a transaction has begun and not ended.
    pub(crate) fn in_transaction(&self) -> bool {
        self.output.open.is_some()
    }

    /// The time of the last transaction that ended, in a stream that is ranked by time: later ones have
    /// this time or a later one.
    pub(crate) fn committed(&self) -> Option<Timestamp> {
        self.last.as_ref().filter(|_| self.ranking == Ranking::CommitTime).map(|(_, time)| *time)
    }

    /// The place from which replication could begin again without leaving anything out.
    pub(crate) fn boundary(&self) -> Lsn {
        self.boundary
    }

    /// Cuts the batch: what there is so far, or a heartbeat.
    pub(crate) fn take(&mut self, safe_time: Option<Timestamp>, lag: Option<u64>) -> Result<ChangeBatch> {
        let partition = self.output.partition.clone();
        // A full batch is probably followed by another one. Not so one with an extraordinarily large row.
        let next = match self.is_full() && self.output.batch.size() < 2 * BATCH_BYTES {
            true => BatchBuilder::new_like(partition, &self.output.batch),
            false => BatchBuilder::new(partition),
        };
        let mut batch = std::mem::replace(&mut self.output.batch, next);
        self.output.generation += 1;
        if let Some(lag) = lag {
            batch.lag_bytes(lag);
        }
        let end = match &self.output.open {
            Some(open) if open.piece.is_some_and(|(generation, _)| generation + 1 == self.output.generation) => {
                self.boundary.within(&open.transaction.rank, open.sequence)
            }
            // A heartbeat within a transaction moves nothing: this lies before what was given of it.
            _ => self.end.clone(),
        };
        if end.rank > self.given.rank {
            self.given = end;
        }
        batch.finish(self.given.clone(), safe_time)
    }

    fn begin(&mut self, commit_lsn: Lsn, commit_time: Timestamp) -> Result<()> {
        if self.output.open.is_some() {
            return Err(protocol(format!("a transaction begins at {commit_lsn} within another one")));
        }
        let rank = self.ranking.prefix(commit_lsn, commit_time);
        if let Some((last, _)) =
            self.last.as_ref().filter(|(last, _)| self.ranking == Ranking::CommitTime && *last >= rank)
        {
            return Err(protocol(format!(
                "the transaction at {commit_lsn} ({commit_time}) comes after one of rank {:?}: the stream went back",
                anabranch_core::Rank::new(last.clone())
            )));
        }
        let skip_through = match rank.cmp(&self.skip.0) {
            std::cmp::Ordering::Less => u64::MAX,
            std::cmp::Ordering::Equal => self.skip.1,
            std::cmp::Ordering::Greater => 0,
        };
        self.output.open = Some(Open {
            commit_lsn,
            place: self.ranking.place(commit_lsn, commit_time),
            time: commit_time,
            transaction: Transaction { rank, commit_time: Some(commit_time), ..Transaction::default() },
            sequence: 0,
            skip_through,
            piece: None,
            begun: false,
        });
        Ok(())
    }

    fn origin(&mut self, name: &str) -> Result<()> {
        let open = self.output.open.as_mut().ok_or_else(outside)?;
        if self.drop_origins {
            open.skip_through = u64::MAX;
        }
        // The time is that of the first commit, on the other server and by its clock.
        open.transaction.commit_time = None;
        open.transaction.origin = Some(Arc::from(name));
        Ok(())
    }

    fn commit(&mut self, commit_lsn: Lsn, end_lsn: Lsn) -> Result<()> {
        let open = self.output.open.take().ok_or_else(outside)?;
        if open.commit_lsn != commit_lsn || end_lsn < commit_lsn {
            return Err(protocol(format!("the transaction at {} ends at {commit_lsn}", open.commit_lsn)));
        }
        let boundary = self.ranking.boundary(commit_lsn, end_lsn);
        let position = boundary.after(&open.transaction.rank);
        self.last = Some((open.transaction.rank.clone(), open.time));
        if open.begun {
            if open.piece.is_none_or(|(generation, _)| generation != self.output.generation) {
                // Its changes went into earlier batches: an empty piece carries the end.
                self.output.batch.begin(open.transaction, open.sequence + 1);
            }
            self.output.batch.commit(position.clone());
        }
        if position.rank > self.end.rank {
            self.end = position;
        }
        self.boundary = self.boundary.max(boundary);
        Ok(())
    }

    fn relation(&mut self, described: Described) -> Result<Step> {
        let at = self.at();
        Ok(match self.relations.describe(described, at)? {
            Some(unknown) => Step::Describe(unknown),
            None => Step::Done,
        })
    }

    fn at(&self) -> Lsn {
        self.output.open.as_ref().map_or(self.boundary, |o| o.commit_lsn)
    }

    fn insert(&mut self, oid: u32, new: Tuple<'_>) -> Result<()> {
        let relation = known(&mut self.relations, oid)?;
        if self.output.change(relation, Op::Insert)? {
            self.output.batch.new_row();
            self.output.row(relation, new)?;
        }
        Ok(())
    }

    fn update(&mut self, oid: u32, old: Option<Old<'_>>, new: Tuple<'_>) -> Result<()> {
        let relation = known(&mut self.relations, oid)?;
        if !self.output.change(relation, Op::Update)? {
            return Ok(());
        }
        let Some(old) = old.map(|old| relation.old_rows.of(old)) else {
            self.output.batch.new_row();
            return self.output.row(relation, new);
        };
        self.output.old_row(relation, old)?;
        self.output.batch.new_row();
        check_width(relation, new)?;
        // A large value that did not change is not sent again, but the old row has it.
        for (at, (value, before)) in new.values().zip(old.row.values()).enumerate() {
            let sent_before = old.full || relation.is_key(at);
            let value = if value == TupleValue::Unchanged && sent_before { before } else { value };
            self.output.push(relation, at, value)?;
        }
        Ok(())
    }

    fn delete(&mut self, oid: u32, old: Old<'_>) -> Result<()> {
        let relation = known(&mut self.relations, oid)?;
        if self.output.change(relation, Op::Delete)? {
            self.output.old_row(relation, relation.old_rows.of(old))?;
        }
        Ok(())
    }

    fn truncate(&mut self, oid: u32, options: TruncateOptions) -> Result<()> {
        let relation = known(&mut self.relations, oid)?;
        self.output.change(relation, Op::Truncate(options)).map(drop)
    }

    fn logical(&mut self, prefix: &str, content: &[u8]) -> Result<()> {
        if self.output.next_change(None)? {
            self.output.batch.message(prefix, content);
        }
        Ok(())
    }
}

fn read(bytes: &[u8], streaming: bool) -> Result<(Message<'_>, Option<u32>)> {
    decode(bytes, streaming).map_err(|e| protocol("cannot read a pgoutput message").because(e))
}

fn known(relations: &mut Relations, oid: u32) -> Result<&mut Relation> {
    relations.get(oid).ok_or_else(|| protocol(format!("a change of relation {oid}, which was not described")))
}

#[cfg(test)]
mod tests;
