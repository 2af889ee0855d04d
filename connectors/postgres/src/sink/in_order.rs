//! Applies changes one by one: what cannot be folded into a net effect.

use std::sync::Arc;

use anabranch_core::{ChangeRef, Op, RowRef, TruncateOptions, ValueRef};
use tokio_postgres::error::SqlState;

use super::apply::{Applier, Expect, Values, key_text, sent};
use super::cache::Operation;
use super::failure::Failure;
use super::params::{ArrayLiteral, Text};
use super::plan::Plan;
use super::table::Identity;

impl Applier<'_> {
    /// Sends one change.
    pub(crate) async fn one(&mut self, change: ChangeRef<'_>) -> Result<(), Failure> {
        if matches!(change.op(), Op::Schema | Op::Message) {
            return Ok(());
        }
        let plan = self.plan(change.schema())?;
        let keyed = !plan.source.key.is_empty();
        match (change.op(), change.new_row(), change.old_row()) {
            (Op::Insert, Some(new), _) if sent(&plan, &new).len() < plan.written.len() => {
                return Err(Failure::incomplete(&plan, &new));
            }
            (Op::Insert, Some(new), _) if keyed => self.upsert(&plan, &sent(&plan, &new), &[&new]).await,
            (Op::Insert, Some(new), _) => {
                let columns = sent(&plan, &new);
                let row = parameters(&plan, &columns, &new);
                self.send(&plan, Operation::Insert, &columns, 0, row, plan.stored(1), None).await;
            }
            (Op::Update, Some(new), Some(old)) if keyed && change.changes_key() => {
                self.rekey(&plan, old, Merged { new, old: Some(old) }).await;
            }
            (Op::Update, Some(new), old) if keyed => {
                let new = Merged { new, old };
                let columns = sent(&plan, &new);
                if new.complete() {
                    self.upsert(&plan, &columns, &[&new]).await;
                } else {
                    let (row, key) = (parameters(&plan, &columns, &new), key_text(&plan, &new));
                    self.send(&plan, Operation::Update, &columns, 0, row, Expect::Found(1), Some(key)).await;
                }
            }
            (Op::Delete, _, Some(old)) if keyed => self.delete(&plan, &[old]).await,
            (Op::Update, Some(new), Some(old)) => self.update_image(&plan, old, new).await,
            (Op::Delete, _, Some(old)) => {
                let image = sent(&plan, &old);
                let row = parameters(&plan, &image, &old);
                self.send(&plan, Operation::DeleteImage, &image, image.len(), row, Expect::Found(1), Some(whole()))
                    .await;
            }
            _ => return Err(Failure::Missing { plan, what: Some("no old row was sent".to_owned()) }),
        }
        Ok(())
    }

    async fn rekey(&mut self, plan: &Arc<Plan>, old: RowRef<'_>, new: Merged<'_>) {
        let key = plan.source.key.clone();
        let columns = sent(plan, &new);
        let fixed = columns.iter().any(|&c| plan.column(c).identity == Some(Identity::Always));
        if fixed && new.complete() {
            // GENERATED ALWAYS refuses to be updated, but not to be inserted.
            self.delete(plan, &[old]).await;
            return self.upsert(plan, &columns, &[&new]).await;
        }
        let mut row = parameters(plan, &key, &old);
        row.extend(parameters(plan, &columns, &new));
        let all: Vec<u16> = key.iter().chain(&columns).copied().collect();
        self.send(plan, Operation::UpdateKey, &all, key.len(), row, Expect::Found(1), Some(key_text(plan, &old))).await;
    }

    async fn update_image(&mut self, plan: &Arc<Plan>, old: RowRef<'_>, new: RowRef<'_>) {
        let (image, columns) = (sent(plan, &old), sent(plan, &new));
        let mut row = parameters(plan, &image, &old);
        row.extend(parameters(plan, &columns, &new));
        let all: Vec<u16> = image.iter().chain(&columns).copied().collect();
        self.send(plan, Operation::UpdateImage, &all, image.len(), row, Expect::Found(1), Some(whole())).await;
    }

    /// Empties tables, together: `TRUNCATE` refuses one that another one refers to.
    pub(crate) async fn truncate(&mut self, changes: &[ChangeRef<'_>]) -> Result<(), Failure> {
        self.settle().await?;
        let mut plans: Vec<Arc<Plan>> = Vec::new();
        let mut restart = false;
        for change in changes {
            let plan = self.plan(change.schema())?;
            restart |= matches!(change.op(), Op::Truncate(TruncateOptions { restart_identity: true, .. }));
            if !plans.iter().any(|p| p.target.oid == plan.target.oid) {
                plans.push(plan);
            }
        }
        let tables: Vec<String> = plans.iter().map(|p| p.target.rows()).collect();
        let restart = if restart { " RESTART IDENTITY" } else { "" };
        let truncate = format!("SAVEPOINT truncating; TRUNCATE {}{restart}; RELEASE truncating", tables.join(", "));
        let refused = |error, plan: Option<&Arc<Plan>>| Failure::Refused { error, plan: plan.cloned() };
        let mut delete = String::new();
        if self.dialect.transactional_truncate {
            let Err(error) = self.client.batch_execute(&truncate).await else { return Ok(()) };
            let code = error.code().cloned();
            if !code.is_some_and(|c| {
                c == SqlState::FEATURE_NOT_SUPPORTED
                    || c == SqlState::INSUFFICIENT_PRIVILEGE
                    || c == SqlState::WRONG_OBJECT_TYPE
            }) {
                return Err(refused(error, plans.first()));
            }
            delete.push_str("ROLLBACK TO truncating;");
        }
        // A table outside refers to one of these, or the right is missing: delete, children first.
        let mut left = plans.clone();
        while !left.is_empty() {
            let refers = |p: &Plan, to: &Plan| p.target.references.iter().any(|(oid, _)| *oid == to.target.oid);
            let free = |at: usize| !left.iter().enumerate().any(|(n, p)| n != at && refers(p, &left[at]));
            let next = (0..left.len()).find(|&at| free(at)).unwrap_or(0);
            delete.push_str(&format!("DELETE FROM {};", left.remove(next).target.rows()));
        }
        self.client.batch_execute(&delete).await.map_err(|e| refused(e, plans.first()))
    }
}

/// A row after an update: what the new row lacks (a long column that did not change), the old one may have.
struct Merged<'u> {
    new: RowRef<'u>,
    old: Option<RowRef<'u>>,
}

impl Values for Merged<'_> {
    fn value(&self, column: u16) -> ValueRef<'_> {
        match (self.new.get(usize::from(column)), self.old) {
            (ValueRef::Unchanged, Some(old)) => old.get(usize::from(column)),
            (value, _) => value,
        }
    }

    fn complete(&self) -> bool {
        (0..self.new.len()).all(|c| !self.value(c as u16).is_unchanged())
    }
}

fn whole() -> String {
    "all values of its old image".to_owned()
}

/// One row as arrays of one element.
fn parameters<R: Values>(plan: &Plan, columns: &[u16], row: &R) -> Vec<Text> {
    let mut scratch = String::new();
    columns
        .iter()
        .map(|&c| {
            let mut array = ArrayLiteral::new();
            array.push(row.value(c), plan.encoding(c), &mut scratch);
            array.finish()
        })
        .collect()
}
