//! The suites that every source, checkpointer and dead-letter store must pass.

use std::sync::Arc;
use std::time::Duration;

use anabranch_core::memory::MemorySource;
use anabranch_core::{
    Column, DataType, Position, ProgressStore, Relay, Sink, SinkWriter, Source, StartFrom, TableName, TableSchema,
    Timestamp, Value,
};
use anabranch_files::{FilesCheckpointer, FilesDeadLetters, WindowFiles};
use anabranch_testkit::conformance;
use anabranch_testkit::conformance::source::{SourceUnderTest, Statement};
use anabranch_testkit::units;
use async_trait::async_trait;
use tokio::sync::Mutex;

use crate::support::{Folder, claim, lane};

#[tokio::test]
async fn checkpointer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("not/there/yet");
    conformance::checkpointer::run(async || Arc::new(FilesCheckpointer::new(path.clone())) as _).await;
}

#[tokio::test]
async fn dead_letters() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("letters");
    conformance::dead_letter::run(async || Arc::new(FilesDeadLetters::new(path.clone())) as _).await;
}

#[tokio::test]
async fn dead_letters_with_few_names_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("letters");
    let open = async || Arc::new(FilesDeadLetters::new(path.clone()).names_in_memory(2)) as _;
    conformance::dead_letter::run(open).await;
}

/// A source in memory whose transactions are written into files; the files are the source under test.
struct Written {
    memory: MemorySource,
    folder: Folder,
    state: Mutex<State>,
}

struct State {
    writer: Box<dyn SinkWriter>,
    read: Option<Position>,
}

fn name() -> TableName {
    TableName::new("public", "things")
}

impl Written {
    async fn new(files: impl FnOnce(WindowFiles) -> WindowFiles) -> Self {
        let columns = vec![Column::new("id", DataType::Int64), Column::new("body", DataType::Text { max_chars: None })];
        let schema = TableSchema { name: name(), columns, key: vec![0] };
        let memory = MemorySource::new("shop").table(schema.clone());
        let mut folder = Folder::new();
        folder.files = files(folder.files.clone());
        folder.files.take_over(&claim(1)).await.unwrap();
        folder.files.tables(1, &[schema]).await.unwrap();
        let writer = folder.files.open(lane(1)).await.unwrap();
        Self { memory, folder, state: Mutex::new(State { writer, read: None }) }
    }

    /// The body of a row within a transaction of these statements, which change nobody else's key.
    fn body(&self, id: i64, statements: &[Statement]) -> Value {
        let of = |statement: &Statement| match statement {
            Statement::Insert(i, body) | Statement::Update(i, body) if *i == id => Some(body.as_str().into()),
            _ => None,
        };
        let before = || self.memory.tables().rows(&name()).into_iter().find(|r| r[0] == id.to_string().as_str().into());
        statements.iter().rev().find_map(of).unwrap_or_else(|| before().unwrap()[1].clone())
    }
}

#[async_trait]
impl SourceUnderTest for Written {
    async fn connect(&self) -> Arc<dyn Source> {
        Arc::new(self.folder.source().shard(""))
    }

    fn table(&self) -> TableName {
        name()
    }

    async fn commit(&self, statements: &[Statement]) {
        let table = name();
        let id = |id: &i64| vec![id.to_string().as_str().into()];
        let row = |id: &i64, body: &str| vec![id.to_string().as_str().into(), body.into()];
        let mut state = self.state.lock().await;
        let mut t = self.memory.transaction();
        for statement in statements {
            t = match statement {
                Statement::Insert(i, body) => t.insert(&table, row(i, body)),
                Statement::Update(i, body) => t.update(&table, id(i), row(i, body)),
                Statement::Rekey(from, to) => {
                    let body = self.body(*from, statements);
                    t.update(&table, id(from), vec![to.to_string().as_str().into(), body])
                }
                Statement::Delete(i) => t.delete(&table, id(i)),
            };
        }
        t.commit().unwrap();

        let from = StartFrom { position: state.read.clone(), ..StartFrom::default() };
        let end = self.memory.end();
        let batches = units::read_source(&self.memory, &from, &end).await;
        for unit in units::by_transaction(&batches) {
            for part in units::in_parts(&unit, 100) {
                let _ = state.writer.write(&part).await.unwrap();
            }
        }
        state.writer.flush().await.unwrap();
        state.read = Some(end);
        let safe = batches.last().and_then(|b| b.safe_time()).unwrap_or(Timestamp::from_micros(0));
        self.folder.files.safe_time(1, safe).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn source() {
    conformance::source::run(&Written::new(|files| files).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn source_of_small_files_and_short_windows() {
    let small = |files: WindowFiles| files.max_file(30_000).window(Duration::from_millis(20));
    conformance::source::run(&Written::new(small).await).await;
}
