//! The way around unique keys.
//!
//! A transaction is consistent at its end, not on the way: two rows that swap a unique value, a
//! chain of values that all move by one, a deferred constraint. Statement by statement, such a
//! state cannot be reached. So when a unique key refuses a row, the transaction is rolled back and
//! done again by way of shadows:
//!
//! 1. every row that the transaction touches is moved out of its table into a temporary table that
//!    has the same columns and only the key of the source as a constraint;
//! 2. the changes are applied there;
//! 3. what is there then is moved back.
//!
//! Whatever the constraints and the size of the transaction, step 3 succeeds exactly if the end is
//! consistent in the target; so no other fallback could do better.

use std::sync::Arc;

use anabranch_core::{Op, Result, Unit, ValueRef};
use rusqlite::CachedStatement;

use crate::apply::{Stop, ignored};
use crate::connection::{Database, quoted};
use crate::error;
use crate::plan::{Plans, TablePlan};

/// The shadows of one transaction.
#[derive(Default)]
pub(crate) struct Shadows {
    shadows: Vec<Shadow>,
}

struct Shadow {
    real: Arc<TablePlan>,
    plan: Arc<TablePlan>,
    /// Marks rows that were moved; rows that the transaction made have NULL there.
    moved: String,
    /// The columns of the source, over all versions of the table in this transaction, as SQL.
    written: Vec<String>,
}

impl Shadows {
    /// Step 1 for a unit: moves the rows that it touches. To be called for every unit of the
    /// transaction before any change is applied.
    pub(crate) fn move_out(&mut self, db: &Database, plans: &mut Plans, unit: &Unit) -> Result<(), Stop> {
        for change in unit.changes().filter(|c| matches!(c.op(), Op::Insert | Op::Update | Op::Delete)) {
            let real = plans.get(db, change.schema())?;
            if !real.has_key() {
                continue;
            }
            let shadow = self.shadow(db, &real)?;
            if let Some(old) = change.identity_row() {
                shadow.move_row(db, |i| old.get(i))?;
            }
            // A key column that was not sent again is as it was.
            if let (true, Some(old), Some(new)) = (change.changes_key(), change.old_row(), change.new_row()) {
                shadow.move_row(db, |i| if new.get(i).is_unchanged() { old.get(i) } else { new.get(i) })?;
            }
        }
        Ok(())
    }

    /// The plan for the shadow of this table; the table's own if it has no key.
    pub(crate) fn plan(&mut self, db: &Database, real: Arc<TablePlan>) -> Result<Arc<TablePlan>> {
        if !real.has_key() {
            return Ok(real);
        }
        Ok(Arc::clone(&self.shadow(db, &real)?.plan))
    }

    /// Step 3: moves everything back.
    pub(crate) fn move_back(self, db: &Database) -> Result<(), Stop> {
        for shadow in &self.shadows {
            shadow.move_back(db)?;
        }
        for shadow in &self.shadows {
            let dropped = db.conn.execute_batch(&format!("DROP TABLE {}", shadow.plan.place));
            db.told("cannot drop a temporary table", dropped)?;
        }
        Ok(())
    }

    fn shadow(&mut self, db: &Database, real: &Arc<TablePlan>) -> Result<&Shadow> {
        let at = match self.shadows.iter().position(|s| s.real.name == real.name) {
            Some(at) => {
                self.shadows[at].follow(real);
                at
            }
            None => {
                self.shadows.push(Shadow::create(db, Arc::clone(real), self.shadows.len())?);
                self.shadows.len() - 1
            }
        };
        Ok(&self.shadows[at])
    }
}

impl Shadow {
    fn create(db: &Database, real: Arc<TablePlan>, number: usize) -> Result<Self> {
        let name = format!("anabranch_shadow_{number}");
        let mut moved = "\"anabranch_moved\"".to_owned();
        while real.all.iter().any(|c| c.eq_ignore_ascii_case(&moved)) {
            moved = format!("{}_\"", moved.trim_end_matches('"'));
        }
        let place = format!("temp.{}", quoted(&name));
        let key: Vec<&str> = real.key.iter().map(|&k| real.columns[k].sql.as_str()).collect();
        let created = db.conn.execute_batch(&format!(
            "CREATE TABLE {place} AS SELECT {all}, 1 AS {moved} FROM {from} WHERE 0; \
             CREATE UNIQUE INDEX temp.{index} ON {name} ({key})",
            all = real.all.join(", "),
            from = real.place,
            index = quoted(&format!("{name}_key")),
            name = quoted(&name),
            key = key.join(", "),
        ));
        db.told(format_args!("cannot make a temporary table for {}", real.name), created)?;
        let plan = Arc::new(TablePlan::clone(&real).at(place));
        let written = real.columns.iter().map(|c| c.sql.clone()).collect();
        Ok(Self { real, plan, moved, written })
    }

    /// Goes on with another version of the source's table.
    fn follow(&mut self, real: &Arc<TablePlan>) {
        if Arc::ptr_eq(&self.real, real) {
            return;
        }
        self.plan = Arc::new(TablePlan::clone(real).at(self.plan.place.clone()));
        self.real = Arc::clone(real);
        for column in &real.columns {
            if !self.written.contains(&column.sql) {
                self.written.push(column.sql.clone());
            }
        }
    }

    fn move_row<'r>(&self, db: &Database, value: impl Fn(usize) -> ValueRef<'r>) -> Result<(), Stop> {
        let real = &self.real;
        let all = real.all.join(", ");
        let copy = format!(
            "INSERT OR ABORT INTO {} ({all}, {}) SELECT {all}, 1 FROM {} WHERE {}",
            self.plan.place,
            self.moved,
            real.place,
            real.where_key(1)
        );
        let mut moved = Vec::with_capacity(2);
        for sql in [&copy, &real.delete] {
            let mut statement = self.prepare(db, sql)?;
            real.bind_key(db, &mut statement, &value)?;
            let done = statement.raw_execute();
            moved.push(db.told(format_args!("cannot move a row of {}", real.name), done)?);
        }
        if moved[0] == moved[1] { Ok(()) } else { Err(ignored(&real.name).into()) }
    }

    fn move_back(&self, db: &Database) -> Result<(), Stop> {
        // Rows that were there keep the columns that the source does not have; new rows get the
        // defaults of those.
        for (columns, which) in [(&self.real.all, "IS NOT NULL"), (&self.written, "IS NULL")] {
            let columns = columns.join(", ");
            let sql = format!(
                "INSERT OR ABORT INTO {} ({columns}) SELECT {columns} FROM {} WHERE {} {which}",
                self.real.place, self.plan.place, self.moved
            );
            let back = db.conn.execute(&sql, []).map_err(|e| {
                let conflict = error::is_unique_violation(&e);
                let error = db.failed(format_args!("{} refuses the rows at the end of the unit", self.real.name), e);
                if conflict { Stop::Conflict(error) } else { Stop::Failed(error) }
            })?;
            let all = format!("SELECT count(*) FROM {} WHERE {} {which}", self.plan.place, self.moved);
            let all: i64 = db.told("cannot read a temporary table", db.conn.query_row(&all, [], |row| row.get(0)))?;
            if back as i64 != all {
                return Err(ignored(&self.real.name).into());
            }
        }
        Ok(())
    }

    fn prepare<'d>(&self, db: &'d Database, sql: &str) -> Result<CachedStatement<'d>> {
        db.told(format_args!("cannot move a row of {}", self.real.name), db.conn.prepare_cached(sql))
    }
}
