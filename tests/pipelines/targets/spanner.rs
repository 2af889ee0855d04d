//! A Spanner target: the emulator, behind a proxy whose connections can be cut. It holds its data in
//! memory, so its server is never killed.

use anabranch_servers::{SpannerDialect, SpannerServer, spanner};
use anabranch_testkit::history::{Kind, Observation, Row, TABLES};
use async_trait::async_trait;
use tokio::task::block_in_place;

use super::{Target, Tested, canonical_row};
use crate::pipelines::proxy::Proxy;

/// The table whose unique keys the workload moves about; the pipeline makes the others.
const ITEMS: [&str; 3] = [
    "CREATE TABLE items (id INT64 NOT NULL, code STRING(40) NOT NULL, place INT64, price NUMERIC) PRIMARY KEY (id)",
    "CREATE UNIQUE INDEX items_code ON items (code)",
    "CREATE UNIQUE NULL_FILTERED INDEX items_place ON items (place)",
];

/// Names that Spanner does not have, and what they are called there.
const RENAMED: &str = "[[transform]]\ntype = \"rename\"\n\
     tables = { \"public.Mixed Case\" = \"public.Mixed_Case\" }\n\
     columns = { \"public.Mixed Case\" = { 'the \"value\"' = \"the_value\" } }\n";

pub(in crate::pipelines) struct SpannerTarget {
    server: SpannerServer,
    database: String,
    proxy: Proxy,
}

impl SpannerTarget {
    /// `None`: skipped.
    pub(in crate::pipelines) async fn start() -> Tested<Option<Self>> {
        let Some(server) = block_in_place(spanner) else { return Ok(None) };
        let database = block_in_place(|| server.create_db(SpannerDialect::GoogleSql, &ITEMS))?;
        let proxy = Proxy::start(server.host()).await?;
        Ok(Some(Self { server, database, proxy }))
    }

    fn read(&self) -> Tested<Observation> {
        let queries: Vec<String> = TABLES
            .iter()
            .map(|table| {
                let columns: Vec<String> = table.columns.iter().map(|(name, kind)| column(name, *kind)).collect();
                format!("SELECT {} FROM `{}`", columns.join(", "), plain(table.name))
            })
            .collect();
        let queries: Vec<&str> = queries.iter().map(String::as_str).collect();
        let mut seen = Observation::empty();
        for (t, rows) in self.server.snapshot(&self.database, &queries)?.into_iter().enumerate() {
            seen.tables[t].extend(rows.into_iter().map(|row: Row| canonical_row(t, row)));
        }
        Ok(seen)
    }
}

fn plain(name: &str) -> String {
    name.replace(' ', "_").replace('"', "")
}

fn column(name: &str, kind: Kind) -> String {
    match kind {
        Kind::Bytes => format!("CONCAT('\\\\x', TO_HEX(`{}`))", plain(name)),
        _ => format!("`{}`", plain(name)),
    }
}

#[async_trait]
impl Target for SpannerTarget {
    fn sink(&self) -> String {
        format!(
            "type = \"spanner\"\ndatabase = \"{}\"\nendpoint = \"http://{}\"\nadmin_endpoint = \"http://{}\"\n\
             create_tables = true\n\n{RENAMED}",
            self.database,
            self.proxy.address,
            self.server.rest_host()
        )
    }

    fn is_slow(&self) -> bool {
        true
    }

    async fn observe(&self) -> Option<Observation> {
        block_in_place(|| self.read()).ok()
    }

    fn stored(&self) -> String {
        format!("{:?}", self.server.exec(&self.database, "SELECT * FROM anabranch_position"))
    }

    async fn crash(&self) -> Tested<bool> {
        Ok(false)
    }

    async fn cut(&self) -> Tested<bool> {
        self.proxy.cut.notify_waiters();
        Ok(true)
    }
}
