//! Values: borrowed from a batch, or owned.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A value of a row, borrowed from its batch.
///
/// `Text` is the value of a text column, or the canonical text of any other type as
/// [`DataType`](super::DataType) defines it. A source may give a typed variant instead where it has
/// one at hand; a sink accepts both.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ValueRef<'a> {
    /// The source did not send this column (unchanged TOAST, an omitted column): keep what is there.
    Unchanged,
    /// SQL NULL.
    Null,
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A floating-point number, NaN and infinities included.
    Float(f64),
    /// Text, or the canonical text of another type.
    Text(&'a str),
    /// Bytes.
    Bytes(&'a [u8]),
}

/// The owned twin of [`ValueRef`], for keys, transforms and dead letters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Value {
    /// See [`ValueRef::Unchanged`].
    Unchanged,
    /// See [`ValueRef::Null`].
    Null,
    /// See [`ValueRef::Bool`].
    Bool(bool),
    /// See [`ValueRef::Int`].
    Int(i64),
    /// See [`ValueRef::Float`]. Stored as text, for JSON has no NaN.
    Float(#[serde(with = "float_text")] f64),
    /// See [`ValueRef::Text`].
    Text(String),
    /// See [`ValueRef::Bytes`]. Stored as hexadecimal text.
    Bytes(#[serde(with = "super::position::hex_bytes")] Bytes),
}

impl ValueRef<'_> {
    /// An owned copy.
    pub fn to_owned(self) -> Value {
        match self {
            Self::Unchanged => Value::Unchanged,
            Self::Null => Value::Null,
            Self::Bool(v) => Value::Bool(v),
            Self::Int(v) => Value::Int(v),
            Self::Float(v) => Value::Float(v),
            Self::Text(v) => Value::Text(v.to_owned()),
            Self::Bytes(v) => Value::Bytes(Bytes::copy_from_slice(v)),
        }
    }

    /// True for [`ValueRef::Unchanged`].
    pub fn is_unchanged(self) -> bool {
        matches!(self, Self::Unchanged)
    }

    /// True for [`ValueRef::Null`].
    pub fn is_null(self) -> bool {
        matches!(self, Self::Null)
    }
}

impl Value {
    /// A borrowed view.
    pub fn as_ref(&self) -> ValueRef<'_> {
        match self {
            Self::Unchanged => ValueRef::Unchanged,
            Self::Null => ValueRef::Null,
            Self::Bool(v) => ValueRef::Bool(*v),
            Self::Int(v) => ValueRef::Int(*v),
            Self::Float(v) => ValueRef::Float(*v),
            Self::Text(v) => ValueRef::Text(v),
            Self::Bytes(v) => ValueRef::Bytes(v),
        }
    }
}

impl From<&str> for Value {
    fn from(v: &str) -> Self {
        Self::Text(v.to_owned())
    }
}

impl From<i64> for Value {
    fn from(v: i64) -> Self {
        Self::Int(v)
    }
}

mod float_text {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(v: &f64, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&v.to_string())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<f64, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}
