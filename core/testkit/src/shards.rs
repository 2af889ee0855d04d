//! A source of many partitions that several processes can read: a folder of append-only files.
//!
//! Each partition is a file `NAME.jsonl` with one transaction a line: the row `(id, n)` of the table
//! `items` is inserted, updated or deleted. `n` is the number of the line over all files, so it grows
//! for every key, also when the key moves to a child. A last line closes the file and names the children.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anabranch_core::{
    BatchBuilder, ChangeReader, Checkpoint, Column, DataType, Error, Marker, Next, OldImage, Op, Partition,
    PartitionId, Position, Rank, Result, Source, SourceIdentity, SourceInfo, SourceOrder, StartFrom, TableName,
    TableSchema, Timestamp, Transaction, ValueRef,
};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// Between two looks at a file that has not grown: files announce nothing.
const POLL: Duration = Duration::from_millis(20);
/// After how much quiet a reader gives an empty batch.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// Lines of a batch.
const BATCH: usize = 50;

/// The table.
pub fn items() -> TableSchema {
    TableSchema {
        name: TableName::new("", "items"),
        columns: vec![Column::new("id", DataType::Int64), Column::new("n", DataType::Int64)],
        key: vec![0],
    }
}

/// One line of a file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Insert { id: i64, n: u64, t: i64 },
    Update { id: i64, n: u64, t: i64 },
    Delete { id: i64, n: u64, t: i64 },
    Closed { children: Vec<Partition> },
}

/// The folder, as a source. It has no snapshot.
#[derive(Debug, Clone)]
pub struct Shards {
    folder: PathBuf,
}

impl Shards {
    /// Reads this folder.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }
}

/// Writes the files, from one thread.
#[derive(Debug)]
pub struct ShardWriter {
    folder: PathBuf,
    files: BTreeMap<String, File>,
    n: u64,
    /// The rows as they are now.
    rows: BTreeMap<i64, u64>,
}

impl ShardWriter {
    /// Creates the partitions `p00`, `p01` and so on in an empty folder.
    pub fn create(folder: impl Into<PathBuf>, partitions: usize) -> std::io::Result<Self> {
        let mut this = Self { folder: folder.into(), files: BTreeMap::new(), n: 0, rows: BTreeMap::new() };
        fs::create_dir_all(&this.folder)?;
        for n in 0..partitions {
            this.open(&format!("p{n:02}"))?;
        }
        let roots: Vec<&String> = this.files.keys().collect();
        fs::write(this.folder.join("roots.json"), serde_json::to_vec(&roots)?)?;
        Ok(this)
    }

    /// Writes a row: a new number for it, or its end. Gives the number.
    pub fn write(&mut self, partition: &str, id: i64, delete: bool) -> std::io::Result<u64> {
        self.n += 1;
        let (n, t) = (self.n, Timestamp::now().as_micros());
        let line = match (self.rows.contains_key(&id), delete) {
            (true, true) => Line::Delete { id, n, t },
            (true, false) => Line::Update { id, n, t },
            (false, _) => Line::Insert { id, n, t },
        };
        if matches!(line, Line::Delete { .. }) {
            self.rows.remove(&id);
        } else {
            self.rows.insert(id, n);
        }
        self.append(partition, &line)?;
        Ok(n)
    }

    /// Closes partitions, all of which have these children.
    pub fn close(&mut self, parents: &[&str], children: &[&str]) -> std::io::Result<()> {
        for child in children {
            self.open(child)?;
        }
        let ids = |names: &[&str]| names.iter().map(|n| PartitionId::new(*n)).collect::<Vec<_>>();
        let made = |id| Partition { id, parents: ids(parents), start: None };
        let children: Vec<Partition> = ids(children).into_iter().map(made).collect();
        for parent in parents {
            self.append(parent, &Line::Closed { children: children.clone() })?;
            self.files.remove(*parent);
        }
        Ok(())
    }

    /// The names of the partitions that take rows.
    pub fn open_partitions(&self) -> Vec<String> {
        self.files.keys().cloned().collect()
    }

    /// The rows that the target must have in the end: id and number.
    pub fn rows(&self) -> &BTreeMap<i64, u64> {
        &self.rows
    }

    fn open(&mut self, name: &str) -> std::io::Result<()> {
        let file = OpenOptions::new().append(true).create_new(true).open(file_of(&self.folder, name))?;
        self.files.insert(name.to_owned(), file);
        Ok(())
    }

    fn append(&mut self, partition: &str, line: &Line) -> std::io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        let file = self.files.get_mut(partition).ok_or_else(|| std::io::Error::other("no such open partition"))?;
        file.write_all(&text)
    }
}

fn file_of(folder: &Path, partition: &str) -> PathBuf {
    folder.join(format!("{partition}.jsonl"))
}

fn broken(what: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |e| Error::transient(what).because(e)
}

#[async_trait]
impl Source for Shards {
    fn info(&self) -> SourceInfo {
        SourceInfo { name: "shards", order: SourceOrder::Key }
    }

    async fn prepare(&self, _: Option<&Checkpoint>) -> Result<SourceIdentity> {
        Ok(SourceIdentity::default().with("folder", self.folder.display().to_string()))
    }

    async fn check(&self, _: Option<&Checkpoint>) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    async fn tables(&self) -> Result<Vec<TableSchema>> {
        Ok(vec![items()])
    }

    async fn partitions(&self) -> Result<Vec<Partition>> {
        let text = fs::read(self.folder.join("roots.json")).map_err(broken("cannot read the roots"))?;
        let names: Vec<String> =
            serde_json::from_slice(&text).map_err(|e| Error::fatal("the list of roots is damaged").because(e))?;
        Ok(names.into_iter().map(|n| Partition::root(PartitionId::new(n))).collect())
    }

    async fn open(&self, partition: &Partition, from: &StartFrom) -> Result<Box<dyn ChangeReader>> {
        let mut file =
            File::open(file_of(&self.folder, partition.id.as_str())).map_err(broken("cannot open the file"))?;
        let token = from.position.as_ref().map_or(&b""[..], |p| &p.token);
        let offset = if token.is_empty() {
            0
        } else {
            let text = std::str::from_utf8(token).ok().and_then(|t| t.parse().ok());
            text.ok_or_else(|| Error::fatal("this position is not of these files"))?
        };
        file.seek(SeekFrom::Start(offset)).map_err(broken("cannot find the place in the file"))?;
        let end = from.position.clone().unwrap_or_default();
        let (partition, schema) = (partition.id.clone(), Arc::new(items()));
        let quiet_since = Instant::now();
        Ok(Box::new(ShardReader { file: BufReader::new(file), partition, schema, offset, end, quiet_since }))
    }

    fn marker(&self) -> Option<&dyn Marker> {
        Some(self)
    }

    fn describe(&self, position: &Position) -> String {
        format!("byte {}", String::from_utf8_lossy(&position.token))
    }
}

#[async_trait]
impl Marker for Shards {
    async fn mark(&self) -> Result<BTreeMap<PartitionId, Position>> {
        // What each partition has last, and its children if it is closed.
        let mut files: BTreeMap<String, (Option<u64>, Option<Vec<String>>)> = BTreeMap::new();
        for entry in fs::read_dir(&self.folder).map_err(broken("cannot list the folder"))? {
            let path = entry.map_err(broken("cannot list the folder"))?.path();
            let Some(name) = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".jsonl")) else {
                continue;
            };
            let text = fs::read_to_string(&path).map_err(broken("cannot read the file"))?;
            let found = files.entry(name.to_owned()).or_default();
            for line in text.split_inclusive('\n').filter(|l| l.ends_with('\n')) {
                match parse(line)? {
                    Line::Closed { children } => {
                        found.1 = Some(children.iter().map(|c| c.id.as_str().to_owned()).collect())
                    }
                    line => found.0 = number(&line),
                }
            }
        }
        let marked = files.iter().filter(|(name, _)| !is_followed(name, &files));
        Ok(marked
            .filter_map(|(name, (last, _))| Some((PartitionId::new(name.as_str()), position((*last)?, 0))))
            .collect())
    }
}

/// Whether whoever has reached the last rows of those that follow this partition has all of it.
fn is_followed(name: &str, files: &BTreeMap<String, (Option<u64>, Option<Vec<String>>)>) -> bool {
    let has_rows = |child: &String| files.get(child).is_some_and(|(last, _)| last.is_some());
    let children = files.get(name).and_then(|(_, children)| children.as_ref());
    children.is_some_and(|all| !all.is_empty() && all.iter().all(|child| has_rows(child) || is_followed(child, files)))
}

fn parse(line: &str) -> Result<Line> {
    serde_json::from_str(line).map_err(|e| Error::fatal("a line is damaged").because(e))
}

fn number(line: &Line) -> Option<u64> {
    match line {
        Line::Insert { n, .. } | Line::Update { n, .. } | Line::Delete { n, .. } => Some(*n),
        Line::Closed { .. } => None,
    }
}

fn position(n: u64, offset: u64) -> Position {
    Position::new(Rank::of_end(&n.to_be_bytes()), offset.to_string())
}

struct ShardReader {
    file: BufReader<File>,
    partition: PartitionId,
    schema: Arc<TableSchema>,
    offset: u64,
    end: Position,
    quiet_since: Instant,
}

impl ShardReader {
    /// What the file has now. Nothing is awaited: dropping the caller loses nothing.
    fn take(&mut self, heartbeat: bool) -> Result<Option<Next>> {
        let mut batch = BatchBuilder::new(self.partition.clone());
        let schema = batch.schema(&self.schema);
        let (mut lines, mut safe_time, mut text) = (0, None, String::new());
        while lines < BATCH {
            text.clear();
            let length = self.file.read_line(&mut text).map_err(broken("cannot read the file"))? as u64;
            if !text.ends_with('\n') {
                // Half a line: the rest comes later.
                self.file.seek(SeekFrom::Start(self.offset)).map_err(broken("cannot read the file"))?;
                break;
            }
            let line = parse(&text)?;
            if let Line::Closed { children } = line {
                if lines > 0 {
                    self.file.seek(SeekFrom::Start(self.offset)).map_err(broken("cannot read the file"))?;
                    break;
                }
                return Ok(Some(Next::Closed { children }));
            }
            lines += 1;
            self.offset += length;
            let (op, id, n, t) = match line {
                Line::Insert { id, n, t } => (Op::Insert, id, n, t),
                Line::Update { id, n, t } => (Op::Update, id, n, t),
                Line::Delete { id, n, t } => (Op::Delete, id, n, t),
                Line::Closed { .. } => break,
            };
            let commit_time = Some(Timestamp::from_micros(t));
            batch.begin(Transaction { rank: n.to_be_bytes().to_vec().into(), commit_time, ..Default::default() }, 1);
            batch.change(op, schema);
            if op == Op::Delete {
                batch.old_row(OldImage::Key);
                batch.push(ValueRef::Int(id));
                batch.push(ValueRef::Unchanged);
            } else {
                batch.new_row();
                batch.push(ValueRef::Int(id));
                batch.push(ValueRef::Int(n as i64));
            }
            self.end = position(n, self.offset);
            batch.commit(self.end.clone());
            safe_time = commit_time;
        }
        if lines == 0 && !heartbeat {
            return Ok(None);
        }
        batch.finish(self.end.clone(), safe_time).map(Next::Batch).map(Some)
    }
}

#[async_trait]
impl ChangeReader for ShardReader {
    async fn next(&mut self) -> Result<Next> {
        loop {
            let heartbeat = self.quiet_since.elapsed() > HEARTBEAT;
            if let Some(next) = self.take(heartbeat)? {
                self.quiet_since = Instant::now();
                return Ok(next);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn acknowledge(&mut self, _: Option<&Position>) -> Result<()> {
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
