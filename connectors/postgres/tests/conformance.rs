//! The suite of core for sources, on real servers.

mod support;

use std::sync::Arc;

use anabranch_core::{Source, TableName};
use anabranch_postgres::Postgres;
use anabranch_testkit::conformance::source::{SourceUnderTest, Statement, run};
use async_trait::async_trait;
use support::{BOTH, PgServer, start};
use tokio_postgres::Client;

struct Shop {
    server: PgServer,
    client: tokio::sync::Mutex<Client>,
    streaming: bool,
}

#[async_trait]
impl SourceUnderTest for Shop {
    async fn connect(&self) -> Arc<dyn Source> {
        let source = Postgres::new(self.server.url("postgres")).publication("pub").slot("slot");
        Arc::new(source.tables(["t"]).streaming(self.streaming).chunk_pages(1))
    }

    fn table(&self) -> TableName {
        TableName::new("public", "t")
    }

    async fn commit(&self, statements: &[Statement]) {
        let mut client = self.client.lock().await;
        let transaction = client.transaction().await.unwrap();
        let statement = async |sql: &str| transaction.prepare(sql).await.unwrap();
        let insert = statement("INSERT INTO t VALUES ($1, $2)").await;
        let update = statement("UPDATE t SET body = $2 WHERE id = $1").await;
        let rekey = statement("UPDATE t SET id = $2 WHERE id = $1").await;
        let delete = statement("DELETE FROM t WHERE id = $1").await;
        for statement in statements {
            let rows = match statement {
                Statement::Insert(id, body) => transaction.execute(&insert, &[id, body]).await,
                Statement::Update(id, body) => transaction.execute(&update, &[id, body]).await,
                Statement::Rekey(from, to) => transaction.execute(&rekey, &[from, to]).await,
                Statement::Delete(id) => transaction.execute(&delete, &[id]).await,
            };
            assert_eq!(rows.unwrap(), 1, "{statement:?}");
        }
        transaction.commit().await.unwrap();
    }
}

async fn conforms(streaming: bool) {
    for version in BOTH {
        let Some(server) = start(version, &[("logical_decoding_work_mem", "64kB")]) else { continue };
        let client = server.client().await;
        client.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY, body text)").await.unwrap();
        run(&Shop { server, client: client.into(), streaming }).await;
    }
}

#[tokio::test]
async fn source() {
    conforms(false).await;
}

#[tokio::test]
async fn source_that_is_sent_large_transactions_early() {
    conforms(true).await;
}
