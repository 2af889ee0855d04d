//! From values to SQL literals and to fields of `LOAD DATA`.
//!
//! What the server would round, cut or replace without an error, even in strict mode, is refused
//! here: decimals beyond the scale, blanks beyond the length, bytes to be padded (MySQL 8.0
//! reference manual, 13.1 and 13.3: such truncation gives a note only).

use std::fmt::Write;

use anabranch_core::ValueRef;

use crate::types::Encoding;

/// A value as the target takes it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Rendered<'a> {
    Null,
    /// Needs no quotes.
    Number(&'a str),
    Text(&'a str),
    Bytes(&'a [u8]),
}

/// Memory that is used again for each value.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    text: String,
    bytes: Vec<u8>,
}

/// The value in this encoding.
///
/// # Errors
/// Why the target cannot hold it, in words.
pub(crate) fn render<'a>(
    value: ValueRef<'a>,
    encoding: &Encoding,
    scratch: &'a mut Scratch,
) -> Result<Rendered<'a>, String> {
    match value {
        ValueRef::Null => return Ok(Rendered::Null),
        ValueRef::Unchanged => return Err("was not sent by the source".into()),
        _ => {}
    }
    match *encoding {
        Encoding::Bool => boolean(value).map(|v| Rendered::Number(if v { "1" } else { "0" })),
        Encoding::Int => integer(value, &mut scratch.text).map(Rendered::Number),
        Encoding::Double { single } => float(value, single, &mut scratch.text).map(Rendered::Number),
        Encoding::Float => {
            let number = number_of(value)? as f32;
            exponential(f64::from(number), &mut scratch.text).map(Rendered::Number)
        }
        Encoding::Decimal { whole, scale } => decimal(value, whole, scale, &mut scratch.text).map(Rendered::Number),
        Encoding::Label { ref labels } => {
            let text = text_of(value)?;
            if labels.iter().any(|l| l == text) { Ok(Rendered::Text(text)) } else { Err(odd(text, "a label")) }
        }
        Encoding::Text { chars, bytes, trim } => {
            let text = canonical(value, &mut scratch.text);
            let text = if trim { text.trim_end_matches(' ') } else { text };
            if text.len() > chars as usize && text.chars().count() > chars as usize {
                return Err(format!("has {} characters, the target holds {chars}", text.chars().count()));
            }
            if text.len() as u64 > bytes {
                return Err(format!("has {} bytes, the target holds {bytes}", text.len()));
            }
            Ok(Rendered::Text(text))
        }
        Encoding::Bytes { min, max, hex } => {
            let bytes = bytes_of(value, hex, &mut scratch.bytes)?;
            if !(min..=max).contains(&(bytes.len() as u64)) {
                return Err(format!("has {} bytes, the target holds {max}", bytes.len()));
            }
            Ok(Rendered::Bytes(bytes))
        }
        Encoding::Date => date(text_of(value)?).map(Rendered::Text),
        Encoding::Time { digits } => {
            let text = text_of(value)?;
            let plain = text.bytes().all(|b| b.is_ascii_digit() || b == b':' || b == b'.');
            if plain { Ok(Rendered::Text(cut(text, digits))) } else { Err(odd(text, "a time")) }
        }
        Encoding::DateTime { digits } => date_time(text_of(value)?, digits).map(Rendered::Text),
        Encoding::Bits { length } => bits(value, length, &mut scratch.text).map(Rendered::Number),
        Encoding::UuidBytes => {
            uuid(text_of(value)?, &mut scratch.bytes)?;
            Ok(Rendered::Bytes(&scratch.bytes))
        }
    }
}

fn text_of(value: ValueRef<'_>) -> Result<&str, String> {
    match value {
        ValueRef::Text(v) => Ok(v),
        other => Err(format!("came as {other:?}, not as text")),
    }
}

fn odd(text: &str, what: &str) -> String {
    let shown: String = text.chars().take(60).collect();
    format!("{shown:?} is not {what} that the target can hold")
}

fn boolean(value: ValueRef<'_>) -> Result<bool, String> {
    match value {
        ValueRef::Bool(v) => Ok(v),
        ValueRef::Int(v @ (0 | 1)) => Ok(v == 1),
        ValueRef::Text("t" | "true" | "1") => Ok(true),
        ValueRef::Text("f" | "false" | "0") => Ok(false),
        other => Err(format!("{other:?} is not a truth value")),
    }
}

fn set(scratch: &mut String, value: impl std::fmt::Display) -> &str {
    scratch.clear();
    // Writing to a String cannot fail.
    let _ = write!(scratch, "{value}");
    scratch
}

fn integer<'a>(value: ValueRef<'a>, scratch: &'a mut String) -> Result<&'a str, String> {
    match value {
        ValueRef::Int(v) => Ok(set(scratch, v)),
        ValueRef::Bool(v) => Ok(if v { "1" } else { "0" }),
        ValueRef::Text(v) => {
            let digits = v.strip_prefix('-').unwrap_or(v);
            let whole = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            if whole { Ok(v) } else { Err(odd(v, "a whole number")) }
        }
        other => Err(format!("{other:?} is not a whole number")),
    }
}

fn number_of(value: ValueRef<'_>) -> Result<f64, String> {
    let number = match value {
        ValueRef::Float(v) => v,
        ValueRef::Int(v) => v as f64,
        ValueRef::Text(v) => v.parse().map_err(|_| odd(v, "a number"))?,
        other => return Err(format!("{other:?} is not a number")),
    };
    if number.is_finite() { Ok(number) } else { Err(format!("{number} is not a number that the target can hold")) }
}

fn float<'a>(value: ValueRef<'_>, single: bool, scratch: &'a mut String) -> Result<&'a str, String> {
    let number = match value {
        // The decimal that a 32-bit number stands for, not its 64-bit twin: 0.1, not 0.10000000149.
        ValueRef::Float(v) if single => number_of(ValueRef::Text(set(scratch, v as f32)))?,
        other => number_of(other)?,
    };
    exponential(number, scratch)
}

/// With an exponent: without one the server reads a decimal of at most 65 digits.
fn exponential(number: f64, scratch: &mut String) -> Result<&str, String> {
    if !number.is_finite() {
        return Err("is too large for 32 bits".into());
    }
    scratch.clear();
    let _ = write!(scratch, "{number:e}");
    Ok(scratch)
}

fn decimal<'a>(value: ValueRef<'a>, most: u32, scale: u32, scratch: &'a mut String) -> Result<&'a str, String> {
    let text = match value {
        ValueRef::Text(v) => v,
        ValueRef::Int(v) => return Ok(set(scratch, v)),
        ValueRef::Float(v) => set(scratch, v),
        other => return Err(format!("{other:?} is not a number")),
    };
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    let digits = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
    if unsigned.is_empty() || !digits(whole) || !digits(fraction) {
        return Err(odd(text, "a number"));
    }
    let before = whole.trim_start_matches('0').len();
    if before > most as usize {
        return Err(format!("has {before} digits before the point, the target holds {most}"));
    }
    let needed = fraction.trim_end_matches('0').len();
    if needed > scale as usize {
        return Err(format!("has {needed} decimals, the target holds {scale}"));
    }
    // Further zeros would count against the 65 digits of a literal.
    Ok(text[..text.len() - (fraction.len() - needed)].trim_end_matches('.'))
}

/// The canonical text of a value of any type.
fn canonical<'a>(value: ValueRef<'a>, scratch: &'a mut String) -> &'a str {
    match value {
        ValueRef::Text(v) => v,
        ValueRef::Bool(v) => {
            if v {
                "t"
            } else {
                "f"
            }
        }
        ValueRef::Int(v) => set(scratch, v),
        ValueRef::Float(v) if v.is_nan() => "NaN",
        ValueRef::Float(v) if v.is_infinite() => {
            if v > 0.0 {
                "Infinity"
            } else {
                "-Infinity"
            }
        }
        ValueRef::Float(v) => set(scratch, v),
        ValueRef::Bytes(v) => {
            scratch.clear();
            scratch.push_str("\\x");
            for b in v {
                let _ = write!(scratch, "{b:02x}");
            }
            scratch
        }
        ValueRef::Null | ValueRef::Unchanged => "",
    }
}

fn bytes_of<'a>(value: ValueRef<'a>, hex: bool, scratch: &'a mut Vec<u8>) -> Result<&'a [u8], String> {
    match value {
        ValueRef::Bytes(v) => Ok(v),
        ValueRef::Text(v) if !hex => Ok(v.as_bytes()),
        ValueRef::Text(v) => match v.strip_prefix("\\x") {
            Some(hex) => {
                unhex(hex.bytes(), scratch).ok_or_else(|| odd(v, "hexadecimal text"))?;
                Ok(scratch)
            }
            None => Err(odd(v, "hexadecimal text")),
        },
        other => Err(format!("{other:?} is not bytes")),
    }
}

fn unhex(digits: impl Iterator<Item = u8>, out: &mut Vec<u8>) -> Option<()> {
    let digit = |b: u8| (b as char).to_digit(16).map(|d| d as u8);
    out.clear();
    let mut high = None;
    for b in digits {
        match high.take() {
            None => high = Some(digit(b)?),
            Some(h) => out.push(h << 4 | digit(b)?),
        }
    }
    high.is_none().then_some(())
}

fn uuid(text: &str, out: &mut Vec<u8>) -> Result<(), String> {
    unhex(text.bytes().filter(|b| *b != b'-'), out).filter(|()| out.len() == 16).ok_or_else(|| odd(text, "a UUID"))
}

fn date(text: &str) -> Result<&str, String> {
    let b = text.as_bytes();
    let shape = b.len() == 10
        && b.iter().enumerate().all(|(i, c)| if i == 4 || i == 7 { *c == b'-' } else { c.is_ascii_digit() });
    if shape && !text.starts_with("0000") { Ok(text) } else { Err(odd(text, "a date")) }
}

fn date_time(text: &str, digits: u32) -> Result<&str, String> {
    let local = text.strip_suffix("+00").unwrap_or(text);
    let (day, time) = local.split_once(' ').ok_or_else(|| odd(text, "a time"))?;
    date(day).map_err(|_| odd(text, "a time"))?;
    if !time.bytes().all(|b| b.is_ascii_digit() || b == b':' || b == b'.') {
        return Err(odd(text, "a time"));
    }
    Ok(cut(local, digits))
}

/// At most so many digits after the point: the server would round some and cut others.
fn cut(text: &str, digits: u32) -> &str {
    match text.find('.') {
        Some(point) if digits == 0 => &text[..point],
        Some(point) => &text[..text.len().min(point + 1 + digits as usize)],
        None => text,
    }
}

fn bits<'a>(value: ValueRef<'_>, length: u32, scratch: &'a mut String) -> Result<&'a str, String> {
    match value {
        ValueRef::Text(v) if v.len() <= length as usize => match u64::from_str_radix(v, 2) {
            Ok(number) if !v.starts_with('+') => Ok(set(scratch, number)),
            _ => Err(odd(v, "a string of bits")),
        },
        ValueRef::Text(v) => Err(format!("has {} bits, the target holds {length}", v.len())),
        ValueRef::Bool(v) => Ok(set(scratch, u8::from(v))),
        ValueRef::Int(v @ (0 | 1)) => Ok(set(scratch, v)),
        other => Err(format!("{other:?} is not a string of bits")),
    }
}

const HEX: &[u8; 16] = b"0123456789ABCDEF";

/// Appends it to a statement.
pub(crate) fn push_sql(value: Rendered<'_>, sql: &mut Vec<u8>) {
    match value {
        Rendered::Null => sql.extend_from_slice(b"NULL"),
        Rendered::Number(v) => sql.extend_from_slice(v.as_bytes()),
        Rendered::Text(v) => push_text(v.as_bytes(), sql),
        Rendered::Bytes(v) => {
            sql.extend_from_slice(b"X'");
            push_hex(v, sql);
            sql.push(b'\'');
        }
    }
}

/// Appends it as a field of `LOAD DATA` under its default format; bytes as hexadecimal digits.
pub(crate) fn push_field(value: Rendered<'_>, out: &mut Vec<u8>) {
    match value {
        Rendered::Null => out.extend_from_slice(b"\\N"),
        Rendered::Number(v) => out.extend_from_slice(v.as_bytes()),
        Rendered::Text(v) => push_escaped(v.as_bytes(), out, |b| match b {
            b'\\' => b'\\',
            b'\t' => b't',
            b'\n' => b'n',
            b'\r' => b'r',
            0 => b'0',
            _ => 0,
        }),
        Rendered::Bytes(v) => push_hex(v, out),
    }
}

/// Appends a quoted string.
pub(crate) fn push_text(text: &[u8], sql: &mut Vec<u8>) {
    sql.push(b'\'');
    push_escaped(text, sql, |b| match b {
        b'\\' => b'\\',
        b'\'' => b'\'',
        0 => b'0',
        // The server's tools show a statement's end at Ctrl-Z on Windows; the manual escapes it.
        0x1a => b'Z',
        _ => 0,
    });
    sql.push(b'\'');
}

/// Copies runs without special bytes whole. `special` gives what follows the backslash, 0 for none.
fn push_escaped(text: &[u8], out: &mut Vec<u8>, special: impl Fn(u8) -> u8) {
    let mut done = 0;
    for (i, &b) in text.iter().enumerate() {
        let escape = special(b);
        if escape != 0 {
            out.extend_from_slice(&text[done..i]);
            out.push(b'\\');
            out.push(escape);
            done = i + 1;
        }
    }
    out.extend_from_slice(&text[done..]);
}

fn push_hex(bytes: &[u8], out: &mut Vec<u8>) {
    out.reserve(bytes.len() * 2);
    for b in bytes {
        out.push(HEX[usize::from(b >> 4)]);
        out.push(HEX[usize::from(b & 15)]);
    }
}

/// Appends an identifier, quoted.
pub(crate) fn quote(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sql(value: ValueRef<'_>, encoding: &Encoding) -> Result<String, String> {
        let mut scratch = Scratch::default();
        let mut out = Vec::new();
        push_sql(render(value, encoding, &mut scratch)?, &mut out);
        Ok(String::from_utf8(out).expect("ASCII or UTF-8"))
    }

    const TEXT: Encoding = Encoding::Text { chars: u32::MAX, bytes: u64::MAX, trim: false };

    #[test]
    fn values_become_literals() {
        let bytes = Encoding::Bytes { min: 0, max: 10, hex: true };
        let cases: &[(ValueRef<'_>, &Encoding, &str)] = &[
            (ValueRef::Null, &Encoding::Int, "NULL"),
            (ValueRef::Text("t"), &Encoding::Bool, "1"),
            (ValueRef::Int(-7), &Encoding::Int, "-7"),
            (ValueRef::Text("18446744073709551615"), &Encoding::Int, "18446744073709551615"),
            (ValueRef::Float(0.1), &Encoding::Double { single: false }, "1e-1"),
            (ValueRef::Float(f64::from(0.1f32)), &Encoding::Double { single: true }, "1e-1"),
            (ValueRef::Text("0.1"), &Encoding::Float, "1.0000000149011612e-1"),
            (ValueRef::Text("1.500"), &Encoding::Decimal { whole: 9, scale: 1 }, "1.5"),
            (ValueRef::Text("-0.00"), &Encoding::Decimal { whole: 9, scale: 0 }, "-0"),
            (ValueRef::Text("it's \\ \0 \u{1F600}"), &TEXT, "'it\\'s \\\\ \\0 \u{1F600}'"),
            (ValueRef::Text("ab  "), &Encoding::Text { chars: 2, bytes: 9, trim: true }, "'ab'"),
            (ValueRef::Bytes(&[0, 255]), &bytes, "X'00FF'"),
            (ValueRef::Text("\\x00ff"), &bytes, "X'00FF'"),
            (ValueRef::Text("2024-02-29"), &Encoding::Date, "'2024-02-29'"),
            (ValueRef::Text("24:00:00"), &Encoding::Time { digits: 6 }, "'24:00:00'"),
            (
                ValueRef::Text("0001-01-01 00:00:00.123456+00"),
                &Encoding::DateTime { digits: 3 },
                "'0001-01-01 00:00:00.123'",
            ),
            (ValueRef::Text("0101"), &Encoding::Bits { length: 4 }, "5"),
            (
                ValueRef::Text("00112233-4455-6677-8899-aabbccddeeff"),
                &Encoding::UuidBytes,
                "X'00112233445566778899AABBCCDDEEFF'",
            ),
        ];
        for (value, encoding, expected) in cases {
            assert_eq!(sql(*value, encoding).as_deref(), Ok(*expected), "{value:?} as {encoding:?}");
        }
    }

    #[test]
    fn what_the_server_would_change_in_silence_is_refused() {
        let cases: &[(ValueRef<'_>, Encoding)] = &[
            (ValueRef::Text("1.239"), Encoding::Decimal { whole: 9, scale: 2 }),
            (ValueRef::Text("1234567890"), Encoding::Decimal { whole: 9, scale: 2 }),
            (ValueRef::Text("1"), Encoding::Label { labels: vec!["a".into()] }),
            (ValueRef::Text("A"), Encoding::Label { labels: vec!["a".into()] }),
            (ValueRef::Text("NaN"), Encoding::Decimal { whole: 9, scale: 2 }),
            (ValueRef::Float(f64::NAN), Encoding::Double { single: false }),
            (ValueRef::Text("Infinity"), Encoding::Double { single: false }),
            (ValueRef::Text("1e39"), Encoding::Float),
            (ValueRef::Text("ab  "), Encoding::Text { chars: 3, bytes: 99, trim: false }),
            (ValueRef::Text("infinity"), Encoding::Date),
            (ValueRef::Text("0044-03-15 BC"), Encoding::Date),
            (ValueRef::Text("10000-01-01"), Encoding::Date),
            (ValueRef::Text("-infinity"), Encoding::DateTime { digits: 6 }),
            (ValueRef::Text("0044-03-15 00:00:00 BC"), Encoding::DateTime { digits: 6 }),
            (ValueRef::Text("10000-01-01 00:00:00"), Encoding::DateTime { digits: 6 }),
            (ValueRef::Text("1; DROP TABLE x"), Encoding::Int),
            (ValueRef::Text("1); --"), Encoding::Decimal { whole: 9, scale: 9 }),
            (ValueRef::Text("10101"), Encoding::Bits { length: 4 }),
            (ValueRef::Bytes(b"abc"), Encoding::Bytes { min: 4, max: 4, hex: true }),
            (ValueRef::Unchanged, TEXT),
        ];
        for (value, encoding) in cases {
            assert!(sql(*value, encoding).is_err(), "{value:?} as {encoding:?}");
        }
    }

    #[test]
    fn fields_of_load_data_are_escaped() {
        let mut out = Vec::new();
        push_field(Rendered::Text("a\tb\nc\\N\0"), &mut out);
        assert_eq!(out, b"a\\tb\\nc\\\\N\\0");
    }
}
