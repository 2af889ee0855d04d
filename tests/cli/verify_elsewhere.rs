//! `verify` between PostgreSQL and what is no relational database of the usual kind: the Spanner emulator and
//! DynamoDB Local, each as a source and as a target. Every planted difference is found beside live writes,
//! and repaired; there is no false alarm. `VERIFY_RUNS=20` for more comparisons without a difference.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::Duration;

use anabranch_servers::{DynamoServer, PgServer, SpannerDialect, SpannerServer};
use serde_json::Value;

use super::Tested;
use super::command::{Anabranch, DONE, FAILED, until};
use super::shop::{name, source, target};

/// Rows; those from [`LIVE`] on are written to all the while.
const ROWS: u64 = 300;
const LIVE: u64 = 200;
/// Comparisons under live writes that must raise no alarm.
const RUNS: u64 = 3;
/// Between two live writes: a rate that the emulators keep up with.
const PAUSE: Duration = Duration::from_millis(80);
/// The text of 32 bytes that are zero, in base64.
const ZEROS: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// The rows whose planted difference is in one column, with that column.
const CHANGED: [(u64, &str); 8] = [
    (100, "data"),
    (101, "name"),
    (102, "name"),
    (103, "price"),
    (104, "amount"),
    (105, "made"),
    (108, "note"),
    (110, "ok"),
];

/// One difference each: a byte, case, a blank at the end, the last digit of a double and of a decimal, a
/// time of another zone, NULL against the empty text, a truth value; a row that is missing, one that is extra.
fn planted(table: &str, bytes: &str, decimal: &str, earlier: &str) -> Vec<String> {
    vec![
        format!("UPDATE {table} SET data = {bytes} WHERE id = 100"),
        format!("UPDATE {table} SET name = 'Name 101' WHERE id = 101"),
        format!("UPDATE {table} SET name = 'name 102 ' WHERE id = 102"),
        format!("UPDATE {table} SET price = 14.714285714285716 WHERE id = 103"),
        format!("UPDATE {table} SET amount = {decimal} WHERE id = 104"),
        format!("UPDATE {table} SET made = {earlier} WHERE id = 105"),
        format!("UPDATE {table} SET note = '' WHERE id = 108"),
        format!("UPDATE {table} SET ok = false WHERE id = 110"),
        format!("DELETE FROM {table} WHERE id = 111"),
        format!("INSERT INTO {table} (id, name) VALUES (900000, 'extra')"),
    ]
}

fn planted_in_postgres(table: &str, earlier: &str) -> Vec<String> {
    let zeros = format!("'\\x{}'::bytea", "00".repeat(32));
    planted(table, &zeros, "13.001", earlier)
}

const THINGS: &str = "
CREATE TABLE things (id int PRIMARY KEY, name text NOT NULL, amount numeric(12,3), price double precision,
                     made timestamptz, note text, data bytea, ok boolean);
INSERT INTO things SELECT i, 'name ' || i, i / 8.0, i / 7.0, '2026-01-01'::timestamptz + i * interval '1 s',
                          CASE WHEN i % 3 = 0 THEN NULL WHEN i % 3 = 1 THEN '' ELSE 'note' END,
                          sha256(i::text::bytea), i % 2 = 0
                   FROM generate_series(1, 300) i";

/// The live write number `n`, in SQL.
fn live(table: &str, n: u64) -> String {
    let (id, new) = (LIVE + n * 7919 % (ROWS - LIVE), 100_000 + n / 3);
    match n % 3 {
        0 => format!("UPDATE {table} SET name = 'written {n}' WHERE id = {id}"),
        1 => format!("INSERT INTO {table} (id, name) VALUES ({new}, 'new')"),
        _ => format!("DELETE FROM {table} WHERE id = {}", new.saturating_sub(10)),
    }
}

/// Writes until it is dropped or stopped.
struct Writer {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<Result<(), String>>>,
}

impl Writer {
    fn start(write: impl Fn(u64) -> Tested + Send + 'static) -> Self {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&written));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let n = count.fetch_add(1, Ordering::Relaxed) + 1;
                write(n).map_err(|e| e.to_string())?;
                sleep(PAUSE);
            }
            Ok(())
        });
        Self { stop, written, thread: Some(thread) }
    }

    fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    fn stop(mut self) -> Tested {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(std::thread::JoinHandle::join) {
            Some(Ok(Ok(()))) | None => Ok(()),
            Some(Ok(Err(e))) => Err(e.into()),
            Some(Err(_)) => Err("the writer panicked".into()),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// What `verify --json` says of the one table.
fn compared(command: &Anabranch, more: &[&str]) -> Tested<Value> {
    let arguments: Vec<&str> = ["verify", "--json"].iter().chain(more).copied().collect();
    let said = command.call(&arguments)?;
    if !matches!(said.code, Some(DONE | FAILED)) || !said.stdout.starts_with('{') {
        return Err(format!("{said:?}").into());
    }
    let told: Value = serde_json::from_str(&said.stdout)?;
    let tables = told["tables"].as_array().ok_or("no tables")?;
    let table = tables.iter().find(|t| t["table"]["name"] == "things").ok_or_else(|| told.to_string())?;
    Ok(table.clone())
}

/// The whole story of one pair, a pipeline beside.
fn found_and_repaired(
    pair: &str,
    command: &Anabranch,
    write: impl Fn(u64) -> Tested + Send + 'static,
    plant: impl Fn() -> Tested,
) -> Tested {
    let mut running = command.spawn(&["run"])?;
    running.says(" streaming | ")?;
    let writer = Writer::start(write);
    let runs = std::env::var("VERIFY_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(RUNS);
    for _ in 0..runs {
        let table = compared(command, &[]).map_err(|e| format!("{pair}: {e}\n{}", running.log()))?;
        let alarms: Vec<&Value> = ["missing", "extra", "changed"].iter().map(|kind| &table[*kind]).collect();
        assert!(alarms.iter().all(|count| **count == 0), "{pair}: a false alarm: {table}\n{}", running.log());
    }
    plant()?;
    let found = compared(command, &[]).map_err(|e| format!("{pair}: {e}\n{}", running.log()))?;
    let counts = (&found["missing"], &found["extra"], &found["changed"]);
    assert_eq!(counts, (&1.into(), &1.into(), &8.into()), "{pair}: {found}");
    let differences = found["differences"].as_array().ok_or("no differences")?;
    for (id, column) in CHANGED {
        let id = id.to_string();
        let one = differences.iter().find(|d| d["key"][0][1] == *id);
        assert_eq!(one.map(|d| &d["columns"]), Some(&serde_json::json!([column])), "{pair}, {id}: {found}");
    }
    let repaired = compared(command, &["--repair"])?;
    assert_eq!(repaired["repaired"], 10, "{pair}: {repaired}");
    let written = writer.written();
    writer.stop()?;
    // The repair took the pipeline over.
    drop(running);
    command.drain()?.expect(DONE, &[]);
    let at_rest = compared(command, &["--at-rest"])?;
    assert_eq!(at_rest["equal"], true, "{pair}: {at_rest}");
    assert!(at_rest["source_rows"].as_u64() >= Some(ROWS), "{pair}: {at_rest}");
    println!("{pair}: {runs} comparisons beside {written} writes, no false alarm; 10 differences found and repaired");
    Ok(())
}

/// A PostgreSQL source with the things, and its part of the configuration.
fn postgres_source(order: &str) -> Tested<Option<(&'static PgServer, String, String)>> {
    let Some(server) = source() else { return Ok(None) };
    let db = name("verified");
    server.create_db(&db)?;
    server.exec(&db, THINGS)?;
    let config = format!(
        "[pipeline]\nname = \"{db}\"\norder = \"{order}\"\n[source]\ntype = \"postgres\"\nurl = \"{}\"\n\
         publication = \"{db}\"\nslot = \"{db}\"\n",
        server.url(&db)
    );
    Ok(Some((server, db, config)))
}

/// A PostgreSQL target and its part of the configuration.
fn postgres_target() -> Tested<Option<(&'static PgServer, String, String)>> {
    let Some(server) = target() else { return Ok(None) };
    let db = name("verified");
    server.create_db(&db)?;
    let config = format!("[sink]\ntype = \"postgres\"\nurl = \"{}\"\ncreate_tables = true\n", server.url(&db));
    Ok(Some((server, db, config)))
}

fn spanner_address(server: &SpannerServer, database: &str) -> String {
    let (grpc, rest) = (server.host(), server.rest_host());
    format!(
        "type = \"spanner\"\ndatabase = \"{database}\"\nendpoint = \"http://{grpc}\"\nadmin_endpoint = \"http://{rest}\"\n"
    )
}

#[test]
fn postgres_to_spanner() -> Tested {
    let Some((server, db, config)) = postgres_source("transaction")? else { return Ok(()) };
    let Some(spanner) = anabranch_servers::spanner() else { return Ok(()) };
    let database = spanner.create_db(SpannerDialect::GoogleSql, &[])?;
    let address = spanner_address(&spanner, &database);
    let config = format!("{config}[sink]\n{address}create_tables = true\n");
    let Some(command) = Anabranch::new(&config)? else { return Ok(()) };
    let write = move |n| Ok(server.exec(&db, &live("things", n)).map(drop)?);
    found_and_repaired("postgres to spanner", &command, write, || {
        let bytes = format!("FROM_BASE64('{ZEROS}')");
        let statements = planted("things", &bytes, "NUMERIC '13.001'", "TIMESTAMP_SUB(made, INTERVAL 1 HOUR)");
        let statements: Vec<&str> = statements.iter().map(String::as_str).collect();
        Ok(spanner.transaction(&database, &statements).map(drop)?)
    })
}

const SPANNER_THINGS: &str = "CREATE TABLE things (id INT64 NOT NULL, name STRING(MAX) NOT NULL, amount NUMERIC, \
     price FLOAT64, made TIMESTAMP, note STRING(MAX), data BYTES(MAX), ok BOOL) PRIMARY KEY (id)";
const SPANNER_ROWS: &str = "INSERT INTO things (id, name, amount, price, made, note, data, ok)
     SELECT i, CONCAT('name ', CAST(i AS STRING)), CAST(i AS NUMERIC) / 8, i / 7,
            TIMESTAMP_ADD(TIMESTAMP '2026-01-01 00:00:00+00', INTERVAL i SECOND),
            CASE MOD(i, 3) WHEN 0 THEN NULL WHEN 1 THEN '' ELSE 'note' END, SHA256(CAST(i AS STRING)), MOD(i, 2) = 0
     FROM UNNEST(GENERATE_ARRAY(1, 300)) AS i";

#[test]
fn spanner_to_postgres() -> Tested {
    let Some((server, db, sink)) = postgres_target()? else { return Ok(()) };
    let Some(spanner) = anabranch_servers::spanner() else { return Ok(()) };
    let database = spanner.create_db(SpannerDialect::GoogleSql, &[SPANNER_THINGS])?;
    spanner.exec(&database, SPANNER_ROWS)?;
    let address = spanner_address(&spanner, &database);
    let config = format!("[pipeline]\nname = \"{db}\"\n[source]\n{address}change_stream = \"all_things\"\n{sink}");
    let Some(command) = Anabranch::new(&config)? else { return Ok(()) };
    let spanner = Arc::new(spanner);
    let writing = Arc::clone(&spanner);
    let write = move |n| Ok(writing.exec(&database, &live("things", n)).map(drop)?);
    found_and_repaired("spanner to postgres", &command, write, || {
        let statements = planted_in_postgres("things", "made - interval '1 hour'").join(";");
        Ok(server.exec(&db, &statements).map(drop)?)
    })
}

fn dynamodb_address(server: &DynamoServer) -> String {
    format!(
        "type = \"dynamodb\"\nregion = \"local\"\nendpoint = \"{}\"\naccess_key_id = \"local\"\n\
         secret_access_key = \"local\"\n",
        server.endpoint()
    )
}

/// Sets one attribute of one item.
fn set(server: &DynamoServer, id: u64, attribute: &str, value: &str) -> Tested {
    let request = format!(
        "{{\"TableName\":\"things\",\"Key\":{{\"id\":{{\"N\":\"{id}\"}}}},\"UpdateExpression\":\"SET #a = :v\",\
         \"ExpressionAttributeNames\":{{\"#a\":\"{attribute}\"}},\"ExpressionAttributeValues\":{{\":v\":{value}}}}}"
    );
    Ok(server.call("UpdateItem", &request).map(drop)?)
}

fn delete(server: &DynamoServer, id: u64) -> Tested {
    let request = format!("{{\"TableName\":\"things\",\"Key\":{{\"id\":{{\"N\":\"{id}\"}}}}}}");
    Ok(server.call("DeleteItem", &request).map(drop)?)
}

#[test]
fn postgres_to_dynamodb() -> Tested {
    let Some((server, db, config)) = postgres_source("key")? else { return Ok(()) };
    let Some(dynamodb) = anabranch_servers::dynamodb() else { return Ok(()) };
    let config = format!("{config}[sink]\n{}create_tables = true\n", dynamodb_address(&dynamodb));
    let Some(command) = Anabranch::new(&config)? else { return Ok(()) };
    let write = move |n| Ok(server.exec(&db, &live("things", n)).map(drop)?);
    found_and_repaired("postgres to dynamodb", &command, write, || {
        for (id, attribute, value) in [
            (100, "data", format!("{{\"B\":\"{ZEROS}\"}}")),
            (101, "name", r#"{"S":"Name 101"}"#.to_owned()),
            (102, "name", r#"{"S":"name 102 "}"#.to_owned()),
            (103, "price", r#"{"N":"14.714285714285716"}"#.to_owned()),
            (104, "amount", r#"{"N":"13.001"}"#.to_owned()),
            (105, "made", r#"{"S":"2025-12-31T23:01:45Z"}"#.to_owned()),
            (108, "note", r#"{"S":""}"#.to_owned()),
            (110, "ok", r#"{"BOOL":false}"#.to_owned()),
            (900_000, "name", r#"{"S":"extra"}"#.to_owned()),
        ] {
            set(&dynamodb, id, attribute, &value)?;
        }
        delete(&dynamodb, 111)
    })
}

const TABLE: &str = r#""BillingMode":"PAY_PER_REQUEST","KeySchema":[{"AttributeName":"id","KeyType":"HASH"}],
    "AttributeDefinitions":[{"AttributeName":"id","AttributeType":"N"}]"#;

fn item(i: u64) -> String {
    let note = match i % 3 {
        0 => r#"{"NULL":true}"#,
        1 => r#"{"S":""}"#,
        _ => r#"{"S":"note"}"#,
    };
    let (price, amount, ok) = (i as f64 / 7.0, i as f64 / 8.0, i.is_multiple_of(2));
    let made = format!("2026-01-01T00:{:02}:{:02}Z", i / 60, i % 60);
    format!(
        r#"{{"id":{{"N":"{i}"}},"name":{{"S":"name {i}"}},"amount":{{"N":"{amount}"}},"price":{{"N":"{price}"}},
            "made":{{"S":"{made}"}},"note":{note},"data":{{"B":"YWJj"}},"ok":{{"BOOL":{ok}}}}}"#
    )
}

/// A DynamoDB with the things.
fn dynamodb_source() -> Tested<Option<DynamoServer>> {
    let Some(dynamodb) = anabranch_servers::dynamodb() else { return Ok(None) };
    dynamodb.call("CreateTable", &format!("{{\"TableName\":\"things\",{TABLE}}}"))?;
    for first in (1..=ROWS).step_by(25) {
        let puts = (first..(first + 25).min(ROWS + 1)).map(|i| format!("{{\"PutRequest\":{{\"Item\":{}}}}}", item(i)));
        let puts: Vec<String> = puts.collect();
        dynamodb.call("BatchWriteItem", &format!("{{\"RequestItems\":{{\"things\":[{}]}}}}", puts.join(",")))?;
    }
    Ok(Some(dynamodb))
}

const COLUMNS: &str = "document = \"none\"\ncolumns = [{name = \"name\", type = \"text\"}, \
     {name = \"amount\", type = \"decimal(12,3)\"}, {name = \"price\", type = \"float64\"}, \
     {name = \"made\", type = \"text\"}, {name = \"note\", type = \"text\"}, {name = \"data\", type = \"bytes\"}, \
     {name = \"ok\", type = \"bool\"}]\n";

#[test]
fn dynamodb_to_postgres() -> Tested {
    let Some((server, db, sink)) = postgres_target()? else { return Ok(()) };
    let Some(dynamodb) = dynamodb_source()? else { return Ok(()) };
    let config = format!(
        "[pipeline]\nname = \"{db}\"\norder = \"key\"\n[source]\n{}tables = [\"things\"]\n{COLUMNS}{sink}",
        dynamodb_address(&dynamodb)
    );
    let Some(command) = Anabranch::new(&config)? else { return Ok(()) };
    let dynamodb = Arc::new(dynamodb);
    let writing = Arc::clone(&dynamodb);
    let write = move |n: u64| {
        let (id, new) = (LIVE + n * 7919 % (ROWS - LIVE), 100_000 + n / 3);
        match n % 3 {
            0 => set(&writing, id, "name", &format!("{{\"S\":\"written {n}\"}}")),
            1 => set(&writing, new, "name", r#"{"S":"new"}"#),
            _ => delete(&writing, new.saturating_sub(10)),
        }
    };
    found_and_repaired("dynamodb to postgres", &command, write, || {
        let earlier = "'2025-12-31T23:01:45Z'";
        Ok(server.exec(&db, &planted_in_postgres("things", earlier).join(";")).map(drop)?)
    })
}

/// Two tables are partitions of their own. One is held back in the target, then the runner is killed while a
/// drain waits: the other partition is through, and the answer is not yes before the held one is.
#[test]
fn a_drain_waits_for_a_partition_that_is_held_back() -> Tested {
    let Some((server, db, sink)) = postgres_target()? else { return Ok(()) };
    let Some(dynamodb) = anabranch_servers::dynamodb() else { return Ok(()) };
    for table in ["things", "others"] {
        dynamodb.call("CreateTable", &format!("{{\"TableName\":\"{table}\",{TABLE}}}"))?;
    }
    let put = |table: &str, id: u64| -> Tested {
        let request = format!("{{\"TableName\":\"{table}\",\"Item\":{{\"id\":{{\"N\":\"{id}\"}}}}}}");
        Ok(dynamodb.call("PutItem", &request).map(drop)?)
    };
    let config = format!(
        "[pipeline]\nname = \"{db}\"\norder = \"key\"\nlanes = 8\n[source]\n{}tables = [\"things\", \"others\"]\n{sink}",
        dynamodb_address(&dynamodb)
    );
    let Some(command) = Anabranch::new(&config)? else { return Ok(()) };
    let mut running = command.spawn(&["run"])?;
    running.says(" streaming | ")?;
    put("things", 1)?;
    put("others", 1)?;
    command.call(&["drain", "--timeout", "60"])?.expect(DONE, &["drained       true"]);

    let lock = "BEGIN; LOCK TABLE others IN EXCLUSIVE MODE; SELECT pg_sleep(600)";
    let held_db = db.clone();
    let holder = std::thread::spawn(move || server.exec(&held_db, lock).is_err());
    let held = "SELECT count(*) > 0 FROM pg_locks WHERE granted AND mode = 'ExclusiveLock' \
                AND relation = 'others'::regclass";
    until("the table is locked", || Ok(server.value(&db, held)?.as_deref() == Some("t")))?;
    put("others", 2)?;
    let rows = |table: &str| {
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(
            server.value(&db, &format!("SELECT count(*) FROM {table}"))?.unwrap_or_default(),
        )
    };
    // Those that share a lane with the held change wait behind it; of twenty, some do not.
    (2..22).try_for_each(|id| put("things", id))?;
    until("the other partition goes on", || Ok(rows("things")? != "1"))?;
    command
        .call(&["drain", "--timeout", "3", "--json"])?
        .expect(FAILED, &["\"drained\": false", "\"marker_reached\": false"]);
    let mut waiting = command.spawn(&["drain"])?;
    running.signal("KILL")?;
    drop(running);
    let mut running = command.spawn(&["run"])?;
    running.says(" streaming | ")?;
    assert!(waiting.runs()?, "{}", waiting.log());
    assert_eq!(rows("others")?, "1");
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE datname = current_database() AND query LIKE 'BEGIN; LOCK TABLE%'";
    server.exec(&db, end)?;
    assert!(holder.join().is_ok_and(|ended| ended));
    waiting.ended()?.expect(DONE, &["drained       true"]);
    assert_eq!((rows("things")?.as_str(), rows("others")?.as_str()), ("21", "2"));
    running.signal("TERM")?;
    running.ended()?.expect(DONE, &[]);
    Ok(())
}
