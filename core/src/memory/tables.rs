//! Tables in memory, changed row by row.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::model::{ChangeRef, Column, Op, RowRef, TableName, TableSchema, Value};
use crate::net_effect::value_bytes;

/// A row: one value for each column of its table.
pub type Row = Vec<Value>;

/// Tables with their rows.
#[derive(Debug, Clone, Default)]
pub struct MemoryTables {
    tables: BTreeMap<TableName, Table>,
}

#[derive(Debug, Clone)]
pub(super) struct Table {
    pub(super) schema: Arc<TableSchema>,
    /// By key; by all columns and a number for equal rows if there is no key.
    pub(super) rows: BTreeMap<Vec<u8>, Row>,
}

/// What a change did, so that it can be undone, and done again.
#[derive(Debug, Clone)]
pub(super) enum Effect {
    /// A row was there before, is there after.
    Row { table: TableName, key: Vec<u8>, before: Option<Row>, after: Option<Row> },
    /// A whole table: truncated, or under another schema.
    Table { table: TableName, before: Option<Table>, after: Option<Table> },
}

impl MemoryTables {
    /// The rows of a table, in an order that depends on nothing but the rows. Empty if there is no such table.
    pub fn rows(&self, table: &TableName) -> Vec<Row> {
        self.tables.get(table).map(|t| t.rows.values().cloned().collect()).unwrap_or_default()
    }

    /// The schema of a table.
    pub fn schema(&self, table: &TableName) -> Option<&Arc<TableSchema>> {
        self.tables.get(table).map(|t| &t.schema)
    }

    /// The tables' names.
    pub fn names(&self) -> impl Iterator<Item = &TableName> {
        self.tables.keys()
    }

    /// The first row in which these tables and `other` differ, in words; `None` if they hold the
    /// same rows. A table that is missing is an empty one.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let names: BTreeSet<_> = self.names().chain(other.names()).collect();
        let none = BTreeMap::new();
        for name in names {
            let rows = |tables: &'_ Self| tables.tables.get(name).map(|t| t.rows.clone()).unwrap_or(none.clone());
            let (mine, theirs) = (rows(self), rows(other));
            let keys: BTreeSet<_> = mine.keys().chain(theirs.keys()).collect();
            if let Some(key) = keys.into_iter().find(|key| mine.get(*key) != theirs.get(*key)) {
                return Some(format!("{name}: {:?} and {:?}", mine.get(key), theirs.get(key)));
            }
        }
        None
    }

    pub(super) fn table(&self, name: &TableName) -> Option<&Table> {
        self.tables.get(name)
    }

    /// Adds an empty table, or gives the table that is there this schema: rows keep the values of
    /// columns by name, and new columns are NULL.
    pub(super) fn set_schema(&mut self, schema: &Arc<TableSchema>, effects: &mut Vec<Effect>) {
        let before = self.tables.get(&schema.name).cloned();
        let mut after = Table { schema: Arc::clone(schema), rows: BTreeMap::new() };
        if let Some(before) = &before {
            let from = |c: &Column| before.schema.index_of(&c.name);
            let places: Vec<_> = schema.columns.iter().map(from).collect();
            for row in before.rows.values() {
                let row: Row = places.iter().map(|at| at.map_or(Value::Null, |at| row[at].clone())).collect();
                let key = after.free_key(&row);
                after.rows.insert(key, row);
            }
        }
        self.change(Effect::Table { table: schema.name.clone(), before, after: Some(after) }, effects);
    }

    /// Applies a change of a batch.
    ///
    /// # Errors
    /// [`Rejected`](crate::ErrorKind::Rejected) if an inserted row is there already, or an updated
    /// or deleted one is not.
    pub(super) fn apply(&mut self, change: ChangeRef<'_>, effects: &mut Vec<Effect>) -> Result<()> {
        let Some(schema) = change.table() else { return Ok(()) };
        let owned = |row: RowRef<'_>| -> Row { row.values().map(|v| v.to_owned()).collect() };
        let (old, new) = (change.old_row().map(owned), change.new_row().map(owned));
        self.apply_rows(change.op(), schema, old, new, effects)
    }

    /// Applies a change that is given as rows; of the old one only the columns that identify it count.
    pub(super) fn apply_rows(
        &mut self,
        op: Op,
        schema: &Arc<TableSchema>,
        old: Option<Row>,
        new: Option<Row>,
        effects: &mut Vec<Effect>,
    ) -> Result<()> {
        if self.tables.get(&schema.name).is_none_or(|t| *t.schema != **schema) {
            self.set_schema(schema, effects);
        }
        let Some(table) = self.tables.get(&schema.name) else { return Ok(()) };
        let name = schema.name.clone();
        let missing = |row: &Row| Error::rejected(format!("{name} has no row {row:?}"));
        let taken = |row: &Row| Error::rejected(format!("{name} already has a row with the key of {row:?}"));
        match (op, old, new) {
            (Op::Insert, _, Some(new)) => {
                let key = table.free_key(&new);
                if table.rows.contains_key(&key) {
                    return Err(taken(&new));
                }
                self.change(Effect::Row { table: name, key, before: None, after: Some(new) }, effects);
            }
            (Op::Update, old, Some(mut new)) => {
                let key = table.used_key(old.as_ref().unwrap_or(&new));
                let before = table.rows.get(&key).cloned().ok_or_else(|| missing(&new))?;
                for (value, kept) in new.iter_mut().zip(&before).filter(|(value, _)| **value == Value::Unchanged) {
                    value.clone_from(kept);
                }
                let new_key =
                    if table.key_of(&new) == table.key_of(&before) { key.clone() } else { table.free_key(&new) };
                if new_key == key {
                    let effect = Effect::Row { table: name, key, before: Some(before), after: Some(new) };
                    self.change(effect, effects);
                } else if table.rows.contains_key(&new_key) {
                    return Err(taken(&new));
                } else {
                    let gone = Effect::Row { table: name.clone(), key, before: Some(before), after: None };
                    self.change(gone, effects);
                    self.change(Effect::Row { table: name, key: new_key, before: None, after: Some(new) }, effects);
                }
            }
            (Op::Delete, Some(old), _) => {
                let key = table.used_key(&old);
                let before = Some(table.rows.get(&key).cloned().ok_or_else(|| missing(&old))?);
                self.change(Effect::Row { table: name, key, before, after: None }, effects);
            }
            (Op::Truncate(_), ..) => {
                let after = Table { schema: Arc::clone(&table.schema), rows: BTreeMap::new() };
                let before = Some(table.clone());
                self.change(Effect::Table { table: name, before, after: Some(after) }, effects);
            }
            (Op::Schema | Op::Message, ..) => {}
            (op, ..) => return Err(Error::fatal(format!("a change of {name} ({op:?}) came without its row"))),
        }
        Ok(())
    }

    fn change(&mut self, effect: Effect, effects: &mut Vec<Effect>) {
        self.redo(&effect);
        effects.push(effect);
    }

    pub(super) fn redo(&mut self, effect: &Effect) {
        match effect {
            Effect::Row { table, key, after, .. } => self.set_row(table, key, after),
            Effect::Table { table, after, .. } => self.set_table(table, after),
        }
    }

    /// Takes effects back, the latest first.
    pub(super) fn undo(&mut self, effects: &[Effect]) {
        for effect in effects.iter().rev() {
            match effect {
                Effect::Row { table, key, before, .. } => self.set_row(table, key, before),
                Effect::Table { table, before, .. } => self.set_table(table, before),
            }
        }
    }

    fn set_row(&mut self, table: &TableName, key: &[u8], row: &Option<Row>) {
        let Some(table) = self.tables.get_mut(table) else { return };
        match row {
            Some(row) => table.rows.insert(key.to_vec(), row.clone()),
            None => table.rows.remove(key),
        };
    }

    fn set_table(&mut self, name: &TableName, table: &Option<Table>) {
        match table {
            Some(table) => self.tables.insert(name.clone(), table.clone()),
            None => self.tables.remove(name),
        };
    }
}

impl Table {
    /// The bytes of the columns that identify a row.
    fn key_of(&self, row: &Row) -> Vec<u8> {
        let mut bytes = Vec::new();
        let whole_row = self.schema.key.is_empty();
        for (index, column) in
            self.schema.columns.iter().enumerate().filter(|(i, _)| whole_row || self.schema.is_key(*i))
        {
            value_bytes(&column.data_type, row[index].as_ref(), &mut bytes);
        }
        bytes
    }

    /// The place of a new row. Without a key equal rows are numbered.
    fn free_key(&self, row: &Row) -> Vec<u8> {
        let key = self.key_of(row);
        if self.schema.key.is_empty() { numbered(&key, self.copies(&key)) } else { key }
    }

    /// The place of a row that should be there. Without a key: of the last of the equal ones.
    fn used_key(&self, row: &Row) -> Vec<u8> {
        let key = self.key_of(row);
        if self.schema.key.is_empty() { numbered(&key, self.copies(&key).saturating_sub(1)) } else { key }
    }

    fn copies(&self, key: &[u8]) -> u64 {
        self.rows.range(numbered(key, 0)..=numbered(key, u64::MAX)).count() as u64
    }
}

fn numbered(key: &[u8], number: u64) -> Vec<u8> {
    [key, &number.to_be_bytes()].concat()
}

impl MemoryTables {
    /// The row with this key; the whole row is the key where there is none.
    pub(super) fn find(&self, schema: &TableSchema, key: Row) -> Result<Row> {
        let mut row = key;
        if !schema.key.is_empty() {
            let mut values = row.into_iter();
            row = vec![Value::Null; schema.columns.len()];
            for &k in &schema.key {
                row[usize::from(k)] = values.next().unwrap_or(Value::Null);
            }
        }
        let table = self.tables.get(&schema.name);
        let found = table.filter(|_| row.len() == schema.columns.len()).and_then(|t| t.rows.get(&t.used_key(&row)));
        found.cloned().ok_or_else(|| Error::rejected(format!("{} has no row {row:?}", schema.name)))
    }
}
