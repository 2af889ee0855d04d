//! Parts of a transaction that is larger than the pipeline's memory.
//!
//! SQLite has one write lock for the file. If a writer held it from the first part to the last, the
//! checkpointer and the dead-letter store in the same file would wait for the source, and the
//! source may wait for them. So parts are put aside in a temporary table, which takes no lock and
//! is paged to a temporary file, and the transaction is short: it begins when the last part is here.

use std::sync::Arc;

use anabranch_core::{ChangeBatch, Error, Part, Result, Selection, TableSchema, Unit, UnitSlice};
use rusqlite::params;

use crate::apply::Stop;
use crate::connection::Database;

/// The parts put aside so far.
#[derive(Default)]
pub(crate) struct Staged {
    parts: Vec<Unit>,
    slices: Vec<Vec<StagedSlice>>,
    /// The batch that was put aside last, for the next part often is of the same one.
    last: Option<(i64, Arc<ChangeBatch>)>,
    /// Sums over the parts.
    pub(crate) row_changes: u64,
    pub(crate) transactions: u64,
}

struct StagedSlice {
    row: i64,
    schemas: Vec<Arc<TableSchema>>,
    changes: Selection,
}

impl Staged {
    /// Puts a part aside.
    pub(crate) fn add(&mut self, db: &Database, unit: &Unit) -> Result<()> {
        if unit.part == Part::First {
            self.clear(db);
        } else if self.parts.is_empty() {
            return Err(Error::fatal("a unit goes on with a transaction that was not begun"));
        }
        let slices = unit.slices.iter().map(|slice| self.put_aside(db, slice)).collect::<Result<_>>()?;
        self.slices.push(slices);
        self.row_changes += unit.row_changes();
        self.transactions += unit.transactions;
        self.parts.push(Unit { slices: Vec::new(), ..unit.clone() });
        Ok(())
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Gives the parts back, one after another.
    pub(crate) fn each(&self, db: &Database, mut give: impl FnMut(&Unit) -> Result<(), Stop>) -> Result<(), Stop> {
        let mut read: Option<(i64, Arc<ChangeBatch>)> = None;
        for (part, slices) in self.parts.iter().zip(&self.slices) {
            let mut unit = part.clone();
            for slice in slices {
                let batch = match &read {
                    Some((row, batch)) if *row == slice.row => Arc::clone(batch),
                    _ => Arc::new(take_back(db, slice)?),
                };
                read = Some((slice.row, Arc::clone(&batch)));
                unit.slices.push(UnitSlice { batch, changes: slice.changes.clone() });
            }
            give(&unit)?;
        }
        Ok(())
    }

    /// Forgets them all.
    pub(crate) fn clear(&mut self, db: &Database) {
        if !self.is_empty() {
            // Should this fail, the rows stay until the connection ends; nothing refers to them.
            let _ = db.conn.execute_batch("DELETE FROM temp.anabranch_part");
        }
        *self = Self::default();
    }

    fn put_aside(&mut self, db: &Database, slice: &UnitSlice) -> Result<StagedSlice> {
        let row = match &self.last {
            Some((row, batch)) if Arc::ptr_eq(batch, &slice.batch) => *row,
            _ => {
                let doing = "cannot put a part of a transaction aside in a temporary file";
                let bytes = slice.batch.spill()?;
                db.told(
                    doing,
                    db.conn.execute_batch(
                        "CREATE TEMP TABLE IF NOT EXISTS anabranch_part (id INTEGER PRIMARY KEY, batch BLOB)",
                    ),
                )?;
                let insert = db.conn.execute("INSERT INTO temp.anabranch_part (batch) VALUES (?1)", params![bytes]);
                db.told(doing, insert)?;
                db.conn.last_insert_rowid()
            }
        };
        self.last = Some((row, Arc::clone(&slice.batch)));
        Ok(StagedSlice { row, schemas: slice.batch.schemas().to_vec(), changes: slice.changes.clone() })
    }
}

fn take_back(db: &Database, slice: &StagedSlice) -> Result<ChangeBatch> {
    let bytes: Vec<u8> = db.told(
        "cannot read a part of a transaction back",
        db.conn.query_row("SELECT batch FROM temp.anabranch_part WHERE id = ?1", params![slice.row], |row| row.get(0)),
    )?;
    ChangeBatch::unspill(slice.schemas.clone(), &bytes)
}
