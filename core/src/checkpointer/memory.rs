//! Checkpoints that live as long as the process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use super::{Checkpointer, Saved, Version};
use crate::error::Result;
use crate::model::Checkpoint;

/// Keeps checkpoints in memory: for tests, and for pipelines whose sink stores the progress anyway.
/// Clones share what is stored.
///
/// ```
/// use anabranch_core::checkpointer::MemoryCheckpointer;
/// use anabranch_core::{Checkpoint, Checkpointer, Saved};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> anabranch_core::Result<()> {
/// let store = MemoryCheckpointer::new();
/// let first = store.save("orders", None, &Checkpoint::default()).await?;
/// assert!(matches!(first, Saved::Committed(_)));
/// // Whoever has not seen that one does not save over it: of two runners one stops.
/// assert!(matches!(store.save("orders", None, &Checkpoint::default()).await?, Saved::Conflict));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Default)]
pub struct MemoryCheckpointer {
    stored: Arc<Mutex<HashMap<String, (Version, Checkpoint)>>>,
}

impl MemoryCheckpointer {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }
}

#[async_trait]
impl Checkpointer for MemoryCheckpointer {
    async fn load(&self, pipeline: &str) -> Result<Option<(Version, Checkpoint)>> {
        Ok(self.stored.lock().unwrap_or_else(PoisonError::into_inner).get(pipeline).cloned())
    }

    async fn save(&self, pipeline: &str, expected: Option<Version>, next: &Checkpoint) -> Result<Saved> {
        let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        let found = stored.get(pipeline).map(|(version, _)| *version);
        if found != expected {
            return Ok(Saved::Conflict);
        }
        let version = Version(found.map_or(1, |v| v.0 + 1));
        // Through JSON, so that tests meet what a durable store would do to it.
        stored.insert(pipeline.to_owned(), (version, Checkpoint::from_json(&next.to_json()?)?));
        Ok(Saved::Committed(version))
    }
}
