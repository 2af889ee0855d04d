//! Reads one partition.

use std::future::ready;
use std::sync::Arc;

use anabranch_core::{ChangeReader, Error, Next, Partition, PartitionId, Position, Result};
use async_trait::async_trait;

use super::Prepared;
use super::assemble::Assembler;
use super::lineage::{self, Kind};
use super::marks::Mark;
use super::place;
use super::query::Window;
use crate::client::{Code, Instant, ReadAt, Rows, SpannerError};
use crate::decode::{self, Record};

/// With mutable key ranges Spanner wants an end at most 30 minutes ahead. A third of that leaves room for
/// a clock that is wrong. Seconds.
const MUTABLE_WINDOW: i64 = 600;

/// Reads one partition. What it has received lives in the struct, so that a dropped call loses nothing.
pub(crate) struct Reader {
    shared: Arc<Prepared>,
    id: PartitionId,
    /// `None`: the query for the initial partitions.
    token: Option<String>,
    /// Where the query began.
    from: Instant,
    rows: Option<Box<dyn Rows>>,
    assembler: Assembler,
    children: Vec<Partition>,
    /// Where the children begin.
    split: Option<Instant>,
    /// Mutable key ranges: where the partition is cut next.
    turn: Option<Turn>,
    end: Option<End>,
    mark: Mark,
}

/// Mutable key ranges: everything that one time brings a partition without a change in between. Waited for
/// until the next record: cut between two moves of one time, the part after both would have two names.
struct Turn {
    at: Instant,
    sequence: u32,
    begun: Vec<String>,
    from: Vec<String>,
    to: Vec<String>,
}

impl Turn {
    fn takes(&self, record: &Record) -> bool {
        matches!(record, Record::Start { at, .. } | Record::Event { at, .. } if *at == self.at)
    }
}

/// Why there is no more to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Closed,
    Stopped,
}

impl Reader {
    pub(crate) fn new(
        shared: Arc<Prepared>,
        partition: &Partition,
        kind: Kind,
        from: Instant,
        assembler: Assembler,
        mark: Mark,
    ) -> Self {
        let (token, end) = match kind {
            Kind::Root => (None, None),
            Kind::Token(token) => (Some(token), None),
            Kind::Gate => (None, Some(End::Closed)),
        };
        Self {
            shared,
            id: partition.id.clone(),
            token,
            from,
            rows: None,
            assembler,
            children: Vec::new(),
            split: None,
            turn: None,
            end,
            mark,
        }
    }

    /// The end of the query: the pipeline's, or that of a window.
    fn until(&self) -> Option<Instant> {
        let window = self.shared.stream.mutable.then(|| self.from.plus_seconds(MUTABLE_WINDOW));
        match (window, self.shared.end) {
            (Some(window), Some(end)) => Some(window.min(end)),
            (window, end) => window.or(end),
        }
    }

    async fn open(&mut self) -> Result<()> {
        let window = Window {
            stream: &self.shared.stream_name,
            dialect: self.shared.dialect,
            mutable: self.shared.stream.mutable,
            token: self.token.as_deref(),
            start: self.from,
            end: self.until(),
            heartbeat_ms: self.shared.heartbeat_ms,
        };
        let rows = self.shared.client.query(window.statement(), ReadAt::Strong).await;
        self.rows = Some(rows.map_err(|e| self.refused(e))?);
        Ok(())
    }

    /// Whether anything came that was not there when the query began.
    fn has_advanced(&self) -> bool {
        self.assembler.heard().is_some_and(|at| at > self.from)
    }

    fn on_row(&mut self, row: &crate::client::Row) -> Result<()> {
        let records = decode::row(self.shared.form, row).map_err(|e| {
            Error::fatal(format!("cannot read the change stream {}", self.shared.stream_name)).because(e)
        })?;
        for record in records {
            self.on_record(record)?;
        }
        Ok(())
    }

    fn on_record(&mut self, record: Record) -> Result<()> {
        if self.turn.as_ref().is_some_and(|turn| !turn.takes(&record)) {
            // It is the first one of what follows.
            self.take_turn();
        }
        if self.end.is_some() {
            return Ok(());
        }
        match record {
            Record::Data(record) => self.assembler.data(*record)?,
            Record::Heartbeat(at) => self.assembler.heartbeat(at),
            Record::Children(record) => {
                self.splits(record.start);
                self.children.extend(lineage::children(&self.id, record));
            }
            Record::Start { at, sequence, tokens } if self.token.is_none() => {
                if !self.assembler.skips(at, sequence) {
                    self.splits(at);
                    self.children.extend(lineage::begun(&self.id, at, tokens));
                }
            }
            Record::Start { at, sequence, tokens } => {
                if !self.assembler.skips(at, sequence) {
                    self.turn(at, sequence).begun.extend(tokens);
                }
            }
            Record::Event { at, sequence, from, to } => {
                let idle = from.is_empty() && to.is_empty();
                if self.token.is_none() || idle || self.assembler.skips(at, sequence) {
                    return Ok(());
                }
                if lineage::has_moved(&self.id, at) {
                    return Err(Error::fatal(format!(
                        "rows moved twice at {at} in one partition of the change stream {}, with changes in between: \
                         the order of their changes is not known",
                        self.shared.stream_name
                    ))
                    .hint(
                        "use a change stream with partition_mode = 'IMMUTABLE_KEY_RANGE', with a new pipeline and a \
                           snapshot",
                    ));
                }
                let turn = self.turn(at, sequence);
                turn.from.extend(from);
                turn.to.extend(to);
            }
            Record::End { at, .. } => {
                self.assembler.heartbeat(at);
                self.end = Some(End::Closed);
            }
        }
        Ok(())
    }

    fn turn(&mut self, at: Instant, sequence: u32) -> &mut Turn {
        let new = || Turn { at, sequence, begun: Vec::new(), from: Vec::new(), to: Vec::new() };
        let turn = self.turn.get_or_insert_with(new);
        turn.sequence = sequence;
        turn
    }

    /// Cuts the partition.
    fn take_turn(&mut self) {
        let (Some(turn), Some(token)) = (self.turn.take(), &self.token) else { return };
        self.children = lineage::begun(&self.id, turn.at, turn.begun).collect();
        if turn.from.is_empty() && turn.to.is_empty() {
            self.children.push(lineage::goes_on(&self.id, token, turn.at, turn.sequence));
        } else {
            let at = (turn.at, turn.sequence);
            self.children.extend(lineage::moved(&self.id, token, at, &turn.from, &turn.to));
        }
        self.splits(turn.at);
        self.close();
    }

    fn splits(&mut self, at: Instant) {
        self.split = Some(self.split.map_or(at, |s| s.min(at)));
    }

    /// Everything of this partition was received.
    fn close(&mut self) {
        if let Some(at) = self.split {
            self.assembler.ended(at);
        }
        self.end = Some(End::Closed);
        self.rows = None;
    }

    /// There is more, for another query.
    fn stop(&mut self) {
        self.assembler.stopped();
        self.end = Some(End::Stopped);
    }

    /// The query ended. A partition is over only if it told which go on, or at the end of the pipeline:
    /// else there is more to read, from what was heard last on.
    async fn on_end(&mut self) -> Result<()> {
        self.rows = None;
        self.take_turn();
        if self.end.is_some() {
            return Ok(());
        }
        if !self.children.is_empty() {
            self.close();
            return Ok(());
        }
        if self.has_advanced() && self.assembler.heard() < self.shared.end.or(Some(Instant::MAX)) {
            self.stop();
            return Ok(());
        }
        if let Some(end) = self.shared.end
            && self.until() == Some(end)
            && super::catalog::now(&*self.shared.client).await? > end
        {
            self.assembler.heartbeat(end);
            self.end = Some(End::Closed);
            return Ok(());
        }
        Err(Error::transient(format!(
            "a query of the change stream {} ended at once, without the partitions that go on",
            self.shared.stream_name
        )))
    }

    fn on_error(&mut self, e: SpannerError) -> Result<()> {
        self.rows = None;
        // More of its time may follow: it is read again.
        self.turn = None;
        // A long query is cut now and then: what came before is no failure.
        if e.code.is_transient() && self.has_advanced() {
            tracing::debug!(partition = %self.id, error = %e, "a change stream's query was cut");
            self.stop();
            return Ok(());
        }
        Err(self.refused(e))
    }

    fn refused(&self, e: SpannerError) -> Error {
        let name = &self.shared.stream_name;
        let past = e.message.contains("too far in the past") || e.message.contains("retention");
        match e.code {
            Code::OutOfRange | Code::InvalidArgument | Code::FailedPrecondition if past => Error::fatal(format!(
                "the change stream {name} no longer has the changes from {} on: they are lost to this pipeline",
                self.from
            ))
            .hint(
                "begin again with a new pipeline and a snapshot; a longer retention_period of the change stream, and of \
                 the database's version_retention_period, prevents it",
            )
            .because(e),
            Code::InvalidArgument | Code::NotFound | Code::OutOfRange if self.token.is_some() => Error::fatal(format!(
                "the change stream {name} does not know a partition that this pipeline was reading: was it dropped and \
                 created again?"
            ))
            .hint("begin again with a new pipeline and a snapshot")
            .because(e),
            _ => e.into_core(format!("cannot read the change stream {name}")),
        }
    }
}

#[async_trait]
impl ChangeReader for Reader {
    async fn next(&mut self) -> Result<Next> {
        loop {
            if let Some(batch) = self.assembler.take(self.end.is_some())? {
                return Ok(Next::Batch(batch));
            }
            match self.end {
                Some(End::Closed) => return Ok(Next::Closed { children: self.children.clone() }),
                Some(End::Stopped) => return Ok(Next::Stopped),
                None => {}
            }
            let Some(rows) = &mut self.rows else {
                self.open().await?;
                continue;
            };
            let row = tokio::select! {
                biased;
                // 1. What has arrived already goes into the batch.
                row = rows.next() => row,
                // 2. Nothing has: what there is goes out.
                () = ready(()), if self.assembler.has_news() => {
                    match self.assembler.take(true)? {
                        Some(batch) => return Ok(Next::Batch(batch)),
                        None => continue,
                    }
                }
            };
            match row {
                Ok(Some(row)) => self.on_row(&row)?,
                Ok(None) => self.on_end().await?,
                Err(e) => self.on_error(e)?,
            }
        }
    }

    /// Remembered, for the retention that is left. Spanner keeps what it keeps.
    async fn acknowledge(&mut self, through: Option<&Position>) -> Result<()> {
        if let Some(at) = through.and_then(|p| place::time(p).ok()) {
            self.mark.set(at);
        }
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
