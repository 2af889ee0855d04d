//! Reads the log of a [`MemorySource`].

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;

use super::source::{Log, Logged, LoggedTransaction, MemorySource, number, partition, position, prefix};
use crate::error::{Error, Result};
use crate::model::{BatchBuilder, Piece, Position, Rank, TableName, Timestamp};
use crate::source::{ChangeReader, Next, StartFrom};

/// A reader of the one partition.
pub(super) struct MemoryReader {
    source: MemorySource,
    /// Its number among the readers.
    reader: u64,
    /// The transaction to read next, from 0, and the change in it, from 0.
    next: (usize, usize),
    /// Changes of these tables up to the transaction of this number are in their copies.
    copied: BTreeMap<TableName, u64>,
}

impl MemoryReader {
    pub(super) fn new(source: &MemorySource, from: &StartFrom) -> Result<Self> {
        let start = from.position.as_ref().map_or(Ok(0), number)?;
        let copied = from.snapshots.iter().map(|(name, copy)| Ok((name.clone(), number(&copy.point)?)));
        let copied = copied.collect::<Result<_>>()?;
        let mut log = source.log();
        if start < log.acknowledged {
            let forgotten = format!("the source has forgotten transactions {} to {}", start + 1, log.acknowledged);
            return Err(Error::fatal(forgotten).hint("copy the tables again"));
        }
        if start > log.transactions.len() as u64 {
            return Err(Error::fatal(format!("the source has only {} transactions", log.transactions.len())));
        }
        log.readers += 1;
        Ok(Self { source: source.clone(), reader: log.readers, next: (start as usize, 0), copied })
    }

    /// What is in the log now; `None` if it has nothing more, unless a heartbeat is asked for.
    fn take(&mut self, heartbeat: bool) -> Result<Option<Next>> {
        let shared = Arc::clone(&self.source.shared);
        let mut log = shared.log();
        if log.readers != self.reader {
            return Ok(Some(Next::Stopped));
        }
        if self.next.0 == log.transactions.len() && !heartbeat {
            return Ok(None);
        }
        let mut batch = BatchBuilder::new(partition());
        let mut safe_time = None;
        let mut taken = 0;
        while let Some(logged) = log.transactions.get(self.next.0).filter(|_| taken < self.source.batch_changes) {
            taken += self.take_from(logged, self.source.batch_changes - taken, &mut batch);
            if self.next.1 == logged.changes.len() {
                self.next = (self.next.0 + 1, 0);
                batch.commit(position(self.next.0 as u64));
                safe_time = logged.transaction.commit_time;
            }
        }
        if self.next == (log.transactions.len(), 0) {
            safe_time = log.tick();
        }
        batch.lag_bytes((log.transactions.len() - self.next.0) as u64);
        batch.finish(self.position(), safe_time).map(Next::Batch).map(Some)
    }

    /// Adds at most `room` changes of this transaction; gives how many it has looked at.
    fn take_from(&mut self, logged: &LoggedTransaction, room: usize, batch: &mut BatchBuilder) -> usize {
        batch.begin_like(&Piece {
            transaction: logged.transaction.clone(),
            changes: 0..0,
            first_sequence: self.next.1 as u64 + 1,
            first: self.next.1 == 0,
            end: None,
        });
        let mut looked_at = 0;
        for change in logged.changes.iter().skip(self.next.1).take(room) {
            if !self.is_copied(change) {
                batch.skip_to(self.next.1 as u64 + 1);
                write(change, batch);
            }
            self.next.1 += 1;
            looked_at += 1;
        }
        // An empty transaction takes room too, so that a batch ends.
        looked_at.max(1)
    }

    fn is_copied(&self, change: &Logged) -> bool {
        match change {
            Logged::Change { schema, .. } => {
                self.copied.get(&schema.name).is_some_and(|&point| (self.next.0 as u64) < point)
            }
            Logged::Message { .. } => false,
        }
    }

    /// The place after what was given. Within a transaction its token is the start of it: a reader
    /// that resumes there gives the transaction again, whole.
    fn position(&self) -> Position {
        match self.next {
            (whole, 0) => position(whole as u64),
            (whole, changes) => {
                let rank = Rank::of_change(&prefix(whole as u64 + 1), changes as u64);
                Position::new(rank, whole.to_string())
            }
        }
    }
}

impl Log {
    /// Now. Later transactions are committed after it.
    fn tick(&mut self) -> Option<Timestamp> {
        self.clock = self.clock.max(Some(Timestamp::now()));
        self.clock
    }
}

/// Writes a change as the log has it.
fn write(change: &Logged, batch: &mut BatchBuilder) {
    match change {
        Logged::Message { prefix, content } => batch.message(prefix, content),
        Logged::Change { op, schema, old, new } => {
            let schema = batch.schema(schema);
            batch.change(*op, schema);
            if let Some((image, row)) = old {
                batch.old_row(*image);
                row.iter().for_each(|value| batch.push(value.as_ref()));
            }
            if let Some(row) = new {
                batch.new_row();
                row.iter().for_each(|value| batch.push(value.as_ref()));
            }
        }
    }
}

#[async_trait]
impl ChangeReader for MemoryReader {
    async fn next(&mut self) -> Result<Next> {
        let shared = Arc::clone(&self.source.shared);
        loop {
            // Asked for before looking: an append between the look and the wait wakes it too.
            let appended = shared.appended.notified();
            // Nothing is awaited between taking and returning: dropping this call loses nothing.
            if let Some(next) = self.take(false)? {
                return Ok(next);
            }
            if tokio::time::timeout(self.source.heartbeat, appended).await.is_err()
                && let Some(next) = self.take(true)?
            {
                return Ok(next);
            }
        }
    }

    async fn acknowledge(&mut self, through: Option<&Position>) -> Result<()> {
        let Some(through) = through.map(number).transpose()? else { return Ok(()) };
        if through > self.next.0 as u64 {
            return Err(Error::fatal(format!("transaction {through} was acknowledged before it was read")));
        }
        let mut log = self.source.log();
        log.acknowledged = log.acknowledged.max(through);
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
