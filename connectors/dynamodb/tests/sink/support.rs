//! A server, and a look at it around the sink.

use std::sync::{Arc, Mutex, Weak};

use anabranch_core::{
    BatchBuilder, ChangeBatch, Claim, Column, DataType, Lane, LanePurpose, OldImage, Op, Part, PartitionId, Position,
    Progress, ProgressStore, Rank, Secret, Selection, Sink, SinkWriter, SourceIdentity, TableName, TableSchema,
    TargetSchema, Transaction, Unit, UnitId, UnitKind, UnitSlice, Value,
};
use anabranch_dynamodb::types::Item;
use anabranch_dynamodb::{Access, DynamoDbSink};
use anabranch_servers::DynamoServer;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;

static SERVER: Mutex<Weak<DynamoServer>> = Mutex::new(Weak::new());

/// One server for the tests that run at the same time: each takes half a GB. Tests have tables of
/// their own.
pub(crate) fn server() -> Option<Arc<DynamoServer>> {
    let mut known = SERVER.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(server) = known.upgrade() {
        return Some(server);
    }
    let server = Arc::new(anabranch_servers::dynamodb()?);
    *known = Arc::downgrade(&server);
    Some(server)
}

pub(crate) fn access(server: &DynamoServer) -> Access {
    let key = || Secret::new("local");
    Access::new().region("local").endpoint(server.endpoint()).credentials(key(), key(), None)
}

/// A client around the sink.
pub(crate) async fn client(server: &DynamoServer) -> Client {
    access(server).dynamodb("test").await.unwrap()
}

/// Every item of a table.
pub(crate) async fn items(client: &Client, table: &str) -> Vec<Item> {
    let mut all = Vec::new();
    let mut pages = client.scan().table_name(table).consistent_read(true).into_paginator().items().send();
    while let Some(item) = pages.next().await {
        all.push(item.unwrap());
    }
    all
}

pub(crate) fn text() -> DataType {
    DataType::Text { max_chars: None }
}

/// A table with these columns, of which the first `key` ones are the key.
pub(crate) fn table(name: &str, columns: &[(&str, DataType)], key: u16) -> Arc<TableSchema> {
    let columns = columns.iter().map(|(n, t)| Column::new(*n, t.clone())).collect();
    Arc::new(TableSchema { name: TableName::new("public", name), columns, key: (0..key).collect() })
}

#[derive(Clone, Debug)]
pub(crate) enum Do {
    Insert(Vec<Value>),
    /// Only the new row.
    Update(Vec<Value>),
    /// The key of the old row, and the new row.
    Move(Vec<Value>, Vec<Value>),
    /// By its key.
    Delete(Vec<Value>),
}

pub(crate) fn position(n: u64) -> Position {
    Position::new(Rank::of_end(&n.to_be_bytes()), n.to_string().into_bytes())
}

pub(crate) fn progress(n: u64) -> Progress {
    Progress { partition: PartitionId::new("slot"), position: position(n), safe_time: None }
}

fn build(n: u64, table: &Arc<TableSchema>, changes: &[Do]) -> ChangeBatch {
    let mut b = BatchBuilder::new(PartitionId::new("slot"));
    b.begin(Transaction { rank: n.to_be_bytes().to_vec().into(), ..Default::default() }, 1);
    let at = b.schema(table);
    let push = |b: &mut BatchBuilder, values: &[Value]| values.iter().for_each(|v| b.push(v.as_ref()));
    for change in changes {
        match change {
            Do::Insert(new) | Do::Update(new) => {
                b.change(if matches!(change, Do::Insert(_)) { Op::Insert } else { Op::Update }, at);
                b.new_row();
                push(&mut b, new);
            }
            Do::Move(old, new) => {
                b.change(Op::Update, at);
                b.old_row(OldImage::Key);
                push(&mut b, old);
                b.new_row();
                push(&mut b, new);
            }
            Do::Delete(old) => {
                b.change(Op::Delete, at);
                b.old_row(OldImage::Key);
                push(&mut b, old);
            }
        }
    }
    b.commit(position(n));
    b.finish(position(n), None).unwrap()
}

/// Source transaction number `n`, as a unit.
pub(crate) fn unit(n: u64, table: &Arc<TableSchema>, changes: &[Do]) -> Unit {
    let batch = Arc::new(build(n, table, changes));
    Unit {
        id: UnitId(n),
        kind: UnitKind::Stream,
        part: Part::Whole,
        transactions: 1,
        progress: vec![progress(n)],
        slices: vec![UnitSlice { changes: Selection::Range(0..batch.len() as u32), batch }],
    }
}

pub(crate) fn claim(pipeline: &str, epoch: u64) -> Claim {
    let identity = SourceIdentity::default().with("slot", "orders_dr");
    Claim { pipeline: pipeline.into(), epoch, lanes: 1, identity }
}

pub(crate) fn lane(pipeline: &str, epoch: u64, purpose: LanePurpose) -> Lane {
    Lane { pipeline: pipeline.into(), index: 0, count: 1, epoch, purpose }
}

/// Takes over with this epoch and opens the only lane.
pub(crate) async fn writer(sink: &DynamoDbSink, pipeline: &str, epoch: u64) -> Box<dyn SinkWriter> {
    sink.take_over(&claim(pipeline, epoch)).await.unwrap();
    sink.open(lane(pipeline, epoch, LanePurpose::Stream)).await.unwrap()
}

/// Creates the table as the sink does.
pub(crate) async fn create(sink: &DynamoDbSink, table: &TableSchema) {
    sink.create(table).await.unwrap();
}

pub(crate) fn s(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}

pub(crate) fn n(number: &str) -> AttributeValue {
    AttributeValue::N(number.to_owned())
}
