//! Files that survive a crash of the machine.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Replaces the file at `path` by `content`: readers, and a crash, see the old one or the new one.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = with_suffix(path, ".new");
    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    // Content before name: otherwise a crash may leave the new name on an empty file.
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_folder_of(path)
}

/// Makes a new name in a folder durable.
pub(crate) fn sync_folder_of(path: &Path) -> io::Result<()> {
    // Windows cannot open a folder as a file, and keeps names durable without it.
    if cfg!(windows) { Ok(()) } else { File::open(folder_of(path))?.sync_all() }
}

/// The folder that holds `path`.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Waits for the lock file beside `path`; it is free again when the returned file is dropped, or
/// its process dies. The lock file itself stays: removing it would race with another waiter.
pub(crate) fn lock_beside(path: &Path) -> io::Result<File> {
    fs::create_dir_all(folder_of(path))?;
    let file = File::options().create(true).append(true).open(with_suffix(path, ".lock"))?;
    file.lock()?;
    Ok(file)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
