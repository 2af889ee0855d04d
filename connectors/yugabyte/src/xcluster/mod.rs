//! YugabyteDB's own replication between two universes, as `yb-admin` tells of it: how far it is, and
//! whether it has caught up, in the terms of our own pipelines.
//!
//! ```no_run
//! # async fn example() -> anabranch_core::Result<()> {
//! use anabranch_yugabyte::xcluster::{self, YbAdmin};
//! // The masters of the target: its universe knows the safe time.
//! let target = YbAdmin::new("/opt/yugabyte/bin/yb-admin", "10.2.0.1:7100,10.2.0.2:7100,10.2.0.3:7100");
//! for database in xcluster::status(&target).await? {
//!     println!("{}: {:?}", database.pipeline, database.safe_time);
//! }
//! # Ok(()) }
//! ```
//!
//! What `yb-admin` writes is read strictly: an output that is not understood is an error that shows it.

mod config;
mod output;
mod yb_admin;

use std::collections::BTreeMap;

use anabranch_core::pipeline::{PartitionState, Phase, Status};
use anabranch_core::{Counters, PartitionId, Result, SourceIdentity, Timestamp};

pub use config::XClusterConfig;
use output::SafeTime;
pub use output::Undrained;
pub use yb_admin::YbAdmin;

/// How far the replication of each database is that this universe is the target of, in the terms of a
/// pipeline, which is named as the database. What a pipeline counts is 0 here, and the skew is between the
/// tablets that are least and most caught up.
///
/// # Errors
/// `Config` if `yb-admin` cannot be run; `Transient` if it fails; `Fatal`, with the text, if its output
/// is not understood.
pub async fn status(target: &YbAdmin) -> Result<Vec<Status>> {
    let text = target.run(&["get_xcluster_safe_time", "include_lag_and_skew"]).await?;
    Ok(output::safe_times(&text)?.into_iter().map(replication).collect())
}

/// The streams of replications that this universe is the source of.
///
/// # Errors
/// As [`status`].
pub async fn streams(source: &YbAdmin) -> Result<Vec<String>> {
    output::streams(&source.run(&["list_cdc_streams"]).await?)
}

/// What these streams of the source have not replicated yet of that which was committed by `at`. Empty:
/// drained. Returns when `yb-admin` does, which waits for a while.
///
/// # Errors
/// As [`status`].
pub async fn undrained(source: &YbAdmin, streams: &[String], at: Timestamp) -> Result<Vec<Undrained>> {
    let text = source.run(&["wait_for_replication_drain", &streams.join(","), &at.as_micros().to_string()]).await?;
    output::undrained(&text)
}

fn replication(database: SafeTime) -> Status {
    let SafeTime { namespace_id, namespace, safe_time, lag_seconds, skew_seconds } = database;
    let position = safe_time.map_or_else(|| "not initialised".to_owned(), |t| t.to_string());
    let now = Timestamp::now();
    let lag = lag_seconds.or_else(|| safe_time.map(|t| (now.micros_since(t) as f64 / 1e6).max(0.0)));
    let lag_seconds = lag.filter(|_| safe_time.is_some());
    let state = PartitionState { position, safe_time, lag_seconds, owner: None };
    Status {
        pipeline: namespace.clone(),
        phase: if safe_time.is_some() { Phase::Streaming } else { Phase::Starting },
        last_seen: Some(now),
        epoch: 0,
        safe_time,
        lag_seconds,
        lag_bytes: None,
        lag_changes: 0,
        skew_seconds,
        counters: Counters::default(),
        dead_letters_open: 0,
        retention: None,
        snapshot: None,
        partitions: BTreeMap::from([(PartitionId::new(namespace_id.clone()), state)]),
        shards: BTreeMap::new(),
        identity: SourceIdentity::default()
            .with("system", "yugabytedb xCluster")
            .with("database", namespace)
            .with("namespace", namespace_id),
        last_error: None,
        last_error_kind: None,
        failures: 0,
    }
}
