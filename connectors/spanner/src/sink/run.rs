//! Runs a program within a read-write transaction.

use std::collections::BTreeMap;

use anabranch_core::{Error, Lane, Progress, Result};
use async_trait::async_trait;

use super::dialect::Dialect;
use super::failure;
use super::program::{Action, Move, Program};
use super::progress;
use crate::client::{Code, Mutation, SpannerError, SpannerResult, SpannerValue, Transaction, Work, Write};

/// A unit's transaction: the lane's row with its epoch, the program, the positions.
pub(crate) struct Apply<'a> {
    pub(crate) dialect: Dialect,
    pub(crate) lane: &'a Lane,
    pub(crate) program: &'a Program,
    pub(crate) changes: u64,
    pub(crate) transactions: u64,
    pub(crate) progress: &'a [Progress],
    /// Why the work itself stopped, where that is not Spanner's refusal.
    pub(crate) stopped: Option<Error>,
}

/// Why a transaction is rolled back.
pub(crate) enum Stop {
    Own(Error),
    Spanner(SpannerError),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Own(error)
    }
}

impl From<SpannerError> for Stop {
    fn from(error: SpannerError) -> Self {
        Self::Spanner(error)
    }
}

#[async_trait]
impl Work for Apply<'_> {
    async fn run(&mut self, transaction: &dyn Transaction) -> SpannerResult<()> {
        self.stopped = None;
        match self.steps(transaction).await {
            Ok(()) => Ok(()),
            Err(Stop::Spanner(error)) => Err(error),
            Err(Stop::Own(error)) => {
                let reason = SpannerError::new(Code::FailedPrecondition, error.to_string());
                self.stopped = Some(error);
                Err(reason)
            }
        }
    }
}

impl Apply<'_> {
    async fn steps(&self, transaction: &dyn Transaction) -> Result<(), Stop> {
        let fence = progress::fence(self.dialect, self.lane, self.changes, self.transactions, transaction).await?;
        let mut mutations: Vec<Mutation> = fence.into_iter().collect();
        let (mut statements, mut tables) = (Vec::new(), Vec::new());
        for action in &self.program.actions {
            match action {
                Action::Mutate(mutation) => mutations.push(mutation.clone()),
                Action::Move(row) => relocate(row, transaction, &mut mutations).await?,
                Action::Dml { table, statement } => {
                    statements.push(statement.clone());
                    tables.push(Some(table));
                }
                Action::Empty(statement) => {
                    statements.push(statement.clone());
                    tables.push(None);
                }
            }
        }
        if !statements.is_empty() {
            let counts = transaction.execute(statements).await?;
            let missed = counts.iter().zip(tables).find_map(|(count, table)| table.filter(|_| *count != 1));
            if let Some(table) = missed {
                return Err(Error::rejected(format!(
                    "{table}: the target has no row that equals the old row of this change, and the table has no key"
                ))
                .into());
            }
        }
        mutations.extend(progress::positions(self.lane, self.progress)?);
        transaction.buffer(mutations)?;
        Ok(())
    }

    /// The error of a transaction that failed.
    pub(crate) fn failed(self, error: SpannerError) -> Error {
        self.stopped.unwrap_or_else(|| failure::of_write(error, "cannot apply a unit"))
    }
}

/// Deletes a row and writes it under its new key. What was not sent comes from the mutations before,
/// which no query sees, and from the target.
async fn relocate(row: &Move, transaction: &dyn Transaction, mutations: &mut Vec<Mutation>) -> Result<(), Stop> {
    let mut kept: BTreeMap<&str, SpannerValue> = BTreeMap::new();
    let known = pending(row, mutations, &mut kept);
    if known == Known::Gone {
        return Err(no_row(row).into());
    }
    if known != Known::Whole && kept.len() < row.kept.len() {
        let rows = transaction.query(row.read.clone()).await?;
        match rows.into_iter().next() {
            Some(values) => {
                for (name, value) in row.kept.iter().zip(values) {
                    kept.entry(name).or_insert(value);
                }
            }
            None if known == Known::Unknown => return Err(no_row(row).into()),
            // It was put there by this transaction, without these columns: they are NULL.
            None => {}
        }
    }
    let kept = row.kept.iter().map(|name| (name.clone(), kept.remove(name.as_str()).unwrap_or_default()));
    let values = row.sent.iter().cloned().chain(kept).collect();
    mutations.push(Mutation::Delete { table: row.table.clone(), keys: vec![row.from.clone()] });
    mutations.push(Mutation::InsertOrUpdate(Write { table: row.table.clone(), values }));
    Ok(())
}

/// What the mutations of this transaction tell of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// Nothing, or some columns of a row that must be in the target.
    Unknown,
    /// Some columns of a row that is there, or is put there.
    Put,
    /// All that there is to know.
    Whole,
    /// It was deleted.
    Gone,
}

/// Looks for the row at `row.from` in the mutations so far, from the last on.
fn pending<'r>(row: &'r Move, mutations: &[Mutation], kept: &mut BTreeMap<&'r str, SpannerValue>) -> Known {
    let mut known = Known::Unknown;
    for mutation in mutations.iter().rev() {
        let (write, now) = match mutation {
            Mutation::Delete { table, keys } if *table == row.table && keys.contains(&row.from) => {
                return if known == Known::Unknown { Known::Gone } else { Known::Whole };
            }
            Mutation::DeleteAll { table } if *table == row.table => {
                return if known == Known::Unknown { Known::Gone } else { Known::Whole };
            }
            Mutation::Insert(write) | Mutation::Replace(write) => (write, Known::Whole),
            Mutation::InsertOrUpdate(write) => (write, Known::Put),
            // It would fail, were the row not there.
            Mutation::Update(write) => (write, known),
            Mutation::Delete { .. } | Mutation::DeleteAll { .. } => continue,
        };
        if write.table != row.table || !has_key(write, row) {
            continue;
        }
        for name in &row.kept {
            if let Some((_, value)) = write.values.iter().find(|(n, _)| n == name) {
                kept.entry(name).or_insert_with(|| value.clone());
            }
        }
        known = now;
        if known == Known::Whole {
            return known;
        }
    }
    known
}

fn has_key(write: &Write, row: &Move) -> bool {
    let value = |name: &String| write.values.iter().find(|(n, _)| n == name).map(|(_, v)| v);
    row.key_names.iter().zip(&row.from).all(|(name, wanted)| value(name) == Some(wanted))
}

fn no_row(row: &Move) -> Error {
    let key: Vec<String> = row.key_names.iter().zip(&row.from).map(|(n, v)| format!("{n} = {}", shown(v))).collect();
    Error::rejected(format!(
        "{}: the target has no row with key {}, and the source did not send all columns",
        row.table,
        key.join(", ")
    ))
}

/// A key value, for an error.
fn shown(value: &SpannerValue) -> String {
    match value {
        SpannerValue::Null => "NULL".to_owned(),
        SpannerValue::Bool(v) => v.to_string(),
        SpannerValue::Number(v) => v.to_string(),
        SpannerValue::Text(v) => v.clone(),
        SpannerValue::List(_) => "[..]".to_owned(),
    }
}
