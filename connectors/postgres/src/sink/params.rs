//! Parameters in text format: one text form fits every type, also those that the driver does not know.

use std::error::Error as StdError;
use std::fmt::Write as _;

use anabranch_core::ValueRef;
use bytes::BytesMut;
use tokio_postgres::types::{Format, IsNull, ToSql, Type};

/// A parameter that the server reads with the input function of whatever type the statement gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Text(pub(crate) Option<String>);

impl Text {
    pub(crate) fn of(value: impl ToString) -> Self {
        Self(Some(value.to_string()))
    }
}

impl ToSql for Text {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        match &self.0 {
            Some(text) => {
                out.extend_from_slice(text.as_bytes());
                Ok(IsNull::No)
            }
            None => Ok(IsNull::Yes),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    tokio_postgres::types::to_sql_checked!();
}

/// How a column wants its values written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// A number: truth values become 1 and 0.
    Number,
    /// A number for the truth values of the source, which come as text too.
    Truth,
    /// `bytea`: bytes become `\x` and hexadecimal digits.
    Bytea,
    /// Anything else: bytes are text if they are UTF-8.
    Other,
}

/// The text of `value`, in `scratch` unless it is text already. `None` for NULL and for values that were not sent.
pub(crate) fn text_of<'v>(value: ValueRef<'v>, encoding: Encoding, scratch: &'v mut String) -> Option<&'v str> {
    scratch.clear();
    match value {
        ValueRef::Null | ValueRef::Unchanged => return None,
        ValueRef::Text("t") if encoding == Encoding::Truth => scratch.push('1'),
        ValueRef::Text("f") if encoding == Encoding::Truth => scratch.push('0'),
        ValueRef::Text(text) => return Some(text),
        ValueRef::Bool(v) if matches!(encoding, Encoding::Number | Encoding::Truth) => {
            scratch.push(if v { '1' } else { '0' })
        }
        ValueRef::Bool(v) => scratch.push(if v { 't' } else { 'f' }),
        ValueRef::Int(v) => _ = write!(scratch, "{v}"),
        ValueRef::Float(v) => write_float(scratch, v),
        ValueRef::Bytes(v) => match std::str::from_utf8(v) {
            Ok(text) if encoding == Encoding::Other => return Some(text),
            _ => write_hex(scratch, v),
        },
    }
    Some(scratch)
}

fn write_float(out: &mut String, v: f64) {
    if v.is_infinite() {
        out.push_str(if v > 0.0 { "Infinity" } else { "-Infinity" });
    } else if v != 0.0 && !(1e-5..1e16).contains(&v.abs()) && !v.is_nan() {
        _ = write!(out, "{v:e}");
    } else {
        _ = write!(out, "{v}");
    }
}

fn write_hex(out: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.reserve(2 + bytes.len() * 2);
    out.push_str("\\x");
    for b in bytes {
        out.push(DIGITS[usize::from(b >> 4)] as char);
        out.push(DIGITS[usize::from(b & 15)] as char);
    }
}

/// A one-dimensional array literal under construction (PostgreSQL manual, 8.15.6).
#[derive(Debug)]
pub(crate) struct ArrayLiteral {
    text: String,
}

impl ArrayLiteral {
    pub(crate) fn new() -> Self {
        Self { text: String::from("{") }
    }

    /// Bytes so far.
    pub(crate) fn len(&self) -> usize {
        self.text.len()
    }

    /// Adds an element.
    pub(crate) fn push(&mut self, value: ValueRef<'_>, encoding: Encoding, scratch: &mut String) {
        let bare = matches!(value, ValueRef::Int(_) | ValueRef::Bool(_) | ValueRef::Float(_));
        self.push_text(text_of(value, encoding, scratch), bare);
    }

    /// Adds an element by its text; `bare` if it needs no quotes.
    pub(crate) fn push_text(&mut self, text: Option<&str>, bare: bool) {
        if self.text.len() > 1 {
            self.text.push(',');
        }
        match text {
            None => self.text.push_str("NULL"),
            Some(text) if bare => self.text.push_str(text),
            Some(text) => {
                self.text.push('"');
                let mut rest = text;
                while let Some(at) = rest.find(['"', '\\']) {
                    self.text.push_str(&rest[..at]);
                    self.text.push('\\');
                    self.text.push(char::from(rest.as_bytes()[at]));
                    rest = &rest[at + 1..];
                }
                self.text.push_str(rest);
                self.text.push('"');
            }
        }
    }

    /// The finished parameter.
    pub(crate) fn finish(mut self) -> Text {
        self.text.push('}');
        Text(Some(self.text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn literal(values: &[ValueRef<'_>], encoding: Encoding) -> String {
        let mut array = ArrayLiteral::new();
        let mut scratch = String::new();
        for v in values {
            array.push(*v, encoding, &mut scratch);
        }
        array.finish().0.unwrap()
    }

    #[test]
    fn elements_that_look_like_syntax_are_quoted() {
        let values = ["", "NULL", "a\"b", "c\\d", "{e,f}"].map(ValueRef::Text);
        assert_eq!(literal(&values, Encoding::Other), r#"{"","NULL","a\"b","c\\d","{e,f}"}"#);
        assert_eq!(literal(&[], Encoding::Other), "{}");
    }

    #[test]
    fn typed_values_have_their_canonical_text() {
        use ValueRef::*;
        assert_eq!(literal(&[Null, Bool(true), Int(-5)], Encoding::Other), "{NULL,t,-5}");
        assert_eq!(literal(&[Bool(true), Bool(false)], Encoding::Number), "{1,0}");
        assert_eq!(literal(&[Bool(true), Text("f"), Text("t")], Encoding::Truth), "{1,\"0\",\"1\"}");
        assert_eq!(literal(&[Bytes(&[0, 255]), Bytes(&[])], Encoding::Bytea), r#"{"\\x00ff","\\x"}"#);
        let floats = [Float(f64::NAN), Float(f64::NEG_INFINITY), Float(1e300), Float(0.1), Float(-0.0)];
        assert_eq!(literal(&floats, Encoding::Other), "{NaN,-Infinity,1e300,0.1,-0}");
    }
}
