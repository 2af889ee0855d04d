//! A source of several partitions that gives what a test hands it, the same again from any place.
//!
//! ```
//! use anabranch_core::SourceOrder;
//! use anabranch_testkit::scripted::{Scripted, Tx};
//! let source = Scripted::new(SourceOrder::CommitTimePerPartition, &["a", "b"]);
//! source.give("a", &[Tx::new(1).insert(7, "x")]);
//! source.give("b", &[Tx::new(1).from(2).insert(8, "y")]);
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anabranch_core::{
    BatchBuilder, ChangeBatch, ChangeReader, Checkpoint, Column, DataType, Error, Marker, Next, OldImage, Op,
    Partition, PartitionId, Position, Rank, Result, Source, SourceIdentity, SourceInfo, SourceOrder, StartFrom,
    TableName, TableSchema, Timestamp, Transaction, ValueRef,
};
use async_trait::async_trait;
use tokio::sync::Notify;

/// After how much quiet a reader gives an empty batch.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// The table `items` of an id and a text.
pub fn items() -> TableSchema {
    TableSchema {
        name: TableName::new("public", "items"),
        columns: vec![Column::new("id", DataType::Int64), Column::new("text", DataType::Text { max_chars: None })],
        key: vec![0],
    }
}

/// What a partition has of a transaction. Its number is its rank, and, unless set, its commit time in microseconds.
#[derive(Debug, Clone)]
pub struct Tx {
    number: u64,
    first: u64,
    changes: Vec<(Op, i64, String)>,
    ends: bool,
    total: Option<u64>,
    time: Option<i64>,
}

impl Tx {
    /// Without changes; its end is given with it.
    pub fn new(number: u64) -> Self {
        Self { number, first: 1, changes: Vec::new(), ends: true, total: None, time: Some(number as i64) }
    }

    /// Its first change has this number.
    #[must_use]
    pub fn from(mut self, first: u64) -> Self {
        self.first = first;
        self
    }

    /// It goes on in a later batch of the partition.
    #[must_use]
    pub fn open(mut self) -> Self {
        self.ends = false;
        self
    }

    /// How many changes it has over all partitions.
    #[must_use]
    pub fn of(mut self, total: u64) -> Self {
        self.total = Some(total);
        self
    }

    /// Another commit time than its number, or none.
    #[must_use]
    pub fn at(mut self, micros: Option<i64>) -> Self {
        self.time = micros;
        self
    }

    /// A new row.
    #[must_use]
    pub fn insert(self, id: i64, text: impl Into<String>) -> Self {
        self.change(Op::Insert, id, text)
    }

    /// Another text for a row.
    #[must_use]
    pub fn update(self, id: i64, text: impl Into<String>) -> Self {
        self.change(Op::Update, id, text)
    }

    /// The end of a row.
    #[must_use]
    pub fn delete(self, id: i64) -> Self {
        self.change(Op::Delete, id, "")
    }

    fn change(mut self, op: Op, id: i64, text: impl Into<String>) -> Self {
        self.changes.push((op, id, text.into()));
        self
    }
}

/// The source. Clones are one.
#[derive(Debug, Clone)]
pub struct Scripted {
    shared: Arc<Shared>,
    order: SourceOrder,
}

#[derive(Debug)]
struct Shared {
    schema: Arc<TableSchema>,
    roots: Vec<PartitionId>,
    logs: Mutex<BTreeMap<PartitionId, Log>>,
    grown: Notify,
}

#[derive(Debug, Default)]
struct Log {
    batches: Vec<ChangeBatch>,
    /// The batch in which the transaction began that has not ended.
    begun: Option<usize>,
    children: Option<Vec<Partition>>,
    acknowledged: Option<Position>,
}

impl Scripted {
    /// With these partitions from the beginning.
    pub fn new(order: SourceOrder, roots: &[&str]) -> Self {
        let roots: Vec<PartitionId> = roots.iter().map(|name| PartitionId::new(*name)).collect();
        let logs = roots.iter().map(|id| (id.clone(), Log::default())).collect();
        let shared = Shared { schema: Arc::new(items()), roots, logs: Mutex::new(logs), grown: Notify::new() };
        Self { shared: Arc::new(shared), order }
    }

    /// One batch with these transactions, which its partition has then up to the commit time of the last
    /// that ended.
    ///
    /// # Panics
    /// If the batch is none that a source may give.
    pub fn give(&self, partition: &str, transactions: &[Tx]) {
        let safe = transactions.iter().rev().find(|tx| tx.ends).map(|tx| tx.number);
        self.give_safe(partition, transactions, safe);
    }

    /// As [`Scripted::give`], with another safe time.
    ///
    /// # Panics
    /// If the batch is none that a source may give.
    pub fn give_safe(&self, partition: &str, transactions: &[Tx], safe: Option<u64>) {
        let id = PartitionId::new(partition);
        let mut logs = self.logs();
        let log = logs.entry(id.clone()).or_default();
        let here = log.batches.len();
        let mut batch = BatchBuilder::new(id);
        let schema = batch.schema(&self.shared.schema);
        let mut end = log.batches.last().map_or_else(Position::default, |b| b.end().clone());
        for tx in transactions {
            let rank = tx.number.to_be_bytes();
            let commit_time = tx.time.map(Timestamp::from_micros);
            let made =
                Transaction { rank: rank.to_vec().into(), commit_time, total: tx.total, ..Transaction::default() };
            batch.begin(made, tx.first);
            for (op, row, text) in &tx.changes {
                batch.change(*op, schema);
                if *op == Op::Delete {
                    batch.old_row(OldImage::Key)
                } else {
                    batch.new_row()
                }
                batch.push(ValueRef::Int(*row));
                batch.push(if *op == Op::Delete { ValueRef::Unchanged } else { ValueRef::Text(text) });
            }
            if tx.ends {
                // Within a batch the reading resumes at its beginning, or where the transaction began.
                end = Position::new(Rank::of_end(&rank), token(log.begun.take().unwrap_or(here)));
                batch.commit(end.clone());
            } else {
                let begun = *log.begun.get_or_insert(here);
                let last = tx.first + tx.changes.len() as u64 - 1;
                end = Position::new(Rank::of_change(&rank, last), token(begun));
            }
        }
        if log.begun.is_none() {
            end.token = token(here + 1).into();
        }
        let safe = safe.map(|n| Timestamp::from_micros(n as i64));
        log.batches.push(batch.finish(end, safe).expect("a batch"));
        drop(logs);
        self.shared.grown.notify_waiters();
    }

    /// The partition ends with what it has, and these go on where it ended.
    pub fn close(&self, partition: &str, children: &[Partition]) {
        let mut logs = self.logs();
        for child in children {
            logs.entry(child.id.clone()).or_default();
        }
        logs.entry(PartitionId::new(partition)).or_default().children = Some(children.to_vec());
        drop(logs);
        self.shared.grown.notify_waiters();
    }

    /// What was acknowledged of a partition last.
    pub fn acknowledged(&self, partition: &str) -> Option<Position> {
        self.logs().get(partition).and_then(|log| log.acknowledged.clone())
    }

    fn logs(&self) -> MutexGuard<'_, BTreeMap<PartitionId, Log>> {
        self.shared.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A child of these partitions.
pub fn child(name: &str, parents: &[&str]) -> Partition {
    let parents = parents.iter().map(|name| PartitionId::new(*name)).collect();
    Partition { id: PartitionId::new(name), parents, start: None }
}

fn token(batch: usize) -> Vec<u8> {
    batch.to_string().into_bytes()
}

#[async_trait]
impl Source for Scripted {
    fn info(&self) -> SourceInfo {
        SourceInfo { name: "scripted", order: self.order }
    }

    async fn prepare(&self, _: Option<&Checkpoint>) -> Result<SourceIdentity> {
        Ok(SourceIdentity::default().with("script", "1"))
    }

    async fn check(&self, _: Option<&Checkpoint>) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    async fn tables(&self) -> Result<Vec<TableSchema>> {
        Ok(vec![items()])
    }

    async fn partitions(&self) -> Result<Vec<Partition>> {
        Ok(self.shared.roots.iter().cloned().map(Partition::root).collect())
    }

    async fn open(&self, partition: &Partition, from: &StartFrom) -> Result<Box<dyn ChangeReader>> {
        let token = from.position.as_ref().map_or(&b""[..], |p| &p.token);
        let next = match std::str::from_utf8(token) {
            Ok("") => 0,
            Ok(text) => text.parse().map_err(|e| Error::fatal("this position is not of this script").because(e))?,
            Err(e) => return Err(Error::fatal("this position is not of this script").because(e)),
        };
        Ok(Box::new(Reader { source: self.clone(), partition: partition.id.clone(), next }))
    }

    fn marker(&self) -> Option<&dyn Marker> {
        Some(self)
    }
}

#[async_trait]
impl Marker for Scripted {
    async fn mark(&self) -> Result<BTreeMap<PartitionId, Position>> {
        let logs = self.logs();
        let open = logs.iter().filter(|(_, log)| log.children.is_none());
        Ok(open.filter_map(|(id, log)| Some((id.clone(), log.batches.last()?.end().clone()))).collect())
    }
}

struct Reader {
    source: Scripted,
    partition: PartitionId,
    next: usize,
}

impl Reader {
    /// Nothing is awaited: dropping the caller loses nothing.
    fn take(&mut self, heartbeat: bool) -> Result<Option<Next>> {
        let logs = self.source.logs();
        let Some(log) = logs.get(&self.partition) else {
            return Err(Error::fatal(format!("the script has no partition {}", self.partition)));
        };
        if let Some(batch) = log.batches.get(self.next) {
            self.next += 1;
            return Ok(Some(Next::Batch(batch.clone())));
        }
        if let Some(children) = &log.children {
            return Ok(Some(Next::Closed { children: children.clone() }));
        }
        let Some(last) = log.batches.last().filter(|_| heartbeat) else { return Ok(None) };
        let empty = BatchBuilder::new(self.partition.clone());
        empty.finish(last.end().clone(), last.safe_time()).map(Next::Batch).map(Some)
    }
}

#[async_trait]
impl ChangeReader for Reader {
    async fn next(&mut self) -> Result<Next> {
        let shared = Arc::clone(&self.source.shared);
        loop {
            // Asked for before looking: what is given between the look and the wait wakes it too.
            let grown = shared.grown.notified();
            if let Some(next) = self.take(false)? {
                return Ok(next);
            }
            if tokio::time::timeout(HEARTBEAT, grown).await.is_err()
                && let Some(next) = self.take(true)?
            {
                return Ok(next);
            }
        }
    }

    async fn acknowledge(&mut self, through: Option<&Position>) -> Result<()> {
        if let (Some(through), Some(log)) = (through, self.source.logs().get_mut(&self.partition)) {
            log.acknowledged = Some(through.clone());
        }
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
