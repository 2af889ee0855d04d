//! The suite of core for sources.

use std::sync::Arc;

use anabranch_core::{Source, TableName};
use anabranch_testkit::conformance::source::{SourceUnderTest, Statement, run};
use anabranch_yugabyte::{LsnType, Plugin};
use async_trait::async_trait;
use tokio::sync::Mutex;
use tokio_postgres::Client;

use crate::support::{Universe, arc, client, identity, universe};

pub(crate) struct Shop {
    universe: Universe,
    client: Mutex<Client>,
    plugin: Plugin,
    lsn_type: LsnType,
}

#[async_trait]
impl SourceUnderTest for Shop {
    async fn connect(&self) -> Arc<dyn Source> {
        arc(self.universe.source("slot").plugin(self.plugin).lsn_type(self.lsn_type))
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

/// Commits these statements as one transaction.
pub(crate) async fn commit(client: &mut Client, statements: &[Statement]) {
    let transaction = client.transaction().await.unwrap();
    for statement in statements {
        let rows = match statement {
            Statement::Insert(id, body) => transaction.execute("INSERT INTO t VALUES ($1, $2)", &[id, body]).await,
            Statement::Update(id, body) => {
                transaction.execute("UPDATE t SET body = $2 WHERE id = $1", &[id, body]).await
            }
            Statement::Rekey(from, to) => transaction.execute("UPDATE t SET id = $2 WHERE id = $1", &[from, to]).await,
            Statement::Delete(id) => transaction.execute("DELETE FROM t WHERE id = $1", &[id]).await,
        };
        assert_eq!(rows.unwrap(), 1, "{statement:?}");
    }
    transaction.commit().await.unwrap();
}

async fn conforms(replica_identity: u8, plugin: Plugin, lsn_type: LsnType) {
    let Some(universe) = universe(identity(replica_identity)).await else { return };
    let client = client(&universe.server.url("postgres")).await;
    client.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY, body text)").await.unwrap();
    let shop = Shop { universe, client: Mutex::new(client), plugin, lsn_type };
    run(&shop).await;
    assert_eq!(shop.universe.fake.refused(), Vec::<String>::new(), "what YSQL does not have was asked for");
}

#[tokio::test(flavor = "multi_thread")]
async fn source_by_sequence_with_identity_change() {
    conforms(b'c', Plugin::Yboutput, LsnType::Sequence).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn source_by_hybrid_time_with_identity_change() {
    conforms(b'c', Plugin::Yboutput, LsnType::HybridTime).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn source_by_sequence_with_identity_full() {
    conforms(b'f', Plugin::Pgoutput, LsnType::Sequence).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn source_by_hybrid_time_with_identity_default() {
    conforms(b'd', Plugin::Pgoutput, LsnType::HybridTime).await;
}
