//! The history as data: rows, changes, commits, states.

use std::collections::HashMap;

use super::tables::{JOURNAL, TABLES};

/// A row: the canonical text of each column, `None` for NULL.
pub type Row = Vec<Option<String>>;

/// A change of one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The table's place in [`TABLES`].
    pub table: usize,
    /// The row before, unless it was inserted.
    pub old: Option<Row>,
    /// The row after, unless it was deleted.
    pub new: Option<Row>,
}

/// A committed transaction of the source.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Commit {
    /// Its changes.
    pub changes: Vec<Change>,
}

/// All rows of all tables of the target, read in one snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// The rows of each table of [`TABLES`], in any order.
    pub tables: Vec<Vec<Row>>,
}

/// Rows with how often each is there.
pub(crate) type Bag = HashMap<Row, i64>;

/// All rows of all tables after some prefix of the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    tables: Vec<Bag>,
}

impl Commit {
    /// The row it inserts into `journal`: its name.
    pub fn journal(&self) -> Option<&Row> {
        self.changes.iter().find(|c| c.table == JOURNAL && c.old.is_none()).and_then(|c| c.new.as_ref())
    }

    /// What it adds to and takes from each table, whatever the order of its changes.
    pub fn net(&self) -> Vec<Bag> {
        let mut net: Vec<Bag> = vec![Bag::new(); TABLES.len()];
        for change in &self.changes {
            let bag = &mut net[change.table];
            if let Some(old) = &change.old {
                *bag.entry(old.clone()).or_default() -= 1;
            }
            if let Some(new) = &change.new {
                *bag.entry(new.clone()).or_default() += 1;
            }
        }
        for bag in &mut net {
            bag.retain(|_, count| *count != 0);
        }
        net
    }
}

impl Observation {
    /// Nothing in any table.
    pub fn empty() -> Self {
        Self { tables: vec![Vec::new(); TABLES.len()] }
    }

    pub(crate) fn bag(&self, table: usize) -> Bag {
        let mut bag = Bag::new();
        for row in &self.tables[table] {
            *bag.entry(row.clone()).or_default() += 1;
        }
        bag
    }
}

impl State {
    /// Empty tables: before the first commit.
    pub fn empty() -> Self {
        Self { tables: vec![Bag::new(); TABLES.len()] }
    }

    /// The rows of a table.
    pub(crate) fn table(&self, table: usize) -> &Bag {
        &self.tables[table]
    }

    /// As a reader sees it.
    pub fn observe(&self) -> Observation {
        let rows = |bag: &Bag| {
            let copies = bag.iter().flat_map(|(row, n)| (0..*n).map(|_| row.clone()));
            copies.collect::<Vec<_>>()
        };
        Observation { tables: self.tables.iter().map(rows).collect() }
    }

    /// Replays what a commit adds and takes.
    pub(crate) fn apply(&mut self, net: &[Bag]) {
        for (bag, net) in self.tables.iter_mut().zip(net) {
            for (row, count) in net {
                let there = bag.entry(row.clone()).or_default();
                *there += count;
                if *there == 0 {
                    bag.remove(row);
                }
            }
        }
    }

    /// The sum of all accounts: the same in every state that a transaction left.
    pub(crate) fn sum(&self) -> i64 {
        let accounts = super::Table::place("accounts").unwrap_or(JOURNAL);
        let balance = |row: &Row| row.get(2).cloned().flatten().and_then(|b| b.parse::<i64>().ok()).unwrap_or(0);
        self.tables[accounts].iter().map(|(row, count)| balance(row) * count).sum()
    }

    /// Whether no row is there a negative number of times: the history itself is sound.
    pub(crate) fn sound(&self) -> bool {
        self.tables.iter().all(|bag| bag.values().all(|count| *count > 0))
    }
}
