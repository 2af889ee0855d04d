//! Reads one shard.

use std::sync::Arc;
use std::time::Duration;

use anabranch_core::{
    BatchBuilder, ChangeBatch, ChangeReader, Error, Next, Partition, PartitionId, Position, Result, StartFrom,
    Timestamp,
};
use async_trait::async_trait;
use aws_sdk_dynamodbstreams::operation::get_records::GetRecordsError;
use aws_sdk_dynamodbstreams::types::ShardIteratorType;
use tokio::time::Instant;

use super::children::{Children, Found};
use super::pace::Pace;
use super::position::Token;
use super::setup::{COPY_AGAIN, Table};
use super::shards::{Listing, vanished_stream};
use super::{Connected, RETENTION, record};
use crate::answer::{self, Call};
use crate::decode::wire::Records;
use crate::error::{classify, code, is_throttle};

/// A quiet shard gives an empty batch this often.
const HEARTBEAT: Duration = Duration::from_secs(2);

/// `ApproximateCreationDateTime` has whole seconds and is approximate: a later record may carry a
/// time that is earlier by less than this.
const APPROXIMATE: i64 = 5_000_000;

/// With `idle_safe_time`: a shard that gave nothing for so long, in so many reads, counts as read up
/// to when that began.
const IDLE: Duration = Duration::from_secs(30);
const IDLE_READS: u32 = 10;

/// Calls that fail one after another before the pipeline begins again from its checkpoint.
const MAX_FAILURES: u32 = 6;

/// Iterators that expire one after another although nothing lies between their making and their use.
const MAX_EXPIRED: u32 = 5;

/// Reads a shard from a position to its end, and then finds its children.
pub(super) struct ShardReader {
    connected: Connected,
    table: Arc<Table>,
    shard: String,
    partition: PartitionId,
    /// After the last batch that was given.
    position: Position,
    /// Where a new iterator begins.
    token: Token,
    iterator: Option<String>,
    call: Option<Read>,
    ended: Option<Children>,
    /// The reader saw the shard open: its end is news, and its children may not be listed yet.
    was_open: bool,
    /// The shard is not in the stream; what that means is being found out.
    vanished: Option<Listing>,
    pace: Pace,
    heartbeat: Instant,
    failures: u32,
    expired: u32,
    safe_time: SafeTime,
}

impl ShardReader {
    pub(super) fn new(
        connected: Connected,
        table: Arc<Table>,
        shard: &str,
        partition: &Partition,
        from: &StartFrom,
    ) -> Result<Self> {
        let start = || partition.start.clone().unwrap_or_default();
        let position = match &from.position {
            Some(p) if p.token.is_empty() => Position::new(p.rank.clone(), start().token),
            Some(p) => p.clone(),
            None => start(),
        };
        let token = Token::parse(&position.token)?;
        let copied = from.snapshots.get(&table.layout.schema().name);
        // By this machine's clock, so told in the servers' time.
        let age = copied.and_then(|c| c.finished_at).map(|t| Timestamp::now().micros_since(t));
        let inherited = match &token {
            Token::Start(start) => start.safe,
            Token::After(_) => None,
        };
        let since = match &token {
            Token::Start(start) => start.since,
            Token::After(_) => None,
        };
        connected.needed().opened(&partition.id, since);
        let pace = Pace::new(connected.settings.poll);
        let safe_time = SafeTime {
            now: inherited,
            visible_from: age.map(|age| connected.now().minus_micros(age)),
            idle_since: None,
            idle_reads: 0,
        };
        Ok(Self {
            connected,
            table,
            shard: shard.to_owned(),
            partition: partition.id.clone(),
            position,
            token,
            iterator: None,
            call: None,
            ended: None,
            was_open: false,
            vanished: None,
            pace,
            // The first word comes at once: a child has its parent's safe time.
            heartbeat: Instant::now(),
            failures: 0,
            expired: 0,
            safe_time,
        })
    }

    fn heartbeat(&mut self) -> Result<Next> {
        self.heartbeat = Instant::now() + HEARTBEAT;
        let batch = BatchBuilder::new(self.partition.clone());
        batch.finish(self.position.clone(), self.safe_time.visible()).map(Next::Batch)
    }

    /// One read; `Some` if it gave a batch. Cancel safe: a call goes on when this is dropped, and is
    /// waited for by the next.
    async fn read(&mut self) -> Result<Option<ChangeBatch>> {
        if self.call.is_none() {
            self.pace.wait().await;
            let Some(iterator) = self.iterator.clone() else {
                self.new_iterator().await?;
                return Ok(None);
            };
            self.call = Some(Read::start(&self.connected, iterator)?);
        }
        let Some(call) = &mut self.call else { return Ok(None) };
        let asked = call.asked;
        let answer = call.call.answer().await;
        self.call = None;
        let e = match answer.map_err(|e| Error::fatal("a read of a shard panicked").because(e))? {
            Ok(answer) => return self.page(&answer, asked),
            Err(e) => e,
        };
        match code(&e) {
            Some("ExpiredIteratorException") => self.expired(),
            Some("TrimmedDataAccessException") => self.trimmed(),
            Some("ResourceNotFoundException") => {
                self.vanished = Some(Listing::all());
                Ok(())
            }
            Some(c) if is_throttle(c) => {
                self.pace.throttled();
                Ok(())
            }
            _ => self.failed(classify("dynamodb:GetRecords", format!("the shard {}", self.shard), e)),
        }
        .map(|()| None)
    }

    /// Not to be dropped in the middle: so nothing is awaited here.
    fn page(&mut self, answer: &[u8], asked: Timestamp) -> Result<Option<ChangeBatch>> {
        let mut page = match Records::read(answer) {
            Ok(page) => page,
            // Of something on the way, perhaps.
            Err(e) => {
                let strange =
                    format!("dynamodb:GetRecords on the shard {}: the answer is not as documented", self.shard);
                return self.failed(Error::transient(strange).because(e)).map(|()| None);
            }
        };
        (self.failures, self.expired) = (0, 0);
        self.iterator = page.next_shard_iterator.take();
        if self.iterator.is_none() {
            self.ended = Some(Children::of(&self.shard, self.was_open));
        }
        self.was_open = true;
        let records = page.records();
        if let Some(iterator) = self.iterator.clone().filter(|_| !records.is_empty()) {
            // More may be there: it is read while this page is decoded and applied.
            self.call = Some(Read::start(&self.connected, iterator)?);
        }
        let mut batch = BatchBuilder::new(self.partition.clone());
        let Some(page) = record::decode(&self.connected.settings, &self.table, records, &mut batch)? else {
            self.pace.idle();
            self.safe_time.idle(asked, self.connected.settings.idle_safe_time);
            self.connected.needed().idle(&self.partition, asked);
            return Ok(None);
        };
        self.pace.busy();
        self.heartbeat = Instant::now() + HEARTBEAT;
        self.token = Token::parse(&page.end.token)?;
        self.position = page.end;
        if let Some((first, last)) = page.times {
            self.safe_time.records(last);
            self.connected.needed().given(&self.partition, &self.position.rank, first, last);
        }
        tracing::trace!(shard = %self.partition, records = records.len(), bytes = page.bytes, "read");
        batch.finish(self.position.clone(), self.safe_time.visible()).map(Some)
    }

    /// Asks for an iterator at the token. Cancel safe.
    async fn new_iterator(&mut self) -> Result<()> {
        let (kind, number) = match &self.token {
            Token::After(number) => (ShardIteratorType::AfterSequenceNumber, Some(number.clone())),
            Token::Start(start) => match &start.first {
                // Not the trim horizon: that would begin behind what was trimmed, and tell nobody.
                Some(first) => (ShardIteratorType::AtSequenceNumber, Some(first.clone())),
                None => (ShardIteratorType::TrimHorizon, None),
            },
        };
        if kind == ShardIteratorType::TrimHorizon {
            self.check_horizon()?;
        }
        let stream = self.table.stream()?;
        let call = self.connected.clients().await?.streams.get_shard_iterator().stream_arn(&stream.arn);
        let call = call.shard_id(&self.shard).shard_iterator_type(kind).set_sequence_number(number);
        match call.send().await {
            Ok(answer) => {
                self.iterator = answer.shard_iterator;
                Ok(())
            }
            Err(e) => match code(&e) {
                Some("TrimmedDataAccessException") => self.trimmed(),
                Some("ResourceNotFoundException") => {
                    self.vanished = Some(Listing::all());
                    Ok(())
                }
                Some(c) if is_throttle(c) => {
                    self.pace.throttled();
                    Ok(())
                }
                _ => self.failed(classify("dynamodb:GetShardIterator", format!("the shard {}", self.shard), e)),
            },
        }
    }

    /// A call failed; the same one is made again a few times before the whole pipeline begins anew.
    fn failed(&mut self, error: Error) -> Result<()> {
        self.failures += 1;
        if error.kind() != anabranch_core::ErrorKind::Transient || self.failures >= MAX_FAILURES {
            return Err(error);
        }
        tracing::debug!(shard = %self.partition, error = %error.report(), "asked again");
        self.pace.throttled();
        Ok(())
    }

    fn expired(&mut self) -> Result<()> {
        self.iterator = None;
        self.expired += 1;
        if self.expired >= MAX_EXPIRED {
            return Err(Error::transient(format!("iterators of the shard {} expire at once", self.shard))
                .hint("compare the clocks of this machine and of the server"));
        }
        Ok(())
    }

    /// What the iterator points at was trimmed: a gap, unless nothing that is needed lay there.
    fn trimmed(&mut self) -> Result<()> {
        self.iterator = None;
        if let Token::Start(start) = &mut self.token
            && start.first.is_some()
            && start.since.is_some()
        {
            // Trimmed is what is older than the retention: older than the copy, or than the pipeline.
            start.first = None;
            return self.check_horizon();
        }
        Err(self.gap("records after it were trimmed before they were read"))
    }

    /// Whether the trim horizon still lies before the first record that is needed.
    fn check_horizon(&self) -> Result<()> {
        let Token::Start(start) = &self.token else { return Ok(()) };
        let Some(since) = start.since else { return Ok(()) };
        if self.connected.now().micros_since(since) < RETENTION.as_micros() as i64 {
            return Ok(());
        }
        Err(self.gap(&format!(
            "it was to be read from {since} on, which is more than 24 hours ago: the start of it may be trimmed"
        )))
    }

    fn gap(&self, what: &str) -> Error {
        let at = match &self.token {
            Token::After(number) => format!("sequence number {number}"),
            Token::Start(_) => "its start".to_owned(),
        };
        Error::fatal(format!("the table {}, shard {}, at {at}: {what}", self.table.name, self.shard)).hint(COPY_AGAIN)
    }

    /// The shard is not there. A stream that is gone is told by its listing.
    async fn vanish(&mut self) -> Result<Option<Vec<Partition>>> {
        let Some(listing) = &mut self.vanished else { return Ok(None) };
        let Some(listed) = listing.step(&self.connected, &self.table).await? else { return Ok(None) };
        self.vanished = None;
        if listed.shards.contains_key(&self.shard) {
            // It is listed and yet not there: asked again, a few times.
            return self
                .failed(Error::transient(format!("the shard {} is listed and not there", self.shard)))
                .map(|()| None);
        }
        if listed.shards.is_empty() && !listed.enabled {
            return Err(vanished_stream(&self.table));
        }
        let unread = matches!(&self.token, Token::Start(start) if start.since.is_some());
        if !unread {
            return Err(self.gap("the shard is no longer in the stream: what was not read of it is lost"));
        }
        // It was there when the pipeline began, and all of it was older than that.
        self.check_horizon()?;
        let children = Children::of(&self.shard, false);
        Ok(Some(children.partitions(&self.table, &listed, self.safe_time.now)))
    }

    async fn step(&mut self) -> Result<Option<Next>> {
        if let Some(children) = &mut self.ended {
            return Ok(match children.step(&self.connected, &self.table, self.safe_time.now).await? {
                Found::NotYet => None,
                Found::Children(children) => Some(Next::Closed { children }),
            });
        }
        if self.vanished.is_some() {
            return Ok(self.vanish().await?.map(|children| Next::Closed { children }));
        }
        Ok(self.read().await?.map(Next::Batch))
    }
}

#[async_trait]
impl ChangeReader for ShardReader {
    async fn next(&mut self) -> Result<Next> {
        loop {
            if Instant::now() >= self.heartbeat {
                return self.heartbeat();
            }
            if let Some(next) = self.step().await? {
                return Ok(next);
            }
        }
    }

    async fn acknowledge(&mut self, through: Option<&Position>) -> Result<()> {
        if let Some(through) = through {
            self.connected.needed().durable(&self.partition, &through.rank);
        }
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

impl Drop for ShardReader {
    fn drop(&mut self) {
        self.connected.needed().closed(&self.partition);
    }
}

/// A call of `GetRecords` under way.
struct Read {
    asked: Timestamp,
    call: Call<GetRecordsError>,
}

impl Read {
    fn start(connected: &Connected, iterator: String) -> Result<Self> {
        let clients = connected.connected()?;
        let call = clients.streams.get_records().shard_iterator(iterator);
        let reads = Arc::clone(&clients.reads);
        let asked = connected.now();
        // The semaphore is never closed: without a permit the call is made all the same.
        let call = Call::start(async move {
            let _permit = reads.acquire_owned().await;
            answer::body(Box::pin(call.send())).await
        });
        Ok(Self { asked, call })
    }
}

/// Up to which time everything of the shard was given.
///
/// The rule: records of a shard come in the order in which they were made, so what follows a record
/// of time `t` was made at `t` or later, up to how approximate these times are. On an idle shard it
/// does not move: an empty page does not tell that nothing is there (see `idle_safe_time`).
#[derive(Debug)]
struct SafeTime {
    now: Option<Timestamp>,
    /// The replay after a copy has to pass the copy's end: until then rows may be older than they were.
    visible_from: Option<Timestamp>,
    idle_since: Option<(Timestamp, Instant)>,
    idle_reads: u32,
}

impl SafeTime {
    fn records(&mut self, last: Timestamp) {
        self.now = self.now.max(Some(last.minus_micros(APPROXIMATE)));
        self.idle_since = None;
        self.idle_reads = 0;
    }

    fn idle(&mut self, asked: Timestamp, counts: bool) {
        if !counts {
            return;
        }
        let (since, began) = *self.idle_since.get_or_insert((asked, Instant::now()));
        self.idle_reads += 1;
        if self.idle_reads >= IDLE_READS && began.elapsed() >= IDLE {
            self.now = self.now.max(Some(since.minus_micros(IDLE.as_micros() as i64)));
            // The next row of empty reads begins here.
            self.idle_since = Some((asked, Instant::now()));
            self.idle_reads = 0;
        }
    }

    fn visible(&self) -> Option<Timestamp> {
        self.now.filter(|t| self.visible_from.is_none_or(|from| *t >= from))
    }
}
