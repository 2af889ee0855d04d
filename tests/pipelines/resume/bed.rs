//! A source, a target, and a pipeline between them whose copy fails when it is told to.

use std::sync::Arc;
use std::time::Duration;

use anabranch::checkpointer::MemoryCheckpointer;
use anabranch::mapping::preflight::LossyConsent;
use anabranch::pipeline::SnapshotMode;
use anabranch::transform::{Comparison, Custom, Filter};
use anabranch::{Checkpointer, MySql, Pipeline, PipelineBuilder, Postgres, PostgresSink, Sink, Sqlite, TableSnapshot};
use anabranch_servers::{MariaServer, PgServer, PgVersion};
use anabranch_testkit::faults::{Call, Fault, FaultySink, Schedule};
use rusqlite::types::ValueRef;
use tempfile::TempDir;

use crate::pipelines::Tested;

const DB: &str = "shop";
const NAME: &str = "resume";
const DEADLINE: Duration = Duration::from_secs(120);

/// Of one row: text, whatever the database.
type Row = Vec<Option<String>>;

pub(super) enum Side {
    Postgres(PgServer),
    MySql(MariaServer),
    Sqlite(TempDir),
}

impl Side {
    pub(super) fn sqlite() -> Tested<Self> {
        Ok(Self::Sqlite(tempfile::tempdir()?))
    }

    pub(super) fn all() -> Tested<Vec<Self>> {
        let mut sides = vec![Self::sqlite()?];
        if let Some(server) = anabranch_servers::mariadb() {
            sides.push(Self::MySql(server));
        }
        if let Some(server) = anabranch_servers::postgres(PgVersion::V18) {
            sides.push(Self::Postgres(server));
        }
        Ok(sides)
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Postgres(_) => "postgres",
            Self::MySql(_) => "mysql",
            Self::Sqlite(_) => "sqlite",
        }
    }

    fn sink(&self) -> Arc<dyn Sink> {
        match self {
            Self::Postgres(server) => Arc::new(PostgresSink::new(server.url(DB))),
            Self::MySql(server) => Arc::new(MySql::new(server.url(DB))),
            Self::Sqlite(folder) => Arc::new(Sqlite::open(folder.path().join("target.db"))),
        }
    }

    /// An empty target, with the source's unique keys.
    fn empty(&self) -> Tested {
        let docs =
            "CREATE TABLE docs (id int PRIMARY KEY, code varchar(40) NOT NULL UNIQUE, big TEXT, n int, pad TEXT)";
        match self {
            Self::Postgres(server) => {
                let _ = server.exec("postgres", &format!("DROP DATABASE IF EXISTS {DB}"))?;
                server.create_db(DB)?;
                server.exec(DB, docs)?;
            }
            Self::MySql(server) => {
                server.exec("", &format!("DROP DATABASE IF EXISTS {DB}"))?;
                server.create_db(DB)?;
                server.exec(DB, &docs.replace("TEXT", "LONGTEXT"))?;
            }
            Self::Sqlite(folder) => {
                for end in ["", "-wal", "-shm"] {
                    let _ = std::fs::remove_file(folder.path().join(format!("target.db{end}")));
                }
                self.run(&docs.replace("int ", "INTEGER "))?;
            }
        }
        Ok(())
    }

    /// Runs SQL with names in double quotes.
    pub(super) fn run(&self, sql: &str) -> Tested {
        match self {
            Self::Postgres(server) => drop(server.exec(DB, sql)?),
            Self::MySql(server) => drop(server.exec(DB, &sql.replace('"', "`"))?),
            Self::Sqlite(folder) => {
                rusqlite::Connection::open(folder.path().join("target.db"))?.execute_batch(sql)?;
            }
        }
        Ok(())
    }

    fn rows(&self, sql: &str) -> Tested<Vec<Row>> {
        match self {
            Self::Postgres(server) => Ok(server.exec(DB, sql)?),
            Self::MySql(server) => {
                let rows = server.exec(DB, &sql.replace('"', "`"))?;
                // Its client escapes what it prints.
                let plain = |value: Option<String>| value.map(|v| v.replace("\\\\", "\\"));
                Ok(rows.into_iter().map(|row| row.into_iter().map(plain).collect()).collect())
            }
            Self::Sqlite(folder) => {
                let db = rusqlite::Connection::open(folder.path().join("target.db"))?;
                let mut statement = db.prepare(sql)?;
                let width = statement.column_count();
                let rows = statement.query_map([], |row| {
                    (0..width)
                        .map(|i| {
                            Ok(match row.get_ref(i)? {
                                ValueRef::Null => None,
                                ValueRef::Integer(v) => Some(v.to_string()),
                                ValueRef::Text(v) => Some(String::from_utf8_lossy(v).into_owned()),
                                other => Some(format!("{other:?}")),
                            })
                        })
                        .collect::<Result<Row, _>>()
                })?;
                Ok(rows.collect::<Result<_, _>>()?)
            }
        }
    }
}

/// About ten rows of `docs` lie on a page.
const TABLES: [&str; 8] = [
    "CREATE TABLE docs (id int PRIMARY KEY, code varchar(40) NOT NULL UNIQUE, big text, n int, pad text)",
    "ALTER TABLE docs ALTER big SET STORAGE EXTERNAL",
    "CREATE TABLE parts (a varchar(20), b int, v text, PRIMARY KEY (b, a)) PARTITION BY RANGE (b)",
    "CREATE TABLE parts_low PARTITION OF parts FOR VALUES FROM (MINVALUE) TO (60)",
    "CREATE TABLE \"Parts High\" PARTITION OF parts FOR VALUES FROM (60) TO (MAXVALUE)",
    "CREATE TABLE \"full Rows\" (\"Id\" int PRIMARY KEY, v text); ALTER TABLE \"full Rows\" REPLICA IDENTITY FULL",
    "CREATE TABLE scoded (id int PRIMARY KEY, code varchar(20) NOT NULL, v text); CREATE UNIQUE INDEX scoded_code ON scoded (code); \
     ALTER TABLE scoded REPLICA IDENTITY USING INDEX scoded_code",
    "CREATE TABLE keyless (n int, v text); ALTER TABLE keyless REPLICA IDENTITY FULL",
];

const ROWS: [&str; 6] = [
    "TRUNCATE docs, parts, \"full Rows\", scoded, keyless",
    "INSERT INTO docs SELECT i, 'code ' || i, repeat('b' || i, 1000), i, repeat('p', 700) FROM generate_series(1, 200) i",
    "INSERT INTO parts SELECT 'a''\\' || i % 3, i, repeat('v', 700) FROM generate_series(1, 100) i",
    "INSERT INTO \"full Rows\" SELECT i, repeat('v', 700) FROM generate_series(1, 60) i",
    "INSERT INTO scoded SELECT i, 'c' || i, repeat('v', 700) FROM generate_series(1, 60) i",
    "INSERT INTO keyless SELECT i, repeat('v', 700) FROM generate_series(1, 60) i",
];

/// Each table, with its columns in order.
const COMPARED: [(&str, &str); 5] = [
    ("docs", "id, code, big, n, pad"),
    ("parts", "a, b, v"),
    ("\"full Rows\"", "\"Id\", v"),
    ("scoded", "id, code, v"),
    ("keyless", "n, v"),
];

pub(super) struct Bed {
    pub(super) side: Side,
    pub(super) source: PgServer,
    checkpoints: MemoryCheckpointer,
    /// Of the publication, whatever it is now.
    publication: String,
    round: u32,
    /// With a transform of which nothing is known.
    pub(super) custom: bool,
}

impl Bed {
    pub(super) async fn start(side: Side) -> Tested<Option<Self>> {
        // The copies from both, by the target.
        let version = if matches!(side, Side::MySql(_)) { PgVersion::V18 } else { PgVersion::V15 };
        let Some(source) = anabranch_servers::postgres(version) else { return Ok(None) };
        source.create_db(DB)?;
        for sql in TABLES {
            source.exec(DB, sql)?;
        }
        let publication = "CREATE PUBLICATION pub FOR TABLE docs, parts, \"full Rows\", scoded, keyless \
             WITH (publish_via_partition_root = true)";
        source.exec(DB, publication)?;
        let publication = publication.to_owned();
        Ok(Some(Self { side, source, checkpoints: MemoryCheckpointer::new(), publication, round: 0, custom: false }))
    }

    /// Another slot, another target, and the rows as they were first.
    pub(super) async fn anew(&mut self) -> Tested {
        if self.round > 0 {
            self.source.exec(DB, &format!("SELECT pg_drop_replication_slot('{}')", self.slot()))?;
        }
        self.round += 1;
        self.checkpoints = MemoryCheckpointer::new();
        self.side.empty()?;
        self.source.exec(DB, "DROP PUBLICATION pub")?;
        self.source.exec(DB, &self.publication)?;
        self.change(&ROWS)
    }

    fn slot(&self) -> String {
        format!("slot_{}", self.round)
    }

    fn pipeline(&self, sink: Arc<dyn Sink>, mode: SnapshotMode, workers: u32) -> PipelineBuilder {
        let lossy = LossyConsent::parse(&["type:character varying".to_owned(), "type:text".to_owned()]);
        let source = Postgres::new(self.source.url(DB)).publication("pub").slot(self.slot()).chunk_pages(1);
        let builder = Pipeline::builder(NAME)
            .create_tables(true)
            .accept_lossy(lossy.expect("two types"))
            .snapshot(mode)
            .snapshot_workers(workers)
            .checkpointer(self.checkpoints.clone())
            .source(source)
            // What it knows of a deleted row is its key: the row goes whatever the condition says.
            .transform(Filter::new().rows("docs", "n", Comparison::Ge, -1000))
            .sink_arc(sink);
        if self.custom { builder.transform(Custom::new(Ok)) } else { builder }
    }

    /// Copies until the fault strikes, at this write. False: the copy ended before.
    pub(super) async fn runs(&self, workers: u32, fault: Option<(u64, Fault)>) -> Tested<bool> {
        let schedule = match fault {
            Some((write, fault)) => Schedule::new().at(Call::Write, write, fault),
            None => Schedule::new(),
        };
        let sink = Arc::new(FaultySink::new(self.side.sink(), schedule.clone()));
        let mut running =
            self.pipeline(sink, SnapshotMode::Only, workers).build()?.start().await.map_err(|e| e.report())?;
        let ended = tokio::time::timeout(DEADLINE, running.wait()).await?;
        match ended {
            Ok(()) => Ok(false),
            Err(_) if schedule.happened() > 0 => Ok(true),
            Err(e) => Err(e.report().into()),
        }
    }

    pub(super) async fn interrupted(&self, workers: u32, write: u64, fault: Fault) -> Tested {
        assert!(self.runs(workers, Some((write, fault))).await?, "the copy has fewer than {write} writes");
        Ok(())
    }

    /// Chunks of the tables that are copied before this one.
    pub(super) async fn writes_before(&self, table: &str) -> Tested<u64> {
        self.runs(1, Some((1, Fault::Fail(anabranch::ErrorKind::Fatal)))).await?;
        let stored = self.checkpoints.load(NAME).await.map_err(|e| e.report())?;
        let (_, checkpoint) = stored.ok_or("no checkpoint")?;
        let before = checkpoint.snapshot.tables.iter().take_while(|(name, _)| name.name != table);
        Ok(before.map(|(_, t)| u64::from(t.chunks)).sum())
    }

    pub(super) async fn finished(&self, workers: u32) -> Tested {
        self.runs(workers, None).await.map(drop)
    }

    /// Streams these changes and compares.
    pub(super) async fn streams(&self, changes: &[&str]) -> Tested {
        let pipeline = self.pipeline(self.side.sink(), SnapshotMode::Initial, 2).build()?;
        let mut running = pipeline.start().await.map_err(|e| e.report())?;
        self.change(changes)?;
        let drained = running.drain(Some(DEADLINE)).await.map_err(|e| e.report())?;
        assert!(drained.drained, "{drained:?}");
        running.stop().await.map_err(|e| e.report())?;
        self.compare("after streaming")
    }

    /// Each statement by itself.
    pub(super) fn change(&self, statements: &[&str]) -> Tested {
        for sql in statements {
            self.source.exec(DB, sql)?;
        }
        Ok(())
    }

    /// How far the copy of a table is.
    pub(super) async fn table(&self, name: &str) -> Tested<TableSnapshot> {
        let stored = self.checkpoints.load(NAME).await.map_err(|e| e.report())?;
        let (_, checkpoint) = stored.ok_or("no checkpoint")?;
        let found = checkpoint.snapshot.tables.into_iter().find(|(table, _)| table.name == name);
        Ok(found.ok_or("no such table")?.1)
    }

    /// Rows of a table at the source.
    pub(super) fn count(&self, table: &str) -> Tested<u64> {
        let count = self.source.value(DB, &format!("SELECT count(*) FROM {table}"))?;
        Ok(count.ok_or("no count")?.parse()?)
    }

    /// Every row of every table.
    pub(super) fn compare(&self, when: &str) -> Tested {
        for (table, columns) in COMPARED {
            self.compare_table(when, table, columns)?;
        }
        Ok(())
    }

    pub(super) fn compare_table(&self, when: &str, table: &str, columns: &str) -> Tested {
        let sql = format!("SELECT {columns} FROM {table}");
        let (mut source, mut target) = (self.source.exec(DB, &sql)?, self.side.rows(&sql)?);
        source.sort();
        target.sort();
        if source == target {
            return Ok(());
        }
        let short = |row: &Row| -> Vec<String> {
            row.iter().map(|v| v.as_deref().unwrap_or("NULL").chars().take(20).collect()).collect()
        };
        let missing: Vec<_> =
            source.iter().filter(|row| target.binary_search(row).is_err()).take(5).map(short).collect();
        let extra: Vec<_> = target.iter().filter(|row| source.binary_search(row).is_err()).take(5).map(short).collect();
        Err(format!(
            "{when}, {}: {table} has {} rows and not {}; missing {missing:?}, extra {extra:?}",
            self.side.name(),
            target.len(),
            source.len()
        )
        .into())
    }
}
