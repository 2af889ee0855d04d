//! Figures for whatever collects them, through the `metrics` facade: every name, once.
//!
//! The library installs no recorder: without one the figures go nowhere and cost next to nothing.
//! Install yours before a pipeline is started. `docs/metrics.md` explains each name, and is checked
//! against [`ALL`].
//!
//! ```
//! use anabranch_core::metrics::{ALL, Kind};
//! let lag = ALL.iter().find(|m| m.name == "anabranch_waiting_changes").unwrap();
//! assert_eq!(lag.kind, Kind::Gauge);
//! ```

mod meters;
mod pulse;

pub(crate) use meters::Meters;
pub(crate) use pulse::Pulse;
pub use pulse::{Health, Life};

use metrics::Unit;

/// What kind of figure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows. Those that count changes go on over restarts, for they are stored with the data.
    Counter,
    /// The state of now.
    Gauge,
    /// A distribution.
    Histogram,
}

/// A figure that pipelines give.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// Its labels, beside `pipeline`, which all have.
    pub labels: &'static [&'static str],
    /// What it is of.
    pub unit: Option<Unit>,
    /// What it says.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($constant:ident = $name:literal, $kind:ident, [$($label:literal),*], $unit:expr, $help:literal;)*) => {
        $(#[doc = $help] pub const $constant: &str = $name;)*

        /// Every figure that pipelines give.
        pub const ALL: &[Metric] = &[
            $(Metric { name: $name, kind: Kind::$kind, labels: &[$($label),*], unit: $unit, help: $help },)*
        ];
    };
}

metrics! {
    CHANGES = "anabranch_changes_total", Counter, [], None, "Changes of rows applied from the stream";
    TRANSACTIONS = "anabranch_transactions_total", Counter, [], None, "Source transactions applied";
    SNAPSHOT_ROWS = "anabranch_snapshot_rows_total", Counter, [], None, "Rows copied";
    STALE = "anabranch_stale_total", Counter, [], None, "Of the changes, those that did nothing because the target's row was newer";
    FILTERED = "anabranch_filtered_total", Counter, [], None, "Changes that a filter left out";
    SKIPPED = "anabranch_skipped_total", Counter, [], None, "Changes that a mapping left out: their table is not in the target";
    DEAD_LETTERS = "anabranch_dead_letters_total", Counter, [], None, "Changes put into the dead-letter store";
    READ_BATCHES = "anabranch_read_batches_total", Counter, [], None, "Batches read from the source by this process; those without changes are its signs of life";
    READ_CHANGES = "anabranch_read_changes_total", Counter, [], None, "Changes and rows read by this process; those read again after a failure count again";
    READ_BYTES = "anabranch_read_bytes_total", Counter, [], Some(Unit::Bytes), "Memory of what was read by this process";
    FAILURES = "anabranch_failures_total", Counter, ["kind"], None, "Attempts of this process that failed, by what the error asks for";
    WRITE_SECONDS = "anabranch_write_seconds", Histogram, [], Some(Unit::Seconds), "What one write to the target took, with its commit";
    PHASE = "anabranch_phase", Gauge, ["phase"], None, "1 for the phase the pipeline is in, 0 for the others";
    EPOCH = "anabranch_epoch", Gauge, [], None, "The fencing epoch of this run";
    SAFE_TIME = "anabranch_safe_time_seconds", Gauge, [], Some(Unit::Seconds), "Everything committed on the source at or before this time is in the target: seconds since 1970, by the source's clock";
    HEARD_TIME = "anabranch_heard_time_seconds", Gauge, [], Some(Unit::Seconds), "When the source was last heard from: seconds since 1970";
    WRITTEN_TIME = "anabranch_written_time_seconds", Gauge, [], Some(Unit::Seconds), "When the target last answered a write: seconds since 1970";
    LAG_BYTES = "anabranch_lag_bytes", Gauge, [], Some(Unit::Bytes), "Log that the source has written after what was received last";
    WAITING_CHANGES = "anabranch_waiting_changes", Gauge, [], None, "Changes received and not yet applied";
    OPEN_DEAD_LETTERS = "anabranch_open_dead_letters", Gauge, [], None, "Dead letters that are open or held";
    RETENTION_HELD_BYTES = "anabranch_retention_held_bytes", Gauge, [], Some(Unit::Bytes), "Log that the source keeps for this pipeline";
    RETENTION_LEFT_BYTES = "anabranch_retention_left_bytes", Gauge, [], Some(Unit::Bytes), "What the source may still write before it drops what is needed; not there without a limit";
    RETENTION_LEFT_SECONDS = "anabranch_retention_left_seconds", Gauge, [], Some(Unit::Seconds), "The time until then, where the source limits time";
    SNAPSHOT_TABLES = "anabranch_snapshot_tables", Gauge, ["state"], None, "Tables to copy, and those that are copied";
    SNAPSHOT_CHUNKS = "anabranch_snapshot_chunks", Gauge, ["state"], None, "Chunks to copy, and those that are copied";
    PARTITIONS = "anabranch_partitions", Gauge, [], None, "Partitions that are open";
    SHARD_HALTED = "anabranch_shard_halted", Gauge, ["shard"], None, "1 for a shard that does not answer and whose changes are parked, or whose own pipeline has ended by an error";
    SHARD_DEAD_LETTERS = "anabranch_shard_open_dead_letters", Gauge, ["shard", "class"], None, "A shard's dead letters: those tried again by themselves, and those that need a person";
    SHARD_SAFE_TIME = "anabranch_shard_safe_time_seconds", Gauge, ["shard"], Some(Unit::Seconds), "As anabranch_safe_time_seconds, of one shard";
}

/// Bounds of the histogram of writes, in seconds: a commit of a local target takes less than a
/// millisecond, one across an ocean a tenth of a second, and a large unit some seconds.
pub const WRITE_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

/// Tells the installed recorder the meaning and the unit of each figure, which exporters show.
pub fn describe() {
    for metric in ALL {
        match (metric.kind, metric.unit) {
            (Kind::Counter, Some(unit)) => metrics::describe_counter!(metric.name, unit, metric.help),
            (Kind::Counter, None) => metrics::describe_counter!(metric.name, metric.help),
            (Kind::Gauge, Some(unit)) => metrics::describe_gauge!(metric.name, unit, metric.help),
            (Kind::Gauge, None) => metrics::describe_gauge!(metric.name, metric.help),
            (Kind::Histogram, Some(unit)) => metrics::describe_histogram!(metric.name, unit, metric.help),
            (Kind::Histogram, None) => metrics::describe_histogram!(metric.name, metric.help),
        }
    }
}
