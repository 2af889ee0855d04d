//! The account that servers run under: database servers refuse to run as root.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use crate::error::{Error, Result};
use crate::find;

/// The account for servers, decided once.
static ACCOUNT: LazyLock<Account> = LazyLock::new(Account::choose);

/// Who runs a server, and how it is started as that.
#[derive(Debug, Clone)]
enum Account {
    /// This process is not root: servers run as it does.
    Own,
    /// This process is root: servers run as this user.
    Other { name: String, uid: u32, gid: u32 },
}

impl Account {
    fn choose() -> Self {
        let root = fs::metadata("/proc/self").map(|m| m.uid() == 0).unwrap_or(false);
        if !root {
            return Self::Own;
        }
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let user = |wanted: &str| {
            let line = passwd.lines().find(|line| line.split(':').next() == Some(wanted))?;
            let mut fields = line.split(':').skip(2);
            let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
            Some(Self::Other { name: wanted.to_owned(), uid, gid })
        };
        user("postgres").or_else(|| user("nobody")).unwrap_or(Self::Own)
    }
}

/// A command that runs `program` under the account for servers, and, where `setpriv` is there, dies
/// with this process.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let program = program.as_ref();
    let setpriv = find::program("setpriv");
    match (&*ACCOUNT, setpriv) {
        (Account::Own, None) => Command::new(program),
        (Account::Own, Some(setpriv)) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL"]).arg(program);
            command
        }
        (Account::Other { name, gid, .. }, Some(setpriv)) => {
            let mut command = Command::new(setpriv);
            command.arg(format!("--reuid={name}")).arg(format!("--regid={gid}")).arg("--clear-groups");
            command.args(["--pdeathsig", "KILL"]).arg(program);
            command
        }
        (Account::Other { name, .. }, None) => {
            let mut command = Command::new("runuser");
            command.args(["-u", name.as_str(), "--"]).arg(program);
            command
        }
    }
}

/// A command that runs `program` as this process does, for a server that does not mind root, and,
/// where `setpriv` is there, dies with it.
pub(crate) fn own(program: impl AsRef<OsStr>) -> Command {
    let Some(setpriv) = find::program("setpriv") else { return Command::new(program) };
    let mut command = Command::new(setpriv);
    command.args(["--pdeathsig", "KILL"]).arg(program.as_ref());
    command
}

/// Gives a file or folder to the account for servers.
pub(crate) fn give(path: &Path) -> Result<()> {
    match &*ACCOUNT {
        Account::Own => Ok(()),
        Account::Other { uid, gid, .. } => {
            chown(path, Some(*uid), Some(*gid)).map_err(Error::io(format!("giving {} away", path.display())))
        }
    }
}

/// Whether the account for servers can run `program`: a folder above it may be closed to it.
pub(crate) fn can_run(program: &Path) -> bool {
    match &*ACCOUNT {
        Account::Own => true,
        Account::Other { .. } => {
            command("test").arg("-x").arg(program).status().map(|status| status.success()).unwrap_or(false)
        }
    }
}
