//! The answer of a comparison.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::model::{PartitionId, TableName, Timestamp};

/// The answer: equal, or what differs.
#[derive(Debug, Clone, Serialize)]
pub struct Verified {
    /// The pipeline.
    pub pipeline: String,
    /// Whether all tables are equal.
    pub equal: bool,
    /// When the reading began, by this machine's clock.
    pub began: Timestamp,
    /// When it ended.
    pub ended: Timestamp,
    /// How far the target was when the reading began, for each partition, in the source's words.
    pub target_from: BTreeMap<PartitionId, String>,
    /// How far the target was when it ended.
    pub target_to: BTreeMap<PartitionId, String>,
    /// The tables.
    pub tables: Vec<TableVerified>,
}

/// What became of a table.
#[derive(Debug, Clone, Serialize)]
pub struct TableVerified {
    /// Its name on the source.
    pub table: TableName,
    /// Whether both sides hold the same rows.
    pub equal: bool,
    /// Rows read on the source.
    pub source_rows: u64,
    /// Rows read in the target.
    pub target_rows: u64,
    /// Rows of the source that the target lacks.
    pub missing: u64,
    /// Rows of the target that the source lacks.
    pub extra: u64,
    /// Rows that are on both sides and differ.
    pub changed: u64,
    /// Rows that changed in every round, so that nothing can be said of them.
    pub unsettled: u64,
    /// Rows that were repaired.
    pub repaired: u64,
    /// There are, or may be, more differences than were counted: it was not looked at all rows.
    pub more: bool,
    /// The mark of the source that the target had passed when the differences were confirmed; empty
    /// if nothing differed, or nobody waited.
    pub confirmed_at: BTreeMap<PartitionId, String>,
    /// Columns that are not compared, each with the reason.
    pub not_compared: BTreeMap<String, String>,
    /// The differences, as many as were asked for.
    pub differences: Vec<Difference>,
}

/// A row that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// How.
    pub kind: DifferenceKind,
    /// Its key, column by column; the whole row, where there is no key.
    pub key: Vec<(String, String)>,
    /// The columns whose values differ.
    pub columns: Vec<String>,
    /// Whether the target has the source's row now.
    pub repaired: bool,
}

/// How a row differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DifferenceKind {
    /// The target lacks it.
    Missing,
    /// The source lacks it.
    Extra,
    /// Both have it, with other values.
    Changed,
}

impl fmt::Display for DifferenceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "missing",
            Self::Extra => "extra",
            Self::Changed => "changed",
        })
    }
}

impl TableVerified {
    /// How many rows differ, as far as they were counted.
    pub fn differing(&self) -> u64 {
        self.missing + self.extra + self.changed
    }
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for table in &self.tables {
            writeln!(f, "{table}")?;
        }
        write!(f, "{}", if self.equal { "equal" } else { "NOT equal" })
    }
}

impl fmt::Display for TableVerified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} rows", self.table, self.source_rows)?;
        if self.equal {
            f.write_str(", equal")?;
        } else {
            let and_more = if self.more { " and more" } else { "" };
            write!(
                f,
                ", {} in the target: {} missing, {} extra, {} changed{and_more}",
                self.target_rows, self.missing, self.extra, self.changed
            )?;
            if self.unsettled > 0 {
                write!(f, ", {} unsettled (they change all the time)", self.unsettled)?;
            }
            if self.repaired > 0 {
                write!(f, ", {} repaired", self.repaired)?;
            }
        }
        for (column, why) in &self.not_compared {
            write!(f, "\n  column {column} not compared: {why}")?;
        }
        for difference in &self.differences {
            let key: Vec<String> = difference.key.iter().map(|(name, value)| format!("{name}={value}")).collect();
            write!(f, "\n  {} [{}]", difference.kind, key.join(", "))?;
            if difference.kind == DifferenceKind::Changed {
                write!(f, ": {}", difference.columns.join(", "))?;
            }
            if difference.repaired {
                f.write_str(" (repaired)")?;
            }
        }
        Ok(())
    }
}
