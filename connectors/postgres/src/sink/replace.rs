//! Replace mode: for net effects that a unique constraint refuses row by row, though the state at the
//! end is consistent (two rows swap their names). Every touched row is deleted, then all are inserted.

use std::collections::HashMap;
use std::sync::Arc;

use anabranch_core::net_effect::{NetRow, Step, TableEffect};

use super::apply::{Applier, Tag, Values, key_text, sent};
use super::cache::Operation;
use super::failure::Failure;
use super::params::{ArrayLiteral, text_of};
use super::plan::Plan;

/// Rows read or inserted by one statement.
const MAX_ROWS: usize = 2_000;

/// Rows by the source columns they have, and whether they have the target's extra columns too; each
/// row is the texts of those columns.
type Shapes = HashMap<(Vec<u16>, bool), Vec<Vec<Option<String>>>>;

/// What the target holds of a row: the texts of the written columns, then of the extra ones.
type Stored = Vec<Option<String>>;

impl Applier<'_> {
    /// Whether replacing rows has no effect beyond the rows.
    pub(crate) fn may_replace(&self, steps: &[Step<'_>]) -> bool {
        steps.iter().all(|step| match step {
            Step::Net(effects) => {
                effects.iter().all(|e| self.plans.get(e.schema).is_some_and(|p| p.replaceable(self.replica)))
            }
            Step::InOrder(_) => true,
        })
    }

    /// Sends the steps, in replace mode, if the targets, looked at again, still allow it.
    pub(crate) async fn replace_steps(&mut self, steps: &[Step<'_>]) -> Result<(), Failure> {
        // A column, a trigger or a foreign key may have come since the plan was made, and rows are about
        // to be deleted. The lock is the one that writing takes; it keeps the tables as they are.
        // Where there is no such lock, the server refuses to write by an older look at the table.
        if self.dialect.table_locks {
            let lock = format!("LOCK TABLE {} IN ROW EXCLUSIVE MODE", self.plans.targets().join(", "));
            self.client.batch_execute(&lock).await.map_err(|error| Failure::Refused { error, plan: None })?;
        }
        self.plans.refresh(self.client).await.map_err(Failure::Broken)?;
        if !self.may_replace(steps) {
            return Err(Failure::Unreplaceable);
        }
        for step in steps {
            match step {
                Step::Net(effects) => self.replace(effects).await?,
                Step::InOrder(_) => self.steps(std::slice::from_ref(step)).await?,
            }
        }
        Ok(())
    }

    async fn replace(&mut self, effects: &[TableEffect<'_>]) -> Result<(), Failure> {
        self.settle().await?;
        let tables = self.in_reference_order(effects)?;
        let mut inserts = Vec::with_capacity(tables.len());
        for (plan, effect) in &tables {
            inserts.push(self.whole_rows(plan, effect).await?);
        }
        for (plan, effect) in tables.iter().rev() {
            if plan.source.key.is_empty() {
                continue;
            }
            self.delete(plan, &effect.deletes).await;
            self.delete(plan, &effect.upserts).await;
            self.delete(plan, &effect.updates).await;
        }
        for ((plan, _), shapes) in tables.iter().zip(inserts) {
            for ((columns, with_extra), rows) in shapes {
                self.insert_texts(plan, &columns, with_extra, &rows).await;
            }
        }
        Ok(())
    }

    /// The rows as they will be, with what only the target knows.
    async fn whole_rows(&mut self, plan: &Arc<Plan>, effect: &TableEffect<'_>) -> Result<Shapes, Failure> {
        let mut shapes = Shapes::new();
        for row in &effect.inserts {
            add(&mut shapes, plan, row, None);
        }
        for (rows, must_exist) in [(&effect.upserts, false), (&effect.updates, true)] {
            for chunk in rows.chunks(MAX_ROWS) {
                let stored = self.stored(plan, chunk, must_exist).await?;
                for (n, row) in chunk.iter().enumerate() {
                    let stored = stored.get(&(n as i64 + 1));
                    if must_exist && stored.is_none() {
                        return Err(Failure::Missing { plan: Arc::clone(plan), what: Some(key_text(plan, row)) });
                    }
                    add(&mut shapes, plan, row, stored);
                }
            }
        }
        Ok(shapes)
    }

    /// What the target holds of these rows, by their number from 1; nothing is read if nothing is needed.
    async fn stored(
        &mut self,
        plan: &Arc<Plan>,
        rows: &[NetRow<'_>],
        must_exist: bool,
    ) -> Result<HashMap<i64, Stored>, Failure> {
        if !must_exist && plan.extra.is_empty() && rows.iter().all(Values::complete) {
            return Ok(HashMap::new());
        }
        let places: Vec<usize> =
            plan.written.iter().map(|&c| plan.place(c)).chain(plan.extra.iter().copied()).collect();
        let mut scratch = String::new();
        let parameters: Vec<_> = plan
            .source
            .key
            .iter()
            .map(|&k| {
                let mut array = ArrayLiteral::new();
                for row in rows {
                    array.push(row.value(k), plan.encoding(k), &mut scratch);
                }
                array.finish()
            })
            .collect();
        let refused = |error| Failure::Refused { error, plan: Some(Arc::clone(plan)) };
        let statement = self.client.prepare(&plan.select(&places)).await.map_err(refused)?;
        let parameters: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> =
            parameters.iter().map(|p| p as &(dyn tokio_postgres::types::ToSql + Sync)).collect();
        let found = self.client.query(&statement, &parameters).await.map_err(refused)?;
        Ok(found.iter().map(|r| (r.get(0), (1..=places.len()).map(|i| r.get(i)).collect())).collect())
    }

    async fn insert_texts(&mut self, plan: &Arc<Plan>, columns: &[u16], with_extra: bool, rows: &[Stored]) {
        let extra: &[usize] = if with_extra { &plan.extra } else { &[] };
        // The extra columns are the plan's, so that one number tells the statements of a plan apart.
        let key = (plan.id, Operation::Insert, columns.into(), usize::from(with_extra));
        for chunk in rows.chunks(MAX_ROWS) {
            let parameters = (0..columns.len() + extra.len())
                .map(|c| {
                    let mut array = ArrayLiteral::new();
                    for row in chunk {
                        array.push_text(row[c].as_deref(), false);
                    }
                    array.finish()
                })
                .collect();
            let tag = Tag::Rows { plan: Arc::clone(plan), expect: plan.stored(chunk.len() as u64), what: None };
            match self.statement(key.clone(), || plan.insert(columns, extra)).await {
                Ok(statement) => self.flight.execute(tag, &statement, parameters).await,
                Err(error) => self.flight.fail(tag, error),
            }
        }
    }
}

/// Adds the row as it will be.
fn add<R: Values>(shapes: &mut Shapes, plan: &Plan, row: &R, stored: Option<&Stored>) {
    let columns = if stored.is_some() { plan.written.clone() } else { sent(plan, row) };
    let mut scratch = String::new();
    let mut texts: Stored = columns
        .iter()
        .enumerate()
        .map(|(n, &c)| match stored {
            Some(stored) if row.value(c).is_unchanged() => stored[n].clone(),
            _ => text_of(row.value(c), plan.encoding(c), &mut scratch).map(str::to_owned),
        })
        .collect();
    let with_extra = match stored {
        Some(stored) => {
            texts.extend_from_slice(&stored[columns.len()..]);
            !plan.extra.is_empty()
        }
        None => false,
    };
    shapes.entry((columns, with_extra)).or_default().push(texts);
}
