//! The server is killed while units are written.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anabranch_core::{ErrorKind, LanePurpose, Sink};
use anabranch_mysql::MySql;

use crate::row;
use crate::server::{Do, Maker, claim, database, keyed, lane};

const INT: anabranch_core::DataType = anabranch_core::DataType::Int64;

/// Each unit counts one row up and inserts as many rows of a second table without a key: applied
/// twice, or in part, it would show.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn after_kill_9_rows_and_progress_agree_and_nothing_steps_back() {
    let Some(server) = crate::server::options().start().expect("starts") else { return };
    let server = Arc::new(server);
    let db = database(&server).await;
    let counter = keyed("counter", &[("k", INT), ("n", INT)], &[0]);
    let log = keyed("log", &[("n", INT), ("half", INT)], &[]);
    for t in [&counter, &log] {
        db.sink().target().expect("tables").create(t).await.expect("create");
    }
    let stop = Arc::new(AtomicBool::new(false));
    let killer = tokio::task::spawn_blocking({
        let (server, stop) = (Arc::clone(&server), Arc::clone(&stop));
        move || {
            for round in 0..5u64 {
                // Not a synchronisation: the moment of the crash is meant to be arbitrary.
                std::thread::sleep(Duration::from_millis(300 + round * 137));
                server.kill9().expect("kill");
                server.start().expect("start again");
            }
            stop.store(true, Ordering::SeqCst);
        }
    });

    // Unit n is made from n alone, so that it can be made again after a crash.
    let unit = |n: i64| {
        let mut m = Maker::default();
        for _ in 1..n {
            let _ = m.stream(&[]);
        }
        let halves = (&log, Do::Insert(row![n, 1]));
        m.stream(&[halves.clone(), (&counter, Do::Insert(row![1, n])), (&log, Do::Insert(row![n, 2]))])
    };
    let (mut epoch, mut durable, mut seen, mut lost) = (0u64, 0i64, 0i64, 0);
    let deadline = Instant::now() + Duration::from_secs(120);
    while !stop.load(Ordering::SeqCst) {
        assert!(Instant::now() < deadline, "the crashes take too long");
        epoch += 1;
        let sink = db.sink();
        let Some(stored) = resume(&sink, epoch).await else { continue };
        assert!(stored >= durable, "unit {durable} was durable, and {stored} is stored");
        assert!(stored <= durable + 1, "unit {stored} was never written");
        assert!(stored >= seen, "what was seen stepped back");
        seen = stored;
        durable = stored;
        let Ok(mut writer) = sink.open(lane(epoch, LanePurpose::Stream)).await else { continue };
        let error = loop {
            match writer.write(&unit(durable + 1)).await {
                Ok(_) => durable += 1,
                Err(error) => break error,
            }
            if stop.load(Ordering::SeqCst) {
                break anabranch_core::Error::transient("the end");
            }
        };
        assert!(
            matches!(error.kind(), ErrorKind::Transient | ErrorKind::Indeterminate),
            "{:?}: {}",
            error.kind(),
            error.report()
        );
        lost += 1;
    }
    killer.await.expect("the killer");
    assert!(lost >= 3, "the writer noticed {lost} crashes only");

    let mut db = db.again().await;
    let stored = resume(&db.sink(), epoch + 1).await.expect("progress");
    assert!(stored >= durable && durable > 0);
    assert_eq!(db.lines("SELECT n FROM counter").await, [stored.to_string()]);
    let log = db.lines("SELECT COUNT(*), COUNT(DISTINCT n), MIN(n), MAX(n) FROM log").await;
    assert_eq!(log, [format!("{}|{stored}|1|{stored}", stored * 2)]);
    assert_eq!(
        db.lines("SELECT changes, transactions FROM anabranch_lane").await,
        [format!("{}|{stored}", stored * 3)]
    );
    println!("{stored} units over {lost} crashes");
}

/// The number of the last unit that is stored; `None` while the server is away.
async fn resume(sink: &MySql, epoch: u64) -> Option<i64> {
    let lanes = sink.progress()?.take_over(&claim(epoch)).await;
    let lanes = match lanes {
        Ok(lanes) => lanes,
        Err(e) if matches!(e.kind(), ErrorKind::Transient | ErrorKind::Indeterminate) => return None,
        Err(e) => panic!("{}", e.report()),
    };
    let position = lanes.first().and_then(|l| l.partitions.values().next());
    Some(position.map_or(0, |p| String::from_utf8_lossy(&p.position.token).parse().expect("a number")))
}

/// A connection that was closed while it was idle is opened anew, with nothing lost and no error.
#[tokio::test]
async fn a_statement_after_the_connection_was_killed_is_tried_again() {
    let mut db = database(crate::server!()).await;
    let t = keyed("t", &[("k", INT)], &[0]);
    db.sink().target().expect("tables").create(&t).await.expect("create");
    let mut writer = db.writer(1).await;
    let mut m = Maker::default();
    let _ = writer.write(&m.stream(&[(&t, Do::Insert(row![1]))])).await.expect("write");
    let ids =
        db.lines("SELECT ID FROM information_schema.PROCESSLIST WHERE DB = DATABASE() AND ID <> CONNECTION_ID()").await;
    assert!(!ids.is_empty());
    for id in ids {
        db.run(&format!("KILL {id}")).await;
    }
    let unit = m.stream(&[(&t, Do::Insert(row![2]))]);
    let error = writer.write(&unit).await.expect_err("the connection is gone");
    assert_eq!(error.kind(), ErrorKind::Transient, "{}", error.report());
    let _ = writer.write(&unit).await.expect("over a new connection");
    assert_eq!(db.lines("SELECT * FROM t ORDER BY k").await, ["1", "2"]);
}
