//! pgoutput's messages, protocol versions 1 and 2.

use anabranch_core::Timestamp;

use super::DecodeError;
use super::cursor::Cursor;
use super::tuple::Tuple;
use crate::lsn::{Lsn, from_postgres_time};

/// A message. Between [`Message::StreamStart`] and [`Message::StreamStop`] the messages of rows carry
/// the transaction's id, which [`decode`] gives beside them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Message<'a> {
    Begin { commit_lsn: Lsn, commit_time: Timestamp },
    Commit { commit_lsn: Lsn, end_lsn: Lsn, commit_time: Timestamp },
    Origin { name: &'a str },
    Relation(Relation<'a>),
    Type { oid: u32, schema: &'a str, name: &'a str },
    Insert { relation: u32, new: Tuple<'a> },
    Update { relation: u32, old: Option<Old<'a>>, new: Tuple<'a> },
    Delete { relation: u32, old: Old<'a> },
    Truncate { relations: Oids<'a>, cascade: bool, restart_identity: bool },
    Logical { transactional: bool, prefix: &'a str, content: &'a [u8] },
    StreamStart { xid: u32, first: bool },
    StreamStop,
    StreamCommit { xid: u32, commit_lsn: Lsn, end_lsn: Lsn, commit_time: Timestamp },
    StreamAbort { xid: u32, subxid: u32 },
}

/// The old row of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Old<'a> {
    /// Every column (`O`), or only those of the identity (`K`), with NULL for all others.
    pub(crate) full: bool,
    pub(crate) row: Tuple<'a>,
}

/// A table, as it was when the changes that follow were made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Relation<'a> {
    pub(crate) oid: u32,
    /// Empty for `pg_catalog`.
    pub(crate) schema: &'a str,
    pub(crate) name: &'a str,
    /// `d`, `n`, `f` or `i`, as `pg_class.relreplident`.
    pub(crate) identity: u8,
    columns: u16,
    bytes: &'a [u8],
}

/// A column of a [`Relation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RelationColumn<'a> {
    /// Part of the identity.
    pub(crate) key: bool,
    pub(crate) name: &'a str,
    pub(crate) type_oid: u32,
    pub(crate) type_modifier: i32,
}

/// Object identifiers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Oids<'a>(&'a [u8]);

impl<'a> Oids<'a> {
    pub(crate) fn iter(self) -> impl Iterator<Item = u32> + 'a {
        self.0.as_chunks::<4>().0.iter().map(|oid| u32::from_be_bytes(*oid))
    }
}

impl<'a> Relation<'a> {
    /// The columns in order. Checked when the message was decoded.
    pub(crate) fn columns(self) -> impl Iterator<Item = RelationColumn<'a>> {
        let mut c = Cursor(self.bytes);
        (0..self.columns).map_while(move |_| relation_column(&mut c).ok())
    }

    fn decode(c: &mut Cursor<'a>) -> Result<Self, DecodeError> {
        let (oid, schema, name, identity, columns) = (c.u32()?, c.text()?, c.text()?, c.u8()?, c.count16()?);
        let begin = c.0;
        for _ in 0..columns {
            relation_column(c)?;
        }
        Ok(Self { oid, schema, name, identity, columns, bytes: &begin[..begin.len() - c.0.len()] })
    }
}

fn relation_column<'a>(c: &mut Cursor<'a>) -> Result<RelationColumn<'a>, DecodeError> {
    Ok(RelationColumn { key: c.u8()? & 1 != 0, name: c.text()?, type_oid: c.u32()?, type_modifier: c.i32()? })
}

/// Reads one message. `streaming`: we are between a stream's start and its stop; the id of the
/// (sub)transaction is then given too.
pub(crate) fn decode(bytes: &[u8], streaming: bool) -> Result<(Message<'_>, Option<u32>), DecodeError> {
    let mut c = Cursor(bytes);
    let tag = c.u8()?;
    let xid = match tag {
        b'R' | b'Y' | b'I' | b'U' | b'D' | b'T' | b'M' if streaming => Some(c.u32()?),
        _ => None,
    };
    let message = match tag {
        b'I' => {
            let relation = c.u32()?;
            expect(&mut c, b'N')?;
            Message::Insert { relation, new: Tuple::decode(&mut c)? }
        }
        b'U' => update(&mut c)?,
        b'D' => {
            let relation = c.u32()?;
            let kind = c.u8()?;
            Message::Delete { relation, old: old(kind, &mut c)? }
        }
        b'B' => {
            let (commit_lsn, commit_time) = (lsn(&mut c)?, time(&mut c)?);
            c.u32()?;
            Message::Begin { commit_lsn, commit_time }
        }
        b'C' => {
            c.u8()?;
            Message::Commit { commit_lsn: lsn(&mut c)?, end_lsn: lsn(&mut c)?, commit_time: time(&mut c)? }
        }
        b'O' => {
            c.u64()?;
            Message::Origin { name: c.text()? }
        }
        b'R' => Message::Relation(Relation::decode(&mut c)?),
        b'Y' => Message::Type { oid: c.u32()?, schema: c.text()?, name: c.text()? },
        b'T' => {
            let count = c.length()?;
            let options = c.u8()?;
            let oids = c.bytes(count.checked_mul(4).ok_or(DecodeError::Short)?)?;
            Message::Truncate { relations: Oids(oids), cascade: options & 1 != 0, restart_identity: options & 2 != 0 }
        }
        b'M' => {
            let transactional = c.u8()? & 1 != 0;
            c.u64()?;
            let prefix = c.text()?;
            let length = c.length()?;
            Message::Logical { transactional, prefix, content: c.bytes(length)? }
        }
        b'S' => Message::StreamStart { xid: c.u32()?, first: c.u8()? == 1 },
        b'E' => Message::StreamStop,
        b'c' => {
            let xid = c.u32()?;
            c.u8()?;
            Message::StreamCommit { xid, commit_lsn: lsn(&mut c)?, end_lsn: lsn(&mut c)?, commit_time: time(&mut c)? }
        }
        b'A' => Message::StreamAbort { xid: c.u32()?, subxid: c.u32()? },
        tag => return Err(DecodeError::Unknown { what: "pgoutput message", tag: char::from(tag) }),
    };
    c.end()?;
    Ok((message, xid))
}

fn update<'a>(c: &mut Cursor<'a>) -> Result<Message<'a>, DecodeError> {
    let relation = c.u32()?;
    let mut kind = c.u8()?;
    let mut before = None;
    if kind != b'N' {
        before = Some(old(kind, c)?);
        kind = c.u8()?;
    }
    if kind != b'N' {
        return Err(DecodeError::Unknown { what: "kind of row", tag: char::from(kind) });
    }
    Ok(Message::Update { relation, old: before, new: Tuple::decode(c)? })
}

fn old<'a>(kind: u8, c: &mut Cursor<'a>) -> Result<Old<'a>, DecodeError> {
    match kind {
        b'K' | b'O' => Ok(Old { full: kind == b'O', row: Tuple::decode(c)? }),
        other => Err(DecodeError::Unknown { what: "kind of row", tag: char::from(other) }),
    }
}

fn expect(c: &mut Cursor<'_>, tag: u8) -> Result<(), DecodeError> {
    match c.u8()? {
        found if found == tag => Ok(()),
        found => Err(DecodeError::Unknown { what: "kind of row", tag: char::from(found) }),
    }
}

fn lsn(c: &mut Cursor<'_>) -> Result<Lsn, DecodeError> {
    c.u64().map(Lsn)
}

fn time(c: &mut Cursor<'_>) -> Result<Timestamp, DecodeError> {
    c.i64().map(from_postgres_time)
}

#[cfg(test)]
pub(crate) mod frames;
#[cfg(test)]
mod tests;
