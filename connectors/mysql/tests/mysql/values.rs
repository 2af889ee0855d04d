//! Values arrive as they are, or are refused.

use anabranch_core::{Column, DataType as T, ErrorKind, Fidelity, Sink, Value};

use crate::server::{Do, Maker, TEXT, database, table};
use crate::{row, server};

/// Each type with its edges, and what the target shows for them.
fn edges() -> Vec<(T, Vec<(&'static str, &'static str)>)> {
    let same = |values: &[&'static str]| values.iter().map(|v| (*v, *v)).collect::<Vec<_>>();
    vec![
        (T::Bool, vec![("t", "1"), ("f", "0")]),
        (T::Int16, same(&["-32768", "32767", "0"])),
        (T::Int32, same(&["-2147483648", "2147483647"])),
        (T::Int64, same(&["-9223372036854775808", "9223372036854775807"])),
        (T::UInt64, same(&["0", "18446744073709551615"])),
        (T::Float32, vec![("3.4028235e+38", "3.4028235e38"), ("1e-45", "1e-45"), ("0.1", "0.1"), ("-0", "0")]),
        (
            T::Float64,
            vec![
                ("1.7976931348623157e+308", "1.7976931348623157e308"),
                ("5e-324", "5e-324"),
                ("0.30000000000000004", "0.30000000000000004"),
                ("1e+23", "1e23"),
                ("-123456789.125", "-123456789.125"),
            ],
        ),
        (
            T::Decimal { precision: Some(38), scale: Some(9) },
            vec![
                ("99999999999999999999999999999.999999999", "99999999999999999999999999999.999999999"),
                ("-0.000000001", "-0.000000001"),
                ("5", "5.000000000"),
            ],
        ),
        (T::Decimal { precision: Some(3), scale: Some(-2) }, same(&["12300", "-99900"])),
        (T::Decimal { precision: Some(3), scale: Some(5) }, same(&["0.00123"])),
        (
            T::Decimal { precision: None, scale: None },
            vec![
                ("1.5", "1.500000000000000000000000000000"),
                ("0.000000000000000000000000000001", "0.000000000000000000000000000001"),
            ],
        ),
        (
            TEXT,
            same(&[
                "",
                " ",
                "a ",
                "\u{0}",
                "a\u{0}b",
                "\u{1F600}\u{10FFFF}",
                "it's \\ \" ` % _ \r\n\t\u{1a}",
                "\\x41",
                "NULL",
            ]),
        ),
        (T::Text { max_chars: Some(3) }, same(&["äöü", "\u{1F600}\u{1F600}\u{1F600}", "a  "])),
        (T::Char { chars: 4 }, same(&["ab  ", "    "])),
        (T::Date, same(&["0001-01-01", "9999-12-31", "2024-02-29"])),
        (
            T::Time,
            vec![
                ("00:00:00", "00:00:00.000000"),
                ("24:00:00", "24:00:00.000000"),
                ("23:59:59.999999", "23:59:59.999999"),
            ],
        ),
        (T::TimeTz, same(&["23:59:59.999999-15:59:59", "00:00:00+00"])),
        (
            T::Timestamp,
            vec![
                ("0001-01-01 00:00:00", "0001-01-01 00:00:00.000000"),
                ("9999-12-31 23:59:59.999999", "9999-12-31 23:59:59.999999"),
            ],
        ),
        (
            T::TimestampTz,
            vec![
                ("2024-03-31 02:30:00.5+00", "2024-03-31 02:30:00.500000"),
                ("1969-12-31 23:59:59+00", "1969-12-31 23:59:59.000000"),
            ],
        ),
        (
            T::Interval,
            same(&[
                "-178000000 years -11 mons -2147483648 days -2562047788:00:54.775807",
                "1 year 2 mons -3 days 04:05:06.7",
            ]),
        ),
        (T::Uuid, same(&["00112233-4455-6677-8899-aabbccddeeff"])),
        (T::Json, same(&["{\"b\": 1, \"a\": 1e400, \"b\": 2}", "null", "\"\u{1F600}\""])),
        (T::Bit { length: Some(9), varying: false }, vec![("100000001", "257"), ("000000000", "0")]),
        (
            T::Bit { length: Some(70), varying: false },
            same(&["0101010101010101010101010101010101010101010101010101010101010101010101"]),
        ),
        (T::Bit { length: Some(9), varying: true }, same(&["", "0", "001"])),
        (T::Enum { labels: vec!["sad".into(), "Ünïcode".into()] }, same(&["sad", "Ünïcode"])),
        (T::Array(Box::new(T::Int32)), same(&["{1,NULL,{2,3}}", "{}"])),
        (T::Other("inet".into()), same(&["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128", "10.0.0.0/8"])),
        (T::Other("money".into()), same(&["-$92,233,720,368,547,758.08"])),
        (T::Other("int4range".into()), same(&["[1,10)", "empty"])),
    ]
}

#[tokio::test]
async fn every_type_keeps_its_edges_in_tables_that_are_created() {
    let mut db = database(server!()).await;
    let sink = db.sink();
    let mut writer = db.writer(1).await;
    let mut m = Maker::default();
    for (n, (data_type, values)) in edges().into_iter().enumerate() {
        let name = format!("v{n}");
        let t = table(&name, &[("k", T::Int64), ("v", data_type.clone())]);
        sink.target().expect("tables").create(&t).await.expect("create");
        let mut changes: Vec<_> = values.iter().zip(1..).map(|(v, k)| (&t, Do::Insert(row![k, v.0]))).collect();
        changes.push((&t, Do::Insert(row![0, Value::Null])));
        let _ = writer.write(&m.stream(&changes)).await.unwrap_or_else(|e| panic!("{data_type}: {}", e.report()));
        let shown = if matches!(data_type, T::Bit { varying: false, length: Some(1..=64) }) { "v+0" } else { "v" };
        let found = db.rows(&format!("SELECT {shown} FROM {name} ORDER BY k")).await;
        let expected: Vec<_> =
            std::iter::once(None).chain(values.iter().map(|v| Some(v.1.to_owned()))).map(|v| vec![v]).collect();
        assert_eq!(found, expected, "{data_type}");
    }
}

#[tokio::test]
async fn bytes_are_kept_typed_and_as_text() {
    let mut db = database(server!()).await;
    let t = table("b", &[("k", T::Bytes), ("v", T::Bytes)]);
    db.sink().target().expect("tables").create(&t).await.expect("create");
    let all: Vec<u8> = (0..=255).collect();
    let hex = all.iter().fold(String::from("\\x"), |s, b| format!("{s}{b:02x}"));
    let bytes = |b: &[u8]| Value::Bytes(b.to_vec().into());
    let mut writer = db.writer(1).await;
    let unit = Maker::default().stream(&[
        (&t, Do::Insert(row![bytes(&[0]), bytes(&all)])),
        (&t, Do::Insert(row![bytes(&[0, 0]), hex.as_str()])),
        (&t, Do::Insert(row!["\\x", bytes(&[])])),
    ]);
    let _ = writer.write(&unit).await.expect("write");
    let hex = hex[2..].to_uppercase();
    assert_eq!(
        db.lines("SELECT HEX(k), HEX(v) FROM b ORDER BY LENGTH(k)").await,
        ["|".to_owned(), format!("00|{hex}"), format!("0000|{hex}")]
    );
}

#[tokio::test]
async fn what_cannot_be_kept_is_refused_by_name() {
    let mut db = database(server!()).await;
    let number = |p, s| T::Decimal { precision: p, scale: s };
    let cases: Vec<(T, &str, &[&str])> = vec![
        (T::Date, "DATE", &["infinity", "0044-03-15 BC", "10000-01-01", "2023-02-29"]),
        (T::Timestamp, "DATETIME(6)", &["-infinity", "0044-03-15 00:00:00 BC", "294276-12-31 23:59:59"]),
        (T::TimestampTz, "TIMESTAMP(6)", &["1970-01-01 00:00:00+00", "2038-01-19 03:14:08+00", "infinity"]),
        (T::Float64, "DOUBLE", &["NaN", "Infinity", "-Infinity"]),
        (T::Float64, "FLOAT", &["1e+39"]),
        (number(None, None), "DECIMAL(65,30)", &["NaN", "Infinity", "0.0000000000000000000000000000001"]),
        (number(Some(10), Some(4)), "DECIMAL(8,2)", &["1.239", "1000000.00", "NaN"]),
        (number(None, None), "INT", &["1.5", "4294967296", "NaN"]),
        (number(None, None), "BIGINT UNSIGNED", &["-1", "18446744073709551616"]),
        (T::Int32, "TINYINT", &["128", "-129"]),
        (T::Int64, "INT UNSIGNED", &["-1", "4294967296"]),
        (TEXT, "VARCHAR(3)", &["abcd", "ab  ", "äöüß"]),
        (
            TEXT,
            "TINYTEXT",
            &[
                "äääääääääääääääääääääääääääääääääääääääääääääääääääääääääääääääääääääääääääääääääääääääääääääääääääääääääääääääääääääääääääääääää",
            ],
        ),
        (TEXT, "VARCHAR(9) CHARSET latin1", &["\u{1F600}"]),
        (T::Bytes, "BINARY(4)", &["\\x0102"]),
        (T::Enum { labels: vec![] }, "ENUM('a','b')", &["c", "", "1", "A", "a "]),
        (T::Json, "LONGTEXT CHECK (JSON_VALID(v))", &["{"]),
    ];
    let sink = db.sink();
    let mut writer = db.writer(1).await;
    let mut m = Maker::default();
    for (n, (data_type, native, values)) in cases.iter().enumerate() {
        let name = format!("r{n}");
        db.run(&format!("CREATE TABLE {name} (k BIGINT PRIMARY KEY, v {native}) CHARSET utf8mb4")).await;
        let t = table(&name, &[("k", T::Int64), ("v", data_type.clone())]);
        let there = sink.target().expect("tables").describe(&t.name).await.expect("describe").expect("there");
        let contract = sink.target().expect("tables").contract(&t.columns[1], Some(&there.schema.columns[1]));
        // A CHECK is not part of the type.
        if !native.contains("CHECK") {
            let rounds = *native == "FLOAT";
            assert_eq!(contract.fidelity == Fidelity::Lossy, rounds, "{data_type} in {native}: {}", contract.note);
            assert!(contract.note.contains("refuses") || rounds, "{data_type} in {native}: {}", contract.note);
        }
        for value in *values {
            let error = writer.write(&m.stream(&[(&t, Do::Insert(row![1, *value]))])).await;
            let error = error.map(|_| ()).expect_err(&format!("{value} as {data_type} in {native}"));
            assert_eq!(error.kind(), ErrorKind::Rejected, "{value} in {native}: {}", error.report());
            assert!(error.report().contains(&name), "{}", error.report());
        }
        assert!(db.lines(&format!("SELECT * FROM {name}")).await.is_empty(), "{native}");
    }
}

#[tokio::test]
async fn existing_types_that_hold_more_are_written_in_their_form() {
    let mut db = database(server!()).await;
    db.run(
        "CREATE TABLE e (k BINARY(16) PRIMARY KEY, c CHAR(9), flag BIT(1), n VARCHAR(40), d DATETIME(0), y UUID, \
         m ENUM('a','b'), raw VARBINARY(20)) CHARSET utf8mb4",
    )
    .await;
    let t = table(
        "e",
        &[
            ("k", T::Uuid),
            ("c", T::Char { chars: 9 }),
            ("flag", T::Bool),
            ("n", T::Decimal { precision: None, scale: None }),
            ("d", T::TimestampTz),
            ("y", T::Uuid),
            ("m", T::Enum { labels: vec!["a".into()] }),
            ("raw", TEXT),
        ],
    );
    let mut writer = db.writer(1).await;
    let mut m = Maker::default();
    let id = "00112233-4455-6677-8899-aabbccddeeff";
    let values = row![id, "ab       ", "t", "1.230", "2024-01-01 00:00:00.999999+00", id, "a", "\\x41"];
    let _ = writer.write(&m.stream(&[(&t, Do::Insert(values.clone()))])).await.expect("insert");
    let _ = writer.write(&m.stream(&[(&t, Do::Update(values))])).await.expect("update");
    assert_eq!(
        db.lines("SELECT HEX(k), CONCAT('[', c, ']'), flag+0, n, d, y, m, raw FROM e").await,
        [format!("00112233445566778899AABBCCDDEEFF|[ab]|1|1.230|2024-01-01 00:00:00|{id}|a|\\x41")]
    );
}

/// Tables that the sink creates change no value; what they cannot hold is refused.
#[tokio::test]
async fn a_column_that_is_created_loses_nothing() {
    let db = database(server!()).await;
    let sink = db.sink();
    let target = sink.target().expect("tables");
    // Whose types these are is known from the first connection on.
    let _ = target.describe(&anabranch_core::TableName::new("", "none")).await.expect("describe");
    for (data_type, _) in edges() {
        let column = Column::new("v", data_type.clone());
        let fresh = target.contract(&column, None);
        let existing = Column { native: fresh.native.clone(), ..column.clone() };
        assert_eq!(target.contract(&column, Some(&existing)), fresh, "{data_type}: the same before and after creation");
        assert!(fresh.fidelity < Fidelity::Lossy, "{data_type}: {fresh:?}");
    }
}
