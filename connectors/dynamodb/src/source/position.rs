//! Where in a shard: ranks and tokens.

use anabranch_core::{Error, Position, Rank, Result, Timestamp};
use bytes::{BufMut, Bytes, BytesMut};

/// A sequence number has 21 to 40 digits (API reference, `StreamRecord`). Padded, it sorts as text.
const DIGITS: usize = 40;

/// Stream epoch and sequence number.
const PREFIX: usize = 8 + DIGITS;

/// The rank prefixes, and with them the positions, of a page of records, in one allocation.
#[derive(Debug)]
pub(crate) struct Ranks {
    epoch: u64,
    buffer: BytesMut,
}

impl Ranks {
    pub(crate) fn new(epoch: u64, records: usize) -> Self {
        Self { epoch, buffer: BytesMut::with_capacity(records * (PREFIX + 8)) }
    }

    /// The rank prefix of the record with this number, and the position after it.
    pub(crate) fn of(&mut self, sequence: &str) -> Result<(Bytes, Position)> {
        if sequence.len() > DIGITS || !sequence.bytes().all(|b| b.is_ascii_digit()) || sequence.is_empty() {
            return Err(Error::fatal(format!("the stream gave the sequence number {sequence:?}")));
        }
        self.buffer.put_u64(self.epoch);
        self.buffer.put_bytes(b'0', DIGITS - sequence.len());
        self.buffer.put_slice(sequence.as_bytes());
        self.buffer.put_u64(u64::MAX);
        let end = self.buffer.split().freeze();
        // As it was given: the service wants it back with all its digits.
        let token = end.slice(PREFIX - sequence.len()..PREFIX);
        Ok((end.slice(..PREFIX), Position::new(Rank::new(end), token)))
    }
}

/// The position after one record.
pub(crate) fn after(epoch: u64, sequence: &str) -> Result<Position> {
    Ranks::new(epoch, 1).of(sequence).map(|(_, position)| position)
}

/// What a position's token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Token {
    /// After the record with this number.
    After(String),
    /// At the start of the shard.
    Start(Start),
}

/// The start of a shard.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Start {
    /// The number that the shard begins with, if it is known.
    pub(crate) first: Option<String>,
    /// What was written before this time is not needed: it was there when the pipeline, or its
    /// copy, began. `None`: everything is needed.
    pub(crate) since: Option<Timestamp>,
    /// The safe time of the shards before it.
    pub(crate) safe: Option<Timestamp>,
}

impl Token {
    /// Reads a token; an empty one is the start of a shard of which nothing is known.
    pub(crate) fn parse(token: &[u8]) -> Result<Self> {
        let strange = || Error::fatal("this position is not of a DynamoDB stream");
        let text = std::str::from_utf8(token).map_err(|_| strange())?;
        let Some(start) = text.strip_prefix("start") else {
            return match text {
                "" => Ok(Self::Start(Start::default())),
                digits if digits.bytes().all(|b| b.is_ascii_digit()) => Ok(Self::After(text.to_owned())),
                _ => Err(strange()),
            };
        };
        let mut parsed = Start::default();
        for word in start.split_whitespace() {
            let time = |v: &str| v.parse().map(Timestamp::from_micros).map_err(|_| strange());
            match word.split_once('=') {
                Some(("at", v)) => parsed.first = Some(v.to_owned()),
                Some(("since", v)) => parsed.since = Some(time(v)?),
                Some(("safe", v)) => parsed.safe = Some(time(v)?),
                _ => return Err(strange()),
            }
        }
        Ok(Self::Start(parsed))
    }
}

impl Start {
    /// The position of it: below every record.
    pub(crate) fn position(&self) -> Position {
        let mut token = "start".to_owned();
        let mut word = |name: &str, value: String| {
            token.push_str(&format!(" {name}={value}"));
        };
        if let Some(first) = &self.first {
            word("at", first.clone());
        }
        if let Some(since) = self.since {
            word("since", since.as_micros().to_string());
        }
        if let Some(safe) = self.safe {
            word("safe", safe.as_micros().to_string());
        }
        Position::new(Rank::default(), token)
    }
}

/// A position as people read it.
pub(crate) fn describe(position: &Position) -> String {
    match Token::parse(&position.token) {
        Ok(Token::After(sequence)) => format!("sequence number {sequence}"),
        _ => "the start of the shard".to_owned(),
    }
}

/// The epoch of a stream: milliseconds since 1970 of its label, such as `2026-11-21T08:50:00.123`.
/// A later stream of the table has a larger one. `None` if the label is not a time.
pub(crate) fn epoch(label: &str) -> Option<u64> {
    let stamp = format!("{label}Z");
    let time = aws_smithy_types::DateTime::from_str(&stamp, aws_smithy_types::date_time::Format::DateTime).ok()?;
    u64::try_from(time.to_millis().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_sort_as_numbers() {
        let numbers =
            ["000000000000000000001", "9", "10", "4300000000006786886573", "9999999999999999999999999999999999999999"];
        let ranks: Vec<Rank> = numbers.iter().map(|n| after(7, n).unwrap().rank).collect();
        assert!(ranks.is_sorted());
        assert!(after(8, "1").unwrap().rank > ranks[4], "a later stream is above");
        let (prefix, end) = Ranks::new(7, 1).of("10").unwrap();
        assert!(Rank::of_change(&prefix, 1) < end.rank);
        assert_eq!(Token::parse(&end.token).unwrap(), Token::After("10".to_owned()));
        let padded = after(7, "000000000000000000010").unwrap();
        assert_eq!((&padded.rank, &padded.token[..]), (&end.rank, &b"000000000000000000010"[..]));
        for bad in ["", "-1", "1a", "99999999999999999999999999999999999999999"] {
            assert!(after(7, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn tokens_are_read_back() {
        let start = Start { first: Some("17".to_owned()), since: Some(Timestamp::from_micros(5)), safe: None };
        assert_eq!(Token::parse(&start.position().token).unwrap(), Token::Start(start));
        assert_eq!(Token::parse(b"").unwrap(), Token::Start(Start::default()));
        assert!(Token::parse(b"0/16B3748").is_err());
    }

    #[test]
    fn labels_are_times() {
        assert_eq!(epoch("2015-05-11T21:21:33.291"), Some(1_431_379_293_291));
        assert_eq!(epoch("latest"), None);
    }
}
