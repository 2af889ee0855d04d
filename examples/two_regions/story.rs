//! What happens, step by step; `tests/pipelines/fan_out.rs` runs it too.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anabranch::RunningPipeline;
use anabranch::pipeline::{Phase, Status};
use anabranch_servers::{PgOptions, PgServer, PgVersion};
use tokio::task::JoinHandle;

use super::region::{PATIENCE, Region, drained};

pub(crate) type Told<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// The database, on every server.
pub(crate) const DB: &str = "shop";

/// Log that is written while the second region is down, at least.
const MISSED: u64 = 2 << 20;
/// How often the first region is asked to catch up with the present meanwhile.
const DRAINS: usize = 5;

/// What was seen.
#[allow(dead_code, reason = "the example tells, the test looks at it")]
#[derive(Debug)]
pub(crate) struct Story {
    /// Both regions have what the primary has.
    pub(crate) equal: bool,
    /// How the first region stood at the end of the second one's outage, and how the second one did.
    pub(crate) unaffected: Status,
    pub(crate) down: Status,
    /// The second region's, before the outage.
    pub(crate) before: Status,
    /// The largest lag of the first region while the second was down, in seconds.
    pub(crate) worst_lag: f64,
    pub(crate) transactions: u64,
}

/// As an administrator prepares it for two consumers: the first region's slot and publication are
/// there already; the second region's are made by its pipeline.
const PRIMARY: &str = "
CREATE SCHEMA data_schema;
CREATE TABLE data_schema.orders (id bigint PRIMARY KEY, customer text NOT NULL, total numeric(12, 2), at timestamptz);
CREATE TABLE data_schema.lines (order_id bigint REFERENCES data_schema.orders, line int, what text, PRIMARY KEY (order_id, line));
INSERT INTO data_schema.orders SELECT i, 'customer ' || i % 97, i * 1.25, '2026-01-01'::timestamptz + i * interval '1 min'
    FROM generate_series(1, 3000) i;
INSERT INTO data_schema.lines SELECT i, l, 'thing ' || l FROM generate_series(1, 3000) i, generate_series(1, 2) l;
CREATE PUBLICATION pub1 FOR ALL TABLES WITH (publish = 'insert,update,delete');";
const SLOT: &str = "SELECT pg_create_logical_replication_slot('rs1', 'pgoutput')";

/// `None`: PostgreSQL is not installed.
pub(crate) async fn tell(say: &mut (dyn FnMut(String) + Send)) -> Told<Option<Story>> {
    // A consumer that stays away may hold back 256 MiB of the primary's log, no more.
    let Some(primary) = PgOptions::new(PgVersion::Any).setting("max_slot_wal_keep_size", "256MB").start()? else {
        return Ok(None);
    };
    primary.create_db(DB)?;
    primary.exec(DB, PRIMARY)?;
    primary.exec(DB, SLOT)?;
    let folder = tempfile::tempdir()?;
    let one = Region::open("region_1", &primary, ("pub1", "rs1"), folder.path())?;
    let two = Region::open("region_2", &primary, ("pub2", "rs2"), folder.path())?;
    let (Some(one), Some(two)) = (one, two) else { return Ok(None) };

    let (mut first, mut second) = (one.start().await?, two.start().await?);
    drained(&mut first).await?;
    drained(&mut second).await?;
    say("two regions   both copied, and streaming".to_owned());
    let writer = Writer::start(&primary)?;
    let before = until_known(&second).await?;

    two.database.kill9()?;
    say("killed        the database of region_2; the shop goes on".to_owned());
    let (unaffected, worst_lag) = outage(&primary, &mut first, &writer).await?;
    say(format!("region_1      {:?}, largest lag {worst_lag:.1} s", unaffected.phase));
    let down = until_counted_down(&two, &second).await?;
    say(format!("region_2      {:?}, {:.1} s behind", down.phase, down.lag_seconds.unwrap_or(f64::NAN)));
    if let Some(left) = &down.retention {
        say(format!("              {left}"));
    }

    two.database.start()?;
    say("restarted     the database of region_2; its pipeline goes on by itself".to_owned());
    drained(&mut second).await?;
    say("caught up     region_2 has everything that was committed meanwhile".to_owned());
    // Compared while the shop is written to.
    let mut equal = true;
    for region in [&one, &two] {
        let verified = region.verified().await?;
        equal &= verified.equal;
        for table in &verified.tables {
            say(format!("{:<14}{table}", region.name));
        }
    }
    let transactions = writer.stop().await?;
    // And once more at rest.
    for (region, running) in [(&one, &mut first), (&two, &mut second)] {
        drained(running).await?;
        equal &= region.verified().await?.equal;
    }
    first.stop().await.map_err(|e| e.report())?;
    second.stop().await.map_err(|e| e.report())?;
    say(format!("{}  after {transactions} transactions", if equal { "EQUAL       " } else { "DIFFERENT   " }));
    Ok(Some(Story { equal, unaffected, down, before, worst_lag, transactions }))
}

/// The status of a region once it tells how far it is, and what the primary keeps for it.
async fn until_known(running: &RunningPipeline) -> Told<Status> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = running.status();
        if status.safe_time.is_some() && status.retention.is_some() {
            return Ok(status);
        }
        if Instant::now() > deadline {
            return Err(format!("no safe time: {status:?}").into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Lets the shop write while one region is down, and asks the other one again and again whether it has
/// everything of the present.
async fn outage(primary: &PgServer, first: &mut RunningPipeline, writer: &Writer) -> Told<(Status, f64)> {
    let began = log_end(primary)?;
    let (deadline, mut worst) = (Instant::now() + PATIENCE, 0.0_f64);
    let monitor = first.monitor();
    for drains in 1.. {
        let seen = writer.committed();
        drained(first).await?;
        worst = worst.max(monitor.status().lag_seconds.unwrap_or(f64::INFINITY));
        let written = log_end(primary)?.saturating_sub(began);
        if drains >= DRAINS && written >= MISSED {
            break;
        }
        if Instant::now() > deadline {
            return Err(format!("the shop has written {written} bytes, no more").into());
        }
        // The next drain has something to wait for.
        while writer.committed() == seen {
            writer.check()?;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    Ok((first.status(), worst))
}

/// The end of the primary's log, in bytes.
fn log_end(primary: &PgServer) -> Told<u64> {
    let bytes = primary.value(DB, "SELECT (pg_current_wal_lsn() - '0/0')::bigint")?;
    Ok(bytes.ok_or("no answer")?.parse()?)
}

/// The status of a region whose database is down, as soon as its own process counts down how long the primary
/// keeps what it needs, and any other process tells how much that is.
async fn until_counted_down(region: &Region, running: &RunningPipeline) -> Told<Status> {
    let deadline = Instant::now() + PATIENCE;
    let kept = |s: &Status| s.retention.clone().filter(|left| left.held_bytes >= Some(MISSED) && left.bytes.is_some());
    loop {
        let (own, seen) = (running.status(), region.status().await?);
        let counted = kept(&own).is_some_and(|left| left.estimated_seconds.is_some());
        if own.phase == Phase::Retrying && counted && kept(&seen).is_some() {
            return Ok(own);
        }
        if Instant::now() > deadline {
            return Err(format!("no countdown: {own:?}\n{seen:?}").into());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Whoever uses the shop.
struct Writer {
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
    task: JoinHandle<Told>,
}

impl Writer {
    fn start(primary: &PgServer) -> Told<Self> {
        let (stop, committed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let task = tokio::spawn(write(primary.url(DB), Arc::clone(&stop), Arc::clone(&committed)));
        Ok(Self { stop, committed, task })
    }

    fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }

    fn check(&self) -> Told {
        if self.task.is_finished() { Err("the writer has ended".into()) } else { Ok(()) }
    }

    async fn stop(self) -> Told<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await??;
        Ok(self.committed.load(Ordering::Relaxed))
    }
}

async fn write(url: String, stop: Arc<AtomicBool>, committed: Arc<AtomicU64>) -> Told {
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    while !stop.load(Ordering::Relaxed) {
        let number = committed.load(Ordering::Relaxed) as i64;
        let (old, new) = (number * 7919 % 3000 + 1, 10_000 + number);
        client
            .batch_execute(&format!(
                "BEGIN;
                 INSERT INTO data_schema.orders VALUES ({new}, 'new customer', {number} / 8.0, now());
                 INSERT INTO data_schema.lines
                     SELECT {new}, 1, string_agg(md5(i::text || '{new}'), '') FROM generate_series(1, 60) i;
                 UPDATE data_schema.orders SET total = total + 1 WHERE id = {old};
                 DELETE FROM data_schema.lines WHERE order_id = {} AND line = 1;
                 COMMIT",
                new - 20
            ))
            .await?;
        committed.fetch_add(1, Ordering::Relaxed);
        // A rate that every region keeps up with.
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    Ok(())
}
