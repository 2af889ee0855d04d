//! What every transactional [`Sink`] with a [`ProgressStore`](anabranch_core::ProgressStore) must do.
//!
//! The author of a sink implements [`SinkUnderTest`] for an empty database and calls [`run`]. A
//! script of transactions is made on a [`MemorySource`], whose tables tell what the target must
//! have after each of them.

mod apply;
mod random;
mod transactions;

use std::sync::Arc;

use anabranch_core::memory::MemorySource;
use anabranch_core::{
    Claim, Error, Lane, LaneProgress, LanePurpose, Position, Result, Sink, SinkWriter, SourceIdentity, StartFrom,
    TableSchema, Unit, Value, Written,
};
use async_trait::async_trait;

use crate::units;

/// A sink, and a way around it to see what it did.
#[async_trait]
pub trait SinkUnderTest: Send + Sync {
    /// Another handle to the target, as another process would get it.
    async fn connect(&self) -> Arc<dyn Sink>;

    /// Creates an empty table in the target, with the key of `table` as its primary key, and a
    /// unique constraint on each of the columns `unique`. Text columns must tell case and every
    /// character apart.
    async fn create_table(&self, table: &TableSchema, unique: &[&str]);

    /// The rows that another connection sees now, in any order; the values in the order of the
    /// columns of `table`, each as the canonical text of its type
    /// (see [`DataType`](anabranch_core::DataType)), `None` for NULL.
    async fn read_table(&self, table: &TableSchema) -> Vec<Vec<Option<String>>>;
}

/// Runs every check.
///
/// # Panics
/// With what the sink did wrong.
pub async fn run(target: &dyn SinkUnderTest) {
    run_with(target, Abilities::default()).await;
}

/// What a target can do. Everything, unless it says otherwise in its documentation.
#[derive(Debug, Clone, Copy)]
pub struct Abilities {
    /// A unit takes effect whole or not at all, with its progress. If not, it stores progress after
    /// the rows, and applying a unit again must lead to the same end.
    pub atomic: bool,
    /// It holds tables without a key.
    pub keyless: bool,
    /// It holds every finite floating-point number.
    pub wide_floats: bool,
    /// It carries out two transactions at a time. An emulator may give one of them up instead.
    pub concurrent: bool,
}

impl Default for Abilities {
    fn default() -> Self {
        Self { atomic: true, keyless: true, wide_floats: true, concurrent: true }
    }
}

/// Runs every check that a target of these abilities must pass.
///
/// # Panics
/// With what the sink did wrong.
pub async fn run_with(target: &dyn SinkUnderTest, abilities: Abilities) {
    apply::every_operation(target).await;
    apply::typed_values(target, abilities.wide_floats).await;
    apply::many_changes_of_one_row(target).await;
    apply::unique_values_change_hands(target).await;
    apply::columns_that_were_not_sent(target).await;
    if abilities.keyless {
        apply::equal_rows_without_a_key(target).await;
    }
    apply::a_column_is_added(target).await;
    transactions::progress_is_stored_with_the_rows(target).await;
    if abilities.atomic {
        transactions::parts_take_effect_with_the_last(target).await;
        transactions::parts_without_the_last_are_gone(target).await;
        transactions::a_rejected_unit_leaves_nothing(target).await;
    } else {
        transactions::interrupted_parts_are_applied_again(target).await;
        transactions::a_rejected_unit_leaves_no_progress(target).await;
    }
    transactions::an_old_writer_is_fenced(target).await;
    transactions::a_snapshot_is_fenced_and_stores_no_progress(target).await;
    transactions::an_interrupted_copy_goes_on(target).await;
    transactions::lanes_are_apart(target, abilities.concurrent).await;
    random::histories(target, abilities.keyless).await;
}

/// A script: its source, a writer to the target, and how far it is.
struct Script<'a> {
    target: &'a dyn SinkUnderTest,
    name: &'static str,
    source: MemorySource,
    tables: Vec<TableSchema>,
    sink: Arc<dyn Sink>,
    writer: Box<dyn SinkWriter>,
    pipeline: Arc<str>,
    epoch: u64,
    lanes: u32,
    read: Option<Position>,
}

impl<'a> Script<'a> {
    /// Takes `tables`, under names of this script's own, with unique emails.
    async fn new(target: &'a dyn SinkUnderTest, name: &'static str, tables: &mut [TableSchema]) -> Self {
        Self::over(target, name, tables, MemorySource::new(name)).await
    }

    async fn over(
        target: &'a dyn SinkUnderTest,
        name: &'static str,
        tables: &mut [TableSchema],
        mut source: MemorySource,
    ) -> Self {
        for table in tables.iter_mut() {
            table.name.name = format!("{name}_{}", table.name.name);
            let unique: &[&str] = if table.index_of("email").is_some() { &["email"] } else { &[] };
            target.create_table(table, unique).await;
            source = source.table(table.clone());
        }
        let sink = target.connect().await;
        let pipeline: Arc<str> = format!("conformance {name}").into();
        let lanes = sink.info().max_lanes.min(2);
        let mut script = Self {
            target,
            name,
            source,
            tables: tables.to_vec(),
            writer: Box::new(NoWriter),
            sink,
            pipeline,
            epoch: 0,
            lanes,
            read: None,
        };
        let before = script.take_over().await;
        assert_eq!(before, [], "{name}: a new pipeline has progress");
        script
    }

    /// Takes the pipeline over with the next epoch, through a new handle, and opens a writer of lane 0.
    async fn take_over(&mut self) -> Vec<LaneProgress> {
        self.epoch += 1;
        self.sink = self.target.connect().await;
        let before = claim(&*self.sink, &self.claim()).await.expect("take over with a newer epoch");
        self.writer = self.sink.open(self.lane(0)).await.expect("open a lane");
        before
    }

    fn claim(&self) -> Claim {
        let identity = SourceIdentity::default().with("database", self.name);
        Claim { pipeline: Arc::clone(&self.pipeline), epoch: self.epoch, lanes: self.lanes, identity }
    }

    fn lane(&self, index: u32) -> Lane {
        let pipeline = Arc::clone(&self.pipeline);
        Lane { pipeline, index, count: self.lanes, epoch: self.epoch, purpose: LanePurpose::Stream }
    }

    /// One unit for each transaction since the last call.
    async fn units(&mut self) -> Vec<Unit> {
        let from = StartFrom { position: self.read.clone(), ..StartFrom::default() };
        let end = self.source.end();
        let batches = units::read_source(&self.source, &from, &end).await;
        self.read = Some(end);
        units::by_transaction(&batches)
    }

    /// Writes a unit that must be durable at once, or after a flush.
    async fn write(&mut self, unit: &Unit) {
        let written = self.writer.write(unit).await;
        let written = written.unwrap_or_else(|e| panic!("{}: the sink refused a unit: {}", self.name, e.report()));
        assert!(written.rejected.is_empty(), "{}: rejected {:?}", self.name, written.rejected);
        self.writer.flush().await.expect("flush");
    }

    /// Writes every transaction since the last call as one unit, and compares.
    async fn write_merged(&mut self) {
        let units = self.units().await;
        self.write(&units::merge(&units)).await;
        self.same_as_source("after a merged unit").await;
    }

    /// Every table of the target has the rows of the source.
    async fn same_as_source(&self, when: &str) {
        let source = self.source.tables();
        for table in &self.tables {
            let expected = source.rows(&table.name).iter().map(|row| row.iter().map(text).collect()).collect();
            self.rows_are(table, expected, when).await;
        }
    }

    /// A table of the target has these rows.
    async fn rows_are(&self, table: &TableSchema, mut expected: Vec<Vec<Option<String>>>, when: &str) {
        let mut found = self.target.read_table(table).await;
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "{}: rows of {} {when} (left: target)", self.name, table.name);
    }

    /// What lane 0 has stored.
    async fn stored(&self) -> LaneProgress {
        let sink = self.target.connect().await;
        let store = sink.progress().expect("a progress store");
        let lanes = store.read(&self.pipeline).await.expect("read progress");
        lanes.into_iter().find(|l| l.lane == 0).expect("progress of lane 0")
    }

    /// The progress stored is that of `unit`.
    async fn stored_is(&self, unit: &Unit, when: &str) {
        let stored = self.stored().await;
        let expected = unit.progress.iter().map(|p| (p.partition.clone(), p.clone())).collect();
        assert_eq!(stored.partitions, expected, "{}: stored progress {when}", self.name);
    }
}

async fn claim(sink: &dyn Sink, claim: &Claim) -> Result<Vec<LaneProgress>> {
    sink.progress().expect("a transactional sink stores progress").take_over(claim).await
}

/// The canonical text of a value.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::Unchanged => panic!("a row of the source has no value in a column"),
        Value::Bool(v) => Some(if *v { "t" } else { "f" }.to_owned()),
        Value::Int(v) => Some(v.to_string()),
        Value::Float(v) => Some(v.to_string()),
        Value::Text(v) => Some(v.clone()),
        Value::Bytes(v) => Some(v.iter().fold("\\x".to_owned(), |text, byte| format!("{text}{byte:02x}"))),
    }
}

/// Stands in until the pipeline is taken over.
struct NoWriter;

#[async_trait]
impl SinkWriter for NoWriter {
    async fn write(&mut self, _unit: &Unit) -> Result<Written> {
        Err(Error::fatal("no writer is open"))
    }

    async fn flush(&mut self) -> Result<()> {
        Err(Error::fatal("no writer is open"))
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
