//! The ending of a crash run: what was killed over and over is drained, compared and judged.

use std::env;

use super::Tested;
use super::faults::Faults;
use super::runner::Runner;
use super::targets::Target;
use super::watcher::Watcher;

/// A run whose kills are over and whose writers are still.
pub(super) struct Ending<'a> {
    pub(super) name: &'a str,
    pub(super) seed: u64,
    pub(super) faults: &'a Faults,
    pub(super) runner: &'a mut Runner,
    pub(super) target: &'a dyn Target,
    pub(super) watcher: Watcher,
    /// Transactions that the source acknowledged.
    pub(super) committed: u64,
    /// States of the source that a reader of the target has to have seen, or the run means too little.
    pub(super) states: usize,
}

impl Ending<'_> {
    /// Stops the runner, drains unless something is wrong already, and asserts that the target has
    /// everything and was right all the while.
    pub(super) async fn finish(self) -> Tested {
        let Self { name, seed, faults, runner, target, watcher, committed, states } = self;
        let ended = match runner.stop().await {
            Ok(()) if !watcher.found_something() => runner.drain().await,
            other => other,
        };
        if let Err(e) = ended {
            let (done, stored, log) = (faults.summary(), target.stored(), runner.log());
            println!("{name}, SEED={seed}, {done}: {e}\nstored:\n{stored}\nits log:\n{log}");
            return Err(e);
        }
        let report = watcher.finish().await?;
        println!("{name}: {report}; {}; {committed} acknowledged commits", faults.summary());
        if env::var_os("VERBOSE").is_some() {
            println!("{}", runner.log());
        }
        assert!(committed <= report.commits as u64, "{name}: the source itself lost commits: {committed}, {report}");
        assert!(report.is_clean(), "{name}: {report}\n{}", runner.log());
        assert!(report.prefixes >= states, "{name}: too little was seen to mean anything: {report}");
        Ok(())
    }
}
