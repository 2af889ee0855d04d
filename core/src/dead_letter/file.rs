//! Dead letters in one file that only grows: JSON lines.
//!
//! ```text
//! {"anabranch_dead_letters":1,"generation":1234}          which file this is
//! {"pipeline":"orders-dr","letter":{"id":"slot:00ff",..}}   the last line of an id counts
//! ```
//!
//! Each process keeps the latest form of every letter in memory and reads on where the file has
//! grown. A compaction writes a new file with another generation over the old one, and makes the
//! others read it from the start.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::memory::Shelf;
use super::{DeadLetter, DeadLetterStore, LetterState};
use crate::durable_file;
use crate::error::{Error, Result};

/// The version of the file's form.
const FORMAT: u64 = 1;

/// Keeps dead letters in one file of JSON lines, durable when [`put`](DeadLetterStore::put) returns.
///
/// Several pipelines, and several processes of one machine, may share the file. A last line that a
/// crash cut off was never confirmed, and is ignored. The first use of a handle removes lines that
/// later ones replaced. All letters are held in memory too.
#[derive(Debug, Clone)]
pub struct FileDeadLetters {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    path: PathBuf,
    shelf: Shelf,
    /// What the file was called when it was read last, and how far it was read; `None` before the first use.
    read: Option<(u64, u64)>,
    /// Lines that a later one replaced.
    replaced: u64,
}

#[derive(Serialize, Deserialize)]
struct Header {
    anabranch_dead_letters: u64,
    generation: u64,
}

#[derive(Serialize)]
struct LineRef<'a> {
    pipeline: &'a str,
    letter: &'a DeadLetter,
}

#[derive(Deserialize)]
struct Line {
    pipeline: String,
    letter: DeadLetter,
}

impl FileDeadLetters {
    /// Letters in this file, which the first use creates.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let state = State { path: path.into(), shelf: Shelf::default(), read: None, replaced: 0 };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Runs `work` on the state as the file has it now, under the lock file, on tokio's threads for
    /// blocking work. It runs to its end even if the caller goes away.
    async fn with<T: Send + 'static>(&self, work: impl FnOnce(&mut State) -> Result<T> + Send + 'static) -> Result<T> {
        let state = Arc::clone(&self.state);
        tokio::task::spawn_blocking(move || {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            let _lock = durable_file::lock_beside(&state.path).map_err(|e| failed("lock", &state.path, e))?;
            state.catch_up()?;
            work(&mut state)
        })
        .await
        .map_err(|e| Error::fatal("the thread that handles the dead-letter file ended early").because(e))?
    }
}

#[async_trait]
impl DeadLetterStore for FileDeadLetters {
    async fn put(&self, pipeline: &str, letters: &[DeadLetter]) -> Result<()> {
        let (pipeline, letters) = (pipeline.to_owned(), letters.to_vec());
        self.with(move |state| state.put(&pipeline, letters)).await
    }

    async fn list(
        &self,
        pipeline: &str,
        states: &[LetterState],
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>> {
        let (pipeline, states, after) = (pipeline.to_owned(), states.to_vec(), after.map(str::to_owned));
        self.with(move |state| Ok(state.shelf.list(&pipeline, &states, after.as_deref(), limit))).await
    }

    async fn get(&self, pipeline: &str, id: &str) -> Result<Option<DeadLetter>> {
        let (pipeline, id) = (pipeline.to_owned(), id.to_owned());
        self.with(move |state| Ok(state.shelf.get(&pipeline, &id))).await
    }

    async fn open_count(&self, pipeline: &str) -> Result<u64> {
        let pipeline = pipeline.to_owned();
        self.with(move |state| Ok(state.shelf.open_count(&pipeline))).await
    }

    async fn replace(&self, pipeline: &str, changed: &[(DeadLetter, DeadLetter)]) -> Result<usize> {
        let (pipeline, changed) = (pipeline.to_owned(), changed.to_vec());
        self.with(move |state| {
            let unmoved = state.shelf.unmoved(&pipeline, &changed);
            let stored = unmoved.len();
            state.put(&pipeline, unmoved).map(|()| stored)
        })
        .await
    }
}

impl State {
    /// Reads what was added since the last time, and compacts the file at the first use.
    fn catch_up(&mut self) -> Result<()> {
        let first_use = self.read.is_none();
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return self.rewrite(),
            Err(e) => return Err(failed("read", &self.path, e)),
        };
        let (header, start) = read_header(&mut file, &self.path)?;
        let from = match self.read {
            Some((generation, read)) if generation == header.generation => read,
            _ => {
                (self.shelf, self.replaced) = (Shelf::default(), 0);
                start
            }
        };
        let mut added = Vec::new();
        let found = file.seek(SeekFrom::Start(from)).and_then(|_| file.read_to_end(&mut added));
        found.map_err(|e| failed("read", &self.path, e))?;
        // Bytes after the last line end are of a write that was cut off; the next one removes them.
        let whole = added.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
        for line in added[..whole].split(|&b| b == b'\n').filter(|line| !line.is_empty()) {
            let line: Line = serde_json::from_slice(line)
                .map_err(|e| Error::fatal(format!("a line of {} is damaged", self.path.display())).because(e))?;
            self.replaced += u64::from(self.shelf.put(&line.pipeline, line.letter));
        }
        self.read = Some((header.generation, from + whole as u64));
        if first_use && self.replaced > 0 { self.rewrite() } else { Ok(()) }
    }

    /// Stores these letters, durably.
    fn put(&mut self, pipeline: &str, letters: Vec<DeadLetter>) -> Result<()> {
        if letters.is_empty() {
            return Ok(());
        }
        let mut lines = Vec::new();
        for letter in &letters {
            write_line(&mut lines, &LineRef { pipeline, letter })?;
        }
        self.append(&lines)?;
        for letter in letters {
            self.replaced += u64::from(self.shelf.put(pipeline, letter));
        }
        Ok(())
    }

    /// Adds whole lines at the end of what was read, durably.
    fn append(&mut self, lines: &[u8]) -> Result<()> {
        let Some((generation, read)) = self.read else { return Ok(()) };
        let written = (|| {
            let mut file = File::options().write(true).open(&self.path)?;
            file.set_len(read)?;
            file.seek(SeekFrom::Start(read))?;
            file.write_all(lines)?;
            file.sync_all()
        })();
        written.map_err(|e| failed("write", &self.path, e))?;
        self.read = Some((generation, read + lines.len() as u64));
        Ok(())
    }

    /// Replaces the file by one that has each letter once.
    fn rewrite(&mut self) -> Result<()> {
        let header = Header { anabranch_dead_letters: FORMAT, generation: rand::random() };
        let mut content = Vec::new();
        write_line(&mut content, &header)?;
        for (pipeline, letter) in self.shelf.all() {
            write_line(&mut content, &LineRef { pipeline, letter })?;
        }
        durable_file::replace(&self.path, &content).map_err(|e| failed("write", &self.path, e))?;
        (self.read, self.replaced) = (Some((header.generation, content.len() as u64)), 0);
        Ok(())
    }
}

/// The first line, and where the second one starts.
fn read_header(file: &mut File, path: &Path) -> Result<(Header, u64)> {
    let mut start = [0; 128];
    let mut filled = 0;
    while filled < start.len() {
        match file.read(&mut start[filled..]).map_err(|e| failed("read", path, e))? {
            0 => break,
            more => filled += more,
        }
    }
    let end = start[..filled].iter().position(|&b| b == b'\n');
    let header = end.and_then(|end| serde_json::from_slice::<Header>(&start[..end]).ok());
    let (Some(end), Some(header)) = (end, header) else {
        return Err(Error::config("dead_letters.path", format!("{} is no file of dead letters", path.display())));
    };
    if header.anabranch_dead_letters > FORMAT {
        let problem = format!(
            "{} has format {}, and this version of anabranch knows {FORMAT}",
            path.display(),
            header.anabranch_dead_letters
        );
        return Err(Error::config("dead_letters.path", problem).hint("run the version that wrote it, or a later one"));
    }
    Ok((header, end as u64 + 1))
}

fn write_line(out: &mut Vec<u8>, line: &impl Serialize) -> Result<()> {
    serde_json::to_writer(&mut *out, line)
        .map_err(|e| Error::fatal("cannot write a dead letter as JSON").because(e))?;
    out.push(b'\n');
    Ok(())
}

fn failed(verb: &str, path: &Path, cause: io::Error) -> Error {
    let message = format!("cannot {verb} the dead-letter file {}", path.display());
    match cause.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::NotADirectory | io::ErrorKind::ReadOnlyFilesystem => {
            Error::config("dead_letters.path", message).because(cause)
        }
        // A full disk, or a file system that went away: it may come back.
        _ => Error::transient(message).because(cause),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    use crate::dead_letter::LetterClass;
    use crate::model::{Op, PartitionId, Position, TableName, TableSchema};

    fn letter(id: &str, state: LetterState) -> DeadLetter {
        DeadLetter {
            id: id.to_owned(),
            class: LetterClass::Severe,
            state,
            reason: "no".to_owned(),
            op: Op::Delete,
            schema: TableSchema { name: TableName::new("public", "t"), columns: Vec::new(), key: Vec::new() },
            old: Some(vec![f64::NAN.to_string().as_str().into()]),
            new: None,
            shard: None,
            partition: PartitionId::new("slot"),
            position: Position::default(),
            commit_time: None,
            attempts: 1,
            last_attempt: None,
            parked: None,
            lane: None,
        }
    }

    const OPEN: &[LetterState] = &[LetterState::Open];

    #[tokio::test]
    async fn a_torn_last_line_is_ignored_and_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("letters");
        FileDeadLetters::new(&path).put("p", &[letter("a", LetterState::Open)]).await.unwrap();
        File::options().append(true).open(&path).unwrap().write_all(b"{\"pipeline\":\"p\",\"let").unwrap();

        let store = FileDeadLetters::new(&path);
        assert_eq!(store.list("p", OPEN, None, 9).await.unwrap().len(), 1);
        store.put("p", &[letter("b", LetterState::Open)]).await.unwrap();

        let again = FileDeadLetters::new(&path).list("p", OPEN, None, 9).await.unwrap();
        assert_eq!(again, [letter("a", LetterState::Open), letter("b", LetterState::Open)]);
    }

    #[tokio::test]
    async fn a_new_handle_compacts_and_an_old_one_follows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("letters");
        let old = FileDeadLetters::new(&path);
        for _ in 0..50 {
            old.put("p", &[letter("a", LetterState::Open)]).await.unwrap();
        }
        let before = fs::metadata(&path).unwrap().len();

        let new = FileDeadLetters::new(&path);
        assert_eq!(new.open_count("p").await.unwrap(), 1);
        assert!(fs::metadata(&path).unwrap().len() < before / 20);

        new.put("p", &[letter("b", LetterState::Open)]).await.unwrap();
        old.put("p", &[letter("a", LetterState::Skipped)]).await.unwrap();
        for store in [&old, &new] {
            assert_eq!(store.list("p", OPEN, None, 9).await.unwrap(), [letter("b", LetterState::Open)]);
        }
    }

    #[tokio::test]
    async fn another_file_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("letters");
        fs::write(&path, "my diary\n").unwrap();

        let error = FileDeadLetters::new(&path).put("p", &[]).await.unwrap_err();

        assert_eq!(error.kind(), crate::ErrorKind::Config);
        assert_eq!(fs::read_to_string(&path).unwrap(), "my diary\n");
    }
}
