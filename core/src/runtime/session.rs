//! The start of every attempt: take the pipeline over, find where it stands, check both databases.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::keeper::Keeper;
use super::letters::{Letters, RETRIED};
use super::reader::Transforms;
use super::shards::{Reach, has_reached, lane_name, not_gone_back, of_source, tallies, with_progress};
use super::tally::{TALLY, Tally};
use crate::dead_letter::DeadLetter;
use crate::error::{Error, Result};
use crate::mapping::preflight::Preflight;
use crate::model::{BatchBuilder, Checkpoint, Counters, Op, PartitionId, Position, Progress, TableSchema, Transaction};
use crate::pipeline::{Role, Shared, Spec, refuse_each_shard};
use crate::sink::{Claim, Lane, LaneProgress, LanePurpose};

/// A pipeline that this run owns, checked and ready to copy and to stream.
pub(crate) struct Session {
    pub(crate) spec: Arc<Spec>,
    pub(crate) keeper: Keeper,
    /// What each lane had committed in the target when the run began.
    pub(crate) committed: Vec<HashMap<PartitionId, Progress>>,
    /// What each lane had counted when the run began; one entry where the target does not count.
    pub(crate) lane_counters: Vec<Counters>,
    /// What each lane had left out when the run began.
    pub(crate) tallies: Vec<Tally>,
    /// Shards that do not answer: their place, and why.
    pub(crate) halted: BTreeMap<usize, String>,
    pub(crate) snapshot_rows: u64,
    pub(crate) letters: Arc<Letters>,
    pub(crate) transforms: Transforms,
    /// The source's tables, each with what the sink gets of it.
    pub(crate) tables: Vec<(TableSchema, TableSchema)>,
    pub(crate) preflight: Preflight,
}

impl Session {
    /// Takes the pipeline over and prepares both sides.
    pub(crate) async fn open(spec: &Arc<Spec>, transforms: &Transforms, shared: &Shared) -> Result<Self> {
        let mut keeper = Keeper::take_over(Arc::clone(&spec.checkpointer), Arc::clone(&spec.name)).await?;
        let lanes = spec.lanes();
        let begun = !keeper.checkpoint.identity.0.is_empty();
        let mut reach = Reach::new(spec, shared, begun);
        if !begun && spec.role == Role::Whole {
            refuse_each_shard(spec).await?;
        }
        let before = match (spec.sink.sharded(), spec.sink.progress()) {
            (Some(sharded), _) => {
                let read = not_gone_back(sharded, sharded.read_each(&spec.name).await, &keeper.checkpoint);
                reach.answered(sharded, with_progress(sharded, read, lanes, &keeper.checkpoint))?
            }
            (None, Some(store)) => has_reached(None, store.read(&spec.name).await?, &keeper.checkpoint)?,
            (None, None) => Vec::new(),
        };
        // Before anything is written: a claim stores the new number of lanes.
        check_lanes(lanes, &before, &keeper.checkpoint)?;
        let was = before.iter().map(|l| l.lanes).find(|&n| n > 0).filter(|&n| n != lanes);
        if keeper.checkpoint.identity.0.is_empty()
            && let Some(lane) = before.iter().find(|l| !l.identity.0.is_empty())
        {
            // The checkpoint was lost but the target knows: its progress is bound to this source.
            keeper.checkpoint.identity = lane.identity.clone();
        }
        of_this_source(spec, &before, &keeper.checkpoint).await?;
        if let Some(was) = was {
            // Who wrote with that number may have gone on until now, when nobody can any more.
            let fenced = take_over_target(spec, &keeper, &mut reach, was).await?;
            check_lanes(lanes, &fenced, &keeper.checkpoint)?;
            // Lanes that are new have no progress: from the claim on the checkpoint alone tells where they begin.
            merge_progress(&mut keeper.checkpoint, &fenced, was);
            keeper.save().await?;
        }
        let stored = take_over_target(spec, &keeper, &mut reach, lanes).await?;
        merge_progress(&mut keeper.checkpoint, &stored, lanes);

        let fresh = keeper.checkpoint.identity.0.is_empty();
        let identity = spec.source.prepare((!fresh).then_some(&keeper.checkpoint)).await?;
        let changed = keeper.checkpoint.identity != identity;
        keeper.checkpoint.identity = identity;
        keeper.checkpoint.order = spec.order.name().to_owned();
        if changed {
            take_over_target(spec, &keeper, &mut reach, lanes).await?;
        }

        let letters = Letters::load(
            Arc::clone(&spec.letters_of),
            Arc::clone(&spec.source),
            spec.dead_letters.clone(),
            spec.letters.clone(),
            spec.order.keeps_transactions(),
            spec.role == Role::Whole,
            spec.sink.sharded().map(|s| Arc::clone(s.names())),
        )
        .await?;
        check_parked(spec, lanes, &keeper.checkpoint, &letters)?;
        keeper.checkpoint.lanes = lanes;

        let tables = transformed(spec.source.tables().await?, transforms)?;
        let targets: Vec<TableSchema> = tables.iter().map(|(_, target)| target.clone()).collect();
        let preflight = reach.preflight(&targets).await?;
        preflight.verdict()?;
        let routing = spec.order.routing(&preflight.pinned_groups());
        check_routing(lanes, &routing, &stored, &keeper.checkpoint)?;
        keeper.checkpoint.routing = routing;
        keeper.save().await?;
        preflight.create_missing(spec.sink.as_ref()).await?;
        if let Some(relay) = spec.sink.relay() {
            relay.tables(keeper.checkpoint.epoch, &targets).await?;
        }

        let tallies = tallies(&stored, lanes);
        let mut session = Self {
            spec: Arc::clone(spec),
            lane_counters: lane_counters(spec, &stored, &tallies, &keeper.checkpoint),
            snapshot_rows: keeper.checkpoint.counters.snapshot_rows,
            keeper,
            committed: committed_by_lane(&stored, lanes),
            tallies,
            halted: reach.halted,
            letters: Arc::new(letters),
            transforms: transforms.clone(),
            tables,
            preflight,
        };
        session.letters.finish_interrupted_retries(&stored).await?;
        session.settle_parked(shared).await?;
        if session.letters.open() > 0 {
            let own = session.own_partitions().await?;
            let is_own = |letter: &DeadLetter| own.as_ref().is_none_or(|own| own.contains(&letter.partition));
            session.letters.close_replayed(|letter| !is_own(letter) || session.stands(letter)).await?;
            session.letters.reload().await?;
        }
        Ok(session)
    }

    /// The sum over all lanes.
    pub(crate) fn counters(&self) -> Counters {
        let mut sum = self.lane_counters.iter().fold(Counters::default(), |mut sum, lane| {
            sum += *lane;
            sum
        });
        sum.snapshot_rows = self.snapshot_rows;
        sum
    }

    /// The partitions of which this run can tell what was passed; `None`: all. Of several processes that
    /// share the source's partitions each knows its own alone.
    async fn own_partitions(&self) -> Result<Option<HashSet<PartitionId>>> {
        Ok(match self.spec.role {
            Role::Whole => None,
            Role::Setup => Some(HashSet::new()),
            Role::Partition => Some(self.spec.source.partitions().await?.into_iter().map(|p| p.id).collect()),
        })
    }

    /// Whether the lane that put this letter has passed its change: the source does not give it again.
    fn stands(&self, letter: &DeadLetter) -> bool {
        let Some(lane) = &letter.lane else { return true };
        let shard = match (&lane.shard, self.spec.sink.sharded()) {
            (None, None) => 0,
            (Some(name), Some(sharded)) => match sharded.names().iter().position(|n| **n == **name) {
                Some(at) => at,
                None => return true,
            },
            _ => return true,
        };
        if self.halted.contains_key(&shard) {
            // Not known, and nothing is applied to it now.
            return true;
        }
        let rank = &letter.position.rank;
        let index = shard * self.spec.order.lanes() as usize + lane.lane as usize;
        let committed = self.committed.get(index).and_then(|c| c.get(&letter.partition));
        let by_lane = committed.is_some_and(|c| *rank <= c.position.rank);
        by_lane || self.keeper.checkpoint.is_passed(&letter.partition, rank)
    }

    /// A lane of this run.
    pub(crate) fn lane(&self, index: u32, purpose: LanePurpose) -> Lane {
        Lane {
            pipeline: Arc::clone(&self.spec.name),
            index,
            count: self.spec.lanes(),
            epoch: self.keeper.checkpoint.epoch,
            purpose,
        }
    }
}

/// What lanes store beside the partitions of the source.
pub(crate) const RETRIED_OR_TALLY: [&str; 2] = [RETRIED, TALLY];

/// Raises the epoch in the target and reads what the lanes have committed.
async fn take_over_target(
    spec: &Spec,
    keeper: &Keeper,
    reach: &mut Reach<'_>,
    lanes: u32,
) -> Result<Vec<LaneProgress>> {
    let (pipeline, checkpoint) = (Arc::clone(&spec.name), &keeper.checkpoint);
    let identity = checkpoint.identity.clone();
    let claim = Claim { pipeline, epoch: checkpoint.epoch, lanes, identity };
    match (spec.sink.sharded(), spec.sink.progress()) {
        (Some(sharded), _) => {
            let taken = sharded.take_over_each(&claim).await;
            reach.answered(sharded, taken)
        }
        (None, Some(store)) => store.take_over(&claim).await,
        (None, None) => Ok(Vec::new()),
    }
}

/// What each lane had counted: what its target tells, or, of a shard that does not answer, what it
/// told last.
fn lane_counters(spec: &Spec, stored: &[LaneProgress], tallies: &[Tally], checkpoint: &Checkpoint) -> Vec<Counters> {
    if spec.sink.progress().is_none() {
        return vec![checkpoint.counters];
    }
    let mut all = Vec::with_capacity(tallies.len());
    for (index, tally) in tallies.iter().enumerate() {
        let mut counters = match stored.iter().find(|l| l.lane == index as u32) {
            Some(lane) => {
                let mut counters = lane.counters;
                counters += tally.counters();
                counters
            }
            None => {
                let name = lane_name(spec, index as u32);
                let known = name.shard.and_then(|shard| checkpoint.shards.get(&*shard));
                known.filter(|_| name.lane == 0).copied().unwrap_or_default()
            }
        };
        counters.snapshot_rows = 0;
        all.push(counters);
    }
    // Lanes beyond those of this run have counted too.
    let lanes = all.len();
    for lane in stored.iter().filter(|l| l.lane as usize >= lanes) {
        if let Some(first) = all.first_mut() {
            *first += Counters { snapshot_rows: 0, ..lane.counters };
        }
    }
    all
}

/// The progress that the target has under this name is of the source that the checkpoint knows, or its ranks
/// would pass for what this source never gave. The source tells: what is known of it may have changed.
async fn of_this_source(spec: &Spec, stored: &[LaneProgress], checkpoint: &Checkpoint) -> Result<()> {
    let other = |l: &&LaneProgress| !l.identity.0.is_empty() && l.identity != checkpoint.identity;
    let Some(lane) = stored.iter().find(other) else { return Ok(()) };
    let as_stored = Checkpoint { identity: lane.identity.clone(), ..checkpoint.clone() };
    let checked = spec.source.check(Some(&as_stored)).await;
    checked.map(drop).map_err(|e| e.context("the target has progress of another source under this pipeline's name"))
}

/// Letters that were parked name lanes as they were then.
fn check_parked(spec: &Spec, lanes: u32, checkpoint: &Checkpoint, letters: &Letters) -> Result<()> {
    let changed = checkpoint.lanes != 0 && checkpoint.lanes != lanes && spec.sink.sharded().is_some();
    if changed && letters.open() > 0 {
        let problem =
            format!("the number of lanes was {} and is {lanes} now, while dead letters are open", checkpoint.lanes);
        return Err(Error::config("pipeline.lanes", problem).hint("retry or skip them first, then change it"));
    }
    Ok(())
}

/// Lanes may be added or taken away only when all of them stand at the same place.
fn check_lanes(lanes: u32, stored: &[LaneProgress], checkpoint: &Checkpoint) -> Result<()> {
    let Some(before) = stored.iter().map(|l| l.lanes).find(|&n| n > 0).filter(|&n| n != lanes) else { return Ok(()) };
    if before > 1 && some_lane_is_ahead(stored, checkpoint) {
        return Err(Error::config(
            "pipeline.lanes",
            format!("is {lanes} now and was {before}, and the lanes do not stand at one place"),
        )
        .hint(format!("run once with lanes = {before} and stop it in an orderly way, then change it")));
    }
    Ok(())
}

/// A table may go to another lane (it got a unique or foreign key in the target) only when all lanes
/// stand at the same place.
fn check_routing(lanes: u32, routing: &str, stored: &[LaneProgress], checkpoint: &Checkpoint) -> Result<()> {
    let same = checkpoint.routing.is_empty() || checkpoint.routing == routing;
    if !same && lanes > 1 && some_lane_is_ahead(stored, checkpoint) {
        return Err(Error::config(
            "pipeline.order",
            "unique or foreign keys of the target have changed, and the lanes do not stand at one place",
        )
        .hint("undo the change of the target, run and stop in an orderly way, then change it again"));
    }
    Ok(())
}

/// Whether a lane has committed something that not all of them have: no orderly stop came after it.
/// A partition that the checkpoint forgot is finished on all lanes.
fn some_lane_is_ahead(stored: &[LaneProgress], checkpoint: &Checkpoint) -> bool {
    let low = |id: &PartitionId| checkpoint.partitions.get(id).and_then(|p| p.position.as_ref());
    let positions =
        stored.iter().flat_map(|l| l.partitions.values()).filter(|p| !RETRIED_OR_TALLY.contains(&p.partition.as_str()));
    positions
        .into_iter()
        .filter(|p| !checkpoint.is_forgotten(&p.partition))
        .any(|p| low(&p.partition).is_none_or(|low| p.position.rank > low.rank))
}

/// Moves the checkpoint's positions up to what all lanes have committed.
pub(crate) fn merge_progress(checkpoint: &mut Checkpoint, stored: &[LaneProgress], lanes: u32) {
    let before = stored.iter().map(|l| l.lanes).find(|&n| n > 0).unwrap_or(lanes);
    let active: Vec<_> = stored.iter().filter(|l| l.lane < before).collect();
    let Some(first) = active.first() else { return };
    let forgotten: HashSet<_> = first.partitions.keys().filter(|id| checkpoint.is_forgotten(id)).cloned().collect();
    let own = |id: &&PartitionId| !RETRIED_OR_TALLY.contains(&id.as_str()) && !forgotten.contains(*id);
    for id in first.partitions.keys().filter(own) {
        let others: Option<Vec<&Progress>> = active.iter().map(|l| l.partitions.get(id)).collect();
        let lowest = others.and_then(|all| all.into_iter().min_by(|a, b| a.position.rank.cmp(&b.position.rank)));
        let Some(lowest) = lowest.filter(|_| active.len() as u32 == before) else { continue };
        let entry = checkpoint.partitions.entry(id.clone()).or_default();
        let behind = |p: &Position| p.rank < lowest.position.rank;
        if entry.position.as_ref().is_none_or(behind) {
            entry.position = Some(lowest.position.clone());
            entry.safe_time = entry.safe_time.max(lowest.safe_time);
        }
    }
}

fn committed_by_lane(stored: &[LaneProgress], lanes: u32) -> Vec<HashMap<PartitionId, Progress>> {
    let before = stored.iter().map(|l| l.lanes).find(|&n| n > 0).unwrap_or(lanes);
    let of_lane = |index: u32| -> HashMap<PartitionId, Progress> {
        // One lane became several: each of them has committed what the one had.
        let source = if before == 1 { 0 } else { index };
        stored.iter().find(|l| l.lane == source).map(|l| of_source(&l.partitions)).unwrap_or_default()
    };
    (0..lanes).map(of_lane).collect()
}

/// What the transforms make of each table: seen by sending its schema through them.
pub(crate) fn transformed(
    tables: Vec<TableSchema>,
    transforms: &Transforms,
) -> Result<Vec<(TableSchema, TableSchema)>> {
    let mut pairs = Vec::with_capacity(tables.len());
    for table in tables {
        let schema = Arc::new(table);
        let mut builder = BatchBuilder::new(PartitionId::new("preflight"));
        let index = builder.schema(&schema);
        builder.begin(Transaction::default(), 1);
        builder.change(Op::Schema, index);
        builder.commit(Position::default());
        let batch = transforms.apply(builder.finish(Position::default(), None)?)?;
        if let Some(target) = batch.changes().find_map(|c| c.table()) {
            pairs.push(((*schema).clone(), (**target).clone()));
        }
    }
    Ok(pairs)
}
