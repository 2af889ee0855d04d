//! DynamoDB to DynamoDB, PostgreSQL to DynamoDB and DynamoDB to PostgreSQL, while the source is
//! written to. Each pipeline is killed in the middle of its first copy and again in the middle of the
//! stream; at the end every item and every row is compared.
//!
//! `make demo-dynamodb` runs it. It ends with an error if a single value differs.

mod dynamo;
mod office;
#[path = "../demo/pipeline.rs"]
mod pipeline;
mod shop;
#[path = "../demo/tell.rs"]
mod tell;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anabranch_dynamodb::types::item_to_json;
use anabranch_servers::{PgServer, PgVersion, postgres};

use dynamo::Dynamo;
use pipeline::Pipeline;
use shop::Writer;
use tell::{Done, say, thousands, verdict};

const COUNT_EVERY: Duration = Duration::from_millis(250);
/// How many times the lag is measured.
const SAMPLES: usize = 25;

fn main() -> ExitCode {
    let started = Instant::now();
    let equal = demo().inspect(|_| println!("\n{:.0} s in all", started.elapsed().as_secs_f64()));
    verdict(equal)
}

/// True if every item and every row is equal everywhere.
fn demo() -> Done<bool> {
    let program = pipeline::program("make demo-dynamodb")?;
    // A server each: two streams on one DynamoDB Local are slow.
    let (Some(source), Some(target)) = (Dynamo::start()?, Dynamo::start()?) else {
        println!("skipped: there is no DynamoDB Local; `make setup` says why");
        return Ok(true);
    };
    let mut equal = between_dynamos(&program, &source, &target)?;
    match postgres(PgVersion::Any) {
        Some(server) => {
            office::open(&server)?;
            equal &= from_postgres(&program, &server, &target)?;
            equal &= to_postgres(&program, &source, &server)?;
        }
        None => println!("\nPostgreSQL to DynamoDB and back\n  skipped: there is no PostgreSQL; `make setup` says why"),
    }
    Ok(equal)
}

fn between_dynamos(program: &Path, source: &Dynamo, target: &Dynamo) -> Done<bool> {
    println!("\nDynamoDB to DynamoDB, two tables");
    shop::open(source)?;
    say("loaded", format!("{} items; from here on a writer goes on all the while", thousands(shop::loaded())));
    let writer = Writer::start(source, shop::ORDERS);
    let config = format!(
        "[pipeline]\nname = \"shop\"\norder = \"key\"\n\n[source]\n{}tables = [\"orders\", \"customers\"]\n\
         snapshot = \"initial\"\n\n[sink]\n{}concurrency = 16\ncreate_tables = true\n",
        source.section(),
        target.section()
    );
    let mut pipeline = Pipeline::new(program, &config)?;
    let copied = || target.count("orders", true);
    copy_with_a_kill(&mut pipeline, shop::ORDERS, &copied)?;
    let has = |id: u64| target.has("orders", shop::order_key(id));
    stream_with_a_kill(&mut pipeline, &|| writer.newest(), &has)?;
    let mut lags = Vec::new();
    while lags.len() < SAMPLES {
        let Some((id, written)) = writer.take_newest() else { continue };
        pipeline.wait_until("the newest order", || Ok(has(id)))?;
        lags.push(written.elapsed());
    }
    lags.sort();
    let ms = |at: usize| lags[at].as_millis();
    say(
        "lag",
        format!("median {} ms, longest {} ms, from a write to a reader of the copy", ms(SAMPLES / 2), ms(SAMPLES - 1)),
    );
    say("writes", format!("stopped: {}", thousands(writer.stop()?)));
    pipeline.finish("that")?;
    let mut equal = true;
    for (table, key) in shop::TABLES {
        equal &= compare(table, &source.items(table, key)?, &target.items(table, key)?);
    }
    Ok(equal)
}

fn from_postgres(program: &Path, server: &PgServer, target: &Dynamo) -> Done<bool> {
    println!("\nPostgreSQL to DynamoDB, two tables");
    say("loaded", format!("{} rows; from here on a writer goes on all the while", thousands(office::loaded())));
    let url = server.url(office::DATABASE);
    let config = format!(
        "[pipeline]\nname = \"office\"\norder = \"key\"\n\n[source]\ntype = \"postgres\"\nurl = \"{url}\"\n\
         publication = \"office\"\nslot = \"office\"\nsnapshot = \"initial\"\n\n[sink]\n{}concurrency = 16\ncreate_tables = true\n",
        target.section()
    );
    let mut pipeline = Pipeline::new(program, &config)?;
    let progress = office::Progress::default();
    thread::scope(|scope| {
        let writer = office::sell(scope, server, &progress);
        let told = || -> Done {
            let copied = || target.count("products", false).min(office::PRODUCTS);
            copy_with_a_kill(&mut pipeline, office::PRODUCTS, &copied)?;
            let has = |id: u64| target.has("products", shop::order_key(id));
            stream_with_a_kill(&mut pipeline, &|| progress.newest.load(Ordering::Acquire), &has)
        }();
        progress.stop.store(true, Ordering::Release);
        writer.join().map_err(|_| "the writer panicked")??;
        told
    })?;
    say("writes", format!("stopped: {} changes", thousands(progress.changes.load(Ordering::Acquire))));
    pipeline.finish("that")?;
    let mut equal = true;
    for table in &office::TABLES {
        let key: Vec<&str> = table.2[..table.1].iter().map(|(name, _)| *name).collect();
        // The order of the key's attributes is DynamoDB's: the partition key first.
        let items = office::rows_of(target.items(table.0, &key)?, table);
        equal &= compare(table.0, &office::rows(server, table)?, &items);
    }
    Ok(equal)
}

fn to_postgres(program: &Path, source: &Dynamo, server: &PgServer) -> Done<bool> {
    println!("\nDynamoDB to PostgreSQL, two tables");
    let from = shop::ORDERS + 1_000_000;
    let writer = Writer::start(source, from);
    let url = server.url(office::COPIED);
    let config = format!(
        "[pipeline]\nname = \"shop_in_sql\"\norder = \"key\"\n\n[source]\n{}tables = [\"orders\", \"customers\"]\n\
         columns = [{{ table = \"orders\", name = \"total\", type = \"decimal(12,2)\" }}]\nsnapshot = \"initial\"\n\n\
         [sink]\ntype = \"postgres\"\nurl = \"{url}\"\ncreate_tables = true\n",
        source.section()
    );
    let number = |sql: &str| server.value(office::COPIED, sql).ok().flatten().and_then(|v| v.parse().ok());
    let mut pipeline = Pipeline::new(program, &config)?;
    let copied = || number("SELECT count(*) FROM orders WHERE item::jsonb ? 'first'").unwrap_or(0);
    copy_with_a_kill(&mut pipeline, shop::ORDERS, &copied)?;
    let has = |id: u64| number(&format!("SELECT count(*) FROM orders WHERE id = {id}")) == Some(1);
    stream_with_a_kill(&mut pipeline, &|| writer.newest(), &has)?;
    say("writes", format!("stopped: {}", thousands(writer.stop()?)));
    pipeline.finish("that")?;
    let mut equal = true;
    for (table, key) in shop::TABLES {
        let items = source.items(table, key)?;
        let items: Result<BTreeMap<String, String>, _> =
            items.into_iter().map(|(key, item)| Ok::<_, anabranch::Error>((key, item_to_json(&item)?))).collect();
        equal &= compare(table, &items?, &office::copied(server, table, key)?);
    }
    Ok(equal)
}

/// Kills the pipeline as soon as some items are there, and waits for the others after its restart.
fn copy_with_a_kill(pipeline: &mut Pipeline, all: u64, copied: &dyn Fn() -> u64) -> Done {
    let started = Instant::now();
    // Counting is a scan: now and then.
    let copied = || {
        thread::sleep(COUNT_EVERY);
        copied()
    };
    pipeline.start()?;
    pipeline.wait_until("the first items", || Ok(copied() > 0))?;
    pipeline.kill()?;
    say("killed", format!("SIGKILL with {} of {} copied of the larger table", thousands(copied()), thousands(all)));
    pipeline.start()?;
    pipeline.wait_until("the first copy", || Ok(copied() >= all))?;
    say("copied", format!("{:.1} s after the start", started.elapsed().as_secs_f64()));
    Ok(())
}

/// Kills the pipeline in the middle of the stream, and waits until it has caught up.
fn stream_with_a_kill(pipeline: &mut Pipeline, newest: &dyn Fn() -> u64, has: &dyn Fn(u64) -> bool) -> Done {
    let written = newest();
    pipeline.wait_until("the stream", || Ok(has(written)))?;
    pipeline.kill()?;
    let killed = newest();
    // The source goes on while nobody replicates.
    pipeline.wait_until("writes", || Ok(newest() >= killed + 40))?;
    let missed = newest();
    say("killed", format!("SIGKILL in the middle of the stream; {} new ones while it is down", missed - killed));
    pipeline.catch_up(|| Ok(has(missed)))
}

/// Prints the result; true if nothing differs.
fn compare<T: PartialEq + Debug>(table: &str, source: &BTreeMap<String, T>, copy: &BTreeMap<String, T>) -> bool {
    let keys = source.keys().chain(copy.keys().filter(|key| !source.contains_key(*key)));
    let different: Vec<&String> = keys.filter(|key| source.get(*key) != copy.get(*key)).collect();
    for key in different.iter().take(3) {
        say(
            "",
            format!("{table} {key}:\n    {:?} in the source,\n    {:?} in the copy", source.get(*key), copy.get(*key)),
        );
    }
    let all = thousands(source.len() as u64);
    match different.len() as u64 {
        0 => say("EQUAL", format!("{table}: {all} compared, none lost, none doubled, none different")),
        n => say("DIFFERENT", format!("{table}: {} of {all}", thousands(n))),
    }
    different.is_empty()
}
