//! The suites that every sink, checkpointer and dead-letter store must pass.

use std::sync::Arc;

use anabranch_core::{DataType, Sink, TableSchema};
use anabranch_mysql::{LocalInfile, MySql};
use anabranch_testkit::conformance;
use anabranch_testkit::conformance::sink::SinkUnderTest;
use async_trait::async_trait;
use tokio::sync::Mutex;

use crate::server;
use crate::server::{Db, database};

struct Target {
    url: String,
    db: Mutex<Db>,
    infile: LocalInfile,
}

impl Target {
    fn sink(&self) -> MySql {
        MySql::new(self.url.as_str()).local_infile(self.infile)
    }
}

#[async_trait]
impl SinkUnderTest for Target {
    async fn connect(&self) -> Arc<dyn Sink> {
        Arc::new(self.sink())
    }

    async fn create_table(&self, table: &TableSchema, unique: &[&str]) {
        let sink = self.sink();
        sink.target().expect("tables").create(table).await.expect("create");
        for column in unique {
            let sql = format!("ALTER TABLE `{}` ADD UNIQUE (`{column}`)", table.name.name);
            self.db.lock().await.run(&sql).await;
        }
    }

    async fn read_table(&self, table: &TableSchema) -> Vec<Vec<Option<String>>> {
        let column = |c: &anabranch_core::Column| match c.data_type {
            DataType::Bool => format!("IF(`{0}` IS NULL, NULL, IF(`{0}`, 't', 'f'))", c.name),
            DataType::Bytes => format!("CONCAT('\\\\x', LOWER(HEX(`{}`)))", c.name),
            _ => format!("`{}`", c.name),
        };
        let columns: Vec<String> = table.columns.iter().map(column).collect();
        let sql = format!("SELECT {} FROM `{}`", columns.join(","), table.name.name);
        self.db.lock().await.rows(&sql).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sink() {
    for infile in [LocalInfile::Auto, LocalInfile::Off] {
        let db = database(server!()).await;
        conformance::sink::run(&Target { url: db.url.clone(), db: Mutex::new(db), infile }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpointer() {
    let db = database(server!()).await;
    conformance::checkpointer::run(async || db.sink().checkpointer().expect("a checkpointer")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters() {
    let db = database(server!()).await;
    conformance::dead_letter::run(async || db.sink().dead_letters().expect("a store")).await;
}
