//! The tables of the workload.

use super::canonical::Kind;

/// A table of the workload, in schema `public`.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    /// Its name, exactly.
    pub name: &'static str,
    /// Names and kinds of its columns, in order.
    pub columns: &'static [(&'static str, Kind)],
    /// The places of the key columns. Empty: no key.
    pub key: &'static [usize],
}

/// The place of `journal` in [`TABLES`]: every transaction inserts its writer and number there, so
/// that a reader of the target can name the transactions that it sees. A writer removes its old
/// rows, so that the table stays small.
pub const JOURNAL: usize = 0;

/// All tables.
pub const TABLES: &[Table] = &[
    Table { name: "journal", columns: &[("writer", Kind::Int), ("seq", Kind::Int)], key: &[0, 1] },
    // Transfers keep the sum: half a transaction shows as a wrong one.
    Table { name: "accounts", columns: &[("id", Kind::Int), ("owner", Kind::Text), ("balance", Kind::Int)], key: &[0] },
    // Versions only grow: a row that goes backwards shows.
    Table { name: "ledger", columns: &[("id", Kind::Int), ("version", Kind::Int), ("note", Kind::Text)], key: &[0] },
    // Two unique keys beside the primary one: `code` at once, `place` deferred. They are swapped,
    // moved to other rows and taken again; primary keys are changed and reused.
    Table {
        name: "items",
        columns: &[("id", Kind::Int), ("code", Kind::Text), ("place", Kind::Int), ("price", Kind::Decimal)],
        key: &[0],
    },
    Table { name: "parents", columns: &[("id", Kind::Int), ("name", Kind::Text)], key: &[0] },
    // A deferred foreign key: children come before their parents and outlive them for a while.
    Table {
        name: "children",
        columns: &[("id", Kind::Int), ("parent_id", Kind::Int), ("note", Kind::Text)],
        key: &[0],
    },
    // Large values that most updates do not touch.
    Table {
        name: "documents",
        columns: &[
            ("id", Kind::Int),
            ("title", Kind::Text),
            ("body", Kind::Text),
            ("attachment", Kind::Bytes),
            ("revision", Kind::Int),
        ],
        key: &[0],
    },
    Table {
        name: "measures",
        columns: &[("id", Kind::Int), ("reading", Kind::Float), ("at", Kind::Instant), ("good", Kind::Bool)],
        key: &[0],
    },
    // Names that need quotes, one of them in the key; a key of two columns, not the first ones.
    Table {
        name: "Mixed Case",
        columns: &[("the \"value\"", Kind::Text), ("Region", Kind::Text), ("select", Kind::Int)],
        key: &[1, 2],
    },
    // No key: rows are only added, equal ones too.
    Table { name: "log_lines", columns: &[("writer", Kind::Int), ("line", Kind::Text)], key: &[] },
];

impl Table {
    /// Its place in [`TABLES`].
    pub fn place(name: &str) -> Option<usize> {
        TABLES.iter().position(|table| table.name == name)
    }
}
