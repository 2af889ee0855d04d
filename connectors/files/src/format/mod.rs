//! The lines of a window file.
//!
//! ```text
//! {"anabranch_window":1,"run":"r","shard":"eu","start":"..","end":"..","part":0,"number":17,"previous":"..",..}
//! {"schema":{"id":0,"table":{"name":{..},"columns":[..],"key":[0]}}}        before its first change
//! {"begin":{"rank":"00ff","time":"2026-11-21T08:52:00.000001Z","tag":"txBy=.."}}
//! {"op":"update","t":0,"n":2,"image":"key","old":[7,{"unchanged":true}],"new":[7,"hello"]}
//! {"end":{"records":1,"lines":5}}
//! ```
//!
//! A value is `null`, `true`, a whole number, a text (which is the canonical text of a type that JSON
//! lacks), `{"float":"NaN"}`, `{"bytes":"00ff"}` or `{"unchanged":true}`.

mod decode;
mod encode;
mod value;

use serde::{Deserialize, Serialize};

pub(crate) use decode::{Begin, ChangeLine, End, Line, parse};
pub(crate) use encode::Body;

/// The version of the form of window files.
pub const FORMAT: u32 = 1;

/// The first line of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Header {
    pub(crate) anabranch_window: u32,
    pub(crate) run: String,
    /// The shard's own name; `None` for changes without one.
    pub(crate) shard: Option<String>,
    /// The window: from this instant on, and before the other.
    pub(crate) start: String,
    pub(crate) end: String,
    /// The place of the file among those of its window, from 0.
    pub(crate) part: u32,
    /// The place of the file among all of its shard, from 1, without a hole.
    pub(crate) number: u64,
    /// The name of the file with the number before.
    pub(crate) previous: Option<String>,
    /// Who wrote it.
    pub(crate) pipeline: String,
    pub(crate) epoch: u64,
}

/// Bytes as hexadecimal text.
pub(crate) mod hex {
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn encode(bytes: &[u8]) -> String {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digits = bytes.iter().flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]]);
        digits.map(char::from).collect()
    }

    pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
        let digit = |c: u8| char::from(c).to_digit(16).map(|v| v as u8);
        if !text.len().is_multiple_of(2) {
            return None;
        }
        text.as_bytes().chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
    }

    pub(crate) fn serialize<S: Serializer>(bytes: &Bytes, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Bytes, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        decode(&text).map(Bytes::from).ok_or_else(|| D::Error::custom("expected an even number of hexadecimal digits"))
    }
}

/// An instant as RFC 3339 text in UTC, to the microsecond; microseconds since 1970 where the calendar ends.
pub(crate) mod time {
    use anabranch_core::Timestamp;
    use chrono::{DateTime, Utc};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(time: &Option<Timestamp>, s: S) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => s.serialize_str(&time.to_string()),
            None => s.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Timestamp>, D::Error> {
        let Some(text) = Option::<std::borrow::Cow<'de, str>>::deserialize(d)? else { return Ok(None) };
        parse(&text).map(Some).ok_or_else(|| D::Error::custom("expected a time: 2026-11-21T08:52:00.000001Z"))
    }

    fn parse(text: &str) -> Option<Timestamp> {
        match text.strip_suffix("us") {
            Some(micros) => micros.parse().ok().map(Timestamp::from_micros),
            None => text.parse::<DateTime<Utc>>().ok().map(Timestamp::from),
        }
    }
}
