//! A pipeline, and one that runs.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use anabranch::control::verify::{TableVerified, VerifyOptions};
use anabranch::dead_letter::{Mark, mark};
use anabranch::pipeline::{Monitor, PipelineConfig, keys};
use anabranch::{DeadLetterStore, Error, LetterState, Pipeline, Result, RunningPipeline, TableName};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::border::{self, attached};
use crate::convert::{as_json, loads, preflight, seconds, table};
use crate::custom::{Host, register};
use crate::error::{OrRaise as _, raised};
use crate::log;
use crate::runtime::Operation;

/// A pipeline of a configuration, for one operation: whatever is asked of it takes it.
#[pyclass(frozen, module = "anabranch._anabranch", name = "Pipeline")]
pub(crate) struct Native {
    pipeline: Mutex<Option<Pipeline>>,
}

/// Builds a pipeline. `objects` are connectors in Python, by the section that they stand for; those
/// whose methods are asynchronous run in `event_loop`, or in one of their own.
///
/// # Errors
/// `ConfigError`, naming the key. No connection is made.
#[pyfunction]
#[pyo3(signature = (config, objects, event_loop=None))]
pub(crate) fn build(
    py: Python<'_>,
    config: &Bound<'_, PyDict>,
    objects: &Bound<'_, PyDict>,
    event_loop: Option<Py<PyAny>>,
) -> PyResult<Native> {
    log::install(py);
    let config = keys::<PipelineConfig>("", table("", config)?).or_raise(py)?;
    let mut registry = anabranch::registry();
    register(&mut registry, objects, &Arc::new(Host::new(event_loop)))?;
    // Some connectors look at the machine's files while they are made.
    let pipeline = py.detach(|| registry.pipeline(config)).or_raise(py)?;
    Ok(Native { pipeline: Mutex::new(Some(pipeline)) })
}

/// A TOML text as a dict.
#[pyfunction]
pub(crate) fn parse_toml(py: Python<'_>, text: &str) -> PyResult<Py<PyAny>> {
    PipelineConfig::parse(text).or_raise(py)?;
    match text.parse::<toml::Table>() {
        Ok(table) => as_json!(py, &table),
        Err(e) => Err(raised(py, &Error::config("configuration", e.message().to_owned()))),
    }
}

impl Native {
    fn take(&self, py: Python<'_>) -> PyResult<Pipeline> {
        let taken = self.pipeline.lock().unwrap_or_else(PoisonError::into_inner).take();
        taken.ok_or_else(|| raised(py, &Error::fatal("this pipeline was used already: build another")))
    }

    fn letters(&self, py: Python<'_>) -> PyResult<(String, Arc<dyn DeadLetterStore>)> {
        let pipeline = self.take(py)?;
        let missing = || Error::config("dead_letters.type", "this pipeline has no dead-letter store");
        let store = pipeline.dead_letters().ok_or_else(missing).or_raise(py)?;
        Ok((pipeline.name().to_owned(), store))
    }
}

#[pymethods]
impl Native {
    /// Takes it over, checks both sides and starts it.
    fn start(&self, py: Python<'_>) -> PyResult<Operation> {
        let pipeline = self.take(py)?;
        Ok(Operation::new(async move { pipeline.start().await }, |py, running| {
            Ok(Py::new(py, Running::new(running).or_raise(py)?)?.into_any())
        }))
    }

    /// Compares the types of both sides.
    fn check(&self, py: Python<'_>) -> PyResult<Operation> {
        let pipeline = self.take(py)?;
        Ok(Operation::new(async move { pipeline.check().await }, |py, found| as_json!(py, &preflight(&found))))
    }

    /// What the stores tell; `None` if it never ran.
    fn stored_status(&self, py: Python<'_>) -> PyResult<Operation> {
        let pipeline = self.take(py)?;
        Ok(Operation::new(async move { pipeline.stored_status().await }, |py, status| as_json!(py, &status)))
    }

    /// Pauses it, or lets it go on. Whether that changed anything.
    fn set_paused(&self, py: Python<'_>, paused: bool) -> PyResult<Operation> {
        let pipeline = self.take(py)?;
        let set = async move { if paused { pipeline.pause().await } else { pipeline.resume().await } };
        Ok(Operation::new(set, |py, changed| as_json!(py, &changed)))
    }

    /// Marks shards for a run of the mode `reprocess`.
    fn reprocess(&self, py: Python<'_>, shards: Vec<String>) -> PyResult<Operation> {
        let pipeline = self.take(py)?;
        let mark = async move {
            for shard in &shards {
                pipeline.reprocess(shard).await?;
            }
            Ok(())
        };
        Ok(Operation::new(mark, |py, ()| Ok(py.None())))
    }

    /// Waits until everything committed before now is in the target, while another process runs it.
    #[pyo3(signature = (timeout=None))]
    fn drain(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Operation> {
        let (deadline, pipeline) = (seconds(py, "timeout", timeout)?, self.take(py)?);
        Ok(Operation::new(async move { pipeline.drain(deadline).await }, |py, drained| as_json!(py, &drained)))
    }

    /// Compares the rows of both sides.
    #[pyo3(signature = (tables, skip, wait, rounds, rate, list, repair, tell=None))]
    #[allow(clippy::too_many_arguments, reason = "it is called from one place, by name")]
    fn verify(
        &self,
        py: Python<'_>,
        tables: Vec<String>,
        skip: Vec<String>,
        wait: Option<f64>,
        rounds: Option<u32>,
        rate: Option<u64>,
        list: Option<usize>,
        repair: bool,
        tell: Option<Py<PyAny>>,
    ) -> PyResult<Operation> {
        let names = |names: Vec<String>| names.iter().map(|n| table_name(n)).collect::<BTreeSet<_>>();
        let default = VerifyOptions::default();
        let options = VerifyOptions {
            tables: names(tables),
            skip: names(skip),
            wait: seconds(py, "wait", wait)?,
            rounds: rounds.unwrap_or(default.rounds),
            rows_per_second: rate,
            list: list.unwrap_or(default.list),
            repair,
        };
        let pipeline = self.take(py)?;
        let verify = async move {
            let mut hear = |table: &TableVerified| {
                if let Some(tell) = &tell {
                    told(tell, table);
                }
            };
            pipeline.verify(&options, &mut hear).await
        };
        Ok(Operation::new(verify, |py, verified| as_json!(py, &verified)))
    }

    /// Letters that are open or held, or those in `states`.
    #[pyo3(signature = (states, after, limit))]
    fn list_letters(
        &self,
        py: Python<'_>,
        states: Vec<String>,
        after: Option<String>,
        limit: usize,
    ) -> PyResult<Operation> {
        let states = states.iter().map(|s| state(s)).collect::<Result<Vec<_>>>().or_raise(py)?;
        let (name, store) = self.letters(py)?;
        let list = async move { store.list(&name, &states, after.as_deref(), limit).await };
        Ok(Operation::new(list, |py, letters| as_json!(py, &letters)))
    }

    /// One letter, or `None`.
    fn get_letter(&self, py: Python<'_>, id: String) -> PyResult<Operation> {
        let (name, store) = self.letters(py)?;
        Ok(Operation::new(async move { store.get(&name, &id).await }, |py, letter| as_json!(py, &letter)))
    }

    /// How many letters are open.
    fn count_letters(&self, py: Python<'_>) -> PyResult<Operation> {
        let (name, store) = self.letters(py)?;
        Ok(Operation::new(async move { store.open_count(&name).await }, |py, open| as_json!(py, &open)))
    }

    /// Has these letters tried again, or left out for good. How many they are.
    fn mark_letters(&self, py: Python<'_>, ids: Vec<String>, retry: bool) -> PyResult<Operation> {
        let (name, store) = self.letters(py)?;
        let mark = async move {
            for id in &ids {
                mark(store.as_ref(), &name, id, if retry { Mark::Retry } else { Mark::Skip }).await?;
            }
            Ok(ids.len())
        };
        Ok(Operation::new(mark, |py, marked| as_json!(py, &marked)))
    }
}

fn told(tell: &Py<PyAny>, table: &TableVerified) {
    let Ok(text) = serde_json::to_string(table) else { return };
    tokio::task::block_in_place(|| {
        attached(|py| {
            let called = loads(py, &text).and_then(|table| tell.call1(py, (table,)));
            if let Err(raised) = called {
                raised.write_unraisable(py, Some(tell.bind(py)));
            }
        })
    });
}

/// `schema.table`, or a table where there are no schemas.
pub(crate) fn table_name(name: &str) -> TableName {
    match name.split_once('.') {
        Some((schema, table)) => TableName::new(schema, table),
        None => TableName::new("", name),
    }
}

fn state(name: &str) -> Result<LetterState> {
    match name {
        "open" => Ok(LetterState::Open),
        "held" => Ok(LetterState::Held),
        "applied" => Ok(LetterState::Applied),
        "skipped" => Ok(LetterState::Skipped),
        _ => Err(Error::config("states", "must be of open, held, applied and skipped")),
    }
}

/// How a run ended.
type Ended = Option<Result<(), Arc<Error>>>;

/// A pipeline that runs. Dropping it stops it, without waiting.
#[pyclass(frozen, module = "anabranch._anabranch")]
pub(crate) struct Running {
    monitor: Monitor,
    live: Arc<Live>,
}

/// What stops a run, and tells of its end. The task that owns the run holds only the other side.
#[derive(Debug)]
struct Live {
    stopper: CancellationToken,
    ended: watch::Receiver<Ended>,
}

/// The runs of this process: stopped in good order when the interpreter ends.
static ALIVE: Mutex<Vec<Weak<Live>>> = Mutex::new(Vec::new());

impl Drop for Running {
    fn drop(&mut self) {
        self.live.stopper.cancel();
    }
}

impl Running {
    fn new(mut running: RunningPipeline) -> Result<Self> {
        let (tell, ended) = watch::channel(None);
        let (monitor, stopper) = (running.monitor(), running.stopper());
        crate::runtime::handle()?.spawn(async move {
            let result = running.wait().await.map_err(Arc::new);
            tell.send_replace(Some(result));
        });
        let live = Arc::new(Live { stopper, ended });
        let mut alive = ALIVE.lock().unwrap_or_else(PoisonError::into_inner);
        alive.retain(|run| run.strong_count() > 0);
        alive.push(Arc::downgrade(&live));
        drop(alive);
        Ok(Self { monitor, live })
    }
}

impl Live {
    /// Waits for the end. The error is told to everybody who asks.
    async fn end(&self) -> Result<()> {
        let mut ended = self.ended.clone();
        let result = match ended.wait_for(Option::is_some).await {
            Ok(result) => result.clone(),
            Err(_) => return Err(Error::fatal("the pipeline ended without a word")),
        };
        match result {
            Some(Err(error)) => Err(again(&error)),
            _ => Ok(()),
        }
    }
}

/// The same error once more.
fn again(error: &Arc<Error>) -> Error {
    Error::new(error.kind(), error.report())
}

#[pymethods]
impl Running {
    /// How far it is.
    fn status(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        log::refresh(py);
        // Detached: it may ask a connector in Python to describe a position.
        let status = py.detach(|| self.monitor.status());
        as_json!(py, &status)
    }

    /// The pipeline's name.
    fn name(&self) -> &str {
        self.monitor.name()
    }

    /// Whether the data path lives.
    fn health(&self, py: Python<'_>, bound: f64) -> PyResult<Py<PyAny>> {
        log::refresh(py);
        let bound = seconds(py, "bound", Some(bound))?.unwrap_or_default();
        let health = py.detach(|| self.monitor.health(bound));
        as_json!(py, &health)
    }

    /// Whether it has ended.
    fn ended(&self) -> bool {
        self.live.ended.borrow().is_some()
    }

    #[pyo3(signature = (timeout=None))]
    fn drain(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Operation> {
        let (deadline, monitor) = (seconds(py, "timeout", timeout)?, self.monitor.clone());
        Ok(Operation::new(async move { monitor.drain(deadline).await }, |py, drained| as_json!(py, &drained)))
    }

    /// Waits until it ends by itself.
    fn wait(&self) -> Operation {
        let live = Arc::clone(&self.live);
        Operation::new(async move { live.end().await }, |py, ()| Ok(py.None()))
    }

    /// Finishes what is under way, and ends.
    fn stop(&self) -> Operation {
        let live = Arc::clone(&self.live);
        let stop = async move {
            live.stopper.cancel();
            live.end().await
        };
        Operation::new(stop, |py, ()| Ok(py.None()))
    }
}

/// Stops every run of this process, and lets none of its threads into the interpreter any more: the last
/// call before the interpreter ends. Waits at most so many seconds.
#[pyfunction]
pub(crate) fn stop_all(py: Python<'_>, timeout: f64) -> PyResult<Py<PyList>> {
    let alive: Vec<_> = ALIVE.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect();
    let alive: Vec<_> = alive.iter().filter_map(Weak::upgrade).collect();
    alive.iter().for_each(|run| run.stopper.cancel());
    // Without one there are no threads. A forked child has none of its parent's.
    let Some(runtime) = crate::runtime::running() else { return Ok(PyList::empty(py).unbind()) };
    let limit = seconds(py, "timeout", Some(timeout))?.unwrap_or_default().min(Duration::from_secs(3600));
    let until = Instant::now() + limit;
    let ends = async move {
        let mut errors = Vec::new();
        let all = async {
            for run in alive.iter().filter(|run| run.ended.borrow().is_none()) {
                errors.extend(run.end().await.err().map(|e| e.report()));
            }
        };
        let _ = tokio::time::timeout(limit, all).await;
        errors
    };
    let errors = py.detach(|| runtime.block_on(ends));
    border::close(py, until.saturating_duration_since(Instant::now()));
    Ok(PyList::new(py, errors)?.unbind())
}
