//! Checkpoints as objects, replaced by compare-and-set.

use std::fmt;

use anabranch_core::{Checkpoint, Checkpointer, Error, Result, Saved, Version};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::error::damaged;
use crate::location::Location;
use crate::names;
use crate::store::{Store, Tag};

/// Keeps each pipeline's checkpoint as a JSON object in a folder.
///
/// On object storage a save is a conditional write (`If-Match`, `If-None-Match`), which Google Cloud
/// Storage, Amazon S3 and most stores that speak its protocol have; on the file system it is made under
/// a lock file, made durable and renamed. Of two that save over one version one gets
/// [`Saved::Conflict`]. Google Cloud Storage takes one write of an object a second, and lets others wait.
#[derive(Clone)]
pub struct FilesCheckpointer {
    location: Location,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    pipeline: String,
    version: u64,
    /// A new one for each save: no two savers write the same.
    nonce: u64,
    checkpoint: serde_json::Value,
}

impl FilesCheckpointer {
    /// Checkpoints in this folder.
    pub fn new(location: impl Into<Location>) -> Self {
        Self { location: location.into().section("checkpoint") }
    }

    /// Finds what can be found without a connection.
    ///
    /// # Errors
    /// [`Config`](anabranch_core::ErrorKind::Config), naming the key.
    pub fn check(&self) -> Result<()> {
        self.location.check()
    }
}

fn name_of(pipeline: &str) -> String {
    format!("{}.json", names::escape(pipeline))
}

async fn stored(store: &Store, pipeline: &str) -> Result<Option<(Stored, Tag)>> {
    let name = name_of(pipeline);
    let Some((bytes, tag)) = store.get(&name).await? else { return Ok(None) };
    let stored: Stored = serde_json::from_slice(&bytes).map_err(|e| damaged(&store.show(&name), e))?;
    // A file system that ignores case gives two pipelines one file.
    if stored.pipeline != pipeline {
        let problem = format!("{} belongs to the pipeline {}", store.show(&name), stored.pipeline);
        return Err(Error::config("pipeline.name", problem).hint("choose names that differ in more than case"));
    }
    Ok(Some((stored, tag)))
}

#[async_trait]
impl Checkpointer for FilesCheckpointer {
    async fn load(&self, pipeline: &str) -> Result<Option<(Version, Checkpoint)>> {
        let store = self.location.store()?;
        let Some((stored, _)) = stored(&store, pipeline).await? else { return Ok(None) };
        let checkpoint = Checkpoint::from_json(&stored.checkpoint.to_string())
            .map_err(|e| e.context(format!("cannot use {}", store.show(&name_of(pipeline)))))?;
        Ok(Some((Version(stored.version), checkpoint)))
    }

    async fn save(&self, pipeline: &str, expected: Option<Version>, next: &Checkpoint) -> Result<Saved> {
        let store = self.location.store()?;
        let found = stored(&store, pipeline).await?;
        let version = found.as_ref().map(|(stored, _)| stored.version);
        if version != expected.map(|v| v.0) {
            return Ok(Saved::Conflict);
        }
        let as_json = |e: serde_json::Error| Error::fatal("cannot write the checkpoint as JSON").because(e);
        let next = Stored {
            pipeline: pipeline.to_owned(),
            version: version.unwrap_or(0) + 1,
            nonce: rand::random(),
            checkpoint: serde_json::to_value(next).map_err(as_json)?,
        };
        let mut content = serde_json::to_vec(&next).map_err(as_json)?;
        content.push(b'\n');
        match store.swap(&name_of(pipeline), found.as_ref().map(|(_, tag)| tag), content.into()).await? {
            Some(_) => Ok(Saved::Committed(Version(next.version))),
            None => Ok(Saved::Conflict),
        }
    }
}

impl fmt::Debug for FilesCheckpointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FilesCheckpointer").field("location", &self.location).finish()
    }
}
