//! A sink in Python: it is given whole units.

use std::sync::Arc;

use anabranch::{
    Checkpointer, Claim, Durability, Error, ErrorKind, Lane, LaneProgress, LanePurpose, ProgressStore, RejectedChange,
    Result, Sink, SinkInfo, SinkWriter, TargetSchema, Unit, Written,
};
use async_trait::async_trait;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use super::checkpointer::tuple;
use super::source::{constant, of_types};
use super::target::PyTarget;
use super::{Object, PyCheckpointer};
use crate::batch::PyUnit;
use crate::border::attached;
use crate::error::caught;

/// See `anabranch.Sink`.
#[derive(Debug)]
pub(crate) struct PySink {
    object: Object,
    info: SinkInfo,
    progress: Option<PyProgress>,
    target: Option<PyTarget>,
    checkpointer: Option<Arc<PyCheckpointer>>,
}

impl PySink {
    pub(crate) fn new(object: Object) -> PyResult<Self> {
        Python::attach(|py| {
            let sink = object.bind(py);
            if !object.can(py, "open") {
                return Err(PyTypeError::new_err(format!("{} is no sink: it has no open", object.class)));
            }
            let info = SinkInfo {
                name: constant(sink.getattr("name")?.extract::<String>()?),
                transactional: sink.getattr("transactional")?.extract()?,
                max_lanes: sink.getattr("max_lanes")?.extract()?,
                schemas: sink.getattr("schemas")?.extract()?,
            };
            let stores = object.can(py, "take_over");
            if info.transactional && !(stores && object.can(py, "read_progress")) {
                let lacks = "a transactional sink has take_over and read_progress, which store progress with the rows";
                return Err(PyTypeError::new_err(format!("{}: {lacks}", object.class)));
            }
            let checkpointer = match object.can(py, "checkpointer") {
                true => Some(sink.call_method0("checkpointer")?).filter(|c| !c.is_none()),
                false => None,
            };
            Ok(Self {
                info,
                progress: stores.then(|| PyProgress { object: object.clone() }),
                target: object.can(py, "describe").then(|| PyTarget::new(object.clone())),
                checkpointer: checkpointer.map(|c| Arc::new(PyCheckpointer::new(object.sibling(&c)))),
                object,
            })
        })
    }
}

#[async_trait]
impl Sink for PySink {
    fn info(&self) -> SinkInfo {
        self.info.clone()
    }

    async fn open(&self, lane: Lane) -> Result<Box<dyn SinkWriter>> {
        let object = self.object.clone();
        let arguments = move |py: Python<'_>| {
            let purpose = match lane.purpose {
                LanePurpose::Stream => "stream",
                LanePurpose::Snapshot => "snapshot",
            };
            let lane = (&*lane.pipeline, lane.index, lane.count, lane.epoch, purpose);
            tuple(py, (of_types(py)?.getattr("Lane")?.call1(lane)?,))
        };
        let writer = self.object.call("open", arguments, move |given| Ok(object.sibling(given))).await?;
        Ok(Box::new(PyWriter { writer }))
    }

    fn progress(&self) -> Option<&dyn ProgressStore> {
        self.progress.as_ref().map(|p| p as _)
    }

    fn checkpointer(&self) -> Option<Arc<dyn Checkpointer>> {
        self.checkpointer.clone().map(|c| c as _)
    }

    fn target(&self) -> Option<&dyn TargetSchema> {
        self.target.as_ref().map(|t| t as _)
    }
}

struct PyWriter {
    writer: Object,
}

#[async_trait]
impl SinkWriter for PyWriter {
    async fn write(&mut self, unit: &Unit) -> Result<Written> {
        // Units share their batches: no row is copied.
        let unit = PyUnit { unit: unit.clone() };
        let arguments = move |py: Python<'_>| tuple(py, (Py::new(py, unit)?,));
        self.writer.call_or(ErrorKind::Indeterminate, "write", arguments, written).await
    }

    async fn flush(&mut self) -> Result<()> {
        self.writer.call_or(ErrorKind::Indeterminate, "flush", |py| tuple(py, ()), |_| Ok(())).await
    }

    async fn close(self: Box<Self>) -> Result<()> {
        if !attached(|py| self.writer.can(py, "close")).unwrap_or(false) {
            return Ok(());
        }
        self.writer.call("close", |py| tuple(py, ()), |_| Ok(())).await
    }
}

/// What `write` gives: `DURABLE`, `ACCEPTED` or nothing (which is accepted: the careful reading), or a
/// `Written` with what was refused.
fn written(given: &Bound<'_, PyAny>) -> PyResult<Written> {
    if given.is_none() {
        return Ok(Written::accepted());
    }
    let types = of_types(given.py())?;
    if !given.is_instance(&types.getattr("Written")?)? {
        let got = given.get_type().name()?.to_string();
        return Err(PyTypeError::new_err(format!("write gives DURABLE, ACCEPTED, Written or None, not {got}")));
    }
    let durable: bool = given.getattr("durable")?.extract()?;
    let mut rejected = Vec::new();
    for item in given.getattr("rejected")?.try_iter()? {
        let (index, reason): (usize, Bound<'_, PyAny>) = item?.extract()?;
        rejected.push(RejectedChange { index, error: reason_of(&reason)? });
    }
    let durability = if durable { Durability::Durable } else { Durability::Accepted };
    Ok(Written { durability, rejected, stale: given.getattr("stale")?.extract()? })
}

/// The reason of a refusal: a text, or an exception.
fn reason_of(reason: &Bound<'_, PyAny>) -> PyResult<Error> {
    if let Ok(text) = reason.extract::<String>() {
        return Ok(Error::rejected(text));
    }
    let exception = PyErr::from_value(reason.clone());
    Ok(caught(reason.py(), exception, "a change", ErrorKind::Rejected).with_kind(ErrorKind::Rejected))
}

#[derive(Debug)]
struct PyProgress {
    object: Object,
}

/// The texts of lanes, as `Unit.progress_after` made them.
fn lanes(given: &Bound<'_, PyAny>) -> PyResult<Vec<LaneProgress>> {
    let read = |text: String| {
        serde_json::from_str(&text)
            .map_err(|e| PyValueError::new_err(format!("this is not the progress of a lane: {e}")))
    };
    given.extract::<Vec<String>>()?.into_iter().map(read).collect()
}

#[async_trait]
impl ProgressStore for PyProgress {
    async fn take_over(&self, claim: &Claim) -> Result<Vec<LaneProgress>> {
        let claim = claim.clone();
        let arguments = move |py: Python<'_>| {
            let claim = (&*claim.pipeline, claim.epoch, claim.lanes, claim.identity.0);
            tuple(py, (of_types(py)?.getattr("Claim")?.call1(claim)?,))
        };
        self.object.call("take_over", arguments, lanes).await
    }

    async fn read(&self, pipeline: &str) -> Result<Vec<LaneProgress>> {
        let pipeline = pipeline.to_owned();
        self.object.call("read_progress", move |py| tuple(py, (pipeline,)), lanes).await
    }
}
