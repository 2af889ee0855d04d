//! How long a committed order takes until a reader of the target sees it.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use crate::shop::Writer;
use crate::target::Target;

/// Samples of the lag.
#[derive(Debug, Default)]
pub(crate) struct Lag(Vec<Duration>);

impl Lag {
    /// Takes a sample of every order that is committed during `time`.
    pub(crate) fn watch(&mut self, time: Duration, writer: &Writer, target: &dyn Target) {
        let end = Instant::now() + time;
        // What was committed before is the backlog of a restart.
        writer.take_committed();
        let mut waiting: Vec<(u64, Instant)> = Vec::new();
        while Instant::now() < end {
            waiting.extend(writer.take_committed());
            let newest = target.newest_order();
            let now = Instant::now();
            let (arrived, rest): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|(order, _)| *order <= newest);
            self.0.extend(arrived.iter().map(|(_, committed)| now.saturating_duration_since(*committed)));
            waiting = rest;
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl fmt::Display for Lag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sorted = self.0.clone();
        sorted.sort();
        let ms = |at: usize| sorted.get(at).map_or(0.0, |d| d.as_secs_f64() * 1_000.0);
        let (middle, last) = (sorted.len() / 2, sorted.len().saturating_sub(1));
        write!(f, "median {:.0} ms, largest {:.0} ms over {} orders", ms(middle), ms(last), sorted.len())
    }
}
