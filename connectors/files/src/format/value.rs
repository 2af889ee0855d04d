//! A value of a row, as JSON has it.

use std::borrow::Cow;
use std::fmt;

use anabranch_core::ValueRef;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::hex;

/// A value to write.
pub(super) struct Written<'a>(pub(super) ValueRef<'a>);

impl Serialize for Written<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            ValueRef::Null => s.serialize_unit(),
            ValueRef::Bool(v) => s.serialize_bool(v),
            ValueRef::Int(v) => s.serialize_i64(v),
            ValueRef::Text(v) => s.serialize_str(v),
            // As text: JSON has no NaN, and its readers round.
            ValueRef::Float(v) => one(s, "float", &v.to_string()),
            ValueRef::Bytes(v) => one(s, "bytes", &hex::encode(v)),
            ValueRef::Unchanged => one(s, "unchanged", &true),
        }
    }
}

fn one<S: Serializer>(s: S, key: &str, value: &(impl Serialize + ?Sized)) -> Result<S::Ok, S::Error> {
    let mut map = s.serialize_map(Some(1))?;
    map.serialize_entry(key, value)?;
    map.end()
}

/// A value that was read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Cell<'a> {
    Unchanged,
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Cow<'a, str>),
    Bytes(Vec<u8>),
}

impl Cell<'_> {
    pub(crate) fn as_ref(&self) -> ValueRef<'_> {
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

impl<'de: 'a, 'a> Deserialize<'de> for Cell<'a> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(CellVisitor)
    }
}

struct CellVisitor;

impl<'de> Visitor<'de> for CellVisitor {
    type Value = Cell<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("null, a truth value, a whole number, a text, or {\"float\"|\"bytes\"|\"unchanged\": ..}")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Cell::Null)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Self::Value, E> {
        Ok(Cell::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Self::Value, E> {
        Ok(Cell::Int(v))
    }

    fn visit_u64<E: de::Error>(self, v: u64) -> Result<Self::Value, E> {
        i64::try_from(v).map(Cell::Int).map_err(|_| E::custom("a number above 64 bits signed must be a text"))
    }

    fn visit_borrowed_str<E>(self, v: &'de str) -> Result<Self::Value, E> {
        Ok(Cell::Text(Cow::Borrowed(v)))
    }

    fn visit_str<E>(self, v: &str) -> Result<Self::Value, E> {
        Ok(Cell::Text(Cow::Owned(v.to_owned())))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let wrong = || de::Error::custom("expected one of the keys float, bytes, unchanged");
        let key: Cow<'de, str> = map.next_key()?.ok_or_else(wrong)?;
        let cell = match &*key {
            "float" => {
                let text: Cow<'de, str> = map.next_value()?;
                Cell::Float(text.parse().map_err(|_| de::Error::custom("expected the text of a number"))?)
            }
            "bytes" => {
                let text: Cow<'de, str> = map.next_value()?;
                Cell::Bytes(hex::decode(&text).ok_or_else(|| de::Error::custom("expected hexadecimal digits"))?)
            }
            "unchanged" => map.next_value::<bool>().map(|_| Cell::Unchanged)?,
            _ => return Err(wrong()),
        };
        match map.next_key::<Cow<'de, str>>()? {
            None => Ok(cell),
            Some(_) => Err(wrong()),
        }
    }
}
