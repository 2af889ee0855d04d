//! Wrappers that fail, or lie, when they are told to.
//!
//! ```
//! use std::sync::Arc;
//! use anabranch_core::{ErrorKind, memory::MemorySink};
//! use anabranch_testkit::faults::{Call, Fault, FaultySink, Schedule};
//! let schedule = Schedule::new().at(Call::Write, 3, Fault::DoneThenFail(ErrorKind::Indeterminate));
//! let _sink = FaultySink::new(Arc::new(MemorySink::new()), schedule);
//! ```

mod sink;
mod source;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use anabranch_core::{Error, ErrorKind, Result};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

pub use sink::FaultySink;
pub use source::FaultySource;

/// A call that may go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    /// `Sink::open`, `Source::open`.
    Open,
    /// `SinkWriter::write`.
    Write,
    /// `SinkWriter::flush`.
    Flush,
    /// `ProgressStore::take_over`.
    TakeOver,
    /// `Source::prepare`.
    Prepare,
    /// `ChangeReader::next`.
    Next,
    /// `ChangeReader::acknowledge`.
    Acknowledge,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is done, and an error says so.
    Fail(ErrorKind),
    /// It is done, and the answer is lost: an error comes instead.
    DoneThenFail(ErrorKind),
    /// Nothing is done, and the answer is that it was. What a broken implementation does; no
    /// runtime can mend it, but a checker has to find it. `Next` cannot lie, and fails instead.
    Lie,
    /// `Next` gives `Stopped`; other calls fail with `Transient`.
    Stop,
}

/// When something goes wrong. Clones share it, and count calls together.
#[derive(Debug, Clone, Default)]
pub struct Schedule {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    calls: HashMap<Call, u64>,
    faults: HashMap<(Call, u64), Fault>,
    random: Option<Random>,
    happened: u64,
}

#[derive(Debug)]
struct Random {
    random: StdRng,
    probability: f64,
    faults: Vec<(Call, Fault)>,
}

impl Schedule {
    /// Nothing goes wrong.
    pub fn new() -> Self {
        Self::default()
    }

    /// Call number `number`, from 1, of this kind goes wrong.
    #[must_use]
    pub fn at(self, call: Call, number: u64, fault: Fault) -> Self {
        self.locked(|shared| shared.faults.insert((call, number), fault));
        self
    }

    /// Each of these calls goes wrong with this probability, the same for the same seed and the
    /// same sequence of calls.
    #[must_use]
    pub fn random(self, seed: u64, probability: f64, faults: &[(Call, Fault)]) -> Self {
        let random = Random { random: StdRng::seed_from_u64(seed), probability, faults: faults.to_vec() };
        self.locked(|shared| shared.random = Some(random));
        self
    }

    /// From now on nothing goes wrong any more.
    pub fn heal(&self) {
        self.locked(|shared| {
            shared.faults.clear();
            shared.random = None;
        });
    }

    /// How often something went wrong.
    pub fn happened(&self) -> u64 {
        self.locked(|shared| shared.happened)
    }

    /// How often this call was made.
    pub fn calls(&self, call: Call) -> u64 {
        self.locked(|shared| shared.calls.get(&call).copied().unwrap_or_default())
    }

    /// Counts a call, and tells what goes wrong with it.
    fn next(&self, call: Call) -> Option<Fault> {
        self.locked(|shared| {
            let number = shared.calls.entry(call).or_default();
            *number += 1;
            let mut fault = shared.faults.remove(&(call, *number));
            if let (None, Some(random)) = (fault, &mut shared.random) {
                let possible: Vec<_> = random.faults.iter().filter(|(of, _)| *of == call).collect();
                if !possible.is_empty() && random.random.random_bool(random.probability) {
                    fault = Some(possible[random.random.random_range(0..possible.len())].1);
                }
            }
            shared.happened += u64::from(fault.is_some());
            fault
        })
    }

    /// Runs `work` as the schedule has it; `lie` is the answer of a call that was not made.
    async fn run<T>(&self, call: Call, work: impl Future<Output = Result<T>>, lie: impl FnOnce() -> T) -> Result<T> {
        match self.next(call) {
            None => work.await,
            Some(Fault::Fail(kind)) => Err(injected(call, kind)),
            Some(Fault::DoneThenFail(kind)) => {
                work.await?;
                Err(injected(call, kind))
            }
            Some(Fault::Lie) => Ok(lie()),
            Some(Fault::Stop) => Err(injected(call, ErrorKind::Transient)),
        }
    }

    fn locked<T>(&self, work: impl FnOnce(&mut Shared) -> T) -> T {
        work(&mut self.shared.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn injected(call: Call, kind: ErrorKind) -> Error {
    Error::new(kind, format!("injected into {call:?}"))
}
