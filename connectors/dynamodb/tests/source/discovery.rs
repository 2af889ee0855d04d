//! Shards are found, however many there are and whatever happens meanwhile.

use std::time::Duration;

use anabranch_core::pipeline::SnapshotMode;
use anabranch_dynamodb_fake::Spoiled;

use super::support::{Bench, PATIENCE, items, orders, put};

/// Splits shards until there are `count`.
fn grow(bench: &Bench, count: usize) {
    loop {
        let open = bench.fake.open_shards("orders");
        for shard in &open {
            if bench.fake.state().stream("orders").shards.len() >= count {
                return;
            }
            bench.fake.split("orders", shard);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn six_hundred_and_eighty_four_shards_are_listed_in_pages() {
    let bench = Bench::new().await;
    grow(&bench, 684);
    (0..300).for_each(|id| put(&bench.fake, id, 1));
    bench.fake.fail("DescribeStream", "LimitExceededException", 2);
    // Hundreds of shards every few milliseconds would be a test of the client.
    let source = orders(&bench.fake).poll(Duration::from_millis(100), Duration::from_secs(5));
    let running = bench.pipeline("test", source).start().await.expect("start");
    let begun = tokio::time::Instant::now();
    // Ten generations; unoptimised, on a busy machine, the client's own work is most of it.
    let told = || ["DescribeStream", "GetShardIterator", "GetRecords"].map(|o| bench.fake.calls(o));
    bench.rows.within(8 * PATIENCE, || bench.rows.of("orders") == items(&bench.fake, "orders"), told).await;
    println!("684 shards: {:?}", begun.elapsed());
    assert!(bench.fake.calls("DescribeStream") >= 7 + 2, "pages");
    running.stop().await.expect("stop");
}

#[tokio::test]
async fn a_split_between_two_pages_hides_no_shard() {
    let bench = Bench::new().await;
    grow(&bench, 7);
    bench.fake.state().shards_a_page = 3;
    (0..60).for_each(|id| put(&bench.fake, id, 1));
    // After the first page, a shard that it showed as open is split.
    let open = bench.fake.open_shards("orders").remove(0);
    bench.fake.after_call("DescribeStream", 2, move |state| {
        state.split("orders", &open);
    });
    let running = bench.start().await;
    bench.rows.until(|| bench.fake.state().stream("orders").shards.len() >= 9, || "no split").await;
    (0..60).for_each(|id| put(&bench.fake, id, 2));
    bench.rows.equal(&bench.fake, "orders").await;
    running.stop().await.expect("stop");
}

#[tokio::test]
async fn a_parent_that_is_there_and_not_listed_is_read_before_its_child() {
    let bench = Bench::new().await;
    let root = bench.fake.open_shards("orders").remove(0);
    (0..30).for_each(|id| put(&bench.fake, id, 1));
    bench.fake.roll("orders", &root);
    (0..30).for_each(|id| put(&bench.fake, id, 2));
    // The listing shows the child and not its parent, which is there.
    let hidden = bench.fake.state().stream_mut("orders").shards.remove(&root).expect("the root");
    bench.fake.after_call("DescribeStream", 1, move |state| {
        state.stream_mut("orders").shards.insert(root, hidden);
    });
    let running = bench.start().await;
    bench.rows.equal(&bench.fake, "orders").await;
    let log = bench.rows.log();
    assert_eq!(log.len(), 60, "the parent's records, and then the child's");
    running.stop().await.expect("stop");
}

#[tokio::test]
async fn empty_pages_in_the_middle_of_a_shard_are_not_its_end() {
    let bench = Bench::new().await;
    (0..50).for_each(|id| put(&bench.fake, id, 1));
    let root = bench.fake.open_shards("orders").remove(0);
    bench.fake.roll("orders", &root);
    {
        let mut state = bench.fake.state();
        state.records_a_page = 10;
        state.empty_pages = 6;
    }
    let running = bench.start().await;
    bench.rows.equal(&bench.fake, "orders").await;
    running.stop().await.expect("stop");
}

#[tokio::test]
async fn throttling_slows_down_and_loses_nothing() {
    let bench = Bench::new().await;
    (0..50).for_each(|id| put(&bench.fake, id, 1));
    bench.fake.state().records_a_page = 10;
    bench.fake.fail("GetRecords", "ProvisionedThroughputExceededException", 4);
    bench.fake.fail("GetShardIterator", "LimitExceededException", 2);
    bench.fake.fail("GetRecords", "InternalServerError", 2);
    let running = bench.start().await;
    bench.rows.equal(&bench.fake, "orders").await;
    assert_eq!(bench.rows.log().len(), 50);
    assert_eq!(running.status().failures, 0, "the run did not begin again");
    running.stop().await.expect("stop");
}

#[tokio::test]
async fn an_idle_shard_is_asked_within_its_bound() {
    let bench = Bench::new().await;
    let running = bench.start().await;
    put(&bench.fake, 1, 1);
    bench.rows.equal(&bench.fake, "orders").await;
    // By the pace of these tests the pause grows to 50 ms, and stays there.
    let asked = || bench.fake.calls("GetRecords");
    let slow = asked() + 8;
    bench.rows.until(|| asked() >= slow, asked).await;
    let (before, begun) = (asked(), tokio::time::Instant::now());
    bench.rows.until(|| asked() >= before + 20, asked).await;
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(20 * 50 * 3 / 4), "20 times in {took:?}");
    running.stop().await.expect("stop");
}

#[tokio::test]
async fn many_tables_in_one_process() {
    let bench = Bench::new().await;
    let names = ["orders", "lines", "customers"];
    for name in &names[1..] {
        bench.fake.create_table(name, &[("id", "N")]);
    }
    let mut source = super::support::source(&bench.fake.endpoint());
    for name in names {
        source = source.table(name);
        (0..20).for_each(|id| bench.fake.put(name, &[("id", anabranch_dynamodb_fake::n(id))]));
    }
    let running = bench.pipeline("test", source).start().await.expect("start");
    for name in names {
        bench.rows.equal(&bench.fake, name).await;
    }
    let shard = bench.fake.open_shards("lines").remove(0);
    bench.fake.split("lines", &shard);
    (0..20).for_each(|id| bench.fake.delete("lines", &[("id", anabranch_dynamodb_fake::n(id))]));
    bench.rows.equal(&bench.fake, "lines").await;
    running.stop().await.expect("stop");
}

#[tokio::test]
async fn answers_that_do_not_arrive_whole_are_asked_for_again() {
    let mut bench = Bench::new().await;
    bench.snapshot = SnapshotMode::Initial;
    (0..100).for_each(|id| put(&bench.fake, id, 1));
    bench.fake.state().items_a_page = 20;
    bench.fake.state().records_a_page = 10;
    let all = [Spoiled::Torn, Spoiled::Replaced, Spoiled::Cut];
    bench.fake.spoil("Scan", all);
    let running = bench.pipeline("test", orders(&bench.fake).scan_segments(1)).start().await.expect("start");
    bench.rows.equal(&bench.fake, "orders").await;
    bench.fake.spoil("GetRecords", all);
    (50..150).for_each(|id| put(&bench.fake, id, 2));
    bench.rows.equal(&bench.fake, "orders").await;
    assert_eq!(bench.fake.to_spoil(), 0, "each was met");
    assert_eq!(running.status().failures, 0, "the run did not begin again");
    running.stop().await.expect("stop");
}
