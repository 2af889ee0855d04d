//! What the tests share, and the tests.

/// The result of a test, and of everything that it calls.
type Tested<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

mod broken;
mod checker;
mod config;
mod crash;
mod ending;
mod fan_out;
mod faults;
#[cfg(feature = "spanner")]
mod proxy;
mod resume;
mod runner;
mod safe_time;
mod source;
mod targets;
mod two_jobs;
mod types;
mod verify;
mod watcher;
mod writers;
#[cfg(feature = "yugabyte")]
mod yugabyte;
