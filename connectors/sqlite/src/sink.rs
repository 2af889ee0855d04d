//! The file, and everything that it offers to a pipeline.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anabranch_core::{
    Checkpoint, Checkpointer, DeadLetterStore, Lane, ProgressStore, Result, Saved, Sink, SinkInfo, SinkWriter,
    TargetSchema, Verifier, Version,
};
use async_trait::async_trait;
use tokio::sync::{Mutex, MutexGuard, OnceCell};

use crate::connection::{BUSY_TIMEOUT, Database, Settings};
use crate::worker::Worker;
use crate::writer::SqliteWriter;
use crate::{SqliteCheckpointer, SqliteDeadLetters};

/// An SQLite file as a target, as a place for checkpoints, and as a dead-letter store.
///
/// Setters never fail and nothing is opened before the first use. Clones share one connection for
/// everything but the lanes' writers, which have one each.
///
/// ```no_run
/// use std::time::Duration;
/// use anabranch_sqlite::Sqlite;
/// let sink = Sqlite::open("replica.db").busy_timeout(Duration::from_secs(30));
/// ```
#[derive(Clone)]
pub struct Sqlite {
    pub(crate) shared: Arc<Shared>,
}

/// What the parts of one [`Sqlite`] share.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    /// SQLite has one writer at a time and lets the others poll for the lock; within this process a
    /// fair queue saves the polling, and keeps a busy stream from starving the checkpointer.
    turn: Mutex<()>,
    control: OnceCell<Worker<Database>>,
}

impl Sqlite {
    /// The file at `path`: created when it is first written to, if it is missing, in a folder that exists.
    pub fn open(path: impl Into<PathBuf>) -> Self {
        Self::with(Settings { key: "sink.path", path: path.into(), busy_timeout: BUSY_TIMEOUT })
    }

    /// How long to wait for a lock that another process holds before reporting `Transient`; 5 s by default.
    #[must_use]
    pub fn busy_timeout(self, timeout: Duration) -> Self {
        Self::with(Settings { busy_timeout: timeout, ..self.shared.settings.clone() })
    }

    /// What errors call the path: the section and key that it was given in. `sink.path` by default.
    #[must_use]
    pub fn named(self, key: &'static str) -> Self {
        Self::with(Settings { key, ..self.shared.settings.clone() })
    }

    /// A checkpointer in this file.
    pub fn checkpointer(&self) -> SqliteCheckpointer {
        SqliteCheckpointer::new(Arc::clone(&self.shared))
    }

    /// A dead-letter store in this file.
    pub fn dead_letters(&self) -> SqliteDeadLetters {
        SqliteDeadLetters::new(Arc::clone(&self.shared))
    }

    /// Finds what can be found without opening the file.
    ///
    /// # Errors
    /// [`Config`](anabranch_core::ErrorKind::Config), naming the key of the path.
    pub fn check(&self) -> Result<()> {
        self.shared.settings.check().map(drop)
    }

    fn with(settings: Settings) -> Self {
        Self { shared: Arc::new(Shared { settings, turn: Mutex::new(()), control: OnceCell::new() }) }
    }
}

impl Shared {
    /// The right to write, of those who share this; held across a write transaction.
    pub(crate) async fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Runs a job that only reads on the shared connection. It does not create the file: one that is
    /// missing is empty.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Database) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if self.control.get().is_none() && self.settings.is_missing()? {
            let settings = self.settings.clone();
            return Worker::start(move || settings.connect_to_nothing()).await?.call(|db| job(db)).await;
        }
        self.control().await?.call(|db| job(db)).await
    }

    /// Runs a job that writes on the shared connection, in a transaction of its own.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Database) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let worker = self.control().await?;
        let _turn = self.turn().await;
        worker
            .call(|db| {
                let transaction = db.begin()?;
                let result = job(db)?;
                db.commit(transaction)?;
                Ok(result)
            })
            .await
    }

    async fn control(&self) -> Result<&Worker<Database>> {
        self.control
            .get_or_try_init(|| async {
                // Two connections must not switch a new file to WAL at the same time.
                let _turn = self.turn().await;
                let settings = self.settings.clone();
                Worker::start(move || settings.connect()).await
            })
            .await
    }
}

#[async_trait]
impl Sink for Sqlite {
    fn info(&self) -> SinkInfo {
        SinkInfo { name: "sqlite", transactional: true, max_lanes: 1, schemas: false }
    }

    async fn open(&self, lane: Lane) -> Result<Box<dyn SinkWriter>> {
        Ok(Box::new(SqliteWriter::open(Arc::clone(&self.shared), lane).await?))
    }

    fn progress(&self) -> Option<&dyn ProgressStore> {
        Some(self)
    }

    fn checkpointer(&self) -> Option<Arc<dyn Checkpointer>> {
        Some(Arc::new(Sqlite::checkpointer(self)))
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetterStore>> {
        Some(Arc::new(Sqlite::dead_letters(self)))
    }

    fn target(&self) -> Option<&dyn TargetSchema> {
        Some(self)
    }

    fn verifier(&self) -> Option<&dyn Verifier> {
        Some(self)
    }
}

/// So that `.checkpointer(Sqlite::open("state.db"))` says all there is to say.
#[async_trait]
impl Checkpointer for Sqlite {
    async fn load(&self, pipeline: &str) -> Result<Option<(Version, Checkpoint)>> {
        Sqlite::checkpointer(self).load(pipeline).await
    }

    async fn save(&self, pipeline: &str, expected: Option<Version>, next: &Checkpoint) -> Result<Saved> {
        Sqlite::checkpointer(self).save(pipeline, expected, next).await
    }
}

impl fmt::Debug for Sqlite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sqlite").field("path", &self.shared.settings.path).finish_non_exhaustive()
    }
}
