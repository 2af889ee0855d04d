//! Copies under live writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anabranch_core::pipeline::SnapshotMode;
use anabranch_core::{Checkpointer, Next, Snapshotter, Source};
use anabranch_dynamodb_fake::n;

use super::support::{Bench, PATIENCE, items, orders, put, shop};

/// Between two rounds of live writes: the copy has to get on beside them.
const PACE: Duration = Duration::from_millis(5);

/// How many segments of the table the checkpoint has as done.
async fn done(bench: &Bench) -> u64 {
    let stored = bench.checkpoints.load("test").await.expect("load");
    stored.and_then(|(_, stored)| Some(u64::from(stored.snapshot.tables.values().next()?.done))).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_is_killed_and_resumed_under_live_writes_is_equal() {
    let mut bench = Bench::new().await;
    bench.snapshot = SnapshotMode::Initial;
    (0..2000).for_each(|id| put(&bench.fake, id, 1));
    bench.fake.state().items_a_page = 20;
    let bench = Arc::new(bench);
    let writing = Arc::new(AtomicBool::new(true));
    let writer = {
        let (bench, writing) = (Arc::clone(&bench), Arc::clone(&writing));
        tokio::spawn(async move {
            let mut round = 0;
            while writing.load(Ordering::Relaxed) {
                for step in 0..20u32 {
                    let id = (round * 37 + step * 101) % 2200;
                    match (round + step) % 3 {
                        0 => bench.fake.delete("orders", &[("id", n(id))]),
                        _ => put(&bench.fake, id, round + 2),
                    }
                }
                round += 1;
                if round % 10 == 0 {
                    let shard = bench.fake.open_shards("orders").remove(0);
                    bench.fake.roll("orders", &shard);
                }
                tokio::time::sleep(PACE).await;
            }
        })
    };
    let source = || orders(&bench.fake).scan_segments(8);
    let mut scans_before_kill = 0;
    for kill in 1..=3 {
        let running = bench.pipeline("test", source()).start().await.expect("start");
        let (seen, begun) = (bench.fake.calls("Scan"), Instant::now());
        // The last time when a segment is done; before, after some pages, or when there are no more of them.
        while match done(&bench).await {
            done if kill == 3 => done == 0,
            done => done < 8 && bench.fake.calls("Scan") < seen + 20 * kill,
        } {
            assert!(begun.elapsed() < PATIENCE, "kill {kill}: {} scans", bench.fake.calls("Scan") - seen);
            tokio::time::sleep(PACE).await;
        }
        drop(running); // As a kill does: nothing is finished, nothing is saved.
        scans_before_kill = bench.fake.calls("Scan");
    }
    let stored = bench.checkpoints.load("test").await.expect("load").expect("a checkpoint").1;
    let copied = stored.snapshot.tables.values().next().expect("the table").clone();
    let running = bench.pipeline("test", source()).start().await.expect("start");
    bench.rows.until(|| bench.rows.log().len() > 2000, || "no stream").await;
    writing.store(false, Ordering::Relaxed);
    writer.await.expect("the writer");
    bench.rows.equal(&bench.fake, "orders").await;
    let mut running = running;
    let drained = running.drain(Some(Duration::from_secs(20))).await.expect("drain");
    assert!(drained.drained, "{drained:?}");
    assert_eq!(bench.rows.of("orders"), items(&bench.fake, "orders"), "no deleted item is alive");
    running.stop().await.expect("stop");
    // Segments that were done were not read again.
    assert!(copied.done > 0, "segments done before the last kill: {copied:?}");
    let pages_left = bench.fake.calls("Scan") - scans_before_kill;
    assert!(pages_left <= (8 - copied.done as usize) * 20, "{pages_left} pages for {copied:?}");
}

#[tokio::test]
async fn a_scan_keeps_to_its_capacity() {
    let fake = shop().await;
    (0..100).for_each(|id| put(&fake, id, 1));
    {
        let mut state = fake.state();
        state.items_a_page = 10;
        state.scan_units = 5.0;
    }
    let source = orders(&fake).scan_segments(2).scan_capacity(100.0);
    source.prepare(None).await.expect("prepare");
    let snapshot = source.snapshotter().expect("a snapshotter").begin(&source.tables().await.expect("tables")).await;
    let snapshot = snapshot.expect("begin");
    let begun = tokio::time::Instant::now();
    let mut rows = 0;
    for chunk in snapshot.chunks() {
        let mut reader = snapshot.open(chunk).await.expect("open");
        while let Next::Batch(batch) = reader.next().await.expect("next") {
            rows += batch.len();
        }
    }
    assert_eq!(rows, 100);
    // Ten full pages or more of 5 units at 100 units a second; the last is not waited for.
    let pages = fake.calls("Scan") as f64;
    let took = begun.elapsed().as_secs_f64();
    assert!(took >= (pages - 2.0) * 0.05, "{pages} pages in {took} s");
}

#[tokio::test]
async fn markers_and_tombstones_are_not_copied() {
    let mut bench = Bench::new().await;
    bench.snapshot = SnapshotMode::Only;
    put(&bench.fake, 1, 1);
    let s = anabranch_dynamodb_fake::s;
    bench.fake.put("orders", &[("id", n(2)), (anabranch_dynamodb::bookkeeping::DELETED, s("1"))]);
    bench.fake.put("orders", &[("id", n(-3)), (anabranch_dynamodb::bookkeeping::MARKER, s("1"))]);
    let mut running = bench.start().await;
    running.wait().await.expect("the copy");
    assert_eq!(bench.rows.of("orders").into_keys().collect::<Vec<_>>(), ["1"]);
}

#[tokio::test]
async fn a_copy_too_old_to_go_on_begins_again() {
    let fake = shop().await;
    put(&fake, 1, 1);
    let source = orders(&fake);
    source.prepare(None).await.expect("prepare");
    let tables = source.tables().await.expect("tables");
    let snapshotter: &dyn Snapshotter = source.snapshotter().expect("a snapshotter");
    let snapshot = snapshotter.begin(&tables).await.expect("begin");
    let planned = anabranch_core::TableSnapshot { point: snapshot.point(), chunks: 4, done: 1, ..Default::default() };
    let before = [(tables[0].name.clone(), planned)].into();
    let resumed = snapshotter.resume(&tables, &before).await.expect("resume").expect("goes on");
    assert_eq!(resumed.chunks(), snapshot.chunks());
    assert_eq!(resumed.point(), snapshot.point(), "the stream is replayed from the first beginning");
    fake.advance(Duration::from_secs(25 * 3600));
    source.prepare(None).await.expect("prepare");
    assert!(snapshotter.resume(&tables, &before).await.expect("resume").is_none());
}

/// The next page is due in an hour, and the pipeline is to stop now.
#[tokio::test]
async fn a_copy_that_waits_for_its_capacity_stops_at_once() {
    let mut bench = Bench::new().await;
    bench.snapshot = SnapshotMode::Initial;
    (0..100).for_each(|id| put(&bench.fake, id, 1));
    bench.fake.state().items_a_page = 10;
    bench.fake.state().scan_units = 1.0;
    let source = orders(&bench.fake).scan_segments(1).scan_capacity(0.001);
    let running = bench.pipeline("test", source).start().await.expect("start");
    bench.rows.until(|| bench.fake.calls("Scan") > 0, || "no scan").await;
    tokio::time::timeout(PATIENCE, running.stop()).await.expect("it stops").expect("stop");
    assert_eq!(bench.fake.calls("Scan"), 1);
}
