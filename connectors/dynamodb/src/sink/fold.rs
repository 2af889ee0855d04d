//! The net effect of a unit on items: for each key one write, as of the last change that touched it.
//!
//! Folding is done on items and not on rows, for DynamoDB has the last word on which keys are equal,
//! and each write needs the version of its own last change.

use std::collections::HashMap;
use std::sync::Arc;

use anabranch_core::{ChangeRef, Error, Op, Result, TableSchema, Unit};

use super::item::{Plan, Row, key_bytes, shown};
use super::table::Table;
use super::version::{Stamps, Version};
use crate::types::Item;

/// What happens to one item.
#[derive(Debug, Clone)]
pub(crate) struct Write {
    pub(crate) table: Arc<Table>,
    pub(crate) key: Item,
    pub(crate) action: Action,
    pub(crate) version: Version,
    /// Of what is written, by DynamoDB's rule, at most.
    pub(crate) size: usize,
}

/// How.
#[derive(Debug, Clone)]
pub(crate) enum Action {
    /// The item is this, whatever was there. With its key.
    Put(Item),
    /// The item is there already, and these attributes of it change.
    Update {
        /// Without its key.
        set: Item,
        remove: Vec<String>,
    },
    /// The item is gone.
    Delete,
}

/// A row that got another key, of which not all columns were sent.
#[derive(Debug, Clone)]
pub(crate) struct Move {
    pub(crate) table: Arc<Table>,
    pub(crate) from: Item,
    pub(crate) to: Item,
    pub(crate) set: Item,
    pub(crate) remove: Vec<String>,
    pub(crate) version: Version,
}

/// Steps are applied one after the other.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// Each key at most once: in any order, at the same time.
    Writes(Vec<Write>),
    Truncate(Arc<Table>, Version),
    Move(Box<Move>),
}

/// Gives the plan of a table's schema.
pub(crate) trait Plans {
    fn plan(&self, schema: &Arc<TableSchema>) -> Result<Arc<Plan>>;
}

/// The steps that apply these changes.
///
/// # Errors
/// [`Rejected`](anabranch_core::ErrorKind::Rejected) for a row that DynamoDB would refuse: nothing
/// was sent yet.
pub(crate) fn steps<'u>(
    changes: impl Iterator<Item = ChangeRef<'u>>,
    versions: &Stamps,
    plans: &impl Plans,
) -> Result<Vec<Step>> {
    let mut folding = Folding::default();
    for change in changes {
        let version = versions.get(change);
        match change.op() {
            Op::Message | Op::Schema => {}
            Op::Truncate(_) => {
                folding.end_step()?;
                let plan = plans.plan(change.schema())?;
                folding.steps.push(Step::Truncate(Arc::clone(&plan.table), version));
            }
            Op::Insert | Op::Update | Op::Delete => {
                let plan = plans.plan(change.schema())?;
                folding.row(change, &plan, version)?;
            }
        }
    }
    folding.end_step()?;
    Ok(folding.steps)
}

/// The schemas whose rows, or whose truncation, a unit has.
pub(crate) fn schemas(unit: &Unit) -> Vec<&Arc<TableSchema>> {
    let mut all: Vec<&Arc<TableSchema>> = Vec::new();
    for change in unit.changes().filter(|c| !matches!(c.op(), Op::Message | Op::Schema)) {
        let schema = change.schema();
        if !all.iter().rev().any(|known| Arc::ptr_eq(known, schema)) {
            all.push(schema);
        }
    }
    all
}

#[derive(Default)]
struct Folding {
    steps: Vec<Step>,
    slots: HashMap<(String, Vec<u8>), usize>,
    pending: Vec<Pending>,
}

struct Pending {
    plan: Arc<Plan>,
    key: Item,
    action: Action,
    version: Version,
}

impl Folding {
    fn row(&mut self, change: ChangeRef<'_>, plan: &Arc<Plan>, version: Version) -> Result<()> {
        match (change.op(), change.new_row(), change.old_row()) {
            (Op::Insert, Some(new), _) => {
                let row = Row::new(new);
                let key = plan.key(row)?;
                let item = plan.attributes(row, &key)?;
                self.set(plan, key, Action::Put(item), version);
            }
            (Op::Delete, _, Some(old)) => {
                let key = plan.key(Row::new(old))?;
                self.set(plan, key, Action::Delete, version);
            }
            (Op::Update, Some(new), old) => {
                let row = Row::after(new, old);
                let to = plan.key(row)?;
                let from = match old {
                    Some(old) => plan.key(Row::new(old))?,
                    None => to.clone(),
                };
                if key_bytes(&plan.table, &from) == key_bytes(&plan.table, &to) {
                    self.update(plan, to, row, version)?;
                } else {
                    self.moved(plan, from, to, row, version)?;
                }
            }
            _ => return Err(Error::fatal(format!("a change of {} has no row", plan.table.name))),
        }
        Ok(())
    }

    fn update(&mut self, plan: &Arc<Plan>, key: Item, row: Row<'_>, version: Version) -> Result<()> {
        let sent = plan.attributes(row, &key)?;
        if plan.is_complete(row) {
            self.set(plan, key, Action::Put(sent), version);
            return Ok(());
        }
        let removed = plan.removed(row);
        let action = match self.get(plan, &key) {
            Some(Action::Delete) => return Err(missing(&plan.table, &key)),
            Some(Action::Put(item)) => Action::Put(overlaid(item.clone(), sent, &removed)),
            Some(Action::Update { set, remove }) => {
                let mut all = remove.clone();
                all.retain(|name| !sent.contains_key(name));
                all.extend(removed.iter().filter(|name| !remove.contains(name)).cloned());
                Action::Update { set: without_key(overlaid(set.clone(), sent, &removed), &key), remove: all }
            }
            None => Action::Update { set: without_key(sent, &key), remove: removed },
        };
        self.set(plan, key, action, version);
        Ok(())
    }

    fn moved(&mut self, plan: &Arc<Plan>, from: Item, to: Item, row: Row<'_>, version: Version) -> Result<()> {
        let sent = plan.attributes(row, &to)?;
        let item = if plan.is_complete(row) {
            sent
        } else {
            let removed = plan.removed(row);
            match self.get(plan, &from) {
                Some(Action::Delete) => return Err(missing(&plan.table, &from)),
                Some(Action::Put(item)) => overlaid(without_key(item.clone(), &from), sent, &removed),
                _ => {
                    // The target has the rest of it.
                    self.end_step()?;
                    let table = Arc::clone(&plan.table);
                    let set = without_key(sent, &to);
                    let step = Move { table, from, to, set, remove: removed, version };
                    self.steps.push(Step::Move(Box::new(step)));
                    return Ok(());
                }
            }
        };
        self.set(plan, from, Action::Delete, version.clone());
        self.set(plan, to, Action::Put(item), version);
        Ok(())
    }

    fn slot(&self, plan: &Plan, key: &Item) -> Option<usize> {
        self.slots.get(&(plan.table.name.clone(), key_bytes(&plan.table, key))).copied()
    }

    fn get(&self, plan: &Plan, key: &Item) -> Option<&Action> {
        self.slot(plan, key).and_then(|at| self.pending.get(at)).map(|p| &p.action)
    }

    fn set(&mut self, plan: &Arc<Plan>, key: Item, action: Action, version: Version) {
        let pending = Pending { plan: Arc::clone(plan), key, action, version };
        match self.slot(plan, &pending.key) {
            Some(at) => self.pending[at] = pending,
            None => {
                let key = (plan.table.name.clone(), key_bytes(&plan.table, &pending.key));
                self.slots.insert(key, self.pending.len());
                self.pending.push(pending);
            }
        }
    }

    fn end_step(&mut self) -> Result<()> {
        self.slots.clear();
        let writes: Result<Vec<Write>> = self.pending.drain(..).map(Pending::finish).collect();
        let writes = writes?;
        if !writes.is_empty() {
            self.steps.push(Step::Writes(writes));
        }
        Ok(())
    }
}

impl Pending {
    fn finish(self) -> Result<Write> {
        let named = |e: Error| e.context(format!("the item [{}] of {}", shown(&self.key), self.plan.table.name));
        let size = match &self.action {
            Action::Put(item) => self.plan.check(item).map_err(named)?,
            Action::Update { set, .. } => self.plan.check(set).map_err(named)?,
            Action::Delete => self.plan.check(&self.key).map_err(named)?,
        };
        let table = Arc::clone(&self.plan.table);
        Ok(Write { table, key: self.key, action: self.action, version: self.version, size })
    }
}

/// An update of a row that is not there.
pub(crate) fn missing(table: &Table, key: &Item) -> Error {
    Error::rejected(format!(
        "the item [{}] of {} is to be changed, and it is not there; not all of its columns were sent",
        shown(key),
        table.name
    ))
}

/// The item with what was sent later.
pub(crate) fn overlaid(mut item: Item, sent: Item, removed: &[String]) -> Item {
    item.extend(sent);
    for name in removed {
        item.remove(name);
    }
    item
}

fn without_key(mut item: Item, key: &Item) -> Item {
    for name in key.keys() {
        item.remove(name);
    }
    item
}

/// The item that a [`Move`] makes of the one that it found under the old key.
pub(crate) fn moved_item(found: Item, moved: &Move) -> Item {
    let mut item = overlaid(without_key(found, &moved.from), moved.set.clone(), &moved.remove);
    item.extend(moved.to.clone());
    item
}
