//! The versions that each row had: to tell an old row from a new one.

use std::collections::HashMap;

use super::model::{Bag, Change, Row};
use super::tables::{TABLES, Table};

/// The commit that left a row, and the row; `None`: deleted.
type Version = (usize, Option<Row>);

/// For each table and key, the row after each commit that changed it; `None`: deleted.
#[derive(Debug, Default)]
pub(crate) struct Index {
    versions: HashMap<(usize, Row), Vec<Version>>,
}

impl Index {
    /// Notes what commit number `commit` (from 1) left.
    pub(crate) fn note(&mut self, commit: usize, net: &[Bag]) {
        for (table, bag) in net.iter().enumerate() {
            // Rows that it took first, so that those that it left under the same key win.
            let mut rows: Vec<_> = bag.iter().collect();
            rows.sort_by_key(|(_, count)| **count);
            for (row, count) in rows {
                let versions = self.versions.entry((table, key_of(table, row))).or_default();
                versions.pop_if(|(at, _)| *at == commit);
                versions.push((commit, (*count > 0).then(|| row.clone())));
            }
        }
    }

    /// Notes every change of commit number `commit` by itself: rows in the middle of a transaction
    /// can be seen where transactions are not kept together.
    pub(crate) fn note_each(&mut self, commit: usize, changes: &[Change]) {
        for Change { table, old, new } in changes {
            let (from, to) = (old.as_ref().map(|r| key_of(*table, r)), new.as_ref().map(|r| key_of(*table, r)));
            if let Some(from) = from.filter(|from| Some(from) != to.as_ref()) {
                self.versions.entry((*table, from)).or_default().push((commit, None));
            }
            if let Some(to) = to {
                self.versions.entry((*table, to)).or_default().push((commit, new.clone()));
            }
        }
    }

    /// The commit that made the row under `key` what it is after commit `upto`. 0: it never was.
    pub(crate) fn made_by(&self, table: usize, key: &Row, upto: usize) -> usize {
        let versions = self.of(table, key);
        versions.iter().rev().find(|(at, _)| *at <= upto).map_or(0, |(at, _)| *at)
    }

    /// The commits that left exactly this row.
    pub(crate) fn commits_of<'a>(&'a self, table: usize, key: &Row, row: &'a Row) -> impl Iterator<Item = usize> + 'a {
        let versions = self.of(table, key).iter();
        versions.filter(move |(_, version)| version.as_ref() == Some(row)).map(|(at, _)| *at)
    }

    /// The versions of a row, oldest first.
    pub(crate) fn of(&self, table: usize, key: &Row) -> &[Version] {
        self.versions.get(&(table, key.clone())).map_or(&[], Vec::as_slice)
    }
}

/// The key columns of a row; the whole row where the table has no key.
pub(crate) fn key_of(table: usize, row: &Row) -> Row {
    let Table { key, .. } = TABLES[table];
    if key.is_empty() { row.clone() } else { key.iter().map(|&i| row[i].clone()).collect() }
}
