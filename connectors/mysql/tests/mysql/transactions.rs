//! Units take effect wholly, once, and only for the runner that owns the pipeline.

use anabranch_core::{Durability, ErrorKind, Lane, LanePurpose, Part, Sink, UnitKind};
use anabranch_servers::MariaOptions;

use crate::server::{Do, Maker, claim, database, lane, table, take_over};
use crate::{row, server};

const INT: anabranch_core::DataType = anabranch_core::DataType::Int64;

#[tokio::test]
async fn parts_are_seen_only_at_the_end() {
    let mut db = database(server!()).await;
    let t = table("t", &[("k", INT), ("u", INT)]);
    db.sink().target().expect("tables").create(&t).await.expect("create");
    db.run("ALTER TABLE t ADD UNIQUE (u)").await;
    let mut writer = db.writer(1).await;
    let mut m = Maker::default();
    let part = |m: &mut Maker, part, rows: &[[i64; 2]]| {
        let rows: Vec<_> = rows.iter().map(|r| (&t, Do::Insert(row![r[0], r[1]]))).collect();
        m.unit(UnitKind::Stream, part, &rows)
    };
    let written = writer.write(&part(&mut m, Part::First, &[[1, 1], [2, 2]])).await.expect("first");
    assert_eq!(written.durability, Durability::Accepted);
    // A swap within a part goes back to the part's savepoint, not to the beginning.
    let _ = writer.write(&part(&mut m, Part::Middle, &[[1, 2], [2, 1]])).await.expect("middle");
    assert!(db.lines("SELECT * FROM t").await.is_empty(), "nothing is seen before the end");
    assert_eq!(db.lines("SELECT changes FROM anabranch_lane").await, ["0"]);
    let written = writer.write(&part(&mut m, Part::Last, &[[3, 3]])).await.expect("last");
    assert_eq!(written.durability, Durability::Durable);
    assert_eq!(db.lines("SELECT * FROM t ORDER BY k").await, ["1|2", "2|1", "3|3"]);
    assert_eq!(db.lines("SELECT changes, transactions FROM anabranch_lane").await, ["5|1"]);

    // A last part that is refused takes the first along; a part without its first is not applied.
    let _ = writer.write(&part(&mut m, Part::First, &[[4, 4]])).await.expect("first");
    let error = writer.write(&part(&mut m, Part::Last, &[[5, 4]])).await.expect_err("a duplicate");
    assert_eq!(error.kind(), ErrorKind::Rejected);
    let error = writer.write(&part(&mut m, Part::Last, &[[6, 6]])).await.expect_err("no transaction is open");
    assert_eq!(error.kind(), ErrorKind::Transient);
    assert_eq!(db.lines("SELECT k FROM t ORDER BY k").await, ["1", "2", "3"]);
    // Parts that never ended are undone when another unit begins.
    let _ = writer.write(&part(&mut m, Part::First, &[[7, 7]])).await.expect("first");
    let _ = writer.write(&part(&mut m, Part::Whole, &[[8, 8]])).await.expect("whole");
    assert_eq!(db.lines("SELECT k FROM t ORDER BY k").await, ["1", "2", "3", "8"]);
}

#[tokio::test]
async fn an_older_runner_is_fenced_whatever_it_writes() {
    let mut db = database(server!()).await;
    let t = table("t", &[("k", INT), ("u", INT)]);
    db.sink().target().expect("tables").create(&t).await.expect("create");
    db.run("ALTER TABLE t ADD UNIQUE (u)").await;
    let mut old = db.writer(1).await;
    let mut m = Maker::default();
    let _ = old.write(&m.stream(&[(&t, Do::Insert(row![1, 1]))])).await.expect("write");
    let mut new = db.writer(2).await;
    // Even if its rows would be refused: it must not put them aside as dead letters.
    for row in [row![2, 2], row![3, 1]] {
        let error = old.write(&m.stream(&[(&t, Do::Insert(row))])).await.expect_err("fenced");
        assert_eq!(error.kind(), ErrorKind::Fenced, "{}", error.report());
    }
    let sink = db.sink();
    let mut snapshot = sink.open(lane(1, LanePurpose::Snapshot)).await.expect("open");
    let unit = m.unit(UnitKind::Snapshot, Part::Whole, &[(&t, Do::Insert(row![4, 4]))]);
    assert_eq!(snapshot.write(&unit).await.expect_err("fenced").kind(), ErrorKind::Fenced);
    let error = sink.progress().expect("progress").take_over(&claim(1)).await.expect_err("fenced");
    assert_eq!(error.kind(), ErrorKind::Fenced);
    let _ = new.write(&m.stream(&[(&t, Do::Insert(row![5, 5]))])).await.expect("the new runner");
    assert_eq!(db.lines("SELECT * FROM t ORDER BY k").await, ["1|1", "5|5"]);
}

/// Of claims made at the same time on an empty target, the newest wins, whoever comes first.
#[tokio::test(flavor = "multi_thread")]
async fn of_first_claims_the_newest_wins() {
    let db = database(server!()).await;
    let mut tasks = Vec::new();
    for epoch in 1..=8 {
        let sink = db.sink();
        tasks.push(tokio::spawn(async move { sink.progress().expect("progress").take_over(&claim(epoch)).await }));
    }
    for task in tasks {
        if let Err(error) = task.await.expect("join") {
            // Deadlocks of first claims are tried again by the runtime.
            assert!(matches!(error.kind(), ErrorKind::Fenced | ErrorKind::Transient), "{}", error.report());
        }
    }
    take_over(&db.sink(), 8).await;
    let error = db.sink().progress().expect("progress").take_over(&claim(7)).await.expect_err("older");
    assert_eq!(error.kind(), ErrorKind::Fenced);
}

#[tokio::test]
async fn progress_comes_back_by_lane() {
    let db = database(server!()).await;
    let t = table("t", &[("k", INT)]);
    let sink = db.sink();
    sink.target().expect("tables").create(&t).await.expect("create");
    let store = sink.progress().expect("progress");
    assert!(store.read("p").await.expect("read").is_empty());
    let claim = |epoch, lanes| anabranch_core::Claim { lanes, ..claim(epoch) };
    assert!(store.take_over(&claim(1, 3)).await.expect("first").is_empty());
    let mut m = Maker::default();
    let unit = m.stream(&[(&t, Do::Insert(row![1]))]);
    let mut writer = sink.open(Lane { index: 2, count: 3, ..lane(1, LanePurpose::Stream) }).await.expect("open");
    let _ = writer.write(&unit).await.expect("write");
    // Fewer lanes: what the others have stored is kept and told.
    let before = store.take_over(&claim(2, 1)).await.expect("second");
    assert_eq!(before.iter().map(|l| (l.lane, l.lanes)).collect::<Vec<_>>(), [(0, 3), (1, 3), (2, 3)]);
    let third = &before[2];
    assert_eq!(third.partitions.values().collect::<Vec<_>>(), unit.progress.iter().collect::<Vec<_>>());
    assert_eq!((third.counters.changes, third.counters.transactions), (1, 1));
    assert_eq!(third.identity.get("slot"), Some("s"));
    let error = writer.write(&m.stream(&[(&t, Do::Insert(row![2]))])).await.expect_err("fenced");
    assert_eq!(error.kind(), ErrorKind::Fenced);
}

/// A lane that waits for a row that somebody else holds is told to try again.
#[tokio::test]
async fn a_lock_is_waited_for_and_then_tried_again() {
    let Some(server) = crate::server::options().setting("innodb-lock-wait-timeout", "1").start().expect("starts")
    else {
        return;
    };
    let mut db = database(&server).await;
    let t = table("t", &[("k", INT)]);
    db.sink().target().expect("tables").create(&t).await.expect("create");
    let mut writer = db.writer(1).await;
    let mut m = Maker::default();
    let unit = m.stream(&[(&t, Do::Insert(row![1]))]);
    db.run("BEGIN").await;
    db.run("INSERT INTO t VALUES (1)").await;
    let error = writer.write(&unit).await.expect_err("locked");
    assert_eq!(error.kind(), ErrorKind::Transient, "{}", error.report());
    db.run("ROLLBACK").await;
    let _ = writer.write(&unit).await.expect("the same unit again");
    assert_eq!(db.lines("SELECT * FROM t").await, ["1"]);
    assert_eq!(db.lines("SELECT changes FROM anabranch_lane").await, ["1"]);
}

#[tokio::test]
async fn a_server_that_may_lose_commits_is_not_called_durable() {
    let relaxed: [&[(&str, &str)]; 2] =
        [&[("innodb-flush-log-at-trx-commit", "2")], &[("log-bin", "1"), ("sync-binlog", "0"), ("server-id", "1")]];
    for settings in relaxed {
        let start = |o: MariaOptions, (name, value): &(&str, &str)| o.setting(name, value);
        let Some(server) = settings.iter().fold(crate::server::options(), start).start().expect("starts") else {
            return;
        };
        let db = database(&server).await;
        let error = db.sink().progress().expect("progress").take_over(&claim(1)).await.expect_err("relaxed");
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.report().contains("accept_relaxed_durability"), "{}", error.report());
        take_over(&db.sink().accept_relaxed_durability(true), 1).await;
    }
}

#[tokio::test]
async fn a_run_that_was_killed_between_its_tables_is_taken_over() {
    let mut db = database(server!()).await;
    take_over(&db.sink(), 1).await;
    // DDL commits by itself: this is what a kill between the two leaves.
    db.run("DROP TABLE anabranch_position; DELETE FROM anabranch_lane").await;
    let sink = db.sink();
    let store = sink.progress().expect("stores progress");
    assert!(store.read(&claim(2).pipeline).await.expect("nothing is stored").is_empty());
    take_over(&sink, 2).await;
    assert!(db.lines("SELECT * FROM anabranch_position").await.is_empty());
}
