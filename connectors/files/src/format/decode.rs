//! Reads the lines of a file. It takes bytes and never panics.

use std::borrow::Cow;
use std::sync::Arc;

use anabranch_core::{OldImage, Op, TableSchema, Timestamp};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub(crate) use super::value::Cell;

/// A line after the first one.
#[derive(Debug)]
pub(crate) enum Line<'a> {
    Schema(SchemaLine),
    Begin(Begin),
    Change(ChangeLine<'a>),
    End(End),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SchemaLine {
    pub(crate) id: usize,
    pub(crate) table: Arc<TableSchema>,
}

/// A transaction, or the rest of one: changes of it follow.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Begin {
    /// The transaction's rank at its source.
    #[serde(with = "super::hex")]
    pub(crate) rank: Bytes,
    /// Its rank among those of the shard, where that is another.
    #[serde(default, deserialize_with = "optional_hex")]
    pub(crate) order: Option<Bytes>,
    #[serde(default, with = "super::time")]
    pub(crate) time: Option<Timestamp>,
    #[serde(default)]
    pub(crate) origin: Option<Arc<str>>,
    #[serde(default)]
    pub(crate) tag: Option<Arc<str>>,
    #[serde(default)]
    pub(crate) total: Option<u64>,
}

/// A change.
#[derive(Debug)]
pub(crate) struct ChangeLine<'a> {
    pub(crate) op: Op,
    /// The id of its schema; a message has none.
    pub(crate) table: Option<usize>,
    /// Its number within its transaction.
    pub(crate) number: u64,
    pub(crate) image: OldImage,
    pub(crate) old: Option<Vec<Cell<'a>>>,
    pub(crate) new: Option<Vec<Cell<'a>>>,
    /// Prefix and content of a message.
    pub(crate) message: Option<(Cow<'a, str>, Vec<u8>)>,
}

/// The last line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct End {
    /// Changes in the file.
    pub(crate) records: u64,
    /// Lines of the file, the first and the last one too.
    pub(crate) lines: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw<'a> {
    #[serde(default)]
    schema: Option<SchemaLine>,
    #[serde(default)]
    begin: Option<Begin>,
    #[serde(default)]
    end: Option<End>,
    #[serde(default)]
    op: Option<Op>,
    #[serde(default)]
    t: Option<usize>,
    #[serde(default)]
    n: Option<u64>,
    #[serde(default, borrow)]
    image: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    old: Option<Vec<Cell<'a>>>,
    #[serde(default, borrow)]
    new: Option<Vec<Cell<'a>>>,
    #[serde(default, borrow)]
    prefix: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    content: Option<Cow<'a, str>>,
}

/// Reads a line without its end. The error says what is wrong with it, for people.
pub(crate) fn parse(line: &[u8]) -> Result<Line<'_>, String> {
    let raw: Raw<'_> = serde_json::from_slice(line).map_err(|e| e.to_string())?;
    match raw {
        Raw { schema: Some(schema), begin: None, end: None, op: None, .. } => Ok(Line::Schema(schema)),
        Raw { begin: Some(begin), schema: None, end: None, op: None, .. } => Ok(Line::Begin(begin)),
        Raw { end: Some(end), schema: None, begin: None, op: None, .. } => Ok(Line::End(end)),
        Raw {
            op: Some(op),
            n: Some(number),
            schema: None,
            begin: None,
            end: None,
            t,
            image,
            old,
            new,
            prefix,
            content,
        } => change(op, number, t, image.as_deref(), old, new, (prefix, content)).map(Line::Change),
        Raw { op: Some(_), n: None, .. } => Err("a change without its number (n)".to_owned()),
        _ => Err("neither a schema, nor a begin, nor a change, nor an end".to_owned()),
    }
}

type Row<'a> = Option<Vec<Cell<'a>>>;
type Text<'a> = Option<Cow<'a, str>>;

fn change<'a>(
    op: Op,
    number: u64,
    table: Option<usize>,
    image: Option<&str>,
    old: Row<'a>,
    new: Row<'a>,
    message: (Text<'a>, Text<'a>),
) -> Result<ChangeLine<'a>, String> {
    let image = match (image, &old) {
        (None, None) => OldImage::None,
        (Some("key"), Some(_)) => OldImage::Key,
        (Some("full"), Some(_)) => OldImage::Full,
        _ => return Err("an old row and its image (key or full) must be there together".to_owned()),
    };
    let message = match (op, message, table) {
        (Op::Message, (Some(prefix), Some(content)), None) => {
            let content = super::hex::decode(&content).ok_or("the content is not hexadecimal digits")?;
            Some((prefix, content))
        }
        (Op::Message, ..) => return Err("a message has a prefix and a content, and no table (t)".to_owned()),
        (_, (None, None), Some(_)) => None,
        (_, _, None) => return Err("a change without its table (t)".to_owned()),
        _ => return Err("only a message has a prefix and a content".to_owned()),
    };
    let rows = (old.is_some(), new.is_some());
    let fits = match op {
        Op::Insert => rows == (false, true),
        Op::Update => rows.1,
        Op::Delete => rows == (true, false),
        _ => rows == (false, false),
    };
    if !fits {
        return Err("an insert has a new row, an update too, a delete an old one, and nothing else has any".to_owned());
    }
    if number == 0 || number == u64::MAX {
        return Err("a change's number (n) begins with 1".to_owned());
    }
    Ok(ChangeLine { op, table, number, image, old, new, message })
}

fn optional_hex<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<Bytes>, D::Error> {
    super::hex::deserialize(d).map(Some)
}
