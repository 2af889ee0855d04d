//! How one version of a source's table is written to its table in the target.

use std::sync::Arc;

use anabranch_core::{DataType, Error, Result, TableSchema, ValueRef};

use super::codec::Codec;
use super::contract;
use super::describe::{self, Described};
use super::native::Native;
use super::{Shared, target};
use crate::client::{Kind, SpannerValue};

/// A table, and how to write its rows.
#[derive(Debug, Clone)]
pub(crate) struct TablePlan {
    /// The table's name in the target.
    pub(crate) name: String,
    /// The columns that are written.
    pub(crate) columns: Vec<PlannedColumn>,
    /// Places in `columns` of the target's primary key, in its order. Empty if the source's table
    /// has no key: then rows are found by all their values.
    pub(crate) key: Vec<usize>,
    /// Of a table whose source has no key, the one column of the target's.
    pub(crate) row_id: Option<String>,
    /// How many tables it is interleaved in.
    pub(crate) depth: usize,
    /// Equal keys of the source may have different texts in the target.
    pub(crate) key_has_many_texts: bool,
}

/// A column that is written.
#[derive(Debug, Clone)]
pub(crate) struct PlannedColumn {
    /// Its place in the source's schema.
    pub(crate) index: usize,
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) codec: Codec,
}

impl TablePlan {
    /// Compares the source's table with the one that is there.
    ///
    /// # Errors
    /// `Config` if the table, a column or the key is missing.
    pub(crate) async fn new(shared: &Shared, schema: &TableSchema) -> Result<Self> {
        let name = &schema.name.name;
        let table = describe::table(shared, name).await?.ok_or_else(|| {
            Error::config(name, "this table is not in the target").hint("create it, or set create_tables = true")
        })?;
        let columns = planned_columns(shared, schema, &table)?;
        let (key, row_id) = key(schema, &table, &columns)?;
        let many_texts = |k: &usize| {
            let column = &columns[*k];
            let of = &schema.columns[column.index].data_type;
            matches!(of, DataType::Decimal { scale: None, .. }) && column.kind == Kind::String
        };
        let key_has_many_texts = key.iter().any(many_texts);
        let depth = table.depth(shared).await?;
        Ok(Self { columns, key, row_id, depth, key_has_many_texts, name: table.name })
    }

    /// Whether rows are found by a key.
    pub(crate) fn has_key(&self) -> bool {
        !self.key.is_empty()
    }

    /// The value of a column.
    pub(crate) fn value(&self, at: usize, value: ValueRef<'_>) -> Result<SpannerValue> {
        let column = &self.columns[at];
        column.codec.encode(&column.name, value).map_err(|e| Error::new(e.kind(), format!("{}.{e}", self.name)))
    }

    /// The key of a row, in the order of the target's.
    pub(crate) fn key_of<'r>(&self, value: impl Fn(usize) -> ValueRef<'r>) -> Result<Vec<SpannerValue>> {
        let one = |&k: &usize| match value(self.columns[k].index) {
            ValueRef::Unchanged => {
                let problem = format!("{}: the source did not send the key column {}", self.name, self.columns[k].name);
                Err(Error::rejected(problem))
            }
            sent => self.value(k, sent),
        };
        self.key.iter().map(one).collect()
    }

    /// The columns that were sent, with their values.
    pub(crate) fn sent<'r>(&self, value: impl Fn(usize) -> ValueRef<'r>) -> Result<Vec<(String, SpannerValue)>> {
        let mut sent = Vec::with_capacity(self.columns.len());
        for (at, column) in self.columns.iter().enumerate() {
            match value(column.index) {
                ValueRef::Unchanged => {}
                given => sent.push((column.name.clone(), self.value(at, given)?)),
            }
        }
        Ok(sent)
    }

    /// The names of the key's columns.
    pub(crate) fn key_names(&self) -> impl Iterator<Item = &str> {
        self.key.iter().map(|&k| self.columns[k].name.as_str())
    }
}

fn planned_columns(shared: &Shared, schema: &TableSchema, table: &Described) -> Result<Vec<PlannedColumn>> {
    let mut columns = Vec::with_capacity(schema.columns.len());
    for (index, column) in schema.columns.iter().enumerate() {
        let key = format!("{}.{}", table.name, column.name);
        let Some(there) = table.column(&column.name) else {
            let near = table.columns.iter().find(|c| c.name.eq_ignore_ascii_case(&column.name));
            let fix = match near {
                Some(near) => format!("the target has {}: rename one of them", near.name),
                None => "add it to the target, or leave it out with a transform".to_owned(),
            };
            return Err(Error::config(key, "the source sends this column, and the target does not have it").hint(fix));
        };
        if there.generated {
            if column.generated {
                continue;
            }
            return Err(Error::config(key, "the source sends this column, and the target computes it")
                .hint("make it an ordinary column, or leave it out with a transform"));
        }
        let native = Native::parse(&there.native);
        let Some((native, (_, codec, _))) = native.and_then(|n| contract::route(column, &n).map(|r| (n, r))) else {
            let problem = format!("{} cannot be stored in {}", column.native, there.native);
            return Err(Error::config(key, problem).hint("change the column in the target"));
        };
        let stamped = shared.settings.is_stamped(&table.name, &column.name);
        if stamped && !there.commit_timestamp {
            return Err(Error::config("sink.commit_timestamps", format!("{key} does not allow commit timestamps"))
                .hint("set its option allow_commit_timestamp = true"));
        }
        let codec = if stamped { Codec::CommitTimestamp } else { codec };
        columns.push(PlannedColumn { index, name: column.name.clone(), kind: native.kind, codec });
    }
    Ok(columns)
}

fn key(schema: &TableSchema, table: &Described, columns: &[PlannedColumn]) -> Result<(Vec<usize>, Option<String>)> {
    let place = |name: &String| columns.iter().position(|c| c.name == *name);
    if schema.key.is_empty() {
        let [row_id] = table.key.as_slice() else {
            return Err(Error::config(
                &table.name,
                "the source's table has no key, and the target's key has several columns",
            )
            .hint(format!("give it a key of one column with a default, as {}", target::ROW_ID)));
        };
        if place(row_id).is_some() || !table.column(row_id).is_some_and(|c| c.has_default) {
            return Err(Error::config(
                &table.name,
                "the source's table has no key, and the target's key has no default",
            )
            .hint(format!("give it a key of one column with a default, as {}", target::ROW_ID)));
        }
        return Ok((Vec::new(), Some(row_id.clone())));
    }
    let wanted: Vec<&str> = schema.key_columns().map(|c| c.name.as_str()).collect();
    let same = wanted.len() == table.key.len() && table.key.iter().all(|k| wanted.contains(&k.as_str()));
    let key: Vec<usize> = table.key.iter().filter_map(place).collect();
    if !same || key.len() != wanted.len() {
        let problem =
            format!("the source's key is ({}), the target's is ({})", wanted.join(", "), table.key.join(", "));
        return Err(Error::config(&table.name, problem)
            .hint("Spanner finds rows by their primary key: it must have exactly the columns of the source's key"));
    }
    Ok((key, None))
}

/// The plans of the tables met so far.
#[derive(Debug, Default)]
pub(crate) struct Plans {
    plans: Vec<(Arc<TableSchema>, Arc<TablePlan>)>,
}

impl Plans {
    /// The plan of this version of a table, made at its first use.
    pub(crate) async fn get(&mut self, shared: &Shared, schema: &Arc<TableSchema>) -> Result<Arc<TablePlan>> {
        if let Some((_, plan)) = self.plans.iter().find(|(s, _)| Arc::ptr_eq(s, schema)) {
            return Ok(Arc::clone(plan));
        }
        let known = self.plans.iter().find(|(s, _)| s == schema).map(|(_, plan)| Arc::clone(plan));
        let plan = match known {
            Some(plan) => plan,
            None => Arc::new(TablePlan::new(shared, schema).await?),
        };
        // One entry a table: an older version is not met again, or is planned again.
        self.plans.retain(|(s, _)| s.name != schema.name);
        self.plans.push((Arc::clone(schema), Arc::clone(&plan)));
        Ok(plan)
    }

    /// Forgets a table that changed.
    pub(crate) fn forget(&mut self, schema: &TableSchema) {
        self.plans.retain(|(s, _)| s.name != schema.name);
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.plans.clear();
    }
}
