//! What objects are called.

use anabranch_core::{Error, Result, Timestamp};
use chrono::{DateTime, Utc};

/// The folder of changes without a shard. No shard's own folder begins with an underscore.
pub(crate) const UNSHARDED: &str = "_unsharded";

/// The object that says what a run has written.
pub(crate) fn ledger(run: &str) -> String {
    format!("{}/_ledger.json", escape(run))
}

/// The object with the tables of a run.
pub(crate) fn tables(run: &str) -> String {
    format!("{}/_tables.json", escape(run))
}

/// The object that says how the writer of a shard fares; a writer that has a name has a folder.
pub(crate) fn status(run: &str, writer: &str, shard: &str) -> String {
    match writer {
        "" => format!("{}/_writers/{shard}.json", escape(run)),
        _ => format!("{}/_writers/{}/{shard}.json", escape(run), escape(writer)),
    }
}

/// The folder of a shard; `None`: of changes without one.
pub(crate) fn shard(name: Option<&str>) -> String {
    match name {
        None | Some("") => UNSHARDED.to_owned(),
        Some(name) => escape(name),
    }
}

/// The folder of a run and shard; `shard` is the name of its folder.
pub(crate) fn folder(run: &str, shard: &str) -> String {
    format!("{}/{shard}", escape(run))
}

/// A name where it is safe in every store, with `=` and two hexadecimal digits for every other byte,
/// and for one at the beginning that would hide it. It keeps names apart and sorts as they do, but
/// for escaped bytes.
pub(crate) fn escape(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    for (at, byte) in name.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => escaped.push(char::from(byte)),
            b'.' | b'_' if at > 0 => escaped.push(char::from(byte)),
            _ => escaped.push_str(&format!("={byte:02x}")),
        }
    }
    if escaped.is_empty() {
        escaped.push('=');
    }
    escaped
}

/// The inverse of [`escape`]; `None` for what it never gives.
pub(crate) fn unescape(escaped: &str) -> Option<String> {
    if escaped == "=" {
        return Some(String::new());
    }
    let mut bytes = Vec::with_capacity(escaped.len());
    let mut rest = escaped.as_bytes();
    while let [first, after @ ..] = rest {
        if *first == b'=' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

/// A fixed span of commit times: `[start, start + length)`, both in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) start: i64,
    pub(crate) length: i64,
}

impl Window {
    /// The window that holds `time`.
    pub(crate) fn of(time: Timestamp, length: i64) -> Self {
        Self { start: time.as_micros().div_euclid(length).saturating_mul(length), length }
    }

    pub(crate) fn end(self) -> i64 {
        self.start.saturating_add(self.length)
    }

    /// `20261121T085200.000000Z-20261121T085210.000000Z`: names sort as windows do.
    pub(crate) fn name(self) -> Result<String> {
        Ok(format!("{}-{}", instant(self.start)?, instant(self.end())?))
    }

    /// The name of a part of it: parts sort behind the first one, before the next window.
    pub(crate) fn file(self, part: u32) -> Result<String> {
        let name = self.name()?;
        Ok(match part {
            0 => format!("{name}.jsonl"),
            1..100_000 => format!("{name}.part-{part:05}.jsonl"),
            // Behind those of five digits. A commit time far ahead keeps a shard in one window for long.
            _ => format!("{name}.part-x{part:010}.jsonl"),
        })
    }

    /// What lists the parts of a window that has several.
    pub(crate) fn manifest(self) -> Result<String> {
        Ok(format!("{}.manifest.json", self.name()?))
    }
}

fn instant(micros: i64) -> Result<String> {
    let time =
        DateTime::<Utc>::from_timestamp_micros(micros).filter(|t| (1..=9999).contains(&chrono::Datelike::year(t)));
    match time {
        Some(time) => Ok(time.format("%Y%m%dT%H%M%S%.6fZ").to_string()),
        None => Err(Error::fatal(format!("a commit time of {micros} microseconds since 1970 has no window"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_and_hide_nothing() {
        for name in ["", "eu", "shard 1", "_ledger.json", ".x", "a/b", "ä=%", "..", "A.b_c-d"] {
            let escaped = escape(name);
            assert_eq!(unescape(&escaped).as_deref(), Some(name), "{escaped}");
            assert!(!escaped.starts_with(['_', '.']) && !escaped.contains('/') && !escaped.is_empty(), "{escaped}");
        }
        assert_eq!(escape("_a.b"), "=5fa.b");
    }

    #[test]
    fn files_sort_in_the_order_of_windows_and_parts() {
        let time = Timestamp::from_micros(1_700_000_000_000_001);
        let window = Window::of(time, 10_000_000);
        assert_eq!(window.file(0).unwrap(), "20231114T221320.000000Z-20231114T221330.000000Z.jsonl");
        let next = Window::of(Timestamp::from_micros(window.end()), 10_000_000);
        let parts = [1, 2, 12, 99_999, 100_000, 100_001, 1_000_000, u32::MAX].map(|part| window.file(part));
        let first = [window.file(0), window.manifest()];
        let names: Vec<String> = first.into_iter().chain(parts).chain([next.file(0)]).map(Result::unwrap).collect();
        assert!(names.is_sorted(), "{names:?}");
        assert_eq!(Window::of(Timestamp::from_micros(-1), 10).start, -10);
        assert!(Window::of(Timestamp::from_micros(i64::MIN), 10).name().is_err());
    }
}
