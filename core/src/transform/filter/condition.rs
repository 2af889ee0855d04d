//! A condition on one column.

use std::cmp::Ordering;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::model::{DataType, TableSchema, ValueRef};
use crate::transform::TablePattern;

/// A condition on the rows of some tables.
///
/// Numbers are compared as numbers, exactly, `NaN` above all others as PostgreSQL has it;
/// everything else by the bytes of its canonical text, which is the order of time for dates and
/// timestamps after Christ. NULL meets no condition but `is_null`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// The tables that it is about.
    pub tables: Vec<TablePattern>,
    /// The column.
    pub column: String,
    /// How it compares.
    pub op: Comparison,
    /// With what; not for `in`, `is_null` and `not_null`.
    #[serde(default)]
    pub value: Option<Literal>,
    /// With which of several, for `in`.
    #[serde(default)]
    pub values: Vec<Literal>,
}

/// How a value compares with another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Comparison {
    /// Equal.
    Eq,
    /// Not equal.
    Ne,
    /// Less.
    Lt,
    /// Less or equal.
    Le,
    /// Greater.
    Gt,
    /// Greater or equal.
    Ge,
    /// Equal to one of several.
    In,
    /// NULL.
    IsNull,
    /// Not NULL.
    NotNull,
}

/// A value in a configuration.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Literal {
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number.
    Float(f64),
    /// Text: the canonical text of the column's type.
    Text(String),
}

impl From<&str> for Literal {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<i64> for Literal {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<bool> for Literal {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl Condition {
    fn key(&self) -> String {
        format!("transform.filter.rows.{}", self.column)
    }

    pub(super) fn check(&self) -> Result<()> {
        let (value, values) = (self.value.is_some(), !self.values.is_empty());
        let problem = match self.op {
            Comparison::In if value || !values => "`in` needs `values`, and no `value`",
            Comparison::IsNull | Comparison::NotNull if value || values => "takes no `value`",
            Comparison::In | Comparison::IsNull | Comparison::NotNull => return Ok(()),
            _ if !value || values => "needs one `value`",
            _ => return Ok(()),
        };
        Err(Error::config(self.key(), problem))
    }
}

/// A condition on the column of one schema.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) column: usize,
    op: Comparison,
    kind: Kind,
    /// Canonical texts.
    values: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Decimal,
    Float,
    Text,
}

pub(super) fn resolve(condition: &Condition, schema: &TableSchema) -> Result<Resolved> {
    condition.check()?;
    let missing = || Error::config(condition.key(), format!("{} has no such column", schema.name));
    let column = schema.index_of(&condition.column).ok_or_else(missing)?;
    let data_type = &schema.columns[column].data_type;
    let kind = match data_type {
        DataType::Int16 | DataType::Int32 | DataType::Int64 | DataType::UInt64 | DataType::Decimal { .. } => {
            Kind::Decimal
        }
        DataType::Float32 | DataType::Float64 => Kind::Float,
        _ => Kind::Text,
    };
    let literal = |value: &Literal| {
        let text = match value {
            Literal::Bool(v) => if *v { "t" } else { "f" }.to_owned(),
            Literal::Int(v) => v.to_string(),
            Literal::Float(v) => v.to_string(),
            Literal::Text(v) => v.clone(),
        };
        let fits = match (kind, value) {
            (Kind::Text, Literal::Bool(_)) => *data_type == DataType::Bool,
            (Kind::Text, Literal::Text(v)) => *data_type != DataType::Bool || v == "t" || v == "f",
            (Kind::Text, _) => false,
            (Kind::Decimal, _) => Number::parse(&text).is_some(),
            (Kind::Float, _) => text.parse::<f64>().is_ok(),
        };
        let problem = || format!("{} is {data_type} in {}, and {value:?} is not", condition.column, schema.name);
        if fits { Ok(text) } else { Err(Error::config(condition.key(), problem())) }
    };
    let values = condition.value.iter().chain(&condition.values).map(literal).collect::<Result<_>>()?;
    Ok(Resolved { column, op: condition.op, kind, values })
}

impl Resolved {
    /// Whether a value, which was sent, meets the condition.
    pub(super) fn holds(&self, value: ValueRef<'_>) -> bool {
        let is = |wanted: fn(Ordering) -> bool| {
            self.values.iter().any(|other| self.compare(value, other).is_some_and(wanted))
        };
        match self.op {
            Comparison::IsNull => value.is_null(),
            Comparison::NotNull => !value.is_null(),
            _ if value.is_null() => false,
            Comparison::Eq | Comparison::In => is(Ordering::is_eq),
            Comparison::Ne => is(Ordering::is_ne),
            Comparison::Lt => is(Ordering::is_lt),
            Comparison::Le => is(Ordering::is_le),
            Comparison::Gt => is(Ordering::is_gt),
            Comparison::Ge => is(Ordering::is_ge),
        }
    }

    /// `None` for a value that is not of the column's type.
    fn compare(&self, value: ValueRef<'_>, other: &str) -> Option<Ordering> {
        let owned;
        let text = match value {
            ValueRef::Unchanged | ValueRef::Null => return None,
            ValueRef::Text(v) => v,
            ValueRef::Bool(v) => {
                if v {
                    "t"
                } else {
                    "f"
                }
            }
            ValueRef::Int(v) => {
                owned = v.to_string();
                &owned
            }
            ValueRef::Float(v) => {
                owned = v.to_string();
                &owned
            }
            ValueRef::Bytes(v) => {
                owned = v.iter().fold("\\x".to_owned(), |text, byte| text + &format!("{byte:02x}"));
                &owned
            }
        };
        match self.kind {
            Kind::Text => Some(text.as_bytes().cmp(other.as_bytes())),
            Kind::Decimal => Some(Number::parse(text)?.cmp(&Number::parse(other)?)),
            Kind::Float => {
                let (a, b): (f64, f64) = (text.parse().ok()?, other.parse().ok()?);
                Some(a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan())))
            }
        }
    }
}

/// A decimal number of any length, taken apart. `-0` is `0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number<'a> {
    Finite { negative: bool, whole: &'a str, fraction: &'a str },
    Infinite { negative: bool },
    Nan,
}

impl<'a> Number<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (negative, digits) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        match digits {
            "NaN" => return Some(Self::Nan),
            "Infinity" | "inf" => return Some(Self::Infinite { negative }),
            _ => {}
        }
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let is_number = !(whole.is_empty() && fraction.is_empty())
            && whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit());
        let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
        let negative = negative && !(whole.is_empty() && fraction.is_empty());
        is_number.then_some(Self::Finite { negative, whole, fraction })
    }
}

impl Ord for Number<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        // Below all numbers, numbers, above all numbers, not a number.
        let class = |n: &Self| match n {
            Self::Infinite { negative: true } => 0,
            Self::Finite { negative: true, .. } => 1,
            Self::Finite { negative: false, .. } => 2,
            Self::Infinite { negative: false } => 3,
            Self::Nan => 4,
        };
        match (self, other) {
            (
                Self::Finite { negative, whole, fraction },
                Self::Finite { negative: other_negative, whole: other_whole, fraction: other_fraction },
            ) if negative == other_negative => {
                // Without leading zeros the longer whole is the greater; of fractions without trailing
                // zeros one that begins with the other is.
                let size = (whole.len(), whole, fraction).cmp(&(other_whole.len(), other_whole, other_fraction));
                if *negative { size.reverse() } else { size }
            }
            _ => class(self).cmp(&class(other)),
        }
    }
}

impl PartialOrd for Number<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_order() {
        let sorted = [
            "-Infinity",
            "-100000000000000000000",
            "-10",
            "-9.5",
            "-0.10",
            "-0.01",
            "0",
            "0.01",
            ".1",
            "0.11",
            "9",
            "10.0",
            "99999999999999999999.5",
            "100000000000000000000",
            "Infinity",
            "NaN",
        ];
        for (i, a) in sorted.iter().enumerate() {
            for (j, b) in sorted.iter().enumerate() {
                assert_eq!(Number::parse(a).unwrap().cmp(&Number::parse(b).unwrap()), i.cmp(&j), "{a} {b}");
            }
        }
        for (a, b) in [("-0", "0.00"), ("1.50", "1.5"), ("007", "7")] {
            assert!(Number::parse(a).unwrap().cmp(&Number::parse(b).unwrap()).is_eq(), "{a} {b}");
        }
        for not in ["", "-", ".", "1e5", "1.2.3", "0x1", "ten"] {
            assert_eq!(Number::parse(not), None, "{not}");
        }
    }

    #[test]
    fn null_meets_nothing_but_is_null() {
        let schema = crate::transform::testing::orders();
        let condition = |op, value: Option<i64>| Condition {
            tables: vec!["*".into()],
            column: "price".to_owned(),
            op,
            value: value.map(Literal::from),
            values: Vec::new(),
        };
        for (op, value, null, ten) in [
            (Comparison::Eq, Some(10), false, true),
            (Comparison::Ne, Some(10), false, false),
            (Comparison::Ge, Some(10), false, true),
            (Comparison::Gt, Some(9), false, true),
            (Comparison::Le, Some(9), false, false),
            (Comparison::IsNull, None, true, false),
            (Comparison::NotNull, None, false, true),
        ] {
            let resolved = resolve(&condition(op, value), &schema).unwrap();
            assert_eq!(resolved.holds(ValueRef::Null), null, "{op:?} null");
            assert_eq!(resolved.holds(ValueRef::Text("10.00")), ten, "{op:?} 10");
            assert_eq!(resolved.holds(ValueRef::Int(10)), ten, "{op:?} 10");
        }
        let text = Condition { value: Some("ten".into()), ..condition(Comparison::Eq, None) };
        for bad in [condition(Comparison::Eq, None), condition(Comparison::IsNull, Some(1)), text] {
            assert_eq!(resolve(&bad, &schema).unwrap_err().kind(), crate::ErrorKind::Config);
        }
    }
}
