//! The database in memory passes the suites.

use std::sync::Arc;

use anabranch_core::memory::MemorySink;
use anabranch_core::{Sink, TableSchema, Value};
use anabranch_testkit::conformance::{self, sink::SinkUnderTest};
use async_trait::async_trait;

struct Memory(MemorySink);

#[async_trait]
impl SinkUnderTest for Memory {
    async fn connect(&self) -> Arc<dyn Sink> {
        Arc::new(self.0.clone())
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
    conformance::sink::run(&Memory(MemorySink::new())).await;
}

#[tokio::test]
async fn sink_with_one_lane() {
    conformance::sink::run(&Memory(MemorySink::new().max_lanes(1))).await;
}
