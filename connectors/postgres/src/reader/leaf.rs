//! Partitions whose changes come as those of the table that they are of (`publish_via_partition_root`).
//!
//! What the server logs of an old row is decided by the replica identity of the partition, and how the stream
//! describes it by that of the table: ALTER TABLE ... REPLICA IDENTITY does not reach partitions. Where the two
//! differ, an old row that is called whole has NULL for what the partition did not log, and an update that the
//! partition takes for one that keeps its identity brings no old row at all (pgoutput.c, proto.c).
//!
//! The stream describes a partition too, right after its table, before the first change of it: so it is known in
//! time, and as it was then.

use std::collections::HashMap;

use anabranch_core::{Error, Result, TableName};

use super::relation::{Described, Relation};
use crate::decode::message::Old;
use crate::sql;

/// What old rows of a table can be relied upon for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum OldRows {
    /// What the stream calls them.
    #[default]
    AsTold,
    /// Their key. Some that are called whole have nothing but that.
    Key,
    /// Nothing: this partition does not log the key.
    Nothing(TableName),
}

impl OldRows {
    /// The worse of both.
    fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Nothing(leaf), _) | (_, Self::Nothing(leaf)) => Self::Nothing(leaf),
            (Self::Key, _) | (_, Self::Key) => Self::Key,
            _ => Self::AsTold,
        }
    }

    /// The old row as what it is.
    pub(crate) fn of<'a>(&self, old: Old<'a>) -> Old<'a> {
        Old { full: old.full && *self == Self::AsTold, ..old }
    }

    /// Whether a change that has an old row, or should have one, can be understood.
    pub(crate) fn check(&self, table: &TableName) -> Result<()> {
        let Self::Nothing(leaf) = self else { return Ok(()) };
        Err(Error::fatal(format!(
            "the partition {leaf} has another replica identity than {table}, through which it is published, and does \
             not log its key: rows that were updated or deleted there cannot be found"
        ))
        .hint(format!(
            "run ALTER TABLE {} REPLICA IDENTITY FULL; drop the slot and start the pipeline anew with a fresh copy, or \
             with source.snapshot = \"never\" and `anabranch verify FILE --repair`",
            sql::table(leaf)
        )))
    }
}

/// The partitions that were described, and through which table each is published.
#[derive(Debug, Default)]
pub(super) struct Leaves(HashMap<u32, u32>);

impl Leaves {
    pub(super) fn add(&mut self, leaf: u32, root: u32) {
        self.0.insert(leaf, root);
    }

    /// The table to look at when this one or its partition was described.
    pub(super) fn root(&self, oid: u32) -> u32 {
        self.0.get(&oid).copied().unwrap_or(oid)
    }

    pub(super) fn contains(&self, oid: u32) -> bool {
        self.0.contains_key(&oid)
    }

    /// What old rows of a table are, by all of its partitions that were described.
    pub(super) fn judge(&self, root: &Relation, by_oid: &HashMap<u32, Relation>) -> OldRows {
        let of_root = self.0.iter().filter(|(_, of)| **of == root.described.oid);
        let leaves = of_root.filter_map(|(leaf, _)| by_oid.get(leaf));
        leaves.fold(OldRows::AsTold, |sum, leaf| sum.or(old_rows(root, &leaf.described)))
    }
}

/// What old rows are that this partition logs.
fn old_rows(root: &Relation, leaf: &Described) -> OldRows {
    // NOTHING: the server refuses updates and deletes.
    if !matches!(leaf.identity, b'd' | b'i') {
        return OldRows::AsTold;
    }
    let whole = root.described.identity == b'f';
    let logged = |name: &str| leaf.columns.iter().any(|c| c.key && c.name == name);
    if whole && root.schema.key.is_empty() || !root.schema.key_columns().all(|c| logged(&c.name)) {
        return OldRows::Nothing(leaf.name.clone());
    }
    if whole { OldRows::Key } else { OldRows::AsTold }
}

/// Whether this may be a partition of that table: it has all of its columns.
pub(super) fn may_be_of(leaf: &Described, root: &Relation) -> bool {
    root.described.columns.iter().all(|c| leaf.columns.iter().any(|l| l.name == c.name && l.type_oid == c.type_oid))
}
