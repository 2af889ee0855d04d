//! One form for equal values, whichever database they come from.

use std::fmt::Write;

use super::array;
use super::json::push_json;
use crate::model::{DataType, ValueRef};

/// Appends the value in a form that is the same for values that are equal by the source's type, and
/// different for all others. What tells one value from the next is part of it.
///
/// `1.50` and `1.5`, `-0` and `0`, `10:00:00` and `10:00:00.000` are equal; `a` and `a ` are not, unless
/// the type is blank-padded. A text that is none of its type stands for itself.
pub(crate) fn push_normal(data_type: &DataType, value: ValueRef<'_>, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; 5]);
    let tag = match value {
        ValueRef::Unchanged => b'u',
        ValueRef::Null => b'n',
        _ => {
            push_value(data_type, value, out);
            b'v'
        }
    };
    let length = (out.len() - start - 5) as u32;
    out[start] = tag;
    out[start + 1..start + 5].copy_from_slice(&length.to_be_bytes());
}

fn push_value(data_type: &DataType, value: ValueRef<'_>, out: &mut Vec<u8>) {
    match (data_type, value) {
        (DataType::Bool, _) => out.extend_from_slice(truth(value)),
        (DataType::Float32, _) => match number(value) {
            // A widened 32-bit number is the same number.
            Some(v) => out.extend_from_slice(&bits32(v as f32)),
            None => push_text(value, out),
        },
        (DataType::Float64, _) => match number(value) {
            Some(v) => out.extend_from_slice(&bits64(v)),
            None => push_text(value, out),
        },
        (DataType::Bytes, ValueRef::Bytes(v)) => out.extend_from_slice(v),
        (DataType::Bytes, ValueRef::Text(v)) => push_bytes(v, out),
        (_, ValueRef::Text(v)) => push_canonical(data_type, v, out),
        (DataType::Decimal { .. }, ValueRef::Float(v)) => push_decimal(&v.to_string(), out),
        _ => push_text(value, out),
    }
}

fn push_canonical(data_type: &DataType, text: &str, out: &mut Vec<u8>) {
    match data_type {
        DataType::Decimal { .. } => push_decimal(text, out),
        DataType::Json if push_json(text, out) => {}
        DataType::Array(of) => match array::elements(text) {
            Some(elements) => elements.iter().for_each(|e| match e {
                Some(element) => push_normal(of, ValueRef::Text(element), out),
                None => push_normal(of, ValueRef::Null, out),
            }),
            None => out.extend_from_slice(text.as_bytes()),
        },
        DataType::Char { .. } => out.extend_from_slice(text.trim_end_matches(' ').as_bytes()),
        DataType::Time => out.extend_from_slice(without_fraction_zeros(text).as_bytes()),
        // A target without times that have no zone keeps them as UTC.
        DataType::Timestamp | DataType::TimestampTz => push_instant(text, out),
        DataType::Uuid => out.extend(text.bytes().map(|b| b.to_ascii_lowercase())),
        // Of a fixed length: leading zeros tell nothing.
        DataType::Bit { varying: false, .. } => out.extend_from_slice(text.trim_start_matches('0').as_bytes()),
        _ => out.extend_from_slice(text.as_bytes()),
    }
}

fn truth(value: ValueRef<'_>) -> &[u8] {
    match value {
        ValueRef::Bool(true) | ValueRef::Int(1) | ValueRef::Text("t" | "true" | "1") => b"t",
        ValueRef::Bool(false) | ValueRef::Int(0) | ValueRef::Text("f" | "false" | "0") => b"f",
        ValueRef::Text(other) => other.as_bytes(),
        _ => b"?",
    }
}

fn number(value: ValueRef<'_>) -> Option<f64> {
    match value {
        ValueRef::Float(v) => Some(v),
        ValueRef::Int(v) => Some(v as f64),
        ValueRef::Text(v) => v.parse().ok(),
        _ => None,
    }
}

fn bits32(v: f32) -> [u8; 4] {
    (if v.is_nan() { f32::NAN } else { v + 0.0 }).to_bits().to_be_bytes()
}

fn bits64(v: f64) -> [u8; 8] {
    (if v.is_nan() { f64::NAN } else { v + 0.0 }).to_bits().to_be_bytes()
}

fn push_bytes(text: &str, out: &mut Vec<u8>) {
    let start = out.len();
    let digit = |b: u8| char::from(b).to_digit(16).map(|d| d as u8);
    let mut digits = text.strip_prefix("\\x").unwrap_or("?").bytes().map(digit);
    loop {
        match (digits.next(), digits.next()) {
            (None, _) => return,
            (Some(Some(high)), Some(Some(low))) => out.push(high << 4 | low),
            _ => break,
        }
    }
    out.truncate(start);
    out.extend_from_slice(text.as_bytes());
}

fn push_decimal(text: &str, out: &mut Vec<u8>) {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let plain = !digits.is_empty() && whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit());
    if !plain {
        return out.extend_from_slice(text.as_bytes());
    }
    let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
    if whole.is_empty() && fraction.is_empty() {
        return out.push(b'0');
    }
    out.extend_from_slice(sign.as_bytes());
    out.extend_from_slice(whole.as_bytes());
    if !fraction.is_empty() {
        out.push(b'.');
        out.extend_from_slice(fraction.as_bytes());
    }
}

/// Appends a number of JSON: its digits without zeros at the ends, and the power of ten that they are
/// times. `None`, with nothing appended, for what is no number.
pub(super) fn push_number(text: &str, out: &mut Vec<u8>) -> Option<()> {
    let (mantissa, exponent) = match text.find(['e', 'E']) {
        Some(at) => (&text[..at], text[at + 1..].parse::<i64>().ok().map(i128::from)?),
        None => (text, 0),
    };
    let (sign, digits) = mantissa.strip_prefix('-').map_or(("", mantissa), |digits| ("-", digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit()) {
        return None;
    }
    let all = format!("{whole}{fraction}");
    let significant = all.trim_end_matches('0');
    let power = exponent - fraction.len() as i128 + (all.len() - significant.len()) as i128;
    match significant.trim_start_matches('0') {
        "" => out.push(b'0'),
        digits => out.extend_from_slice(format!("{sign}{digits}e{power}").as_bytes()),
    }
    Some(())
}

/// Of a time: the zeros at the end of its seconds' digits, also before ` BC`.
fn without_fraction_zeros(text: &str) -> std::borrow::Cow<'_, str> {
    let (time, era) = text.strip_suffix(" BC").map_or((text, ""), |time| (time, " BC"));
    if !time.contains('.') {
        return text.into();
    }
    let cut = time.trim_end_matches('0').trim_end_matches('.');
    if era.is_empty() { cut.into() } else { format!("{cut}{era}").into() }
}

/// An instant without its zone, which is always UTC.
fn push_instant(text: &str, out: &mut Vec<u8>) {
    let (time, era) = text.strip_suffix(" BC").map_or((text, ""), |time| (time, " BC"));
    let time = time.strip_suffix("+00").or_else(|| time.strip_suffix('Z')).unwrap_or(time);
    out.extend_from_slice(without_fraction_zeros(time).as_bytes());
    out.extend_from_slice(era.as_bytes());
}

fn push_text(value: ValueRef<'_>, out: &mut Vec<u8>) {
    match value {
        ValueRef::Text(v) => out.extend_from_slice(v.as_bytes()),
        ValueRef::Bytes(v) => out.extend_from_slice(v),
        ValueRef::Bool(v) => out.extend_from_slice(if v { b"t" } else { b"f" }),
        ValueRef::Int(v) => push_display(v, out),
        ValueRef::Float(v) => push_display(v + 0.0, out),
        ValueRef::Null | ValueRef::Unchanged => {}
    }
}

fn push_display(value: impl std::fmt::Display, out: &mut Vec<u8>) {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write!(text, "{value}");
    out.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(data_type: &DataType, value: ValueRef<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        push_normal(data_type, value, &mut out);
        out
    }

    #[test]
    fn exponents_at_the_ends_of_their_range_are_numbers_too() {
        let number = |text: &str| {
            let mut out = Vec::new();
            push_number(text, &mut out).map(|()| String::from_utf8(out).unwrap())
        };
        let (least, most) = (i64::MIN, i64::MAX);
        assert_eq!(number(&format!("1.5e{least}")), Some("15e-9223372036854775809".to_owned()));
        assert_eq!(number(&format!("10e{most}")), Some("1e9223372036854775808".to_owned()));
        assert_eq!(number("1e9223372036854775808"), None);
    }

    #[test]
    fn equal_values_of_different_databases_have_one_form() {
        use ValueRef::*;
        let decimal = DataType::Decimal { precision: None, scale: None };
        let decimals = DataType::Array(Box::new(decimal.clone()));
        let equal = [
            (&DataType::Bool, Text("t"), Int(1)),
            (&DataType::Bool, Bool(false), Text("0")),
            (&DataType::Int64, Int(-7), Text("-7")),
            (&DataType::Float64, Text("-0"), Float(0.0)),
            (&DataType::Float64, Text("1e2"), Text("100")),
            (&DataType::Float64, Text("NaN"), Float(f64::NAN)),
            (&DataType::Float32, Text("0.1"), Float(f64::from(0.1_f32))),
            (&decimal, Text("1.50"), Text("001.5")),
            (&decimal, Text("-0.000"), Text("0")),
            (&decimal, Text("12345678901234567890.10"), Text("12345678901234567890.1")),
            (&DataType::Char { chars: 5 }, Text("ab   "), Text("ab")),
            (&DataType::Bytes, Text("\\x00ff"), Bytes(&[0, 255])),
            (&DataType::Time, Text("10:00:00.500"), Text("10:00:00.5")),
            (&DataType::Timestamp, Text("0044-03-15 00:00:00.10 BC"), Text("0044-03-15 00:00:00.1 BC")),
            (&DataType::TimestampTz, Text("2026-01-01 10:00:00+00"), Text("2026-01-01 10:00:00.000000")),
            (
                &DataType::Uuid,
                Text("A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"),
                Text("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
            ),
            (&DataType::Bit { length: Some(4), varying: false }, Text("0010"), Text("10")),
            (&DataType::Timestamp, Text("2026-01-01 10:00:00.5"), Text("2026-01-01 10:00:00.500+00")),
            (&DataType::Json, Text("{\"a\": 1.0}"), Text("{\"a\":1}")),
            (&decimals, Text("{1.50,NULL,2}"), Text("{1.5,NULL,\"2.0\"}")),
        ];
        for (data_type, a, b) in equal {
            assert_eq!(normal(data_type, a), normal(data_type, b), "{data_type} {a:?} {b:?}");
        }
    }

    #[test]
    fn different_values_have_different_forms() {
        use ValueRef::*;
        let text = DataType::Text { max_chars: None };
        let decimal = DataType::Decimal { precision: None, scale: None };
        let texts = DataType::Array(Box::new(text.clone()));
        let different = [
            (&text, Text("a"), Text("a ")),
            (&text, Text("a"), Text("A")),
            (&text, Text(""), Null),
            (&text, Null, Unchanged),
            (&text, Text("n"), Null),
            (&DataType::Float64, Text("0.1"), Text("0.10000000000000002")),
            (&decimal, Text("1.0000000000000000001"), Text("1")),
            (&decimal, Text("-1"), Text("1")),
            (&DataType::TimestampTz, Text("2026-01-01 10:00:00+00"), Text("2026-01-01 09:00:00+00")),
            (&DataType::Bytes, Text("\\x00"), Text("\\x0000")),
            (&DataType::Bytes, Text("\\x0"), Bytes(&[0])),
            (&DataType::Bit { length: None, varying: true }, Text("0010"), Text("10")),
            (&DataType::Json, Text("{\"a\": 1}"), Text("{\"a\": 2}")),
            (&DataType::Json, Text("not json"), Text("not  json")),
            (&texts, Text("{a,NULL}"), Text("{a,\"NULL\"}")),
            (&texts, Text("{\"a,b\"}"), Text("{a,b}")),
            (&texts, Text("{{a},{b}}"), Text("{{a,b}}")),
        ];
        for (data_type, a, b) in different {
            assert_ne!(normal(data_type, a), normal(data_type, b), "{data_type} {a:?} {b:?}");
        }
    }
}
