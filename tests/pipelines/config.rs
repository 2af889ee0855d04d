//! What the environment says about a run.

use std::env;
use std::time::{SystemTime, UNIX_EPOCH};

/// `SEED`, or a new one; printed, so that the run can be replayed.
pub(super) fn seed(test: &str) -> u64 {
    let given = env::var("SEED").ok().and_then(|s| s.parse().ok());
    let new = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| u64::from(d.subsec_nanos()));
    let seed = given.unwrap_or_else(new);
    println!("{test}: SEED={seed}");
    seed
}

/// `KILLS`, or `default`.
pub(super) fn kills(default: u32) -> u32 {
    env::var("KILLS").ok().and_then(|s| s.parse().ok()).unwrap_or(default)
}
