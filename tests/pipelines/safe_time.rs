//! Safe time, beside writers whose transactions commit in another order than they began: whatever the source
//! committed at or before it is in the target at the moment it is told. It never goes back, neither
//! over a restart nor over a kill of the target, and on an idle source it stays near the present.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anabranch::{
    ByKey, ByTransaction, HEARTBEAT, Order, Pipeline, Postgres, PostgresSink, RunningPipeline, Sqlite, Timestamp,
};
use anabranch_servers::{PgOptions, PgServer, PgVersion};
use anabranch_testkit::generators::Dice;
use tokio::task::JoinHandle;

use super::source::connect;
use super::{Tested, config};

const DB: &str = "shop";
const WRITERS: u64 = 4;
/// Observations of each phase, each with a new safe time: it moves about once a second.
const OBSERVATIONS: usize = 6;
const DEADLINE: Duration = Duration::from_secs(120);
/// How long the source is idle.
const IDLE: Duration = Duration::from_secs(8);

/// Rows tell their transactions: they are inserted, in two tables, and never changed.
const TABLES: &str = "
CREATE TABLE left_rows (writer int, n int, PRIMARY KEY (writer, n));
CREATE TABLE right_rows (writer int, n int, PRIMARY KEY (writer, n));";

type Rows = HashSet<(bool, i32, i32)>;

/// A safe time, and what a reader of the target saw right after it was told.
struct Seen {
    safe_time: Timestamp,
    rows: Rows,
}

struct Pair {
    source: PgServer,
    target: PgServer,
    folder: tempfile::TempDir,
    name: &'static str,
    order: fn() -> Order,
}

impl Pair {
    /// `None`: skipped.
    fn open(name: &'static str, order: fn() -> Order) -> Tested<Option<Self>> {
        let options = || PgOptions::new(PgVersion::Any).setting("track_commit_timestamp", "on");
        let (Some(source), Some(target)) = (options().start()?, options().start()?) else { return Ok(None) };
        source.create_db(DB)?;
        target.create_db(DB)?;
        source.exec(DB, TABLES)?;
        Ok(Some(Self { source, target, folder: tempfile::tempdir()?, name, order }))
    }

    async fn start(&self) -> Tested<RunningPipeline> {
        let pipeline = Pipeline::builder(self.name)
            .source(Postgres::new(self.source.url(DB)).publication("all").slot(self.name))
            .sink(PostgresSink::new(self.target.url(DB)))
            .checkpointer(Sqlite::open(self.folder.path().join("state.db")))
            .order((self.order)())
            .create_tables(true)
            .build()?;
        Ok(pipeline.start().await.map_err(|e| e.report())?)
    }

    async fn writers(&self, seed: u64, stop: &Arc<AtomicBool>) -> Vec<JoinHandle<Tested>> {
        let one = |writer| tokio::spawn(write(self.source.url(DB), writer, seed, Arc::clone(stop)));
        (0..WRITERS).map(one).collect()
    }
}

/// Transactions of two rows, each begun and ended at random times; now and then one that lasts.
async fn write(url: String, writer: u64, seed: u64, stop: Arc<AtomicBool>) -> Tested {
    let client = connect(&url, "writer").await?;
    let mut dice = Dice::new(seed ^ writer.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let first: i32 = client
        .query_one("SELECT coalesce(max(n), 0) FROM left_rows WHERE writer = $1", &[&(writer as i32)])
        .await?
        .get(0);
    for n in first + 1.. {
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        client.batch_execute(&format!("BEGIN; INSERT INTO left_rows VALUES ({writer}, {n})")).await?;
        let pause = if dice.percent(10) { 60 } else { 3 };
        tokio::time::sleep(Duration::from_millis(pause)).await;
        client.batch_execute(&format!("INSERT INTO right_rows VALUES ({writer}, {n}); COMMIT")).await?;
    }
    Ok(())
}

/// Observes until the safe time has moved often enough.
async fn observe(pair: &Pair, running: &RunningPipeline, times: usize, seen: &mut Vec<Seen>) -> Tested {
    let target = connect(&pair.target.url(DB), "reader").await?;
    let deadline = Instant::now() + DEADLINE;
    let enough = seen.len() + times;
    while seen.len() < enough {
        if Instant::now() > deadline {
            return Err(format!("safe time has moved {} times only: {:?}", seen.len(), running.status()).into());
        }
        let last = seen.last().map(|s| s.safe_time);
        if let Some(safe_time) = running.status().safe_time {
            assert!(Some(safe_time) >= last, "{}: it went back from {last:?} to {safe_time}", pair.name);
            if Some(safe_time) > last {
                seen.push(Seen { safe_time, rows: rows(&target).await? });
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

async fn rows(target: &tokio_postgres::Client) -> Tested<Rows> {
    let sql = "SELECT true, writer, n FROM left_rows UNION ALL SELECT false, writer, n FROM right_rows";
    Ok(target.query(sql, &[]).await?.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect())
}

/// Every row that the source committed at or before each safe time was in the target then.
async fn judge(pair: &Pair, seen: &[Seen]) -> Tested<usize> {
    let source = connect(&pair.source.url(DB), "judge").await?;
    let sql = "SELECT t, writer, n, (extract(epoch FROM pg_xact_commit_timestamp(x)) * 1000000)::int8 FROM (
                 SELECT true, writer, n, xmin FROM left_rows UNION ALL SELECT false, writer, n, xmin FROM right_rows
               ) r(t, writer, n, x)";
    let committed = source.query(sql, &[]).await?;
    assert!(!committed.is_empty());
    let mut proved = 0;
    for one in seen {
        for row in &committed {
            let (row, at): (_, i64) = ((row.get(0), row.get(1), row.get(2)), row.get(3));
            if at <= one.safe_time.as_micros() {
                proved += 1;
                assert!(
                    one.rows.contains(&row),
                    "{}: {row:?} was committed {} us before the safe time {}, and was not in the target",
                    pair.name,
                    one.safe_time.as_micros() - at,
                    one.safe_time
                );
            }
        }
    }
    Ok(proved)
}

/// The largest age of the safe time over a while. A machine that is too busy to run anything on time is waited for.
async fn idle(pair: &Pair, running: &RunningPipeline) -> Tested<f64> {
    let most = HEARTBEAT.as_secs_f64() + 1.0;
    let deadline = Instant::now() + DEADLINE;
    loop {
        let (began, mut worst) = (Instant::now(), 0.0_f64);
        while began.elapsed() < IDLE && worst <= most {
            tokio::time::sleep(Duration::from_millis(50)).await;
            worst = worst.max(running.status().lag_seconds.unwrap_or(f64::INFINITY));
        }
        if worst <= most {
            return Ok(worst);
        }
        if Instant::now() > deadline {
            return Err(format!("{}: on an idle source safe time is {worst:.1} s old", pair.name).into());
        }
    }
}

async fn run(name: &'static str, order: fn() -> Order) -> Tested {
    let seed = config::seed(name);
    let Some(pair) = Pair::open(name, order)? else { return Ok(()) };
    let mut seen: Vec<Seen> = Vec::new();
    let stop = Arc::new(AtomicBool::new(false));
    let writers = pair.writers(seed, &stop).await;

    let running = pair.start().await?;
    observe(&pair, &running, OBSERVATIONS, &mut seen).await?;
    // Over a kill of the target, and over a restart of the pipeline in an orderly way and without one.
    pair.target.kill9()?;
    pair.target.start()?;
    observe(&pair, &running, OBSERVATIONS, &mut seen).await?;
    running.stop().await.map_err(|e| e.report())?;
    let running = pair.start().await?;
    observe(&pair, &running, OBSERVATIONS, &mut seen).await?;
    drop(running);
    let mut running = pair.start().await?;
    observe(&pair, &running, OBSERVATIONS, &mut seen).await?;

    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await??;
    }
    running.drain(Some(DEADLINE)).await.map_err(|e| e.report())?;
    let worst = idle(&pair, &running).await?;
    observe(&pair, &running, 2, &mut seen).await?;
    running.stop().await.map_err(|e| e.report())?;
    let proved = judge(&pair, &seen).await?;
    println!("{name}: {} safe times, {proved} rows proved; idle at most {worst:.1} s old", seen.len());
    assert!(proved > 1000, "{name}: too little was seen to mean anything: {proved}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn safe_time_holds_by_transaction() -> Tested {
    run("safe_time_by_transaction", || ByTransaction::new().into()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn safe_time_holds_by_key() -> Tested {
    run("safe_time_by_key", || ByKey::new(4).into()).await
}
