//! Applies the net effect of a unit: a few statements for thousands of rows, sent without waiting.

use std::collections::HashMap;
use std::sync::Arc;

use anabranch_core::net_effect::{NetRow, Step, TableEffect};
use anabranch_core::{ChangeRef, Op, RowRef, TableSchema, ValueRef};
use tokio_postgres::{Client, Statement};

use super::cache::{Operation, Plans, StatementKey, Statements};
use super::failure::Failure;
use super::flight::{Flight, is_aftermath};
use super::params::{ArrayLiteral, Text};
use super::plan::{Arbiter, Plan};
use super::table::SHAPE;
use crate::dialect::Dialect;

/// What an answer belongs to.
#[derive(Debug)]
pub(crate) enum Tag {
    /// Begin, savepoint, progress: must succeed.
    Control,
    /// The epoch's check: must match one row.
    Fence,
    /// The check of a table's shape: must match one row.
    Shape(Arc<Plan>),
    /// Rows of a table.
    Rows { plan: Arc<Plan>, expect: Expect, what: Option<String> },
}

/// How many rows a statement must count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expect {
    Any,
    /// As many are found in the target, else rows are missing there.
    Found(u64),
    /// As many are stored, else something in the target (a trigger, a rule) left rows out without an error.
    Stored(u64),
}

/// A row whose values can be asked for.
pub(crate) trait Values {
    fn value(&self, column: u16) -> ValueRef<'_>;
    fn complete(&self) -> bool;
}

impl Values for RowRef<'_> {
    fn value(&self, column: u16) -> ValueRef<'_> {
        self.get(usize::from(column))
    }

    fn complete(&self) -> bool {
        self.is_complete()
    }
}

impl<V: Values> Values for &V {
    fn value(&self, column: u16) -> ValueRef<'_> {
        (**self).value(column)
    }

    fn complete(&self) -> bool {
        (**self).complete()
    }
}

impl Values for NetRow<'_> {
    fn value(&self, column: u16) -> ValueRef<'_> {
        self.get(usize::from(column))
    }

    fn complete(&self) -> bool {
        self.is_complete()
    }
}

/// Applies steps on one connection, within an open transaction.
pub(crate) struct Applier<'w> {
    pub(crate) client: &'w Arc<Client>,
    pub(crate) flight: Flight<'w, Tag>,
    pub(crate) plans: &'w mut Plans,
    pub(crate) statements: &'w mut Statements,
    /// Foreign keys and triggers of the target do not act.
    pub(crate) replica: bool,
    /// What the server may lack.
    pub(crate) dialect: Dialect,
    /// Rows that are new are inserted without asking whether they are there, which costs the server a
    /// quarter less than an upsert. One that is there after all is refused, and the unit tried otherwise.
    pub(crate) trusting: bool,
    /// Whether some were.
    pub(crate) trusted: bool,
    /// Rows go one by one, so that one which is left out can be told from one that was as it should be.
    pub(crate) one_by_one: bool,
}

impl<'w> Applier<'w> {
    pub(crate) fn new(
        client: &'w Arc<Client>,
        plans: &'w mut Plans,
        statements: &'w mut Statements,
        replica: bool,
        dialect: Dialect,
    ) -> Self {
        let flight = Flight::new(client);
        Self { client, flight, plans, statements, replica, dialect, trusting: false, trusted: false, one_by_one: false }
    }

    /// Sends the steps. The answers are judged by [`Applier::settle`].
    pub(crate) async fn steps(&mut self, steps: &[Step<'_>]) -> Result<(), Failure> {
        let mut rest = steps;
        while let Some((step, after)) = rest.split_first() {
            rest = after;
            match step {
                Step::Net(effects) => self.net(effects).await?,
                Step::InOrder(change) if matches!(change.op(), Op::Truncate(_)) => {
                    let more = after.iter().take_while(|s| truncate_of(s).is_some()).count();
                    let truncates: Vec<_> =
                        std::iter::once(*change).chain(after[..more].iter().filter_map(truncate_of)).collect();
                    rest = &after[more..];
                    self.truncate(&truncates).await?;
                }
                Step::InOrder(change) => self.one(*change).await?,
            }
        }
        Ok(())
    }

    /// Waits for what was sent; the first thing that went wrong, if any.
    pub(crate) async fn settle(&mut self) -> Result<(), Failure> {
        let mut aftermath = None;
        for (tag, answer) in self.flight.land().await {
            match (tag, answer) {
                (_, Err(e)) if is_aftermath(&e) => aftermath = aftermath.or(Some(e)),
                (Tag::Rows { plan, .. }, Err(error)) => return Err(Failure::Refused { error, plan: Some(plan) }),
                (_, Err(error)) => return Err(Failure::Refused { error, plan: None }),
                (Tag::Fence, Ok(matched)) if matched != 1 => return Err(Failure::Fenced),
                (Tag::Shape(plan), Ok(matched)) if matched != 1 => return Err(Failure::Altered { plan }),
                (Tag::Rows { plan, expect: Expect::Found(expect), what }, Ok(matched)) if matched != expect => {
                    return Err(Failure::Missing { plan, what });
                }
                (Tag::Rows { plan, expect: Expect::Stored(expect), what }, Ok(stored)) if stored != expect => {
                    return Err(Failure::LeftOut { plan, what });
                }
                _ => {}
            }
        }
        match aftermath {
            Some(error) => Err(Failure::Refused { error, plan: None }),
            None => Ok(()),
        }
    }

    /// Asks whether the tables are as they were when their plans were made: the server would round a number
    /// for a column that was narrowed, without an error. After the changes, whose locks keep the tables as they
    /// are; where there are no such locks, the server refuses to write by an older look at a table.
    pub(crate) async fn confirm(&mut self) {
        if !self.dialect.table_locks {
            return;
        }
        for plan in self.plans.current() {
            let sql = || format!("SELECT 1 FROM ({SHAPE}) AS s WHERE s.shape = $2::text");
            let parameters = vec![Text::of(plan.target.oid), Text::of(&plan.target.shape)];
            match self.statement((0, Operation::Shape, Box::default(), 0), sql).await {
                Ok(statement) => self.flight.execute(Tag::Shape(plan), &statement, parameters).await,
                Err(error) => self.flight.fail(Tag::Shape(plan), error),
            }
        }
    }

    /// The tables are asked for as [`Applier::confirm`] does, and all answers judged.
    pub(crate) async fn finish(&mut self) -> Result<(), Failure> {
        self.confirm().await;
        self.settle().await
    }

    pub(crate) fn plan(&self, schema: &Arc<TableSchema>) -> Result<Arc<Plan>, Failure> {
        self.plans.get(schema).cloned().ok_or_else(|| Failure::unplanned(schema))
    }

    async fn net(&mut self, effects: &[TableEffect<'_>]) -> Result<(), Failure> {
        let tables = self.in_reference_order(effects)?;
        // Deletes first, so that a unique value is free before another row takes it; but where foreign
        // keys act, a row that others may refer to goes after those have moved away: a cascade would
        // take rows along that the source kept.
        let late = |plan: &Plan, replica: bool| !replica && plan.target.referenced;
        for (plan, effect) in tables.iter().rev() {
            if !late(plan, self.replica) {
                self.delete(plan, &effect.deletes).await;
            }
        }
        for (plan, effect) in &tables {
            let trusting = self.trusting && plan.may_trust(self.replica);
            let (new, known): (Vec<_>, Vec<_>) = effect.upserts.iter().partition(|row| trusting && row.is_new());
            self.trusted |= !new.is_empty();
            for (columns, rows) in groups(plan, &known) {
                whole(plan, &columns, &rows)?;
                self.upsert(plan, &columns, &rows).await;
            }
            for (columns, rows) in groups(plan, &effect.updates) {
                self.rows(plan, Operation::Update, &columns, &rows, Expect::Found).await;
            }
            // After the updates: a new row may take a unique value that one of them gave up.
            for (columns, rows) in groups(plan, &new) {
                whole(plan, &columns, &rows)?;
                self.rows(plan, Operation::Insert, &columns, &rows, |n| plan.stored(n)).await;
            }
            for (columns, rows) in groups(plan, &effect.inserts) {
                whole(plan, &columns, &rows)?;
                self.rows(plan, Operation::Insert, &columns, &rows, |n| plan.stored(n)).await;
            }
        }
        for (plan, effect) in tables.iter().rev() {
            if late(plan, self.replica) {
                self.delete(plan, &effect.deletes).await;
            }
        }
        Ok(())
    }

    /// The tables, each after those that its foreign keys refer to, as far as there are no cycles.
    pub(crate) fn in_reference_order<'e, 'u>(
        &self,
        effects: &'e [TableEffect<'u>],
    ) -> Result<Vec<(Arc<Plan>, &'e TableEffect<'u>)>, Failure> {
        let mut waiting = Vec::with_capacity(effects.len());
        for effect in effects {
            waiting.push((self.plan(effect.schema)?, effect));
        }
        let mut sorted = Vec::with_capacity(waiting.len());
        while !waiting.is_empty() {
            let free = |at: usize| {
                let (plan, _): &(Arc<Plan>, _) = &waiting[at];
                let own = plan.target.oid;
                !plan
                    .target
                    .references
                    .iter()
                    .any(|(to, _)| *to != own && waiting.iter().any(|(other, _)| other.target.oid == *to))
            };
            let next = (0..waiting.len()).find(|&at| free(at)).unwrap_or(0);
            sorted.push(waiting.remove(next));
        }
        Ok(sorted)
    }

    pub(crate) async fn delete<R: Values + Sync>(&mut self, plan: &Arc<Plan>, rows: &[R]) {
        let rows: Vec<&R> = rows.iter().collect();
        let key = plan.source.key.clone();
        self.rows(plan, Operation::Delete, &key, &rows, |_| Expect::Any).await;
        // A trigger can leave a row where it is. None that was deleted is no proof: it may never have been there.
        if plan.target.acts(self.replica) {
            self.rows(plan, Operation::Remaining, &key, &rows, |_| Expect::Stored(0)).await;
        }
    }

    pub(crate) async fn upsert<R: Values + Sync>(&mut self, plan: &Arc<Plan>, columns: &[u16], rows: &[&R]) {
        if plan.arbiter == Arbiter::Index {
            // A trigger may leave an update out that changes nothing, which is no loss.
            let operation = match self.one_by_one && !plan.is_loose() && plan.target.acts(self.replica) {
                true => Operation::UpsertUnlessSame,
                false => Operation::Upsert,
            };
            let counts = operation == Operation::UpsertUnlessSame || plan.upsert_counts(columns);
            let expect = |n| match () {
                () if plan.is_loose() => Expect::Found(n),
                () if counts => plan.stored(n),
                () => Expect::Any,
            };
            return self.rows(plan, operation, columns, rows, expect).await;
        }
        self.rows(plan, Operation::Update, columns, rows, |_| Expect::Any).await;
        self.rows(plan, Operation::InsertMissing, columns, rows, |_| Expect::Any).await;
    }

    /// Sends rows in chunks; `expect` says for the number of rows of one what it must count.
    async fn rows<R: Values + Sync>(
        &mut self,
        plan: &Arc<Plan>,
        operation: Operation,
        columns: &[u16],
        rows: &[&R],
        expect: impl Fn(u64) -> Expect,
    ) {
        let mut scratch = String::new();
        let mut rest = rows;
        while !rest.is_empty() {
            let mut arrays: Vec<ArrayLiteral> = columns.iter().map(|_| ArrayLiteral::new()).collect();
            let mut taken = 0;
            let (most, bytes) = (self.dialect.statement_rows, self.dialect.statement_bytes);
            while taken < rest.len().min(most) && arrays.iter().map(ArrayLiteral::len).sum::<usize>() < bytes {
                for (array, &c) in arrays.iter_mut().zip(columns) {
                    array.push(rest[taken].value(c), plan.encoding(c), &mut scratch);
                }
                taken += 1;
            }
            let expect = expect(taken as u64);
            let what =
                (taken == 1 && expect != Expect::Any && !plan.source.key.is_empty()).then(|| key_text(plan, rest[0]));
            rest = &rest[taken..];
            let parameters = arrays.into_iter().map(ArrayLiteral::finish).collect();
            self.send(plan, operation, columns, 0, parameters, expect, what).await;
        }
    }

    /// A prepared statement. What is in flight goes on.
    pub(crate) async fn statement(
        &mut self,
        key: StatementKey,
        sql: impl FnOnce() -> String + Send,
    ) -> Result<Statement, tokio_postgres::Error> {
        self.flight.meanwhile(self.statements.get(self.client, key, sql)).await
    }

    /// Sends one statement. Of `columns` the first `image` ones are an image to find the row by.
    #[expect(clippy::too_many_arguments, reason = "one statement, spelled out")]
    pub(crate) async fn send(
        &mut self,
        plan: &Arc<Plan>,
        operation: Operation,
        columns: &[u16],
        image: usize,
        parameters: Vec<Text>,
        expect: Expect,
        what: Option<String>,
    ) {
        let tag = Tag::Rows { plan: Arc::clone(plan), expect, what };
        let key = (plan.id, operation, columns.into(), image);
        let (found, written) = columns.split_at(image);
        let place = self.dialect.row_place;
        let sql = || match operation {
            Operation::Upsert => plan.upsert(columns),
            Operation::InsertMissing => plan.insert_missing(columns),
            Operation::Update => plan.update(columns),
            Operation::UpdateKey => plan.update_key(written),
            Operation::UpdateImage => plan.update_image(found, written, place),
            Operation::UpsertUnlessSame => plan.upsert_unless_same(columns, place),
            Operation::Delete => plan.delete(),
            Operation::Remaining => plan.remaining(),
            Operation::DeleteImage => plan.delete_image(found, place),
            _ => plan.insert(columns, &[]),
        };
        match self.statement(key, sql).await {
            Ok(statement) => self.flight.execute(tag, &statement, parameters).await,
            Err(error) => self.flight.fail(tag, error),
        }
    }
}

fn truncate_of<'u>(step: &Step<'u>) -> Option<ChangeRef<'u>> {
    match step {
        Step::InOrder(change) if matches!(change.op(), Op::Truncate(_)) => Some(*change),
        _ => None,
    }
}

/// Rows by the set of columns that were sent for them.
pub(crate) fn groups<'r, R: Values>(plan: &Plan, rows: &'r [R]) -> Vec<(Vec<u16>, Vec<&'r R>)> {
    if rows.is_empty() {
        return Vec::new();
    }
    if rows.iter().all(Values::complete) {
        return vec![(plan.written.clone(), rows.iter().collect())];
    }
    let mut places: HashMap<Vec<u16>, usize> = HashMap::new();
    let mut groups: Vec<(Vec<u16>, Vec<&R>)> = Vec::new();
    for row in rows {
        let sent = sent(plan, row);
        let at = *places.entry(sent).or_insert_with_key(|sent| {
            groups.push((sent.clone(), Vec::new()));
            groups.len() - 1
        });
        groups[at].1.push(row);
    }
    groups
}

/// The columns that were sent for a row and are written.
pub(crate) fn sent<R: Values>(plan: &Plan, row: &R) -> Vec<u16> {
    plan.written.iter().copied().filter(|&c| !row.value(c).is_unchanged()).collect()
}

/// Rows of which these columns were sent can be inserted only if these are all that are written.
fn whole<R: Values>(plan: &Arc<Plan>, columns: &[u16], rows: &[&R]) -> Result<(), Failure> {
    match rows.first() {
        Some(row) if columns.len() < plan.written.len() => Err(Failure::incomplete(plan, *row)),
        _ => Ok(()),
    }
}

/// The key of a row, for people.
pub(crate) fn key_text<R: Values>(plan: &Plan, row: &R) -> String {
    let mut scratch = String::new();
    let parts: Vec<String> = plan
        .source
        .key
        .iter()
        .map(|&k| {
            let text = super::params::text_of(row.value(k), plan.encoding(k), &mut scratch).unwrap_or("NULL");
            format!("{} = {text}", plan.source.columns[usize::from(k)].name)
        })
        .collect();
    parts.join(", ")
}
