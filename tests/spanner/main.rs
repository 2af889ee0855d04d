//! Spanner with the real command: both directions at once, and a source that is read by a process that
//! is killed again and again. Without the command, or a server, a test prints `skipped`.

/// The result of a test, and of everything that it calls.
type Tested<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[path = "../cli/command.rs"]
#[allow(dead_code, reason = "shared with the tests of the command")]
mod command;
#[path = "../pipelines/proxy.rs"]
mod proxy;

mod both_directions;
mod crash;
mod target;
mod workload;
