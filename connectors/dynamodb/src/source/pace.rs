//! When a shard is read again.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// The longest pause while the service refuses calls.
const LONGEST: Duration = Duration::from_secs(5);

/// Reads at once while there are records, and after growing pauses while there are none.
#[derive(Debug)]
pub(super) struct Pace {
    min: Duration,
    max: Duration,
    pause: Duration,
    wake: Option<Instant>,
}

impl Pace {
    pub(super) fn new((min, max): (Duration, Duration)) -> Self {
        Self { min, max, pause: Duration::ZERO, wake: None }
    }

    /// Returns when the next call is due. Cancel safe.
    pub(super) async fn wait(&self) {
        if let Some(wake) = self.wake {
            sleep_until(wake).await;
        }
    }

    /// A read gave records: more may be there.
    pub(super) fn busy(&mut self) {
        self.pause = Duration::ZERO;
        self.wake = None;
    }

    /// A read gave nothing.
    pub(super) fn idle(&mut self) {
        self.pause = (self.pause * 2).clamp(self.min, self.max);
        self.wake = Some(Instant::now() + self.pause);
    }

    /// The service asks for fewer calls, or fails: a growing pause with jitter, so that the readers
    /// of many shards do not come back together.
    pub(super) fn throttled(&mut self) {
        self.pause = (self.pause * 2).clamp(self.min, LONGEST);
        self.wake = Some(Instant::now() + self.pause.mul_f64(0.5 + rand::random::<f64>() / 2.0));
    }
}
