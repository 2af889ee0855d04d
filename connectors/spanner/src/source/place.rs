//! Ranks and positions. A transaction's rank is its commit time and its id, the same in all partitions:
//!
//! ```text
//! | seconds since year 1, 8 | nanoseconds, 4 | id, 31, zeros after it | its length, 1 |  change, 8
//! ```
//!
//! A change's number is its `record_sequence`, which is unique within the transaction over all
//! partitions, and its place among the record's mods. A position's token is the time to read on from,
//! inclusive; in a partition of mutable key ranges that begins amid a time, the last
//! `record_sequence` of that time that lies before it follows.

use anabranch_core::{Error, Position, Rank, Result};
use bytes::Bytes;

use crate::client::Instant;

/// The bytes of a transaction's id. Spanner's are a dozen; a longer one is cut, and told by a hash.
const ID: usize = 32;
/// The bytes of a transaction's rank.
const PREFIX: usize = Instant::BYTES + ID;

/// The rank of a transaction.
pub(crate) fn prefix(commit: Instant, transaction: &str) -> Bytes {
    let mut bytes = Vec::with_capacity(PREFIX);
    bytes.extend_from_slice(&commit.to_bytes());
    let id = transaction.as_bytes();
    if id.len() < ID {
        bytes.extend_from_slice(id);
        bytes.resize(PREFIX - 1, 0);
        bytes.push(id.len() as u8);
    } else {
        bytes.extend_from_slice(&id[..ID - 17]);
        bytes.extend_from_slice(&fnv(id).to_be_bytes());
        bytes.push(u8::MAX);
    }
    bytes.into()
}

/// Spanner's id of the transaction with this [rank](anabranch_core::Transaction::rank), unless it was too
/// long to keep (32 bytes or more).
pub fn transaction(prefix: &[u8]) -> Option<&str> {
    let (id, length) = prefix.get(Instant::BYTES..PREFIX)?.split_at(ID - 1);
    std::str::from_utf8(id.get(..usize::from(length[0]))?).ok()
}

/// FNV-1a of 128 bits.
fn fnv(bytes: &[u8]) -> u128 {
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    bytes.iter().fold(BASIS, |hash, byte| (hash ^ u128::from(*byte)).wrapping_mul(PRIME))
}

/// The number of a record's change of schema, which comes before its mods.
pub(crate) fn schema_number(record: u32) -> u64 {
    (u64::from(record) << 32) + 1
}

/// The number of a mod, by its place in its record.
pub(crate) fn mod_number(record: u32, place: usize) -> u64 {
    schema_number(record) + 1 + place as u64
}

/// Before everything committed at `at` or later.
pub(crate) fn before(at: Instant) -> Position {
    Position::new(bounded(at, 0), token(at))
}

/// After everything committed at `at` or earlier.
pub(crate) fn through(at: Instant) -> Position {
    Position::new(bounded(at, u8::MAX), token(at))
}

/// After a transaction.
pub(crate) fn after(prefix: &[u8], commit: Instant) -> Position {
    Position::new(Rank::of_end(prefix), token(commit))
}

/// After the records of this time up to `sequence`, which begin a partition of mutable key ranges.
pub(crate) fn amid(at: Instant, sequence: u32) -> Position {
    let mut bytes = token(at).to_vec();
    bytes.extend_from_slice(&sequence.to_be_bytes());
    // Above `before`, below every transaction: an id is not empty.
    let mut rank = bounded(at, 0).as_bytes().to_vec();
    rank[PREFIX..].copy_from_slice(&(u64::from(sequence) + 1).to_be_bytes());
    Position::new(Rank::new(rank), bytes)
}

/// The time to read on from.
///
/// # Errors
/// [`Fatal`](anabranch_core::ErrorKind::Fatal) for a position of another source.
pub(crate) fn time(position: &Position) -> Result<Instant> {
    Instant::from_bytes(&position.token)
        .ok_or_else(|| Error::fatal(format!("the position {:?} is not one of a change stream", position.rank)))
}

/// The last `record_sequence` of [`time`] that lies before the partition.
pub(crate) fn skipped(position: &Position) -> Option<u32> {
    let rest = position.token.get(Instant::BYTES..)?;
    Some(u32::from_be_bytes(rest.try_into().ok()?))
}

fn bounded(at: Instant, filler: u8) -> Rank {
    let mut bytes = Vec::with_capacity(PREFIX + 8);
    bytes.extend_from_slice(&at.to_bytes());
    bytes.resize(PREFIX + 8, filler);
    Rank::new(bytes)
}

fn token(at: Instant) -> Bytes {
    at.to_bytes().to_vec().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_sort_by_time_then_transaction_then_record_then_mod() {
        let (early, late) = ("2026-01-01T00:00:00.000000001Z", "2026-01-01T00:00:00.000000002Z");
        let (early, late): (Instant, Instant) = (early.parse().unwrap(), late.parse().unwrap());
        let long = "x".repeat(40);
        let rank = |at, id: &str, record, place| Rank::of_change(&prefix(at, id), mod_number(record, place));
        let sorted = [
            before(early).rank,
            rank(early, "1", 0, 0),
            rank(early, "1", 0, 1),
            rank(early, "1", 1, 0),
            Rank::of_end(&prefix(early, "1")),
            rank(early, "10", 0, 0),
            rank(early, "2", 0, 0),
            rank(early, &long, 0, 0),
            through(early).rank,
            before(late).rank,
            rank(late, "", 0, 0),
            through(late).rank,
        ];
        assert!(sorted.is_sorted_by(|a, b| a < b), "{sorted:?}");
        let length = sorted[0].as_bytes().len();
        assert!(sorted.iter().all(|r| r.as_bytes().len() == length));
    }

    #[test]
    fn a_transaction_is_known_by_its_rank() {
        let at: Instant = "2026-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(transaction(&prefix(at, "NjQwMDE2OTkz")), Some("NjQwMDE2OTkz"));
        let (a, b) = (format!("{}a", "x".repeat(40)), format!("{}b", "x".repeat(40)));
        assert_ne!(prefix(at, &a), prefix(at, &b));
        assert_eq!(transaction(&prefix(at, &a)), None);
    }

    #[test]
    fn a_position_keeps_its_time() {
        let at: Instant = "2026-01-01T00:00:00.123456789Z".parse().unwrap();
        for position in [before(at), through(at), after(&prefix(at, "1"), at), amid(at, 7)] {
            assert_eq!(time(&position).unwrap(), at);
        }
        assert_eq!(skipped(&amid(at, 7)), Some(7));
        assert_eq!(skipped(&through(at)), None);
        assert!(time(&Position::default()).is_err());
    }
}
