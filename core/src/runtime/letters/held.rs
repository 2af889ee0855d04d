//! What waits: letters that are open, and the keys and shards behind them.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use super::is_row;
use crate::dead_letter::{DeadLetter, LetterClass};
use crate::model::{ChangeRef, RowRef, TableName, Timestamp};
use crate::net_effect::{has_comparable_key, key_bytes};

/// The shard, where each is a database of its own, the table and the key.
pub(super) type HeldKey = (Option<Arc<str>>, TableName, Box<[u8]>);

#[derive(Debug, Default)]
pub(super) struct Held {
    /// Each shard is a database of its own: one key is another row in each.
    pub(super) sharded: bool,
    pub(super) keys: HashSet<HeldKey>,
    pub(super) shards: HashSet<String>,
    /// Shards with open letters that were not parked.
    pub(super) own: HashSet<String>,
    /// Open letters by shard; of none: an empty name.
    pub(super) open: BTreeMap<String, OpenLetters>,
}

/// Letters that wait, of one shard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct OpenLetters {
    pub(crate) retryable: u64,
    pub(crate) severe: u64,
    /// The commit time of the oldest.
    pub(crate) oldest: Option<Timestamp>,
}

impl Held {
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.shards.is_empty()
    }

    pub(super) fn touches(&self, change: ChangeRef<'_>) -> bool {
        change.shard().is_some_and(|s| self.shards.contains(&**s))
            || keys_of(change, self.sharded).iter().any(|k| self.keys.contains(k))
    }

    /// Whether the shard has open letters that were not parked.
    pub(super) fn has_own(&self, shard: &str) -> bool {
        self.own.contains(shard)
    }

    pub(super) fn count(&mut self, letter: &DeadLetter) {
        if letter.parked.is_none()
            && let Some(shard) = letter.shard.as_ref().filter(|s| !self.own.contains(*s))
        {
            self.own.insert(shard.clone());
        }
        self.open.entry(letter.shard.clone().unwrap_or_default()).or_default().add(letter);
    }
}

impl OpenLetters {
    pub(crate) fn add(&mut self, letter: &DeadLetter) {
        match letter.class {
            LetterClass::Severe => self.severe += 1,
            LetterClass::Retry => self.retryable += 1,
            LetterClass::Skip | LetterClass::Filtered => return,
        }
        self.oldest = match (self.oldest, letter.commit_time) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }
}

/// The keys that a change touches: of the row before and of the row after. Rows of a table whose keys cannot
/// be compared, or that has none, cannot be told apart: all of them have one.
pub(in crate::runtime) fn keys_of(change: ChangeRef<'_>, sharded: bool) -> BTreeSet<HeldKey> {
    let Some(schema) = change.table().filter(|_| is_row(change)) else { return BTreeSet::new() };
    let comparable = has_comparable_key(schema);
    let key = |row: RowRef<'_>| {
        let mut bytes = Vec::new();
        if comparable {
            key_bytes(schema, row, &mut bytes);
        }
        (change.shard().filter(|_| sharded).cloned(), schema.name.clone(), bytes.into_boxed_slice())
    };
    [change.old_row(), change.new_row()].into_iter().flatten().map(key).collect()
}
