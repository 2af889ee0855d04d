//! A target file that was restored from an older backup, while the checkpoint lies elsewhere.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anabranch_core::checkpointer::FileCheckpointer;
use anabranch_core::dead_letter::FileDeadLetters;
use anabranch_core::memory::MemorySource;
use anabranch_core::pipeline::SnapshotMode;
use anabranch_core::transform::Shard;
use anabranch_core::{ByTransaction, ErrorKind, Pipeline, Sharded, Sink, TableName, TableSchema, Value};
use anabranch_sqlite::Sqlite;

use crate::support::{item, items};

const ITEMS: &str = "CREATE TABLE items (id INTEGER PRIMARY KEY, code TEXT, note TEXT) STRICT";

struct Files {
    folder: tempfile::TempDir,
    sharded: bool,
}

impl Files {
    fn new(sharded: bool) -> Self {
        let files = Self { folder: tempfile::tempdir().unwrap(), sharded };
        for at in 0..2 {
            rusqlite::Connection::open(files.path(at)).unwrap().execute_batch(ITEMS).unwrap();
        }
        files
    }

    fn path(&self, at: usize) -> PathBuf {
        self.folder.path().join(format!("{at}.db"))
    }

    /// A pipeline to one of them, or to both: even ids, and odd ones.
    fn pipeline(&self, source: &MemorySource, state: &str) -> Pipeline {
        let state: &Path = &self.folder.path().join(state);
        let builder = Pipeline::builder("items").source(source.clone()).order(ByTransaction::new());
        let builder = builder.checkpointer(FileCheckpointer::new(state)).snapshot(SnapshotMode::Never);
        let builder = match self.sharded {
            false => builder.sink(Sqlite::open(self.path(0))),
            true => {
                let shards = [("a", 0), ("b", 1)];
                let sinks = shards.map(|(name, at)| (name, Arc::new(Sqlite::open(self.path(at))) as Arc<dyn Sink>));
                builder
                    .sink(Sharded::new(sinks).unwrap())
                    .transform(Shard::column(["public.items"], "code"))
                    .dead_letters(Arc::new(FileDeadLetters::new(self.folder.path().join("letters"))))
            }
        };
        builder.build().unwrap()
    }

    fn ids(&self, at: usize) -> Vec<i64> {
        let conn = rusqlite::Connection::open(self.path(at)).unwrap();
        let mut select = conn.prepare("SELECT id FROM items ORDER BY id").unwrap();
        select.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }
}

fn insert(source: &MemorySource, ids: std::ops::Range<i64>) {
    let name = TableName::new("public", "items");
    for id in ids {
        let row: Vec<Value> = item(id, if id % 2 == 0 { "a" } else { "b" }, "");
        source.transaction().insert(&name, row).commit().unwrap();
    }
}

async fn run(pipeline: Pipeline) -> anabranch_core::Result<()> {
    let mut running = pipeline.start().await?;
    assert!(running.drain(None).await?.drained);
    running.stop().await
}

#[tokio::test]
async fn what_a_restored_target_lacks_is_not_passed_over() {
    for sharded in [false, true] {
        let source = MemorySource::new("db").table(TableSchema::clone(&items()));
        let files = Files::new(sharded);
        insert(&source, 0..4);
        run(files.pipeline(&source, "state")).await.unwrap();
        let backup = files.folder.path().join("backup");
        std::fs::copy(files.path(0), &backup).unwrap();
        insert(&source, 4..8);
        run(files.pipeline(&source, "state")).await.unwrap();
        // As it was: nothing is told.
        run(files.pipeline(&source, "state")).await.unwrap();

        std::fs::copy(&backup, files.path(0)).unwrap();
        insert(&source, 8..12);
        let error = run(files.pipeline(&source, "state")).await.expect_err("what came after the backup is lost");
        assert_eq!(error.kind(), ErrorKind::Fatal, "{}", error.report());
        let whose = if sharded { "the database of a has gone back" } else { "the target has gone back" };
        assert!(error.report().contains(whose), "{}", error.report());

        assert_eq!(files.ids(0), if sharded { vec![0, 2] } else { vec![0, 1, 2, 3] });
    }
}

#[tokio::test]
async fn a_target_that_was_emptied_is_not_gone_on_with() {
    let source = MemorySource::new("db").table(TableSchema::clone(&items()));
    let files = Files::new(false);
    insert(&source, 0..4);
    run(files.pipeline(&source, "state")).await.unwrap();
    std::fs::copy(files.path(1), files.path(0)).unwrap();
    insert(&source, 4..8);
    let error = run(files.pipeline(&source, "state")).await.expect_err("the first rows are lost");
    assert!(error.report().contains("has gone back"), "{}", error.report());
    assert!(files.ids(0).is_empty());
}
