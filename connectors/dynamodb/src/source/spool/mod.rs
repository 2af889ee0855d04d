//! The spool: what the streams give while a copy lasts, on local disk, for copies that may take longer
//! than DynamoDB keeps records.
//!
//! While the tables are scanned, [`Spooling`] reads their streams into a file for each shard. After it
//! each shard is read from its file ([`SpooledReader`]), and behind the file's end from the stream. A
//! file goes when what follows it is recorded as durable.
//!
//! ```text
//!   DIR/orders-1763719200000/        the table, and the epoch of its stream
//!       lock                         one copy at a time; touched while the streams are read
//!       root.spool                   the shards that there were
//!       shardId-0001.spool           what a shard gave, and at its end its children
//! ```

mod file;
mod replay;
mod tail;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use anabranch_core::{Error, Partition, PartitionId, Result, Timestamp};

use tokio::time::{Instant, sleep};

use super::setup::Table;
use file::Frames;
pub(super) use replay::SpooledReader;
pub(super) use tail::Spooling;

/// Where the spool is, and how large it may become.
#[derive(Debug, Clone)]
pub(crate) struct SpoolSettings {
    pub(crate) folder: PathBuf,
    pub(crate) max_bytes: u64,
}

/// If not set: room for a day of a busy table's changes, and a disk that is not full at once.
pub(crate) const MAX_BYTES: u64 = 50 << 30;

/// How long a spool that another copy has is waited for, and how often it is asked for.
const PATIENCE: Duration = Duration::from_secs(20);
const ASK: Duration = Duration::from_millis(50);

/// The spool of one table.
#[derive(Debug, Clone)]
struct Folder(PathBuf);

impl Folder {
    fn of(settings: &SpoolSettings, table: &Table) -> Result<Self> {
        // Table names have no separators: letters, digits, `_`, `-` and `.`.
        Ok(Self(settings.folder.join(format!("{}-{}", table.name, table.stream()?.epoch))))
    }

    /// The file of a partition.
    fn file(&self, partition: &PartitionId) -> PathBuf {
        let shard = partition.as_str().split_once('/').map_or("root", |(_, shard)| shard);
        let safe = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
        self.0.join(format!("{}.spool", shard.chars().map(safe).collect::<String>()))
    }

    fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// Until when the streams were read for sure.
    fn until(&self) -> Option<Timestamp> {
        let modified = fs::metadata(self.lock()).and_then(|m| m.modified()).ok()?;
        let since = modified.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Some(Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX)))
    }

    /// Whether it holds the streams since the beginning of this copy.
    fn is_of(&self, begun: Timestamp, table: &Table) -> io::Result<bool> {
        let root = Frames::open(&self.file(&PartitionId::new(table.name.as_str())))?;
        Ok(root.is_some_and(|(head, _)| head.begun == begun && head.schema == **table.layout.schema()))
    }

    /// Removes the files of these, which nobody reads again, and the folder with the last of them.
    fn remove<'a>(&self, partitions: impl Iterator<Item = &'a PartitionId>) {
        for partition in partitions {
            // What cannot be removed takes room, and does no harm.
            let _ = fs::remove_file(self.file(partition));
        }
        if self.files().is_ok_and(|files| files.is_empty()) {
            let _ = fs::remove_file(self.lock());
            let _ = fs::remove_dir(&self.0);
        }
    }

    fn files(&self) -> io::Result<Vec<PathBuf>> {
        let all = fs::read_dir(&self.0)?.collect::<io::Result<Vec<_>>>()?;
        Ok(all.into_iter().map(|f| f.path()).filter(|p| p.extension().is_some_and(|e| e == "spool")).collect())
    }

    /// Makes it, for this copy alone. An earlier run may be on its way out: it is waited for.
    async fn open(&self) -> Result<File> {
        let failed = |e| failed(&self.0, e);
        fs::create_dir_all(&self.0).map_err(failed)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let lock = File::options().create(true).truncate(false).write(true).open(self.lock()).map_err(failed)?;
            match lock.try_lock() {
                Ok(()) => return Ok(lock),
                Err(fs::TryLockError::WouldBlock) if Instant::now() < deadline => sleep(ASK).await,
                Err(fs::TryLockError::WouldBlock) => {
                    return Err(Error::transient(format!("another process spools to {}", self.0.display()))
                        .hint("give each pipeline a folder of its own in source.spool"));
                }
                Err(fs::TryLockError::Error(e)) => return Err(failed(e)),
            }
        }
    }
}

/// Whether a copy that began then has its streams on disk: it may go on however long ago that was.
pub(super) fn holds(settings: Option<&SpoolSettings>, begun: Timestamp, table: &Table) -> bool {
    let Some(folder) = settings.and_then(|s| Folder::of(s, table).ok()) else { return false };
    folder.is_of(begun, table).unwrap_or(false)
}

/// A reader of a partition's file, if it has one of the copy that began then. Another one was left behind by
/// a pipeline that was given up.
fn frames(folder: &Folder, partition: &Partition, table: &Table, begun: Timestamp) -> Result<Option<Frames>> {
    let path = folder.file(&partition.id);
    let Some((head, frames)) = Frames::open(&path).map_err(|e| failed(&path, e))? else { return Ok(None) };
    if head.partition.id != partition.id || head.begun != begun {
        return Ok(None);
    }
    if head.schema != **table.layout.schema() {
        return Err(Error::config(
            "source.columns",
            format!("the columns of {} were changed, and its stream is spooled with others", table.name),
        )
        .hint("put columns, document and document_column back until the copy is through"));
    }
    Ok(Some(frames))
}

fn failed(path: &Path, e: io::Error) -> Error {
    Error::transient(format!("the spool {}", path.display()))
        .hint("check that source.spool is a folder that this process may write to")
        .because(e)
}
