//! The schema of each record: the catalog's as long as they agree, else what the record describes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anabranch_core::{Column, TableName, TableSchema};

use super::catalog::{Dialect, Table};
use crate::client::Kind;
use crate::decode::{DataRecord, ModType, RecordColumn};
use crate::types::{data_type, native};

/// What one reader knows of the tables.
#[derive(Debug, Clone)]
pub(crate) struct Tables {
    dialect: Dialect,
    known: BTreeMap<TableName, Table>,
    /// Names as records write them.
    names: HashMap<String, TableName>,
    /// Inserts from before a column was added: some of a table's columns.
    narrow: Vec<Table>,
}

/// How a record stands to a table.
pub(crate) struct Fit {
    pub(crate) table: Table,
    /// It differs from what was known: the change of schema is to be told.
    pub(crate) changed: bool,
    /// For each of the table's columns its place in the record.
    pub(crate) places: Vec<Option<usize>>,
}

impl Tables {
    pub(crate) fn new(dialect: Dialect, known: BTreeMap<TableName, Table>) -> Self {
        Self { dialect, known, names: HashMap::new(), narrow: Vec::new() }
    }

    pub(crate) fn name(&mut self, written: &str) -> TableName {
        if let Some(name) = self.names.get(written) {
            return name.clone();
        }
        let name = self.dialect.table_name(written);
        self.names.insert(written.to_owned(), name.clone());
        name
    }

    /// The schema to give a record's rows in.
    pub(crate) fn fit(&mut self, record: &DataRecord) -> Fit {
        let name = self.name(&record.table);
        let known = self.known.get(&name);
        if let Some(table) = known.filter(|t| agrees(t, &record.columns)) {
            let places = places(table, &record.columns);
            // A column that the record does not have: kept by an update, absent from an insert.
            if record.mod_type != ModType::Insert || places.iter().all(Option::is_some) {
                return Fit { table: table.clone(), changed: false, places };
            }
            let narrow = self.narrowed(&name, &record.columns);
            return Fit { places: self::places(&narrow, &record.columns), table: narrow, changed: false };
        }
        let table = described(&name, known, &record.columns);
        self.known.insert(name, table.clone());
        Fit { places: places(&table, &record.columns), table, changed: true }
    }

    fn narrowed(&mut self, name: &TableName, columns: &[RecordColumn]) -> Table {
        let same = |t: &&Table| {
            t.schema.name == *name
                && t.schema.columns.len() == columns.len()
                && columns.iter().all(|c| t.schema.index_of(&c.name).is_some())
        };
        if let Some(table) = self.narrow.iter().find(same) {
            return table.clone();
        }
        let table = described(name, self.known.get(name), columns);
        self.narrow.push(table.clone());
        table
    }
}

/// Whether every column of the record is one of the table's, of the same type.
fn agrees(table: &Table, columns: &[RecordColumn]) -> bool {
    columns.iter().all(|c| table.schema.index_of(&c.name).is_some_and(|at| table.kinds[at] == c.kind))
}

fn places(table: &Table, columns: &[RecordColumn]) -> Vec<Option<usize>> {
    table.schema.columns.iter().map(|c| columns.iter().position(|r| r.name == c.name)).collect()
}

/// The table of which a record tells, with what else is known of its columns.
fn described(name: &TableName, known: Option<&Table>, columns: &[RecordColumn]) -> Table {
    let mut ordered: Vec<&RecordColumn> = columns.iter().collect();
    ordered.sort_by_key(|c| c.ordinal);
    let same = |c: &RecordColumn| {
        let table = known?;
        let at = table.schema.index_of(&c.name)?;
        (table.kinds[at] == c.kind).then(|| table.schema.columns[at].clone())
    };
    let new = |c: &RecordColumn| Column {
        name: c.name.clone(),
        data_type: data_type(&c.kind, None),
        native: native(&c.kind),
        nullable: !c.key,
        generated: false,
    };
    let key = match known {
        // Records do not tell the order of a key's columns; a table never changes its key.
        Some(table) => {
            let place = |k: &Column| ordered.iter().position(|c| c.name == k.name).map(|at| at as u16);
            table.schema.key_columns().filter_map(place).collect()
        }
        None => (0..).zip(&ordered).filter(|(_, c)| c.key).map(|(at, _)| at).collect(),
    };
    let kinds: Arc<[Kind]> = ordered.iter().map(|c| c.kind.clone()).collect();
    let columns = ordered.iter().map(|c| same(c).unwrap_or_else(|| new(c))).collect();
    Table { schema: Arc::new(TableSchema { name: name.clone(), columns, key }), kinds }
}
