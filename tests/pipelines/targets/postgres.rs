//! A PostgreSQL target, its tables with all constraints of the source.

use anabranch_servers::{PgOptions, PgServer, PgVersion};
use anabranch_testkit::history::{Observation, TABLES, target_ddl};
use async_trait::async_trait;
use tokio::sync::Mutex;
use tokio::task::block_in_place;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::{Target, Tested, canonical_row, select};
use crate::pipelines::source::{DB, connect};

pub(in crate::pipelines) struct PgTarget {
    pub(in crate::pipelines) server: PgServer,
    reader: Mutex<Option<Client>>,
}

impl PgTarget {
    /// `None`: skipped.
    pub(in crate::pipelines) fn start(version: PgVersion) -> Tested<Option<Self>> {
        let options = PgOptions::new(version).fsync(true).setting("wal_retrieve_retry_interval", "100ms");
        let Some(server) = options.start()? else { return Ok(None) };
        server.create_db(DB)?;
        server.exec(DB, &target_ddl())?;
        Ok(Some(Self { server, reader: Mutex::new(None) }))
    }

    async fn read(&self, reader: &mut Option<Client>) -> Tested<Observation> {
        if reader.is_none() {
            *reader = Some(connect(&self.server.url(DB), "reader").await?);
        }
        let Some(client) = reader else { return Err("not connected".into()) };
        // One round trip; a single SELECT per table, so that each result is a table.
        let selects: Vec<String> = (0..TABLES.len()).map(|t| select(t, '"', |_, name| name.to_owned())).collect();
        let sql = format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {}; COMMIT", selects.join("; "));
        let mut seen = Observation::empty();
        // The BEGIN completes first, then each table.
        let mut table = None::<usize>;
        for message in client.simple_query(&sql).await? {
            match (message, table) {
                (SimpleQueryMessage::Row(row), Some(t)) => {
                    let values = (0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect();
                    seen.tables[t].push(canonical_row(t, values));
                }
                (SimpleQueryMessage::CommandComplete(_), t) => table = Some(t.map_or(0, |t| t + 1)),
                _ => {}
            }
        }
        Ok(seen)
    }
}

#[async_trait]
impl Target for PgTarget {
    fn sink(&self) -> String {
        format!("type = \"postgres\"\nurl = \"{}\"\ncreate_tables = true\n", self.server.url(DB))
    }

    fn stored(&self) -> String {
        let rows = |table: &str| {
            let sql = format!("SELECT row_to_json(t)::text FROM anabranch.{table} t");
            format!("{table}: {:?}\n", self.server.exec(DB, &sql))
        };
        ["lane", "position", "checkpoint", "dead_letter"].map(rows).concat()
    }

    async fn observe(&self) -> Option<Observation> {
        let mut reader = self.reader.lock().await;
        let seen = self.read(&mut reader).await;
        if seen.is_err() {
            *reader = None;
        }
        seen.ok()
    }

    async fn crash(&self) -> Tested<bool> {
        block_in_place(|| self.server.kill9().and_then(|()| self.server.start()))?;
        Ok(true)
    }

    async fn cut(&self) -> Tested<bool> {
        let others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() \
                      AND backend_type IN ('client backend', 'logical replication worker') AND application_name <> 'reader'";
        block_in_place(|| self.server.exec(DB, others))?;
        Ok(true)
    }
}
