//! Random histories of transactions, the same for the same seed.

use std::collections::BTreeMap;

use anabranch_core::memory::{MemorySource, MemoryTransaction, Row};
use anabranch_core::{Column, DataType, TableName, TableSchema, Value};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Writes random transactions to a [`MemorySource`]: inserts, updates with and without another key,
/// deletes, rows that come back, values that change hands, rarely a truncate.
#[derive(Debug)]
pub struct Generator {
    random: StdRng,
    tables: Vec<TableSchema>,
    /// Rows as the transactions so far, and the steps of the current one, leave them.
    rows: BTreeMap<TableName, Vec<Row>>,
    /// How many different keys a table may have: few make changes meet.
    keys: i64,
    truncates: bool,
}

/// `customers`: one key column, a column whose values are never used twice at a time
/// (`email`), a long one (`note`).
pub fn customers() -> TableSchema {
    table("customers", &[("id", DataType::Int64), ("email", text()), ("name", text()), ("note", text())], &[0])
}

/// `lines`: a key of two columns, which do not stand first or in order.
pub fn lines() -> TableSchema {
    let price = DataType::Decimal { precision: Some(10), scale: Some(2) };
    let columns = [("price", price), ("line", DataType::Int32), ("order_id", DataType::Int64), ("body", text())];
    table("lines", &columns, &[2, 1])
}

/// `events`: no key; equal rows are possible.
pub fn events() -> TableSchema {
    table("events", &[("at", DataType::Int64), ("what", text())], &[])
}

/// `waits`: a key whose equality is not that of its text.
pub fn waits() -> TableSchema {
    table("waits", &[("wait", DataType::Interval), ("reason", text())], &[0])
}

fn text() -> DataType {
    DataType::Text { max_chars: Some(100) }
}

fn table(name: &str, columns: &[(&str, DataType)], key: &[u16]) -> TableSchema {
    let mut columns: Vec<_> = columns.iter().map(|(name, t)| Column::new(*name, t.clone())).collect();
    key.iter().for_each(|&k| columns[usize::from(k)].nullable = false);
    TableSchema { name: TableName::new("public", name), columns, key: key.to_vec() }
}

impl Generator {
    /// A generator of changes of `tables`, which must be some of this module.
    pub fn new(seed: u64, tables: Vec<TableSchema>) -> Self {
        let rows = tables.iter().map(|t| (t.name.clone(), Vec::new())).collect();
        Self { random: StdRng::seed_from_u64(seed), tables, rows, keys: 8, truncates: true }
    }

    /// How many different keys a table may have; 8 if not set.
    #[must_use]
    pub fn keys(mut self, keys: i64) -> Self {
        self.keys = keys;
        self
    }

    /// No truncates.
    #[must_use]
    pub fn without_truncates(mut self) -> Self {
        self.truncates = false;
        self
    }

    /// A source with the tables, empty.
    pub fn source(&self) -> MemorySource {
        self.tables.iter().fold(MemorySource::new("generated"), |source, t| source.table(t.clone()))
    }

    /// Commits this many transactions of up to `steps` steps.
    ///
    /// # Panics
    /// If the source was written to by someone else.
    pub fn write(&mut self, source: &MemorySource, transactions: usize, steps: usize) {
        for _ in 0..transactions {
            let mut transaction = source.transaction();
            for _ in 0..self.random.random_range(1..=steps) {
                let table = self.random.random_range(0..self.tables.len());
                transaction = self.step(table, transaction);
            }
            transaction.commit().expect("the generator knows the rows of the source");
        }
    }

    fn step<'a>(&mut self, table: usize, transaction: MemoryTransaction<'a>) -> MemoryTransaction<'a> {
        let schema = self.tables[table].clone();
        let count = self.rows[&schema.name].len();
        let at = self.random.random_range(0..count.max(1));
        match self.random.random_range(0..100) {
            0 if self.truncates => {
                self.rows.insert(schema.name.clone(), Vec::new());
                transaction.truncate(&schema.name)
            }
            1..40 => self.insert(&schema, transaction),
            40..65 if count > 0 => self.update(&schema, at, false, transaction),
            65..80 if count > 0 => self.update(&schema, at, true, transaction),
            80.. if count > 0 => {
                let gone = self.rows_of(&schema).swap_remove(at);
                transaction.delete(&schema.name, key_of(&schema, &gone))
            }
            _ => self.insert(&schema, transaction),
        }
    }

    fn insert<'a>(&mut self, schema: &TableSchema, transaction: MemoryTransaction<'a>) -> MemoryTransaction<'a> {
        match self.new_row(schema) {
            Some(row) => {
                self.rows_of(schema).push(row.clone());
                transaction.insert(&schema.name, row)
            }
            None => transaction,
        }
    }

    fn update<'a>(
        &mut self,
        schema: &TableSchema,
        at: usize,
        new_key: bool,
        transaction: MemoryTransaction<'a>,
    ) -> MemoryTransaction<'a> {
        let old = self.rows[&schema.name][at].clone();
        let Some(mut new) = self.new_row(schema) else { return transaction };
        for (column, value) in new.iter_mut().enumerate() {
            let keep = if schema.is_key(column) { !new_key } else { self.random.random_bool(0.5) };
            if keep {
                value.clone_from(&old[column]);
            }
        }
        let taken = |row: &Row| key_of(schema, row) == key_of(schema, &new);
        if !schema.key.is_empty()
            && key_of(schema, &new) != key_of(schema, &old)
            && self.rows[&schema.name].iter().any(taken)
        {
            return transaction;
        }
        self.rows_of(schema)[at].clone_from(&new);
        transaction.update(&schema.name, key_of(schema, &old), new)
    }

    /// A row whose key and whose email are free; `None` if no try found one.
    fn new_row(&mut self, schema: &TableSchema) -> Option<Row> {
        for _ in 0..20 {
            let row: Row = schema.columns.iter().map(|c| self.value(c)).collect();
            let rows = &self.rows[&schema.name];
            let email = schema.index_of("email");
            let taken = |other: &Row| {
                !schema.key.is_empty() && key_of(schema, other) == key_of(schema, &row)
                    || email.is_some_and(|at| other[at] == row[at])
            };
            if !rows.iter().any(taken) {
                return Some(row);
            }
        }
        None
    }

    fn value(&mut self, column: &Column) -> Value {
        let n = self.random.random_range(0..self.keys);
        match (column.name.as_str(), &column.data_type) {
            ("email", _) => Value::Text(format!("{}@example.org", self.random.random_range(0..2 * self.keys))),
            _ if column.nullable && self.random.random_bool(0.1) => Value::Null,
            (_, DataType::Int64 | DataType::Int32) => Value::Text(n.to_string()),
            (_, DataType::Decimal { .. }) => Value::Text(format!("{n}.50")),
            (_, DataType::Interval) => Value::Text(format!("{n} days")),
            ("note" | "body", _) => Value::Text("long ".repeat(1 + n as usize)),
            _ => Value::Text(format!("it's {n} \\ \"ä\"")),
        }
    }

    fn rows_of(&mut self, schema: &TableSchema) -> &mut Vec<Row> {
        self.rows.entry(schema.name.clone()).or_default()
    }
}

/// What [`MemoryTransaction`] calls the key: the whole row of a table without one.
fn key_of(schema: &TableSchema, row: &Row) -> Row {
    if schema.key.is_empty() { row.clone() } else { schema.key.iter().map(|&k| row[usize::from(k)].clone()).collect() }
}
