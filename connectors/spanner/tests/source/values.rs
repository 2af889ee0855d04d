//! Every type, through the copy and through the stream; what each capture type leaves; mutations; checks.

use std::time::Duration;

use anabranch_core::checkpointer::MemoryCheckpointer;
use anabranch_core::memory::MemorySink;
use anabranch_core::pipeline::Phase;
use anabranch_core::{Arrival, ErrorKind, Pipeline, Source, TableName, Value};
use anabranch_servers::{SpannerDialect, SpannerOptions, SpannerServer};
use anabranch_spanner::client::{
    Client, Mutation, Official, SpannerResult, SpannerValue, Transaction, TransactionOptions, Work, Write,
};
use anabranch_spanner::{Spanner, SpannerSink};
use tokio::time::timeout;

use crate::shop::{drained, start};

fn source(server: &SpannerServer, database: &str) -> Spanner {
    Spanner::new(database)
        .change_stream("changes")
        .endpoint(format!("http://{}", server.host()))
        .admin_endpoint(format!("http://{}", server.rest_host()))
}

const GOOGLE: (&str, &str) = (
    "CREATE TABLE t (id INT64 NOT NULL, b BOOL, i INT64, f3 FLOAT32, f6 FLOAT64, n NUMERIC, s STRING(20), x BYTES(MAX), \
     d DATE, z TIMESTAMP, j JSON, ai ARRAY<INT64>, tx ARRAY<STRING(MAX)>, ax ARRAY<BYTES(MAX)>, ab ARRAY<BOOL>, \
     an ARRAY<NUMERIC>, az ARRAY<TIMESTAMP>, af ARRAY<FLOAT64>, g INT64 AS (i + 1) STORED) PRIMARY KEY (id)",
    "true, -9007199254740993, 0.1, 0.30000000000000004, NUMERIC '-99999999999999999999.123456789', 'it\\'s \"ä\" \u{1f980}', \
     b'\\x00\\xff', DATE '0001-01-01', TIMESTAMP '9999-12-31T23:59:59Z', JSON '{\"b\": [1, null], \"a\": \"x\"}', \
     [1, -2], ['a b', '', 'null', 'q\"\\\\'], [b'ab'], [true, false], [NUMERIC '1.5'], \
     [TIMESTAMP '2026-01-02T03:04:05Z'], [1.5]",
);

const POSTGRES: (&str, &str) = (
    "CREATE TABLE t (id bigint NOT NULL PRIMARY KEY, b boolean, i bigint, f3 real, f6 double precision, n numeric, \
     s varchar(20), x bytea, d date, z timestamptz, j jsonb, ai bigint[], tx varchar[], ax bytea[], ab boolean[], \
     an numeric[], az timestamptz[], af double precision[])",
    "true, -9007199254740993, 0.1, 0.30000000000000004, -99999999999999999999.123456789, 'it''s \"ä\" \u{1f980}', \
     '\\x00ff', '0001-01-01', '9999-12-31T23:59:59Z', '{\"b\": [1, null], \"a\": \"x\"}', \
     array[1::bigint, -2::bigint], array['a b', '', 'null'], null, array[true, false], array[1.5::numeric], \
     array['2026-01-02T03:04:05Z'::timestamptz], array[1.5::double precision]",
);

/// A row that was copied and one with the same values that was streamed are the same in the target.
#[tokio::test(flavor = "multi_thread")]
async fn every_type_is_copied_as_it_is_streamed() {
    for (dialect, (ddl, values)) in [(SpannerDialect::GoogleSql, GOOGLE), (SpannerDialect::PostgreSql, POSTGRES)] {
        let Some(server) = SpannerOptions::new().start().unwrap() else { return };
        let database = server.create_db(dialect, &[ddl]).unwrap();
        let columns = "id, b, i, f3, f6, n, s, x, d, z, j, ai, tx, ax, ab, an, az, af";
        let insert = |id: i64| format!("INSERT INTO t ({columns}) VALUES ({id}, {values})");
        server.exec(&database, &insert(1)).unwrap();
        server.exec(&database, "INSERT INTO t (id) VALUES (2)").unwrap();
        let sink = MemorySink::new();
        let pipeline = Pipeline::builder("test").source(source(&server, &database)).sink(sink.clone());
        let mut running = start(pipeline.order(Arrival).create_tables(true)).await;
        drained(&mut running).await;
        server.exec(&database, &insert(3)).unwrap();
        server.exec(&database, "INSERT INTO t (id) VALUES (4)").unwrap();
        drained(&mut running).await;
        let schema = if dialect == SpannerDialect::PostgreSql { "public" } else { "" };
        let rows = sink.rows(&TableName::new(schema, "t"));
        let of = |id: i64| rows.iter().find(|r| r[0] == Value::Int(id)).unwrap_or_else(|| panic!("{id} in {rows:?}"));
        assert_eq!(of(1)[1..], of(3)[1..], "{dialect:?} (left: copied)");
        assert_eq!(of(2)[1..], of(4)[1..], "{dialect:?} (left: copied)");
        assert_eq!(of(1)[2], Value::Int(-9_007_199_254_740_993));
        assert_eq!(of(1)[3], Value::from("0.1"));
        assert_eq!(of(1)[5], Value::from("-99999999999999999999.123456789"));
        assert_eq!(of(1)[9], Value::from("9999-12-31 23:59:59+00"));
        assert!(of(1)[12] == Value::from(r#"{"a b","","null","q\"\\"}"#) || dialect == SpannerDialect::PostgreSql);
        assert_eq!(of(1).len(), 18, "generated columns are not sent");
        running.stop().await.unwrap();
    }
}

/// Of each capture type the target ends up with the same rows.
#[tokio::test(flavor = "multi_thread")]
async fn every_capture_type_keeps_the_rows_equal() {
    let Some(server) = SpannerOptions::new().partition_seconds(1).start().unwrap() else { return };
    for capture in ["OLD_AND_NEW_VALUES", "NEW_VALUES", "NEW_ROW", "NEW_ROW_AND_OLD_VALUES"] {
        let ddl = [
            "CREATE TABLE t (id INT64 NOT NULL, a INT64, b STRING(MAX)) PRIMARY KEY (id)".to_owned(),
            format!("CREATE CHANGE STREAM changes FOR ALL OPTIONS (value_capture_type = '{capture}')"),
        ];
        let ddl: Vec<&str> = ddl.iter().map(String::as_str).collect();
        let database = server.create_db(SpannerDialect::GoogleSql, &ddl).unwrap();
        server
            .exec(&database, "INSERT INTO t (id, a, b) VALUES (1, 1, 'one'), (2, 2, 'two'), (3, 3, 'three')")
            .unwrap();
        let said = source(&server, &database).check(None).await.unwrap();
        assert_eq!(said.is_empty(), capture == "NEW_ROW_AND_OLD_VALUES", "{said:?}");
        assert!(said.iter().all(|s| s.starts_with("-- ") && s.contains(capture)), "{said:?}");
        let sink = MemorySink::new();
        let pipeline = Pipeline::builder("test").source(source(&server, &database)).sink(sink.clone());
        let mut running = start(pipeline.create_tables(true)).await;
        drained(&mut running).await;
        server.exec(&database, "UPDATE t SET a = 10 WHERE id = 1").unwrap();
        server.exec(&database, "UPDATE t SET b = NULL WHERE id = 2").unwrap();
        server.exec(&database, "DELETE FROM t WHERE id = 3").unwrap();
        server.exec(&database, "INSERT INTO t (id, b) VALUES (4, 'four')").unwrap();
        drained(&mut running).await;
        let mut rows = sink.rows(&TableName::new("", "t"));
        rows.sort_by_key(|r| if let Value::Int(id) = r[0] { id } else { 0 });
        let row = |id: i64, a: Value, b: Value| vec![Value::Int(id), a, b];
        let expected =
            [row(1, 10.into(), "one".into()), row(2, 2.into(), Value::Null), row(4, Value::Null, "four".into())];
        assert_eq!(rows, expected, "{capture}");
        running.stop().await.unwrap();
    }
}

/// A row that is deleted and put back with fewer columns, in one transaction or in several, keeps nothing
/// of what it was; columns that are added are there from the first change on that has them.
#[tokio::test(flavor = "multi_thread")]
async fn rows_come_back_and_columns_are_added() {
    let Some(server) = SpannerOptions::new().partition_seconds(1).start().unwrap() else { return };
    for capture in ["OLD_AND_NEW_VALUES", "NEW_VALUES", "NEW_ROW", "NEW_ROW_AND_OLD_VALUES"] {
        let table = "CREATE TABLE t (id INT64 NOT NULL, a INT64, b STRING(MAX), c INT64 DEFAULT (7)) PRIMARY KEY (id)";
        let stream = format!("CREATE CHANGE STREAM changes FOR ALL OPTIONS (value_capture_type = '{capture}')");
        let database = server.create_db(SpannerDialect::GoogleSql, &[table, &stream]).unwrap();
        let target = server.create_db(SpannerDialect::GoogleSql, &[table]).unwrap();
        server.exec(&database, "INSERT INTO t (id, a, b) VALUES (1, 1, 'x'), (2, 2, 'y'), (3, 3, 'z')").unwrap();
        let sink = SpannerSink::new(&target).endpoint(format!("http://{}", server.host()));
        let sink = sink.admin_endpoint(format!("http://{}", server.rest_host()));
        let mut running = start(Pipeline::builder("test").source(source(&server, &database)).sink(sink)).await;
        drained(&mut running).await;
        let equal = |columns: &str| {
            let rows = |of: &str| server.exec(of, &format!("SELECT {columns} FROM t ORDER BY id")).unwrap();
            assert_eq!(rows(&target), rows(&database), "{capture} (left: target)");
        };
        let transactions: [&[&str]; 8] = [
            &["DELETE FROM t WHERE id = 1", "INSERT INTO t (id, c) VALUES (1, 8)"],
            &["DELETE FROM t WHERE id = 2"],
            &["INSERT INTO t (id) VALUES (2)"],
            &["INSERT INTO t (id, a) VALUES (4, 4)", "UPDATE t SET b = 'b' WHERE id = 4"],
            &["UPDATE t SET a = 30 WHERE id = 3", "UPDATE t SET b = NULL, c = NULL WHERE id = 3"],
            &["INSERT INTO t (id, b) VALUES (5, 'gone')", "DELETE FROM t WHERE id = 5"],
            &["INSERT OR UPDATE INTO t (id, c) VALUES (4, 44), (6, 66)", "UPDATE t SET a = NULL WHERE id = 4"],
            &["UPDATE t SET a = 1 WHERE id = 2", "DELETE FROM t WHERE id = 2", "INSERT INTO t (id, a) VALUES (2, 9)"],
        ];
        transactions.iter().for_each(|all| drop(server.transaction(&database, all).unwrap()));
        drained(&mut running).await;
        equal("id, a, b, c");
        for of in [&target, &database] {
            server.ddl(of, &["ALTER TABLE t ADD COLUMN d INT64", "ALTER TABLE t ADD COLUMN e STRING(9)"]).unwrap();
        }
        let statements = [
            "UPDATE t SET d = 1 WHERE id = 1",
            "UPDATE t SET a = 5 WHERE id = 1",
            "UPDATE t SET e = 'e', b = 'new' WHERE id = 2",
            "INSERT INTO t (id, e) VALUES (7, 'seven')",
            "UPDATE t SET d = 7 WHERE id = 7",
            "DELETE FROM t WHERE id = 4",
        ];
        statements.iter().for_each(|sql| drop(server.exec(&database, sql).unwrap()));
        drained(&mut running).await;
        equal("id, a, b, c, d, e");
        running.stop().await.unwrap();
    }
}

struct Rows(i64);

#[async_trait::async_trait]
impl Work for Rows {
    async fn run(&mut self, transaction: &dyn Transaction) -> SpannerResult<()> {
        let write = |id: i64, note: &str| Write {
            table: "t".to_owned(),
            values: vec![("id".to_owned(), id.into()), ("note".to_owned(), SpannerValue::from(note))],
        };
        transaction.buffer(vec![
            Mutation::Insert(write(self.0, "inserted")),
            Mutation::InsertOrUpdate(write(0, "upserted")),
            Mutation::Delete { table: "t".to_owned(), keys: vec![vec![(self.0 - 1).into()]] },
        ])
    }
}

/// Mutations arrive as DML does, with the commit time that the client was told.
#[tokio::test(flavor = "multi_thread")]
async fn mutations_arrive() {
    let Some(server) = SpannerOptions::new().start().unwrap() else { return };
    let table = "CREATE TABLE t (id INT64 NOT NULL, note STRING(MAX)) PRIMARY KEY (id)";
    let database = server.create_db(SpannerDialect::GoogleSql, &[table]).unwrap();
    let sink = MemorySink::new();
    let pipeline = Pipeline::builder("test").source(source(&server, &database)).sink(sink.clone());
    let mut running = start(pipeline.create_tables(true)).await;
    let client = Official::builder(&database).endpoint(server.host()).connect().await.unwrap();
    let mut last = None;
    for id in 1..10 {
        last = Some(client.transact(TransactionOptions::default(), &mut Rows(id)).await.unwrap());
    }
    drained(&mut running).await;
    let mut rows = sink.rows(&TableName::new("", "t"));
    rows.sort_by_key(|r| if let Value::Int(id) = r[0] { id } else { 0 });
    assert_eq!(rows, [vec![Value::Int(0), "upserted".into()], vec![Value::Int(9), "inserted".into()]]);
    let safe = running.status().safe_time;
    assert!(safe >= last.map(|t| t.all_before()), "{safe:?} {last:?}");
    running.stop().await.unwrap();
}

/// At the end that was asked for everything before it is there, and the pipeline ends by itself. Started
/// again it ends at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_ends_where_it_was_asked_to() {
    let Some(server) = SpannerOptions::new().partition_seconds(1).start().unwrap() else { return };
    let table = "CREATE TABLE t (id INT64 NOT NULL, note STRING(MAX)) PRIMARY KEY (id)";
    let database = server.create_db(SpannerDialect::GoogleSql, &[table]).unwrap();
    let now = server.exec(&database, "SELECT CURRENT_TIMESTAMP").unwrap().remove(0).remove(0).unwrap();
    let end = now.parse::<anabranch_spanner::client::Instant>().unwrap().plus_seconds(3);
    let (sink, store) = (MemorySink::new(), MemoryCheckpointer::new());
    let pipeline = || {
        let source = source(&server, &database).end(end);
        Pipeline::builder("test").source(source).sink(sink.clone()).checkpointer(store.clone()).create_tables(true)
    };
    let mut running = start(pipeline()).await;
    server.exec(&database, "INSERT INTO t (id, note) VALUES (1, 'in time')").unwrap();
    timeout(Duration::from_secs(60), running.wait()).await.expect("it ends").unwrap();
    assert_eq!(sink.rows(&TableName::new("", "t")), [vec![Value::Int(1), "in time".into()]]);
    let status = running.status();
    assert!(status.partitions.is_empty() && status.safe_time >= Some(end.all_before()), "{status:?}");
    let stored = pipeline().build().unwrap().stored_status().await.unwrap().unwrap();
    assert_eq!((stored.phase, stored.safe_time), (Phase::Stopped, status.safe_time));

    let mut again = start(pipeline()).await;
    timeout(Duration::from_secs(60), again.wait()).await.expect("it ends again").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_tells_the_statement_and_errors_name_the_key() {
    let Some(server) = SpannerOptions::new().start().unwrap() else { return };
    let table = "CREATE TABLE t (id INT64 NOT NULL) PRIMARY KEY (id)";
    let database = server.create_db(SpannerDialect::GoogleSql, &[table]).unwrap();
    let said = source(&server, &database).tables(["t"]).check(None).await.unwrap();
    let expected = "CREATE CHANGE STREAM `changes` FOR `t` OPTIONS (value_capture_type = 'NEW_ROW_AND_OLD_VALUES', \
                    retention_period = '7d')";
    assert_eq!(said, [expected]);
    let refused = async |source: Spanner, key: &str| {
        let error = source.check(None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
        assert!(error.report().contains(key), "{error:?}");
    };
    refused(source(&server, &database).create(false), "source.change_stream").await;
    refused(source(&server, &database).tables(["nope"]), "source.tables").await;
    refused(source(&server, &database).change_stream("no name"), "source.change_stream").await;
    refused(source(&server, &database).retention_period("31d"), "source.retention").await;
    refused(source(&server, &database).start("2999-01-01T00:00:00Z".parse().unwrap()), "source.start").await;
    refused(source(&server, "nope"), "source.database").await;
}
