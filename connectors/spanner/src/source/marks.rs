//! How far the partitions that are being read are durable: the oldest of them is what the change stream
//! must still keep.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use anabranch_core::PartitionId;

use crate::client::Instant;

#[derive(Debug, Clone, Default)]
pub(crate) struct Marks(Arc<Mutex<HashMap<PartitionId, Instant>>>);

/// One partition's mark, removed with its reader.
#[derive(Debug)]
pub(crate) struct Mark {
    marks: Marks,
    partition: PartitionId,
}

impl Marks {
    pub(crate) fn open(&self, partition: &PartitionId, at: Instant) -> Mark {
        let mark = Mark { marks: self.clone(), partition: partition.clone() };
        mark.set(at);
        mark
    }

    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().min().copied()
    }
}

impl Mark {
    pub(crate) fn set(&self, at: Instant) {
        self.marks.0.lock().unwrap_or_else(PoisonError::into_inner).insert(self.partition.clone(), at);
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        self.marks.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.partition);
    }
}
