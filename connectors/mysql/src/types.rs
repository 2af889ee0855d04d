//! How each logical type is stored: the contract, and the encoding that keeps it.

use anabranch_core::{Column, Contract, DataType, Fidelity};

use crate::native::{Family, LONG, Native};

/// How the values of a column are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// 1 and 0.
    Bool,
    /// Digits; the server checks the range.
    Int,
    /// 64 bits. `single`: the source's values have 32.
    Double {
        single: bool,
    },
    /// 32 bits.
    Float,
    /// Digits, at most `whole` of them before the point, and after it at most `scale` that are not 0:
    /// the server would round those, and a literal beyond 65 digits is not what it says.
    Decimal {
        whole: u32,
        scale: u32,
    },
    /// One of these labels: the server would take `1` for the first of them, and `A` for `a`.
    Label {
        labels: Vec<String>,
    },
    /// Canonical text, up to so many characters and bytes: the server would cut blanks off in silence.
    Text {
        chars: u32,
        bytes: u64,
        trim: bool,
    },
    /// Bytes, between these lengths. `hex`: text is hexadecimal digits after `\x`, else it is the bytes.
    Bytes {
        min: u64,
        max: u64,
        hex: bool,
    },
    Date,
    /// Time of day, with its digits after the second.
    Time {
        digits: u32,
    },
    /// Date and time, with the digits after the second.
    DateTime {
        digits: u32,
    },
    /// `0` and `1` as a number, at most so many.
    Bits {
        length: u32,
    },
    /// A UUID as 16 bytes.
    UuidBytes,
}

type Route = (Fidelity, Encoding, &'static str);

const ANY_TEXT: Encoding = Encoding::Text { chars: u32::MAX, bytes: u64::MAX, trim: false };
const YEARS: &str = "refuses BC, years beyond 9999, infinity and -infinity";
const YEARS_UTC: &str = "in UTC; refuses BC, years beyond 9999, infinity and -infinity";
const FINITE: &str = "refuses NaN and infinities; -0 as the equal 0";
const OUT_OF_RANGE: &str = "refuses values out of the target's range";
const CUT: &str = "further digits of the second are cut off; refuses BC, years beyond 9999 and infinities";

/// How a column of the source is stored in a column of this type; `None` if it cannot be.
pub(crate) fn route(source: &DataType, native: &Native) -> Option<Route> {
    use Family as F;
    let (fidelity, encoding, note) = match (source, &native.family) {
        (DataType::Bool, F::Int { .. }) => (Fidelity::Widening, Encoding::Bool, "1 and 0"),
        (DataType::Bool, F::Bit(n)) => {
            (if *n == 1 { Fidelity::Exact } else { Fidelity::Widening }, Encoding::Bool, "1 and 0")
        }
        (DataType::Int16 | DataType::Int32 | DataType::Int64 | DataType::UInt64, _) => whole_number(source, native)?,
        (DataType::Float32 | DataType::Float64 | DataType::Decimal { .. }, _) => number(source, native)?,
        (DataType::Bytes, _) => bytes(native)?,
        (DataType::Uuid, F::Uuid) => (Fidelity::Exact, ANY_TEXT, ""),
        (DataType::Uuid, F::Binary(16) | F::VarBinary(16)) => (Fidelity::Exact, Encoding::UuidBytes, "as 16 bytes"),
        (DataType::Date, F::Date) => (Fidelity::Exact, Encoding::Date, YEARS),
        (DataType::Date, F::DateTime(_)) => {
            (Fidelity::Widening, Encoding::Date, "as midnight; refuses BC, years beyond 9999 and infinities")
        }
        (DataType::Time, F::Time(6)) => (Fidelity::Exact, Encoding::Time { digits: 6 }, ""),
        (DataType::Time, F::Time(n)) => {
            (Fidelity::Lossy, Encoding::Time { digits: *n }, "further digits of the second are cut off")
        }
        (DataType::Timestamp | DataType::TimestampTz, _) => timestamp(source, native)?,
        (DataType::Json, F::Json) => {
            (Fidelity::Lossy, ANY_TEXT, "stored parsed: numbers beyond 64 bits, repeated keys and spaces are lost")
        }
        (DataType::Bit { varying: false, length: Some(n) }, F::Bit(m)) if n == m => {
            (Fidelity::Exact, Encoding::Bits { length: *m }, "")
        }
        (DataType::Bit { varying: false, length: Some(n) }, F::Bit(m)) if n < m => {
            (Fidelity::Widening, Encoding::Bits { length: *m }, "comes back with leading zeros")
        }
        (DataType::Bit { varying: false, length: Some(1) }, F::Int { .. }) => {
            (Fidelity::Widening, Encoding::Bits { length: 1 }, "1 and 0")
        }
        (DataType::Enum { labels }, F::Enum(there)) => {
            let all = !labels.is_empty() && labels.iter().all(|l| there.contains(l));
            let note = if all { "" } else { "refuses labels that the target's enum lacks" };
            (Fidelity::Exact, Encoding::Label { labels: there.clone() }, note)
        }
        (_, _) => text(source, native)?,
    };
    Some((fidelity, encoding, note))
}

fn whole_number(source: &DataType, native: &Native) -> Option<Route> {
    let (from, from_unsigned) = match source {
        DataType::Int16 => (2, false),
        DataType::Int32 => (4, false),
        DataType::Int64 => (8, false),
        _ => (8, true),
    };
    let digits = match from {
        2 => 5,
        4 => 10,
        _ => 19 + u32::from(from_unsigned),
    };
    Some(match &native.family {
        &Family::Int { bytes, unsigned } if unsigned == from_unsigned && bytes >= from => {
            (if bytes == from { Fidelity::Exact } else { Fidelity::Widening }, Encoding::Int, "")
        }
        Family::Int { .. } => (Fidelity::Exact, Encoding::Int, OUT_OF_RANGE),
        &Family::Decimal { precision, scale, unsigned } => {
            let fits = precision - scale.min(precision) >= digits && (!unsigned || from_unsigned);
            let fidelity = if fits { Fidelity::Widening } else { Fidelity::Exact };
            (fidelity, Encoding::Int, if fits { "" } else { OUT_OF_RANGE })
        }
        Family::Double if from < 8 => (Fidelity::Widening, Encoding::Int, ""),
        Family::Double => (Fidelity::Lossy, Encoding::Int, "rounded beyond 53 bits"),
        _ => text(source, native)?,
    })
}

fn number(source: &DataType, native: &Native) -> Option<Route> {
    let float = matches!(source, DataType::Float32 | DataType::Float64);
    Some(match (&native.family, source) {
        (Family::Double, DataType::Float32) => (Fidelity::Widening, Encoding::Double { single: true }, FINITE),
        (Family::Double, DataType::Float64) => (Fidelity::Exact, Encoding::Double { single: false }, FINITE),
        (Family::Float, DataType::Float32) => (
            Fidelity::Exact,
            Encoding::Float,
            "refuses NaN and infinities; -0 as the equal 0; the server prints 6 digits of it, unless cast to DOUBLE",
        ),
        (Family::Float, _) => (Fidelity::Lossy, Encoding::Float, "rounded to 24 bits"),
        (Family::Double, _) => (Fidelity::Lossy, Encoding::Double { single: false }, "rounded to 53 bits"),
        (&Family::Decimal { precision, scale, unsigned }, &DataType::Decimal { precision: p, scale: s }) => {
            decimal_route((precision, scale, unsigned), p.map(|p| (p, s.unwrap_or(0))))
        }
        (&Family::Int { .. }, DataType::Decimal { .. }) => {
            // BIGINT UNSIGNED has 20 digits; the server checks the range.
            (
                Fidelity::Exact,
                Encoding::Decimal { whole: 20, scale: 0 },
                "refuses fractions, NaN and what is out of range",
            )
        }
        (Family::Decimal { .. } | Family::Int { .. }, _) if float => return None,
        _ => text(source, native)?,
    })
}

/// A decimal of the source, with its precision and scale if they are limited, in one of the target.
fn decimal_route((precision, scale, unsigned): (u32, u32, bool), source: Option<(u32, i32)>) -> Route {
    let whole = precision - scale.min(precision);
    let encoding = Encoding::Decimal { whole, scale };
    let Some((p, s)) = source else {
        let note = "refuses more digits than that, NaN and infinities; shown with all its decimals";
        return (Fidelity::Exact, encoding, note);
    };
    let fits = i64::from(scale) >= i64::from(s) && i64::from(whole) >= i64::from(p) - i64::from(s) && !unsigned;
    let same = precision == p && i64::from(scale) == i64::from(s);
    let fidelity = if fits && !same { Fidelity::Widening } else { Fidelity::Exact };
    (fidelity, encoding, if fits { "refuses NaN" } else { "refuses what does not fit, and NaN" })
}

fn bytes(native: &Native) -> Option<Route> {
    let route = |max: u64| {
        let note = if max >= LONG { "" } else { "refuses longer values" };
        (Fidelity::Exact, Encoding::Bytes { min: 0, max, hex: true }, note)
    };
    Some(match native.family {
        Family::Blob(max) => route(max),
        Family::VarBinary(max) => route(u64::from(max)),
        // A shorter value would be filled up with zero bytes.
        Family::Binary(n) => (
            Fidelity::Exact,
            Encoding::Bytes { min: u64::from(n), max: u64::from(n), hex: true },
            "refuses values of another length",
        ),
        _ => return None,
    })
}

fn timestamp(source: &DataType, native: &Native) -> Option<Route> {
    let zoned = *source == DataType::TimestampTz;
    Some(match native.family {
        Family::DateTime(digits) => match (digits, zoned) {
            (6, true) => (Fidelity::Exact, Encoding::DateTime { digits }, YEARS_UTC),
            (6, false) => (Fidelity::Exact, Encoding::DateTime { digits }, YEARS),
            _ => (Fidelity::Lossy, Encoding::DateTime { digits }, CUT),
        },
        Family::Timestamp(digits) => {
            let (fidelity, note) = match (digits, zoned) {
                (6, true) => (
                    Fidelity::Exact,
                    "refuses all but 1970-01-01 00:00:01 to 2038-01-19 03:14:07 UTC (MariaDB from 11.5: 2106)",
                ),
                (6, false) => (Fidelity::Exact, "taken as UTC; refuses all but 1970 to 2038 (MariaDB from 11.5: 2106)"),
                _ => (Fidelity::Lossy, CUT),
            };
            (fidelity, Encoding::DateTime { digits }, note)
        }
        _ => text(source, native)?,
    })
}

/// Anything can be stored as its canonical text, where that is long enough.
fn text(source: &DataType, native: &Native) -> Option<Route> {
    let limit = text_limit(source);
    let of_text = matches!(source, DataType::Text { .. } | DataType::Char { .. });
    // A character has 4 bytes at most.
    let fits_bytes = |max: u64| max >= LONG || limit.is_some_and(|n| u64::from(n) * 4 <= max);
    let (fits, encoding, full) = match native.family {
        Family::VarChar(n) => {
            let encoding = Encoding::Text { chars: n, bytes: u64::MAX, trim: false };
            (limit.is_some_and(|l| l <= n), encoding, limit == Some(n) && of_text)
        }
        Family::Char(n) => {
            // The target drops blanks at the end: of a blank-padded source they mean nothing.
            let keeps = keeps_blanks_in_char(source);
            let encoding = Encoding::Text { chars: n, bytes: u64::MAX, trim: true };
            (limit.is_some_and(|l| l <= n) && keeps, encoding, limit == Some(n))
        }
        Family::Text(max) => {
            (fits_bytes(max), Encoding::Text { chars: u32::MAX, bytes: max, trim: false }, limit.is_none())
        }
        Family::VarBinary(max) if of_text => {
            (fits_bytes(u64::from(max)), Encoding::Bytes { min: 0, max: max.into(), hex: false }, false)
        }
        Family::Blob(max) if of_text => (fits_bytes(max), Encoding::Bytes { min: 0, max, hex: false }, false),
        _ => return None,
    };
    let exact = full || !of_text && !matches!(source, DataType::Enum { .. });
    let limited = native.charset.is_some() && may_be_beyond_ascii(source);
    let charset = "refuses characters that the target's character set lacks";
    Some(match (fits, exact) {
        (false, _) if matches!(native.family, Family::Char(_)) && !keeps_blanks_in_char(source) => {
            (Fidelity::Lossy, encoding, "blanks at the end are lost; refuses longer values")
        }
        (false, _) if limited => {
            (Fidelity::Exact, encoding, "refuses longer values, and characters that the target's character set lacks")
        }
        (false, _) => (Fidelity::Exact, encoding, "refuses longer values"),
        (true, true) if limited => (Fidelity::Exact, encoding, charset),
        (true, false) if limited => (Fidelity::Widening, encoding, charset),
        (true, true) if of_text => (Fidelity::Exact, encoding, ""),
        (true, true) => (Fidelity::Exact, encoding, "as text"),
        (true, false) => (Fidelity::Widening, encoding, ""),
    })
}

/// Whether no text of this type ends with blanks that mean something: a CHAR of the target drops them.
fn keeps_blanks_in_char(source: &DataType) -> bool {
    !matches!(source, DataType::Text { .. } | DataType::Enum { .. } | DataType::Other(_) | DataType::Json)
}

fn may_be_beyond_ascii(source: &DataType) -> bool {
    matches!(
        source,
        DataType::Text { .. }
            | DataType::Char { .. }
            | DataType::Json
            | DataType::Enum { .. }
            | DataType::Array(_)
            | DataType::Other(_)
    )
}

/// The longest canonical text of a type, in characters, where there is one.
fn text_limit(source: &DataType) -> Option<u32> {
    Some(match source {
        DataType::Bool => 1,
        DataType::Int16 => 6,
        DataType::Int32 => 11,
        DataType::Int64 | DataType::UInt64 => 20,
        DataType::Float32 | DataType::Float64 => 25,
        // Sign, point, and a zero before it.
        DataType::Decimal { precision: Some(p), scale } => p + scale.unwrap_or(0).unsigned_abs() + 3,
        DataType::Text { max_chars } => return *max_chars,
        DataType::Char { chars } => *chars,
        DataType::Date => 13,
        DataType::Time => 15,
        DataType::TimeTz => 24,
        DataType::Timestamp => 29,
        DataType::TimestampTz => 32,
        // `-178000000 years -11 mons -2147483648 days -2562047788:00:54.775807`
        DataType::Interval => 80,
        DataType::Uuid => 36,
        DataType::Bit { length, .. } => return *length,
        DataType::Enum { labels } => labels.iter().map(|l| l.chars().count() as u32).max()?,
        DataType::Other(name) => match name.as_str() {
            "xid" | "cid" => 10,
            "xid8" => 20,
            "inet" | "cidr" => 50,
            "macaddr" | "macaddr8" => 23,
            "money" => 40,
            "pg_lsn" => 17,
            _ => return None,
        },
        _ => return None,
    })
}

/// Longest text kept in the row itself; longer ones become LONGTEXT, for a row holds 65,535 bytes.
const MAX_VARCHAR: u32 = 1024;

/// The type of a column that this sink creates.
pub(crate) fn native_of(source: &DataType, mariadb: bool) -> String {
    let varchar = |n: u32| if n <= MAX_VARCHAR { format!("varchar({})", n.max(1)) } else { "longtext".into() };
    match source {
        DataType::Bool => "tinyint(1)".into(),
        DataType::Int16 => "smallint".into(),
        DataType::Int32 => "int".into(),
        DataType::Int64 => "bigint".into(),
        DataType::UInt64 => "bigint unsigned".into(),
        // FLOAT is printed with 6 digits and compares badly with literals.
        DataType::Float32 | DataType::Float64 => "double".into(),
        DataType::Decimal { precision, scale } => decimal(*precision, *scale, mariadb),
        DataType::Bytes => "longblob".into(),
        DataType::Date => "date".into(),
        DataType::Time => "time(6)".into(),
        DataType::Timestamp | DataType::TimestampTz => "datetime(6)".into(),
        DataType::Uuid => "char(36)".into(),
        // MySQL's JSON changes numbers beyond 64 bits; MariaDB's is a text with a check that refuses
        // more than 31 levels. Both servers' JSON functions read a text.
        DataType::Json => "longtext".into(),
        DataType::Bit { length: Some(n @ 1..=64), varying: false } => format!("bit({n})"),
        // PostgreSQL's labels have 63 bytes at most, and more may be added.
        DataType::Enum { .. } => varchar(text_limit(source).unwrap_or(0).max(63)),
        _ => text_limit(source).map_or_else(|| "longtext".into(), varchar),
    }
}

/// The manual's limits: 65 digits, of them 30 decimals (MariaDB: 38).
fn decimal(precision: Option<u32>, scale: Option<i32>, mariadb: bool) -> String {
    let most = if mariadb { 38 } else { 30 };
    match precision {
        None => "decimal(65,30)".into(),
        Some(p) => {
            let scale = scale.unwrap_or(0);
            // A negative scale counts zeros before the point; a large one exceeds the precision.
            let digits = i64::from(p).max(i64::from(p) - i64::from(scale)).max(i64::from(scale)).clamp(1, 65);
            format!("decimal({digits},{})", scale.clamp(0, most))
        }
    }
}

/// The type of a key column that this sink creates, if `bytes` of the key are left for it.
pub(crate) fn key_native_of(source: &DataType, mariadb: bool, bytes: u32) -> String {
    let native = native_of(source, mariadb);
    match Native::parse(&native).family {
        Family::Text(_) | Family::Json => format!("varchar({})", text_limit(source).unwrap_or(u32::MAX).min(bytes / 4)),
        Family::VarChar(n) => format!("varchar({})", n.min(bytes / 4)),
        Family::Blob(_) => format!("varbinary({bytes})"),
        _ => native,
    }
}

/// Bytes of an InnoDB key that a column of this type takes; `None` if it can be made to fit.
pub(crate) fn fixed_key_bytes(source: &DataType, mariadb: bool) -> Option<u32> {
    match Native::parse(&native_of(source, mariadb)).family {
        Family::Text(_) | Family::Json | Family::Blob(_) => None,
        Family::VarChar(n) if n > 64 => None,
        Family::VarChar(n) | Family::Char(n) => Some(n * 4),
        Family::Decimal { precision, .. } => Some(precision / 2 + 2),
        _ => Some(9),
    }
}

/// See [`anabranch_core::TargetSchema::contract`].
pub(crate) fn contract(column: &Column, existing: Option<&Column>, mariadb: bool) -> Contract {
    let native = existing.map_or_else(|| native_of(&column.data_type, mariadb), |e| e.native.clone());
    let parsed = Native::parse(&native);
    let Some((fidelity, _, note)) = route(&column.data_type, &parsed) else {
        return Contract::new(native, Fidelity::Unsupported).note("the target's type cannot hold it");
    };
    let mut notes: Vec<String> = Vec::new();
    let mut fidelity = fidelity;
    if !note.is_empty() {
        notes.push(note.to_owned());
    }
    if let Some(collate) = parsed.collate.filter(|_| may_be_beyond_ascii(&column.data_type)) {
        fidelity = Fidelity::Lossy;
        notes.push(format!("a key under {collate}: rows that it does not tell apart are refused"));
    }
    Contract::new(native, fidelity).note(notes.join("; "))
}

/// The logical type that a target's column has.
pub(crate) fn data_type_of(native: &Native, name: &str) -> DataType {
    match &native.family {
        Family::Int { bytes: 1 | 2, .. } => DataType::Int16,
        Family::Int { bytes: 8, unsigned: true } => DataType::UInt64,
        Family::Int { bytes: 8, .. } | Family::Int { bytes: 4, unsigned: true } => DataType::Int64,
        Family::Int { .. } => DataType::Int32,
        &Family::Decimal { precision, scale, .. } => {
            DataType::Decimal { precision: Some(precision), scale: Some(scale as i32) }
        }
        Family::Float => DataType::Float32,
        Family::Double => DataType::Float64,
        &Family::Bit(n) => DataType::Bit { length: Some(n), varying: false },
        &Family::Char(n) => DataType::Char { chars: n },
        &Family::VarChar(n) => DataType::Text { max_chars: Some(n) },
        Family::Text(_) => DataType::Text { max_chars: None },
        Family::Binary(_) | Family::VarBinary(_) | Family::Blob(_) => DataType::Bytes,
        Family::Date => DataType::Date,
        Family::Time(_) => DataType::Time,
        Family::DateTime(_) => DataType::Timestamp,
        Family::Timestamp(_) => DataType::TimestampTz,
        Family::Json => DataType::Json,
        Family::Enum(labels) => DataType::Enum { labels: labels.clone() },
        Family::Uuid => DataType::Uuid,
        Family::Words | Family::Other => DataType::Other(name.to_owned()),
    }
}
