//! A pipeline with `each_shard`: the handle, the status and the marks of one whose shards are written each by a
//! pipeline of its own.

use std::sync::Arc;
use std::time::Duration;

use anabranch_core::checkpointer::FileCheckpointer;
use anabranch_core::memory::{MemorySink, MemorySource};
use anabranch_core::pipeline::{RunMode, RunningPipeline, ShardPhase, SnapshotMode, Status, Workers};
use anabranch_core::{ByTransaction, ErrorKind, Pipeline, PipelineBuilder, Sharded, Sink};
use anabranch_sqlite::Sqlite;

use crate::shards::{SHARDS, Story};
use crate::support::*;

/// The databases of these shards as one target.
fn target(story: &Story, shards: &[&str]) -> Sharded {
    let sink = |shard: &&str| (shard.to_string(), Arc::new(Sqlite::open(story.path(shard))) as Arc<dyn Sink>);
    Sharded::new(shards.iter().map(sink)).unwrap()
}

fn writer(story: &Story, shards: &[&str]) -> PipelineBuilder {
    Pipeline::builder("write")
        .source(story.folder.source())
        .sink(target(story, shards))
        .order(ByTransaction::new())
        .snapshot(SnapshotMode::Never)
        .each_shard(true)
}

async fn start(story: &Story, mode: RunMode) -> RunningPipeline {
    writer(story, &SHARDS).mode(mode).build().unwrap().start().await.unwrap()
}

async fn drain(running: &mut RunningPipeline) -> bool {
    match running.drain(Some(PATIENCE)).await {
        Ok(drained) => drained.drained,
        Err(e) => panic!("{e}: {:?}", running.status()),
    }
}

async fn stored(story: &Story) -> Status {
    writer(story, &SHARDS).build().unwrap().stored_status().await.unwrap().unwrap()
}

fn phases(status: &Status) -> Vec<(&str, ShardPhase)> {
    status.shards.iter().map(|(name, shard)| (name.as_str(), shard.phase)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_fails_halts_alone_and_the_status_tells_why() {
    let mut story = Story::begin().await;
    assert!(writer(&story, &SHARDS).build().unwrap().stored_status().await.unwrap().is_none());
    story.write().await;
    let mut running = start(&story, RunMode::Regular).await;
    assert!(drain(&mut running).await);
    let whole = running.status();
    assert_eq!(phases(&whole), SHARDS.map(|s| (s, ShardPhase::Running)));
    assert_eq!(whole.counters.changes, 12);

    story.spoil("us");
    story.write().await;
    assert!(!drain(&mut running).await, "us lacks rows");
    for shard in ["asia", "eu"] {
        assert_eq!(story.ids(shard), story.all(), "{shard}");
    }
    let live = running.status();
    assert_eq!(live.shards["us"].phase, ShardPhase::Halted);
    assert!(live.shards["us"].reason.as_ref().unwrap().contains("orders"), "{live:?}");
    assert!(live.safe_time < Some(second(5 * 6)), "what us lacks was committed then: {live:?}");
    let ended = running.stop().await.unwrap_err();
    assert_eq!(ended.kind(), ErrorKind::Fatal);
    assert!(ended.to_string().starts_with("1 of 3 shards is halted: us: "), "{ended}");
    let status = stored(&story).await;
    let us_halted = [("asia", ShardPhase::Stopped), ("eu", ShardPhase::Stopped), ("us", ShardPhase::Halted)];
    assert_eq!(phases(&status), us_halted);
    assert_eq!(status.counters.changes, 4 * 3 + 4 + 4 + 1);
    let whole = writer(&story, &SHARDS).build().unwrap();
    let error = whole.drain(Some(PATIENCE)).await.unwrap_err();
    assert!(error.to_string().contains("us: "), "{error}");

    // Stopped before it could come further, or halted again: in any case it has not gone well.
    let stopped = start(&story, RunMode::ResumeFailed).await.stop().await;
    assert!(stopped.is_ok() || stopped.unwrap_err().to_string().contains("us: "));
    assert_eq!(phases(&stored(&story).await), us_halted);

    story.mend("us");
    let mut running = start(&story, RunMode::ResumeFailed).await;
    assert!(drain(&mut running).await);
    assert_eq!(running.status().safe_time, None, "of the other shards this run knows nothing");
    running.stop().await.unwrap();
    let status = stored(&story).await;
    assert_eq!(phases(&status), SHARDS.map(|s| (s, ShardPhase::Stopped)));
    assert_eq!(status.counters.changes, 8 * 3);
    assert_eq!(story.ids("us"), story.all());
    assert!(whole.drain(Some(PATIENCE)).await.unwrap().drained);
}

/// Each database has the checkpoint of its own shard: behind another one it would be begun anew, in rows of others.
#[tokio::test(flavor = "multi_thread")]
async fn databases_that_were_exchanged_get_nothing_of_one_another() {
    let mut story = Story::begin().await;
    story.write().await;
    let mut running = start(&story, RunMode::Regular).await;
    assert!(drain(&mut running).await);
    running.stop().await.unwrap();
    let before = story.ids("eu");
    story.database("eu").execute_batch("UPDATE orders SET body = 'of eu'").unwrap();
    story.database("us").execute_batch("UPDATE orders SET body = 'of us'").unwrap();

    // While it was down, somebody took two URLs for one another, and an empty database for the third.
    story.table("blank");
    let sinks = [("asia", "blank"), ("eu", "us"), ("us", "eu")];
    let sinks = sinks.map(|(name, path)| (name, Arc::new(Sqlite::open(story.path(path))) as Arc<dyn Sink>));
    let exchanged = writer(&story, &SHARDS).sink(Sharded::new(sinks).unwrap()).build().unwrap();
    let ended = match exchanged.start().await {
        Ok(mut running) => tokio::time::timeout(PATIENCE, running.wait()).await.expect("they halt").unwrap_err(),
        Err(error) => error,
    };
    assert!(ended.to_string().starts_with("3 of 3 shards are halted: "), "{ended}");
    assert!(ended.to_string().contains("has nothing of it"), "{ended}");
    let own = |story: &Story, shard: &str| {
        let count = format!("SELECT count(*) FROM orders WHERE body = 'of {shard}'");
        story.database(shard).query_row(&count, [], |row| row.get::<_, i64>(0)).unwrap() as usize
    };
    assert_eq!([own(&story, "eu"), own(&story, "us")], [before.len(); 2]);
    assert!(story.ids("blank").is_empty());

    // Mended, they go on.
    story.write().await;
    let mut running = start(&story, RunMode::ResumeAll).await;
    assert!(drain(&mut running).await);
    running.stop().await.unwrap();
    for shard in SHARDS {
        assert_eq!(story.ids(shard), story.all(), "{shard}");
    }
    assert_eq!(own(&story, "eu"), before.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_that_is_made_while_the_shard_is_written_stays() {
    let mut story = Story::begin().await;
    story.write().await;
    let mut running = start(&story, RunMode::Regular).await;
    assert!(drain(&mut running).await);
    let whole = writer(&story, &SHARDS).build().unwrap();
    whole.reprocess("eu").await.unwrap();
    let error = whole.reprocess("mars").await.unwrap_err();
    assert!(error.to_string().contains("its shards: asia, eu, us"), "{error}");
    running.stop().await.unwrap();
    assert_eq!(stored(&story).await.shards["eu"].phase, ShardPhase::Reprocess);

    // It takes the marked one alone, and the mark away, though there was nothing to do.
    let mut running = start(&story, RunMode::Reprocess).await;
    assert!(drain(&mut running).await);
    assert_eq!(phases(&running.status()), [("eu", ShardPhase::Running)]);
    running.stop().await.unwrap();
    assert_eq!(stored(&story).await.shards["eu"].phase, ShardPhase::Stopped);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_appears_is_taken_and_one_that_the_target_lacks_is_halted() {
    let mut story = Story::begin().await;
    story.table("new");
    story.write().await;
    let mut running = writer(&story, &["asia", "eu", "us", "new"]).build().unwrap().start().await.unwrap();
    assert!(drain(&mut running).await);
    let n = story.next;
    story.run.write(&[tx(n, 5 * n as i64, &[(1, Some("new"))])]).await;
    assert!(drain(&mut running).await);
    assert_eq!(story.ids("new"), [1]);

    // What has no database, and what has no shard.
    story.run.write(&[tx(n + 1, 5 * n as i64 + 5, &[(2, Some("mars")), (3, None)])]).await;
    assert!(!drain(&mut running).await);
    let status = running.status();
    assert_eq!(status.safe_time.filter(|t| *t >= second(5 * n as i64 + 5)), None, "{status:?}");
    let reason = |shard: &str| status.shards[shard].reason.clone().unwrap();
    assert!(reason("mars").contains("sink: has no shard mars") && reason("mars").contains("asia, eu, new, us"));
    assert!(reason("").contains("changes without a shard"), "{}", reason(""));
    assert!(running.stop().await.unwrap_err().to_string().starts_with("2 of 6 shards are halted: "));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_processes_the_older_leaves_its_shards_to_the_other() {
    let mut story = Story::begin().await;
    story.write().await;
    let mut older = start(&story, RunMode::Regular).await;
    assert!(drain(&mut older).await);
    let mut newer = start(&story, RunMode::ResumeAll).await;
    story.write().await;
    assert!(drain(&mut newer).await);
    let ended = tokio::time::timeout(PATIENCE, async {
        // Each shard's pipeline is refused at its next save.
        while older.status().shards.values().any(|s| s.phase == ShardPhase::Running) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    ended.await.unwrap();
    let error = older.stop().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
    assert_eq!(phases(&stored(&story).await), SHARDS.map(|s| (s, ShardPhase::Running)));
    newer.stop().await.unwrap();
    assert_eq!(stored(&story).await.counters.changes, 8 * 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_shards_are_paused_together() {
    let mut story = Story::begin().await;
    story.write().await;
    let whole = writer(&story, &SHARDS).build().unwrap();
    assert!(whole.pause().await.unwrap_err().to_string().contains("has never run"));
    let mut running = start(&story, RunMode::Regular).await;
    assert!(drain(&mut running).await);
    assert!(whole.pause().await.unwrap() && !whole.pause().await.unwrap());
    running.stop().await.unwrap();
    story.write().await;
    let mut running = start(&story, RunMode::Regular).await;
    assert!(whole.resume().await.unwrap());
    assert!(drain(&mut running).await);
    running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_pipeline_for_all_shards_and_one_for_each_do_not_mix() {
    let mut story = Story::begin().await;
    story.write().await;
    let state = story.databases.path().join("state");
    let as_one = |name: &str| {
        Pipeline::builder(name)
            .source(story.folder.source())
            .sink(target(&story, &SHARDS))
            .snapshot(SnapshotMode::Never)
            .checkpointer(FileCheckpointer::new(&state))
            .build()
            .unwrap()
    };
    let mut running = as_one("write").start().await.unwrap();
    assert!(drain(&mut running).await);
    running.stop().await.unwrap();
    let ended = start(&story, RunMode::Regular).await.wait().await.unwrap_err();
    assert!(ended.to_string().starts_with("3 of 3 shards are halted: asia: pipeline.name: write has been"), "{ended}");

    let each = Pipeline::builder("other")
        .source(story.folder.source())
        .sink(target(&story, &["asia"]))
        .snapshot(SnapshotMode::Never)
        .each_shard(true);
    let mut running = each.build().unwrap().start().await.unwrap();
    assert!(!drain(&mut running).await, "eu and us have no database");
    assert!(running.stop().await.is_err());
    let error = as_one("other").start().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("pipeline.each_shard = true"), "{error}");
}

#[test]
fn what_does_not_go_together_is_told_with_the_fix() {
    let source = || files_in(std::path::Path::new("/nowhere")).source();
    let shards = || {
        let sink = |name: &str| (name.to_owned(), Arc::new(MemorySink::new()) as Arc<dyn Sink>);
        Sharded::new(["a", "b"].map(sink)).unwrap()
    };
    let said = |builder: PipelineBuilder| {
        let error = builder.build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        error.to_string()
    };
    let each = || Pipeline::builder("p").source(source()).sink(shards()).each_shard(true);
    each().build().unwrap();
    for (builder, key, fix) in [
        (each().source(MemorySource::new("shop")), "pipeline.each_shard: the source memory", "type = \"files\""),
        (each().sink(MemorySink::new()), "pipeline.each_shard: the sink memory", "sink.type = \"sharded\""),
        (each().workers(Workers::new()), "workers: ", "source.shards"),
        (each().each_shard(false).mode(RunMode::ResumeFailed), "pipeline.mode: resume_failed", "each_shard = true"),
        (Pipeline::builder("p".repeat(99)).source(source()).sink(shards()).each_shard(true), "pipeline.name: ", "100"),
    ] {
        let said = said(builder);
        assert!(said.starts_with(key) && said.contains(fix), "{said}");
    }
}
