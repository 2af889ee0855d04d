//! A watched table.

use serde_json::{Value as Json, json};

/// A column of a [`Table`].
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type, as change records write it: `{"code":"INT64"}`.
    pub kind: Json,
    /// Its type, as DDL and the information schema write it: `INT64`.
    pub ddl: String,
    /// Whether it is part of the primary key.
    pub key: bool,
}

/// A table that a stream watches, with its columns in order.
///
/// ```
/// use anabranch_spanner_fake::Table;
/// let orders = Table::new("Orders").key("Id", "INT64").column("Note", "STRING").array("Tags", "STRING");
/// assert_eq!(orders.columns.len(), 3);
/// ```
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub struct Table {
    /// Its name.
    pub name: String,
    /// Its columns.
    pub columns: Vec<Column>,
}

impl Table {
    /// A table without columns.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), columns: Vec::new() }
    }

    /// A column of the primary key, by the type's code: `INT64`, `STRING`, `PG_NUMERIC`.
    pub fn key(self, name: &str, code: &str) -> Self {
        self.with(name, scalar(code), code, true)
    }

    /// Any other column, by the type's code.
    pub fn column(self, name: &str, code: &str) -> Self {
        self.with(name, scalar(code), code, false)
    }

    /// A column of arrays, by the code of their elements.
    pub fn array(self, name: &str, code: &str) -> Self {
        let kind = json!({"code": "ARRAY", "array_element_type": scalar(code)});
        self.with(name, kind, &format!("ARRAY<{code}>"), false)
    }

    fn with(mut self, name: &str, kind: Json, code: &str, key: bool) -> Self {
        let ddl = code.replace("STRING", "STRING(MAX)").replace("BYTES", "BYTES(MAX)");
        self.columns.push(Column { name: name.to_owned(), kind, ddl, key });
        self
    }

    /// The column of that name.
    pub fn find(&self, name: &str) -> Option<(usize, &Column)> {
        self.columns.iter().enumerate().find(|(_, c)| c.name == name)
    }
}

/// `PG_NUMERIC` and `PG_JSONB` are annotations of the type below them.
fn scalar(code: &str) -> Json {
    match code.strip_prefix("PG_") {
        Some("NUMERIC") => json!({"code": "NUMERIC", "type_annotation": "PG_NUMERIC"}),
        Some("JSONB") => json!({"code": "JSON", "type_annotation": "PG_JSONB"}),
        Some("OID") => json!({"code": "INT64", "type_annotation": "PG_OID"}),
        _ => json!({"code": code}),
    }
}
