//! A run of window files, and ways to write and to read it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anabranch_core::{
    BatchBuilder, ChangeBatch, ChangeReader, Claim, Column, DataType, Lane, LanePurpose, Next, Op, Part, Partition,
    PartitionId, Position, Progress, ProgressStore, Rank, Relay, Selection, Sink, SinkWriter, Source, SourceIdentity,
    StartFrom, TableName, TableSchema, Timestamp, Transaction, Unit, UnitId, UnitKind, UnitSlice, Value,
};
use anabranch_files::{WindowFiles, WindowSource};
use tempfile::TempDir;

pub(crate) const PIPELINE: &str = "orders";

/// More than anything takes on a slow and busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A folder with a run of window files.
pub(crate) struct Folder {
    pub(crate) files: WindowFiles,
    pub(crate) path: PathBuf,
    _folder: TempDir,
}

impl Folder {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("windows");
        Self { files: files_in(&path), path, _folder: folder }
    }

    pub(crate) fn source(&self) -> WindowSource {
        self.files.source().poll(Duration::from_millis(50))
    }

    /// The files of a shard's folder, in order.
    pub(crate) fn names(&self, shard: &str) -> Vec<String> {
        names_in(&self.path.join("r").join(shard))
    }

    pub(crate) fn file(&self, shard: &str, name: &str) -> PathBuf {
        self.path.join("r").join(shard).join(name)
    }
}

pub(crate) fn files_in(path: &Path) -> WindowFiles {
    WindowFiles::new(path.to_path_buf()).run("r")
}

/// The window files of a folder, in order.
pub(crate) fn names_in(folder: &Path) -> Vec<String> {
    let Ok(found) = std::fs::read_dir(folder) else { return Vec::new() };
    let names = found.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| !name.starts_with('.')).collect();
    names.sort();
    names
}

pub(crate) fn table() -> Arc<TableSchema> {
    let columns = vec![
        Column::new("id", DataType::Int64),
        Column::new("body", DataType::Text { max_chars: None }),
        Column::new("extra", DataType::Bytes),
    ];
    Arc::new(TableSchema { name: TableName::new("public", "orders"), columns, key: vec![0] })
}

/// A second of the story, as a commit time.
pub(crate) fn second(n: i64) -> Timestamp {
    Timestamp::from_micros((1_700_000_000 + n) * 1_000_000)
}

/// A transaction of inserts: its number (its rank), its commit time, and ids with their shards.
#[derive(Debug, Clone)]
pub(crate) struct Tx {
    pub(crate) number: u64,
    pub(crate) time: Option<Timestamp>,
    pub(crate) rows: Vec<(i64, Option<&'static str>)>,
}

pub(crate) fn tx(number: u64, at: i64, rows: &[(i64, Option<&'static str>)]) -> Tx {
    Tx { number, time: Some(second(at)), rows: rows.to_vec() }
}

pub(crate) fn prefix(number: u64) -> Vec<u8> {
    number.to_be_bytes().to_vec()
}

/// One unit of these transactions, with the progress of the last.
pub(crate) fn unit(transactions: &[Tx]) -> Unit {
    let mut batch = BatchBuilder::new(PartitionId::new("slot"));
    let mut end = Position::default();
    for t in transactions {
        let transaction = Transaction {
            rank: prefix(t.number).into(),
            commit_time: t.time,
            tag: Some(format!("tag {}", t.number).into()),
            total: Some(t.rows.len() as u64),
            ..Transaction::default()
        };
        batch.begin(transaction, 1);
        for (id, shard) in &t.rows {
            let schema = batch.schema(&table_of_thread());
            batch.change(Op::Insert, schema);
            batch.new_row();
            let row = [Value::Int(*id), Value::Text(format!("row \"{id}\"\n")), Value::Bytes(vec![0, 255].into())];
            row.iter().for_each(|v| batch.push(v.as_ref()));
            if let Some(shard) = shard {
                batch.shard(shard);
            }
        }
        end = Position::new(Rank::of_end(&prefix(t.number)), t.number.to_string());
        batch.commit(end.clone());
    }
    let batch = Arc::new(batch.finish(end.clone(), None).unwrap());
    let changes = Selection::Range(0..batch.len() as u32);
    Unit {
        id: UnitId(1),
        kind: UnitKind::Stream,
        part: Part::Whole,
        slices: vec![UnitSlice { batch, changes }],
        transactions: transactions.len() as u64,
        progress: vec![Progress { partition: PartitionId::new("slot"), position: end, safe_time: None }],
    }
}

/// A change of a transaction that another partition of the source has: this number of it, with this id.
pub(crate) fn rest_of(t: &Tx, partition: &str, sequence: u64, id: i64) -> Unit {
    let mut batch = BatchBuilder::new(PartitionId::new(partition));
    let transaction = Transaction { rank: prefix(t.number).into(), commit_time: t.time, ..Transaction::default() };
    batch.begin(transaction, sequence);
    let schema = batch.schema(&table_of_thread());
    batch.change(Op::Insert, schema);
    batch.new_row();
    let row = [Value::Int(id), Value::Text(String::new()), Value::Null];
    row.iter().for_each(|v| batch.push(v.as_ref()));
    t.rows.iter().find_map(|(_, shard)| *shard).iter().for_each(|shard| batch.shard(shard));
    let end = Position::new(Rank::of_change(&prefix(t.number), sequence), "");
    let batch = Arc::new(batch.finish(end.clone(), None).unwrap());
    Unit {
        id: UnitId(2),
        kind: UnitKind::Stream,
        part: Part::Whole,
        slices: vec![UnitSlice { batch, changes: Selection::Range(0..1) }],
        transactions: 0,
        progress: vec![Progress { partition: PartitionId::new(partition), position: end, safe_time: None }],
    }
}

/// Schemas are told apart by pointer: one for all.
fn table_of_thread() -> Arc<TableSchema> {
    static TABLE: std::sync::OnceLock<Arc<TableSchema>> = std::sync::OnceLock::new();
    Arc::clone(TABLE.get_or_init(table))
}

pub(crate) fn claim(epoch: u64) -> Claim {
    let identity = SourceIdentity::default().with("slot", "x");
    Claim { pipeline: PIPELINE.into(), epoch, lanes: 1, identity }
}

pub(crate) fn lane(epoch: u64) -> Lane {
    Lane { pipeline: PIPELINE.into(), index: 0, count: 1, epoch, purpose: LanePurpose::Stream }
}

/// A run that writes, of an epoch of its own.
pub(crate) struct Run {
    pub(crate) files: WindowFiles,
    pub(crate) writer: Box<dyn SinkWriter>,
    pub(crate) epoch: u64,
}

impl Run {
    pub(crate) async fn begin(files: &WindowFiles, epoch: u64) -> Self {
        let files = files.clone();
        files.take_over(&claim(epoch)).await.unwrap();
        let writer = files.open(lane(epoch)).await.unwrap();
        Self { files, writer, epoch }
    }

    /// Writes these as one unit, durably.
    pub(crate) async fn write(&mut self, transactions: &[Tx]) {
        let _ = self.writer.write(&unit(transactions)).await.unwrap();
        self.writer.flush().await.unwrap();
    }

    pub(crate) async fn safe_time(&self, time: Timestamp) {
        self.files.safe_time(self.epoch, time).await.unwrap();
    }
}

/// A change that was read: its transaction, its number in it, its id, its shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) rank: Rank,
    pub(crate) id: i64,
    pub(crate) time: Option<Timestamp>,
    pub(crate) tag: Option<String>,
    pub(crate) shard: Option<String>,
}

pub(crate) fn reads(batch: &ChangeBatch) -> Vec<Read> {
    let read = |change: anabranch_core::ChangeRef<'_>| {
        let row = change.new_row().or(change.old_row()).unwrap();
        let anabranch_core::ValueRef::Int(id) = row.get(0) else { panic!("the id is {:?}", row.get(0)) };
        let transaction = &change.piece().transaction;
        Read {
            rank: change.rank(),
            id,
            time: transaction.commit_time,
            tag: transaction.tag.as_ref().map(|t| t.to_string()),
            shard: change.shard().map(|s| s.to_string()),
        }
    };
    batch.changes().map(read).collect()
}

pub(crate) async fn open(source: &WindowSource, shard: &str, from: Option<Position>) -> Box<dyn ChangeReader> {
    let from = StartFrom { position: from, ..StartFrom::default() };
    source.open(&Partition::root(PartitionId::new(shard)), &from).await.unwrap()
}

pub(crate) async fn next_batch(reader: &mut dyn ChangeReader) -> ChangeBatch {
    match tokio::time::timeout(PATIENCE, reader.next()).await.expect("in time").unwrap() {
        Next::Batch(batch) => batch,
        other => panic!("the reader gave {other:?}"),
    }
}

/// Reads until `count` changes came and the last transaction has ended. With the last end.
pub(crate) async fn read(reader: &mut dyn ChangeReader, count: usize) -> (Vec<Read>, Position) {
    let (mut all, mut end) = (Vec::new(), None);
    while all.len() < count || end.is_none() {
        let batch = next_batch(reader).await;
        all.extend(reads(&batch));
        if let Some(last) = batch.pieces().last() {
            end = last.end.clone();
        }
    }
    assert_eq!(all.len(), count, "{all:?}");
    (all, end.unwrap())
}

pub(crate) fn ids(read: &[Read]) -> Vec<i64> {
    read.iter().map(|r| r.id).collect()
}
