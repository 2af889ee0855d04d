//! What DynamoDB Local never does: throttle, and leave items unprocessed. A proxy in front of it does.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anabranch_core::{DataType, DeadLetterStore, ErrorKind, Secret, TableSchema, Unit, Value};
use anabranch_dynamodb::{Access, DynamoDbSink, Mode, Versions};
use serde_json::{Value as Json, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::*;

/// What the proxy does to calls of one operation.
#[derive(Clone, Copy)]
enum Trouble {
    /// Two of three are throttled.
    Throttle(&'static str),
    /// The server does it, and the answer is lost, for the first two of each request.
    LoseAnswers(&'static str),
    /// Only the first three items of a batch are taken.
    TakeThree,
    /// Every call is throttled.
    Always(&'static str),
}

struct Proxy {
    endpoint: String,
    seen: Arc<Seen>,
}

/// What the connections of a proxy have in common.
#[derive(Default)]
struct Seen {
    struck: AtomicU32,
    calls: AtomicU32,
    /// How often each request came whose answers are lost.
    requests: Mutex<Vec<(Json, u32)>>,
}

impl Seen {
    fn strike(&self) {
        self.struck.fetch_add(1, Ordering::Relaxed);
    }

    /// How often this request came before.
    fn before(&self, body: &[u8]) -> u32 {
        let body: Json = serde_json::from_slice(body).unwrap();
        let mut requests = self.requests.lock().unwrap();
        if let Some((_, count)) = requests.iter_mut().find(|(known, _)| *known == body) {
            *count += 1;
            return *count - 1;
        }
        requests.push((body, 1));
        0
    }
}

impl Proxy {
    async fn start(server: u16, trouble: Trouble) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Seen::default());
        let shared = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let seen = Arc::clone(&shared);
                // An error is a client that hung up.
                tokio::spawn(async move { serve(socket, server, trouble, &seen).await.ok() });
            }
        });
        Self { endpoint, seen }
    }

    fn sink(&self) -> DynamoDbSink {
        let key = || Secret::new("local");
        DynamoDbSink::new(Access::new().region("local").endpoint(&self.endpoint).credentials(key(), key(), None))
    }

    fn struck(&self) -> u32 {
        self.seen.struck.load(Ordering::Relaxed)
    }
}

/// Head and body of one HTTP message.
async fn message(socket: &mut TcpStream) -> std::io::Result<(String, Vec<u8>)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let length = head.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    socket.read_exact(&mut body).await?;
    Ok((head, body))
}

async fn serve(mut client: TcpStream, server: u16, trouble: Trouble, seen: &Seen) -> std::io::Result<()> {
    loop {
        let (head, body) = message(&mut client).await?;
        let is = |operation: &str| head.contains(&format!(".{operation}\r\n"));
        let nth = |operation: &str| is(operation).then(|| seen.calls.fetch_add(1, Ordering::Relaxed));
        match trouble {
            Trouble::Throttle(op) if nth(op).is_some_and(|n| n % 3 != 2) => {
                seen.strike();
                throttled(&mut client).await?;
                continue;
            }
            Trouble::Always(op) if is(op) => {
                seen.strike();
                throttled(&mut client).await?;
                continue;
            }
            Trouble::LoseAnswers(op) if is(op) && seen.before(&body) < 2 => {
                seen.strike();
                forward(server, &head, &body).await?;
                return Ok(());
            }
            Trouble::TakeThree if is("BatchWriteItem") => {
                let mut input: Json = serde_json::from_slice(&body)?;
                let mut left = json!({});
                for (table, requests) in input["RequestItems"].as_object_mut().into_iter().flatten() {
                    let requests = requests.as_array_mut().unwrap();
                    if requests.len() > 3 {
                        seen.strike();
                        left[table] = Json::Array(requests.split_off(3));
                    }
                }
                forward(server, &head, &serde_json::to_vec(&input)?).await?;
                answer(&mut client, 200, &json!({ "UnprocessedItems": left })).await?;
                continue;
            }
            _ => {}
        }
        let (head, body) = forward(server, &head, &body).await?;
        client.write_all(head.as_bytes()).await?;
        client.write_all(&body).await?;
    }
}

async fn forward(server: u16, head: &str, body: &[u8]) -> std::io::Result<(String, Vec<u8>)> {
    let mut upstream = TcpStream::connect(("127.0.0.1", server)).await?;
    let lines = head.trim_end().lines().filter(|l| !l.to_ascii_lowercase().starts_with("content-length:"));
    let head = lines.chain([format!("content-length: {}", body.len()).as_str()]).collect::<Vec<_>>().join("\r\n");
    upstream.write_all(format!("{head}\r\n\r\n").as_bytes()).await?;
    upstream.write_all(body).await?;
    message(&mut upstream).await
}

async fn throttled(client: &mut TcpStream) -> std::io::Result<()> {
    let code = "com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException";
    answer(client, 400, &json!({ "__type": code, "message": "slowly" })).await
}

async fn answer(client: &mut TcpStream, status: u16, body: &Json) -> std::io::Result<()> {
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/x-amz-json-1.0\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    client.write_all((head + &body).as_bytes()).await
}

fn schema(name: &str) -> Arc<TableSchema> {
    table(name, &[("id", DataType::Int64), ("note", text())], 1)
}

fn rows(schema: &Arc<TableSchema>, n: u64, count: i64) -> Unit {
    let all: Vec<Do> = (0..count).map(|id| Do::Insert(vec![id.into(), format!("{n}").as_str().into()])).collect();
    unit(n, schema, &all)
}

#[tokio::test]
async fn throttled_and_partial_writes_arrive_all_the_same() {
    let Some(server) = server() else { return };
    type Case = (&'static str, Trouble, fn(DynamoDbSink) -> DynamoDbSink);
    let cases: [Case; 6] = [
        ("trouble_put", Trouble::Throttle("PutItem"), |s| s),
        ("trouble_lost", Trouble::LoseAnswers("PutItem"), |s| s),
        ("trouble_batch", Trouble::Throttle("BatchWriteItem"), |s| s.mode(Mode::Batch)),
        ("trouble_partial", Trouble::TakeThree, |s| s.mode(Mode::Batch)),
        ("trouble_transact", Trouble::Throttle("TransactWriteItems"), |s| s.mode(Mode::Transactional)),
        ("trouble_answer", Trouble::LoseAnswers("TransactWriteItems"), |s| s.mode(Mode::Transactional)),
    ];
    for (name, trouble, configure) in cases {
        let schema = schema(name);
        create(&configure(DynamoDbSink::new(access(&server))), &schema).await;
        let proxy = Proxy::start(server.port(), trouble).await;
        let sink = configure(proxy.sink());
        let mut writer = writer(&sink, name, 1).await;
        for n in 1..=3 {
            let _ = writer.write(&rows(&schema, n, 40)).await.unwrap_or_else(|e| panic!("{name}: {e:?}"));
        }
        writer.flush().await.unwrap();
        let found = items(&client(&server).await, name).await;
        assert_eq!((found.len(), found.iter().filter(|i| i["note"] == s("3")).count()), (40, 40), "{name}");
        assert!(proxy.struck() > 2, "{name}: {}", proxy.struck());
        // Counted once, however often it was sent.
        let stored = anabranch_core::ProgressStore::read(&sink, name).await.unwrap();
        assert_eq!((stored[0].counters.changes, stored[0].counters.transactions), (120, 3), "{name}");
    }
}

#[tokio::test]
async fn versions_in_a_table_stand_lost_answers() {
    let Some(server) = server() else { return };
    let schema = schema("trouble_sidecar");
    create(&DynamoDbSink::new(access(&server)), &schema).await;
    let proxy = Proxy::start(server.port(), Trouble::LoseAnswers("TransactWriteItems")).await;
    let sink = proxy.sink().versions(Versions::Table);
    let mut writer = writer(&sink, "trouble-sidecar", 1).await;
    let _ = writer.write(&rows(&schema, 1, 20)).await.unwrap();
    let gone = Do::Delete(vec![7.into(), Value::Unchanged]);
    let _ = writer.write(&unit(2, &schema, &[gone])).await.unwrap();
    assert_eq!(items(&client(&server).await, "trouble_sidecar").await.len(), 19);
}

/// A table that never takes anything is told as a throttle, which did not happen.
#[tokio::test]
async fn endless_throttling_is_given_back_to_the_runtime() {
    let Some(server) = server() else { return };
    let schema = schema("trouble_always");
    create(&DynamoDbSink::new(access(&server)), &schema).await;
    let proxy = Proxy::start(server.port(), Trouble::Always("PutItem")).await;
    let mut writer = writer(&proxy.sink(), "trouble-always", 1).await;
    tokio::time::timeout(Duration::from_secs(110), async {
        let error = writer.write(&rows(&schema, 1, 5)).await.expect_err("a throttled table");
        assert_eq!(error.kind(), ErrorKind::Transient, "{}", error.report());
    })
    .await
    .expect("it gives up after a minute");
}

/// A letter that is too large for one item: a put that is repeated replaces itself, and does not remove the
/// parts that it has just written.
#[tokio::test]
async fn a_large_letter_stands_lost_answers() {
    let Some(server) = server() else { return };
    let proxy = Proxy::start(server.port(), Trouble::LoseAnswers("PutItem")).await;
    let letters = proxy.sink().dead_letters();
    let letter = crate::limits::letter(1_000_000);
    letters.put("trouble-letter", std::slice::from_ref(&letter)).await.unwrap();
    assert!(proxy.struck() > 0);
    assert_eq!(letters.get("trouble-letter", &letter.id).await.unwrap(), Some(letter));
}
