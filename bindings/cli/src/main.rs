//! The `anabranch` command. Everything is in the library, so that the Python wheel ships the same one.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(anabranch_cli::run(std::env::args_os()))
}
