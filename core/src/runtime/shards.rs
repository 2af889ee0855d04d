//! The shards of a run: which of them answer, and what becomes of those that do not.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::letters::{LaneName, Letters};
use super::session::{RETRIED_OR_TALLY, Session};
use super::tally::{TALLY, Tally};
use crate::error::{Error, ErrorKind, Result};
use crate::mapping::preflight::{Preflight, preflight};
use crate::model::{Checkpoint, Part, PartitionId, Progress, TableSchema, Unit, UnitId, UnitKind};
use crate::pipeline::{Shared, Spec};
use crate::sharded::{Sharded, together};
use crate::sink::{LaneProgress, LanePurpose};

/// How often in a row a shard may fail before it is halted. Each time all lanes begin again, so that
/// a lost connection or a deadlock parks nothing; after three the others wait no longer.
pub(crate) const HALT_AFTER: u32 = 3;

/// The wait before a halted shard is asked again; it doubles with every further failure.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// The longest such wait: an operator who mends a shard need not wait longer than that.
const ASK_AT_LEAST: Duration = Duration::from_secs(60);

/// How long a halted shard is left alone after its failure number `failures`.
pub(crate) fn leave_alone(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(HALT_AFTER).min(16);
    ASK_AGAIN.saturating_mul(1 << doublings).min(ASK_AT_LEAST)
}

/// What of a sharded target answers, in one attempt.
pub(crate) struct Reach<'s> {
    spec: &'s Spec,
    shared: &'s Shared,
    /// Shards that are halted: their place, and why.
    pub(crate) halted: BTreeMap<usize, String>,
    /// Whether a shard may be missing: not before the pipeline has begun.
    tolerant: bool,
    begun: bool,
}

impl<'s> Reach<'s> {
    /// `begun`: the pipeline has run before.
    pub(crate) fn new(spec: &'s Spec, shared: &'s Shared, begun: bool) -> Self {
        let tolerant = begun && spec.halts_shards();
        let halted = if tolerant { shared.halted_shards(HALT_AFTER) } else { BTreeMap::new() };
        Self { spec, shared, halted, tolerant, begun }
    }

    /// What answered; every error at once, unless the shards may be halted.
    pub(crate) fn answered<T>(&mut self, sharded: &Sharded, results: Vec<Result<Vec<T>>>) -> Result<Vec<T>> {
        let mut all = Vec::new();
        let mut errors = Vec::new();
        for (at, (name, result)) in sharded.names().iter().zip(results).enumerate() {
            match result {
                Ok(_) if self.halted.contains_key(&at) => {}
                Ok(some) => all.extend(some),
                Err(e) if e.kind() != ErrorKind::Fenced && self.halted.contains_key(&at) => {}
                Err(e) if self.tolerant && e.kind() != ErrorKind::Fenced => self.failed(at, name, e)?,
                Err(e) => errors.push((Arc::clone(name), e)),
            }
        }
        match together(errors) {
            // Before the pipeline has begun nobody waits for a shard: all that is wrong is told at once.
            Some(error) if !self.begun && error.kind() == ErrorKind::Transient => {
                Err(error.with_kind(ErrorKind::Config))
            }
            Some(error) => Err(error),
            None => Ok(all),
        }
    }

    /// A shard failed: halts it, or gives an error that begins the attempt again.
    fn failed(&mut self, at: usize, name: &Arc<str>, error: Error) -> Result<()> {
        let reason = error.report();
        let failures = self.shared.shard_failed(at, &reason);
        if failures < HALT_AFTER {
            return Err(error.with_kind(ErrorKind::Transient).context(format!("shard {name}")));
        }
        tracing::warn!(pipeline = %self.spec.name, shard = %name, %reason, "the shard is halted: its changes are parked");
        self.halted.insert(at, reason);
        Ok(())
    }

    /// Compares the tables with each shard that answers. A shard that does not fit is halted alone.
    pub(crate) async fn preflight(&mut self, tables: &[TableSchema]) -> Result<Preflight> {
        let spec = self.spec;
        let compare = async |sink| preflight(tables, sink, &spec.consent, spec.create_tables).await;
        let Some(sharded) = spec.sink.sharded() else { return compare(spec.sink.as_ref()).await };
        if !self.tolerant {
            return compare(spec.sink.as_ref()).await;
        }
        let mut first: Option<Preflight> = None;
        for (at, name) in sharded.names().iter().enumerate() {
            let Some(sink) = sharded.shard(at).filter(|_| !self.halted.contains_key(&at)) else { continue };
            match compare(sink.as_ref()).await.and_then(|found| found.verdict().map(|()| found)) {
                Ok(found) => first = first.or(Some(found)),
                Err(e) if e.kind() == ErrorKind::Fenced => return Err(e),
                Err(e) => self.failed(at, name, e)?,
            }
        }
        // All halted: everything is parked, and nothing is known of the tables.
        Ok(first.unwrap_or(Preflight { tables: Vec::new(), source_statements: Vec::new() }))
    }
}

/// What each shard has stored. A shard that the pipeline has written has progress: where there is none, its
/// database is another one, or was emptied, and what it had does not come again.
///
/// Counters that are not of one shard alone (of lanes left over, of a shard that was taken out) tell nothing.
pub(crate) fn with_progress(
    sharded: &Sharded,
    read: Vec<Result<Vec<LaneProgress>>>,
    lanes: u32,
    checkpoint: &Checkpoint,
) -> Vec<Result<Vec<LaneProgress>>> {
    let left_over = read.iter().flatten().flatten().any(|l| l.lane >= l.lanes.max(lanes));
    if left_over || checkpoint.shards.keys().any(|name| sharded.names().iter().all(|n| **n != **name)) {
        return read;
    }
    let of_shard = |(name, stored): (&Arc<str>, Result<Vec<LaneProgress>>)| {
        let stored = stored?;
        let written = checkpoint.shards.get(&**name).map_or(0, |c| c.changes);
        if written > 0 && stored.iter().all(|l| l.partitions.is_empty()) {
            let problem = format!(
                "the database of {name} has no progress of this pipeline, which has applied {written} changes to it: it is \
                 another one, or was emptied"
            );
            return Err(Error::config("sink.shards", problem).hint(
                "give the shard the database that it had; if that was moved, bring its tables anabranch_lane and \
                 anabranch_position along; to begin anew, give the pipeline another name",
            ));
        }
        Ok(stored)
    };
    sharded.names().iter().zip(read).map(of_shard).collect()
}

/// What each shard has stored, unless it has gone back.
pub(crate) fn not_gone_back(
    sharded: &Sharded,
    read: Vec<Result<Vec<LaneProgress>>>,
    checkpoint: &Checkpoint,
) -> Vec<Result<Vec<LaneProgress>>> {
    let of_shard = |(name, stored): (&Arc<str>, Result<Vec<LaneProgress>>)| {
        let stored = stored?;
        // Of one that has nothing at all `with_progress` tells more.
        let is_empty = stored.iter().all(|l| l.partitions.is_empty());
        if is_empty { Ok(stored) } else { has_reached(Some(name), stored, checkpoint) }
    };
    sharded.names().iter().zip(read).map(of_shard).collect()
}

/// What a target, or this shard of it, has stored, unless it has less than the checkpoint knows of: its rows
/// have gone back as far, and the source would not be asked again for what it lacks.
pub(crate) fn has_reached(
    shard: Option<&str>,
    stored: Vec<LaneProgress>,
    checkpoint: &Checkpoint,
) -> Result<Vec<LaneProgress>> {
    for reached in checkpoint.reached.iter().filter(|r| r.shard.as_deref() == shard) {
        // Of all its lanes: where one lane became several, the others passed what the one had stored.
        let of_lanes = stored.iter().filter_map(|l| l.partitions.get(&reached.partition));
        let now = of_lanes.map(|p| &p.position.rank).max();
        if now.is_some_and(|now| *now >= reached.rank) {
            continue;
        }
        let target = shard.map_or_else(|| "the target".to_owned(), |name| format!("the database of {name}"));
        let has = now.map_or_else(|| "nothing".to_owned(), |now| format!("{now:?}"));
        return Err(Error::fatal(format!(
            "{target} has gone back: {:?} of the partition {} was durable in it, and now it has {has}. It was restored \
             from a backup, failed over to a replica that lacked changes, or lost what it had confirmed",
            reached.rank, reached.partition
        ))
        .hint(
            "what it lacks would not be sent again: give it the state that it had (a later backup, the server that has \
             it), or copy the tables again under another pipeline name",
        ));
    }
    Ok(stored)
}

/// Where a shard may be halted, an error of one is counted against it, and all lanes begin again.
pub(crate) fn blame(spec: &Spec, shared: &Shared, shard: usize, error: Error) -> Error {
    if !spec.halts_shards() || error.kind() == ErrorKind::Fenced {
        return error;
    }
    shared.shard_failed(shard, &error.report());
    error.with_kind(ErrorKind::Transient)
}

/// Where a lane stands among the shards.
pub(crate) fn lane_name(spec: &Spec, index: u32) -> LaneName {
    match spec.sink.sharded() {
        None => LaneName { shard: None, lane: index },
        Some(sharded) => {
            let lanes = spec.order.lanes();
            let shard = sharded.names().get((index / lanes) as usize).cloned();
            LaneName { shard, lane: index % lanes }
        }
    }
}

impl Session {
    /// Makes sure of what the shards that answer have, if changes of them were parked: see `parking.rs`.
    pub(crate) async fn settle_parked(&mut self, shared: &Shared) -> Result<()> {
        let spec = Arc::clone(&self.spec);
        let Some(sharded) = spec.sink.sharded() else { return Ok(()) };
        let lanes = spec.order.lanes() as usize;
        for (at, name) in sharded.names().iter().enumerate() {
            if self.halted.contains_key(&at) {
                continue;
            }
            let of_shard = at * lanes..(at + 1) * lanes;
            let committed = &self.committed[of_shard.clone()];
            let settled = self.letters.settle(name, committed, &self.keeper.checkpoint).await?;
            if !settled.any {
                continue;
            }
            for (index, left_out) in of_shard.zip(settled.tallies) {
                self.tallies[index] += left_out;
                if let Some(counters) = self.lane_counters.get_mut(index) {
                    *counters += left_out.counters();
                }
                self.move_up(index).await.map_err(|e| blame(&spec, shared, at, e))?;
            }
            self.letters.counted(&settled.left_out).await?;
        }
        Ok(())
    }

    /// Stores that this lane has everything up to the checkpoint's positions: in rows, or in letters.
    async fn move_up(&mut self, index: usize) -> Result<()> {
        let committed = &mut self.committed[index];
        let mut progress = Vec::new();
        for (id, partition) in &self.keeper.checkpoint.partitions {
            let Some(position) = &partition.position else { continue };
            if committed.get(id).is_none_or(|c| c.position.rank < position.rank) {
                let safe_time = partition.safe_time;
                let moved = Progress { partition: id.clone(), position: position.clone(), safe_time };
                committed.insert(id.clone(), moved.clone());
                progress.push(moved);
            }
        }
        progress.push(self.tallies[index].progress());
        let unit = Unit {
            id: UnitId(0),
            kind: UnitKind::Stream,
            part: Part::Whole,
            slices: Vec::new(),
            transactions: 0,
            progress,
        };
        let mut writer = self.spec.sink.open(self.lane(index as u32, LanePurpose::Stream)).await?;
        let _ = writer.write(&unit).await?;
        writer.flush().await?;
        writer.close().await
    }
}

/// What each lane has counted as left out.
pub(crate) fn tallies(stored: &[LaneProgress], lanes: u32) -> Vec<Tally> {
    let of_lane = |index: u32| stored.iter().find(|l| l.lane == index).and_then(|l| l.partitions.get(TALLY));
    (0..lanes).map(|index| Tally::read(of_lane(index))).collect()
}

/// What each lane has committed of the source's partitions.
pub(crate) fn of_source(partitions: &BTreeMap<PartitionId, Progress>) -> HashMap<PartitionId, Progress> {
    let source = partitions.iter().filter(|(id, _)| !RETRIED_OR_TALLY.contains(&id.as_str()));
    source.map(|(id, p)| (id.clone(), p.clone())).collect()
}

impl Letters {
    /// Marks what an earlier run had applied when it died before it could mark it.
    pub(crate) async fn finish_interrupted_retries(&self, stored: &[LaneProgress]) -> Result<()> {
        for retried in stored.iter().filter_map(|l| l.partitions.get(super::letters::RETRIED)) {
            self.finish_interrupted_retry(&retried.position.token).await?;
        }
        Ok(())
    }
}
