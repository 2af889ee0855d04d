//! Rows that differ, and whether they are only on their way.

use std::collections::HashMap;

use crate::control::verify::DifferenceKind;
use crate::model::Value;

/// The rows of one key on one side.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Seen {
    /// The sum of their fingerprints.
    pub(crate) sum: u128,
    /// How many there are; more than one only without a key.
    pub(crate) count: u64,
    /// One of them: the columns of the table, in its order.
    pub(crate) row: Option<Vec<Value>>,
}

impl Seen {
    fn same(&self, other: &Self) -> bool {
        (self.sum, self.count) == (other.sum, other.count)
    }

    pub(crate) fn add(&mut self, row_digest: u128, row: Vec<Value>) {
        self.sum = self.sum.wrapping_add(row_digest);
        self.count += 1;
        self.row = Some(row);
    }
}

/// What both sides hold of one key.
#[derive(Debug, Clone, Default)]
pub(crate) struct Found {
    pub(crate) source: Seen,
    pub(crate) target: Seen,
}

impl Found {
    /// How the rows differ, with the one that tells the key.
    pub(crate) fn kind(&self) -> DifferenceKind {
        match (self.source.count, self.target.count) {
            (0, _) => DifferenceKind::Extra,
            (_, 0) => DifferenceKind::Missing,
            // Without a key: more or fewer copies of one row.
            (s, t) if s > t => DifferenceKind::Missing,
            (s, t) if s < t => DifferenceKind::Extra,
            _ => DifferenceKind::Changed,
        }
    }
}

/// The keys whose rows differ, and what is known of each.
#[derive(Debug, Default)]
pub(crate) struct Suspects {
    open: HashMap<u128, Option<Found>>,
    confirmed: HashMap<u128, Found>,
}

/// A row that did not change on the source while the target passed a mark, and differs, is confirmed
/// when that was seen twice with the same rows: once it might have changed and changed back.
impl Suspects {
    pub(crate) fn new(keys: impl IntoIterator<Item = u128>) -> Self {
        Self { open: keys.into_iter().map(|key| (key, None)).collect(), confirmed: HashMap::new() }
    }

    pub(crate) fn open(&self) -> impl Iterator<Item = u128> {
        self.open.keys().copied()
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.open.is_empty()
    }

    pub(crate) fn unsettled(&self) -> u64 {
        self.open.len() as u64
    }

    /// Takes in a round: the source before the mark, the target behind it, the source after that.
    pub(crate) fn round(
        &mut self,
        before: &HashMap<u128, Seen>,
        target: &HashMap<u128, Seen>,
        after: &HashMap<u128, Seen>,
    ) {
        let none = Seen::default();
        let of = |side: &HashMap<u128, Seen>, key| side.get(&key).cloned().unwrap_or_else(|| none.clone());
        let mut settled = Vec::new();
        for (&key, known) in &mut self.open {
            let (source, found, later) = (of(before, key), of(target, key), of(after, key));
            if source.same(&found) {
                settled.push((key, None));
            } else if !source.same(&later) {
                *known = None;
            } else {
                let now = Found { source, target: found };
                match known {
                    Some(seen) if seen.source.same(&now.source) && seen.target.same(&now.target) => {
                        settled.push((key, Some(now)));
                    }
                    _ => *known = Some(now),
                }
            }
        }
        self.settle(settled);
    }

    /// Takes in what both sides hold while nothing moves: every suspect is settled by it.
    pub(crate) fn at_rest(&mut self, source: &HashMap<u128, Seen>, target: &HashMap<u128, Seen>) {
        let of = |side: &HashMap<u128, Seen>, key| side.get(&key).cloned().unwrap_or_default();
        let found: Vec<_> = self.open().map(|key| (key, of(source, key), of(target, key))).collect();
        let found = found.into_iter().map(|(key, source, target)| {
            let differs = !source.same(&target);
            (key, differs.then_some(Found { source, target }))
        });
        self.settle(found.collect());
    }

    fn settle(&mut self, settled: Vec<(u128, Option<Found>)>) {
        for (key, difference) in settled {
            self.open.remove(&key);
            if let Some(found) = difference {
                self.confirmed.insert(key, found);
            }
        }
    }

    /// What differs for sure.
    pub(crate) fn into_confirmed(self) -> HashMap<u128, Found> {
        self.confirmed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(rows: &[(u128, u128)]) -> HashMap<u128, Seen> {
        rows.iter().map(|&(key, sum)| (key, Seen { sum, count: 1, row: None })).collect()
    }

    #[test]
    fn a_row_on_its_way_is_cleared_and_one_that_differs_is_seen_twice() {
        let mut suspects = Suspects::new([1, 2, 3, 4]);
        // 1 has arrived, 2 differs, 3 changes all the time, 4 is extra in the target.
        suspects.round(
            &side(&[(1, 10), (2, 20), (3, 30)]),
            &side(&[(1, 10), (2, 21), (3, 29), (4, 40)]),
            &side(&[(1, 10), (2, 20), (3, 31)]),
        );
        assert_eq!(suspects.unsettled(), 3);
        suspects.round(&side(&[(2, 20), (3, 32)]), &side(&[(2, 21), (3, 30), (4, 40)]), &side(&[(2, 20), (3, 33)]));
        assert_eq!(suspects.open().collect::<Vec<_>>(), [3]);
        let confirmed = suspects.into_confirmed();
        assert_eq!(confirmed.len(), 2);
        assert_eq!(confirmed[&2].kind(), DifferenceKind::Changed);
        assert_eq!(confirmed[&4].kind(), DifferenceKind::Extra);
    }

    #[test]
    fn a_row_that_changed_and_changed_back_is_not_confirmed() {
        let mut suspects = Suspects::new([1]);
        // Between the two reads of the source it was 11, and the target was seen with that.
        suspects.round(&side(&[(1, 10)]), &side(&[(1, 11)]), &side(&[(1, 10)]));
        assert_eq!(suspects.unsettled(), 1);
        suspects.round(&side(&[(1, 10)]), &side(&[(1, 10)]), &side(&[(1, 10)]));
        assert!(suspects.is_settled() && suspects.into_confirmed().is_empty());
    }
}
