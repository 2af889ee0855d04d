//! A table that is copied before the stream.

use crate::Result;
use crate::child::{config, measure};
use crate::native::Subscription;
use crate::report::Report;
use crate::setting::{self, ROW, TABLE, publish, servers, size, wanted};

const NATIVE: &str = "native subscription -> PostgreSQL";

pub(crate) fn run() -> Result<()> {
    let rows = size("BENCH_COPY", 5_000_000)?;
    let Some((source, target)) = servers()? else { return Ok(()) };
    eprintln!("generating {rows} rows");
    source.create_db("bench")?;
    source.exec("bench", TABLE)?;
    source.exec("bench", &format!("INSERT INTO bench SELECT {ROW} FROM generate_series(1, {rows}) id"))?;
    source.exec("bench", "VACUUM ANALYZE bench")?;
    publish(&source, "bench", &[])?;

    let title = format!("Copy of a table of {rows} rows, {}", setting::version(&source)?);
    let mut report = Report::new(&title, "rows", rows, NATIVE);
    for db in ["bench", "ours"] {
        target.create_db(db)?;
        target.exec(db, TABLE)?;
    }
    if wanted("native") {
        let native = Subscription { source: &source, target: &target, db: "bench", slot: "native", streaming: "off" };
        let (took, used) = native.copy()?;
        report.add(NATIVE, took, used);
    }
    let postgres = format!("type = \"postgres\"\nurl = \"{}\"", target.url("ours"));
    for (slot, name, sink) in
        [("null", "anabranch -> null", "type = \"null\""), ("postgres", "anabranch -> PostgreSQL", postgres.as_str())]
    {
        if wanted(slot) {
            let keys = format!("slot = \"{slot}\"\nsnapshot = \"only\"");
            let outcome = measure(&config(slot, &source.url("bench"), &keys, sink))?.expect(0, rows)?;
            report.add(name, outcome.took(), outcome.used);
        }
    }
    let there = target.value("ours", "SELECT count(*) FROM bench")?;
    assert!(!wanted("postgres") || there == Some(rows.to_string()), "rows in the target: {there:?}");
    Ok(())
}
