//! Applies a unit's changes: in bulk, by replacing, or one by one.

use std::collections::HashMap;
use std::sync::Arc;

use anabranch_core::net_effect::{self, NetRow, Step, TableEffect};
use anabranch_core::{ChangeRef, Error, Op, RowRef, TableName, TableSchema, Unit};

use crate::config::TimeZone;
use crate::connection::Link;
use crate::definition;
use crate::error::Failure;
use crate::plan::{Plan, Values};
use crate::replace;
use crate::script::{Expect, Script};
use crate::target::Target;

/// Rows whose keys stand in one DELETE: the server's range optimizer gives up on very long lists
/// and reads the whole table (range_optimizer_max_mem_size).
const KEYS_PER_DELETE: usize = 500;

/// The plans of the tables met so far: one for each version of a table, for a unit may hold several.
#[derive(Debug, Default)]
pub(crate) struct Plans {
    plans: HashMap<TableName, Vec<Version>>,
    /// Those of the unit at hand.
    used: Vec<Arc<Plan>>,
    time_zone: TimeZone,
}

type Version = (Arc<TableSchema>, Arc<Plan>);

impl Plans {
    pub(crate) fn new(time_zone: TimeZone) -> Self {
        Self { plans: HashMap::new(), used: Vec::new(), time_zone }
    }

    /// Forgets what is known of the target's tables.
    pub(crate) fn clear(&mut self) {
        self.plans.clear();
        self.used.clear();
    }

    fn get(&self, schema: &Arc<TableSchema>) -> Option<&Arc<Plan>> {
        let versions = self.plans.get(&schema.name)?;
        versions.iter().rev().find(|(known, _)| Arc::ptr_eq(known, schema) || known == schema).map(|(_, plan)| plan)
    }

    /// The plan of a table that the unit has.
    pub(crate) fn of(&self, schema: &Arc<TableSchema>) -> Result<Arc<Plan>, Failure> {
        plan_of(self, schema)
    }

    /// Makes the plans of every table of this unit, so that no description is asked for later.
    pub(crate) async fn prepare(&mut self, link: &mut Link, unit: &Unit) -> Result<(), Failure> {
        let mut last: Option<&Arc<TableSchema>> = None;
        self.used.clear();
        for change in unit.changes() {
            let Some(schema) = change.table() else { continue };
            if change.op() == Op::Schema || last.is_some_and(|l| Arc::ptr_eq(l, schema)) {
                continue;
            }
            let plan = self.learn(link, schema).await?;
            if !self.used.iter().any(|used| Arc::ptr_eq(used, &plan)) {
                self.used.push(plan);
            }
            last = Some(schema);
        }
        Ok(())
    }

    pub(crate) async fn learn(&mut self, link: &mut Link, schema: &Arc<TableSchema>) -> Result<Arc<Plan>, Failure> {
        if let Some(plan) = self.get(schema) {
            return Ok(Arc::clone(plan));
        }
        // Before it is described: what is altered in between is noticed, and described again.
        let definition = definition::read(link, &schema.name.name).await?;
        let target = Target::describe(link, &schema.name.name).await?.ok_or_else(|| {
            Error::config(format!("table {}", schema.name), "the target has no such table")
                .hint("create it, or set create_tables = true")
        })?;
        let plan = Arc::new(Plan { definition, ..Plan::new(schema, &target, self.time_zone)? });
        self.plans.entry(schema.name.clone()).or_default().push((Arc::clone(schema), Arc::clone(&plan)));
        Ok(plan)
    }

    /// Makes sure that the tables of the unit at hand are as they were when their plans were made: the
    /// server would round a decimal, or cut digits of a second off, without an error, and rows that are
    /// replaced would lose a column that is new. After the changes, whose lock keeps the tables as they are.
    ///
    /// # Errors
    /// `Transient`: to begin again is to judge the types anew.
    pub(crate) async fn confirm(&self, script: &mut Script<'_>) -> Result<(), Failure> {
        let known: Vec<_> = self.used.iter().filter(|plan| plan.definition.is_some()).collect();
        for plan in &known {
            script.add(&definition::question(&plan.table), Expect::Any);
        }
        let outcomes = script.outcomes().await?;
        for (plan, now) in known.iter().zip(outcomes.iter().skip(outcomes.len() - known.len())) {
            if now.rows.first().and_then(definition::of) != plan.definition {
                let problem = format!("table {} was altered in the target while it was written to", plan.name);
                return Err(Error::transient(problem).into());
            }
        }
        Ok(())
    }
}

/// How the net effect of a unit is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// In bulk.
    Net,
    /// Every touched row is deleted and inserted anew: exact whatever the unique keys are.
    Replace,
    /// Change by change, as the source made them.
    InOrder,
}

/// Applies the unit's changes within the open transaction.
pub(crate) async fn apply(script: &mut Script<'_>, plans: &Plans, unit: &Unit, mode: Mode) -> Result<(), Failure> {
    // The net effect takes 1.5 and 1.50 for one key, as the source does. Where the target keeps them as
    // texts they are two, so that each change is made by itself.
    let mut schemas = unit.slices.iter().flat_map(|s| s.batch.schemas());
    let many_texts = schemas.any(|s| plans.get(s).is_some_and(|p| p.key_has_many_texts));
    let steps =
        if many_texts || mode == Mode::InOrder { net_effect::steps_in_order(unit) } else { net_effect::steps(unit) };
    for step in &steps {
        match step {
            Step::InOrder(change) => one(script, plans, *change).await?,
            Step::Net(effects) => {
                let mut known = Vec::with_capacity(effects.len());
                for effect in effects {
                    known.push((plan_of(plans, effect.schema)?, effect));
                }
                match mode {
                    Mode::Replace => replace::replace(script, &known).await?,
                    _ => net(script, &known).await?,
                }
            }
        }
    }
    plans.confirm(script).await
}

fn plan_of(plans: &Plans, schema: &Arc<TableSchema>) -> Result<Arc<Plan>, Failure> {
    plans.get(schema).cloned().ok_or_else(|| Error::fatal(format!("no plan was made for table {}", schema.name)).into())
}

/// Deletes of all tables first, so that unique values are free before other rows take them.
async fn net(script: &mut Script<'_>, effects: &[(Arc<Plan>, &TableEffect<'_>)]) -> Result<(), Failure> {
    for (plan, effect) in effects {
        delete(script, plan, effect.deletes.iter().copied()).await?;
    }
    for (plan, effect) in effects {
        for row in &effect.updates {
            update_one(script, plan, row, row, Expect::One).await?;
        }
        match &plan.upsert {
            Some(tail) => script.rows(plan, tail, effect.upserts.iter().cloned()).await?,
            None => update_or_insert(script, plan, &effect.upserts).await?,
        }
        script.rows(plan, "", effect.inserts.iter().copied()).await?;
    }
    Ok(())
}

/// Deletes the rows with the keys of these.
pub(crate) async fn delete<R: Values>(
    script: &mut Script<'_>,
    plan: &Plan,
    rows: impl Iterator<Item = R> + Send,
) -> Result<(), Failure> {
    let mut open = 0;
    for row in rows {
        if open == KEYS_PER_DELETE {
            close_delete(script, plan).await?;
            open = 0;
        }
        let simple = plan.simple_key();
        if open == 0 {
            script.begin(Some(plan), Expect::Any);
            script.sql.extend_from_slice(format!("DELETE FROM {} WHERE ", plan.table).as_bytes());
            if let Some(key) = simple {
                script.sql.extend_from_slice(key.name.as_bytes());
                script.sql.extend_from_slice(b" IN (");
            }
        } else {
            script.sql.extend_from_slice(if simple.is_some() { b"," } else { b" OR " });
        }
        // A list of row constructors, (a,b) IN ((1,2)), does not use the index everywhere.
        match simple {
            Some(key) => plan.push_value(key, &row, &mut script.sql, &mut script.scratch)?,
            None => {
                script.sql.push(b'(');
                plan.push_key(&row, &mut script.sql, &mut script.scratch)?;
                script.sql.push(b')');
            }
        }
        open += 1;
    }
    if open > 0 {
        close_delete(script, plan).await?;
    }
    Ok(())
}

async fn close_delete(script: &mut Script<'_>, plan: &Plan) -> Result<(), Failure> {
    if plan.simple_key().is_some() {
        script.sql.push(b')');
    }
    script.end().await
}

/// Updates the row with the key of `found_by`.
pub(crate) async fn update_one(
    script: &mut Script<'_>,
    plan: &Plan,
    found_by: &dyn Values,
    row: &dyn Values,
    expect: Expect,
) -> Result<(), Failure> {
    script.begin(Some(plan), expect);
    script.sql.extend_from_slice(format!("UPDATE {} SET ", plan.table).as_bytes());
    if !plan.push_assignments(row, &mut script.sql, &mut script.scratch)? {
        // Nothing was sent but the key: the row must be there all the same.
        let name = plan.columns[plan.key[0]].name.clone();
        script.sql.extend_from_slice(format!("{name}={name}").as_bytes());
    }
    script.sql.extend_from_slice(b" WHERE ");
    script.condition();
    plan.push_key(found_by, &mut script.sql, &mut script.scratch)?;
    script.end().await
}

/// Where an upsert could meet another row than the one that is meant: updates each row by its key,
/// then inserts those that are not there.
async fn update_or_insert(script: &mut Script<'_>, plan: &Plan, rows: &[NetRow<'_>]) -> Result<(), Failure> {
    /// Results that are waited for together.
    const TOGETHER: usize = 1000;
    for some in rows.chunks(TOGETHER) {
        script.settle().await?;
        let mut missing = Vec::new();
        let mut asked = Vec::new();
        for row in some {
            script.begin(Some(plan), Expect::Any);
            script.sql.extend_from_slice(format!("UPDATE {} SET ", plan.table).as_bytes());
            plan.push_assignments(row, &mut script.sql, &mut script.scratch)?;
            script.sql.extend_from_slice(b" WHERE ");
            plan.push_key(row, &mut script.sql, &mut script.scratch)?;
            asked.push(row);
            if script.is_long()? {
                sort_out(script, plan, &mut asked, &mut missing).await?;
            }
        }
        sort_out(script, plan, &mut asked, &mut missing).await?;
        script.rows(plan, "", missing.into_iter().cloned()).await?;
    }
    Ok(())
}

async fn sort_out<'r, 'u>(
    script: &mut Script<'_>,
    plan: &Plan,
    asked: &mut Vec<&'r NetRow<'u>>,
    missing: &mut Vec<&'r NetRow<'u>>,
) -> Result<(), Failure> {
    let outcomes = script.outcomes().await?;
    for (row, outcome) in asked.drain(..).zip(outcomes) {
        match outcome.matched {
            0 => missing.push(row),
            1 => {}
            n => {
                let why = format!("table {}: the target has {n} rows with one key of the source", plan.name);
                return Err(Error::rejected(why).hint("give the target a unique key on the source's key").into());
            }
        }
    }
    Ok(())
}

/// Applies one change by itself.
async fn one(script: &mut Script<'_>, plans: &Plans, change: ChangeRef<'_>) -> Result<(), Failure> {
    match change.op() {
        Op::Message | Op::Schema => return Ok(()),
        Op::Truncate(_) => {
            let plan = plan_of(plans, change.schema())?;
            script.begin(Some(&plan), Expect::Any);
            // TRUNCATE would commit: it is a definition, not a change of rows.
            script.sql.extend_from_slice(format!("DELETE FROM {}", plan.table).as_bytes());
            return script.end().await;
        }
        Op::Insert | Op::Update | Op::Delete => {}
    }
    let plan = plan_of(plans, change.schema())?;
    let (new, old) = (change.new_row(), change.identity_row());
    if plan.key.is_empty() {
        return without_key(script, &plan, change.op(), old, new).await;
    }
    match (change.op(), old, new) {
        (Op::Delete, Some(old), _) => delete(script, &plan, std::iter::once(old)).await,
        (_, Some(old), Some(new)) if !new.is_complete() => update_one(script, &plan, &old, &new, Expect::One).await,
        (_, Some(old), Some(new)) => {
            script.settle().await?;
            update_one(script, &plan, &old, &new, Expect::Any).await?;
            let matched = script.outcomes().await?.first().map_or(0, |o| o.matched);
            if matched == 0 { script.rows(&plan, "", std::iter::once(new)).await } else { Ok(()) }
        }
        _ => Err(Error::fatal(format!("table {}: a change without rows", plan.name)).into()),
    }
}

/// A row without a key is found by all of its old values; of equal rows one is meant.
async fn without_key(
    script: &mut Script<'_>,
    plan: &Plan,
    op: Op,
    old: Option<RowRef<'_>>,
    new: Option<RowRef<'_>>,
) -> Result<(), Failure> {
    if let (Op::Insert, Some(new)) = (op, new) {
        return script.rows(plan, "", std::iter::once(new)).await;
    }
    let Some(old) = old.filter(|row| row.is_complete()) else {
        let problem = "has no key, and the source did not send the whole old row";
        return Err(Error::rejected(format!("table {} {problem}", plan.name))
            .hint("set REPLICA IDENTITY FULL at the source, or give the table a key")
            .into());
    };
    script.begin(Some(plan), Expect::One);
    match (op, new) {
        (Op::Update, Some(new)) => {
            script.sql.extend_from_slice(format!("UPDATE {} SET ", plan.table).as_bytes());
            plan.push_assignments(&new, &mut script.sql, &mut script.scratch)?;
        }
        _ => script.sql.extend_from_slice(format!("DELETE FROM {}", plan.table).as_bytes()),
    }
    script.sql.extend_from_slice(b" WHERE ");
    script.condition();
    plan.push_all(&old, &mut script.sql, &mut script.scratch)?;
    script.sql.extend_from_slice(b" LIMIT 1");
    script.end().await
}
