//! The database in memory under the suites, inside a wrapper.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anabranch_core::memory::{MemorySink, MemorySource};
use anabranch_core::{Column, DataType, Sink, Source, TableName, TableSchema, Value};
use anabranch_testkit::conformance::sink::SinkUnderTest;
use anabranch_testkit::conformance::source::{SourceUnderTest, Statement};
use async_trait::async_trait;

type Wrap<Inner, Outer> = Box<dyn Fn(Inner) -> Arc<Outer> + Send + Sync>;

/// A [`MemorySink`] in what `wrap` makes of it.
pub(crate) struct SinkOf {
    sink: MemorySink,
    wrap: Wrap<MemorySink, dyn Sink>,
}

impl SinkOf {
    pub(crate) fn new(sink: MemorySink, wrap: impl Fn(MemorySink) -> Arc<dyn Sink> + Send + Sync + 'static) -> Self {
        Self { sink, wrap: Box::new(wrap) }
    }
}

#[async_trait]
impl SinkUnderTest for SinkOf {
    async fn connect(&self) -> Arc<dyn Sink> {
        (self.wrap)(self.sink.clone())
    }

    async fn create_table(&self, table: &TableSchema, _unique: &[&str]) {
        self.sink.target().unwrap().create(table).await.unwrap();
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
        self.sink.rows(&table.name).iter().map(|row| row.iter().map(text).collect()).collect()
    }
}

/// A [`MemorySource`] in what `wrap` makes of it.
pub(crate) struct SourceOf {
    source: MemorySource,
    wrap: Wrap<MemorySource, dyn Source>,
}

impl SourceOf {
    pub(crate) fn new(
        batch_changes: usize,
        wrap: impl Fn(MemorySource) -> Arc<dyn Source> + Send + Sync + 'static,
    ) -> Self {
        let columns = vec![Column::new("id", DataType::Int64), Column::new("body", DataType::Text { max_chars: None })];
        let table = TableSchema { name: TableName::new("public", "bodies"), columns, key: vec![0] };
        let source = MemorySource::new("origin").table(table).batch_changes(batch_changes).chunk_rows(7);
        Self { source: source.heartbeat(Duration::from_millis(1)), wrap: Box::new(wrap) }
    }

    /// The body of a row, as statements before in the same transaction left it.
    fn body(&self, id: i64, changed: &HashMap<i64, String>) -> String {
        let stored = || self.source.tables().rows(&self.table()).into_iter().find(|row| row[0] == Value::Int(id));
        changed.get(&id).cloned().unwrap_or_else(|| match stored().map(|row| row[1].clone()) {
            Some(Value::Text(body)) => body,
            other => panic!("row {id}: {other:?}"),
        })
    }
}

#[async_trait]
impl SourceUnderTest for SourceOf {
    async fn connect(&self) -> Arc<dyn Source> {
        (self.wrap)(self.source.clone())
    }

    fn table(&self) -> TableName {
        TableName::new("public", "bodies")
    }

    async fn commit(&self, statements: &[Statement]) {
        let table = self.table();
        let row = |id: i64, body: &str| vec![Value::from(id), Value::from(body)];
        let mut changed = HashMap::new();
        let mut transaction = self.source.transaction();
        for statement in statements {
            transaction = match statement {
                Statement::Insert(id, body) => {
                    changed.insert(*id, body.clone());
                    transaction.insert(&table, row(*id, body))
                }
                Statement::Update(id, body) => {
                    changed.insert(*id, body.clone());
                    transaction.update(&table, [Value::from(*id)], row(*id, body))
                }
                Statement::Rekey(old, new) => {
                    let body = self.body(*old, &changed);
                    transaction = transaction.update(&table, [Value::from(*old)], row(*new, &body));
                    changed.insert(*new, body);
                    transaction
                }
                Statement::Delete(id) => transaction.delete(&table, [Value::from(*id)]),
            };
        }
        transaction.commit().unwrap();
    }
}
