//! Every type, with its edge values: what is read back is what was written.

use anabranch_core::{DataType, ErrorKind, TargetSchema, Value};
use rusqlite::types::Value as Stored;

use crate::support::*;

fn t(v: &str) -> Stored {
    Stored::Text(v.to_owned())
}

/// Writes each value into a column of its type, and reads it back.
async fn round_trip(data_type: DataType, cases: &[(Value, Stored)]) {
    let target = Target::new("");
    let schema = table("t", &[("id", DataType::Int64), ("v", data_type.clone())], 1);
    target.sqlite.create(&schema).await.unwrap();
    let numbered = |n: usize, v: &Value| row([Value::Int(n as i64), v.clone()]);
    let changes: Vec<_> =
        cases.iter().enumerate().map(|(n, (v, _))| Do::Insert(schema.clone(), numbered(n, v))).collect();
    apply(&target, &changes).await.unwrap();
    let conn = target.look();
    let mut select = conn.prepare("SELECT v FROM t ORDER BY id").unwrap();
    let stored: Vec<Stored> = select.query_map([], |row| row.get(0)).unwrap().map(|v| v.unwrap()).collect();
    assert_eq!(stored.len(), cases.len());
    for ((given, expected), stored) in cases.iter().zip(stored) {
        let same = match (&stored, expected) {
            // -0.0 == 0.0, so by their bits.
            (Stored::Real(a), Stored::Real(b)) => a.to_bits() == b.to_bits(),
            (a, b) => a == b,
        };
        assert!(same, "{data_type}: {given:?} is stored as {stored:?}");
    }
    as_key(data_type, cases).await;
}

/// The same values as keys: found again by a partial update and a delete.
async fn as_key(data_type: DataType, cases: &[(Value, Stored)]) {
    let target = Target::new("");
    let schema = table("k", &[("v", data_type.clone()), ("note", text()), ("more", text())], 1);
    target.sqlite.create(&schema).await.unwrap();
    let mut writer = target.writer().await;
    let mut n = 0;
    for (v, _) in cases.iter().filter(|(v, _)| *v != NULL) {
        let steps = [
            Do::Insert(schema.clone(), row([v.clone(), "a".into(), "b".into()])),
            Do::Update(schema.clone(), row([v.clone(), "c".into(), UNCHANGED])),
            Do::Delete(schema.clone(), anabranch_core::OldImage::Key, row([v.clone(), UNCHANGED, UNCHANGED])),
        ];
        for (step, left) in steps.into_iter().zip([vec!["a|b"], vec!["c|b"], vec![]]) {
            n += 1;
            let _ = writer.write(&unit(n, &[step])).await.unwrap();
            assert_eq!(target.rows("SELECT note, more FROM k"), left, "{data_type} {v:?}");
        }
    }
}

#[tokio::test]
async fn whole_numbers_and_truth() {
    let cases = [
        (Value::Bool(true), Stored::Integer(1)),
        (Value::Bool(false), Stored::Integer(0)),
        ("t".into(), Stored::Integer(1)),
        ("f".into(), Stored::Integer(0)),
        (NULL, Stored::Null),
    ];
    round_trip(DataType::Bool, &cases).await;
    for data_type in [DataType::Int16, DataType::Int32, DataType::Int64] {
        let cases = [(Value::Int(-7), Stored::Integer(-7)), ("8".into(), Stored::Integer(8)), (NULL, Stored::Null)];
        round_trip(data_type, &cases).await;
    }
    let edges = [
        (Value::Int(i64::MIN), Stored::Integer(i64::MIN)),
        (i64::MAX.to_string().as_str().into(), Stored::Integer(i64::MAX)),
        // Beyond 2^53, where a double would round.
        ("9007199254740993".into(), Stored::Integer(9_007_199_254_740_993)),
    ];
    round_trip(DataType::Int64, &edges).await;
    let unsigned = [("18446744073709551615".into(), t("18446744073709551615")), (Value::Int(7), t("7"))];
    round_trip(DataType::UInt64, &unsigned).await;
}

#[tokio::test]
async fn floating_point() {
    let cases = [
        (Value::Float(0.1), Stored::Real(0.1)),
        ("0.1".into(), Stored::Real(0.1)),
        (Value::Float(-0.0), Stored::Real(-0.0)),
        ("-0".into(), Stored::Real(-0.0)),
        (Value::Float(3.0), Stored::Real(3.0)),
        (Value::Float(f64::MAX), Stored::Real(f64::MAX)),
        ("5e-324".into(), Stored::Real(5e-324)),
        (Value::Float(f64::NAN), t("NaN")),
        ("NaN".into(), t("NaN")),
        ("Infinity".into(), Stored::Real(f64::INFINITY)),
        (Value::Float(f64::NEG_INFINITY), Stored::Real(f64::NEG_INFINITY)),
        (NULL, Stored::Null),
    ];
    round_trip(DataType::Float64, &cases).await;
    let single = [
        (Value::Float(f64::from(0.1f32)), Stored::Real(0.1)),
        ("0.1".into(), Stored::Real(0.1)),
        ("3.4028235e+38".into(), Stored::Real(3.4028235e38)),
        ("NaN".into(), t("NaN")),
    ];
    round_trip(DataType::Float32, &single).await;
    for (_, stored) in &single[..3] {
        let Stored::Real(v) = stored else { panic!("a number") };
        assert!([0.1f32, f32::MAX].contains(&(*v as f32)), "reads back to the same 32 bits");
    }
}

#[tokio::test]
async fn text_of_every_kind() {
    let decimals = ["0.10", "-0.00", "123456789012345678901234567890.123456789", "NaN", "Infinity", "1e5", "007"];
    let texts = ["", "007", " 7 ", "a\0b", "1e5", "NaN", "NULL", "Grüße 🦀", "it's \"quoted\"", "\r\n\t"];
    let canonical = [
        (DataType::Decimal { precision: None, scale: None }, &decimals[..]),
        (DataType::Decimal { precision: Some(10), scale: Some(2) }, &["1.50"]),
        (text(), &texts),
        (DataType::Char { chars: 4 }, &["ab  "]),
        (DataType::Date, &["2024-02-29", "0044-03-15 BC", "infinity", "-infinity"]),
        (DataType::Time, &["24:00:00", "00:00:00.000001"]),
        (DataType::TimeTz, &["04:05:06.789-08"]),
        (DataType::Timestamp, &["294276-12-31 23:59:59.999999", "-infinity"]),
        (DataType::TimestampTz, &["2024-01-01 00:00:00.5+00"]),
        (DataType::Interval, &["1 year 2 mons -3 days 04:05:06.7"]),
        (DataType::Uuid, &["00000000-0000-0000-0000-000000000007"]),
        (DataType::Json, &["1.50", "\"x\"", "{\"a\": [1, null]}"]),
        (DataType::Bit { length: Some(4), varying: false }, &["0101"]),
        (DataType::Enum { labels: vec!["1".into()] }, &["1"]),
        (DataType::Array(Box::new(DataType::Int32)), &["{1,NULL,{2}}"]),
        (DataType::Other("inet".into()), &["10.0.0.1/8"]),
    ];
    for (data_type, values) in canonical {
        let mut cases: Vec<_> = values.iter().map(|v| (Value::from(*v), t(v))).collect();
        cases.push((NULL, Stored::Null));
        round_trip(data_type, &cases).await;
    }
}

#[tokio::test]
async fn bytes() {
    let all: Vec<u8> = (0..=255).collect();
    let cases = [
        (Value::Bytes(all.clone().into()), Stored::Blob(all)),
        (Value::Bytes(Vec::new().into()), Stored::Blob(Vec::new())),
        ("\\x00ff7F".into(), Stored::Blob(vec![0, 255, 127])),
        ("\\x".into(), Stored::Blob(Vec::new())),
        (NULL, Stored::Null),
    ];
    round_trip(DataType::Bytes, &cases[..2]).await;
    round_trip(DataType::Bytes, &cases[2..]).await;
}

#[tokio::test]
async fn what_a_type_cannot_be_is_rejected() {
    let target = Target::new("CREATE TABLE t (id INTEGER PRIMARY KEY, v INTEGER)");
    let cases = [
        (DataType::Int32, Value::from("seven")),
        (DataType::Bool, "maybe".into()),
        (DataType::Bytes, "0aff".into()),
        (DataType::Bytes, "\\x0".into()),
        (DataType::Float64, "x".into()),
        (text(), Value::Bytes(vec![1].into())),
        (DataType::UInt64, "9223372036854775808".into()),
        (text(), UNCHANGED),
    ];
    for (data_type, value) in cases {
        let schema = table("t", &[("id", DataType::Int64), ("v", data_type.clone())], 1);
        let error = apply(&target, &[Do::Insert(schema, row([1.into(), value.clone()]))]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Rejected, "{data_type} {value:?}");
        assert!(error.to_string().contains(" v ") || error.to_string().ends_with(" v"), "{error}");
    }
    assert!(target.rows("SELECT * FROM t").is_empty());
}

#[tokio::test]
async fn columns_that_are_there_with_another_affinity() {
    let target = Target::new("CREATE TABLE t (id INTEGER PRIMARY KEY, f TEXT, i TEXT, d DATETIME, b NUMERIC, r REAL)");
    let schema = table(
        "t",
        &[
            ("id", DataType::Int64),
            ("f", DataType::Float64),
            ("i", DataType::Int64),
            ("d", DataType::Timestamp),
            ("b", DataType::Bytes),
            ("r", DataType::Float64),
        ],
        1,
    );
    let values = row([
        1.into(),
        Value::Float(0.1 + 0.2),
        Value::Int(7),
        "2024-01-01 00:00:00".into(),
        Value::Bytes(vec![0x37].into()),
        Value::Float(f64::NAN),
    ]);
    apply(&target, &[Do::Insert(schema, values)]).await.unwrap();
    assert_eq!(
        target.rows("SELECT *, typeof(f), typeof(i), typeof(b) FROM t"),
        ["1|0.30000000000000004|7|2024-01-01 00:00:00|x[37]|NaN|text|text|blob"]
    );
}
