//! The history checker: proves, while a pipeline runs and is killed, that what a reader of the
//! target sees is always a state that the source had.
//!
//! ```text
//! Workload ──SQL──▶ source ──pipeline──▶ target
//!                     │                    │
//!           commits, in order       observations: all tables in one snapshot
//!                     └──────▶ Checker ◀───┘
//! ```
//!
//! - [`Workload`] makes random transactions, from a seed, over the tables of [`TABLES`]: what is
//!   hard to replicate is in there.
//! - The source itself keeps the history ([`source_ddl`]): triggers write every row before and after
//!   each change into a table `history.audit`, and a slot of its own tells the order of the
//!   commits. Neither depends on how the pipeline reads.
//! - [`Checker`] replays the commits one by one and compares each [`Observation`] of the target,
//!   row for row, with the state after the prefix of the history that it claims to be.
//!
//! Nothing here opens a connection: `tests/pipelines` of the workspace does.

mod canonical;
mod checker;
mod index;
mod model;
mod report;
mod schema;
mod tables;
mod workload;

pub use canonical::{Kind, canonical};
pub use checker::{Checker, Consistency};
pub use model::{Change, Commit, Observation, Row, State};
pub use report::{Report, Violation, ViolationKind};
pub use schema::{audit_query, commits_query, source_ddl, target_ddl};
pub use tables::{JOURNAL, TABLES, Table};
pub use workload::{Options, Transaction, Workload};
