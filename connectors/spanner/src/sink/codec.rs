//! Values as the protocol carries them.

use std::fmt::Write as _;

use anabranch_core::{Error, Result, ValueRef};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::array;
use crate::client::{Instant, SpannerValue};

/// How the values of a column are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Codec {
    Bool,
    Int,
    /// `single`: the column has 32 bits.
    Float {
        single: bool,
    },
    /// Digits: at most so many before the point and after it, zeros at the ends apart. `nan`: NaN too.
    Decimal {
        whole: u32,
        scale: u32,
        nan: bool,
    },
    /// Text, of at most so many characters.
    Text {
        max: Option<u32>,
    },
    /// Bytes, at most so many.
    Bytes {
        max: Option<u32>,
    },
    Date,
    Timestamp,
    Array(Box<Codec>),
    /// Whatever the source sends, the time of the target's commit.
    CommitTimestamp,
}

/// Stands for the time of the commit, in columns that allow it
/// (Spanner's documentation, "Commit timestamps").
const COMMIT_TIMESTAMP: &str = "spanner.commit_timestamp()";

impl Codec {
    /// The value of a column, which is sent.
    ///
    /// # Errors
    /// `Rejected`, naming the column, for what the target cannot hold.
    pub(crate) fn encode(&self, column: &str, value: ValueRef<'_>) -> Result<SpannerValue> {
        if let (ValueRef::Null, false) = (value, *self == Self::CommitTimestamp) {
            return Ok(SpannerValue::Null);
        }
        self.value(value).map_err(|why| Error::rejected(format!("{column}: the target cannot hold it: {why}")))
    }

    fn value(&self, value: ValueRef<'_>) -> Result<SpannerValue, String> {
        Ok(match self {
            Self::Bool => SpannerValue::Bool(truth(value)?),
            Self::Int => SpannerValue::from(int(value)?),
            Self::Float { single } => float(value, *single)?,
            Self::Decimal { whole, scale, nan } => decimal(&text(value), *whole, *scale, *nan)?.into(),
            Self::Text { max } => {
                let text = text(value);
                if let Some(max) = max.filter(|&max| text.chars().count() > max as usize) {
                    return Err(format!("it has more than {max} characters"));
                }
                text.into()
            }
            Self::Bytes { max } => bytes(value, *max)?,
            Self::Date => date(&text(value))?.into(),
            Self::Timestamp => timestamp(&text(value))?.into(),
            Self::Array(of) => {
                let element = |element: Option<String>| match element {
                    Some(element) => of.value(ValueRef::Text(&element)),
                    None => Ok(SpannerValue::Null),
                };
                SpannerValue::List(array::elements(&text(value))?.into_iter().map(element).collect::<Result<_, _>>()?)
            }
            Self::CommitTimestamp => COMMIT_TIMESTAMP.into(),
        })
    }
}

fn truth(value: ValueRef<'_>) -> Result<bool, String> {
    match value {
        ValueRef::Bool(v) => Ok(v),
        ValueRef::Text("t" | "true") => Ok(true),
        ValueRef::Text("f" | "false") => Ok(false),
        other => Err(format!("{:?} is no truth value", text(other))),
    }
}

fn int(value: ValueRef<'_>) -> Result<i64, String> {
    match value {
        ValueRef::Int(v) => Ok(v),
        ValueRef::Bool(v) => Ok(i64::from(v)),
        ValueRef::Text(v) => v.parse().map_err(|_| format!("{v:?} is no whole number of 64 bits")),
        other => Err(format!("{:?} is no whole number", text(other))),
    }
}

fn float(value: ValueRef<'_>, single: bool) -> Result<SpannerValue, String> {
    let number: f64 = match value {
        ValueRef::Float(v) => v,
        ValueRef::Int(v) => v as f64,
        ValueRef::Text(v) if single => v.parse::<f32>().map_err(|_| format!("{v:?} is no number"))?.into(),
        ValueRef::Text(v) => v.parse().map_err(|_| format!("{v:?} is no number"))?,
        other => return Err(format!("{:?} is no number", text(other))),
    };
    let written = if single { f64::from(number as f32) } else { number };
    // Rounding is consented to; that a number becomes infinite is not rounding.
    let infinite = match value {
        ValueRef::Text(v) => v.trim_start_matches(['-', '+']).starts_with(['I', 'i']),
        _ => number.is_infinite(),
    };
    if written.is_infinite() && !infinite {
        return Err(format!("{} is too large for {} bits", text(value), if single { 32 } else { 64 }));
    }
    Ok(SpannerValue::from(written))
}

fn decimal(text: &str, whole: u32, scale: u32, nan: bool) -> Result<String, String> {
    if text == "NaN" && nan {
        return Ok(text.to_owned());
    }
    let digits = text.strip_prefix('-').unwrap_or(text);
    let (before, after) = digits.split_once('.').unwrap_or((digits, ""));
    if before.is_empty() && after.is_empty() || !before.bytes().chain(after.bytes()).all(|b| b.is_ascii_digit()) {
        return Err(format!("{text} is no decimal that it knows"));
    }
    if before.trim_start_matches('0').len() > whole as usize {
        return Err(format!("it has more than {whole} digits before the point"));
    }
    if after.trim_end_matches('0').len() > scale as usize {
        return Err(format!("it has more than {scale} digits after the point"));
    }
    Ok(text.to_owned())
}

fn bytes(value: ValueRef<'_>, max: Option<u32>) -> Result<SpannerValue, String> {
    let given: Vec<u8>;
    let bytes = match value {
        ValueRef::Bytes(bytes) => bytes,
        ValueRef::Text(text) => {
            given = hex(text).ok_or_else(|| "it is no text of \\x and hexadecimal digits".to_owned())?;
            &given
        }
        other => return Err(format!("{:?} are no bytes", text(other))),
    };
    match max {
        Some(max) if bytes.len() > max as usize => Err(format!("it has more than {max} bytes")),
        _ => Ok(STANDARD.encode(bytes).into()),
    }
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("\\x")?.as_bytes();
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|d| d as u8);
    let pair = |pair: &[u8]| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?);
    digits.chunks(2).map(pair).collect()
}

fn date(text: &str) -> Result<String, String> {
    if text.len() == 10 && !text.starts_with("0000") && text.as_bytes()[4] == b'-' {
        return Ok(text.to_owned());
    }
    Err(format!("{text} is not in the years 1 through 9999"))
}

/// `2020-01-02 03:04:05.123+00`, or the same without a zone, which is taken as UTC.
fn timestamp(text: &str) -> Result<String, String> {
    let beyond = || format!("{text} is not in the years 1 through 9999");
    let plain = text.strip_suffix("+00").unwrap_or(text);
    let (date, time) = plain.split_once(' ').filter(|(_, time)| !time.ends_with("BC")).ok_or_else(beyond)?;
    let fraction = time.split_once('.').map_or(0, |(_, f)| f.len());
    if fraction > 9 {
        return Err(format!("{text} has more than nine digits of a second"));
    }
    let at = format!("{date}T{time}Z");
    at.parse::<Instant>().map_err(|_| beyond())?;
    Ok(at)
}

/// The canonical text of a value.
fn text(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Unchanged | ValueRef::Null => String::new(),
        ValueRef::Bool(v) => if v { "t" } else { "f" }.to_owned(),
        ValueRef::Int(v) => v.to_string(),
        ValueRef::Float(v) if v.is_infinite() => if v > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
        ValueRef::Float(v) => v.to_string(),
        ValueRef::Text(v) => v.to_owned(),
        ValueRef::Bytes(v) => v.iter().fold("\\x".to_owned(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(codec: &Codec, value: ValueRef<'_>) -> Option<SpannerValue> {
        codec.encode("t.c", value).ok()
    }

    #[test]
    fn values_are_written_as_the_protocol_has_them() {
        use ValueRef::{Bool, Bytes, Float, Int, Text};
        let decimal = Codec::Decimal { whole: 29, scale: 9, nan: false };
        let many = Codec::Decimal { whole: 131_072, scale: 16_383, nan: true };
        let beyond = "9".repeat(310);
        let cases: Vec<(Codec, ValueRef<'_>, Option<SpannerValue>)> = vec![
            (Codec::Bool, Text("t"), Some(true.into())),
            (Codec::Bool, Text("x"), None),
            (Codec::Int, Int(i64::MIN), Some("-9223372036854775808".into())),
            (Codec::Int, Text("18446744073709551615"), None),
            (Codec::Float { single: false }, Text("NaN"), Some("NaN".into())),
            (Codec::Float { single: false }, Float(f64::NEG_INFINITY), Some("-Infinity".into())),
            (Codec::Float { single: false }, Text("Infinity"), Some("Infinity".into())),
            (Codec::Float { single: true }, Text("0.1"), Some(SpannerValue::Number(f64::from(0.1f32)))),
            (Codec::Float { single: true }, Float(1e300), None),
            (Codec::Float { single: true }, Text("1e300"), None),
            (Codec::Float { single: true }, Float(f64::INFINITY), Some("Infinity".into())),
            (Codec::Float { single: false }, Text(&beyond), None),
            (decimal.clone(), Text("-12.345000000000"), Some("-12.345000000000".into())),
            (decimal.clone(), Text("0.0000000001"), None),
            (decimal.clone(), Text("100000000000000000000000000000"), None),
            (decimal, Text("NaN"), None),
            (many, Text("NaN"), Some("NaN".into())),
            (Codec::Text { max: Some(2) }, Text("ä\u{1f980}"), Some("ä\u{1f980}".into())),
            (Codec::Text { max: Some(2) }, Text("abc"), None),
            (Codec::Text { max: None }, Bool(true), Some("t".into())),
            (Codec::Bytes { max: None }, Bytes(b"\x00\xff"), Some("AP8=".into())),
            (Codec::Bytes { max: None }, Text("\\x00ff"), Some("AP8=".into())),
            (Codec::Bytes { max: Some(1) }, Text("\\x00ff"), None),
            (Codec::Bytes { max: None }, Text("\\x0"), None),
            (Codec::Date, Text("0001-01-01"), Some("0001-01-01".into())),
            (Codec::Date, Text("0044-03-15 BC"), None),
            (Codec::Date, Text("infinity"), None),
            (Codec::Timestamp, Text("2020-01-02 03:04:05.123456789+00"), Some("2020-01-02T03:04:05.123456789Z".into())),
            (Codec::Timestamp, Text("9999-12-31 23:59:59.999999"), Some("9999-12-31T23:59:59.999999Z".into())),
            (Codec::Timestamp, Text("10000-01-01 00:00:00+00"), None),
            (Codec::Timestamp, Text("0001-01-01 00:00:00+00 BC"), None),
            (Codec::Timestamp, Text("-infinity"), None),
            (
                Codec::Array(Box::new(Codec::Int)),
                Text("{1,NULL}"),
                Some(SpannerValue::List(vec!["1".into(), SpannerValue::Null])),
            ),
            (Codec::Array(Box::new(Codec::Int)), Text("{{1}}"), None),
            (Codec::CommitTimestamp, ValueRef::Null, Some(COMMIT_TIMESTAMP.into())),
            (Codec::Int, ValueRef::Null, Some(SpannerValue::Null)),
        ];
        for (codec, value, expected) in cases {
            assert_eq!(encoded(&codec, value), expected, "{codec:?} {value:?}");
        }
    }
}
