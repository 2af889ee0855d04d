//! The fake beside the emulator: the same story on both gives the same records, but for times, names
//! of partitions and transactions.

use std::sync::Arc;
use std::time::Duration;

use anabranch_servers::{SpannerDialect, SpannerOptions};
use anabranch_spanner_fake::{Committed, Dialect, FakeSpanner, Script, Stream, Table, Time};
use googleapis_tonic_google_spanner_v1::google::spanner::v1 as wire;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use serde_json::{Value as Json, json};
use tonic::transport::Channel;
use tonic::{Code, Status};
use wire::spanner_client::SpannerClient;

type Tested = Result<(), Box<dyn std::error::Error>>;

/// A reader of change streams on the protocol itself.
struct Reader {
    client: SpannerClient<Channel>,
    session: String,
    dialect: Dialect,
}

impl Reader {
    async fn connect(host: &str, database: &str, dialect: Dialect) -> Result<Self, Box<dyn std::error::Error>> {
        let mut client = SpannerClient::new(Channel::from_shared(format!("http://{host}"))?.connect().await?);
        let session = Some(wire::Session { multiplexed: true, ..Default::default() });
        let request = wire::CreateSessionRequest { database: database.to_owned(), session };
        let session = client.create_session(request).await?.into_inner().name;
        Ok(Self { client, session, dialect })
    }

    /// Metadata and rows of a query until it ends.
    async fn read(
        &mut self,
        token: Option<&str>,
        from: Time,
        to: Option<Time>,
    ) -> Result<(Option<wire::Type>, Vec<Json>), Status> {
        let text = |t: Option<String>| Value { kind: Some(t.map_or(Kind::NullValue(0), Kind::StringValue)) };
        let values = [Some(from.to_string()), to.map(|t| t.to_string()), token.map(str::to_owned), Some("1000".into())];
        let codes =
            [wire::TypeCode::Timestamp, wire::TypeCode::Timestamp, wire::TypeCode::String, wire::TypeCode::Int64];
        let names = ["p1", "p2", "p3", "p4"].map(str::to_owned);
        let sql = match self.dialect {
            Dialect::GoogleSql => {
                "SELECT ChangeRecord FROM READ_s(start_timestamp => @p1, end_timestamp => @p2, \
                 partition_token => @p3, heartbeat_milliseconds => @p4)"
            }
            Dialect::PostgreSql => r#"SELECT * FROM "spanner"."read_json_s"($1, $2, $3, $4, null)"#,
        };
        let request = wire::ExecuteSqlRequest {
            session: self.session.clone(),
            sql: sql.to_owned(),
            params: Some(Struct { fields: names.clone().into_iter().zip(values.map(text)).collect() }),
            param_types: names
                .into_iter()
                .zip(codes.map(|code| wire::Type { code: code.into(), ..Default::default() }))
                .collect(),
            ..Default::default()
        };
        let mut stream = self.client.execute_streaming_sql(request).await?.into_inner();
        let (mut kind, mut rows) = (None, Vec::new());
        while let Some(set) = stream.message().await? {
            if let Some(row_type) = set.metadata.and_then(|m| m.row_type) {
                kind = row_type.fields.into_iter().next().and_then(|f| f.r#type);
            }
            rows.extend(set.values.iter().map(json_of));
        }
        Ok((kind, rows))
    }
}

fn json_of(value: &Value) -> Json {
    match value.kind.as_ref() {
        None | Some(Kind::NullValue(_)) => Json::Null,
        Some(Kind::BoolValue(v)) => json!(v),
        Some(Kind::NumberValue(v)) => json!(v),
        // JSON within is compared as JSON: the order of its keys means nothing.
        Some(Kind::StringValue(v)) => match serde_json::from_str::<Json>(v) {
            Ok(inner @ (Json::Object(_) | Json::Array(_))) => json!({ "json": inner }),
            _ => json!(v),
        },
        Some(Kind::ListValue(list)) => list.values.iter().map(json_of).collect(),
        Some(Kind::StructValue(map)) => map.fields.iter().map(|(n, v)| (n.clone(), json_of(v))).collect(),
    }
}

/// Times, tokens and transactions by what they are, not by their values.
fn shape(row: &Json) -> Json {
    match row {
        Json::String(text) if Time::parse(text).is_some() && text.starts_with("20") && !text.starts_with("2020-") => {
            json!(if text.ends_with('Z') { "time Z" } else { "time +00:00" })
        }
        Json::String(text) if text.len() > 60 || text.starts_with("partition ") => json!("token"),
        Json::Array(list) => list.iter().map(shape).collect(),
        Json::Object(map) => map
            .iter()
            .map(|(name, value)| match name.as_str() {
                "server_transaction_id" => (name.clone(), json!("transaction")),
                _ => (name.clone(), shape(value)),
            })
            .collect(),
        other => other.clone(),
    }
}

/// The data, child and heartbeat records, by their shapes.
fn sorted(rows: &[Json], dialect: Dialect) -> [Vec<Json>; 3] {
    let mut all = [Vec::new(), Vec::new(), Vec::new()];
    let names = ["data_change_record", "heartbeat_record", "child_partitions_record"];
    for row in rows {
        let kind = match dialect {
            Dialect::GoogleSql => (0..3).find(|&n| row[0][n].as_array().is_some_and(|a| !a.is_empty())),
            Dialect::PostgreSql => names.iter().position(|name| !row["json"][*name].is_null()),
        };
        let mut row = shape(row);
        if dialect == Dialect::GoogleSql && kind == Some(0) {
            row[0][0][0][2] = json!("transaction");
        }
        all[kind.expect("a record of one kind")].push(row);
    }
    all
}

fn tokens(rows: &[Json], dialect: Dialect) -> Vec<String> {
    let mut tokens = Vec::new();
    for row in rows {
        let list = match dialect {
            Dialect::GoogleSql => &row[0][2][0][2],
            Dialect::PostgreSql => &row["json"]["child_partitions_record"]["child_partitions"],
        };
        for child in list.as_array().into_iter().flatten() {
            let token = if dialect == Dialect::GoogleSql { &child[0] } else { &child["token"] };
            tokens.extend(token.as_str().map(str::to_owned));
        }
    }
    tokens
}

const GOOGLE: [&str; 2] = [
    "CREATE TABLE t (id INT64 NOT NULL, note STRING(MAX), f FLOAT64, n NUMERIC, b BYTES(10), ts TIMESTAMP, j JSON, \
     a ARRAY<INT64>, d DATE, bo BOOL) PRIMARY KEY (id)",
    "CREATE CHANGE STREAM s FOR ALL OPTIONS (value_capture_type = 'NEW_ROW_AND_OLD_VALUES')",
];

const POSTGRES: [&str; 2] = [
    "CREATE TABLE t (id bigint PRIMARY KEY, note text, f double precision, n numeric, b bytea, ts timestamptz, j jsonb, \
     a bigint[], d date, bo boolean)",
    "CREATE CHANGE STREAM s FOR ALL WITH (value_capture_type = 'NEW_ROW_AND_OLD_VALUES')",
];

fn table(dialect: Dialect) -> Arc<Table> {
    let (n, j) = match dialect {
        Dialect::GoogleSql => ("NUMERIC", "JSON"),
        Dialect::PostgreSql => ("PG_NUMERIC", "PG_JSONB"),
    };
    let table = Table::new("t").key("id", "INT64").column("note", "STRING").column("f", "FLOAT64").column("n", n);
    let table = table.column("b", "BYTES").column("ts", "TIMESTAMP").column("j", j).array("a", "INT64");
    Arc::new(table.column("d", "DATE").column("bo", "BOOL"))
}

fn row(id: &str, note: &str, dialect: Dialect) -> Json {
    let j = if dialect == Dialect::GoogleSql { r#"{"a":1}"# } else { r#"{"a": 1}"# };
    json!({"id": id, "note": note, "f": 1.5, "n": "1.5", "b": "YWI=", "ts": "2020-01-01T00:00:00Z", "j": j,
        "a": ["1", "2"], "d": "2020-01-01", "bo": true})
}

fn scripted(dialect: Dialect, start: Time) -> FakeSpanner {
    let (table, later) = (table(dialect), |ms| start.plus(Duration::from_millis(ms)));
    let mut stream = Stream::new("s");
    stream.root("partition 1", start).root("partition 2", start);
    let nulls = json!({"id": "2", "note": null, "f": null, "n": null, "b": null, "ts": null, "j": null, "a": null,
        "d": null, "bo": null});
    stream.commit(Committed::at(later(10)).insert("partition 1", &table, row("1", "one", dialect)).insert(
        "partition 1",
        &table,
        nulls,
    ));
    let (one, two) = (row("1", "one", dialect), row("1", "two", dialect));
    stream.commit(Committed::at(later(20)).update("partition 1", &table, two.clone(), one));
    stream.commit(Committed::at(later(30)).delete("partition 1", &table, two));
    stream.split("partition 1", later(4000), &["partition 3", "partition 4"]);
    stream.split("partition 2", later(4000), &["partition 5"]);
    Script::new().dialect(dialect).stream(stream).clock(later(60_000)).start()
}

async fn compared(dialect: Dialect) -> Tested {
    let Some(emulator) = SpannerOptions::new().partition_seconds(2).start()? else { return Ok(()) };
    let (named, ddl) = match dialect {
        Dialect::GoogleSql => (SpannerDialect::GoogleSql, GOOGLE),
        Dialect::PostgreSql => (SpannerDialect::PostgreSql, POSTGRES),
    };
    let database = emulator.create_db(named, &ddl)?;
    let start = Time::now();
    let (bytes, json) = match dialect {
        Dialect::GoogleSql => ("b'ab'", "JSON '{\"a\":1}'"),
        Dialect::PostgreSql => ("'\\x6162'", "'{\"a\":1}'"),
    };
    let (array, numeric) = match dialect {
        Dialect::GoogleSql => ("[1, 2]", "NUMERIC '1.5'"),
        Dialect::PostgreSql => ("ARRAY[1, 2]", "1.5"),
    };
    let insert = format!(
        "INSERT INTO t (id, note, f, n, b, ts, j, a, d, bo) VALUES (1, 'one', 1.5, {numeric}, {bytes}, \
         '2020-01-01 00:00:00Z', {json}, {array}, '2020-01-01', true), \
         (2, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)"
    );
    for sql in [insert.as_str(), "UPDATE t SET note = 'two' WHERE id = 1", "DELETE FROM t WHERE id = 1"] {
        emulator.exec(&database, sql)?;
    }
    let fake = scripted(dialect, start);
    let mut of_emulator = Reader::connect(&emulator.host(), &database, dialect).await?;
    let mut of_fake = Reader::connect(&fake.host(), FakeSpanner::DATABASE, dialect).await?;

    let first = of_emulator.read(None, start, None).await?;
    let first_fake = of_fake.read(None, start, None).await?;
    assert_eq!(first.0, first_fake.0, "the type of the column");
    assert_eq!(sorted(&first.1, dialect)[2][0], sorted(&first_fake.1, dialect)[2][0]);

    let (mut data, mut heartbeats, mut children) = (Vec::new(), Vec::new(), Vec::new());
    for token in tokens(&first.1, dialect) {
        let (_, rows) = of_emulator.read(Some(&token), start, None).await?;
        let [d, h, c] = sorted(&rows, dialect);
        data.extend(d);
        heartbeats.extend(h);
        children.extend(c);
    }
    let (_, rows) = of_fake.read(Some("partition 1"), start, None).await?;
    let [fake_data, _, fake_children] = sorted(&rows, dialect);
    assert_eq!(data, fake_data);
    let (_, rows) = of_fake.read(Some("partition 2"), start, None).await?;
    let [_, _, other_children] = sorted(&rows, dialect);
    let either = |child: &Json| fake_children.contains(child) || other_children.contains(child);
    assert!(!children.is_empty() && children.iter().all(either), "{children:?}");
    fake.set_time(start.plus(Duration::from_secs(70)));
    let (_, rows) = of_fake.read(Some("partition 3"), start.plus_nanos(4_000_000_000), Some(fake.now())).await?;
    let [_, fake_heartbeats, _] = sorted(&rows, dialect);
    assert_eq!(heartbeats.first(), fake_heartbeats.first());

    // What is refused, and how.
    let token = tokens(&first.1, dialect).remove(0);
    let now = Time::now();
    let cases = [
        (Some("nonsense"), Some("nonsense"), start, None, Code::InvalidArgument),
        (Some(token.as_str()), Some("partition 1"), start.plus(Duration::from_secs(3600)), None, Code::OutOfRange),
        (Some(token.as_str()), Some("partition 1"), now, Some(start), Code::InvalidArgument),
        (None, None, now.plus(Duration::from_secs(7200)), None, Code::OutOfRange),
    ];
    for (token, fake_token, from, to, code) in cases {
        let said = of_emulator.read(token, from, to).await.expect_err("the emulator refuses");
        let fake_said = of_fake.read(fake_token, from, to).await.expect_err("the fake refuses");
        assert_eq!((said.code(), fake_said.code()), (code, code), "{said} {fake_said}");
    }
    let late = of_emulator.read(Some(&token), now, None).await.expect_err("after the partition's end");
    let late_fake = of_fake.read(Some("partition 1"), start.plus(Duration::from_secs(30)), None).await;
    assert_eq!(late.code(), late_fake.expect_err("after the partition's end").code());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn googlesql_records_are_those_of_the_emulator() -> Tested {
    compared(Dialect::GoogleSql).await
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_records_are_those_of_the_emulator() -> Tested {
    compared(Dialect::PostgreSql).await
}
