//! The checkpoint of a run: loaded once, saved over its own version, fenced by compare-and-set.

use std::sync::Arc;

use crate::checkpointer::{Checkpointer, Saved, Version};
use crate::error::{Error, Result};
use crate::model::{Checkpoint, Timestamp};

/// How often a save is tried again after an operator's mark: people do not type faster.
const TRIES: usize = 10;

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
        for _ in 0..TRIES {
            let (version, mut checkpoint) = match checkpointer.load(&pipeline).await? {
                Some((version, checkpoint)) => (Some(version), checkpoint),
                None => (None, Checkpoint::default()),
            };
            check(&checkpoint)?;
            let before = checkpoint.epoch;
            checkpoint.epoch += 1;
            checkpoint.ended = false;
            checkpoint.saved_at = Some(Timestamp::now());
            match checkpointer.save(&pipeline, version, &checkpoint).await? {
                Saved::Committed(version) => {
                    return Ok(Self { checkpointer, pipeline, version: Some(version), checkpoint });
                }
                Saved::Conflict => {
                    let now = checkpointer.load(&pipeline).await?;
                    // Only an operator's mark has moved it, or another runner has this epoch already?
                    if now.is_none_or(|(_, stored)| stored.epoch != before) {
                        return Err(fenced(&pipeline, before + 1));
                    }
                }
            }
        }
        Err(Error::transient(format!("the checkpoint of {pipeline} is changed by others again and again")))
    }

    /// Stores that the run ends here, for `status`.
    pub(crate) async fn save_end(&mut self) -> Result<()> {
        self.checkpoint.ended = true;
        self.save().await
    }

    /// Stores the checkpoint durably.
    pub(crate) async fn save(&mut self) -> Result<()> {
        self.checkpoint.saved_at = Some(Timestamp::now());
        for _ in 0..TRIES {
            if let Saved::Committed(version) =
                self.checkpointer.save(&self.pipeline, self.version, &self.checkpoint).await?
            {
                self.version = Some(version);
                return Ok(());
            }
            // Nobody saves with this run's epoch but this run, and whoever marks the pipeline as paused.
            match self.checkpointer.load(&self.pipeline).await? {
                Some((version, stored)) if stored.epoch == self.checkpoint.epoch => {
                    self.checkpoint.paused = stored.paused;
                    self.version = Some(version);
                }
                _ => break,
            }
        }
        Err(fenced(&self.pipeline, self.checkpoint.epoch))
    }
}

fn check(checkpoint: &Checkpoint) -> Result<()> {
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
    if checkpoint.sharing.is_some() {
        return Err(Error::config("workers", "this pipeline's partitions are shared by several workers")
            .hint("keep the section [workers]; one worker alone is enough to run it"));
    }
    Ok(())
}

fn fenced(pipeline: &str, epoch: u64) -> Error {
    Error::fenced(format!("another runner has taken over the pipeline {pipeline} (this one had epoch {epoch})"))
}
