//! What becomes of each type.
//!
//! | source | GoogleSQL | PostgreSQL dialect |
//! |---|---|---|
//! | bool | `BOOL` | `boolean` |
//! | int16, int32, int64 | `INT64` | `bigint` |
//! | uint64 | `NUMERIC` | `numeric` |
//! | float32, float64 | `FLOAT32`, `FLOAT64` (in a key always 64 bits) | `real`, `double precision` |
//! | decimal that fits (29 digits before the point, 9 after), or without limits | `NUMERIC` | `numeric` |
//! | decimal that does not fit | `STRING(MAX)` | `numeric` |
//! | text, char | `STRING(n)`, `STRING(MAX)` | `varchar(n)`, `varchar` |
//! | bytes | `BYTES(MAX)` | `bytea` |
//! | date | `DATE` | `date` |
//! | timestamp, timestamptz | `TIMESTAMP`, taken as UTC | `timestamptz` |
//! | `jsonb` | `JSON` | `jsonb` |
//! | array of these | `ARRAY<..>` | `..[]` |
//! | everything else, `json` with its spaces among it | `STRING(MAX)`: its canonical text | `varchar` |
//!
//! A key cannot be JSON or an array, and in the PostgreSQL dialect no `numeric`: it is text there.

use anabranch_core::{Column, Contract, DataType, Fidelity};

use super::codec::Codec;
use super::dialect::Dialect;
use super::native::Native;
use crate::client::Kind;

/// Characters that a STRING holds at most (Spanner's documentation, "Quotas and limits").
const LONGEST: u32 = 2_621_440;
/// Digits of a NUMERIC before the point, and after it.
const NUMERIC: (u32, u32) = (29, 9);
/// Digits of a numeric of the PostgreSQL dialect before the point, and after it.
const PG_NUMERIC: (u32, u32) = (131_072, 16_383);

type Route = (Fidelity, Codec, &'static str);

const TEXT: &str = "its canonical text";
const YEARS: &str = "refuses BC, years beyond 9999, infinity and -infinity";
const UTC: &str = "taken as UTC; refuses BC, years beyond 9999, infinity and -infinity";
const DIGITS: &str = "refuses more than 29 digits before the point, or 9 after it, NaN and infinities";
const PG_DIGITS: &str = "refuses infinities";
const LONGER: &str = "refuses longer values";

/// How a column of the source is stored in a column of this type; `None` if it cannot be.
pub(crate) fn route(source: &Column, native: &Native) -> Option<Route> {
    of_types(&source.data_type, &source.native, native)
}

fn of_types(source: &DataType, source_native: &str, native: &Native) -> Option<Route> {
    use Fidelity::{Exact, Lossy, Widening};
    Some(match (source, &native.kind) {
        (DataType::Bool, Kind::Bool) => (Exact, Codec::Bool, ""),
        (DataType::Bool, Kind::Int64) => (Widening, Codec::Int, "1 and 0"),
        (DataType::Int64, Kind::Int64) => (Exact, Codec::Int, ""),
        (DataType::Int16 | DataType::Int32, Kind::Int64) => (Widening, Codec::Int, ""),
        (DataType::UInt64, Kind::Int64) => (Exact, Codec::Int, "refuses values above 9223372036854775807"),
        (DataType::Int16 | DataType::Int32, Kind::Float64) => (Widening, Codec::Float { single: false }, ""),
        (DataType::Float32, Kind::Float32) => (Exact, Codec::Float { single: true }, ""),
        (DataType::Float32, Kind::Float64) => (Widening, Codec::Float { single: false }, ""),
        (DataType::Float64, Kind::Float64) => (Exact, Codec::Float { single: false }, ""),
        (DataType::Float64, Kind::Float32) => (Lossy, Codec::Float { single: true }, "rounded to 24 bits"),
        (DataType::Decimal { .. }, Kind::Float64) => (Lossy, Codec::Float { single: false }, "rounded to 53 bits"),
        (DataType::Int16 | DataType::Int32 | DataType::Int64 | DataType::UInt64, Kind::Numeric) => {
            (Widening, numeric(false), "")
        }
        (DataType::Int16 | DataType::Int32 | DataType::Int64 | DataType::UInt64, Kind::PgNumeric) => {
            (Widening, numeric(true), "")
        }
        (&DataType::Decimal { precision: Some(p), scale }, Kind::Numeric) => {
            let scale = scale.unwrap_or(0);
            let fits = fits(p, scale);
            let fidelity = if fits && (p, scale) != (38, 9) { Widening } else { Exact };
            (fidelity, numeric(false), if fits { "refuses NaN" } else { DIGITS })
        }
        (DataType::Decimal { .. }, Kind::Numeric) => (Exact, numeric(false), DIGITS),
        (DataType::Decimal { precision: None, .. }, Kind::PgNumeric) => (Exact, numeric(true), PG_DIGITS),
        (DataType::Decimal { .. }, Kind::PgNumeric) => (Widening, numeric(true), PG_DIGITS),
        (DataType::Decimal { .. }, Kind::Int64) => (Exact, Codec::Int, "refuses fractions, NaN, and more than 64 bits"),
        (DataType::Bytes, Kind::Bytes) => {
            (Exact, Codec::Bytes { max: native.limit }, if native.limit.is_some() { LONGER } else { "" })
        }
        (DataType::Date, Kind::Date) => (Exact, Codec::Date, YEARS),
        (DataType::TimestampTz, Kind::Timestamp) => (Exact, Codec::Timestamp, YEARS),
        (DataType::Timestamp, Kind::Timestamp) => (Widening, Codec::Timestamp, UTC),
        (DataType::Uuid, Kind::Uuid) => (Exact, Codec::Text { max: None }, ""),
        (DataType::Json, Kind::Json | Kind::PgJsonb) if source_native.eq_ignore_ascii_case("jsonb") => {
            (Exact, Codec::Text { max: None }, "keys in another order; refuses numbers that it would round")
        }
        (DataType::Json, Kind::Json | Kind::PgJsonb) => {
            (Lossy, Codec::Text { max: None }, "stored parsed: spaces, the order of keys and repeated keys are lost")
        }
        (DataType::Array(of), Kind::Array(there)) => {
            let there = Native { kind: (**there).clone(), limit: None };
            let (fidelity, codec, _) = of_types(of, source_native.trim_end_matches("[]"), &there)?;
            (
                fidelity,
                Codec::Array(Box::new(codec)),
                "refuses more than one dimension, and what its elements cannot be",
            )
        }
        (_, Kind::String) => text(source, native.limit)?,
        _ => return None,
    })
}

fn numeric(pg: bool) -> Codec {
    let (whole, scale) = if pg { PG_NUMERIC } else { NUMERIC };
    Codec::Decimal { whole, scale, nan: pg }
}

fn fits(precision: u32, scale: i32) -> bool {
    (0..=NUMERIC.1 as i32).contains(&scale) && i64::from(precision) - i64::from(scale) <= i64::from(NUMERIC.0)
}

/// Anything but bytes can be stored as its canonical text.
fn text(source: &DataType, limit: Option<u32>) -> Option<Route> {
    let longest = match source {
        DataType::Bytes => return None,
        DataType::Text { max_chars } => *max_chars,
        DataType::Char { chars } => Some(*chars),
        DataType::Uuid => Some(36),
        _ => None,
    };
    let of_text = matches!(source, DataType::Text { .. } | DataType::Char { .. });
    let cut = limit.is_some_and(|limit| longest.is_none_or(|l| l > limit));
    let fidelity = if cut || longest == limit && of_text { Fidelity::Exact } else { Fidelity::Widening };
    let note = match (cut, of_text) {
        (true, _) => LONGER,
        (false, true) => "",
        (false, false) => TEXT,
    };
    Some((fidelity, Codec::Text { max: limit }, note))
}

/// The type of a column in a table that the sink creates.
pub(crate) fn created(column: &Column, key: bool, dialect: Dialect) -> String {
    let native = of_type(&column.data_type, &column.native, dialect, key);
    native.unwrap_or_else(|| string(None, dialect))
}

fn of_type(source: &DataType, native: &str, dialect: Dialect, key: bool) -> Option<String> {
    let google = dialect == Dialect::Google;
    let name = |google_name: &str, postgres_name: &str| if google { google_name } else { postgres_name }.to_owned();
    let number = || (google || !key).then(|| name("NUMERIC", "numeric"));
    match source {
        DataType::Bool => Some(name("BOOL", "boolean")),
        DataType::Int16 | DataType::Int32 | DataType::Int64 => Some(name("INT64", "bigint")),
        DataType::UInt64 => number(),
        DataType::Float32 if !key => Some(name("FLOAT32", "real")),
        DataType::Float32 | DataType::Float64 => Some(name("FLOAT64", "double precision")),
        &DataType::Decimal { precision: Some(p), scale } if google && !fits(p, scale.unwrap_or(0)) => None,
        DataType::Decimal { .. } => number(),
        DataType::Text { max_chars } => Some(string(*max_chars, dialect)),
        DataType::Char { chars } => Some(string(Some(*chars), dialect)),
        DataType::Uuid => Some(string(Some(36), dialect)),
        DataType::Bytes => Some(name("BYTES(MAX)", "bytea")),
        DataType::Date => Some(name("DATE", "date")),
        DataType::Timestamp | DataType::TimestampTz => Some(name("TIMESTAMP", "timestamptz")),
        DataType::Json if native.eq_ignore_ascii_case("jsonb") && !key => Some(name("JSON", "jsonb")),
        DataType::Array(of) if !key && !matches!(**of, DataType::Array(_)) => {
            let element = of_type(of, native.trim_end_matches("[]"), dialect, false)?;
            Some(if google { format!("ARRAY<{element}>") } else { format!("{element}[]") })
        }
        _ => None,
    }
}

fn string(limit: Option<u32>, dialect: Dialect) -> String {
    match (limit.filter(|n| *n <= LONGEST), dialect) {
        (Some(n), Dialect::Google) => format!("STRING({n})"),
        (None, Dialect::Google) => "STRING(MAX)".to_owned(),
        (Some(n), Dialect::Postgres) => format!("varchar({n})"),
        (None, Dialect::Postgres) => "varchar".to_owned(),
    }
}

/// A type of DDL as the information schema writes it.
fn described(native: &str) -> String {
    let element = native.strip_suffix("[]");
    let (base, array) = element.map_or((native, ""), |e| (e, "[]"));
    let base = base.replace("timestamptz", "timestamp with time zone");
    let base = if base.starts_with("varchar") { base.replacen("varchar", "character varying", 1) } else { base };
    format!("{base}{array}")
}

/// What becomes of a column in a column of this native type.
pub(crate) fn contract(column: &Column, native: &str) -> Contract {
    let parsed = Native::parse(&described(native));
    match parsed.and_then(|parsed| route(column, &parsed)) {
        Some((fidelity, _, note)) => Contract::new(native.to_owned(), fidelity).note(note),
        None => Contract::new(native.to_owned(), Fidelity::Unsupported),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn created_types_keep_every_value_or_refuse_it() {
        let jsonb = Column { native: "jsonb".to_owned(), ..Column::new("j", DataType::Json) };
        let decimal = |p, s| DataType::Decimal { precision: Some(p), scale: Some(s) };
        let mut columns = vec![(jsonb, "JSON", "jsonb")];
        for (data_type, google, postgres) in [
            (DataType::Bool, "BOOL", "boolean"),
            (DataType::UInt64, "NUMERIC", "numeric"),
            (DataType::Float32, "FLOAT32", "real"),
            (decimal(10, 2), "NUMERIC", "numeric"),
            (decimal(40, 2), "STRING(MAX)", "numeric"),
            (decimal(10, 10), "STRING(MAX)", "numeric"),
            (DataType::Text { max_chars: Some(20) }, "STRING(20)", "varchar(20)"),
            (DataType::Text { max_chars: None }, "STRING(MAX)", "varchar"),
            (DataType::Timestamp, "TIMESTAMP", "timestamptz"),
            (DataType::Time, "STRING(MAX)", "varchar"),
            (DataType::Json, "STRING(MAX)", "varchar"),
            (DataType::Bytes, "BYTES(MAX)", "bytea"),
            (DataType::Array(Box::new(DataType::Text { max_chars: None })), "ARRAY<STRING(MAX)>", "varchar[]"),
            (DataType::Array(Box::new(DataType::Interval)), "STRING(MAX)", "varchar"),
        ] {
            columns.push((Column::new("c", data_type), google, postgres));
        }
        for (column, google, postgres) in columns {
            for (dialect, expected) in [(Dialect::Google, google), (Dialect::Postgres, postgres)] {
                let native = created(&column, false, dialect);
                assert_eq!(native, expected, "{}", column.data_type);
                let contract = contract(&column, &native);
                assert!(contract.fidelity <= Fidelity::Widening, "{} in {native}", column.data_type);
            }
        }
    }

    #[test]
    fn what_would_be_lost_is_said() {
        let fidelity = |data_type, native: &str| contract(&Column::new("c", data_type), native).fidelity;
        assert_eq!(fidelity(DataType::Json, "JSON"), Fidelity::Lossy);
        assert_eq!(fidelity(DataType::Float64, "FLOAT32"), Fidelity::Lossy);
        assert_eq!(fidelity(DataType::Bytes, "STRING(MAX)"), Fidelity::Unsupported);
        assert_eq!(fidelity(DataType::Date, "TIMESTAMP"), Fidelity::Unsupported);
        assert_eq!(fidelity(DataType::Int64, "TOKENLIST"), Fidelity::Unsupported);
    }
}
