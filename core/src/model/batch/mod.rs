//! A batch of changes that owns its memory: no allocation per row, none per value.
//!
//! ```text
//! schemas  [orders v3, lines v1]
//! pieces   [ T17: changes 0..2, ends | T18: changes 2..5, continues ]
//! records  [ insert 0 new@0 | update 0 old@4 new@8 | ... ]
//! cells    [ int 7 | text 0..5 | null | unchanged | ... ]      flat, rows are runs of it
//! text     "hello..."        bytes  [..]                        what text and bytes cells point into
//! ```

mod builder;
mod view;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{PartitionId, Position, TableSchema, Timestamp, ValueRef};
use crate::dead_letter::LetterClass;
use crate::error::{Error, ErrorKind, Result};

pub use builder::BatchBuilder;
pub use view::{ChangeRef, RowRef};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// A row came to be. It has a new row and no old one. Snapshot rows are inserts too.
    Insert,
    /// A row changed. The new row may have unchanged columns. An old image is there when the key
    /// changed, or when the source sends full old rows.
    Update,
    /// A row is gone. It has an old row (key or full) and no new one.
    Delete,
    /// Every row of the table is gone.
    Truncate(TruncateOptions),
    /// A message that the source carries in its log. Its two cells are a text prefix and bytes.
    Message,
    /// From here on the table has this schema. It has no rows.
    Schema,
}

/// How a table was truncated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct TruncateOptions {
    /// Tables that refer to it were truncated too; the source sends a truncate for each that it publishes.
    pub cascade: bool,
    /// Sequences that its columns own began anew.
    pub restart_identity: bool,
}

/// How much the source sent of a row as it was before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum OldImage {
    /// Nothing.
    None,
    /// The key columns; every other cell is [`ValueRef::Unchanged`].
    Key,
    /// Every column.
    Full,
}

/// A source transaction.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Transaction {
    /// The prefix of its changes' ranks (see [`Rank`](crate::Rank)); it also identifies the transaction within its source.
    pub rank: Bytes,
    /// When it was committed, by the source's clock.
    pub commit_time: Option<Timestamp>,
    /// The replication origin it was replayed from, if it was not first made on this source.
    pub origin: Option<Arc<str>>,
    /// A tag that the writer set (a Spanner transaction tag).
    pub tag: Option<Arc<str>>,
    /// How many changes it has over all partitions, where the source tells.
    pub total: Option<u64>,
}

/// A run of changes of one transaction within a batch. A batch may split a transaction.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Piece {
    /// The transaction.
    pub transaction: Transaction,
    /// Which changes of the batch.
    pub changes: Range<u32>,
    /// The number within the transaction of the first of them, from 1.
    pub first_sequence: u64,
    /// Whether this piece begins the transaction in this partition: it is the first that a reader gives
    /// of it, whatever changes before it were left out. No piece of a transaction that an earlier reader
    /// began is. It says nothing about [`Piece::first_sequence`].
    pub first: bool,
    /// The position after the transaction, if this piece ends it in this partition.
    pub end: Option<Position>,
}

/// Changes of one partition, in its order.
#[derive(Debug, Clone)]
pub struct ChangeBatch {
    schemas: Vec<Arc<TableSchema>>,
    data: Data,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Data {
    partition: PartitionId,
    records: Vec<Record>,
    cells: Vec<Cell>,
    text: String,
    bytes: Vec<u8>,
    pieces: Vec<Piece>,
    shards: Vec<Arc<str>>,
    /// Changes that a transform left out, by index.
    left_out: BTreeMap<u32, LeftOut>,
    end: Position,
    safe_time: Option<Timestamp>,
    lag_bytes: Option<u64>,
    /// Resumes a reader at or before its first change, and not before what may be acknowledged until that
    /// is applied. Known to the runtime.
    before: Bytes,
}

/// Why a transform left a change out: it is counted and kept as a letter of this class, and never
/// given to a sink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// [`Filtered`](LetterClass::Filtered) or [`Skip`](LetterClass::Skip): on purpose.
    /// [`Severe`](LetterClass::Severe): it can never be applied as it is, and a person must look.
    pub class: LetterClass,
    /// For people.
    pub reason: Arc<str>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Record {
    op: Op,
    old_image: OldImage,
    schema: u32,
    /// First cell of the old row, then of the new row; `ABSENT` for none.
    old: u32,
    new: u32,
    /// Index into `shards`; `ABSENT` for none.
    shard: u32,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Cell {
    Unchanged,
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(u32, u32),
    Bytes(u32, u32),
}

const ABSENT: u32 = u32::MAX;

/// Cells, text and bytes are addressed with 32 bits; a batch is cut long before this.
const MAX_BYTES: usize = u32::MAX as usize - 1;

impl ChangeBatch {
    /// The partition it is from.
    pub fn partition(&self) -> &PartitionId {
        &self.data.partition
    }

    /// How many changes it has. A heartbeat has none.
    pub fn len(&self) -> usize {
        self.data.records.len()
    }

    /// Whether it has no changes.
    pub fn is_empty(&self) -> bool {
        self.data.records.is_empty()
    }

    /// The transactions, or parts of such, in order. They cover all changes.
    pub fn pieces(&self) -> &[Piece] {
        &self.data.pieces
    }

    /// The schemas that its changes refer to.
    pub fn schemas(&self) -> &[Arc<TableSchema>] {
        &self.schemas
    }

    /// The place after everything in this batch.
    pub fn end(&self) -> &Position {
        &self.data.end
    }

    /// Every transaction of this partition with a commit time at or before this one lies at or
    /// before [`ChangeBatch::end`]. The source states the rule.
    pub fn safe_time(&self) -> Option<Timestamp> {
        self.data.safe_time
    }

    /// How many bytes of log the source had after this batch when it sent it.
    pub fn lag_bytes(&self) -> Option<u64> {
        self.data.lag_bytes
    }

    /// The change at `index`.
    ///
    /// # Panics
    /// If `index` is not below [`ChangeBatch::len`].
    pub fn change(&self, index: usize) -> ChangeRef<'_> {
        ChangeRef { batch: self, record: &self.data.records[index], index: index as u32 }
    }

    /// All changes in order.
    pub fn changes(&self) -> impl ExactSizeIterator<Item = ChangeRef<'_>> {
        (0..self.len()).map(|i| self.change(i))
    }

    /// The piece that holds the change at `index`.
    pub fn piece_of(&self, index: u32) -> &Piece {
        let at = self.data.pieces.partition_point(|p| p.changes.end <= index);
        &self.data.pieces[at]
    }

    /// What it occupies, for the byte budget.
    pub fn memory_size(&self) -> usize {
        let d = &self.data;
        size_of::<Self>()
            + d.records.capacity() * size_of::<Record>()
            + d.cells.capacity() * size_of::<Cell>()
            + d.text.capacity()
            + d.bytes.capacity()
            + d.pieces.capacity() * (size_of::<Piece>() + 48)
    }

    /// The same changes under other schemas, one for each of [`ChangeBatch::schemas`], of the same width.
    pub(crate) fn with_schemas(mut self, schemas: Vec<Arc<TableSchema>>) -> Self {
        debug_assert!(self.schemas.iter().map(|s| s.columns.len()).eq(schemas.iter().map(|s| s.columns.len())));
        self.schemas = schemas;
        self
    }

    /// Without room to grow.
    pub(crate) fn shrunk(mut self) -> Self {
        let Data { records, cells, text, bytes, pieces, .. } = &mut self.data;
        records.shrink_to_fit();
        cells.shrink_to_fit();
        text.shrink_to_fit();
        bytes.shrink_to_fit();
        pieces.shrink_to_fit();
        self
    }

    /// With the token of the position at which the batch before it ended.
    pub(crate) fn resumed_from(mut self, token: Bytes) -> Self {
        self.data.before = token;
        self
    }

    /// What resumes a reader before the transaction of the change at `index`: where the last one ended.
    pub(crate) fn token_before(&self, index: u32) -> &Bytes {
        let at = self.data.pieces.partition_point(|p| p.changes.end <= index);
        let ended = self.data.pieces[..at].iter().rev().find_map(|p| p.end.as_ref());
        ended.map_or(&self.data.before, |end| &end.token)
    }

    /// Whether a transform left changes out of it.
    pub fn leaves_out(&self) -> bool {
        !self.data.left_out.is_empty()
    }

    /// The same changes with the shards that `choose` gives; `None` leaves a change's shard as it is.
    /// A change that it refuses is left out as severe; one that is left out already is not asked about.
    pub(crate) fn with_shards(
        mut self,
        mut choose: impl FnMut(ChangeRef<'_>) -> Result<Option<Arc<str>>>,
    ) -> Result<Self> {
        let mut refused = BTreeMap::new();
        let mut chosen = Vec::with_capacity(self.len());
        for change in self.changes() {
            chosen.push(match change.left_out() {
                Some(_) => None,
                None => match choose(change) {
                    Err(e) if e.kind() == ErrorKind::Rejected => {
                        let reason = e.report().into();
                        refused.insert(change.index(), LeftOut { class: LetterClass::Severe, reason });
                        None
                    }
                    other => other?,
                },
            });
        }
        self.data.left_out.append(&mut refused);
        for (record, shard) in self.data.records.iter_mut().zip(chosen) {
            let Some(shard) = shard else { continue };
            let known = self.data.shards.iter().position(|s| *s == shard);
            record.shard = known.unwrap_or(self.data.shards.len()) as u32;
            if known.is_none() {
                self.data.shards.push(shard);
            }
        }
        Ok(self)
    }

    /// The batch as bytes, for a spill file. Schemas stay in memory: give them back to [`ChangeBatch::unspill`].
    pub fn spill(&self) -> Result<Vec<u8>> {
        postcard::to_stdvec(&self.data).map_err(|e| Error::fatal("cannot encode a batch for spilling").because(e))
    }

    /// The inverse of [`ChangeBatch::spill`].
    pub fn unspill(schemas: Vec<Arc<TableSchema>>, bytes: &[u8]) -> Result<Self> {
        let data = postcard::from_bytes(bytes).map_err(|e| Error::fatal("a spilled batch is damaged").because(e))?;
        Ok(Self { schemas, data })
    }
}

impl ChangeBatch {
    fn value(&self, cell: &Cell) -> ValueRef<'_> {
        match *cell {
            Cell::Unchanged => ValueRef::Unchanged,
            Cell::Null => ValueRef::Null,
            Cell::Bool(v) => ValueRef::Bool(v),
            Cell::Int(v) => ValueRef::Int(v),
            Cell::Float(v) => ValueRef::Float(v),
            Cell::Text(start, len) => ValueRef::Text(&self.data.text[start as usize..(start + len) as usize]),
            Cell::Bytes(start, len) => ValueRef::Bytes(&self.data.bytes[start as usize..(start + len) as usize]),
        }
    }
}
