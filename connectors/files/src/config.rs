//! The keys of `[source]`, `[sink]`, `[checkpoint]` and `[dead_letters]` with `type = "files"`.

use std::collections::BTreeMap;
use std::time::Duration;

use anabranch_core::{Error, Result, Secret};
use serde::Deserialize;

use crate::{FilesCheckpointer, FilesDeadLetters, Location, Processed, Ranks, WindowFiles, WindowSource};

/// The keys of `[sink]` with `type = "files"`.
///
/// ```toml
/// [sink]
/// type = "files"
/// path = "gs://bucket/orders"     # or a folder, file:///folder, s3://bucket/folder
/// run = "2026-11"                 # optional: "default"
/// window_seconds = 10             # optional
/// max_file_mib = 16               # optional: larger windows become several files
/// ranks = "source"                # optional: or "commit_time"
/// [sink.options]                  # optional: object_store's names
/// service_account = "file:/run/key.json"
/// ```
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilesSinkConfig {
    /// The folder.
    pub path: String,
    /// Options of the store.
    #[serde(default)]
    pub options: BTreeMap<String, Secret>,
    /// The name of the run.
    pub run: Option<String>,
    /// The length of a window.
    pub window_seconds: Option<f64>,
    /// The size at which a file is closed.
    pub max_file_mib: Option<usize>,
    /// What orders the changes of a shard.
    #[serde(default)]
    pub ranks: Ranks,
}

/// The keys of `[source]` with `type = "files"`.
///
/// ```toml
/// [source]
/// type = "files"
/// path = "gs://bucket/orders"
/// run = "2026-11"                 # optional: "default"
/// shard = "eu"                    # optional: one shard alone; "" for changes without one
/// # shards = ["eu", "us"]         # or these; all unless set
/// poll_seconds = 1                # optional: the longest wait between two looks
/// processed = "keep"              # optional: or "delete", "move"
/// snapshot = "never"
/// ```
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilesSourceConfig {
    /// The folder.
    pub path: String,
    /// Options of the store.
    #[serde(default)]
    pub options: BTreeMap<String, Secret>,
    /// The name of the run.
    pub run: Option<String>,
    /// One shard alone.
    pub shard: Option<String>,
    /// These shards.
    pub shards: Option<Vec<String>>,
    /// The longest wait between two looks for new files.
    pub poll_seconds: Option<f64>,
    /// What becomes of files that are processed.
    #[serde(default)]
    pub processed: Processed,
}

/// The keys of `[checkpoint]` and `[dead_letters]` with `type = "files"`.
///
/// ```toml
/// [dead_letters]
/// type = "files"
/// path = "s3://bucket/dead-letters"
/// options = { region = "eu-central-1" }
/// ```
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilesConfig {
    /// The folder.
    pub path: String,
    /// Options of the store.
    #[serde(default)]
    pub options: BTreeMap<String, Secret>,
}

fn location(path: String, options: BTreeMap<String, Secret>) -> Location {
    options.into_iter().fold(Location::new(path), |location, (key, value)| location.option(key, value))
}

fn seconds(key: &str, seconds: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|d| *d >= Duration::from_millis(1))
        .ok_or_else(|| Error::config(key, "must be at least 0.001"))
}

impl TryFrom<FilesSinkConfig> for WindowFiles {
    type Error = Error;

    fn try_from(config: FilesSinkConfig) -> Result<Self> {
        let mut files = Self::new(location(config.path, config.options)).ranks(config.ranks);
        if let Some(run) = config.run {
            files = files.run(run);
        }
        if let Some(length) = config.window_seconds {
            files = files.window(seconds("sink.window_seconds", length)?);
        }
        if let Some(mib) = config.max_file_mib {
            files = files.max_file(mib.saturating_mul(1 << 20));
        }
        files.check()?;
        Ok(files)
    }
}

impl TryFrom<FilesSourceConfig> for WindowSource {
    type Error = Error;

    fn try_from(config: FilesSourceConfig) -> Result<Self> {
        let mut source = Self::new(location(config.path, config.options)).processed(config.processed);
        if let Some(run) = config.run {
            source = source.run(run);
        }
        source = match (config.shard, config.shards) {
            (Some(_), Some(_)) => {
                return Err(Error::config("source.shard", "is set beside source.shards").hint("leave one of them out"));
            }
            (Some(shard), None) => source.shard(shard),
            (None, Some(shards)) => source.shards(shards),
            (None, None) => source,
        };
        if let Some(poll) = config.poll_seconds {
            source = source.poll(seconds("source.poll_seconds", poll)?);
        }
        source.check_settings()?;
        Ok(source)
    }
}

impl TryFrom<FilesConfig> for FilesCheckpointer {
    type Error = Error;

    fn try_from(config: FilesConfig) -> Result<Self> {
        let store = Self::new(location(config.path, config.options));
        store.check()?;
        Ok(store)
    }
}

impl TryFrom<FilesConfig> for FilesDeadLetters {
    type Error = Error;

    fn try_from(config: FilesConfig) -> Result<Self> {
        let store = Self::new(location(config.path, config.options));
        store.check()?;
        Ok(store)
    }
}
