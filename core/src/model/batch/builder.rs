//! Builds a batch, change by change.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::{ABSENT, Cell, ChangeBatch, Data, LeftOut, MAX_BYTES, OldImage, Op, Piece, Record, RowRef, Transaction};
use crate::error::{Error, Result};
use crate::model::{PartitionId, Position, TableSchema, Timestamp, ValueRef};

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
                before: Bytes::new(),
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

    /// How many changes the open transaction has is not known any more: some were left out. Its piece stays
    /// even without changes, to say so.
    pub(crate) fn forget_total(&mut self) {
        if let Some(open) = &mut self.open
            && open.transaction.total.take().is_some()
        {
            self.keep_empty = true;
        }
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
