//! A batch of changes that owns its memory: no allocation per row, none per value.
//!
//! ```text
//! schemas  [orders v3, lines v1]
//! pieces   [ T17: changes 0..2, ends | T18: changes 2..5, continues ]
//! records  [ insert 0 new@0 | update 0 old@4 new@8 | ... ]
//! cells    [ int 7 | text 0..5 | null | unchanged | ... ]      flat, rows are runs of it
//! text     "hello..."        bytes  [..]                        what text and bytes cells point into
//! ```

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{PartitionId, Position, Rank, TableSchema, Timestamp, ValueRef};
use crate::dead_letter::LetterClass;
use crate::error::{Error, ErrorKind, Result};

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
    /// The prefix of its changes' ranks (see [`Rank`]); it also identifies the transaction within its source.
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

/// A change, borrowed from its batch.
#[derive(Debug, Clone, Copy)]
pub struct ChangeRef<'a> {
    batch: &'a ChangeBatch,
    record: &'a Record,
    index: u32,
}

impl<'a> ChangeRef<'a> {
    /// What happened.
    pub fn op(self) -> Op {
        self.record.op
    }

    /// The batch that it is borrowed from.
    pub fn batch(self) -> &'a ChangeBatch {
        self.batch
    }

    /// The table, as it was then.
    ///
    /// # Panics
    /// For [`Op::Message`], which belongs to no table; see [`ChangeRef::table`].
    pub fn schema(self) -> &'a Arc<TableSchema> {
        &self.batch.schemas[self.record.schema as usize]
    }

    /// The table, as it was then; `None` for a message.
    pub fn table(self) -> Option<&'a Arc<TableSchema>> {
        self.batch.schemas.get(self.record.schema as usize)
    }

    /// The place of its schema in [`ChangeBatch::schemas`]; equal for equal tables of one batch.
    pub fn schema_index(self) -> usize {
        self.record.schema as usize
    }

    /// The partition it is from.
    pub fn partition(self) -> &'a PartitionId {
        self.batch.partition()
    }

    /// Its place in the batch.
    pub fn index(self) -> u32 {
        self.index
    }

    /// The row after the change.
    pub fn new_row(self) -> Option<RowRef<'a>> {
        self.row(self.record.new)
    }

    /// The row before the change, as far as it was sent.
    pub fn old_row(self) -> Option<RowRef<'a>> {
        self.row(self.record.old)
    }

    /// How much of the old row there is.
    pub fn old_image(self) -> OldImage {
        self.record.old_image
    }

    /// The row that tells which row of the target is meant: the old one if it was sent, else the new one.
    pub fn identity_row(self) -> Option<RowRef<'a>> {
        self.old_row().or_else(|| self.new_row())
    }

    /// Whether an update gave the row another key.
    pub fn changes_key(self) -> bool {
        match (self.record.op, self.old_row(), self.new_row()) {
            (Op::Update, Some(old), Some(new)) => self.schema().key.iter().any(|&k| {
                let (old, new) = (old.get(usize::from(k)), new.get(usize::from(k)));
                !new.is_unchanged() && !old.is_unchanged() && old != new
            }),
            _ => false,
        }
    }

    /// The shard that a transform chose.
    pub fn shard(self) -> Option<&'a Arc<str>> {
        self.batch.data.shards.get(self.record.shard as usize)
    }

    /// Why a transform left it out, if one did.
    pub fn left_out(self) -> Option<&'a LeftOut> {
        self.batch.data.left_out.get(&self.index)
    }

    /// Prefix and content of an [`Op::Message`].
    pub fn message(self) -> Option<(&'a str, &'a [u8])> {
        let at = self.record.new as usize;
        match (self.record.op, self.batch.data.cells.get(at), self.batch.data.cells.get(at + 1)) {
            (Op::Message, Some(prefix), Some(content)) => match (self.batch.value(prefix), self.batch.value(content)) {
                (ValueRef::Text(prefix), ValueRef::Bytes(content)) => Some((prefix, content)),
                _ => None,
            },
            _ => None,
        }
    }

    /// The transaction it belongs to.
    pub fn piece(self) -> &'a Piece {
        self.batch.piece_of(self.index)
    }

    /// Its number within its transaction, from 1.
    pub fn sequence(self) -> u64 {
        let piece = self.piece();
        piece.first_sequence + u64::from(self.index - piece.changes.start)
    }

    /// Its rank in its partition.
    pub fn rank(self) -> Rank {
        Rank::of_change(&self.piece().transaction.rank, self.sequence())
    }

    fn row(self, start: u32) -> Option<RowRef<'a>> {
        (start != ABSENT && self.record.op != Op::Message).then(|| {
            let start = start as usize;
            let width = self.schema().columns.len();
            RowRef { batch: self.batch, cells: &self.batch.data.cells[start..start + width] }
        })
    }
}

/// A row, borrowed from its batch. Its values stand in the order of its schema's columns.
#[derive(Debug, Clone, Copy)]
pub struct RowRef<'a> {
    batch: &'a ChangeBatch,
    cells: &'a [Cell],
}

impl<'a> RowRef<'a> {
    /// The value of the column at `index`.
    ///
    /// # Panics
    /// If the schema has no such column.
    pub fn get(self, index: usize) -> ValueRef<'a> {
        self.batch.value(&self.cells[index])
    }

    /// How many columns it has.
    pub fn len(self) -> usize {
        self.cells.len()
    }

    /// Whether it has no columns.
    pub fn is_empty(self) -> bool {
        self.cells.is_empty()
    }

    /// All values in order.
    pub fn values(self) -> impl ExactSizeIterator<Item = ValueRef<'a>> {
        self.cells.iter().map(move |c| self.batch.value(c))
    }

    /// Whether every column was sent.
    pub fn is_complete(self) -> bool {
        !self.cells.iter().any(|c| matches!(c, Cell::Unchanged))
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

/// Builds a [`ChangeBatch`], change by change.
///
/// ```
/// use std::sync::Arc;
/// use anabranch_core::*;
/// let schema = Arc::new(TableSchema {
///     name: TableName::new("public", "orders"),
///     columns: vec![Column::new("id", DataType::Int64), Column::new("note", DataType::Text { max_chars: None })],
///     key: vec![0],
/// });
/// let mut b = BatchBuilder::new(PartitionId::new("slot"));
/// let orders = b.schema(&schema);
/// b.begin(Transaction { rank: 1u64.to_be_bytes().to_vec().into(), ..Default::default() }, 1);
/// b.change(Op::Insert, orders);
/// b.new_row();
/// b.push(ValueRef::Int(7));
/// b.push(ValueRef::Text("hello"));
/// let end = Position::new(Rank::of_end(&1u64.to_be_bytes()), &b"1"[..]);
/// b.commit(end.clone());
/// let batch = b.finish(end, None)?;
/// assert_eq!(batch.change(0).new_row().unwrap().get(1), ValueRef::Text("hello"));
/// # Ok::<(), anabranch_core::Error>(())
/// ```
#[derive(Debug)]
pub struct BatchBuilder {
    schemas: Vec<Arc<TableSchema>>,
    data: Data,
    open: Option<Piece>,
    /// The open piece stays even without changes: it tells that the transaction begins here.
    keep_empty: bool,
    problem: Option<String>,
}

impl BatchBuilder {
    /// An empty batch of this partition.
    pub fn new(partition: PartitionId) -> Self {
        Self {
            schemas: Vec::new(),
            data: Data {
                partition,
                records: Vec::new(),
                cells: Vec::new(),
                text: String::new(),
                bytes: Vec::new(),
                pieces: Vec::new(),
                shards: Vec::new(),
                left_out: BTreeMap::new(),
                end: Position::default(),
                safe_time: None,
                lag_bytes: None,
            },
            open: None,
            keep_empty: false,
            problem: None,
        }
    }

    /// As [`BatchBuilder::new`], with room for as much as `last` holds: for a reader under load, whose
    /// batches are alike. Growing step by step costs it a fifth of its time.
    pub fn new_like(partition: PartitionId, last: &Self) -> Self {
        let mut new = Self::new(partition);
        // Rows differ a little: a batch that is slightly larger than the last must not grow by doubling.
        let room = |used: usize| used + used / 16;
        new.data.records.reserve_exact(room(last.data.records.len()));
        new.data.cells.reserve_exact(room(last.data.cells.len()));
        new.data.text.reserve_exact(room(last.data.text.len()));
        new.data.bytes.reserve_exact(room(last.data.bytes.len()));
        new.data.pieces.reserve_exact(room(last.data.pieces.len()));
        new
    }

    /// The index of this schema, added if it is new. Compared by pointer: keep one `Arc` per version.
    pub fn schema(&mut self, schema: &Arc<TableSchema>) -> usize {
        match self.schemas.iter().rposition(|s| Arc::ptr_eq(s, schema)) {
            Some(at) => at,
            None => {
                self.schemas.push(Arc::clone(schema));
                self.schemas.len() - 1
            }
        }
    }

    /// Begins a transaction, or goes on with one that an earlier batch began: `sequence` is the
    /// number of the next change in it, 1 for a new one. One whose first changes are left out is begun
    /// with [`BatchBuilder::begin_like`], which tells that it begins.
    pub fn begin(&mut self, transaction: Transaction, sequence: u64) {
        self.close_piece(None);
        let at = self.data.records.len() as u32;
        self.open =
            Some(Piece { transaction, changes: at..at, first_sequence: sequence, first: sequence == 1, end: None });
    }

    /// Goes on as `piece` of another batch does, whose changes are copied to this one: the same
    /// transaction, the same numbers, and kept even if none of its changes is.
    pub fn begin_like(&mut self, piece: &Piece) {
        self.begin(piece.transaction.clone(), piece.first_sequence);
        if let Some(open) = &mut self.open {
            open.first = piece.first;
        }
        self.keep_empty = piece.first;
    }

    /// The next change has this number in the open transaction: those between are left out, and
    /// the numbers (the ranks) of the others stay what they are.
    pub fn skip_to(&mut self, sequence: u64) {
        let at = self.data.records.len() as u32;
        let Some(open) = &mut self.open else { return };
        if open.changes.start == at {
            open.first_sequence = sequence;
        } else if open.first_sequence + u64::from(at - open.changes.start) != sequence {
            let transaction = open.transaction.clone();
            self.close_piece(None);
            self.open = Some(Piece { transaction, changes: at..at, first_sequence: sequence, first: false, end: None });
        }
    }

    /// Ends the open transaction; `end` is the position after it.
    pub fn commit(&mut self, end: Position) {
        self.close_piece(Some(end));
    }

    /// Starts a change of the open transaction, on the schema with this index. Rows follow.
    pub fn change(&mut self, op: Op, schema: usize) {
        self.check_row();
        self.data.records.push(Record {
            op,
            old_image: OldImage::None,
            schema: schema as u32,
            old: ABSENT,
            new: ABSENT,
            shard: ABSENT,
        });
    }

    /// Adds a message to the open transaction.
    pub fn message(&mut self, prefix: &str, content: &[u8]) {
        self.change(Op::Message, ABSENT as usize);
        let at = self.data.cells.len() as u32;
        if let Some(record) = self.data.records.last_mut() {
            record.new = at;
        }
        self.push(ValueRef::Text(prefix));
        self.push(ValueRef::Bytes(content));
    }

    /// The old row of the current change follows: one [`BatchBuilder::push`] for each column.
    pub fn old_row(&mut self, image: OldImage) {
        let at = self.data.cells.len() as u32;
        if let Some(record) = self.data.records.last_mut() {
            record.old = at;
            record.old_image = image;
        }
    }

    /// The new row of the current change follows: one [`BatchBuilder::push`] for each column.
    pub fn new_row(&mut self) {
        let at = self.data.cells.len() as u32;
        if let Some(record) = self.data.records.last_mut() {
            record.new = at;
        }
    }

    /// The next value of the current row.
    pub fn push(&mut self, value: ValueRef<'_>) {
        let cell = match value {
            ValueRef::Unchanged => Cell::Unchanged,
            ValueRef::Null => Cell::Null,
            ValueRef::Bool(v) => Cell::Bool(v),
            ValueRef::Int(v) => Cell::Int(v),
            ValueRef::Float(v) => Cell::Float(v),
            ValueRef::Text(v) => {
                let start = self.data.text.len();
                self.data.text.push_str(v);
                Cell::Text(start as u32, v.len() as u32)
            }
            ValueRef::Bytes(v) => {
                let start = self.data.bytes.len();
                self.data.bytes.extend_from_slice(v);
                Cell::Bytes(start as u32, v.len() as u32)
            }
        };
        if self.data.text.len().max(self.data.bytes.len()) > MAX_BYTES {
            self.problem.get_or_insert_with(|| "a batch may hold 4 GiB of values at most".to_owned());
        }
        self.data.cells.push(cell);
    }

    /// Copies a row of another batch whose columns are the same.
    pub fn push_row(&mut self, row: RowRef<'_>) {
        for value in row.values() {
            self.push(value);
        }
    }

    /// Sets the shard of the current change.
    pub fn shard(&mut self, shard: &str) {
        let at = match self.data.shards.iter().position(|s| **s == *shard) {
            Some(at) => at,
            None => {
                self.data.shards.push(shard.into());
                self.data.shards.len() - 1
            }
        };
        if let Some(record) = self.data.records.last_mut() {
            record.shard = at as u32;
        }
    }

    /// Leaves the current change out: it stays in the batch, to be counted and kept as a letter.
    pub fn leave_out(&mut self, why: LeftOut) {
        if let Some(last) = self.data.records.len().checked_sub(1) {
            self.data.left_out.insert(last as u32, why);
        }
    }

    /// How many bytes of log the source has after this batch.
    pub fn lag_bytes(&mut self, bytes: u64) {
        self.data.lag_bytes = Some(bytes);
    }

    /// How many changes it has so far.
    pub fn len(&self) -> usize {
        self.data.records.len()
    }

    /// Whether it has no changes so far.
    pub fn is_empty(&self) -> bool {
        self.data.records.is_empty()
    }

    /// About how much memory it occupies so far, in bytes.
    pub fn size(&self) -> usize {
        self.data.text.len()
            + self.data.bytes.len()
            + self.data.cells.len() * size_of::<Cell>()
            + self.data.records.len() * size_of::<Record>()
    }

    /// The batch. A transaction that is still open goes on in the next one.
    ///
    /// # Errors
    /// [`Fatal`](crate::ErrorKind::Fatal) if a row has more or fewer values than its schema has
    /// columns, or a change lies outside a transaction: a defect of the connector.
    pub fn finish(mut self, end: Position, safe_time: Option<Timestamp>) -> Result<ChangeBatch> {
        self.close_piece(None);
        let covered: usize = self.data.pieces.iter().map(|p| p.changes.len()).sum();
        if covered != self.data.records.len() {
            self.problem.get_or_insert_with(|| "a change lies outside of any transaction".to_owned());
        }
        if let Some(problem) = self.problem {
            return Err(Error::fatal(format!("the source built a broken batch: {problem}")));
        }
        self.data.end = end;
        self.data.safe_time = safe_time;
        Ok(ChangeBatch { schemas: self.schemas, data: self.data })
    }

    fn close_piece(&mut self, end: Option<Position>) {
        self.check_row();
        let keep_empty = std::mem::take(&mut self.keep_empty);
        if let Some(mut piece) = self.open.take() {
            piece.changes.end = self.data.records.len() as u32;
            piece.end = end;
            if !piece.changes.is_empty() || piece.end.is_some() || keep_empty {
                self.data.pieces.push(piece);
            }
        }
    }

    /// Checks that the last change's rows have as many cells as its schema has columns.
    fn check_row(&mut self) {
        let Some(record) = self.data.records.last() else { return };
        let width = match record.op {
            Op::Message => 2,
            _ => self.schemas.get(record.schema as usize).map_or(0, |s| s.columns.len()),
        };
        let rows = usize::from(record.old != ABSENT) + usize::from(record.new != ABSENT);
        let first = record.old.min(record.new);
        if rows > 0 && self.data.cells.len() - first as usize != rows * width {
            let have = self.data.cells.len() - first as usize;
            self.problem.get_or_insert_with(|| format!("{have} values in {rows} rows of {width} columns"));
        }
    }
}
