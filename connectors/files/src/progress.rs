//! The progress of a run, in its ledger.

use anabranch_core::{Claim, Error, LaneProgress, ProgressStore, Result};
use async_trait::async_trait;

use crate::ledger::{Ledger, Tables};
use crate::sink::{Settings, Taken, WindowFiles};
use crate::store::Store;

/// How often a take-over is tried against others who try it at the same time.
const TRIES: usize = 20;

#[async_trait]
impl ProgressStore for WindowFiles {
    async fn take_over(&self, claim: &Claim) -> Result<Vec<LaneProgress>> {
        let settings = &self.shared.settings;
        let store = settings.location.store()?;
        let mut taken = self.shared.taken().await;
        *taken = None;
        for _ in 0..TRIES {
            let (mut ledger, tag) = match Ledger::load(&store, &settings.run).await? {
                Some((ledger, tag)) => (ledger, Some(tag)),
                None => {
                    let new = Ledger::new(&settings.run, &claim.pipeline, settings.ranks, settings.window_micros());
                    (new, None)
                }
            };
            fits(&ledger, settings, claim, &store)?;
            let before = lane(&ledger);
            ledger.epoch = claim.epoch;
            ledger.identity = claim.identity.clone();
            if let Some(tag) = ledger.save(&store, tag.as_ref()).await? {
                let tables = Tables::load(&store, &settings.run).await?;
                *taken = Some(Taken { store, ledger, tag, tables });
                return Ok(before);
            }
        }
        Err(Error::transient("the ledger of the run is written by others all the while"))
    }

    async fn read(&self, pipeline: &str) -> Result<Vec<LaneProgress>> {
        let settings = &self.shared.settings;
        let stored = Ledger::load(&settings.location.store()?, &settings.run).await?;
        Ok(stored
            .filter(|(ledger, _)| ledger.pipeline == pipeline)
            .map(|(ledger, _)| lane(&ledger))
            .unwrap_or_default())
    }
}

/// Whether the claim may have this run.
fn fits(ledger: &Ledger, settings: &Settings, claim: &Claim, store: &Store) -> Result<()> {
    let run = &settings.run;
    if ledger.pipeline != *claim.pipeline {
        let problem = format!("the run {run} in {} belongs to the pipeline {}", store.show(""), ledger.pipeline);
        return Err(Error::config("sink.run", problem).hint("choose another name for this run"));
    }
    if ledger.window_micros != settings.window_micros() {
        let seconds = ledger.window_micros as f64 / 1e6;
        return Err(Error::config("sink.window_seconds", format!("the run {run} has windows of {seconds} s"))
            .hint("set that, or begin a run of another name"));
    }
    if ledger.ranks != settings.ranks {
        return Err(Error::config("sink.ranks", format!("the run {run} has others"))
            .hint("set those, or begin a run of another name"));
    }
    if ledger.epoch > claim.epoch {
        return Err(Error::fenced(format!(
            "another runner has taken over the run {run} (epoch {}, this one has {})",
            ledger.epoch, claim.epoch
        )));
    }
    Ok(())
}

/// The one lane; none before the first claim.
fn lane(ledger: &Ledger) -> Vec<LaneProgress> {
    if ledger.version == 0 {
        return Vec::new();
    }
    vec![LaneProgress {
        lane: 0,
        lanes: 1,
        identity: ledger.identity.clone(),
        partitions: ledger.progress.clone(),
        counters: ledger.counters,
    }]
}
