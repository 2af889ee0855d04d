//! Faults at random moments.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anabranch_servers::PgServer;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::block_in_place;

use super::Tested;
use super::runner::Runner;
use super::source::DB;
use super::targets::Target;

/// What is killed, and how often it has been.
pub(super) struct Faults {
    rng: StdRng,
    source: Arc<PgServer>,
    target: Arc<dyn Target>,
    done: BTreeMap<&'static str, u32>,
}

impl Faults {
    pub(super) fn new(seed: u64, source: Arc<PgServer>, target: Arc<dyn Target>) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), source, target, done: BTreeMap::new() }
    }

    /// How many so far.
    pub(super) fn count(&self) -> u32 {
        self.done.values().sum()
    }

    /// How many of each so far.
    pub(super) fn summary(&self) -> String {
        let each: Vec<String> = self.done.iter().map(|(what, count)| format!("{what} {count}")).collect();
        format!("{} kills ({})", self.count(), each.join(", "))
    }

    /// Waits for a random moment and kills something. Where what was drawn cannot be killed just
    /// now, nothing is counted.
    pub(super) async fn strike(&mut self, runner: Option<&Runner>) -> Tested {
        // Mostly in the middle of starting, sometimes in the middle of the work.
        let wait = if self.rng.random_ratio(1, 8) { 2_000 } else { self.rng.random_range(100..600) };
        tokio::time::sleep(Duration::from_millis(wait)).await;
        let (what, struck) = match self.rng.random_range(0..20) {
            0..=9 => ("runner", self.runner(runner).await?),
            10..=12 => ("source", self.crash_source()?),
            13..=15 => ("target", self.target.crash().await?),
            16..=17 => ("source's connection", self.cut_source()?),
            _ => ("target's connection", self.target.cut().await?),
        };
        if struck {
            *self.done.entry(what).or_default() += 1;
        }
        Ok(())
    }

    async fn runner(&self, runner: Option<&Runner>) -> Tested<bool> {
        match runner {
            Some(runner) => runner.kill().await,
            None => Ok(false),
        }
    }

    fn crash_source(&self) -> Tested<bool> {
        block_in_place(|| self.source.kill9().and_then(|()| self.source.start()))?;
        Ok(true)
    }

    fn cut_source(&self) -> Tested<bool> {
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_replication";
        Ok(!block_in_place(|| self.source.exec(DB, sql))?.is_empty())
    }
}
