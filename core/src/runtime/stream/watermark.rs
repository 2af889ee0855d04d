//! What is shown of how far everything is.

use std::collections::BTreeMap;

use super::Coordinator;
use crate::control::drain::Durable;
use crate::model::{Counters, Position, Timestamp};
use crate::pipeline::{Known, Watermark};

/// Above this many partitions the watermark is shown at times, not after each batch: it takes a look
/// at all of them.
const FEW_PARTITIONS: usize = 16;

impl Coordinator {
    pub(super) fn publish_soon(&mut self) {
        match self.lineage.len() <= FEW_PARTITIONS {
            true => self.publish(),
            false => self.unshown = true,
        }
    }

    /// Shows the watermark to whoever waits for it.
    pub(super) fn publish(&mut self) {
        self.unshown = false;
        let low = self.orderer.low_watermark();
        self.lineage.advance(low);
        let waiting = self.batches.waiting_changes();
        let open = self.lineage.unfinished();
        let (counters, safe_time) = (self.counters(), self.safe_time());
        let now = Watermark {
            safe_times: open.iter().filter_map(|(p, at)| Some((p.id.clone(), at.as_ref()?.safe_time?))).collect(),
            durable: Durable {
                // One that has given nothing yet is where it starts.
                open: open.into_iter().map(|(p, at)| (p.id, at.map(|at| at.position).or(p.start))).collect(),
                finished: self.lineage.finished(),
                unsaved: self.lineage.unsaved(),
                copying: false,
                dead_letters_open: self.letters.open(),
            },
            owners: BTreeMap::new(),
        };
        self.shared.watermark(now, safe_time, counters, waiting);
        if let Some(sharded) = self.reader_seed.spec.sink.sharded() {
            let known = Known {
                counters: self.shard_counters(),
                halted: &self.halted,
                letters: self.letters.open_by_shard(),
                waits: sharded.names().iter().map(|name| self.letters.is_halted(name)).collect(),
            };
            self.shared.shards(sharded.names(), known, safe_time);
        }
        if self.lineage.wants_saving() && self.saver.is_idle() {
            self.save_if_moved();
        }
    }

    /// Everything committed at or before this is durable; `None` while no time can be said: the stream
    /// has not passed the point of every copy.
    pub(super) fn safe_time(&self) -> Option<Timestamp> {
        let visible = |p: &Position| self.snapshot.tables.values().all(|t| t.point.rank <= p.rank);
        let whole = self.lineage.unfinished().iter().filter_map(|(_, p)| p.as_ref()).all(|p| visible(&p.position));
        self.lineage.safe_time().filter(|_| whole)
    }

    pub(super) fn counters(&self) -> Counters {
        let mut sum = Counters { snapshot_rows: self.snapshot_rows, ..Counters::default() };
        for lane in &self.lane_counters {
            sum += Counters { snapshot_rows: 0, ..*lane };
        }
        sum.dead_letters += self.letters.put_count();
        sum
    }

    /// What each shard has counted; empty where there are none.
    pub(super) fn shard_counters(&self) -> BTreeMap<String, Counters> {
        let Some(sharded) = self.reader_seed.spec.sink.sharded() else { return BTreeMap::new() };
        let sum = |lanes: &[Counters]| {
            lanes.iter().fold(Counters::default(), |mut sum, lane| {
                sum += *lane;
                sum
            })
        };
        let by_shard = self.lane_counters.chunks(self.group).map(sum);
        sharded.names().iter().map(|name| name.to_string()).zip(by_shard).collect()
    }
}
