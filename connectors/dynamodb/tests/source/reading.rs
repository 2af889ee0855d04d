//! What records become, and how far a reading is.

use std::time::Duration;

use anabranch_core::{Next, Op, Partition, PartitionId, Position, Source, StartFrom, TableSnapshot, Timestamp};
use anabranch_dynamodb::{TtlDeletes, bookkeeping};
use anabranch_dynamodb_fake::{n, s};

use super::support::{Bench, orders, put, shop};

#[tokio::test]
async fn deletes_by_time_to_live_are_recognised() {
    let bench = Bench::new().await;
    put(&bench.fake, 1, 1);
    put(&bench.fake, 2, 1);
    let running =
        bench.pipeline("test", orders(&bench.fake).ttl_deletes(TtlDeletes::Skip)).start().await.expect("start");
    bench.rows.equal(&bench.fake, "orders").await;
    bench.fake.expire("orders", &[("id", n(1))]);
    bench.fake.delete("orders", &[("id", n(2))]);
    bench.rows.until(|| bench.rows.of("orders").len() == 1, || bench.rows.of("orders")).await;
    assert!(bench.rows.of("orders").contains_key("1"), "the delete by time to live is left out");
    running.stop().await.expect("stop");

    let source = orders(&bench.fake);
    source.prepare(None).await.expect("prepare");
    let shard = Partition::root(PartitionId::new(format!("orders/{}", bench.fake.open_shards("orders")[0])));
    let mut reader = source.open(&shard, &StartFrom::default()).await.expect("open");
    let mut tags = Vec::new();
    while tags.len() < 4 {
        let Next::Batch(batch) = reader.next().await.expect("next") else { panic!("no batch") };
        tags.extend(batch.pieces().iter().map(|p| p.transaction.tag.as_deref().map(str::to_owned)));
    }
    assert_eq!(tags, [None, None, Some("ttl".to_owned()), None]);
}

#[tokio::test]
async fn attributes_of_global_tables_and_of_this_library_are_left_out() {
    let bench = Bench::new().await;
    let extra = [("aws:rep:updateregion", s("eu-west-1")), (bookkeeping::VERSION, s("0001")), ("own", s("stays"))];
    let mut item = vec![("id", n(1))];
    item.extend(extra.map(|(name, value)| (name, value)));
    bench.fake.put("orders", &item);
    let running = bench.start().await;
    bench.rows.until(|| bench.rows.of("orders").len() == 1, || "nothing").await;
    assert_eq!(bench.rows.of("orders")["1"], r#"{"id":{"N":"1"},"own":{"S":"stays"}}"#);
    running.stop().await.expect("stop");
}

#[tokio::test]
async fn tombstones_are_deletes_and_echoes_are_left_out() {
    let bench = Bench::new().await;
    put(&bench.fake, 1, 1);
    put(&bench.fake, 2, 1);
    let source = orders(&bench.fake).skip_origins(vec!["back".to_owned()]);
    let running = bench.pipeline("test", source).start().await.expect("start");
    bench.rows.equal(&bench.fake, "orders").await;
    bench.fake.put("orders", &[("id", n(2)), ("v", n(2)), (bookkeeping::ORIGIN, s("back"))]);
    bench.fake.put("orders", &[("id", n(1)), (bookkeeping::DELETED, s("1"))]);
    bench.rows.until(|| bench.rows.of("orders").len() == 1, || bench.rows.of("orders")).await;
    // The tombstone expires, which is no change; an item in its place is a new one.
    bench.fake.expire("orders", &[("id", n(1))]);
    put(&bench.fake, 1, 5);
    bench.rows.until(|| bench.rows.of("orders").len() == 2, || bench.rows.of("orders")).await;
    running.stop().await.expect("stop");
    let ops: Vec<(Op, String)> = bench.rows.log().into_iter().map(|(op, key, _)| (op, key)).collect();
    let one = |op| (op, "1".to_owned());
    let mine: Vec<_> = ops.iter().filter(|(_, key)| key == "1").cloned().collect();
    assert_eq!(mine, [one(Op::Insert), one(Op::Delete), one(Op::Insert)]);
    assert_eq!(ops.iter().filter(|(_, key)| key == "2").count(), 1, "the echo");
}

#[tokio::test]
async fn a_drain_is_exact_on_idle_and_on_splitting_shards() {
    let bench = Bench::new().await;
    let root = bench.fake.open_shards("orders").remove(0);
    let children = bench.fake.split("orders", &root);
    bench.fake.split("orders", &children[0]);
    (0..100).for_each(|id| put(&bench.fake, id, 1));
    let mut running = bench.start().await;
    let drained = running.drain(Some(Duration::from_secs(20))).await.expect("drain");
    assert!(drained.drained, "{drained:?}");
    assert_eq!(bench.rows.of("orders"), super::support::items(&bench.fake, "orders"), "everything, and no marker");
    assert_eq!(drained.marker.len(), 3, "a mark for each open shard: {:?}", drained.marker);
    // Nothing is written, and a shard ends while it is marked.
    let closing = children[1].clone();
    bench.fake.after_call("PutItem", 1, move |state| {
        state.split("orders", &closing);
    });
    let drained = running.drain(Some(Duration::from_secs(20))).await.expect("drain");
    assert!(drained.drained, "{drained:?}");
    assert_eq!(bench.fake.items("orders").len(), 100, "no marker stays");
    running.stop().await.expect("stop");
}

#[tokio::test]
async fn no_marker_stays_in_a_table_that_is_throttled() {
    let bench = Bench::new().await;
    put(&bench.fake, 1, 1);
    let mut running = bench.start().await;
    bench.fake.fail("DeleteItem", "ProvisionedThroughputExceededException", 6);
    let drained = running.drain(Some(Duration::from_secs(60))).await.expect("drain");
    assert!(drained.drained, "{drained:?}");
    assert_eq!(bench.fake.items("orders").len(), 1, "{:?}", bench.fake.items("orders"));
    running.stop().await.expect("stop");
}

#[tokio::test]
async fn safe_time_follows_records_and_waits_for_the_end_of_the_copy() {
    let fake = shop().await;
    put(&fake, 1, 1);
    let source = orders(&fake);
    source.prepare(None).await.expect("prepare");
    let shard = fake.open_shards("orders").remove(0);
    let partition = Partition::root(PartitionId::new(format!("orders/{shard}")));
    let safe = async |from: &StartFrom| {
        let mut reader = source.open(&partition, from).await.expect("open");
        let mut safe = None;
        for _ in 0..2 {
            let Next::Batch(batch) = reader.next().await.expect("next") else { panic!("no batch") };
            safe = batch.safe_time().or(safe);
        }
        safe
    };
    let now = Timestamp::now();
    let found = safe(&StartFrom::default()).await.expect("a safe time");
    let behind = now.micros_since(found);
    assert!((4_000_000..9_000_000).contains(&behind), "five seconds and the rounding: {behind}");
    // The copy ended after that record: nothing is safe until the replay has passed it.
    let name = source.tables().await.expect("tables").remove(0).name;
    let copied = TableSnapshot {
        point: Position::default(),
        finished: true,
        finished_at: Some(Timestamp::now()),
        ..TableSnapshot::default()
    };
    let from = StartFrom { position: None, snapshots: [(name, copied)].into() };
    assert_eq!(safe(&from).await, None);
}

/// The children of a split are listed one after the other: what was committed to the one that is not listed
/// yet is waited for too.
#[tokio::test]
async fn a_mark_waits_for_a_second_child_that_is_listed_late() {
    let fake = shop().await;
    let source = orders(&fake);
    source.prepare(None).await.expect("prepare");
    let root = fake.open_shards("orders").remove(0);
    let children = fake.split("orders", &root);
    (0..20).for_each(|id| put(&fake, id, 1));
    fake.state().hide_second_child = 1;
    let marks = source.marker().expect("a marker").mark().await.expect("marks");
    for child in children {
        let partition = PartitionId::new(format!("orders/{child}"));
        assert!(marks.contains_key(&partition), "{partition} has no mark: {:?}", marks.keys());
    }
}
