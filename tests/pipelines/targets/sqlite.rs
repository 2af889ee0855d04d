//! An SQLite file as the target.

use std::path::PathBuf;
use std::time::Duration;

use anabranch_testkit::history::{Observation, Row, TABLES};
use async_trait::async_trait;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;
use tokio::task::block_in_place;

use super::{Target, Tested, canonical_row, select};

/// The table whose unique keys the workload moves about; the pipeline makes the others.
const ITEMS: &str =
    "CREATE TABLE items (id INTEGER PRIMARY KEY, code TEXT NOT NULL UNIQUE, place INTEGER UNIQUE, price TEXT)";

pub(in crate::pipelines) struct SqliteTarget {
    folder: TempDir,
}

impl SqliteTarget {
    pub(in crate::pipelines) fn start() -> Tested<Self> {
        let target = Self { folder: tempfile::tempdir()? };
        let db = Connection::open(target.path())?;
        db.execute_batch(ITEMS)?;
        Ok(target)
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("target.db")
    }

    fn read(&self) -> Tested<Observation> {
        let db = Connection::open_with_flags(self.path(), OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        db.busy_timeout(Duration::from_secs(5))?;
        // The first SELECT fixes the snapshot of a deferred transaction.
        db.execute_batch("BEGIN")?;
        let mut seen = Observation::empty();
        for (t, table) in TABLES.iter().enumerate() {
            let mut statement = db.prepare(&select(t, '"', |_, name| name.to_owned()))?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let values: Row =
                    (0..table.columns.len()).map(|i| row.get_ref(i).map(text)).collect::<Result<_, _>>()?;
                seen.tables[t].push(canonical_row(t, values));
            }
        }
        db.execute_batch("COMMIT")?;
        Ok(seen)
    }
}

fn text(value: ValueRef<'_>) -> Option<String> {
    match value {
        ValueRef::Null => None,
        ValueRef::Integer(v) => Some(v.to_string()),
        ValueRef::Real(v) => Some(v.to_string()),
        ValueRef::Text(v) => Some(String::from_utf8_lossy(v).into_owned()),
        ValueRef::Blob(v) => {
            let digits: String = v.iter().map(|byte| format!("{byte:02x}")).collect();
            Some(format!("\\x{digits}"))
        }
    }
}

#[async_trait]
impl Target for SqliteTarget {
    fn sink(&self) -> String {
        format!("type = \"sqlite\"\npath = \"{}\"\ncreate_tables = true\n", self.path().display())
    }

    async fn observe(&self) -> Option<Observation> {
        block_in_place(|| self.read()).ok()
    }

    async fn crash(&self) -> Tested<bool> {
        Ok(false)
    }

    async fn cut(&self) -> Tested<bool> {
        Ok(false)
    }
}
