//! Tables that somebody alters by hand, and tables that keep nothing.

use anabranch_core::{DataType, ErrorKind, LanePurpose, Sink, TableName};

use crate::support::*;

/// The server rounds for the new type without an error: it must be judged before a row is written.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_was_narrowed_takes_nothing_before_it_is_judged_again() {
    let narrowed = [
        ("numeric(12,4)", "numeric(12,1)", "1.2345"),
        ("timestamp", "timestamp(0)", "2026-11-21 10:20:30.654321"),
        ("double precision", "real", "0.1234567890123"),
    ];
    for db in databases() {
        let sink = db.sink();
        for (n, (before, after, value)) in narrowed.into_iter().enumerate() {
            for purpose in [LanePurpose::Stream, LanePurpose::Snapshot] {
                db.exec(&format!("DROP TABLE IF EXISTS t; CREATE TABLE t (id bigint PRIMARY KEY, x {before})"));
                let of = |n: usize| match n {
                    0 => DataType::Decimal { precision: Some(12), scale: Some(4) },
                    1 => DataType::Timestamp,
                    _ => DataType::Float64,
                };
                let t = table("t", &[("id", INT), ("x", of(n))], 1);
                let epoch = n as u64 * 2 + 1 + u64::from(purpose == LanePurpose::Snapshot);
                let mut w = db.writer(&sink, epoch).await;
                let snapshot = purpose == LanePurpose::Snapshot;
                if snapshot {
                    w.close().await.unwrap();
                    w = sink.open(db.snapshot_lane(epoch)).await.unwrap();
                }
                let unit = |id: &str| {
                    let row = Changes::new().insert(&t, &[id, value]);
                    if snapshot { row.snapshot() } else { row.unit() }
                };
                write(&mut w, &unit("1")).await;
                db.exec(&format!("DELETE FROM t; ALTER TABLE t ALTER x TYPE {after}"));
                refused(&mut w, &unit("2"), ErrorKind::Transient, "was altered").await;
                assert!(db.rows("SELECT * FROM t").is_empty(), "{after}");
                // Back again, and a change that does no harm: taken in with the next attempt.
                db.exec(&format!("ALTER TABLE t ALTER x TYPE {before}, ADD more int"));
                let last = unit("3");
                if w.write(&last).await.is_err() {
                    write(&mut w, &last).await;
                }
                assert_eq!(db.rows("SELECT id, x FROM t"), [format!("3|{value}")]);
                w.close().await.unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_a_crash_empties_is_refused() {
    for db in databases() {
        db.exec(
            "CREATE UNLOGGED TABLE u (id bigint PRIMARY KEY);
             CREATE TABLE p (id bigint PRIMARY KEY) PARTITION BY RANGE (id);
             CREATE UNLOGGED TABLE p1 PARTITION OF p DEFAULT; CREATE TABLE good (id bigint PRIMARY KEY)",
        );
        let sink = db.sink();
        let target = sink.target().unwrap();
        for name in ["u", "p"] {
            let error = target.describe(&TableName::new("public", name)).await.expect_err(name);
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.report().contains("UNLOGGED") && error.report().contains("SET LOGGED"), "{}", error.report());
        }
        assert!(target.describe(&TableName::new("public", "good")).await.unwrap().is_some());
    }
}
