//! Progress, counters and fencing.

use anabranch_core::{ErrorKind, Lane, LanePurpose, PartitionId, ProgressStore, Sink, SourceIdentity};
use anabranch_sqlite::Sqlite;

use crate::support::*;

#[tokio::test]
async fn progress_is_stored_with_the_rows() {
    let target = Target::new(ITEMS);
    assert!(target.sqlite.read(PIPELINE).await.unwrap().is_empty());
    assert!(target.sqlite.take_over(&claim(1)).await.unwrap().is_empty());
    let mut writer = target.sqlite.open(lane(1)).await.unwrap();
    for n in 1..=3 {
        let _ = writer.write(&unit(n, &[Do::Insert(items(), item(n as i64, &n.to_string(), "x"))])).await.unwrap();
    }
    // A unit that only carries progress.
    let _ = writer.write(&unit(4, &[])).await.unwrap();
    writer.close().await.unwrap();

    let again = Sqlite::open(&target.path);
    let stored = again.take_over(&claim(2)).await.unwrap();
    assert_eq!(stored.len(), 1);
    let lane = &stored[0];
    assert_eq!((lane.lane, lane.lanes), (0, 1));
    assert_eq!(lane.identity, SourceIdentity::default().with("slot", "orders_dr"));
    assert_eq!(lane.partitions[&PartitionId::new("slot")], progress(4));
    assert_eq!((lane.counters.changes, lane.counters.transactions), (3, 4));
    assert_eq!(again.read(PIPELINE).await.unwrap(), stored);
    assert!(again.read("another").await.unwrap().is_empty());
}

#[tokio::test]
async fn a_newer_epoch_fences_the_older_writer() {
    let target = Target::new(ITEMS);
    let mut old = target.writer().await;
    let _ = old.write(&unit(1, &[Do::Insert(items(), item(1, "a", "x"))])).await.unwrap();
    // Another process, as far as SQLite can tell.
    let other = Sqlite::open(&target.path);
    other.take_over(&claim(2)).await.unwrap();
    let mut new = other.open(lane(2)).await.unwrap();

    let error = old.write(&unit(2, &[Do::Insert(items(), item(2, "b", "y"))])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced);
    assert!(error.to_string().contains("epoch 2"), "{error}");
    assert_eq!(target.sqlite.take_over(&claim(1)).await.unwrap_err().kind(), ErrorKind::Fenced);
    let _ = new.write(&unit(2, &[Do::Insert(items(), item(2, "b", "z"))])).await.unwrap();
    assert_eq!(target.rows("SELECT note FROM items ORDER BY id"), ["x", "z"]);
    // Taking over again with the same epoch is no offence: the answer to the first may have been lost.
    other.take_over(&claim(2)).await.unwrap();
}

#[tokio::test]
async fn snapshot_lanes_are_fenced_and_leave_no_progress() {
    let target = Target::new(ITEMS);
    target.sqlite.take_over(&claim(3)).await.unwrap();
    let snapshot = |epoch| Lane { index: 5, count: 8, purpose: LanePurpose::Snapshot, ..lane(epoch) };
    let mut writer = target.sqlite.open(snapshot(3)).await.unwrap();
    let _ = writer.write(&unit(1, &[Do::Insert(items(), item(1, "a", "x"))])).await.unwrap();
    assert!(target.rows("SELECT * FROM anabranch_position").is_empty());
    assert_eq!(target.rows("SELECT changes FROM anabranch_lane"), ["0"]);
    target.sqlite.take_over(&claim(4)).await.unwrap();
    let error = writer.write(&unit(2, &[Do::Insert(items(), item(2, "b", "y"))])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced);
}

#[tokio::test]
async fn rows_of_more_lanes_are_kept_and_returned() {
    let target = Target::new("");
    let mut many = claim(1);
    many.lanes = 3;
    target.sqlite.take_over(&many).await.unwrap();
    let stored = target.sqlite.take_over(&claim(2)).await.unwrap();
    assert_eq!(stored.iter().map(|l| (l.lane, l.lanes)).collect::<Vec<_>>(), [(0, 3), (1, 3), (2, 3)]);
    assert_eq!(target.rows("SELECT DISTINCT epoch FROM anabranch_lane"), ["2"]);
    assert_eq!(target.sqlite.read(PIPELINE).await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_claim_without_an_identity_does_not_forget_the_stored_one() {
    let target = Target::new("");
    target.sqlite.take_over(&claim(1)).await.unwrap();
    let unknown = anabranch_core::Claim { identity: SourceIdentity::default(), ..claim(2) };
    target.sqlite.take_over(&unknown).await.unwrap();
    assert_eq!(target.sqlite.read(PIPELINE).await.unwrap()[0].identity, claim(1).identity);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_stream_and_checkpoints_share_the_file() {
    use anabranch_core::{Checkpoint, Checkpointer, Saved};
    let target = Target::new(ITEMS);
    let mut writer = target.writer().await;
    let store = target.sqlite.clone();
    let saving = tokio::spawn(async move {
        let mut version = None;
        for _ in 0..50 {
            match store.save(PIPELINE, version, &Checkpoint::default()).await.unwrap() {
                Saved::Committed(v) => version = Some(v),
                Saved::Conflict => panic!("nobody else saves"),
            }
        }
    });
    for n in 1..=50 {
        let _ = writer.write(&unit(n, &[Do::Insert(items(), item(n as i64, &n.to_string(), "x"))])).await.unwrap();
    }
    saving.await.unwrap();
    assert_eq!(target.rows("SELECT count(*) FROM items"), ["50"]);
}

#[tokio::test]
async fn a_lock_of_another_process_is_transient() {
    let target = Target::new(ITEMS);
    target.writer().await.close().await.unwrap();
    let hasty = Sqlite::open(&target.path).busy_timeout(std::time::Duration::from_millis(20));
    let mut writer = hasty.open(lane(1)).await.unwrap();
    let other = target.look();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let changes = [Do::Insert(items(), item(1, "a", "x"))];
    let error = writer.write(&unit(1, &changes)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient);
    other.execute_batch("ROLLBACK").unwrap();
    let _ = writer.write(&unit(1, &changes)).await.unwrap();
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let garbage = folder.path().join("garbage.db");
    std::fs::write(&garbage, "this is not a database, and long enough to be read as one".repeat(50)).unwrap();
    let missing = folder.path().join("nowhere").join("target.db");
    for path in [garbage.as_path(), missing.as_path(), folder.path()] {
        let error = Sqlite::open(path).take_over(&claim(1)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
    for path in ["", ":memory:"] {
        assert_eq!(Sqlite::open(path).check().unwrap_err().kind(), ErrorKind::Config);
    }
}
