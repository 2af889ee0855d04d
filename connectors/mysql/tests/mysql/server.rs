//! A MariaDB for all tests of this binary, a database for each, and units by hand.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use anabranch_core::{
    BatchBuilder, Claim, Column, DataType, Lane, LanePurpose, OldImage, Op, Part, PartitionId, Position, Progress,
    Rank, Selection, Sink, SinkWriter, SourceIdentity, TableName, TableSchema, Timestamp, Transaction, Unit, UnitId,
    UnitKind, UnitSlice, Value,
};
use anabranch_mysql::MySql;
use anabranch_servers::{MariaOptions, MariaServer};
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Row};

/// Starts one server for the process. Its data folder goes, and the server dies, with the process.
pub(crate) fn shared() -> Option<&'static MariaServer> {
    static SERVER: OnceLock<Option<MariaServer>> = OnceLock::new();
    SERVER.get_or_init(|| options().start().expect("MariaDB starts")).as_ref()
}

pub(crate) fn options() -> MariaOptions {
    MariaOptions::new().fsync(true).setting("local-infile", "1")
}

/// A new database on this server.
pub(crate) async fn database(server: &MariaServer) -> Db {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = format!("db{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let mut conn = Conn::from_url(server.url("mysql")).await.expect("connect");
    // The worst collation for us, on purpose: what we create must not depend on it.
    conn.query_drop(format!("CREATE DATABASE {name} CHARACTER SET latin1 COLLATE latin1_swedish_ci"))
        .await
        .expect("create");
    let url = server.url(&name);
    let mut conn = Conn::from_url(&url).await.expect("connect");
    conn.query_drop("SET NAMES utf8mb4, time_zone='+00:00'").await.expect("names");
    Db { url, conn }
}

/// A database, and a connection to look into it.
pub(crate) struct Db {
    pub(crate) url: String,
    conn: Conn,
}

impl Db {
    pub(crate) async fn run(&mut self, sql: &str) {
        self.conn.query_drop(sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
    }

    /// The rows as text.
    pub(crate) async fn rows(&mut self, sql: &str) -> Vec<Vec<Option<String>>> {
        let rows: Vec<Row> = self.conn.query(sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
        rows.into_iter().map(|row| row.unwrap().into_iter().map(text).collect()).collect()
    }

    /// The rows, values joined by `|`, NULL as `~`.
    pub(crate) async fn lines(&mut self, sql: &str) -> Vec<String> {
        let line = |row: Vec<Option<String>>| {
            row.into_iter().map(|v| v.unwrap_or_else(|| "~".into())).collect::<Vec<_>>().join("|")
        };
        self.rows(sql).await.into_iter().map(line).collect()
    }

    /// Over a new connection: the server was killed.
    pub(crate) async fn again(self) -> Db {
        Db { conn: Conn::from_url(&self.url).await.expect("connect"), url: self.url }
    }

    pub(crate) fn sink(&self) -> MySql {
        MySql::new(self.url.as_str())
    }

    /// A writer of the only lane, of a pipeline taken over with this epoch.
    pub(crate) async fn writer(&self, epoch: u64) -> Box<dyn SinkWriter> {
        let sink = self.sink();
        take_over(&sink, epoch).await;
        sink.open(lane(epoch, LanePurpose::Stream)).await.expect("open")
    }
}

fn text(value: mysql_async::Value) -> Option<String> {
    match value {
        mysql_async::Value::NULL => None,
        mysql_async::Value::Bytes(v) => Some(String::from_utf8_lossy(&v).into_owned()),
        other => Some(other.as_sql(true)),
    }
}

pub(crate) async fn take_over(sink: &MySql, epoch: u64) {
    sink.progress().expect("progress").take_over(&claim(epoch)).await.expect("take over");
}

pub(crate) fn claim(epoch: u64) -> Claim {
    Claim { pipeline: "p".into(), epoch, lanes: 1, identity: SourceIdentity::default().with("slot", "s") }
}

pub(crate) fn lane(epoch: u64, purpose: LanePurpose) -> Lane {
    Lane { pipeline: "p".into(), index: 0, count: 1, epoch, purpose }
}

/// A table of these columns, with the first as its key.
pub(crate) fn table(name: &str, columns: &[(&str, DataType)]) -> Arc<TableSchema> {
    keyed(name, columns, &[0])
}

pub(crate) fn keyed(name: &str, columns: &[(&str, DataType)], key: &[u16]) -> Arc<TableSchema> {
    let columns = columns.iter().map(|(n, t)| Column::new(*n, t.clone())).collect();
    Arc::new(TableSchema { name: TableName::new("public", name), columns, key: key.to_vec() })
}

pub(crate) const TEXT: DataType = DataType::Text { max_chars: None };

/// A change by hand.
#[derive(Debug, Clone)]
pub(crate) enum Do {
    Insert(Vec<Value>),
    /// Without an old image.
    Update(Vec<Value>),
    /// With the old key or the old row.
    Move(OldImage, Vec<Value>, Vec<Value>),
    Delete(OldImage, Vec<Value>),
    Truncate,
    Schema,
}

/// Makes units of one partition, each with a progress after the one before.
#[derive(Debug, Default)]
pub(crate) struct Maker {
    next: u64,
}

impl Maker {
    pub(crate) fn stream(&mut self, changes: &[(&Arc<TableSchema>, Do)]) -> Unit {
        self.unit(UnitKind::Stream, Part::Whole, changes)
    }

    pub(crate) fn unit(&mut self, kind: UnitKind, part: Part, changes: &[(&Arc<TableSchema>, Do)]) -> Unit {
        self.next += 1;
        let prefix = self.next.to_be_bytes();
        let mut b = BatchBuilder::new(PartitionId::new("slot"));
        b.begin(Transaction { rank: prefix.to_vec().into(), ..Transaction::default() }, 1);
        for (schema, change) in changes {
            let at = b.schema(schema);
            push(&mut b, at, change);
        }
        let end = Position::new(Rank::of_end(&prefix), self.next.to_string().into_bytes());
        b.commit(end.clone());
        let batch = Arc::new(b.finish(end.clone(), None).expect("a batch"));
        let count = batch.len() as u32;
        let progress = Progress {
            partition: PartitionId::new("slot"),
            position: end,
            safe_time: Some(Timestamp::from_micros(self.next as i64)),
        };
        let stores = part.ends() && kind == UnitKind::Stream;
        Unit {
            id: UnitId(self.next),
            kind,
            part,
            slices: vec![UnitSlice { batch, changes: Selection::Range(0..count) }],
            transactions: u64::from(part.ends()),
            progress: if stores { vec![progress] } else { Vec::new() },
        }
    }
}

fn push(b: &mut BatchBuilder, at: usize, change: &Do) {
    let row = |b: &mut BatchBuilder, values: &[Value]| values.iter().for_each(|v| b.push(v.as_ref()));
    match change {
        Do::Insert(new) => {
            b.change(Op::Insert, at);
            b.new_row();
            row(b, new);
        }
        Do::Update(new) => {
            b.change(Op::Update, at);
            b.new_row();
            row(b, new);
        }
        Do::Move(image, old, new) => {
            b.change(Op::Update, at);
            b.old_row(*image);
            row(b, old);
            b.new_row();
            row(b, new);
        }
        Do::Delete(image, old) => {
            b.change(Op::Delete, at);
            b.old_row(*image);
            row(b, old);
        }
        Do::Truncate => b.change(Op::Truncate(Default::default()), at),
        Do::Schema => b.change(Op::Schema, at),
    }
}

/// `Value`s from integers, texts and `None`.
#[macro_export]
macro_rules! row {
    ($($v:expr),* $(,)?) => { vec![$($crate::server::Val::from($v).0),*] };
}

pub(crate) struct Val(pub(crate) Value);

impl From<i64> for Val {
    fn from(v: i64) -> Self {
        Self(Value::Int(v))
    }
}

impl From<&str> for Val {
    fn from(v: &str) -> Self {
        Self(Value::Text(v.into()))
    }
}

impl From<Value> for Val {
    fn from(v: Value) -> Self {
        Self(v)
    }
}

/// A server, or the test is skipped.
#[macro_export]
macro_rules! server {
    () => {
        match $crate::server::shared() {
            Some(server) => server,
            None => return,
        }
    };
}
