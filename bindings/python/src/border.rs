//! The way into the interpreter, for the threads of the runtime. It is closed before the interpreter
//! ends: a thread that is on its way in, or out, while CPython takes itself apart crashes the process.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pyo3::prelude::*;

struct Border {
    inside: usize,
    closed: bool,
}

static BORDER: Mutex<Border> = Mutex::new(Border { inside: 0, closed: false });
static LEFT: Condvar = Condvar::new();

fn border() -> MutexGuard<'static, Border> {
    BORDER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One that is inside, until it is dropped.
struct Inside;

impl Inside {
    fn enter() -> Option<Self> {
        let mut border = border();
        if border.closed {
            return None;
        }
        border.inside += 1;
        Some(Self)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        border().inside -= 1;
        LEFT.notify_all();
    }
}

/// Runs `f` attached to the interpreter. `None`: the interpreter is ending.
pub(crate) fn attached<T>(f: impl FnOnce(Python<'_>) -> T) -> Option<T> {
    let _inside = Inside::enter()?;
    Python::try_attach(f)
}

/// Lets nobody in any more, and waits for those inside, at most so long. A connector's own call may
/// take longer: then it is left as it is.
pub(crate) fn close(py: Python<'_>, limit: Duration) {
    border().closed = true;
    py.detach(|| {
        let until = Instant::now() + limit;
        let mut border = border();
        while border.inside > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            border = LEFT.wait_timeout(border, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    });
}
