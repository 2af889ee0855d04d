//! What is lost is told, never skipped.

use std::time::Duration;

use anabranch_core::pipeline::SnapshotMode;
use anabranch_core::{ErrorKind, Source};

use super::support::{Bench, PATIENCE, orders, put};

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn an_expired_iterator_is_made_anew() {
    let bench = Bench::new().await;
    let running = bench.start().await;
    for round in 0..5 {
        put(&bench.fake, 1, round);
        bench.rows.equal(&bench.fake, "orders").await;
        bench.fake.expire_iterators();
    }
    assert_eq!(bench.rows.log().len(), 5, "nothing twice, nothing left out");
    running.stop().await.expect("stop");
}

#[tokio::test]
async fn a_shard_that_is_deleted_while_its_iterator_expired_is_a_gap() {
    let bench = Bench::new().await;
    put(&bench.fake, 1, 1);
    let mut running = bench.start().await;
    bench.rows.equal(&bench.fake, "orders").await;
    let shard = bench.fake.open_shards("orders").remove(0);
    {
        let mut state = bench.fake.state();
        state.roll("orders", &shard);
        state.stream_mut("orders").shards.remove(&shard);
    }
    bench.fake.expire_iterators();
    let error = tokio::time::timeout(Duration::from_secs(20), running.wait()).await.expect("no endless loop");
    let error = error.expect_err("a gap");
    assert_eq!(error.kind(), ErrorKind::Fatal, "{error}");
    let said = error.report();
    assert!(
        said.contains(&shard) && said.contains("no longer in the stream") && said.contains("copy the table again"),
        "{said}"
    );
}

#[tokio::test]
async fn trimmed_records_are_a_gap() {
    let bench = Bench::new().await;
    put(&bench.fake, 1, 1);
    let running = bench.start().await;
    bench.rows.equal(&bench.fake, "orders").await;
    running.stop().await.expect("stop");
    put(&bench.fake, 1, 2);
    bench.fake.advance(25 * HOUR);
    put(&bench.fake, 1, 3);
    let error = bench.failure().await;
    assert_eq!(error.kind(), ErrorKind::Fatal, "{error}");
    assert!(error.report().contains("trimmed") && error.report().contains("orders"), "{}", error.report());
    assert!(error.report().contains("copy the table again"), "{}", error.report());
}

#[tokio::test]
async fn a_child_that_was_trimmed_before_it_was_opened_is_a_gap() {
    let bench = Bench::new().await;
    put(&bench.fake, 1, 1);
    let running = bench.start().await;
    bench.rows.equal(&bench.fake, "orders").await;
    // The sink stands still while the shard rolls, so that its child waits for it.
    bench.rows.open(false);
    put(&bench.fake, 1, 2);
    let shard = bench.fake.open_shards("orders").remove(0);
    bench.fake.roll("orders", &shard);
    put(&bench.fake, 1, 3);
    let calls = bench.fake.calls("DescribeStream");
    bench.rows.until(|| bench.fake.calls("DescribeStream") > calls, || "the end is not found").await;
    bench.fake.advance(25 * HOUR);
    bench.rows.open(true);
    let mut running = running;
    let ended = tokio::time::timeout(Duration::from_secs(20), running.wait()).await.expect("an end");
    let error = ended.expect_err("a gap");
    assert_eq!(error.kind(), ErrorKind::Fatal, "{}", error.report());
}

#[tokio::test]
async fn what_was_trimmed_before_the_pipeline_began_is_no_gap() {
    let bench = Bench::new().await;
    put(&bench.fake, 1, 1);
    put(&bench.fake, 2, 1);
    bench.fake.advance(25 * HOUR);
    put(&bench.fake, 2, 2);
    let running = bench.start().await;
    bench.rows.until(|| bench.rows.of("orders").len() == 1, || bench.rows.of("orders")).await;
    running.stop().await.expect("stop");
}

#[tokio::test]
async fn a_stream_that_vanished_is_a_gap() {
    let bench = Bench::new().await;
    put(&bench.fake, 1, 1);
    let mut running = bench.start().await;
    bench.rows.equal(&bench.fake, "orders").await;
    bench.fake.state().streams.clear();
    let ended = tokio::time::timeout(Duration::from_secs(20), running.wait()).await.expect("an end");
    let error = ended.expect_err("a gap");
    assert_eq!(error.kind(), ErrorKind::Fatal, "{}", error.report());
    assert!(error.report().contains("is gone"), "{}", error.report());
}

#[tokio::test]
async fn another_stream_of_the_table_is_a_gap() {
    let bench = Bench::new().await;
    put(&bench.fake, 1, 1);
    let running = bench.start().await;
    bench.rows.equal(&bench.fake, "orders").await;
    running.stop().await.expect("stop");
    {
        let mut state = bench.fake.state();
        state.disable_stream("orders");
        state.enable_stream("orders", "NEW_AND_OLD_IMAGES");
    }
    let error = bench.failure().await;
    assert_eq!(error.kind(), ErrorKind::Fatal, "{error}");
    assert!(error.report().contains("its stream is") && error.report().contains("copy the table again"), "{error}");
}

#[tokio::test]
async fn a_disabled_stream_is_read_to_its_end_and_then_told() {
    let bench = Bench::new().await;
    let root = bench.fake.open_shards("orders").remove(0);
    (0..40).for_each(|id| put(&bench.fake, id, 1));
    let running = bench.start().await;
    bench.rows.equal(&bench.fake, "orders").await;
    running.stop().await.expect("stop");
    bench.fake.split("orders", &root);
    (0..40).for_each(|id| put(&bench.fake, id, 2));
    bench.fake.state().disable_stream("orders");
    let error = bench.failure().await;
    assert_eq!(error.kind(), ErrorKind::Fatal, "{}", error.report());
    assert!(error.report().contains("was disabled"), "{}", error.report());
    bench.rows.equal(&bench.fake, "orders").await;
}

#[tokio::test]
async fn a_copy_that_takes_longer_than_a_day_is_an_error() {
    let mut bench = Bench::new().await;
    bench.snapshot = SnapshotMode::Initial;
    (0..10).for_each(|id| put(&bench.fake, id, 1));
    // The last segment takes 25 hours, while items change.
    bench.fake.after_call("Scan", 4, |state| {
        let item = [("id".to_owned(), anabranch_dynamodb_fake::n(3)), ("v".to_owned(), anabranch_dynamodb_fake::n(9))];
        state.tables.get_mut("orders").expect("orders").items.insert("gone".to_owned(), item.into());
        state.advance(25 * HOUR);
    });
    let error = bench.failure().await;
    assert_eq!(error.kind(), ErrorKind::Fatal, "{}", error.report());
    assert!(error.report().contains("24 hours"), "{}", error.report());
}

#[tokio::test]
async fn the_retention_left_is_counted_down() {
    let bench = Bench::new().await;
    put(&bench.fake, 1, 1);
    let source = orders(&bench.fake);
    bench.rows.open(false);
    let running = bench.pipeline("test", source.clone()).start().await.expect("start");
    bench.rows.until(|| bench.fake.calls("GetRecords") > 3, || "no read").await;
    let left = source.retention().expect("retention").left().await.expect("left");
    let before = left.seconds.expect("seconds");
    assert!((before - 86_400.0).abs() < 30.0, "{before}");
    // The target stands still for 19 hours.
    bench.fake.advance(19 * HOUR);
    let calls = bench.fake.calls("GetRecords");
    bench.rows.until(|| bench.fake.calls("GetRecords") > calls + 1, || "no read").await;
    let left = source.retention().expect("retention").left().await.expect("left").seconds.expect("seconds");
    assert!((left - (86_400.0 - 19.0 * 3600.0)).abs() < 30.0, "{left}");
    bench.rows.open(true);
    bench.rows.equal(&bench.fake, "orders").await;
    let caught_up = async || source.retention().expect("retention").left().await.expect("left").seconds;
    let caught_up = async {
        while caught_up().await.is_none_or(|left| left < 86_000.0) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, caught_up).await.expect("it catches up");
    running.stop().await.expect("stop");
}
