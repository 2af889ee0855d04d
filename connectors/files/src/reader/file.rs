//! A window file while it is read.

use std::sync::Arc;

use anabranch_core::{Error, PartitionId, Result, TableSchema};
use bytes::Bytes;

use crate::error::damaged;
use crate::format::{FORMAT, Header};
use crate::ledger::ShardEntry;
use crate::names;

/// The longest line, in bytes: more is no row, and would take all memory.
const MAX_LINE: usize = 1 << 30;

/// Which file it has to be.
pub(crate) struct Expected<'a> {
    pub(crate) run: &'a str,
    pub(crate) partition: &'a PartitionId,
    pub(crate) number: u64,
    /// What the ledger tells of the shard.
    pub(crate) entry: Option<&'a ShardEntry>,
}

/// A file, and the bytes of it that were fetched and not read yet.
pub(crate) struct OpenFile {
    pub(crate) name: String,
    /// Its full name, for people.
    pub(crate) shown: String,
    pub(crate) number: u64,
    /// The shard's own name.
    pub(crate) shard: Option<String>,
    /// How many bytes were fetched.
    pub(crate) fetched: u64,
    size: u64,
    bytes: Bytes,
    /// How many lines were taken.
    pub(crate) line: u64,
    /// Lines up to this one were read in an earlier run.
    pub(crate) skip: u64,
    pub(crate) records: u64,
    pub(crate) schemas: Vec<Arc<TableSchema>>,
    /// Its last line was taken.
    pub(crate) ended: bool,
}

impl OpenFile {
    /// `None`: the file does not count.
    pub(crate) fn new(
        name: String,
        shown: String,
        bytes: Bytes,
        size: u64,
        skip: u64,
        expected: &Expected<'_>,
    ) -> Result<Option<Self>> {
        let fetched = bytes.len() as u64;
        let mut file = Self {
            name,
            shown,
            number: expected.number,
            shard: None,
            fetched,
            size,
            bytes,
            line: 0,
            skip,
            records: 0,
            schemas: Vec::new(),
            ended: false,
        };
        let Some(line) = file.next_line()? else { return Err(damaged(&file.shown, "it has no first line")) };
        let header = file.header(&line, expected)?;
        // Of a writer that died before its commit, under a name that its successor had no use for.
        let writer = expected.entry.filter(|_| header.number <= expected.number);
        let writer = writer.and_then(|entry| entry.epoch_of(header.number));
        if writer.is_some_and(|epoch| epoch != header.epoch) {
            tracing::warn!(file = file.shown, "a file that was never committed is left out");
            return Ok(None);
        }
        file.check_number(&header, expected)?;
        file.shard = header.shard;
        Ok(Some(file))
    }

    /// Adds what was fetched next.
    pub(crate) fn append(&mut self, bytes: Bytes) -> Result<()> {
        if bytes.is_empty() || self.bytes.len() > MAX_LINE {
            return Err(damaged(&self.shown, format!("line {} has no end", self.line + 1)));
        }
        self.fetched += bytes.len() as u64;
        self.bytes = if self.bytes.is_empty() { bytes } else { [&self.bytes[..], &bytes[..]].concat().into() };
        Ok(())
    }

    /// The next line that was fetched whole; `None` if more has to be fetched.
    pub(crate) fn next_line(&mut self) -> Result<Option<Bytes>> {
        match self.bytes.iter().position(|&b| b == b'\n') {
            Some(end) => {
                let mut line = self.bytes.split_to(end + 1);
                line.truncate(end);
                self.line += 1;
                Ok(Some(line))
            }
            None if self.fetched >= self.size && !self.ended => {
                Err(damaged(&self.shown, format!("it ends after line {}, without its last line", self.line)))
            }
            None => Ok(None),
        }
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.ended
    }

    /// An error of the line that was taken last.
    pub(crate) fn wrong(&self, problem: impl std::fmt::Display) -> Error {
        damaged(&self.shown, format!("line {}: {problem}", self.line)).hint("the file was left as it is")
    }

    fn header(&self, line: &[u8], expected: &Expected<'_>) -> Result<Header> {
        let value: serde_json::Value = serde_json::from_slice(line).map_err(|e| self.wrong(e))?;
        let format = value.get("anabranch_window").and_then(serde_json::Value::as_u64).unwrap_or_default();
        if format > u64::from(FORMAT) {
            let problem = format!("{} has format {format}, and this version of anabranch knows {FORMAT}", self.shown);
            return Err(Error::config("source.path", problem).hint("run the version that wrote it, or a later one"));
        }
        let header: Header = serde_json::from_value(value).map_err(|e| self.wrong(e))?;
        let shard = names::shard(header.shard.as_deref());
        if header.run != expected.run || shard != expected.partition.as_str() {
            let of = format!("it is of the run {} and the shard {shard}", header.run);
            return Err(self.wrong(of));
        }
        Ok(header)
    }

    fn check_number(&self, header: &Header, expected: &Expected<'_>) -> Result<()> {
        if header.number > expected.number {
            let folder = self.shown.strip_suffix(&self.name).unwrap_or_default();
            let named = match &header.previous {
                Some(previous) if header.number == expected.number + 1 => format!("{folder}{previous}"),
                _ => format!("the file before {}", self.shown),
            };
            return Err(super::missing(&named, expected.number));
        }
        if header.number < expected.number {
            return Err(self.wrong(format!("its number is {}, and {} comes next", header.number, expected.number)));
        }
        Ok(())
    }
}
