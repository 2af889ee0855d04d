//! Pause and resume: the mark in the checkpoint, and what the process that runs the pipeline does about it.

/// Where a run stands towards the mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pause {
    /// It runs.
    Running,
    /// The mark was seen: what is under way is being finished.
    Pausing,
    /// Nothing is read and nothing written.
    Paused,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing.
    Stay,
    /// Finish what is under way, flush and save.
    Finish,
    /// Begin a run: take the pipeline over.
    Begin,
}

impl Pause {
    /// The mark was read.
    pub(crate) fn seen(&mut self, marked: bool) -> Step {
        let (next, step) = match (*self, marked) {
            (Self::Running, true) => (Self::Pausing, Step::Finish),
            // Too late to go on: the end under way is waited for, and then a run begins.
            (Self::Pausing, _) => (Self::Pausing, Step::Stay),
            (Self::Paused, false) => (Self::Running, Step::Begin),
            (stay, _) => (stay, Step::Stay),
        };
        *self = next;
        step
    }

    /// The run has ended, in an orderly way or by an error that may mend itself.
    pub(crate) fn ended(&mut self) {
        if *self == Self::Pausing {
            *self = Self::Paused;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_ends_once_and_begins_again_when_the_mark_is_gone() {
        let mut pause = Pause::Running;
        assert_eq!(pause.seen(false), Step::Stay);
        assert_eq!(pause.seen(true), Step::Finish);
        assert_eq!(pause.seen(true), Step::Stay, "it ends already");
        assert_eq!(pause.seen(false), Step::Stay, "it ends all the same");
        pause.ended();
        assert_eq!(pause, Pause::Paused);
        assert_eq!(pause.seen(true), Step::Stay);
        assert_eq!(pause.seen(false), Step::Begin);
        assert_eq!(pause, Pause::Running);
    }

    #[test]
    fn a_run_that_fails_is_not_paused() {
        let mut pause = Pause::Running;
        pause.ended();
        assert_eq!(pause, Pause::Running);
    }
}
