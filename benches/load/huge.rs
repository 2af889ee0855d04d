//! One transaction that is larger than any memory.

use anabranch_servers::PgServer;

use crate::Result;
use crate::child::{config, measure};
use crate::native::Subscription;
use crate::report::Report;
use crate::setting::{self, ROW, TABLE, drop_slot, publish, servers, size, wanted};

/// What anabranch promises of one transaction: that it passes within this. KiB.
const MOST_KIB: u64 = 128 << 10;

const NATIVE: &str = "native subscription -> PostgreSQL";

pub(crate) fn run() -> Result<()> {
    let rows = size("BENCH_HUGE", 10_000_000)?;
    let Some((source, target)) = servers()? else { return Ok(()) };
    eprintln!("generating a transaction of {rows} rows");
    source.create_db("bench")?;
    source.exec("bench", TABLE)?;
    publish(&source, "bench", &["native", "null", "null_streamed", "postgres", "postgres_streamed"])?;
    source.exec("bench", &format!("INSERT INTO bench SELECT {ROW} FROM generate_series(1, {rows}) id"))?;

    let title = format!("One transaction of {rows} rows, {}", setting::version(&source)?);
    let mut report = Report::new(&title, "rows", rows, NATIVE);
    if wanted("native") {
        prepare(&target, "bench")?;
        let native = Subscription { source: &source, target: &target, db: "bench", slot: "native", streaming: "off" };
        let (took, used) = native.apply("SELECT EXISTS (SELECT FROM bench)")?;
        report.add(NATIVE, took, used);
        drop_slot(&source, "native")?;
        target.exec("postgres", "DROP DATABASE bench WITH (FORCE)")?;
    }
    for (slot, name) in [("null", "anabranch -> null"), ("null_streamed", "anabranch -> null, streamed")] {
        if wanted(slot) {
            ours(&source, &mut report, slot, name, "type = \"null\"", rows)?;
        }
    }
    let streamed = ("postgres_streamed", "anabranch -> PostgreSQL, streamed");
    for (slot, name) in [("postgres", "anabranch -> PostgreSQL"), streamed] {
        if wanted(slot) {
            let db = format!("ours_{slot}");
            prepare(&target, &db)?;
            let sink = format!("type = \"postgres\"\nurl = \"{}\"", target.url(&db));
            ours(&source, &mut report, slot, name, &sink, rows)?;
            let there = target.value(&db, "SELECT count(*) FROM bench")?;
            assert_eq!(there, Some(rows.to_string()), "rows in the target");
        }
    }
    Ok(())
}

fn ours(source: &PgServer, report: &mut Report, slot: &str, name: &str, sink: &str, rows: u64) -> Result<()> {
    let streaming = slot.ends_with("streamed");
    let keys = format!("slot = \"{slot}\"\nsnapshot = \"never\"\nstreaming = {streaming}");
    let outcome = measure(&config(slot, &source.url("bench"), &keys, sink))?.expect(rows, 0)?;
    report.add(name, outcome.took(), outcome.used);
    if outcome.used.peak_kib > MOST_KIB {
        println!("  FAILED: more than {} MiB", MOST_KIB >> 10);
    }
    drop_slot(source, slot)
}

fn prepare(target: &PgServer, db: &str) -> Result<()> {
    target.create_db(db)?;
    target.exec(db, TABLE)?;
    Ok(())
}
