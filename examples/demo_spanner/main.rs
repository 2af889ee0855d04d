//! Reverse replication: a shop that was migrated from two MariaDB databases into Spanner writes back
//! to them, while it serves, so that it could return. Tables and columns have other names there. The
//! pipeline is killed twice on the way; at the end every row of both databases is compared.
//!
//! `make demo-spanner` runs it, with the Cloud Spanner emulator. It ends with an error if a single value
//! differs.

mod compare;
mod files;
#[path = "../demo/pipeline.rs"]
mod pipeline;
mod shards;
mod shop;
#[path = "../demo/tell.rs"]
mod tell;

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anabranch_servers::{SpannerOptions, find};

use pipeline::Pipeline;
use shards::Shards;
use shop::{Shop, Writer};
use tell::{Done, say, thousands, verdict};

/// How long the stream is watched before and after the kill.
const STREAMING: Duration = Duration::from_secs(3);
/// Partitions of the change stream live this long, up to twice that: Spanner's live for minutes.
const PARTITION_SECONDS: u32 = 2;

fn main() -> ExitCode {
    verdict(demo())
}

/// True if every row is equal.
fn demo() -> Done<bool> {
    let program = pipeline::program("make demo-spanner")?;
    if find::spanner().is_none() {
        println!("skipped: the Cloud Spanner emulator is not installed.");
        println!("  It comes with the Google Cloud CLI: gcloud components install cloud-spanner-emulator,");
        println!("  or the Debian package google-cloud-cli-spanner-emulator. It is looked for in that CLI's");
        println!("  folder, on PATH, and in $SPANNER_EMULATOR_BIN (the folder of emulator_main and gateway_main).");
        return Ok(true);
    }
    let Some(server) = SpannerOptions::new().partition_seconds(PARTITION_SECONDS).start()? else { return Ok(true) };
    let Some(shards) = Shards::start()? else {
        println!("skipped: MariaDB is not installed; `make setup` says why");
        return Ok(true);
    };
    println!("A shop in Spanner that came from two MariaDB databases, and writes back to them.");
    println!(
        "Its change stream's partitions split and merge every {PARTITION_SECONDS} to {} s.\n",
        PARTITION_SECONDS * 2
    );
    let shop = Shop::open(server)?;
    shards.fill(&shop)?;
    say("loaded", format!("{} tables, {} rows in each of 2 shards", shop::TABLES.len(), thousands(shop::LOADED)));

    let mut pipeline = Pipeline::new(&program, &files::config(&shop))?;
    pipeline.file("session.json", &files::session())?;
    pipeline.file("shards.json", &files::shards(&shards))?;
    let took = pipeline.drain()?;
    say(
        "set up",
        format!("the change stream was created in {:.1} s; from here on a writer goes on all the while", secs(took)),
    );
    replicate(&shop, &shards, &mut pipeline)?;
    compare::tables(&shop, &shards)
}

/// Streams with kills, until everything that was written is there.
fn replicate(shop: &Shop, shards: &Shards, pipeline: &mut Pipeline) -> Done {
    let writer = Writer::start(shop);
    pipeline.start()?;
    pipeline.wait_until("the stream", || Ok(shards.newest()? > 0))?;
    let lag = watch(pipeline, &writer, shards)?;
    pipeline.kill()?;
    let seen = shards.newest()?;
    // The shop goes on while nobody replicates.
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        thread::sleep(Duration::from_millis(10));
    }
    let newest = writer.newest();
    say("killed", format!("SIGKILL in the middle of the stream; {} orders come in while it is down", newest - seen));
    pipeline.catch_up(|| Ok(shards.newest()? >= newest))?;
    let later = watch(pipeline, &writer, shards)?;
    say("lag", format!("{} and {}, before and after, from a commit in Spanner to a reader of both shards", lag, later));

    let written = writer.stop()?;
    let (orders, changes) = (thousands(written.transactions), thousands(written.changes));
    say("writes", format!("stopped: {changes} changes in {orders} transactions, each over both shards"));
    pipeline.finish("another SIGKILL")
}

/// The median time from a commit to a reader of both shards, as text.
fn watch(pipeline: &mut Pipeline, writer: &Writer, shards: &Shards) -> Done<String> {
    let end = Instant::now() + STREAMING;
    writer.take_committed();
    let (mut waiting, mut lags): (Vec<(u64, Instant)>, Vec<Duration>) = (Vec::new(), Vec::new());
    while Instant::now() < end {
        pipeline.check()?;
        waiting.extend(writer.take_committed());
        let newest = shards.newest()?;
        let now = Instant::now();
        lags.extend(waiting.iter().filter(|(n, _)| *n <= newest).map(|(_, at)| now.saturating_duration_since(*at)));
        waiting.retain(|(n, _)| *n > newest);
    }
    lags.sort();
    Ok(lags.get(lags.len() / 2).map_or_else(|| "none".to_owned(), |lag| format!("{:.0} ms", secs(*lag) * 1000.0)))
}

fn secs(time: Duration) -> f64 {
    time.as_secs_f64()
}
