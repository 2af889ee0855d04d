//! From source tables to target tables, and what becomes of each type on the way.

mod consent;
pub mod preflight;
mod report;
#[cfg(test)]
mod tests;

use std::fmt::{self, Debug};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::model::{Column, TableName, TableSchema};

/// The tables of a target.
#[async_trait]
pub trait TargetSchema: Send + Sync {
    /// A table as it is now, in the target's own terms; `None` if it does not exist. `name` is the
    /// source's; the sink maps it ([`SinkInfo::schemas`](crate::SinkInfo::schemas)).
    async fn describe(&self, name: &TableName) -> Result<Option<TargetTable>>;

    /// How a column of a source would be stored, in a table that this sink creates (`existing` is
    /// `None`) or in the column that is there.
    fn contract(&self, column: &Column, existing: Option<&Column>) -> Contract;

    /// How the column at `index` would be stored in a table that this sink creates: a key may need
    /// another type than [`TargetSchema::contract`] gives for the column alone. What it says must be
    /// what `contract` says once the table is there.
    fn planned(&self, table: &TableSchema, index: usize) -> Contract {
        self.contract(&table.columns[index], None)
    }

    /// Whether a table takes columns that [`TargetSchema::describe`] does not show: of a target whose
    /// rows have no schema but their key. What is not there is then judged as in a new table.
    fn takes_any_column(&self) -> bool {
        false
    }

    /// The statement that would create the table, for people to read.
    fn create_statement(&self, table: &TableSchema) -> Result<String>;

    /// Whether the user may create the table; asked where it is missing, before anything is written.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config), with the statement that gives the right.
    async fn may_create(&self, table: &TableSchema) -> Result<()> {
        let _ = table;
        Ok(())
    }

    /// Creates the table. An error if it exists.
    async fn create(&self, table: &TableSchema) -> Result<()>;

    /// Removes every row, before an interrupted copy is done again.
    async fn clear(&self, name: &TableName) -> Result<()>;

    /// Whether an interrupted copy of the table may go on in its middle
    /// ([`GoesOn::But`](crate::GoesOn::But)). A writer of [`LanePurpose::Snapshot`](crate::LanePurpose)
    /// then takes units of deletes by key, of rows that are there and of such that are not, before it is
    /// given rows; nothing but these rows goes with them (no cascade, no trigger); and rows that are there
    /// already as they come are taken again.
    ///
    /// If not, which is the default, the table is emptied and copied whole.
    async fn resumes_copies(&self, name: &TableName) -> Result<bool> {
        let _ = name;
        Ok(false)
    }

    /// Whether the table has no rows.
    async fn is_empty(&self, name: &TableName) -> Result<bool>;
}

/// A table of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetTable {
    /// Its name and columns in the target; `key` is its primary key.
    pub schema: TableSchema,
    /// Unique keys besides the primary key, by column names. An index on expressions is an empty list.
    pub unique: Vec<Vec<String>>,
    /// Tables that its foreign keys refer to, in the target's names.
    pub references: Vec<TableName>,
    /// Columns that need a value from whoever writes: NOT NULL, without a default.
    pub required: Vec<String>,
    /// What an operator should know before writing to it: triggers that will fire, `ON UPDATE` columns.
    pub warnings: Vec<String>,
}

/// How faithfully a type is stored.
///
/// A value that the target cannot hold is refused, loudly: the sink answers
/// [`Rejected`](crate::ErrorKind::Rejected), and the pipeline stops or makes a dead letter of it. That
/// is not a loss, so it needs no consent; the contract's note says what is refused.
///
/// "As it was" means equal by the source's own `=`. Where the text may be another (`-0` as `0`, a
/// decimal with more zeros at its end), or the value is kept in another form, the note says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fidelity {
    /// Every value that is stored comes back as it was; every other is refused.
    Exact,
    /// The same, and the target's type could hold more, or holds it in another form.
    Widening,
    /// A value that is stored may differ from the source's: rounded, cut, or not told apart from
    /// another. Needs consent by column or type.
    Lossy,
    /// Cannot be stored.
    Unsupported,
}

impl fmt::Display for Fidelity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exact => "exact",
            Self::Widening => "widening",
            Self::Lossy => "lossy",
            Self::Unsupported => "unsupported",
        })
    }
}

/// How a column is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contract {
    /// The target's type, as its DDL writes it.
    pub native: String,
    /// How faithful that is.
    pub fidelity: Fidelity,
    /// What is lost, what is refused ("refuses ..."), or how the value is represented; empty if there
    /// is nothing to say.
    pub note: String,
}

impl Contract {
    /// A contract with nothing to say.
    pub fn new(native: impl Into<String>, fidelity: Fidelity) -> Self {
        Self { native: native.into(), fidelity, note: String::new() }
    }

    /// Adds what to know.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }
}
