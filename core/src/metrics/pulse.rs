//! Signs of life: of a data path that moves, of one that is idle, and of one that is dead.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use serde::Serialize;
use tokio::time::Instant;

use super::meters::seconds;
use super::{FAILURES, HEARD_TIME, READ_BATCHES, READ_BYTES, READ_CHANGES, WRITE_SECONDS, WRITTEN_TIME};
use crate::error::ErrorKind;
use crate::model::{ChangeBatch, Timestamp};
use crate::pipeline::Phase;

/// An attempt that lasted as long has worked: what fails after it is a new failure.
const LASTED: Duration = Duration::from_secs(60);

/// Whether a pipeline's data path lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Life {
    /// Changes or rows are on their way, and the target takes them.
    Moving,
    /// There is nothing to do, and the source says so.
    Idle,
    /// An operator has paused it. A restart would not make it go on.
    Paused,
    /// It has ended, fails again and again, or nothing was heard for too long.
    Dead,
}

/// Whether a pipeline's data path lives, and how that is known. [`Monitor::health`](crate::pipeline::Monitor::health)
/// tells it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Health {
    /// The verdict.
    pub life: Life,
    /// Why it is dead.
    pub reason: Option<String>,
    /// Seconds since the source last said anything, if only that there is nothing new.
    pub heard_seconds: f64,
    /// Seconds since the target last answered a write. `None`: not in this run.
    pub written_seconds: Option<f64>,
}

impl Health {
    /// Whether the pipeline may be left alone.
    pub fn is_good(&self) -> bool {
        self.life != Life::Dead
    }
}

/// Signs of life of a run, shared with its parts.
#[derive(Debug)]
pub(crate) struct Pulse {
    pipeline: Arc<str>,
    signs: Mutex<Signs>,
    batches: Counter,
    changes: Counter,
    bytes: Counter,
    heard: Gauge,
    written: Gauge,
    write_seconds: Histogram,
}

#[derive(Debug)]
struct Signs {
    /// When the source was heard last; before that, when the run began or went on after a pause.
    heard: Instant,
    written: Option<Instant>,
    /// Since when each write that is under way waits for the target.
    writing: BTreeMap<u64, Instant>,
    next_write: u64,
    /// Since when no attempt has come to anything.
    failing: Option<Instant>,
    attempt: Instant,
}

impl Pulse {
    pub(crate) fn new(pipeline: &Arc<str>) -> Self {
        let now = Instant::now();
        let counts = |name: &'static str| counter!(name, "pipeline" => Arc::clone(pipeline));
        let shows = |name: &'static str| gauge!(name, "pipeline" => Arc::clone(pipeline));
        Self {
            pipeline: Arc::clone(pipeline),
            signs: Mutex::new(Signs {
                heard: now,
                written: None,
                writing: BTreeMap::new(),
                next_write: 0,
                failing: None,
                attempt: now,
            }),
            batches: counts(READ_BATCHES),
            changes: counts(READ_CHANGES),
            bytes: counts(READ_BYTES),
            heard: shows(HEARD_TIME),
            written: shows(WRITTEN_TIME),
            write_seconds: histogram!(WRITE_SECONDS, "pipeline" => Arc::clone(pipeline)),
        }
    }

    /// The source has given a batch, if only an empty one.
    pub(crate) fn read(&self, batch: &ChangeBatch) {
        self.batches.increment(1);
        self.changes.increment(batch.len() as u64);
        self.bytes.increment(batch.memory_size() as u64);
        self.heard();
    }

    /// There is nothing to be heard from the source, and that is as it should be.
    pub(crate) fn heard(&self) {
        self.heard.set(seconds(Timestamp::now()));
        self.with(|s| s.heard = Instant::now());
    }

    /// A write to the target begins. It ends when the guard is dropped.
    pub(crate) fn writing(self: &Arc<Self>) -> Writing {
        let since = Instant::now();
        let id = self.with(|s| {
            s.next_write += 1;
            s.writing.insert(s.next_write, since);
            s.next_write
        });
        Writing { pulse: Arc::clone(self), id, since }
    }

    pub(crate) fn phase(&self, before: Phase, now: Phase) {
        self.with(|s| match now {
            Phase::Starting => {
                s.attempt = Instant::now();
                if before == Phase::Paused {
                    // Nobody was to be heard while it was paused.
                    s.heard = s.attempt;
                }
            }
            Phase::Paused => s.failing = None,
            _ => {}
        });
    }

    /// An attempt failed.
    pub(crate) fn failed(&self, kind: ErrorKind) {
        counter!(FAILURES, "pipeline" => Arc::clone(&self.pipeline), "kind" => kind.name()).increment(1);
        self.with(|s| {
            if s.attempt.elapsed() >= LASTED {
                s.failing = None;
            }
            s.failing.get_or_insert_with(Instant::now);
        });
    }

    /// Something was made durable.
    pub(crate) fn progressed(&self) {
        self.with(|s| s.failing = None);
    }

    /// Whether the data path lives: nothing may be silent for longer than `bound`.
    pub(crate) fn health(&self, phase: Phase, waiting: u64, last_error: Option<&str>, bound: Duration) -> Health {
        self.with(|s| {
            let (heard, written) = (s.heard.elapsed(), s.written.map(|at| at.elapsed()));
            let last = last_error.map_or_else(String::new, |e| format!(": {e}"));
            let stuck = s.writing.values().map(Instant::elapsed).max().filter(|t| *t > bound);
            let failing = s.failing.map(|at| at.elapsed()).filter(|t| *t > bound);
            let moved = written.is_some_and(|t| t <= bound);
            let seconds = |d: Duration| d.as_secs();
            let (life, reason) = match phase {
                Phase::Failed => (Life::Dead, Some(format!("it has ended by an error{last}"))),
                Phase::Stopped => (Life::Dead, Some("it has ended".to_owned())),
                Phase::Paused => (Life::Paused, None),
                Phase::Starting | Phase::Retrying if let Some(t) = failing => {
                    (Life::Dead, Some(format!("nothing has succeeded for {} s{last}", seconds(t))))
                }
                _ if let Some(t) = stuck => {
                    (Life::Dead, Some(format!("the target has not answered a write for {} s{last}", seconds(t))))
                }
                _ if heard > bound && !moved => {
                    (Life::Dead, Some(format!("nothing was heard from the source for {} s{last}", seconds(heard))))
                }
                Phase::Snapshot => (Life::Moving, None),
                _ if waiting > 0 || !s.writing.is_empty() => (Life::Moving, None),
                _ => (Life::Idle, None),
            };
            Health {
                life,
                reason,
                heard_seconds: heard.as_secs_f64(),
                written_seconds: written.map(|d| d.as_secs_f64()),
            }
        })
    }

    fn with<T>(&self, f: impl FnOnce(&mut Signs) -> T) -> T {
        // Whole values are written: a panic under the lock leaves nothing half done.
        f(&mut self.signs.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A write to the target that is under way.
#[derive(Debug)]
pub(crate) struct Writing {
    pulse: Arc<Pulse>,
    id: u64,
    since: Instant,
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.pulse.write_seconds.record(self.since.elapsed().as_secs_f64());
        self.pulse.written.set(seconds(Timestamp::now()));
        self.pulse.with(|s| {
            s.writing.remove(&self.id);
            s.written = Some(Instant::now());
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(30);

    async fn pass(seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_pipeline_that_is_heard_from_lives_and_a_silent_one_does_not() {
        let pulse = Arc::new(Pulse::new(&"p".into()));
        let life = || pulse.health(Phase::Streaming, 0, None, BOUND).life;
        pass(29).await;
        assert_eq!(life(), Life::Idle);
        pulse.heard();
        pass(29).await;
        assert_eq!(life(), Life::Idle);
        pass(2).await;
        let health = pulse.health(Phase::Streaming, 0, Some("the server is gone"), BOUND);
        assert_eq!((health.life, health.is_good()), (Life::Dead, false));
        assert_eq!(health.reason.unwrap(), "nothing was heard from the source for 31 s: the server is gone");
        pulse.heard();
        assert_eq!(life(), Life::Idle);
    }

    #[tokio::test(start_paused = true)]
    async fn a_target_that_answers_lives_while_the_source_has_to_wait_and_one_that_does_not_answer_is_dead() {
        let pulse = Arc::new(Pulse::new(&"p".into()));
        let life = || pulse.health(Phase::Streaming, 7, None, BOUND).life;
        for _ in 0..5 {
            let writing = pulse.writing();
            pass(20).await;
            assert_eq!(life(), Life::Moving);
            drop(writing);
        }
        let _writing = pulse.writing();
        pass(31).await;
        // The source may be as talkative as it likes.
        pulse.heard();
        let reason = pulse.health(Phase::Streaming, 7, None, BOUND).reason;
        assert_eq!(reason.unwrap(), "the target has not answered a write for 31 s");
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_that_come_to_nothing_are_dead_although_each_of_them_hears_the_source() {
        let pulse = Arc::new(Pulse::new(&"p".into()));
        for _ in 0..4 {
            pulse.phase(Phase::Retrying, Phase::Starting);
            pulse.heard();
            pulse.failed(ErrorKind::Transient);
            pass(10).await;
        }
        let life = |phase| pulse.health(phase, 0, None, BOUND).life;
        assert_eq!(life(Phase::Retrying), Life::Dead);
        pulse.progressed();
        assert_eq!(life(Phase::Retrying), Life::Idle);
        // One that has lasted was no failure.
        pulse.failed(ErrorKind::Transient);
        pulse.phase(Phase::Retrying, Phase::Starting);
        pass(61).await;
        pulse.heard();
        pulse.failed(ErrorKind::Transient);
        assert_eq!(life(Phase::Retrying), Life::Idle);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_paused_is_left_alone_and_has_time_to_begin_again() {
        let pulse = Arc::new(Pulse::new(&"p".into()));
        let life = |phase| pulse.health(phase, 0, None, BOUND).life;
        pass(1000).await;
        assert_eq!(life(Phase::Paused), Life::Paused);
        pulse.phase(Phase::Paused, Phase::Starting);
        assert_eq!(life(Phase::Starting), Life::Idle);
        assert_eq!(life(Phase::Stopped), Life::Dead);
        assert_eq!(life(Phase::Failed), Life::Dead);
    }
}
