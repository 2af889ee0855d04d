//! Which changes of a unit are newer than what the target has: for sinks that keep a version of every
//! row beside it, so that a change that comes late, or twice, or by another writer, does nothing.
//!
//! A version is the rank of the change: its transaction and its number in it. Ranks of one source sort
//! as its commits of one key do, and a replay gives the same; of Spanner a rank begins with the commit
//! time. A row's version is kept when the row is deleted.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::model::{ChangeRef, Op, RowRef, TableName, TableSchema, Timestamp, Unit};
use crate::net_effect::{has_comparable_key, key_bytes};

/// The version of a row: of the change that made it what it is. Newer ones are greater.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RowVersion {
    /// The transaction's rank.
    pub transaction: Bytes,
    /// The change's number in it, from 1.
    pub sequence: u64,
}

/// The rows that a unit touches, each once.
#[derive(Debug)]
pub struct Versions<'u> {
    unit: &'u Unit,
    keys: HashMap<(TableName, Box<[u8]>), usize>,
    rows: Vec<VersionedRow<'u>>,
    tables: Vec<(&'u Arc<TableSchema>, Vec<usize>)>,
}

#[derive(Debug)]
struct VersionedRow<'u> {
    row: RowRef<'u>,
    known: RowVersion,
    /// What the unit makes of it, if it does something.
    new: Option<NewVersion>,
}

/// What a row becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVersion {
    /// Its version.
    pub version: RowVersion,
    /// When that was committed at the source.
    pub commit_time: Option<Timestamp>,
    /// Whether it is gone.
    pub deleted: bool,
}

/// The unit without what is stale.
#[derive(Debug)]
pub struct Fresh {
    /// What is left of it: of each row ever newer changes. Its progress is the same.
    pub unit: Unit,
    /// Changes of rows that were left out.
    pub stale: u64,
}

impl<'u> Versions<'u> {
    /// Collects the rows.
    ///
    /// # Errors
    /// [`Rejected`](crate::ErrorKind::Rejected) for what has no version: a truncate, a table without a
    /// key, or with one whose text does not tell its values apart.
    pub fn of(unit: &'u Unit) -> Result<Self> {
        let mut this = Self { unit, keys: HashMap::new(), rows: Vec::new(), tables: Vec::new() };
        for change in unit.changes() {
            match change.op() {
                Op::Message | Op::Schema => continue,
                Op::Truncate(_) => {
                    return Err(Error::rejected(format!("{}: a truncate has no version", change.schema().name))
                        .hint("leave it out with a transform, or set versions = false"));
                }
                Op::Insert | Op::Update | Op::Delete => {}
            }
            if !has_comparable_key(change.schema()) {
                let problem = "its rows have no versions: it has no key that tells them apart";
                return Err(Error::rejected(format!("table {}: {problem}", change.schema().name)));
            }
            for row in rows_of(change) {
                this.add(change.schema(), row);
            }
        }
        Ok(this)
    }

    fn add(&mut self, schema: &'u Arc<TableSchema>, row: RowRef<'u>) {
        let key = (schema.name.clone(), key_of(schema, row));
        if self.keys.contains_key(&key) {
            return;
        }
        let at = self.rows.len();
        self.keys.insert(key, at);
        self.rows.push(VersionedRow { row, known: RowVersion::default(), new: None });
        match self.tables.iter_mut().find(|(known, _)| Arc::ptr_eq(known, schema) || *known == schema) {
            Some((_, rows)) => rows.push(at),
            None => self.tables.push((schema, vec![at])),
        }
    }

    /// The tables, by version of their schema.
    pub fn tables(&self) -> impl Iterator<Item = (usize, &'u Arc<TableSchema>)> {
        self.tables.iter().enumerate().map(|(at, (schema, _))| (at, *schema))
    }

    /// The rows of a table, in the order of [`Versions::know`]; only the key columns count.
    pub fn rows(&self, table: usize) -> impl Iterator<Item = RowRef<'u>> {
        self.tables[table].1.iter().map(|&at| self.rows[at].row)
    }

    /// What the target has of the row at this place of a table.
    pub fn know(&mut self, table: usize, row: usize, version: RowVersion) {
        let at = self.tables[table].1[row];
        self.rows[at].known = version;
    }

    /// Leaves out what is stale: an equal or newer row wins.
    ///
    /// # Errors
    /// [`Rejected`](crate::ErrorKind::Rejected) for a change of a key, of whose two rows one is newer.
    pub fn fresh(&mut self) -> Result<Fresh> {
        let unit = self.unit;
        let (mut stale, mut mixed) = (0, None);
        let kept = unit.retain(|change| {
            if !matches!(change.op(), Op::Insert | Op::Update | Op::Delete) {
                return true;
            }
            let sequence = change.sequence();
            let version = RowVersion { transaction: change.piece().transaction.rank.clone(), sequence };
            let places: Vec<usize> = rows_of(change).filter_map(|row| self.place(change.schema(), row)).collect();
            let newer = places.iter().filter(|&&at| self.rows[at].known >= version).count();
            if newer > 0 {
                stale += 1;
                if newer < places.len() {
                    mixed.get_or_insert_with(|| change.schema().name.clone());
                }
                return false;
            }
            let commit_time = change.piece().transaction.commit_time;
            for (n, &at) in places.iter().enumerate() {
                // Of two rows the first is the one that the change moved away from.
                let deleted = change.op() == Op::Delete || n + 1 < places.len();
                self.rows[at].known = version.clone();
                self.rows[at].new = Some(NewVersion { version: version.clone(), commit_time, deleted });
            }
            true
        });
        match mixed {
            Some(table) => Err(Error::rejected(format!("table {table}: a change of a key meets a newer row"))),
            None => Ok(Fresh { unit: kept, stale }),
        }
    }

    /// The rows of a table that are not what they were, with their place in it.
    pub fn changed(&self, table: usize) -> impl Iterator<Item = (usize, RowRef<'u>, &NewVersion)> {
        let rows = self.tables[table].1.iter().enumerate();
        rows.filter_map(|(place, &at)| self.rows[at].new.as_ref().map(|new| (place, self.rows[at].row, new)))
    }

    fn place(&self, schema: &TableSchema, row: RowRef<'_>) -> Option<usize> {
        self.keys.get(&(schema.name.clone(), key_of(schema, row))).copied()
    }
}

/// The rows whose keys a change touches: one, or two if it changes the key.
fn rows_of(change: ChangeRef<'_>) -> impl Iterator<Item = RowRef<'_>> {
    let (first, second) = match change.changes_key() {
        true => (change.old_row(), change.new_row()),
        // The new row has the key unless it is a delete; of an update the old one may be all there is.
        false => (change.identity_row(), None),
    };
    first.into_iter().chain(second)
}

fn key_of(schema: &TableSchema, row: RowRef<'_>) -> Box<[u8]> {
    let mut bytes = Vec::new();
    key_bytes(schema, row, &mut bytes);
    bytes.into_boxed_slice()
}
