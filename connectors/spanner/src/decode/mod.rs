//! Records of change streams, from the values that the protocol carries. No I/O: what is malformed
//! is an error that keeps the record's text.
//!
//! Three forms of one content (Spanner's documentation, "Change streams partitions, records, and
//! queries"): an array of structs in GoogleSQL, JSONB in the PostgreSQL dialect, and the message
//! `google.spanner.v1.ChangeStreamRecord` for streams with mutable key ranges.

mod json;
mod proto;
mod structs;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::client::{Instant, Kind, Row, SpannerValue};

pub(crate) use serde_json::Value as Json;

/// A record.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Record {
    Data(Box<DataRecord>),
    /// Everything at or before this time was sent.
    Heartbeat(Instant),
    /// The partition ends; these go on.
    Children(Children),
    /// Mutable key ranges: these partitions begin.
    Start {
        at: Instant,
        sequence: u32,
        tokens: Vec<String>,
    },
    /// Mutable key ranges: this partition ends.
    End {
        at: Instant,
        sequence: u32,
    },
    /// Mutable key ranges: rows moved between partitions.
    Event {
        at: Instant,
        sequence: u32,
        from: Vec<String>,
        to: Vec<String>,
    },
}

/// Changes of one table, of one kind, by one transaction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct DataRecord {
    pub(crate) commit: Instant,
    pub(crate) sequence: u32,
    pub(crate) transaction: String,
    pub(crate) table: String,
    pub(crate) columns: Vec<RecordColumn>,
    pub(crate) mods: Vec<Mod>,
    pub(crate) mod_type: ModType,
    pub(crate) capture: Capture,
    pub(crate) records_in_transaction: u64,
    pub(crate) partitions_in_transaction: u64,
    pub(crate) tag: String,
    pub(crate) system: bool,
}

impl DataRecord {
    /// About how much memory it occupies.
    pub(crate) fn memory_size(&self) -> usize {
        let values = |values: &Values| -> usize { values.iter().map(|(_, v)| 16 + v.memory_size()).sum() };
        let mods: usize = self.mods.iter().map(|m| 72 + values(&m.keys) + values(&m.new) + values(&m.old)).sum();
        size_of::<Self>() + self.columns.len() * 80 + mods
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RecordColumn {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) key: bool,
    pub(crate) ordinal: i64,
}

/// A row's change. Values stand with the places of their columns in the record.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Mod {
    pub(crate) keys: Values,
    pub(crate) new: Values,
    pub(crate) old: Values,
}

/// Some columns' values: the column's place in [`DataRecord::columns`], and the value.
pub(crate) type Values = Vec<(usize, SpannerValue)>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ModType {
    Insert,
    Update,
    Delete,
}

/// What a change stream captures of a row: its option `value_capture_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Capture {
    /// Changed columns, before and after. Spanner's default.
    OldAndNewValues,
    /// Changed columns, after.
    NewValues,
    /// All watched columns, after.
    NewRow,
    /// All watched columns after, and changed columns before.
    NewRowAndOldValues,
}

impl Capture {
    /// By the value of the option.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "OLD_AND_NEW_VALUES" => Self::OldAndNewValues,
            "NEW_VALUES" => Self::NewValues,
            "NEW_ROW" => Self::NewRow,
            "NEW_ROW_AND_OLD_VALUES" => Self::NewRowAndOldValues,
            _ => return None,
        })
    }

    /// The value of the option.
    pub fn name(self) -> &'static str {
        match self {
            Self::OldAndNewValues => "OLD_AND_NEW_VALUES",
            Self::NewValues => "NEW_VALUES",
            Self::NewRow => "NEW_ROW",
            Self::NewRowAndOldValues => "NEW_ROW_AND_OLD_VALUES",
        }
    }

    /// What is lost beside `NEW_ROW_AND_OLD_VALUES`.
    pub fn loses(self) -> Option<&'static str> {
        match self {
            Self::NewRowAndOldValues => None,
            Self::OldAndNewValues => Some(
                "an update carries only the columns that it changed: it cannot recreate a row that the target lacks, \
                 and a shard is known only where its column is in the key",
            ),
            Self::NewValues => Some(
                "an update carries only the columns that it changed, and a delete only its key: neither can be routed \
                 by another column, and dead letters have no old values",
            ),
            Self::NewRow => Some(
                "a delete carries only its key: it cannot be routed by another column, and dead letters have no old \
                 values",
            ),
        }
    }
}

/// The partitions that go on where one ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Children {
    pub(crate) start: Instant,
    pub(crate) children: Vec<Child>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Child {
    pub(crate) token: String,
    pub(crate) parents: Vec<String>,
}

/// In which form records come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// GoogleSQL: an array of structs.
    Structs,
    /// PostgreSQL dialect: JSONB.
    Json,
    /// A protocol buffer, in either dialect.
    Proto,
}

/// A record that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the change stream sent a record that cannot be read: {problem}; the record is {record}")]
pub(crate) struct DecodeError {
    pub(crate) problem: String,
    pub(crate) record: String,
}

/// How much of a record's text an error keeps, in bytes: enough to find it by, little enough to log.
const KEPT: usize = 16 * 1024;

/// The records of a row.
pub(crate) fn row(form: Form, row: &Row) -> Result<Vec<Record>, DecodeError> {
    let read = match (form, row.as_slice()) {
        (Form::Structs, [value]) => structs::records(value),
        (Form::Json, [value]) => json::record(value).map(|r| vec![r]),
        (Form::Proto, [value]) => proto::record(value).map(|r| vec![r]),
        (_, columns) => Err(format!("a row of {} columns", columns.len())),
    };
    read.map_err(|problem| DecodeError { problem, record: shown(row) })
}

/// A record that was read, and whose values turned out to be none of their types.
pub(crate) fn unusable(problem: String, record: &DataRecord) -> DecodeError {
    DecodeError { problem, record: cut(format!("{record:?}")) }
}

fn shown(row: &Row) -> String {
    cut(match row.as_slice() {
        [SpannerValue::Text(text)] => text.clone(),
        other => format!("{other:?}"),
    })
}

fn cut(mut text: String) -> String {
    if text.len() > KEPT {
        let at = (0..=KEPT).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(at);
        text.push_str("...");
    }
    text
}

/// A `record_sequence`: digits that sort as text do. Read as hexadecimal, they keep that order
/// whether they are decimal or not.
fn sequence(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 16).map_err(|_| format!("{text:?} is no record_sequence"))
}

fn instant(text: &str) -> Result<Instant, String> {
    text.parse()
}

fn mod_type(text: &str) -> Result<ModType, String> {
    match text {
        "INSERT" => Ok(ModType::Insert),
        "UPDATE" => Ok(ModType::Update),
        "DELETE" => Ok(ModType::Delete),
        _ => Err(format!("{text:?} is no mod_type")),
    }
}

fn capture(text: &str) -> Result<Capture, String> {
    Capture::parse(text).ok_or_else(|| format!("{text:?} is no value_capture_type"))
}

/// The values of a JSON object, by the places of its names among the columns.
fn values(object: &serde_json::Map<String, Json>, columns: &[RecordColumn]) -> Result<Values, String> {
    let mut values = Vec::with_capacity(object.len());
    for (name, value) in object {
        let at = columns.iter().position(|c| c.name == *name);
        let at = at.ok_or_else(|| format!("a value of the column {name}, which the record does not describe"))?;
        values.push((at, value_of(value, &columns[at].kind)?));
    }
    Ok(values)
}

fn value_of(value: &Json, kind: &Kind) -> Result<SpannerValue, String> {
    Ok(match (value, kind) {
        (Json::Null, _) => SpannerValue::Null,
        (Json::Array(list), Kind::Array(of)) => {
            SpannerValue::List(list.iter().map(|v| value_of(v, of)).collect::<Result<_, _>>()?)
        }
        // A JSON column is a string of JSON; one that is not is kept as its text all the same.
        (Json::String(text), _) => SpannerValue::Text(text.clone()),
        (other, Kind::Json | Kind::PgJsonb) => SpannerValue::Text(other.to_string()),
        (Json::Bool(v), _) => SpannerValue::Bool(*v),
        // Digits as they are written: a number beyond 53 bits keeps all of them.
        (Json::Number(v), Kind::Int64 | Kind::PgOid | Kind::Enum(_) | Kind::Numeric | Kind::PgNumeric) => {
            SpannerValue::Text(v.to_string())
        }
        (Json::Number(v), _) => SpannerValue::Number(v.as_f64().ok_or("a number that is none")?),
        (Json::Array(_) | Json::Object(_), _) => return Err("a value of an unexpected shape".to_owned()),
    })
}
