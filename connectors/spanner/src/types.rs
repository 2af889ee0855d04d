//! Spanner's types, in both dialects, and core's; the protocol's values, and the canonical text.
//!
//! | GoogleSQL | PostgreSQL dialect | core |
//! |---|---|---|
//! | BOOL | boolean | bool |
//! | INT64, ENUM | bigint, oid | int64 |
//! | FLOAT32, FLOAT64 | real, double precision | float32, float64 |
//! | NUMERIC | numeric | decimal(38,9), decimal |
//! | STRING(n), STRING(MAX) | varchar(n), varchar, text | text(n), text |
//! | BYTES, PROTO | bytea | bytes |
//! | DATE, TIMESTAMP | date, timestamptz | date, timestamptz (up to nine digits of a second) |
//! | JSON | jsonb | json |
//! | UUID, INTERVAL | uuid, interval | uuid, interval |
//! | `ARRAY<T>` | t[] | an array of T |

use anabranch_core::{BatchBuilder, DataType, ValueRef};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::fmt::Write;

use crate::client::{Instant, Kind, SpannerValue};
use crate::decode::Json;

/// The type that a change record tells of: `{"code":"ARRAY","array_element_type":{"code":"INT64"}}`.
pub(crate) fn kind_of_record(of: &Json) -> Result<Kind, String> {
    let code = of.get("code").and_then(Json::as_str).ok_or("a column type without a code")?;
    let annotation = of.get("type_annotation").and_then(Json::as_str).unwrap_or_default();
    let name = || of.get("proto_type_fqn").and_then(Json::as_str).unwrap_or_default().to_owned();
    Ok(match (code, annotation) {
        ("NUMERIC", "PG_NUMERIC") => Kind::PgNumeric,
        ("JSON", "PG_JSONB") => Kind::PgJsonb,
        ("INT64", "PG_OID") => Kind::PgOid,
        ("BOOL", _) => Kind::Bool,
        ("INT64", _) => Kind::Int64,
        ("FLOAT32", _) => Kind::Float32,
        ("FLOAT64", _) => Kind::Float64,
        ("NUMERIC", _) => Kind::Numeric,
        ("STRING", _) => Kind::String,
        ("BYTES", _) => Kind::Bytes,
        ("DATE", _) => Kind::Date,
        ("TIMESTAMP", _) => Kind::Timestamp,
        ("JSON", _) => Kind::Json,
        ("UUID", _) => Kind::Uuid,
        ("INTERVAL", _) => Kind::Interval,
        ("PROTO", _) => Kind::Proto(name()),
        ("ENUM", _) => Kind::Enum(name()),
        ("ARRAY", _) => {
            let element = of.get("array_element_type").ok_or("an array type without an element type")?;
            Kind::Array(Box::new(kind_of_record(element)?))
        }
        (other, _) => return Err(format!("a column of the unknown type {other}")),
    })
}

/// A type as the information schema writes it in `spanner_type`, and its limit in characters.
pub(crate) fn kind_of_column(text: &str) -> Result<(Kind, Option<u32>), String> {
    let text = text.trim();
    if let Some(element) = text.strip_suffix("[]") {
        return Ok((Kind::Array(Box::new(kind_of_column(element)?.0)), None));
    }
    let (name, arguments) = match text.find(['(', '<']) {
        Some(at) => (&text[..at], text[at + 1..].trim_end_matches([')', '>'])),
        None => (text, ""),
    };
    let kind = match name.trim().to_ascii_lowercase().as_str() {
        "bool" | "boolean" => Kind::Bool,
        "int64" | "bigint" => Kind::Int64,
        "float32" | "real" => Kind::Float32,
        "float64" | "double precision" => Kind::Float64,
        "numeric" if text == "NUMERIC" => Kind::Numeric,
        "numeric" => Kind::PgNumeric,
        "string" | "character varying" | "text" => Kind::String,
        "bytes" | "bytea" => Kind::Bytes,
        "date" => Kind::Date,
        "timestamp" | "timestamp with time zone" | "spanner.commit_timestamp" => Kind::Timestamp,
        "json" => Kind::Json,
        "jsonb" => Kind::PgJsonb,
        "oid" => Kind::PgOid,
        "uuid" => Kind::Uuid,
        "interval" => Kind::Interval,
        "proto" => Kind::Proto(arguments.to_owned()),
        "enum" => Kind::Enum(arguments.to_owned()),
        // The end of the element's own arguments was cut off above; they do not matter here.
        "array" => Kind::Array(Box::new(kind_of_column(arguments)?.0)),
        _ => return Err(format!("the unknown type {text}")),
    };
    let limit = matches!(kind, Kind::String).then(|| arguments.parse().ok()).flatten();
    Ok((kind, limit))
}

/// The type as DDL writes it, without limits.
pub(crate) fn native(kind: &Kind) -> String {
    match kind {
        Kind::Untyped => "unknown".to_owned(),
        Kind::Bool => "BOOL".to_owned(),
        Kind::Int64 => "INT64".to_owned(),
        Kind::Float32 => "FLOAT32".to_owned(),
        Kind::Float64 => "FLOAT64".to_owned(),
        Kind::Numeric => "NUMERIC".to_owned(),
        Kind::PgNumeric => "numeric".to_owned(),
        Kind::String => "STRING(MAX)".to_owned(),
        Kind::Bytes => "BYTES(MAX)".to_owned(),
        Kind::Date => "DATE".to_owned(),
        Kind::Timestamp => "TIMESTAMP".to_owned(),
        Kind::Json => "JSON".to_owned(),
        Kind::PgJsonb => "jsonb".to_owned(),
        Kind::PgOid => "oid".to_owned(),
        Kind::Uuid => "UUID".to_owned(),
        Kind::Interval => "INTERVAL".to_owned(),
        Kind::Proto(name) => format!("PROTO<{name}>"),
        Kind::Enum(name) => format!("ENUM<{name}>"),
        Kind::Array(of) => format!("ARRAY<{}>", native(of)),
    }
}

/// The logical type.
pub(crate) fn data_type(kind: &Kind, max_chars: Option<u32>) -> DataType {
    match kind {
        Kind::Untyped => DataType::Other("unknown".to_owned()),
        Kind::Bool => DataType::Bool,
        Kind::Int64 | Kind::PgOid | Kind::Enum(_) => DataType::Int64,
        Kind::Float32 => DataType::Float32,
        Kind::Float64 => DataType::Float64,
        Kind::Numeric => DataType::Decimal { precision: Some(38), scale: Some(9) },
        Kind::PgNumeric => DataType::Decimal { precision: None, scale: None },
        Kind::String => DataType::Text { max_chars },
        Kind::Bytes | Kind::Proto(_) => DataType::Bytes,
        Kind::Date => DataType::Date,
        Kind::Timestamp => DataType::TimestampTz,
        Kind::Json | Kind::PgJsonb => DataType::Json,
        Kind::Uuid => DataType::Uuid,
        Kind::Interval => DataType::Interval,
        Kind::Array(of) => DataType::Array(Box::new(data_type(of, None))),
    }
}

/// Pushes a value as core takes it.
///
/// # Errors
/// A sentence, if the value is none of its type.
pub(crate) fn push(builder: &mut BatchBuilder, kind: &Kind, value: &SpannerValue) -> Result<(), String> {
    use SpannerValue as V;
    let wrong = || format!("{value:?} is no value of the type {}", native(kind));
    match (kind, value) {
        (_, V::Null) => builder.push(ValueRef::Null),
        (Kind::Bool, V::Bool(v)) => builder.push(ValueRef::Bool(*v)),
        (Kind::Int64 | Kind::PgOid | Kind::Enum(_), v) => builder.push(ValueRef::Int(int(v).ok_or_else(wrong)?)),
        (Kind::Float64, v) => builder.push(ValueRef::Float(float(v).ok_or_else(wrong)?)),
        (Kind::Bytes | Kind::Proto(_), V::Text(v)) => {
            builder.push(ValueRef::Bytes(&STANDARD.decode(v).map_err(|_| wrong())?));
        }
        (Kind::String | Kind::Json | Kind::PgJsonb, V::Text(v)) => builder.push(ValueRef::Text(v)),
        _ => {
            let mut text = String::new();
            canonical(&mut text, kind, value).ok_or_else(wrong)?;
            builder.push(ValueRef::Text(&text));
        }
    }
    Ok(())
}

fn int(value: &SpannerValue) -> Option<i64> {
    match value {
        SpannerValue::Text(v) => v.parse().ok(),
        // A JSON number, as some records of the PostgreSQL dialect have it.
        SpannerValue::Number(v) if v.fract() == 0.0 && v.abs() <= 9_007_199_254_740_992.0 => Some(*v as i64),
        _ => None,
    }
}

fn float(value: &SpannerValue) -> Option<f64> {
    match value {
        SpannerValue::Number(v) => Some(*v),
        SpannerValue::Text(v) => match v.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" | "inf" => Some(f64::INFINITY),
            "-Infinity" | "-inf" => Some(f64::NEG_INFINITY),
            _ => v.parse().ok().filter(|f: &f64| f.is_finite()),
        },
        _ => None,
    }
}

/// Appends the canonical text of a value that is not NULL.
fn canonical(out: &mut String, kind: &Kind, value: &SpannerValue) -> Option<()> {
    use SpannerValue as V;
    match (kind, value) {
        (Kind::Bool, V::Bool(v)) => out.push(if *v { 't' } else { 'f' }),
        (Kind::Int64 | Kind::PgOid | Kind::Enum(_), v) => write!(out, "{}", int(v)?).ok()?,
        // The nearest 32 bits, in the fewest digits: the protocol widens it to 64.
        (Kind::Float32, v) => write_float(out, &(float(v)? as f32), float(v)?)?,
        (Kind::Float64, v) => write_float(out, &float(v)?, float(v)?)?,
        (Kind::Numeric, V::Text(v)) if is_decimal(v) => out.push_str(v),
        (Kind::PgNumeric, V::Text(v)) if is_decimal(v) || v == "NaN" => out.push_str(v),
        (Kind::String | Kind::Json | Kind::PgJsonb, V::Text(v)) => out.push_str(v),
        (Kind::Uuid, V::Text(v)) if v.len() == 36 => out.push_str(&v.to_ascii_lowercase()),
        (Kind::Bytes | Kind::Proto(_), V::Text(v)) => {
            out.push_str("\\x");
            STANDARD.decode(v).ok()?.iter().try_for_each(|byte| write!(out, "{byte:02x}")).ok()?;
        }
        (Kind::Date, V::Text(v)) if is_date(v) => out.push_str(v),
        (Kind::Timestamp, V::Text(v)) => timestamp(out, v)?,
        (Kind::Interval, V::Text(v)) => interval(out, v)?,
        (Kind::Array(of), V::List(list)) => array(out, of, list)?,
        _ => return None,
    }
    Some(())
}

fn write_float(out: &mut String, value: &dyn std::fmt::Display, as_64: f64) -> Option<()> {
    if as_64.is_nan() {
        out.push_str("NaN");
    } else if as_64.is_infinite() {
        out.push_str(if as_64 > 0.0 { "Infinity" } else { "-Infinity" });
    } else {
        write!(out, "{value}").ok()?;
    }
    Some(())
}

fn is_decimal(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    digits.bytes().any(|b| b.is_ascii_digit())
        && digits.bytes().all(|b| b.is_ascii_digit() || b == b'.')
        && digits.bytes().filter(|b| *b == b'.').count() <= 1
}

fn is_date(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() == 10
        && bytes.iter().enumerate().all(|(n, b)| if n == 4 || n == 7 { *b == b'-' } else { b.is_ascii_digit() })
}

/// `2020-01-02T03:04:05.123456789Z` as `2020-01-02 03:04:05.123456789+00`, without trailing zeros.
fn timestamp(out: &mut String, text: &str) -> Option<()> {
    let at: Instant = text.parse().ok()?;
    let text = at.to_string();
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let time = match time.split_once('.') {
        Some(_) => time.trim_end_matches('0').trim_end_matches('.'),
        None => time,
    };
    write!(out, "{date} {time}+00").ok()
}

/// PostgreSQL's array literal.
fn array(out: &mut String, of: &Kind, list: &[SpannerValue]) -> Option<()> {
    out.push('{');
    let mut element = String::new();
    for (n, value) in list.iter().enumerate() {
        if n > 0 {
            out.push(',');
        }
        if value.is_null() {
            out.push_str("NULL");
            continue;
        }
        element.clear();
        canonical(&mut element, of, value)?;
        let plain = !element.is_empty()
            && !element.eq_ignore_ascii_case("null")
            && !element.contains(|c: char| matches!(c, '{' | '}' | ',' | '"' | '\\') || c.is_ascii_whitespace());
        if plain {
            out.push_str(&element);
            continue;
        }
        out.push('"');
        for c in element.chars() {
            if matches!(c, '"' | '\\') {
                out.push('\\');
            }
            out.push(c);
        }
        out.push('"');
    }
    out.push('}');
    Some(())
}

/// ISO 8601 (`P1Y2M-3DT4H5M6.5S`) as PostgreSQL's `1 year 2 mons -3 days 04:05:06.5`.
fn interval(out: &mut String, text: &str) -> Option<()> {
    let (date, time) = match text.strip_prefix('P')?.split_once('T') {
        Some((date, time)) => (date, time),
        None => (text.strip_prefix('P')?, ""),
    };
    let start = out.len();
    let mut negative = false;
    let units = fields(date, "YMD")?;
    let months = units[0].checked_mul(12)?.checked_add(units[1])?;
    for (value, one, many) in [(months / 12, "year", "years"), (months % 12, "mon", "mons"), (units[2], "day", "days")]
    {
        if value == 0 {
            continue;
        }
        let space = if out.len() > start { " " } else { "" };
        let plus = if negative && value > 0 { "+" } else { "" };
        write!(out, "{space}{plus}{value} {}", if value == 1 { one } else { many }).ok()?;
        negative = value < 0;
    }
    let (whole, nanos) = seconds(time)?;
    if whole != 0 || nanos != 0 || out.len() == start {
        let space = if out.len() > start { " " } else { "" };
        let below = whole < 0 || nanos < 0;
        let sign = if below {
            "-"
        } else if negative {
            "+"
        } else {
            ""
        };
        let (whole, nanos) = (whole.unsigned_abs(), nanos.unsigned_abs());
        write!(out, "{space}{sign}{:02}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60).ok()?;
        if nanos > 0 {
            write!(out, ".{}", format!("{nanos:09}").trim_end_matches('0')).ok()?;
        }
    }
    Some(())
}

/// The numbers before each unit.
fn fields(text: &str, units: &str) -> Option<[i64; 3]> {
    let mut found = [0; 3];
    let mut rest = text;
    for (n, unit) in units.chars().enumerate() {
        if let Some((value, after)) = rest.split_once(unit) {
            found[n] = value.parse().ok()?;
            rest = after;
        }
    }
    rest.is_empty().then_some(found)
}

/// The seconds of `4H5M6.5S`, and the nanoseconds beyond, both of one sign.
fn seconds(text: &str) -> Option<(i64, i64)> {
    let (before, last) = match text.strip_suffix('S') {
        Some(text) => text.split_at(text.rfind(['H', 'M']).map_or(0, |at| at + 1)),
        None => (text, ""),
    };
    let hours = fields(before, "HM")?;
    let (whole, fraction) = last.split_once('.').unwrap_or((last, ""));
    let below = whole.starts_with('-');
    let whole: i64 = if whole.is_empty() || whole == "-" { 0 } else { whole.parse().ok()? };
    let fraction: i64 = if fraction.is_empty() { 0 } else { format!("{fraction:0<9}").get(..9)?.parse().ok()? };
    let fraction = if below { -fraction } else { fraction };
    let total = hours[0].checked_mul(3600)?.checked_add(hours[1].checked_mul(60)?)?.checked_add(whole)?;
    Some(match (total, fraction) {
        (t, f) if t > 0 && f < 0 => (t - 1, f + 1_000_000_000),
        (t, f) if t < 0 && f > 0 => (t + 1, f - 1_000_000_000),
        same => same,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(kind: &Kind, value: SpannerValue) -> Option<String> {
        let mut out = String::new();
        canonical(&mut out, kind, &value).map(|()| out)
    }

    #[test]
    fn types_are_read_in_both_dialects() {
        let cases = [
            ("INT64", "int64"),
            ("bigint", "int64"),
            ("STRING(10)", "text(10)"),
            ("STRING(MAX)", "text"),
            ("character varying(10)", "text(10)"),
            ("character varying", "text"),
            ("NUMERIC", "decimal(38,9)"),
            ("numeric", "decimal"),
            ("ARRAY<STRING(10)>", "text[]"),
            ("bigint[]", "int64[]"),
            ("character varying[]", "text[]"),
            ("timestamp with time zone", "timestamptz"),
            ("spanner.commit_timestamp", "timestamptz"),
            ("BYTES(MAX)", "bytes"),
            ("double precision", "float64"),
            ("PROTO<a.b.C>", "bytes"),
        ];
        for (native, expected) in cases {
            let (kind, limit) = kind_of_column(native).unwrap();
            assert_eq!(data_type(&kind, limit).to_string(), expected, "{native}");
        }
        assert!(kind_of_column("TOKENLIST").is_err());
    }

    #[test]
    fn values_have_their_canonical_text() {
        let cases = [
            (Kind::Timestamp, "2020-01-02T03:04:05Z".into(), "2020-01-02 03:04:05+00"),
            (Kind::Timestamp, "2020-01-02T03:04:05.120Z".into(), "2020-01-02 03:04:05.12+00"),
            (Kind::Timestamp, "2020-01-02T03:04:05.123456789Z".into(), "2020-01-02 03:04:05.123456789+00"),
            (Kind::Timestamp, "2020-01-02T03:04:05.000001+00:00".into(), "2020-01-02 03:04:05.000001+00"),
            (Kind::Float32, SpannerValue::Number(0.10000000149011612), "0.1"),
            (Kind::Float32, "-Infinity".into(), "-Infinity"),
            (Kind::Numeric, "-1.5".into(), "-1.5"),
            (Kind::PgNumeric, "NaN".into(), "NaN"),
            (Kind::Uuid, "F81D4FAE-7DEC-11D0-A765-00A0C91E6BF6".into(), "f81d4fae-7dec-11d0-a765-00a0c91e6bf6"),
            (Kind::Interval, "P1Y2M-3DT4H5M6.5S".into(), "1 year 2 mons -3 days +04:05:06.5"),
            (Kind::Interval, "PT-0.000001S".into(), "-00:00:00.000001"),
            (Kind::Interval, "P0Y".into(), "00:00:00"),
            (Kind::Interval, "P-1Y".into(), "-1 years"),
        ];
        for (kind, value, expected) in cases {
            assert_eq!(text(&kind, value).as_deref(), Some(expected));
        }
        let strings = Kind::Array(Box::new(Kind::String));
        let list = ["a", "", "null", "x y", "q\"\\"].map(SpannerValue::from).to_vec();
        let list = list.into_iter().chain([SpannerValue::Null]).collect();
        assert_eq!(text(&strings, SpannerValue::List(list)).unwrap(), r#"{a,"","null","x y","q\"\\",NULL}"#);
        let bytes = Kind::Array(Box::new(Kind::Bytes));
        assert_eq!(text(&bytes, SpannerValue::List(vec!["AP8=".into()])).unwrap(), r#"{"\\x00ff"}"#);
        let floats = Kind::Array(Box::new(Kind::Float64));
        assert_eq!(
            text(&floats, SpannerValue::List(vec![SpannerValue::Number(1.5), "NaN".into()])).unwrap(),
            "{1.5,NaN}"
        );
    }

    #[test]
    fn what_is_no_value_of_its_type_is_refused() {
        let cases = [
            (Kind::Int64, "1.5".into()),
            (Kind::Int64, true.into()),
            (Kind::Date, "today".into()),
            (Kind::Timestamp, "never".into()),
            (Kind::Numeric, "NaN".into()),
            (Kind::Interval, "1 day".into()),
            (Kind::Interval, "P1X".into()),
            (Kind::Bytes, "!".into()),
            (Kind::Array(Box::new(Kind::Int64)), "1".into()),
            (Kind::Bool, "t".into()),
        ];
        for (kind, value) in cases {
            assert_eq!(text(&kind, value), None, "{kind:?}");
        }
    }
}
