//! Whole or not at all: parts, fencing, crashes, and progress that equals the data.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use anabranch_core::*;
use anabranch_postgres::{PostgresSink, Privilege};
use anabranch_servers::{PgOptions, PgVersion};

use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn parts_are_seen_with_the_last() {
    for db in databases() {
        db.exec("CREATE TABLE t (id bigint PRIMARY KEY, name text UNIQUE)");
        let t = table("t", &[("id", INT), ("name", TEXT)], 1);
        let sink = db.sink();
        let mut w = db.writer(&sink, 1).await;
        write(&mut w, &Changes::new().insert(&t, &["0", "z"]).unit()).await;
        let seen = || db.rows("SELECT * FROM t ORDER BY id");
        write(&mut w, &Changes::new().insert(&t, &["1", "a"]).insert(&t, &["2", "b"]).part(Part::First)).await;
        // A part that needs another mode goes back to its own beginning, not to the transaction's.
        let swap =
            Changes::new().update(&t, None, &["1", "free"]).update(&t, None, &["2", "a"]).update(&t, None, &["1", "b"]);
        write(&mut w, &swap.part(Part::Middle)).await;
        write(&mut w, &Changes::new().insert(&t, &["3", "c"]).part(Part::Middle)).await;
        assert_eq!(seen(), ["0|z"]);
        assert_eq!(db.stored(&sink).await.counters.changes, 1);
        let last = Changes::new().delete(&t, &["0", "?"]).part(Part::Last);
        write(&mut w, &last).await;
        assert_eq!(seen(), ["1|b", "2|a", "3|c"]);
        let stored = db.stored(&sink).await;
        assert_eq!((stored.counters.changes, stored.counters.transactions), (8, 2));
        assert_eq!(stored.partitions.values().collect::<Vec<_>>(), last.progress.iter().collect::<Vec<_>>());
        // Refused in the middle: nothing stays, and no part of it is taken any more.
        write(&mut w, &Changes::new().insert(&t, &["9", "x"]).part(Part::First)).await;
        refused(&mut w, &Changes::new().insert(&t, &["8", "a"]).part(Part::Middle), ErrorKind::Rejected, "t_name_key")
            .await;
        refused(&mut w, &Changes::new().insert(&t, &["7", "y"]).part(Part::Last), ErrorKind::Fatal, "out of order")
            .await;
        // A writer that goes away between its parts.
        write(&mut w, &Changes::new().insert(&t, &["9", "x"]).part(Part::First)).await;
        drop(w);
        let mut w = db.writer(&sink, 2).await;
        write(&mut w, &Changes::new().insert(&t, &["4", "d"]).unit()).await;
        assert_eq!(seen(), ["1|b", "2|a", "3|c", "4|d"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_run_fences_the_older_one() {
    for db in databases() {
        db.exec("CREATE TABLE t (id bigint PRIMARY KEY)");
        let t = table("t", &[("id", INT)], 1);
        let unit = |id: &str| Changes::new().insert(&t, &[id]).unit();
        let (old, new) = (db.sink().origin(Privilege::Off), db.sink().origin(Privilege::Off));
        let mut first = db.writer(&old, 1).await;
        let mut snapshot = old.open(db.snapshot_lane(1)).await.unwrap();
        write(&mut first, &unit("1")).await;
        let mut second = db.writer(&new, 2).await;
        refused(&mut first, &unit("2"), ErrorKind::Fenced, "newer epoch").await;
        refused(&mut snapshot, &Changes::new().insert(&t, &["3"]).snapshot(), ErrorKind::Fenced, "newer epoch").await;
        let empty = Changes::new().unit();
        refused(&mut first, &empty, ErrorKind::Fenced, "newer epoch").await;
        let error = old.progress().unwrap().take_over(&db.claim(1)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Fenced, "{}", error.report());
        write(&mut second, &unit("4")).await;
        assert_eq!(db.rows("SELECT * FROM t ORDER BY id"), ["1", "4"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_hangs_in_a_transaction_is_ended() {
    for db in databases() {
        db.exec("CREATE TABLE t (id bigint PRIMARY KEY)");
        let t = table("t", &[("id", INT)], 1);
        let sink = db.sink();
        let mut hung = db.writer(&sink, 1).await;
        write(&mut hung, &Changes::new().insert(&t, &["1"]).part(Part::First)).await;
        // It holds the lane's row; the claim waits for it, then has it ended, and the next try succeeds.
        let next = db.sink();
        let error = next.progress().unwrap().take_over(&db.claim(2)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Transient, "{}", error.report());
        let mut w = db.writer(&next, 2).await;
        write(&mut w, &Changes::new().insert(&t, &["2"]).unit()).await;
        refused(&mut hung, &Changes::new().insert(&t, &["3"]).part(Part::Last), ErrorKind::Transient, "").await;
        assert_eq!(db.rows("SELECT * FROM t"), ["2"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_is_not_followed_by_writes_leaves_the_identity() {
    for db in databases() {
        db.exec("CREATE TABLE t (id bigint PRIMARY KEY)");
        let t = table("t", &[("id", INT)], 1);
        let sink = db.sink();
        let mut w = db.writer(&sink, 1).await;
        write(&mut w, &Changes::new().insert(&t, &["1"]).unit()).await;
        w.close().await.unwrap();
        let before = db.stored(&sink).await;
        let other = Claim { identity: SourceIdentity::default().with("system", "another"), lanes: 3, ..db.claim(2) };
        let second = db.sink();
        let lanes = second.progress().unwrap().take_over(&other).await.unwrap();
        assert_eq!(lanes, std::slice::from_ref(&before));
        // Had the runtime refused it, the next start would have to refuse it again.
        assert_eq!(db.stored(&second).await, before);
        let mut w = second.open(Lane { count: 3, ..db.lane(2) }).await.unwrap();
        write(&mut w, &Changes::new().insert(&t, &["2"]).unit()).await;
        let after = db.stored(&second).await;
        assert_eq!((after.lanes, after.identity.get("system")), (3, Some("another")));
        let all = second.progress().unwrap().read(&db.name).await.unwrap();
        assert_eq!(all.iter().map(|l| (l.lane, l.lanes)).collect::<Vec<_>>(), [(0, 3), (1, 3), (2, 3)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_snapshot_unit_is_no_duplicate() {
    for db in databases() {
        db.exec("CREATE TABLE t (id bigint PRIMARY KEY, v text); CREATE VIEW seen AS SELECT * FROM t");
        let t = table("t", &[("id", INT), ("v", TEXT)], 1);
        let sink = db.sink();
        sink.progress().unwrap().take_over(&db.claim(1)).await.unwrap();
        let mut s = sink.open(db.snapshot_lane(1)).await.unwrap();
        let unit = |id: &str| Changes::new().insert(&t, &[id, "a\tb\\"]).insert(&t, &["2", "~"]);
        write(&mut s, &unit("1").snapshot()).await;
        write(&mut s, &unit("1").snapshot()).await;
        let parts = |part| Unit { kind: UnitKind::Snapshot, progress: vec![], ..unit("3").part(part) };
        write(&mut s, &parts(Part::First)).await;
        assert_eq!(db.rows("SELECT count(*) FROM t"), ["2"]);
        write(&mut s, &parts(Part::Last)).await;
        assert_eq!(db.rows("SELECT * FROM t ORDER BY id"), ["1|a\tb\\", "2|~", "3|a\tb\\"]);
        assert_eq!(db.stored(&sink).await.partitions.len(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_rows_go_in_chunks() {
    for db in databases() {
        db.exec("CREATE TABLE t (id bigint PRIMARY KEY, v text)");
        let t = table("t", &[("id", INT), ("v", TEXT)], 1);
        let sink = db.sink();
        let mut w = db.writer(&sink, 1).await;
        let long = "x".repeat(3 << 20);
        let rows = |v: &str| {
            let many =
                (0..12_001).fold(Changes::new(), |c, n| c.insert_values(&t, &[ValueRef::Int(n), ValueRef::Text(v)]));
            many.insert(&t, &["-1", &long]).insert(&t, &["-2", &long])
        };
        write(&mut w, &rows("a").unit()).await;
        write(&mut w, &rows("b").unit()).await;
        let sql = "SELECT count(*), sum(id), sum(length(v)), count(*) FILTER (WHERE v = 'b') FROM t";
        assert_eq!(db.rows(sql), [format!("12003|{}|{}|12001", 12_000 * 12_001 / 2 - 3, 12_001 + 2 * (3 << 20))]);
        let gone = (0..12_001).fold(Changes::new(), |c, n: i64| c.delete(&t, &[&n.to_string(), "?"]));
        write(&mut w, &gone.unit()).await;
        assert_eq!(db.rows("SELECT id FROM t ORDER BY id"), ["-2", "-1"]);
    }
}

/// Every row carries the number of the last unit, and so does the stored position.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_neither_loses_nor_half_applies() {
    for version in [PgVersion::V15, PgVersion::V18] {
        let Some(server) = PgOptions::new(version).fsync(true).start().unwrap() else { continue };
        let db = Arc::new(Db::on(Arc::new(server)));
        db.exec("CREATE TABLE t (id bigint PRIMARY KEY, n bigint, u bigint UNIQUE)");
        let t = table("t", &[("id", INT), ("n", INT), ("u", INT)], 1);
        const ROWS: i64 = 300;
        let durable = Arc::new(AtomicI64::new(0));
        let mut next = 1;
        for round in 1..=4 {
            let sink = db.sink();
            let mut w = db.writer(&sink, round).await;
            // What is stored is what is there, and nothing that was reported durable is missing.
            let stored = db.stored(&sink).await;
            let position = stored.partitions.get("slot").map_or(0, |p| p.safe_time.unwrap().as_micros());
            let seen = db.rows("SELECT coalesce(min(n), 0), coalesce(max(n), 0), count(*) FROM t");
            let rows = if position == 0 { 0 } else { ROWS };
            assert_eq!(seen, [format!("{position}|{position}|{rows}")], "round {round}");
            assert!(position >= durable.load(Ordering::SeqCst), "round {round}: lost a durable unit");
            assert_eq!(stored.counters.changes as i64, position * ROWS, "round {round}: counted twice or not");
            next = next.max(position + 1);

            let stop = Arc::new(AtomicBool::new(false));
            let killer = tokio::task::spawn_blocking({
                let (db, durable, stop) = (Arc::clone(&db), Arc::clone(&durable), Arc::clone(&stop));
                move || {
                    // After some units of this round, at no particular instruction of one of them.
                    let (from, deadline) =
                        (durable.load(Ordering::SeqCst), std::time::Instant::now() + Duration::from_secs(30));
                    while durable.load(Ordering::SeqCst) < from + 3 + round as i64
                        && std::time::Instant::now() < deadline
                    {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    std::thread::sleep(Duration::from_micros(700 * round));
                    db.server.kill9().unwrap();
                    stop.store(true, Ordering::SeqCst);
                }
            });
            let reader = tokio::task::spawn_blocking({
                let (db, stop) = (Arc::clone(&db), Arc::clone(&stop));
                move || {
                    let mut last = 0;
                    while !stop.load(Ordering::SeqCst) {
                        let Ok(rows) =
                            db.server.exec(&db.name, "SELECT coalesce(min(n), 0), coalesce(max(n), 0) FROM t")
                        else {
                            break;
                        };
                        let n = |i: usize| rows[0][i].as_ref().unwrap().parse::<i64>().unwrap();
                        assert_eq!(n(0), n(1), "a reader saw half a unit");
                        assert!(n(0) >= last, "a reader saw a step back");
                        last = n(0);
                    }
                }
            });
            loop {
                let number = next.to_string();
                let mut changes = Changes::new();
                for id in 0..ROWS {
                    // The unique values rotate: every unit needs replacing.
                    let unique = (id + next) % ROWS;
                    changes = changes.insert(&t, &[&id.to_string(), &number, &unique.to_string()]);
                }
                let mut unit = changes.unit();
                unit.progress[0].safe_time = Some(Timestamp::from_micros(next));
                match w.write(&unit).await {
                    Ok(written) => {
                        assert_eq!(written.durability, Durability::Durable);
                        durable.store(next, Ordering::SeqCst);
                        next += 1;
                    }
                    Err(e) => {
                        let lost = matches!(e.kind(), ErrorKind::Transient | ErrorKind::Indeterminate);
                        assert!(lost, "{:?} {}", e.kind(), e.report());
                        if e.kind() == ErrorKind::Indeterminate {
                            let again = w.write(&unit).await.unwrap_err();
                            assert_eq!(again.kind(), ErrorKind::Indeterminate, "a lost writer must not go on");
                        }
                        break;
                    }
                }
            }
            killer.await.unwrap();
            reader.await.unwrap();
            db.server.start().unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_lost_between_units_comes_back() {
    for db in databases() {
        db.exec("CREATE TABLE t (id bigint PRIMARY KEY)");
        let t = table("t", &[("id", INT)], 1);
        let sink = db.sink();
        let mut w = db.writer(&sink, 1).await;
        let unit = |id: &str| Changes::new().insert(&t, &[id]).unit();
        write(&mut w, &unit("1")).await;
        db.exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'anabranch-sink/stream/%' AND datname = current_database()");
        // The first write may meet the dead connection; the second has a new one.
        if let Err(e) = w.write(&unit("2")).await {
            assert_eq!(e.kind(), ErrorKind::Transient, "{}", e.report());
            write(&mut w, &unit("2")).await;
        }
        assert_eq!(db.rows("SELECT * FROM t ORDER BY id"), ["1", "2"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_takes_no_writes_says_so() {
    for db in databases() {
        let sink = db.sink();
        let w = db.writer(&sink, 1).await;
        w.close().await.unwrap();
        db.exec(&format!("ALTER DATABASE {} SET default_transaction_read_only = on", db.name));
        let error = db.sink().open(db.lane(1)).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("read-only"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_that_are_missing_are_named_with_the_statement_that_gives_them() {
    for db in databases() {
        db.exec("DROP ROLE IF EXISTS plain; CREATE ROLE plain LOGIN; CREATE TABLE t (id bigint PRIMARY KEY, p bigint REFERENCES t); GRANT SELECT, INSERT, UPDATE, DELETE ON t TO plain");
        let sink = PostgresSink::new(db.url_as("plain"));
        let error = sink.progress().unwrap().take_over(&db.claim(1)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("CREATE SCHEMA \"anabranch\" AUTHORIZATION \"plain\""), "{error}");
        db.exec("CREATE SCHEMA anabranch AUTHORIZATION plain");
        // With that alone it works; triggers and foreign keys act, and nothing is marked.
        let mut w = db.writer(&sink, 1).await;
        let t = table("t", &[("id", INT), ("p", INT)], 1);
        write(&mut w, &Changes::new().insert(&t, &["1", "2"]).insert(&t, &["2", "~"]).unit()).await;
        let warnings = sink.target().unwrap().describe(&t.name).await.unwrap().unwrap().warnings;
        assert!(warnings.iter().any(|w| w.contains("foreign keys")), "{warnings:?}");
        for (sink, part) in [
            (PostgresSink::new(db.url_as("plain")).replica_role(Privilege::Required), "GRANT SET ON PARAMETER"),
            (PostgresSink::new(db.url_as("plain")).origin(Privilege::Required), "GRANT EXECUTE ON FUNCTION"),
        ] {
            let error = sink.open(db.lane(1)).await.err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains(part), "{error}");
        }
        w.close().await.unwrap();
        // Rows that a policy would hide are an error, not a silent miss.
        db.exec("ALTER TABLE t ENABLE ROW LEVEL SECURITY");
        let mut w = db.writer(&sink, 2).await;
        refused(&mut w, &Changes::new().delete(&t, &["1", "?"]).unit(), ErrorKind::Config, "row-level security").await;
        w.close().await.unwrap();
        db.exec("DROP OWNED BY plain CASCADE; DROP ROLE plain");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_carries_the_origin() {
    for db in databases() {
        db.exec("CREATE TABLE t (id bigint PRIMARY KEY)");
        db.exec("SELECT pg_create_logical_replication_slot('s_' || current_database(), 'test_decoding')");
        let t = table("t", &[("id", INT)], 1);
        let sink = db.sink().origin(Privilege::Required);
        let mut w = db.writer(&sink, 1).await;
        write(&mut w, &Changes::new().insert(&t, &["1"]).unit()).await;
        db.exec("INSERT INTO t VALUES (2)");
        let seen = |options: &str| {
            db.rows(&format!(
                "SELECT data FROM pg_logical_slot_peek_changes('s_{}', NULL, NULL, 'include-xids', 'off'{options}) \
                 WHERE data LIKE 'table public.t%'",
                db.name
            ))
        };
        assert_eq!(seen("").len(), 2);
        assert_eq!(seen(", 'only-local', 'on'"), ["table public.t: INSERT: id[bigint]:2"]);
        assert_eq!(
            db.rows(&format!("SELECT count(*) FROM pg_replication_origin WHERE roname = 'anabranch_{}_0'", db.name)),
            ["1"]
        );
        db.exec(&format!("SELECT pg_drop_replication_slot('s_{}')", db.name));
    }
}
