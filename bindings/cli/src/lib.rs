//! The `anabranch` command: runs and watches the pipeline of a configuration file. A library, so that
//! the Python wheel has the same command.
//!
//! Exit codes: 0 done, 1 failed (`drain`: not drained yet), 2 configuration, 3 needs an operator
//! (`drain`: dead letters are open).

mod commands;
mod exit;
mod load;
mod progress;
mod say;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Carries the committed changes of one database to another, in order, each exactly once in effect.
#[derive(Debug, Parser)]
#[command(
    name = "anabranch",
    version,
    after_help = "Exit codes: 0 done, 1 failed, 2 configuration, 3 needs an operator.\nLog: set ANABRANCH_LOG=info (or debug)."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the pipeline until it is stopped (Ctrl-C or SIGTERM finish what is under way).
    Run {
        /// The configuration file.
        file: PathBuf,
        /// Stop when everything committed on the source before now is in the target.
        #[arg(long)]
        until_drained: bool,
        /// What to do, in place of `pipeline.mode`: retry-dlq tries the severe dead letters again,
        /// retry-all-dlq every one, and both end then.
        #[arg(long, value_enum)]
        mode: Option<Mode>,
    },
    /// Connect to both sides and print how every column would be stored. Writes no row.
    Check {
        /// The configuration file.
        file: PathBuf,
    },
    /// Print how far the pipeline is, from what it has stored.
    Status {
        /// The configuration file.
        file: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// Print it again every two seconds until interrupted; JSON as one line each time.
        #[arg(long)]
        watch: bool,
    },
    /// Pause the pipeline, wherever it runs: it finishes what is under way, and waits, also after a restart.
    Pause {
        /// The configuration file.
        file: PathBuf,
    },
    /// Let a paused pipeline go on.
    Resume {
        /// The configuration file.
        file: PathBuf,
    },
    /// Mark the present on the source and wait until everything before it is in the target, while
    /// another process runs the pipeline. Exit code 0: it is; 1: not yet; 3: but for dead letters.
    Drain {
        /// The configuration file.
        file: PathBuf,
        /// Seconds to wait at most. Without it there is no limit.
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<f64>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Compare the rows of both sides, also while the pipeline runs. Exit code 0: equal, 1: different.
    Verify {
        /// The configuration file.
        file: PathBuf,
        #[command(flatten)]
        options: commands::verify::Options,
    },
    /// List, show, retry or skip changes that the target refused.
    DeadLetters {
        /// The configuration file.
        file: PathBuf,
        #[command(subcommand)]
        action: commands::dead_letters::Action,
    },
}

/// See [`anabranch::pipeline::RunMode`].
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Mode {
    Regular,
    #[value(name = "retry-dlq")]
    RetryDlq,
    #[value(name = "retry-all-dlq")]
    RetryAllDlq,
}

impl From<Mode> for anabranch::pipeline::RunMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Regular => Self::Regular,
            Mode::RetryDlq => Self::RetryDlq,
            Mode::RetryAllDlq => Self::RetryAllDlq,
        }
    }
}

/// Runs the command with these arguments, of which the first is its name, and gives the exit code.
/// It installs a log and signal handlers, as a process of its own may.
pub fn main(args: impl IntoIterator<Item = OsString>) -> u8 {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(told) => {
            // `--help` comes this way too. A closed output changes nothing about the code.
            let _ = told.print();
            return u8::try_from(told.exit_code()).unwrap_or(exit::CONFIGURATION);
        }
    };
    start_log();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("error: cannot start the runtime: {e}");
            return exit::FAILED;
        }
    };
    let result = runtime.block_on(async {
        match cli.command {
            Command::Run { file, until_drained, mode } => commands::run::run(&file, until_drained, mode).await,
            Command::Check { file } => commands::check::check(&file).await,
            Command::Status { file, json, watch } => commands::status::status(&file, json, watch).await,
            Command::Pause { file } => commands::pause::pause(&file).await,
            Command::Resume { file } => commands::pause::resume(&file).await,
            Command::Drain { file, timeout, json } => commands::drain::drain(&file, timeout, json).await,
            Command::Verify { file, options } => commands::verify::verify(&file, options).await,
            Command::DeadLetters { file, action } => commands::dead_letters::dead_letters(&file, action).await,
        }
    });
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", error.report());
            exit::code(error.kind())
        }
    }
}

fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("ANABRANCH_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    // Not into files, and not where the user asks for none (https://no-color.org).
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    // A log that is there already stays.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        .with_target(false)
        .try_init();
}
