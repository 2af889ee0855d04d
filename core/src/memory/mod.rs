//! A database in memory, as a source and as a sink: the first thing to read, and the oracle of tests.
//!
//! [`MemorySource`] is a log of transactions that a test may append to at any time;
//! [`MemorySink`] applies units change by change, strictly in order, and remembers every state that
//! a reader of it could have seen.
//!
//! ```
//! use anabranch_core::memory::MemorySource;
//! use anabranch_core::*;
//! let orders = TableSchema {
//!     name: TableName::new("public", "orders"),
//!     columns: vec![Column::new("id", DataType::Int64), Column::new("state", DataType::Text { max_chars: None })],
//!     key: vec![0],
//! };
//! let source = MemorySource::new("shop").table(orders.clone());
//! source
//!     .transaction()
//!     .insert(&orders.name, ["1".into(), "new".into()])
//!     .update(&orders.name, ["1".into()], ["1".into(), "paid".into()])
//!     .commit()?;
//! assert_eq!(source.tables().rows(&orders.name), [["1".into(), "paid".into()]]);
//! # Ok::<(), anabranch_core::Error>(())
//! ```

mod reader;
mod sink;
mod snapshot;
mod source;
mod tables;
mod verify;

pub use sink::{Commit, MemorySink};
pub use source::{MemorySource, MemoryTransaction};
pub use tables::{MemoryTables, Row};
