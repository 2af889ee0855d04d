//! Checkpoints in a folder, one file for each pipeline.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{Checkpointer, Saved, Version};
use crate::durable_file;
use crate::error::{Error, Result};
use crate::model::Checkpoint;

/// Keeps each pipeline's checkpoint as a JSON file in a folder.
///
/// A save writes a new file, makes it durable and renames it over the old one, while it holds the
/// lock file beside it: of two processes that save over the same version one gets
/// [`Saved::Conflict`]. The folder must be on a file system that has locks between all the
/// machines that run the pipeline; a local one serves one machine.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// use anabranch_core::{Checkpoint, Checkpointer, Saved, Version, checkpointer::FileCheckpointer};
/// let folder = tempfile::tempdir().unwrap();
/// let store = FileCheckpointer::new(folder.path());
/// assert_eq!(store.save("orders-dr", None, &Checkpoint::default()).await?, Saved::Committed(Version(1)));
/// assert_eq!(store.save("orders-dr", None, &Checkpoint::default()).await?, Saved::Conflict);
/// # Ok::<(), anabranch_core::Error>(()) }).unwrap();
/// ```
#[derive(Debug, Clone)]
pub struct FileCheckpointer {
    folder: PathBuf,
}

/// What a file holds.
#[derive(Serialize, Deserialize)]
struct Stored {
    pipeline: String,
    version: u64,
    checkpoint: serde_json::Value,
}

impl FileCheckpointer {
    /// Checkpoints in this folder, which the first save creates.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    fn file_of(&self, pipeline: &str) -> PathBuf {
        self.folder.join(format!("{}.json", file_name(pipeline)))
    }
}

#[async_trait]
impl Checkpointer for FileCheckpointer {
    async fn load(&self, pipeline: &str) -> Result<Option<(Version, Checkpoint)>> {
        let (path, pipeline) = (self.file_of(pipeline), pipeline.to_owned());
        blocking(move || match read(&path, &pipeline)? {
            Some(stored) => {
                let checkpoint = Checkpoint::from_json(&stored.checkpoint.to_string())
                    .map_err(|e| e.context(format!("cannot use {}", path.display())))?;
                Ok(Some((Version(stored.version), checkpoint)))
            }
            None => Ok(None),
        })
        .await
    }

    async fn save(&self, pipeline: &str, expected: Option<Version>, next: &Checkpoint) -> Result<Saved> {
        let checkpoint =
            serde_json::to_value(next).map_err(|e| Error::fatal("cannot write the checkpoint as JSON").because(e))?;
        let (path, pipeline) = (self.file_of(pipeline), pipeline.to_owned());
        blocking(move || {
            let failed = |e: io::Error| failed("write", &path, e);
            let _lock = durable_file::lock_beside(&path).map_err(failed)?;
            let found = read(&path, &pipeline)?.map(|s| s.version);
            if found != expected.map(|v| v.0) {
                return Ok(Saved::Conflict);
            }
            let version = found.unwrap_or(0) + 1;
            let mut content = serde_json::to_vec_pretty(&Stored { pipeline, version, checkpoint })
                .map_err(|e| Error::fatal("cannot write the checkpoint as JSON").because(e))?;
            content.push(b'\n');
            durable_file::replace(&path, &content).map_err(failed)?;
            Ok(Saved::Committed(Version(version)))
        })
        .await
    }
}

fn read(path: &Path, pipeline: &str) -> Result<Option<Stored>> {
    let content = match fs::read(path) {
        Ok(content) => content,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed("read", path, e)),
    };
    let stored: Stored = serde_json::from_slice(&content)
        .map_err(|e| Error::fatal(format!("the checkpoint file {} is damaged", path.display())).because(e))?;
    // A file system that ignores case gives two pipelines one file.
    if stored.pipeline != pipeline {
        let problem = format!("{} belongs to the pipeline {}", path.display(), stored.pipeline);
        return Err(Error::config("pipeline.name", problem).hint("choose names that differ in more than case"));
    }
    Ok(Some(stored))
}

/// The pipeline's name where it is safe as a file name, with `%` and two hexadecimal digits for every other byte.
fn file_name(pipeline: &str) -> String {
    let mut name = String::with_capacity(pipeline.len());
    for (at, byte) in pipeline.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => name.push(char::from(byte)),
            b'.' if at > 0 => name.push('.'),
            _ => name.push_str(&format!("%{byte:02x}")),
        }
    }
    name
}

fn failed(verb: &str, path: &Path, cause: io::Error) -> Error {
    let message = format!("cannot {verb} the checkpoint file {}", path.display());
    match cause.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::NotADirectory | io::ErrorKind::ReadOnlyFilesystem => {
            Error::config("checkpoint.path", message).because(cause)
        }
        // A full disk, or a file system that went away: it may come back.
        _ => Error::transient(message).because(cause),
    }
}

/// Runs file calls on tokio's threads for blocking work. They run to their end even if the caller goes away.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::fatal("the thread that handles the checkpoint file ended early").because(e))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn names_that_are_no_file_names_are_escaped() {
        assert_eq!(file_name("orders-dr_2.v1"), "orders-dr_2.v1");
        assert_eq!(file_name("../a b"), "%2e.%2fa%20b");
    }

    #[tokio::test]
    async fn a_newer_format_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let store = FileCheckpointer::new(folder.path());
        let newer = Checkpoint { format: Checkpoint::FORMAT + 1, ..Checkpoint::default() };
        let _ = store.save("p", None, &newer).await.unwrap();

        let error = store.load("p").await.unwrap_err();

        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.report().contains("has format 2"), "{}", error.report());
    }

    #[tokio::test]
    async fn a_damaged_file_is_fatal_and_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("p.json"), b"{\"pipeline\":\"p\",").unwrap();

        let error = FileCheckpointer::new(folder.path()).load("p").await.unwrap_err();

        assert_eq!(error.kind(), ErrorKind::Fatal);
        assert!(error.report().contains("p.json"), "{}", error.report());
    }

    #[tokio::test]
    async fn a_crash_before_the_rename_leaves_the_old_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let store = FileCheckpointer::new(folder.path());
        let _ = store.save("p", None, &Checkpoint { epoch: 4, ..Checkpoint::default() }).await.unwrap();
        fs::write(folder.path().join("p.json.new"), b"{\"pipel").unwrap();

        let (version, loaded) = store.load("p").await.unwrap().unwrap();
        assert_eq!((version, loaded.epoch), (Version(1), 4));
        assert_eq!(store.save("p", Some(version), &loaded).await.unwrap(), Saved::Committed(Version(2)));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn of_many_that_save_over_one_version_one_wins() {
        let folder = tempfile::tempdir().unwrap();
        let mut version = None;
        for _ in 0..10 {
            let tries: Vec<_> = (0..8)
                .map(|epoch| {
                    let store = FileCheckpointer::new(folder.path());
                    tokio::spawn(async move {
                        store.save("p", version, &Checkpoint { epoch, ..Checkpoint::default() }).await.unwrap()
                    })
                })
                .collect();
            let mut won = Vec::new();
            for each in tries {
                if let Saved::Committed(version) = each.await.unwrap() {
                    won.push(version);
                }
            }
            assert_eq!(won.len(), 1);
            version = won.pop();
        }
        assert_eq!(version, Some(Version(10)));
    }
}
