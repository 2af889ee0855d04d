//! What can go wrong with a server.

use std::io;
use std::path::PathBuf;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a server could not be started, stopped or asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{doing}: {cause}")]
    Io {
        /// What was tried.
        doing: String,
        /// What the operating system said.
        cause: io::Error,
    },
    /// A program ended with an error.
    #[error("{program} failed: {output}")]
    Program {
        /// Its path.
        program: PathBuf,
        /// What it printed.
        output: String,
    },
    /// A server ended, or did not accept connections in time.
    #[error("the server {what}; the end of its log:\n{log}")]
    Server {
        /// What happened.
        what: &'static str,
        /// The last lines of its log.
        log: String,
    },
    /// A server refused a statement.
    #[error("the server refused: {message} (in: {sql})")]
    Refused {
        /// The server's message.
        message: String,
        /// The statement.
        sql: String,
    },
}

impl Error {
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |cause| Self::Io { doing, cause }
    }
}
