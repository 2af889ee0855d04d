//! Several databases behind one sink: each shard of the target is one.
//!
//! ```text
//!                                   ┌ lane 0 ─> shard "a", its lane 0
//!   orderer: by the shard that a ───┼ lane 1 ─> shard "a", its lane 1
//!   transform has set               ├ lane 2 ─> shard "b", its lane 0
//!                                   └ lane 3 ─> shard "b", its lane 1
//! ```
//!
//! A lane writes to exactly one shard, and its progress is stored in that shard, in the transaction
//! of its rows: a shard is as exact as a target alone, whatever befalls the others.
//!
//! | order | in a shard | over shards |
//! |---|---|---|
//! | `transaction` | whole transactions (their part for it) in commit order: no reader sees half of a part | each shard is at a commit boundary of its own |
//! | `window` | sorted by commit time, window by window | as above |
//! | `key` | per key, on several lanes | none |
//!
//! A shard that is down, or refuses a row, stops the pipeline unless
//! [`OnRejected::HaltShard`](crate::pipeline::OnRejected) is set. Then it alone is halted: its changes
//! are parked in order in the dead-letter store, durably, and the source is acknowledged. Once it
//! answers again they are applied first, each once in effect, and only then what came after them.

mod snapshot;
mod target;

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::join_all;

pub(crate) use snapshot::unknown_shard;

use crate::error::{Error, ErrorKind, Result};
use crate::mapping::TargetSchema;
use crate::sink::{Claim, Lane, LaneProgress, LanePurpose, ProgressStore, Sink, SinkInfo, SinkWriter};

/// The fact, beside those of the source, by which each database tells whose it is.
const SHARD: &str = "target_shard";

/// Several databases that together are the target. See the [module](self).
///
/// Each database stores the name of its shard. One that stands behind two names, or behind another
/// name than before while both are known, is refused: its progress would pass for that of the other.
///
/// It keeps neither checkpoints nor dead letters: both must outlive any one shard, so the pipeline
/// needs a checkpointer, and a store of dead letters, outside of them.
///
/// ```
/// use std::sync::Arc;
/// use anabranch_core::{Sharded, Sink};
/// use anabranch_core::memory::MemorySink;
/// let shards = ["eu", "us"].map(|name| (name, Arc::new(MemorySink::new()) as Arc<dyn Sink>));
/// let sharded = Sharded::new(shards)?.max_connections(4);
/// assert_eq!(sharded.info().max_lanes, 8);
/// # Ok::<(), anabranch_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Sharded {
    names: Arc<[Arc<str>]>,
    sinks: Vec<Arc<dyn Sink>>,
    max_connections: u32,
}

impl Sharded {
    /// These shards, each by its name. Their order may change between runs: progress is in each.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) for no shards, a name that comes twice or is empty, and a
    /// sink that does not store its progress with the rows.
    pub fn new<N: Into<Arc<str>>>(shards: impl IntoIterator<Item = (N, Arc<dyn Sink>)>) -> Result<Self> {
        let (names, sinks): (Vec<Arc<str>>, Vec<Arc<dyn Sink>>) =
            shards.into_iter().map(|(name, sink)| (name.into(), sink)).unzip();
        let wrong = |problem: String| Err(Error::config("sink.shards", problem));
        if names.is_empty() {
            return wrong("there is none".to_owned());
        }
        let mut seen = BTreeSet::new();
        for (name, sink) in names.iter().zip(&sinks) {
            if name.is_empty() {
                return wrong("a shard has an empty name".to_owned());
            }
            if !seen.insert(name) {
                return wrong(format!("the name {name} comes twice"));
            }
            if sink.progress().is_none() {
                return wrong(format!(
                    "{}, the database of {name}, does not store progress with rows",
                    sink.info().name
                ));
            }
        }
        Ok(Self { names: names.into(), sinks, max_connections: 16 })
    }

    /// How many connections write to one shard at a time at most. 16 if not set.
    #[must_use]
    pub fn max_connections(mut self, connections: u32) -> Self {
        self.max_connections = connections.max(1);
        self
    }

    /// The names, in the order of the lanes.
    pub fn names(&self) -> &Arc<[Arc<str>]> {
        &self.names
    }

    /// How many shards.
    pub fn count(&self) -> u32 {
        self.names.len() as u32
    }

    /// The database of the shard at this place.
    pub fn shard(&self, at: usize) -> Option<&Arc<dyn Sink>> {
        self.sinks.get(at)
    }

    /// Lanes of one shard at most.
    pub fn max_lanes_per_shard(&self) -> u32 {
        self.sinks.iter().map(|s| s.info().max_lanes).min().unwrap_or(1).min(self.max_connections)
    }

    /// Takes each shard over by itself, all at once. `claim` has the lanes of all shards.
    pub(crate) async fn take_over_each(&self, claim: &Claim) -> Vec<Result<Vec<LaneProgress>>> {
        let lanes = claim.lanes / self.count();
        let each = self.sinks.iter().enumerate().map(async |(at, sink)| {
            let Some(store) = sink.progress() else { return Ok((true, Vec::new())) };
            // Before the claim, which stores the name: what another shard has written is never claimed.
            self.own(at, store.read(&claim.pipeline).await?)?;
            // A claim without an identity keeps the one that is stored, with the name.
            let identity = match claim.identity.0.is_empty() {
                true => claim.identity.clone(),
                false => claim.identity.clone().with(SHARD, &*self.names[at]),
            };
            let stored = store.take_over(&Claim { lanes, identity, ..claim.clone() }).await?;
            let named = stored.iter().any(|l| l.identity.get(SHARD).is_some());
            Ok((named, self.of_all(at, lanes, self.own(at, stored)?)))
        });
        let mut taken: Vec<Result<(bool, Vec<LaneProgress>)>> = join_all(each).await;
        // Where no name was stored yet, two shards may have claimed one database at once: only the later is in it.
        let again =
            self.sinks.iter().zip(&taken).enumerate().map(async |(at, (sink, taken))| match (taken, sink.progress()) {
                (Ok((false, _)), Some(store)) => self.own(at, store.read(&claim.pipeline).await?).map(drop),
                _ => Ok(()),
            });
        for (at, found) in join_all(again).await.into_iter().enumerate() {
            if let Err(e) = found {
                taken[at] = Err(e);
            }
        }
        taken.into_iter().map(|one| one.map(|(_, lanes)| lanes)).collect()
    }

    /// What the database of a shard has stored, without the name of the shard.
    ///
    /// It may be that of a shard which is not known any more: this one had another name then.
    fn own(&self, shard: usize, mut stored: Vec<LaneProgress>) -> Result<Vec<LaneProgress>> {
        for lane in &mut stored {
            let Some(name) = lane.identity.0.remove(SHARD) else { continue };
            if *name != *self.names[shard] && self.names.iter().any(|known| **known == *name) {
                let problem = format!("the database of {} is that of {name}", self.names[shard]);
                return Err(Error::config("sink.shards", problem)
                    .hint("each shard needs a database of its own, and the same one in every run: mend their URLs"));
            }
        }
        Ok(stored)
    }

    /// What each shard has stored; asked all at once.
    pub(crate) async fn read_each(&self, pipeline: &str) -> Vec<Result<Vec<LaneProgress>>> {
        let each = self.sinks.iter().enumerate().map(async |(at, sink)| {
            let Some(store) = sink.progress() else { return Ok(Vec::new()) };
            Ok(self.of_all(at, 1, self.own(at, store.read(pipeline).await?)?))
        });
        join_all(each).await
    }

    /// A shard's lanes among the lanes of all.
    fn of_all(&self, shard: usize, lanes: u32, stored: Vec<LaneProgress>) -> Vec<LaneProgress> {
        let lanes = stored.iter().find(|l| l.lane == 0 && l.lanes > 0).map_or(lanes, |l| l.lanes);
        let of_one = |mut lane: LaneProgress| {
            // Lanes left over from an earlier, larger number have counted: they stand behind all others.
            let left_over = self.count() * lanes + shard as u32 * 1024;
            lane.lane += if lane.lane < lanes { shard as u32 * lanes } else { left_over };
            lane.lanes *= self.count();
            lane
        };
        stored.into_iter().map(of_one).collect()
    }

    /// Everything, or every error at once: an operator mends all shards in one go.
    pub(crate) fn all<T>(&self, results: Vec<Result<Vec<T>>>) -> Result<Vec<T>> {
        let mut all = Vec::new();
        let mut errors: Vec<(Arc<str>, Error)> = Vec::new();
        for (name, result) in self.names.iter().zip(results) {
            match result {
                Ok(some) => all.extend(some),
                Err(e) => errors.push((Arc::clone(name), e)),
            }
        }
        match together(errors) {
            Some(error) => Err(error),
            None => Ok(all),
        }
    }
}

/// One error of those of several shards. It asks for what the most pressing of them asks for.
pub(crate) fn together(mut errors: Vec<(Arc<str>, Error)>) -> Option<Error> {
    let pressing = |e: &Error| match e.kind() {
        ErrorKind::Fenced => 0,
        ErrorKind::Fatal => 1,
        ErrorKind::Config => 2,
        ErrorKind::Rejected => 3,
        ErrorKind::Indeterminate => 4,
        _ => 5,
    };
    if errors.len() == 1 {
        return errors.pop().map(|(name, e)| e.context(format!("shard {name}")));
    }
    let kind = errors.iter().map(|(_, e)| e).min_by_key(|e| pressing(e))?.kind();
    let each: Vec<String> = errors.iter().map(|(name, e)| format!("shard {name}: {}", e.report())).collect();
    Some(Error::new(kind, each.join("; ")))
}

#[async_trait]
impl Sink for Sharded {
    fn info(&self) -> SinkInfo {
        let infos = || self.sinks.iter().map(|s| s.info());
        SinkInfo {
            name: "sharded",
            transactional: infos().all(|i| i.transactional),
            max_lanes: self.max_lanes_per_shard() * self.count(),
            schemas: infos().all(|i| i.schemas),
        }
    }

    async fn open(&self, lane: Lane) -> Result<Box<dyn SinkWriter>> {
        if lane.purpose == LanePurpose::Snapshot {
            return Ok(Box::new(snapshot::SnapshotWriter::new(Arc::clone(&self.names), self.sinks.clone(), lane)));
        }
        let lanes = (lane.count / self.count()).max(1);
        let shard = (lane.index / lanes) as usize;
        let sink = self.sinks.get(shard).ok_or_else(|| Error::fatal(format!("lane {} has no shard", lane.index)))?;
        let of_shard = Lane { index: lane.index % lanes, count: lanes, ..lane };
        sink.open(of_shard).await.map_err(|e| e.context(format!("shard {}", self.names[shard])))
    }

    fn progress(&self) -> Option<&dyn ProgressStore> {
        Some(self)
    }

    fn target(&self) -> Option<&dyn TargetSchema> {
        self.sinks.iter().all(|s| s.target().is_some()).then_some(self)
    }

    fn sharded(&self) -> Option<&Sharded> {
        Some(self)
    }
}

#[async_trait]
impl ProgressStore for Sharded {
    async fn take_over(&self, claim: &Claim) -> Result<Vec<LaneProgress>> {
        self.all(self.take_over_each(claim).await)
    }

    async fn read(&self, pipeline: &str) -> Result<Vec<LaneProgress>> {
        self.all(self.read_each(pipeline).await)
    }
}
