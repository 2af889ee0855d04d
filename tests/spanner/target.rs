//! An SQLite file as the target, and who watches it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::Tested;
use super::workload::{State, States};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// All rows in one snapshot. `None`: it is not there yet, or busy.
pub(crate) fn observe(path: &PathBuf) -> Option<State> {
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).ok()?;
    db.busy_timeout(Duration::from_secs(5)).ok()?;
    // The first SELECT fixes the snapshot of a deferred transaction.
    db.execute_batch("BEGIN").ok()?;
    let rows = |sql: &str| {
        let mut statement = db.prepare(sql)?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        rows.collect::<rusqlite::Result<_>>()
    };
    let accounts = rows("SELECT id, balance FROM accounts").ok()?;
    let journal = rows("SELECT n, amount FROM journal").ok()?;
    Some(State { accounts, journal })
}

/// Looks at the target all the while: after the first load it must be at a state of the source, and
/// never at an earlier one than before.
pub(crate) struct Watcher {
    stop: Arc<AtomicBool>,
    states: Arc<AtomicUsize>,
    thread: JoinHandle<Tested>,
}

impl Watcher {
    pub(crate) fn start(path: PathBuf, source: States) -> Self {
        let (stop, states) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&states));
        let thread = spawn(move || {
            let mut reached: Option<usize> = None;
            while !stopped.load(Ordering::Relaxed) {
                sleep(PAUSE);
                let Some(seen) = observe(&path) else { continue };
                let source = source.lock().unwrap_or_else(PoisonError::into_inner);
                let from = reached.unwrap_or(0);
                match (source[from..].iter().position(|state| *state == seen), reached) {
                    (Some(0), Some(_)) => {}
                    (Some(at), _) => {
                        reached = Some(from + at);
                        counted.fetch_add(1, Ordering::Relaxed);
                    }
                    (None, None) => {}
                    (None, Some(last)) => {
                        let earlier = source.iter().position(|state| *state == seen);
                        return Err(format!(
                            "after state {last} the target is at {earlier:?} (None: at no state of the source): {seen:?}"
                        )
                        .into());
                    }
                }
            }
            Ok(())
        });
        Self { stop, states, thread }
    }

    /// How many different states were seen.
    pub(crate) fn states(&self) -> usize {
        self.states.load(Ordering::Relaxed)
    }

    /// Whether it found something wrong.
    pub(crate) fn found_something(&self) -> bool {
        self.thread.is_finished()
    }

    pub(crate) fn stop(self) -> Tested {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| "the watcher panicked")?
    }
}
