//! One stream, read from check to check.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anabranch_core::{
    ChangeBatch, ChangeReader, ChangeRef, Checkpoint, Next, Op, Partition, PartitionProgress, Position, Rank, RowRef,
    Source, SourceIdentity, StartFrom, Timestamp, ValueRef,
};

use super::{SourceUnderTest, Statement};

/// More than a server takes to send what it has, on a slow and busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// A transaction as it was read.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Read {
    pub(super) statements: Vec<Statement>,
    pub(super) ranks: Vec<Rank>,
    pub(super) end: Position,
    pub(super) commit_time: Option<Timestamp>,
}

/// A source, the position up to which it was read, and the rows that it has.
pub(super) struct Story<'a> {
    pub(super) target: &'a dyn SourceUnderTest,
    pub(super) source: Arc<dyn Source>,
    pub(super) identity: SourceIdentity,
    pub(super) partition: Partition,
    pub(super) at: Option<Position>,
    pub(super) rows: BTreeMap<i64, String>,
    next_id: i64,
}

impl<'a> Story<'a> {
    pub(super) async fn begin(target: &'a dyn SourceUnderTest) -> Self {
        let source = target.connect().await;
        let identity = source.prepare(None).await.expect("prepare");
        let partitions = source.partitions().await.expect("partitions");
        assert_eq!(partitions.len(), 1, "this suite is for sources of one partition");
        let tables = source.tables().await.expect("tables");
        let table = tables.iter().find(|t| t.name == target.table()).expect("the table among those of the source");
        let columns: Vec<_> = table.columns.iter().map(|c| c.name.as_str()).collect();
        assert_eq!((columns.as_slice(), table.key.as_slice()), (&["id", "body"][..], &[0][..]), "the table");
        let partition = partitions[0].clone();
        Self { target, source, identity, partition, at: None, rows: BTreeMap::new(), next_id: 1 }
    }

    /// Commits a transaction, and keeps account of the rows. Gives what is to be read of it.
    pub(super) async fn commit(&mut self, statements: Vec<Statement>) -> Vec<Statement> {
        let mut sent = Vec::with_capacity(statements.len());
        for statement in &statements {
            apply(&mut self.rows, statement);
            match statement {
                Statement::Rekey(old, new) if self.target.splits_key_updates() => {
                    sent.extend([Statement::Delete(*old), Statement::Insert(*new, self.rows[new].clone())]);
                }
                statement => sent.push(statement.clone()),
            }
        }
        self.target.commit(&statements).await;
        sent
    }

    /// Some transactions of different statements.
    pub(super) async fn commit_some(&mut self, count: usize) -> Vec<Vec<Statement>> {
        let mut all = Vec::new();
        for n in 0..count {
            let id = self.next_id;
            self.next_id += 3;
            let mut statements = vec![
                Statement::Insert(id, format!("it's {n}")),
                Statement::Insert(id + 1, String::new()),
                Statement::Update(id, format!("\\ \"ä\" \u{1f980} {n}")),
            ];
            match n % 3 {
                0 => statements.push(Statement::Rekey(id, id + 2)),
                1 => statements.push(Statement::Delete(id + 1)),
                _ => {}
            }
            all.push(self.commit(statements).await);
        }
        all
    }

    pub(super) fn fresh_id(&mut self) -> i64 {
        self.next_id += 1;
        self.next_id - 1
    }

    /// What a pipeline would have stored by now.
    pub(super) fn checkpoint(&self) -> Option<Checkpoint> {
        let progress = PartitionProgress { position: Some(self.at.clone()?), ..PartitionProgress::default() };
        let mut checkpoint = Checkpoint { identity: self.identity.clone(), ..Checkpoint::default() };
        checkpoint.partitions.insert(self.partition.id.clone(), progress);
        Some(checkpoint)
    }

    /// A reader through a new handle.
    pub(super) async fn open(&mut self, position: Option<Position>) -> Box<dyn ChangeReader> {
        self.open_from(StartFrom { position, ..StartFrom::default() }).await
    }

    pub(super) async fn open_from(&mut self, from: StartFrom) -> Box<dyn ChangeReader> {
        self.source = self.target.connect().await;
        self.source.prepare(self.checkpoint().as_ref()).await.expect("prepare");
        // A server may take a moment to notice that the last reader has gone.
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            match self.source.open(&self.partition, &from).await {
                Ok(reader) => return reader,
                Err(error) if error.kind() == anabranch_core::ErrorKind::Transient => {
                    assert!(tokio::time::Instant::now() < deadline, "open: {}", error.report());
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(error) => panic!("open: {}", error.report()),
            }
        }
    }

    /// Reads on from where the story is until `expected` came, checks that it did, and acknowledges it.
    pub(super) async fn read(&mut self, expected: &[Vec<Statement>]) -> Vec<Read> {
        let mut reader = self.open(self.at.clone()).await;
        let mut transcript = Transcript::default();
        while transcript.ended.len() < expected.len() {
            transcript.add(&next_batch(&mut *reader).await);
        }
        let read = transcript.ended;
        same(&read, expected);
        self.done(reader, &read).await;
        read
    }

    /// Everything read is done with: acknowledged, and the story goes on after it.
    pub(super) async fn done(&mut self, mut reader: Box<dyn ChangeReader>, read: &[Read]) {
        if let Some(last) = read.last() {
            reader.acknowledge(Some(&last.end)).await.expect("acknowledge");
            self.at = Some(last.end.clone());
        }
        reader.close().await.expect("close");
    }
}

/// The statements that were read are those that were committed.
pub(super) fn same(read: &[Read], expected: &[Vec<Statement>]) {
    let found: Vec<_> = read.iter().map(|t| t.statements.clone()).collect();
    assert_eq!(found, expected, "transactions (left: read)");
}

/// The next batch, within [`PATIENCE`].
pub(super) async fn next_batch(reader: &mut dyn ChangeReader) -> ChangeBatch {
    let next = tokio::time::timeout(PATIENCE, reader.next()).await.expect("a batch or a heartbeat in time");
    match next.unwrap_or_else(|e| panic!("next: {}", e.report())) {
        Next::Batch(batch) => batch,
        other => panic!("the reader gave {other:?}"),
    }
}

/// Puts batches together to transactions, and checks on the way what every batch must keep to.
#[derive(Default)]
pub(super) struct Transcript {
    pub(super) ended: Vec<Read>,
    open: Option<(Vec<u8>, Read)>,
    last_rank: Option<Rank>,
    last_end: Option<Position>,
    safe_time: Option<Timestamp>,
}

impl Transcript {
    pub(super) fn add(&mut self, batch: &ChangeBatch) {
        for piece in batch.pieces() {
            let prefix = piece.transaction.rank.to_vec();
            if piece.first {
                assert!(self.open.is_none(), "a transaction begins within another");
                let commit_time = piece.transaction.commit_time;
                assert!(commit_time.is_none() || commit_time > self.safe_time, "a commit at or before the safe time");
                let read = Read { statements: Vec::new(), ranks: Vec::new(), end: Position::default(), commit_time };
                self.open = Some((prefix.clone(), read));
            }
            let (of, read) = self.open.as_mut().expect("a transaction goes on that has not begun");
            assert_eq!(*of, prefix, "a transaction goes on under another rank");
            for change in piece.changes.clone().map(|i| batch.change(i as usize)) {
                assert!(self.last_rank.as_ref() < Some(&change.rank()), "the rank {:?} does not grow", change.rank());
                self.last_rank = Some(change.rank());
                if let Some(statement) = statement(change) {
                    read.statements.push(statement);
                    read.ranks.push(change.rank());
                }
            }
            if let (Some(end), Some((_, mut read))) = (&piece.end, self.open.take_if(|_| piece.end.is_some())) {
                assert!(Some(&end.rank) >= self.last_rank.as_ref(), "an end below a change of its transaction");
                self.last_rank = Some(end.rank.clone());
                read.end = end.clone();
                // Transactions without changes of the table (of the server's own) do not count.
                if !read.statements.is_empty() {
                    self.ended.push(read);
                }
            }
        }
        let end = &batch.end().rank;
        assert!(Some(end) >= self.last_rank.as_ref(), "the end of a batch is below what is in it");
        assert!(Some(end) >= self.last_end.as_ref().map(|p| &p.rank), "the end of a batch is below the last one's");
        self.last_end = Some(batch.end().clone());
        assert!(batch.safe_time().is_none() || batch.safe_time() >= self.safe_time, "the safe time goes back");
        self.safe_time = batch.safe_time().or(self.safe_time);
    }
}

/// What a change says; `None` for a message or a schema.
pub(super) fn statement(change: ChangeRef<'_>) -> Option<Statement> {
    let id = |row: RowRef<'_>| match row.get(0) {
        ValueRef::Int(id) => id,
        ValueRef::Text(id) => id.parse().expect("the id is a number"),
        other => panic!("the id is {other:?}"),
    };
    let body = |row: RowRef<'_>| match row.get(1) {
        ValueRef::Text(body) => body.to_owned(),
        other => panic!("the body is {other:?}"),
    };
    match (change.op(), change.old_row(), change.new_row()) {
        (Op::Insert, _, Some(new)) => Some(Statement::Insert(id(new), body(new))),
        (Op::Update, Some(old), Some(new)) if change.changes_key() => Some(Statement::Rekey(id(old), id(new))),
        (Op::Update, _, Some(new)) => Some(Statement::Update(id(new), body(new))),
        (Op::Delete, Some(old), _) => Some(Statement::Delete(id(old))),
        (Op::Message | Op::Schema, ..) => None,
        other => panic!("unexpected {other:?}"),
    }
}

pub(super) fn apply(rows: &mut BTreeMap<i64, String>, statement: &Statement) {
    match statement {
        Statement::Insert(id, body) => assert_eq!(rows.insert(*id, body.clone()), None, "{statement:?} twice"),
        Statement::Update(id, body) => {
            *rows.get_mut(id).unwrap_or_else(|| panic!("{statement:?} of no row")) = body.clone();
        }
        Statement::Rekey(old, new) => {
            let body = rows.remove(old).unwrap_or_else(|| panic!("{statement:?} of no row"));
            rows.insert(*new, body);
        }
        Statement::Delete(id) => assert!(rows.remove(id).is_some(), "{statement:?} of no row"),
    }
}
