//! Segments that were read back last: of several partitions that are merged, each transaction may be in
//! another one's.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::model::{BatchId, ChangeBatch};

/// A segment of a batch.
pub(super) type Key = (BatchId, usize);

/// The segments that were used last, up to a number of bytes; always the last one.
#[derive(Debug)]
pub(super) struct Recent {
    segments: HashMap<Key, (u64, Arc<ChangeBatch>)>,
    /// By when they were used.
    used: BTreeMap<u64, Key>,
    clock: u64,
    bytes: usize,
    limit: usize,
}

impl Recent {
    pub(super) fn new(limit: usize) -> Self {
        Self { segments: HashMap::new(), used: BTreeMap::new(), clock: 0, bytes: 0, limit }
    }

    /// What is kept, in bytes.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn get(&mut self, key: Key) -> Option<Arc<ChangeBatch>> {
        let (used, segment) = self.segments.get_mut(&key)?;
        self.clock += 1;
        self.used.remove(used);
        self.used.insert(self.clock, key);
        *used = self.clock;
        Some(Arc::clone(segment))
    }

    pub(super) fn keep(&mut self, key: Key, segment: &Arc<ChangeBatch>) {
        self.forget(key);
        self.clock += 1;
        self.bytes += segment.memory_size();
        self.used.insert(self.clock, key);
        self.segments.insert(key, (self.clock, Arc::clone(segment)));
        while self.bytes > self.limit
            && self.segments.len() > 1
            && let Some((_, oldest)) = self.used.first_key_value()
        {
            self.forget(*oldest);
        }
    }

    pub(super) fn forget(&mut self, key: Key) {
        if let Some((used, segment)) = self.segments.remove(&key) {
            self.used.remove(&used);
            self.bytes -= segment.memory_size();
        }
    }
}
