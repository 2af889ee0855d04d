//! The logical types that connectors translate to and from, and the canonical text of each.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A logical column type.
///
/// Each names the *canonical text* in which a source may give its values as
/// [`ValueRef::Text`](super::ValueRef::Text). The canonical text is what PostgreSQL prints with
/// `DateStyle=ISO`, `IntervalStyle=postgres`, `TimeZone=UTC`, `bytea_output=hex`,
/// `extra_float_digits=1` (its manual, chapter 8).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DataType {
    /// `t` or `f`.
    Bool,
    /// Decimal digits, 16 bits signed.
    Int16,
    /// Decimal digits, 32 bits signed.
    Int32,
    /// Decimal digits, 64 bits signed.
    Int64,
    /// Decimal digits, 64 bits unsigned.
    UInt64,
    /// Shortest text that reads back to the same 32 bits; `NaN`, `Infinity`, `-Infinity`.
    Float32,
    /// Shortest text that reads back to the same 64 bits; `NaN`, `Infinity`, `-Infinity`.
    Float64,
    /// Decimal digits with a point; `NaN`, `Infinity`, `-Infinity` where the source has them.
    Decimal {
        /// Total digits. `None`: unbounded.
        precision: Option<u32>,
        /// Digits after the point. `None`: as the value has.
        scale: Option<i32>,
    },
    /// Text of any length, or up to `max_chars` characters.
    Text {
        /// Limit in characters.
        max_chars: Option<u32>,
    },
    /// Blank-padded text of exactly `chars` characters.
    Char {
        /// Length in characters.
        chars: u32,
    },
    /// Bytes. The text form is `\x` and hexadecimal digits.
    Bytes,
    /// `YYYY-MM-DD`, with ` BC` after it before year 1, or `infinity`, `-infinity`.
    Date,
    /// `HH:MM:SS[.ffffff]`; `24:00:00` is possible.
    Time,
    /// `HH:MM:SS[.ffffff]+HH[:MM[:SS]]`.
    TimeTz,
    /// `YYYY-MM-DD HH:MM:SS[.ffffff]`, ` BC`, `infinity`, `-infinity`; without a time zone.
    Timestamp,
    /// As [`DataType::Timestamp`] with `+00` after the seconds: an instant, in UTC.
    TimestampTz,
    /// PostgreSQL's `postgres` interval style: `1 year 2 mons -3 days 04:05:06.7`.
    Interval,
    /// 8-4-4-4-12 lower-case hexadecimal digits.
    Uuid,
    /// JSON text.
    Json,
    /// `0` and `1`.
    Bit {
        /// Length in bits, the limit if `varying`. `None`: unbounded.
        length: Option<u32>,
        /// Whether shorter values are possible.
        varying: bool,
    },
    /// One of the labels.
    Enum {
        /// The labels, where the source knows them.
        labels: Vec<String>,
    },
    /// PostgreSQL's array literal, `{a,NULL,"b c",{..}}`.
    Array(
        /// The type of the elements.
        Box<DataType>,
    ),
    /// A type of the source's own, by its name there; the text is what the source prints.
    Other(
        /// The source's name of the type, with its schema unless it is built in.
        String,
    ),
}

impl DataType {
    /// Whether two values are equal exactly when their canonical texts are. Where this is false
    /// (a collation that ignores case, a composite), changes are applied one by one in order.
    pub fn text_equality(&self) -> bool {
        match self {
            Self::Array(of) => {
                of.text_equality() && !matches!(**of, Self::Decimal { .. } | Self::Float32 | Self::Float64)
            }
            Self::Interval | Self::TimeTz | Self::Json | Self::Other(_) => false,
            _ => true,
        }
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool => f.write_str("bool"),
            Self::Int16 => f.write_str("int16"),
            Self::Int32 => f.write_str("int32"),
            Self::Int64 => f.write_str("int64"),
            Self::UInt64 => f.write_str("uint64"),
            Self::Float32 => f.write_str("float32"),
            Self::Float64 => f.write_str("float64"),
            Self::Decimal { precision: Some(p), scale } => write!(f, "decimal({p},{})", scale.unwrap_or(0)),
            Self::Decimal { .. } => f.write_str("decimal"),
            Self::Text { max_chars: Some(n) } => write!(f, "text({n})"),
            Self::Text { .. } => f.write_str("text"),
            Self::Char { chars } => write!(f, "char({chars})"),
            Self::Bytes => f.write_str("bytes"),
            Self::Date => f.write_str("date"),
            Self::Time => f.write_str("time"),
            Self::TimeTz => f.write_str("timetz"),
            Self::Timestamp => f.write_str("timestamp"),
            Self::TimestampTz => f.write_str("timestamptz"),
            Self::Interval => f.write_str("interval"),
            Self::Uuid => f.write_str("uuid"),
            Self::Json => f.write_str("json"),
            Self::Bit { length: Some(n), varying } => write!(f, "{}({n})", if *varying { "varbit" } else { "bit" }),
            Self::Bit { .. } => f.write_str("varbit"),
            Self::Enum { .. } => f.write_str("enum"),
            Self::Array(of) => write!(f, "{of}[]"),
            Self::Other(name) => f.write_str(name),
        }
    }
}
