//! Databases of shared servers, and units made by hand.

mod proxy;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use anabranch_core::*;
use anabranch_postgres::PostgresSink;
use anabranch_servers::{PgServer, PgVersion};

pub(crate) use proxy::unchanged;

/// A database of its own on a server that tests share.
pub(crate) struct Db {
    pub(crate) server: Arc<PgServer>,
    pub(crate) name: String,
}

/// A new database on each version that is installed.
pub(crate) fn databases() -> Vec<Db> {
    static SHARED: [Mutex<Weak<PgServer>>; 2] = [Mutex::new(Weak::new()), Mutex::new(Weak::new())];
    let versions = [PgVersion::V15, PgVersion::V18];
    versions
        .into_iter()
        .zip(&SHARED)
        .filter_map(|(version, shared)| {
            let mut shared = shared.lock().unwrap();
            let server = match shared.upgrade() {
                Some(server) => server,
                None => Arc::new(anabranch_servers::postgres(version)?),
            };
            *shared = Arc::downgrade(&server);
            Some(Db::on(server))
        })
        .collect()
}

impl Db {
    /// A new database on this server.
    pub(crate) fn on(server: Arc<PgServer>) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed));
        server.create_db(&name).unwrap();
        Self { server, name }
    }

    pub(crate) fn url(&self) -> String {
        self.server.url(&self.name)
    }

    pub(crate) fn url_as(&self, user: &str) -> String {
        self.url().replace("postgres@", &format!("{user}@"))
    }

    pub(crate) fn exec(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        self.server.exec(&self.name, sql).unwrap_or_else(|e| panic!("{e}"))
    }

    /// All rows as text: columns joined with `|`, NULL as `~`.
    pub(crate) fn rows(&self, sql: &str) -> Vec<String> {
        let row = |r: &Vec<Option<String>>| r.iter().map(|v| v.as_deref().unwrap_or("~")).collect::<Vec<_>>().join("|");
        self.exec(sql).iter().map(row).collect()
    }

    pub(crate) fn sink(&self) -> PostgresSink {
        PostgresSink::new(self.url())
    }

    /// Lane 0 of this database's pipeline: origins are shared by all databases of a server.
    pub(crate) fn lane(&self, epoch: u64) -> Lane {
        Lane { pipeline: (*self.name).into(), index: 0, count: 1, epoch, purpose: LanePurpose::Stream }
    }

    pub(crate) fn snapshot_lane(&self, epoch: u64) -> Lane {
        Lane { purpose: LanePurpose::Snapshot, ..self.lane(epoch) }
    }

    pub(crate) fn claim(&self, epoch: u64) -> Claim {
        let identity = SourceIdentity::default().with("system", "7");
        Claim { pipeline: (*self.name).into(), epoch, lanes: 1, identity }
    }

    /// Claims the pipeline and opens a writer.
    pub(crate) async fn writer(&self, sink: &PostgresSink, epoch: u64) -> Box<dyn SinkWriter> {
        sink.progress().unwrap().take_over(&self.claim(epoch)).await.unwrap();
        sink.open(self.lane(epoch)).await.unwrap()
    }

    pub(crate) async fn stored(&self, sink: &PostgresSink) -> LaneProgress {
        sink.progress().unwrap().read(&self.name).await.unwrap().swap_remove(0)
    }
}

/// A table whose types are PostgreSQL's; `spec` is `name type` by comma, the first `keys` being the key.
pub(crate) fn table(name: &str, spec: &[(&str, DataType)], keys: u16) -> Arc<TableSchema> {
    let columns = spec.iter().map(|(name, t)| Column::new(*name, t.clone())).collect();
    let name = match name.split_once('.') {
        Some((schema, name)) => TableName::new(schema, name),
        None => TableName::new("public", name),
    };
    Arc::new(TableSchema { name, columns, key: (0..keys).collect() })
}

pub(crate) const TEXT: DataType = DataType::Text { max_chars: None };
pub(crate) const INT: DataType = DataType::Int64;

/// Text, and `~` for NULL, `?` for not sent.
pub(crate) fn v(text: &str) -> ValueRef<'_> {
    match text {
        "~" => ValueRef::Null,
        "?" => ValueRef::Unchanged,
        text => ValueRef::Text(text),
    }
}

/// Changes of one unit, in one or more source transactions.
pub(crate) struct Changes {
    builder: BatchBuilder,
    rank: u64,
    transactions: u64,
}

static RANK: AtomicU64 = AtomicU64::new(1);

impl Changes {
    pub(crate) fn new() -> Self {
        let mut changes = Self { builder: BatchBuilder::new(PartitionId::new("slot")), rank: 0, transactions: 0 };
        changes.begin();
        changes
    }

    fn begin(&mut self) {
        self.rank = RANK.fetch_add(1, Ordering::Relaxed);
        let rank = self.rank.to_be_bytes().to_vec().into();
        self.builder.begin(Transaction { rank, ..Transaction::default() }, 1);
        self.transactions += 1;
    }

    /// Ends the transaction and begins another.
    pub(crate) fn commit(mut self) -> Self {
        self.builder.commit(self.end());
        self.begin();
        self
    }

    fn end(&self) -> Position {
        Position::new(Rank::of_end(&self.rank.to_be_bytes()), self.rank.to_string().into_bytes())
    }

    fn row(&mut self, row: &[ValueRef<'_>]) {
        row.iter().for_each(|v| self.builder.push(*v));
    }

    pub(crate) fn insert_values(mut self, table: &Arc<TableSchema>, row: &[ValueRef<'_>]) -> Self {
        let at = self.builder.schema(table);
        self.builder.change(Op::Insert, at);
        self.builder.new_row();
        self.row(row);
        self
    }

    pub(crate) fn insert(self, table: &Arc<TableSchema>, row: &[&str]) -> Self {
        let row: Vec<_> = row.iter().map(|t| v(t)).collect();
        self.insert_values(table, &row)
    }

    pub(crate) fn update(mut self, table: &Arc<TableSchema>, old: Option<&[&str]>, new: &[&str]) -> Self {
        let at = self.builder.schema(table);
        self.builder.change(Op::Update, at);
        if let Some(old) = old {
            let image = if old.contains(&"?") { OldImage::Key } else { OldImage::Full };
            self.builder.old_row(image);
            old.iter().for_each(|t| self.builder.push(v(t)));
        }
        self.builder.new_row();
        new.iter().for_each(|t| self.builder.push(v(t)));
        self
    }

    pub(crate) fn delete(mut self, table: &Arc<TableSchema>, old: &[&str]) -> Self {
        let at = self.builder.schema(table);
        self.builder.change(Op::Delete, at);
        self.builder.old_row(if old.contains(&"?") { OldImage::Key } else { OldImage::Full });
        old.iter().for_each(|t| self.builder.push(v(t)));
        self
    }

    pub(crate) fn truncate(mut self, table: &Arc<TableSchema>) -> Self {
        let at = self.builder.schema(table);
        self.builder.change(Op::Truncate(TruncateOptions::default()), at);
        self
    }

    pub(crate) fn schema(mut self, table: &Arc<TableSchema>) -> Self {
        let at = self.builder.schema(table);
        self.builder.change(Op::Schema, at);
        self
    }

    /// A unit of its own.
    pub(crate) fn unit(self) -> Unit {
        self.part(Part::Whole)
    }

    pub(crate) fn snapshot(self) -> Unit {
        Unit { kind: UnitKind::Snapshot, progress: Vec::new(), ..self.unit() }
    }

    pub(crate) fn part(mut self, part: Part) -> Unit {
        let end = self.end();
        if part.ends() {
            self.builder.commit(end.clone());
        }
        let batch = Arc::new(self.builder.finish(end.clone(), None).unwrap());
        let progress = Progress {
            partition: PartitionId::new("slot"),
            position: end,
            safe_time: Some(Timestamp::from_micros(self.rank as i64)),
        };
        Unit {
            id: UnitId(self.rank),
            kind: UnitKind::Stream,
            part,
            slices: vec![UnitSlice { changes: Selection::Range(0..batch.len() as u32), batch }],
            transactions: if part.ends() { self.transactions } else { 0 },
            progress: if part.ends() { vec![progress] } else { Vec::new() },
        }
    }
}

pub(crate) async fn write(writer: &mut Box<dyn SinkWriter>, unit: &Unit) {
    let written = writer.write(unit).await.unwrap_or_else(|e| panic!("{:?} {}", e.kind(), e.report()));
    assert_eq!(written.durability == Durability::Durable, unit.part.ends());
}

pub(crate) async fn refused(writer: &mut Box<dyn SinkWriter>, unit: &Unit, kind: ErrorKind, part: &str) -> String {
    let error = writer.write(unit).await.err().unwrap_or_else(|| panic!("was applied, expected {kind:?} {part}"));
    assert_eq!(error.kind(), kind, "{}", error.report());
    assert!(error.report().contains(part), "{}", error.report());
    error.report()
}
