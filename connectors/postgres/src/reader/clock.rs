//! The server's place and clock, asked about once a second: safe time and lag.
//!
//! A commit's time stamp is taken before its record is written to the log, so stamps are not monotone
//! in commit order, and a keepalive's time says nothing about what is still unsent. The rule here: ask
//! the server for its clock `t` and then for the end `L` of its log. Once everything before `L` was
//! read, whatever is still to come has its commit record after `L`: its stamp is younger than `t`,
//! less the moment between taking a stamp and writing the record, for which [`MARGIN`] allows.

//!
//! YugabyteDB has no end of its log to ask for. There transactions come in the order of their commit
//! times, so what has come tells how far it is, and on a quiet source a [`Beat`] makes something come.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use anabranch_core::{Error, Result, Timestamp};
use tokio::time::{Instant, sleep_until, timeout};

use crate::error::classify;
use crate::lsn::Lsn;
use crate::session::Session;

/// What a backend may take between its commit's time stamp and its commit record. It does nothing
/// but prepare the record in between; half a second covers a backend that loses its processor.
const MARGIN: Duration = Duration::from_millis(500);

/// How often the server is asked.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long to wait after a failure before asking again.
const PAUSE: Duration = Duration::from_secs(5);

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Answers that wait for the reader to get there. When it is so far behind, every second one is dropped.
const WAITING: usize = 4096;

/// The clock is read before the log's end: whatever is written after the end was stamped after the clock was read.
const SAMPLE: &str = "
SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8,
       CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()::text ELSE pg_current_wal_insert_lsn()::text END,
       pg_is_in_recovery()";

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Timestamp,
    end: Lsn,
    /// A standby's clock is not the one that stamps commits.
    standby: bool,
}

type Asking = Pin<Box<dyn Future<Output = Result<Option<Sample>>> + Send>>;

/// A statement that commits a transaction which the stream brings.
#[derive(Debug, Clone)]
pub(crate) struct Beat {
    pub(crate) statement: String,
    pub(crate) every: Duration,
}

/// Asks, and draws conclusions.
pub(crate) struct Clock {
    session: Session,
    asking: Option<Asking>,
    next: Instant,
    waiting: VecDeque<Sample>,
    safe_time: Option<Timestamp>,
    server_end: Option<Lsn>,
    beat: Option<Beat>,
    /// The last commit that came, and when it came first.
    heard: Option<(Timestamp, Instant)>,
}

impl Clock {
    pub(crate) fn new(session: Session, beat: Option<Beat>) -> Self {
        let (waiting, next) = (VecDeque::new(), Instant::now());
        Self { session, asking: None, next, waiting, safe_time: None, server_end: None, beat, heard: None }
    }

    /// Whether [`Clock::ask`] has something to do now.
    pub(crate) fn is_due(&self) -> bool {
        self.asking.is_some() || self.next <= Instant::now()
    }

    /// Waits until it is time to ask, asks, and keeps the answer. Cancel safe: the question lives in the struct.
    pub(crate) async fn ask(&mut self) {
        if self.asking.is_none() {
            sleep_until(self.next).await;
        }
        if let Some(beat) = &self.beat
            && self.asking.is_none()
            && let Some((_, at)) = self.heard.filter(|(_, at)| at.elapsed() < beat.every)
        {
            // What comes by itself is enough.
            self.next = at + beat.every;
            return;
        }
        let (session, beat) = (self.session.clone(), self.beat.clone());
        let asking = self.asking.get_or_insert_with(|| match beat {
            Some(beat) => Box::pin(commit(session, beat.statement)),
            None => Box::pin(sample(session)),
        });
        let answer = asking.await;
        self.asking = None;
        match answer {
            Ok(sample) => {
                self.next = Instant::now() + self.beat.as_ref().map_or(INTERVAL, |b| b.every);
                if let Some(sample) = sample {
                    self.keep(sample);
                }
            }
            Err(e) => {
                self.next = Instant::now() + PAUSE;
                tracing::warn!(error = %e.report(), "the server's clock could not be asked; safe time stands still");
            }
        }
    }

    fn keep(&mut self, sample: Sample) {
        self.server_end = Some(sample.end);
        if sample.standby {
            return;
        }
        if self.waiting.len() >= WAITING {
            let mut odd = false;
            self.waiting.retain(|_| {
                odd = !odd;
                odd
            });
        }
        self.waiting.push_back(sample);
    }

    /// The safe time once everything before `boundary` was read, or through the commit of this time. It
    /// never goes back.
    pub(crate) fn safe_time(&mut self, boundary: Lsn, committed: Option<Timestamp>) -> Option<Timestamp> {
        if let Some(committed) = committed.filter(|c| self.heard.is_none_or(|(heard, _)| heard < *c)) {
            self.heard = Some((committed, Instant::now()));
            // Another one may follow with the same time.
            self.safe_time = self.safe_time.max(Some(committed.minus_micros(1)));
        }
        while let Some(sample) = self.waiting.front().filter(|s| s.end <= boundary) {
            let safe = sample.at.minus_micros(MARGIN.as_micros() as i64);
            self.safe_time = self.safe_time.max(Some(safe));
            self.waiting.pop_front();
        }
        self.safe_time
    }

    /// Bytes of log that the server had beyond `boundary` when it was asked last.
    pub(crate) fn lag(&self, boundary: Lsn) -> Option<u64> {
        self.server_end.map(|end| end.since(boundary))
    }
}

async fn commit(session: Session, statement: String) -> Result<Option<Sample>> {
    let commit = async {
        let client = session.client().await?;
        client.batch_execute(&statement).await.map_err(|e| classify(e, "cannot write the heartbeat"))
    };
    let done = timeout(PATIENCE, commit).await.unwrap_or_else(|_| Err(Error::transient("no answer to the heartbeat")));
    done.map(|()| None)
}

async fn sample(session: Session) -> Result<Option<Sample>> {
    let ask = async {
        let client = session.client().await?;
        let row = client.query_one(SAMPLE, &[]).await.map_err(|e| classify(e, "cannot ask for the clock"))?;
        Ok(Some(Sample {
            at: Timestamp::from_micros(row.get(0)),
            end: before_page_header(row.get::<_, &str>(1).parse()?),
            standby: row.get(2),
        }))
    };
    timeout(PATIENCE, ask).await.unwrap_or_else(|_| Err(Error::transient("no answer about the clock")))
}

/// Where nothing was written after a page's header, the end of the log counts as that of the page
/// before: the reader's place would otherwise never get there on an idle server. Headers have 24 or
/// 40 bytes on pages of 8 KiB or more (`xlog_internal.h`), and the shortest record has 24.
fn before_page_header(end: Lsn) -> Lsn {
    const PAGE: u64 = 8192;
    const HEADER: u64 = 40;
    if end.0 % PAGE <= HEADER { Lsn(end.0 - end.0 % PAGE) } else { end }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_after_a_page_header_is_the_end_of_the_page_before() {
        assert_eq!(before_page_header(Lsn(8192 * 3 + 24)), Lsn(8192 * 3));
        assert_eq!(before_page_header(Lsn(8192 * 3 + 40)), Lsn(8192 * 3));
        assert_eq!(before_page_header(Lsn(8192 * 3)), Lsn(8192 * 3));
        assert_eq!(before_page_header(Lsn(8192 * 3 + 48)), Lsn(8192 * 3 + 48));
    }

    #[tokio::test]
    async fn safe_time_moves_when_the_reader_gets_there_and_never_back() {
        let endpoint = crate::Endpoint::parse("k", "postgresql://u@localhost/d").unwrap();
        let mut clock = Clock::new(Session::new(endpoint), None);
        let at = |s: i64| Timestamp::from_micros(s * 1_000_000);
        clock.keep(Sample { at: at(10), end: Lsn(100), standby: false });
        clock.keep(Sample { at: at(9), end: Lsn(200), standby: false });
        clock.keep(Sample { at: at(30), end: Lsn(300), standby: true });
        assert_eq!(clock.safe_time(Lsn(99), None), None);
        let first = clock.safe_time(Lsn(100), None);
        assert_eq!(first, Some(Timestamp::from_micros(9_500_000)));
        assert_eq!(clock.safe_time(Lsn(1000), None), first);
        assert_eq!(clock.lag(Lsn(250)), Some(50));
        for n in 0..10_000 {
            clock.keep(Sample { at: at(100 + n), end: Lsn(2000 + n as u64), standby: false });
        }
        assert!(clock.waiting.len() <= WAITING);
        assert_eq!(clock.safe_time(Lsn(u64::MAX), None), Some(Timestamp::from_micros((10_099) * 1_000_000 - 500_000)));
    }
}
