//! The `anabranch` command as a child process that is started again whenever it ends.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use super::Tested;

/// The command's exit codes for errors that no restart mends.
const CONFIGURATION: i32 = 2;
const NEEDS_AN_OPERATOR: i32 = 3;
/// Lines of the log that are shown.
const LOG_LINES: usize = 100;
/// How long a drain may take.
const DRAIN_DEADLINE: Duration = Duration::from_secs(120);
/// How long the first copy may take.
const COPY_DEADLINE: Duration = Duration::from_secs(120);

/// `$ANABRANCH_BIN`, or what `cargo build -p anabranch-cli` left beside this test. `None`: skipped.
pub(super) fn command() -> Option<PathBuf> {
    let beside = || Some(env::current_exe().ok()?.parent()?.parent()?.join("anabranch"));
    let found = env::var_os("ANABRANCH_BIN").map(PathBuf::from).or_else(beside).filter(|path| path.is_file());
    if found.is_none() {
        println!("skipped: the anabranch command is not built; run `cargo build -p anabranch-cli`, or `make test`");
    }
    found
}

/// A pipeline of the command.
pub(super) struct Runner {
    program: PathBuf,
    folder: TempDir,
    child: Arc<Mutex<Option<Child>>>,
    keeper: Option<JoinHandle<Tested>>,
}

impl Runner {
    /// With the pipeline `config` (TOML).
    pub(super) fn new(program: PathBuf, config: &str) -> Tested<Self> {
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("pipeline.toml"), config)?;
        Ok(Self { program, folder, child: Arc::default(), keeper: None })
    }

    /// Starts it, and again whenever it ends.
    pub(super) fn keep_running(&mut self) {
        let (program, folder) = (self.program.clone(), self.folder.path().to_owned());
        self.keeper = Some(tokio::spawn(keep(program, folder, self.child.clone())));
    }

    /// Kills it with SIGKILL. False: it is not running just now.
    pub(super) async fn kill(&self) -> Tested<bool> {
        match self.child.lock().await.as_mut() {
            Some(child) => Ok(child.start_kill().map(|()| true)?),
            None => Ok(false),
        }
    }

    /// Whether it ended in a way that no restart mends.
    pub(super) fn gave_up(&self) -> bool {
        self.keeper.as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// Waits until the first copy is done and it streams.
    pub(super) async fn streams(&self) -> Tested {
        let deadline = Instant::now() + COPY_DEADLINE;
        while !self.log().contains(" streaming | ") {
            if self.gave_up() || Instant::now() > deadline {
                return Err(format!("it does not stream:\n{}", self.log()).into());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Kills it for good.
    pub(super) async fn stop(&mut self) -> Tested {
        let Some(keeper) = self.keeper.take() else { return Ok(()) };
        if keeper.is_finished() {
            return keeper.await?;
        }
        keeper.abort();
        let _ = keeper.await;
        if let Some(mut child) = self.child.lock().await.take() {
            child.kill().await?;
        }
        Ok(())
    }

    /// Runs it until the target has everything that the source has.
    pub(super) async fn drain(&self) -> Tested {
        let mut child = start(&self.program, self.folder.path(), &["--until-drained"])?;
        match tokio::time::timeout(DRAIN_DEADLINE, child.wait()).await {
            Ok(status) if status.as_ref().is_ok_and(|s| s.success()) => Ok(()),
            Ok(status) => Err(format!("the drain ended with {:?}", status?.code()).into()),
            Err(_) => Err("the drain takes too long".into()),
        }
    }

    /// How often it printed this, over all its starts.
    pub(super) fn printed(&self, text: &str) -> usize {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default().matches(text).count()
    }

    /// The last lines that the command printed, over all its starts.
    pub(super) fn log(&self) -> String {
        let text = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

fn start(program: &Path, folder: &Path, options: &[&str]) -> Tested<Child> {
    let log = File::options().create(true).append(true).open(folder.join("log"))?;
    let mut command = Command::new(program);
    command.arg("run").arg(folder.join("pipeline.toml")).args(options).current_dir(folder).env("NO_COLOR", "1");
    command.env("ANABRANCH_LOG", "warn,anabranch_core::runtime::snapshot=info");
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
    Ok(command.spawn()?)
}

/// Ends only with an error that no restart mends.
async fn keep(program: PathBuf, folder: PathBuf, shared: Arc<Mutex<Option<Child>>>) -> Tested {
    loop {
        *shared.lock().await = Some(start(&program, &folder, &[])?);
        let status = loop {
            // Not `wait`: the one who kills needs the child meanwhile.
            if let Some(child) = shared.lock().await.as_mut()
                && let Some(status) = child.try_wait()?
            {
                break status;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        *shared.lock().await = None;
        match status.code() {
            Some(CONFIGURATION) => return Err("the command refuses its configuration".into()),
            Some(NEEDS_AN_OPERATOR) => return Err("the command needs an operator".into()),
            // It gave up for now: a server is down.
            Some(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            None => {}
        }
    }
}
