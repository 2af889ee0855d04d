//! Runs `yb-admin`.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anabranch_core::{Error, Result};
use tokio::process::Command;

/// How long a command may take, unless told otherwise: `wait_for_replication_drain` gives up by itself
/// after a minute or so.
const PATIENCE: Duration = Duration::from_secs(120);

/// YugabyteDB's administration tool, and the masters of the universe that it asks.
#[derive(Debug, Clone)]
pub struct YbAdmin {
    program: PathBuf,
    masters: String,
    certificates: Option<String>,
    patience: Duration,
}

impl YbAdmin {
    /// The program, and the masters: `host:port` with commas between.
    pub fn new(program: impl Into<PathBuf>, masters: impl Into<String>) -> Self {
        Self { program: program.into(), masters: masters.into(), certificates: None, patience: PATIENCE }
    }

    /// The folder of the certificates, where the universe encrypts.
    #[must_use]
    pub fn certs_dir(mut self, folder: impl Into<String>) -> Self {
        self.certificates = Some(folder.into());
        self
    }

    /// How long a command may take.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Checks what can be checked without running it.
    pub(crate) fn check(&self) -> Result<()> {
        let is_address = |a: &str| {
            a.rsplit_once(':').is_some_and(|(host, port)| !host.trim().is_empty() && port.parse::<u16>().is_ok())
        };
        if self.masters.split(',').all(is_address) {
            return Ok(());
        }
        Err(Error::config("xcluster.master_addresses", format!("{:?} is no list of masters", self.masters))
            .hint("host:port with commas between: 10.2.0.1:7100,10.2.0.2:7100,10.2.0.3:7100"))
    }

    /// Runs one command and gives what it writes.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Result<String> {
        self.check()?;
        let mut command = Command::new(&self.program);
        command.args(["-master_addresses", &self.masters]);
        if let Some(folder) = &self.certificates {
            command.args(["-certs_dir_name", folder]);
        }
        command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        let name = arguments.first().copied().unwrap_or_default();
        let output = match tokio::time::timeout(self.patience, command.output()).await {
            Ok(Ok(output)) => output,
            Ok(Err(e)) => return Err(self.not_run(e)),
            Err(_) => {
                return Err(Error::transient(format!("yb-admin {name} does not end within {:?}", self.patience)));
            }
        };
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(Error::transient(format!("yb-admin {name} failed ({}): {}", output.status, said.trim())));
        }
        String::from_utf8(output.stdout).map_err(|e| Error::fatal(format!("yb-admin {name} wrote no text")).because(e))
    }

    fn not_run(&self, e: io::Error) -> Error {
        let program = self.program.display();
        Error::config("xcluster.yb_admin", format!("{program} cannot be run"))
            .hint("name the program yb-admin, which comes with YugabyteDB, on this machine")
            .because(e)
    }
}
