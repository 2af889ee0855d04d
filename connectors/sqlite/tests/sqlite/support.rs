//! Units by hand, and a file to apply them to.

use std::path::PathBuf;
use std::sync::Arc;

use anabranch_core::{
    BatchBuilder, ChangeBatch, Claim, Column, DataType, Lane, LanePurpose, OldImage, Op, Part, PartitionId, Position,
    Progress, ProgressStore, Rank, Result, Selection, Sink, SinkWriter, SourceIdentity, TableName, TableSchema,
    Timestamp, Transaction, TruncateOptions, Unit, UnitId, UnitKind, UnitSlice, Value,
};
use anabranch_sqlite::Sqlite;
use rusqlite::Connection;

pub(crate) const PIPELINE: &str = "orders-dr";
pub(crate) const UNCHANGED: Value = Value::Unchanged;
pub(crate) const NULL: Value = Value::Null;

pub(crate) struct Target {
    pub(crate) sqlite: Sqlite,
    pub(crate) path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Target {
    /// A file with these tables.
    pub(crate) fn new(ddl: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("target.db");
        let target = Self { sqlite: Sqlite::open(&path), path, _folder: folder };
        target.look().execute_batch(ddl).unwrap();
        target
    }

    /// A connection of its own, as an application would have it.
    pub(crate) fn look(&self) -> Connection {
        Connection::open(&self.path).unwrap()
    }

    /// Takes over with epoch 1 and opens lane 0.
    pub(crate) async fn writer(&self) -> Box<dyn SinkWriter> {
        self.sqlite.take_over(&claim(1)).await.unwrap();
        self.sqlite.open(lane(1)).await.unwrap()
    }

    /// Each row of a query as text: `1|a|NULL`.
    pub(crate) fn rows(&self, sql: &str) -> Vec<String> {
        rows(&self.look(), sql)
    }
}

pub(crate) fn rows(conn: &Connection, sql: &str) -> Vec<String> {
    use rusqlite::types::ValueRef;
    let mut select = conn.prepare(sql).unwrap();
    let width = select.column_count();
    let text = |v: ValueRef<'_>| match v {
        ValueRef::Null => "NULL".to_owned(),
        ValueRef::Integer(v) => v.to_string(),
        ValueRef::Real(v) => format!("{v:?}"),
        ValueRef::Text(v) => String::from_utf8(v.to_vec()).unwrap(),
        ValueRef::Blob(v) => format!("x{v:02x?}"),
    };
    select
        .query_map([], |row| Ok((0..width).map(|i| text(row.get_ref(i).unwrap())).collect::<Vec<_>>().join("|")))
        .unwrap()
        .map(|row| row.unwrap())
        .collect()
}

pub(crate) fn claim(epoch: u64) -> Claim {
    let identity = SourceIdentity::default().with("slot", "orders_dr");
    Claim { pipeline: PIPELINE.into(), epoch, lanes: 1, identity }
}

pub(crate) fn lane(epoch: u64) -> Lane {
    Lane { pipeline: PIPELINE.into(), index: 0, count: 1, epoch, purpose: LanePurpose::Stream }
}

pub(crate) fn text() -> DataType {
    DataType::Text { max_chars: None }
}

/// A table of `public` with these columns, of which the first `key` ones are the key.
pub(crate) fn table(name: &str, columns: &[(&str, DataType)], key: u16) -> Arc<TableSchema> {
    Arc::new(TableSchema {
        name: TableName::new("public", name),
        columns: columns.iter().map(|(n, t)| Column::new(*n, t.clone())).collect(),
        key: (0..key).collect(),
    })
}

/// `items(id, code, note)`, key `id`.
pub(crate) fn items() -> Arc<TableSchema> {
    table("items", &[("id", DataType::Int64), ("code", text()), ("note", text())], 1)
}

/// `items` with a unique `code`.
pub(crate) const ITEMS: &str = "CREATE TABLE items (id INTEGER PRIMARY KEY, code TEXT UNIQUE, note TEXT)";

pub(crate) fn row<const N: usize>(values: [Value; N]) -> Vec<Value> {
    values.to_vec()
}

pub(crate) fn item(id: i64, code: &str, note: &str) -> Vec<Value> {
    row([id.into(), code.into(), note.into()])
}

#[derive(Clone)]
pub(crate) enum Do {
    Insert(Arc<TableSchema>, Vec<Value>),
    Update(Arc<TableSchema>, Vec<Value>),
    /// With an old image.
    Change(Arc<TableSchema>, OldImage, Vec<Value>, Vec<Value>),
    Delete(Arc<TableSchema>, OldImage, Vec<Value>),
    Truncate(Arc<TableSchema>),
    Schema(Arc<TableSchema>),
    Message,
}

fn build(n: u64, changes: &[Do], first: u64, ends: bool) -> ChangeBatch {
    let mut b = BatchBuilder::new(PartitionId::new("slot"));
    let rank = n.to_be_bytes();
    b.begin(Transaction { rank: rank.to_vec().into(), ..Default::default() }, first);
    let push = |b: &mut BatchBuilder, values: &[Value]| values.iter().for_each(|v| b.push(v.as_ref()));
    for change in changes {
        match change {
            Do::Insert(t, new) | Do::Update(t, new) => {
                let at = b.schema(t);
                b.change(if matches!(change, Do::Insert(..)) { Op::Insert } else { Op::Update }, at);
                b.new_row();
                push(&mut b, new);
            }
            Do::Change(t, image, old, new) => {
                let at = b.schema(t);
                b.change(Op::Update, at);
                b.old_row(*image);
                push(&mut b, old);
                b.new_row();
                push(&mut b, new);
            }
            Do::Delete(t, image, old) => {
                let at = b.schema(t);
                b.change(Op::Delete, at);
                b.old_row(*image);
                push(&mut b, old);
            }
            Do::Truncate(t) => {
                let at = b.schema(t);
                b.change(Op::Truncate(TruncateOptions::default()), at);
            }
            Do::Schema(t) => {
                let at = b.schema(t);
                b.change(Op::Schema, at);
            }
            Do::Message => b.message("anabranch", b"marker"),
        }
    }
    let end = position(n);
    if ends {
        b.commit(end.clone());
    }
    b.finish(end, None).unwrap()
}

pub(crate) fn position(n: u64) -> Position {
    Position::new(Rank::of_end(&n.to_be_bytes()), n.to_string().into_bytes())
}

pub(crate) fn progress(n: u64) -> Progress {
    Progress {
        partition: PartitionId::new("slot"),
        position: position(n),
        safe_time: Some(Timestamp::from_micros(n as i64 * 1000)),
    }
}

/// Source transaction number `n`, as a unit.
pub(crate) fn unit(n: u64, changes: &[Do]) -> Unit {
    let batch = Arc::new(build(n, changes, 1, true));
    Unit {
        id: UnitId(n),
        kind: UnitKind::Stream,
        part: Part::Whole,
        transactions: 1,
        progress: vec![progress(n)],
        slices: vec![UnitSlice { changes: Selection::Range(0..batch.len() as u32), batch }],
    }
}

/// Source transaction number `n`, as parts.
pub(crate) fn parts(n: u64, parts: &[&[Do]]) -> Vec<Unit> {
    let mut units = Vec::new();
    let mut first = 1;
    for (i, changes) in parts.iter().enumerate() {
        let last = i + 1 == parts.len();
        let batch = Arc::new(build(n, changes, first, last));
        first += changes.len() as u64;
        units.push(Unit {
            id: UnitId(n * 100 + i as u64),
            kind: UnitKind::Stream,
            part: if last {
                Part::Last
            } else if i == 0 {
                Part::First
            } else {
                Part::Middle
            },
            transactions: u64::from(last),
            progress: if last { vec![progress(n)] } else { Vec::new() },
            slices: vec![UnitSlice { changes: Selection::Range(0..batch.len() as u32), batch }],
        });
    }
    units
}

/// Applies these as one transaction to a fresh writer.
pub(crate) async fn apply(target: &Target, changes: &[Do]) -> Result<()> {
    let mut writer = target.writer().await;
    let result = writer.write(&unit(1, changes)).await.map(drop);
    writer.close().await.unwrap();
    result
}
