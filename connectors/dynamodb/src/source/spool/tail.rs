//! Reads the streams of tables into files while the tables are copied.

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use anabranch_core::{
    ChangeReader, Error, ErrorKind, Next, Partition, PartitionId, Position, Result, StartFrom, TableSnapshot, Timestamp,
};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{interval, sleep};

use super::super::root::RootReader;
use super::super::scan::COPY;
use super::super::setup::{Table, ended};
use super::super::shard::ShardReader;
use super::super::{Connected, END};
use super::file::{Appender, Frame, Frames, Head};
use super::{Folder, SpoolSettings, failed, holds};

/// How often the spool is marked as up to date.
const TOUCH: Duration = Duration::from_secs(10);

/// Between two tries after an error that passes.
const AGAIN: Duration = Duration::from_secs(1);

/// Safe times within the spool are none: the copy is not through. A time far behind every record.
const NEVER: i64 = i64::MAX / 4;

/// Streams that are being read to disk, until it is dropped.
#[derive(Debug)]
pub(in super::super) struct Spooling {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    connected: Connected,
    begun: Timestamp,
    max_bytes: u64,
    bytes: AtomicU64,
    full: AtomicBool,
    failure: std::sync::Mutex<Option<Error>>,
}

impl Spooling {
    /// Begins, or goes on where an earlier process stopped.
    pub(in super::super) async fn start(
        connected: &Connected,
        settings: &SpoolSettings,
        tables: &[Arc<Table>],
        begun: Timestamp,
    ) -> Result<Self> {
        let shared = Arc::new(Shared {
            connected: connected.clone(),
            begun,
            max_bytes: settings.max_bytes,
            bytes: AtomicU64::new(0),
            full: AtomicBool::new(false),
            failure: std::sync::Mutex::default(),
        });
        let mut spools = Vec::new();
        for table in tables {
            let folder = Folder::of(settings, table)?;
            let lock = folder.open().await?;
            if !holds(Some(settings), begun, table) {
                // Of an earlier copy, or of none.
                for file in folder.files().map_err(|e| failed(&folder.0, e))? {
                    std::fs::remove_file(&file).map_err(|e| failed(&file, e))?;
                }
            }
            spools.push(Spool { shared: Arc::clone(&shared), table: Arc::clone(table), folder, lock: Arc::new(lock) });
        }
        let all = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            let mut running = JoinSet::new();
            spools.into_iter().for_each(|spool| drop(running.spawn(spool.run())));
            while let Some(ended) = running.join_next().await {
                let error = match ended {
                    Ok(Ok(())) => continue,
                    Ok(Err(error)) => error,
                    Err(e) => Error::fatal("the spooling of a stream panicked").because(e),
                };
                tracing::error!(error = %error.report(), "the stream is not spooled any more");
                *all.failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
                return;
            }
        });
        Ok(Self { shared, task })
    }

    /// Why the spooling ended, if the copy cannot be of use without it. Told once.
    pub(in super::super) fn failure(&self) -> Option<Error> {
        self.shared.failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
    }
}

impl Drop for Spooling {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The spool of one table.
#[derive(Debug, Clone)]
struct Spool {
    shared: Arc<Shared>,
    table: Arc<Table>,
    folder: Folder,
    /// Held as long as anything is written.
    lock: Arc<File>,
}

impl Spool {
    async fn run(self) -> Result<()> {
        let root = Partition::root(PartitionId::new(self.table.name.as_str()));
        // The root lists a shard together with its children: the end of the shard tells of them again.
        let mut followed = BTreeSet::from([root.id.clone()]);
        let mut following = JoinSet::new();
        following.spawn(self.clone().follow(root));
        let mut touch = interval(TOUCH);
        loop {
            tokio::select! {
                biased;
                // 1. A shard ended: its children are read next.
                ended = following.join_next() => match ended {
                    Some(Ok(children)) => {
                        for child in children? {
                            if followed.insert(child.id.clone()) {
                                following.spawn(self.clone().follow(child));
                            }
                        }
                    }
                    Some(Err(e)) => return Err(Error::fatal("the spooling of a shard panicked").because(e)),
                    None => return Ok(()),
                },
                // 2. Only while everything is being read, and only up to when it was: a shard may fail for hours.
                _ = touch.tick() => {
                    let reached = self.shared.connected.needed().all_reached(&self.table.name);
                    if let Some(reached) = reached.filter(|_| !self.shared.full.load(Ordering::Relaxed)) {
                        let since = u64::try_from(reached.as_micros()).unwrap_or_default();
                        let _ = self.lock.set_modified(UNIX_EPOCH + Duration::from_micros(since));
                    }
                }
            }
        }
    }

    /// Reads a partition into its file until it ends, and gives its children.
    async fn follow(self, partition: Partition) -> Result<Vec<Partition>> {
        let path = self.folder.file(&partition.id);
        let found = {
            // As long as the file is: not on a thread that others wait for.
            let (path, schema) = (path.clone(), Arc::clone(self.table.layout.schema()));
            let reading = move || Known::read(&path, schema);
            tokio::task::spawn_blocking(reading).await.map_err(|e| Error::fatal("reading a spool file").because(e))?
        };
        let (mut file, mut position) = match found.map_err(|e| failed(&path, e))? {
            Some(Known { children: Some(children), bytes, .. }) => {
                self.shared.bytes.fetch_add(bytes, Ordering::Relaxed);
                return Ok(self.known(children));
            }
            Some(Known { end, bytes, .. }) => {
                self.shared.bytes.fetch_add(bytes, Ordering::Relaxed);
                (Appender::reopen(&path, bytes).map_err(|e| failed(&path, e))?, end)
            }
            None => match self.create(&partition) {
                Ok(file) => (file, None),
                // A spool that cannot even be begun is told before the copy begins.
                Err(e) if partition.id.as_str() == self.table.name => return Err(failed(&path, e)),
                Err(e) => {
                    self.full(&path, &e.to_string());
                    return Ok(Vec::new());
                }
            },
        };
        let needed = self.shared.connected.needed();
        // What comes behind the file is needed from when that was written last.
        let mut reached = position.as_ref().and_then(|_| self.folder.until());
        loop {
            let mut reader = self.reader(&partition, position.clone())?;
            if reached.is_some() {
                needed.opened(&partition.id, reached);
            }
            loop {
                match reader.next().await {
                    Ok(Next::Batch(batch)) if batch.is_empty() => {}
                    Ok(Next::Batch(batch)) => {
                        let Some(()) = self.written(&path, file.batch(&batch)) else { return Ok(Vec::new()) };
                        position = Some(batch.end().clone());
                        reader.acknowledge(position.as_ref()).await?;
                    }
                    Ok(Next::Closed { children }) => {
                        let followed = self.known(children.clone());
                        // Before the parent counts as ended: whoever reads that finds them.
                        for child in &followed {
                            if !self.has(child)? {
                                let begun = self.create(child).map(|_| 0);
                                let Some(()) = self.written(&self.folder.file(&child.id), begun) else {
                                    return Ok(Vec::new());
                                };
                            }
                        }
                        let Some(()) = self.written(&path, file.closed(&children)) else { return Ok(Vec::new()) };
                        return Ok(followed);
                    }
                    Ok(Next::Stopped) => break,
                    Err(e) if e.kind() == ErrorKind::Transient => {
                        tracing::warn!(partition = %partition.id, error = %e.report(), "spooled again from there");
                        reached = needed.reached(&partition.id);
                        sleep(AGAIN).await;
                        break;
                    }
                    Err(e) => return Err(e),
                }
            }
        }
    }

    /// The end of a disabled stream is no shard to follow. It stays among what the file tells of: so the
    /// pipeline hears of it after the replay.
    fn known(&self, children: Vec<Partition>) -> Vec<Partition> {
        let is_end = |p: &Partition| p.id.as_str().strip_prefix(&self.table.name) == Some(&format!("/{END}"));
        if children.iter().any(is_end) {
            tracing::warn!(error = %ended(&self.table).report(), "the stream was disabled during the copy");
        }
        children.into_iter().filter(|p| !is_end(p)).collect()
    }

    /// Whether a partition has a file, which somebody may be writing.
    fn has(&self, partition: &Partition) -> Result<bool> {
        let path = self.folder.file(&partition.id);
        Frames::open(&path).map(|found| found.is_some()).map_err(|e| failed(&path, e))
    }

    fn create(&self, partition: &Partition) -> std::io::Result<Appender> {
        let head = Head::new(self.shared.begun, partition.clone(), self.table.layout.schema());
        Appender::create(&self.folder.file(&partition.id), &head)
    }

    fn reader(&self, partition: &Partition, position: Option<Position>) -> Result<Box<dyn ChangeReader>> {
        let copy = TableSnapshot {
            point: super::super::scan::point(self.shared.begun),
            finished_at: Some(Timestamp::from_micros(NEVER)),
            ..TableSnapshot::default()
        };
        let snapshots = [(self.table.layout.schema().name.clone(), copy)].into();
        let (connected, table) = (self.shared.connected.clone(), Arc::clone(&self.table));
        let from = StartFrom { position, snapshots };
        Ok(match partition.id.as_str().split_once('/') {
            None => Box::new(RootReader::new(connected, table, &from)),
            Some((_, shard)) => Box::new(ShardReader::new(connected, table, shard, partition, &from)?),
        })
    }

    /// `None`: there is no room for more. What is not spooled is read from the stream after the copy,
    /// which tells if it could not wait so long.
    fn written(&self, path: &std::path::Path, result: std::io::Result<u64>) -> Option<()> {
        let shared = &self.shared;
        match result {
            Ok(bytes) if shared.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= shared.max_bytes => {
                return Some(());
            }
            Ok(_) => {
                self.full(path, &format!("it has {} bytes, as many as source.spool_max_gb allows", shared.max_bytes));
            }
            Err(e) => self.full(path, &e.to_string()),
        }
        None
    }

    fn full(&self, path: &std::path::Path, why: &str) {
        let shared = &self.shared;
        if !shared.full.swap(true, Ordering::Relaxed) {
            let path = path.display();
            tracing::warn!(%path, why, "the spool takes no more: the copy has 24 hours from here on");
            // From now on it counts what the stream keeps.
            shared.connected.needed().opened(&PartitionId::new(COPY), Some(shared.connected.now()));
        }
    }
}

/// What an earlier process wrote.
struct Known {
    end: Option<Position>,
    children: Option<Vec<Partition>>,
    bytes: u64,
}

impl Known {
    fn read(path: &std::path::Path, schema: Arc<anabranch_core::TableSchema>) -> std::io::Result<Option<Self>> {
        let Some((_, mut frames)) = Frames::open(path)? else { return Ok(None) };
        let (mut last, mut children) = (None, None);
        while let Some(frame) = frames.next()? {
            match frame {
                Frame::Batch { .. } => last = Some(frame),
                Frame::Closed(all) => children = Some(all),
            }
        }
        let end = match last {
            Some(Frame::Batch { schemas, bytes }) => {
                let schemas = vec![schema; schemas];
                let batch = anabranch_core::ChangeBatch::unspill(schemas, &bytes).map_err(std::io::Error::other)?;
                Some(batch.end().clone())
            }
            _ => None,
        };
        Ok(Some(Self { end, children, bytes: frames.whole() }))
    }
}
