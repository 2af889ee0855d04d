//! A checkpointer in Python: it keeps texts, with compare-and-set.

use anabranch::{Checkpoint, Checkpointer, Error, ErrorKind, Result, Saved, Version};
use async_trait::async_trait;
use pyo3::IntoPyObjectExt as _;
use pyo3::prelude::*;

use super::Object;

/// See `anabranch.Checkpointer`.
#[derive(Debug)]
pub(crate) struct PyCheckpointer {
    object: Object,
}

impl PyCheckpointer {
    pub(crate) fn new(object: Object) -> Self {
        Self { object }
    }
}

#[async_trait]
impl Checkpointer for PyCheckpointer {
    async fn load(&self, pipeline: &str) -> Result<Option<(Version, Checkpoint)>> {
        let pipeline = pipeline.to_owned();
        let stored: Option<(u64, String)> =
            self.object.call("load", move |py| tuple(py, (pipeline,)), |given| given.extract()).await?;
        let Some((version, text)) = stored else { return Ok(None) };
        Ok(Some((Version(version), Checkpoint::from_json(&text)?)))
    }

    async fn save(&self, pipeline: &str, expected: Option<Version>, next: &Checkpoint) -> Result<Saved> {
        let (pipeline, text, expected) = (pipeline.to_owned(), next.to_json()?, expected.map(|v| v.0));
        let saved: Option<u64> = self
            .object
            .call_or(
                ErrorKind::Indeterminate,
                "save",
                move |py| tuple(py, (pipeline, expected, text)),
                |given| given.extract(),
            )
            .await?;
        match saved {
            Some(version) if Some(version) <= expected => {
                Err(Error::fatal(format!("{}.save gave a version that does not grow", self.object.class)))
            }
            Some(version) => Ok(Saved::Committed(Version(version))),
            None => Ok(Saved::Conflict),
        }
    }
}

/// Arguments of a call.
pub(super) fn tuple<'py, T: IntoPyObject<'py>>(py: Python<'py>, arguments: T) -> PyResult<Py<PyAny>> {
    Ok(arguments.into_bound_py_any(py)?.unbind())
}
