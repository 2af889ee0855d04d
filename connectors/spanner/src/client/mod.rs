//! What this connector needs of a Spanner database, and no more: so that the client behind it can be
//! replaced, and the engine above it be tested on a script.
//!
//! Values are those of the protocol (`google.protobuf.Value` without structs): INT64, NUMERIC,
//! TIMESTAMP, DATE and base64 BYTES are strings, a JSON value is a string, an array or struct is a list.

mod error;
mod instant;
mod mutation;
mod official;
mod statement;

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;

pub use error::{Code, SpannerError};
pub use instant::Instant;
pub use mutation::{Mutation, Write};
pub(crate) use official::check_database;
pub use official::{Official, OfficialBuilder};
pub use statement::{Kind, Param, SpannerValue, Statement};

/// The result of a call to a database.
pub type SpannerResult<T> = std::result::Result<T, SpannerError>;

/// A row: one value for each column.
pub type Row = Vec<SpannerValue>;

/// A Spanner database.
///
/// Calls may overlap. Reads may be dropped at any await; what a dropped write did is unknown.
#[async_trait]
pub trait Client: Debug + Send + Sync + 'static {
    /// Runs a query in a single-use, read-only transaction; its rows come as the server sends them.
    /// Change streams are read with [`ReadAt::Strong`]. What is wrong with the query may be told with
    /// the first row only.
    ///
    /// A connection that breaks amid it may be mended unseen by asking again from the last resume
    /// token; a server without such tokens then sends rows twice. Whoever reads a change stream drops
    /// what it has seen.
    async fn query(&self, statement: Statement, at: ReadAt) -> SpannerResult<Box<dyn Rows>>;

    /// Fixes a point in time for reading many tables in parts.
    async fn batch_read(&self, at: ReadAt) -> SpannerResult<Arc<dyn BatchRead>>;

    /// Runs `work` in a read-write transaction and commits it; again from its start, in another
    /// transaction, as often as Spanner aborts it. An error of `work` rolls back.
    ///
    /// # Errors
    /// With [`SpannerError::may_have_happened`] when the commit was sent and its outcome is not known.
    async fn transact(&self, options: TransactionOptions, work: &mut dyn Work) -> SpannerResult<Instant>;

    /// Runs one statement as partitioned DML: for whole tables, not atomic, at least once. Gives the
    /// least number of rows that it changed.
    async fn partitioned_update(&self, statement: Statement) -> SpannerResult<i64>;

    /// The DDL of the database.
    async fn ddl(&self) -> SpannerResult<Vec<String>>;

    /// Changes the schema, and waits until that is done.
    async fn apply_ddl(&self, statements: Vec<String>) -> SpannerResult<()>;
}

/// As of when a query reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadAt {
    /// Everything that is committed when it begins.
    Strong,
    /// What was committed at or before this time. Limited by the database's `version_retention_period`.
    Exactly(Instant),
}

/// The rows of a query. One owner.
#[async_trait]
pub trait Rows: Send {
    /// The next row; `None` at the end. Cancel safe: a dropped call loses no row, and asks nothing
    /// anew.
    async fn next(&mut self) -> SpannerResult<Option<Row>>;
}

/// A fixed point in time under which queries are cut into parts.
#[async_trait]
pub trait BatchRead: Debug + Send + Sync {
    /// The point.
    fn at(&self) -> Instant;

    /// Cuts a query into parts that can be run on their own, concurrently; each is a token. The query
    /// must be one that Spanner can cut (`PartitionQuery`): a plain `SELECT` of one table is.
    async fn partition(&self, statement: Statement, max_parts: u32) -> SpannerResult<Vec<String>>;

    /// Runs a part; what is wrong with it may be told with its first row only.
    async fn read(&self, part: &str) -> SpannerResult<Box<dyn Rows>>;
}

/// How a read-write transaction is committed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TransactionOptions {
    /// Its tag, which change streams carry; at most 50 characters.
    pub tag: Option<String>,
    /// Change streams with `allow_txn_exclusion = true` leave it out.
    pub exclude_from_change_streams: bool,
}

/// What is done within a read-write transaction.
#[async_trait]
pub trait Work: Send {
    /// Called for each try: begin anew.
    async fn run(&mut self, transaction: &dyn Transaction) -> SpannerResult<()>;
}

/// A read-write transaction.
#[async_trait]
pub trait Transaction: Send + Sync {
    /// The rows of a query, all of them; it takes locks. It sees the transaction's own DML, and not
    /// its buffered mutations.
    async fn query(&self, statement: Statement) -> SpannerResult<Vec<Row>>;

    /// Runs DML statements in order, in one request. Gives the number of rows that each changed.
    /// After an error the statements before it are done, within the transaction
    /// ([`SpannerError::statements_done`]).
    async fn execute(&self, statements: Vec<Statement>) -> SpannerResult<Vec<i64>>;

    /// Adds mutations, which are applied in order when the transaction commits, after all its DML.
    fn buffer(&self, mutations: Vec<Mutation>) -> SpannerResult<()>;
}
