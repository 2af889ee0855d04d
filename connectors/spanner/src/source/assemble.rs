//! Records of one partition as batches: sorted, whole, without repeats. No I/O.
//!
//! Records of one commit time may belong to several transactions and come interleaved, so those of
//! the latest time are held until a later record or a heartbeat proves that the time is over; then
//! they go out by transaction and `record_sequence`. That is the same order however often they are
//! read, and the order of ranks. What is held is bounded by Spanner's own limit of a commit (100 MiB of
//! changes); above [`IN_MEMORY`] it waits in a temporary file.

use std::collections::{BTreeMap, HashMap, VecDeque};

use anabranch_core::{
    BatchBuilder, ChangeBatch, Error, PartitionId, Piece, Position, Rank, Result, TableName, Transaction,
};
use bytes::Bytes;

use super::catalog::is_own;
use super::hold::Held;
use super::place;
use super::rows;
use super::tables::Tables;
use crate::client::Instant;
use crate::decode::{DataRecord, unusable};

/// Bytes of changes in a batch, about.
const BATCH_BYTES: usize = 1 << 20;
/// Changes in a batch, about.
const BATCH_CHANGES: usize = 4096;

/// Where a reader resumes, and what it leaves out.
#[derive(Debug, Clone, Default)]
pub(crate) struct Skip {
    /// Copied tables have the changes up to these times.
    pub(crate) copied: HashMap<TableName, Instant>,
    /// Mutable key ranges: of this time, records up to this `record_sequence` are another partition's.
    pub(crate) amid: Option<(Instant, u32)>,
}

/// Assembles the batches of one partition.
#[derive(Debug)]
pub(crate) struct Assembler {
    partition: PartitionId,
    tables: Tables,
    skip: Skip,
    /// Transactions on the same number of partitions as records tell are checked to be whole.
    whole: bool,
    /// Records of the time `time`.
    held: Held,
    time: Option<Instant>,
    /// Everything before this, or at it (`true`), was sent.
    proven: Option<(Instant, bool)>,
    /// Transactions whose time is over, in order.
    ready: VecDeque<Bytes>,
    releasing: Option<Open>,
    end: Position,
    batch: Option<BatchBuilder>,
    /// A heartbeat, or an end, came since the last batch.
    news: bool,
}

/// A transaction that is being given.
#[derive(Debug)]
struct Open {
    transaction: Transaction,
    commit: Instant,
    records: VecDeque<DataRecord>,
    /// The next mod of the first record.
    place: usize,
    last: u64,
}

impl Assembler {
    /// `from`: where the reading resumes; batches end there until something is given.
    pub(crate) fn new(partition: PartitionId, tables: Tables, from: Position, skip: Skip, whole: bool) -> Self {
        Self {
            partition,
            tables,
            skip,
            whole,
            held: Held::default(),
            time: None,
            proven: None,
            ready: VecDeque::new(),
            releasing: None,
            end: from,
            batch: None,
            news: false,
        }
    }

    /// The last time that was heard of.
    pub(crate) fn heard(&self) -> Option<Instant> {
        self.time.max(self.proven.map(|(at, _)| at))
    }

    /// Mutable key ranges: whether the record is one of the part before.
    pub(crate) fn skips(&self, at: Instant, sequence: u32) -> bool {
        self.skip.amid.is_some_and(|(t, last)| at < t || (at == t && sequence <= last))
    }

    /// Takes a data record in.
    pub(crate) fn data(&mut self, record: DataRecord) -> Result<()> {
        let at = record.commit;
        let repeated = self.proven.is_some_and(|(t, inclusive)| at < t || (inclusive && at == t));
        if repeated || self.skips(at, record.sequence) {
            // A connection that was mended sends again what came before.
            return Ok(());
        }
        if self.time.is_some_and(|t| at > t) {
            self.release();
        }
        self.time = Some(at);
        self.prove(at, false);
        self.held.add(place::prefix(at, &record.transaction), record)
    }

    /// Everything at or before `at` was sent.
    pub(crate) fn heartbeat(&mut self, at: Instant) {
        if self.time.is_none_or(|t| at >= t) {
            self.release();
            self.prove(at, true);
        }
        self.news = true;
    }

    /// The partition ends: what goes on begins at `at`.
    pub(crate) fn ended(&mut self, at: Instant) {
        self.release();
        self.prove(at, false);
        self.news = true;
    }

    /// The query ended before the partition: the next one begins at what was heard last.
    pub(crate) fn stopped(&mut self) {
        self.news = true;
    }

    /// Whether [`Assembler::take`] has something to give when it is flushed.
    pub(crate) fn has_news(&self) -> bool {
        self.news || self.batch.is_some()
    }

    /// The next batch, if one is full; with `flush` whatever there is.
    pub(crate) fn take(&mut self, flush: bool) -> Result<Option<ChangeBatch>> {
        while self.releasing.is_some() || !self.ready.is_empty() {
            self.give()?;
            if self.batch.as_ref().is_some_and(|b| b.size() >= BATCH_BYTES || b.len() >= BATCH_CHANGES) {
                return self.finish().map(Some);
            }
        }
        if flush && (self.news || self.batch.is_some()) {
            return self.finish().map(Some);
        }
        Ok(None)
    }

    fn prove(&mut self, at: Instant, inclusive: bool) {
        self.proven = self.proven.max(Some((at, inclusive)));
    }

    fn release(&mut self) {
        self.ready.extend(self.held.release());
        self.time = None;
    }

    /// Gives some of the next transaction.
    fn give(&mut self) -> Result<()> {
        if self.releasing.is_none() {
            let Some(prefix) = self.ready.pop_front() else { return Ok(()) };
            let records = self.held.take(&prefix)?;
            let Some(first) = records.values().next() else { return Ok(()) };
            self.check_whole(first, records.len())?;
            let tag = Some(first.tag.as_str()).filter(|t| !t.is_empty()).map(Into::into);
            let commit = first.commit;
            let transaction =
                Transaction { rank: prefix, commit_time: Some(commit.timestamp()), tag, ..Transaction::default() };
            let first_sequence = place::schema_number(first.sequence);
            // Numbers are those of the whole transaction, of which other partitions have parts.
            let piece =
                Piece { transaction: transaction.clone(), changes: 0..0, first_sequence, first: true, end: None };
            self.builder().begin_like(&piece);
            self.releasing =
                Some(Open { transaction, commit, records: records.into_values().collect(), place: 0, last: 0 });
        }
        let Some(mut open) = self.releasing.take() else { return Ok(()) };
        if self.batch.is_none() {
            self.builder().begin(open.transaction.clone(), open.last + 1);
        }
        while let Some(record) = open.records.front() {
            let table = self.tables.name(&record.table);
            let copied = self.skip.copied.get(&table).is_some_and(|at| open.commit <= *at);
            if !copied && !is_own(&table) {
                let fit = self.tables.fit(record);
                let batch = self.batch.get_or_insert_with(|| BatchBuilder::new(self.partition.clone()));
                open.place = rows::append(batch, record, &fit, open.place, BATCH_BYTES)
                    .map_err(|problem| Error::fatal("cannot use a change record").because(unusable(problem, record)))?;
                open.last = place::mod_number(record.sequence, open.place) - 1;
                if open.place < record.mods.len() {
                    return self.pause(open);
                }
            }
            open.records.pop_front();
            open.place = 0;
            let full = self.batch.as_ref().is_some_and(|b| b.size() >= BATCH_BYTES);
            if full && !open.records.is_empty() {
                return self.pause(open);
            }
        }
        self.end = place::after(&open.transaction.rank, open.commit);
        let end = self.end.clone();
        self.builder().commit(end);
        Ok(())
    }

    /// The batch is full; the transaction goes on in the next one.
    fn pause(&mut self, open: Open) -> Result<()> {
        self.end = Position::new(Rank::of_change(&open.transaction.rank, open.last), self.end.token.clone());
        self.releasing = Some(open);
        Ok(())
    }

    /// Spanner tells how many records a transaction has over all partitions; where this is the only
    /// one, they must all have come.
    fn check_whole(&self, of: &DataRecord, came: usize) -> Result<()> {
        if self.whole && of.partitions_in_transaction == 1 && of.records_in_transaction != came as u64 {
            return Err(Error::fatal(format!(
                "the change stream told of {} records in the transaction {} committed at {} and sent {came}",
                of.records_in_transaction, of.transaction, of.commit
            ))
            .hint("changes are missing: begin again with a new pipeline and a snapshot"));
        }
        Ok(())
    }

    fn builder(&mut self) -> &mut BatchBuilder {
        self.batch.get_or_insert_with(|| BatchBuilder::new(self.partition.clone()))
    }

    fn finish(&mut self) -> Result<ChangeBatch> {
        let given = self.releasing.is_none() && self.ready.is_empty();
        if given && let Some((at, inclusive)) = self.proven {
            let reached = if inclusive { place::through(at) } else { place::before(at) };
            if reached.rank > self.end.rank {
                self.end = reached;
            }
        }
        if given {
            self.news = false;
        }
        let safe = self.proven.filter(|_| given).map(
            |(at, inclusive)| {
                if inclusive { at.all_through() } else { at.all_before() }
            },
        );
        let batch = self.batch.take().unwrap_or_else(|| BatchBuilder::new(self.partition.clone()));
        batch.finish(self.end.clone(), safe)
    }
}

/// Records of one transaction by their `record_sequence`.
pub(crate) type Records = BTreeMap<u32, DataRecord>;

#[cfg(test)]
#[path = "assemble_tests.rs"]
mod tests;
