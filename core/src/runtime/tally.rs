//! Changes that were left out, counted with the progress of their lane, so that the number is exact.

use serde::{Deserialize, Serialize};

use crate::dead_letter::LetterClass;
use crate::model::{Counters, PartitionId, Position, Progress, Rank};

/// The partition name under which a sink stores a lane's tally: in the target transaction of the
/// changes around those that were left out.
pub(crate) const TALLY: &str = "left-out";

/// How many changes of a lane were left out since the pipeline exists.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tally {
    filtered: u64,
    skipped: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, class: LetterClass) {
        match class {
            LetterClass::Filtered => self.filtered += 1,
            _ => self.skipped += 1,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn counters(self) -> Counters {
        Counters { filtered: self.filtered, skipped: self.skipped, ..Counters::default() }
    }

    /// As a lane stores it.
    pub(crate) fn progress(self) -> Progress {
        let token = serde_json::to_vec(&self).unwrap_or_default();
        // Always a new rank: a sink may keep only what grows.
        let rank = (self.filtered + self.skipped).to_be_bytes().to_vec();
        let position = Position::new(Rank::new(rank), token);
        Progress { partition: PartitionId::new(TALLY), position, safe_time: None }
    }

    pub(crate) fn read(stored: Option<&Progress>) -> Self {
        stored.and_then(|p| serde_json::from_slice(&p.position.token).ok()).unwrap_or_default()
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.filtered += other.filtered;
        self.skipped += other.skipped;
    }
}
