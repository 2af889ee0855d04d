//! Times with nanoseconds, and the clock that decides what is already in a stream.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use tokio::sync::watch;

/// Nanoseconds since 1970-01-01T00:00:00Z.
///
/// ```
/// use anabranch_spanner_fake::Time;
/// assert_eq!(Time::seconds(5).plus_nanos(1_000).to_string(), "1970-01-01T00:00:05.000001Z");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(pub i64);

impl Time {
    /// Later than everything.
    pub const END: Self = Self(i64::MAX);

    /// Seconds since 1970.
    pub const fn seconds(seconds: i64) -> Self {
        Self(seconds * 1_000_000_000)
    }

    /// This machine's clock.
    pub fn now() -> Self {
        Self(Utc::now().timestamp_nanos_opt().unwrap_or(i64::MAX))
    }

    /// Later by `nanos`.
    #[must_use]
    pub const fn plus_nanos(self, nanos: i64) -> Self {
        Self(self.0.saturating_add(nanos))
    }

    /// Later by `duration`.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        self.plus_nanos(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX))
    }

    /// Reads RFC 3339.
    pub fn parse(text: &str) -> Option<Self> {
        let time = DateTime::parse_from_rfc3339(text).ok()?;
        // Years that nanoseconds cannot hold are before, or after, everything.
        let beyond = if time.timestamp() < 0 { i64::MIN } else { i64::MAX };
        Some(Self(time.timestamp_nanos_opt().unwrap_or(beyond)))
    }

    /// As the protocol writes timestamps in messages.
    pub(crate) fn proto(self) -> prost_types::Timestamp {
        prost_types::Timestamp {
            seconds: self.0.div_euclid(1_000_000_000),
            nanos: self.0.rem_euclid(1_000_000_000) as i32,
        }
    }

    /// As Spanner's PostgreSQL dialect writes it in JSON: `+00:00` for `Z`.
    pub(crate) fn with_offset(self) -> String {
        self.to_string().replace('Z', "+00:00")
    }
}

impl fmt::Display for Time {
    /// RFC 3339 in UTC, without zeros at the end of the fraction.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = DateTime::<Utc>::from_timestamp_nanos(self.0).to_rfc3339_opts(SecondsFormat::Nanos, true);
        let digits = text.trim_end_matches('Z').trim_end_matches('0').trim_end_matches('.');
        write!(f, "{digits}Z")
    }
}

/// What time the server has. A record is in its stream once the clock has reached it.
#[derive(Debug)]
pub(crate) enum Clock {
    /// This machine's.
    Real,
    /// It stands until a test moves it.
    Manual(watch::Sender<Time>),
}

impl Clock {
    pub(crate) fn manual(at: Time) -> Self {
        Self::Manual(watch::Sender::new(at))
    }

    pub(crate) fn now(&self) -> Time {
        match self {
            Self::Real => Time::now(),
            Self::Manual(time) => *time.borrow(),
        }
    }

    /// Sets a manual clock; it never goes back.
    pub(crate) fn set(&self, to: Time) {
        if let Self::Manual(time) = self {
            time.send_if_modified(|now| std::mem::replace(now, (*now).max(to)) < to);
        }
    }

    /// Returns once the time is `at`.
    pub(crate) async fn reached(&self, at: Time) {
        match self {
            Self::Real => {
                let left = u64::try_from(at.0.saturating_sub(Time::now().0)).unwrap_or(0);
                tokio::time::sleep(Duration::from_nanos(left)).await;
            }
            Self::Manual(time) => {
                // An error means that the server is gone, and with it whoever waits.
                let _ = time.subscribe().wait_for(|now| *now >= at).await;
            }
        }
    }
}
