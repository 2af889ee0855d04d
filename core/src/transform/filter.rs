//! Only some tables, and only some rows.

mod condition;

use std::sync::Arc;

use serde::Deserialize;

pub use condition::{Comparison, Condition, Literal};

use self::condition::{Resolved, resolve};
use super::Transform;
use super::pattern::{self, TablePattern};
use super::rewrite::{Rewriter, rewrite};
use super::schemas::Schemas;
use crate::error::{Error, Result};
use crate::model::{ChangeBatch, ChangeRef, OldImage, Op, TableSchema, ValueRef};

/// Leaves out tables, and rows that do not meet every condition on their table.
///
/// The target has a row exactly as long as it meets the conditions:
///
/// | before | after | an update becomes |
/// |---|---|---|
/// | yes | yes | itself |
/// | yes | no | a delete |
/// | no | yes | an insert |
/// | no | no | nothing |
///
/// What the row was before is known from a full old row, or if the conditions are on columns of
/// the key. Where it is not known, "after: no" becomes a delete, of a row that may not be there;
/// "after: yes" stays an update, which the target takes as the row's first if it has all columns;
/// and a delete stays one. A condition on a column that an update did not send is an error: let the
/// source send full old rows (PostgreSQL: `REPLICA IDENTITY FULL`).
///
/// A truncate, a change of the schema and a message go on; the first two only for tables that stay.
///
/// ```
/// use anabranch_core::transform::{Comparison, Filter};
/// let _filter = Filter::new().include("public.*").exclude("*.audit_*").rows("orders", "region", Comparison::Eq, "eu");
/// ```
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// Tables that stay; all if empty.
    #[serde(default)]
    include: Vec<TablePattern>,
    /// Tables that go, also of those.
    #[serde(default)]
    exclude: Vec<TablePattern>,
    /// Conditions on rows.
    #[serde(default)]
    rows: Vec<Condition>,
    #[serde(skip)]
    plans: Schemas<Plan>,
}

/// What becomes of one table.
#[derive(Debug)]
enum Plan {
    Stays,
    Goes,
    Rows(Vec<Resolved>),
}

/// What becomes of one change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Keep,
    Drop,
    Delete,
    Insert,
}

impl Filter {
    /// Leaves nothing out.
    pub fn new() -> Self {
        Self::default()
    }

    /// These tables stay, and others only if they are included too.
    #[must_use]
    pub fn include(mut self, tables: impl Into<TablePattern>) -> Self {
        self.include.push(tables.into());
        self
    }

    /// These tables go.
    #[must_use]
    pub fn exclude(mut self, tables: impl Into<TablePattern>) -> Self {
        self.exclude.push(tables.into());
        self
    }

    /// Only rows of these tables stay whose `column` compares so with `value`.
    #[must_use]
    pub fn rows(
        self,
        tables: impl Into<TablePattern>,
        column: impl Into<String>,
        op: Comparison,
        value: impl Into<Literal>,
    ) -> Self {
        self.condition(Condition {
            tables: vec![tables.into()],
            column: column.into(),
            op,
            value: Some(value.into()),
            values: Vec::new(),
        })
    }

    /// Only rows that meet the condition stay.
    #[must_use]
    pub fn condition(mut self, condition: Condition) -> Self {
        self.rows.push(condition);
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        self.rows.iter().try_for_each(Condition::check)
    }

    fn plan(
        include: &[TablePattern],
        exclude: &[TablePattern],
        rows: &[Condition],
        schema: &TableSchema,
    ) -> Result<Plan> {
        let stays = include.is_empty() || pattern::any(include, &schema.name);
        if !stays || pattern::any(exclude, &schema.name) {
            return Ok(Plan::Goes);
        }
        let on_table = rows.iter().filter(|c| pattern::any(&c.tables, &schema.name));
        let conditions: Vec<_> = on_table.map(|c| resolve(c, schema)).collect::<Result<_>>()?;
        Ok(if conditions.is_empty() { Plan::Stays } else { Plan::Rows(conditions) })
    }
}

impl Transform for Filter {
    fn apply(&mut self, batch: ChangeBatch) -> Result<ChangeBatch> {
        let Self { include, exclude, rows, plans } = self;
        let of_batch = batch.schemas().iter().map(|s| plans.get(s, |s| Self::plan(include, exclude, rows, s)));
        let of_batch: Vec<Arc<Plan>> = of_batch.collect::<Result<_>>()?;
        let verdict = |change: ChangeRef<'_>| match of_batch.get(change.schema_index()).map(|plan| &**plan) {
            None | Some(Plan::Stays) => Ok(Verdict::Keep),
            Some(Plan::Goes) => Ok(Verdict::Drop),
            Some(Plan::Rows(conditions)) => judge(conditions, change),
        };
        let verdicts: Vec<Verdict> = batch.changes().map(verdict).collect::<Result<_>>()?;
        if verdicts.iter().all(|v| *v == Verdict::Keep) {
            return Ok(batch);
        }
        rewrite(&batch, |change, out| {
            match verdicts[change.index() as usize] {
                Verdict::Drop => {}
                Verdict::Keep => out.keep(change),
                Verdict::Delete => delete(change, out),
                Verdict::Insert => insert(change, out)?,
            }
            Ok(())
        })
    }

    fn keeps_keys(&self) -> bool {
        true
    }

    fn digest(&self) -> Option<String> {
        Some(format!("filter {:?}", (&self.include, &self.exclude, &self.rows)))
    }
}

fn judge(conditions: &[Resolved], change: ChangeRef<'_>) -> Result<Verdict> {
    match change.op() {
        Op::Insert => match after(conditions, change)? {
            true => Ok(Verdict::Keep),
            false => Ok(Verdict::Drop),
        },
        Op::Delete => match before(conditions, change) {
            Some(false) => Ok(Verdict::Drop),
            _ => Ok(Verdict::Keep),
        },
        Op::Update => Ok(match (before(conditions, change), after(conditions, change)?) {
            (Some(true) | None, true) => Verdict::Keep,
            (Some(true) | None, false) => Verdict::Delete,
            (Some(false), true) => Verdict::Insert,
            (Some(false), false) => Verdict::Drop,
        }),
        _ => Ok(Verdict::Keep),
    }
}

/// Whether the row met the conditions before; `None` if that cannot be known.
fn before(conditions: &[Resolved], change: ChangeRef<'_>) -> Option<bool> {
    let value = |column: usize| match (change.old_row(), change.new_row()) {
        (Some(old), _) => old.get(column),
        // Without an old row the key is what it was.
        (None, Some(new)) if change.schema().is_key(column) => new.get(column),
        _ => ValueRef::Unchanged,
    };
    let mut known = true;
    for condition in conditions {
        match value(condition.column) {
            ValueRef::Unchanged => known = false,
            value if !condition.holds(value) => return Some(false),
            _ => {}
        }
    }
    known.then_some(true)
}

/// Whether the row meets the conditions now.
fn after(conditions: &[Resolved], change: ChangeRef<'_>) -> Result<bool> {
    let mut unknown = None;
    for condition in conditions {
        match now(change, condition.column) {
            ValueRef::Unchanged => unknown = Some(condition.column),
            value if !condition.holds(value) => return Ok(false),
            _ => {}
        }
    }
    match unknown {
        None => Ok(true),
        Some(column) => {
            let schema = change.schema();
            let column = &schema.columns[column].name;
            let message =
                format!("the filter of {} needs the column {column}, which an update did not send", schema.name);
            Err(Error::rejected(message).hint("let the source send full old rows: REPLICA IDENTITY FULL in PostgreSQL"))
        }
    }
}

/// A column's value after the change: an unsent one is what the old row says.
fn now(change: ChangeRef<'_>, column: usize) -> ValueRef<'_> {
    let new = change.new_row().map_or(ValueRef::Unchanged, |row| row.get(column));
    match (new, change.old_row()) {
        (ValueRef::Unchanged, Some(old)) => old.get(column),
        (new, _) => new,
    }
}

fn delete(change: ChangeRef<'_>, out: &mut Rewriter) {
    let schema = change.schema();
    out.change(change, Op::Delete, schema);
    if let Some(old) = change.old_row() {
        out.old_row(change.old_image());
        old.values().for_each(|value| out.push(value));
    } else if let Some(new) = change.new_row() {
        out.old_row(OldImage::Key);
        for (column, value) in new.values().enumerate() {
            out.push(if schema.is_key(column) { value } else { ValueRef::Unchanged });
        }
    }
}

fn insert(change: ChangeRef<'_>, out: &mut Rewriter) -> Result<()> {
    let schema = change.schema();
    out.change(change, Op::Insert, schema);
    out.new_row();
    for column in 0..schema.columns.len() {
        let value = now(change, column);
        if value.is_unchanged() {
            let message = format!(
                "a row of {} meets the filter now, and the source did not send its column {}",
                schema.name, schema.columns[column].name
            );
            return Err(
                Error::rejected(message).hint("let the source send full old rows: REPLICA IDENTITY FULL in PostgreSQL")
            );
        }
        out.push(value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::transform::testing::{Plain, batch_of, orders, plain, row};

    fn filtered(filter: Filter, changes: &[Plain]) -> Result<Vec<Plain>> {
        let mut filter = filter;
        filter.apply(batch_of(&Arc::new(orders()), changes)).map(|batch| plain(&batch))
    }

    fn eu() -> Filter {
        Filter::new().rows("public.orders", "region", Comparison::Eq, "eu")
    }

    fn full(region: &str) -> Option<(OldImage, Vec<crate::Value>)> {
        Some((OldImage::Full, row(["1", region, "2", "n"])))
    }

    fn key() -> Option<(OldImage, Vec<crate::Value>)> {
        Some((OldImage::Key, row(["1", "?", "?", "?"])))
    }

    fn new(region: &str) -> Option<Vec<crate::Value>> {
        Some(row(["1", region, "3", "?"]))
    }

    #[test]
    fn a_row_is_there_as_long_as_it_matches() {
        let insert = |region| (Op::Insert, None, Some(row(["1", region, "3", "n"])));
        let complete = Some(row(["1", "eu", "3", "n"]));
        for (change, expected) in [
            (insert("eu"), Some(insert("eu"))),
            (insert("us"), None),
            (insert("-"), None),
            ((Op::Update, full("eu"), new("eu")), Some((Op::Update, full("eu"), new("eu")))),
            ((Op::Update, full("eu"), new("us")), Some((Op::Delete, full("eu"), None))),
            ((Op::Update, full("us"), new("eu")), Some((Op::Insert, None, complete))),
            ((Op::Update, full("us"), new("us")), None),
            ((Op::Update, full("eu"), new("?")), Some((Op::Update, full("eu"), new("?")))),
            ((Op::Update, None, new("eu")), Some((Op::Update, None, new("eu")))),
            ((Op::Update, None, new("us")), Some((Op::Delete, key(), None))),
            ((Op::Delete, full("eu"), None), Some((Op::Delete, full("eu"), None))),
            ((Op::Delete, full("us"), None), None),
            ((Op::Delete, key(), None), Some((Op::Delete, key(), None))),
            ((Op::Schema, None, None), Some((Op::Schema, None, None))),
        ] {
            let found = filtered(eu(), std::slice::from_ref(&change)).unwrap();
            assert_eq!(found, expected.into_iter().collect::<Vec<_>>(), "{change:?}");
        }
    }

    #[test]
    fn what_was_not_sent_cannot_be_judged() {
        let error = filtered(eu(), &[(Op::Update, None, new("?"))]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Rejected);
        assert!(error.report().contains("region"), "{}", error.report());
    }

    #[test]
    fn conditions_on_the_key_are_always_known() {
        let small = || Filter::new().rows("orders", "id", Comparison::Lt, 10);
        let update = (Op::Update, None, Some(row(["9", "?", "?", "?"])));
        assert_eq!(filtered(small(), std::slice::from_ref(&update)).unwrap(), [update]);
        assert_eq!(filtered(small(), &[(Op::Update, None, Some(row(["10", "?", "?", "?"])))]).unwrap(), []);
        let gone = Some((OldImage::Key, row(["11", "?", "?", "?"])));
        assert_eq!(filtered(small(), &[(Op::Delete, gone, None)]).unwrap(), []);
    }

    #[test]
    fn tables_by_pattern() {
        let change = [(Op::Truncate(Default::default()), None, None)];
        for (filter, stays) in [
            (Filter::new().include("public.*"), true),
            (Filter::new().include("other"), false),
            (Filter::new().include("*").exclude("*.ord*"), false),
            (Filter::new().exclude("audit"), true),
        ] {
            assert_eq!(filtered(filter, &change).unwrap().len(), usize::from(stays));
        }
    }

    #[test]
    fn a_batch_that_stays_is_not_copied() {
        let batch = batch_of(&Arc::new(orders()), &[(Op::Insert, None, new("eu"))]);
        let schemas = batch.schemas().as_ptr();
        assert_eq!(eu().apply(batch).unwrap().schemas().as_ptr(), schemas);
    }

    #[test]
    fn a_missing_column_is_a_configuration_error() {
        let filter = Filter::new().rows("orders", "nope", Comparison::Eq, 1);
        let error = filtered(filter, &[(Op::Schema, None, None)]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
    }
}
