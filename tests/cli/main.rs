//! The `anabranch` command as somebody meets it who does everything wrong: the exit code, what the
//! message says, that no secret is printed, and that nothing is lost once the mistake is mended.
//!
//! Runs the real command between real servers: the tests share one source and one target of each
//! kind, with databases of their own. Without the command, or a server, a test prints `skipped`.

/// The result of a test, and of everything that it calls.
type Tested<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

mod command;
mod shop;

mod arguments;
mod configuration;
mod control;
mod documents;
mod init;
mod lapsed;
mod letters;
mod metrics;
mod readme;
mod rights;
mod running;
mod schema;
mod source;
mod target;
mod tls;
mod verify;
mod verify_elsewhere;
