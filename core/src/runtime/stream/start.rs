//! How a run begins: lanes, the orderer, the partitions that may be read.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::super::batches::Batches;
use super::super::lane::LaneTask;
use super::super::lineage::Lineage;
use super::super::reader::ReaderTask;
use super::super::saver::{SaveTask, Saver};
use super::super::session::Session;
use super::super::shards::{blame, lane_name};
use super::super::snapshot::copies;
use super::super::tally::Tally;
use super::{Coordinator, LaneHandle, ReaderSeed, Retrying, UNITS_AT_LANE};
use crate::error::Result;
use crate::model::Counters;
use crate::pipeline::{Phase, Shared};
use crate::sink::LanePurpose;
use crate::source::StartFrom;

/// How many read batches wait for the orderer at most. The byte budget is the real bound; this one
/// keeps a flood of tiny batches from running ahead.
const READ_AHEAD: usize = 64;

impl Coordinator {
    pub(super) async fn start(session: Session, shared: &Arc<Shared>) -> Result<Self> {
        let spec = Arc::clone(&session.spec);
        let budget = spec.budget.clone();
        let pinned = session.preflight.pinned_groups();
        let orderer = spec.order.orderer(spec.source.info().order, spec.unit_limits(), pinned, spec.shard_lanes());
        let (applied_out, applied) = mpsc::channel(READ_AHEAD);
        let (out, readings) = mpsc::channel(READ_AHEAD);
        let group = if spec.sink.sharded().is_some() { spec.order.lanes() } else { spec.lanes() } as usize;
        let mut lanes = Vec::new();
        let mut lane_tasks = JoinSet::new();
        for index in 0..spec.lanes() {
            let lane = session.lane(index, LanePurpose::Stream);
            let committed = session.committed.get(index as usize).cloned().unwrap_or_default();
            let (inbox, work) = mpsc::channel(UNITS_AT_LANE);
            let at = index as usize;
            let writer = match session.halted.contains_key(&(at / group)) {
                true => None,
                false => Some(spec.sink.open(lane).await.map_err(|e| blame(&spec, shared, at / group, e))?),
            };
            let task = LaneTask {
                name: lane_name(&spec, index),
                writer,
                tally: session.tallies.get(at).copied().unwrap_or_default(),
                untold: Tally::default(),
                committed,
                letters: Arc::clone(&session.letters),
                index: at,
                pulse: shared.pulse(),
                inbox: work,
                out: applied_out.clone(),
            };
            lane_tasks.spawn(async move { (at, task.run().await) }.instrument(tracing::info_span!("lane", lane = at)));
            lanes.push(LaneHandle { inbox, ready: VecDeque::new(), at_lane: 0, under_way: 0, in_parts: false });
        }
        let copied = copies(&session).then(|| session.tables.iter().map(|(_, target)| target.name.clone()).collect());
        let mut checkpoint = session.keeper.checkpoint.clone();
        let listed = spec.source.partitions().await?;
        let lineage = Lineage::new(std::mem::take(&mut checkpoint.partitions), listed);
        let transforms = session.transforms.clone();
        let (stores, relays) = (spec.sink.progress().is_some(), spec.sink.relay().is_some());
        let sink = Arc::clone(&spec.sink);
        let mut this = Self {
            shared: Arc::clone(shared),
            lane_counters: session.lane_counters,
            snapshot_rows: session.snapshot_rows,
            parts: vec![Counters::default(); lanes.len()],
            // Letters come first: what waits behind them is applied before anything new.
            retrying: vec![
                if session.letters.open() > 0 { Retrying::Waiting } else { Retrying::No };
                lanes.len() / group
            ],
            letters: session.letters,
            group,
            halted: session.halted,
            asking: JoinSet::new(),
            snapshot: checkpoint.snapshot,
            copied,
            stop_deadline: spec.stop_deadline,
            orderer,
            batches: Batches::new(budget.clone()),
            stores_progress_in_one_lane: stores && spec.lanes() == 1 && spec.sink.sharded().is_none(),
            relays,
            lanes,
            lane_tasks,
            applied,
            in_flight: HashMap::new(),
            reached: BTreeMap::new(),
            reader_seed: ReaderSeed { spec, transforms, budget, out, stop: CancellationToken::new() },
            readers: JoinSet::new(),
            readings,
            lineage,
            unshown: false,
            saver: Saver::start(SaveTask { keeper: session.keeper, sink }),
        };
        for (partition, progress) in this.lineage.unfinished() {
            this.orderer.opened(&partition, progress.as_ref());
        }
        this.open_readers();
        this.publish();
        shared.phase(Phase::Streaming);
        Ok(this)
    }

    pub(super) fn open_readers(&mut self) {
        for (partition, position, acknowledged) in self.lineage.openable() {
            let seed = &self.reader_seed;
            let from = StartFrom { position, snapshots: self.snapshot.tables.clone() };
            let source = Arc::clone(&seed.spec.source);
            let (transforms, budget) = (seed.transforms.clone(), seed.budget.clone());
            let (out, stop) = (seed.out.clone(), seed.stop.clone());
            let span = tracing::info_span!("reader", partition = %partition.id);
            let read = async move {
                let reader = source.open(&partition, &from).await?;
                let from = from.position.map(|p| p.rank);
                ReaderTask { from, partition: partition.id, reader, transforms, budget, out, acknowledged, stop }
                    .run()
                    .await
            };
            self.readers.spawn(read.instrument(span));
        }
        for partition in self.lineage.take_forgotten() {
            self.orderer.forget(&partition);
        }
    }
}
