//! Where in a partition: an ordered rank, and an opaque token that resumes the reader.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Orders positions of one partition by comparing bytes. The runtime compares nothing else.
///
/// A source gives each transaction a rank prefix that grows in the order it delivers them.
/// The rank of a change is that prefix and its 8-byte big-endian number within the transaction,
/// counted from 1; the rank of the transaction's end is the prefix and `u64::MAX`. The prefixes of
/// one source have one length.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Rank(Bytes);

impl Rank {
    /// A rank of these bytes.
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        Self(bytes.into())
    }

    /// The rank of change number `sequence` (from 1) of the transaction with this prefix.
    pub fn of_change(prefix: &[u8], sequence: u64) -> Self {
        let mut bytes = Vec::with_capacity(prefix.len() + 8);
        bytes.extend_from_slice(prefix);
        bytes.extend_from_slice(&sequence.to_be_bytes());
        Self(bytes.into())
    }

    /// The rank of the end of the transaction with this prefix: above every change of it.
    pub fn of_end(prefix: &[u8]) -> Self {
        Self::of_change(prefix, u64::MAX)
    }

    /// The bytes that are compared.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A place in one partition: everything with a rank at or below [`Position::rank`] is behind it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Position {
    /// What the runtime compares.
    pub rank: Rank,
    /// What the connector resumes from; opaque to everyone else. Empty: where the partition starts.
    #[serde(with = "hex_bytes")]
    pub token: Bytes,
}

impl Position {
    /// A position of this rank and token.
    pub fn new(rank: Rank, token: impl Into<Bytes>) -> Self {
        Self { rank, token: token.into() }
    }
}

impl fmt::Debug for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl Serialize for Rank {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        hex_bytes::serialize(&self.0, s)
    }
}

impl<'de> Deserialize<'de> for Rank {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        hex_bytes::deserialize(d).map(Self)
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for b in bytes {
        text.push(DIGITS[usize::from(b >> 4)] as char);
        text.push(DIGITS[usize::from(b & 15)] as char);
    }
    text
}

/// Bytes as hexadecimal text, so that checkpoints can be read by people.
pub(crate) mod hex_bytes {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(bytes: &Bytes, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&hex(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(d)?;
        let digit = |c: u8| (c as char).to_digit(16).map(|v| v as u8);
        let mut bytes = Vec::with_capacity(text.len() / 2);
        for pair in text.as_bytes().chunks(2) {
            match (digit(pair[0]), pair.get(1).copied().and_then(digit)) {
                (Some(high), Some(low)) => bytes.push(high << 4 | low),
                _ => return Err(serde::de::Error::custom("expected an even number of hexadecimal digits")),
            }
        }
        Ok(bytes.into())
    }
}
