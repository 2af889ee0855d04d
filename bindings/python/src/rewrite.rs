//! Batches that Python builds: of a source, and by a transform.

use std::sync::Arc;

use anabranch::transform::rewrite;
use anabranch::{
    BatchBuilder, ChangeBatch, ChangeRef, Error, ErrorKind, LetterClass, OldImage, Op, PartitionId, TableSchema,
    Transaction, TruncateOptions, Value,
};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyMapping, PyString};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::batch::{PyBatch, PyChange, batch as finished};
use crate::convert::timestamp;
use crate::error::caught;
use crate::model::{PyPosition, PyTable};
use crate::value::from_python;

/// As `ChangeBatch.rewrite` says.
pub(crate) fn rewritten(py: Python<'_>, batch: &Arc<ChangeBatch>, each: &Bound<'_, PyAny>) -> PyResult<PyBatch> {
    // An exception goes through the library's own error, and comes out as it was.
    let mut raised = None;
    let out = rewrite(batch, |change, out| {
        let mut one = || -> PyResult<()> {
            let given = each.call1((PyChange { batch: Arc::clone(batch), index: change.index() as usize },))?;
            if given.is_none() || given.cast::<PyBool>().is_ok_and(|b| !b.is_true()) {
                return Ok(());
            }
            if given.is_instance_of::<PyBool>() || given.is_instance_of::<PyChange>() {
                out.keep(change);
                return Ok(());
            }
            if let Ok(why) = given.getattr("_left_out") {
                let (class, reason): (String, String) = why.extract()?;
                out.leave_out(change, letter_class(&class)?, reason);
                return Ok(());
            }
            let values = new_values(change, &given)?;
            out.change(change, change.op(), change.schema());
            if let Some(old) = change.old_row() {
                out.old_row(change.old_image());
                old.values().for_each(|value| out.push(value));
            }
            out.new_row();
            values.iter().for_each(|value| out.push(value.as_ref()));
            Ok(())
        };
        one().map_err(|e| {
            raised = Some(e);
            Error::fatal("a transform raised an exception")
        })
    });
    match raised {
        Some(raised) => Err(raised),
        None => finished(py, out),
    }
}

fn letter_class(name: &str) -> PyResult<LetterClass> {
    match name {
        "filtered" => Ok(LetterClass::Filtered),
        "skip" => Ok(LetterClass::Skip),
        "severe" => Ok(LetterClass::Severe),
        _ => Err(PyValueError::new_err("the class of LeftOut must be filtered, skip or severe")),
    }
}

/// The new row with other values in the columns that `given` names.
fn new_values(change: ChangeRef<'_>, given: &Bound<'_, PyAny>) -> PyResult<Vec<Value>> {
    let wrong = "a rewrite gives the change, True, a dict of new values, LeftOut, or None to leave it away";
    let given = given.cast::<PyMapping>().map_err(|_| PyTypeError::new_err(wrong))?;
    let row =
        change.new_row().ok_or_else(|| PyValueError::new_err("a change without a new row takes no new values"))?;
    let mut values: Vec<Value> = row.values().map(|v| v.to_owned()).collect();
    for item in given.items()?.try_iter()? {
        let (name, value): (String, Bound<'_, PyAny>) = item?.extract()?;
        let at = place(change.schema(), &name)?;
        values[at] = from_python(&value, &change.schema().columns[at])?;
    }
    Ok(values)
}

fn place(schema: &TableSchema, column: &str) -> PyResult<usize> {
    let missing = || PyValueError::new_err(format!("the table {} has no column {column}", schema.name));
    schema.index_of(column).ok_or_else(missing)
}

/// Builds a `ChangeBatch`, change by change.
#[pyclass(frozen, module = "anabranch", name = "BatchBuilder")]
pub(crate) struct PyBuilder {
    state: Mutex<State>,
}

struct State {
    builder: Option<BatchBuilder>,
    open: bool,
}

impl PyBuilder {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a change whose rows are made already: a mistake in a row leaves nothing half done.
    fn change(
        &self,
        op: Op,
        table: &Arc<TableSchema>,
        old: Option<(OldImage, Vec<Value>)>,
        new: Option<Vec<Value>>,
    ) -> PyResult<()> {
        let mut state = self.state();
        let builder = state.within()?;
        let schema = builder.schema(table);
        builder.change(op, schema);
        if let Some((image, values)) = old {
            builder.old_row(image);
            values.iter().for_each(|v| builder.push(v.as_ref()));
        }
        if let Some(values) = new {
            builder.new_row();
            values.iter().for_each(|v| builder.push(v.as_ref()));
        }
        Ok(())
    }
}

impl State {
    fn builder(&mut self) -> PyResult<&mut BatchBuilder> {
        self.builder.as_mut().ok_or_else(|| PyValueError::new_err("this batch is finished: begin another"))
    }

    fn within(&mut self) -> PyResult<&mut BatchBuilder> {
        if !self.open && self.builder.is_some() {
            return Err(PyValueError::new_err("a change belongs to a transaction: call begin first"));
        }
        self.builder()
    }
}

/// The values of a row: a sequence of all columns, or a mapping. What a mapping lacks is `missing`.
fn values(row: &Bound<'_, PyAny>, table: &TableSchema, missing: Option<&Value>) -> PyResult<Vec<Value>> {
    if let Ok(row) = row.cast::<PyMapping>() {
        let mut values = vec![None; table.columns.len()];
        for item in row.items()?.try_iter()? {
            let (name, value): (String, Bound<'_, PyAny>) = item?.extract()?;
            let at = place(table, &name)?;
            values[at] = Some(from_python(&value, &table.columns[at])?);
        }
        let all = values.into_iter().zip(&table.columns);
        let or_missing = |(value, column): (Option<Value>, &anabranch::Column)| {
            let lacks = || PyValueError::new_err(format!("the row of {} lacks the column {}", table.name, column.name));
            value.or_else(|| missing.cloned()).ok_or_else(lacks)
        };
        return all.map(or_missing).collect();
    }
    if row.is_instance_of::<PyString>() {
        return Err(PyTypeError::new_err("a row is a mapping, or a sequence of the values of all columns"));
    }
    let mut values = Vec::with_capacity(table.columns.len());
    for (at, value) in row.try_iter()?.enumerate() {
        let column = table.columns.get(at).ok_or_else(|| width(table))?;
        values.push(from_python(&value?, column)?);
    }
    if values.len() == table.columns.len() { Ok(values) } else { Err(width(table)) }
}

fn width(table: &TableSchema) -> PyErr {
    PyValueError::new_err(format!("a row of {} has {} values", table.name, table.columns.len()))
}

/// An old row: full if every column is there, else the key.
fn old_row(row: &Bound<'_, PyAny>, table: &TableSchema) -> PyResult<(OldImage, Vec<Value>)> {
    let values = values(row, table, Some(&Value::Unchanged))?;
    let lacks = |k: &&u16| values[usize::from(**k)] == Value::Unchanged;
    if let Some(k) = table.key.iter().find(lacks) {
        let column = &table.columns[usize::from(*k)].name;
        return Err(PyValueError::new_err(format!("the old row of {} lacks {column}, of the key", table.name)));
    }
    let full = !values.contains(&Value::Unchanged);
    if !full && table.key.is_empty() {
        return Err(PyValueError::new_err(format!("{} has no key: its old rows must have every column", table.name)));
    }
    Ok((if full { OldImage::Full } else { OldImage::Key }, values))
}

#[pymethods]
impl PyBuilder {
    #[new]
    fn new(partition: String) -> Self {
        let builder = Some(BatchBuilder::new(PartitionId::new(partition)));
        Self { state: Mutex::new(State { builder, open: false }) }
    }

    /// Begins a transaction, or goes on with one of an earlier batch (`sequence` is the number of its
    /// next change then). `rank` grows from transaction to transaction, and has one length.
    #[pyo3(signature = (rank, *, commit_time=None, sequence=1, origin=None, tag=None, total=None))]
    fn begin(
        &self,
        rank: Vec<u8>,
        commit_time: Option<&Bound<'_, PyAny>>,
        sequence: u64,
        origin: Option<String>,
        tag: Option<String>,
        total: Option<u64>,
    ) -> PyResult<()> {
        let commit_time = commit_time.map(|t| timestamp("commit_time", t)).transpose()?;
        let (origin, tag) = (origin.map(Into::into), tag.map(Into::into));
        let mut state = self.state();
        state.builder()?.begin(Transaction { rank: rank.into(), commit_time, origin, tag, total }, sequence);
        state.open = true;
        Ok(())
    }

    /// A row came to be.
    fn insert(&self, table: &Bound<'_, PyTable>, row: &Bound<'_, PyAny>) -> PyResult<()> {
        let schema = &table.get().schema;
        self.change(Op::Insert, schema, None, Some(values(row, schema, None)?))
    }

    /// Rows came to be, of an iterable.
    fn insert_many(&self, table: &Bound<'_, PyTable>, rows: &Bound<'_, PyAny>) -> PyResult<()> {
        for row in rows.try_iter()? {
            self.insert(table, &row?)?;
        }
        Ok(())
    }

    /// A row changed. Columns that `new` lacks stay what they are. `old` is needed where the key changed.
    #[pyo3(signature = (table, new, old=None))]
    fn update(
        &self,
        table: &Bound<'_, PyTable>,
        new: &Bound<'_, PyAny>,
        old: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let schema = &table.get().schema;
        let new = values(new, schema, Some(&Value::Unchanged))?;
        let old = old.map(|old| old_row(old, schema)).transpose()?;
        self.change(Op::Update, schema, old, Some(new))
    }

    /// A row is gone. `old` has its key, or all of it.
    fn delete(&self, table: &Bound<'_, PyTable>, old: &Bound<'_, PyAny>) -> PyResult<()> {
        let schema = &table.get().schema;
        self.change(Op::Delete, schema, Some(old_row(old, schema)?), None)
    }

    /// Every row is gone.
    #[pyo3(signature = (table, *, cascade=false, restart_identity=false))]
    fn truncate(&self, table: &Bound<'_, PyTable>, cascade: bool, restart_identity: bool) -> PyResult<()> {
        self.change(Op::Truncate(TruncateOptions { cascade, restart_identity }), &table.get().schema, None, None)
    }

    /// From here on the table is this one.
    fn schema(&self, table: &Bound<'_, PyTable>) -> PyResult<()> {
        self.change(Op::Schema, &table.get().schema, None, None)
    }

    /// A message in the log.
    fn message(&self, prefix: &str, content: &[u8]) -> PyResult<()> {
        self.state().within()?.message(prefix, content);
        Ok(())
    }

    /// Ends the transaction; `end` is the place after it.
    fn commit(&self, end: &Bound<'_, PyPosition>) -> PyResult<()> {
        let mut state = self.state();
        state.within()?.commit(end.get().position());
        state.open = false;
        Ok(())
    }

    /// How many bytes of log the source has after this batch.
    fn lag_bytes(&self, bytes: u64) -> PyResult<()> {
        self.state().builder()?.lag_bytes(bytes);
        Ok(())
    }

    /// The batch. Every transaction with a commit time at or before `safe_time` lies at or before `end`.
    #[pyo3(signature = (end, safe_time=None))]
    fn finish(
        &self,
        py: Python<'_>,
        end: &Bound<'_, PyPosition>,
        safe_time: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<PyBatch> {
        let safe_time = safe_time.map(|t| timestamp("safe_time", t)).transpose()?;
        let mut state = self.state();
        state.builder()?;
        let builder = state.builder.take();
        let Some(builder) = builder else { return Err(PyValueError::new_err("this batch is finished")) };
        finished(py, builder.finish(end.get().position(), safe_time))
    }

    /// How many changes it has so far.
    fn __len__(&self) -> usize {
        self.state().builder.as_ref().map_or(0, BatchBuilder::len)
    }

    /// About how many bytes it takes so far: a batch of some MiB is large enough.
    #[getter]
    fn size(&self) -> usize {
        self.state().builder.as_ref().map_or(0, BatchBuilder::size)
    }
}

/// A batch that a transform in Python gave, of the same place in the stream as `before`.
pub(crate) fn transformed(before: &ChangeBatch, after: &Bound<'_, PyAny>) -> anabranch::Result<ChangeBatch> {
    let py = after.py();
    let Ok(after) = after.cast::<PyBatch>() else {
        let name = after.get_type().name().map(|n| n.to_string()).unwrap_or_default();
        return Err(Error::fatal(format!("a transform in Python gave a {name}"))
            .hint("give a ChangeBatch: the one it was given, or what its rewrite gives"));
    };
    let after = &after.get().batch;
    if after.end() != before.end() || after.partition() != before.partition() {
        return Err(caught(
            py,
            PyValueError::new_err("the batch that a transform gives must end where the one ended that it was given"),
            "the transform",
            ErrorKind::Fatal,
        ));
    }
    Ok(ChangeBatch::clone(after))
}
