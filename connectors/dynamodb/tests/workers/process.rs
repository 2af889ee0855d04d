//! `anabranch run` as a child process.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a worker may take to finish what is under way.
const STOP_DEADLINE: Duration = Duration::from_secs(60);
/// Between two looks at a process that is to end.
const POLL: Duration = Duration::from_millis(50);

/// `$ANABRANCH_BIN`, or what cargo built beside this test.
pub(crate) fn program() -> Option<PathBuf> {
    let beside = || Some(env::current_exe().ok()?.parent()?.parent()?.join("anabranch"));
    env::var_os("ANABRANCH_BIN").map(PathBuf::from).or_else(beside).filter(|path| path.is_file())
}

/// One worker. It is killed when it is dropped.
pub(crate) struct Worker {
    name: String,
    folder: TempDir,
    child: Child,
}

impl Worker {
    pub(crate) fn start(program: &Path, name: &str, config: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (file, log) = (folder.path().join("pipeline.toml"), folder.path().join("log"));
        fs::write(&file, config).expect("the configuration");
        let log = File::create(log).expect("the log");
        let mut command = Command::new(program);
        command.arg("run").arg(file).current_dir(folder.path());
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("the log")).stderr(log);
        let child = command.spawn().expect("the command starts");
        Self { name: name.to_owned(), folder, child }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Fails if it has ended by itself.
    pub(crate) fn check(&mut self) {
        if let Some(status) = self.child.try_wait().expect("its status") {
            panic!("the worker {} ended with {status}\n{}", self.name, self.log());
        }
    }

    /// With SIGKILL: it has no chance to finish anything.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    pub(crate) fn signal(&self, signal: &str) {
        let status = Command::new("kill").arg(format!("-{signal}")).arg(self.child.id().to_string()).status();
        assert!(status.expect("kill").success());
    }

    /// With SIGTERM: it finishes what is under way.
    pub(crate) fn stop(mut self) {
        self.signal("TERM");
        let deadline = Instant::now() + STOP_DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().expect("its status") {
                assert!(status.success(), "{} ended with {status}\n{}", self.name, self.log());
                return;
            }
            assert!(Instant::now() < deadline, "{} does not stop\n{}", self.name, self.log());
            std::thread::sleep(POLL);
        }
    }

    fn log(&self) -> String {
        let text = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Also one that stands still.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
