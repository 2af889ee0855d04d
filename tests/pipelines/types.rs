//! Every type of PostgreSQL with its edge values, through snapshot and stream into every target: a
//! value comes back as it was, or is refused as the contract says.

mod contract;
mod sides;
mod values;

use std::time::Duration;

use anabranch::control::verify::VerifyOptions;
use anabranch::{ByTransaction, ErrorKind, Pipeline, Postgres, RunningPipeline};
use anabranch_servers::{PgServer, PgVersion};

use super::Tested;
use sides::{Column, Row, Side};
use values::Kind;

/// The database, on each side.
const DB: &str = "shop";
/// How long a pipeline may take for anything.
const DEADLINE: Duration = Duration::from_secs(120);

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A source with its types, and the kinds of value that it has.
fn source(sides: &[Side]) -> Tested<Option<(PgServer, Vec<Kind>)>> {
    let Some(server) = anabranch_servers::postgres(PgVersion::Any) else { return Ok(None) };
    server.create_db(DB)?;
    server.exec(DB, values::TYPES)?;
    server.exec(DB, values::SOURCE_TYPES)?;
    let mut kinds = values::kinds();
    for (kind, setup, test) in values::optional() {
        if server.exec(DB, test)?.is_empty() {
            println!("skipped: the type {}, which this server does not have", kind.native);
            continue;
        }
        server.exec(DB, setup)?;
        for side in sides {
            if let Side::Postgres(target) = side {
                target.exec(DB, setup)?;
            }
        }
        kinds.push(Kind { optional: true, ..kind });
    }
    Ok(Some((server, kinds)))
}

/// The tables of a kind: with a key beside it, with it as the key, and without a key.
fn create(n: usize, kind: &Kind) -> String {
    let native = kind.native;
    let mut sql = format!(
        "CREATE TABLE t{n} (id bigint PRIMARY KEY, v {native}); CREATE TABLE f{n} (v {native}, note text); \
         ALTER TABLE f{n} REPLICA IDENTITY FULL;"
    );
    if kind.key {
        sql.push_str(&format!("CREATE TABLE k{n} (v {native} PRIMARY KEY, note text);"));
    }
    sql
}

/// The rows that a snapshot finds.
fn load(n: usize, kind: &Kind, kept: &[&String]) -> String {
    let native = kind.native;
    let mut sql = format!("INSERT INTO t{n} VALUES (1000, NULL); INSERT INTO f{n} VALUES (NULL, 'none');");
    for (id, value) in kept.iter().enumerate() {
        let v = quoted(value);
        sql.push_str(&format!("INSERT INTO t{n} VALUES ({id}, {v}::{native});"));
        sql.push_str(&format!("INSERT INTO f{n} VALUES ({v}::{native}, 'first');"));
    }
    for v in keys(kind, kept) {
        sql.push_str(&format!("INSERT INTO k{n} VALUES ({v}::{native}, 'first') ON CONFLICT DO NOTHING;"));
    }
    sql
}

fn keys(kind: &Kind, kept: &[&String]) -> Vec<String> {
    kind.key_values(true).into_iter().filter(|v| kept.contains(v)).map(|v| quoted(v)).collect()
}

/// What is streamed: inserts, and updates and deletes of half of what is there.
fn change(n: usize, kind: &Kind, kept: &[&String]) -> String {
    let (native, count) = (kind.native, kept.len());
    let mut sql = format!(
        "INSERT INTO t{n} SELECT id + 2000, v FROM t{n}; DELETE FROM t{n} WHERE id > 2000 AND id % 2 = 1;
         UPDATE t{n} SET v = o.v FROM t{n} o WHERE t{n}.id < {count} AND t{n}.id % 2 = 0 AND o.id = (t{n}.id + 1) % {count};
         UPDATE t{n} SET v = NULL WHERE id = 2000; UPDATE t{n} SET v = (SELECT v FROM t{n} WHERE id = 0) WHERE id = 1000;
         UPDATE f{n} SET note = 'still none' WHERE v IS NULL;"
    );
    for (i, value) in kept.iter().enumerate() {
        let same = format!("v::text = ({}::{native})::text", quoted(value));
        sql.push_str(&match i % 3 {
            0 => format!("UPDATE f{n} SET note = 'second' WHERE {same};"),
            1 => format!("DELETE FROM f{n} WHERE {same};"),
            _ => format!("UPDATE f{n} SET v = NULL, note = 'nulled' WHERE {same};"),
        });
    }
    let keys = keys(kind, kept);
    for (i, v) in keys.iter().enumerate() {
        let one = format!("v = {v}::{native}");
        sql.push_str(&match i % 3 {
            0 => format!("UPDATE k{n} SET note = 'second' WHERE {one};"),
            1 => format!("DELETE FROM k{n} WHERE {one};"),
            _ => format!("DELETE FROM k{n} WHERE {one}; INSERT INTO k{n} VALUES ({v}, 'again');"),
        });
    }
    if let [first, second, ..] = keys.as_slice() {
        sql.push_str(&format!("UPDATE k{n} SET v = {second}, note = 'moved' WHERE v = {first}::{native};"));
        sql.push_str(&format!("INSERT INTO k{n} VALUES ({first}, 'new');"));
    }
    sql
}

/// The values of a kind that a side keeps.
fn kept<'k>(kind: &'k Kind, side: &Side) -> Vec<&'k String> {
    let all = !matches!(side, Side::MySql(_));
    kind.values.iter().chain(kind.refused.iter().filter(|_| all)).collect()
}

fn pipeline(server: &PgServer, side: &Side, name: &str) -> Tested<Pipeline> {
    let source = Postgres::new(server.url(DB)).publication(name).slot(name);
    Ok(side.pipeline(name).source(source).order(ByTransaction::new()).build()?)
}

async fn drained(running: &mut RunningPipeline, what: &str) -> Tested {
    let drained = running.drain(Some(DEADLINE)).await.map_err(|e| format!("{what}: {}", e.report()))?;
    if drained.drained { Ok(()) } else { Err(format!("{what}: not drained: {:?}", running.status()).into()) }
}

/// Every row of every table of the source is in the target, in its form, and no other.
fn compare(server: &PgServer, side: &Side, kinds: &[Kind], when: &str) -> Tested {
    let mut wrong = Vec::new();
    for (n, kind) in kinds.iter().enumerate() {
        for (table, other, native) in [("t", "id", "bigint"), ("f", "note", "text"), ("k", "note", "text")] {
            if table == "k" && !kind.key {
                continue;
            }
            let table = format!("{table}{n}");
            let columns = [Column { name: other, native }, Column { name: "v", native: kind.native }];
            let expected = sides::postgres_rows(server, &table, &columns)?;
            let form = |(value, column): (Option<String>, &Column)| -> Tested<Option<String>> {
                value.map(|text| side.expected(column.native, &text)).transpose()
            };
            let expected: Tested<Vec<Row>> =
                expected.into_iter().map(|row| row.into_iter().zip(&columns).map(form).collect()).collect();
            let (mut expected, mut found) = (expected?, side.rows(&table, &columns)?);
            expected.sort();
            found.sort();
            assert!(!expected.is_empty(), "{table} of {}", kind.native);
            let differ = expected.iter().zip(&found).find(|(a, b)| a != b);
            if expected.len() != found.len() || differ.is_some() {
                let rows = (expected.len(), found.len());
                let shown: String = format!("{differ:?}").chars().take(600).collect();
                wrong.push(format!("{} in {}, {table} {when}: {rows:?} rows, {shown}", kind.native, side.name()));
            }
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_value_comes_back_from_every_target() -> Tested {
    let sides = Side::all()?;
    let Some((server, kinds)) = source(&sides)? else { return Ok(()) };
    let mut said = contract::Said::new();
    let mut wrong = Vec::new();
    for side in &sides {
        server.exec(DB, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")?;
        // The kinds' own types went with the schema.
        server.exec(DB, values::TYPES)?;
        server.exec(DB, values::SOURCE_TYPES)?;
        for (kind, setup, _) in values::optional() {
            if kinds.iter().any(|k| k.native == kind.native) {
                server.exec(DB, setup)?;
            }
        }
        for (n, kind) in kinds.iter().enumerate() {
            server.exec(DB, &create(n, kind))?;
            server.exec(DB, &load(n, kind, &kept(kind, side))).map_err(|e| format!("{}: {e}", kind.native))?;
        }
        let name = side.word();
        server.exec(DB, &format!("CREATE PUBLICATION {name} FOR ALL TABLES"))?;
        let checked = pipeline(&server, side, &name)?.check().await.map_err(|e| e.report())?;
        checked.verdict().map_err(|e| e.report())?;
        said.insert(side.name(), contract::of(&checked));
        let started = pipeline(&server, side, &name)?.start().await;
        let mut running = started.map_err(|e| format!("{}: {}", side.name(), e.report()))?;
        let result = run(&server, side, &kinds, &mut running).await;
        wrong.extend(result.err().map(|e| e.to_string()));
        if let Err(e) = running.stop().await {
            wrong.push(format!("{}: {}", side.name(), e.report()));
        }
        let again = pipeline(&server, side, &name)?.check().await.map_err(|e| e.report())?;
        wrong.extend(again.verdict().err().map(|e| e.report()));
        wrong.extend(contract::same(&said[side.name()], &again).err().map(|e| format!("{}: {e}", side.name())));
        server.exec(DB, &format!("SELECT pg_drop_replication_slot('{name}')"))?;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    contract::judge(&kinds, &said);
    if said.len() == 3 {
        let table = contract::table(&kinds, &said);
        println!("{table}");
        contract::check(&table)?;
    }
    Ok(())
}

async fn run(server: &PgServer, side: &Side, kinds: &[Kind], running: &mut RunningPipeline) -> Tested {
    let name = side.name();
    drained(running, &format!("the copy to {name}")).await?;
    let copied = compare(server, side, kinds, "after the copy");
    for (n, kind) in kinds.iter().enumerate() {
        server.exec(DB, &change(n, kind, &kept(kind, side))).map_err(|e| format!("{}: {e}", kind.native))?;
    }
    drained(running, &format!("the stream to {name}")).await?;
    let streamed = compare(server, side, kinds, "after the stream");
    let wrong: Vec<String> = [copied, streamed, verify(server, side).await]
        .into_iter()
        .filter_map(|result| result.err().map(|e| e.to_string()))
        .collect();
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
}

/// The comparison of the library finds what the test's own finds: every value is as it was.
async fn verify(server: &PgServer, side: &Side) -> Tested {
    let pipeline = pipeline(server, side, &side.word())?;
    let verified = pipeline.verify(&VerifyOptions::default(), &mut |_| {}).await.map_err(|e| e.report())?;
    assert!(!verified.tables.is_empty());
    let left_out = verified.tables.iter().filter(|t| !t.not_compared.is_empty()).count();
    let tables = verified.tables.len();
    println!("{}: {tables} tables verified, {left_out} of them without a lossy column", side.name());
    if verified.equal { Ok(()) } else { Err(format!("{}: {verified}", side.name()).into()) }
}

/// A value that MySQL refuses, in a table of its own.
struct Refusal<'k> {
    kind: &'k Kind,
    value: String,
    key: bool,
    table: String,
}

fn refusals(kinds: &[Kind]) -> Vec<Refusal<'_>> {
    let mut all = Vec::new();
    let mut add = |kind, value: &str, key| {
        let table = format!("refused{}", all.len());
        all.push(Refusal { kind, value: value.to_owned(), key, table });
    };
    for kind in kinds {
        for value in &kind.refused {
            add(kind, value, false);
        }
        for value in kind.key_values(true).into_iter().filter(|v| kind.refused.contains(v)).take(1) {
            add(kind, value, true);
        }
        match kind.native {
            "text" => add(kind, &"x".repeat(769), true),
            "bytea" => add(kind, &format!("\\x{}", "00".repeat(3073)), true),
            _ => {}
        }
    }
    all
}

/// Copies a row that is refused, then streams one: nothing of its transaction is stored, and the
/// pipeline ends with an error that names the table and the row.
async fn refuse(server: &PgServer, side: &Side, refusal: &Refusal<'_>) -> Tested {
    let Refusal { kind, value, key, table } = refusal;
    let (native, v) = (kind.native, quoted(value));
    let row = |id: i32, v: &str| match key {
        true => format!("INSERT INTO {table} VALUES ({v}, {id});"),
        false => format!("INSERT INTO {table} VALUES ({id}, {v});"),
    };
    let columns =
        if *key { format!("v {native} PRIMARY KEY, id int") } else { format!("id int PRIMARY KEY, v {native}") };
    let good = kind.key_values(false).first().map_or("NULL".to_owned(), |v| quoted(v));
    server.exec(DB, &format!("CREATE TABLE {table} ({columns}); CREATE PUBLICATION {table} FOR TABLE {table}"))?;
    let what = format!("{:.60} as {native}, key: {key}", value);

    server.exec(DB, &format!("{}{}", row(101, &good), row(102, &v)))?;
    let report = ends(pipeline(server, side, table)?, &what).await?;
    assert!(report.contains(table.as_str()), "{what}, copied: {report}");
    let stored = side.rows(table, &[Column { name: "id", native: "int" }])?;
    assert!(stored.is_empty(), "{what}, copied: {stored:?}");

    server.exec(DB, &format!("DELETE FROM {table} WHERE id = 102"))?;
    let mut running = pipeline(server, side, table)?.start().await.map_err(|e| format!("{what}: {}", e.report()))?;
    drained(&mut running, &what).await?;
    server.exec(DB, &format!("UPDATE {table} SET id = 103 WHERE id = 101; {}", row(4711, &v)))?;
    let error = tokio::time::timeout(DEADLINE, running.wait()).await?.err().ok_or("it ended well")?;
    assert_eq!(error.kind(), ErrorKind::Rejected, "{what}: {}", error.report());
    let report = error.report();
    let named: String = if *key { value.chars().take(3).collect() } else { "4711".to_owned() };
    if !(report.contains(table.as_str()) && report.contains(&named)) {
        return Err(format!("{what}, streamed: {report}").into());
    }
    let stored = side.rows(table, &[Column { name: "id", native: "int" }])?;
    assert_eq!(stored, [[Some("101".to_owned())]], "{what}");
    server.exec(DB, &format!("SELECT pg_drop_replication_slot('{table}'); DROP TABLE {table}"))?;
    Ok(())
}

/// Runs it until it ends, by a row that is refused.
async fn ends(pipeline: Pipeline, what: &str) -> Tested<String> {
    let error = match pipeline.start().await {
        Err(error) => error,
        Ok(mut running) => {
            tokio::time::timeout(DEADLINE, running.wait()).await?.err().ok_or_else(|| format!("{what}: ended well"))?
        }
    };
    assert_eq!(error.kind(), ErrorKind::Rejected, "{what}: {}", error.report());
    Ok(error.report())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_the_contract_refuses_is_refused_loudly() -> Tested {
    let sides = Side::all()?;
    let Some(side) = sides.iter().find(|s| matches!(s, Side::MySql(_))) else { return Ok(()) };
    let Some((server, kinds)) = source(&[])? else { return Ok(()) };
    let refusals = refusals(&kinds);
    assert!(refusals.len() > 40, "{}", refusals.len());
    let mut wrong = Vec::new();
    for refusal in &refusals {
        if let Err(e) = refuse(&server, side, refusal).await {
            wrong.push(format!("{:.60} as {}: {e}", refusal.value, refusal.kind.native));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("{} refusals", refusals.len());
    Ok(())
}
