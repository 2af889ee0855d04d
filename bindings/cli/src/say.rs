//! Prints results. A reader that has seen enough (`| head`) is no error.

use std::fmt::Display;
use std::io::Write;

use anabranch::{Error, Result};
use serde::Serialize;

/// One line on the standard output.
pub(crate) fn say(line: impl Display) {
    // A full disk or a closed pipe: there is nobody to tell.
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// What is wrong, as one line on the standard error. Nobody may be there to read it: the exit code says it too.
pub(crate) fn complain(problem: impl Display) {
    let _ = writeln!(std::io::stderr(), "error: {problem}");
}

/// What somebody should know beside a result, as one line on the standard error.
pub(crate) fn note(what: impl Display) {
    let _ = writeln!(std::io::stderr(), "note: {what}");
}

/// A value as JSON over several lines.
pub(crate) fn say_json(value: &impl Serialize) -> Result<()> {
    say(serde_json::to_string_pretty(value).map_err(unwritten)?);
    Ok(())
}

/// A value as one line of JSON.
pub(crate) fn say_json_line(value: &impl Serialize) -> Result<()> {
    say(serde_json::to_string(value).map_err(unwritten)?);
    Ok(())
}

fn unwritten(e: serde_json::Error) -> Error {
    Error::fatal("cannot write JSON").because(e)
}

/// Whether all that was said has gone out: for commands that print without end.
pub(crate) fn is_heard() -> bool {
    std::io::stdout().flush().is_ok()
}
