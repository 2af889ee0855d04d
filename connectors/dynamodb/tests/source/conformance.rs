//! What every source of shards has to do, on the fake and on DynamoDB Local. The suite of the test
//! kit is for sources of one partition that give whole transactions; this one asks the same of a
//! source that keeps the order of each key.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use anabranch_core::{
    ChangeReader, Checkpoint, HEARTBEAT, Next, Op, Partition, Position, Rank, Source, SourceIdentity, StartFrom,
    ValueRef,
};
use anabranch_dynamodb::{DeclaredColumn, DynamoDb};
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType,
};

use super::support::{PATIENCE, access, source};

/// A change as it was read: its rank, the id, the body; `None` for a delete.
type Read = (Rank, i64, Option<String>);

struct Server {
    endpoint: String,
    client: Client,
}

pub(crate) async fn create(client: &Client) {
    let key = KeySchemaElement::builder().attribute_name("id").key_type(KeyType::Hash).build().unwrap();
    let id =
        AttributeDefinition::builder().attribute_name("id").attribute_type(ScalarAttributeType::N).build().unwrap();
    let create = client.create_table().table_name("conformance").key_schema(key).attribute_definitions(id);
    create.billing_mode(BillingMode::PayPerRequest).send().await.expect("a table");
}

impl Server {
    async fn new(endpoint: String) -> Self {
        let client = access(&endpoint).dynamodb("test").await.expect("a client");
        create(&client).await;
        Self { endpoint, client }
    }

    fn source(&self) -> DynamoDb {
        let typed =
            |name: &str, kind: &str| DeclaredColumn { table: None, name: name.to_owned(), data_type: kind.to_owned() };
        source(&self.endpoint).table("conformance").column(typed("id", "int64")).column(typed("body", "text"))
    }

    async fn put(&self, id: i64, body: &str) {
        let put = self.client.put_item().table_name("conformance").item("id", AttributeValue::N(id.to_string()));
        put.item("body", AttributeValue::S(body.to_owned())).send().await.expect("put");
    }

    async fn delete(&self, id: i64) {
        let delete = self.client.delete_item().table_name("conformance");
        delete.key("id", AttributeValue::N(id.to_string())).send().await.expect("delete");
    }

    /// The shards of the table, as the root's reader gives them.
    async fn shards(&self, source: &DynamoDb) -> Vec<Partition> {
        let roots = source.partitions().await.expect("partitions");
        assert_eq!(roots.len(), 1);
        let mut reader = source.open(&roots[0], &StartFrom::default()).await.expect("open");
        loop {
            match reader.next().await.expect("next") {
                Next::Batch(batch) => assert!(batch.is_empty()),
                Next::Closed { children } => return children,
                Next::Stopped => panic!("the root stopped"),
            }
        }
    }

    async fn reader(&self, shard: &Partition, position: Option<Position>) -> Box<dyn ChangeReader> {
        let source = self.source();
        source.prepare(None).await.expect("prepare");
        source.open(shard, &StartFrom { position, ..StartFrom::default() }).await.expect("open")
    }
}

/// Puts batches together, and checks what every batch must keep to.
#[derive(Default)]
struct Transcript {
    all: Vec<Read>,
    ends: Vec<Position>,
    last: Option<Rank>,
}

impl Transcript {
    fn add(&mut self, batch: &anabranch_core::ChangeBatch) {
        for piece in batch.pieces() {
            assert!(piece.first && piece.end.is_some(), "each record is a transaction");
            self.ends.push(piece.end.clone().unwrap());
        }
        for change in batch.changes() {
            assert!(self.last.as_ref() < Some(&change.rank()), "ranks grow");
            self.last = Some(change.rank());
            let row = change.identity_row().expect("a row");
            let ValueRef::Int(id) = row.get(0) else { panic!("the id {:?}", row.get(0)) };
            let body = change.new_row().map(|row| match row.get(1) {
                ValueRef::Text(body) => body.to_owned(),
                other => panic!("the body {other:?}"),
            });
            assert_eq!(body.is_none(), change.op() == Op::Delete);
            self.all.push((change.rank(), id, body));
        }
        assert!(Some(&batch.end().rank) >= self.last.as_ref(), "the end is not below what is in it");
        self.last = self.last.clone().max(Some(batch.end().rank.clone()));
    }
}

async fn read(reader: &mut dyn ChangeReader, count: usize) -> Transcript {
    let mut transcript = Transcript::default();
    while transcript.all.len() < count {
        let next = tokio::time::timeout(PATIENCE, reader.next()).await.expect("in time").expect("next");
        let Next::Batch(batch) = next else { panic!("{next:?}") };
        transcript.add(&batch);
    }
    transcript
}

/// The suite.
async fn run(endpoint: String) {
    let server = Server::new(endpoint).await;
    let source = server.source();
    let identity = source.prepare(None).await.expect("prepare enables the stream");
    assert_eq!(source.check(None).await.expect("check"), Vec::<String>::new(), "nothing is left to do");
    let stored = Checkpoint { identity: identity.clone(), ..Checkpoint::default() };
    assert_eq!(source.prepare(Some(&stored)).await.expect("prepare to resume"), identity);
    let other = SourceIdentity(identity.0.keys().map(|key| (key.clone(), "another".to_owned())).collect());
    let foreign = Checkpoint { identity: other, ..Checkpoint::default() };
    assert!(source.check(Some(&foreign)).await.is_err(), "another stream is refused");

    // Every write, in the order of its key.
    let mut expected: Vec<(i64, Option<String>)> = Vec::new();
    for id in 0..10 {
        let body = format!("\\ \"ä\" \u{1f980} {id}");
        server.put(id, &body).await;
        expected.push((id, Some(body)));
        server.put(id, "").await;
        expected.push((id, Some(String::new())));
        // A write that changes nothing is none.
        server.put(id, "").await;
    }
    server.delete(3).await;
    expected.push((3, None));
    let shards = server.shards(&source).await;
    assert_eq!(shards.len(), 1, "a table this small has one shard");
    let shard = &shards[0];
    let mut reader = server.reader(shard, None).await;
    let transcript = read(&mut *reader, expected.len()).await;
    let found: Vec<_> = transcript.all.iter().map(|(_, id, body)| (*id, body.clone())).collect();
    assert_eq!(found, expected);
    drop(reader);

    // From any position on, and under the same ranks.
    for at in [0, 7, 19] {
        let mut reader = server.reader(shard, Some(transcript.ends[at].clone())).await;
        let rest = read(&mut *reader, expected.len() - at - 1).await;
        assert_eq!(rest.all, transcript.all[at + 1..], "after {at}");
        reader.acknowledge(rest.ends.last()).await.expect("acknowledge");
        reader.close().await.expect("close");
    }
    // An empty token is the start: what was given may be given again, up to the rank.
    let within = Position::new(transcript.ends[0].rank.clone(), Vec::new());
    let mut reader = server.reader(shard, Some(within)).await;
    let mut again = Vec::new();
    while again.len() < expected.len() {
        let next = tokio::time::timeout(PATIENCE, reader.next()).await.expect("in time").expect("next");
        let Next::Batch(batch) = next else { panic!("{next:?}") };
        again.extend(batch.changes().map(|c| c.rank()));
    }
    let ranks: Vec<Rank> = transcript.all.iter().map(|(rank, ..)| rank.clone()).collect();
    assert_eq!(again, ranks);

    // However often a call is polled before it is dropped.
    let mut reader = server.reader(shard, None).await;
    let mut polled = Transcript::default();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut polls = 0;
    while polled.all.len() < expected.len() {
        assert!(tokio::time::Instant::now() < deadline, "calls that are dropped get nowhere");
        polls = polls % 7 + 1;
        match poll_times(&mut *reader, polls).await {
            Some(next) => match next.expect("next") {
                Next::Batch(batch) => polled.add(&batch),
                other => panic!("{other:?}"),
            },
            None => tokio::task::yield_now().await,
        }
    }
    assert_eq!(polled.all, transcript.all, "after calls that were dropped");

    // A quiet shard gives a sign of life, and its position does not go back.
    for _ in 0..2 {
        let next = tokio::time::timeout(2 * HEARTBEAT, reader.next()).await.expect("a heartbeat").expect("next");
        let Next::Batch(batch) = next else { panic!("{next:?}") };
        assert!(batch.is_empty());
        polled.add(&batch);
    }

    // A mark is reached without another write, and what was written before lies before it.
    server.put(100, "before the mark").await;
    let marks = source.marker().expect("a marker").mark().await.expect("mark");
    let mark = marks.get(&shard.id).expect("a mark for the shard").clone();
    let mut seen = Vec::new();
    loop {
        let next = tokio::time::timeout(PATIENCE, reader.next()).await.expect("in time").expect("next");
        let Next::Batch(batch) = next else { panic!("{next:?}") };
        let ids = batch.changes().map(|c| c.identity_row().expect("a row").get(0));
        seen.extend(ids.map(|id| if let ValueRef::Int(id) = id { id } else { 0 }));
        if batch.end().rank >= mark.rank {
            break;
        }
    }
    assert_eq!(seen, [100], "the write, and no marker");

    copy(&server, shard).await;
}

/// The rows of a scan and a replay over them make up the table.
async fn copy(server: &Server, shard: &Partition) {
    let source = server.source();
    source.prepare(None).await.expect("prepare");
    let tables = source.tables().await.expect("tables");
    let snapshot = source.snapshotter().expect("a snapshotter").begin(&tables).await.expect("begin");
    let mut rows: BTreeMap<i64, String> = BTreeMap::new();
    for (n, chunk) in snapshot.chunks().iter().enumerate() {
        if n == 1 {
            server.delete(5).await;
            server.put(6, "written meanwhile").await;
        }
        let mut reader = snapshot.open(chunk).await.expect("open a segment");
        loop {
            match reader.next().await.expect("next") {
                Next::Batch(batch) => {
                    for row in batch.changes().filter_map(|c| c.new_row()) {
                        let (ValueRef::Int(id), ValueRef::Text(body)) = (row.get(0), row.get(1)) else {
                            panic!("a row")
                        };
                        rows.insert(id, body.to_owned());
                    }
                }
                Next::Closed { children } => break assert!(children.is_empty()),
                Next::Stopped => panic!("a segment stopped"),
            }
        }
    }
    server.put(200, "the last").await;
    let mut reader = server.reader(shard, None).await;
    let mut replayed = Transcript::default();
    while replayed.all.last().is_none_or(|(_, id, _)| *id != 200) {
        let next = tokio::time::timeout(PATIENCE, reader.next()).await.expect("in time").expect("next");
        let Next::Batch(batch) = next else { panic!("{next:?}") };
        replayed.add(&batch);
    }
    for (_, id, body) in replayed.all {
        match body {
            Some(body) => rows.insert(id, body),
            None => rows.remove(&id),
        };
    }
    let items = server.client.scan().table_name("conformance").consistent_read(true).send().await.expect("scan");
    let items: BTreeMap<i64, String> = items
        .items()
        .iter()
        .map(|i| (i["id"].as_n().unwrap().parse().unwrap(), i["body"].as_s().unwrap().clone()))
        .collect();
    assert_eq!(rows, items);
    assert!(!rows.contains_key(&5) && !rows.contains_key(&3), "deleted items stay deleted");
}

async fn poll_times(reader: &mut dyn ChangeReader, times: u32) -> Option<anabranch_core::Result<Next>> {
    let mut next = reader.next();
    let mut polls = 0;
    poll_fn(|context| match next.as_mut().poll(context) {
        Poll::Ready(next) => Poll::Ready(Some(next)),
        Poll::Pending => {
            polls += 1;
            if polls == times {
                return Poll::Ready(None);
            }
            context.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await
}

#[tokio::test]
async fn on_the_fake() {
    let fake = anabranch_dynamodb_fake::Fake::start().await;
    run(fake.endpoint()).await;
}

#[tokio::test]
async fn on_dynamodb_local() {
    let Some(server) = anabranch_servers::dynamodb() else { return };
    tokio::time::timeout(Duration::from_secs(120), run(server.endpoint())).await.expect("in time");
}
