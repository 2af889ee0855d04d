//! The server's place and clock, asked about once a second: safe time and lag.
//!
//! A commit's time stamp is taken before its record is written to the log, so stamps are not monotone
//! in commit order, and a keepalive's time says nothing about what is still unsent. The rule here: ask
//! the server for its clock `t`, then for the transactions that have written and not ended, then for the end `L`
//! of its log. What has written nothing yet takes its stamp after `t`. What has ended has its record before `L`.
//! Of what was under way at `t` a transaction may have taken its stamp already, and still have to write its record
//! (on a server that stalls, in its log or as a whole, for long); but not one that waited for its client after
//! `t`, or that has begun another statement since. So `t` is safe at the first `L` by which all that were under way
//! have ended or been seen so.
//!
//! Only one single statement that goes on and on leaves it open: after [`PATIENCE_WITH_STATEMENTS`] it is taken for
//! one that has not come to its end.
//!
//! YugabyteDB has no end of its log to ask for. There transactions come in the order of their commit
//! times, so what has come tells how far it is, and on a quiet source a [`Beat`] makes something come.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use anabranch_core::{Error, Result, Timestamp};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_postgres::SimpleQueryMessage;

use crate::error::classify;
use crate::lsn::Lsn;
use crate::session::Session;

/// A statement that has gone on for so long since a moment had not taken its commit's stamp before that moment: all
/// that comes after the stamp is the record. Nothing else is known of it from outside.
const PATIENCE_WITH_STATEMENTS: Duration = Duration::from_secs(10);

/// How often the server is asked.
const INTERVAL: Duration = Duration::from_secs(1);

/// How soon it is asked again where something was under way: most transactions end at once.
const SOON: Duration = Duration::from_millis(250);

/// How long to wait after a failure before asking again.
const PAUSE: Duration = Duration::from_secs(5);

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Answers that wait for the reader to get there. When it is so far behind, every second one is dropped.
const WAITING: usize = 4096;

/// Three statements, each of which sees what there is when it is run: the clock; what has written and is under way
/// (what waits for its client in its transaction is not at its commit, and neither is anything before its first
/// write, by which it gets its number); the end of the log. A user who may not see the state of others' sessions
/// sees their numbers.
const SAMPLE: &str = "
SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8, pg_is_in_recovery();
SELECT backend_xid::text, (extract(epoch FROM query_start) * 1000000)::int8 FROM pg_stat_activity
  WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
    AND coalesce(state, '') NOT IN ('idle in transaction', 'idle in transaction (aborted)')
  UNION ALL SELECT transaction::text, NULL FROM pg_prepared_xacts;
SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()::text ELSE pg_current_wal_insert_lsn()::text END";

#[derive(Debug, Clone)]
struct Sample {
    at: Timestamp,
    running: Vec<Running>,
    end: Lsn,
    /// A standby's clock is not the one that stamps commits.
    standby: bool,
}

/// A transaction that may be at its commit.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Running {
    xid: u32,
    /// When its statement began, if that can be seen.
    since: Option<Timestamp>,
}

impl Sample {
    /// Whether this transaction may have been at its commit at that earlier time and still be.
    fn may_be_of(&self, xid: u32, at: Timestamp) -> bool {
        self.running.iter().any(|r| r.xid == xid && r.since.is_none_or(|since| since <= at))
    }
}

/// A time, and the transactions that may have a stamp of before it and no record yet.
#[derive(Debug)]
struct Unsettled {
    at: Timestamp,
    running: Vec<u32>,
}

/// A time before which every commit has its record before this end of the log.
#[derive(Debug)]
struct Settled {
    at: Timestamp,
    end: Lsn,
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
    unsettled: Vec<Unsettled>,
    waiting: VecDeque<Settled>,
    safe_time: Option<Timestamp>,
    server_end: Option<Lsn>,
    beat: Option<Beat>,
    /// The last commit that came, and when it came first.
    heard: Option<(Timestamp, Instant)>,
}

impl Clock {
    pub(crate) fn new(session: Session, beat: Option<Beat>) -> Self {
        let (waiting, next) = (VecDeque::new(), Instant::now());
        Self {
            session,
            asking: None,
            next,
            unsettled: Vec::new(),
            waiting,
            safe_time: None,
            server_end: None,
            beat,
            heard: None,
        }
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
                if let Some(sample) = sample {
                    self.keep(sample);
                }
                let interval = if self.unsettled.len() == 1 { SOON } else { INTERVAL };
                self.next = Instant::now() + self.beat.as_ref().map_or(interval, |b| b.every);
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
        let all = sample.running.iter().filter(|r| r.since.is_none_or(|since| since <= sample.at));
        self.unsettled.push(Unsettled { at: sample.at, running: all.map(|r| r.xid).collect() });
        let mut settled = None;
        self.unsettled.retain_mut(|time| {
            time.running.retain(|xid| sample.may_be_of(*xid, time.at));
            let long = sample.at.micros_since(time.at) >= PATIENCE_WITH_STATEMENTS.as_micros() as i64;
            let open = !time.running.is_empty() && !long;
            if !open {
                settled = settled.max(Some(time.at));
            }
            open
        });
        let Some(at) = settled else { return };
        if self.waiting.len() >= WAITING {
            let mut odd = false;
            self.waiting.retain(|_| {
                odd = !odd;
                odd
            });
        }
        self.waiting.push_back(Settled { at, end: sample.end });
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
            // A stamp of the same microsecond may follow.
            let safe = sample.at.minus_micros(1);
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
        let answers = client.simple_query(SAMPLE).await.map_err(|e| classify(e, "cannot ask for the clock"))?;
        read(&answers)
            .ok_or_else(|| Error::fatal("the server's clock, transactions and place cannot be read"))
            .map(Some)
    };
    timeout(PATIENCE, ask).await.unwrap_or_else(|_| Err(Error::transient("no answer about the clock")))
}

/// The answers to [`SAMPLE`].
fn read(answers: &[SimpleQueryMessage]) -> Option<Sample> {
    let rows_of = |messages: &[SimpleQueryMessage]| -> Vec<Vec<Option<String>>> {
        let rows = messages.iter().filter_map(|m| match m {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        rows.map(|row| (0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect()).collect()
    };
    let mut each = answers.split(|m| matches!(m, SimpleQueryMessage::CommandComplete(_))).map(rows_of);
    let (clock, running, end) = (each.next()?, each.next()?, each.next()?);
    let [Some(at), Some(standby)] = clock.first()?.as_slice() else { return None };
    let time = |text: &str| text.parse().ok().map(Timestamp::from_micros);
    let running = running.iter().map(|row| match row.as_slice() {
        [Some(xid), since] => Some(Running { xid: xid.parse().ok()?, since: since.as_deref().and_then(time) }),
        _ => None,
    });
    let end: Lsn = end.first()?.first()?.as_deref()?.parse().ok()?;
    Some(Sample {
        at: time(at)?,
        running: running.collect::<Option<_>>()?,
        end: before_page_header(end),
        standby: standby == "t",
    })
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

    fn clock() -> Clock {
        let endpoint = crate::Endpoint::parse("k", "postgresql://u@localhost/d").unwrap();
        Clock::new(Session::new(endpoint), None)
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    /// At this time, with these transactions and when their statements began, and with this end.
    fn sample(seconds: i64, running: &[(u32, Option<i64>)], end: u64) -> Sample {
        let running = running.iter().map(|(xid, since)| Running { xid: *xid, since: since.map(at) }).collect();
        Sample { at: at(seconds), running, end: Lsn(end), standby: false }
    }

    fn just_before(seconds: i64) -> Option<Timestamp> {
        Some(at(seconds).minus_micros(1))
    }

    #[tokio::test]
    async fn safe_time_moves_when_the_reader_gets_there_and_never_back() {
        let mut clock = clock();
        clock.keep(sample(10, &[], 100));
        clock.keep(sample(9, &[], 200));
        clock.keep(Sample { standby: true, ..sample(30, &[], 300) });
        assert_eq!(clock.safe_time(Lsn(99), None), None);
        assert_eq!(clock.safe_time(Lsn(100), None), just_before(10));
        assert_eq!(clock.safe_time(Lsn(1000), None), just_before(10));
        assert_eq!(clock.lag(Lsn(250)), Some(50));
        for n in 0..10_000 {
            clock.keep(sample(100 + n, &[], 2000 + n as u64));
        }
        assert!(clock.waiting.len() <= WAITING);
        assert_eq!(clock.safe_time(Lsn(u64::MAX), None), just_before(10_099));
    }

    #[tokio::test]
    async fn a_time_is_safe_when_all_that_was_under_way_has_ended_or_gone_on() {
        let mut clock = clock();
        // 1 ends, 2 begins another statement, 3 cannot be seen but ends.
        clock.keep(sample(10, &[(1, Some(8)), (2, Some(9)), (3, None)], 100));
        assert_eq!(clock.safe_time(Lsn(1000), None), None);
        clock.keep(sample(11, &[(2, Some(9)), (3, None), (4, Some(11))], 200));
        assert_eq!(clock.safe_time(Lsn(1000), None), None);
        clock.keep(sample(12, &[(2, Some(11)), (4, Some(11))], 300));
        assert_eq!(clock.safe_time(Lsn(299), None), None, "its record may lie before the end that was told then");
        assert_eq!(clock.safe_time(Lsn(300), None), just_before(10));
        // What began after the clock was read counts for nothing.
        clock.keep(sample(13, &[(5, Some(14))], 400));
        assert_eq!(clock.safe_time(Lsn(400), None), just_before(13));
        assert!(clock.unsettled.is_empty());
    }

    #[tokio::test]
    async fn one_long_statement_holds_it_back_for_so_long_only() {
        let mut clock = clock();
        for second in 0..30 {
            clock.keep(sample(100 + second, &[(7, Some(50))], 1000 + second as u64));
            let behind = clock.safe_time(Lsn(u64::MAX), None);
            assert_eq!(behind, (second >= 10).then(|| just_before(90 + second)).flatten());
        }
        clock.keep(sample(130, &[], 2000));
        assert_eq!(clock.safe_time(Lsn(u64::MAX), None), just_before(130));
    }
}
