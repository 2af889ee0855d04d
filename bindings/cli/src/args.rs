//! What the command line takes.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueHint};
use clap_complete::Shell;

use crate::commands::{dead_letters, init, verify};

/// The exit codes, as every help tells them.
const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed, or not so: `verify` found a difference, `drain` is not drained yet
  2  the arguments, the configuration or the set-up of a database are wrong: the message says what to change
  3  a person has to decide: dead letters are open, shards are halted, or the source has lost what is needed

Environment:
  ANABRANCH_LOG  what is logged to the standard error: error, warn (default), info, debug
  NO_COLOR       if set, the log has no colours";

const BEGIN: &str = "\
Begin:
  anabranch init orders.toml --source postgresql://replicator@db1/shop --target mysql://app@db2/shop
  anabranch check orders.toml
  anabranch run orders.toml";

/// Carries the committed changes of one database to another, in order, each exactly once in effect.
#[derive(Debug, Parser)]
#[command(name = "anabranch", version, after_help = after_help(), max_term_width = 110)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Print JSON on the standard output, also for an error.
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

fn after_help() -> String {
    format!("{BEGIN}\n\n{EXIT_CODES}")
}

/// The file that every command reads.
#[derive(Debug, clap::Args)]
pub(crate) struct File {
    /// The configuration file; `anabranch init` writes one.
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write a configuration file, from two URLs.
    Init(init::Options),
    /// Connect to both sides and print how every column would be stored. Changes nothing.
    #[command(after_help = "Exit codes: 0 it would run; 2 something has to be mended first, and what.")]
    Check {
        #[command(flatten)]
        file: File,
    },
    /// Copy the tables, then carry changes until stopped. Ctrl-C ends it in good order.
    ///
    /// Copies the tables, then carries changes until it is stopped. Ctrl-C (or SIGTERM) finishes what is
    /// under way; a second one ends at once. Starting again goes on where the last run stopped, however
    /// it ended. A database that is down is waited for.
    #[command(after_help = "Exit codes: 0 stopped or drained; 1 given up, or taken over by another runner; \
                            2 configuration; 3 dead letters are open, shards are halted, or the source has lost \
                            what is needed.")]
    Run {
        #[command(flatten)]
        file: File,
        /// End when everything committed on the source before now is in the target.
        #[arg(long)]
        until_drained: bool,
        /// What the run does, in place of `pipeline.mode`. To try dead letters again and end, with nothing read
        /// from the source: retry-dlq those that need a person, retry-all-dlq every one. With
        /// `pipeline.each_shard`, which shards are written: resume-success those that did not fail,
        /// resume-failed those that did, reprocess those that `anabranch reprocess` has marked, resume-all
        /// (and regular) every one.
        #[arg(long, value_enum)]
        mode: Option<Mode>,
        /// Answer HTTP requests for /metrics (Prometheus), /status.json and /healthz here: a port of this
        /// machine alone, or address:port. In place of `metrics.listen`.
        #[arg(long, value_name = "ADDRESS")]
        metrics: Option<String>,
    },
    /// Print how far the pipeline is, from anywhere: what it has stored is asked.
    #[command(after_help = "Exit codes: 0 told; 1 a store does not answer; 2 configuration, or it has never run.")]
    Status {
        #[command(flatten)]
        file: File,
        /// Print it again every two seconds until interrupted; JSON as one line each time.
        #[arg(long)]
        watch: bool,
    },
    /// Compare the rows of both sides, also while the pipeline runs.
    #[command(after_help = "Exit codes: 0 equal; 1 different, or it could not be found out; 2 configuration.")]
    Verify {
        #[command(flatten)]
        file: File,
        #[command(flatten)]
        options: verify::Options,
    },
    /// Wait until everything committed on the source before now is in the target.
    ///
    /// Marks the present on the source and waits until everything before the mark is in the target, while
    /// another process runs the pipeline. The answer is a fact, never a guess.
    #[command(after_help = "Exit codes: 0 drained; 1 not yet; 2 configuration; 3 drained but for dead letters.")]
    Drain {
        #[command(flatten)]
        file: File,
        /// Seconds to wait at most. Without it there is no limit.
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<f64>,
    },
    /// Pause the pipeline, wherever it runs, until `resume`.
    ///
    /// Whoever runs the pipeline finishes what is under way within a few seconds and waits, also after a
    /// restart, until `resume`.
    Pause {
        #[command(flatten)]
        file: File,
    },
    /// Let a paused pipeline go on.
    Resume {
        #[command(flatten)]
        file: File,
    },
    /// Mark shards for `run --mode reprocess`, where each has a pipeline of its own.
    ///
    /// Marks shards of a run of window files for `run --mode reprocess`: with `pipeline.each_shard`. Where a shard
    /// goes on is in its database, with the rows, so nothing is applied twice; of one that was put back to a
    /// backup, what it lacks is applied again.
    #[command(
        after_help = "Exit codes: 0 marked; 1 the files do not answer; 2 configuration, or there is no such shard."
    )]
    Reprocess {
        #[command(flatten)]
        file: File,
        /// The shards.
        #[arg(required = true, value_name = "SHARD")]
        shards: Vec<String>,
    },
    /// List, show, retry or skip changes that the target refused.
    DeadLetters {
        #[command(flatten)]
        file: File,
        #[command(subcommand)]
        action: dead_letters::Action,
    },
    /// Remove what guards a DynamoDB target's items, after a cut-over.
    ///
    /// Removes the versions, origin marks and tombstones that guard a DynamoDB target's items. Only when
    /// no pipeline writes to the tables any more: nothing protects them from late writes afterwards.
    Strip {
        #[command(flatten)]
        file: File,
        /// A table of the target; may be given several times.
        #[arg(long = "table", value_name = "TABLE", required = true)]
        tables: Vec<String>,
    },
    /// Print completions for a shell.
    #[command(
        after_help = "Such as: anabranch completions bash > ~/.local/share/bash-completion/completions/anabranch"
    )]
    Completions {
        /// The shell.
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Print the man page, or write one for each command.
    Man {
        /// Write anabranch.1, anabranch-run.1 and so on into this folder.
        #[arg(long, value_name = "FOLDER", value_hint = ValueHint::DirPath)]
        out: Option<PathBuf>,
    },
}

/// See [`anabranch::pipeline::RunMode`].
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Mode {
    Regular,
    #[value(name = "retry-dlq")]
    RetryDlq,
    #[value(name = "retry-all-dlq")]
    RetryAllDlq,
    ResumeSuccess,
    ResumeFailed,
    Reprocess,
    ResumeAll,
}

impl From<Mode> for anabranch::pipeline::RunMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Regular => Self::Regular,
            Mode::RetryDlq => Self::RetryDlq,
            Mode::RetryAllDlq => Self::RetryAllDlq,
            Mode::ResumeSuccess => Self::ResumeSuccess,
            Mode::ResumeFailed => Self::ResumeFailed,
            Mode::Reprocess => Self::Reprocess,
            Mode::ResumeAll => Self::ResumeAll,
        }
    }
}
