//! The targets, as a reader sees them.

use std::path::PathBuf;
use std::time::Duration;

use anabranch_servers::{MariaServer, Row, mariadb};
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Opts};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::shop::{Kind, Shop, TABLES, Table};
use crate::tell::Done;

/// A target database.
pub(crate) trait Target {
    /// Its product's name.
    fn name(&self) -> &'static str;

    /// The `[sink]` section of the configuration, without its head.
    fn sink(&self) -> String;

    /// Types whose rarest values (NaN, infinity) it refuses, as `mapping.lossy` names them.
    fn lossy(&self) -> &'static [&'static str] {
        &[]
    }

    /// The number that a query gives. `None`: the table is not there yet.
    fn number(&self, sql: &str) -> Option<u64>;

    /// All rows of a table, by key.
    fn read(&self, table: &Table) -> Done<Vec<Row>>;

    /// How many rows it has in all tables.
    fn count(&self) -> u64 {
        TABLES.iter().filter_map(|(name, _)| self.number(&format!("SELECT count(*) FROM {name}"))).sum()
    }

    /// Whether no table lacks a row of the first copy, as far as counting tells.
    fn complete(&self, _: &Shop<'_>) -> bool {
        let full = |name: &str| self.number(&format!("SELECT count(*) FROM {name}")) >= Some(Shop::at_least(name));
        TABLES.iter().all(|(name, _)| full(name))
    }

    /// The newest order. 0: none.
    fn newest_order(&self) -> u64 {
        self.number("SELECT coalesce(max(id), 0) FROM orders").unwrap_or(0)
    }
}

/// An SQLite file.
pub(crate) struct Sqlite {
    folder: TempDir,
}

impl Sqlite {
    pub(crate) fn new() -> Done<Self> {
        Ok(Self { folder: tempfile::tempdir()? })
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("shop.db")
    }

    fn open(&self) -> rusqlite::Result<Connection> {
        // The pipeline makes the file, not its reader.
        let db = Connection::open_with_flags(self.path(), OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        db.busy_timeout(Duration::from_secs(5))?;
        Ok(db)
    }
}

impl Target for Sqlite {
    fn name(&self) -> &'static str {
        "SQLite"
    }

    fn sink(&self) -> String {
        format!("type = \"sqlite\"\npath = \"{}\"\n", self.path().display())
    }

    fn number(&self, sql: &str) -> Option<u64> {
        let number: i64 = self.open().ok()?.query_row(sql, [], |row| row.get(0)).ok()?;
        u64::try_from(number).ok()
    }

    fn read(&self, (name, columns): &Table) -> Done<Vec<Row>> {
        let db = self.open()?;
        let names: Vec<&str> = columns.iter().map(|(column, _)| *column).collect();
        let mut statement = db.prepare(&format!("SELECT {} FROM {name} ORDER BY id", names.join(", ")))?;
        let mut rows = statement.query([])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push((0..names.len()).map(|i| row.get_ref(i).map(text)).collect::<Result<Row, _>>()?);
        }
        Ok(found)
    }
}

fn text(value: ValueRef<'_>) -> Option<String> {
    match value {
        ValueRef::Null => None,
        ValueRef::Integer(v) => Some(v.to_string()),
        ValueRef::Real(v) => Some(v.to_string()),
        ValueRef::Text(v) => Some(String::from_utf8_lossy(v).into_owned()),
        ValueRef::Blob(v) => Some(hexadecimal(v)),
    }
}

/// As PostgreSQL prints bytes.
fn hexadecimal(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("\\x{digits}")
}

/// A throwaway MariaDB.
pub(crate) struct Maria {
    server: MariaServer,
    runtime: Runtime,
}

impl Maria {
    /// `None` if it is not installed.
    pub(crate) fn start() -> Done<Option<Self>> {
        let Some(server) = mariadb() else { return Ok(None) };
        server.create_db("shop")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Some(Self { server, runtime }))
    }

    fn query(&self, sql: &str) -> Done<Vec<mysql_async::Row>> {
        self.runtime.block_on(async {
            let mut conn = Conn::new(Opts::from_url(&self.server.url("shop"))?).await?;
            let rows = conn.query(sql).await?;
            conn.disconnect().await?;
            Ok(rows)
        })
    }
}

impl Target for Maria {
    fn name(&self) -> &'static str {
        "MariaDB"
    }

    fn sink(&self) -> String {
        format!("type = \"mysql\"\nurl = \"{}\"\n", self.server.url("shop"))
    }

    fn lossy(&self) -> &'static [&'static str] {
        &["type:numeric", "type:timestamp with time zone"]
    }

    fn number(&self, sql: &str) -> Option<u64> {
        self.query(sql).ok()?.first()?.get(0)
    }

    fn read(&self, (name, columns): &Table) -> Done<Vec<Row>> {
        let as_text = |(column, kind): &(&str, Kind)| match kind {
            Kind::Bytes => format!(r"CONCAT('\\x', LOWER(HEX({column})))"),
            _ => format!("CAST({column} AS CHAR)"),
        };
        let columns: Vec<String> = columns.iter().map(as_text).collect();
        let rows = self.query(&format!("SELECT {} FROM {name} ORDER BY id", columns.join(", ")))?;
        let values =
            |row: mysql_async::Row| (0..row.len()).map(|i| row.get::<Option<String>, _>(i).flatten()).collect();
        Ok(rows.into_iter().map(values).collect())
    }
}
