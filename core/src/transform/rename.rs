//! Other names for schemas, tables and columns.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Transform;
use super::schemas::Schemas;
use crate::error::{Error, Result};
use crate::model::{ChangeBatch, TableName, TableSchema};

/// Renames. Every name on the left is the source's own, and names exactly one thing.
///
/// ```
/// use anabranch_core::transform::Rename;
/// let _rename = Rename::new()
///     .schema("public", "shop")
///     .table("public.orders", "sales.orders_v2")
///     .column("public.orders", "note", "remark");
/// ```
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rename {
    /// Schemas, for tables that are not in `tables`.
    #[serde(default)]
    schemas: BTreeMap<String, String>,
    /// Tables, as `schema.table`; a new name without a dot stays in the (renamed) schema.
    #[serde(default)]
    tables: BTreeMap<String, String>,
    /// Columns, by table.
    #[serde(default)]
    columns: BTreeMap<String, BTreeMap<String, String>>,
    #[serde(skip)]
    renamed: Schemas<TableSchema>,
}

impl Rename {
    /// Renames nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Renames a schema, for all of its tables that have no new name of their own.
    #[must_use]
    pub fn schema(mut self, from: impl Into<String>, to: impl Into<String>) -> Self {
        self.schemas.insert(from.into(), to.into());
        self
    }

    /// Renames `schema.table`; a new name without a dot stays in the (renamed) schema.
    #[must_use]
    pub fn table(mut self, from: impl Into<String>, to: impl Into<String>) -> Self {
        self.tables.insert(from.into(), to.into());
        self
    }

    /// Renames a column of `schema.table`, by the table's old name.
    #[must_use]
    pub fn column(mut self, table: impl Into<String>, from: impl Into<String>, to: impl Into<String>) -> Self {
        self.columns.entry(table.into()).or_default().insert(from.into(), to.into());
        self
    }

    fn name(&self, old: &TableName) -> TableName {
        let schema = self.schemas.get(&old.schema).unwrap_or(&old.schema);
        match self.tables.get(&old.to_string()) {
            Some(new) => match new.split_once('.') {
                Some((schema, name)) => TableName::new(schema, name),
                None => TableName::new(schema, new),
            },
            None => TableName::new(schema, &old.name),
        }
    }

    fn rename(&self, old: &TableSchema) -> Result<TableSchema> {
        let mut new = TableSchema { name: self.name(&old.name), ..old.clone() };
        for (from, to) in self.columns.get(&old.name.to_string()).into_iter().flatten() {
            let key = format!("transform.rename.columns.{}.{from}", old.name);
            let at = old.index_of(from).ok_or_else(|| Error::config(&key, "the table has no such column"))?;
            new.columns[at].name.clone_from(to);
        }
        for (at, column) in new.columns.iter().enumerate() {
            if new.columns[..at].iter().any(|c| c.name == column.name) {
                let key = format!("transform.rename.columns.{}", old.name);
                return Err(Error::config(key, format!("two columns would be called {}", column.name)));
            }
        }
        Ok(new)
    }
}

impl Transform for Rename {
    fn apply(&mut self, batch: ChangeBatch) -> Result<ChangeBatch> {
        let mut renamed = std::mem::take(&mut self.renamed);
        let schemas = batch.schemas().iter().map(|schema| renamed.get(schema, |schema| self.rename(schema)));
        let schemas = schemas.collect::<Result<Vec<_>>>();
        self.renamed = renamed;
        Ok(batch.with_schemas(schemas?))
    }

    fn keeps_keys(&self) -> bool {
        true
    }

    fn digest(&self) -> Option<String> {
        Some(format!("rename {:?}", (&self.schemas, &self.tables, &self.columns)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::error::ErrorKind;
    use crate::transform::testing::{batch, orders};

    #[test]
    fn names_change_and_the_schema_is_made_once() {
        let schema = Arc::new(orders());
        let mut rename = Rename::new().schema("public", "shop").column("public.orders", "note", "remark");
        let first = rename.apply(batch(&schema, 2, 2)).unwrap();
        let second = rename.apply(batch(&schema, 2, 2)).unwrap();

        let renamed = first.change(0).schema();
        assert_eq!((renamed.name.to_string().as_str(), renamed.columns[3].name.as_str()), ("shop.orders", "remark"));
        assert!(Arc::ptr_eq(renamed, second.change(0).schema()));
        assert_eq!(renamed.key, [0]);
    }

    #[test]
    fn a_table_may_leave_its_schema() {
        for (to, expected) in [("sales.o2", "sales.o2"), ("o2", "shop.o2")] {
            let rename = Rename::new().schema("public", "shop").table("public.orders", to);
            assert_eq!(rename.name(&orders().name).to_string(), expected);
        }
    }

    #[test]
    fn a_missing_or_a_doubled_column_is_a_configuration_error() {
        for (from, to, says) in [("nope", "x", "no such column"), ("note", "id", "two columns")] {
            let mut rename = Rename::new().column("public.orders", from, to);
            let error = rename.apply(batch(&Arc::new(orders()), 1, 1)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.report().contains(says), "{}", error.report());
        }
    }
}
