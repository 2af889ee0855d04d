//! Tables and columns.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::DataType;
use crate::hash::Fnv;

/// A table's name. `schema` is empty where the database has none.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TableName {
    /// Schema (PostgreSQL), database (MySQL), or empty.
    #[serde(default)]
    pub schema: String,
    /// The table's own name, exactly as stored: case, quotes and spaces included.
    pub name: String,
}

impl TableName {
    /// A name in a schema.
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self { schema: schema.into(), name: name.into() }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.schema.is_empty() {
            write!(f, "{}.", self.schema)?;
        }
        f.write_str(&self.name)
    }
}

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name, exactly as stored.
    pub name: String,
    /// Its logical type.
    pub data_type: DataType,
    /// The database's own name of the type, as its DDL writes it: `numeric(10,2)`, `jsonb`, `public.mood`.
    pub native: String,
    /// Whether NULL is possible.
    pub nullable: bool,
    /// Whether the database computes it. Generated columns are never written.
    #[serde(default)]
    pub generated: bool,
}

impl Column {
    /// A nullable, ordinary column.
    pub fn new(name: impl Into<String>, data_type: DataType) -> Self {
        let native = data_type.to_string();
        Self { name: name.into(), data_type, native, nullable: true, generated: false }
    }
}

/// A table as one version of its schema describes it. Rows refer to columns by their place in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSchema {
    /// The table.
    pub name: TableName,
    /// The columns that the source sends, in its order.
    pub columns: Vec<Column>,
    /// The places of the columns that identify a row, in key order. Empty: no key, a row is
    /// identified by its whole old image.
    pub key: Vec<u16>,
}

impl TableSchema {
    /// Tells this table, with its columns and its key, from another: 16 hexadecimal digits, the same in every
    /// version.
    pub fn digest(&self) -> String {
        // What is made of strings and numbers alone can always be written.
        let text = serde_json::to_string(self).unwrap_or_default();
        format!("{:016x}", Fnv::new().with(text.as_bytes()).value())
    }

    /// The place of a column.
    pub fn index_of(&self, column: &str) -> Option<usize> {
        self.columns.iter().position(|c| c.name == column)
    }

    /// The key columns, in key order.
    pub fn key_columns(&self) -> impl Iterator<Item = &Column> {
        self.key.iter().map(|&i| &self.columns[usize::from(i)])
    }

    /// Whether the column at this place is part of the key.
    pub fn is_key(&self, index: usize) -> bool {
        self.key.iter().any(|&k| usize::from(k) == index)
    }
}
