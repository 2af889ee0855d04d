//! The reference source: a log of transactions in memory.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;

use super::reader::MemoryReader;
use super::tables::{MemoryTables, Row};
use crate::error::{Error, Result};
use crate::model::{
    Checkpoint, OldImage, Op, Partition, PartitionId, Position, Rank, SourceIdentity, TableName, TableSchema,
    Timestamp, Transaction, TruncateOptions, Value,
};
use crate::source::{ChangeReader, Marker, Snapshotter, Source, SourceInfo, SourceOrder, StartFrom};

/// A database in memory whose log can be read. Clones share it.
///
/// It has one partition and gives whole transactions in commit order. Positions are numbers of
/// transactions, from 1. Like a real one it forgets what was acknowledged: to resume before that
/// is an error.
#[derive(Debug, Clone)]
pub struct MemorySource {
    pub(super) shared: Arc<Shared>,
    pub(super) batch_changes: usize,
    pub(super) chunk_rows: usize,
    pub(super) heartbeat: Duration,
}

#[derive(Debug)]
pub(super) struct Shared {
    name: String,
    log: Mutex<Log>,
    pub(super) appended: Notify,
}

#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) tables: MemoryTables,
    settings: HashMap<TableName, Settings>,
    pub(super) transactions: Vec<LoggedTransaction>,
    /// No later transaction is committed at or before this time.
    pub(super) clock: Option<Timestamp>,
    /// The last transaction that a reader acknowledged.
    pub(super) acknowledged: u64,
    /// Counts readers: a newer one ends the one before.
    pub(super) readers: u64,
}

/// What the log says of a table's changes.
#[derive(Debug, Clone, Default)]
struct Settings {
    full_old_rows: bool,
    unsent_columns: HashSet<usize>,
}

#[derive(Debug)]
pub(super) struct LoggedTransaction {
    pub(super) transaction: Transaction,
    pub(super) changes: Vec<Logged>,
}

#[derive(Debug, Clone)]
pub(super) enum Logged {
    Change { op: Op, schema: Arc<TableSchema>, old: Option<(OldImage, Row)>, new: Option<Row> },
    Message { prefix: String, content: Vec<u8> },
}

impl MemorySource {
    /// An empty database of this name, by which a pipeline knows it again.
    pub fn new(name: impl Into<String>) -> Self {
        let shared = Shared { name: name.into(), log: Mutex::default(), appended: Notify::new() };
        Self { shared: Arc::new(shared), batch_changes: 1000, chunk_rows: 1000, heartbeat: Duration::from_secs(1) }
    }

    /// Adds an empty table.
    #[must_use]
    pub fn table(self, schema: TableSchema) -> Self {
        self.log().tables.set_schema(&Arc::new(schema), &mut Vec::new());
        self
    }

    /// Sends the full old row with every update and delete of this table; only the key, and of
    /// updates only if it changed, if not set. A table without a key always has full old rows.
    #[must_use]
    pub fn full_old_rows(self, table: &TableName) -> Self {
        self.log().settings.entry(table.clone()).or_default().full_old_rows = true;
        self
    }

    /// Leaves these columns out of updates that do not change them, like PostgreSQL does with TOAST values.
    #[must_use]
    pub fn unsent_columns(self, table: &TableName, columns: &[usize]) -> Self {
        self.log().settings.entry(table.clone()).or_default().unsent_columns.extend(columns);
        self
    }

    /// How many changes a batch has at most; longer transactions are split. 1000 if not set.
    #[must_use]
    pub fn batch_changes(mut self, changes: usize) -> Self {
        self.batch_changes = changes.max(1);
        self
    }

    /// How many rows a chunk of a snapshot has; 1000 if not set.
    #[must_use]
    pub fn chunk_rows(mut self, rows: usize) -> Self {
        self.chunk_rows = rows.max(1);
        self
    }

    /// After how much quiet a reader gives an empty batch; a second if not set.
    #[must_use]
    pub fn heartbeat(mut self, every: Duration) -> Self {
        self.heartbeat = every;
        self
    }

    /// A transaction to fill and to commit.
    pub fn transaction(&self) -> MemoryTransaction<'_> {
        MemoryTransaction { source: self, steps: Vec::new() }
    }

    /// The tables as they are now.
    pub fn tables(&self) -> MemoryTables {
        self.log().tables.clone()
    }

    /// The position after the last transaction.
    pub fn end(&self) -> Position {
        position(self.log().transactions.len() as u64)
    }

    /// How many transactions were committed.
    pub fn committed(&self) -> u64 {
        self.log().transactions.len() as u64
    }

    /// The number of the last transaction that was acknowledged; 0 for none.
    pub fn acknowledged(&self) -> u64 {
        self.log().acknowledged
    }

    pub(super) fn log(&self) -> MutexGuard<'_, Log> {
        self.shared.log()
    }
}

impl Shared {
    pub(super) fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A transaction that is being filled. It does nothing until [`MemoryTransaction::commit`].
#[derive(Debug)]
#[must_use]
pub struct MemoryTransaction<'a> {
    source: &'a MemorySource,
    steps: Vec<MemoryStep>,
}

#[derive(Debug)]
enum MemoryStep {
    Insert(TableName, Row),
    Update(TableName, Row, Row),
    Delete(TableName, Row),
    Truncate(TableName),
    Schema(TableSchema),
    Message(String, Vec<u8>),
}

impl MemoryTransaction<'_> {
    /// A new row.
    pub fn insert(self, table: &TableName, row: impl Into<Row>) -> Self {
        self.step(MemoryStep::Insert(table.clone(), row.into()))
    }

    /// Another row, complete, in place of the one with this key (the whole row where there is no key).
    pub fn update(self, table: &TableName, key: impl Into<Row>, row: impl Into<Row>) -> Self {
        self.step(MemoryStep::Update(table.clone(), key.into(), row.into()))
    }

    /// No more row with this key (the whole row where there is no key).
    pub fn delete(self, table: &TableName, key: impl Into<Row>) -> Self {
        self.step(MemoryStep::Delete(table.clone(), key.into()))
    }

    /// No more rows.
    pub fn truncate(self, table: &TableName) -> Self {
        self.step(MemoryStep::Truncate(table.clone()))
    }

    /// Another schema for a table, or a new table.
    pub fn schema(self, schema: TableSchema) -> Self {
        self.step(MemoryStep::Schema(schema))
    }

    /// A message in the log.
    pub fn message(self, prefix: &str, content: &[u8]) -> Self {
        self.step(MemoryStep::Message(prefix.to_owned(), content.to_vec()))
    }

    /// Commits; readers see it. Gives the number of the transaction, from 1.
    ///
    /// # Errors
    /// [`Rejected`](crate::ErrorKind::Rejected) if a row to insert is there, or one to change is
    /// not: then nothing is committed.
    pub fn commit(self) -> Result<u64> {
        let mut log = self.source.log();
        let mut effects = Vec::new();
        let mut changes = Vec::new();
        for step in self.steps {
            match log.execute(step, &mut effects) {
                Ok(logged) => changes.push(logged),
                Err(error) => {
                    log.tables.undo(&effects);
                    return Err(error);
                }
            }
        }
        let later = log.clock.map(|t| Timestamp::from_micros(t.as_micros() + 1));
        log.clock = later.max(Some(Timestamp::now()));
        let number = log.transactions.len() as u64 + 1;
        let transaction =
            Transaction { rank: prefix(number).to_vec().into(), commit_time: log.clock, ..Transaction::default() };
        log.transactions.push(LoggedTransaction { transaction, changes });
        drop(log);
        self.source.shared.appended.notify_waiters();
        Ok(number)
    }

    fn step(mut self, step: MemoryStep) -> Self {
        self.steps.push(step);
        self
    }
}

impl Log {
    /// Applies a step to the tables, and tells how the log writes it.
    fn execute(&mut self, step: MemoryStep, effects: &mut Vec<super::tables::Effect>) -> Result<Logged> {
        let (op, table, key, mut new) = match step {
            MemoryStep::Insert(table, row) => (Op::Insert, table, None, Some(row)),
            MemoryStep::Update(table, key, row) => (Op::Update, table, Some(key), Some(row)),
            MemoryStep::Delete(table, key) => (Op::Delete, table, Some(key), None),
            MemoryStep::Truncate(table) => (Op::Truncate(TruncateOptions::default()), table, None, None),
            MemoryStep::Message(prefix, content) => return Ok(Logged::Message { prefix, content }),
            MemoryStep::Schema(schema) => {
                let schema = Arc::new(schema);
                self.tables.set_schema(&schema, effects);
                return Ok(Logged::Change { op: Op::Schema, schema, old: None, new: None });
            }
        };
        let no_table = || Error::config(&table, "the source has no such table");
        let schema = Arc::clone(self.tables.schema(&table).ok_or_else(no_table)?);
        if new.as_ref().is_some_and(|row| row.len() != schema.columns.len()) {
            return Err(Error::config(&table, format!("the row {new:?} has not one value for each column")));
        }
        let before = key.map(|key| self.tables.find(&schema, key)).transpose()?;
        self.tables.apply_rows(op, &schema, before.clone(), new.clone(), effects)?;

        let settings = self.settings.get(&table).cloned().unwrap_or_default();
        if let (Some(before), Some(new)) = (&before, &mut new) {
            for &at in &settings.unsent_columns {
                if before[at] == new[at] {
                    new[at] = Value::Unchanged;
                }
            }
        }
        let old = before.and_then(|before| old_image(&schema, &settings, before, new.as_ref()));
        Ok(Logged::Change { op, schema, old, new })
    }
}

/// How much of the old row goes into the log.
fn old_image(schema: &TableSchema, settings: &Settings, mut old: Row, new: Option<&Row>) -> Option<(OldImage, Row)> {
    if settings.full_old_rows || schema.key.is_empty() {
        return Some((OldImage::Full, old));
    }
    let same_key = |new: &Row| schema.key.iter().all(|&k| new[usize::from(k)] == old[usize::from(k)]);
    if new.is_some_and(same_key) {
        return None;
    }
    for (_, value) in old.iter_mut().enumerate().filter(|(at, _)| !schema.is_key(*at)) {
        *value = Value::Unchanged;
    }
    Some((OldImage::Key, old))
}

#[async_trait]
impl Source for MemorySource {
    fn info(&self) -> SourceInfo {
        SourceInfo { name: "memory", order: SourceOrder::Transactions }
    }

    async fn prepare(&self, resume: Option<&Checkpoint>) -> Result<SourceIdentity> {
        let identity = SourceIdentity::default().with("database", self.shared.name.clone());
        match resume.map(|c| &c.identity).filter(|stored| !stored.0.is_empty() && **stored != identity) {
            Some(other) => {
                Err(Error::fatal(format!("the checkpoint is of the source {other:?}, this is {identity:?}")))
            }
            None => Ok(identity),
        }
    }

    async fn check(&self, resume: Option<&Checkpoint>) -> Result<Vec<String>> {
        self.prepare(resume).await.map(|_| Vec::new())
    }

    async fn tables(&self) -> Result<Vec<TableSchema>> {
        let tables = MemorySource::tables(self);
        Ok(tables.names().filter_map(|name| tables.schema(name)).map(|schema| TableSchema::clone(schema)).collect())
    }

    async fn partitions(&self) -> Result<Vec<Partition>> {
        Ok(vec![Partition::root(partition())])
    }

    async fn open(&self, _partition: &Partition, from: &StartFrom) -> Result<Box<dyn ChangeReader>> {
        Ok(Box::new(MemoryReader::new(self, from)?))
    }

    fn snapshotter(&self) -> Option<&dyn Snapshotter> {
        Some(self)
    }

    fn marker(&self) -> Option<&dyn Marker> {
        Some(self)
    }

    fn describe(&self, position: &Position) -> String {
        number(position).map_or_else(|_| format!("{:?}", position.rank), |n| format!("transaction {n}"))
    }
}

#[async_trait]
impl Marker for MemorySource {
    async fn mark(&self) -> Result<BTreeMap<PartitionId, Position>> {
        Ok(BTreeMap::from([(partition(), self.end())]))
    }
}

/// The one partition.
pub(super) fn partition() -> PartitionId {
    PartitionId::new("memory")
}

/// The rank prefix of transaction `number`.
pub(super) fn prefix(number: u64) -> [u8; 8] {
    number.to_be_bytes()
}

/// The position after transaction `number`.
pub(super) fn position(number: u64) -> Position {
    Position::new(Rank::of_end(&prefix(number)), number.to_string())
}

/// The last whole transaction at or before a position; 0, the start of the log, for an empty token.
pub(super) fn number(position: &Position) -> Result<u64> {
    if position.token.is_empty() {
        return Ok(0);
    }
    let text = std::str::from_utf8(&position.token).ok();
    text.and_then(|t| t.parse().ok()).ok_or_else(|| Error::fatal("this position is not of a source in memory"))
}
