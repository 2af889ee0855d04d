//! The checker against PostgreSQL's own logical replication: it has to find that right, and every
//! way of spoiling its target wrong.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anabranch_servers::{PgServer, PgVersion};
use anabranch_testkit::history::{Checker, Consistency, Options, Report};

use super::faults::Faults;
use super::source::{self, DB, History};
use super::targets::{PgTarget, Target};
use super::watcher::Watcher;
use super::writers::Writers;
use super::{Tested, config};

/// A source, a target, and a native subscription between them, the first load streamed.
struct Native {
    source: Arc<PgServer>,
    target: Arc<PgTarget>,
}

impl Native {
    /// `None`: skipped.
    async fn start(seed: u64) -> Tested<Option<Self>> {
        let Some(source) = source::start(PgVersion::Any, seed, Options::default()).await? else { return Ok(None) };
        let Some(target) = PgTarget::start(PgVersion::Any)? else { return Ok(None) };
        // The slot is made by the server of the source itself, before it is loaded: see `source_ddl`.
        source.exec(DB, "SELECT pg_copy_logical_replication_slot('history', 'native')")?;
        let connection = format!("host=127.0.0.1 port={} user=postgres dbname={DB}", source.port());
        // A subscription commits asynchronously unless told otherwise, and then steps back when its
        // server is killed: the checker was seen to find that.
        let with = "WITH (copy_data = false, create_slot = false, slot_name = 'native', synchronous_commit = on)";
        let sql = format!("CREATE SUBSCRIPTION native CONNECTION '{connection}' PUBLICATION workload {with}");
        target.server.exec(DB, &sql)?;
        Ok(Some(Self { source, target: Arc::new(target) }))
    }

    /// Waits until the target has everything that the source has.
    async fn drained(&self) -> Tested {
        let end = self.source.value(DB, "SELECT pg_current_wal_flush_lsn()")?.unwrap_or_default();
        let sql = format!(
            "SELECT coalesce(confirmed_flush_lsn >= '{end}', false) FROM pg_replication_slots WHERE slot_name = 'native'"
        );
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.source.value(DB, &sql)?.as_deref() != Some("t") {
            if Instant::now() > deadline {
                return Err(format!("the subscription does not drain; {}", self.target.server.log()).into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    fn watch(&self, seed: u64) -> Watcher {
        Watcher::start(History::new(&self.source), self.target.clone(), seed, Consistency::Prefix)
    }
}

async fn until(what: &str, met: impl Fn() -> bool) -> Tested {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !met() {
        if Instant::now() > deadline {
            return Err(format!("{what}: not within a minute").into());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn native_replication_is_right_under_faults() -> Tested {
    let seed = config::seed("native replication");
    let Some(native) = Native::start(seed).await? else { return Ok(()) };
    let writers = Writers::start(&native.source, seed, Options::default(), 4, Duration::from_millis(10));
    let watcher = native.watch(seed);
    until("the first load", || watcher.states() > 0 || watcher.found_something()).await?;
    let mut faults = Faults::new(seed, native.source.clone(), native.target.clone());
    while faults.count() < 8 && !watcher.found_something() {
        faults.strike(None).await?;
    }
    until("300 transactions", || writers.committed() > 300).await?;
    writers.stop().await?;
    if !watcher.found_something() {
        native.drained().await?;
    }
    let report = watcher.finish().await?;
    println!("{report}; {}", faults.summary());
    assert!(report.is_clean(), "{report}");
    assert!(report.commits > 200 && report.prefixes > 10, "{report}");
    Ok(())
}

/// Spoils the target of a drained pipeline, and lets the checker see it.
async fn spoilt(checker: &mut Checker, native: &Native, undo: &str, sql: &str) -> Tested<Report> {
    native.target.server.exec(DB, sql)?;
    let seen = native.target.observe().await.ok_or("the target cannot be read")?;
    checker.observe(&seen);
    let report = checker.report().clone();
    native.target.server.exec(DB, undo)?;
    Ok(report)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_spoilt_target_is_found_out() -> Tested {
    let seed = config::seed("a spoilt target");
    let Some(native) = Native::start(seed).await? else { return Ok(()) };
    let writers = Writers::start(&native.source, seed, Options::default(), 3, Duration::ZERO);
    let watcher = native.watch(seed);
    until("200 transactions", || writers.committed() > 200 || watcher.found_something()).await?;
    writers.stop().await?;
    native.drained().await?;
    let (mut checker, mut history) = watcher.stop().await?;
    history.catch_up(&mut checker).await?;
    native.target.server.exec(DB, "ALTER SUBSCRIPTION native DISABLE")?;
    let seen = native.target.observe().await.ok_or("the target cannot be read")?;
    checker.observe(&seen);
    assert!(checker.following() && checker.report().is_clean(), "{}", checker.report());

    let copy = "CREATE TABLE kept AS SELECT * FROM ledger WHERE id = 7; DELETE FROM ledger WHERE id = 7";
    let undo = "INSERT INTO ledger SELECT * FROM kept; DROP TABLE kept";
    let report = spoilt(&mut checker, &native, undo, copy).await?;
    assert_eq!(report.lost, 1, "{report}");

    let twice = "INSERT INTO log_lines VALUES (77, 'x'), (0, 'line')";
    let undo = "DELETE FROM log_lines WHERE writer = 77";
    let report = spoilt(&mut checker, &native, undo, twice).await?;
    assert_eq!((report.lost, report.doubled, report.wrong), (1, 1, 1), "{report}");
    native
        .target
        .server
        .exec(DB, "DELETE FROM log_lines WHERE ctid = (SELECT ctid FROM log_lines WHERE writer = 0 LIMIT 1)")?;

    let changed = "SELECT id FROM ledger WHERE version > 0 AND id <= 40 LIMIT 1";
    let id = native.target.server.value(DB, changed)?.ok_or("no row of the ledger has changed")?;
    let back = format!(
        "CREATE TABLE kept AS SELECT * FROM ledger WHERE id = {id};
         UPDATE ledger SET version = 0, note = NULL WHERE id = {id}"
    );
    let undo = "UPDATE ledger SET version = kept.version, note = kept.note FROM kept WHERE ledger.id = kept.id; DROP TABLE kept";
    let report = spoilt(&mut checker, &native, undo, &back).await?;
    assert_eq!(report.backwards, 1, "{report}");

    // The next transaction of the source, half of it.
    let next = "BEGIN; INSERT INTO journal VALUES (9, 1); UPDATE accounts SET balance = balance - 1000000 WHERE id = 1;
                UPDATE accounts SET balance = balance + 1000000 WHERE id = 2; COMMIT";
    native.source.exec(DB, next)?;
    history.catch_up(&mut checker).await?;
    let half = "INSERT INTO journal VALUES (9, 1); UPDATE accounts SET balance = balance - 1000000 WHERE id = 1";
    let rest = "UPDATE accounts SET balance = balance + 1000000 WHERE id = 2";
    let report = spoilt(&mut checker, &native, rest, half).await?;
    assert_eq!(report.torn, 1, "{report}");

    let before = checker.report().clone();
    let seen = native.target.observe().await.ok_or("the target cannot be read")?;
    assert!(checker.observe(&seen), "repaired, it is right again: {}", checker.report());
    assert_eq!(checker.finish(&seen).violations, before.violations);
    Ok(())
}
