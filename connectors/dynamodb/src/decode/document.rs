//! Items as JSON: tagged (DynamoDB-JSON, which loses nothing) and plain (for people and for SQL).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::attribute::{Attribute, Item, View};
use super::number;

/// How an item is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// `{"n":{"N":"1"}}`: every type, every digit.
    Tagged,
    /// `{"n":1}`: sets are arrays, binary values are base64 text, numbers are JSON numbers.
    Plain,
}

/// Appends the attributes that `keep` lets through, sorted by name: equal items give equal texts.
pub(crate) fn write_item<I: Item>(
    item: &I,
    form: Form,
    keep: impl Fn(&str) -> bool,
    out: &mut String,
) -> Result<(), &'static str> {
    out.push('{');
    for (n, (name, value)) in item.sorted().filter(|(name, _)| keep(name)).enumerate() {
        if n > 0 {
            out.push(',');
        }
        text(name, out);
        out.push(':');
        write(value, form, out)?;
    }
    out.push('}');
    Ok(())
}

/// Appends one attribute.
pub(crate) fn write<A: Attribute>(value: &A, form: Form, out: &mut String) -> Result<(), &'static str> {
    let view = value.view();
    if form == Form::Tagged {
        out.push_str("{\"");
        out.push_str(view.tag());
        out.push_str("\":");
    }
    match view {
        View::S(v) => text(v, out),
        View::N(v) => one_number(v, form, out)?,
        View::B(v) => binary(v, out),
        View::Bool(v) => out.push_str(if v { "true" } else { "false" }),
        View::Null => out.push_str(if form == Form::Tagged { "true" } else { "null" }),
        View::Ss(v) => {
            let mut all: Vec<&str> = v.iter().map(AsRef::as_ref).collect();
            all.sort_unstable();
            list(all, out, |v, out| {
                text(v, out);
                Ok(())
            })?;
        }
        View::Ns(v) => {
            let mut all: Vec<&str> = v.iter().map(AsRef::as_ref).collect();
            all.sort_unstable();
            list(all, out, |v, out| one_number(v, form, out))?;
        }
        View::Bs(v) => {
            let mut all: Vec<&[u8]> = v.iter().map(AsRef::as_ref).collect();
            all.sort_unstable();
            list(all, out, |v, out| {
                binary(v, out);
                Ok(())
            })?;
        }
        View::L(v) => list(v, out, |v, out| write(v, form, out))?,
        View::M(v) => write_item(v, form, |_| true, out)?,
        View::Unknown => return Err("has a type that this version does not know"),
    }
    if form == Form::Tagged {
        out.push('}');
    }
    Ok(())
}

fn list<T>(
    all: impl IntoIterator<Item = T>,
    out: &mut String,
    mut write: impl FnMut(T, &mut String) -> Result<(), &'static str>,
) -> Result<(), &'static str> {
    out.push('[');
    for (n, element) in all.into_iter().enumerate() {
        if n > 0 {
            out.push(',');
        }
        write(element, out)?;
    }
    out.push(']');
    Ok(())
}

fn one_number(v: &str, form: Form, out: &mut String) -> Result<(), &'static str> {
    match form {
        Form::Tagged => text(v, out),
        Form::Plain if number::is_canonical(v) => out.push_str(v),
        Form::Plain => out.push_str(&number::canonical(v).ok_or("is a number that is none")?),
    }
    Ok(())
}

fn binary(v: &[u8], out: &mut String) {
    out.push('"');
    STANDARD.encode_string(v, out);
    out.push('"');
}

/// A JSON string.
fn text(v: &str, out: &mut String) {
    out.push('"');
    let mut plain = 0;
    for (at, byte) in v.bytes().enumerate() {
        let escape = match byte {
            b'"' => "\\\"",
            b'\\' => "\\\\",
            b'\n' => "\\n",
            b'\r' => "\\r",
            b'\t' => "\\t",
            0..0x20 => "",
            _ => continue,
        };
        out.push_str(&v[plain..at]);
        plain = at + 1;
        match escape {
            "" => out.push_str(&format!("\\u{byte:04x}")),
            escape => out.push_str(escape),
        }
    }
    out.push_str(&v[plain..]);
    out.push('"');
}
