//! What Python costs: pipelines of native connectors run from Rust and from Python through the wheel, in
//! turn, on the same backlog; sinks that are written in Python; batches to Arrow.

use std::process::{Command, Stdio};

use anabranch_servers::PgServer;
use tempfile::TempDir;

use crate::Result;
use crate::backlog::{Backlog, PER_TRANSACTION, prepare};
use crate::child::{Outcome, config, measure, outcome};
use crate::setting::{self, drop_slot, servers, size};

/// Both the slot that keeps the log, and what no contender may take.
const KEPT: &str = "kept";

/// Runs in the same process as `import anabranch`, and tells as `child::run` does.
const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/load/python.py");

pub(crate) fn run() -> Result<()> {
    let Some(python) = Python::find() else { return Ok(()) };
    let changes = size("BENCH_PYTHON_CHANGES", 200_000)?.next_multiple_of(PER_TRANSACTION);
    let rounds = size("BENCH_ROUNDS", 5)?.max(1);
    let Some((source, target)) = servers()? else { return Ok(()) };
    Backlog::generate(&source, changes, &[KEPT])?;
    let load = Load { source, target, folder: tempfile::tempdir()?, changes, rounds };

    let version = setting::version(&load.source)?;
    println!(
        "\n{changes} changes in transactions of {PER_TRANSACTION}, {version}; the best of {rounds} rounds, in turn\n"
    );
    println!(
        "{:<34} {:>11} {:>11} {:>7} {:>12} {:>12} {:>7}",
        "", "Rust /s", "Python /s", "ratio", "CPU us Rust", "CPU us Py.", "ratio"
    );
    for to in [To::Nothing, To::Sqlite, To::Postgres] {
        load.beside(&python, to)?;
    }
    load.sinks(&python)?;
    python.arrow(size("BENCH_ARROW_ROWS", 200_000)?)
}

/// An interpreter whose environment has the wheel.
struct Python(String);

impl Python {
    /// `None`, said why, if there is none.
    fn find() -> Option<Self> {
        let Ok(program) = std::env::var("BENCH_PYTHON") else {
            eprintln!("skipped: python: BENCH_PYTHON is not set (`make bench-python` makes a wheel, and sets it)");
            return None;
        };
        let asked = Command::new(&program).args(["-c", "import anabranch, pyarrow"]).stderr(Stdio::null()).status();
        if !asked.is_ok_and(|status| status.success()) {
            eprintln!("skipped: python: {program} cannot import anabranch and pyarrow");
            return None;
        }
        Some(Self(program))
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.0);
        // Nothing but what is installed.
        command.args(["-I", PROGRAM]).args(args);
        command
    }

    /// Prints its own table.
    fn arrow(&self, rows: u64) -> Result<()> {
        let status = self.command(&["arrow", &rows.to_string()]).status()?;
        if status.success() { Ok(()) } else { Err(format!("the run of Arrow failed: {status}").into()) }
    }
}

/// Where native pipelines write to.
#[derive(Debug, Clone, Copy)]
enum To {
    /// A filter leaves every row out: reading, decoding and ordering alone.
    Nothing,
    Sqlite,
    Postgres,
}

impl To {
    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "PostgreSQL -> all filtered out",
            Self::Sqlite => "PostgreSQL -> SQLite",
            Self::Postgres => "PostgreSQL -> PostgreSQL",
        }
    }
}

struct Load {
    source: PgServer,
    target: PgServer,
    folder: TempDir,
    changes: u64,
    rounds: u64,
}

impl Load {
    /// Runs the same from both, in turn.
    fn beside(&self, python: &Python, to: To) -> Result<()> {
        let (mut rust, mut py) = (Best::default(), Best::default());
        for round in 0..self.rounds {
            // Whoever comes second finds the log in memory: each is it as often.
            let turns = if round % 2 == 0 { [false, true] } else { [true, false] };
            for in_python in turns {
                let (best, run) =
                    if in_python { (&mut py, format!("p{round}")) } else { (&mut rust, format!("r{round}")) };
                best.add(self.once(&run, to, |config| match in_python {
                    true => outcome(&mut python.command(&["pipeline", config])),
                    false => measure(config),
                })?);
            }
        }
        let rate = |best: &Best| self.changes as f64 / best.seconds;
        let cpu = |best: &Best| best.cpu_seconds * 1e6 / self.changes as f64;
        println!(
            "{:<34} {:>11.0} {:>11.0} {:>7.3} {:>12.2} {:>12.2} {:>7.3}",
            to.name(),
            rate(&rust),
            rate(&py),
            rust.seconds / py.seconds,
            cpu(&rust),
            cpu(&py),
            rust.cpu_seconds / py.cpu_seconds,
        );
        Ok(())
    }

    /// One run on a slot, and into a target, that nobody had before.
    fn once(&self, run: &str, to: To, go: impl FnOnce(&str) -> Result<Outcome>) -> Result<Outcome> {
        let name = format!("{to:?}_{run}").to_lowercase();
        let file = self.folder.path().join(&name);
        let sqlite = format!("type = \"sqlite\"\npath = \"{}\"\ncreate_tables = true", file.display());
        let sink = match to {
            To::Nothing => format!(
                "{sqlite}\n[dead_letters]\nkeep = []\n[[transform]]\ntype = \"filter\"\nexclude = [\"*.bench\"]"
            ),
            To::Sqlite => sqlite,
            To::Postgres => {
                prepare(&self.target, &name)?;
                format!("type = \"postgres\"\nurl = \"{}\"", self.target.url(&name))
            }
        };
        // One more: the row that says that everything was written.
        let expected = if matches!(to, To::Nothing) { 1 } else { self.changes + 1 };
        let outcome = self.on_slot(&name, &sink, go)?.expect(expected, 0)?;
        match to {
            To::Postgres => drop(self.target.exec("postgres", &format!("DROP DATABASE {name} WITH (FORCE)"))?),
            _ => std::fs::remove_file(&file)?,
        }
        Ok(outcome)
    }

    /// Runs on a slot of its own that has the whole backlog.
    fn on_slot(&self, name: &str, sink: &str, go: impl FnOnce(&str) -> Result<Outcome>) -> Result<Outcome> {
        self.source.exec("bench", &format!("SELECT pg_copy_logical_replication_slot('{KEPT}', '{name}')"))?;
        let keys = format!("slot = \"{name}\"\nsnapshot = \"never\"");
        let outcome = go(&config(name, &self.source.url("bench"), &keys, sink))?;
        drop_slot(&self.source, name)?;
        Ok(outcome)
    }

    /// Sinks in Python, which get whole units, beside one in Rust that forgets them too.
    fn sinks(&self, python: &Python) -> Result<()> {
        println!("\n{:<34} {:>11} {:>11}", "PostgreSQL -> a sink that keeps nothing", "changes/s", "CPU us");
        let null = "type = \"null\"";
        let one = |name: &str, what: &str, go: &dyn Fn(&str) -> Result<Outcome>| -> Result<()> {
            let mut best = Best::default();
            for round in 0..self.rounds.min(3) {
                let outcome = self.on_slot(&format!("{name}_{round}"), null, go)?;
                best.add(outcome.expect(self.changes + 1, 0)?);
            }
            let rate = self.changes as f64 / best.seconds;
            println!("{what:<40} {rate:>11.0} {:>11.2}", best.cpu_seconds * 1e6 / self.changes as f64);
            Ok(())
        };
        one("rust", "in Rust", &measure)?;
        for (kind, what) in [
            ("units", "in Python, whole units"),
            ("arrow", "in Python, each unit to pyarrow tables"),
            ("rows", "in Python, each row to Python values"),
        ] {
            one(kind, what, &|config| outcome(&mut python.command(&[kind, config])))?;
        }
        Ok(())
    }
}

/// The best of several runs. Its time and its CPU may be of different runs.
#[derive(Debug)]
struct Best {
    seconds: f64,
    cpu_seconds: f64,
}

impl Default for Best {
    fn default() -> Self {
        Self { seconds: f64::INFINITY, cpu_seconds: f64::INFINITY }
    }
}

impl Best {
    fn add(&mut self, outcome: Outcome) {
        self.seconds = self.seconds.min(outcome.seconds);
        self.cpu_seconds = self.cpu_seconds.min(outcome.used.cpu_seconds);
    }
}
