//! A server's folder.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::account;
use crate::error::{Error, Result};
use crate::find;

/// A temporary folder that belongs to the account for servers, removed on drop.
#[derive(Debug)]
pub(crate) struct Folder(TempDir);

impl Folder {
    /// Makes one. The name is short: the path of a Unix socket in it has at most 107 bytes.
    pub(crate) fn new(kind: &str) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix(&format!("ab-{kind}-")).tempdir();
        let dir = dir.map_err(Error::io("making a temporary folder"))?;
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(dir.path(), mode).map_err(Error::io("opening a temporary folder"))?;
        account::give(dir.path())?;
        Ok(Self(dir))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Makes a folder in it for the account for servers.
    pub(crate) fn make(&self, name: &str) -> Result<PathBuf> {
        let path = self.join(name);
        fs::create_dir_all(&path).map_err(Error::io(format!("making {}", path.display())))?;
        account::give(&path)?;
        Ok(path)
    }
}

/// `bin`, or a copy of its installation in a place that the account for servers can reach: what is
/// in root's own cache folder is closed to it.
pub(crate) fn reachable(bin: PathBuf) -> Result<PathBuf> {
    if account::can_run(&bin.join("postgres")) {
        return Ok(bin);
    }
    let Some(root) = bin.parent() else { return Ok(bin) };
    let stamp = fs::metadata(bin.join("postgres")).and_then(|m| m.modified()).ok();
    let stamp = stamp.and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok()).map_or(0, |d| d.as_secs());
    let name: String =
        root.to_string_lossy().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let copy = Path::new("/var/tmp/anabranch-servers").join(format!("{stamp}{name}"));
    if !copy.is_dir() {
        copy_installation(root, &copy)?;
    }
    Ok(copy.join("bin"))
}

/// Copies beside the goal and renames, for several processes may do it at once.
fn copy_installation(from: &Path, to: &Path) -> Result<()> {
    let parent = to.parent().unwrap_or(Path::new("/var/tmp"));
    fs::create_dir_all(parent).map_err(Error::io(format!("making {}", parent.display())))?;
    let half = tempfile::Builder::new().tempdir_in(parent).map_err(Error::io("making a temporary folder"))?;
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(half.path(), mode).map_err(Error::io("opening a temporary folder"))?;
    let cp = find::program("cp").unwrap_or_else(|| "cp".into());
    let out = std::process::Command::new(&cp).arg("-a").arg(from.join(".")).arg(half.path()).output();
    let out = out.map_err(Error::io("running cp"))?;
    if !out.status.success() {
        let output = String::from_utf8_lossy(&out.stderr).into_owned();
        return Err(Error::Program { program: cp, output });
    }
    let half = half.keep();
    if fs::rename(&half, to).is_err() {
        // Another process was first, or the copy is of no use: either way it goes.
        let _ = fs::remove_dir_all(&half);
    }
    Ok(())
}
