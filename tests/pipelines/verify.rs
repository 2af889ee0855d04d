//! `verify` between PostgreSQL and each target, while the source is written to: every planted
//! difference is found and repaired, and none is found where there is none.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anabranch::control::verify::{TableVerified, Verified, VerifyOptions};
use anabranch::{MySql, Pipeline, PipelineBuilder, Postgres, PostgresSink, RunningPipeline, Sqlite};
use anabranch_servers::{MariaServer, PgServer, PgVersion};
use tempfile::TempDir;

use super::Tested;
use super::source::connect;

const DB: &str = "shop";
const ROWS: i64 = 5_000;
/// Comparisons under live writes that must raise no alarm.
const RUNS: usize = 20;
const DEADLINE: Duration = Duration::from_secs(120);

enum Side {
    Postgres(PgServer),
    MySql(MariaServer),
    Sqlite(TempDir),
}

impl Side {
    fn all() -> Tested<Vec<Self>> {
        let mut sides = vec![Self::Sqlite(tempfile::tempdir()?)];
        if let Some(server) = anabranch_servers::mariadb() {
            server.create_db(DB)?;
            sides.push(Self::MySql(server));
        }
        if let Some(server) = anabranch_servers::postgres(PgVersion::Any) {
            server.create_db(DB)?;
            sides.push(Self::Postgres(server));
        }
        Ok(sides)
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Postgres(_) => "postgres",
            Self::MySql(_) => "mysql",
            Self::Sqlite(_) => "sqlite",
        }
    }

    fn pipeline(&self, source: &PgServer) -> PipelineBuilder {
        let name = format!("to_{}", self.name());
        let source = Postgres::new(source.url(DB)).publication("all").slot(&name);
        let builder = Pipeline::builder(&name).create_tables(true).source(source);
        match self {
            Self::Postgres(server) => builder.sink(PostgresSink::new(server.url(DB))),
            Self::MySql(server) => builder.sink(MySql::new(server.url(DB))),
            Self::Sqlite(folder) => builder.sink(Sqlite::open(folder.path().join("target.db"))),
        }
    }

    /// Changes the target behind the pipeline's back.
    fn spoil(&self, sql: &str) -> Tested {
        match self {
            Self::Postgres(server) => drop(server.exec(DB, sql)?),
            Self::MySql(server) => drop(server.exec(DB, &sql.replace('"', "`"))?),
            Self::Sqlite(folder) => {
                let mut db = rusqlite::Connection::open(folder.path().join("target.db"))?;
                // SQLite's own wait backs off further than the pipeline pauses between two transactions.
                db.busy_handler(Some(|tries| {
                    tries < 100_000 && {
                        std::thread::yield_now();
                        true
                    }
                }))?;
                db.execute_batch(sql)?;
            }
        }
        Ok(())
    }
}

const TABLES: &str = r#"
CREATE TABLE things (id int PRIMARY KEY, name text NOT NULL, amount numeric(12,3), price double precision,
                     at timestamptz, note text, data bytea, ok boolean);
CREATE TABLE "Odd Name" (a text, b int, "C d" text, PRIMARY KEY (a, b));
CREATE TABLE log (line text, number int);
ALTER TABLE log REPLICA IDENTITY FULL;
INSERT INTO things SELECT i, 'name ' || i, i / 8.0, i / 7.0, '2026-01-01'::timestamptz + i * interval '1.000001 s',
                          CASE WHEN i % 3 = 0 THEN NULL WHEN i % 3 = 1 THEN '' ELSE 'note' END, sha256(i::text::bytea), i % 2 = 0
                   FROM generate_series(1, 5000) i;
INSERT INTO "Odd Name" SELECT 'Ä' || i % 100, i, 'x' FROM generate_series(1, 2000) i;
INSERT INTO log SELECT 'line ' || i % 50, i % 50 FROM generate_series(1, 1000) i;
INSERT INTO log SELECT 'kept', -1000 - i FROM generate_series(1, 100) i;
CREATE PUBLICATION "all" FOR ALL TABLES;"#;

/// One difference each: a byte, case, a blank at the end, the last digit of a double and of a
/// decimal, a time of another zone, NULL against the empty string, a truth value; a row that is
/// missing, and one that is extra. With the column that must be named.
const SPOILT: [(&str, &str); 10] = [
    ("UPDATE things SET data = data_other WHERE id = 100", "data"),
    ("UPDATE things SET name = 'Name 101' WHERE id = 101", "name"),
    ("UPDATE things SET name = 'name 102 ' WHERE id = 102", "name"),
    ("UPDATE things SET price = 14.714285714285716 WHERE id = 103", "price"),
    ("UPDATE things SET amount = AMOUNT WHERE id = 104", "amount"),
    ("UPDATE things SET at = HOUR_EARLIER WHERE id = 105", "at"),
    ("UPDATE things SET note = '' WHERE id = 108", "note"),
    ("UPDATE things SET ok = FALSE_VALUE WHERE id = 110", "ok"),
    ("DELETE FROM things WHERE id = 111", ""),
    ("INSERT INTO things (id, name) VALUES (900000, 'extra')", ""),
];

/// The statement in the words of a side.
fn of(side: &Side, sql: &str) -> String {
    // One byte of 32.
    let (bytes, hour, amount, no) = match side {
        Side::Postgres(_) => {
            (r"overlay(data placing '\x00' from 8 for 1)", "at - interval '1 hour'", "13.001", "false")
        }
        Side::MySql(_) => ("INSERT(data, 8, 1, X'00')", "at - interval 1 hour", "13.001", "0"),
        Side::Sqlite(_) => (
            "CAST(substr(data, 1, 7) || X'00' || substr(data, 9) AS BLOB)",
            "'2025-12-31 23:01:45.000105+00'",
            "'13.001'",
            "0",
        ),
    };
    sql.replace("data_other", bytes).replace("HOUR_EARLIER", hour).replace("AMOUNT", amount).replace("FALSE_VALUE", no)
}

async fn drained(running: &mut RunningPipeline) -> Tested {
    let drained = running.drain(Some(DEADLINE)).await.map_err(|e| e.report())?;
    if drained.drained { Ok(()) } else { Err(format!("not drained: {drained:?}").into()) }
}

async fn verified(side: &Side, source: &PgServer, options: &VerifyOptions) -> Tested<Verified> {
    Ok(side.pipeline(source).build()?.verify(options, &mut |_| {}).await.map_err(|e| e.report())?)
}

fn table<'v>(verified: &'v Verified, name: &str) -> &'v TableVerified {
    verified.tables.iter().find(|t| t.table.name == name).expect("the table was compared")
}

/// Writes to rows above those that are spoilt.
async fn write(url: String, stop: Arc<AtomicBool>) -> Tested<u64> {
    let client = connect(&url, "writer").await?;
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let id = 1000 + number * 7919 % (ROWS - 1000);
        client
            .batch_execute(&format!(
                "UPDATE things SET name = 'written {number}', amount = {number} / 16.0 WHERE id = {id};
                 INSERT INTO things (id, name) VALUES ({}, 'new') ON CONFLICT DO NOTHING;
                 DELETE FROM things WHERE id = {};
                 INSERT INTO log VALUES ('live', {number});",
                100_000 + number,
                100_000 + number - 50
            ))
            .await?;
        // A rate that every target keeps up with.
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    Ok(number as u64)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn finds_every_planted_difference_and_no_other() -> Tested {
    let Some(server) = anabranch_servers::postgres(PgVersion::Any) else { return Ok(()) };
    server.create_db(DB)?;
    server.exec(DB, TABLES)?;
    for side in Side::all()? {
        let name = side.name();
        let mut running = side.pipeline(&server).build()?.start().await.map_err(|e| e.report())?;
        drained(&mut running).await?;
        let stop = Arc::new(AtomicBool::new(false));
        let writer = tokio::spawn(write(server.url(DB), Arc::clone(&stop)));
        for _ in 0..RUNS {
            let verified = verified(&side, &server, &VerifyOptions::default()).await?;
            let alarms: u64 = verified.tables.iter().map(TableVerified::differing).sum();
            assert_eq!(alarms, 0, "{name}: a false alarm: {verified}");
        }
        let mut planted = Vec::new();
        for (sql, column) in SPOILT {
            side.spoil(&of(&side, sql))?;
            planted.push(column);
        }
        side.spoil("UPDATE \"Odd Name\" SET \"C d\" = 'X' WHERE b = 7")?;
        side.spoil("DELETE FROM log WHERE number < -1080")?;
        let found = verified(&side, &server, &VerifyOptions::default()).await?;
        let things = table(&found, "things");
        assert_eq!((things.missing, things.extra, things.changed, things.more), (1, 1, 8, false), "{name}: {found}");
        for (id, column) in (100..=105).chain([108, 110]).zip(&planted) {
            let one = things.differences.iter().find(|d| d.key[0].1 == id.to_string());
            let columns = one.map(|d| d.columns.clone()).unwrap_or_default();
            assert_eq!(columns, [column.to_owned()], "{name}, {id}: {found}");
        }
        assert_eq!(table(&found, "Odd Name").changed, 1, "{name}: {found}");
        assert_eq!(table(&found, "log").missing, 20, "{name}: {found}");

        let repair = VerifyOptions {
            repair: true,
            tables: found.tables.iter().map(|t| t.table.clone()).filter(|t| t.name != "log").collect(),
            ..VerifyOptions::default()
        };
        let repaired = verified(&side, &server, &repair).await?;
        assert_eq!(table(&repaired, "things").repaired, 10, "{name}: {repaired}");
        stop.store(true, Ordering::Relaxed);
        let written = writer.await??;
        // The repair took the pipeline over; it goes on with the next start.
        running.stop().await.expect_err("the runner was fenced");
        let mut running = side.pipeline(&server).build()?.start().await.map_err(|e| e.report())?;
        drained(&mut running).await?;
        let equal =
            verified(&side, &server, &VerifyOptions { tables: repair.tables, ..VerifyOptions::default() }).await?;
        assert!(equal.equal, "{name}: {equal}");
        running.stop().await.map_err(|e| e.report())?;
        println!("{name}: {RUNS} comparisons beside {written} transactions, no false alarm; {} found", planted.len());
    }
    Ok(())
}
