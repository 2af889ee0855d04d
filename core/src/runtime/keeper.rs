//! The checkpoint of a run: loaded once, saved over its own version, fenced by compare-and-set.

use std::sync::Arc;

use crate::checkpointer::{Checkpointer, Saved, Version};
use crate::error::{Error, Result};
use crate::model::{Checkpoint, Timestamp};

/// Saves the checkpoint of one run. A conflict means that another runner has taken over.
#[derive(Debug)]
pub(crate) struct Keeper {
    checkpointer: Arc<dyn Checkpointer>,
    pipeline: Arc<str>,
    version: Option<Version>,
    /// What the run knows; [`Keeper::save`] stores it.
    pub(crate) checkpoint: Checkpoint,
}

impl Keeper {
    /// Loads what is stored and takes the next epoch: from here on an older run cannot save.
    pub(crate) async fn take_over(checkpointer: Arc<dyn Checkpointer>, pipeline: Arc<str>) -> Result<Self> {
        let (version, checkpoint) = match checkpointer.load(&pipeline).await? {
            Some((version, checkpoint)) => (Some(version), checkpoint),
            None => (None, Checkpoint::default()),
        };
        if checkpoint.format > Checkpoint::FORMAT {
            return Err(Error::config(
                "checkpoint",
                format!(
                    "was written by a newer version (format {}, this one knows {})",
                    checkpoint.format,
                    Checkpoint::FORMAT
                ),
            )
            .hint("run the newer version"));
        }
        let mut keeper = Self { checkpointer, pipeline, version, checkpoint };
        keeper.checkpoint.epoch += 1;
        keeper.checkpoint.ended = false;
        keeper.save().await?;
        Ok(keeper)
    }

    /// Stores that the run ends here, for `status`.
    pub(crate) async fn save_end(&mut self) -> Result<()> {
        self.checkpoint.ended = true;
        self.save().await
    }

    /// Stores the checkpoint durably.
    pub(crate) async fn save(&mut self) -> Result<()> {
        self.checkpoint.saved_at = Some(Timestamp::now());
        match self.checkpointer.save(&self.pipeline, self.version, &self.checkpoint).await? {
            Saved::Committed(version) => {
                self.version = Some(version);
                Ok(())
            }
            Saved::Conflict => Err(Error::fenced(format!(
                "another runner has taken over the pipeline {} (this one had epoch {})",
                self.pipeline, self.checkpoint.epoch
            ))),
        }
    }
}
