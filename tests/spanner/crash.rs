//! Crash runs from the emulator: the `anabranch` command reads a change stream whose partitions split and
//! merge, and it and its connections are killed at random moments, while the bank is open.
//!
//! `KILLS=` makes longer ones; `SEED=` replays what a run printed. The emulator itself keeps its data in
//! memory, so it is never killed.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anabranch_servers::{SpannerDialect, SpannerOptions};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::block_in_place;

use super::Tested;
use super::command::{Anabranch, DONE};
use super::proxy::Proxy;
use super::target::{Watcher, observe};
use super::workload::{Bank, Writer};

/// Kills of a run unless `KILLS` says otherwise.
const KILLS: u32 = 6;
/// States that must be seen between kills, or the run means too little.
const STATES: usize = 4;
/// Longer than partitions live here: what the checkpoint names has ended by then, and its children too.
const ABSENCE: Duration = Duration::from_secs(5);
/// Until something new is seen.
const DEADLINE: Duration = Duration::from_secs(120);

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|v| v.parse().ok())
}

fn config(bank: &Bank, proxy: &Proxy, target: &str) -> String {
    format!(
        "[pipeline]\nname = \"crash\"\norder = \"transaction\"\n\
         [source]\ntype = \"spanner\"\ndatabase = \"{}\"\nchange_stream = \"changes\"\nendpoint = \"http://{}\"\n\
         admin_endpoint = \"http://{}\"\nsnapshot = \"initial\"\n\
         [sink]\ntype = \"sqlite\"\npath = \"{target}\"\ncreate_tables = true\n",
        bank.database,
        proxy.address,
        bank.server.rest_host()
    )
}

async fn survives(dialect: SpannerDialect) -> Tested {
    let new = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| u64::from(d.subsec_nanos()));
    let seed = number("SEED").unwrap_or_else(new);
    println!("{dialect:?}: SEED={seed}");
    let Some(server) = block_in_place(|| SpannerOptions::new().partition_seconds(1).start())? else { return Ok(()) };
    let bank = block_in_place(|| Bank::open(server, dialect))?;
    let proxy = Proxy::start(bank.server.host()).await?;
    let folder = tempfile::tempdir()?;
    let target = folder.path().join("target.db");
    let config = config(&bank, &proxy, &target.display().to_string());
    let Some(command) = Anabranch::new(&config)? else { return Ok(()) };
    let writer = Writer::start(&bank, seed);
    let watcher = Watcher::start(target.clone(), bank.states.clone());

    let mut random = StdRng::seed_from_u64(seed);
    let (mut kills, mut cuts, mut last) = (0, 0, (Instant::now(), 0));
    let least = number("KILLS").map_or(KILLS, |n| n as u32);
    let mut running = command.spawn(&["run"])?;
    while (kills < least || watcher.states() < STATES) && !watcher.found_something() {
        if watcher.states() > last.1 {
            last = (Instant::now(), watcher.states());
        }
        if last.0.elapsed() > DEADLINE {
            return Err(format!("{} states in {kills} kills:\n{}", watcher.states(), running.log()).into());
        }
        // Mostly in the middle of starting or copying; every third time amid the stream.
        let seen = watcher.states();
        let wait = Duration::from_millis(random.random_range(100..2_000));
        tokio::time::sleep(wait).await;
        if kills % 3 == 2 {
            let until = Instant::now() + DEADLINE;
            while watcher.states() == seen && Instant::now() < until && !watcher.found_something() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        if random.random_ratio(1, 4) {
            proxy.cut.notify_waiters();
            cuts += 1;
            continue;
        }
        if !running.runs()? {
            return Err(format!("it ended by itself:\n{}", running.log()).into());
        }
        running.signal("KILL")?;
        kills += 1;
        drop(running);
        if kills == least / 2 {
            tokio::time::sleep(ABSENCE).await;
        }
        running = command.spawn(&["run"])?;
    }
    drop(running);
    block_in_place(|| writer.stop())?;
    let states = watcher.states();
    if !watcher.found_something() {
        block_in_place(|| command.drain())?.expect(DONE, &["drained"]);
    }
    block_in_place(|| watcher.stop())?;
    let all = bank.states.lock().map_err(|_| "poisoned")?.clone();
    let last = all.last().ok_or("no state")?;
    assert_eq!(observe(&target).as_ref(), Some(last), "SEED={seed}");
    println!("{dialect:?}: {kills} kills, {cuts} cuts; {states} states seen; {} transactions", all.len() - 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_reader_of_google_sql_survives_kills() -> Tested {
    survives(SpannerDialect::GoogleSql).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_reader_of_the_postgresql_dialect_survives_kills() -> Tested {
    survives(SpannerDialect::PostgreSql).await
}
