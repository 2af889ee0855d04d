//! Shards that split, roll and end.

use anabranch_core::{Checkpointer, PartitionStatus};

use super::support::{Bench, put};

/// The numbers that were given for a key, in order.
fn given(bench: &Bench, id: u32) -> Vec<u32> {
    let log = bench.rows.log();
    let mine = log.iter().filter(|(_, key, _)| *key == id.to_string());
    mine.map(|(_, _, row)| {
        let row: serde_json::Value = serde_json::from_str(row.as_ref().expect("a row")).expect("JSON");
        row["v"]["N"].as_str().expect("a number").parse().expect("a number")
    })
    .collect()
}

#[tokio::test]
async fn parent_and_child_are_not_read_in_parallel() {
    let bench = Bench::new().await;
    let root = bench.fake.open_shards("orders").remove(0);
    (0..50).for_each(|id| put(&bench.fake, id, 1));
    let children = bench.fake.split("orders", &root);
    (0..50).for_each(|id| put(&bench.fake, id, 2));
    bench.fake.split("orders", &children[0]);
    bench.fake.roll("orders", &children[1]);
    (0..50).for_each(|id| put(&bench.fake, id, 3));

    bench.rows.open(false);
    let running = bench.start().await;
    // The parent is read to its end and its children are known, and nothing of it is durable yet.
    bench.rows.until(|| bench.fake.calls("DescribeStream") > 1, || "its children are not asked for").await;
    assert_eq!(bench.fake.state().asked, [root].into(), "no shard is opened before its parent is durable");
    bench.rows.open(true);
    bench.rows.equal(&bench.fake, "orders").await;
    for id in 0..50 {
        assert_eq!(given(&bench, id), [1, 2, 3], "item {id}");
    }
    running.stop().await.expect("stop");
}

#[tokio::test]
async fn a_child_does_not_wait_for_an_expired_parent() {
    let bench = Bench::new().await;
    let root = bench.fake.open_shards("orders").remove(0);
    let children = bench.fake.split("orders", &root);
    (0..20).for_each(|id| put(&bench.fake, id, 1));
    bench.fake.delete_shard("orders", &root);
    let running = bench.start().await;
    bench.rows.equal(&bench.fake, "orders").await;
    assert_eq!(bench.fake.open_shards("orders"), children);
    running.stop().await.expect("stop");
}

#[tokio::test]
async fn a_partly_read_closed_shard_is_not_finished() {
    let bench = Bench::new().await;
    let root = bench.fake.open_shards("orders").remove(0);
    (0..100).for_each(|id| put(&bench.fake, id, 1));
    bench.fake.roll("orders", &root);
    (0..100).for_each(|id| put(&bench.fake, id, 2));
    bench.fake.state().records_a_page = 7;
    // The run is interrupted in the middle of the closed shard, again and again.
    bench.rows.fail("50", 3);
    let running = bench.start().await;
    bench.rows.equal(&bench.fake, "orders").await;
    running.stop().await.expect("stop");
    let last: Vec<u32> = (0..100).map(|id| *given(&bench, id).last().expect("given")).collect();
    assert_eq!(last, vec![2; 100]);
}

#[tokio::test]
async fn only_what_is_durable_without_a_hole_is_progress() {
    let bench = Bench::new().await;
    (0..200).for_each(|id| put(&bench.fake, id, 1));
    bench.fake.state().records_a_page = 10;
    // One item fails until the run gives up, others around it are written.
    bench.rows.fail("3", 1000);
    let running = bench.start().await;
    bench.rows.until(|| bench.rows.of("orders").len() > 3, || "other items are written").await;
    drop(running);
    let stored = bench.checkpoints.load("test").await.expect("load").expect("a checkpoint").1;
    let shard = bench.fake.open_shards("orders").remove(0);
    let at = stored.partitions.get(format!("orders/{shard}").as_str()).and_then(|p| p.position.clone());
    let at = at.map(|p| String::from_utf8(p.token.to_vec()).expect("text")).unwrap_or_default();
    let fourth = bench.fake.state().stream("orders").shards[&shard].records[3].sequence.to_string();
    assert!(at.starts_with("start") || at < fourth, "the checkpoint {at} is behind the item that failed, {fourth}");
    bench.rows.fail("3", 0);
    let running = bench.start().await;
    bench.rows.equal(&bench.fake, "orders").await;
    running.stop().await.expect("stop");
}

#[tokio::test]
async fn checkpoints_are_kept_for_each_pipeline() {
    let bench = Bench::new().await;
    (0..10).for_each(|id| put(&bench.fake, id, 1));
    let other = Bench { checkpoints: bench.checkpoints.clone(), ..Bench::of(super::support::shop().await) };
    let running = bench.start().await;
    bench.rows.equal(&bench.fake, "orders").await;
    running.stop().await.expect("stop");
    // Another pipeline of the same store begins at the beginning.
    let second = super::support::Rows::new();
    let bench = Bench { rows: second, ..bench };
    let source = super::support::orders(&bench.fake);
    let running = bench.pipeline("another", source).start().await.expect("start");
    bench.rows.equal(&bench.fake, "orders").await;
    running.stop().await.expect("stop");
    drop(other);
}

#[tokio::test]
async fn a_reader_at_a_shards_end_does_not_idle_for_ever() {
    let bench = Bench::new().await;
    let running = bench.start().await;
    put(&bench.fake, 1, 1);
    bench.rows.equal(&bench.fake, "orders").await;
    // The shard rolls, and for a while its child is listed nowhere.
    bench.fake.state().hide_children = 8;
    let shard = bench.fake.open_shards("orders").remove(0);
    bench.fake.roll("orders", &shard);
    put(&bench.fake, 1, 2);
    bench.rows.equal(&bench.fake, "orders").await;
    running.stop().await.expect("stop");
}

#[tokio::test]
async fn a_second_child_that_is_listed_late_is_not_lost() {
    let bench = Bench::new().await;
    let running = bench.start().await;
    put(&bench.fake, 0, 1);
    bench.rows.equal(&bench.fake, "orders").await;
    let shard = bench.fake.open_shards("orders").remove(0);
    // One child is listed at once, the other a moment later.
    let [_, late] = bench.fake.split("orders", &shard);
    let hidden = bench.fake.state().stream_mut("orders").shards.remove(&late).expect("the child");
    bench.fake.after_call("DescribeStream", 1, move |state| {
        state.stream_mut("orders").shards.insert(late, hidden);
    });
    bench.rows.until(|| bench.fake.open_shards("orders").len() == 2, || "not listed").await;
    (0..40).for_each(|id| put(&bench.fake, id, 2));
    bench.rows.equal(&bench.fake, "orders").await;
    running.stop().await.expect("stop");
}

#[tokio::test]
async fn a_server_without_the_filter_for_children_lists_everything() {
    let bench = Bench::new().await;
    bench.fake.state().knows_filter = false;
    let running = bench.start().await;
    for round in 1..4 {
        let shard = bench.fake.open_shards("orders").remove(0);
        bench.fake.split("orders", &shard);
        (0..30).for_each(|id| put(&bench.fake, id, round));
        bench.rows.equal(&bench.fake, "orders").await;
    }
    running.stop().await.expect("stop");
}

#[tokio::test]
async fn finished_shards_leave_the_checkpoint() {
    let bench = Bench::new().await;
    let running = bench.start().await;
    for round in 0..12 {
        let shard = bench.fake.open_shards("orders").remove(0);
        bench.fake.roll("orders", &shard);
        put(&bench.fake, 1, round);
        bench.rows.equal(&bench.fake, "orders").await;
    }
    running.stop().await.expect("stop");
    let stored = bench.checkpoints.load("test").await.expect("load").expect("a checkpoint").1;
    let names: Vec<&str> = stored.partitions.keys().map(|id| id.as_str()).collect();
    assert!(names.len() <= 3, "the root, the open shard and at most its parent: {names:?}");
    assert_eq!(stored.partitions["orders"].status, PartitionStatus::Finished);
    // Shards that are still listed and were finished are not read again.
    let before = bench.rows.log().len();
    let running = bench.start().await;
    put(&bench.fake, 2, 1);
    bench.rows.equal(&bench.fake, "orders").await;
    running.stop().await.expect("stop");
    assert_eq!(bench.rows.log().len(), before + 1, "what was given again");
}

/// A shard was split while nobody read it, a moment before the pipeline came back: the listing has one of
/// the two children so far.
#[tokio::test]
async fn the_second_child_of_a_shard_is_waited_for_after_a_restart_too() {
    let bench = Bench::new().await;
    (0..40).for_each(|id| put(&bench.fake, id, 1));
    let running = bench.start().await;
    bench.rows.equal(&bench.fake, "orders").await;
    running.stop().await.expect("stop");
    let shard = bench.fake.open_shards("orders").remove(0);
    bench.fake.split("orders", &shard);
    (0..40).for_each(|id| put(&bench.fake, id, 2));
    bench.fake.state().hide_second_child = 1;
    let running = bench.start().await;
    bench.rows.equal(&bench.fake, "orders").await;
    running.stop().await.expect("stop");
}
