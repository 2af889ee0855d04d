//! How the partitions of a source are shared by several processes.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use toml::Table;

use super::Order;
use crate::error::{Error, Result};
use crate::leases::Leases;

/// A day. Times are added to it, and it is multiplied: there must be an end.
const LONGEST_FAILOVER: Duration = Duration::from_secs(86_400);

/// How long an owner may be silent before its lease is taken, unless set.
const FAILOVER: Duration = Duration::from_secs(10);

/// How many partitions one process works on at a time, unless set: each has a sink's connection for
/// each lane.
const MOST: usize = 64;

/// A process that shares the partitions of a source with others; see [`leases`](crate::leases).
///
/// All processes run the same pipeline with the same configuration. Each partition is worked on by
/// one of them, as a pipeline of its own. A sink that checks the fencing epoch in its transactions
/// (PostgreSQL, MySQL, SQLite, Spanner) refuses a process that was paused past its lease. A sink
/// without fencing cannot: there a process stops by itself when it could not renew its lease for the
/// failover time, but one that slept in the middle of a write may finish that write late, after its
/// successor has written.
///
/// An error that no retry mends, in one partition, ends the process that has it; the others take the
/// partition and end by the same error, so that the pipeline stops as a whole.
///
/// What an order means is kept for each partition: `window` sorts what one partition gives, and
/// rows of tables that refer to each other may arrive in any order if they come from two partitions.
///
/// ```
/// use std::time::Duration;
/// use anabranch_core::pipeline::Workers;
/// let workers = Workers::new().id("rack-4").failover(Duration::from_secs(20)).most_partitions(100);
/// ```
#[derive(Debug, Clone)]
pub struct Workers {
    id: Option<String>,
    pub(crate) failover: Duration,
    pub(crate) most: usize,
    pub(crate) leases: Option<Arc<dyn Leases>>,
}

impl Default for Workers {
    fn default() -> Self {
        Self { id: None, failover: FAILOVER, most: MOST, leases: None }
    }
}

impl Workers {
    /// With leases in the checkpointer.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the process is called in the leases and in the status, before a random suffix. Default:
    /// the machine's name and the process id.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// After how much silence of its owner a lease is taken. Default 10 s. A process that sleeps for
    /// longer than this loses its partitions.
    #[must_use]
    pub fn failover(mut self, after: Duration) -> Self {
        self.failover = after;
        self
    }

    /// How many partitions this process works on at most. Default 64.
    #[must_use]
    pub fn most_partitions(mut self, most: usize) -> Self {
        self.most = most;
        self
    }

    /// Where the leases are. Default: in the checkpointer.
    #[must_use]
    pub fn leases(mut self, leases: Arc<dyn Leases>) -> Self {
        self.leases = Some(leases);
        self
    }

    /// A name for this run. Names are never used twice, or a paused process would take the lease of
    /// its successor of the same name for its own.
    pub(crate) fn name(&self) -> String {
        let own = || format!("{}-{}", machine(), std::process::id());
        format!("{}~{:08x}", self.id.clone().unwrap_or_else(own), rand::random::<u32>())
    }

    pub(super) fn check(&self, order: &Order) -> Result<()> {
        if matches!(order, Order::Transaction) {
            return Err(Error::config(
                "pipeline.order",
                "transaction cannot be kept by several workers: a transaction may be spread over their partitions",
            )
            .hint("set order = \"key\", \"window\" or \"arrival\", or leave [workers] out"));
        }
        if self.failover < Duration::from_millis(300) || self.failover > LONGEST_FAILOVER {
            return Err(Error::config("workers.failover_seconds", "must be from 0.3 to 86400"));
        }
        if self.most == 0 {
            return Err(Error::config("workers.most_partitions", "must be at least 1"));
        }
        match &self.id {
            Some(id) if id.is_empty() || id.len() > 100 => {
                Err(Error::config("workers.id", "must have 1 to 100 characters"))
            }
            _ => Ok(()),
        }
    }
}

/// The machine's name, as Linux tells it.
fn machine() -> String {
    let told = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let told = told.or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_default();
    let name = told.trim();
    if name.is_empty() { "worker".to_owned() } else { name.chars().take(60).collect() }
}

/// `[workers]`: there, also if it is empty, if several processes share the partitions.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkersConfig {
    /// What the process is called. Default: the machine's name and the process id.
    pub id: Option<String>,
    /// After how much silence of its owner a partition is taken over. Default 10.
    pub failover_seconds: Option<f64>,
    /// How many partitions this process works on at most. Default 64.
    pub most_partitions: Option<usize>,
    /// `{ type = "..", .. }`: where the leases are, if not in the checkpoint's store.
    pub leases: Option<Table>,
}

impl WorkersConfig {
    /// As the builder takes it, without the leases, which the registry makes.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) for a time that is none.
    pub(super) fn workers(&self) -> Result<Workers> {
        let mut workers = Workers::new();
        workers.id.clone_from(&self.id);
        if let Some(seconds) = self.failover_seconds {
            workers.failover = Duration::try_from_secs_f64(seconds)
                .map_err(|_| Error::config("workers.failover_seconds", "must be from 0.3 to 86400"))?;
        }
        if let Some(most) = self.most_partitions {
            workers.most = most;
        }
        Ok(workers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Times are added to a failover time, and it is multiplied.
    #[test]
    fn a_failover_time_that_never_comes_is_refused() {
        for (failover, fits) in [
            (Duration::ZERO, false),
            (Duration::from_millis(300), true),
            (Duration::from_secs(86_400), true),
            (Duration::MAX, false),
        ] {
            let workers = Workers::new().failover(failover);
            assert_eq!(workers.check(&Order::Key { lanes: 1 }).is_ok(), fits, "{failover:?}");
        }
    }
}
