//! The `anabranch` command in a folder of its own.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::Tested;

/// The documented exit codes.
pub(super) const DONE: i32 = 0;
pub(super) const FAILED: i32 = 1;
pub(super) const CONFIGURATION: i32 = 2;
pub(super) const OPERATOR: i32 = 3;

/// What every secret of these tests contains: it must never be printed.
pub(super) const SECRET: &str = "hunter2";
/// How long a command may take, or what it should say or bring about: something refused is tried again
/// within a minute.
const DEADLINE: Duration = Duration::from_secs(90);
/// Between two looks at what announces nothing.
const POLL: Duration = Duration::from_millis(20);

/// `$ANABRANCH_BIN`, or what `cargo build -p anabranch-cli` left beside this test. `None`: skipped.
fn program() -> Option<PathBuf> {
    let beside = || Some(env::current_exe().ok()?.parent()?.parent()?.join("anabranch"));
    let found = env::var_os("ANABRANCH_BIN").map(PathBuf::from).or_else(beside).filter(|path| path.is_file());
    if found.is_none() {
        println!("skipped: the anabranch command is not built; run `cargo build -p anabranch-cli`, or `make test`");
    }
    found
}

/// The command, with a configuration file in a temporary folder.
pub(super) struct Anabranch {
    program: PathBuf,
    folder: TempDir,
    environment: Vec<(String, String)>,
}

/// What it printed and how it ended.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) code: Option<i32>,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Anabranch {
    /// `None`: skipped.
    pub(super) fn new(config: &str) -> Tested<Option<Self>> {
        let Some(program) = program() else { return Ok(None) };
        let this = Self { program, folder: tempfile::tempdir()?, environment: Vec::new() };
        this.write(config)?;
        Ok(Some(this))
    }

    /// Writes the configuration anew.
    pub(super) fn write(&self, config: &str) -> Tested {
        Ok(fs::write(self.folder.path().join("pipeline.toml"), config)?)
    }

    /// Its folder, where relative paths begin.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A variable of its environment.
    pub(super) fn env(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Runs `anabranch` with these arguments until it ends.
    pub(super) fn bare(&self, arguments: &[&str]) -> Tested<Said> {
        self.start(arguments)?.ended()
    }

    /// Runs `anabranch FIRST pipeline.toml REST..` until it ends.
    pub(super) fn call(&self, arguments: &[&str]) -> Tested<Said> {
        self.spawn(arguments)?.ended()
    }

    /// `check`
    pub(super) fn check(&self) -> Tested<Said> {
        self.call(&["check"])
    }

    /// `run --until-drained`
    pub(super) fn drain(&self) -> Tested<Said> {
        self.call(&["run", "--until-drained"])
    }

    /// Starts it with a standard output that is closed at the other end.
    pub(super) fn spawn_unread(&self, arguments: &[&str]) -> Tested<Child> {
        let (first, rest) = arguments.split_first().ok_or("no command")?;
        let mut command = Command::new(&self.program);
        command.arg(first).arg("pipeline.toml").args(rest).current_dir(self.folder.path());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        drop(child.stdout.take());
        Ok(child)
    }

    /// Starts it with these arguments, with everything logged to a standard error that is closed at the other end.
    pub(super) fn spawn_unheard(&self, arguments: &[&str]) -> Tested<Child> {
        // Closed before it begins: not even its first line is read.
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let mut command = Command::new(&self.program);
        command.args(arguments).current_dir(self.folder.path()).env("ANABRANCH_LOG", "debug");
        command.envs(self.environment.iter().cloned());
        Ok(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer).spawn()?)
    }

    /// Starts it.
    pub(super) fn spawn(&self, arguments: &[&str]) -> Tested<Running> {
        let (first, rest) = arguments.split_first().ok_or("no command")?;
        let with_file: Vec<&str> = [*first, "pipeline.toml"].iter().chain(rest).copied().collect();
        self.start(&with_file)
    }

    /// Starts it with these arguments alone.
    pub(super) fn start(&self, arguments: &[&str]) -> Tested<Running> {
        let id = fs::read_dir(self.folder.path())?.count();
        let (out, err) = (self.folder.path().join(format!("{id}.out")), self.folder.path().join(format!("{id}.err")));
        let mut command = Command::new(&self.program);
        command.args(arguments).current_dir(self.folder.path());
        command.env("NO_COLOR", "1").env_remove("ANABRANCH_LOG").envs(self.environment.iter().cloned());
        command.stdin(Stdio::null()).stdout(File::create(&out)?).stderr(File::create(&err)?);
        Ok(Running { child: command.spawn()?, out, err })
    }
}

/// The command, running. Killed when dropped.
pub(super) struct Running {
    child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Running {
    /// What it has printed so far, both streams.
    pub(super) fn log(&self) -> String {
        fs::read_to_string(&self.err).unwrap_or_default() + &fs::read_to_string(&self.out).unwrap_or_default()
    }

    /// Waits until it has printed `text`.
    pub(super) fn says(&mut self, text: &str) -> Tested {
        let deadline = Instant::now() + DEADLINE;
        while !self.log().contains(text) {
            if let Some(status) = self.child.try_wait()?
                && !self.log().contains(text)
            {
                return Err(format!("it ended ({status}) and did not say {text:?}:\n{}", self.log()).into());
            }
            if Instant::now() > deadline {
                return Err(format!("it does not say {text:?}:\n{}", self.log()).into());
            }
            sleep(POLL);
        }
        Ok(())
    }

    /// Sends a signal, by its name.
    pub(super) fn signal(&self, name: &str) -> Tested {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status()?;
        if status.success() { Ok(()) } else { Err(format!("kill -{name}: {status}").into()) }
    }

    /// Whether it still runs.
    pub(super) fn runs(&mut self) -> Tested<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits for its end.
    pub(super) fn ended(mut self) -> Tested<Said> {
        let deadline = Instant::now() + DEADLINE;
        let status: ExitStatus = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                return Err(format!("it does not end:\n{}", self.log()).into());
            }
            sleep(POLL);
        };
        let said = Said {
            code: status.code(),
            stdout: fs::read_to_string(&self.out)?,
            stderr: fs::read_to_string(&self.err)?,
        };
        said.keeps_secrets();
        Ok(said)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Said {
    /// Asserts how it ended, and that it said all of `parts` on the way.
    #[track_caller]
    pub(super) fn expect(&self, code: i32, parts: &[&str]) {
        let all = self.all();
        assert_eq!(self.code, Some(code), "{all}");
        for part in parts {
            assert!(all.contains(part), "it does not say {part:?}:\n{all}");
        }
        if code != DONE {
            let errors = self.stderr.lines().filter(|line| line.starts_with("error: ")).count();
            assert_eq!(errors, 1, "one line tells the error:\n{all}");
        }
    }

    /// Both streams.
    pub(super) fn all(&self) -> String {
        format!("{}{}", self.stderr, self.stdout)
    }

    #[track_caller]
    fn keeps_secrets(&self) {
        assert!(!self.all().contains(SECRET), "a secret is printed:\n{}", self.all());
    }
}

/// Waits for something that nobody announces.
pub(super) fn until(what: &str, mut met: impl FnMut() -> Tested<bool>) -> Tested {
    let deadline = Instant::now() + DEADLINE;
    while !met()? {
        if Instant::now() > deadline {
            return Err(format!("{what}: not within {} s", DEADLINE.as_secs()).into());
        }
        sleep(POLL);
    }
    Ok(())
}
