//! Rows to write, without SQL.

use super::SpannerValue;

/// A change of rows, applied when the transaction commits. Values are named by their columns; Spanner
/// takes their types from the table.
#[derive(Debug, Clone, PartialEq)]
pub enum Mutation {
    /// A row that must not be there.
    Insert(Write),
    /// A row that must be there; columns that are not named keep their values.
    Update(Write),
    /// A row; if it is there, columns that are not named keep their values.
    InsertOrUpdate(Write),
    /// A row; if it is there, it is deleted first: columns that are not named become NULL, and
    /// children that are interleaved in it go with it.
    Replace(Write),
    /// Rows by their keys, which may be absent.
    Delete {
        /// The table.
        table: String,
        /// The values of the primary key's columns, in its order, for each row.
        keys: Vec<Vec<SpannerValue>>,
    },
    /// Every row of a table.
    DeleteAll {
        /// The table.
        table: String,
    },
}

/// The row of a [`Mutation`].
#[derive(Debug, Clone, PartialEq)]
pub struct Write {
    /// The table; `schema.table` for one in a named schema.
    pub table: String,
    /// The columns and their values.
    pub values: Vec<(String, SpannerValue)>,
}
