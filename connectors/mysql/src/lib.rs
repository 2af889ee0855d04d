//! MySQL and MariaDB as a target, and as a store of checkpoints and dead letters.
//!
//! ```text
//! sink          settings; the way to everything below
//! writer        a lane: one transaction a unit, with its progress
//!   apply       the net effect in bulk, else replace, else load (snapshots)
//!   ledger      versions of rows, if they are asked for
//!   plan        how the rows of a table are written, found out once
//!   script      many statements, one round trip
//!   literal     values to SQL, refusing what the server would change in silence
//! types native  logical types to column types and back
//! target        tables: described, created, emptied
//! progress      lanes, positions, the fencing epoch
//! ```
//!
//! What a user of the target should know:
//!
//! - A unit is one InnoDB transaction under READ COMMITTED, with the sink's own `sql_mode` and in UTC.
//! - Foreign keys are not checked and their actions do not run; the source has done both. Triggers fire.
//! - A truncate of the source is a `DELETE` without a condition: `TRUNCATE` would commit.
//! - A value that the server would round, cut or replace is refused (`Rejected`), never changed.
//! - Keys are compared exactly, whatever the target's collation says: a row that the target cannot
//!   tell from another one is refused, never merged into it.
//! - Columns that only the target has keep their values.

mod apply;
mod checkpointer;
mod config;
mod connection;
mod dead_letters;
mod definition;
mod error;
mod ledger;
mod literal;
mod load;
mod native;
mod plan;
mod progress;
mod replace;
mod rights;
mod script;
mod sink;
mod target;
mod types;
mod verify;
mod writer;

pub use config::{LocalInfile, MySqlConfig, TimeZone, Tls};
pub use sink::MySql;
