//! Copies and their hand-over to the stream, against real servers.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use anabranch_core::*;
use anabranch_postgres::Postgres;
use support::reading::{prepared_with, source};
use support::{BOTH, PgServer, PgVersion, start};

/// A source with small chunks, and its tables.
async fn prepared(server: &PgServer) -> (Postgres, Vec<TableSchema>) {
    let source = prepared_with(server, |s| s.chunk_pages(4)).await;
    let tables = Source::tables(&source).await.unwrap();
    (source, tables)
}

fn text(v: ValueRef<'_>) -> Option<String> {
    match v {
        ValueRef::Text(t) => Some(t.to_owned()),
        ValueRef::Null => None,
        other => panic!("{other:?}"),
    }
}

async fn read(snapshot: &dyn Snapshot, chunk: &Chunk) -> Vec<Vec<Option<String>>> {
    let mut reader = snapshot.open(chunk).await.unwrap();
    let (mut rows, mut ended, mut sequence) = (Vec::new(), false, 1);
    loop {
        match reader.next().await.unwrap() {
            Next::Batch(batch) => {
                assert!(!ended);
                for piece in batch.pieces() {
                    assert_eq!((piece.first_sequence, piece.first), (sequence, sequence == 1));
                    sequence += piece.changes.len() as u64;
                    ended = piece.end.is_some();
                }
                for change in batch.changes() {
                    assert_eq!(change.op(), Op::Insert);
                    assert_eq!(change.schema().name, chunk.table);
                    rows.push(change.new_row().unwrap().values().map(text).collect());
                }
            }
            Next::Closed { children } => {
                assert!(children.is_empty() && ended);
                return rows;
            }
            Next::Stopped => panic!(),
        }
    }
}

#[tokio::test]
async fn every_type_is_copied_and_streamed_with_the_same_text() {
    for version in BOTH {
        let Some(server) = start(version, &[]) else { continue };
        let sql = server.client().await;
        sql.batch_execute(
            r#"CREATE TYPE mood AS ENUM ('sad', 'it''s, "fine"');
               CREATE TYPE pair AS (a int, b text);
               CREATE DOMAIN price AS numeric(8,2) CHECK (VALUE >= 0);
               CREATE TABLE t (
                 id int PRIMARY KEY, b bool, i2 int2, i8 int8, r float4, d float8, n numeric, n2 numeric(10,3),
                 c char(5), v varchar(10), x text, y bytea, da date, ti time, tz timetz, ts timestamp,
                 tt timestamptz, iv interval, u uuid, j json, jb jsonb, bi bit(3), vb varbit, ip inet,
                 m money, rg int4range, a int[], ta text[], en mood, co pair, dom price, oi oid);
               ALTER DATABASE postgres SET DateStyle = 'SQL, DMY';
               ALTER DATABASE postgres SET TimeZone = 'Asia/Tokyo';
               ALTER DATABASE postgres SET IntervalStyle = 'iso_8601';
               ALTER DATABASE postgres SET bytea_output = 'escape';
               ALTER DATABASE postgres SET extra_float_digits = 0;"#,
        )
        .await
        .unwrap();
        let insert = r#"INSERT INTO t VALUES ($ID, true, -32768, 9223372036854775807, 1.1, 0.1::float8+0.2,
                 'NaN', 1234567.891, 'ab', 'ü', E'tab\t nl\n back\\slash \\N', '\x00ff5c', '0044-03-15 BC', '24:00:00',
                 '12:34:56.5+05:30', 'infinity', '2020-01-01 00:00:00.000001+02', '1 year 2 mons -3 days 04:05:06.7',
                 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', '{"a": 1}', '{"b":  2}', '101', '1', '10.0.0.1/8',
                 12.5, '[1,5)', '{1,NULL}', '{"a,b",NULL,"q\""}', 'it''s, "fine"', ROW(1,'x y'), 3.5, 4294967295)"#;
        sql.batch_execute(&insert.replace("$ID", "1")).await.unwrap();
        sql.batch_execute("INSERT INTO t (id) VALUES (2)").await.unwrap();
        let (source, tables) = prepared(&server).await;
        let snapshot = source.snapshotter().unwrap().begin(&tables).await.unwrap();
        let mut copied = Vec::new();
        for chunk in snapshot.chunks() {
            copied.extend(read(&*snapshot, chunk).await);
        }
        sql.batch_execute(&insert.replace("$ID", "3")).await.unwrap();
        let partition = source.partitions().await.unwrap().remove(0);
        let mut reader = source.open(&partition, &StartFrom::default()).await.unwrap();
        let streamed: Vec<_> = loop {
            let Next::Batch(batch) = reader.next().await.unwrap() else { panic!() };
            if let Some(change) = batch.changes().next() {
                break change.new_row().unwrap().values().map(text).collect();
            }
        };
        assert_eq!(copied.len(), 2);
        assert_eq!(copied[0][1..], streamed[1..], "{version:?}");
        assert!(copied[1][1..].iter().all(Option::is_none));
        let column = |name: &str| tables[0].index_of(name).unwrap();
        for (name, expected, data_type) in [
            ("b", "t", "bool"),
            ("r", "1.1", "float32"),
            ("d", "0.30000000000000004", "float64"),
            ("n", "NaN", "decimal"),
            ("n2", "1234567.891", "decimal(10,3)"),
            ("c", "ab   ", "char(5)"),
            ("x", "tab\t nl\n back\\slash \\N", "text"),
            ("y", "\\x00ff5c", "bytes"),
            ("da", "0044-03-15 BC", "date"),
            ("ti", "24:00:00", "time"),
            ("tz", "12:34:56.5+05:30", "timetz"),
            ("ts", "infinity", "timestamp"),
            ("tt", "2019-12-31 22:00:00.000001+00", "timestamptz"),
            ("iv", "1 year 2 mons -3 days +04:05:06.7", "interval"),
            ("u", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "uuid"),
            ("jb", "{\"b\": 2}", "json"),
            ("bi", "101", "bit(3)"),
            ("ip", "10.0.0.1/8", "inet"),
            ("m", "$12.50", "money"),
            ("rg", "[1,5)", "int4range"),
            ("a", "{1,NULL}", "int32[]"),
            ("en", "it's, \"fine\"", "enum"),
            ("co", "(1,\"x y\")", "public.pair"),
            ("dom", "3.50", "decimal(8,2)"),
            ("oi", "4294967295", "int64"),
        ] {
            let at = column(name);
            assert_eq!(streamed[at].as_deref(), Some(expected), "{version:?} {name}");
            assert_eq!(tables[0].columns[at].data_type.to_string(), data_type, "{name}");
        }
        assert_eq!(tables[0].columns[column("dom")].native, "public.price");
        assert!(!tables[0].columns[0].nullable && tables[0].columns[1].nullable);
    }
}

#[tokio::test]
async fn the_hand_over_is_exact_under_load() {
    for version in BOTH {
        let Some(server) = start(version, &[]) else { continue };
        let sql = server.client().await;
        sql.batch_execute(
            "CREATE TABLE a (id int PRIMARY KEY, v text);
             CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY HASH (id);
             CREATE TABLE p0 PARTITION OF p FOR VALUES WITH (MODULUS 2, REMAINDER 0);
             CREATE TABLE p1 PARTITION OF p FOR VALUES WITH (MODULUS 2, REMAINDER 1);
             CREATE TABLE empty (id int PRIMARY KEY);
             INSERT INTO a SELECT i, repeat('x', 200) FROM generate_series(1, 3000) i;
             INSERT INTO p SELECT i, repeat('y', 200) FROM generate_series(1, 3000) i;
             CREATE PUBLICATION pub FOR TABLE a WHERE (id < 100000), p, empty WITH (publish_via_partition_root = true)",
        )
        .await
        .unwrap();
        let (source, tables) = prepared(&server).await;
        // Written by others before, while and after the snapshot is taken.
        let writer = tokio::spawn({
            let client = server.client().await;
            async move {
                for id in 10_001..=12_000 {
                    let table = if id % 2 == 0 { "a" } else { "p" };
                    client.execute(&format!("INSERT INTO {table} VALUES ($1, 'new')"), &[&id]).await.unwrap();
                }
                client.execute("INSERT INTO a VALUES (200000, 'filtered')", &[]).await.unwrap();
            }
        });
        let partition = source.partitions().await.unwrap().remove(0);
        let snapshot = source.snapshotter().unwrap().begin(&tables).await.unwrap();
        writer.await.unwrap();
        assert!(snapshot.chunks().len() > 10, "{}", snapshot.chunks().len());
        let mut seen: BTreeMap<String, BTreeSet<i32>> = BTreeMap::new();
        let mut copied = 0;
        for chunk in snapshot.chunks() {
            for row in read(&*snapshot, chunk).await {
                copied += 1;
                let id = row[0].as_ref().unwrap().parse().unwrap();
                assert!(seen.entry(chunk.table.name.clone()).or_default().insert(id), "copied twice: {id}");
            }
        }
        let point = snapshot.point();
        drop(snapshot);
        let snapshots = tables
            .iter()
            .map(|t| (t.name.clone(), TableSnapshot { point: point.clone(), finished: true, ..Default::default() }))
            .collect();
        let mut reader = source.open(&partition, &StartFrom { position: None, snapshots }).await.unwrap();
        let total = |seen: &BTreeMap<String, BTreeSet<i32>>| seen.values().map(BTreeSet::len).sum::<usize>();
        let (mut streamed, mut heartbeats) = (0, 0);
        while total(&seen) < 8000 && heartbeats < 5 {
            let Next::Batch(batch) = reader.next().await.unwrap() else { panic!() };
            heartbeats += usize::from(batch.is_empty());
            for change in batch.changes() {
                streamed += 1;
                let id = text(change.new_row().unwrap().get(0)).unwrap().parse().unwrap();
                let new = seen.entry(change.schema().name.name.clone()).or_default().insert(id);
                assert!(new, "{version:?}: {id} was copied and streamed");
            }
        }
        assert_eq!(total(&seen), 8000, "{version:?}: {copied} copied, {streamed} streamed");
        assert!(!seen["a"].contains(&200_000));
    }
}

#[tokio::test]
async fn a_lost_snapshot_begins_again() {
    let Some(server) = start(PgVersion::V15, &[]) else { return };
    let sql = server.client().await;
    sql.batch_execute("CREATE TABLE t (id int PRIMARY KEY)").await.unwrap();
    let (source, tables) = prepared(&server).await;
    let snapshot = source.snapshotter().unwrap().begin(&tables).await.unwrap();
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE temporary";
    assert_eq!(sql.query_one(slots, &[]).await.unwrap().get::<_, i64>(0), 1);
    sql.batch_execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE temporary")
        .await
        .unwrap();
    let e = loop {
        match snapshot.open(&snapshot.chunks()[0]).await {
            Ok(_) => tokio::task::yield_now().await,
            Err(e) => break e,
        }
    };
    assert_eq!(e.kind(), ErrorKind::Transient, "{e:?}");
    let again = source.snapshotter().unwrap().begin(&tables).await.unwrap();
    assert!(again.point().rank >= snapshot.point().rank);
    assert!(again.open(&again.chunks()[0]).await.is_ok());
    drop((snapshot, again));
    // Temporary slots go with their connections.
    while sql.query_one(slots, &[]).await.unwrap().get::<_, i64>(0) > 0 {}
}

#[tokio::test]
async fn a_table_that_is_written_anew_in_the_middle_of_its_copy_is_noticed() {
    let Some(server) = start(PgVersion::V18, &[]) else { return };
    let sql = server.client().await;
    sql.batch_execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text);
         INSERT INTO t SELECT i, repeat('x', 700) FROM generate_series(1, 200) i;
         DELETE FROM t WHERE id % 2 = 0",
    )
    .await
    .unwrap();
    let (source, tables) = prepared(&server).await;
    let snapshot = source.snapshotter().unwrap().begin(&tables).await.unwrap();
    let chunks = snapshot.chunks();
    assert!(chunks.len() > 2);
    read(&*snapshot, &chunks[0]).await;
    // Rows of later pages are on earlier ones now: to go on would leave them out.
    sql.batch_execute("VACUUM FULL t").await.unwrap();
    let error = snapshot.open(&chunks[1]).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Transient);
    assert!(error.report().contains("written anew"), "{}", error.report());
}

/// A thousand rows of a hundred thousand are found by their key, without reading the table.
#[tokio::test]
async fn changed_rows_are_read_through_the_index() {
    for version in BOTH {
        let Some(server) = start(version, &[]) else { continue };
        let sql = server.client().await;
        sql.batch_execute(
            "CREATE EXTENSION IF NOT EXISTS citext;
             CREATE TABLE t (a citext, b numeric(8,2), c bool, v text, PRIMARY KEY (b, a, c));
             INSERT INTO t SELECT 'Key ' || i, i / 4.0, i % 2 = 0, repeat('x', 200) FROM generate_series(1, 20000) i",
        )
        .await
        .unwrap();
        let source = source(&server).chunk_pages(4);
        source.prepare(None).await.unwrap();
        let tables = Source::tables(&source).await.unwrap();
        let first = source.snapshotter().unwrap().begin(&tables).await.unwrap();
        let name = &tables[0].name;
        let mut before = TableSnapshot { point: first.point(), plan: first.plan(name), ..TableSnapshot::default() };
        before.chunks = first.chunks().len() as u32;
        before.done_chunks.insert(0);
        drop(first);
        sql.batch_execute(
            "UPDATE t SET a = 'KEY ' || substr(a, 5) WHERE b < 500; UPDATE t SET v = 'y' WHERE b BETWEEN 600 AND 700;
             DELETE FROM t WHERE b BETWEEN 800 AND 850; INSERT INTO t VALUES ('it''s \\', 0.5, true, 'new')",
        )
        .await
        .unwrap();
        let before = BTreeMap::from([(name.clone(), before)]);
        let resumed = source.snapshotter().unwrap().resume(&tables, &before).await.unwrap().unwrap();
        let GoesOn::But(changed) = resumed.goes_on(name) else { panic!("{:?}", resumed.goes_on(name)) };
        let mut keys = BTreeSet::new();
        for chunk in &changed.keys {
            let mut reader = resumed.open(chunk).await.unwrap();
            while let Next::Batch(batch) = reader.next().await.unwrap() {
                for change in batch.changes() {
                    assert_eq!((change.op(), change.old_image()), (Op::Delete, OldImage::Key));
                    let row: Vec<_> = change.old_row().unwrap().values().take(3).map(text).collect();
                    assert!(keys.insert(row));
                }
            }
        }
        // 1999 updates of the key, with an old and a new one each; 401, 201 and one more.
        assert_eq!(keys.len(), 2 * 1999 + 401 + 201 + 1);
        let started = std::time::Instant::now();
        let mut rows = Vec::new();
        for chunk in &changed.rows {
            rows.extend(read(&*resumed, chunk).await);
        }
        println!("{version:?}: {} changed rows in {:?}", rows.len(), started.elapsed());
        let found: BTreeSet<_> = rows.iter().map(|r| r[..3].to_vec()).collect();
        assert_eq!((rows.len(), found.len()), (1999 + 401 + 1, rows.len()));
        assert!(found.is_subset(&keys));
        // Nothing was confirmed, and the slot is free.
        let slot = "SELECT confirmed_flush_lsn::text, active FROM pg_replication_slots WHERE slot_name = 'slot'";
        let row = sql.query_one(slot, &[]).await.unwrap();
        assert!(!row.get::<_, bool>(1));
    }
}

/// A copy of the only table of which the first chunk is done.
async fn begun(source: &Postgres, tables: &[TableSchema]) -> BTreeMap<TableName, TableSnapshot> {
    let first = source.snapshotter().unwrap().begin(tables).await.unwrap();
    let name = &tables[0].name;
    let mut before = TableSnapshot { point: first.point(), plan: first.plan(name), ..TableSnapshot::default() };
    before.chunks = first.chunks().len() as u32;
    before.done_chunks.insert(0);
    BTreeMap::from([(name.clone(), before)])
}

/// A snapshot sees no row of a table that was rewritten after it, and the stream does not bring them again.
#[tokio::test]
async fn changed_rows_are_not_sought_where_the_table_was_written_anew() {
    let Some(server) = start(PgVersion::V18, &[]) else { return };
    let sql = server.client().await;
    for table in ["", "PARTITION BY RANGE (id)"] {
        let _ = sql.batch_execute("DROP PUBLICATION IF EXISTS pub; DROP TABLE IF EXISTS t").await;
        let partitions = if table.is_empty() { "" } else { "CREATE TABLE t_all PARTITION OF t DEFAULT;" };
        sql.batch_execute(&format!(
            "CREATE TABLE t (id int PRIMARY KEY, n int) {table}; {partitions}
             INSERT INTO t SELECT i, i FROM generate_series(1, 1000) i"
        ))
        .await
        .unwrap();
        let slot = if table.is_empty() { "plain" } else { "parts" };
        let source = source(&server).slot(slot).chunk_pages(1);
        source.prepare(None).await.unwrap();
        let tables = Source::tables(&source).await.unwrap();
        let before = begun(&source, &tables).await;
        sql.batch_execute("UPDATE t SET n = 0 WHERE id <= 10").await.unwrap();
        let resumed = source.snapshotter().unwrap().resume(&tables, &before).await.unwrap().unwrap();
        let GoesOn::But(changed) = resumed.goes_on(&tables[0].name) else { panic!() };
        sql.batch_execute("ALTER TABLE t ALTER n TYPE bigint").await.unwrap();
        match resumed.open(&changed.rows[0]).await {
            Ok(_) => panic!("{slot}: {} of 10 rows", read(&*resumed, &changed.rows[0]).await.len()),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Transient);
                assert!(error.report().contains("written anew"), "{}", error.report());
            }
        }
    }
}

/// Another name of an enum's value, or another attribute of a composite type, changes what rows look like
/// and none of the rows.
#[tokio::test]
async fn a_type_that_changed_changes_the_copied_rows() {
    let Some(server) = start(PgVersion::V18, &[]) else { return };
    let sql = server.client().await;
    sql.batch_execute(
        "CREATE TYPE mood AS ENUM ('sad', 'fine'); CREATE DOMAIN state AS mood; CREATE TYPE pair AS (a int, b state[]);
         CREATE TYPE other AS ENUM ('x');
         CREATE TABLE t (id int PRIMARY KEY, m mood, p pair);
         INSERT INTO t SELECT i, 'sad', format('(%s,{sad})', i)::pair FROM generate_series(1, 1000) i",
    )
    .await
    .unwrap();
    let changes = [
        ("ALTER TYPE other RENAME VALUE 'x' TO 'y'", true),
        ("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'", false),
        ("ALTER TABLE t DROP m", false),
        ("ALTER TYPE mood RENAME VALUE 'fine' TO 'well'", false),
        ("ALTER TYPE pair ADD ATTRIBUTE c int", false),
    ];
    let source = source(&server).chunk_pages(1);
    source.prepare(None).await.unwrap();
    for (change, goes_on) in changes {
        let tables = Source::tables(&source).await.unwrap();
        let before = begun(&source, &tables).await;
        sql.batch_execute(change).await.unwrap();
        let tables = Source::tables(&source).await.unwrap();
        let resumed = source.snapshotter().unwrap().resume(&tables, &before).await.unwrap().unwrap();
        let found = resumed.goes_on(&tables[0].name);
        assert_eq!(matches!(found, GoesOn::But(_)), goes_on, "{change}: {found:?}");
    }
}
