//! The `anabranch` command: writes, checks, runs and watches the pipeline of a configuration file.
//!
//! [`run`] is all of it, so that another program can ship the same command. Its documentation is
//! `anabranch --help`, with the exit codes: 0 done, 1 failed, 2 configuration, 3 a person has to decide.

mod args;
mod commands;
mod exit;
mod load;
mod log;
mod progress;
mod say;

use std::ffi::OsString;

use anabranch::{ErrorKind, Result};
use args::{Cli, Command};
use clap::Parser;

use commands::{
    check, completions, dead_letters, drain, init, man, pause, reprocess, run as running, status, strip, verify,
};

/// Runs the command with these arguments, of which the first is the program's name, and gives its exit
/// code. Prints to the process's own streams, answers SIGINT and SIGTERM while a pipeline runs, and has
/// a runtime of its own: not to be called from within one.
///
/// ```
/// assert_eq!(anabranch_cli::run(["anabranch", "--version"]), 0);
/// assert_eq!(anabranch_cli::run(["anabranch", "check", "no-such-file.toml"]), 2);
/// ```
pub fn run<I, T>(arguments: I) -> u8
where
    I: IntoIterator<Item = T>,
    T: Into<OsString>,
{
    let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(told) => return refused(&told, &arguments),
    };
    log::start();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            say::complain(format_args!("cannot start the runtime: {e}"));
            return exit::FAILED;
        }
    };
    match runtime.block_on(perform(cli.command, cli.json)) {
        Ok(code) => code,
        Err(error) => {
            let code = exit::code(error.kind());
            if cli.json {
                say_error(&error.report(), error.kind(), code);
            }
            say::complain(error.report());
            code
        }
    }
}

/// Help, the version, or what is wrong with the arguments.
fn refused(told: &clap::Error, arguments: &[OsString]) -> u8 {
    // A closed pipe: there is nobody to tell.
    let _ = told.print();
    if !told.use_stderr() {
        return exit::DONE;
    }
    // Arguments that are wrong cannot tell it: it is looked for where an option may stand.
    if arguments.iter().take_while(|a| *a != "--").any(|a| a == "--json") {
        let text = told.to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        say_error(text.trim_end(), ErrorKind::Config, exit::CONFIGURATION);
    }
    exit::CONFIGURATION
}

fn say_error(error: &str, kind: ErrorKind, code: u8) {
    say::say(serde_json::json!({ "error": error, "kind": kind.name(), "exit_code": code }));
}

async fn perform(command: Command, json: bool) -> Result<u8> {
    match command {
        Command::Init(options) => init::init(options, json),
        Command::Check { file } => check::check(&file.file, json).await,
        Command::Run { file, until_drained, mode, metrics } => {
            let how = running::How { until_drained, mode: mode.map(Into::into), metrics, json };
            running::run(&file.file, how).await
        }
        Command::Status { file, watch } => status::status(&file.file, json, watch).await,
        Command::Verify { file, options } => verify::verify(&file.file, options, json).await,
        Command::Drain { file, timeout } => drain::drain(&file.file, timeout, json).await,
        Command::Pause { file } => pause::pause(&file.file, json).await,
        Command::Resume { file } => pause::resume(&file.file, json).await,
        Command::Reprocess { file, shards } => reprocess::reprocess(&file.file, &shards, json).await,
        Command::DeadLetters { file, action } => dead_letters::dead_letters(&file.file, action, json).await,
        Command::Strip { file, tables } => strip::strip(&file.file, &tables, json).await,
        Command::Completions { shell } => completions::completions(shell),
        Command::Man { out } => man::man(out.as_deref()),
    }
}
