//! A Spanner that follows a script: the real protocol (`google.spanner.v1` over gRPC), in this process.
//!
//! For what the emulator cannot do: transaction tags, mutable key ranges, nanoseconds, transactions
//! spread over partitions, resume tokens that differ, errors in mid-stream, queries that end without
//! children, a thousand partitions, a clock that a test moves. Where both can do it, a test of this
//! crate compares it with the emulator.
//!
//! ```
//! use std::sync::Arc;
//! use anabranch_spanner_fake::{Committed, Script, Stream, Table, Time};
//! use serde_json::json;
//!
//! let t = Time::seconds;
//! let orders = Arc::new(Table::new("Orders").key("Id", "INT64").column("Note", "STRING"));
//! let mut stream = Stream::new("orders");
//! stream.root("a", t(0)).root("b", t(0)).merge(&["a", "b"], t(20), "c");
//! stream.commit(
//!     Committed::at(t(5))
//!         .tag("txBy=me")
//!         .insert("a", &orders, json!({"Id": "1", "Note": "one"}))
//!         .insert("b", &orders, json!({"Id": "2", "Note": null})),
//! );
//! let fake = Script::new().clock(t(10)).stream(stream).start();
//! // A client reads projects/fake/instances/fake/databases/fake at fake.host() ...
//! fake.set_time(t(30)); // ... and now it sees the merge.
//! ```
//!
//! Rules that a script keeps:
//! - A record is in its stream once the server's clock has reached its time. What a test adds while a
//!   stream is read must be later than that.
//! - A query gets the records from its start time on, inclusive, always in the same order; then, while
//!   the partition is open, heartbeats as the clock goes on.
//! - A partition that is split or merged ends with child records at that time, and its children start
//!   at that time.
//!
//! Of SQL it knows the table functions of change streams, `SELECT columns FROM table WHERE column =
//! parameter AND ..`, what of the information schema a source asks, and what a script answers. DML is
//! noted, not run; mutations are.

mod calls;
mod database;
mod encode;
mod query;
mod reading;
mod record;
mod rows;
mod schema;
mod server;
mod service;
mod stream;
mod table;
mod time;
mod transaction;

pub use database::{Asked, Commit};
pub use encode::Dialect;
pub use record::{Capture, ModType};
pub use rows::Row;
pub use server::{FakeSpanner, Script};
pub use stream::{Mode, Stream};
pub use table::{Column, Table};
pub use time::Time;
pub use transaction::Committed;
