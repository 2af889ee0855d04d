//! The start of every attempt: take the pipeline over, find where it stands, check both databases.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::keeper::Keeper;
use super::letters::{Letters, RETRIED};
use super::reader::Transforms;
use crate::error::{Error, Result};
use crate::mapping::preflight::{Preflight, preflight};
use crate::model::{BatchBuilder, Checkpoint, Counters, Op, PartitionId, Position, Progress, TableSchema, Transaction};
use crate::pipeline::Spec;
use crate::sink::{Claim, Lane, LaneProgress, LanePurpose};

/// A pipeline that this run owns, checked and ready to copy and to stream.
pub(crate) struct Session {
    pub(crate) spec: Arc<Spec>,
    pub(crate) keeper: Keeper,
    /// What each lane had committed in the target when the run began.
    pub(crate) committed: Vec<HashMap<PartitionId, Progress>>,
    /// The sum over all lanes, or the checkpoint's, when the run began.
    pub(crate) counters: Counters,
    pub(crate) letters: Arc<Letters>,
    pub(crate) transforms: Transforms,
    /// The source's tables, each with what the sink gets of it.
    pub(crate) tables: Vec<(TableSchema, TableSchema)>,
    pub(crate) preflight: Preflight,
}

impl Session {
    /// Takes the pipeline over and prepares both sides.
    pub(crate) async fn open(spec: &Arc<Spec>, transforms: &Transforms) -> Result<Self> {
        let mut keeper = Keeper::take_over(Arc::clone(&spec.checkpointer), Arc::clone(&spec.name)).await?;
        let lanes = spec.lanes();
        let before = match spec.sink.progress() {
            Some(store) => store.read(&spec.name).await?,
            None => Vec::new(),
        };
        // Before anything is written: a claim stores the new number of lanes.
        check_lanes(lanes, &before, &keeper.checkpoint, !spec.source.lists_finished())?;
        if keeper.checkpoint.identity.0.is_empty()
            && let Some(lane) = before.iter().find(|l| !l.identity.0.is_empty())
        {
            // The checkpoint was lost but the target knows: its progress is bound to this source.
            keeper.checkpoint.identity = lane.identity.clone();
        }
        let stored = take_over_target(spec, &keeper, lanes).await?;
        merge_progress(&mut keeper.checkpoint, &stored, lanes, !spec.source.lists_finished());

        let fresh = keeper.checkpoint.identity.0.is_empty();
        let identity = spec.source.prepare((!fresh).then_some(&keeper.checkpoint)).await?;
        let changed = keeper.checkpoint.identity != identity;
        keeper.checkpoint.identity = identity;
        keeper.checkpoint.order = spec.order.name().to_owned();
        keeper.checkpoint.lanes = lanes;
        if changed {
            take_over_target(spec, &keeper, lanes).await?;
        }

        let letters = Letters::load(
            Arc::clone(&spec.name),
            spec.dead_letters.clone(),
            spec.on_rejected,
            spec.order.keeps_transactions(),
            spec.max_attempts,
        )
        .await?;
        let retried = stored.iter().filter_map(|l| l.partitions.get(RETRIED)).max_by_key(|p| p.position.token.clone());
        if let Some(retried) = retried {
            letters.finish_interrupted_retry(&retried.position.token).await?;
        }

        let tables = transformed(spec.source.tables().await?, transforms)?;
        let targets: Vec<TableSchema> = tables.iter().map(|(_, target)| target.clone()).collect();
        let preflight = preflight(&targets, spec.sink.as_ref(), &spec.consent, spec.create_tables).await?;
        preflight.verdict()?;
        let routing = spec.order.routing(&preflight.pinned_groups());
        check_routing(lanes, &routing, &stored, &keeper.checkpoint, !spec.source.lists_finished())?;
        keeper.checkpoint.routing = routing;
        keeper.save().await?;
        preflight.create_missing(spec.sink.as_ref()).await?;

        let counters = match spec.sink.progress() {
            Some(_) => stored.iter().fold(Counters::default(), |mut sum, lane| {
                sum += lane.counters;
                sum
            }),
            None => keeper.checkpoint.counters,
        };
        let counters = Counters { snapshot_rows: keeper.checkpoint.counters.snapshot_rows, ..counters };
        let committed = committed_by_lane(&stored, lanes);
        let transforms = transforms.clone();
        Ok(Self {
            spec: Arc::clone(spec),
            keeper,
            committed,
            counters,
            letters: Arc::new(letters),
            transforms,
            tables,
            preflight,
        })
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

/// Raises the epoch in the target and reads what the lanes have committed.
async fn take_over_target(spec: &Spec, keeper: &Keeper, lanes: u32) -> Result<Vec<LaneProgress>> {
    let Some(store) = spec.sink.progress() else { return Ok(Vec::new()) };
    let (pipeline, checkpoint) = (Arc::clone(&spec.name), &keeper.checkpoint);
    let identity = checkpoint.identity.clone();
    store.take_over(&Claim { pipeline, epoch: checkpoint.epoch, lanes, identity }).await
}

/// Lanes may be added or taken away only when all of them stand at the same place.
fn check_lanes(lanes: u32, stored: &[LaneProgress], checkpoint: &Checkpoint, forgets: bool) -> Result<()> {
    let Some(before) = stored.iter().map(|l| l.lanes).find(|&n| n > 0).filter(|&n| n != lanes) else { return Ok(()) };
    if before > 1 && some_lane_is_ahead(stored, checkpoint, forgets) {
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
fn check_routing(
    lanes: u32,
    routing: &str,
    stored: &[LaneProgress],
    checkpoint: &Checkpoint,
    forgets: bool,
) -> Result<()> {
    let same = checkpoint.routing.is_empty() || checkpoint.routing == routing;
    if !same && lanes > 1 && some_lane_is_ahead(stored, checkpoint, forgets) {
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
fn some_lane_is_ahead(stored: &[LaneProgress], checkpoint: &Checkpoint, forgets: bool) -> bool {
    let forgets = forgets && !checkpoint.partitions.is_empty();
    let low = |id: &PartitionId| checkpoint.partitions.get(id).and_then(|p| p.position.as_ref());
    let forgotten = |id: &PartitionId| forgets && !checkpoint.partitions.contains_key(id);
    let positions = stored.iter().flat_map(|l| l.partitions.values()).filter(|p| p.partition.as_str() != RETRIED);
    let mut positions = positions.into_iter().filter(|p| !forgotten(&p.partition));
    positions.any(|p| low(&p.partition).is_none_or(|low| p.position.rank > low.rank))
}

/// Moves the checkpoint's positions up to what all lanes have committed. `forgets`: a partition that the
/// checkpoint does not have was finished, and forgotten; one of which it knows nothing at all was lost.
pub(crate) fn merge_progress(checkpoint: &mut Checkpoint, stored: &[LaneProgress], lanes: u32, forgets: bool) {
    let only_known = forgets && !checkpoint.partitions.is_empty();
    let before = stored.iter().map(|l| l.lanes).find(|&n| n > 0).unwrap_or(lanes);
    let active: Vec<_> = stored.iter().filter(|l| l.lane < before).collect();
    let Some(first) = active.first() else { return };
    for id in first.partitions.keys().filter(|id| id.as_str() != RETRIED) {
        let others: Option<Vec<&Progress>> = active.iter().map(|l| l.partitions.get(id)).collect();
        let lowest = others.and_then(|all| all.into_iter().min_by(|a, b| a.position.rank.cmp(&b.position.rank)));
        let Some(lowest) = lowest.filter(|_| active.len() as u32 == before) else { continue };
        if only_known && !checkpoint.partitions.contains_key(id) {
            continue;
        }
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
        let lane: Option<&BTreeMap<PartitionId, Progress>> =
            stored.iter().find(|l| l.lane == source).map(|l| &l.partitions);
        lane.into_iter()
            .flatten()
            .filter(|(id, _)| id.as_str() != RETRIED)
            .map(|(id, p)| (id.clone(), p.clone()))
            .collect()
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
