//! Reverse replication with the real command: a PostgreSQL source or Cloud Spanner's emulator, a session file with renamed tables
//! and columns, two MariaDB servers as shards. Shards fail and are repaired, the runner is killed.
//! Without the command, or a server, a test prints `skipped`.

/// The result of a test, and of everything that it calls.
type Tested<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[path = "../cli/command.rs"]
#[allow(dead_code, reason = "shared with the tests of the command")]
mod command;
mod shop;

mod letters;
mod mistakes;
mod postgres;
mod shards;
mod spanner;
mod writers;
