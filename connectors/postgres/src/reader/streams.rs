//! Large transactions that the server sends before they end (protocol version 2), kept in files.
//!
//! Nothing of them is given before their commit. Then they are read back and go the way of all
//! others, so memory stays bounded however large they are. The files have no names and vanish with
//! the reader; after a reconnection the server begins such transactions anew.
//!
//! The calls block, on purpose: the file was written a moment ago and is read front to back, 256 KiB
//! at a time, mostly from and to the page cache, for about 0.1 ms a call, which is what decoding as
//! much costs anyway. A detour over another thread would cost more than that. Between calls the
//! reader gives way: see `Consumed::Pause`.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};

use anabranch_core::{Error, Result};

use crate::error::protocol;
use crate::lsn::Lsn;

/// What reads and writes of a spill file fetch at a time. Bytes.
const BUFFER: usize = 256 * 1024;

/// The transactions that are being streamed.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    spills: HashMap<u32, Spill>,
    /// The one whose messages come now.
    current: Option<u32>,
}

/// The messages of one transaction: subtransaction, length, message; without the id that streamed
/// messages carry.
#[derive(Debug)]
struct Spill {
    file: BufWriter<File>,
    messages: u64,
    /// Subtransactions that were rolled back. Their ids are not used again.
    aborted: HashSet<u32>,
}

/// A committed transaction that is being read back.
#[derive(Debug)]
pub(crate) struct Replay {
    file: BufReader<File>,
    left: u64,
    aborted: HashSet<u32>,
    message: Vec<u8>,
    pub(crate) commit_lsn: Lsn,
    pub(crate) end_lsn: Lsn,
}

impl Streams {
    /// Whether messages belong to a streamed transaction now.
    pub(crate) fn is_open(&self) -> bool {
        self.current.is_some()
    }

    pub(crate) fn start(&mut self, xid: u32, first: bool) -> Result<()> {
        if self.current.replace(xid).is_some() {
            return Err(protocol(format!("the stream of transaction {xid} begins within another one")));
        }
        if first {
            let file = tempfile::tempfile().map_err(spilling)?;
            let file = BufWriter::with_capacity(BUFFER, file);
            self.spills.insert(xid, Spill { file, messages: 0, aborted: HashSet::new() });
        } else if !self.spills.contains_key(&xid) {
            return Err(protocol(format!("the stream of transaction {xid} goes on before it began")));
        }
        Ok(())
    }

    pub(crate) fn stop(&mut self) -> Result<()> {
        self.current.take().map(drop).ok_or_else(|| protocol("a stream ends before it began"))
    }

    /// Keeps a message of the current transaction; `xid` is that of its subtransaction, if it carries one.
    pub(crate) fn keep(&mut self, xid: Option<u32>, message: &[u8]) -> Result<()> {
        let spill = self.current.and_then(|current| self.spills.get_mut(&current).map(|s| (current, s)));
        let Some((current, spill)) = spill else { return Err(protocol("a message outside of any stream")) };
        let (tag, rest) = message.split_at_checked(1).ok_or_else(|| protocol("an empty message"))?;
        let rest = if xid.is_some() { rest.get(4..).unwrap_or_default() } else { rest };
        let write = |file: &mut BufWriter<File>| -> io::Result<()> {
            file.write_all(&xid.unwrap_or(current).to_be_bytes())?;
            file.write_all(&(rest.len() as u32 + 1).to_be_bytes())?;
            file.write_all(tag)?;
            file.write_all(rest)
        };
        spill.messages += 1;
        write(&mut spill.file).map_err(spilling)
    }

    /// A subtransaction was rolled back, or the whole one.
    pub(crate) fn abort(&mut self, xid: u32, subxid: u32) {
        if xid == subxid {
            self.spills.remove(&xid);
        } else if let Some(spill) = self.spills.get_mut(&xid) {
            spill.aborted.insert(subxid);
        }
    }

    pub(crate) fn commit(&mut self, xid: u32, commit_lsn: Lsn, end_lsn: Lsn) -> Result<Replay> {
        let spill = self.spills.remove(&xid);
        let spill = spill.ok_or_else(|| protocol(format!("transaction {xid} commits and was not streamed")))?;
        let mut file = spill.file.into_inner().map_err(|e| spilling(e.into_error()))?;
        file.seek(SeekFrom::Start(0)).map_err(spilling)?;
        Ok(Replay {
            file: BufReader::with_capacity(BUFFER, file),
            left: spill.messages,
            aborted: spill.aborted,
            message: Vec::new(),
            commit_lsn,
            end_lsn,
        })
    }
}

/// What [`Replay::next`] found.
#[derive(Debug)]
pub(crate) enum Replayed<'a> {
    /// A message of the transaction.
    Message(&'a [u8]),
    /// One of a part that was rolled back: it is left out.
    RolledBack,
    /// There are no more.
    End,
}

impl Replay {
    /// Reads one message.
    pub(crate) fn next(&mut self) -> Result<Replayed<'_>> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(Replayed::End) };
        self.left = left;
        let mut head = [0; 8];
        self.file.read_exact(&mut head).map_err(spilling)?;
        let [a, b, c, d, length @ ..] = head;
        let length = u32::from_be_bytes(length) as usize;
        if self.aborted.contains(&u32::from_be_bytes([a, b, c, d])) {
            self.file.seek_relative(length as i64).map_err(spilling)?;
            return Ok(Replayed::RolledBack);
        }
        self.message.resize(length, 0);
        self.file.read_exact(&mut self.message).map_err(spilling)?;
        Ok(Replayed::Message(&self.message))
    }
}

fn spilling(e: io::Error) -> Error {
    Error::transient("cannot keep a large transaction in a temporary file")
        .hint("free space in the folder for temporary files (TMPDIR), or set source.streaming to false")
        .because(e)
}
