//! The `anabranch` command as a child process.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::Done;

/// `$ANABRANCH_BIN`, or what cargo built beside this program.
pub(crate) fn program() -> Option<PathBuf> {
    let beside = || Some(env::current_exe().ok()?.parent()?.parent()?.join("anabranch"));
    env::var_os("ANABRANCH_BIN").map(PathBuf::from).or_else(beside).filter(|path| path.is_file())
}

/// A pipeline: its configuration, its log, and the process while it runs.
pub(crate) struct Pipeline {
    program: PathBuf,
    folder: TempDir,
    child: Option<Child>,
}

impl Pipeline {
    /// With this configuration, in a folder of its own.
    pub(crate) fn new(program: &Path, config: &str) -> Done<Self> {
        let this = Self { program: program.to_owned(), folder: tempfile::tempdir()?, child: None };
        this.file("pipeline.toml", config)?;
        Ok(this)
    }

    /// Puts a file beside the configuration.
    pub(crate) fn file(&self, name: &str, text: &str) -> Done {
        Ok(fs::write(self.folder.path().join(name), text)?)
    }

    /// Starts it.
    pub(crate) fn start(&mut self) -> Done {
        self.child = Some(self.spawn(&[])?);
        Ok(())
    }

    /// Kills it with SIGKILL: it has no chance to finish anything.
    pub(crate) fn kill(&mut self) -> Done {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Fails if it has ended by itself.
    pub(crate) fn check(&mut self) -> Done {
        if let Some(status) = self.child.as_mut().map(Child::try_wait).transpose()?.flatten() {
            return Err(format!("the pipeline ended with {status}\n{}", self.log()).into());
        }
        Ok(())
    }

    /// Runs it until the target has everything that the source has.
    pub(crate) fn drain(&mut self) -> Done<Duration> {
        let started = Instant::now();
        let status = self.spawn(&["--until-drained"])?.wait()?;
        if !status.success() {
            return Err(format!("the drain ended with {status}\n{}", self.log()).into());
        }
        Ok(started.elapsed())
    }

    /// What it printed last.
    pub(crate) fn log(&self) -> String {
        let text = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        format!("its log:\n{}", lines[lines.len().saturating_sub(20)..].join("\n"))
    }

    fn spawn(&self, options: &[&str]) -> Done<Child> {
        let log = File::options().create(true).append(true).open(self.folder.path().join("log"))?;
        let mut command = Command::new(&self.program);
        command.arg("run").arg(self.folder.path().join("pipeline.toml")).args(options);
        command.current_dir(self.folder.path()).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(command.spawn()?)
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}
