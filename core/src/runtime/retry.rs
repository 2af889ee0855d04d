//! The retry policy: what each kind of error leads to. The only place that decides it.

use std::time::Duration;

use crate::error::{Error, ErrorKind};

/// How a pipeline retries. Retrying ends only by success, by a limit, or by stopping.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryLimits {
    /// The wait before the first retry; it doubles with every further one.
    pub first: Duration,
    /// The longest wait. A minute: an operator who mends a server need not wait longer than that.
    pub longest: Duration,
    /// How many retries in a row without progress are made before giving up. `None`: no limit.
    pub attempts: Option<u32>,
}

impl Default for RetryLimits {
    fn default() -> Self {
        Self { first: Duration::from_millis(200), longest: Duration::from_secs(60), attempts: None }
    }
}

/// No wait is longer, whatever the limits are: a length of time that is multiplied must have room.
const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// Counts the retries since the last progress.
#[derive(Debug)]
pub(crate) struct Retry {
    limits: RetryLimits,
    failures: u32,
}

/// What to do about an error.
#[derive(Debug, PartialEq)]
pub(crate) enum Decision {
    /// Wait this long, then begin again from the stored progress.
    Again(Duration),
    /// Report it and end.
    GiveUp,
}

impl Retry {
    pub(crate) fn new(limits: RetryLimits) -> Self {
        Self { limits, failures: 0 }
    }

    /// Something was made durable: the next failure is a first one.
    pub(crate) fn progressed(&mut self) {
        self.failures = 0;
    }

    /// How many failures in a row there were.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// Decides about an error; `jitter` is a random number from 0 to 1.
    ///
    /// An indeterminate outcome is treated like a transient one because beginning again always
    /// reads the stored progress first.
    pub(crate) fn decide(&mut self, error: &Error, jitter: f64) -> Decision {
        match error.kind() {
            ErrorKind::Transient | ErrorKind::Indeterminate => {
                self.failures += 1;
                if self.limits.attempts.is_some_and(|most| self.failures > most) {
                    return Decision::GiveUp;
                }
                let doublings = (self.failures - 1).min(16);
                let wait = self.limits.first.saturating_mul(1 << doublings).min(self.limits.longest).min(YEAR);
                // Half of the wait is fixed, half random: runners that failed together come back apart.
                Decision::Again(wait.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0))
            }
            ErrorKind::Rejected | ErrorKind::Fenced | ErrorKind::Config | ErrorKind::Fatal => Decision::GiveUp,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_begin_anew_after_progress() {
        let limits = RetryLimits { first: Duration::from_secs(1), longest: Duration::from_secs(5), attempts: None };
        let mut retry = Retry::new(limits);
        let e = Error::transient("down");
        let waits: Vec<_> = (0..4).map(|_| retry.decide(&e, 1.0)).collect();
        let seconds = |s| Decision::Again(Duration::from_secs(s));
        assert_eq!(waits, [seconds(1), seconds(2), seconds(4), seconds(5)]);
        retry.progressed();
        assert_eq!(retry.decide(&e, 1.0), seconds(1));
    }

    #[test]
    fn no_limit_is_too_long_to_wait_for() {
        let limits = RetryLimits { first: Duration::MAX, longest: Duration::MAX, attempts: None };
        let mut retry = Retry::new(limits);
        for jitter in [0.0, 0.5, 1.0] {
            assert!(matches!(retry.decide(&Error::transient("down"), jitter), Decision::Again(_)));
        }
    }

    #[test]
    fn only_what_may_mend_itself_is_retried() {
        let mut retry = Retry::new(RetryLimits { attempts: Some(1), ..Default::default() });
        for e in [Error::rejected("x"), Error::fenced("x"), Error::config("k", "x"), Error::fatal("x")] {
            assert_eq!(retry.decide(&e, 0.0), Decision::GiveUp);
        }
        assert!(matches!(retry.decide(&Error::indeterminate("x"), 0.0), Decision::Again(_)));
        assert_eq!(retry.decide(&Error::transient("x"), 0.0), Decision::GiveUp);
    }
}
