//! The `anabranch` command, as a process.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(anabranch_cli::main(std::env::args_os()))
}
