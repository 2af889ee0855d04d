//! The conformance suites, on connectors in Python: built for the tests of this module alone.

use std::sync::Arc;

use anabranch::{Checkpointer, Sink, Source, TableName, TableSchema};
use anabranch_testkit::conformance::sink::{Abilities, SinkUnderTest};
use anabranch_testkit::conformance::source::{SourceUnderTest, Statement};
use anabranch_testkit::conformance::{checkpointer, sink, source};
use async_trait::async_trait;
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::custom::{Host, Object, PyCheckpointer, PySink, PySource};
use crate::model::PyTable;
use crate::runtime::Operation;

pub(crate) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(conformance_sink, module)?)?;
    module.add_function(wrap_pyfunction!(conformance_source, module)?)?;
    module.add_function(wrap_pyfunction!(conformance_checkpointer, module)?)
}

/// What a test in Python offers: `connect()` and what a suite needs beside it.
struct UnderTest {
    object: Py<PyAny>,
    event_loop: Option<Py<PyAny>>,
}

impl UnderTest {
    /// Calls a method of the test; its exceptions are the test's, and end it.
    fn call<T>(&self, method: &str, f: impl FnOnce(&Bound<'_, PyAny>) -> PyResult<T>) -> T {
        let called = || Python::attach(|py| f(self.object.bind(py)).map_err(|e| e.to_string()));
        tokio::task::block_in_place(called).unwrap_or_else(|e| panic!("{method} of the test: {e}"))
    }

    fn connect<T>(&self, make: impl FnOnce(Object) -> PyResult<T>) -> Arc<T> {
        self.call("connect", |test| {
            let host = Arc::new(Host::new(self.event_loop.as_ref().map(|l| l.clone_ref(test.py()))));
            make(Object::new(&test.call_method0("connect")?, &host)).map(Arc::new)
        })
    }
}

fn table(schema: &TableSchema) -> PyTable {
    PyTable { schema: Arc::new(schema.clone()) }
}

#[async_trait]
impl SinkUnderTest for UnderTest {
    async fn connect(&self) -> Arc<dyn Sink> {
        UnderTest::connect(self, PySink::new)
    }

    async fn create_table(&self, schema: &TableSchema, unique: &[&str]) {
        self.call("create_table", |test| {
            let unique = PyList::new(test.py(), unique)?;
            test.call_method1("create_table", (table(schema), unique)).map(drop)
        });
    }

    async fn read_table(&self, schema: &TableSchema) -> Vec<Vec<Option<String>>> {
        self.call("read_table", |test| test.call_method1("read_table", (table(schema),))?.extract())
    }
}

#[async_trait]
impl SourceUnderTest for UnderTest {
    async fn connect(&self) -> Arc<dyn Source> {
        UnderTest::connect(self, PySource::new)
    }

    fn table(&self) -> TableName {
        self.call("table", |test| {
            let table: Bound<'_, PyTable> = test.call_method0("table")?.cast_into().map_err(PyErr::from)?;
            Ok(table.get().schema.name.clone())
        })
    }

    async fn commit(&self, statements: &[Statement]) {
        self.call("commit", |test| {
            let list = PyList::empty(test.py());
            for statement in statements {
                match statement {
                    Statement::Insert(id, body) => list.append(("insert", *id, body.as_str()))?,
                    Statement::Update(id, body) => list.append(("update", *id, body.as_str()))?,
                    Statement::Rekey(old, new) => list.append(("rekey", *old, *new))?,
                    Statement::Delete(id) => list.append(("delete", *id))?,
                }
            }
            test.call_method1("commit", (list,)).map(drop)
        });
    }
}

/// Runs a suite. One that fails panics: it has a thread of its own, and the error tells the panic.
fn operation<F: Future<Output = ()>>(suite: impl FnOnce() -> F + Send + 'static) -> Operation {
    let run = async move {
        let runtime = tokio::runtime::Handle::current();
        let ended = tokio::task::spawn_blocking(move || runtime.block_on(suite())).await;
        ended.map_err(|e| {
            let told = match e.try_into_panic() {
                Ok(panic) => match panic.downcast::<String>() {
                    Ok(text) => *text,
                    Err(panic) => panic.downcast::<&str>().map_or_else(|_| "panicked".to_owned(), |t| (*t).to_owned()),
                },
                Err(e) => e.to_string(),
            };
            anabranch::Error::fatal(told)
        })
    };
    Operation::new(run, |py, ()| Ok(py.None()))
}

#[pyfunction]
#[pyo3(signature = (test, atomic=true, event_loop=None))]
fn conformance_sink(test: Py<PyAny>, atomic: bool, event_loop: Option<Py<PyAny>>) -> Operation {
    let test = UnderTest { object: test, event_loop };
    operation(move || async move { sink::run_with(&test, Abilities { atomic, ..Abilities::default() }).await })
}

#[pyfunction]
#[pyo3(signature = (test, event_loop=None))]
fn conformance_source(test: Py<PyAny>, event_loop: Option<Py<PyAny>>) -> Operation {
    let test = UnderTest { object: test, event_loop };
    operation(move || async move { source::run(&test).await })
}

#[pyfunction]
#[pyo3(signature = (test, event_loop=None))]
fn conformance_checkpointer(test: Py<PyAny>, event_loop: Option<Py<PyAny>>) -> Operation {
    let test = UnderTest { object: test, event_loop };
    operation(move || async move {
        checkpointer::run(async || {
            let store: Arc<dyn Checkpointer> = UnderTest::connect(&test, |object| Ok(PyCheckpointer::new(object)));
            store
        })
        .await;
    })
}
