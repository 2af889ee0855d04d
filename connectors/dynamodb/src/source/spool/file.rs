//! A file of the spool: what a reader gave, in frames.
//!
//! A frame is a kind (one byte), the length of what follows (four bytes, big endian), its MD5, and the
//! bytes. What was written last may be torn: reading ends before the first frame that is not whole.
//! Nothing is lost by that: behind the last whole frame the stream itself is read, which tells if it
//! cannot give that any more.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use anabranch_core::{ChangeBatch, Partition, TableSchema, Timestamp};
use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};

/// A later version of this library reads what earlier ones wrote, and not the reverse.
const VERSION: u32 = 1;

/// Kind, length, checksum.
const HEAD: usize = 1 + 4 + 16;

/// What a file begins with: of which partition it is, and of which copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    version: u32,
    /// When the copy began.
    pub(super) begun: Timestamp,
    pub(super) partition: Partition,
    /// The columns of the batches.
    pub(super) schema: TableSchema,
}

impl Head {
    pub(super) fn new(begun: Timestamp, partition: Partition, schema: &TableSchema) -> Self {
        Self { version: VERSION, begun, partition, schema: schema.clone() }
    }
}

/// A frame, as bytes.
#[derive(Debug)]
pub(super) enum Frame {
    /// A batch, of the table's schema or of none.
    Batch { schemas: usize, bytes: Vec<u8> },
    /// The partition ended; these go on.
    Closed(Vec<Partition>),
}

const HEADER: u8 = b'h';
const CLOSED: u8 = b'c';
/// Batches have the number of their schemas for a kind: none or one.
const NO_SCHEMA: u8 = 0;
const ONE_SCHEMA: u8 = 1;

/// Appends.
#[derive(Debug)]
pub(super) struct Appender(File);

impl Appender {
    /// A new file, which is there with its head or not at all.
    pub(super) fn create(path: &Path, head: &Head) -> io::Result<Self> {
        let new = path.with_extension("new");
        let mut this = Self(File::create(&new)?);
        this.append(HEADER, &serde_json::to_vec(head)?)?;
        fs::rename(&new, path)?;
        Ok(this)
    }

    /// Goes on behind the frames that are whole.
    pub(super) fn reopen(path: &Path, whole: u64) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).open(path)?;
        file.set_len(whole)?;
        Ok(Self(file))
    }

    /// Gives the bytes that it took.
    pub(super) fn batch(&mut self, batch: &ChangeBatch) -> io::Result<u64> {
        let bytes = batch.spill().map_err(io::Error::other)?;
        let kind = if batch.schemas().is_empty() { NO_SCHEMA } else { ONE_SCHEMA };
        self.append(kind, &bytes)
    }

    pub(super) fn closed(&mut self, children: &[Partition]) -> io::Result<u64> {
        self.append(CLOSED, &serde_json::to_vec(children)?)
    }

    fn append(&mut self, kind: u8, bytes: &[u8]) -> io::Result<u64> {
        let length = u32::try_from(bytes.len()).map_err(|_| io::Error::other("a page of more than 4 GB"))?;
        let mut frame = Vec::with_capacity(HEAD + bytes.len());
        frame.push(kind);
        frame.extend(length.to_be_bytes());
        frame.extend(Md5::digest(bytes));
        frame.extend(bytes);
        self.0.write_all(&frame)?;
        Ok(frame.len() as u64)
    }
}

/// Reads the frames that are whole.
#[derive(Debug)]
pub(super) struct Frames {
    path: PathBuf,
    file: BufReader<File>,
    length: u64,
    whole: u64,
}

impl Frames {
    /// `None` if there is no file, or none with a head of this version.
    pub(super) fn open(path: &Path) -> io::Result<Option<(Head, Self)>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let length = file.metadata()?.len();
        let mut this = Self { path: path.to_owned(), file: BufReader::new(file), length, whole: 0 };
        let head = match this.frame()? {
            Some((HEADER, bytes)) => serde_json::from_slice(&bytes).ok().filter(|h: &Head| h.version == VERSION),
            _ => None,
        };
        Ok(head.map(|head| (head, this)))
    }

    /// The next frame; `None` behind the last that is whole.
    pub(super) fn next(&mut self) -> io::Result<Option<Frame>> {
        Ok(match self.frame()? {
            Some((kind @ (NO_SCHEMA | ONE_SCHEMA), bytes)) => Some(Frame::Batch { schemas: usize::from(kind), bytes }),
            Some((CLOSED, bytes)) => Some(Frame::Closed(serde_json::from_slice(&bytes)?)),
            Some((kind, _)) => return Err(io::Error::other(format!("a frame of the unknown kind {kind}"))),
            None => None,
        })
    }

    /// How many bytes were whole, up to here.
    pub(super) fn whole(&self) -> u64 {
        self.whole
    }

    fn frame(&mut self) -> io::Result<Option<(u8, Vec<u8>)>> {
        let left = self.length - self.whole;
        if left < HEAD as u64 {
            return Ok(self.torn(left));
        }
        let mut head = [0; HEAD];
        self.file.read_exact(&mut head)?;
        let [kind, a, b, c, d, sum @ ..] = head;
        let length = u32::from_be_bytes([a, b, c, d]);
        if u64::from(length) > left - HEAD as u64 {
            return Ok(self.torn(left));
        }
        let mut bytes = vec![0; length as usize];
        self.file.read_exact(&mut bytes)?;
        if Md5::digest(&bytes)[..] != sum {
            return Ok(self.torn(left));
        }
        self.whole += HEAD as u64 + u64::from(length);
        Ok(Some((kind, bytes)))
    }

    fn torn<T>(&self, left: u64) -> Option<T> {
        if left > 0 {
            tracing::warn!(file = %self.path.display(), bytes = left, "the end of a spool file is not whole: the stream is read there");
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use anabranch_core::{BatchBuilder, PartitionId, Position, TableName};

    use super::*;

    fn written(folder: &Path) -> PathBuf {
        let path = folder.join("a.spool");
        let partition = Partition::root(PartitionId::new("orders/a"));
        let schema = TableSchema { name: TableName::new("", "orders"), columns: Vec::new(), key: Vec::new() };
        let mut file =
            Appender::create(&path, &Head::new(Timestamp::from_micros(7), partition.clone(), &schema)).unwrap();
        for _ in 0..3 {
            let batch = BatchBuilder::new(PartitionId::new("orders/a")).finish(Position::default(), None).unwrap();
            file.batch(&batch).unwrap();
        }
        file.closed(&[partition]).unwrap();
        path
    }

    fn kinds(path: &Path) -> Option<String> {
        let (_, mut frames) = Frames::open(path).unwrap()?;
        let mut kinds = String::new();
        while let Some(frame) = frames.next().unwrap() {
            kinds.push(if matches!(frame, Frame::Batch { .. }) { 'b' } else { 'c' });
        }
        Some(kinds)
    }

    #[test]
    fn every_cut_and_every_flipped_byte_ends_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path());
        assert_eq!(kinds(&path).unwrap(), "bbbc");
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            fs::write(&path, &whole[..at]).unwrap();
            let cut = kinds(&path).unwrap_or_default();
            assert!(cut.len() < 4 && "bbbc".starts_with(&cut), "cut at {at}: {cut}");
            // The kind is not summed, but one that is not known is told.
            let mut flipped = whole.clone();
            flipped[at] ^= 0x40;
            fs::write(&path, &flipped).unwrap();
            let read = Frames::open(&path).unwrap().map(|(_, mut frames)| {
                let mut count = 0;
                while let Ok(Some(_)) = frames.next() {
                    count += 1;
                }
                count
            });
            assert!(read.unwrap_or_default() < 4, "flipped at {at}");
        }
    }

    #[test]
    fn a_torn_end_is_cut_off_and_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path());
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 3]).unwrap();
        let (_, mut frames) = Frames::open(&path).unwrap().unwrap();
        while frames.next().unwrap().is_some() {}
        Appender::reopen(&path, frames.whole()).unwrap().closed(&[]).unwrap();
        assert_eq!(kinds(&path).unwrap(), "bbbc");
    }
}
