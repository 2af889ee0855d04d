//! A source of one's own: a counter that ticks.
//!
//! ```sh
//! cargo run --example custom_source
//! ```
//!
//! Every number is a transaction that inserts one row. The source can resume (its position is the
//! number), gives heartbeats (an empty batch with a new safe time) while it is quiet, and marks its
//! present, so that a pipeline can be drained. What the reader promises stands at its methods.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anabranch::memory::MemorySink;
use anabranch::pipeline::SnapshotMode;
use anabranch::{
    BatchBuilder, ChangeReader, Checkpoint, Column, DataType, Error, Marker, Next, Op, Partition, PartitionId,
    Pipeline, Position, Rank, Result, Source, SourceIdentity, SourceInfo, SourceOrder, StartFrom, TableName,
    TableSchema, Timestamp, Transaction, ValueRef,
};
use tokio::sync::watch;
use tokio::time::timeout;

/// After how much quiet a heartbeat is given. Safe time, and so the lag that `status` shows, moves
/// at least this often.
const QUIET: Duration = Duration::from_millis(200);

/// How many rows a batch has at most. A batch should have at most a few MiB.
const BATCH: u64 = 1000;

/// A counter, and the table it pretends to insert into.
#[derive(Debug)]
struct Counter {
    ticks: watch::Receiver<u64>,
    table: Arc<TableSchema>,
}

impl Counter {
    fn new(ticks: watch::Receiver<u64>) -> Self {
        let columns = vec![Column::new("id", DataType::Int64), Column::new("square", DataType::Int64)];
        Self { ticks, table: Arc::new(TableSchema { name: TableName::new("", "ticks"), columns, key: vec![0] }) }
    }
}

#[anabranch::async_trait]
impl Source for Counter {
    fn info(&self) -> SourceInfo {
        SourceInfo { name: "counter", order: SourceOrder::Transactions }
    }

    /// The identity is kept in the checkpoint: progress of one database must never be used with another.
    async fn prepare(&self, resume: Option<&Checkpoint>) -> Result<SourceIdentity> {
        let identity = SourceIdentity::default().with("counter", "example");
        match resume {
            Some(checkpoint) if checkpoint.identity != identity => Err(Error::fatal("this is another counter")),
            _ => Ok(identity),
        }
    }

    /// Nothing has to be created here; otherwise: the statements that would.
    async fn check(&self, resume: Option<&Checkpoint>) -> Result<Vec<String>> {
        self.prepare(resume).await.map(|_| Vec::new())
    }

    async fn tables(&self) -> Result<Vec<TableSchema>> {
        Ok(vec![TableSchema::clone(&self.table)])
    }

    async fn partitions(&self) -> Result<Vec<Partition>> {
        Ok(vec![Partition::root(partition())])
    }

    async fn open(&self, _partition: &Partition, from: &StartFrom) -> Result<Box<dyn ChangeReader>> {
        let given = from.position.as_ref().map_or(Ok(0), number)?;
        println!("reading from {}", given + 1);
        Ok(Box::new(CounterReader { ticks: self.ticks.clone(), table: Arc::clone(&self.table), given }))
    }

    fn marker(&self) -> Option<&dyn Marker> {
        Some(self)
    }

    fn describe(&self, position: &Position) -> String {
        number(position).map_or_else(|e| e.to_string(), |n| n.to_string())
    }
}

#[anabranch::async_trait]
impl Marker for Counter {
    async fn mark(&self) -> Result<BTreeMap<PartitionId, Position>> {
        Ok(BTreeMap::from([(partition(), position(*self.ticks.borrow()))]))
    }
}

struct CounterReader {
    ticks: watch::Receiver<u64>,
    table: Arc<TableSchema>,
    /// The last number that was given.
    given: u64,
}

#[anabranch::async_trait]
impl ChangeReader for CounterReader {
    /// Cancel safe: what it has given is noted only when nothing more is awaited.
    async fn next(&mut self) -> Result<Next> {
        let given = self.given;
        // More numbers, or quiet for long: then the batch is a heartbeat.
        if let Ok(Err(_)) = timeout(QUIET, self.ticks.wait_for(|ticks| *ticks > given)).await {
            // The counter is gone: nothing will ever follow.
            return Ok(Next::Closed { children: Vec::new() });
        }
        // The time is taken before the number: what ticks later has a later time. That is the rule
        // by which the batch's safe time is safe.
        let safe_time = Timestamp::now();
        let last = (*self.ticks.borrow()).min(given + BATCH);
        let mut batch = BatchBuilder::new(partition());
        let table = batch.schema(&self.table);
        for n in given + 1..=last {
            let transaction = Transaction {
                rank: n.to_be_bytes().to_vec().into(),
                commit_time: Some(safe_time),
                ..Transaction::default()
            };
            batch.begin(transaction, 1);
            batch.change(Op::Insert, table);
            batch.new_row();
            batch.push(ValueRef::Int(n as i64));
            batch.push(ValueRef::Int((n * n) as i64));
            batch.commit(position(n));
        }
        let batch = batch.finish(position(last), Some(safe_time))?;
        self.given = last;
        Ok(Next::Batch(batch))
    }

    /// Everything through here is durable downstream: a real source lets its log go.
    async fn acknowledge(&mut self, _through: Option<&Position>) -> Result<()> {
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        println!("read up to {}", self.given);
        Ok(())
    }
}

fn partition() -> PartitionId {
    PartitionId::new("counter")
}

/// The position after number `n`: its rank is compared, its token resumes.
fn position(n: u64) -> Position {
    Position::new(Rank::of_end(&n.to_be_bytes()), n.to_string())
}

fn number(position: &Position) -> Result<u64> {
    // Within the first transaction there is no place yet to resume from but the start.
    if position.token.is_empty() {
        return Ok(0);
    }
    let text = std::str::from_utf8(&position.token).ok();
    text.and_then(|t| t.parse().ok()).ok_or_else(|| Error::fatal("this position is not a counter's"))
}

#[tokio::main]
async fn main() -> Result<()> {
    let ticks = watch::Sender::new(3_u64);
    let sink = MemorySink::new();
    for _ in 0..2 {
        let pipeline = Pipeline::builder("ticks").source(Counter::new(ticks.subscribe())).sink(sink.clone());
        // There is nothing to copy: everything that ever was is in the stream.
        let pipeline = pipeline.snapshot(SnapshotMode::Never).create_tables(true).build()?;
        let mut running = pipeline.start().await?;
        ticks.send_modify(|n| *n += 4);
        let drained = running.drain(None).await?;
        let status = running.status();
        let safe_time = status.safe_time.map(|t| t.to_string());
        println!("marker {:?} reached: {}, safe time {safe_time:?}", drained.marker, drained.drained);
        running.stop().await?;
    }
    for row in sink.rows(&TableName::new("", "ticks")) {
        println!("{row:?}");
    }
    Ok(())
}
