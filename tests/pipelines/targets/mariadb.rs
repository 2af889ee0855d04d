//! A MariaDB target.

use anabranch_servers::{MariaOptions, MariaServer};
use anabranch_testkit::history::{Kind, Observation, Row, TABLES};
use async_trait::async_trait;
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Opts};
use tokio::sync::Mutex;
use tokio::task::block_in_place;

use super::{Target, Tested, canonical_row, select};
use crate::pipelines::source::DB;

/// The table whose unique keys the workload moves about; the pipeline makes the others.
const ITEMS: &str =
    "CREATE TABLE items (id int PRIMARY KEY, code varchar(40) NOT NULL UNIQUE, place int UNIQUE, price decimal(12,2))";

pub(in crate::pipelines) struct MariaTarget {
    server: MariaServer,
    reader: Mutex<Option<Conn>>,
}

impl MariaTarget {
    /// With the unique keys of the source beside the primary ones, or without. `None`: skipped.
    pub(in crate::pipelines) fn start(unique: bool) -> Tested<Option<Self>> {
        let Some(server) = MariaOptions::new().fsync(true).start()? else { return Ok(None) };
        server.create_db(DB)?;
        if unique {
            server.exec(DB, ITEMS)?;
        }
        // A user of its own, so that its connections can be told from the reader's.
        server.exec("", "CREATE USER pipeline@'%' IDENTIFIED BY 'secret'; GRANT ALL ON *.* TO pipeline@'%'")?;
        Ok(Some(Self { server, reader: Mutex::new(None) }))
    }

    async fn read(&self, reader: &mut Option<Conn>) -> Tested<Observation> {
        if reader.is_none() {
            *reader = Some(Conn::new(Opts::from_url(&self.server.url(DB))?).await?);
        }
        let Some(conn) = reader else { return Err("not connected".into()) };
        conn.query_drop("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ").await?;
        conn.query_drop("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY").await?;
        let mut seen = Observation::empty();
        for (t, table) in TABLES.iter().enumerate() {
            let as_text = |i: usize, name: &str| match table.columns[i].1 {
                Kind::Bytes => format!(r"CONCAT('\\x', LOWER(HEX({name})))"),
                _ => format!("CAST({name} AS CHAR)"),
            };
            let rows: Vec<mysql_async::Row> = conn.query(select(t, '`', as_text)).await?;
            for row in rows {
                let value = |i| row.get::<Option<String>, _>(i).flatten();
                let values: Row = (0..row.len()).map(value).collect();
                seen.tables[t].push(canonical_row(t, values));
            }
        }
        conn.query_drop("COMMIT").await?;
        Ok(seen)
    }
}

#[async_trait]
impl Target for MariaTarget {
    fn sink(&self) -> String {
        let url = format!("mysql://pipeline:secret@127.0.0.1:{}/{DB}", self.server.port());
        format!("type = \"mysql\"\nurl = \"{url}\"\ncreate_tables = true\n")
    }

    fn lossy(&self) -> &'static [&'static str] {
        &["type:numeric", "type:double precision", "type:timestamp with time zone", "type:character varying"]
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
        block_in_place(|| self.server.exec("", "KILL CONNECTION USER pipeline"))?;
        Ok(true)
    }
}
