//! What becomes of each type in SQLite, and of each value.
//!
//! SQLite types values, not columns: a column has an *affinity*, taken from its declared type, by
//! which values are converted when they are stored (<https://www.sqlite.org/datatype3.html>). Text
//! that looks like a number becomes one in a numeric column: `'007'` turns into 7, a decimal into the
//! nearest double. In a REAL column `-0.0` comes back as 0. A bound NaN turns into NULL.
//!
//! Tables that anabranch creates are STRICT, and every value in them comes back as it was:
//!
//! | source | column | stored as |
//! |---|---|---|
//! | bool, int16, int32, int64 | `INTEGER` | a whole number; 0 and 1 |
//! | float32, float64 | `ANY`, which converts nothing | a double; NaN as the text `NaN` |
//! | decimal, uint64 | `TEXT` | its digits |
//! | text, char | `TEXT` | itself |
//! | bytes | `BLOB` | itself |
//! | everything else | `TEXT` | its canonical text |

use std::fmt;

use anabranch_core::{Column, Contract, DataType, Error, Fidelity, Result, ValueRef};
use rusqlite::types::{ToSqlOutput, Value as Owned, ValueRef as Borrowed};

/// A column's declared type. Its text form, `TEXT COLLATE NOCASE (strict)`, is what
/// [`Column::native`] holds, so that a contract can be judged from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Declared {
    name: String,
    strict: bool,
    /// The collation of a unique key that it is part of, if that is not BINARY.
    pub(crate) collation: Option<String>,
}

/// How a column converts what it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Affinity {
    Integer,
    Numeric,
    Real,
    Text,
    None,
}

/// How a value is bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codec {
    Bool,
    Int,
    /// Unsigned, into a numeric column: what does not fit is refused, for it would become a double.
    UIntNumber,
    Float {
        single: bool,
    },
    /// A float in a TEXT column, where SQLite's own conversion would round it.
    FloatText {
        single: bool,
    },
    Text,
    Bytes,
}

const STRICT: &str = " (strict)";
const COLLATE: &str = " COLLATE ";

impl Declared {
    pub(crate) fn new(name: String, strict: bool) -> Self {
        Self { name, strict, collation: None }
    }

    fn parse(native: &str) -> Self {
        let (rest, strict) = match native.strip_suffix(STRICT) {
            Some(rest) => (rest, true),
            None => (native, false),
        };
        match rest.rsplit_once(COLLATE) {
            Some((name, collation)) => Self { name: name.to_owned(), strict, collation: Some(collation.to_owned()) },
            None => Self { name: rest.to_owned(), strict, collation: None },
        }
    }

    /// The rules of chapter 3.1 of the manual page, in their order.
    fn affinity(&self) -> Affinity {
        let name = self.name.to_ascii_uppercase();
        let has = |part: &str| name.contains(part);
        if self.strict && name == "ANY" {
            Affinity::None
        } else if has("INT") {
            Affinity::Integer
        } else if has("CHAR") || has("CLOB") || has("TEXT") {
            Affinity::Text
        } else if has("BLOB") || name.is_empty() {
            Affinity::None
        } else if has("REAL") || has("FLOA") || has("DOUB") {
            Affinity::Real
        } else {
            Affinity::Numeric
        }
    }

    /// The nearest logical type, for people.
    pub(crate) fn data_type(&self) -> DataType {
        match self.affinity() {
            Affinity::Integer => DataType::Int64,
            Affinity::Numeric => DataType::Decimal { precision: None, scale: None },
            Affinity::Real => DataType::Float64,
            Affinity::Text => DataType::Text { max_chars: None },
            Affinity::None if self.name.to_ascii_uppercase().contains("BLOB") => DataType::Bytes,
            Affinity::None => DataType::Other("any".to_owned()),
        }
    }

    /// How values of this source type are bound for this column.
    pub(crate) fn codec(&self, source: &DataType) -> Codec {
        let affinity = self.affinity();
        let single = *source == DataType::Float32;
        match source {
            DataType::Bool => Codec::Bool,
            DataType::Int16 | DataType::Int32 | DataType::Int64 => Codec::Int,
            DataType::UInt64 if !matches!(affinity, Affinity::Text | Affinity::None) => Codec::UIntNumber,
            DataType::Float32 | DataType::Float64 if affinity == Affinity::Text => Codec::FloatText { single },
            DataType::Float32 | DataType::Float64 => Codec::Float { single },
            DataType::Bytes => Codec::Bytes,
            _ => Codec::Text,
        }
    }
}

impl fmt::Display for Declared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if let Some(collation) = &self.collation {
            write!(f, "{COLLATE}{collation}")?;
        }
        f.write_str(if self.strict { STRICT } else { "" })
    }
}

/// The type of a column in a table that anabranch creates.
pub(crate) fn created(source: &DataType) -> Contract {
    use DataType::*;
    match source {
        Bool => Contract::new("INTEGER", Fidelity::Widening).note("0 and 1"),
        Int16 | Int32 => Contract::new("INTEGER", Fidelity::Widening),
        Int64 => Contract::new("INTEGER", Fidelity::Exact),
        UInt64 => Contract::new("TEXT", Fidelity::Widening).note("its digits"),
        Float32 => Contract::new("ANY", Fidelity::Widening).note("NaN as the text NaN"),
        Float64 => Contract::new("ANY", Fidelity::Exact).note("NaN as the text NaN"),
        Decimal { precision: None, .. } => Contract::new("TEXT", Fidelity::Exact).note("its digits"),
        Decimal { .. } => Contract::new("TEXT", Fidelity::Widening).note("its digits"),
        Text { max_chars: None } => Contract::new("TEXT", Fidelity::Exact),
        Text { .. } | Char { .. } => Contract::new("TEXT", Fidelity::Widening),
        Bytes => Contract::new("BLOB", Fidelity::Exact),
        _ => Contract::new("TEXT", Fidelity::Widening).note("its canonical text"),
    }
}

/// What becomes of a source's column in one that is there.
pub(crate) fn contract(column: &Column, existing: &Column) -> Contract {
    let declared = Declared::parse(&existing.native);
    let (fidelity, note) = if declared.strict {
        declared.strict_fidelity(&column.data_type)
    } else {
        declared.fidelity(&column.data_type)
    };
    let keeps_text = matches!(declared.codec(&column.data_type), Codec::Text);
    let (fidelity, note) = match &declared.collation {
        Some(collation) if keeps_text && fidelity < Fidelity::Lossy => {
            (Fidelity::Lossy, format!("a unique key compares it by {collation}: different values count as one"))
        }
        // Stored as in a table of our own making.
        _ if note.is_empty() && fidelity < Fidelity::Lossy => (fidelity, created(&column.data_type).note),
        _ => (fidelity, note.to_owned()),
    };
    Contract::new(existing.native.clone(), fidelity).note(note)
}

impl Declared {
    fn fidelity(&self, source: &DataType) -> (Fidelity, &'static str) {
        use Affinity::*;
        use Fidelity::*;
        match (source, self.affinity()) {
            (DataType::Bytes, _) => (Exact, ""),
            (DataType::Bool, Text) => (Widening, "the text 0 and 1"),
            (DataType::Bool, _) => (Widening, "0 and 1"),
            (DataType::Int16 | DataType::Int32, Real) => (Widening, "as a double"),
            (DataType::Int16 | DataType::Int32, _) => (Widening, ""),
            (DataType::Int64, Real) => (Lossy, "a double holds whole numbers up to 2^53"),
            (DataType::Int64, _) => (Exact, ""),
            (DataType::UInt64, Integer | Numeric) => (Exact, "refuses values above 9223372036854775807"),
            (DataType::UInt64, Real) => (Lossy, "a double holds whole numbers up to 2^53"),
            (DataType::UInt64, _) => (Widening, "its digits"),
            (DataType::Float32, None) => (Widening, "NaN as the text NaN"),
            (DataType::Float64, None) => (Exact, "NaN as the text NaN"),
            (DataType::Float32 | DataType::Float64, Text) => (Widening, "its shortest exact text"),
            (DataType::Float32 | DataType::Float64, Real) => (Exact, "NaN as the text NaN; -0 as the equal 0"),
            (DataType::Float32 | DataType::Float64, Integer | Numeric) => {
                (Widening, "whole numbers without a point; NaN as the text NaN; -0 as the equal 0")
            }
            (DataType::Decimal { .. }, Integer | Numeric | Real) => {
                (Lossy, "becomes a double: about 15 digits, and 1.50 turns into 1.5")
            }
            (_, Integer | Numeric | Real) if looks_like_a_number(source) => {
                (Lossy, "text that looks like a number becomes one: '007' turns into 7")
            }
            (_, Integer | Numeric | Real) => (Widening, ""),
            // As in a table of our own making.
            (_, Text | None) => (created(source).fidelity, ""),
        }
    }

    fn strict_fidelity(&self, source: &DataType) -> (Fidelity, &'static str) {
        use Affinity::*;
        use Fidelity::*;
        let refused = (Unsupported, "a STRICT table refuses it");
        match (source, self.affinity()) {
            (_, None) if self.name.eq_ignore_ascii_case("ANY") => self.fidelity(source),
            (DataType::Bytes, None) => (Exact, ""),
            (DataType::Bytes, _) | (_, None) => refused,
            (DataType::Bool | DataType::Int16 | DataType::Int32 | DataType::Int64 | DataType::UInt64, _) => {
                self.fidelity(source)
            }
            (DataType::Float32 | DataType::Float64, Real) => (Exact, "refuses NaN; -0 as the equal 0"),
            (DataType::Float32 | DataType::Float64, Integer) => {
                (Exact, "refuses what is not a whole number of 64 bits; -0 as the equal 0")
            }
            (DataType::Decimal { .. }, Integer) => (Lossy, "refuses fractions; beyond 15 digits it may be rounded"),
            (DataType::Decimal { .. }, Real) => (Lossy, "becomes a double; refuses NaN"),
            (_, Integer | Real) => refused,
            (_, _) => self.fidelity(source),
        }
    }
}

/// Whether some canonical text of this type is a number to SQLite. Dates, times, intervals, UUIDs
/// and arrays never are: a character in each of them is not part of any number.
fn looks_like_a_number(source: &DataType) -> bool {
    use DataType::*;
    match source {
        Date | Time | TimeTz | Timestamp | TimestampTz | Interval | Uuid | Array(_) => false,
        Enum { labels } => labels.is_empty() || labels.iter().any(|l| l.trim().parse::<f64>().is_ok()),
        _ => true,
    }
}

impl Codec {
    /// The value as SQLite takes it.
    ///
    /// # Errors
    /// `Rejected`, naming the column, for what cannot be stored, and for a value that was not sent.
    pub(crate) fn encode<'a>(self, column: &str, value: ValueRef<'a>) -> Result<ToSqlOutput<'a>> {
        let encoded = match (value, self) {
            (ValueRef::Null, _) => Some(ToSqlOutput::Borrowed(Borrowed::Null)),
            (ValueRef::Unchanged, _) => {
                return Err(Error::rejected(format!("the source did not send the column {column}")));
            }
            (value, Self::Bool) => truth(value).map(|v| integer(i64::from(v))),
            (value, Self::Int) => whole(value).map(integer),
            (value, Self::UIntNumber) => whole(value).filter(|v| *v >= 0).map(integer),
            (ValueRef::Bytes(v), Self::Bytes) => Some(ToSqlOutput::Borrowed(Borrowed::Blob(v))),
            (ValueRef::Text(v), Self::Bytes) => unhex(v).map(|v| ToSqlOutput::Owned(Owned::Blob(v))),
            (value, Self::Float { single }) => float(value, single),
            (ValueRef::Float(v), Self::FloatText { single }) => Some(owned(float_text(v, single))),
            (value, Self::Text | Self::FloatText { .. }) => text(value),
            (_, Self::Bytes) => None,
        };
        encoded.ok_or_else(|| {
            let kind = kind_of(value);
            Error::rejected(format!("the column {column} cannot hold this value ({kind}) as its type asks for"))
        })
    }
}

fn integer(v: i64) -> ToSqlOutput<'static> {
    ToSqlOutput::Owned(Owned::Integer(v))
}

fn owned(text: String) -> ToSqlOutput<'static> {
    ToSqlOutput::Owned(Owned::Text(text))
}

fn truth(value: ValueRef<'_>) -> Option<bool> {
    match value {
        ValueRef::Bool(v) => Some(v),
        ValueRef::Int(0) | ValueRef::Text("f" | "false" | "0") => Some(false),
        ValueRef::Int(1) | ValueRef::Text("t" | "true" | "1") => Some(true),
        _ => None,
    }
}

fn whole(value: ValueRef<'_>) -> Option<i64> {
    match value {
        ValueRef::Int(v) => Some(v),
        ValueRef::Bool(v) => Some(i64::from(v)),
        ValueRef::Text(v) => v.parse().ok(),
        _ => None,
    }
}

/// The double that prints as the value's shortest text, so that a single and its text are stored alike.
fn float(value: ValueRef<'_>, single: bool) -> Option<ToSqlOutput<'static>> {
    let v = match value {
        ValueRef::Float(v) if single => (v as f32).to_string().parse().ok()?,
        ValueRef::Float(v) => v,
        ValueRef::Int(v) => v as f64,
        ValueRef::Text(v) => v.parse().ok()?,
        _ => return None,
    };
    Some(match f64::is_nan(v) {
        true => ToSqlOutput::Borrowed(Borrowed::Text(b"NaN")),
        false => ToSqlOutput::Owned(Owned::Real(v)),
    })
}

fn text(value: ValueRef<'_>) -> Option<ToSqlOutput<'_>> {
    Some(match value {
        ValueRef::Text(v) => ToSqlOutput::Borrowed(Borrowed::Text(v.as_bytes())),
        ValueRef::Int(v) => owned(v.to_string()),
        ValueRef::Bool(v) => ToSqlOutput::Borrowed(Borrowed::Text(if v { b"t" } else { b"f" })),
        ValueRef::Float(v) => owned(float_text(v, false)),
        _ => return None,
    })
}

fn float_text(v: f64, single: bool) -> String {
    match v {
        _ if v.is_nan() => "NaN".to_owned(),
        _ if v.is_infinite() => if v > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
        _ if single => (v as f32).to_string(),
        _ => v.to_string(),
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("\\x")?.as_bytes();
    let digit = |c: u8| char::from(c).to_digit(16).map(|v| v as u8);
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits.chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

fn kind_of(value: ValueRef<'_>) -> &'static str {
    match value {
        ValueRef::Unchanged => "not sent",
        ValueRef::Null => "NULL",
        ValueRef::Bool(_) => "a truth value",
        ValueRef::Int(_) => "a whole number",
        ValueRef::Float(_) => "a floating-point number",
        ValueRef::Text(_) => "text",
        ValueRef::Bytes(_) => "bytes",
    }
}
