//! Log sequence numbers, and how they become positions.

use std::fmt;
use std::str::FromStr;

use anabranch_core::{Error, Position, Rank, Result, Timestamp};
use bytes::Bytes;

/// What orders the transactions of a stream: the prefix of their ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Ranking {
    /// The commit's place in the log.
    #[default]
    Log,
    /// The commit's time, in microseconds since 1970, and then its place. For a log whose places are
    /// known to nobody before they are read: a mark, and the point of a copy, are times.
    CommitTime,
}

impl Ranking {
    /// The prefix of the ranks of the transaction that committed at this place and time.
    pub(crate) fn prefix(self, at: Lsn, time: Timestamp) -> Bytes {
        match self {
            Self::Log => Bytes::copy_from_slice(&at.prefix()),
            Self::CommitTime => {
                let mut prefix = Vec::with_capacity(16);
                prefix.extend_from_slice(&time_of(time).prefix());
                prefix.extend_from_slice(&at.prefix());
                prefix.into()
            }
        }
    }

    /// What the points of copies are compared with.
    pub(crate) fn place(self, at: Lsn, time: Timestamp) -> Lsn {
        match self {
            Self::Log => at,
            Self::CommitTime => time_of(time),
        }
    }

    /// Where to begin again after a commit, and what is confirmed then.
    ///
    /// Where places may follow one another without a gap, the end of a transaction may be the place of
    /// the next one, and YugabyteDB takes what is confirmed for the last place that is not needed
    /// again (its `yb_virtual_wal_client.c`, `CalculateRestartLSN`): so it is told the commit itself.
    pub(crate) fn boundary(self, commit: Lsn, end: Lsn) -> Lsn {
        match self {
            Self::Log => end,
            Self::CommitTime => commit,
        }
    }
}

fn time_of(time: Timestamp) -> Lsn {
    Lsn(u64::try_from(time.as_micros()).unwrap_or(0))
}

/// The position after everything that committed before `time`, in a stream that is ranked by time;
/// reading begins at `from`.
pub(crate) fn before_time(time: Timestamp, from: Lsn) -> Position {
    Position::new(Rank::of_change(&Ranking::CommitTime.prefix(Lsn(0), time), 0), from.token())
}

/// A place in the write-ahead log, as a byte offset. Printed as PostgreSQL prints it: `0/16B3748`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The prefix of the ranks of the transaction that committed here.
    pub(crate) fn prefix(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }

    /// The position before every transaction whose commit record begins here or later, and after all others.
    pub(crate) fn as_position(self) -> Position {
        Position::new(Rank::of_change(&self.prefix(), 0), self.token())
    }

    /// The position after the transaction with this commit LSN, which ended at `end`.
    #[cfg(test)]
    pub(crate) fn after_transaction(self, end: Lsn) -> Position {
        end.after(&self.prefix())
    }

    /// The position after change `sequence` of the transaction with this commit LSN.
    #[cfg(test)]
    pub(crate) fn within_transaction(self, sequence: u64, boundary: Lsn) -> Position {
        boundary.within(&self.prefix(), sequence)
    }

    /// The position after the transaction with this rank, behind which reading begins at this place.
    pub(crate) fn after(self, rank: &[u8]) -> Position {
        Position::new(Rank::of_end(rank), self.token())
    }

    /// The position after change `sequence` of the transaction with this rank. Its token is this place,
    /// the end of the transaction before: replication can only begin at such a place.
    pub(crate) fn within(self, rank: &[u8], sequence: u64) -> Position {
        Position::new(Rank::of_change(rank, sequence), self.token())
    }

    /// Where to begin to resume from this position: its token. One without a token lies within the
    /// first transaction that was ever read: everything before that one is behind it, so it is begun
    /// again at its own commit LSN, which only a slot that still has it reaches.
    pub(crate) fn of_token(position: &Position) -> Result<Lsn> {
        if position.token.is_empty() {
            return Self::of_rank(position).map(|(lsn, _)| lsn);
        }
        <[u8; 8]>::try_from(&position.token[..]).map(|b| Lsn(u64::from_be_bytes(b))).map_err(|_| not_ours(position))
    }

    /// The commit LSN and the number within the transaction that this position's rank names.
    pub(crate) fn of_rank(position: &Position) -> Result<(Lsn, u64)> {
        let bytes = position.rank.as_bytes();
        match (bytes.first_chunk::<8>(), bytes.last_chunk::<8>()) {
            (Some(lsn), Some(sequence)) if bytes.len() == 16 => {
                Ok((Lsn(u64::from_be_bytes(*lsn)), u64::from_be_bytes(*sequence)))
            }
            (Some(_), Some(sequence)) if bytes.len() == 24 => {
                let lsn = bytes[8..].first_chunk::<8>().copied().unwrap_or_default();
                Ok((Lsn(u64::from_be_bytes(lsn)), u64::from_be_bytes(*sequence)))
            }
            _ => Err(not_ours(position)),
        }
    }

    /// The time that the rank of a position names, in a stream that is ranked by time.
    pub(crate) fn time_of_rank(position: &Position) -> Result<Timestamp> {
        let bytes = position.rank.as_bytes();
        match bytes.first_chunk::<8>() {
            Some(time) if bytes.len() == 24 => {
                Ok(Timestamp::from_micros(i64::try_from(u64::from_be_bytes(*time)).unwrap_or(i64::MAX)))
            }
            _ => Err(not_ours(position)),
        }
    }

    /// Bytes from `earlier` to `self`; 0 if `earlier` is later.
    pub(crate) fn since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    fn token(self) -> Vec<u8> {
        self.0.to_be_bytes().to_vec()
    }
}

fn not_ours(position: &Position) -> Error {
    Error::fatal(format!("the stored position {position:?} is not a PostgreSQL position"))
        .hint("the checkpoint belongs to another kind of source, or is damaged")
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 as u32)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Lsn {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.split_once('/')
            .and_then(|(high, low)| {
                let (high, low) = (u32::from_str_radix(high, 16).ok()?, u32::from_str_radix(low, 16).ok()?);
                Some(Lsn(u64::from(high) << 32 | u64::from(low)))
            })
            .ok_or_else(|| Error::fatal(format!("{text:?} is not a log sequence number")))
    }
}

/// Microseconds from 1970 to 2000, where PostgreSQL's clock begins.
const EPOCH: i64 = 946_684_800_000_000;

/// From microseconds since 2000-01-01, as the replication protocol counts.
pub(crate) fn from_postgres_time(micros: i64) -> Timestamp {
    Timestamp::from_micros(micros.saturating_add(EPOCH))
}

/// To microseconds since 2000-01-01.
pub(crate) fn to_postgres_time(at: Timestamp) -> i64 {
    at.as_micros().saturating_sub(EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_and_parses_as_postgres_does() {
        let lsn: Lsn = "16/B374D848".parse().unwrap();
        assert_eq!(lsn, Lsn(0x16_B374_D848));
        assert_eq!(lsn.to_string(), "16/B374D848");
        assert!("x".parse::<Lsn>().is_err());
        assert!("1/123456789".parse::<Lsn>().is_err());
    }

    #[test]
    fn positions_order_as_the_log_does() {
        let (first, end, next) = (Lsn(100), Lsn(148), Lsn(148));
        let ranks = [
            first.as_position().rank,
            first.within_transaction(1, Lsn(90)).rank,
            first.after_transaction(end).rank,
            end.as_position().rank,
            next.within_transaction(1, end).rank,
        ];
        assert!(ranks.is_sorted_by(|a, b| a < b), "{ranks:?}");
        assert_eq!(Lsn::of_token(&first.after_transaction(end)).unwrap(), end);
        assert_eq!(Lsn::of_rank(&first.within_transaction(7, Lsn(90))).unwrap(), (first, 7));
        assert!(Lsn::of_rank(&Position::default()).is_err());
        assert!(Lsn::of_token(&Position::default()).is_err());
        let untold = Position::new(first.within_transaction(7, Lsn(90)).rank, Vec::new());
        assert_eq!(Lsn::of_token(&untold).unwrap(), first);
        assert!(Lsn::of_token(&Position::new(first.as_position().rank, vec![1])).is_err());
    }

    #[test]
    fn ranks_by_time_order_as_commits_do() {
        let at = Timestamp::from_micros;
        let prefix = |lsn, time| Ranking::CommitTime.prefix(Lsn(lsn), at(time));
        let ranks = [
            before_time(at(10), Lsn(1)).rank,
            Lsn(1).within(&prefix(5, 10), 1).rank,
            Lsn(5).after(&prefix(5, 10)).rank,
            Lsn(5).within(&prefix(6, 10), 1).rank,
            before_time(at(11), Lsn(1)).rank,
            Lsn(6).within(&prefix(1, 11), 1).rank,
        ];
        assert!(ranks.is_sorted_by(|a, b| a < b), "{ranks:?}");
        let within = Lsn(4).within(&prefix(5, 10), 7);
        assert_eq!(Lsn::of_rank(&within).unwrap(), (Lsn(5), 7));
        assert_eq!(Lsn::time_of_rank(&within).unwrap(), at(10));
        assert!(Lsn::time_of_rank(&Lsn(1).as_position()).is_err());
    }
}
