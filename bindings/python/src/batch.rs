//! Batches, units and their changes. They are views: nothing is copied until a value is asked for.

use std::collections::HashMap;
use std::sync::Arc;

use anabranch::{ChangeBatch, ChangeRef, LaneProgress, LetterClass, OldImage, Op, Part, RowRef, Unit, UnitKind};
use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};

use crate::arrow::PyTableChanges;
use crate::convert::{datetime, not_json};
use crate::error::OrRaise as _;
use crate::model::{PyPosition, PyTable};
use crate::rewrite::rewritten;
use crate::value::{canonical, row, to_python};

/// Changes of one partition, in order.
#[pyclass(frozen, module = "anabranch", name = "ChangeBatch", sequence)]
pub(crate) struct PyBatch {
    pub(crate) batch: Arc<ChangeBatch>,
}

impl PyBatch {
    pub(crate) fn new(batch: ChangeBatch) -> Self {
        Self { batch: Arc::new(batch) }
    }
}

#[pymethods]
impl PyBatch {
    #[getter]
    fn partition(&self) -> &str {
        self.batch.partition().as_str()
    }

    /// The place after everything in it.
    #[getter]
    fn end(&self) -> PyPosition {
        PyPosition::of(self.batch.end())
    }

    #[getter]
    fn safe_time<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.batch.safe_time().map(|time| datetime(py, time)).transpose()
    }

    fn __len__(&self) -> usize {
        self.batch.len()
    }

    fn __getitem__(&self, index: isize) -> PyResult<PyChange> {
        let at = if index < 0 { self.batch.len() as isize + index } else { index };
        match usize::try_from(at) {
            Ok(at) if at < self.batch.len() => Ok(PyChange { batch: Arc::clone(&self.batch), index: at }),
            _ => Err(PyIndexError::new_err(format!("there are {} changes", self.batch.len()))),
        }
    }

    /// The changes, in order.
    #[getter]
    fn changes(&self) -> Vec<PyChange> {
        (0..self.batch.len()).map(|index| PyChange { batch: Arc::clone(&self.batch), index }).collect()
    }

    /// The row changes of each table, for Arrow.
    fn tables(&self) -> Vec<PyTableChanges> {
        let places = (0..self.batch.len()).map(|index| (Arc::clone(&self.batch), index as u32));
        PyTableChanges::group(places)
    }

    /// The batch in which each change is what `each(change)` gives: the change itself or `True`, a dict
    /// of new values, a `LeftOut`; `None` or `False` leaves it away. Places in the stream stay.
    fn rewrite(&self, py: Python<'_>, each: &Bound<'_, PyAny>) -> PyResult<Self> {
        rewritten(py, &self.batch, each)
    }

    fn __repr__(&self) -> String {
        format!("<ChangeBatch of {}: {} changes>", self.batch.partition(), self.batch.len())
    }
}

/// A change.
#[pyclass(frozen, module = "anabranch", name = "Change")]
pub(crate) struct PyChange {
    pub(crate) batch: Arc<ChangeBatch>,
    pub(crate) index: usize,
}

impl PyChange {
    fn change(&self) -> ChangeRef<'_> {
        self.batch.change(self.index)
    }

    fn dict<'py>(&self, py: Python<'py>, values: Option<RowRef<'_>>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let Some(values) = values else { return Ok(None) };
        let dict = PyDict::new(py);
        for (value, column) in values.values().zip(&self.change().schema().columns) {
            dict.set_item(column.name.as_str(), to_python(py, value, column)?)?;
        }
        Ok(Some(dict))
    }

    fn texts<'py>(&self, py: Python<'py>, values: Option<RowRef<'_>>) -> PyResult<Option<Vec<Bound<'py, PyAny>>>> {
        let Some(values) = values else { return Ok(None) };
        let columns = &self.change().schema().columns;
        let text = |(value, column): (anabranch::ValueRef<'_>, _)| match canonical(value) {
            Some(text) => Ok(text.into_pyobject(py)?.into_any()),
            None => to_python(py, value, column),
        };
        values.values().zip(columns).map(text).collect::<PyResult<_>>().map(Some)
    }
}

/// What happened, in a word.
pub(crate) fn op_word(op: Op) -> &'static str {
    match op {
        Op::Insert => "insert",
        Op::Update => "update",
        Op::Delete => "delete",
        Op::Truncate(_) => "truncate",
        Op::Message => "message",
        Op::Schema => "schema",
    }
}

#[pymethods]
impl PyChange {
    /// `insert`, `update`, `delete`, `truncate`, `message` or `schema`.
    #[getter]
    fn op(&self) -> &'static str {
        op_word(self.change().op())
    }

    /// The table, as it was then; `None` for a message.
    #[getter]
    fn table(&self) -> Option<PyTable> {
        self.change().table().map(|schema| PyTable { schema: Arc::clone(schema) })
    }

    /// The row after the change, as a dict.
    #[getter(new)]
    fn new_row<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        self.dict(py, self.change().new_row())
    }

    /// The row before it, as far as it was sent.
    #[getter(old)]
    fn old_row<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        self.dict(py, self.change().old_row())
    }

    /// The values of the new row, in the order of the columns.
    #[getter]
    fn new_values<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let change = self.change();
        change.new_row().map(|r| PyTuple::new(py, row(py, r, &change.schema().columns)?)).transpose()
    }

    /// The values of the old row.
    #[getter]
    fn old_values<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let change = self.change();
        change.old_row().map(|r| PyTuple::new(py, row(py, r, &change.schema().columns)?)).transpose()
    }

    /// The canonical texts of the new row; `None` for NULL, `UNCHANGED` for what was not sent.
    #[getter]
    fn new_texts<'py>(&self, py: Python<'py>) -> PyResult<Option<Vec<Bound<'py, PyAny>>>> {
        self.texts(py, self.change().new_row())
    }

    /// The canonical texts of the old row.
    #[getter]
    fn old_texts<'py>(&self, py: Python<'py>) -> PyResult<Option<Vec<Bound<'py, PyAny>>>> {
        self.texts(py, self.change().old_row())
    }

    /// How much of the old row was sent: `none`, `key` or `full`.
    #[getter]
    fn old_image(&self) -> &'static str {
        match self.change().old_image() {
            OldImage::None => "none",
            OldImage::Key => "key",
            OldImage::Full => "full",
        }
    }

    /// The values of the key by which the row is found in the target: the old one, if it changed.
    #[getter]
    fn key<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let change = self.change();
        let Some(row) = change.identity_row() else { return Ok(None) };
        let schema = change.schema();
        let value = |&k: &u16| to_python(py, row.get(usize::from(k)), &schema.columns[usize::from(k)]);
        let values = schema.key.iter().map(value).collect::<PyResult<Vec<_>>>()?;
        PyTuple::new(py, values).map(Some)
    }

    /// Whether an update gave the row another key.
    #[getter]
    fn changes_key(&self) -> bool {
        self.change().changes_key()
    }

    /// Its number within its transaction, from 1.
    #[getter]
    fn sequence(&self) -> u64 {
        self.change().sequence()
    }

    /// Its rank within its partition: bytes that sort.
    #[getter]
    fn rank<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.change().rank().as_bytes())
    }

    /// What identifies its transaction within its source.
    #[getter]
    fn transaction<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.change().piece().transaction.rank)
    }

    /// When its transaction was committed, by the source's clock.
    #[getter]
    fn commit_time<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.change().piece().transaction.commit_time.map(|time| datetime(py, time)).transpose()
    }

    #[getter]
    fn origin(&self) -> Option<String> {
        self.change().piece().transaction.origin.as_ref().map(|s| s.to_string())
    }

    #[getter]
    fn tag(&self) -> Option<String> {
        self.change().piece().transaction.tag.as_ref().map(|s| s.to_string())
    }

    #[getter]
    fn partition(&self) -> &str {
        self.batch.partition().as_str()
    }

    /// The shard that a transform chose.
    #[getter]
    fn shard(&self) -> Option<String> {
        self.change().shard().map(|s| s.to_string())
    }

    /// Class and reason, if a transform left it out.
    #[getter]
    fn left_out(&self) -> Option<(&'static str, String)> {
        self.change().left_out().map(|why| (class_word(why.class), why.reason.to_string()))
    }

    /// Prefix and content of a message.
    #[getter]
    fn message<'py>(&self, py: Python<'py>) -> Option<(String, Bound<'py, PyBytes>)> {
        self.change().message().map(|(prefix, content)| (prefix.to_owned(), PyBytes::new(py, content)))
    }

    fn __repr__(&self) -> String {
        // No values: a log is not the place for them.
        let change = self.change();
        let table = change.table().map(|t| format!(" on {}", t.name)).unwrap_or_default();
        format!("<Change {}{table}, number {}>", self.op(), change.sequence())
    }
}

fn class_word(class: LetterClass) -> &'static str {
    match class {
        LetterClass::Retry => "retry",
        LetterClass::Severe => "severe",
        LetterClass::Skip => "skip",
        LetterClass::Filtered => "filtered",
    }
}

/// What a sink applies: changes in order, as one target transaction or a part of one.
#[pyclass(frozen, module = "anabranch", name = "Unit", sequence)]
pub(crate) struct PyUnit {
    pub(crate) unit: Unit,
}

#[pymethods]
impl PyUnit {
    /// Its number within this run.
    #[getter]
    fn id(&self) -> u64 {
        self.unit.id.0
    }

    /// `stream` or `snapshot`.
    #[getter]
    fn kind(&self) -> &'static str {
        match self.unit.kind {
            UnitKind::Stream => "stream",
            UnitKind::Snapshot => "snapshot",
        }
    }

    /// `whole`, or `first`, `middle`, `last` of a target transaction that the sink keeps open.
    #[getter]
    fn part(&self) -> &'static str {
        match self.unit.part {
            Part::Whole => "whole",
            Part::First => "first",
            Part::Middle => "middle",
            Part::Last => "last",
        }
    }

    /// Whether the target transaction ends with it.
    #[getter]
    fn ends(&self) -> bool {
        self.unit.part.ends()
    }

    /// How many source transactions end in it.
    #[getter]
    fn transactions(&self) -> u64 {
        self.unit.transactions
    }

    /// How many of its changes are of rows: without messages and schemas.
    #[getter]
    fn row_changes(&self) -> u64 {
        self.unit.row_changes()
    }

    /// The changes, in order.
    #[getter]
    fn changes(&self) -> Vec<PyChange> {
        let of = |slice: &anabranch::UnitSlice| {
            let batch = Arc::clone(&slice.batch);
            let change = move |index: u32| PyChange { batch: Arc::clone(&batch), index: index as usize };
            slice.changes.iter().map(change).collect::<Vec<_>>()
        };
        self.unit.slices.iter().flat_map(of).collect()
    }

    fn __len__(&self) -> usize {
        self.unit.len()
    }

    fn __getitem__(&self, index: isize) -> PyResult<PyChange> {
        let out = || PyIndexError::new_err(format!("there are {} changes", self.unit.len()));
        let at = if index < 0 { self.unit.len() as isize + index } else { index };
        let mut at = usize::try_from(at).map_err(|_| out())?;
        for slice in &self.unit.slices {
            if at < slice.changes.len() {
                return Ok(PyChange { batch: Arc::clone(&slice.batch), index: slice.changes.at(at) as usize });
            }
            at -= slice.changes.len();
        }
        Err(out())
    }

    /// The row changes of each table, for Arrow. A table whose schema changed within the unit is there
    /// once for each schema.
    fn tables(&self) -> Vec<PyTableChanges> {
        let of = |slice: &anabranch::UnitSlice| {
            let batch = Arc::clone(&slice.batch);
            slice.changes.iter().map(move |index| (Arc::clone(&batch), index)).collect::<Vec<_>>()
        };
        PyTableChanges::group(self.unit.slices.iter().flat_map(of))
    }

    /// What to store with this unit, given what is stored (a text from here, or from `Claim.lane`).
    /// Store it in the same transaction as the rows.
    fn progress_after(&self, before: &str) -> PyResult<String> {
        let mut progress: LaneProgress = serde_json::from_str(before)
            .map_err(|e| PyValueError::new_err(format!("this is not the progress of a lane: {e}")))?;
        progress.counters.changes += self.unit.row_changes();
        progress.counters.transactions += self.unit.transactions;
        for p in &self.unit.progress {
            progress.partitions.insert(p.partition.clone(), p.clone());
        }
        serde_json::to_string(&progress).map_err(not_json)
    }

    /// How far each partition is once it is applied.
    #[getter]
    fn progress<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        for p in &self.unit.progress {
            dict.set_item(p.partition.as_str(), PyPosition::of(&p.position))?;
        }
        Ok(dict)
    }

    fn __repr__(&self) -> String {
        format!(
            "<Unit {} ({}): {} changes, {} transactions>",
            self.unit.id.0,
            self.part(),
            self.unit.len(),
            self.unit.transactions
        )
    }
}

/// The changes of one table: batch, index in it, and place among all.
type OfTable = (Arc<anabranch::TableSchema>, Vec<(Arc<ChangeBatch>, u32, u64)>);

/// The changes of rows by table, with the place of each among all.
pub(crate) fn by_schema(places: impl Iterator<Item = (Arc<ChangeBatch>, u32)>) -> Vec<OfTable> {
    let mut groups: Vec<OfTable> = Vec::new();
    let mut known: HashMap<usize, usize> = HashMap::new();
    for (at, (batch, index)) in places.enumerate() {
        let change = batch.change(index as usize);
        if !matches!(change.op(), Op::Insert | Op::Update | Op::Delete) {
            continue;
        }
        let schema = Arc::clone(change.schema());
        // One schema may have several addresses: batches of two readers, or a batch that was spilled.
        let group = *known.entry(Arc::as_ptr(&schema) as usize).or_insert_with(|| {
            groups.iter().position(|(s, _)| *s == schema).unwrap_or_else(|| {
                groups.push((Arc::clone(&schema), Vec::new()));
                groups.len() - 1
            })
        });
        groups[group].1.push((batch, index, at as u64));
    }
    groups
}

/// As [`OrRaise`](crate::error::OrRaise), for batches.
pub(crate) fn batch(py: Python<'_>, built: anabranch::Result<ChangeBatch>) -> PyResult<PyBatch> {
    built.map(PyBatch::new).or_raise(py)
}
