//! How many calls to a table are under way: additive increase, multiplicative decrease.
//!
//! A clean window (as many good answers as calls are allowed) allows one call more; a throttled call
//! halves the limit, once for all the calls that were under way together. Until the first throttle a
//! clean window doubles it, so that a large table is not approached one by one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::RngExt;
use tokio::sync::Notify;

/// How many calls are under way at first: more than one connection's worth, too few to hurt.
const FIRST: usize = 16;

/// The first wait of a call that was throttled is up to this long; it doubles with every further one.
const BACKOFF: Duration = Duration::from_millis(50);

/// The longest wait. DynamoDB takes a while to split a hot partition; it refills buckets every second.
const LONGEST: Duration = Duration::from_secs(10);

/// The calls to one table, of all lanes.
#[derive(Debug)]
pub(crate) struct Limiter {
    most: usize,
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Debug)]
struct State {
    limit: usize,
    in_flight: usize,
    /// Good answers since the limit changed.
    clean: usize,
    /// How often the limit was cut.
    cuts: u64,
}

/// The right to make one call. Dropped without a word, it frees its place and changes nothing else.
#[derive(Debug)]
pub(crate) struct Permit {
    limiter: Arc<Limiter>,
    cuts: u64,
}

impl Limiter {
    /// Of at most `most` calls.
    pub(crate) fn new(most: usize) -> Self {
        let most = most.max(1);
        let state = State { limit: FIRST.min(most), in_flight: 0, clean: 0, cuts: 0 };
        Self { most, state: Mutex::new(state), freed: Notify::new() }
    }

    /// Waits for a place.
    pub(crate) async fn acquire(self: &Arc<Self>) -> Permit {
        loop {
            // Registered before the look: a place that is freed in between wakes this one.
            let freed = self.freed.notified();
            {
                let mut state = self.lock();
                if state.in_flight < state.limit {
                    state.in_flight += 1;
                    return Permit { limiter: Arc::clone(self), cuts: state.cuts };
                }
            }
            freed.await;
        }
    }

    /// How many calls may be under way now.
    pub(crate) fn limit(&self) -> usize {
        self.lock().limit
    }

    /// A moment, for [`Limiter::cut_since`].
    pub(crate) fn cuts(&self) -> u64 {
        self.lock().cuts
    }

    /// Halves the limit, unless that was done since `cuts` was looked up: for a call that was
    /// answered, but did only a part of its work.
    pub(crate) fn cut_since(&self, cuts: u64) {
        let mut state = self.lock();
        // Only the first of those that were under way together tells something new.
        if cuts == state.cuts {
            state.cuts += 1;
            state.clean = 0;
            state.limit = (state.limit / 2).max(1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock leaves whole numbers behind.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit {
    /// The call was answered, whatever it said but a throttle.
    pub(crate) fn answered(self) {
        let mut state = self.limiter.lock();
        state.clean += 1;
        if state.clean >= state.limit {
            state.clean = 0;
            let more = if state.cuts == 0 { state.limit } else { 1 };
            state.limit = (state.limit + more).min(self.limiter.most);
        }
    }

    /// The call was throttled.
    pub(crate) fn throttled(self) {
        self.limiter.cut_since(self.cuts);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.limiter.lock().in_flight -= 1;
        // All of them: the limit may have grown by more than one place.
        self.limiter.freed.notify_waiters();
    }
}

/// Full jitter: a random part of a bound that doubles with every failure in a row, from 1.
pub(crate) fn backoff(failures: u32) -> Duration {
    let bound = BACKOFF.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST);
    bound.mul_f64(rand::rng().random_range(0.0..1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn take(limiter: &Arc<Limiter>, n: usize) -> Vec<Permit> {
        let mut all = Vec::new();
        for _ in 0..n {
            all.push(limiter.acquire().await);
        }
        all
    }

    #[tokio::test]
    async fn one_throttle_halves_and_its_companions_do_not() {
        let limiter = Arc::new(Limiter::new(100));
        for permit in take(&limiter, FIRST).await {
            permit.throttled();
        }
        assert_eq!(limiter.limit(), FIRST / 2);
        limiter.acquire().await.throttled();
        assert_eq!(limiter.limit(), FIRST / 4);
        for _ in 0..20 {
            limiter.acquire().await.throttled();
        }
        assert_eq!(limiter.limit(), 1);
    }

    #[tokio::test]
    async fn a_clean_window_doubles_at_first_and_adds_one_later() {
        let limiter = Arc::new(Limiter::new(100));
        for permit in take(&limiter, FIRST).await {
            permit.answered();
        }
        assert_eq!(limiter.limit(), FIRST * 2);
        limiter.acquire().await.throttled();
        assert_eq!(limiter.limit(), FIRST);
        for permit in take(&limiter, FIRST).await {
            permit.answered();
        }
        assert_eq!(limiter.limit(), FIRST + 1);
    }

    #[tokio::test]
    async fn never_more_than_the_limit_and_nobody_is_forgotten() {
        let limiter = Arc::new(Limiter::new(3));
        let most = Arc::new(Mutex::new((0, 0)));
        let tasks: Vec<_> = (0..50)
            .map(|_| {
                let (limiter, most) = (Arc::clone(&limiter), Arc::clone(&most));
                tokio::spawn(async move {
                    let permit = limiter.acquire().await;
                    {
                        let mut m = most.lock().unwrap();
                        m.0 += 1;
                        m.1 = m.1.max(m.0);
                    }
                    tokio::task::yield_now().await;
                    most.lock().unwrap().0 -= 1;
                    permit.answered();
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*most.lock().unwrap(), (0, 3));
    }

    #[test]
    fn waits_are_bounded() {
        assert!((1..200).all(|n| backoff(n) <= LONGEST));
        assert!((0..100).all(|_| backoff(1) <= BACKOFF));
    }
}
