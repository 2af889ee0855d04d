//! Prints results. A reader that has seen enough (`| head`) is no error.

use std::fmt::Display;
use std::io::Write;

/// One line on the standard output.
pub(crate) fn say(line: impl Display) {
    // A full disk or a closed pipe: there is nobody to tell.
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Whether all that was said has gone out: for commands that print without end.
pub(crate) fn is_heard() -> bool {
    std::io::stdout().flush().is_ok()
}
