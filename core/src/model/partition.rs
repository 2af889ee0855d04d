//! The pieces in which a source gives its changes.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Position;

/// Names a partition within its source: a slot, a change-stream partition token, a shard.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PartitionId(Arc<str>);

impl PartitionId {
    /// A partition of this name.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for PartitionId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A partition and its lineage. It is opened only when all its parents are processed and durable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// Its name.
    pub id: PartitionId,
    /// The partitions it came from, by a split or a merge. Empty for a root.
    #[serde(default)]
    pub parents: Vec<PartitionId>,
    /// Where a first reader starts. `None`: at the source's beginning (of the slot, of the stream).
    #[serde(default)]
    pub start: Option<Position>,
}

impl Partition {
    /// A partition without parents, read from its beginning.
    pub fn root(id: PartitionId) -> Self {
        Self { id, parents: Vec::new(), start: None }
    }
}
