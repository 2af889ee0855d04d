//! Connectors that are written in Python. What they have to do stands in `python/anabranch/custom.py`.

mod checkpointer;
mod host;
mod sink;
mod source;
mod target;
mod transform;

use std::sync::{Arc, Mutex, PoisonError};

use anabranch::pipeline::Registry;
use anabranch::{Error, Sink, Source};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

pub(crate) use checkpointer::PyCheckpointer;
pub(crate) use host::{Host, Object};
pub(crate) use sink::PySink;
pub(crate) use source::PySource;
pub(crate) use transform::PyTransform;

/// The type under which a configuration names the connector that is given as an object.
const TYPE: &str = "python";

/// Makes these objects known to a registry, for the one configuration that they are given with.
pub(crate) fn register(registry: &mut Registry, objects: &Bound<'_, PyDict>, host: &Arc<Host>) -> PyResult<()> {
    if let Some(object) = objects.get_item("source")? {
        let source: Arc<dyn Source> = Arc::new(PySource::new(Object::new(&object, host))?);
        registry.source(TYPE, move |_| Ok(Arc::clone(&source)));
    }
    if let Some(object) = objects.get_item("sink")? {
        let sink: Arc<dyn Sink> = Arc::new(PySink::new(Object::new(&object, host))?);
        registry.sink(TYPE, move |_| Ok(Arc::clone(&sink)));
    }
    if let Some(object) = objects.get_item("checkpoint")? {
        let checkpointer = Arc::new(PyCheckpointer::new(Object::new(&object, host)));
        registry.checkpointer(TYPE, move |_| Ok(Arc::clone(&checkpointer) as _));
    }
    if let Some(list) = objects.get_item("transforms")? {
        for (at, object) in list.cast_into::<PyList>()?.iter().enumerate() {
            // A transform is made once: a pipeline owns it.
            let transform = Mutex::new(Some(PyTransform::new(Object::new(&object, host))?));
            registry.transform(&format!("{TYPE}:{at}"), move |_| {
                let made = transform.lock().unwrap_or_else(PoisonError::into_inner).take();
                let made = made.ok_or_else(|| Error::config("transform", "is used twice"))?;
                Ok(Box::new(made))
            });
        }
    }
    Ok(())
}
