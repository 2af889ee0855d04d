//! Fewer columns.

use std::sync::Arc;

use serde::Deserialize;

use super::Transform;
use super::pattern::{self, TablePattern};
use super::rewrite::rewrite;
use super::schemas::Schemas;
use crate::error::{Error, Result};
use crate::model::{ChangeBatch, TableSchema};

/// Leaves columns out. Columns of the key must stay.
///
/// ```
/// use anabranch_core::transform::Project;
/// let _project = Project::drop(["public.customers"], ["password_hash"]);
/// ```
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Project {
    /// The tables that it is about.
    tables: Vec<TablePattern>,
    /// The columns that stay, and no others.
    #[serde(default)]
    keep: Vec<String>,
    /// The columns that go.
    #[serde(default)]
    drop: Vec<String>,
    #[serde(skip)]
    plans: Schemas<Option<Plan>>,
}

/// What becomes of one table.
#[derive(Debug)]
struct Plan {
    schema: Arc<TableSchema>,
    /// The places in the old schema of the columns that stay.
    columns: Vec<usize>,
}

impl Project {
    /// Only these columns of these tables stay.
    pub fn keep<T: Into<TablePattern>, C: Into<String>>(
        tables: impl IntoIterator<Item = T>,
        columns: impl IntoIterator<Item = C>,
    ) -> Self {
        let keep = columns.into_iter().map(Into::into).collect();
        Self { tables: tables.into_iter().map(Into::into).collect(), keep, drop: Vec::new(), plans: Schemas::default() }
    }

    /// All but these columns of these tables stay.
    pub fn drop<T: Into<TablePattern>, C: Into<String>>(
        tables: impl IntoIterator<Item = T>,
        columns: impl IntoIterator<Item = C>,
    ) -> Self {
        let drop = columns.into_iter().map(Into::into).collect();
        Self { tables: tables.into_iter().map(Into::into).collect(), keep: Vec::new(), drop, plans: Schemas::default() }
    }

    pub(super) fn check(&self) -> Result<()> {
        match (self.keep.is_empty(), self.drop.is_empty()) {
            (false, false) => Err(Error::config("transform.project", "give either keep or drop, not both")),
            (true, true) => Err(Error::config("transform.project", "names no columns").hint("give keep or drop")),
            _ => Ok(()),
        }
    }
}

fn plan(tables: &[TablePattern], keep: &[String], drop: &[String], schema: &TableSchema) -> Result<Option<Plan>> {
    if !pattern::any(tables, &schema.name) {
        return Ok(None);
    }
    let exact = tables.iter().any(|p| p.is_exact() && p.matches(&schema.name));
    if let Some(missing) = keep.iter().chain(drop).find(|c| exact && schema.index_of(c).is_none()) {
        return Err(Error::config("transform.project", format!("{} has no column {missing}", schema.name)));
    }
    let stays = |name: &String| if keep.is_empty() { !drop.contains(name) } else { keep.contains(name) };
    let columns: Vec<usize> = (0..schema.columns.len()).filter(|&i| stays(&schema.columns[i].name)).collect();
    let mut key = Vec::with_capacity(schema.key.len());
    for &k in &schema.key {
        let at = columns.iter().position(|&c| c == usize::from(k)).ok_or_else(|| {
            let column = &schema.columns[usize::from(k)].name;
            Error::config("transform.project", format!("{column} is in the key of {} and must stay", schema.name))
        })?;
        key.push(at as u16);
    }
    let new = TableSchema {
        name: schema.name.clone(),
        columns: columns.iter().map(|&i| schema.columns[i].clone()).collect(),
        key,
    };
    Ok(Some(Plan { schema: Arc::new(new), columns }))
}

impl Transform for Project {
    fn apply(&mut self, batch: ChangeBatch) -> Result<ChangeBatch> {
        let Self { tables, keep, drop, plans } = self;
        let of_batch = batch.schemas().iter().map(|s| plans.get(s, |s| plan(tables, keep, drop, s)));
        let of_batch: Vec<_> = of_batch.collect::<Result<_>>()?;
        if of_batch.iter().all(|plan| plan.is_none()) {
            return Ok(batch);
        }
        rewrite(&batch, |change, out| match of_batch.get(change.schema_index()).map(|plan| &**plan) {
            Some(Some(plan)) => out.map_rows(change, &plan.schema, |row, out| {
                plan.columns.iter().for_each(|&column| out.push(row.get(column)));
                Ok(())
            }),
            _ => {
                out.keep(change);
                Ok(())
            }
        })
    }

    fn keeps_keys(&self) -> bool {
        true
    }

    fn digest(&self) -> Option<String> {
        Some(format!("project {:?}", (&self.tables, &self.keep, &self.drop)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::model::{OldImage, Op};
    use crate::transform::testing::{batch_of, orders, plain, row};

    #[test]
    fn rows_and_the_key_follow_the_columns() {
        let mut schema = orders();
        schema.key = vec![2];
        let schema = Arc::new(schema);
        let update = (Op::Update, Some((OldImage::Key, row(["?", "?", "1", "?"]))), Some(row(["7", "eu", "2", "?"])));
        let mut project = Project::drop(["orders"], ["region"]);
        let out = project.apply(batch_of(&schema, std::slice::from_ref(&update))).unwrap();

        assert_eq!(out.change(0).schema().key, [1]);
        let without = |row: Vec<crate::Value>| [&row[..1], &row[2..]].concat();
        let (old, new) = (update.1.unwrap().1, update.2.unwrap());
        assert_eq!(plain(&out), [(Op::Update, Some((OldImage::Key, without(old))), Some(without(new)))]);
        let again = project.apply(batch_of(&schema, &[])).unwrap();
        assert!(again.is_empty());
    }

    #[test]
    fn a_key_column_and_an_unknown_column_are_refused() {
        let schema = Arc::new(orders());
        for (project, says) in [
            (Project::keep(["public.orders"], ["note"]), "id is in the key of public.orders"),
            (Project::drop(["orders"], ["nope"]), "public.orders has no column nope"),
        ] {
            let error = { project }.apply(batch_of(&schema, &[(Op::Schema, None, None)])).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.report().contains(says), "{}", error.report());
        }
        // Of many tables some may lack it.
        Project::drop(["*"], ["nope"]).apply(batch_of(&schema, &[(Op::Schema, None, None)])).unwrap();
    }
}
