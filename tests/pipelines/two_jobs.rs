//! Crash runs of the two-job form: one command writes what PostgreSQL commits into window files,
//! another one reads them into a target; both, and the servers, are killed at random moments.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anabranch_servers::{PgServer, PgVersion};
use anabranch_testkit::generators::Dice;
use anabranch_testkit::history::{Consistency, Options};

use super::faults::Faults;
use super::runner::{self, Runner};
use super::source::{self, DB, History};
use super::targets::{MariaTarget, SqliteTarget, Target};
use super::watcher::Watcher;
use super::writers::Writers;
use super::{Tested, config};

/// Kills of a run unless `KILLS` says otherwise.
const KILLS: u32 = 30;
/// States of the source that a reader of the target has to have seen, or the run means too little.
const STATES: usize = 6;
/// NaN and infinities only where the target can hold them.
const FINITE: Options = Options { nonfinite: false, rows: 40 };
/// How long the first job may take to create its slot.
const PATIENCE: Duration = Duration::from_secs(60);

fn first_job(source: &str, folder: &str) -> String {
    format!(
        "[pipeline]\nname = \"first\"\norder = \"transaction\"\n\n\
         [source]\ntype = \"postgres\"\nurl = \"{source}\"\npublication = \"workload\"\nslot = \"workload\"\n\
         snapshot = \"never\"\n\n\
         [sink]\ntype = \"files\"\npath = \"{folder}\"\nrun = \"crash\"\nwindow_seconds = 0.5\nmax_file_mib = 1\n"
    )
}

fn second_job(folder: &str, target: &dyn Target) -> String {
    let (sink, lossy) = (target.sink(), target.lossy());
    format!(
        "[mapping]\nlossy = {lossy:?}\n\n[pipeline]\nname = \"second\"\norder = \"transaction\"\n\n\
         [source]\ntype = \"files\"\npath = \"{folder}\"\nrun = \"crash\"\nshard = \"\"\npoll_seconds = 0.1\n\
         processed = \"delete\"\nsnapshot = \"never\"\n\n[sink]\n{sink}"
    )
}

async fn run(name: &str, target: Option<Arc<dyn Target>>) -> Tested {
    let (Some(program), Some(target)) = (runner::command(), target) else { return Ok(()) };
    let seed = config::seed(name);
    let Some(server) = source::start_empty(PgVersion::Any).await? else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("windows").display().to_string();
    let mut first = Runner::new(program.clone(), &first_job(&server.url(DB), &path))?;
    let mut second = Runner::new(program, &second_job(&path, target.as_ref()))?;
    first.keep_running();
    // From here on everything is in the stream.
    until_slot(&server).await?;
    second.keep_running();
    source::load(&server, seed, FINITE).await?;
    let writers = Writers::start(&server, seed, FINITE, 3, Duration::from_millis(10));
    let watcher = Watcher::start(History::new(&server), target.clone(), seed, Consistency::Prefix);
    let mut faults = Faults::new(seed, server.clone(), target.clone());
    let (kills, mut dice) = (config::kills(KILLS), Dice::new(seed));
    let enough = |count: u32| count >= kills && (watcher.states() >= STATES || count >= 3 * kills);
    while !enough(faults.count()) && !watcher.found_something() && !first.gave_up() && !second.gave_up() {
        faults.strike(Some(if dice.percent(50) { &first } else { &second })).await?;
    }
    let committed = writers.stop().await?;
    let ended = async {
        first.stop().await?;
        second.stop().await?;
        if watcher.found_something() {
            return Ok(());
        }
        first.drain().await?;
        second.drain().await
    };
    if let Err(e) = ended.await {
        let (done, stored) = (faults.summary(), target.stored());
        println!("{name}, SEED={seed}, {done}: {e}\nstored:\n{stored}");
        println!("the first log:\n{}\nthe second log:\n{}", first.log(), second.log());
        return Err(e);
    }
    let report = watcher.finish().await?;
    println!("{name}: {report}; {}; {committed} acknowledged commits", faults.summary());
    assert!(committed <= report.commits as u64, "{name}: the source itself lost commits: {committed}, {report}");
    assert!(report.is_clean(), "{name}: {report}\n{}\n{}", first.log(), second.log());
    assert!(report.prefixes >= STATES, "{name}: too little was seen to mean anything: {report}");
    Ok(())
}

async fn until_slot(server: &PgServer) -> Tested {
    let client = source::connect(&server.url(DB), "set-up").await?;
    let deadline = Instant::now() + PATIENCE;
    let sql =
        "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'workload' AND confirmed_flush_lsn IS NOT NULL";
    while client.query_one(sql, &[]).await?.get::<_, i64>(0) == 0 {
        if Instant::now() > deadline {
            return Err("the first job does not create its slot".into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn postgres_to_files_to_sqlite_survives_kills() -> Tested {
    run("postgres to files to sqlite", Some(Arc::new(SqliteTarget::start()?))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn postgres_to_files_to_mariadb_survives_kills() -> Tested {
    let target = MariaTarget::start(true)?.map(|target| Arc::new(target) as Arc<dyn Target>);
    run("postgres to files to mariadb", target).await
}
