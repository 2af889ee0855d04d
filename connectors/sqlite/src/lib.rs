//! SQLite: sink, checkpointer and dead-letter store in one file. The embedded default.
//!
//! ```no_run
//! use anabranch_sqlite::Sqlite;
//! let target = Sqlite::open("replica.db");          // nothing is opened yet
//! let checkpoints = target.checkpointer();          // in the same file
//! ```
//!
//! | file | noun |
//! |---|---|
//! | `sink` | [`Sqlite`]: the file, and what it offers |
//! | `writer` | a lane's writer: one transaction per unit, fenced, with its progress |
//! | `apply`, `plan`, `shadow`, `staged` | statements; the way around unique keys; parts of large transactions |
//! | `progress`, `checkpointer`, `dead_letters` | what anabranch keeps in the file |
//! | `target`, `describe`, `types` | tables, and what becomes of each type |
//! | `worker`, `connection`, `error` | threads, pragmas, error kinds |
//!
//! SQLite blocks, so each connection lives on a thread of its own and is driven over a channel.
//! Connections use `journal_mode=WAL` and `synchronous=FULL`: a commit survives a power cut.

mod apply;
mod checkpointer;
mod config;
mod connection;
mod dead_letters;
mod describe;
mod error;
mod plan;
mod progress;
mod shadow;
mod sink;
mod staged;
mod target;
mod types;
mod verify;
mod worker;
mod writer;

pub use checkpointer::SqliteCheckpointer;
pub use config::SqliteConfig;
pub use dead_letters::SqliteDeadLetters;
pub use sink::Sqlite;
