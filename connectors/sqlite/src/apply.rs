//! Applies a unit's changes within the open transaction.
//!
//! Row by row, for a prepared statement costs SQLite no round trip: what counts is that there is
//! one transaction for all of them. Rows are never written by `INSERT OR REPLACE`, which deletes
//! *other* rows that share a unique value.

use std::sync::Arc;

use anabranch_core::net_effect::{NetRow, Step, TableEffect, steps, steps_in_order};
use anabranch_core::{ChangeRef, DataType, Error, OldImage, Op, Result, RowRef, TableSchema, Unit, ValueRef};
use rusqlite::{CachedStatement, Statement};

use crate::connection::Database;
use crate::error;
use crate::plan::{Plans, TablePlan};
use crate::shadow::Shadows;

/// Why applying stopped.
#[derive(Debug)]
pub(crate) enum Stop {
    /// A unique key refused a row that may be fine once all the others are in place.
    Conflict(Error),
    /// Anything else.
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Where rows go: into the tables, or into their shadows.
pub(crate) struct Applying<'a> {
    pub(crate) db: &'a Database,
    pub(crate) plans: &'a mut Plans,
    pub(crate) shadows: Option<Shadows>,
}

impl Applying<'_> {
    /// Applies the net effect of a unit.
    pub(crate) fn unit(&mut self, unit: &Unit) -> Result<(), Stop> {
        let schemas = || unit.slices.iter().flat_map(|s| s.batch.schemas());
        // The net effect takes 1.5 and 1.50 for one key, as the source does. Here they are two texts,
        // so where a key may change from one to the other, every change is made by itself.
        let in_order = schemas().any(|s| s.key_columns().any(|c| is_written_in_many_ways(&c.data_type)));
        for step in if in_order { steps_in_order(unit) } else { steps(unit) } {
            match step {
                Step::Net(tables) => {
                    for effect in &tables {
                        let plan = self.plan(effect.schema)?;
                        table(self.db, &plan, effect)?;
                    }
                }
                Step::InOrder(change) => self.in_order(change)?,
            }
        }
        Ok(())
    }

    fn plan(&mut self, schema: &Arc<TableSchema>) -> Result<Arc<TablePlan>> {
        let plan = self.plans.get(self.db, schema)?;
        match &mut self.shadows {
            Some(shadows) => shadows.plan(self.db, plan),
            None => Ok(plan),
        }
    }

    fn in_order(&mut self, change: ChangeRef<'_>) -> Result<(), Stop> {
        match change.op() {
            Op::Message => Ok(()),
            Op::Schema => {
                self.plans.forget(change.schema());
                Ok(())
            }
            Op::Truncate(_) => {
                let mut places = vec![self.plans.get(self.db, change.schema())?.place.clone()];
                places.push(self.plan(change.schema())?.place.clone());
                places.dedup();
                for place in places {
                    let done = self.db.conn.execute(&format!("DELETE FROM {place}"), []);
                    self.db.told(format_args!("cannot empty {place}"), done)?;
                    let left = format!("SELECT EXISTS (SELECT 1 FROM {place})");
                    let left = self.db.conn.query_row(&left, [], |row| row.get(0));
                    if self.db.told(format_args!("cannot read {place}"), left)? {
                        return Err(ignored(&change.schema().name.name).into());
                    }
                }
                Ok(())
            }
            Op::Insert | Op::Update | Op::Delete => {
                let plan = self.plan(change.schema())?;
                if plan.has_key() { keyed(self.db, &plan, change) } else { keyless(self.db, &plan, change) }
            }
        }
    }
}

/// Whether equal numbers may have different texts. With a scale, all have as many digits.
fn is_written_in_many_ways(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Decimal { scale: None, .. })
}

fn table(db: &Database, plan: &TablePlan, effect: &TableEffect<'_>) -> Result<(), Stop> {
    if !effect.deletes.is_empty() {
        let mut statement = prepare(db, plan, &plan.delete)?;
        for row in &effect.deletes {
            delete(db, plan, &mut statement, *row)?;
        }
    }
    partial_updates(db, plan, &effect.updates)?;
    if !effect.upserts.is_empty() {
        let mut statement = prepare(db, plan, &plan.upsert)?;
        for row in &effect.upserts {
            put(db, plan, &mut statement, |i| row.get(i))?;
        }
    }
    if !effect.inserts.is_empty() {
        let mut statement = prepare(db, plan, &plan.insert)?;
        for row in &effect.inserts {
            put(db, plan, &mut statement, |i| row.get(i))?;
        }
    }
    Ok(())
}

/// A change of a table with a key, by itself.
fn keyed(db: &Database, plan: &TablePlan, change: ChangeRef<'_>) -> Result<(), Stop> {
    match (change.op(), change.identity_row(), change.new_row()) {
        (Op::Delete, Some(old), _) => delete(db, plan, &mut *prepare(db, plan, &plan.delete)?, old),
        (Op::Insert | Op::Update, Some(old), Some(new)) if new.is_complete() => {
            if change.changes_key() {
                delete(db, plan, &mut *prepare(db, plan, &plan.delete)?, old)?;
            }
            put(db, plan, &mut *prepare(db, plan, &plan.upsert)?, |i| new.get(i))
        }
        (Op::Update, Some(old), Some(new)) => {
            let with_key = change.changes_key();
            let sent = sent_columns(plan, with_key, |i| new.get(i));
            let mut statement = prepare(db, plan, &update_sql(plan, &sent))?;
            update(db, plan, &mut statement, &sent, |i| new.get(i), |i| old.get(i))
        }
        _ => Err(missing_image(plan, change).into()),
    }
}

/// A change of a table without a key: the row is found by its whole old image, of which any one
/// that is equal will do.
fn keyless(db: &Database, plan: &TablePlan, change: ChangeRef<'_>) -> Result<(), Stop> {
    let new = change.new_row();
    if let (Op::Insert, Some(new)) = (change.op(), new) {
        return put(db, plan, &mut *prepare(db, plan, &plan.insert)?, |i| new.get(i));
    }
    let old = change.old_row().filter(|_| change.old_image() == OldImage::Full);
    let Some(old) = old.filter(|old| old.is_complete()) else {
        return Err(missing_image(plan, change).into());
    };
    let sent: Vec<usize> = match new {
        Some(new) => (0..plan.columns.len()).filter(|&at| !new.get(plan.columns[at].index).is_unchanged()).collect(),
        None => Vec::new(),
    };
    let matching: Vec<String> = plan
        .columns
        .iter()
        .enumerate()
        // NULL is NULL, and text is compared by its bytes whatever the column's collation.
        .map(|(n, c)| format!("{} IS ?{} COLLATE BINARY", c.sql, sent.len() + n + 1))
        .collect();
    let (place, address) = (&plan.place, plan.address.join(", "));
    let one = format!("({address}) = (SELECT {address} FROM {place} WHERE {} LIMIT 1)", matching.join(" AND "));
    let sql = match new {
        Some(_) if sent.is_empty() => return Ok(()),
        Some(_) => format!("UPDATE OR ABORT {place} SET {} WHERE {one}", sets(plan, &sent)),
        None => format!("DELETE FROM {place} WHERE {one}"),
    };
    let mut statement = prepare(db, plan, &sql)?;
    if let Some(new) = new {
        plan.bind(db, &mut statement, 1, sent.iter().copied(), |i| new.get(i))?;
    }
    plan.bind(db, &mut statement, sent.len() + 1, 0..plan.columns.len(), |i| old.get(i))?;
    match execute(db, plan, &mut statement)? {
        1 => Ok(()),
        _ => Err(Error::rejected(format!(
            "{}: the target has no row that equals the old row of this change, and the table has no key",
            plan.name
        ))
        .into()),
    }
}

fn delete(db: &Database, plan: &TablePlan, statement: &mut Statement<'_>, row: RowRef<'_>) -> Result<(), Stop> {
    plan.bind_key(db, statement, |i| row.get(i))?;
    if execute(db, plan, statement)? > 0 {
        return Ok(());
    }
    // None is fine: a row that came and went within the unit was never there. Unless it still is.
    let sql = format!("SELECT 1 FROM {} WHERE {}", plan.place, plan.where_key(1));
    let mut select = prepare(db, plan, &sql)?;
    plan.bind_key(db, &mut select, |i| row.get(i))?;
    let left = select.raw_query().next().map(|row| row.is_some());
    if db.told(format_args!("cannot read {}", plan.name), left)? { Err(ignored(&plan.name).into()) } else { Ok(()) }
}

/// A trigger's RAISE(IGNORE) is no error to SQLite, whose transaction goes on.
pub(crate) fn ignored(table: &str) -> Error {
    Error::rejected(format!("{table}: a trigger of the target ignored the row"))
        .hint("drop the trigger, or let it not RAISE(IGNORE)")
}

fn put<'r>(
    db: &Database,
    plan: &TablePlan,
    statement: &mut Statement<'_>,
    value: impl Fn(usize) -> ValueRef<'r>,
) -> Result<(), Stop> {
    plan.bind(db, statement, 1, 0..plan.columns.len(), value)?;
    match execute(db, plan, statement)? {
        1 => Ok(()),
        _ => Err(ignored(&plan.name).into()),
    }
}

fn partial_updates(db: &Database, plan: &TablePlan, rows: &[NetRow<'_>]) -> Result<(), Stop> {
    let mut prepared: Option<(Vec<usize>, CachedStatement<'_>)> = None;
    for row in rows {
        let sent = sent_columns(plan, false, |i| row.get(i));
        let (sent, statement) = match &mut prepared {
            Some((same, statement)) if *same == sent => (&*same, statement),
            other => {
                let statement = prepare(db, plan, &update_sql(plan, &sent))?;
                let (sent, statement) = other.insert((sent, statement));
                (&*sent, statement)
            }
        };
        update(db, plan, statement, sent, |i| row.get(i), |i| row.get(i))?;
    }
    Ok(())
}

/// The columns of a partial row that an update sets.
fn sent_columns<'r>(plan: &TablePlan, with_key: bool, value: impl Fn(usize) -> ValueRef<'r>) -> Vec<usize> {
    (0..plan.columns.len())
        .filter(|at| with_key || !plan.key.contains(at))
        .filter(|&at| !value(plan.columns[at].index).is_unchanged())
        .collect()
}

fn update_sql(plan: &TablePlan, sent: &[usize]) -> String {
    let sets = if sent.is_empty() {
        // Nothing to set, but the row must be there all the same.
        format!("{0} = {0}", plan.columns[plan.key[0]].sql)
    } else {
        sets(plan, sent)
    };
    format!("UPDATE OR ABORT {} SET {sets} WHERE {}", plan.place, plan.where_key(sent.len() + 1))
}

fn sets(plan: &TablePlan, sent: &[usize]) -> String {
    let sets: Vec<String> =
        sent.iter().enumerate().map(|(n, &at)| format!("{} = ?{}", plan.columns[at].sql, n + 1)).collect();
    sets.join(", ")
}

fn update<'n, 'o>(
    db: &Database,
    plan: &TablePlan,
    statement: &mut Statement<'_>,
    sent: &[usize],
    new: impl Fn(usize) -> ValueRef<'n>,
    old: impl Fn(usize) -> ValueRef<'o>,
) -> Result<(), Stop> {
    plan.bind(db, statement, 1, sent.iter().copied(), new)?;
    plan.bind(db, statement, sent.len() + 1, plan.key.iter().copied(), &old)?;
    match execute(db, plan, statement)? {
        1 => Ok(()),
        0 => {
            let key = plan.key_text(|i| shown(old(i)));
            Err(Error::rejected(format!(
                "{}: the target has no row with key {key}, and the source did not send all columns",
                plan.name
            ))
            .into())
        }
        rows => Err(Error::rejected(format!("{}: a partial update matched {rows} rows", plan.name)).into()),
    }
}

fn execute(db: &Database, plan: &TablePlan, statement: &mut Statement<'_>) -> Result<usize, Stop> {
    statement.raw_execute().map_err(|e| {
        let conflict = error::is_unique_violation(&e);
        let error = db.failed(format_args!("{} refuses the row", plan.name), e);
        if conflict { Stop::Conflict(error) } else { Stop::Failed(error) }
    })
}

fn prepare<'d>(db: &'d Database, plan: &TablePlan, sql: &str) -> Result<CachedStatement<'d>> {
    db.told(format_args!("cannot write to {}", plan.name), db.conn.prepare_cached(sql))
}

fn missing_image(plan: &TablePlan, change: ChangeRef<'_>) -> Error {
    Error::rejected(format!(
        "{}: the source did not send enough of the old row to find it ({:?}, old image {:?})",
        plan.name,
        change.op(),
        change.old_image()
    ))
    .hint("set REPLICA IDENTITY FULL, or give the table a primary key")
}

/// A key value, for an error.
fn shown(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Unchanged => "(not sent)".to_owned(),
        ValueRef::Null => "NULL".to_owned(),
        ValueRef::Bool(v) => v.to_string(),
        ValueRef::Int(v) => v.to_string(),
        ValueRef::Float(v) => v.to_string(),
        ValueRef::Text(v) => format!("'{v}'"),
        ValueRef::Bytes(v) => format!("{} bytes", v.len()),
    }
}
