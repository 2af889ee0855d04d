//! Records of a change stream, before they are put into one of its three forms.

use std::sync::Arc;

use serde_json::{Map, Value as Json};

use crate::table::Table;
use crate::time::Time;

/// A record, at its place in a partition.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Record {
    pub(crate) at: Time,
    pub(crate) entry: Entry,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Entry {
    Data(Arc<Data>),
    Heartbeat,
    Children {
        sequence: u64,
        children: Vec<(String, Vec<String>)>,
    },
    Start {
        sequence: u64,
        tokens: Vec<String>,
    },
    End {
        sequence: u64,
    },
    Event {
        sequence: u64,
        moved_in: Vec<String>,
        moved_out: Vec<String>,
    },
    /// A row as a test wrote it, whatever it is.
    Raw(Json),
}

impl Entry {
    /// Its `record_sequence`, if it has one.
    pub(crate) fn sequence(&self) -> Option<u64> {
        match self {
            Self::Data(data) => Some(data.sequence),
            Self::Children { sequence, .. }
            | Self::Start { sequence, .. }
            | Self::End { sequence }
            | Self::Event { sequence, .. } => Some(*sequence),
            Self::Heartbeat | Self::Raw(_) => None,
        }
    }
}

/// A data change record.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Data {
    pub(crate) at: Time,
    pub(crate) sequence: u64,
    pub(crate) transaction: String,
    pub(crate) last_in_partition: bool,
    pub(crate) table: Arc<Table>,
    pub(crate) mods: Vec<Mod>,
    pub(crate) kind: ModType,
    pub(crate) capture: Capture,
    pub(crate) records: u64,
    pub(crate) partitions: u64,
    pub(crate) tag: String,
    pub(crate) system: bool,
}

/// The change of one row. Values are those of JSON in change records: INT64 and NUMERIC as strings.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Mod {
    pub(crate) keys: Map<String, Json>,
    pub(crate) new: Map<String, Json>,
    pub(crate) old: Map<String, Json>,
}

/// What happened to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are Spanner's")]
pub enum ModType {
    Insert,
    Update,
    Delete,
}

impl ModType {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Insert => "INSERT",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
        }
    }
}

/// Which values a stream captures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[allow(missing_docs, reason = "the names are Spanner's")]
pub enum Capture {
    OldAndNewValues,
    NewValues,
    NewRow,
    #[default]
    NewRowAndOldValues,
}

impl Capture {
    /// As the DDL and the records write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::OldAndNewValues => "OLD_AND_NEW_VALUES",
            Self::NewValues => "NEW_VALUES",
            Self::NewRow => "NEW_ROW",
            Self::NewRowAndOldValues => "NEW_ROW_AND_OLD_VALUES",
        }
    }
}

/// `00000007`.
pub(crate) fn sequence_text(sequence: u64) -> String {
    format!("{sequence:08}")
}
