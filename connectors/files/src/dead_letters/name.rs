//! What the object of a letter is called.

use anabranch_core::{DeadLetter, LetterClass, LetterState};
use chrono::{DateTime, Utc};

use crate::names;

/// The name of a revision of a letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LetterName {
    pub(super) folder: &'static str,
    /// `2026/11/21/08/52`: when its change was committed.
    pub(super) minute: String,
    pub(super) id: String,
    pub(super) revision: u64,
    pub(super) state: LetterState,
}

const RETRY: &str = "retry";
const SEVERE: &str = "severe";
const SKIP: &str = "skip";
const FILTERED: &str = "filtered";
const APPLIED: &str = "applied";

/// In place of the minute of a change without a commit time.
const UNDATED: &str = "undated";

/// The longest name of a file or folder that an id is given: file systems take 255 bytes, and the
/// revision and the state come behind it.
const LONGEST: usize = 200;

/// The folders of a pipeline.
pub(super) fn folders() -> [&'static str; 5] {
    [RETRY, SEVERE, SKIP, FILTERED, APPLIED]
}

/// Where the time of a letter puts it. The year is that of the calendar, not of the week.
pub(super) fn minute(letter: &DeadLetter) -> String {
    let time = letter.commit_time.and_then(|t| DateTime::<Utc>::from_timestamp_micros(t.as_micros()));
    time.map_or_else(|| UNDATED.to_owned(), |time| time.format("%Y/%m/%d/%H/%M").to_string())
}

impl LetterName {
    pub(super) fn of(letter: &DeadLetter, revision: u64) -> Self {
        let folder = match (letter.state, letter.class) {
            (LetterState::Applied, _) => APPLIED,
            (_, LetterClass::Filtered) => FILTERED,
            (LetterState::Skipped, _) | (_, LetterClass::Skip) => SKIP,
            (_, LetterClass::Severe) => SEVERE,
            (_, LetterClass::Retry) => RETRY,
        };
        Self { folder, minute: minute(letter), id: letter.id.clone(), revision, state: letter.state }
    }

    /// Within the folder of the pipeline.
    pub(super) fn path(&self) -> String {
        let (id, state) = (file_of(&self.id), state_name(self.state));
        format!("{}/{}/{id}.{:06}.{state}.jsonl", self.folder, self.minute, self.revision)
    }

    /// The inverse of [`LetterName::path`]; `None` for what is no letter.
    pub(super) fn parse(path: &str) -> Option<Self> {
        let (folder, rest) = path.split_once('/')?;
        let folder = folders().into_iter().find(|f| *f == folder)?;
        let slashes = if rest.starts_with(UNDATED) { 0 } else { 4 };
        let (end, _) = rest.match_indices('/').nth(slashes)?;
        let (minute, file) = (&rest[..end], &rest[end + 1..]);
        let mut parts = file.strip_suffix(".jsonl")?.rsplitn(3, '.');
        let state = state_of(parts.next()?)?;
        let revision = parts.next()?.parse().ok()?;
        let id = names::unescape(&parts.next()?.replace('/', ""))?;
        Some(Self { folder, minute: minute.to_owned(), id, revision, state })
    }

    /// Which of two of one id counts: of equal revisions, which two writers gave at the same time, the
    /// one that says that it is dealt with.
    pub(super) fn beats(&self, other: &Self) -> bool {
        let place = |name: &Self| {
            let state = match name.state {
                LetterState::Held => 0,
                LetterState::Open => 1,
                LetterState::Skipped => 2,
                LetterState::Applied => 3,
            };
            (name.revision, state, name.folder)
        };
        place(self) > place(other)
    }
}

fn state_name(state: LetterState) -> &'static str {
    match state {
        LetterState::Open => "open",
        LetterState::Held => "held",
        LetterState::Applied => "applied",
        LetterState::Skipped => "skipped",
    }
}

fn state_of(name: &str) -> Option<LetterState> {
    Some(match name {
        "open" => LetterState::Open,
        "held" => LetterState::Held,
        "applied" => LetterState::Applied,
        "skipped" => LetterState::Skipped,
        _ => return None,
    })
}

/// An id as a name; a long one (of a partition with a long token) as folders and a name.
fn file_of(id: &str) -> String {
    let escaped = names::escape(id).replace('.', "=2e");
    let mut file = String::with_capacity(escaped.len() + 8);
    for (at, c) in escaped.chars().enumerate() {
        if at > 0 && at % LONGEST == 0 {
            file.push('/');
        }
        file.push(c);
    }
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        for (id, minute) in [("slot:00ff", "2026/11/21/08/52"), ("a.b/c _é", UNDATED), (&"x.=/".repeat(200), UNDATED)]
        {
            let name = LetterName {
                folder: SEVERE,
                minute: minute.to_owned(),
                id: id.to_owned(),
                revision: 7,
                state: LetterState::Held,
            };
            let path = name.path();
            assert_eq!(LetterName::parse(&path), Some(name), "{path}");
            assert!(path.split('/').all(|part| part.len() < 250 && !part.starts_with('.')), "{path}");
        }
        for path in ["", "retry", "retry/x", "other/undated/a.000001.open.jsonl", "retry/undated/a.000001.new.jsonl"] {
            assert_eq!(LetterName::parse(path), None, "{path}");
        }
    }
}
