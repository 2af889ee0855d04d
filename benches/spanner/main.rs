//! What reading a change stream costs, on the in-process fake: records that wait, over one partition to a
//! thousand, beside a client that only counts rows. The fake runs in this process, anabranch and the bare
//! client in children, so that their CPU time and peak memory are their own.
//!
//! ```sh
//! cargo bench --features spanner --bench spanner
//! BENCH_RECORDS=20000 cargo bench --features spanner --bench spanner    # small
//! ```
//!
//! The fake has one thread and makes each row anew, so the bare client tells what the server can give;
//! the ratio to it is the figure, not the rate.

#[path = "../load/child.rs"]
#[allow(dead_code, reason = "shared with the other loads")]
mod child;
#[path = "../load/null_sink.rs"]
mod null_sink;
#[path = "../load/process.rs"]
#[allow(dead_code, reason = "shared with the other loads")]
mod process;
#[path = "../load/report.rs"]
mod report;

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anabranch_servers::mariadb;
use anabranch_spanner::client::{Client, Kind, Official, ReadAt, Statement};
use anabranch_spanner_fake::{Committed, FakeSpanner, Script, Stream, Table, Time};
use serde_json::json;

use child::Outcome;
use report::Report;

/// What everything here may fail with.
type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

/// The argument that makes this program a bare client, with the server's address and the partitions.
const BARE: &str = "bare-client";
const NATIVE: &str = "bare client, counts rows";
const PARTITIONS: [usize; 4] = [1, 10, 100, 1000];

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--bench")).collect();
    match args.first().map(String::as_str) {
        Some(child::RUN) => child::run(args.get(1).ok_or("no configuration")?),
        Some(BARE) => bare(&args[1], &args[2], args[3].parse()?, args[4].parse()?),
        _ => loads(),
    }
}

fn loads() -> Result<()> {
    let records: u64 = std::env::var("BENCH_RECORDS").map_or(Ok(200_000), |n| n.replace('_', "").parse())?;
    // Within the retention period, and far enough back for all records to be due.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let start = Time::seconds(i64::try_from(now)? - 3600);
    for partitions in PARTITIONS {
        let fake = fake(partitions, records, start);
        let title = format!("{records} records, each a transaction of one row, in {partitions} partitions");
        let mut report = Report::new(&title, "records", records, NATIVE);
        let outcome = bare_client(&fake, start, partitions, records)?;
        report.add(NATIVE, outcome.took(), outcome.used);
        let null = "type = \"null\"\n[checkpoint]\ntype = \"memory\"".to_owned();
        for (name, order) in [("null, by transaction", "transaction"), ("null, by key", "key")] {
            let outcome = child::measure(&config(&fake, start, order, &null))?.expect(records, 0)?;
            report.add(name, outcome.took(), outcome.used);
        }
        if partitions == 10
            && let Some(server) = mariadb()
        {
            server.create_db("bench")?;
            let sink = format!(
                "type = \"mysql\"\nurl = \"{}\"\ncreate_tables = true\naccept_relaxed_durability = true",
                server.url("bench")
            );
            let outcome = child::measure(&config(&fake, start, "transaction", &sink))?.expect(records, 0)?;
            report.add("MariaDB, by transaction", outcome.took(), outcome.used);
        }
    }
    Ok(())
}

/// All records are due when the reading begins.
fn fake(partitions: usize, records: u64, start: Time) -> FakeSpanner {
    let orders = Arc::new(Table::new("Orders").key("Id", "INT64").column("Note", "STRING").column("Total", "INT64"));
    let mut stream = Stream::new("orders");
    let names: Vec<String> = (0..partitions).map(|n| format!("p{n:04}")).collect();
    for name in &names {
        stream.root(name, start);
    }
    for n in 0..records {
        let at = start.plus(Duration::from_micros(n + 1));
        let row = json!({"Id": n.to_string(), "Note": format!("a note of some length, number {n}"), "Total": "100"});
        stream.commit(Committed::at(at).insert(&names[n as usize % partitions], &orders, row));
    }
    Script::new().table((*orders).clone()).stream(stream).start()
}

fn config(fake: &FakeSpanner, start: Time, order: &str, sink: &str) -> String {
    format!(
        "[pipeline]\nname = \"bench\"\norder = \"{order}\"\n\
         [source]\ntype = \"spanner\"\ndatabase = \"{}\"\nchange_stream = \"orders\"\nendpoint = \"{}\"\n\
         create = false\nstart = \"{start}\"\nsnapshot = \"never\"\n[sink]\n{sink}\n",
        FakeSpanner::DATABASE,
        fake.endpoint(),
    )
}

fn bare_client(fake: &FakeSpanner, start: Time, partitions: usize, records: u64) -> Result<Outcome> {
    let args = [BARE.to_owned(), fake.endpoint(), start.to_string(), partitions.to_string(), records.to_string()];
    let child = Command::new(std::env::current_exe()?).args(args).stdout(Stdio::piped()).spawn()?;
    let out = child.wait_with_output()?;
    if !out.status.success() {
        return Err(format!("the bare client failed: {}", out.status).into());
    }
    Ok(serde_json::from_slice(&out.stdout)?)
}

/// Queries every partition at once until all records came.
fn bare(endpoint: &str, start: &str, partitions: usize, records: u64) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = Official::builder(FakeSpanner::DATABASE).endpoint(endpoint).connect().await?;
        let begin = Instant::now();
        let (out, mut rows) = tokio::sync::mpsc::channel::<u64>(1024);
        for n in 0..partitions {
            let (client, out, start) = (client.clone(), out.clone(), start.to_owned());
            tokio::spawn(async move {
                let sql = "SELECT ChangeRecord FROM READ_orders(start_timestamp => @p1, end_timestamp => @p2, \
                           partition_token => @p3, heartbeat_milliseconds => @p4)";
                let statement = Statement::new(sql)
                    .bind("p1", Kind::Timestamp, start.into())
                    .bind("p2", Kind::Timestamp, None::<String>.into())
                    .bind("p3", Kind::String, format!("p{n:04}").into())
                    .bind("p4", Kind::Int64, 300_000_i64.into());
                let mut reader = client.query(statement, ReadAt::Strong).await.ok()?;
                while let Ok(Some(_)) = reader.next().await {
                    out.send(1).await.ok()?;
                }
                Some(())
            });
        }
        let mut count = 0;
        while count < records {
            count += rows.recv().await.ok_or("the queries ended")?;
        }
        let used = process::used("self").ok_or("no /proc")?;
        let outcome = Outcome { seconds: begin.elapsed().as_secs_f64(), used, changes: count, snapshot_rows: 0 };
        println!("{}", serde_json::to_string(&outcome)?);
        std::process::exit(0);
    })
}
