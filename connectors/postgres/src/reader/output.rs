//! The batch that is being built, and the transaction that goes into it.

use anabranch_core::{BatchBuilder, Error, OldImage, Op, PartitionId, Piece, Result, Timestamp, Transaction, ValueRef};

use super::relation::Relation;
use crate::decode::message::Old;
use crate::decode::tuple::{Tuple, TupleValue};
use crate::error::protocol;
use crate::lsn::Lsn;

/// The batch being built and the transaction being read.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) partition: PartitionId,
    pub(super) batch: BatchBuilder,
    /// The number of the batch, from 1.
    pub(super) generation: u64,
    pub(super) open: Option<Open>,
}

/// A transaction that has begun and not ended.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) commit_lsn: Lsn,
    /// What the points of copies are compared with.
    pub(super) place: Lsn,
    pub(super) time: Timestamp,
    pub(super) transaction: Transaction,
    /// Changes read so far, left out ones included: numbers are the same in every run.
    pub(super) sequence: u64,
    /// Changes up to this number were given in an earlier run.
    pub(super) skip_through: u64,
    /// Its piece in this batch is open, and the next change to go into it has this number.
    pub(super) piece: Option<(u64, u64)>,
    /// A piece of it was given, in this batch or an earlier one.
    pub(super) begun: bool,
}

impl Output {
    /// Counts a change of the open transaction and begins it in the batch, unless it is to be left out.
    pub(super) fn change(&mut self, relation: &mut Relation, op: Op) -> Result<bool> {
        if !self.next_change(Some(relation))? {
            return Ok(false);
        }
        if matches!(op, Op::Update | Op::Delete) {
            relation.old_rows.check(&relation.schema.name)?;
        }
        let index = self.slot(relation);
        self.batch.change(op, index);
        Ok(true)
    }

    pub(super) fn next_change(&mut self, relation: Option<&mut Relation>) -> Result<bool> {
        let open = self.open.as_mut().ok_or_else(outside)?;
        open.sequence += 1;
        let copied = relation.as_ref().is_some_and(|r| open.place < r.copied_until);
        if open.sequence <= open.skip_through || copied {
            return Ok(false);
        }
        let sequence = open.sequence;
        if let Some(relation) = relation.filter(|r| r.announce) {
            relation.announce = false;
            // It has the number of the change before it, so that numbers stay the same in a run that
            // begins later and has nothing to announce.
            self.begin_piece(sequence - 1);
            let index = self.slot(relation);
            self.batch.change(Op::Schema, index);
            self.begin_piece(sequence);
        } else if open.piece != Some((self.generation, sequence)) {
            self.begin_piece(sequence);
        }
        if let Some(open) = self.open.as_mut() {
            open.piece = Some((self.generation, sequence + 1));
        }
        Ok(true)
    }

    fn begin_piece(&mut self, sequence: u64) {
        let Some(open) = self.open.as_mut() else { return };
        // The first piece that is given begins the transaction, whatever was left out before it,
        // unless an earlier run has begun it.
        let first = !open.begun && open.skip_through == 0;
        open.begun = true;
        self.batch.begin_like(&Piece {
            transaction: open.transaction.clone(),
            changes: 0..0,
            first_sequence: sequence,
            first,
            end: None,
        });
    }

    fn slot(&mut self, relation: &mut Relation) -> usize {
        if relation.slot.0 != self.generation {
            relation.slot = (self.generation, self.batch.schema(&relation.schema));
        }
        relation.slot.1
    }

    pub(super) fn row(&mut self, relation: &Relation, row: Tuple<'_>) -> Result<()> {
        check_width(relation, row)?;
        for (at, value) in row.values().enumerate() {
            self.push(relation, at, value)?;
        }
        Ok(())
    }

    pub(super) fn old_row(&mut self, relation: &Relation, old: Old<'_>) -> Result<()> {
        if old.full {
            self.batch.old_row(OldImage::Full);
            return self.row(relation, old.row);
        }
        check_width(relation, old.row)?;
        self.batch.old_row(OldImage::Key);
        for (at, value) in old.row.values().enumerate() {
            // Outside the identity NULL means "not sent".
            let value = if relation.is_key(at) { value } else { TupleValue::Unchanged };
            self.push(relation, at, value)?;
        }
        Ok(())
    }

    pub(super) fn push(&mut self, relation: &Relation, at: usize, value: TupleValue<'_>) -> Result<()> {
        self.batch.push(match value {
            TupleValue::Text(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => ValueRef::Text(text),
                Err(_) => return Err(not_text(relation, at)),
            },
            TupleValue::Null => ValueRef::Null,
            TupleValue::Unchanged => ValueRef::Unchanged,
            TupleValue::Binary(_) => return Err(protocol("the server sends binary values, which were not asked for")),
        });
        Ok(())
    }
}

pub(super) fn check_width(relation: &Relation, row: Tuple<'_>) -> Result<()> {
    if row.len() == relation.schema.columns.len() {
        return Ok(());
    }
    Err(protocol(format!(
        "a row of {} columns for {}, which has {}",
        row.len(),
        relation.schema.name,
        relation.schema.columns.len()
    )))
}

fn not_text(relation: &Relation, at: usize) -> Error {
    let column = relation.schema.columns.get(at).map_or("?", |c| c.name.as_str());
    Error::fatal(format!("a value of column {column} of {} is not valid UTF-8", relation.schema.name)).hint(
        "the database's encoding is probably SQL_ASCII; repair the value, or leave the column out of the publication",
    )
}

pub(super) fn outside() -> Error {
    protocol("a change outside of any transaction")
}
