//! Where a pipeline's checkpoint is kept.

mod file;
mod memory;

pub use file::FileCheckpointer;
pub use memory::MemoryCheckpointer;

use std::fmt::Debug;

use async_trait::async_trait;

use crate::error::Result;
use crate::model::Checkpoint;

/// Stores checkpoints with compare-and-set.
///
/// Several processes may call it for one pipeline at the same time: of two that save over the same
/// version exactly one succeeds.
#[async_trait]
pub trait Checkpointer: Debug + Send + Sync + 'static {
    /// What is stored, with its version; `None` if nothing is.
    async fn load(&self, pipeline: &str) -> Result<Option<(Version, Checkpoint)>>;

    /// Stores `next` durably if what is stored still has the version `expected` (`None`: nothing is
    /// stored).
    async fn save(&self, pipeline: &str, expected: Option<Version>, next: &Checkpoint) -> Result<Saved>;
}

/// The version of a stored checkpoint; it grows with every save.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

/// What became of a save.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Saved {
    /// It is stored, durably, as this version.
    Committed(Version),
    /// Someone else has saved since: nothing was stored.
    Conflict,
}
