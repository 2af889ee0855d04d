//! A change and its rows, borrowed from their batch.

use std::sync::Arc;

use super::{ABSENT, Cell, ChangeBatch, LeftOut, OldImage, Op, Piece, Record};
use crate::model::{PartitionId, Rank, TableSchema, ValueRef};

/// A change, borrowed from its batch.
#[derive(Debug, Clone, Copy)]
pub struct ChangeRef<'a> {
    pub(super) batch: &'a ChangeBatch,
    pub(super) record: &'a Record,
    pub(super) index: u32,
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
