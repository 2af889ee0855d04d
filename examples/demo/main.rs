//! A small shop in PostgreSQL, replicated into SQLite and MariaDB while it is written to. The
//! pipeline is killed in the middle of its first copy and again in the middle of the stream; at the
//! end every row of every table is compared.
//!
//! `make demo` runs it. It ends with an error if a single value differs.

mod compare;
mod lag;
mod pipeline;
mod shop;
mod target;
mod tell;

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anabranch_servers::{PgServer, PgVersion, postgres};

use lag::Lag;
use pipeline::Pipeline;
use shop::{Shop, Writer};
use target::{Maria, Sqlite, Target};
use tell::{Done, say, thousands, verdict};

/// How long the stream is watched, with a kill in the middle.
const STREAMING: Duration = Duration::from_secs(4);

fn main() -> ExitCode {
    verdict(demo())
}

/// True if every row is equal everywhere.
fn demo() -> Done<bool> {
    let program = pipeline::program("make demo")?;
    let Some(server) = postgres(PgVersion::Any) else {
        println!("skipped: there is no PostgreSQL; `make setup` says why");
        return Ok(true);
    };
    let version = server.value("postgres", "SHOW server_version")?.unwrap_or_default();
    println!("A small shop in PostgreSQL {version}, replicated while it is written to.");
    let mut equal = replicate(&server, &program, &Sqlite::new()?)?;
    match Maria::start()? {
        Some(maria) => equal &= replicate(&server, &program, &maria)?,
        None => println!("\nPostgreSQL to MariaDB\n  skipped: MariaDB is not installed"),
    }
    Ok(equal)
}

/// The whole story with one target.
fn replicate(server: &PgServer, program: &std::path::Path, target: &dyn Target) -> Done<bool> {
    println!("\nPostgreSQL to {}", target.name());
    let shop = Shop::open(server, target.name())?;
    say(
        "loaded",
        format!(
            "{} tables, {} rows; from here on a writer goes on all the while",
            shop::TABLES.len(),
            thousands(shop.rows()?)
        ),
    );
    let writer = Writer::start(&shop);
    let mut pipeline = Pipeline::new(program, &config(&shop.url(), target))?;

    let started = Instant::now();
    pipeline.start()?;
    copy_with_a_kill(&mut pipeline, &shop, target)?;
    say("copied", format!("the first copy is complete {:.1} s after the start", started.elapsed().as_secs_f64()));

    let lag = stream_with_a_kill(&mut pipeline, &writer, target)?;
    say("lag", format!("{lag}, from a commit in PostgreSQL to a reader of {}", target.name()));

    let written = writer.stop()?;
    say(
        "writes",
        format!("stopped: {} changes in {} transactions", thousands(written.changes), thousands(written.transactions)),
    );
    pipeline.finish("that")?;
    let equal = compare::tables(&shop, target)?;
    shop.close()?;
    Ok(equal)
}

/// From the database at `source` to the target.
fn config(source: &str, target: &dyn Target) -> String {
    let slot = format!("shop_to_{}", target.name().to_lowercase());
    let (sink, lossy) = (target.sink(), target.lossy());
    format!(
        "[pipeline]\nname = \"{slot}\"\norder = \"transaction\"\n\n\
         [source]\ntype = \"postgres\"\nurl = \"{source}\"\npublication = \"shop\"\nslot = \"{slot}\"\n\
         snapshot = \"initial\"\n\n[sink]\n{sink}create_tables = true\n\n\
         [mapping]\nlossy = {lossy:?}\n"
    )
}

/// Kills the pipeline as soon as some rows are there, and waits for the others after its restart.
fn copy_with_a_kill(pipeline: &mut Pipeline, shop: &Shop<'_>, target: &dyn Target) -> Done {
    let all = shop.loaded();
    let mut copied = 0;
    pipeline.wait_until("the first rows", || {
        copied = target.count();
        Ok(copied > 0)
    })?;
    pipeline.kill()?;
    let kept = target.count();
    if copied < all {
        say(
            "killed",
            format!("SIGKILL in the middle of the first copy: {} of {} rows", thousands(kept), thousands(all)),
        );
    } else {
        say(
            "killed",
            format!("SIGKILL right after the first copy: {} rows, too quick to be hit in it", thousands(kept)),
        );
    }
    pipeline.start()?;
    pipeline.wait_until("the first copy", || Ok(target.count() >= all && target.complete(shop)))
}

/// Kills the pipeline in the middle of a stream, measuring the lag but for the kill and its restart.
fn stream_with_a_kill(pipeline: &mut Pipeline, writer: &Writer, target: &dyn Target) -> Done<Lag> {
    pipeline.wait_until("the stream", || Ok(target.newest_order() > writer.newest().saturating_sub(3)))?;
    let mut lag = Lag::default();
    lag.watch(STREAMING / 2, writer, target);
    pipeline.kill()?;
    let seen = target.newest_order();
    // The shop goes on while nobody replicates.
    thread::sleep(Duration::from_millis(300));
    let missed = writer.newest().saturating_sub(seen);
    say("killed", format!("SIGKILL in the middle of the stream; {missed} orders come in while it is down"));
    pipeline.catch_up(|| Ok(target.newest_order() >= seen + missed))?;
    lag.watch(STREAMING / 2, writer, target);
    Ok(lag)
}
