//! A server's process: start, wait until it accepts, stop, kill.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// How long a server may take to accept connections, recovery after a crash included.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// How long a server may take to stop before it is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(20);
/// Between two looks at a server that starts or stops, which announces neither.
const POLL: Duration = Duration::from_millis(10);

type Request = (Command, Sender<io::Result<Child>>);

/// The thread that starts every server. "Dies with its parent" means, to Linux, the parent *thread*
/// (prctl(2), PR_SET_PDEATHSIG): a server started by a test's own thread would die with that test,
/// even if it is shared by several.
static STARTER: LazyLock<Mutex<Sender<Request>>> = LazyLock::new(|| {
    let (sender, receiver) = channel::<Request>();
    thread::spawn(move || {
        for (mut command, reply) in receiver {
            let _ = reply.send(command.spawn());
        }
    });
    Mutex::new(sender)
});

/// A server's process, running or not.
#[derive(Debug)]
pub(crate) struct Process {
    log: PathBuf,
    pid_file: PathBuf,
    child: Mutex<Option<Child>>,
}

/// A signal, by the name that `kill` knows.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Signal {
    Int,
    Quit,
    Term,
    Stop,
    Kill,
}

impl Process {
    /// Of a server that logs to `log` and writes its process id on the first line of `pid_file`.
    pub(crate) fn new(log: PathBuf, pid_file: PathBuf) -> Self {
        Self { log, pid_file, child: Mutex::new(None) }
    }

    /// Starts `command` and waits until `ready`. Does nothing if it runs.
    pub(crate) fn start(&self, command: Command, ready: impl Fn() -> bool) -> Result<()> {
        let mut child = self.lock();
        if let Some(running) = child.as_mut()
            && matches!(running.try_wait(), Ok(None))
        {
            return Ok(());
        }
        // The file of a killed server would be taken for the new one's.
        let _ = fs::remove_file(&self.pid_file);
        *child = Some(self.spawn(command)?);
        let deadline = Instant::now() + START_DEADLINE;
        while let Some(running) = child.as_mut() {
            if !matches!(running.try_wait(), Ok(None)) {
                *child = None;
                return Err(self.error("ended while it started"));
            }
            if ready() {
                break;
            }
            if Instant::now() > deadline {
                return Err(self.error("did not accept connections in time"));
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    fn spawn(&self, mut command: Command) -> Result<Child> {
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.map_err(Error::io(format!("opening {}", self.log.display())))?;
        let copy = log.try_clone().map_err(Error::io("copying the log's handle"))?;
        command.stdin(Stdio::null()).stdout(log).stderr(copy);
        let (reply, answer) = channel();
        let starter = STARTER.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let gone = || io::Error::other("the starting thread ended");
        let child = starter.send((command, reply)).map_err(|_| gone()).and_then(|()| answer.recv().map_err(|_| gone()));
        child.flatten().map_err(Error::io("starting the server"))
    }

    /// Sends `signal` and waits for the end; kills it if it takes too long. Does nothing if it does
    /// not run.
    pub(crate) fn stop(&self, with: Signal) -> Result<()> {
        let mut child = self.lock();
        let Some(mut running) = child.take() else { return Ok(()) };
        let pid = self.pid().unwrap_or(running.id());
        if matches!(with, Signal::Kill) {
            // Or it starts another child after the list of them is made, which would survive it.
            signal(Signal::Stop, &[pid])?;
            wait_until(|| stat(pid).is_none_or(|(state, _)| state != 'R' && state != 'S' && state != 'D'));
        }
        // Before the signal: afterwards the children have another parent.
        let children = children_of(pid);
        signal(with, &[pid])?;
        if matches!(with, Signal::Kill) && !children.is_empty() {
            // Ignores those that ended by themselves in between.
            let _ = signal(Signal::Kill, &children);
        }
        let deadline = Instant::now() + STOP_DEADLINE;
        while alive(pid) && matches!(running.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = signal(Signal::Kill, &[pid]);
                let _ = signal(Signal::Kill, &children);
                break;
            }
            thread::sleep(POLL);
        }
        running.wait().map_err(Error::io("waiting for the server's end"))?;
        // A server refuses to start beside a child of its predecessor.
        while children.iter().any(|&c| alive(c)) && Instant::now() < deadline {
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// Whether it runs.
    pub(crate) fn running(&self) -> bool {
        self.lock().as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Its process id, if it runs.
    pub(crate) fn id(&self) -> Option<u32> {
        let own = self.lock().as_ref().map(Child::id)?;
        Some(self.pid().unwrap_or(own))
    }

    /// The server's own id: that of the child is another one if a program stands in between.
    fn pid(&self) -> Option<u32> {
        fs::read_to_string(&self.pid_file).ok()?.lines().next()?.trim().parse().ok()
    }

    /// The last lines of the log.
    pub(crate) fn log(&self) -> String {
        let text = fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    fn error(&self, what: &'static str) -> Error {
        Error::Server { what, log: self.log() }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for what takes an instant, as long as it may take on a busy machine.
fn wait_until(met: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !met() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
}

/// The shell's own `kill`, for the standard library has no signals.
fn signal(signal: Signal, pids: &[u32]) -> Result<()> {
    let name = match signal {
        Signal::Int => "INT",
        Signal::Quit => "QUIT",
        Signal::Term => "TERM",
        Signal::Stop => "STOP",
        Signal::Kill => "KILL",
    };
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    let line = format!("kill -{name} {} 2>/dev/null", pids.join(" "));
    Command::new("/bin/sh").args(["-c", &line]).status().map_err(Error::io("running kill"))?;
    Ok(())
}

/// The processes whose parent is `pid`. Empty where there is no `/proc`.
fn children_of(pid: u32) -> Vec<u32> {
    let Ok(folder) = fs::read_dir("/proc") else { return Vec::new() };
    let ids = folder.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|id| stat(*id).is_some_and(|(_, parent)| parent == pid)).collect()
}

/// Whether the process exists and is more than a zombie.
fn alive(pid: u32) -> bool {
    match stat(pid) {
        Some((state, _)) => state != 'Z' && state != 'X',
        None => !Path::new("/proc/self").exists(),
    }
}

/// State and parent of a process: proc(5), `/proc/pid/stat`, the fields after the name in brackets.
fn stat(pid: u32) -> Option<(char, u32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}
