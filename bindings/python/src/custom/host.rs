//! Calls into Python, from tasks that must not wait in a thread of the runtime.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use anabranch::{Error, ErrorKind, Result};
use pyo3::prelude::*;
use tokio::sync::oneshot;

use crate::border::attached;
use crate::error::caught;

/// Where the asynchronous methods of a pipeline's connectors run.
#[derive(Debug)]
pub(crate) struct Host {
    event_loop: Option<Py<PyAny>>,
}

impl Host {
    /// In this loop, or in one that the module runs in a thread of its own.
    pub(crate) fn new(event_loop: Option<Py<PyAny>>) -> Self {
        Self { event_loop }
    }
}

/// An object of Python's, called from anywhere. Clones are the same object.
#[derive(Clone)]
pub(crate) struct Object {
    object: Arc<Py<PyAny>>,
    host: Arc<Host>,
    /// The name of its class, for errors.
    pub(crate) class: Arc<str>,
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.class)
    }
}

impl Object {
    pub(crate) fn new(object: &Bound<'_, PyAny>, host: &Arc<Host>) -> Self {
        let class = object.get_type().name().map_or_else(|_| "object".to_owned(), |name| name.to_string());
        Self { object: Arc::new(object.clone().unbind()), host: Arc::clone(host), class: class.into() }
    }

    /// Another object of the same pipeline.
    pub(crate) fn sibling(&self, object: &Bound<'_, PyAny>) -> Self {
        Self::new(object, &self.host)
    }

    pub(crate) fn bind<'py>(&self, py: Python<'py>) -> &Bound<'py, PyAny> {
        self.object.bind(py)
    }

    /// Whether it has this method: an optional ability.
    pub(crate) fn can(&self, py: Python<'_>, method: &str) -> bool {
        self.bind(py).getattr(method).is_ok_and(|m| !m.is_none())
    }

    fn doing(&self, method: &str) -> String {
        format!("{}.{method}", self.class)
    }

    /// Calls a method with the arguments that `arguments` makes, awaits it if it is asynchronous, and
    /// reads the result with `read`. A lost connection is [`ErrorKind::Transient`].
    ///
    /// The call goes on when this future is dropped, and its result is lost then.
    pub(crate) async fn call<A, R, T>(&self, method: &'static str, arguments: A, read: R) -> Result<T>
    where
        A: FnOnce(Python<'_>) -> PyResult<Py<PyAny>> + Send + 'static,
        R: FnOnce(&Bound<'_, PyAny>) -> PyResult<T> + Send + 'static,
        T: Send + 'static,
    {
        self.call_or(ErrorKind::Transient, method, arguments, read).await
    }

    /// As [`Object::call`]; `lost` is what a lost connection means.
    pub(crate) async fn call_or<A, R, T>(
        &self,
        lost: ErrorKind,
        method: &'static str,
        arguments: A,
        read: R,
    ) -> Result<T>
    where
        A: FnOnce(Python<'_>) -> PyResult<Py<PyAny>> + Send + 'static,
        R: FnOnce(&Bound<'_, PyAny>) -> PyResult<T> + Send + 'static,
        T: Send + 'static,
    {
        let (object, doing) = (self.clone(), self.doing(method));
        let begun = in_python(doing.clone(), lost, move |py| {
            let arguments = arguments(py)?;
            let arguments = arguments.bind(py).cast::<pyo3::types::PyTuple>()?.clone();
            let given = object.bind(py).call_method1(method, arguments)?;
            if !given.hasattr("__await__")? {
                return Ok(Begun::Done(read(&given)?));
            }
            let (done, told) = Done::new();
            let event_loop = object.host.event_loop.as_ref().map_or_else(|| py.None(), |l| l.clone_ref(py));
            py.import("anabranch._aio")?.call_method1("run", (event_loop, given, Py::new(py, done)?))?;
            Ok(Begun::Awaited(told, read))
        });
        match begun.await? {
            Begun::Done(value) => Ok(value),
            Begun::Awaited(told, read) => {
                let told = told.await;
                in_python(doing, lost, move |py| match told {
                    Ok(value) => read(value?.bind(py)),
                    Err(_) => Err(pyo3::exceptions::PyConnectionError::new_err("the event loop ended")),
                })
                .await
            }
        }
    }
}

enum Begun<T, R> {
    Done(T),
    Awaited(oneshot::Receiver<PyResult<Py<PyAny>>>, R),
}

/// Runs `f` attached to the interpreter, in a thread that may wait for it.
pub(crate) async fn in_python<T: Send + 'static>(
    doing: String,
    lost: ErrorKind,
    f: impl FnOnce(Python<'_>) -> PyResult<T> + Send + 'static,
) -> Result<T> {
    let called = move || {
        let called = attached(|py| f(py).map_err(|e| failed(py, e, &doing, lost)));
        called.unwrap_or_else(|| Err(Error::fatal("the Python interpreter is ending")))
    };
    match tokio::task::spawn_blocking(called).await {
        Ok(result) => result,
        Err(e) => Err(Error::fatal("this is a defect of anabranch, please report it").because(e)),
    }
}

/// As [`in_python`], in this thread: for traits that do not wait.
pub(crate) fn here<T>(doing: &str, f: impl FnOnce(Python<'_>) -> PyResult<T>) -> Result<T> {
    let called = || attached(|py| f(py).map_err(|e| failed(py, e, doing, ErrorKind::Transient)));
    let called = match tokio::runtime::Handle::try_current().map(|handle| handle.runtime_flavor()) {
        // Other tasks of this thread move to another while the interpreter is waited for.
        Ok(tokio::runtime::RuntimeFlavor::MultiThread) => tokio::task::block_in_place(called),
        _ => called(),
    };
    called.unwrap_or_else(|| Err(Error::fatal("the Python interpreter is ending")))
}

/// The error of an exception. Where it is a defect of the connector, its traceback is logged: an error
/// has only a line.
fn failed(py: Python<'_>, exception: PyErr, doing: &str, lost: ErrorKind) -> Error {
    let traceback = exception.clone_ref(py);
    let error = caught(py, exception, doing, lost);
    if error.kind() == ErrorKind::Fatal {
        let told =
            py.import("anabranch._logging").and_then(|m| m.call_method1("raised", (doing, traceback.into_value(py))));
        drop(told);
    }
    error
}

/// Called by the event loop when a coroutine is done.
#[pyclass(frozen, module = "anabranch._anabranch")]
pub(crate) struct Done {
    tell: Mutex<Option<oneshot::Sender<PyResult<Py<PyAny>>>>>,
}

impl Done {
    fn new() -> (Self, oneshot::Receiver<PyResult<Py<PyAny>>>) {
        let (tell, told) = oneshot::channel();
        (Self { tell: Mutex::new(Some(tell)) }, told)
    }
}

#[pymethods]
impl Done {
    #[pyo3(signature = (value, error=None))]
    fn __call__(&self, value: Py<PyAny>, error: Option<Bound<'_, PyAny>>) {
        let Some(tell) = self.tell.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let result = match error {
            Some(error) => Err(PyErr::from_value(error)),
            None => Ok(value),
        };
        // Nobody may wait any more.
        let _ = tell.send(result);
    }
}
