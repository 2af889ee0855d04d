//! A source in Python.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anabranch::{
    ChangeReader, Checkpoint, Chunk, Error, Marker, Next, Partition, PartitionId, Position, Result, Retention,
    RetentionLeft, Snapshot, Snapshotter, Source, SourceIdentity, SourceInfo, SourceOrder, StartFrom, TableSchema,
};
use async_trait::async_trait;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::Object;
use super::checkpointer::tuple;
use super::host::here;
use crate::batch::PyBatch;
use crate::border::attached;
use crate::model::{PyPosition, PyTable};

/// See `anabranch.Source`.
#[derive(Debug)]
pub(crate) struct PySource {
    object: Object,
    info: SourceInfo,
    ends: bool,
    describes: bool,
    snapshots: Option<PySnapshotter>,
    marks: Option<PyMarker>,
    retains: Option<PyRetention>,
    /// Who reads each partition. The next reader of it waits for the one before to end.
    readers: Mutex<HashMap<PartitionId, JoinHandle<()>>>,
}

/// A name for the life of the process: the library's names of connectors are constants.
pub(super) fn constant(name: String) -> &'static str {
    use std::collections::HashSet;
    use std::sync::{Mutex, PoisonError};
    static NAMES: Mutex<Option<HashSet<&'static str>>> = Mutex::new(None);
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    let names = names.get_or_insert_default();
    match names.get(name.as_str()) {
        Some(known) => known,
        None => {
            // Leaked once for each name, of which a program has a few.
            let name: &'static str = name.leak();
            names.insert(name);
            name
        }
    }
}

impl PySource {
    pub(crate) fn new(object: Object) -> PyResult<Self> {
        Python::attach(|py| {
            let source = object.bind(py);
            let order: String = source.getattr("order")?.extract()?;
            let order = match order.as_str() {
                "transactions" => SourceOrder::Transactions,
                "commit_time_per_partition" => SourceOrder::CommitTimePerPartition,
                "key" => SourceOrder::Key,
                _ => {
                    let known = "must be transactions, commit_time_per_partition or key";
                    return Err(PyValueError::new_err(format!("{}.order {known}", object.class)));
                }
            };
            for method in ["prepare", "tables", "partitions", "open"] {
                if !object.can(py, method) {
                    return Err(PyTypeError::new_err(format!("{} is no source: it has no {method}", object.class)));
                }
            }
            let name = source.getattr("name")?.extract::<String>()?;
            let info = SourceInfo { name: constant(name), order };
            let able = |method: &str| object.can(py, method).then(|| object.clone());
            Ok(Self {
                info,
                ends: source.getattr_opt("ends")?.map(|ends| ends.extract()).transpose()?.unwrap_or(false),
                describes: object.can(py, "describe"),
                snapshots: able("begin_snapshot").map(|object| PySnapshotter { object }),
                marks: able("mark").map(|object| PyMarker { object }),
                retains: able("retention").map(|object| PyRetention { object }),
                readers: Mutex::default(),
                object,
            })
        })
    }

    /// The identity, which must be the one that the checkpoint is of.
    fn known(&self, resume: Option<&Checkpoint>, identity: BTreeMap<String, String>) -> Result<SourceIdentity> {
        let identity = SourceIdentity(identity);
        match resume {
            Some(before) if !before.identity.0.is_empty() && before.identity != identity => {
                Err(Error::fatal(format!("{} is another source than the checkpoint is of", self.object.class))
                    .hint("give the pipeline a new name, to begin anew"))
            }
            _ => Ok(identity),
        }
    }
}

/// The arguments of `prepare` and `check`.
fn resuming(resume: Option<&Checkpoint>) -> Result<impl FnOnce(Python<'_>) -> PyResult<Py<PyAny>> + Send + 'static> {
    let text = resume.map(Checkpoint::to_json).transpose()?;
    Ok(move |py: Python<'_>| {
        let resume = match text {
            Some(text) => of_types(py)?.getattr("Checkpoint")?.call_method1("of", (text,))?.unbind(),
            None => py.None(),
        };
        tuple(py, (resume,))
    })
}

pub(super) fn of_types(py: Python<'_>) -> PyResult<Bound<'_, PyModule>> {
    py.import("anabranch._types")
}

fn partition(py: Python<'_>, partition: &Partition) -> PyResult<Py<PyAny>> {
    let parents: Vec<&str> = partition.parents.iter().map(PartitionId::as_str).collect();
    let start = partition.start.as_ref().map(PyPosition::of);
    Ok(of_types(py)?.getattr("Partition")?.call1((partition.id.as_str(), parents, start))?.unbind())
}

fn read_partitions(given: &Bound<'_, PyAny>) -> PyResult<Vec<Partition>> {
    let one = |given: Bound<'_, PyAny>| -> PyResult<Partition> {
        let parents: Vec<String> = given.getattr("parents")?.extract()?;
        Ok(Partition {
            id: PartitionId::new(given.getattr("id")?.extract::<String>()?),
            parents: parents.into_iter().map(PartitionId::new).collect(),
            start: read_position(&given.getattr("start")?)?,
        })
    };
    given.try_iter()?.map(|item| one(item?)).collect()
}

pub(super) fn read_position(given: &Bound<'_, PyAny>) -> PyResult<Option<Position>> {
    if given.is_none() {
        return Ok(None);
    }
    let position = given
        .cast::<PyPosition>()
        .map_err(|_| PyTypeError::new_err(format!("a Position is needed here, not {}", given.get_type())))?;
    Ok(Some(position.get().position()))
}

fn read_tables(given: &Bound<'_, PyAny>) -> PyResult<Vec<TableSchema>> {
    let one = |item: Bound<'_, PyAny>| {
        let table = item.cast::<PyTable>().map_err(|_| PyTypeError::new_err("tables gives a list of Table"))?;
        Ok(TableSchema::clone(&table.get().schema))
    };
    given.try_iter()?.map(|item| one(item?)).collect()
}

#[async_trait]
impl Source for PySource {
    fn info(&self) -> SourceInfo {
        self.info.clone()
    }

    async fn prepare(&self, resume: Option<&Checkpoint>) -> Result<SourceIdentity> {
        let identity = self.object.call("prepare", resuming(resume)?, |given| given.extract()).await?;
        self.known(resume, identity)
    }

    async fn check(&self, resume: Option<&Checkpoint>) -> Result<Vec<String>> {
        if attached(|py| self.object.can(py, "check")).unwrap_or(false) {
            return self.object.call("check", resuming(resume)?, |given| given.extract()).await;
        }
        self.prepare(resume).await.map(|_| Vec::new())
    }

    async fn tables(&self) -> Result<Vec<TableSchema>> {
        self.object.call("tables", |py| tuple(py, ()), read_tables).await
    }

    async fn partitions(&self) -> Result<Vec<Partition>> {
        self.object.call("partitions", |py| tuple(py, ()), read_partitions).await
    }

    fn ends(&self) -> bool {
        self.ends
    }

    async fn open(&self, of: &Partition, from: &StartFrom) -> Result<Box<dyn ChangeReader>> {
        // One that was dropped may still be within a call: at most one is open for a partition.
        let mut readers = self.readers.lock().await;
        if let Some(before) = readers.remove(&of.id) {
            let _ = before.await;
        }
        let (of_call, from) = (of.clone(), from.clone());
        let arguments = move |py: Python<'_>| {
            let snapshots = PyDict::new(py);
            for (table, copied) in &from.snapshots {
                snapshots.set_item(table.to_string(), PyPosition::of(&copied.point))?;
            }
            let position = from.position.as_ref().map(PyPosition::of);
            let from = of_types(py)?.getattr("StartFrom")?.call1((position, snapshots))?;
            tuple(py, (partition(py, &of_call)?, from))
        };
        let object = self.object.clone();
        let reader = self.object.call("open", arguments, move |given| Ok(object.sibling(given))).await?;
        let (reader, task) = PyReader::start(reader);
        readers.insert(of.id.clone(), task);
        Ok(Box::new(reader))
    }

    fn snapshotter(&self) -> Option<&dyn Snapshotter> {
        self.snapshots.as_ref().map(|s| s as _)
    }

    fn marker(&self) -> Option<&dyn Marker> {
        self.marks.as_ref().map(|m| m as _)
    }

    fn retention(&self) -> Option<&dyn Retention> {
        self.retains.as_ref().map(|r| r as _)
    }

    fn describe(&self, position: &Position) -> String {
        let plain = || format!("{:?}", position.rank);
        if !self.describes {
            return plain();
        }
        let described = here("describe", |py| {
            self.object.bind(py).call_method1("describe", (PyPosition::of(position),))?.extract::<String>()
        });
        described.unwrap_or_else(|_| plain())
    }
}

/// What a reader is asked. Each question has its own answer, so that the runtime may drop any call.
enum Question {
    Next(oneshot::Sender<Result<Next>>),
    Acknowledge(Option<Position>, oneshot::Sender<Result<()>>),
    Close(oneshot::Sender<Result<()>>),
}

/// A reader in Python. Its calls are made one after another by a task of its own: a call that the
/// runtime drops goes on there, and what it gives is kept for the next one.
struct PyReader {
    ask: mpsc::UnboundedSender<Question>,
    /// A batch that is on its way.
    coming: Option<oneshot::Receiver<Result<Next>>>,
    /// Acknowledgements that are behind it, the last one.
    acknowledged: Option<oneshot::Receiver<Result<()>>>,
}

impl PyReader {
    fn start(object: Object) -> (Self, JoinHandle<()>) {
        // Bounded by its one owner, which has one question of each kind open.
        let (ask, asked) = mpsc::unbounded_channel();
        let task = tokio::spawn(answer(object, asked));
        (Self { ask, coming: None, acknowledged: None }, task)
    }

    fn gone() -> Error {
        Error::fatal("the reader ended")
    }
}

async fn answer(object: Object, mut asked: mpsc::UnboundedReceiver<Question>) {
    while let Some(question) = asked.recv().await {
        match question {
            Question::Next(tell) => {
                let next = object.call("next", |py| tuple(py, ()), read_next).await;
                let _ = tell.send(next);
            }
            Question::Acknowledge(through, tell) => {
                let arguments = move |py: Python<'_>| tuple(py, (through.as_ref().map(PyPosition::of),));
                let _ = tell.send(object.call("acknowledge", arguments, |_| Ok(())).await);
            }
            Question::Close(tell) => {
                let _ = tell.send(close(&object).await);
                return;
            }
        }
    }
    // It was dropped.
    let _ = close(&object).await;
}

async fn close(object: &Object) -> Result<()> {
    let able = object.clone();
    if !attached(|py| able.can(py, "close")).unwrap_or(false) {
        return Ok(());
    }
    object.call("close", |py| tuple(py, ()), |_| Ok(())).await
}

fn read_next(given: &Bound<'_, PyAny>) -> PyResult<Next> {
    if let Ok(batch) = given.cast::<PyBatch>() {
        // Python may keep the batch: the values are copied then, all at once.
        return Ok(Next::Batch(anabranch::ChangeBatch::clone(&batch.get().batch)));
    }
    let types = of_types(given.py())?;
    if given.is_instance(&types.getattr("Closed")?)? {
        return Ok(Next::Closed { children: read_partitions(&given.getattr("children")?)? });
    }
    if given.is_instance(&types.getattr("Stopped")?)? {
        return Ok(Next::Stopped);
    }
    let got = given.get_type().name()?.to_string();
    Err(PyTypeError::new_err(format!("next gives a ChangeBatch (also without changes), Closed or Stopped, not {got}")))
}

#[async_trait]
impl ChangeReader for PyReader {
    /// Cancel safe: what is on its way stays.
    async fn next(&mut self) -> Result<Next> {
        // 1. An acknowledgement that was not waited for failed, perhaps.
        if let Some(told) = self.acknowledged.as_mut() {
            let told = told.await.unwrap_or_else(|_| Err(Self::gone()));
            self.acknowledged = None;
            told?;
        }
        // 2. The batch.
        let coming = match self.coming.as_mut() {
            Some(coming) => coming,
            None => {
                let (tell, told) = oneshot::channel();
                self.ask.send(Question::Next(tell)).map_err(|_| Self::gone())?;
                self.coming.insert(told)
            }
        };
        let next = coming.await.unwrap_or_else(|_| Err(Self::gone()));
        self.coming = None;
        next
    }

    async fn acknowledge(&mut self, through: Option<&Position>) -> Result<()> {
        let (tell, told) = oneshot::channel();
        self.ask.send(Question::Acknowledge(through.cloned(), tell)).map_err(|_| Self::gone())?;
        if self.coming.is_some() {
            // It is behind a batch that is waited for, on a quiet source for long: not here.
            self.acknowledged = Some(told);
            return Ok(());
        }
        told.await.unwrap_or_else(|_| Err(Self::gone()))
    }

    async fn close(self: Box<Self>) -> Result<()> {
        let (tell, told) = oneshot::channel();
        self.ask.send(Question::Close(tell)).map_err(|_| Self::gone())?;
        told.await.unwrap_or_else(|_| Err(Self::gone()))
    }
}

#[derive(Debug)]
struct PyMarker {
    object: Object,
}

#[async_trait]
impl Marker for PyMarker {
    async fn mark(&self) -> Result<BTreeMap<PartitionId, Position>> {
        self.object
            .call(
                "mark",
                |py| tuple(py, ()),
                |given| {
                    let mut marks = BTreeMap::new();
                    for item in given.call_method0("items")?.try_iter()? {
                        let (partition, position): (String, Bound<'_, PyAny>) = item?.extract()?;
                        let position = read_position(&position)?;
                        let position = position
                            .ok_or_else(|| PyValueError::new_err("mark gives a Position for each partition"))?;
                        marks.insert(PartitionId::new(partition), position);
                    }
                    Ok(marks)
                },
            )
            .await
    }
}

#[derive(Debug)]
struct PyRetention {
    object: Object,
}

#[async_trait]
impl Retention for PyRetention {
    async fn left(&self) -> Result<RetentionLeft> {
        self.object
            .call(
                "retention",
                |py| tuple(py, ()),
                |given| {
                    let get = |key: &str| given.call_method1("get", (key,));
                    Ok(RetentionLeft {
                        held_bytes: get("held_bytes")?.extract()?,
                        bytes: get("bytes")?.extract()?,
                        seconds: get("seconds")?.extract()?,
                        unread_bytes: get("unread_bytes")?.extract()?,
                        lost: get("lost")?.extract()?,
                        ..RetentionLeft::default()
                    })
                },
            )
            .await
    }
}

#[derive(Debug)]
struct PySnapshotter {
    object: Object,
}

#[async_trait]
impl Snapshotter for PySnapshotter {
    async fn begin(&self, tables: &[TableSchema]) -> Result<Box<dyn Snapshot>> {
        let tables: Vec<_> = tables.iter().map(|table| PyTable { schema: Arc::new(table.clone()) }).collect();
        let object = self.object.clone();
        let read = move |given: &Bound<'_, PyAny>| {
            let point = read_position(&given.getattr("point")?)?;
            let mut chunks = Vec::new();
            let mut next: HashMap<String, u32> = HashMap::new();
            for chunk in given.getattr("chunks")?.try_iter()? {
                let chunk = chunk?;
                let table: Bound<'_, PyTable> = chunk.getattr("table")?.cast_into().map_err(PyErr::from)?;
                let table = table.get().schema.name.clone();
                let index = next.entry(table.to_string()).or_default();
                chunks.push(Chunk {
                    table,
                    index: *index,
                    token: chunk.getattr("token")?.extract()?,
                    rows: chunk.getattr("rows")?.extract()?,
                });
                *index += 1;
            }
            let point = point.ok_or_else(|| PyValueError::new_err("a snapshot has a point"))?;
            Ok(PySnapshot { object: object.sibling(given), point, chunks })
        };
        let snapshot = self.object.call("begin_snapshot", move |py| tuple(py, (tables,)), read).await?;
        Ok(Box::new(snapshot))
    }
}

struct PySnapshot {
    object: Object,
    point: Position,
    chunks: Vec<Chunk>,
}

#[async_trait]
impl Snapshot for PySnapshot {
    fn point(&self) -> Position {
        self.point.clone()
    }

    fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    async fn open(&self, chunk: &Chunk) -> Result<Box<dyn ChangeReader>> {
        let (table, token) = (chunk.table.to_string(), chunk.token.clone());
        let object = self.object.clone();
        let arguments = move |py: Python<'_>| tuple(py, (table, token));
        let reader = self.object.call("open", arguments, move |given| Ok(object.sibling(given))).await?;
        // A chunk is read once: no reader comes after this one.
        let (reader, _task) = PyReader::start(reader);
        Ok(Box::new(reader))
    }
}
