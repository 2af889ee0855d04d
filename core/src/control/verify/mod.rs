//! Are both sides equal? Rows are compared by fingerprints, in both directions, and a row that
//! differs is looked at again until it cannot be one that is still on its way.
//!
//! 1. Both sides are read once, side by side, each under one point in time. Every row adds its
//!    fingerprint to one of 65,536 sums, chosen by its key. Equal sums: equal tables.
//! 2. Where sums differ, the rows of those buckets are read again, and compared by key: of as many
//!    buckets at a time as memory allows, and no more of them once a difference is confirmed. Sums that
//!    are equal by then are done with.
//! 3. A key whose rows differ is a *suspect*. In rounds: read the suspects on the source, mark the
//!    source's present, wait until the target has passed the mark, read them on the target, and on
//!    the source once more. A suspect that is equal is cleared. One whose source row did not change
//!    in between should be in the target as it is: seen twice in the same state, it differs.
//!
//! The fingerprints are those of a form that is the same for equal values of all databases
//! (`1.50` and `1.5` are one decimal, and JSON is compared as JSON). A column whose contract is lossy is not compared.

mod array;
mod digest;
mod json;
mod normal;
mod report;
mod suspects;

use std::collections::BTreeSet;
use std::time::Duration;

pub(crate) use digest::{ByKey, Digester, Sums, count, differing_keys};
pub use report::{Difference, DifferenceKind, TableVerified, Verified};
pub(crate) use suspects::{Found, Seen, Suspects};

use crate::model::TableName;

/// What to compare, and how.
///
/// ```
/// use anabranch_core::control::verify::VerifyOptions;
/// let options = VerifyOptions { rows_per_second: Some(50_000), ..VerifyOptions::default() };
/// ```
#[derive(Debug, Clone)]
pub struct VerifyOptions {
    /// The tables to compare, by their names on the source. Empty: all that the pipeline carries.
    pub tables: BTreeSet<TableName>,
    /// Tables that need not be compared: of an earlier run that was interrupted.
    pub skip: BTreeSet<TableName>,
    /// How long to wait for the target to pass a mark of the source. `None`: do not wait; rows on
    /// their way then count as differences. For databases at rest, when no pipeline runs.
    pub wait: Option<Duration>,
    /// Rounds in which suspects are looked at, at most: a row that changes all the time is
    /// unsettled after that.
    pub rounds: u32,
    /// Rows read of each side per second, at most.
    pub rows_per_second: Option<u64>,
    /// Differences listed of each table; all are counted.
    pub list: usize,
    /// Put the source's row into the target where they differ, in tables with a key. Needs
    /// [`VerifyOptions::wait`]. The pipeline is taken over: a runner that is alive ends, fenced, and
    /// is to be started again. A row with an open dead letter is left to that: retry or skip it first.
    pub repair: bool,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self {
            tables: BTreeSet::new(),
            skip: BTreeSet::new(),
            wait: Some(Duration::from_secs(60)),
            rounds: 10,
            rows_per_second: None,
            list: 100,
            repair: false,
        }
    }
}
