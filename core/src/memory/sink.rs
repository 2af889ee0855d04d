//! The reference sink.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::tables::{Effect, MemoryTables, Row};
use crate::checkpointer::{Checkpointer, MemoryCheckpointer};
use crate::dead_letter::{DeadLetterStore, MemoryDeadLetters};
use crate::error::{Error, Result};
use crate::mapping::{Contract, Fidelity, TargetSchema, TargetTable};
use crate::model::{Column, Progress, TableName, TableSchema, Unit, UnitKind};
use crate::sink::{Claim, Lane, LaneProgress, LanePurpose, ProgressStore, Sink, SinkInfo, SinkWriter, Written};
use crate::verifier::Verifier;

/// A transactional sink in memory. Clones are connections to one database.
///
/// It is strict: a row that is inserted twice, or changed while it is missing, is `Rejected`, so
/// that a change applied twice or left out does not go unnoticed. Tables that do not exist are
/// created by their first change.
#[derive(Debug, Clone)]
pub struct MemorySink {
    state: Arc<Mutex<State>>,
    checkpointer: MemoryCheckpointer,
    dead_letters: MemoryDeadLetters,
    max_lanes: u32,
}

#[derive(Debug, Default)]
struct State {
    tables: MemoryTables,
    history: Vec<Commit>,
    pipelines: HashMap<Arc<str>, Taken>,
}

/// Who writes for a pipeline, and how far each lane is.
#[derive(Debug, Default)]
struct Taken {
    epoch: u64,
    lanes: BTreeMap<u32, LaneProgress>,
}

/// A target transaction.
#[derive(Debug, Clone)]
pub struct Commit {
    /// The lane that committed it.
    pub lane: u32,
    /// Stream or snapshot.
    pub kind: UnitKind,
    /// Source transactions that ended in it.
    pub transactions: u64,
    /// The progress stored with it.
    pub progress: Vec<Progress>,
    effects: Vec<Effect>,
}

impl Commit {
    /// What it did to rows, in order: the table, the row before and the row after. A truncate and a
    /// change of the schema are not listed.
    pub fn rows(&self) -> impl Iterator<Item = (&TableName, Option<&Row>, Option<&Row>)> {
        self.effects.iter().filter_map(|effect| match effect {
            Effect::Row { table, before, after, .. } => Some((table, before.as_ref(), after.as_ref())),
            Effect::Table { .. } => None,
        })
    }
}

impl Default for MemorySink {
    fn default() -> Self {
        Self::new()
    }
}

impl MemorySink {
    /// An empty database.
    pub fn new() -> Self {
        Self {
            state: Arc::default(),
            checkpointer: MemoryCheckpointer::new(),
            dead_letters: MemoryDeadLetters::new(),
            max_lanes: 16,
        }
    }

    /// How many lanes may write at a time; 16 if not set.
    #[must_use]
    pub fn max_lanes(mut self, lanes: u32) -> Self {
        self.max_lanes = lanes;
        self
    }

    /// The tables as a reader sees them now.
    pub fn tables(&self) -> MemoryTables {
        self.state().tables.clone()
    }

    /// The rows of a table as a reader sees them now.
    pub fn rows(&self, table: &TableName) -> Vec<Row> {
        self.state().tables.rows(table)
    }

    /// Every target transaction so far, in commit order.
    pub fn history(&self) -> Vec<Commit> {
        self.state().history.clone()
    }

    /// Shows `see` each commit with the tables as a reader saw them after it.
    pub fn replay(&self, mut see: impl FnMut(&Commit, &MemoryTables)) {
        let mut tables = MemoryTables::default();
        for commit in self.history() {
            commit.effects.iter().for_each(|effect| tables.redo(effect));
            see(&commit, &tables);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Sink for MemorySink {
    fn info(&self) -> SinkInfo {
        SinkInfo { name: "memory", transactional: true, max_lanes: self.max_lanes, schemas: true }
    }

    async fn open(&self, lane: Lane) -> Result<Box<dyn SinkWriter>> {
        self.state().check(&lane)?;
        Ok(Box::new(MemoryWriter { sink: self.clone(), lane, parts: Vec::new() }))
    }

    fn progress(&self) -> Option<&dyn ProgressStore> {
        Some(self)
    }

    fn checkpointer(&self) -> Option<Arc<dyn Checkpointer>> {
        Some(Arc::new(self.checkpointer.clone()))
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetterStore>> {
        Some(Arc::new(self.dead_letters.clone()))
    }

    fn target(&self) -> Option<&dyn TargetSchema> {
        Some(self)
    }

    fn verifier(&self) -> Option<&dyn Verifier> {
        Some(self)
    }
}

struct MemoryWriter {
    sink: MemorySink,
    lane: Lane,
    /// Parts of a target transaction whose last part has not come yet.
    parts: Vec<Unit>,
}

#[async_trait]
impl SinkWriter for MemoryWriter {
    async fn write(&mut self, unit: &Unit) -> Result<Written> {
        let mut state = self.sink.state();
        state.check(&self.lane)?;
        self.parts.push(unit.clone());
        if !unit.part.ends() {
            return Ok(Written::accepted());
        }
        state.commit(&self.lane, &std::mem::take(&mut self.parts))?;
        Ok(Written::durable())
    }

    async fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

impl State {
    fn check(&self, lane: &Lane) -> Result<()> {
        match self.pipelines.get(&lane.pipeline).map(|taken| taken.epoch) {
            Some(epoch) if epoch == lane.epoch => Ok(()),
            Some(epoch) => {
                Err(Error::fenced(format!("epoch {epoch} writes for {} now, not {}", lane.pipeline, lane.epoch)))
            }
            None => Err(Error::fenced(format!("{} has not been taken over", lane.pipeline))),
        }
    }

    /// Applies the parts with their progress, or nothing.
    fn commit(&mut self, lane: &Lane, parts: &[Unit]) -> Result<()> {
        let mut effects = Vec::new();
        for change in parts.iter().flat_map(Unit::changes) {
            if let Err(error) = self.tables.apply(change, &mut effects) {
                self.tables.undo(&effects);
                return Err(error);
            }
        }
        let Some(last) = parts.last() else { return Ok(()) };
        let transactions = parts.iter().map(|p| p.transactions).sum();
        if lane.purpose == LanePurpose::Stream {
            let taken = self.pipelines.entry(Arc::clone(&lane.pipeline)).or_default();
            let stored = taken.lanes.entry(lane.index).or_default();
            for progress in &last.progress {
                stored.partitions.insert(progress.partition.clone(), progress.clone());
            }
            stored.counters.changes += parts.iter().map(Unit::row_changes).sum::<u64>();
            stored.counters.transactions += transactions;
        }
        let progress = last.progress.clone();
        self.history.push(Commit { lane: lane.index, kind: last.kind, transactions, progress, effects });
        Ok(())
    }

    /// Changes tables outside of any unit.
    fn administer(&mut self, change: impl FnOnce(&mut MemoryTables, &mut Vec<Effect>) -> Result<()>) -> Result<()> {
        let mut effects = Vec::new();
        change(&mut self.tables, &mut effects)?;
        let (kind, progress) = (UnitKind::Snapshot, Vec::new());
        self.history.push(Commit { lane: 0, kind, transactions: 0, progress, effects });
        Ok(())
    }
}

#[async_trait]
impl ProgressStore for MemorySink {
    async fn take_over(&self, claim: &Claim) -> Result<Vec<LaneProgress>> {
        let mut state = self.state();
        let taken = state.pipelines.entry(Arc::clone(&claim.pipeline)).or_default();
        if taken.epoch > claim.epoch {
            let (found, pipeline) = (taken.epoch, &claim.pipeline);
            return Err(Error::fenced(format!("epoch {found} writes for {pipeline} now, not {}", claim.epoch)));
        }
        let before = taken.lanes.values().cloned().collect();
        taken.epoch = claim.epoch;
        for lane in 0..claim.lanes {
            let stored = taken.lanes.entry(lane).or_default();
            (stored.lane, stored.lanes, stored.identity) = (lane, claim.lanes, claim.identity.clone());
        }
        Ok(before)
    }

    async fn read(&self, pipeline: &str) -> Result<Vec<LaneProgress>> {
        Ok(self.state().pipelines.get(pipeline).map(|t| t.lanes.values().cloned().collect()).unwrap_or_default())
    }
}

#[async_trait]
impl TargetSchema for MemorySink {
    async fn describe(&self, name: &TableName) -> Result<Option<TargetTable>> {
        Ok(self.state().tables.schema(name).map(|schema| TargetTable {
            schema: TableSchema::clone(schema),
            unique: Vec::new(),
            references: Vec::new(),
            required: Vec::new(),
            warnings: Vec::new(),
        }))
    }

    fn contract(&self, column: &Column, _existing: Option<&Column>) -> Contract {
        Contract::new(column.native.clone(), Fidelity::Exact)
    }

    fn create_statement(&self, table: &TableSchema) -> Result<String> {
        let columns: Vec<_> = table.columns.iter().map(|c| format!("{} {}", c.name, c.native)).collect();
        Ok(format!("CREATE TABLE {} ({})", table.name, columns.join(", ")))
    }

    async fn create(&self, table: &TableSchema) -> Result<()> {
        self.state().administer(|tables, effects| match tables.schema(&table.name) {
            Some(_) => Err(Error::config(&table.name, "the table exists")),
            None => {
                tables.set_schema(&Arc::new(table.clone()), effects);
                Ok(())
            }
        })
    }

    async fn clear(&self, name: &TableName) -> Result<()> {
        self.state().administer(|tables, effects| match tables.schema(name).cloned() {
            Some(schema) => {
                let truncate = crate::model::Op::Truncate(Default::default());
                tables.apply_rows(truncate, &schema, None, None, effects)
            }
            None => Ok(()),
        })
    }

    async fn is_empty(&self, name: &TableName) -> Result<bool> {
        Ok(self.state().tables.rows(name).is_empty())
    }
}
