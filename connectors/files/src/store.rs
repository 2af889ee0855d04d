//! Objects of one folder: read, write durably, compare and set, list.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Write};
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use anabranch_core::{Error, Result};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream::BoxStream};
use object_store::path::Path;
use object_store::{
    Error as StoreError, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, UpdateVersion,
};

use crate::error::{classify, classify_io};

/// A folder. Clones share the connections.
#[derive(Clone)]
pub(crate) struct Store(Arc<Inner>);

struct Inner {
    objects: Arc<dyn ObjectStore>,
    prefix: Path,
    /// The folder, where it is one of the file system.
    root: Option<PathBuf>,
    /// The configuration key that names it.
    key: Arc<str>,
    url: String,
}

/// Which content an object had when it was read or written: what compare-and-set compares.
#[derive(Debug, Clone)]
pub(crate) enum Tag {
    Cloud(UpdateVersion),
    /// A hash of the content: the file system has no versions. It is compared under a lock.
    Local(u64),
}

impl Store {
    pub(crate) fn local(
        objects: Arc<dyn ObjectStore>,
        prefix: Path,
        root: PathBuf,
        key: Arc<str>,
        url: String,
    ) -> Self {
        Self(Arc::new(Inner { objects, prefix, root: Some(root), key, url }))
    }

    pub(crate) fn cloud(objects: Arc<dyn ObjectStore>, prefix: Path, key: Arc<str>, url: String) -> Self {
        Self(Arc::new(Inner { objects, prefix, root: None, key, url }))
    }

    /// The configuration key that names the place.
    pub(crate) fn key(&self) -> &str {
        &self.0.key
    }

    /// The object's full name, for people.
    pub(crate) fn show(&self, name: &str) -> String {
        format!("{}/{name}", self.0.url.trim_end_matches('/'))
    }

    /// An object whole, with its tag; `None` if it is not there.
    pub(crate) async fn get(&self, name: &str) -> Result<Option<(Bytes, Tag)>> {
        let failed = |e| self.failed("read", name, e);
        let found = match self.0.objects.get(&self.path(name)?).await {
            Err(StoreError::NotFound { .. }) => return Ok(None),
            other => other.map_err(failed)?,
        };
        let version = UpdateVersion { e_tag: found.meta.e_tag.clone(), version: found.meta.version.clone() };
        let bytes = match found.bytes().await {
            // A file that was replaced between the look and the reading of it is read anew by the caller.
            Err(StoreError::NotFound { .. }) => return Ok(None),
            other => other.map_err(failed)?,
        };
        let tag = if self.0.root.is_some() { Tag::Local(hash(&bytes)) } else { Tag::Cloud(version) };
        Ok(Some((bytes, tag)))
    }

    /// At most `len` bytes of an object from `offset` on, which lies within it, and the size of the
    /// whole; `None` if it is not there.
    pub(crate) async fn read(&self, name: &str, offset: u64, len: u64) -> Result<Option<(Bytes, u64)>> {
        let failed = |e| self.failed("read", name, e);
        let range = Some(GetRange::Bounded(offset..offset.saturating_add(len)));
        let options = GetOptions { range, ..GetOptions::default() };
        match self.0.objects.get_opts(&self.path(name)?, options).await {
            Err(StoreError::NotFound { .. }) => Ok(None),
            found => {
                let found = found.map_err(failed)?;
                let size = found.meta.size;
                Ok(Some((found.bytes().await.map_err(failed)?, size)))
            }
        }
    }

    /// Writes an object, whatever was there: durable on return, and never half there.
    pub(crate) async fn put(&self, name: &str, content: Bytes) -> Result<()> {
        let put = self.0.objects.put(&self.path(name)?, content.into()).await;
        put.map(drop).map_err(|e| self.failed("write", name, e))
    }

    /// Writes an object where none is; false if there is another one.
    pub(crate) async fn create(&self, name: &str, content: Bytes) -> Result<bool> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.0.objects.put_opts(&self.path(name)?, content.clone().into(), options).await {
            Ok(_) => Ok(true),
            Err(
                StoreError::AlreadyExists { .. } | StoreError::Precondition { .. } | StoreError::NotModified { .. },
            ) => {
                // A write that was repeated because its answer was lost is refused by its own result.
                Ok(self.get(name).await?.is_some_and(|(found, _)| found == content))
            }
            Err(e) => Err(self.failed("write", name, e)),
        }
    }

    /// Writes an object if it still has the content of `expected` (`None`: if it is not there), and
    /// gives its new tag; `None` if somebody else has written it. `content` must be one that nobody
    /// else would write: it is how a write whose answer was lost is recognised.
    pub(crate) async fn swap(&self, name: &str, expected: Option<&Tag>, content: Bytes) -> Result<Option<Tag>> {
        if let Some(root) = &self.0.root {
            let (path, expected) = (root.join(name), expected.map(tag_hash));
            let shown = self.show(name);
            let swapped = blocking(move || swap_file(&path, expected, &content)).await?;
            return swapped.map_err(|e| classify_io(self.key(), &format!("write {shown}"), e));
        }
        let mode = match expected {
            None => PutMode::Create,
            Some(Tag::Cloud(version)) => PutMode::Update(version.clone()),
            Some(Tag::Local(_)) => return Err(Error::fatal("a tag of the file system was used on object storage")),
        };
        let options = PutOptions { mode, ..PutOptions::default() };
        match self.0.objects.put_opts(&self.path(name)?, content.clone().into(), options).await {
            Ok(put) => Ok(Some(Tag::Cloud(UpdateVersion { e_tag: put.e_tag, version: put.version }))),
            Err(
                StoreError::AlreadyExists { .. } | StoreError::Precondition { .. } | StoreError::NotModified { .. },
            ) => {
                // A write that was repeated because its answer was lost is refused by its own result.
                Ok(self.get(name).await?.filter(|(found, _)| *found == content).map(|(_, tag)| tag))
            }
            Err(e) => Err(self.failed("write", name, e)),
        }
    }

    /// Removes an object; one that is not there is none to remove.
    pub(crate) async fn delete(&self, name: &str) -> Result<()> {
        match self.0.objects.delete(&self.path(name)?).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.failed("delete", name, e)),
        }
    }

    /// Gives an object another name, replacing what has it; one that is not there was moved before.
    pub(crate) async fn rename(&self, from: &str, to: &str) -> Result<()> {
        match self.0.objects.rename(&self.path(from)?, &self.path(to)?).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.failed("move", from, e)),
        }
    }

    /// The names of the objects directly in `folder`, above `after`, in order, at most `limit`.
    pub(crate) async fn list(&self, folder: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>> {
        let mut names = BTreeSet::new();
        let mut found = self.names(folder, after)?;
        while let Some(name) = found.try_next().await? {
            if name.contains('/') || after.is_some_and(|after| name.as_str() <= after) {
                continue;
            }
            names.insert(name);
            if names.len() > limit {
                names.pop_last();
                // Object storage lists in order; a file system does not.
                if self.0.root.is_none() {
                    break;
                }
            }
        }
        Ok(names.into_iter().collect())
    }

    /// The names of all objects in `folder` and in the folders within it, in any order.
    pub(crate) fn walk(&self, folder: &str) -> Result<BoxStream<'static, Result<String>>> {
        self.names(folder, None)
    }

    fn names(&self, folder: &str, after: Option<&str>) -> Result<BoxStream<'static, Result<String>>> {
        let prefix = self.path(folder)?;
        let found = match after {
            Some(after) => self.0.objects.list_with_offset(Some(&prefix), &self.path(&format!("{folder}/{after}"))?),
            None => self.0.objects.list(Some(&prefix)),
        };
        let (store, folder) = (self.clone(), folder.to_owned());
        let start = prefix.as_ref().len() + usize::from(!prefix.as_ref().is_empty());
        let named = move |meta: object_store::Result<object_store::ObjectMeta>| match meta {
            Ok(meta) => {
                let name = meta.location.as_ref().get(start..).unwrap_or_default().to_owned();
                // Locks, and files that were never finished.
                let hidden = name.is_empty() || name.split('/').any(|part| part.starts_with('.'));
                (!hidden).then_some(Ok(name))
            }
            Err(StoreError::NotFound { .. }) => None,
            Err(e) => Some(Err(store.failed("list", &folder, e))),
        };
        Ok(found.filter_map(move |meta| std::future::ready(named(meta))).boxed())
    }

    fn path(&self, name: &str) -> Result<Path> {
        let prefix = self.0.prefix.as_ref();
        let full = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
        Path::parse(&full).map_err(|e| Error::config(self.key(), format!("{full} is no name of an object")).because(e))
    }

    fn failed(&self, verb: &str, name: &str, cause: StoreError) -> Error {
        classify(self.key(), &format!("{verb} {}", self.show(name)), cause)
    }
}

fn tag_hash(tag: &Tag) -> u64 {
    match tag {
        Tag::Local(hash) => *hash,
        // Equal to nothing that a file has, in all likelihood, and never produced for one.
        Tag::Cloud(_) => u64::MAX,
    }
}

fn hash(content: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(content);
    hasher.finish()
}

/// Replaces a file under the lock beside it, if it still has the content that is expected.
fn swap_file(path: &FilePath, expected: Option<u64>, content: &[u8]) -> io::Result<Option<Tag>> {
    let folder = path.parent().unwrap_or(FilePath::new("/"));
    create_folder(folder)?;
    let beside = |suffix: &str| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        folder.join(format!(".{name}.{suffix}"))
    };
    // The lock file stays: removing it would race with another one who waits for it.
    let lock = File::options().create(true).append(true).open(beside("lock"))?;
    lock.lock()?;
    let found = match fs::read(path) {
        Ok(found) => Some(hash(&found)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(e),
    };
    if found != expected {
        return Ok(None);
    }
    let temporary = beside("new");
    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    // Content before name: otherwise a crash may leave the name on an empty file.
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_folder(folder)?;
    Ok(Some(Tag::Local(hash(content))))
}

/// Creates a folder and those above it, durably.
fn create_folder(folder: &FilePath) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(above) = folder.parent() {
        create_folder(above)?;
        match fs::create_dir(folder) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => sync_folder(above)?,
        }
    }
    Ok(())
}

fn sync_folder(folder: &FilePath) -> io::Result<()> {
    // Windows cannot open a folder as a file, and keeps names durable without it.
    if cfg!(windows) { Ok(()) } else { File::open(folder)?.sync_all() }
}

/// Runs file calls on tokio's threads for blocking work. They run to their end even if the caller goes away.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.map_err(|e| Error::fatal("the thread that writes a file ended early").because(e))
}
