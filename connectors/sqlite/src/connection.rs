//! Connections: how they are opened, and how their errors are told.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anabranch_core::{Error, Result};
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};

use crate::error;

/// How long a writer waits for the lock of another one before it reports `Transient`. Longer than
/// any sane transaction of an application, shorter than the patience of an operator.
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a lock is tried again that SQLite does not wait for.
const LOOK: Duration = Duration::from_millis(5);

/// Statements kept prepared: a few for each of some dozens of tables.
const CACHED_STATEMENTS: usize = 256;

/// Bytes that the log is cut to after a checkpoint, so that one large transaction does not leave
/// its size on the disk for good.
const LOG_LIMIT: i64 = 64 << 20;

/// What a connection needs to be opened.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// What errors call the path: the section it was given in, `sink.path`.
    pub(crate) key: &'static str,
    pub(crate) path: PathBuf,
    pub(crate) busy_timeout: Duration,
}

/// An open connection and the file it belongs to.
pub(crate) struct Database {
    pub(crate) conn: Connection,
    key: &'static str,
    path: Arc<Path>,
}

impl Settings {
    /// Finds what can be found without opening the file.
    pub(crate) fn check(&self) -> Result<PathBuf> {
        let written = self.path.as_os_str();
        if written.is_empty() {
            return Err(Error::config(self.key, "is empty").hint("name the SQLite file"));
        }
        if written == ":memory:" {
            return Err(Error::config(self.key, ":memory: would lose everything at the end of the process")
                .hint("name a file on a disk"));
        }
        // Absolute, for two reasons: a later change of the working folder must not change the file,
        // and SQLite would take a name that begins with "file:" for a URI.
        let path = std::path::absolute(&self.path)
            .map_err(|e| Error::config(self.key, format!("{} is no path", self.path.display())).because(e))?;
        Ok(path)
    }

    /// Whether there is no file yet.
    pub(crate) fn is_missing(&self) -> Result<bool> {
        Ok(!self.check()?.exists())
    }

    /// What a file that is missing holds: nothing. For looking, which must not create it. Blocks.
    pub(crate) fn connect_to_nothing(&self) -> Result<Database> {
        let path = self.place()?;
        let conn = Connection::open_in_memory().map_err(|e| error::failed(self.key, &path, "cannot open", e))?;
        Ok(Database { conn, key: self.key, path: path.into() })
    }

    /// Opens the file, creating it if it is missing. Blocks.
    pub(crate) fn connect(&self) -> Result<Database> {
        let path = self.place()?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn =
            Connection::open_with_flags(&path, flags).map_err(|e| error::failed(self.key, &path, "cannot open", e))?;
        let db = Database { conn, key: self.key, path: path.into() };
        db.set_up(self.busy_timeout)?;
        Ok(db)
    }

    /// The path, in a folder that is there.
    fn place(&self) -> Result<PathBuf> {
        let path = self.check()?;
        if let Some(folder) = path.parent().filter(|f| !f.is_dir()) {
            return Err(Error::config(
                self.key,
                format!("{}: the folder {} does not exist", path.display(), folder.display()),
            )
            .hint("create it"));
        }
        Ok(path)
    }
}

/// The journal's mode after a switch to WAL. SQLite does not wait for its lock in this one statement: of
/// several processes that open a new file at once all but one would be refused.
fn write_ahead(conn: &Connection, busy_timeout: Duration) -> rusqlite::Result<String> {
    let until = Instant::now() + busy_timeout;
    loop {
        match conn.query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0)) {
            Err(e) if e.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && Instant::now() < until => {
                std::thread::sleep(LOOK);
            }
            switched => return switched,
        }
    }
}

impl Database {
    fn set_up(&self, busy_timeout: Duration) -> Result<()> {
        let conn = &self.conn;
        conn.set_prepared_statement_cache_capacity(CACHED_STATEMENTS);
        self.told("cannot open", conn.busy_timeout(busy_timeout))?;
        if self.told("cannot open", conn.is_readonly("main"))? {
            return Err(Error::config(self.key, format!("{} is read-only", self.path.display()))
                .hint("make the file and its folder writable"));
        }
        let mode = self.told("cannot switch to WAL", write_ahead(conn, busy_timeout))?;
        if !mode.eq_ignore_ascii_case("wal") {
            return Err(Error::config(self.key, format!("{} cannot use a write-ahead log", self.path.display()))
                .hint("SQLite needs shared memory beside the file: put it on a local disk"));
        }
        // FULL syncs the log at every commit; fullfsync makes that reach the disk on macOS too.
        // Foreign keys are off for this connection only: cascades would change rows that the source
        // changes itself.
        self.told(
            "cannot set up the connection",
            conn.execute_batch(&format!(
                "PRAGMA synchronous=FULL; PRAGMA fullfsync=ON; PRAGMA foreign_keys=OFF; \
                 PRAGMA recursive_triggers=OFF; PRAGMA journal_size_limit={LOG_LIMIT}"
            )),
        )
    }

    /// A transaction that has the write lock from its beginning, so that it cannot fail halfway for
    /// want of it.
    pub(crate) fn begin(&self) -> Result<Transaction<'_>> {
        let begun = Transaction::new_unchecked(&self.conn, TransactionBehavior::Immediate);
        self.told("cannot begin a transaction", begun)
    }

    /// Commits; see [`error::commit_failed`] for what an error means.
    pub(crate) fn commit(&self, transaction: Transaction<'_>) -> Result<()> {
        transaction.commit().map_err(|e| error::commit_failed(self.key, &self.path, e))
    }

    /// Tells an error of SQLite in our terms.
    pub(crate) fn told<T>(&self, doing: impl Display, result: rusqlite::Result<T>) -> Result<T> {
        result.map_err(|e| self.failed(doing, e))
    }

    /// An error of SQLite in our terms.
    pub(crate) fn failed(&self, doing: impl Display, error: rusqlite::Error) -> Error {
        error::failed(self.key, &self.path, doing, error)
    }
}

/// A name as SQL writes it: exactly as it is, whatever it contains.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use anabranch_core::ErrorKind;

    use super::*;

    fn database() -> (tempfile::TempDir, Database) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.db");
        (folder, Settings { key: "sink.path", path, busy_timeout: BUSY_TIMEOUT }.connect().unwrap())
    }

    #[test]
    fn a_commit_survives_a_power_cut_and_nothing_cascades() {
        let (_folder, db) = database();
        let pragma = |name: &str| db.conn.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(pragma("synchronous"), 2, "FULL");
        assert_eq!(pragma("foreign_keys"), 0);
        let mode: String = db.conn.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
        assert_eq!(mode, "wal");
    }

    #[test]
    fn many_open_a_new_file_at_once() {
        for _ in 0..50 {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("t.db");
            // In the mode that a file of another program has.
            Connection::open(&path).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
            let settings = Settings { key: "sink.path", path, busy_timeout: Duration::from_secs(60) };
            std::thread::scope(|scope| {
                let opened: Vec<_> = (0..8).map(|_| scope.spawn(|| settings.connect().map(drop))).collect();
                for connected in opened {
                    connected.join().unwrap().unwrap();
                }
            });
        }
    }

    #[test]
    fn a_full_disk_is_transient_and_leaves_nothing() {
        let (_folder, db) = database();
        db.conn.execute_batch("CREATE TABLE t (x); PRAGMA max_page_count = 4").unwrap();
        let transaction = db.begin().unwrap();
        let done = db.conn.execute("INSERT INTO t VALUES (zeroblob(100000))", []);
        let error = db.told("cannot write", done).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Transient);
        assert!(error.to_string().contains("the disk is full"), "{error}");
        drop(transaction);
        let count: i64 = db.conn.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
        assert_eq!(count, 0);
    }
}
