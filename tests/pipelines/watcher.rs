//! The watcher of a run: reads the target all the while, and lets the checker judge.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anabranch_testkit::history::{Checker, Consistency, Observation, Report};
use tokio::task::JoinHandle;

use super::Tested;
use super::runner::Runner;
use super::source::History;
use super::targets::Target;

/// The shortest time between two observations.
const PAUSE: Duration = Duration::from_millis(20);
/// How long the source may be down.
const SOURCE_DEADLINE: Duration = Duration::from_secs(60);
/// How long the target may be, once nothing disturbs it any more.
const TARGET_DEADLINE: Duration = Duration::from_secs(60);
/// How long the states that a run needs may take to be seen, once nothing is killed any more.
const STATES_DEADLINE: Duration = Duration::from_secs(180);
/// Between two looks at how many were seen.
const POLL: Duration = Duration::from_millis(50);

/// A watcher at work.
pub(super) struct Watcher {
    stop: Arc<AtomicBool>,
    bad: Arc<AtomicBool>,
    states: Arc<AtomicUsize>,
    task: JoinHandle<Tested<(Checker, History)>>,
    target: Arc<dyn Target>,
}

impl Watcher {
    /// Starts to watch.
    pub(super) fn start(history: History, target: Arc<dyn Target>, seed: u64, consistency: Consistency) -> Self {
        let flag = || Arc::new(AtomicBool::new(false));
        let (stop, bad, states) = (flag(), flag(), Arc::new(AtomicUsize::new(0)));
        let flags = (stop.clone(), bad.clone(), states.clone());
        let checker = Checker::new(seed, consistency).without(target.without());
        let task = tokio::spawn(watch(history, checker, target.clone(), flags));
        Self { stop, bad, states, task, target }
    }

    /// Whether something is wrong already: the run can end.
    pub(super) fn found_something(&self) -> bool {
        self.bad.load(Ordering::Relaxed)
    }

    /// How many different states were seen and found right. 0: the first load is under way.
    pub(super) fn states(&self) -> usize {
        self.states.load(Ordering::Relaxed)
    }

    /// Waits until so many states were seen, while the pipeline goes on undisturbed: a loaded machine
    /// gets nowhere between kills. Ends early when something is wrong already, or the pipeline has given up.
    pub(super) async fn sees(&self, states: usize, runner: &Runner) {
        let deadline = Instant::now() + STATES_DEADLINE;
        while self.states() < states && !self.found_something() && !runner.gave_up() && Instant::now() < deadline {
            tokio::time::sleep(POLL).await;
        }
    }

    /// Ends it, without a last judgement.
    pub(super) async fn stop(self) -> Tested<(Checker, History)> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?
    }

    /// Ends it, the writers being still and the pipeline drained: compares every row, unless
    /// something is wrong already.
    pub(super) async fn finish(self) -> Tested<Report> {
        let target = self.target.clone();
        let (mut checker, mut history) = self.stop().await?;
        if !checker.report().is_clean() {
            return Ok(checker.report().clone());
        }
        caught_up(&mut history, &mut checker).await?;
        Ok(checker.finish(&observed(target.as_ref()).await?))
    }
}

type Flags = (Arc<AtomicBool>, Arc<AtomicBool>, Arc<AtomicUsize>);

async fn watch(
    mut history: History,
    mut checker: Checker,
    target: Arc<dyn Target>,
    (stop, bad, states): Flags,
) -> Tested<(Checker, History)> {
    while !stop.load(Ordering::Relaxed) {
        let started = Instant::now();
        if let Some(seen) = target.observe().await {
            // After the observation: what it shows has been committed by now.
            caught_up(&mut history, &mut checker).await?;
            if !checker.observe(&seen) {
                bad.store(true, Ordering::Relaxed);
                break;
            }
            states.store(checker.report().prefixes, Ordering::Relaxed);
        }
        // As long as it took, at least: the pipeline needs the machine too.
        tokio::time::sleep(started.elapsed().max(PAUSE)).await;
    }
    Ok((checker, history))
}

/// Reads the target, which may have been killed, or lost the reader's connection, a moment ago.
async fn observed(target: &dyn Target) -> Tested<Observation> {
    let deadline = Instant::now() + TARGET_DEADLINE;
    loop {
        match target.observe().await {
            Some(seen) => return Ok(seen),
            None if Instant::now() > deadline => return Err("the target cannot be read".into()),
            None => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Reads the history up to now, however often the source is killed meanwhile.
async fn caught_up(history: &mut History, checker: &mut Checker) -> Tested {
    let deadline = Instant::now() + SOURCE_DEADLINE;
    while let Err(e) = history.catch_up(checker).await {
        if Instant::now() > deadline {
            return Err(format!("the source's history cannot be read: {e}").into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
