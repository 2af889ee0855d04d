//! Into a target that stores its progress with the rows: what a run that ended left in the target and
//! what it left in the checkpoint go together, also for shards that are forgotten.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anabranch_core::pipeline::{ByKey, RetryLimits};
use anabranch_core::{Checkpointer, ErrorKind, Pipeline, RunningPipeline};
use anabranch_dynamodb::DeclaredColumn;
use anabranch_dynamodb_fake::{Fake, n};
use anabranch_sqlite::Sqlite;

use super::support::{PATIENCE, items, orders, put, shop};

/// Starts a run. One that was killed may be on its way down still, and be first once more.
async fn start(fake: &Fake, file: &Path) -> RunningPipeline {
    loop {
        match pipeline(fake, file).start().await {
            Err(error) if error.kind() == ErrorKind::Fenced => {}
            running => return running.expect("start"),
        }
    }
}

fn pipeline(fake: &Fake, file: &Path) -> Pipeline {
    let id = DeclaredColumn { table: None, name: "id".to_owned(), data_type: "int64".to_owned() };
    let retry =
        RetryLimits { first: Duration::from_millis(10), longest: Duration::from_millis(20), attempts: Some(20) };
    let sink = Sqlite::open(file);
    let checkpoints = sink.checkpointer();
    let pipeline = Pipeline::builder("shop").source(orders(fake).column(id).scan_segments(3)).sink(sink);
    let pipeline = pipeline.order(ByKey::new(1)).checkpointer(checkpoints).create_tables(true).retry(retry);
    pipeline.build().expect("a pipeline")
}

fn rows(file: &Path) -> BTreeMap<String, String> {
    let database = rusqlite::Connection::open(file).expect("the file");
    let mut statement = database.prepare("SELECT id, item FROM orders").expect("the table");
    let rows = statement.query_map([], |row| Ok((row.get::<_, i64>(0)?.to_string(), row.get(1)?))).expect("rows");
    rows.collect::<Result<_, _>>().expect("rows")
}

async fn drained(running: &mut RunningPipeline, fake: &Fake, file: &Path) {
    let drained = running.drain(Some(PATIENCE)).await.expect("drain");
    assert!(drained.drained, "{drained:?}");
    assert_eq!(rows(file), items(fake, "orders"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_that_stop_and_runs_that_are_killed_go_on_where_they_were() {
    let fake = shop().await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("target.db");
    (0..200).for_each(|id| put(&fake, id, 0));
    for round in 1..8 {
        let mut running = start(&fake, &file).await;
        for id in 0..40 {
            put(&fake, (id * 7 + round) % 220, round);
            fake.delete("orders", &[("id", n((id * 11 + round) % 220))]);
        }
        // Every shard that a run began with is finished, and forgotten, in a later one.
        for shard in fake.open_shards("orders") {
            if round % 3 == 0 {
                fake.split("orders", &shard);
            } else {
                fake.roll("orders", &shard);
            }
        }
        (0..40).for_each(|id| put(&fake, (id * 13 + round) % 220, round + 100));
        drained(&mut running, &fake, &file).await;
        if round % 2 == 0 {
            running.stop().await.expect("stop");
        } else {
            drop(running); // As a kill does: the target is ahead of the checkpoint.
        }
    }
    let changes_before = {
        let running = start(&fake, &file).await;
        let before = running.status().counters.changes;
        running.stop().await.expect("stop");
        before
    };
    let mut running = start(&fake, &file).await;
    put(&fake, 1, 999);
    drained(&mut running, &fake, &file).await;
    assert_eq!(running.status().counters.changes, changes_before + 1, "nothing was applied again");
    running.stop().await.expect("stop");
    let stored = Sqlite::open(&file).checkpointer().load("shop").await.expect("load").expect("a checkpoint").1;
    let open = fake.open_shards("orders").len();
    assert!(stored.partitions.len() <= 1 + 2 * open, "{:?} for {open} open shards", stored.partitions.keys());
}
