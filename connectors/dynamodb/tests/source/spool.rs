//! Copies that take longer than the stream keeps what changes meanwhile.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use anabranch_core::checkpointer::MemoryCheckpointer;
use anabranch_core::pipeline::{ByKey, RetryLimits, SnapshotMode};
use anabranch_core::{
    Checkpoint, Checkpointer, Error, ErrorKind, Pipeline, Result, Saved, Snapshotter, Source, Version,
};
use anabranch_dynamodb::DynamoDb;
use anabranch_dynamodb_fake::n;
use async_trait::async_trait;

use super::support::{Bench, orders, put, shop};

const DAY_AND_MORE: Duration = Duration::from_secs(25 * 3600);

/// A folder for the spool, and a table with so many items, of which a copy reads five at a time.
async fn copying(items: u32) -> (tempfile::TempDir, Bench) {
    let mut bench = Bench::new().await;
    bench.snapshot = SnapshotMode::Initial;
    bench.fake.state().items_a_page = 5;
    (0..items).for_each(|id| put(&bench.fake, id, 1));
    (tempfile::tempdir().expect("a folder"), bench)
}

/// A copy that stands still after some pages.
async fn stalled(bench: &Bench, source: impl Fn() -> DynamoDb) -> anabranch_core::RunningPipeline {
    // Within the server: seen from outside, a short copy may be through before it is stopped.
    bench.fake.after_call("Scan", 3, |state| state.fail("Scan", "ProvisionedThroughputExceededException", 1_000_000));
    let running = bench.pipeline("test", source()).start().await.expect("start");
    bench.rows.until(|| bench.fake.calls("Scan") >= 4, || "no scan").await;
    running
}

fn files(folder: &Path) -> Vec<Vec<u8>> {
    let tables = fs::read_dir(folder).into_iter().flatten().flatten().map(|f| f.path());
    let all = tables.flat_map(|table| fs::read_dir(table).into_iter().flatten().flatten());
    all.filter(|f| f.path().extension().is_some_and(|e| e == "spool")).filter_map(|f| fs::read(f.path()).ok()).collect()
}

/// How many partitions are in the spool to their end: a list of what follows them.
fn ended(folder: &Path) -> usize {
    files(folder).iter().filter(|f| f.ends_with(b"]")).count()
}

/// How many items with this number are in the spool.
fn spooled(folder: &Path, v: u32) -> usize {
    let text = format!("{{\"N\":\"{v}\"}}");
    files(folder).iter().map(|f| f.windows(text.len()).filter(|w| *w == text.as_bytes()).count()).sum()
}

#[tokio::test]
async fn a_copy_of_more_than_a_day_that_is_killed_and_resumed_is_equal() {
    let (folder, bench) = copying(100).await;
    let source = || orders(&bench.fake).scan_segments(4).spool(folder.path());
    let running = stalled(&bench, source).await;
    // Changes, deletes, a shard that ends and one that splits: all of it is gone from the stream later.
    (50..60).for_each(|id| bench.fake.delete("orders", &[("id", n(id))]));
    (0..50).for_each(|id| put(&bench.fake, id, 4777));
    let shard = bench.fake.open_shards("orders").remove(0);
    let children = bench.fake.split("orders", &shard);
    (0..50).for_each(|id| put(&bench.fake, id, 4778));
    bench.fake.roll("orders", &children[0]);
    (0..50).for_each(|id| put(&bench.fake, id, 4779));
    bench.rows.until(|| spooled(folder.path(), 4779) >= 50, || spooled(folder.path(), 4779)).await;
    // A child may be read beside its parent: the root, the shard and the child that was rolled are whole.
    bench.rows.until(|| ended(folder.path()) == 3, || ended(folder.path())).await;
    assert!(spooled(folder.path(), 4777) >= 50 && spooled(folder.path(), 4778) >= 50);
    drop(running); // As a kill does.

    bench.fake.advance(DAY_AND_MORE);
    assert!(bench.fake.state().stream("orders").shards.len() < 4, "shards are gone");
    let running = bench.pipeline("test", source()).start().await.expect("start");
    (60..70).for_each(|id| put(&bench.fake, id, 4780));
    bench
        .rows
        .until(|| spooled(folder.path(), 4780) >= 10, || (running.status().last_error, spooled(folder.path(), 4780)))
        .await;
    let scans = bench.fake.calls("Scan");
    bench.fake.heal();
    bench.rows.equal(&bench.fake, "orders").await;
    assert!(bench.fake.calls("Scan") > scans);
    assert!(!bench.rows.of("orders").contains_key("55"), "no deleted item is alive");
    // What follows comes from the stream, and nothing is left on the disk.
    (0..100).for_each(|id| put(&bench.fake, id, 9));
    bench.rows.equal(&bench.fake, "orders").await;
    bench.rows.until(|| files(folder.path()).is_empty(), || files(folder.path()).len()).await;
    running.stop().await.expect("stop");
    // And a restart needs none.
    let running = bench.pipeline("test", source()).start().await.expect("start");
    put(&bench.fake, 1, 10);
    bench.rows.equal(&bench.fake, "orders").await;
    running.stop().await.expect("stop");
}

/// The stream lists a shard that was split together with its children, which are read meanwhile: what they
/// gave is not read again, and not written anew, when the shard ends.
#[tokio::test]
async fn a_child_that_is_listed_beside_its_parent_is_spooled_once() {
    let (folder, bench) = copying(50).await;
    for shard in bench.fake.open_shards("orders") {
        bench.fake.split("orders", &shard);
    }
    let source = || orders(&bench.fake).scan_segments(4).spool(folder.path());
    let running = stalled(&bench, source).await;
    (0..50).for_each(|id| put(&bench.fake, id, 4777));
    bench.rows.until(|| spooled(folder.path(), 4777) >= 50, || spooled(folder.path(), 4777)).await;
    bench.rows.until(|| ended(folder.path()) == 2, || ended(folder.path())).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(bench.fake.calls("GetShardIterator"), 3, "the parent and its children, once each");
    assert_eq!(spooled(folder.path(), 4777), 50);
    bench.fake.heal();
    bench.rows.equal(&bench.fake, "orders").await;
    running.stop().await.expect("stop");
}

/// The stream is disabled while the table is copied: what was in it is applied, and then the gap is told.
#[tokio::test]
async fn a_stream_that_is_disabled_during_the_copy_is_told_after_the_replay() {
    let (folder, bench) = copying(50).await;
    let source = || orders(&bench.fake).scan_segments(4).spool(folder.path());
    let mut running = stalled(&bench, source).await;
    let shard = bench.fake.open_shards("orders").remove(0);
    bench.fake.split("orders", &shard);
    (0..50).for_each(|id| put(&bench.fake, id, 4777));
    bench.fake.state().disable_stream("orders");
    // The root, the shard and both children.
    bench.rows.until(|| ended(folder.path()) == 4, || ended(folder.path())).await;
    bench.fake.heal();
    let error = tokio::time::timeout(super::support::PATIENCE, running.wait()).await.expect("it is told");
    let error = error.expect_err("what was written since is in no stream");
    assert_eq!(error.kind(), ErrorKind::Fatal, "{}", error.report());
    assert!(error.report().contains("was disabled"), "{}", error.report());
    bench.rows.equal(&bench.fake, "orders").await;
}

#[tokio::test]
async fn a_spool_that_is_full_leaves_the_rest_to_the_stream() {
    let (folder, bench) = copying(50).await;
    let source = || orders(&bench.fake).scan_segments(4).spool(folder.path()).spool_max_bytes(2000);
    let running = stalled(&bench, source).await;
    (0..50).for_each(|id| put(&bench.fake, id, 2));
    bench.rows.until(|| bench.fake.calls("GetRecords") > 0, || "no read").await;
    bench.fake.heal();
    bench.rows.equal(&bench.fake, "orders").await;
    running.stop().await.expect("stop");
    assert!(files(folder.path()).iter().map(Vec::len).sum::<usize>() < 60_000);
}

#[tokio::test]
async fn a_scan_that_cannot_be_through_in_time_needs_a_spool() {
    let fake = shop().await;
    (0..1000).for_each(|id| put(&fake, id, 1));
    let folder = tempfile::tempdir().expect("a folder");
    let slow = || orders(&fake).scan_capacity(0.0001);
    for (source, ok) in [(slow(), false), (slow().spool(folder.path()), true)] {
        source.prepare(None).await.expect("prepare");
        let tables = source.tables().await.expect("tables");
        match source.begin(&tables).await {
            Ok(_) => assert!(ok),
            Err(e) => {
                assert!(!ok, "{}", e.report());
                assert_eq!(e.kind(), ErrorKind::Config);
                assert!(e.to_string().starts_with("source.spool: the scan of orders takes about 34 hours"), "{e}");
            }
        }
    }
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_to_is_named() {
    let fake = shop().await;
    put(&fake, 1, 1);
    let file = tempfile::NamedTempFile::new().expect("a file");
    let source = orders(&fake).spool(file.path());
    source.prepare(None).await.expect("prepare");
    let error = source.begin(&source.tables().await.expect("tables")).await.err().expect("a file is no folder");
    assert!(error.report().contains("source.spool"), "{}", error.report());
}

/// The disk is full when a shard ends: the files of its children cannot be begun. The copy goes on, and what
/// is not spooled is read from the stream.
#[tokio::test]
async fn a_disk_without_room_for_the_children_of_a_shard_leaves_them_to_the_stream() {
    let (folder, bench) = copying(50).await;
    let source = || orders(&bench.fake).scan_segments(4).spool(folder.path());
    let running = stalled(&bench, source).await;
    bench.rows.until(|| files(folder.path()).len() == 2, || files(folder.path()).len()).await;
    let table = fs::read_dir(folder.path()).expect("the folder").flatten().next().expect("the table's").path();
    {
        // Before the reader hears of the split: a folder stands where each file is to be written.
        let mut state = bench.fake.state();
        let shard = state.stream("orders").open_shards().remove(0);
        for child in state.split("orders", &shard) {
            fs::create_dir(table.join(format!("{child}.new"))).expect("a folder");
        }
    }
    (0..50).for_each(|id| put(&bench.fake, id, 2));
    bench.rows.until(|| bench.fake.calls("DescribeStream") >= 3, || bench.fake.calls("DescribeStream")).await;
    bench.fake.heal();
    bench.rows.equal(&bench.fake, "orders").await;
    assert_eq!(running.status().last_error, None, "the copy was not interrupted");
    running.stop().await.expect("stop");
}

/// One table is copied, another takes days and several runs: the stream of the first is spooled all the while.
#[tokio::test]
async fn a_table_that_is_copied_is_spooled_until_all_are() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut bench = Bench::new().await;
    bench.snapshot = SnapshotMode::Initial;
    bench.fake.create_table("stock", &[("id", "N")]);
    bench.fake.state().items_a_page = 50;
    bench.fake.state().scan_units = 1.0;
    (0..10).for_each(|id| put(&bench.fake, id, 1));
    (0..100).for_each(|id| bench.fake.put("stock", &[("id", n(id)), ("v", n(1))]));
    let source = || orders(&bench.fake).table("stock").scan_segments(1).spool(folder.path());
    // The second page of `stock` is never due; `orders` has one.
    let slow = || source().scan_capacity(0.0001);
    let running = bench.pipeline("test", slow()).start().await.expect("start");
    let copied = async {
        loop {
            if let Some((_, checkpoint)) = bench.checkpoints.load("test").await.expect("load")
                && checkpoint.snapshot.tables.iter().any(|(name, copy)| name.name == "orders" && copy.finished)
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(super::support::PATIENCE, copied).await.expect("orders is copied");
    drop(running); // As a kill does.

    let scans = bench.fake.calls("Scan");
    let running = bench.pipeline("test", slow()).start().await.expect("start");
    // By then the spooling of the run before has ended.
    bench.rows.until(|| bench.fake.calls("Scan") > scans, || "no scan").await;
    (0..10).for_each(|id| put(&bench.fake, id, 4777));
    let shard = bench.fake.open_shards("orders").remove(0);
    bench.fake.roll("orders", &shard);
    (0..10).for_each(|id| put(&bench.fake, id, 4778));
    let both = || (spooled(folder.path(), 4777), spooled(folder.path(), 4778));
    bench.rows.until(|| both() == (10, 10), both).await;
    drop(running);

    bench.fake.advance(DAY_AND_MORE);
    let running = bench.pipeline("test", source()).start().await.expect("start");
    for table in ["orders", "stock"] {
        bench.rows.equal(&bench.fake, table).await;
    }
    running.stop().await.expect("stop");
}

/// A copy is resumed after twenty hours, and the stream cannot be read: how long it still keeps what the spool
/// lacks is told by when the spool was written last, now and at the next start.
#[tokio::test]
async fn a_spool_that_cannot_be_written_on_is_not_taken_for_up_to_date() {
    const HOUR: Duration = Duration::from_secs(3600);
    let (folder, bench) = copying(50).await;
    let source = || orders(&bench.fake).scan_segments(4).spool(folder.path());
    let running = stalled(&bench, source).await;
    (0..50).for_each(|id| put(&bench.fake, id, 4777));
    bench.rows.until(|| spooled(folder.path(), 4777) >= 50, || spooled(folder.path(), 4777)).await;
    running.stop().await.expect("stop");

    let lock =
        fs::read_dir(folder.path()).expect("the folder").flatten().next().expect("the table's").path().join("lock");
    let file = fs::File::options().write(true).open(&lock).expect("the lock");
    let long_ago = std::time::SystemTime::now() - 20 * HOUR;
    file.set_modified(long_ago).expect("the time");
    bench.fake.fail("GetRecords", "InternalServerError", 1_000_000);
    let (calls, source) = (bench.fake.calls("GetRecords"), source());
    let running = bench.pipeline("test", source.clone()).start().await.expect("start");
    // So many in a row that the reader is given up and made anew.
    bench.rows.until(|| bench.fake.calls("GetRecords") >= calls + 8, || bench.fake.calls("GetRecords")).await;
    assert!(lock.metadata().expect("the lock").modified().expect("a time") < long_ago + HOUR);
    let left = source.retention().expect("a retention").left().await.expect("what is left").seconds;
    assert!(left.is_some_and(|left| left < 4.5 * 3600.0), "{left:?}");
    bench.fake.heal();
    bench.rows.equal(&bench.fake, "orders").await;
    running.stop().await.expect("stop");
}

/// A copy is given up with its spool in the folder, and another pipeline begins at the present.
#[tokio::test]
async fn what_another_copy_has_spooled_is_left_alone() {
    let (folder, mut bench) = copying(50).await;
    let source = || orders(&bench.fake).scan_segments(4).spool(folder.path());
    let running = stalled(&bench, source).await;
    (0..50).for_each(|id| put(&bench.fake, id, 4777));
    bench.rows.until(|| spooled(folder.path(), 4777) >= 50, || spooled(folder.path(), 4777)).await;
    running.stop().await.expect("stop");

    bench.fake.advance(DAY_AND_MORE);
    bench.snapshot = SnapshotMode::Never;
    let running = bench.pipeline("another", source()).start().await.expect("start");
    put(&bench.fake, 7, 5);
    let is_new = |given: &super::support::Given| given.2.as_ref().is_some_and(|item| item.contains("\"5\""));
    bench.rows.until(|| bench.rows.log().iter().any(is_new), || bench.rows.log().len()).await;
    let log = bench.rows.log();
    assert_eq!(log.len(), 1, "only what is new: {:?}", log.first());
    running.stop().await.expect("stop");
}

/// A store that is slow with the first checkpoint that has shards in it, and takes no more then until it is
/// healed.
#[derive(Debug, Clone, Default)]
struct Failing {
    inner: MemoryCheckpointer,
    state: Arc<AtomicU8>,
}

const ARMED: u8 = 1;
const DOWN: u8 = 2;
const HEALED: u8 = 3;

#[async_trait]
impl Checkpointer for Failing {
    async fn load(&self, pipeline: &str) -> Result<Option<(Version, Checkpoint)>> {
        self.inner.load(pipeline).await
    }

    async fn save(&self, pipeline: &str, expected: Option<Version>, next: &Checkpoint) -> Result<Saved> {
        if self.state.load(Ordering::SeqCst) == DOWN {
            return Err(Error::transient("the store is down"));
        }
        let saved = self.inner.save(pipeline, expected, next).await;
        let shards = next.partitions.keys().any(|id| id.as_str().contains('/'));
        if shards && self.state.compare_exchange(ARMED, DOWN, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        saved
    }
}

/// The root of one table has closed while a checkpoint was being saved that does not know it yet, and no
/// further one can be saved: the next run finds the list of the shards that there were.
#[tokio::test]
async fn the_list_of_shards_is_kept_until_they_are_in_a_checkpoint() {
    let folder = tempfile::tempdir().expect("a folder");
    let bench = Bench::new().await;
    bench.fake.create_table("stock", &[("id", "N")]);
    bench.fake.create_table("slow", &[("id", "N")]);
    bench.fake.state().scan_units = 1.0;
    let tables = ["orders", "stock"];
    let put = |id: u32, v: u32| {
        tables.iter().for_each(|table| bench.fake.put(table, &[("id", n(id)), ("v", n(v))]));
    };
    bench.fake.state().items_a_page = 70;
    (0..60).for_each(|id| put(id, 1));
    (0..100).for_each(|id| bench.fake.put("slow", &[("id", n(id)), ("v", n(1))]));
    let store = Failing::default();
    let source = || orders(&bench.fake).table("stock").table("slow").scan_segments(1).spool(folder.path());
    let start = async |source: DynamoDb| {
        let retry =
            RetryLimits { first: Duration::from_millis(10), longest: Duration::from_millis(20), attempts: None };
        let pipeline = Pipeline::builder("test").source(source).sink(bench.rows.clone()).order(ByKey::new(2));
        let pipeline = pipeline.checkpointer(store.clone()).snapshot(SnapshotMode::Initial).retry(retry);
        pipeline.build().expect("a pipeline").start().await.expect("start")
    };
    // The second page of `slow` is never due; the others have one.
    let running = start(source().scan_capacity(0.0001)).await;
    let rows = || tables.map(|table| bench.rows.of(table).len());
    bench.rows.until(|| rows() == [60, 60], rows).await;
    bench.rows.until(|| bench.fake.calls("Scan") >= 3, || bench.fake.calls("Scan")).await;
    // Only the shards that end tell of the deletes.
    for table in tables {
        (50..60).for_each(|id| bench.fake.delete(table, &[("id", n(id))]));
    }
    (0..50).for_each(|id| put(id, 4777));
    for table in tables {
        let shard = bench.fake.open_shards(table).remove(0);
        bench.fake.roll(table, &shard);
    }
    (0..50).for_each(|id| put(id, 4778));
    let both = || (spooled(folder.path(), 4777), spooled(folder.path(), 4778), ended(folder.path()));
    // Three roots, and two shards that ended.
    bench.rows.until(|| both() == (100, 100, 5), both).await;
    running.stop().await.expect("stop");

    bench.fake.advance(DAY_AND_MORE);
    store.state.store(ARMED, Ordering::SeqCst);
    let running = start(source()).await;
    bench.rows.until(|| store.state.load(Ordering::SeqCst) == DOWN, || "no checkpoint").await;
    bench.rows.until(|| running.status().last_error.is_some(), || "no error").await;
    store.state.store(HEALED, Ordering::SeqCst);
    for table in tables {
        bench.rows.equal(&bench.fake, table).await;
    }
    running.stop().await.expect("stop");
}
