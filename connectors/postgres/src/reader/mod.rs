//! Reads the stream of one slot.

pub(crate) mod assemble;
mod clock;
mod leaf;
mod output;
pub(crate) mod relation;
mod streams;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use anabranch_core::{ChangeReader, Error, ErrorKind, Next, Position, Result, Timestamp};
use async_trait::async_trait;
use futures_util::FutureExt;
use tokio::time::{Instant, sleep_until};

use crate::decode::frame::{Frame, standby_status};
use crate::error::protocol;
use crate::lsn::Lsn;
use crate::session::Session;
use crate::wire::{Connection, Event};
use assemble::{Assembler, Step};
pub(crate) use clock::Beat;
use clock::Clock;
use relation::{Described, Resolved, resolve};

/// On a quiet source: how often the server is asked for its place, and a heartbeat is given.
const BEAT: Duration = Duration::from_secs(1);

/// A server that does not even answer this many requests in a row is not there any more. Counted in
/// beats, not in time: while the pipeline has no room, nobody listens.
const SILENT_BEATS: u32 = 60;

/// So many messages of a spill file are read before others have their turn on this thread: a
/// millisecond or two. What is left out (rolled back, in a copy already) fills no batch.
const REPLAY_RUN: u32 = 8192;

/// How long an error that ends the pipeline waits for what was read before it to be durable.
const HOLD: Duration = Duration::from_secs(60);

type Looking = Pin<Box<dyn Future<Output = Result<Resolved>> + Send>>;

/// The reader of a slot. Everything that was received lies in this struct: any future may be dropped.
pub(crate) struct Reader {
    connection: Connection,
    assembler: Assembler,
    clock: Clock,
    session: Session,
    publication: String,
    /// A table that the stream described and the catalog has to explain before reading goes on.
    unknown: Option<Described>,
    looking: Option<Looking>,
    /// What ended the reading, given once everything before it was given.
    failure: Option<Error>,
    failed: bool,
    /// The failure is given by then at the latest.
    held_until: Instant,
    /// Where reading began.
    begun: Lsn,
    /// Everything before this is durable downstream.
    acknowledged: Lsn,
    beat: Instant,
    silent_beats: u32,
}

/// How far the received bytes were consumed.
enum Consumed {
    /// All of them.
    All,
    /// The batch is full, or something ended the reading.
    Enough,
    /// The catalog has to be asked.
    Unknown,
    /// A part of a spill file.
    Pause,
}

impl Reader {
    /// Reads a connection that streams. `beat` keeps safe time moving where transactions carry it.
    pub(crate) fn new(
        connection: Connection,
        assembler: Assembler,
        session: Session,
        publication: String,
        beat: Option<Beat>,
    ) -> Self {
        let begun = assembler.boundary();
        Self {
            begun,
            held_until: Instant::now(),
            connection,
            assembler,
            clock: Clock::new(session.clone(), beat),
            session,
            publication,
            unknown: None,
            looking: None,
            failure: None,
            failed: false,
            acknowledged: Lsn::default(),
            beat: Instant::now() + BEAT,
            silent_beats: 0,
        }
    }

    async fn advance(&mut self) -> Result<Next> {
        // While the stream is busy nothing waits below, so the clock is looked after here.
        if self.clock.is_due() {
            let _ = self.clock.ask().now_or_never();
        }
        loop {
            if self.is_held() {
                sleep_until(self.beat.min(self.held_until)).await;
                return self.cut();
            }
            if let Some(e) = self.failure.take_if(|_| !self.assembler.has_changes()) {
                return Err(e);
            }
            if self.failed {
                return self.give();
            }
            self.look_up().await?;
            match self.consume() {
                Ok(Consumed::Enough) => return self.give(),
                Ok(Consumed::Unknown) => continue,
                // Nothing is received meanwhile: heartbeats still come, and with them acknowledgements,
                // which keep the connection alive.
                Ok(Consumed::Pause) if Instant::now() >= self.beat => return self.give(),
                Ok(Consumed::Pause) => {
                    tokio::task::yield_now().await;
                    continue;
                }
                Ok(Consumed::All) => {}
                Err(e) => {
                    self.fail(e);
                    continue;
                }
            }
            // A transaction's rest follows at once; parts of it are of no use to most.
            let whole = self.assembler.has_changes() && !self.assembler.in_transaction();
            match self.connection.fill_now().await {
                Ok(0) if whole => return self.give(),
                Ok(0) => {}
                Ok(_) => {
                    self.silent_beats = 0;
                    if Instant::now() >= self.beat {
                        return self.give_beat();
                    }
                    continue;
                }
                Err(e) => {
                    self.fail(e);
                    continue;
                }
            }
            tokio::select! {
                biased;
                // 1. Data before all else.
                filled = self.connection.fill() => match filled {
                    Ok(_) => self.silent_beats = 0,
                    Err(e) => self.fail(e),
                },
                // 2. The clock, so that safe time moves with what comes.
                () = self.clock.ask() => {}
                // 3. Nothing for a while.
                () = sleep_until(self.beat) => return self.give_beat(),
            }
        }
    }

    /// Asks the catalog about a table, if one is waiting. Cancel safe: the question lives in the struct.
    async fn look_up(&mut self) -> Result<()> {
        let Some(unknown) = &self.unknown else { return Ok(()) };
        let looking = self
            .looking
            .get_or_insert_with(|| Box::pin(resolve(self.session.clone(), self.publication.clone(), unknown.clone())));
        // An error leaves the table waiting: the next call asks again.
        let found = looking.await.inspect_err(|_| self.looking = None)?;
        (self.looking, self.unknown) = (None, None);
        if let Err(e) = self.assembler.resolved(found) {
            self.fail(e);
        }
        Ok(())
    }

    /// Takes in what was received. Does not wait.
    fn consume(&mut self) -> Result<Consumed> {
        if self.failed {
            return Ok(Consumed::Unknown);
        }
        let mut replayed = 0;
        loop {
            if self.assembler.is_full() {
                return Ok(Consumed::Enough);
            }
            if replayed == REPLAY_RUN {
                return Ok(Consumed::Pause);
            }
            match self.assembler.replay()? {
                None => {}
                Some(Step::Done) => {
                    replayed += 1;
                    continue;
                }
                Some(Step::Describe(unknown)) => {
                    self.unknown = Some(unknown);
                    return Ok(Consumed::Unknown);
                }
            }
            let body = match self.connection.buffered()? {
                None => return Ok(Consumed::All),
                Some(Event::Data(range)) => self.connection.body(range),
                Some(Event::Done) => return Err(Error::transient("the server ended the replication: it shuts down")),
            };
            match Frame::decode(body).map_err(|e| protocol("cannot read a replication frame").because(e))? {
                Frame::Data(message) => {
                    if let Step::Describe(unknown) = self.assembler.apply(message)? {
                        self.unknown = Some(unknown);
                        return Ok(Consumed::Unknown);
                    }
                }
                Frame::Keepalive { wal_end, reply } => {
                    self.assembler.keepalive(wal_end);
                    if reply {
                        self.queue_status(false);
                    }
                }
            }
        }
    }

    /// Keeps an error until everything that was read before it is given.
    fn fail(&mut self, e: Error) {
        self.held_until = Instant::now() + HOLD;
        self.failure = Some(e);
        self.failed = true;
    }

    /// Whether the failure waits until everything before it is durable, and told so: it ends the pipeline, for an
    /// operator to mend what it names, and the next run is to begin behind all that was before. Were it given at
    /// once, what was read and not applied yet would be read again, and end there again.
    fn is_held(&self) -> bool {
        let fatal = self.failure.as_ref().is_some_and(|e| e.kind() == ErrorKind::Fatal);
        let boundary = self.assembler.boundary();
        let awaited = boundary > self.begun && boundary > self.acknowledged && Instant::now() < self.held_until;
        fatal && awaited && !self.assembler.has_changes()
    }

    /// What there is, with the request that makes an idle server tell how far it is.
    fn give_beat(&mut self) -> Result<Next> {
        self.silent_beats += 1;
        if self.silent_beats > SILENT_BEATS {
            self.fail(Error::transient("the server does not answer any more"));
        }
        self.queue_status(true);
        self.give()
    }

    /// Cuts the batch. Nothing is awaited from here to the caller.
    fn give(&mut self) -> Result<Next> {
        if self.failed && !self.assembler.has_changes() {
            return Err(self.failure.take().unwrap_or_else(|| Error::transient("this reader ended; open another")));
        }
        self.cut()
    }

    fn cut(&mut self) -> Result<Next> {
        self.beat = Instant::now() + BEAT;
        let boundary = self.assembler.boundary();
        let safe_time = self.clock.safe_time(boundary, self.assembler.committed());
        let lag = self.clock.lag(boundary);
        self.assembler.take(safe_time, lag).map(Next::Batch)
    }

    /// Tells what is durable; never more.
    fn queue_status(&mut self, reply: bool) {
        let status = standby_status(self.acknowledged, Timestamp::now(), reply);
        self.connection.queue_copy_data(&status);
    }
}

#[async_trait]
impl ChangeReader for Reader {
    async fn next(&mut self) -> Result<Next> {
        self.advance().await
    }

    async fn acknowledge(&mut self, through: Option<&Position>) -> Result<()> {
        if let Some(position) = through {
            self.acknowledged = self.acknowledged.max(Lsn::of_token(position)?);
        }
        self.queue_status(false);
        self.connection.send_now().await
    }

    async fn close(self: Box<Self>) -> Result<()> {
        self.connection.close().await;
        Ok(())
    }
}
