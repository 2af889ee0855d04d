//! The log, which goes to the standard error, above the bar that is drawn there.

use std::io::{self, IsTerminal, Write};

use tracing_subscriber::EnvFilter;

use crate::progress;

/// Starts it, unless this is part of a program that has one.
pub(crate) fn start() {
    let filter = EnvFilter::try_from_env("ANABRANCH_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    // Not into files, and not where the user asks for none (https://no-color.org).
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Above);
    let _ = log.with_ansi(colours).with_target(false).try_init();
}

struct Above;

impl Write for Above {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        // A closed pipe, or a full disk: there is nobody to tell. An error here would become a panic of the
        // task that logs, and so the end of a pipeline that nobody listens to.
        let _ = progress::above(|| io::stderr().write_all(text));
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = io::stderr().flush();
        Ok(())
    }
}
