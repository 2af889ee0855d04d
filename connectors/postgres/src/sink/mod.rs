//! Writes to PostgreSQL: whole target transactions, in bulk, with their progress.
//!
//! ```text
//! BEGIN READ WRITE                             one flight: nothing is awaited before all is sent
//!   UPDATE anabranch.lane ... WHERE epoch = e    the fence: one row, or the run is Fenced
//!   SAVEPOINT                                    what is refused is tried again in another mode
//!     DELETE / INSERT .. ON CONFLICT / UPDATE    from arrays: thousands of rows a statement
//!   INSERT INTO anabranch.position               the progress
//! COMMIT                                       once every answer is there and right
//! ```

mod apply;
mod cache;
mod config;
mod contract;
mod copy;
mod failure;
mod flight;
mod in_order;
mod ledger;
mod native;
mod origin;
mod params;
mod plan;
mod progress;
mod replace;
mod rights;
mod session;
pub(crate) mod table;
mod target;
mod writer;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use anabranch_core::{
    Checkpointer, DeadLetterStore, Lane, ProgressStore, Result, Secret, Sink, SinkInfo, SinkWriter, SourceIdentity,
    TargetSchema, Verifier,
};
use async_trait::async_trait;

pub use config::{PostgresSinkConfig, Privilege};

use crate::checkpointer::PostgresCheckpointer;
use crate::connect::Endpoint;
use crate::dead_letters::PostgresDeadLetters;
use crate::dialect::Dialect;
use crate::store::Store;
use progress::Progress;
use target::Target;
use writer::PostgresWriter;

/// A PostgreSQL database that changes are applied to.
///
/// ```
/// use anabranch_postgres::{PostgresSink, Privilege};
/// let sink = PostgresSink::new("postgresql://app@db2/shop").schema("replication").origin(Privilege::Off);
/// ```
#[derive(Debug)]
pub struct PostgresSink {
    url: Secret,
    schema: String,
    options: Options,
    versions: Option<String>,
    origin_of: Option<String>,
    dialect: Dialect,
    parts: std::sync::OnceLock<Parts>,
}

/// What a session of this sink does if it may.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Options {
    pub(crate) replica_role: Privilege,
    pub(crate) origin: Privilege,
}

/// What the sink, its writers and its accessories share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Arc<Store>,
    pub(crate) options: Options,
    /// The prefix of the tables of versions, if they are kept.
    pub(crate) versions: Option<String>,
    /// The shard that this database is, for the names of origins.
    pub(crate) origin_of: Option<String>,
    /// The identity of the source by pipeline, as JSON, from the last claim of this process. It is
    /// stored with the first progress that belongs to it, not by the claim itself: a claim that the
    /// runtime then finds to be of another source must leave the old identity standing.
    identities: Mutex<HashMap<Arc<str>, String>>,
}

#[derive(Debug)]
struct Parts {
    shared: Arc<Shared>,
    progress: Progress,
    target: Target,
    checkpointer: Arc<PostgresCheckpointer>,
    dead_letters: Arc<PostgresDeadLetters>,
}

impl PostgresSink {
    /// The database at `url` (`postgresql://user@host/database`; plain, `env:NAME` or `file:PATH`).
    pub fn new(url: impl Into<Secret>) -> Self {
        Self {
            url: url.into(),
            schema: "anabranch".to_owned(),
            options: Options::default(),
            versions: None,
            origin_of: None,
            dialect: Dialect::POSTGRES,
            parts: std::sync::OnceLock::new(),
        }
    }

    /// The schema that keeps progress, checkpoints and dead letters. Default: `anabranch`.
    #[must_use]
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = schema.into();
        self
    }

    /// Whether to write with `session_replication_role = replica`, so that triggers and foreign keys
    /// of the target do not act on replicated rows. Default: if the user may.
    #[must_use]
    pub fn replica_role(mut self, replica_role: Privilege) -> Self {
        self.options.replica_role = replica_role;
        self
    }

    /// Whether to mark what is written with the replication origins `anabranch_<pipeline>_<lane>`, so
    /// that a pipeline in the other direction can leave it out. Default: if the user may.
    #[must_use]
    pub fn origin(mut self, origin: Privilege) -> Self {
        self.options.origin = origin;
        self
    }

    /// Where the database is.
    pub(crate) fn endpoint(&self) -> Result<Endpoint> {
        self.parts().shared.store.endpoint()
    }

    /// Names the replication origins `anabranch_<pipeline>_<shard>_<lane>`: for several databases of one
    /// server that one pipeline writes to, for they share origins.
    #[must_use]
    pub fn origin_of(mut self, shard: impl Into<String>) -> Self {
        self.origin_of = Some(shard.into());
        self
    }

    /// For a database that speaks PostgreSQL's SQL and lacks some of it.
    #[doc(hidden)]
    #[must_use]
    pub fn dialect(mut self, dialect: Dialect) -> Self {
        self.dialect = dialect;
        self
    }

    /// Keeps the version of every row in a table beside its own, `prefix` before its name, so that a
    /// change that is older than the row, or as old, does nothing. Default: no.
    #[must_use]
    pub fn versions(mut self, prefix: impl Into<String>) -> Self {
        self.versions = Some(prefix.into());
        self
    }

    fn parts(&self) -> &Parts {
        self.parts.get_or_init(|| {
            let store = Arc::new(Store::new("sink.url", self.url.clone(), self.schema.clone()).dialect(self.dialect));
            let shared = Arc::new(Shared {
                store: Arc::clone(&store),
                options: self.options,
                versions: self.versions.clone(),
                origin_of: self.origin_of.clone(),
                identities: Mutex::new(HashMap::new()),
            });
            Parts {
                progress: Progress::new(Arc::clone(&shared)),
                target: Target::new(Arc::clone(&shared)),
                checkpointer: Arc::new(PostgresCheckpointer::in_store(Arc::clone(&store))),
                dead_letters: Arc::new(PostgresDeadLetters::in_store(store)),
                shared,
            }
        })
    }
}

impl Shared {
    fn identity(&self, pipeline: &str) -> Option<String> {
        self.identities.lock().unwrap_or_else(PoisonError::into_inner).get(pipeline).cloned()
    }

    fn claimed(&self, pipeline: &Arc<str>, identity: &SourceIdentity) {
        let Ok(json) = serde_json::to_string(identity) else { return };
        self.identities.lock().unwrap_or_else(PoisonError::into_inner).insert(Arc::clone(pipeline), json);
    }
}

#[async_trait]
impl Sink for PostgresSink {
    fn info(&self) -> SinkInfo {
        // A connection a lane: beyond a few dozen the server only queues.
        SinkInfo { name: self.dialect.name, transactional: true, max_lanes: 64, schemas: true }
    }

    async fn open(&self, lane: Lane) -> Result<Box<dyn SinkWriter>> {
        Ok(Box::new(PostgresWriter::open(Arc::clone(&self.parts().shared), lane).await?))
    }

    fn progress(&self) -> Option<&dyn ProgressStore> {
        Some(&self.parts().progress)
    }

    fn checkpointer(&self) -> Option<Arc<dyn Checkpointer>> {
        Some(Arc::clone(&self.parts().checkpointer) as _)
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetterStore>> {
        Some(Arc::clone(&self.parts().dead_letters) as _)
    }

    fn verifier(&self) -> Option<&dyn Verifier> {
        Some(self)
    }

    fn target(&self) -> Option<&dyn TargetSchema> {
        Some(&self.parts().target)
    }
}
