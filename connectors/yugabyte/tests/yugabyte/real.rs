//! The same suites against a real YugabyteDB: `ANABRANCH_YUGABYTE_URL` names one, with a superuser. Every
//! test takes a database of its own.

use std::env;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anabranch_core::*;
use anabranch_testkit::conformance;
use anabranch_testkit::conformance::sink::SinkUnderTest;
use anabranch_testkit::conformance::source::{SourceUnderTest, Statement};
use anabranch_yugabyte::{LsnType, Plugin, Yugabyte, YugabyteSink};
use async_trait::async_trait;
use tokio::sync::Mutex;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::source::commit;
use crate::support::client;

const URL: &str = "ANABRANCH_YUGABYTE_URL";

/// A database of one's own on the real server; dropped at the end, with its slot.
struct Database {
    name: String,
    url: String,
    admin: Client,
}

impl Database {
    async fn create() -> Option<Self> {
        let Ok(url) = env::var(URL) else {
            println!("skipped: {URL} names no YugabyteDB");
            return None;
        };
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("anabranch_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let admin = client(&url).await;
        admin.batch_execute(&format!("CREATE DATABASE {name}")).await.expect("a database of its own");
        // postgresql://user@host:5433/yugabyte?options
        let (head, options) = url.split_once('?').map_or((url.as_str(), String::new()), |(h, o)| (h, format!("?{o}")));
        let base = match head.rsplit_once('/') {
            Some((base, _)) if !base.ends_with('/') => base,
            _ => head,
        };
        Some(Self { url: format!("{base}/{name}{options}"), name, admin })
    }

    async fn drop(self) {
        // A slot counts as active for five minutes after it was read (YugabyteDB's manual, "Key concepts").
        _ = self.admin.execute("SELECT pg_drop_replication_slot($1::text::name)", &[&self.name]).await;
        _ = self.admin.batch_execute(&format!("DROP DATABASE {}", self.name)).await;
    }
}

struct Shop {
    database: Database,
    client: Mutex<Client>,
    plugin: Plugin,
    lsn_type: LsnType,
}

#[async_trait]
impl SourceUnderTest for Shop {
    async fn connect(&self) -> Arc<dyn Source> {
        let source = Yugabyte::new(self.database.url.as_str()).publication("pub").slot(self.database.name.as_str());
        Arc::new(source.tables(["t"]).plugin(self.plugin).lsn_type(self.lsn_type))
    }

    fn table(&self) -> TableName {
        TableName::new("public", "t")
    }

    async fn commit(&self, statements: &[Statement]) {
        commit(&mut *self.client.lock().await, statements).await;
    }

    fn splits_key_updates(&self) -> bool {
        true
    }
}

async fn source(identity: &str, plugin: Plugin, lsn_type: LsnType) {
    let Some(database) = Database::create().await else { return };
    let client = client(&database.url).await;
    let ddl = format!(
        "CREATE TABLE t (id bigint PRIMARY KEY, body text); ALTER TABLE t REPLICA IDENTITY {identity}; \
         CREATE TABLE anabranch_marker (slot text PRIMARY KEY, beats bigint NOT NULL); \
         ALTER TABLE anabranch_marker REPLICA IDENTITY {identity};"
    );
    client.batch_execute(&ddl).await.unwrap();
    let shop = Shop { database, client: Mutex::new(client), plugin, lsn_type };
    conformance::source::run(&shop).await;
    shop.database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn real_source_by_sequence_with_identity_change() {
    source("CHANGE", Plugin::Yboutput, LsnType::Sequence).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn real_source_by_hybrid_time_with_identity_change() {
    source("CHANGE", Plugin::Yboutput, LsnType::HybridTime).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn real_source_by_sequence_with_identity_full() {
    source("FULL", Plugin::Pgoutput, LsnType::Sequence).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn real_source_by_hybrid_time_with_identity_default() {
    source("DEFAULT", Plugin::Pgoutput, LsnType::HybridTime).await;
}

struct Target(Database);

#[async_trait]
impl SinkUnderTest for Target {
    async fn connect(&self) -> Arc<dyn Sink> {
        Arc::new(YugabyteSink::new(self.0.url.as_str()))
    }

    async fn create_table(&self, table: &TableSchema, unique: &[&str]) {
        self.connect().await.target().unwrap().create(table).await.unwrap();
        for column in unique {
            let sql = format!("ALTER TABLE \"{}\" ADD UNIQUE (\"{column}\")", table.name.name);
            client(&self.0.url).await.batch_execute(&sql).await.unwrap();
        }
    }

    async fn read_table(&self, table: &TableSchema) -> Vec<Vec<Option<String>>> {
        let columns: Vec<String> = table.columns.iter().map(|c| format!("\"{}\"", c.name)).collect();
        let sql = format!("SELECT {} FROM \"{}\"", columns.join(", "), table.name.name);
        let messages = client(&self.0.url).await.simple_query(&sql).await.unwrap();
        let row = |m: SimpleQueryMessage| match m {
            SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect()),
            _ => None,
        };
        messages.into_iter().filter_map(row).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn real_sink() {
    let Some(database) = Database::create().await else { return };
    let target = Target(database);
    conformance::sink::run(&target).await;
    target.0.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn real_checkpointer_and_dead_letters() {
    let Some(database) = Database::create().await else { return };
    let open = async || YugabyteSink::new(database.url.as_str()).checkpointer().unwrap();
    conformance::checkpointer::run(open).await;
    let open = async || YugabyteSink::new(database.url.as_str()).dead_letters().unwrap();
    conformance::dead_letter::run(open).await;
    database.drop().await;
}
