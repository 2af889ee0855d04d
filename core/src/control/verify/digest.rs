//! Fingerprints of rows, and sums of them that do not depend on an order.

use std::collections::HashMap;
use std::hash::Hasher;
use std::sync::Arc;

use siphasher::sip128::{Hasher128, SipHasher13};

use super::normal::push_normal;
use crate::error::{Error, Result};
use crate::model::{Column, DataType, RowRef, TableSchema, ValueRef};

/// How many sums a table has: two rows that differ are found among the thousandth part of a percent
/// of the rows. 65,536 sums take 2 MiB a side.
const BUCKETS: usize = 1 << 16;

/// The fingerprints of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Digest {
    /// Of its key; of the whole row, where there is none.
    pub(crate) key: u128,
    /// Of all columns that are compared.
    pub(crate) row: u128,
}

impl Digest {
    pub(crate) fn bucket(self) -> usize {
        self.key as usize & (BUCKETS - 1)
    }
}

/// Makes fingerprints of the rows of one table, with a secret of this comparison: nobody can
/// choose rows whose fingerprints are equal.
#[derive(Debug, Clone)]
pub(crate) struct Digester {
    secret: [u8; 16],
    columns: Vec<Compared>,
    has_key: bool,
    /// The places of the compared columns in the schema of the rows that came last.
    places: Option<(Arc<TableSchema>, Vec<usize>)>,
    key: Vec<u8>,
    rest: Vec<u8>,
}

#[derive(Debug, Clone)]
struct Compared {
    name: String,
    data_type: DataType,
    is_key: bool,
}

impl Digester {
    /// For the rows of `table`, by the columns that `compared` allows; keys always count.
    pub(crate) fn new(secret: [u8; 16], table: &TableSchema, compared: impl Fn(usize) -> bool) -> Self {
        let columns = table.columns.iter().enumerate().filter(|(i, _)| table.is_key(*i) || compared(*i));
        let column = |(i, c): (usize, &Column)| Compared {
            name: c.name.clone(),
            data_type: c.data_type.clone(),
            is_key: table.is_key(i),
        };
        let columns = columns.map(column).collect();
        Self { secret, columns, has_key: !table.key.is_empty(), places: None, key: Vec::new(), rest: Vec::new() }
    }

    /// The columns that are compared, in the order of the table.
    pub(crate) fn names(&self) -> Vec<String> {
        self.columns.iter().map(|c| c.name.clone()).collect()
    }

    /// The form of a value that is the same for equal ones.
    pub(crate) fn normal(data_type: &DataType, value: ValueRef<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        push_normal(data_type, value, &mut out);
        out
    }

    pub(crate) fn digest(&mut self, schema: &Arc<TableSchema>, row: RowRef<'_>) -> Result<Digest> {
        let known = self.places.as_ref().is_some_and(|(at, _)| Arc::ptr_eq(at, schema));
        if !known {
            let place = |c: &Compared| {
                schema.index_of(&c.name).ok_or_else(|| {
                    Error::transient(format!("a row of {} has no column {}: the table changes", schema.name, c.name))
                })
            };
            let places = self.columns.iter().map(place).collect::<Result<_>>()?;
            self.places = Some((Arc::clone(schema), places));
        }
        let Some((_, places)) = &self.places else { return Err(Error::fatal("a row without a schema")) };
        self.key.clear();
        self.rest.clear();
        for (column, &place) in self.columns.iter().zip(places) {
            let out = if column.is_key { &mut self.key } else { &mut self.rest };
            push_normal(&column.data_type, row.get(place), out);
        }
        let whole = self.hash(&[&self.key, &self.rest]);
        Ok(Digest { key: if self.has_key { self.hash(&[&self.key]) } else { whole }, row: whole })
    }

    fn hash(&self, parts: &[&[u8]]) -> u128 {
        let mut hasher = SipHasher13::new_with_key(&self.secret);
        parts.iter().for_each(|part| hasher.write(part));
        hasher.finish128().as_u128()
    }
}

/// The rows of one side, summed up: the order in which they came makes no difference.
#[derive(Debug)]
pub(crate) struct Sums {
    buckets: Vec<(u128, u64)>,
    pub(crate) rows: u64,
}

impl Default for Sums {
    fn default() -> Self {
        Self { buckets: vec![(0, 0); BUCKETS], rows: 0 }
    }
}

impl Sums {
    pub(crate) fn add(&mut self, digest: Digest) {
        let (sum, count) = &mut self.buckets[digest.bucket()];
        *sum = sum.wrapping_add(digest.row);
        *count += 1;
        self.rows += 1;
    }

    /// The buckets that differ, of those that are `open`: as many as have no more than `most` rows
    /// together, and the others.
    pub(crate) fn differing(&self, other: &Self, open: &[bool], most: u64) -> (Vec<bool>, Vec<bool>) {
        let (mut chosen, mut others) = (vec![false; BUCKETS], vec![false; BUCKETS]);
        let mut room = most;
        for (at, (mine, theirs)) in self.buckets.iter().zip(&other.buckets).enumerate() {
            if open[at] && mine != theirs {
                let rows = mine.1 + theirs.1;
                // One is always looked at, so that something is found.
                if rows <= room || room == most {
                    room = room.saturating_sub(rows);
                    chosen[at] = true;
                } else {
                    others[at] = true;
                }
            }
        }
        (chosen, others)
    }

    /// All buckets, as [`Sums::differing`] takes them.
    pub(crate) fn all_buckets() -> Vec<bool> {
        vec![true; BUCKETS]
    }
}

/// The rows of one side by key: the sum of the fingerprints, and how many there are (several only
/// without a key).
pub(crate) type ByKey = HashMap<u128, (u128, u64)>;

/// Counts a row in.
pub(crate) fn count(rows: &mut ByKey, digest: Digest) {
    let (sum, count) = rows.entry(digest.key).or_default();
    *sum = sum.wrapping_add(digest.row);
    *count += 1;
}

/// The keys whose rows differ.
pub(crate) fn differing_keys(a: &ByKey, b: &ByKey) -> Vec<u128> {
    let mut keys: Vec<u128> = a.iter().filter(|(key, row)| b.get(*key) != Some(*row)).map(|(key, _)| *key).collect();
    keys.extend(b.keys().filter(|key| !a.contains_key(*key)));
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bucket_that_differs_is_looked_at_in_turn_and_no_more_rows_at_a_time_than_allowed() {
        let (mut mine, theirs) = (Sums::default(), Sums::default());
        (0..100_u128).for_each(|key| mine.add(Digest { key: key % 40, row: key + 1 }));
        let (mut open, mut seen, mut turns) = (Sums::all_buckets(), 0, 0);
        loop {
            let (chosen, others) = mine.differing(&theirs, &open, 10);
            let count = chosen.iter().filter(|c| **c).count();
            if count == 0 {
                break;
            }
            assert!((1..=5).contains(&count), "two or three rows each");
            assert!(chosen.iter().zip(&others).all(|(c, o)| !(*c && *o)));
            (open, seen, turns) = (others, seen + count, turns + 1);
        }
        assert_eq!((seen, turns >= 8), (40, true));
        assert!(!mine.differing(&mine, &Sums::all_buckets(), 10).0.contains(&true));
    }
}
