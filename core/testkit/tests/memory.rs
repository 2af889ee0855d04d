//! The database in memory passes the suites.

use std::sync::Arc;

use std::time::Duration;

use anabranch_core::memory::{MemorySink, MemorySource};
use anabranch_core::{Column, DataType, Sink, Source, TableName, TableSchema, Value};
use anabranch_testkit::conformance::{
    self,
    sink::SinkUnderTest,
    source::{SourceUnderTest, Statement},
};
use anabranch_testkit::faults::{FaultySink, FaultySource, Schedule};
use async_trait::async_trait;

struct Memory(MemorySink, Option<Schedule>);

#[async_trait]
impl SinkUnderTest for Memory {
    async fn connect(&self) -> Arc<dyn Sink> {
        match &self.1 {
            Some(schedule) => Arc::new(FaultySink::new(Arc::new(self.0.clone()), schedule.clone())),
            None => Arc::new(self.0.clone()),
        }
    }

    async fn create_table(&self, table: &TableSchema, _unique: &[&str]) {
        self.0.target().unwrap().create(table).await.unwrap();
    }

    async fn read_table(&self, table: &TableSchema) -> Vec<Vec<Option<String>>> {
        let text = |value: &Value| match value {
            Value::Text(v) => Some(v.clone()),
            Value::Int(v) => Some(v.to_string()),
            Value::Bool(v) => Some(if *v { "t" } else { "f" }.to_owned()),
            Value::Float(v) => Some(v.to_string()),
            Value::Bytes(v) => Some(v.iter().fold("\\x".to_owned(), |text, byte| format!("{text}{byte:02x}"))),
            _ => None,
        };
        self.0.rows(&table.name).iter().map(|row| row.iter().map(text).collect()).collect()
    }
}

#[tokio::test]
async fn sink() {
    conformance::sink::run(&Memory(MemorySink::new(), None)).await;
}

#[tokio::test]
async fn sink_with_one_lane() {
    conformance::sink::run(&Memory(MemorySink::new().max_lanes(1), None)).await;
}

#[tokio::test]
async fn sink_in_a_wrapper() {
    conformance::sink::run(&Memory(MemorySink::new(), Some(Schedule::new()))).await;
}

struct Origin(MemorySource, Option<Schedule>);

impl Origin {
    fn new(batch_changes: usize, schedule: Option<Schedule>) -> Self {
        let columns = vec![Column::new("id", DataType::Int64), Column::new("body", DataType::Text { max_chars: None })];
        let table = TableSchema { name: TableName::new("public", "bodies"), columns, key: vec![0] };
        let source = MemorySource::new("origin").table(table).batch_changes(batch_changes).chunk_rows(7);
        Self(source.heartbeat(Duration::from_millis(1)), schedule)
    }
}

#[async_trait]
impl SourceUnderTest for Origin {
    async fn connect(&self) -> Arc<dyn Source> {
        match &self.1 {
            Some(schedule) => Arc::new(FaultySource::new(Arc::new(self.0.clone()), schedule.clone())),
            None => Arc::new(self.0.clone()),
        }
    }

    fn table(&self) -> TableName {
        TableName::new("public", "bodies")
    }

    async fn commit(&self, statements: &[Statement]) {
        let table = SourceUnderTest::table(self);
        let row = |id: i64, body: &str| vec![Value::from(id), Value::from(body)];
        let mut bodies: std::collections::HashMap<i64, String> = std::collections::HashMap::new();
        let body_of = |bodies: &std::collections::HashMap<i64, String>, id: i64| {
            let stored = self.0.tables().rows(&table).into_iter().find(|row| row[0] == Value::Int(id));
            bodies.get(&id).cloned().or(stored.and_then(|row| match &row[1] {
                Value::Text(body) => Some(body.clone()),
                _ => None,
            }))
        };
        let mut transaction = self.0.transaction();
        for statement in statements {
            transaction = match statement {
                Statement::Insert(id, body) | Statement::Update(id, body) => {
                    bodies.insert(*id, body.clone());
                    match statement {
                        Statement::Insert(..) => transaction.insert(&table, row(*id, body)),
                        _ => transaction.update(&table, [Value::from(*id)], row(*id, body)),
                    }
                }
                Statement::Rekey(old, new) => {
                    let body = body_of(&bodies, *old).unwrap();
                    bodies.insert(*new, body.clone());
                    transaction.update(&table, [Value::from(*old)], row(*new, &body))
                }
                Statement::Delete(id) => transaction.delete(&table, [Value::from(*id)]),
            };
        }
        transaction.commit().unwrap();
    }
}

#[tokio::test]
async fn source() {
    conformance::source::run(&Origin::new(1000, None)).await;
}

#[tokio::test]
async fn source_that_splits_every_transaction() {
    conformance::source::run(&Origin::new(2, None)).await;
}

#[tokio::test]
async fn source_in_a_wrapper() {
    conformance::source::run(&Origin::new(3, Some(Schedule::new()))).await;
}
