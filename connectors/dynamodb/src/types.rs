//! Attributes as columns, and columns as attributes.
//!
//! | attribute | column, by itself | `native` | hazards |
//! |---|---|---|---|
//! | `S` | text | `S` | empty text is possible, except in keys |
//! | `N` | decimal without limits | `N` | 38 digits, 1E-130 to 9.99E125; never a float |
//! | `B` | bytes | `B` | |
//! | `BOOL` | bool | `BOOL` | |
//! | `SS`, `NS`, `BS` | array of text, decimal, bytes | `SS`, `NS`, `BS` | sorted; never empty |
//! | any one attribute | tagged JSON (`{"L":[..]}`) | `attribute` | loses nothing |
//! | any one attribute | plain JSON | `json` | sets, binary and NULL elements lose their type |
//! | the whole item | tagged JSON (`{"id":{"N":"1"},..}`) | `item` | loses nothing |
//! | the whole item | plain JSON | `document` | as above |
//!
//! The native name tells a DynamoDB sink what to make of a column that a DynamoDB source sent: an
//! `item` is the item again, byte for byte. A column of any other source goes by its logical type.
//! NULL and a missing attribute are one in a column; only `item` and `document` tell them apart.

use std::collections::HashMap;
use std::fmt::Write;

use anabranch_core::{Column, DataType, Error, Result, Value, ValueRef};
use aws_sdk_dynamodb::types::AttributeValue;
use aws_smithy_types::Blob;

use crate::decode::array::{self, ArrayWriter};
use crate::decode::attribute::{Attribute, View};
use crate::decode::document::{self, Form};
use crate::decode::{number, read};

/// An item.
pub type Item = HashMap<String, AttributeValue>;

/// The native name of a column with the whole item, as tagged JSON.
pub const ITEM: &str = "item";
/// The native name of a column with the whole item, as plain JSON.
pub const DOCUMENT: &str = "document";
/// The native name of a column with one attribute of any type, as tagged JSON.
pub const ATTRIBUTE: &str = "attribute";
/// The native name of a column with one attribute of any type, as plain JSON.
pub const JSON: &str = "json";

/// The item as tagged JSON, its attributes in the order of their names.
///
/// # Errors
/// [`Fatal`](anabranch_core::ErrorKind::Fatal) for a type of attribute that the SDK does not know.
pub fn item_to_json(item: &Item) -> Result<String> {
    let mut text = String::new();
    document::write_item(item, Form::Tagged, |_| true, &mut text).map_err(|e| Error::fatal(format!("an item {e}")))?;
    Ok(text)
}

/// The item of tagged JSON.
///
/// # Errors
/// [`Rejected`](anabranch_core::ErrorKind::Rejected) for anything else.
pub fn item_from_json(text: &str) -> Result<Item> {
    read::tagged_item(text).map_err(|e| Error::rejected("it is not an item as DynamoDB-JSON").because(e))
}

/// A column of this native type, as the table above has them; `None` for another name.
pub fn column(name: impl Into<String>, native: &str) -> Option<Column> {
    let text = || DataType::Text { max_chars: None };
    let decimal = || DataType::Decimal { precision: None, scale: None };
    let data_type = match native {
        "S" => text(),
        "N" => decimal(),
        "B" => DataType::Bytes,
        "BOOL" => DataType::Bool,
        "SS" => DataType::Array(Box::new(text())),
        "NS" => DataType::Array(Box::new(decimal())),
        "BS" => DataType::Array(Box::new(DataType::Bytes)),
        ITEM | DOCUMENT | ATTRIBUTE | JSON => DataType::Json,
        _ => return None,
    };
    Some(Column { native: native.to_owned(), ..Column::new(name, data_type) })
}

/// Whether a column holds the whole item, as a DynamoDB source sends it.
pub fn is_whole_item(column: &Column) -> bool {
    column.data_type == DataType::Json && (column.native == ITEM || column.native == DOCUMENT)
}

/// The value of `attribute` in `column`, whose native type [`column`] made, or whose logical type
/// was declared: `int16`, `int32`, `int64`, `float64`, `decimal(p,s)` for `N`, and text for `S`.
/// `scratch` holds the text while it is in use.
///
/// `Err` tells what is wrong, without the column's name: the attribute has another type, or does
/// not fit.
pub(crate) fn value_of<'a, A: Attribute>(
    column: &Column,
    attribute: &'a A,
    scratch: &'a mut String,
) -> Result<ValueRef<'a>, String> {
    scratch.clear();
    if column.data_type == DataType::Json {
        let form = if column.native == ATTRIBUTE { Form::Tagged } else { Form::Plain };
        document::write(attribute, form, scratch)?;
        return Ok(ValueRef::Text(scratch));
    }
    let view = attribute.view();
    let other = |view: View<'_, A>| Err(format!("is {}, which does not go into {}", view.tag(), column.data_type));
    match (&column.data_type, view) {
        (_, View::Null) => Ok(ValueRef::Null),
        (DataType::Bool, View::Bool(v)) => Ok(ValueRef::Bool(v)),
        (DataType::Bytes, View::B(v)) => Ok(ValueRef::Bytes(v)),
        (DataType::Text { .. } | DataType::Uuid | DataType::Date | DataType::Enum { .. }, View::S(v)) => {
            Ok(ValueRef::Text(v))
        }
        (DataType::Decimal { .. }, View::N(v)) if number::is_canonical(v) => Ok(ValueRef::Text(v)),
        (DataType::Decimal { .. }, View::N(v)) => {
            scratch.push_str(&number::canonical(v).ok_or_else(|| format!("is {v:?}, not a number"))?);
            Ok(ValueRef::Text(scratch))
        }
        (DataType::Int16 | DataType::Int32 | DataType::Int64, View::N(v)) => {
            let value = number::canonical(v).and_then(|v| v.parse::<i64>().ok());
            let fits = |v: &i64| match column.data_type {
                DataType::Int16 => i16::try_from(*v).is_ok(),
                DataType::Int32 => i32::try_from(*v).is_ok(),
                _ => true,
            };
            let value = value.filter(fits).ok_or_else(|| format!("is {v}, which does not fit {}", column.data_type))?;
            Ok(ValueRef::Int(value))
        }
        (DataType::Float64, View::N(v)) => {
            Ok(ValueRef::Float(v.parse().map_err(|_| format!("is {v:?}, not a number"))?))
        }
        (DataType::Array(of), view) => match (&**of, view) {
            (DataType::Text { .. }, View::Ss(all)) => Ok(set(all.iter().map(AsRef::as_ref), scratch)),
            (DataType::Decimal { .. }, View::Ns(all)) => {
                let all: Option<Vec<String>> = all.iter().map(|n| number::canonical(n.as_ref())).collect();
                let all = all.ok_or("holds a number that is none")?;
                Ok(set(all.iter().map(String::as_str), scratch))
            }
            (DataType::Bytes, View::Bs(all)) => {
                let all: Vec<String> = all.iter().map(|b| hex(b.as_ref())).collect();
                Ok(set(all.iter().map(String::as_str), scratch))
            }
            (_, view) => other(view),
        },
        (_, view) => other(view),
    }
}

/// A set as an array literal, sorted.
fn set<'a, 'b>(all: impl Iterator<Item = &'b str>, out: &'a mut String) -> ValueRef<'a> {
    let mut all: Vec<&str> = all.collect();
    all.sort_unstable();
    let mut writer = ArrayWriter::begin(out);
    all.into_iter().for_each(|e| writer.push(e));
    writer.end();
    ValueRef::Text(out)
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 + bytes.len() * 2);
    text.push_str("\\x");
    for b in bytes {
        // Writing to a String cannot fail.
        let _ = write!(text, "{b:02x}");
    }
    text
}

/// The attribute that holds `value` of `column`; `None` for a column that was not sent.
///
/// | logical type | attribute |
/// |---|---|
/// | bool | `BOOL` |
/// | whole numbers, floats, decimals | `N`; `S` if it is no number or has more than 38 digits |
/// | bytes | `B` |
/// | json of the native types `attribute` | the attribute that it was |
/// | other json | `M`, `L` and so on: numbers keep their digits, nothing is a set |
/// | arrays of the native types `SS`, `NS`, `BS` | the set that it was; an empty one is NULL, for no set is empty |
/// | other arrays | `L` |
/// | timestamps | `S`, ISO 8601, which sorts: `2026-01-31T23:59:59.5Z` |
/// | everything else | `S` |
/// | NULL | `NULL` |
///
/// # Errors
/// [`Rejected`](anabranch_core::ErrorKind::Rejected) for a text that is not of the column's type.
pub fn attribute_of(column: &Column, value: ValueRef<'_>) -> Result<Option<AttributeValue>> {
    let bad = |why: &dyn std::fmt::Display| Error::rejected(format!("the column {}: {why}", column.name));
    let attribute = match (&column.data_type, value) {
        (_, ValueRef::Unchanged) => return Ok(None),
        (_, ValueRef::Null) => AttributeValue::Null(true),
        (_, ValueRef::Bool(v)) => AttributeValue::Bool(v),
        (DataType::Bool, ValueRef::Text(v)) => AttributeValue::Bool(matches!(v, "t" | "true" | "1")),
        (DataType::Bool, ValueRef::Int(v)) => AttributeValue::Bool(v != 0),
        (_, ValueRef::Bytes(v)) => AttributeValue::B(Blob::new(v)),
        (DataType::Bytes, ValueRef::Text(v)) => {
            AttributeValue::B(Blob::new(unhex(v).ok_or_else(|| bad(&"not bytes"))?))
        }
        (_, ValueRef::Int(v)) => AttributeValue::N(v.to_string()),
        (_, ValueRef::Float(v)) => numeric(&v.to_string()),
        (data_type, ValueRef::Text(v)) if is_numeric(data_type) => numeric(v),
        (DataType::Json, ValueRef::Text(v)) => {
            let read = if column.native == ATTRIBUTE { read::tagged(v) } else { read::plain(v) };
            read.map_err(|e| bad(&e))?
        }
        (DataType::Array(of), ValueRef::Text(v)) => array_of(&column.native, of, v).map_err(|e| bad(&e))?,
        (DataType::Timestamp | DataType::TimestampTz, ValueRef::Text(v)) => AttributeValue::S(iso(v)),
        (_, ValueRef::Text(v)) => AttributeValue::S(v.to_owned()),
    };
    Ok(Some(attribute))
}

/// [`attribute_of`] for a value that is owned.
///
/// # Errors
/// As there.
pub fn attribute_of_owned(column: &Column, value: &Value) -> Result<Option<AttributeValue>> {
    attribute_of(column, value.as_ref())
}

/// Whether an attribute is `N` for values of this type, if the value fits.
pub fn is_numeric(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Int16
            | DataType::Int32
            | DataType::Int64
            | DataType::UInt64
            | DataType::Float32
            | DataType::Float64
            | DataType::Decimal { .. }
    )
}

/// `N` if DynamoDB can hold it, else `S`.
fn numeric(text: &str) -> AttributeValue {
    match (number::fits(text), number::canonical(text)) {
        (Some(true), Some(canonical)) => AttributeValue::N(canonical),
        _ => AttributeValue::S(text.to_owned()),
    }
}

fn array_of(native: &str, of: &DataType, text: &str) -> Result<AttributeValue, String> {
    let all = array::elements(text)?;
    if matches!(native, "SS" | "NS" | "BS") {
        let all: Option<Vec<String>> = all.into_iter().collect();
        let all = all.ok_or("a set holds no NULL")?;
        return Ok(match native {
            _ if all.is_empty() => AttributeValue::Null(true),
            "SS" => AttributeValue::Ss(all),
            "NS" => AttributeValue::Ns(all),
            _ => {
                let all: Option<Vec<Blob>> = all.iter().map(|b| unhex(b).map(Blob::new)).collect();
                AttributeValue::Bs(all.ok_or("an element is not bytes")?)
            }
        });
    }
    let element = Column::new("element", of.clone());
    let one = |e: Option<String>| match e {
        None => Ok(AttributeValue::Null(true)),
        Some(text) => attribute_of(&element, ValueRef::Text(&text))
            .map(|a| a.unwrap_or(AttributeValue::Null(true)))
            .map_err(|e| e.report()),
    };
    Ok(AttributeValue::L(all.into_iter().map(one).collect::<Result<_, _>>()?))
}

/// `2026-01-31 23:59:59.5+00` as `2026-01-31T23:59:59.5Z`; what has no such form (`infinity`) as it is.
fn iso(text: &str) -> String {
    let Some((date, time)) = text.split_once(' ').filter(|(d, t)| d.contains('-') && t.contains(':')) else {
        return text.to_owned();
    };
    match time.strip_suffix("+00") {
        Some(time) => format!("{date}T{time}Z"),
        None if time.ends_with("BC") => text.to_owned(),
        None => format!("{date}T{time}"),
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("\\x")?.as_bytes();
    let digit = |b: u8| (b as char).to_digit(16).map(|d| d as u8);
    let pairs = digits.chunks(2);
    pairs.map(|p| Some(digit(p[0])? << 4 | digit(*p.get(1)?)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn back(native: &str, attribute: AttributeValue) {
        let column = column("c", native).unwrap();
        let mut scratch = String::new();
        let value = value_of(&column, &attribute, &mut scratch).unwrap().to_owned();
        assert_eq!(attribute_of_owned(&column, &value).unwrap(), Some(attribute), "{native}: {value:?}");
    }

    #[test]
    fn every_type_comes_back() {
        let s = |v: &str| AttributeValue::S(v.to_owned());
        back("S", s(""));
        back("S", s("it's \"ä\" 🦀"));
        back("N", AttributeValue::N("12345678901234567890123456789012345678".to_owned()));
        back("N", AttributeValue::N("-0.5".to_owned()));
        back("B", AttributeValue::B(Blob::new([0, 255])));
        back("BOOL", AttributeValue::Bool(false));
        back("S", AttributeValue::Null(true));
        back("SS", AttributeValue::Ss(vec!["a b".to_owned(), "null".to_owned(), "{".to_owned()]));
        back("NS", AttributeValue::Ns(vec!["1.5".to_owned(), "2".to_owned()]));
        back("BS", AttributeValue::Bs(vec![Blob::new([1]), Blob::new([2, 3])]));
        let map = AttributeValue::M(HashMap::from([("b".to_owned(), AttributeValue::B(Blob::new([1])))]));
        back(ATTRIBUTE, AttributeValue::L(vec![map, AttributeValue::Ns(vec!["1".to_owned()])]));
        back(JSON, AttributeValue::L(vec![s("x"), AttributeValue::N("1.5".to_owned()), AttributeValue::Null(true)]));
    }

    #[test]
    fn sql_values_become_attributes() {
        let decimal = DataType::Decimal { precision: None, scale: None };
        let nines = "9".repeat(39);
        for (data_type, text, expected) in [
            (DataType::TimestampTz, "2026-01-31 23:59:59.5+00", AttributeValue::S("2026-01-31T23:59:59.5Z".to_owned())),
            (DataType::Timestamp, "infinity", AttributeValue::S("infinity".to_owned())),
            (decimal.clone(), "1.10", AttributeValue::N("1.1".to_owned())),
            (decimal.clone(), "NaN", AttributeValue::S("NaN".to_owned())),
            (decimal, &nines, AttributeValue::S(nines.clone())),
            (DataType::Bool, "t", AttributeValue::Bool(true)),
            (DataType::Bytes, "\\x00ff", AttributeValue::B(Blob::new([0, 255]))),
            (
                DataType::Array(Box::new(DataType::Int32)),
                "{1,NULL}",
                AttributeValue::L(vec![AttributeValue::N("1".to_owned()), AttributeValue::Null(true)]),
            ),
        ] {
            let column = Column::new("c", data_type);
            assert_eq!(attribute_of(&column, ValueRef::Text(text)).unwrap(), Some(expected), "{text}");
        }
        let bad = attribute_of(&Column::new("c", DataType::Json), ValueRef::Text("{")).expect_err("not JSON");
        assert_eq!(bad.kind(), anabranch_core::ErrorKind::Rejected);
        assert_eq!(attribute_of(&Column::new("c", DataType::Json), ValueRef::Unchanged).unwrap(), None);
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let column = Column::new("c", DataType::Int16);
        let mut scratch = String::new();
        let told = |attribute: &AttributeValue, scratch: &mut String| {
            value_of(&column, attribute, scratch).map(ValueRef::to_owned)
        };
        assert!(told(&AttributeValue::N("40000".to_owned()), &mut scratch).unwrap_err().contains("int16"));
        assert!(told(&AttributeValue::N("1.5".to_owned()), &mut scratch).is_err());
        assert!(told(&AttributeValue::S("x".to_owned()), &mut scratch).unwrap_err().contains("is S"));
    }
}
