//! A random history of committed transactions, as the batches of its partitions.

use std::sync::Arc;

use anabranch_core::{
    BatchBuilder, ChangeBatch, Column, DataType, OldImage, Op, Partition, PartitionId, Position, Rank, Result,
    TableName, TableSchema, Timestamp, Transaction, TruncateOptions, ValueRef,
};
use bytes::Bytes;

use super::Dice;

/// What a history looks like.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Repeats the history.
    pub seed: u64,
    /// Partitions at the beginning.
    pub partitions: usize,
    /// Transactions.
    pub transactions: usize,
    /// Changes of the largest transaction.
    pub max_changes: usize,
    /// Changes of the largest batch.
    pub max_batch: usize,
    /// Different keys of a table.
    pub keys: usize,
    /// Per 100 transactions, splits and merges of partitions before them.
    pub lineage: usize,
    /// Per 100 changes, truncates, schema changes, messages and changes of keys.
    pub special: usize,
    /// Whether all partitions close at the end.
    pub closes: bool,
    /// Whether the source tells where a transaction ends in a partition.
    pub ends: bool,
    /// Whether the source tells how many changes a transaction has.
    pub totals: bool,
}

impl Shape {
    /// One partition, and little of everything.
    pub fn of_seed(seed: u64) -> Self {
        Self {
            seed,
            partitions: 1,
            transactions: 20,
            max_changes: 8,
            max_batch: 6,
            keys: 5,
            lineage: 0,
            special: 0,
            closes: false,
            ends: true,
            totals: false,
        }
    }
}

/// A change, as the oracle knows it.
#[derive(Debug, Clone)]
pub struct Change {
    /// The place of its transaction in commit order.
    pub transaction: usize,
    /// Its number within the transaction.
    pub sequence: u64,
    /// When it was committed.
    pub commit_time: Timestamp,
    /// Its rank.
    pub rank: Rank,
    /// What happened.
    pub op: Op,
    /// The table; see [`History::tables`].
    pub table: usize,
    /// The key before, or the only one.
    pub key: i64,
    /// The key after.
    pub new_key: i64,
    /// The shard.
    pub shard: Option<String>,
}

/// One partition.
#[derive(Debug)]
pub struct Log {
    /// Its name and lineage.
    pub partition: Partition,
    /// What its reader gives, whole.
    pub batches: Vec<ChangeBatch>,
    /// Its changes in its order; the batches hold them one after another.
    pub changes: Vec<Change>,
    /// Whether it closes after its last batch.
    pub closes: bool,
}

/// A history and how its source gives it.
#[derive(Debug)]
pub struct History {
    /// The partitions, parents before children.
    pub logs: Vec<Log>,
    /// The tables: two with keys, one without, one more with a key.
    pub tables: Vec<Arc<TableSchema>>,
}

/// The table without a key.
pub const KEYLESS: usize = 2;

const STEP: i64 = 10;

impl History {
    /// The history of this shape. The last batch of each partition is a heartbeat.
    ///
    /// # Errors
    /// Never, unless the generator is wrong.
    pub fn new(shape: &Shape) -> Result<Self> {
        let mut writer = Writer::new(shape);
        for transaction in 0..shape.transactions {
            writer.transaction(transaction);
        }
        writer.finish()
    }
}

struct Writer<'s> {
    shape: &'s Shape,
    dice: Dice,
    now: i64,
    logs: Vec<Draft>,
    live: Vec<usize>,
    tables: Vec<Arc<TableSchema>>,
}

struct Draft {
    partition: Partition,
    changes: Vec<(Change, u64)>,
    closed_at: Option<i64>,
}

impl<'s> Writer<'s> {
    fn new(shape: &'s Shape) -> Self {
        let table = |name: &str, key: Vec<u16>| {
            let columns = vec![Column::new("id", DataType::Int64), Column::new("v", DataType::Int64)];
            Arc::new(TableSchema { name: TableName::new("public", name), columns, key })
        };
        let tables = vec![table("a", vec![0]), table("b", vec![0]), table("keyless", vec![]), table("pinned", vec![0])];
        let mut writer =
            Self { shape, dice: Dice::new(shape.seed), now: 1_000, logs: Vec::new(), live: Vec::new(), tables };
        for _ in 0..shape.partitions.max(1) {
            writer.open(Vec::new());
        }
        writer
    }

    fn open(&mut self, parents: Vec<usize>) {
        let id = PartitionId::new(format!("p{}", self.logs.len()));
        let start = (!parents.is_empty()).then(|| Position::new(Rank::of_change(&prefix(self.now, 0), 0), "start"));
        let parents = parents.iter().map(|&p| self.logs[p].partition.id.clone()).collect();
        self.live.push(self.logs.len());
        self.logs.push(Draft { partition: Partition { id, parents, start }, changes: Vec::new(), closed_at: None });
    }

    fn close(&mut self) -> usize {
        let at = self.dice.below(self.live.len());
        let closed = self.live.swap_remove(at);
        self.logs[closed].closed_at = Some(self.now - 1);
        closed
    }

    fn transaction(&mut self, transaction: usize) {
        self.now += self.dice.below(3) as i64 * STEP;
        if self.dice.percent(self.shape.lineage) {
            self.now += STEP;
            let parent = self.close();
            if self.live.is_empty() || self.dice.percent(50) {
                self.open(vec![parent]);
                self.open(vec![parent]);
            } else {
                let other = self.close();
                self.open(vec![parent, other]);
            }
        }
        let largest = if self.dice.percent(10) { self.shape.max_changes } else { 3.min(self.shape.max_changes) };
        let total = 1 + self.dice.below(largest) as u64;
        let few = 1 + self.dice.below(self.live.len());
        for sequence in 1..=total {
            let log = self.live[self.dice.below(few)];
            let change = self.change(transaction, sequence);
            self.logs[log].changes.push((change, total));
        }
    }

    fn change(&mut self, transaction: usize, sequence: u64) -> Change {
        let special = self.dice.percent(self.shape.special);
        let table = self.dice.below(self.tables.len());
        let op = match (special, self.dice.below(8)) {
            (true, 0) => Op::Truncate(TruncateOptions::default()),
            (true, 1) => Op::Schema,
            (true, 2 | 3) => Op::Message,
            (true, _) => Op::Update,
            (false, 0..4) => Op::Insert,
            (false, 4..6) => Op::Update,
            (false, _) => Op::Delete,
        };
        let key = self.dice.below(self.shape.keys) as i64;
        let new_key = if special && table != KEYLESS { self.dice.below(self.shape.keys) as i64 } else { key };
        let shard = self.dice.percent(80).then(|| format!("s{}", self.dice.below(4)));
        let commit_time = Timestamp::from_micros(self.now);
        let rank = Rank::of_change(&prefix(self.now, transaction), sequence);
        Change { transaction, sequence, commit_time, rank, op, table, key, new_key, shard }
    }

    fn finish(mut self) -> Result<History> {
        let end = self.now + 10 * STEP;
        let drafts = std::mem::take(&mut self.logs);
        let mut logs = Vec::with_capacity(drafts.len());
        for draft in drafts {
            let batches = self.batches(&draft, draft.closed_at.unwrap_or(end))?;
            let closes = draft.closed_at.is_some() || self.shape.closes;
            let changes = draft.changes.into_iter().map(|(c, _)| c).collect();
            logs.push(Log { partition: draft.partition, batches, changes, closes });
        }
        Ok(History { logs, tables: self.tables })
    }

    fn batches(&mut self, draft: &Draft, end: i64) -> Result<Vec<ChangeBatch>> {
        let mut batches = Vec::new();
        let mut token = draft.partition.start.as_ref().map(|p| p.token.clone()).unwrap_or_default();
        let mut position = Position::new(Rank::default(), token.clone());
        let mut proven = draft.changes.first().map_or(end, |(c, _)| c.commit_time.as_micros()) - 1;
        let mut at = 0;
        while at < draft.changes.len() {
            if self.dice.percent(25) {
                let builder = BatchBuilder::new(draft.partition.id.clone());
                batches.push(builder.finish(position.clone(), Some(Timestamp::from_micros(proven)))?);
            }
            let size = 1 + self.dice.below(self.shape.max_batch);
            let cut = (at + size).min(draft.changes.len());
            let mut builder = BatchBuilder::new(draft.partition.id.clone());
            let schemas: Vec<usize> = self.tables.iter().map(|t| builder.schema(t)).collect();
            // Now and then the end of a transaction comes in a batch of its own.
            let late = self.shape.ends && cut < draft.changes.len() && self.dice.percent(15);
            for i in at..cut {
                self.write(&mut builder, &schemas, draft, i);
                position = Position::new(draft.changes[i].0.rank.clone(), token.clone());
                if self.shape.ends && is_last(draft, i) && !(late && i + 1 == cut) {
                    position = end_of(&draft.changes[i].0);
                    token = position.token.clone();
                    builder.commit(position.clone());
                }
            }
            let last = &draft.changes[cut - 1].0;
            let next = draft.changes.get(cut).map_or(end, |(c, _)| c.commit_time.as_micros());
            if !(late && is_last(draft, cut - 1)) {
                proven = next - 1;
            }
            let told = self.dice.percent(60).then(|| Timestamp::from_micros(proven));
            batches.push(builder.finish(position.clone(), told)?);
            if late && is_last(draft, cut - 1) {
                let mut builder = BatchBuilder::new(draft.partition.id.clone());
                position = end_of(last);
                token = position.token.clone();
                builder.begin(self.header(last, draft.changes[cut - 1].1), last.sequence + 1);
                builder.commit(position.clone());
                proven = next - 1;
                batches.push(builder.finish(position.clone(), Some(Timestamp::from_micros(proven)))?);
            }
            at = cut;
        }
        let rank = Rank::of_end(&prefix(end, 0));
        let builder = BatchBuilder::new(draft.partition.id.clone());
        batches.push(builder.finish(Position::new(rank, "end"), Some(Timestamp::from_micros(end)))?);
        Ok(batches)
    }

    fn header(&self, change: &Change, total: u64) -> Transaction {
        Transaction {
            rank: prefix(change.commit_time.as_micros(), change.transaction),
            commit_time: Some(change.commit_time),
            total: self.shape.totals.then_some(total),
            ..Transaction::default()
        }
    }

    fn write(&mut self, builder: &mut BatchBuilder, schemas: &[usize], draft: &Draft, at: usize) {
        let (change, total) = &draft.changes[at];
        let goes_on = !builder.is_empty()
            && draft.changes[at - 1].0.transaction == change.transaction
            && draft.changes[at - 1].0.sequence + 1 == change.sequence;
        if !goes_on {
            builder.begin(self.header(change, *total), change.sequence);
        }
        if change.op == Op::Message {
            builder.message("note", b"hello");
            return;
        }
        builder.change(change.op, schemas[change.table]);
        let row = |builder: &mut BatchBuilder, key: i64| {
            builder.push(ValueRef::Int(key));
            builder.push(ValueRef::Int(at as i64));
        };
        let keyless = change.table == KEYLESS;
        if change.op == Op::Delete || (change.op == Op::Update && (keyless || change.key != change.new_key)) {
            builder.old_row(if keyless { OldImage::Full } else { OldImage::Key });
            row(builder, change.key);
        }
        if matches!(change.op, Op::Insert | Op::Update) {
            builder.new_row();
            row(builder, change.new_key);
        }
        if let Some(shard) = &change.shard {
            builder.shard(shard);
        }
    }
}

fn is_last(draft: &Draft, at: usize) -> bool {
    draft.changes.get(at + 1).is_none_or(|(next, _)| next.transaction != draft.changes[at].0.transaction)
}

fn end_of(change: &Change) -> Position {
    let prefix = prefix(change.commit_time.as_micros(), change.transaction);
    Position::new(Rank::of_end(&prefix), format!("{}/{}", change.commit_time.as_micros(), change.transaction))
}

fn prefix(time: i64, transaction: usize) -> Bytes {
    let mut bytes = time.to_be_bytes().to_vec();
    bytes.extend_from_slice(&(transaction as u64).to_be_bytes());
    bytes.into()
}
