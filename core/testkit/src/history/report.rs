//! What the checker found.

use std::fmt;

/// How many violations are kept in words; all are counted.
const KEPT: usize = 20;

/// What is wrong with a row of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ViolationKind {
    /// A row, or a change of it, that should be there is not.
    Lost,
    /// A row is there twice, or a deleted one is.
    Doubled,
    /// What a reader saw before is gone again.
    Backwards,
    /// Part of a transaction is visible, or a transaction without one before it.
    Torn,
    /// A value that the row never had in the source.
    Wrong,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Of what kind.
    pub kind: ViolationKind,
    /// Table, row, and what was expected.
    pub what: String,
}

/// The result of a run.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The seed that replays the run.
    pub seed: u64,
    /// Transactions of the source.
    pub commits: usize,
    /// Observations while the first load was under way: not compared with prefixes.
    pub loading: usize,
    /// Observations that were compared with a prefix of the history.
    pub compared: usize,
    /// Different prefixes among them.
    pub prefixes: usize,
    /// Rows compared.
    pub rows: usize,
    /// See [`ViolationKind::Lost`].
    pub lost: usize,
    /// See [`ViolationKind::Doubled`].
    pub doubled: usize,
    /// See [`ViolationKind::Backwards`].
    pub backwards: usize,
    /// See [`ViolationKind::Torn`].
    pub torn: usize,
    /// See [`ViolationKind::Wrong`].
    pub wrong: usize,
    /// The first violations.
    pub violations: Vec<Violation>,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.lost + self.doubled + self.backwards + self.torn + self.wrong == 0
    }

    pub(crate) fn add(&mut self, kind: ViolationKind, what: String) {
        *match kind {
            ViolationKind::Lost => &mut self.lost,
            ViolationKind::Doubled => &mut self.doubled,
            ViolationKind::Backwards => &mut self.backwards,
            ViolationKind::Torn => &mut self.torn,
            ViolationKind::Wrong => &mut self.wrong,
        } += 1;
        if self.violations.len() < KEPT {
            self.violations.push(Violation { kind, what });
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "seed {}: {} transactions, {} observations of {} states ({} rows), {} while loading; \
             lost {}, doubled {}, backwards {}, torn {}, wrong {}",
            self.seed,
            self.commits,
            self.compared,
            self.prefixes,
            self.rows,
            self.loading,
            self.lost,
            self.doubled,
            self.backwards,
            self.torn,
            self.wrong
        )?;
        for violation in &self.violations {
            write!(f, "\n  {:?}: {}", violation.kind, violation.what)?;
        }
        Ok(())
    }
}
