//! Writes to YugabyteDB through YSQL.

use std::sync::Arc;

use anabranch_core::{
    Checkpointer, DeadLetterStore, Lane, ProgressStore, Relay, Result, Secret, Sharded, Sink, SinkInfo, SinkWriter,
    TargetSchema, Verifier,
};
use anabranch_postgres::layer::Dialect;
use anabranch_postgres::{PostgresSink, Privilege};
use async_trait::async_trait;

/// What YSQL lacks, or had not until lately (YugabyteDB's manual, "PostgreSQL compatibility", and its
/// issues for the statements in question).
const DIALECT: Dialect = Dialect {
    name: "yugabyte",
    advisory_locks: false,
    // A writer that has an older look at a table is refused by its storage layer.
    table_locks: false,
    transactional_truncate: false,
    row_place: "ybctid",
    storage: "",
    // A statement is sent on in batches of 3072 rows (`ysql_session_max_batch_size`), and one that meets a
    // conflict is repeated whole: short ones cost little to repeat.
    statement_rows: 1_000,
    statement_bytes: 1 << 20,
};

/// A YugabyteDB database that changes are applied to: [`PostgresSink`] without what YSQL lacks.
///
/// Its errors that ask for another try (serialization failures, conflicts, read restarts, a tablet leader
/// that moved, a catalog that changed) are transient: nothing of the unit is in the target, and the whole
/// unit is applied again. Writes carry no replication origin.
///
/// ```
/// use anabranch_yugabyte::YugabyteSink;
/// let sink = YugabyteSink::new("postgresql://app@yb1:5433/shop").schema("replication");
/// ```
#[derive(Debug)]
pub struct YugabyteSink(PostgresSink);

impl YugabyteSink {
    /// The database at `url` (`postgresql://user@host:5433/database`; plain, `env:NAME` or `file:PATH`).
    pub fn new(url: impl Into<Secret>) -> Self {
        Self(PostgresSink::new(url).dialect(DIALECT).origin(Privilege::Off))
    }

    /// The schema that keeps progress, checkpoints and dead letters. Default: `anabranch`.
    #[must_use]
    pub fn schema(self, schema: impl Into<String>) -> Self {
        Self(self.0.schema(schema))
    }

    /// Whether to write with `session_replication_role = replica`. Default: if the user may.
    #[must_use]
    pub fn replica_role(self, replica_role: Privilege) -> Self {
        Self(self.0.replica_role(replica_role))
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Sink for YugabyteSink {
    fn info(&self) -> SinkInfo {
        self.0.info()
    }

    async fn open(&self, lane: Lane) -> Result<Box<dyn SinkWriter>> {
        self.0.open(lane).await
    }

    fn progress(&self) -> Option<&dyn ProgressStore> {
        self.0.progress()
    }

    fn checkpointer(&self) -> Option<Arc<dyn Checkpointer>> {
        self.0.checkpointer()
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetterStore>> {
        self.0.dead_letters()
    }

    fn target(&self) -> Option<&dyn TargetSchema> {
        self.0.target()
    }

    fn verifier(&self) -> Option<&dyn Verifier> {
        self.0.verifier()
    }

    fn sharded(&self) -> Option<&Sharded> {
        self.0.sharded()
    }

    fn relay(&self) -> Option<&dyn Relay> {
        self.0.relay()
    }
}
