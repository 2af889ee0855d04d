//! Instants as Spanner has them: nanoseconds.

use std::fmt;
use std::str::FromStr;

use anabranch_core::Timestamp;
use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

/// Seconds from 0001-01-01T00:00:00Z, Spanner's first instant, to 1970.
const YEAR_ONE: i64 = 62_135_596_800;
/// Seconds from 1970 to the end of 9999, Spanner's last.
const YEAR_TEN_THOUSAND: i64 = 253_402_300_800;

/// An instant with nanoseconds, from the year 1 through 9999. It prints as RFC 3339.
///
/// ```
/// use anabranch_spanner::client::Instant;
/// let t: Instant = "2026-01-02T03:04:05.000000006Z".parse().unwrap();
/// assert_eq!(t.to_string(), "2026-01-02T03:04:05.000000006Z");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Instant {
    seconds: i64,
    nanos: u32,
}

impl Instant {
    /// The length of [`Instant::to_bytes`].
    pub const BYTES: usize = 12;

    /// The last instant that Spanner has.
    pub const MAX: Self = Self { seconds: YEAR_TEN_THOUSAND - 1, nanos: 999_999_999 };

    /// From seconds since 1970 and nanoseconds within the second; `None` outside of Spanner's range.
    pub fn new(seconds: i64, nanos: u32) -> Option<Self> {
        ((-YEAR_ONE..YEAR_TEN_THOUSAND).contains(&seconds) && nanos < 1_000_000_000).then_some(Self { seconds, nanos })
    }

    /// Seconds since 1970, negative before.
    pub fn seconds(self) -> i64 {
        self.seconds
    }

    /// Nanoseconds within the second.
    pub fn nanos(self) -> u32 {
        self.nanos
    }

    /// Bytes that sort as the instants do.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&((self.seconds + YEAR_ONE) as u64).to_be_bytes());
        bytes[8..].copy_from_slice(&self.nanos.to_be_bytes());
        bytes
    }

    /// The inverse of [`Instant::to_bytes`]; more bytes may follow.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let seconds = u64::from_be_bytes(bytes.get(..8)?.try_into().ok()?);
        let nanos = u32::from_be_bytes(bytes.get(8..12)?.try_into().ok()?);
        Self::new(i64::try_from(seconds).ok()?.checked_sub(YEAR_ONE)?, nanos)
    }

    /// The microsecond that it lies in.
    pub fn timestamp(self) -> Timestamp {
        Timestamp::from_micros(self.seconds * 1_000_000 + i64::from(self.nanos / 1000))
    }

    /// The last microsecond that has ended before this instant: the safe time where everything
    /// *before* it is known.
    pub fn all_before(self) -> Timestamp {
        self.timestamp().minus_micros(1)
    }

    /// The last microsecond that has ended with this instant: the safe time where everything *at or
    /// before* it is known.
    pub fn all_through(self) -> Timestamp {
        if self.nanos % 1000 == 999 { self.timestamp() } else { self.all_before() }
    }

    /// The instant a number of seconds later; the last one there is if that is too late.
    #[must_use]
    pub fn plus_seconds(self, seconds: i64) -> Self {
        let at = self.seconds.saturating_add(seconds).clamp(-YEAR_ONE, YEAR_TEN_THOUSAND - 1);
        Self { seconds: at, nanos: self.nanos }
    }

    /// Seconds from `earlier` to this one.
    pub fn seconds_since(self, earlier: Self) -> f64 {
        (self.seconds - earlier.seconds) as f64 + (f64::from(self.nanos) - f64::from(earlier.nanos)) / 1e9
    }
}

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match DateTime::<Utc>::from_timestamp(self.seconds, self.nanos) {
            Some(t) => f.write_str(&t.to_rfc3339_opts(SecondsFormat::Nanos, true)),
            None => write!(f, "{}.{:09}s", self.seconds, self.nanos),
        }
    }
}

impl FromStr for Instant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let time = DateTime::parse_from_rfc3339(text).map_err(|e| format!("{text:?} is not a time: {e}"))?;
        Self::new(time.timestamp(), time.timestamp_subsec_nanos())
            .ok_or_else(|| format!("{text:?} is not in the years 1 through 9999"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Instant {
        text.parse().unwrap()
    }

    #[test]
    fn bytes_sort_as_instants_and_read_back() {
        let all = ["0001-01-01T00:00:00Z", "1969-12-31T23:59:59.999999999Z", "1970-01-01T00:00:00Z"];
        let all = all.iter().chain(&["2026-01-01T00:00:00.000000001Z", "9999-12-31T23:59:59.999999999Z"]);
        let bytes: Vec<_> = all.clone().map(|t| at(t).to_bytes()).collect();
        assert!(bytes.is_sorted());
        assert!(all.zip(&bytes).all(|(t, b)| Instant::from_bytes(b) == Some(at(t))));
    }

    #[test]
    fn a_microsecond_is_safe_once_all_its_nanoseconds_are() {
        let micro = |t: &str| at(t).timestamp().as_micros();
        let base = micro("2026-01-01T00:00:00.000005Z");
        assert_eq!(at("2026-01-01T00:00:00.000005Z").all_through().as_micros(), base - 1);
        assert_eq!(at("2026-01-01T00:00:00.000005998Z").all_through().as_micros(), base - 1);
        assert_eq!(at("2026-01-01T00:00:00.000005999Z").all_through().as_micros(), base);
        assert_eq!(at("2026-01-01T00:00:00.000005999Z").all_before().as_micros(), base - 1);
        assert_eq!(at("2026-01-01T00:00:00.000006Z").all_before().as_micros(), base);
    }

    #[test]
    fn what_is_no_time_is_an_error() {
        for bad in ["", "2026-01-01", "2026-13-01T00:00:00Z", "99999-01-01T00:00:00Z", "now"] {
            assert!(bad.parse::<Instant>().is_err(), "{bad}");
        }
        assert_eq!(Instant::from_bytes(&[0xff; 12]), None);
        assert_eq!(Instant::from_bytes(&[0; 3]), None);
    }
}
