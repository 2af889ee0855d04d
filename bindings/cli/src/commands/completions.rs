//! `anabranch completions`

use anabranch::Result;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Cli;
use crate::exit;
use crate::say::say;

/// Prints them.
pub(crate) fn completions(shell: Shell) -> Result<u8> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "anabranch", &mut text);
    say(String::from_utf8_lossy(&text).trim_end());
    Ok(exit::DONE)
}
