//! The suites that every sink, checkpointer and dead-letter store must pass.

use std::path::PathBuf;
use std::sync::Arc;

use anabranch_core::leases::CheckpointLeases;
use anabranch_core::{DataType, Sink, TableSchema, TargetSchema};
use anabranch_sqlite::Sqlite;
use anabranch_testkit::conformance::{self, sink::SinkUnderTest};
use async_trait::async_trait;
use rusqlite::Connection;
use rusqlite::types::ValueRef;

struct File {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl File {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { path: folder.path().join("target.db"), _folder: folder }
    }
}

fn sql(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn canonical(data_type: &DataType, value: ValueRef<'_>) -> Option<String> {
    Some(match (data_type, value) {
        (_, ValueRef::Null) => return None,
        (DataType::Bool, ValueRef::Integer(v)) => if v == 1 { "t" } else { "f" }.to_owned(),
        (_, ValueRef::Integer(v)) => v.to_string(),
        (_, ValueRef::Real(v)) => v.to_string(),
        (_, ValueRef::Text(v)) => String::from_utf8(v.to_vec()).unwrap(),
        (_, ValueRef::Blob(v)) => v.iter().fold("\\x".to_owned(), |text, byte| format!("{text}{byte:02x}")),
    })
}

#[async_trait]
impl SinkUnderTest for File {
    async fn connect(&self) -> Arc<dyn Sink> {
        Arc::new(Sqlite::open(&self.path))
    }

    async fn create_table(&self, table: &TableSchema, unique: &[&str]) {
        let sqlite = Sqlite::open(&self.path);
        sqlite.create(table).await.unwrap();
        let conn = Connection::open(&self.path).unwrap();
        for column in unique {
            let index = sql(&format!("{} {column}", table.name.name));
            let create = format!("CREATE UNIQUE INDEX {index} ON {} ({})", sql(&table.name.name), sql(column));
            conn.execute_batch(&create).unwrap();
        }
    }

    async fn read_table(&self, table: &TableSchema) -> Vec<Vec<Option<String>>> {
        let conn = Connection::open(&self.path).unwrap();
        let columns: Vec<_> = table.columns.iter().map(|c| sql(&c.name)).collect();
        let mut select =
            conn.prepare(&format!("SELECT {} FROM {}", columns.join(", "), sql(&table.name.name))).unwrap();
        let rows = select.query_map([], |row| {
            let value = |i: usize| canonical(&table.columns[i].data_type, row.get_ref(i).unwrap());
            Ok((0..columns.len()).map(value).collect())
        });
        rows.unwrap().map(|row| row.unwrap()).collect()
    }
}

#[tokio::test]
async fn sink() {
    conformance::sink::run(&File::new()).await;
}

#[tokio::test]
async fn checkpointer() {
    let file = File::new();
    conformance::checkpointer::run(async || Arc::new(Sqlite::open(&file.path).checkpointer()) as _).await;
    // Handles of one value, too.
    let file = File::new();
    let shared = Sqlite::open(&file.path);
    conformance::checkpointer::run(async || Arc::new(shared.clone()) as _).await;
}

#[tokio::test]
async fn leases() {
    let file = File::new();
    let store = || Arc::new(Sqlite::open(&file.path).checkpointer());
    conformance::leases::run(async || Arc::new(CheckpointLeases::new(store())) as _).await;
}

#[tokio::test]
async fn dead_letters() {
    let file = File::new();
    conformance::dead_letter::run(async || Arc::new(Sqlite::open(&file.path).dead_letters()) as _).await;
}
