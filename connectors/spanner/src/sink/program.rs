//! What a unit does to the target, in order, ready to be run in a transaction as often as Spanner
//! aborts it.
//!
//! Rows of tables with a key are mutations: Spanner applies them in their order when the transaction
//! commits, checks that a parent is there before its child at each of them, and foreign keys and
//! unique indexes at the end (measured on the emulator 1.5.28). Rows of tables without a key are found
//! by their values, which only DML can do; it runs before all mutations, but those are of other tables.

use anabranch_core::net_effect::{Step, TableEffect, steps, steps_in_order};
use anabranch_core::{ChangeRef, Error, OldImage, Op, Result, Unit, ValueRef};

use super::Shared;
use super::dialect::Dialect;
use super::plan::{Plans, TablePlan};
use crate::client::{Kind, Mutation, SpannerValue, Statement, Write};

/// Mutations (columns of rows, and deletes) that a transaction may have (Spanner's documentation,
/// "Quotas and limits"). Those of secondary indexes count too; Spanner itself tells of them.
pub(crate) const MAX_MUTATIONS: usize = 80_000;
/// Bytes that a transaction may have, by the same page.
pub(crate) const MAX_BYTES: usize = 100 << 20;

/// One thing to do.
#[derive(Debug, Clone)]
pub(crate) enum Action {
    Mutate(Mutation),
    /// A row gets another key and keeps what was not sent.
    Move(Move),
    /// Changes one row of a table without a key.
    Dml {
        table: String,
        statement: Statement,
    },
    /// Empties a table without a key.
    Empty(Statement),
}

/// See [`Action::Move`].
#[derive(Debug, Clone)]
pub(crate) struct Move {
    pub(crate) table: String,
    pub(crate) key_names: Vec<String>,
    pub(crate) from: Vec<SpannerValue>,
    /// The columns that were sent, those of the new key among them.
    pub(crate) sent: Vec<(String, SpannerValue)>,
    /// The columns that were not.
    pub(crate) kept: Vec<String>,
    /// The query that reads them.
    pub(crate) read: Statement,
}

/// The actions of one target transaction, and how large they are.
#[derive(Debug, Clone, Default)]
pub(crate) struct Program {
    pub(crate) actions: Vec<Action>,
    pub(crate) mutations: usize,
    pub(crate) bytes: usize,
}

impl Program {
    /// Adds the changes of a unit.
    ///
    /// # Errors
    /// `Rejected` for values that the target cannot hold, and for what exceeds a transaction.
    pub(crate) async fn add(&mut self, shared: &Shared, plans: &mut Plans, unit: &Unit) -> Result<()> {
        let mut in_order = false;
        for schema in unit.slices.iter().flat_map(|s| s.batch.schemas()).filter(|s| used(unit, s)) {
            in_order |= plans.get(shared, schema).await?.key_has_many_texts;
        }
        for step in if in_order { steps_in_order(unit) } else { steps(unit) } {
            match step {
                Step::Net(tables) => self.net(shared, plans, &tables).await?,
                Step::InOrder(change) => self.in_order(shared, plans, change).await?,
            }
            self.check_size()?;
        }
        Ok(())
    }

    /// Deletes go from children to parents, everything else from parents to children.
    async fn net(&mut self, shared: &Shared, plans: &mut Plans, tables: &[TableEffect<'_>]) -> Result<()> {
        let mut planned = Vec::with_capacity(tables.len());
        for effect in tables {
            planned.push((plans.get(shared, effect.schema).await?, effect));
        }
        planned.sort_by_key(|(plan, _)| plan.depth);
        for (plan, effect) in planned.iter().rev() {
            for row in &effect.deletes {
                self.delete(plan, plan.key_of(|i| row.get(i))?);
            }
        }
        let dialect = shared.dialect().await?;
        for (plan, effect) in &planned {
            for row in &effect.updates {
                self.mutate(plan.sent(|i| row.get(i))?, |values| Mutation::Update(write(plan, values)));
            }
            for row in &effect.upserts {
                self.mutate(plan.sent(|i| row.get(i))?, |values| Mutation::InsertOrUpdate(write(plan, values)));
            }
            for row in &effect.inserts {
                self.keyless_insert(dialect, plan, |i| row.get(i))?;
            }
        }
        Ok(())
    }

    async fn in_order(&mut self, shared: &Shared, plans: &mut Plans, change: ChangeRef<'_>) -> Result<()> {
        match change.op() {
            Op::Message => return Ok(()),
            Op::Schema => {
                plans.forget(change.schema());
                return Ok(());
            }
            Op::Truncate(_) | Op::Insert | Op::Update | Op::Delete => {}
        }
        let plan = plans.get(shared, change.schema()).await?;
        let dialect = shared.dialect().await?;
        match change.op() {
            Op::Truncate(_) if plan.has_key() => {
                self.push(Action::Mutate(Mutation::DeleteAll { table: plan.name.clone() }), 1, 0);
            }
            Op::Truncate(_) => {
                let sql = format!("DELETE FROM {} WHERE true", dialect.quoted(&plan.name));
                self.push(Action::Empty(Statement::new(sql)), 1, 0);
            }
            _ if plan.has_key() => self.keyed(dialect, &plan, change)?,
            _ => self.keyless(dialect, &plan, change)?,
        }
        Ok(())
    }

    /// A change of a table with a key, by itself.
    fn keyed(&mut self, dialect: Dialect, plan: &TablePlan, change: ChangeRef<'_>) -> Result<()> {
        match (change.op(), change.identity_row(), change.new_row()) {
            (Op::Delete, Some(old), _) => self.delete(plan, plan.key_of(|i| old.get(i))?),
            (Op::Insert | Op::Update, Some(old), Some(new)) if new.is_complete() => {
                if change.changes_key() {
                    self.delete(plan, plan.key_of(|i| old.get(i))?);
                }
                self.mutate(plan.sent(|i| new.get(i))?, |values| Mutation::InsertOrUpdate(write(plan, values)));
            }
            (Op::Update, Some(old), Some(new)) => {
                // A key column that did not change need not be sent.
                let value = |i: usize| match new.get(i) {
                    ValueRef::Unchanged => old.get(i),
                    sent => sent,
                };
                let sent = plan.sent(value)?;
                if change.changes_key() {
                    self.relocate(dialect, plan, plan.key_of(|i| old.get(i))?, sent);
                } else {
                    self.mutate(sent, |values| Mutation::Update(write(plan, values)));
                }
            }
            _ => return Err(missing_image(plan, change)),
        }
        Ok(())
    }

    /// The row at `from` gets the key, and the other values, of `sent`.
    fn relocate(
        &mut self,
        dialect: Dialect,
        plan: &TablePlan,
        from: Vec<SpannerValue>,
        sent: Vec<(String, SpannerValue)>,
    ) {
        let kept = plan.columns.iter().filter(|c| !sent.iter().any(|(name, _)| *name == c.name));
        let kept: Vec<String> = kept.map(|c| c.name.clone()).collect();
        let columns: Vec<String> = kept.iter().map(|name| dialect.quoted(name)).collect();
        let conditions: Vec<String> = plan.key_names().map(|name| format!("{} = ?", dialect.quoted(name))).collect();
        let table = dialect.quoted(&plan.name);
        let sql = format!("SELECT {} FROM {table} WHERE {}", columns.join(", "), conditions.join(" AND "));
        let values = plan.key.iter().zip(&from).map(|(&k, value)| (plan.columns[k].kind.clone(), value.clone()));
        let read = dialect.statement(&sql, values.collect());
        let (mutations, bytes) = (plan.columns.len() + 1, size(&sent));
        let key_names = plan.key_names().map(str::to_owned).collect();
        let action = Move { table: plan.name.clone(), key_names, from, sent, kept, read };
        self.push(Action::Move(action), mutations, bytes);
    }

    /// A change of a table without a key: of the rows that equal the old one, any one.
    fn keyless(&mut self, dialect: Dialect, plan: &TablePlan, change: ChangeRef<'_>) -> Result<()> {
        let new = change.new_row();
        if let (Op::Insert, Some(new)) = (change.op(), new) {
            return self.keyless_insert(dialect, plan, |i| new.get(i));
        }
        let old = change.old_row().filter(|_| change.old_image() == OldImage::Full);
        let Some(old) = old.filter(|old| old.is_complete()) else { return Err(missing_image(plan, change)) };
        let mut values: Vec<(Kind, SpannerValue)> = Vec::new();
        let mut sets = Vec::new();
        for (at, column) in plan.columns.iter().enumerate() {
            if let Some(given) = new.map(|new| new.get(column.index)).filter(|v| !v.is_unchanged()) {
                sets.push(format!("{} = ?", dialect.quoted(&column.name)));
                values.push((column.kind.clone(), plan.value(at, given)?));
            }
        }
        let mut matching = Vec::new();
        for (at, column) in plan.columns.iter().enumerate() {
            let name = dialect.quoted(&column.name);
            let value = plan.value(at, old.get(column.index))?;
            if value.is_null() {
                matching.push(format!("{name} IS NULL"));
                continue;
            }
            matching.push(comparison(dialect, plan, &name, &column.kind)?);
            values.push((column.kind.clone(), value));
        }
        let (table, id) = (dialect.quoted(&plan.name), dialect.quoted(plan.row_id.as_deref().unwrap_or_default()));
        let matching = if matching.is_empty() { "true".to_owned() } else { matching.join(" AND ") };
        let one = format!("{id} = (SELECT {id} FROM {table} WHERE {matching} LIMIT 1)");
        let sql = match new {
            Some(_) if sets.is_empty() => return Ok(()),
            Some(_) => format!("UPDATE {table} SET {} WHERE {one}", sets.join(", ")),
            None => format!("DELETE FROM {table} WHERE {one}"),
        };
        self.dml(plan, dialect.statement(&sql, values));
        Ok(())
    }

    fn keyless_insert<'r>(
        &mut self,
        dialect: Dialect,
        plan: &TablePlan,
        value: impl Fn(usize) -> ValueRef<'r>,
    ) -> Result<()> {
        let names: Vec<String> = plan.columns.iter().map(|c| dialect.quoted(&c.name)).collect();
        let marks = vec!["?"; names.len()];
        let table = dialect.quoted(&plan.name);
        let sql = format!("INSERT INTO {table} ({}) VALUES ({})", names.join(", "), marks.join(", "));
        let mut values = Vec::with_capacity(names.len());
        for (at, column) in plan.columns.iter().enumerate() {
            values.push((column.kind.clone(), plan.value(at, value(column.index))?));
        }
        self.dml(plan, dialect.statement(&sql, values));
        Ok(())
    }

    fn dml(&mut self, plan: &TablePlan, statement: Statement) {
        let bytes = statement.params.iter().map(|p| value_size(&p.value)).sum();
        self.push(Action::Dml { table: plan.name.clone(), statement }, plan.columns.len() + 1, bytes);
    }

    fn delete(&mut self, plan: &TablePlan, key: Vec<SpannerValue>) {
        let bytes = key.iter().map(value_size).sum();
        // One mutation for many keys, as long as nothing comes between.
        if let Some(Action::Mutate(Mutation::Delete { table, keys })) = self.actions.last_mut()
            && *table == plan.name
        {
            keys.push(key);
            self.mutations += 1;
            self.bytes += bytes;
            return;
        }
        self.push(Action::Mutate(Mutation::Delete { table: plan.name.clone(), keys: vec![key] }), 1, bytes);
    }

    fn mutate(
        &mut self,
        values: Vec<(String, SpannerValue)>,
        of: impl FnOnce(Vec<(String, SpannerValue)>) -> Mutation,
    ) {
        let (mutations, bytes) = (values.len(), size(&values));
        self.push(Action::Mutate(of(values)), mutations, bytes);
    }

    fn push(&mut self, action: Action, mutations: usize, bytes: usize) {
        self.actions.push(action);
        self.mutations += mutations;
        self.bytes += bytes;
    }

    fn check_size(&self) -> Result<()> {
        if self.mutations <= MAX_MUTATIONS && self.bytes <= MAX_BYTES {
            return Ok(());
        }
        Err(Error::rejected(format!(
            "a source transaction has more than the {MAX_MUTATIONS} mutations (columns written) or the {} MiB that a \
             Spanner transaction may have",
            MAX_BYTES >> 20
        ))
        .hint("make it smaller at the source, or let order = \"key\" apply it row by row"))
    }
}

/// Whether the unit changes a table under this very schema.
fn used(unit: &Unit, schema: &std::sync::Arc<anabranch_core::TableSchema>) -> bool {
    unit.changes().any(|c| c.op() != Op::Schema && c.table().is_some_and(|t| std::sync::Arc::ptr_eq(t, schema)))
}

/// How a column is compared with a parameter of its type.
fn comparison(dialect: Dialect, plan: &TablePlan, name: &str, kind: &Kind) -> Result<String> {
    match (kind, dialect) {
        (Kind::Json | Kind::PgJsonb | Kind::Array(_), _) => {
            let problem = "the source's table has no key, and this column cannot be compared";
            Err(Error::config(format!("{}.{}", plan.name, name.trim_matches(['`', '"'])), problem)
                .hint("give the table a key at the source"))
        }
        // NaN equals nothing.
        (Kind::Float32 | Kind::Float64, Dialect::Google) => {
            Ok(format!("IF(IS_NAN({name}), 'NaN', CAST({name} AS STRING)) = CAST(? AS STRING)"))
        }
        _ => Ok(format!("{name} = ?")),
    }
}

fn write(plan: &TablePlan, values: Vec<(String, SpannerValue)>) -> Write {
    Write { table: plan.name.clone(), values }
}

fn size(values: &[(String, SpannerValue)]) -> usize {
    values.iter().map(|(name, value)| name.len() + value_size(value)).sum()
}

fn value_size(value: &SpannerValue) -> usize {
    match value {
        SpannerValue::Null | SpannerValue::Bool(_) => 1,
        SpannerValue::Number(_) => 8,
        SpannerValue::Text(text) => text.len(),
        SpannerValue::List(list) => list.iter().map(value_size).sum(),
    }
}

fn missing_image(plan: &TablePlan, change: ChangeRef<'_>) -> Error {
    Error::rejected(format!(
        "{}: the source did not send enough of the old row to find it ({:?}, old image {:?})",
        plan.name,
        change.op(),
        change.old_image()
    ))
    .hint("let the source send full old rows, or give the table a primary key")
}
