//! The `anabranch` command as a child process.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::tell::{Done, say};

/// How long anything may take before a demonstration gives up.
const PATIENCE: Duration = Duration::from_secs(180);
/// Short: a kill is to hit a first copy of less than a second, and a lag is measured in milliseconds.
const ASK_EVERY: Duration = Duration::from_millis(2);

/// `$ANABRANCH_BIN`, or what cargo built beside this program; `make` is what builds it.
pub(crate) fn program(make: &str) -> Done<PathBuf> {
    let beside = || Some(env::current_exe().ok()?.parent()?.parent()?.join("anabranch"));
    let found = env::var_os("ANABRANCH_BIN").map(PathBuf::from).or_else(beside).filter(|path| path.is_file());
    found.ok_or_else(|| format!("the anabranch command is not built: cargo build -p anabranch-cli, or {make}").into())
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

    /// Asks until it is so; fails if the process ends meanwhile.
    pub(crate) fn wait_until(&mut self, what: &str, mut met: impl FnMut() -> Done<bool>) -> Done {
        let deadline = Instant::now() + PATIENCE;
        while !met()? {
            self.check()?;
            if Instant::now() > deadline {
                return Err(format!("{what}: not within {} s; {}", PATIENCE.as_secs(), self.log()).into());
            }
            thread::sleep(ASK_EVERY);
        }
        Ok(())
    }

    /// Starts it again after a kill in the stream, and tells how long it takes until it has caught up.
    pub(crate) fn catch_up(&mut self, met: impl FnMut() -> Done<bool>) -> Done {
        let down = Instant::now();
        self.start()?;
        self.wait_until("the stream", met)?;
        say("resumed", format!("caught up {:.1} s after its restart", down.elapsed().as_secs_f64()));
        Ok(())
    }

    /// Kills it, and tells how long a new process takes for what is left; `since` is what came before.
    pub(crate) fn finish(&mut self, since: &str) -> Done {
        self.kill()?;
        let took = self.drain()?;
        say("drained", format!("{:.1} s after {since}, start of the process included", took.as_secs_f64()));
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
    fn log(&self) -> String {
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
