//! The tokio runtime of the process, and operations on it that Python waits for.

use std::future::Future;
use std::pin::Pin;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anabranch::Error;
use pyo3::prelude::*;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::AbortHandle;

use crate::border::attached;
use crate::error::raised;
use crate::log;

/// How often a wait looks for Ctrl-C: people take it for at once, and it costs nothing.
const LOOK: Duration = Duration::from_millis(50);

/// One for the process, made when it is first needed.
static RUNTIME: Mutex<Option<(u32, Runtime)>> = Mutex::new(None);

/// The runtime of this process.
///
/// # Errors
/// In a forked child of a process that has one: the child has none of its threads.
pub(crate) fn handle() -> anabranch::Result<Handle> {
    let mut runtime = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    let process = std::process::id();
    if let Some((of, runtime)) = runtime.as_ref() {
        if *of != process {
            let problem = "a process that has used pipelines was forked, and its child cannot use them";
            return Err(
                Error::config("process", problem).hint("fork before, or use multiprocessing.get_context(\"spawn\")")
            );
        }
        return Ok(runtime.handle().clone());
    }
    let made = Builder::new_multi_thread().enable_all().thread_name("anabranch").build();
    let made = made.map_err(|e| Error::transient("cannot start the threads of the runtime").because(e))?;
    let handle = made.handle().clone();
    *runtime = Some((process, made));
    Ok(handle)
}

/// Whether this process has one: not a forked child.
pub(crate) fn running() -> Option<Handle> {
    let runtime = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    runtime.as_ref().filter(|(of, _)| *of == std::process::id()).map(|(_, runtime)| runtime.handle().clone())
}

/// Makes the Python value of a result, attached to the interpreter.
pub(crate) type Answer = Box<dyn FnOnce(Python<'_>) -> PyResult<Py<PyAny>> + Send>;
type Job = Pin<Box<dyn Future<Output = anabranch::Result<Answer>> + Send>>;

/// Something to wait for, once: with `wait` in this thread, or with `start` and a callback.
#[pyclass(frozen, module = "anabranch._anabranch")]
pub(crate) struct Operation {
    job: Mutex<Option<Job>>,
    task: Mutex<Option<AbortHandle>>,
}

impl Operation {
    pub(crate) fn new<T, F, A>(job: F, answer: A) -> Self
    where
        F: Future<Output = anabranch::Result<T>> + Send + 'static,
        T: Send + 'static,
        A: FnOnce(Python<'_>, T) -> PyResult<Py<PyAny>> + Send + 'static,
    {
        let job = async move {
            let value = job.await?;
            Ok(Box::new(move |py: Python<'_>| answer(py, value)) as Answer)
        };
        Self { job: Mutex::new(Some(Box::pin(job))), task: Mutex::new(None) }
    }

    fn spawn(&self, done: impl FnOnce(anabranch::Result<Answer>) + Send + 'static) -> anabranch::Result<()> {
        let job = self.job.lock().unwrap_or_else(PoisonError::into_inner).take();
        let job = job.ok_or_else(|| Error::fatal("this was waited for already"))?;
        let runtime = handle()?;
        let work = runtime.spawn(job);
        *self.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(work.abort_handle());
        runtime.spawn(async move {
            let result = match work.await {
                Ok(result) => result,
                Err(e) if e.is_cancelled() => Err(Error::transient("it was given up")),
                Err(e) => Err(Error::fatal("this is a defect of anabranch, please report it").because(e)),
            };
            // What is done with it may wait for the interpreter.
            drop(tokio::task::spawn_blocking(move || done(result)));
        });
        Ok(())
    }
}

fn answered(py: Python<'_>, result: anabranch::Result<Answer>) -> PyResult<Py<PyAny>> {
    result.map_err(|e| raised(py, &e)).and_then(|answer| answer(py))
}

#[pymethods]
impl Operation {
    /// Waits without holding up other Python threads. Ctrl-C gives the operation up.
    fn wait(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        log::refresh(py);
        let (tell, told) = sync_channel(1);
        self.spawn(move |result| drop(tell.send(result))).map_err(|e| raised(py, &e))?;
        let mut told = told;
        loop {
            let result;
            (told, result) = py.detach(move || {
                let result = told.recv_timeout(LOOK);
                (told, result)
            });
            match result {
                Ok(result) => return answered(py, result),
                Err(RecvTimeoutError::Timeout) => {
                    if let Err(interrupted) = py.check_signals() {
                        self.abort();
                        return Err(interrupted);
                    }
                    log::refresh(py);
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(raised(py, &Error::fatal("the runtime ended while this was waited for")));
                }
            }
        }
    }

    /// Begins, and calls `done(value, error)` from another thread when it is done.
    fn start(&self, py: Python<'_>, done: Py<PyAny>) -> PyResult<()> {
        log::refresh(py);
        let call = move |result| {
            // None: the interpreter is ending, and nobody waits any more.
            attached(|py| {
                let told = match answered(py, result) {
                    Ok(value) => done.call1(py, (value, py.None())),
                    Err(error) => done.call1(py, (py.None(), error.into_value(py))),
                };
                // The event loop may be closed: then nobody waits either.
                drop(told);
            });
        };
        self.spawn(call).map_err(|e| raised(py, &e))
    }

    /// Gives it up. What waits for it ends with an error; what was begun is not undone.
    fn abort(&self) {
        if let Some(task) = self.task.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            task.abort();
        }
    }
}
