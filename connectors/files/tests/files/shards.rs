//! One pipeline for each shard: a shard that fails halts alone; the run modes.

use std::path::PathBuf;
use std::time::Duration;

use anabranch_core::pipeline::SnapshotMode;
use anabranch_core::{ByTransaction, Pipeline};
use anabranch_files::{RunMode, ShardState, ShardStatus, ShardWriters};
use anabranch_sqlite::Sqlite;
use rusqlite::Connection;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::*;

pub(crate) const SHARDS: [&str; 3] = ["asia", "eu", "us"];

/// A run with three shards, and a database for each.
pub(crate) struct Story {
    pub(crate) folder: Folder,
    pub(crate) databases: tempfile::TempDir,
    pub(crate) run: Run,
    pub(crate) next: u64,
}

impl Story {
    pub(crate) async fn begin() -> Self {
        let folder = Folder::new();
        let run = Run::begin(&folder.files, 1).await;
        let story = Self { folder, databases: tempfile::tempdir().unwrap(), run, next: 1 };
        SHARDS.iter().for_each(|shard| story.table(shard));
        story
    }

    /// The table of a shard.
    pub(crate) fn table(&self, shard: &str) {
        let sql = "CREATE TABLE orders (id INTEGER PRIMARY KEY, body TEXT, extra BLOB)";
        self.database(shard).execute_batch(sql).unwrap();
    }

    pub(crate) fn database(&self, shard: &str) -> Connection {
        Connection::open(self.path(shard)).unwrap()
    }

    pub(crate) fn path(&self, shard: &str) -> PathBuf {
        self.databases.path().join(format!("{shard}.db"))
    }

    /// Two windows with two transactions each, of all shards.
    pub(crate) async fn write(&mut self) {
        for _ in 0..4 {
            let n = self.next;
            self.next += 1;
            let rows: Vec<_> = SHARDS.iter().map(|shard| (n as i64, Some(*shard))).collect();
            self.run.write(&[tx(n, 5 * n as i64, &rows)]).await;
        }
        self.run.safe_time(second(5 * self.next as i64)).await;
    }

    fn writers(&self, mode: RunMode) -> ShardWriters {
        let databases = self.databases.path().to_owned();
        let make = move |shard: &str, source| {
            Pipeline::builder(format!("orders/{shard}"))
                .source(source)
                .sink(Sqlite::open(databases.join(format!("{shard}.db"))))
                .order(ByTransaction::new())
                .snapshot(SnapshotMode::Never)
                .build()
        };
        ShardWriters::new(self.folder.source(), make).mode(mode)
    }

    /// Runs until every shard of `goes` has everything and every one of `fails` has halted, then stops.
    async fn run(&self, mode: RunMode, goes: &[&str], fails: &[&str]) -> Vec<ShardStatus> {
        let stop = CancellationToken::new();
        let (writers, watched) = (self.writers(mode), self.writers(mode));
        let stopper = stop.clone();
        let running: JoinHandle<_> = tokio::spawn(async move { writers.run(stopper).await.unwrap() });
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let statuses = watched.status().await.unwrap();
            let failed = |shard: &&str| statuses.iter().any(|s| s.shard == **shard && s.state == ShardState::Error);
            if goes.iter().all(|s| self.ids(s).len() as u64 == self.next - 1) && fails.iter().all(failed) {
                break;
            }
            assert!(tokio::time::Instant::now() < deadline, "{statuses:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        stop.cancel();
        running.await.unwrap()
    }

    pub(crate) fn ids(&self, shard: &str) -> Vec<i64> {
        let database = self.database(shard);
        let mut select = database.prepare("SELECT id FROM orders WHERE id > 0 ORDER BY id").unwrap();
        select.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    pub(crate) fn all(&self) -> Vec<i64> {
        (1..self.next as i64).collect()
    }

    /// A row that is in the way of transaction 6, the second of its window.
    pub(crate) fn spoil(&self, shard: &str) {
        let sql =
            "CREATE UNIQUE INDEX one ON orders (body); INSERT INTO orders VALUES (-6, 'row \"6\"' || char(10), NULL)";
        self.database(shard).execute_batch(sql).unwrap();
    }

    pub(crate) fn mend(&self, shard: &str) {
        self.database(shard).execute_batch("DELETE FROM orders WHERE id < 0").unwrap();
    }
}

fn states(statuses: &[ShardStatus]) -> Vec<(&str, ShardState)> {
    statuses.iter().map(|s| (s.shard.as_str(), s.state)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_fails_halts_alone_and_is_resumed() {
    let mut story = Story::begin().await;
    story.write().await;
    let ended = story.run(RunMode::Regular, &SHARDS, &[]).await;
    assert_eq!(states(&ended), SHARDS.map(|s| (s, ShardState::Success)));

    story.spoil("us");
    story.write().await;
    let ended = story.run(RunMode::Regular, &["asia", "eu"], &["us"]).await;
    assert_eq!(states(&ended), [("asia", ShardState::Success), ("eu", ShardState::Success), ("us", ShardState::Error)]);
    let us = &ended[2];
    assert!(us.error.as_ref().unwrap().contains("orders"), "{us:?}");
    assert_eq!(story.ids("us"), [1, 2, 3, 4, 5], "what came before the row at fault");

    // The others go on without it.
    story.write().await;
    let ended = story.run(RunMode::ResumeSuccess, &["asia", "eu"], &[]).await;
    assert_eq!(states(&ended), [("asia", ShardState::Success), ("eu", ShardState::Success)]);
    assert_eq!(story.ids("us").len(), 5);

    // Resumed before it is mended it fails again, and nothing was applied twice.
    let ended = story.writers(RunMode::ResumeFailed).run(CancellationToken::new()).await.unwrap();
    assert_eq!(states(&ended), [("us", ShardState::Error)]);
    assert_eq!(story.ids("us").len(), 5);
    story.mend("us");
    let ended = story.run(RunMode::ResumeFailed, &["us"], &[]).await;
    assert_eq!(states(&ended), [("us", ShardState::Success)]);
    for shard in SHARDS {
        assert_eq!(story.ids(shard), story.all(), "{shard}");
    }
    // Nothing is left that failed.
    assert_eq!(story.writers(RunMode::ResumeFailed).run(CancellationToken::new()).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn marked_shards_are_reprocessed() {
    let mut story = Story::begin().await;
    story.write().await;
    story.spoil("eu");
    story.write().await;
    story.run(RunMode::Regular, &["asia", "us"], &["eu"]).await;
    story.mend("eu");
    story.writers(RunMode::Regular).reprocess("eu").await.unwrap();
    assert!(story.writers(RunMode::Regular).reprocess("mars").await.is_err());
    assert_eq!(story.writers(RunMode::ResumeFailed).run(CancellationToken::new()).await.unwrap(), []);
    let ended = story.run(RunMode::Reprocess, &["eu"], &[]).await;
    assert_eq!(states(&ended), [("eu", ShardState::Success)]);
    assert_eq!(story.ids("eu"), story.all());
}

#[tokio::test(flavor = "multi_thread")]
async fn all_shards_are_resumed_and_new_ones_found() {
    let mut story = Story::begin().await;
    story.write().await;
    story.spoil("asia");
    story.write().await;
    story.run(RunMode::Regular, &["eu", "us"], &["asia"]).await;
    story.mend("asia");

    let stop = CancellationToken::new();
    let (writers, stopper) = (story.writers(RunMode::ResumeAll), stop.clone());
    let running = tokio::spawn(async move { writers.run(stopper).await.unwrap() });
    story.table("new");
    let n = story.next;
    story.run.write(&[tx(n, 5 * n as i64, &[(1, Some("new"))])]).await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while story.ids("new") != [1] || story.ids("asia").len() < 8 {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop.cancel();
    let ended = running.await.unwrap();
    assert_eq!(states(&ended), ["asia", "eu", "new", "us"].map(|s| (s, ShardState::Success)));
    assert_eq!(story.ids("asia"), story.all());
}
