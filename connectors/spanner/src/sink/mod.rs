//! Spanner as a target: mutations in one transaction with their progress, tagged, and left out of
//! change streams.

mod array;
mod codec;
mod config;
mod contract;
mod describe;
mod dialect;
mod failure;
mod native;
mod plan;
mod program;
mod progress;
mod run;
mod target;
mod writer;

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anabranch_core::{
    Checkpoint, Checkpointer, DeadLetterStore, Error, Lane, ProgressStore, Result, Saved, Sink, SinkInfo, SinkWriter,
    TargetSchema, Verifier, Version,
};
use async_trait::async_trait;
use tokio::sync::OnceCell;

use crate::client::{
    Client, Instant, Official, ReadAt, Row, SpannerResult, SpannerValue, Statement, Transaction, TransactionOptions,
    Work,
};
use crate::{SpannerCheckpointer, SpannerDeadLetters};
pub(crate) use codec::Codec;
pub use config::SpannerSinkConfig;
pub(crate) use contract::route;
pub(crate) use describe::table as describe_table;
pub(crate) use dialect::{Dialect, int64, string};
pub(crate) use native::Native;
use writer::SpannerWriter;

/// The longest tag (Spanner's documentation, "Troubleshooting with request tags and transaction tags").
const TAG_CHARS: usize = 50;

/// How many lanes may write. Spanner takes any number of writers; each has transactions of its own.
const MAX_LANES: u32 = 64;

/// A Spanner database as a target, as a place for checkpoints, and as a dead-letter store.
///
/// Setters never fail and nothing is connected before the first use. Clones share one client.
///
/// ```no_run
/// use anabranch_spanner::SpannerSink;
/// let sink = SpannerSink::new("projects/p/instances/i/databases/shop").tag("txBy=orders");
/// ```
#[derive(Clone)]
pub struct SpannerSink {
    pub(crate) shared: Arc<Shared>,
}

/// What the sink was told.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    database: String,
    endpoint: Option<String>,
    admin_endpoint: Option<String>,
    role: Option<String>,
    tag: Option<String>,
    exclude: bool,
    commit_timestamps: Vec<String>,
    client: Option<Arc<dyn Client>>,
}

/// What the parts of one sink share.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    client: OnceCell<Arc<dyn Client>>,
    dialect: OnceCell<Dialect>,
    /// The server has refused to leave a transaction out of change streams.
    exclusion_refused: AtomicBool,
    /// Tables that the sink keeps for itself and that were seen to be there.
    seen: Mutex<HashSet<String>>,
}

impl SpannerSink {
    /// The database `projects/PROJECT/instances/INSTANCE/databases/DATABASE`, on Google's service, or
    /// on the emulator that `SPANNER_EMULATOR_HOST` names.
    pub fn new(database: impl Into<String>) -> Self {
        Self::with(Settings {
            database: database.into(),
            endpoint: None,
            admin_endpoint: None,
            role: None,
            tag: None,
            exclude: true,
            commit_timestamps: Vec::new(),
            client: None,
        })
    }

    /// The service's address: `http://host:port` speaks without TLS and credentials.
    #[must_use]
    pub fn endpoint(self, endpoint: impl Into<String>) -> Self {
        Self::with(Settings { endpoint: Some(endpoint.into()), ..self.shared.settings.clone() })
    }

    /// The address of the REST administration, for DDL. By default Google's, or ten ports above an
    /// emulator's.
    #[must_use]
    pub fn admin_endpoint(self, endpoint: impl Into<String>) -> Self {
        Self::with(Settings { admin_endpoint: Some(endpoint.into()), ..self.shared.settings.clone() })
    }

    /// The database role to take on (fine-grained access control).
    #[must_use]
    pub fn role(self, role: impl Into<String>) -> Self {
        Self::with(Settings { role: Some(role.into()), ..self.shared.settings.clone() })
    }

    /// The tag of every transaction, by which a pipeline in the other direction leaves it out. By
    /// default `txBy=` and the pipeline's name, cut to 50 characters. An empty one sets none.
    #[must_use]
    pub fn tag(self, tag: impl Into<String>) -> Self {
        Self::with(Settings { tag: Some(tag.into()), ..self.shared.settings.clone() })
    }

    /// Whether change streams with `allow_txn_exclusion = true` leave the sink's transactions out; true by
    /// default. A server that does not know this (the emulator 1.5.28) is told no more of it.
    #[must_use]
    pub fn exclude_from_change_streams(self, exclude: bool) -> Self {
        Self::with(Settings { exclude, ..self.shared.settings.clone() })
    }

    /// This column, `table.column`, gets the time of the target's commit whatever the source sends.
    #[must_use]
    pub fn commit_timestamp(self, column: impl Into<String>) -> Self {
        let mut settings = self.shared.settings.clone();
        settings.commit_timestamps.push(column.into());
        Self::with(settings)
    }

    /// A client that is there already, in place of the official one.
    #[must_use]
    pub fn client(self, client: Arc<dyn Client>) -> Self {
        Self::with(Settings { client: Some(client), ..self.shared.settings.clone() })
    }

    /// A checkpointer in this database.
    pub fn checkpointer(&self) -> SpannerCheckpointer {
        SpannerCheckpointer::new(Arc::clone(&self.shared))
    }

    /// A dead-letter store in this database.
    pub fn dead_letters(&self) -> SpannerDeadLetters {
        SpannerDeadLetters::new(Arc::clone(&self.shared))
    }

    /// Finds what can be found without a connection.
    ///
    /// # Errors
    /// [`Config`](anabranch_core::ErrorKind::Config), naming the key.
    pub fn check(&self) -> Result<()> {
        let settings = &self.shared.settings;
        let parts: Vec<&str> = settings.database.split('/').collect();
        if !matches!(parts[..], ["projects", _, "instances", _, "databases", _]) || parts.iter().any(|p| p.is_empty()) {
            let problem = format!("{:?} does not name a Spanner database", settings.database);
            return Err(
                Error::config("database", problem).hint("write projects/PROJECT/instances/INSTANCE/databases/DATABASE")
            );
        }
        if settings.tag.as_ref().is_some_and(|tag| tag.chars().count() > TAG_CHARS) {
            return Err(
                Error::config("tag", format!("has more than {TAG_CHARS} characters")).hint("choose a shorter one")
            );
        }
        match settings.commit_timestamps.iter().find(|c| c.split('.').filter(|p| !p.is_empty()).count() != 2) {
            Some(column) => Err(Error::config("commit_timestamps", format!("{column:?} does not name a column"))
                .hint("write \"table.column\"")),
            None => Ok(()),
        }
    }

    fn with(settings: Settings) -> Self {
        Self {
            shared: Arc::new(Shared {
                settings,
                client: OnceCell::new(),
                dialect: OnceCell::new(),
                exclusion_refused: AtomicBool::new(false),
                seen: Mutex::default(),
            }),
        }
    }
}

impl Settings {
    /// Whether the column gets the time of the commit.
    pub(crate) fn is_stamped(&self, table: &str, column: &str) -> bool {
        self.commit_timestamps.iter().any(|c| c.split_once('.') == Some((table, column)))
    }

    fn tag_of(&self, pipeline: &str) -> Option<String> {
        let tag = self.tag.clone().unwrap_or_else(|| format!("txBy={pipeline}"));
        // Tags are printable ASCII (the same page).
        let plain = tag.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '_' });
        Some(plain.take(TAG_CHARS).collect::<String>()).filter(|tag| !tag.is_empty())
    }
}

/// Work, and whether its last try came to its end, so that a commit may have been sent.
struct Watched<'a> {
    work: &'a mut dyn Work,
    finished: bool,
}

#[async_trait]
impl Work for Watched<'_> {
    async fn run(&mut self, transaction: &dyn Transaction) -> SpannerResult<()> {
        self.finished = false;
        self.work.run(transaction).await?;
        self.finished = true;
        Ok(())
    }
}

/// A table that the sink keeps for itself: its name, its columns, and how many of them are its key.
pub(crate) type Bookkeeping<'a> = (&'a str, &'a [(&'a str, &'a str)], usize);

impl Shared {
    pub(crate) async fn client(&self) -> Result<&Arc<dyn Client>> {
        let connect = || async {
            if let Some(client) = &self.settings.client {
                return Ok(Arc::clone(client));
            }
            let mut builder = Official::builder(&*self.settings.database);
            if let Some(endpoint) = &self.settings.endpoint {
                builder = builder.endpoint(endpoint.clone());
            }
            if let Some(endpoint) = &self.settings.admin_endpoint {
                builder = builder.admin_endpoint(endpoint.clone());
            }
            if let Some(role) = &self.settings.role {
                builder = builder.role(role.clone());
            }
            Ok(Arc::new(builder.connect().await?) as Arc<dyn Client>)
        };
        self.client.get_or_try_init(connect).await
    }

    pub(crate) async fn dialect(&self) -> Result<Dialect> {
        let ask = || async {
            let sql = "SELECT option_value FROM information_schema.database_options \
                       WHERE option_name = 'database_dialect'";
            let rows = self.query(Statement::new(sql), "cannot read the database's dialect").await?;
            let name = rows.first().and_then(|row| row.first()).and_then(SpannerValue::as_text);
            Ok(Dialect::named(name.unwrap_or_default()))
        };
        self.dialect.get_or_try_init(ask).await.copied()
    }

    /// The dialect, where something was asked of the database before.
    pub(crate) fn known_dialect(&self) -> Dialect {
        self.dialect.get().copied().unwrap_or(Dialect::Google)
    }

    /// All rows of a query, of one moment.
    pub(crate) async fn query(&self, statement: Statement, doing: &str) -> Result<Vec<Row>> {
        let failed = |e: crate::client::SpannerError| e.into_core(doing.to_owned());
        let mut rows = self.client().await?.query(statement, ReadAt::Strong).await.map_err(failed)?;
        let mut all = Vec::new();
        while let Some(row) = rows.next().await.map_err(failed)? {
            all.push(row);
        }
        Ok(all)
    }

    /// Commits `work` with the tag of the pipeline, left out of change streams if that is wanted.
    pub(crate) async fn transact(&self, pipeline: &str, work: &mut dyn Work) -> SpannerResult<Instant> {
        let client = self
            .client()
            .await
            .map_err(|e| crate::client::SpannerError::new(crate::client::Code::Unavailable, e.report()))?;
        let exclude = self.settings.exclude && !self.exclusion_refused.load(Ordering::Relaxed);
        let options = TransactionOptions { tag: self.settings.tag_of(pipeline), exclude_from_change_streams: exclude };
        let mut watched = Watched { work, finished: false };
        let done = match client.transact(options.clone(), &mut watched).await {
            Err(e) if exclude && failure::refuses_exclusion(&e) => {
                tracing::warn!(
                    reason = %e,
                    "the server cannot leave transactions out of change streams; only their tag tells them apart"
                );
                self.exclusion_refused.store(true, Ordering::Relaxed);
                let options = TransactionOptions { exclude_from_change_streams: false, ..options };
                client.transact(options, &mut watched).await
            }
            other => other,
        };
        done.map_err(|error| failure::of_lost_transaction(error, watched.finished))
    }

    /// Whether this table of the sink's own is there. Looked for until it is.
    pub(crate) async fn has(&self, table: &str) -> Result<bool> {
        let seen = || self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen().contains(table) {
            return Ok(true);
        }
        let there = describe::exists(self, table).await?;
        if there {
            seen().insert(table.to_owned());
        }
        Ok(there)
    }

    /// Creates tables that the sink keeps for itself, as far as they are missing. Looked at first: a
    /// change of the schema takes Spanner long.
    pub(crate) async fn create_missing(&self, tables: &[Bookkeeping<'_>]) -> Result<()> {
        let dialect = self.dialect().await?;
        let mut statements = Vec::new();
        for (name, columns, key) in tables {
            if !self.has(name).await? {
                statements.push(describe::bookkeeping(dialect, name, columns, *key));
            }
        }
        if statements.is_empty() {
            return Ok(());
        }
        let doing = "cannot create the tables that anabranch keeps for itself";
        self.client().await?.apply_ddl(statements).await.map_err(|e| e.into_core(doing))
    }
}

#[async_trait]
impl Sink for SpannerSink {
    fn info(&self) -> SinkInfo {
        SinkInfo { name: "spanner", transactional: true, max_lanes: MAX_LANES, schemas: false }
    }

    async fn open(&self, lane: Lane) -> Result<Box<dyn SinkWriter>> {
        self.shared.dialect().await?;
        Ok(Box::new(SpannerWriter::new(Arc::clone(&self.shared), lane)))
    }

    fn progress(&self) -> Option<&dyn ProgressStore> {
        Some(self)
    }

    fn checkpointer(&self) -> Option<Arc<dyn Checkpointer>> {
        Some(Arc::new(SpannerSink::checkpointer(self)))
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetterStore>> {
        Some(Arc::new(SpannerSink::dead_letters(self)))
    }

    fn target(&self) -> Option<&dyn TargetSchema> {
        Some(self)
    }

    fn verifier(&self) -> Option<&dyn Verifier> {
        Some(self)
    }
}

/// So that `.checkpointer(SpannerSink::new(database))` says all there is to say.
#[async_trait]
impl Checkpointer for SpannerSink {
    async fn load(&self, pipeline: &str) -> Result<Option<(Version, Checkpoint)>> {
        SpannerSink::checkpointer(self).load(pipeline).await
    }

    async fn save(&self, pipeline: &str, expected: Option<Version>, next: &Checkpoint) -> Result<Saved> {
        SpannerSink::checkpointer(self).save(pipeline, expected, next).await
    }
}

impl fmt::Debug for SpannerSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpannerSink").field("database", &self.shared.settings.database).finish_non_exhaustive()
    }
}
