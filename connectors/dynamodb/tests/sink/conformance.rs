//! The suites that every sink, checkpointer and dead-letter store must pass.

use std::sync::Arc;

use anabranch_core::{DataType, Sink, TableSchema, TargetSchema};
use anabranch_dynamodb::{
    DynamoDbCheckpointer, DynamoDbDeadLetters, DynamoDbLeases, DynamoDbSink, Mode, Oversized, Versions,
};
use anabranch_servers::DynamoServer;
use anabranch_testkit::conformance::sink::{Abilities, SinkUnderTest, run_with};
use anabranch_testkit::conformance::{checkpointer, dead_letter, leases};
use async_trait::async_trait;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;

use crate::support;

struct Local {
    server: Arc<DynamoServer>,
    client: Client,
    configure: fn(DynamoDbSink) -> DynamoDbSink,
}

impl Local {
    async fn start(configure: fn(DynamoDbSink) -> DynamoDbSink) -> Option<Self> {
        // A server of its own: the suites use the same names.
        let server = Arc::new(anabranch_servers::dynamodb()?);
        let client = support::client(&server).await;
        Some(Self { server, client, configure })
    }

    fn sink(&self) -> DynamoDbSink {
        (self.configure)(DynamoDbSink::new(support::access(&self.server)))
    }
}

/// What PostgreSQL would print, which the source had.
fn canonical(data_type: &DataType, value: Option<&AttributeValue>) -> Option<String> {
    Some(match (data_type, value?) {
        (_, AttributeValue::Null(_)) => return None,
        (DataType::Decimal { scale: Some(scale), .. }, AttributeValue::N(v)) => {
            let (whole, fraction) = v.split_once('.').unwrap_or((v, ""));
            format!("{whole}.{fraction:0<width$}", width = *scale as usize)
        }
        (_, AttributeValue::N(v) | AttributeValue::S(v)) => v.clone(),
        (_, AttributeValue::Bool(v)) => if *v { "t" } else { "f" }.to_owned(),
        (_, AttributeValue::B(v)) => v.as_ref().iter().fold("\\x".to_owned(), |t, byte| format!("{t}{byte:02x}")),
        (_, other) => format!("{other:?}"),
    })
}

#[async_trait]
impl SinkUnderTest for Local {
    async fn connect(&self) -> Arc<dyn Sink> {
        Arc::new(self.sink())
    }

    async fn create_table(&self, table: &TableSchema, _unique: &[&str]) {
        self.sink().create(table).await.unwrap();
    }

    async fn read_table(&self, table: &TableSchema) -> Vec<Vec<Option<String>>> {
        let items = support::items(&self.client, &table.name.name).await;
        let live = items.iter().filter(|item| !item.contains_key("anabranch:deleted"));
        let value = |item: &anabranch_dynamodb::types::Item, c: &anabranch_core::Column| {
            canonical(&c.data_type, item.get(&c.name))
        };
        live.map(|item| table.columns.iter().map(|c| value(item, c)).collect()).collect()
    }
}

const BY_ITEM: Abilities = Abilities { atomic: false, keyless: false, wide_floats: false, concurrent: true };

#[tokio::test]
async fn guarded() {
    let Some(local) = Local::start(|sink| sink).await else { return };
    run_with(&local, BY_ITEM).await;
}

#[tokio::test]
async fn guarded_with_versions_in_a_table() {
    let Some(local) = Local::start(|sink| sink.versions(Versions::Table)).await else { return };
    run_with(&local, BY_ITEM).await;
}

#[tokio::test]
async fn batch() {
    let Some(local) = Local::start(|sink| sink.mode(Mode::Batch)).await else { return };
    run_with(&local, BY_ITEM).await;
}

#[tokio::test]
async fn transactional() {
    let Some(local) = Local::start(|sink| sink.mode(Mode::Transactional)).await else { return };
    run_with(&local, Abilities { atomic: true, ..BY_ITEM }).await;
}

#[tokio::test]
async fn transactional_with_versions() {
    let configure = |sink: DynamoDbSink| sink.mode(Mode::Transactional).oversized(Oversized::Guarded);
    let Some(local) = Local::start(configure).await else { return };
    run_with(&local, Abilities { atomic: true, ..BY_ITEM }).await;
}

#[tokio::test]
async fn checkpoints() {
    let Some(server) = anabranch_servers::dynamodb() else { return };
    checkpointer::run(async || Arc::new(DynamoDbCheckpointer::new(support::access(&server))) as _).await;
}

#[tokio::test]
async fn dead_letters() {
    let Some(server) = anabranch_servers::dynamodb() else { return };
    dead_letter::run(async || Arc::new(DynamoDbDeadLetters::new(support::access(&server))) as _).await;
}

#[tokio::test]
async fn shared_leases() {
    let Some(server) = anabranch_servers::dynamodb() else { return };
    leases::run(async || Arc::new(DynamoDbLeases::new(support::access(&server))) as _).await;
}
