//! Files and object storage: window files as a sink and as a source, dead letters, checkpoints.
//!
//! ```no_run
//! use anabranch_files::{Location, WindowFiles};
//! let place = Location::new("gs://bucket/orders").option("service_account", "file:/run/key.json");
//! let files = WindowFiles::new(place.clone()).run("2026-11");   // a sink
//! let again = WindowFiles::new(place).run("2026-11").source();  // what it wrote, as a source
//! ```
//!
//! Everything is in a folder of the local file system, of Google Cloud Storage or of Amazon S3 (or a
//! store that speaks its protocol, with conditional writes). `README.md` has the layout and the promises.
//!
//! | file | noun |
//! |---|---|
//! | `location`, `store` | [`Location`]: a folder and its options; reading, writing, compare-and-set |
//! | `names` | what objects are called |
//! | `ledger` | `Ledger`: the one object that says what a run has written |
//! | `format/` | the lines of a window file, encoded and decoded |
//! | `sink`, `writer`, `progress`, `relay` | [`WindowFiles`]: writes window files, fenced, exactly once |
//! | `source`, `reader` | [`WindowSource`]: reads them, shard by shard, without a gap |
//! | `by_shard` | each shard by itself, and what is stored of its writer |
//! | `shard_writers` | [`ShardWriters`]: one pipeline for each shard, which halts alone; the run modes |
//! | `checkpointer` | [`FilesCheckpointer`]: checkpoints by compare-and-set |
//! | `dead_letters/` | [`FilesDeadLetters`]: letters in `retry/`, `severe/`, `skip/`, `filtered/` |

mod by_shard;
mod checkpointer;
mod config;
mod dead_letters;
mod error;
mod format;
mod ledger;
mod location;
mod names;
mod progress;
mod reader;
mod relay;
mod shard_writers;
mod sink;
mod source;
mod store;
mod writer;

pub use checkpointer::FilesCheckpointer;
pub use config::{FilesConfig, FilesSinkConfig, FilesSourceConfig};
pub use dead_letters::FilesDeadLetters;
pub use format::FORMAT;
pub use location::Location;
pub use shard_writers::{RunMode, ShardState, ShardStatus, ShardWriters};
pub use sink::{Ranks, WindowFiles};
pub use source::{Processed, WindowSource};
