//! Copies a chunk, whose rows belong to several shards.

use std::sync::Arc;

use async_trait::async_trait;

use crate::error::{Error, Result};
use crate::model::{Part, Unit};
use crate::sink::{Lane, Sink, SinkWriter, Written};

/// A writer to every shard that a chunk has rows of. A chunk is one transaction in each of them; it
/// is copied anew if one of them fails, for it carries no progress.
pub(super) struct SnapshotWriter {
    names: Arc<[Arc<str>]>,
    sinks: Vec<Arc<dyn Sink>>,
    lane: Lane,
    open: Vec<Option<Box<dyn SinkWriter>>>,
    /// Shards whose transaction of the chunk under way is open.
    begun: Vec<bool>,
}

impl SnapshotWriter {
    pub(super) fn new(names: Arc<[Arc<str>]>, sinks: Vec<Arc<dyn Sink>>, lane: Lane) -> Self {
        let open = sinks.iter().map(|_| None).collect();
        let begun = vec![false; sinks.len()];
        Self { names, sinks, lane, open, begun }
    }

    async fn write_to(&mut self, shard: usize, unit: &Unit) -> Result<()> {
        let writer = match &mut self.open[shard] {
            Some(writer) => writer,
            empty => {
                let lane = Lane { index: self.lane.index, count: self.lane.count, ..self.lane.clone() };
                empty.insert(self.sinks[shard].open(lane).await?)
            }
        };
        match writer.write(unit).await?.rejected.into_iter().next() {
            Some(rejected) => Err(rejected.error),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl SinkWriter for SnapshotWriter {
    async fn write(&mut self, unit: &Unit) -> Result<Written> {
        if let Some(change) = unit.changes().find(|c| !self.names.iter().any(|n| c.shard() == Some(n))) {
            return Err(unknown_shard(change.shard().map(|s| &**s), &self.names));
        }
        for shard in 0..self.sinks.len() {
            let name = Arc::clone(&self.names[shard]);
            let mut mine = unit.retain(|c| c.shard() == Some(&name));
            let (begun, ends) = (self.begun[shard], unit.part.ends());
            if mine.is_empty() && !(begun && ends) {
                continue;
            }
            mine.part = match (begun, ends) {
                (false, true) => Part::Whole,
                (false, false) => Part::First,
                (true, false) => Part::Middle,
                (true, true) => Part::Last,
            };
            self.begun[shard] = !ends;
            self.write_to(shard, &mine).await.map_err(|e| e.context(format!("shard {name}")))?;
        }
        Ok(if unit.part.ends() { Written::durable() } else { Written::accepted() })
    }

    async fn flush(&mut self) -> Result<()> {
        for writer in self.open.iter_mut().flatten() {
            writer.flush().await?;
        }
        Ok(())
    }

    async fn close(mut self: Box<Self>) -> Result<()> {
        for writer in self.open.drain(..).flatten() {
            writer.close().await?;
        }
        Ok(())
    }
}

/// A shard that is not configured: waiting does not mend it.
pub(crate) fn unknown_shard(shard: Option<&str>, names: &[Arc<str>]) -> Error {
    let known = format!("known: {}", names.join(", "));
    match shard {
        Some(shard) => Error::rejected(format!("there is no shard {shard}")).hint(known),
        None => Error::rejected("no transform has set a shard")
            .hint(format!("add a [[transform]] of type \"shard\" or \"session\"; {known}")),
    }
}
