//! Transforms and sharders in Python: a whole batch for each call.

use std::fmt;

use anabranch::transform::{Shard, Transform};
use anabranch::{ChangeBatch, Error, Result};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use super::Object;
use super::host::here;
use crate::batch::PyBatch;
use crate::rewrite::transformed;

/// See `anabranch.Transform` and `anabranch.Sharder`.
pub(crate) struct PyTransform {
    object: Object,
    how: How,
}

#[derive(Debug, Clone, Copy)]
enum How {
    /// `apply(batch)` gives a batch.
    Apply,
    /// `shards(batch)` gives the shard of each change.
    Shards,
    /// A function that gives a batch.
    Call,
}

impl fmt::Debug for PyTransform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.object.class)
    }
}

impl PyTransform {
    pub(crate) fn new(object: Object) -> PyResult<Self> {
        let how = Python::attach(|py| {
            if object.can(py, "shards") {
                Some(How::Shards)
            } else if object.can(py, "apply") {
                Some(How::Apply)
            } else {
                object.bind(py).is_callable().then_some(How::Call)
            }
        });
        let how = how.ok_or_else(|| {
            PyTypeError::new_err(format!("{} is no transform: it has neither apply nor shards", object.class))
        })?;
        Ok(Self { object, how })
    }
}

impl Transform for PyTransform {
    fn apply(&mut self, batch: ChangeBatch) -> Result<ChangeBatch> {
        let doing = format!("the transform {}", self.object.class);
        let given = PyBatch::new(batch);
        let before = std::sync::Arc::clone(&given.batch);
        let (object, how) = (&self.object, self.how);
        let applied = here(&doing, |py| {
            let object = object.bind(py);
            let given = Py::new(py, given)?;
            let out = match how {
                How::Apply => object.call_method1("apply", (given,))?,
                How::Call => object.call1((given,))?,
                How::Shards => object.call_method1("shards", (given,))?,
            };
            if out.hasattr("__await__")? {
                out.call_method0("close")?;
                return Err(PyTypeError::new_err("a transform is not asynchronous: it may only look at the batch"));
            }
            Ok(match how {
                How::Shards => Applied::Shards(out.extract()?),
                _ => Applied::Batch(Box::new(transformed(&before, &out))),
            })
        })?;
        match applied {
            Applied::Batch(batch) => *batch,
            Applied::Shards(shards) => sharded(&before, shards),
        }
    }
}

enum Applied {
    Batch(Box<Result<ChangeBatch>>),
    Shards(Vec<Option<String>>),
}

fn sharded(batch: &ChangeBatch, shards: Vec<Option<String>>) -> Result<ChangeBatch> {
    if shards.len() != batch.len() {
        let (given, changes) = (shards.len(), batch.len());
        return Err(Error::fatal(format!("a sharder gave {given} shards for {changes} changes")));
    }
    // Changes are asked about in order; those that are left out already are not asked about.
    Shard::by(move |change| Ok(shards.get(change.index() as usize).cloned().flatten())).apply(batch.clone())
}
