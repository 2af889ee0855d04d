//! Window files as a target.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anabranch_core::{
    Checkpointer, DeadLetterStore, Error, ErrorKind, Lane, LanePurpose, ProgressStore, Relay, Result, Sink, SinkInfo,
    SinkWriter,
};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, MutexGuard};

use crate::ledger::{Ledger, Tables};
use crate::location::Location;
use crate::store::{Store, Tag};
use crate::writer::Writer;
use crate::{FilesCheckpointer, FilesDeadLetters, WindowSource};

/// The length of a window unless set.
const WINDOW: Duration = Duration::from_secs(10);

/// The size at which a file is closed and a part begun, unless set. Few requests for many changes, and
/// small enough to be held whole on both sides.
const MAX_FILE: usize = 16 << 20;

/// A run of window files: for each shard the changes of each window of commit times, as JSON lines.
///
/// Setters never fail and nothing is opened before the first use. Use it with the order `window` (or
/// `transaction`), without a snapshot. Progress is stored with the files and fenced by the epoch, so
/// every change is in them exactly once, whenever the writer dies.
///
/// ```no_run
/// use std::time::Duration;
/// use anabranch_files::WindowFiles;
/// let sink = WindowFiles::new("gs://bucket/orders").run("2026-11").window(Duration::from_secs(10));
/// ```
#[derive(Clone)]
pub struct WindowFiles {
    pub(crate) shared: Arc<Shared>,
}

/// What orders the changes of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ranks {
    /// The ranks that they had at the source: for sources whose ranks grow with commit time over all
    /// partitions (PostgreSQL, Spanner).
    #[default]
    Source,
    /// Commit time, then the source's rank: for sources whose partitions number their changes apart
    /// (DynamoDB).
    CommitTime,
}

/// What is set.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) location: Location,
    pub(crate) run: String,
    pub(crate) window: Duration,
    pub(crate) max_file: usize,
    pub(crate) ranks: Ranks,
}

/// What the parts of one [`WindowFiles`] share.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    taken: Mutex<Option<Taken>>,
}

/// A run that was taken over: its ledger as it is stored.
pub(crate) struct Taken {
    pub(crate) store: Store,
    pub(crate) ledger: Ledger,
    pub(crate) tag: Tag,
    pub(crate) tables: Tables,
}

impl WindowFiles {
    /// Window files in this folder.
    pub fn new(location: impl Into<Location>) -> Self {
        Self::with(Settings {
            location: location.into().section("sink"),
            run: "default".to_owned(),
            window: WINDOW,
            max_file: MAX_FILE,
            ranks: Ranks::Source,
        })
    }

    /// The name of the run: a folder. `default` unless set. A run belongs to one pipeline.
    #[must_use]
    pub fn run(self, run: impl Into<String>) -> Self {
        Self::with(Settings { run: run.into(), ..self.shared.settings.clone() })
    }

    /// The length of a window; 10 s unless set. A run keeps the one that it began with.
    #[must_use]
    pub fn window(self, window: Duration) -> Self {
        Self::with(Settings { window, ..self.shared.settings.clone() })
    }

    /// The size in bytes at which a file is closed, and a part begun; 16 MiB unless set.
    #[must_use]
    pub fn max_file(self, bytes: usize) -> Self {
        Self::with(Settings { max_file: bytes, ..self.shared.settings.clone() })
    }

    /// What orders the changes of a shard. A run keeps what it began with.
    #[must_use]
    pub fn ranks(self, ranks: Ranks) -> Self {
        Self::with(Settings { ranks, ..self.shared.settings.clone() })
    }

    /// The same run as a source.
    pub fn source(&self) -> WindowSource {
        WindowSource::new(self.shared.settings.location.clone()).run(self.shared.settings.run.clone())
    }

    /// Finds what can be found without a connection.
    ///
    /// # Errors
    /// [`Config`](anabranch_core::ErrorKind::Config), naming the key.
    pub fn check(&self) -> Result<()> {
        let settings = &self.shared.settings;
        if settings.run.is_empty() {
            return Err(Error::config("sink.run", "is empty").hint("name the run"));
        }
        if settings.window < Duration::from_millis(1) {
            return Err(Error::config("sink.window_seconds", "must be at least 0.001"));
        }
        if settings.max_file == 0 {
            return Err(Error::config("sink.max_file_mib", "must be at least 1"));
        }
        settings.location.check()
    }

    /// A checkpointer in the folder of the run.
    pub fn checkpointer(&self) -> FilesCheckpointer {
        FilesCheckpointer::new(self.beside("_checkpoints"))
    }

    /// A dead-letter store in the folder of the run.
    pub fn dead_letters(&self) -> FilesDeadLetters {
        FilesDeadLetters::new(self.beside("_dead_letters"))
    }

    fn beside(&self, folder: &str) -> Location {
        let settings = &self.shared.settings;
        settings.location.clone().folder(&crate::names::escape(&settings.run)).folder(folder)
    }

    fn with(settings: Settings) -> Self {
        Self { shared: Arc::new(Shared { settings, taken: Mutex::new(None) }) }
    }
}

impl Settings {
    pub(crate) fn window_micros(&self) -> i64 {
        i64::try_from(self.window.as_micros()).unwrap_or(i64::MAX).max(1)
    }
}

impl Shared {
    /// The run that `take_over` left, for as long as it is used.
    pub(crate) async fn taken(&self) -> MutexGuard<'_, Option<Taken>> {
        self.taken.lock().await
    }
}

impl Taken {
    /// Changes the ledger and stores it: the moment at which what it names is there.
    ///
    /// # Errors
    /// [`Fenced`](ErrorKind::Fenced) if a newer run has taken over;
    /// [`Indeterminate`](ErrorKind::Indeterminate) if an earlier write's outcome was lost.
    pub(crate) async fn commit(&mut self, epoch: u64, change: impl FnOnce(&mut Ledger)) -> Result<()> {
        if self.ledger.epoch != epoch {
            return Err(fenced(&self.ledger, epoch));
        }
        let mut next = self.ledger.clone();
        change(&mut next);
        // What comes of a write that fails is not known: the one after it finds the tag changed.
        match next.save(&self.store, Some(&self.tag)).await.map_err(|e| match e.kind() {
            ErrorKind::Transient => e.with_kind(ErrorKind::Indeterminate),
            _ => e,
        })? {
            Some(tag) => {
                (self.ledger, self.tag) = (next, tag);
                Ok(())
            }
            None => {
                self.still_mine(epoch).await?;
                Err(Error::indeterminate("the ledger of the run was written in between: its state is read again"))
            }
        }
    }

    /// That the stored ledger is of this epoch.
    pub(crate) async fn still_mine(&self, epoch: u64) -> Result<()> {
        match Ledger::load(&self.store, &self.ledger.run).await? {
            Some((stored, _)) if stored.epoch == epoch => Ok(()),
            Some((stored, _)) => Err(fenced(&stored, epoch)),
            None => Err(Error::fatal(format!("the ledger of the run {} is gone", self.ledger.run))
                .hint("begin a run of another name; what was written is still there")),
        }
    }
}

fn fenced(stored: &Ledger, epoch: u64) -> Error {
    Error::fenced(format!(
        "another runner has taken over the run {} of the pipeline {} (epoch {}, this one had {epoch})",
        stored.run, stored.pipeline, stored.epoch
    ))
}

#[async_trait]
impl Sink for WindowFiles {
    fn info(&self) -> SinkInfo {
        // One lane: what one commit of the ledger names takes effect at once, over all shards.
        SinkInfo { name: "files", transactional: true, max_lanes: 1, schemas: true }
    }

    async fn open(&self, lane: Lane) -> Result<Box<dyn SinkWriter>> {
        if lane.purpose == LanePurpose::Snapshot {
            return Err(Error::config("source.snapshot", "window files hold changes, and no copies of tables")
                .hint("set snapshot = \"never\", and copy the tables to the target by a pipeline of its own before"));
        }
        Ok(Box::new(Writer::open(Arc::clone(&self.shared), lane.epoch).await?))
    }

    fn progress(&self) -> Option<&dyn ProgressStore> {
        Some(self)
    }

    fn checkpointer(&self) -> Option<Arc<dyn Checkpointer>> {
        Some(Arc::new(WindowFiles::checkpointer(self)))
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetterStore>> {
        Some(Arc::new(WindowFiles::dead_letters(self)))
    }

    fn relay(&self) -> Option<&dyn Relay> {
        Some(self)
    }
}

impl fmt::Debug for WindowFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.settings.fmt(f)
    }
}
