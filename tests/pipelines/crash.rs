//! Crash runs: the `anabranch` command between two databases, with everything killed at random
//! moments, and the history checker watching.
//!
//! `make crash KILLS=1000` makes long ones; `SEED=` replays what a run printed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anabranch_servers::PgVersion;
use anabranch_testkit::generators::Dice;
use anabranch_testkit::history::{Consistency, Options};

use super::ending::Ending;
use super::faults::Faults;
use super::runner::{self, Runner};
use super::source::{self, DB, History};
#[cfg(feature = "spanner")]
use super::targets::SpannerTarget;
use super::targets::{DynamoTarget, MariaTarget, PgTarget, SqliteTarget, Target};
use super::watcher::Watcher;
use super::writers::Writers;
use super::{Tested, config};

/// Kills of a run unless `KILLS` says otherwise.
const KILLS: u32 = 50;
/// States of the source that a reader of the target has to have seen, or the run means too little.
const STATES: usize = 6;
/// The same of an emulator that takes seconds to start a pipeline.
const SLOW_STATES: usize = 2;
/// NaN and infinities only where the target can hold them.
const FINITE: Options = Options { nonfinite: false, rows: 40 };

fn pipeline(source: &str, target: &dyn Target, consistency: Consistency) -> String {
    let order = match consistency {
        Consistency::Prefix => "transaction",
        Consistency::PerKey => "key",
    };
    let (sink, lossy, transforms) = (target.sink(), target.lossy(), target.transforms());
    format!(
        "[mapping]\nlossy = {lossy:?}\n\n[pipeline]\nname = \"crash\"\norder = \"{order}\"\n\n\
         [source]\ntype = \"postgres\"\nurl = \"{source}\"\npublication = \"workload\"\nslot = \"workload\"\n\
         snapshot = \"initial\"\nchunk_pages = 1\n\n[sink]\n{sink}{transforms}"
    )
}

/// Kills, drains and compares. Everything that was running is stopped on return.
async fn run(
    name: &str,
    version: PgVersion,
    options: Options,
    consistency: Consistency,
    target: Option<Arc<dyn Target>>,
) -> Tested {
    let (Some(program), Some(target)) = (runner::command(), target) else { return Ok(()) };
    let seed = config::seed(name);
    let Some(server) = source::start(version, seed, options).await? else { return Ok(()) };
    let pause = Duration::from_millis(if target.is_slow() { 400 } else { 10 });
    let writers = Writers::start(&server, seed, options, 3, pause);
    let mut runner = Runner::new(program, &pipeline(&server.url(DB), target.as_ref(), consistency))?;
    runner.keep_running();
    if consistency == Consistency::PerKey || target.is_slow() {
        // A copy that is killed removes rows, or empties tables, before it goes on: by key that looks like a loss.
        // Kills in the copy are for the runs that know when the first load is complete.
        runner.streams().await?;
    }
    let watcher = Watcher::start(History::new(&server), target.clone(), seed, consistency);
    let mut faults = Faults::new(seed, server.clone(), target.clone());
    let kills = config::kills(KILLS);
    let states = match consistency {
        Consistency::PerKey => 0,
        Consistency::Prefix if target.is_slow() => SLOW_STATES,
        Consistency::Prefix => STATES,
    };
    let enough = |count: u32| count >= kills && (watcher.states() >= states || count >= 3 * kills);
    while !enough(faults.count()) && !watcher.found_something() && !runner.gave_up() {
        faults.strike(Some(&runner)).await?;
    }
    // What came of the kills is to be seen.
    watcher.sees(states, &runner).await;
    let committed = writers.stop().await?;
    let target = target.as_ref();
    Ending { name, seed, faults: &faults, runner: &mut runner, target, watcher, committed, states }.finish().await
}

/// Kills the command in the middle of the first copy, again and again, while its rows change.
async fn run_copy(name: &str, version: PgVersion, target: Option<Arc<dyn Target>>) -> Tested {
    const GOES_ON: &str = "its interrupted copy goes on";
    /// How long a copy is interrupted again and again at most.
    const INTERRUPTED: Duration = Duration::from_secs(180);
    let options = Options { nonfinite: false, rows: 3000 };
    let (Some(program), Some(target)) = (runner::command(), target) else { return Ok(()) };
    let seed = config::seed(name);
    let Some(server) = source::start(version, seed, options).await? else { return Ok(()) };
    let writers = Writers::start(&server, seed, options, 2, Duration::from_millis(10));
    let mut runner = Runner::new(program, &pipeline(&server.url(DB), target.as_ref(), Consistency::Prefix))?;
    runner.keep_running();
    let watcher = Watcher::start(History::new(&server), target.clone(), seed, Consistency::Prefix);
    let (mut kills, mut dice) = (0_usize, Dice::new(seed));
    let deadline = Instant::now() + INTERRUPTED;
    // Until it went on a few times, or the copy is done in spite of it all.
    while runner.printed(GOES_ON) < 3 && watcher.states() == 0 && !runner.gave_up() && Instant::now() < deadline {
        // Longer and longer: a loaded machine takes its time to start one.
        tokio::time::sleep(Duration::from_millis(200 + dice.below(300 + 60 * kills) as u64)).await;
        kills += usize::from(runner.kill().await?);
    }
    let committed = writers.stop().await?;
    runner.stop().await?;
    if let Err(e) = runner.drain().await {
        println!("{name}, SEED={seed}, {kills} kills: {e}\nits log:\n{}", runner.log());
        return Err(e);
    }
    let report = watcher.finish().await?;
    println!("{name}: {report}; {kills} kills, {} copies of tables went on", runner.printed(GOES_ON));
    assert!(committed <= report.commits as u64, "{name}: the source itself lost commits: {committed}, {report}");
    assert!(report.is_clean(), "{name}: {report}\n{}", runner.log());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_copy_to_sqlite_survives_kills() -> Tested {
    run_copy("copy to sqlite", PgVersion::V18, dynamic(Some(SqliteTarget::start()?))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_copy_to_postgres_survives_kills() -> Tested {
    run_copy("copy to postgres", PgVersion::V15, dynamic(PgTarget::start(PgVersion::V18)?)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_copy_to_mariadb_survives_kills() -> Tested {
    run_copy("copy to mariadb", PgVersion::V18, dynamic(MariaTarget::start(true)?)).await
}

fn dynamic<T: Target + 'static>(target: Option<T>) -> Option<Arc<dyn Target>> {
    target.map(|target| Arc::new(target) as _)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn postgres_to_postgres_survives_kills() -> Tested {
    let target = dynamic(PgTarget::start(PgVersion::V18)?);
    run("postgres to postgres", PgVersion::V15, Options::default(), Consistency::Prefix, target).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn postgres_to_mariadb_survives_kills() -> Tested {
    let target = dynamic(MariaTarget::start(true)?);
    run("postgres to mariadb", PgVersion::V18, FINITE, Consistency::Prefix, target).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn postgres_to_sqlite_survives_kills() -> Tested {
    let target = dynamic(Some(SqliteTarget::start()?));
    run("postgres to sqlite", PgVersion::V15, FINITE, Consistency::Prefix, target).await
}

#[cfg(feature = "spanner")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn postgres_to_spanner_survives_kills() -> Tested {
    let target = dynamic(SpannerTarget::start().await?);
    run("postgres to spanner", PgVersion::V15, FINITE, Consistency::Prefix, target).await
}

/// Rows of several lanes come in any order, so unique keys beside the primary ones cannot hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn postgres_to_mariadb_by_key_survives_kills() -> Tested {
    let target = dynamic(MariaTarget::start(false)?);
    run("postgres to mariadb by key", PgVersion::V15, FINITE, Consistency::PerKey, target).await
}

/// Items of one transaction come one after the other, whatever the order of the source.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn postgres_to_dynamodb_survives_kills() -> Tested {
    let target = dynamic(DynamoTarget::start("guarded").await?);
    run("postgres to dynamodb", PgVersion::V15, FINITE, Consistency::PerKey, target).await
}
