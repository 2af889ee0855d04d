//! What the lanes are given, and what they have done.

use tokio::sync::mpsc;

use super::super::batches::Loaded;
use super::super::lane::{Applied, Work};
use super::super::letters::LaneName;
use super::super::shards::lane_name;
use super::{Coordinator, InFlight, Retrying, UNITS_AT_LANE};
use crate::error::{Error, Result};
use crate::model::{Counters, LaneReached, PartitionId, Rank};

impl Coordinator {
    pub(super) fn on_applied(&mut self, applied: Applied) -> Result<()> {
        match applied {
            Applied::Taken(id, counters) => {
                let Some(unit) = self.in_flight.get_mut(&id) else { return Ok(()) };
                // Parts are counted with the last of them, which makes the transaction durable.
                self.parts[unit.lane] += counters;
                if unit.ends {
                    unit.counters = std::mem::take(&mut self.parts[unit.lane]);
                }
                for (batch, changes) in unit.slices.drain(..) {
                    self.batches.applied(batch, changes);
                }
                self.batches.unload(std::mem::take(&mut unit.loaded));
                // None while a run ends: then nothing is sent any more.
                if let Some(lane) = self.lanes.get_mut(unit.lane) {
                    lane.at_lane -= 1;
                    lane.under_way -= usize::from(!unit.ends);
                }
                if !unit.ends {
                    // Parts before the last carry no progress: done once they are taken.
                    self.in_flight.remove(&id);
                    self.orderer.complete(id);
                }
            }
            Applied::Durable(ids) => {
                for id in ids {
                    let Some(unit) = self.in_flight.remove(&id) else { continue };
                    self.orderer.complete(id);
                    self.count(unit.lane, unit.counters);
                    if let Some(lane) = self.lanes.get_mut(unit.lane) {
                        lane.under_way -= 1;
                    }
                    // What is parked for a halted shard is in no target.
                    if !self.halted.contains_key(&(unit.lane / self.group)) {
                        self.shared.shard_works(unit.lane / self.group);
                        if let Some(p) = unit.progress.last() {
                            self.reached.insert(unit.lane, (p.partition.clone(), p.position.rank.clone()));
                        }
                    }
                    if self.stores_progress_in_one_lane {
                        for progress in &unit.progress {
                            self.lineage.stored(&progress.partition, &progress.position);
                        }
                    }
                }
                self.shared.progressed();
                self.publish_soon();
            }
            Applied::Retried(lane, counters) => {
                self.retrying[lane / self.group] = Retrying::No;
                self.count(lane, counters);
                self.publish();
            }
        }
        Ok(())
    }

    /// Gives the lanes what the orderer has ready.
    pub(super) fn hand_out(&mut self) -> Result<()> {
        for group in 0..self.retrying.len() {
            let lanes = &self.lanes[group * self.group..(group + 1) * self.group];
            let idle = lanes.iter().all(|l| l.under_way == 0 && !l.in_parts);
            if self.retrying[group] == Retrying::Waiting && idle {
                self.retrying[group] = Retrying::Running;
                self.send(group * self.group, Work::RetryLetters)?;
            }
        }
        while let Some(ordered) = self.orderer.next_ready()? {
            let lane = ordered.lane as usize;
            let slices = ordered.slices.iter().map(|s| (s.batch, s.changes.len())).collect();
            let (ends, progress) = (ordered.part.ends(), ordered.progress.clone());
            let (loaded, counters) = (Loaded::default(), Counters::default());
            self.in_flight.insert(ordered.id, InFlight { lane, slices, loaded, ends, progress, counters });
            let handle = self
                .lanes
                .get_mut(lane)
                .ok_or_else(|| Error::fatal(format!("the orderer chose lane {lane}, which is not there")))?;
            handle.ready.push_back(ordered);
        }
        for lane in 0..self.lanes.len() {
            let retrying = self.retrying[lane / self.group];
            let handle = &mut self.lanes[lane];
            let mut units = Vec::new();
            let batches = &mut self.batches;
            // A transaction that is open in parts is ended before letters are tried again.
            while handle.at_lane < UNITS_AT_LANE
                && (retrying == Retrying::No || (retrying == Retrying::Waiting && handle.in_parts))
                && handle.ready.front().is_some_and(|unit| batches.has_room_for(unit))
                && let Some(ordered) = handle.ready.pop_front()
            {
                let (unit, loaded) = batches.resolve(ordered)?;
                if let Some(unit) = self.in_flight.get_mut(&unit.id) {
                    unit.loaded = loaded;
                }
                handle.at_lane += 1;
                handle.under_way += 1;
                handle.in_parts = !unit.part.ends();
                units.push(unit);
            }
            for unit in units {
                self.send(lane, Work::Apply(unit))?;
            }
        }
        if self.in_flight.is_empty() {
            self.batches.spill_if_tight()?;
        }
        Ok(())
    }

    pub(super) fn send(&self, lane: usize, work: Work) -> Result<()> {
        match self.lanes[lane].inbox.try_send(work) {
            // A closed inbox: the lane has failed, and the loop is about to hear why.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => Err(Error::fatal("a lane was given more units than it takes")),
        }
    }

    /// What the lanes have stored in the target, if it stores progress.
    pub(super) fn reached(&self) -> Vec<LaneReached> {
        let spec = &self.reader_seed.spec;
        if spec.sink.progress().is_none() {
            return Vec::new();
        }
        let reached = |(&index, (partition, rank)): (&usize, &(PartitionId, Rank))| {
            let LaneName { shard, lane } = lane_name(spec, index as u32);
            let shard = shard.map(|name| name.to_string());
            LaneReached { shard, lane, partition: partition.clone(), rank: rank.clone() }
        };
        self.reached.iter().map(reached).collect()
    }

    pub(super) fn count(&mut self, lane: usize, counters: Counters) {
        // A target that does not count has one sum.
        let at = lane.min(self.lane_counters.len().saturating_sub(1));
        if let Some(sum) = self.lane_counters.get_mut(at) {
            *sum += counters;
        }
    }

    /// Has the letters of each group tried again, once its lanes are idle.
    pub(super) fn retry_letters(&mut self) {
        if self.letters.open() == 0 {
            return;
        }
        for (group, retrying) in self.retrying.iter_mut().enumerate() {
            if *retrying == Retrying::No && !self.halted.contains_key(&group) {
                *retrying = Retrying::Waiting;
            }
        }
    }
}
