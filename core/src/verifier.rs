//! Reading rows back, to compare two databases.

use async_trait::async_trait;

use crate::error::Result;
use crate::model::{ChangeBatch, TableSchema, Value};

/// How many keys [`Verifier::rows`] is given at most: enough to make a round trip cheap, few enough
/// for one statement of every database.
pub const MAX_KEYS: usize = 500;

/// Reads the rows of a database back. Both a source and a sink may offer it.
///
/// Called by `verify`, from one task a side; it may run beside a pipeline.
#[async_trait]
pub trait Verifier: Send + Sync {
    /// The rows of `table`, all under one point in time: one that is no earlier than the call. A database
    /// that cannot do that (DynamoDB) gives each row as it was at some time of its own, after the call.
    ///
    /// `table` names the columns to read, and the types in which the *source* has them: a sink that
    /// stores a value in another form gives it in the source's canonical text again
    /// (see [`DataType`](crate::DataType)). Its name is the source's; the sink maps it.
    ///
    /// With `keys` only the rows that have one of them: the values of the key columns in key order,
    /// as this or the other side gave them; at most [`MAX_KEYS`].
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) if the table or a column is not there, or may not be read.
    async fn rows(&self, table: &TableSchema, keys: Option<&[Vec<Value>]>) -> Result<Box<dyn RowReader>>;
}

/// Gives rows. One owner; dropping it ends the read.
#[async_trait]
pub trait RowReader: Send {
    /// Rows, as inserts with the columns of the table that was asked for, in its order; `None` at the end.
    async fn next(&mut self) -> Result<Option<ChangeBatch>>;
}
