//! Stream records as changes.

use std::sync::Arc;

use anabranch_core::{BatchBuilder, Error, OldImage, Op, Position, Result, Timestamp, Transaction};

use super::Settings;
use super::position::Ranks;
use super::setup::Table;
use crate::bookkeeping::{DELETED, MARKER, ORIGIN, written_by};
use crate::config::TtlDeletes;
use crate::decode::attribute::Item as _;
use crate::decode::wire::{Data, Item, Record, Text, Value};

/// The user of deletes by time to live (developer guide, "DynamoDB Streams and Time to Live").
const TTL_USER: &str = "dynamodb.amazonaws.com";

/// What a page of records came to.
#[derive(Debug)]
pub(super) struct Page {
    /// After its last record.
    pub(super) end: Position,
    /// When its first and its last record were made.
    pub(super) times: Option<(Timestamp, Timestamp)>,
    /// The bytes of its records, as the service counts them.
    pub(super) bytes: u64,
}

/// Adds the changes of a page. `None` for an empty one.
///
/// # Errors
/// `Fatal` for a record that is not as documented; `Config` for an attribute that does not go into
/// its declared column.
pub(super) fn decode(
    settings: &Settings,
    table: &Table,
    records: &[Record<'_>],
    batch: &mut BatchBuilder,
) -> Result<Option<Page>> {
    let mut ranks = Ranks::new(table.stream()?.epoch, records.len());
    let mut scratch = String::new();
    let mut page: Option<Page> = None;
    for record in records {
        let Some(data) = &record.data else { return Err(strange(table, record, "has no data")) };
        let Some(sequence) = &data.sequence_number else {
            return Err(strange(table, record, "has no sequence number"));
        };
        let (rank, end) = ranks.of(sequence.as_str())?;
        let time = data.time();
        if let Some(change) = Change::of(settings, table, record, data)? {
            let transaction = Transaction {
                rank,
                commit_time: time,
                origin: change.origin.map(Arc::from),
                tag: change.by_ttl.then(|| Arc::from("ttl")),
                total: Some(1),
            };
            batch.begin(transaction, 1);
            change.write(settings, table, batch, &mut scratch)?;
            batch.commit(end.clone());
        }
        let page = page.get_or_insert_with(|| Page { end: Position::default(), times: None, bytes: 0 });
        page.end = end;
        page.bytes += data.size_bytes.unwrap_or(0);
        if let Some(time) = time {
            page.times = Some((page.times.map_or(time, |(first, _)| first), time));
        }
    }
    Ok(page)
}

/// A change, borrowed from its record.
struct Change<'a> {
    op: Op,
    keys: &'a Item<'a>,
    old: Option<&'a Item<'a>>,
    new: Option<&'a Item<'a>>,
    origin: Option<&'a str>,
    by_ttl: bool,
}

impl<'a> Change<'a> {
    /// `None` for a record that is no change of a row: a marker, an echo, the end of a tombstone.
    fn of(settings: &Settings, table: &Table, record: &'a Record<'a>, data: &'a Data<'a>) -> Result<Option<Self>> {
        let Some(keys) = &data.keys else { return Err(strange(table, record, "has no key")) };
        let (old, new) = (data.old_image.as_ref(), data.new_image.as_ref());
        if [old, new].into_iter().flatten().any(|image| image.attribute(MARKER).is_some()) {
            return Ok(None);
        }
        let marker = |image: Option<&'a Item<'a>>| match image?.attribute(ORIGIN)? {
            Value::S(marker) => Some(marker.as_str()),
            _ => None,
        };
        // An application that changes an item leaves the marker of an earlier write where it was.
        let origin = written_by(marker(new), marker(old));
        if origin.is_some_and(|o| settings.skip_origins.iter().any(|skip| skip == o)) {
            return Ok(None);
        }
        let by_ttl = record.user.as_ref().and_then(|u| u.principal.as_ref()).is_some_and(|p| p.as_str() == TTL_USER);
        let is_tombstone = |image: Option<&Item<'_>>| image.is_some_and(|i| i.attribute(DELETED).is_some());
        let op = match record.event.as_ref().map(Text::as_str) {
            Some("INSERT" | "MODIFY") if is_tombstone(new) => Op::Delete,
            Some("INSERT") => Op::Insert,
            Some("MODIFY") if is_tombstone(old) => Op::Insert,
            Some("MODIFY") => Op::Update,
            Some("REMOVE") if is_tombstone(old) => return Ok(None),
            Some("REMOVE") if by_ttl && settings.ttl_deletes == TtlDeletes::Skip => return Ok(None),
            Some("REMOVE") => Op::Delete,
            other => {
                let name = other.unwrap_or("no");
                return Err(strange(table, record, &format!("has {name} event, which this version does not know")));
            }
        };
        if op != Op::Delete && new.is_none() {
            return Err(strange(table, record, "has no new image"));
        }
        Ok(Some(Self { op, keys, old, new, origin, by_ttl }))
    }

    fn write(&self, settings: &Settings, table: &Table, batch: &mut BatchBuilder, scratch: &mut String) -> Result<()> {
        let schema = batch.schema(table.layout.schema());
        batch.change(self.op, schema);
        let wants_old = self.op == Op::Delete || self.op == Op::Update && settings.old_items;
        match self.old {
            Some(old) if wants_old => {
                batch.old_row(OldImage::Full);
                table.layout.row(old, batch, scratch)?;
            }
            _ if self.op == Op::Delete => table.layout.key(self.keys, batch, scratch)?,
            _ => {}
        }
        if let Some(new) = self.new.filter(|_| self.op != Op::Delete) {
            batch.new_row();
            table.layout.row(new, batch, scratch)?;
        }
        Ok(())
    }
}

fn strange(table: &Table, record: &Record<'_>, what: &str) -> Error {
    Error::fatal(format!("the record {} of {} {what}", record.id.as_ref().map_or("?", Text::as_str), table.name))
}
