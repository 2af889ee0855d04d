//! Messages of pgoutput: from what PostgreSQL writes for tables with the identity FULL to what
//! YugabyteDB's plugins write.

use std::io;

use crate::columns::Tables;
use crate::slots::Assigned;
use crate::wire::{broken, split_text};

/// Seconds from 1970 to 2000, where PostgreSQL's clock begins, in microseconds.
const EPOCH: u64 = 946_684_800_000_000;

/// A column's value: its kind, and its bytes if it has any.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Value(u8, Vec<u8>);

type Row = Vec<Value>;

/// The commit of a transaction, by its last message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Commit {
    pub(crate) at: u64,
    pub(crate) end: u64,
    pub(crate) micros: u64,
}

/// Reads COMMIT.
pub(crate) fn commit(message: &[u8]) -> Option<Commit> {
    let rest = message.strip_prefix(b"C")?;
    let number = |at: usize| rest.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes);
    Some(Commit { at: number(1)?, end: number(9)?, micros: number(17)?.wrapping_add(EPOCH) })
}

/// How many rows a transaction changes.
pub(crate) fn records(messages: &[Vec<u8>]) -> u64 {
    messages.iter().filter(|m| matches!(m.first(), Some(b'I' | b'U' | b'D'))).count() as u64
}

/// Who the stream is for.
pub(crate) struct Reader<'a> {
    pub(crate) identity: u8,
    pub(crate) port: u16,
    pub(crate) database: &'a str,
    pub(crate) tables: &'a mut Tables,
}

impl Reader<'_> {
    /// One message, as none, one or two.
    pub(crate) async fn rewrite(&mut self, message: &[u8], as_: Assigned) -> io::Result<Vec<Vec<u8>>> {
        let (tag, rest) = message.split_first().ok_or_else(|| broken("an empty message"))?;
        let micros = (as_.hybrid_time >> 12).wrapping_sub(EPOCH);
        Ok(match tag {
            b'B' => {
                let xid = rest.get(16..20).ok_or_else(|| broken("BEGIN is short"))?;
                vec![joined(&[b"B", &as_.lsn.to_be_bytes(), &micros.to_be_bytes(), xid])]
            }
            b'C' => {
                let end = as_.lsn + 1;
                vec![joined(&[b"C\0", &as_.lsn.to_be_bytes(), &end.to_be_bytes(), &micros.to_be_bytes()])]
            }
            b'R' => vec![self.relation(rest).await?],
            b'I' => vec![message.to_vec()],
            b'U' => self.update(rest)?,
            b'D' => vec![self.delete(rest)?],
            // TRUNCATE, messages and origins are not sent.
            b'T' | b'M' | b'O' => Vec::new(),
            _ => vec![message.to_vec()],
        })
    }

    async fn relation(&mut self, rest: &[u8]) -> io::Result<Vec<u8>> {
        let short = || broken("a relation is short");
        let (oid, after) = rest.split_first_chunk::<4>().ok_or_else(short)?;
        let (schema, after) = split_text(after);
        let (name, after) = split_text(after);
        let (count, mut after) = after.get(1..).and_then(|r| r.split_first_chunk::<2>()).ok_or_else(short)?;
        let mut columns = Vec::new();
        for _ in 0..u16::from_be_bytes(*count) {
            let (name, rest) = split_text(after.get(1..).ok_or_else(short)?);
            let (types, rest) = rest.split_first_chunk::<8>().ok_or_else(short)?;
            columns.push((name, *types));
            after = rest;
        }
        let names: Vec<String> = columns.iter().map(|(name, _)| name.clone()).collect();
        let key = self.tables.describe(self.port, self.database, u32::from_be_bytes(*oid), &names).await?;
        let mut out = joined(&[b"R", oid, schema.as_bytes(), b"\0", name.as_bytes(), b"\0", &[self.identity], count]);
        for ((name, types), key) in columns.iter().zip(key) {
            let flag = u8::from(*key || self.identity == b'f');
            out.extend_from_slice(&joined(&[&[flag], name.as_bytes(), b"\0", types]));
        }
        Ok(out)
    }

    fn update(&mut self, rest: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let short = || broken("an update is short");
        let (oid, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
        let rest = rest.strip_prefix(b"O").ok_or_else(|| broken("an update without its old row"))?;
        let (old, rest) = row(rest).ok_or_else(short)?;
        let rest = rest.strip_prefix(b"N").ok_or_else(short)?;
        let (mut new, _) = row(rest).ok_or_else(short)?;
        // There is no TOAST: every value is at hand.
        for (value, before) in new.iter_mut().zip(&old) {
            if value.0 == b'u' {
                value.clone_from(before);
            }
        }
        let key = self.tables.key(u32::from_be_bytes(*oid))?;
        if key.iter().zip(old.iter().zip(&new)).any(|(key, (old, new))| *key && old != new) {
            let delete = self.deleted(oid, &old)?;
            return Ok(vec![delete, joined(&[b"I", oid, b"N", &written(&new)])]);
        }
        Ok(vec![match self.identity {
            b'f' => joined(&[b"U", oid, b"O", &written(&old), b"N", &written(&new)]),
            b'c' => {
                let columns = key.iter().zip(old.iter().zip(&new));
                let sent = columns.map(|(key, (old, new))| match *key || old != new {
                    true => new.clone(),
                    false => Value(b'u', Vec::new()),
                });
                joined(&[b"U", oid, b"N", &written(&sent.collect::<Row>())])
            }
            _ => joined(&[b"U", oid, b"N", &written(&new)]),
        }])
    }

    fn delete(&mut self, rest: &[u8]) -> io::Result<Vec<u8>> {
        let short = || broken("a delete is short");
        let (oid, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
        let rest = rest.strip_prefix(b"O").ok_or_else(|| broken("a delete without its old row"))?;
        let (old, _) = row(rest).ok_or_else(short)?;
        self.deleted(oid, &old)
    }

    fn deleted(&self, oid: &[u8; 4], old: &Row) -> io::Result<Vec<u8>> {
        if self.identity == b'f' {
            return Ok(joined(&[b"D", oid, b"O", &written(old)]));
        }
        let key = self.tables.key(u32::from_be_bytes(*oid))?;
        let sent = key.iter().zip(old).map(|(key, old)| if *key { old.clone() } else { Value(b'n', Vec::new()) });
        Ok(joined(&[b"D", oid, b"K", &written(&sent.collect::<Row>())]))
    }
}

fn joined(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

fn row(bytes: &[u8]) -> Option<(Row, &[u8])> {
    let (count, mut rest) = bytes.split_first_chunk::<2>()?;
    let mut row = Row::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (kind, after) = rest.split_first()?;
        if matches!(kind, b't' | b'b') {
            let (length, after) = after.split_first_chunk::<4>()?;
            let (value, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize)?;
            row.push(Value(*kind, value.to_vec()));
            rest = after;
        } else {
            row.push(Value(*kind, Vec::new()));
            rest = after;
        }
    }
    Some((row, rest))
}

fn written(row: &Row) -> Vec<u8> {
    let mut bytes = (row.len() as u16).to_be_bytes().to_vec();
    for Value(kind, value) in row {
        bytes.push(*kind);
        if matches!(kind, b't' | b'b') {
            bytes.extend_from_slice(&(value.len() as u32).to_be_bytes());
            bytes.extend_from_slice(value);
        }
    }
    bytes
}
