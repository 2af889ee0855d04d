//! A statement with its parameters.

use serde::{Deserialize, Serialize};

/// SQL with parameters bound by name, never spliced: `@name` in GoogleSQL, `$1` (named `p1`) in the
/// PostgreSQL dialect.
#[derive(Debug, Clone, PartialEq)]
pub struct Statement {
    /// The text.
    pub sql: String,
    /// The parameters.
    pub params: Vec<Param>,
}

impl Statement {
    /// A statement without parameters.
    pub fn new(sql: impl Into<String>) -> Self {
        Self { sql: sql.into(), params: Vec::new() }
    }

    /// Binds a parameter.
    #[must_use]
    pub fn bind(mut self, name: impl Into<String>, kind: Kind, value: SpannerValue) -> Self {
        self.params.push(Param { name: name.into(), kind, value });
        self
    }
}

/// A parameter of a [`Statement`].
#[derive(Debug, Clone, PartialEq)]
pub struct Param {
    /// Its name, without `@`.
    pub name: String,
    /// Its type; [`Kind::Untyped`] lets Spanner infer it.
    pub kind: Kind,
    /// Its value.
    pub value: SpannerValue,
}

/// A type of Spanner.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are Spanner's")]
pub enum Kind {
    Untyped,
    Bool,
    Int64,
    Float32,
    Float64,
    Numeric,
    PgNumeric,
    String,
    Bytes,
    Date,
    Timestamp,
    Json,
    PgJsonb,
    PgOid,
    Uuid,
    Interval,
    /// By its full name.
    Proto(String),
    /// By its full name.
    Enum(String),
    Array(Box<Kind>),
}

/// A value as the protocol carries it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub enum SpannerValue {
    /// NULL.
    #[default]
    Null,
    /// BOOL.
    Bool(bool),
    /// FLOAT32 and FLOAT64, the finite ones; others are `NaN`, `Infinity`, `-Infinity` as text.
    Number(f64),
    /// Everything else that is no list: numbers in digits, bytes in base64, JSON as text.
    Text(String),
    /// ARRAY, and STRUCT by the places of its fields.
    List(Vec<SpannerValue>),
}

impl SpannerValue {
    /// The text, if it is one.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The elements, if it is a list.
    pub fn as_list(&self) -> Option<&[SpannerValue]> {
        match self {
            Self::List(list) => Some(list),
            _ => None,
        }
    }

    /// The truth value, if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// About how much memory it occupies beside itself.
    pub(crate) fn memory_size(&self) -> usize {
        size_of::<Self>()
            + match self {
                Self::Text(text) => text.len(),
                Self::List(list) => list.iter().map(Self::memory_size).sum(),
                _ => 0,
            }
    }

    /// Whether it is NULL.
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }
}

impl From<&str> for SpannerValue {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for SpannerValue {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<bool> for SpannerValue {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i64> for SpannerValue {
    fn from(value: i64) -> Self {
        Self::Text(value.to_string())
    }
}

impl From<f64> for SpannerValue {
    fn from(value: f64) -> Self {
        if value.is_finite() {
            Self::Number(value)
        } else if value.is_nan() {
            Self::Text("NaN".to_owned())
        } else {
            Self::Text(if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned())
        }
    }
}

impl<T: Into<SpannerValue>> From<Option<T>> for SpannerValue {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}
