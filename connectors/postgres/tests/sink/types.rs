//! Every type, by upsert, partial update, delete and COPY, with the values at its edges.

use std::sync::Arc;

use anabranch_core::*;

use crate::support::*;

/// The type, and values in canonical text: what is written must be what is read.
const TYPES: &[(&str, &[&str])] = &[
    ("boolean", &["t", "f"]),
    ("smallint", &["-32768", "32767"]),
    ("integer", &["-2147483648", "2147483647"]),
    ("bigint", &["-9223372036854775808", "9223372036854775807"]),
    ("real", &["NaN", "Infinity", "-Infinity", "1.1754944e-38", "3.4028235e+38", "0.1", "-0"]),
    ("double precision", &["NaN", "Infinity", "-Infinity", "5e-324", "1.7976931348623157e+308", "-0"]),
    (
        "numeric",
        &[
            "NaN",
            "Infinity",
            "-Infinity",
            "0.00000000000000000000000000000001",
            "1.50",
            "-99999999999999999999999999999999999999999999999999.123456789",
        ],
    ),
    ("numeric(10,2)", &["99999999.99", "-0.01", "NaN"]),
    ("money", &["$1,234.56", "-$0.01"]),
    (
        "text",
        &[
            "",
            "NULL",
            "null",
            "\\N",
            "\\.",
            "a\"b\\c",
            "{}",
            "tab\there",
            "line\nbreak\r",
            "'quoted'",
            "ünï©ødé 🦀",
            " spaces ",
        ],
    ),
    ("character varying(5)", &["", "abc", "äöüßé"]),
    ("character(5)", &["abc  ", "     "]),
    ("\"char\"", &["a"]),
    ("name", &["some name"]),
    ("bytea", &["\\x", "\\x00", "\\x00ff5c27220a"]),
    ("date", &["infinity", "-infinity", "4713-01-01 BC", "0044-03-15 BC", "5874897-12-31", "2024-02-29"]),
    ("time without time zone", &["24:00:00", "00:00:00.000001"]),
    ("time with time zone", &["24:00:00-15:59", "12:34:56.789+05:30", "00:00:00+15:59:59"]),
    (
        "timestamp without time zone",
        &["294276-12-31 23:59:59.999999", "4713-01-01 00:00:00 BC", "infinity", "-infinity"],
    ),
    (
        "timestamp with time zone",
        &["294276-12-31 23:59:59.999999+00", "2024-03-31 01:30:00+00", "infinity", "0001-01-01 00:00:00+00 BC"],
    ),
    ("interval", &["1 year 2 mons -3 days +04:05:06.7", "-178000000 years", "00:00:00", "-00:00:00.000001"]),
    ("uuid", &["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"]),
    ("json", &["{\"b\": 1, \"a\" :[1,  2], \"b\": null}", "\"\\u0000\"", "null", "\"\""]),
    ("jsonb", &["{\"a\": [1, 2.50, \"x\\\"y\"]}", "null", "[]"]),
    ("xml", &["<a b=\"c\">d</a>", "text &amp; more"]),
    ("bit(5)", &["10101", "00000"]),
    ("bit varying(8)", &["", "101", "11111111"]),
    ("bit varying", &["", "1"]),
    ("inet", &["10.0.0.1", "10.0.0.0/8", "::1", "2001:db8::/32"]),
    ("cidr", &["10.0.0.0/8", "2001:db8::/32"]),
    ("macaddr", &["08:00:2b:01:02:03"]),
    ("macaddr8", &["08:00:2b:01:02:03:04:05"]),
    ("point", &["(1.5,-2)", "(NaN,Infinity)"]),
    ("box", &["(3,4),(1,2)"]),
    ("path", &["((0,0),(1,1))", "[(0,0),(1,1)]"]),
    ("circle", &["<(1,2),3>"]),
    ("int4range", &["empty", "[1,5)", "(,)", "[1,)"]),
    ("numrange", &["(1.5,2.50]", "empty"]),
    ("tstzrange", &["[\"2024-01-01 00:00:00+00\",infinity)"]),
    ("int4multirange", &["{}", "{[1,3),[5,9)}"]),
    ("tsvector", &["'a':1 'it''s':2"]),
    ("tsquery", &["'a' & 'b'"]),
    ("integer[]", &["{}", "{1,NULL,-3}", "{{1,2},{3,4}}", "[0:2]={1,2,3}"]),
    ("text[]", &["{}", "{\"\",NULL,\"NULL\",\"a\\\"b\",\"c\\\\d\",\"{e}\",\"f,g\"}", "{{a,b},{c,\"d e\"}}"]),
    ("numeric(5,2)[]", &["{1.50,NaN}"]),
    ("bytea[]", &["{\"\\\\x00ff\",NULL}"]),
    ("timestamp with time zone[]", &["{\"2024-01-01 00:00:00+00\",infinity}"]),
    ("boolean[]", &["{t,f,NULL}"]),
    ("jsonb[]", &["{\"{\\\"a\\\": 1}\"}"]),
    ("box[]", &["{(3,4),(1,2);(1,1),(0,0)}"]),
    ("\"Odd Schema\".\"Mo\"\"od\"", &["sad", "so so", "quo\"te"]),
    ("\"Odd Schema\".\"Mo\"\"od\"[]", &["{sad,\"so so\"}"]),
    ("public.posint", &["1", "99"]),
    ("public.posint[]", &["{1,NULL}"]),
    ("public.ints", &["{1,2}", "{}", "{{1},{2}}"]),
    ("public.pair", &["(1,\"a \"\"b\"\"\")", "(,)", "(1,\"\")", "(2,\"x,y\")"]),
    ("public.pair[]", &["{\"(1,a)\",NULL,\"(,)\"}"]),
    ("public.dpair", &["(3,c)"]),
    ("public.floatrange", &["[1.5,2.5)"]),
    ("public.citext_like", &["MiXed"]),
];

const DDL: &str = r#"
    CREATE SCHEMA "Odd Schema";
    CREATE TYPE "Odd Schema"."Mo""od" AS ENUM ('sad', 'so so', 'quo"te');
    CREATE DOMAIN posint AS integer CHECK (VALUE > 0);
    CREATE DOMAIN ints AS integer[];
    CREATE TYPE pair AS (n integer, t text);
    CREATE DOMAIN dpair AS pair;
    CREATE TYPE floatrange AS RANGE (subtype = float8);
    CREATE DOMAIN citext_like AS varchar(20);
"#;

/// The column's type as a source would say it.
fn column(name: String, native: &str) -> Column {
    let data_type = match native {
        "bigint" => INT,
        "bytea" => DataType::Bytes,
        "double precision" => DataType::Float64,
        _ => DataType::Other(native.to_owned()),
    };
    Column { native: native.to_owned(), ..Column::new(name, data_type) }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_value_comes_back() {
    for db in databases() {
        db.exec(DDL);
        let mut columns = vec![column("id".into(), "bigint")];
        columns.extend(TYPES.iter().enumerate().map(|(n, (native, _))| column(format!("c{n}"), native)));
        columns[0].nullable = false;
        let schema =
            |name: &str| TableSchema { name: TableName::new("public", name), columns: columns.clone(), key: vec![0] };
        let (upserted, copied) = (Arc::new(schema("upserted")), Arc::new(schema("copied")));
        let sink = db.sink();
        for table in [&upserted, &copied] {
            sink.target().unwrap().create(table).await.unwrap();
        }
        let rows = TYPES.iter().map(|(_, values)| values.len()).max().unwrap();
        // Row n has value n of each type, NULL where there is none.
        let expected: Vec<Vec<String>> = (0..=rows)
            .map(|n| {
                let values = TYPES.iter().map(|(_, values)| values.get(n).map_or("~", |v| v).to_owned());
                std::iter::once(n.to_string()).chain(values).collect()
            })
            .collect();
        let changes = |table: &Arc<TableSchema>| {
            expected.iter().fold(Changes::new(), |changes, row| {
                changes.insert(table, &row.iter().map(String::as_str).collect::<Vec<_>>())
            })
        };
        let mut stream = db.writer(&sink, 1).await;
        let mut snapshot = sink.open(db.snapshot_lane(1)).await.unwrap();
        write(&mut stream, &changes(&upserted).unit()).await;
        write(&mut snapshot, &changes(&copied).snapshot()).await;
        let same = |table: &str, when: &str| {
            let names: Vec<String> = columns.iter().map(|c| format!("\"{}\"", c.name)).collect();
            // Through a session with the same settings: what is compared is the canonical text.
            let found = db.exec(&format!(
                "SET TimeZone = 'UTC'; SET search_path = pg_catalog; SET lc_monetary = 'C'; \
                 SELECT {} FROM public.{table} ORDER BY id",
                names.join(", ")
            ));
            assert_eq!(found.len(), expected.len(), "{when}");
            for (found, expected) in found.iter().zip(&expected) {
                for ((found, expected), (native, _)) in found[1..].iter().zip(&expected[1..]).zip(TYPES) {
                    assert_eq!(found.as_deref().unwrap_or("~"), expected, "{native} {when}");
                }
            }
        };
        same("upserted", "by upsert");
        same("copied", "by COPY");
        // The same rows again, shifted and back: updates of every column.
        let shifted = expected.iter().enumerate().fold(Changes::new(), |changes, (n, _)| {
            let mut row: Vec<&str> = expected[(n + 1) % expected.len()].iter().map(String::as_str).collect();
            row[0] = &expected[n][0];
            changes.insert(&upserted, &row)
        });
        write(&mut stream, &shifted.unit()).await;
        write(&mut stream, &changes(&upserted).unit()).await;
        same("upserted", "by upsert over another row");
        // Partial updates: every other column in one unit, the rest in the next.
        db.exec("UPDATE upserted SET c0 = NULL; DELETE FROM upserted WHERE id < 0");
        for odd in [0, 1] {
            let half = expected.iter().fold(Changes::new(), |changes, row| {
                let row: Vec<&str> = row
                    .iter()
                    .enumerate()
                    .map(|(i, t)| if i == 0 || i % 2 == odd { t.as_str() } else { "?" })
                    .collect();
                changes.update(&upserted, None, &row)
            });
            write(&mut stream, &half.unit()).await;
        }
        same("upserted", "by partial updates");
        // Each type as a key, and as a table without a key.
        for (n, (native, values)) in TYPES.iter().enumerate() {
            let keyed = Arc::new(TableSchema {
                name: TableName::new("Odd Schema", format!("Key \"{n}\"")),
                columns: vec![
                    Column { nullable: false, ..column("K\"ey, x".into(), native) },
                    column("v".into(), "text"),
                ],
                key: vec![0],
            });
            let keyless = Arc::new(TableSchema {
                name: TableName::new("Odd Schema", format!("Less {n}")),
                key: vec![],
                ..TableSchema::clone(&keyed)
            });
            let orderable = !["json", "xml", "point", "box", "path", "circle", "box[]"].contains(native);
            let tables = if orderable { vec![&keyed, &keyless] } else { vec![&keyless] };
            for table in tables {
                sink.target().unwrap().create(table).await.unwrap();
                let insert = |c: Changes| values.iter().fold(c, |c, v| c.insert(table, &[v, "one"]));
                write(&mut stream, &insert(Changes::new()).unit()).await;
                let update = values.iter().fold(Changes::new(), |c, v| c.update(table, Some(&[v, "one"]), &[v, "two"]));
                write(&mut stream, &update.unit()).await;
                let sql =
                    format!("SELECT count(*), count(*) FILTER (WHERE v = 'two') FROM \"Odd Schema\".{}", quoted(table));
                assert_eq!(db.rows(&sql), [format!("{0}|{0}", values.len())], "{native}");
                let delete = values.iter().fold(Changes::new(), |c, v| c.delete(table, &[v, "two"]));
                write(&mut stream, &delete.unit()).await;
                assert!(sink.target().unwrap().is_empty(&table.name).await.unwrap(), "{native}");
            }
        }
    }
}

fn quoted(table: &TableSchema) -> String {
    format!("\"{}\"", table.name.name.replace('"', "\"\""))
}

#[tokio::test(flavor = "multi_thread")]
async fn typed_values_fit_other_types() {
    for db in databases() {
        db.exec(
            "CREATE TABLE t (id bigint PRIMARY KEY, flag integer, as_text integer, n numeric, x real, b text, j jsonb)",
        );
        let t = table(
            "t",
            &[
                ("id", INT),
                ("flag", DataType::Bool),
                ("as_text", DataType::Bool),
                ("n", INT),
                ("x", DataType::Float64),
                ("b", DataType::Bytes),
                ("j", DataType::Json),
            ],
            1,
        );
        let sink = db.sink();
        let mut w = db.writer(&sink, 1).await;
        let row = [
            ValueRef::Int(1),
            ValueRef::Bool(true),
            ValueRef::Text("f"),
            ValueRef::Int(i64::MAX),
            ValueRef::Float(f64::NEG_INFINITY),
            ValueRef::Bytes(b"caf\xc3\xa9"),
            ValueRef::Text("{\"a\":1}"),
        ];
        write(&mut w, &Changes::new().insert_values(&t, &row).unit()).await;
        assert_eq!(db.rows("SELECT * FROM t"), ["1|1|0|9223372036854775807|-Infinity|café|{\"a\": 1}"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_refused_and_not_cut() {
    for db in databases() {
        db.exec("CREATE TABLE t (id bigint PRIMARY KEY, s varchar(3), a varchar(3)[], c char(2), n numeric(3,1))");
        let t = table("t", &[("id", INT), ("s", TEXT), ("a", TEXT), ("c", TEXT), ("n", TEXT)], 1);
        let sink = db.sink();
        let mut w = db.writer(&sink, 1).await;
        let mut s = sink.open(db.snapshot_lane(1)).await.unwrap();
        for row in [
            ["1", "long", "~", "~", "~"],
            ["1", "~", "{long}", "~", "~"],
            ["1", "~", "~", "abc", "~"],
            ["1", "~", "~", "~", "100"],
            ["1", "nul\0", "~", "~", "~"],
            ["x", "~", "~", "~", "~"],
            ["~", "~", "~", "~", "~"],
        ] {
            let unit = Changes::new().insert(&t, &["2", "ok", "{a}", "c", "1"]).insert(&t, &row).unit();
            refused(&mut w, &unit, ErrorKind::Rejected, "public.t").await;
            let copy = Changes::new().insert(&t, &row).snapshot();
            refused(&mut s, &copy, ErrorKind::Rejected, "").await;
        }
        assert_eq!(db.rows("SELECT * FROM t"), [""; 0]);
        write(&mut w, &Changes::new().insert(&t, &["2", "ok", "{a}", "c", "1"]).unit()).await;
        assert_eq!(db.rows("SELECT * FROM t"), ["2|ok|{a}|c |1.0"]);
    }
}
