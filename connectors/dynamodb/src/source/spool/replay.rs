//! Reads a partition from the spool, and from the stream behind that.

use std::sync::Arc;

use anabranch_core::{ChangeBatch, ChangeReader, Next, Partition, Position, Result, StartFrom};
use async_trait::async_trait;

use super::super::Connected;
use super::super::root::RootReader;
use super::super::scan::begun;
use super::super::setup::Table;
use super::super::shard::ShardReader;
use super::file::{Frame, Frames};
use super::{Folder, SpoolSettings, failed, frames};

/// Gives what was spooled, then what the stream has.
pub(in super::super) struct SpooledReader {
    connected: Connected,
    table: Arc<Table>,
    partition: Partition,
    from: StartFrom,
    folder: Folder,
    frames: Option<Frames>,
    live: Option<Box<dyn ChangeReader>>,
    /// After the last batch of the file.
    last: Option<Position>,
    /// The file has the end of the shard, or is gone: it is not removed.
    keeps: bool,
}

impl SpooledReader {
    /// `None` if nothing of this partition is spooled.
    pub(in super::super) fn open(
        connected: &Connected,
        settings: &SpoolSettings,
        table: &Arc<Table>,
        partition: &Partition,
        from: &StartFrom,
    ) -> Result<Option<Self>> {
        let folder = Folder::of(settings, table)?;
        let copied = from.snapshots.get(&table.layout.schema().name);
        let Some(begun) = copied.and_then(|copy| begun(&copy.point)) else { return Ok(None) };
        let Some(frames) = frames(&folder, partition, table, begun)? else { return Ok(None) };
        // A partition is opened when a checkpoint is saved in which its parents are finished: nobody reads
        // their files again.
        folder.remove(partition.parents.iter());
        // What the stream has behind the spool is needed from when that was written last.
        connected.needed().opened(&partition.id, folder.until());
        Ok(Some(Self {
            connected: connected.clone(),
            table: Arc::clone(table),
            partition: partition.clone(),
            from: from.clone(),
            folder,
            frames: Some(frames),
            live: None,
            last: None,
            keeps: false,
        }))
    }

    /// The next of the file; `None` at its end.
    fn spooled(&mut self) -> Result<Option<Next>> {
        let Some(frames) = &mut self.frames else { return Ok(None) };
        loop {
            let path = || self.folder.file(&self.partition.id);
            match frames.next().map_err(|e| failed(&path(), e))? {
                None => return Ok(None),
                Some(Frame::Closed(children)) => {
                    self.keeps = true;
                    return Ok(Some(Next::Closed { children }));
                }
                Some(Frame::Batch { schemas, bytes }) => {
                    let schemas = vec![Arc::clone(self.table.layout.schema()); schemas];
                    let batch = ChangeBatch::unspill(schemas, &bytes)?;
                    self.last = Some(batch.end().clone());
                    let done = self.from.position.as_ref().is_some_and(|from| batch.end().rank <= from.rank);
                    if !done {
                        return Ok(Some(Next::Batch(batch)));
                    }
                }
            }
        }
    }

    fn live(&self) -> Result<Box<dyn ChangeReader>> {
        let later = |p: &Position| self.last.as_ref().is_none_or(|last| p.rank > last.rank);
        let position = self.from.position.clone().filter(later).or_else(|| self.last.clone());
        let from = StartFrom { position, snapshots: self.from.snapshots.clone() };
        let (connected, table) = (self.connected.clone(), Arc::clone(&self.table));
        let Some((_, shard)) = self.partition.id.as_str().split_once('/') else {
            return Ok(Box::new(RootReader::new(connected, table, &from)));
        };
        let reader = ShardReader::new(connected, table, shard, &self.partition, &from)?;
        // The reader knows only what it reads itself.
        self.connected.needed().opened(&self.partition.id, self.folder.until());
        Ok(Box::new(reader))
    }
}

#[async_trait]
impl ChangeReader for SpooledReader {
    async fn next(&mut self) -> Result<Next> {
        if let Some(live) = &mut self.live {
            return live.next().await;
        }
        if let Some(next) = self.spooled()? {
            return Ok(next);
        }
        tracing::debug!(partition = %self.partition.id, "the spool is read, the stream goes on from there");
        self.frames = None;
        let live = self.live()?;
        self.live.insert(live).next().await
    }

    async fn acknowledge(&mut self, through: Option<&Position>) -> Result<()> {
        let behind = |through: &Position| self.last.as_ref().is_none_or(|last| through.rank >= last.rank);
        if self.live.is_some() && !self.keeps && through.is_some_and(behind) {
            // A restart resumes in the stream.
            self.folder.remove(std::iter::once(&self.partition.id));
            self.keeps = true;
        }
        match &mut self.live {
            Some(live) => live.acknowledge(through).await,
            None => Ok(()),
        }
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

impl Drop for SpooledReader {
    fn drop(&mut self) {
        self.connected.needed().closed(&self.partition.id);
    }
}
