//! The suites of core, on real servers.

use std::sync::Arc;

use anabranch_core::{DeadLetterStore, Sink, TableSchema};
use anabranch_postgres::{PostgresCheckpointer, PostgresDeadLetters, PostgresSink, Privilege};
use anabranch_testkit::conformance::{self, sink::SinkUnderTest};
use async_trait::async_trait;

use crate::support::{Db, databases};

struct Target {
    db: Db,
    replica_role: Privilege,
}

#[async_trait]
impl SinkUnderTest for Target {
    async fn connect(&self) -> Arc<dyn Sink> {
        // An origin has one session: a second handle, as of another process, would have to wait.
        let sink = PostgresSink::new(self.db.url()).replica_role(self.replica_role).origin(Privilege::Off);
        Arc::new(sink)
    }

    async fn create_table(&self, table: &TableSchema, unique: &[&str]) {
        self.connect().await.target().unwrap().create(table).await.unwrap();
        for column in unique {
            self.db.exec(&format!("ALTER TABLE \"{}\" ADD UNIQUE (\"{column}\")", table.name.name));
        }
    }

    async fn read_table(&self, table: &TableSchema) -> Vec<Vec<Option<String>>> {
        let columns: Vec<String> = table.columns.iter().map(|c| format!("\"{}\"", c.name)).collect();
        self.db.exec(&format!("SELECT {} FROM \"{}\"", columns.join(", "), table.name.name))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sink() {
    for db in databases() {
        conformance::sink::run(&Target { db, replica_role: Privilege::Required }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sink_with_triggers_and_foreign_keys() {
    for db in databases() {
        conformance::sink::run(&Target { db, replica_role: Privilege::Off }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpointer() {
    for db in databases() {
        conformance::checkpointer::run(async || Arc::new(PostgresCheckpointer::new(db.url())) as _).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters() {
    for db in databases() {
        let open = async || Arc::new(PostgresDeadLetters::new(db.url())) as Arc<dyn DeadLetterStore>;
        conformance::dead_letter::run(open).await;
    }
}
