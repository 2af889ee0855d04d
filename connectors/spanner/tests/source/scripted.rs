//! What the emulator cannot do: the source against a scripted server that speaks the real protocol.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use anabranch_core::memory::MemorySink;
use anabranch_core::pipeline::{PipelineBuilder, RetryLimits, SnapshotMode};
use anabranch_core::{
    ByKey, ByTransaction, ByWindow, ChangeReader, ErrorKind, Next, Order, Partition, PartitionId, Pipeline, Position,
    Rank, RunningPipeline, Source, StartFrom, TableName, Value,
};
use anabranch_spanner::Spanner;
use anabranch_spanner_fake::{Committed, Dialect, FakeSpanner, Script, Stream, Table, Time};
use serde_json::json;
use tonic::Code;

use crate::shop::{drained, start};

const DATABASE: &str = "projects/fake/instances/fake/databases/fake";

fn t(seconds: i64) -> Time {
    Time::seconds(seconds)
}

fn orders() -> Arc<Table> {
    Arc::new(Table::new("Orders").key("Id", "INT64").column("Note", "STRING"))
}

fn serve(dialect: Dialect, stream: Stream, clock: Time) -> FakeSpanner {
    script(stream, clock).dialect(dialect).start()
}

fn script(stream: Stream, clock: Time) -> Script {
    let now = vec![vec![json!(clock.to_string())]];
    let script = Script::new().table((*orders()).clone()).clock(clock).stream(stream);
    script.answer("CURRENT_TIMESTAMP", &[("now", "TIMESTAMP")], now)
}

fn source(fake: &FakeSpanner) -> Spanner {
    let begin = "1970-01-01T00:00:00Z".parse().unwrap();
    Spanner::new(DATABASE).change_stream("orders").endpoint(fake.endpoint()).start(begin)
}

fn pipeline(fake: &FakeSpanner, sink: &MemorySink, order: impl Into<Order>) -> PipelineBuilder {
    let retry = RetryLimits { first: Duration::from_millis(10), ..RetryLimits::default() };
    Pipeline::builder("test")
        .source(source(fake))
        .sink(sink.clone())
        .order(order)
        .create_tables(true)
        .snapshot(SnapshotMode::Never)
        .retry(retry)
}

async fn run(fake: &FakeSpanner, sink: &MemorySink, order: impl Into<Order>) -> RunningPipeline {
    let mut running = start(pipeline(fake, sink, order)).await;
    drained(&mut running).await;
    running
}

fn insert(at: Time, partitions: &[&str], id: i64, note: &str) -> Committed {
    let all = partitions.iter().zip(0..);
    all.fold(Committed::at(at).id(&format!("tx-{id}")), |tx, (partition, n)| {
        tx.insert(partition, &orders(), json!({"Id": (id * 10 + n).to_string(), "Note": note}))
    })
}

fn update(at: Time, partition: &str, id: i64, note: &str) -> Committed {
    let row = json!({"Id": id.to_string(), "Note": note});
    Committed::at(at).update(partition, &orders(), row, json!({"Note": "before"}))
}

fn table(dialect: Dialect) -> TableName {
    TableName::new(if dialect == Dialect::PostgreSql { "public" } else { "" }, "Orders")
}

/// The notes of the commits in the order in which the target saw them.
fn notes(sink: &MemorySink) -> Vec<Vec<String>> {
    let text = |v: &Value| if let Value::Text(v) = v { v.clone() } else { format!("{v:?}") };
    let commits = sink
        .history()
        .into_iter()
        .map(|commit| commit.rows().filter_map(|(_, _, after)| after.map(|row| text(&row[1]))).collect::<Vec<_>>());
    commits.filter(|notes: &Vec<String>| !notes.is_empty()).collect()
}

/// Transactions over several partitions, which split and merge: whole, in commit order, each once.
#[tokio::test(flavor = "multi_thread")]
async fn transactions_over_partitions_that_split_and_merge() {
    for dialect in [Dialect::GoogleSql, Dialect::PostgreSql] {
        let mut stream = Stream::new("orders");
        stream.root("a", t(0)).root("b", t(0));
        stream.split("a", t(20), &["a1", "a2"]).merge(&["a2", "b"], t(40), "m").split("m", t(60), &["m1", "m2"]);
        let mut expected = Vec::new();
        for n in 1..80 {
            let at = t(n).plus(Duration::from_nanos(n as u64));
            let live = stream.live(at).iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
            let live: Vec<&str> = live.iter().map(String::as_str).collect();
            expected.push(vec![n.to_string(); live.len()]);
            stream.commit(insert(at, &live, n, &n.to_string()));
        }
        let fake = serve(dialect, stream, t(100));
        let sink = MemorySink::new();
        let running = run(&fake, &sink, ByTransaction::new()).await;
        assert_eq!(notes(&sink).concat(), expected.concat(), "{dialect:?}");
        assert_eq!(running.status().counters.transactions, 79);
        // Whole: no commit of the target ends within a transaction.
        let mut seen = 0;
        for commit in notes(&sink) {
            while seen < expected.len() && expected[..=seen].concat().len() <= notes(&sink).concat().len() {
                seen += 1;
            }
            assert!(commit.chunk_by(|a, b| a == b).all(|run| {
                let n: usize = run[0].parse().unwrap();
                run.len() == expected[n - 1].len()
            }));
        }
        running.stop().await.unwrap();
        // Nothing is given again.
        let running = run(&fake, &sink, ByTransaction::new()).await;
        assert_eq!(notes(&sink).concat(), expected.concat());
        running.stop().await.unwrap();
    }
}

/// Transactions of one commit time come interleaved; tags come along.
#[tokio::test(flavor = "multi_thread")]
async fn transactions_of_one_time_are_told_apart() {
    let mut stream = Stream::new("orders");
    stream.root("a", t(0)).root("b", t(0));
    for id in ["z", "y", "x"] {
        let row = |n: i64| json!({"Id": format!("{}", n + i64::from(id.as_bytes()[0]) * 10), "Note": id});
        let tx = Committed::at(t(5)).id(id).tag("txBy=me");
        stream.commit(tx.insert("a", &orders(), row(1)).insert("b", &orders(), row(2)).insert("a", &orders(), row(3)));
    }
    let fake = serve(Dialect::GoogleSql, stream, t(10));
    let sink = MemorySink::new();
    let running = run(&fake, &sink, ByTransaction::new()).await;
    assert_eq!(notes(&sink).concat(), ["x", "x", "x", "y", "y", "y", "z", "z", "z"]);
    running.stop().await.unwrap();
}

/// A query that breaks off, one that ends without children, and one that sends again: nothing is lost
/// or doubled, and the partition is read on.
#[tokio::test(flavor = "multi_thread")]
async fn queries_that_break_off() {
    let mut stream = Stream::new("orders");
    stream.root("a", t(0)).split("a", t(50), &["b"]);
    let expected: Vec<String> = (1..90).map(|n| n.to_string()).collect();
    for n in 1..90 {
        stream.commit(insert(t(n), &[if n < 50 { "a" } else { "b" }], n, &n.to_string()));
    }
    stream.fail("a", Some(1), 10, Some(Code::Unavailable));
    stream.fail("a", Some(2), 12, None);
    stream.fail("a", Some(3), 0, None);
    stream.fail("b", Some(1), 5, Some(Code::Internal));
    stream.fail("b", Some(2), 5, None);
    for constant in [false, true] {
        let script = script(stream.clone(), t(100));
        let fake = if constant { script.constant_resume_tokens() } else { script }.start();
        let sink = MemorySink::new();
        let running = run(&fake, &sink, ByTransaction::new()).await;
        assert_eq!(notes(&sink).concat(), expected, "constant tokens: {constant}");
        running.stop().await.unwrap();
    }
}

/// With mutable key ranges a key's changes move from partition to partition, and stay in order.
#[tokio::test(flavor = "multi_thread")]
async fn keys_that_move_between_mutable_partitions() {
    for dialect in [Dialect::GoogleSql, Dialect::PostgreSql] {
        let mut stream = Stream::mutable("orders");
        stream.root("p1", t(0)).root("p2", t(0));
        stream.split("p1", t(30), &["p3"]);
        stream.move_keys(&["p1"], t(10), &["p2"]).move_keys(&["p2"], t(20), &["p1"]);
        stream.merge(&["p2", "p3"], t(60), "p4");
        stream.commit(insert(t(1), &["p1"], 1, "1"));
        let owner = |n: i64| match n {
            ..=9 => "p1",
            10..=19 => "p2",
            20..=29 => "p1",
            30..=59 => "p3",
            _ => "p4",
        };
        for n in 2..90 {
            stream.commit(update(t(n).plus(Duration::from_millis(1)), owner(n), 10, &n.to_string()));
        }
        let fake = serve(dialect, stream, t(100));
        let expected: Vec<String> = (1..90).map(|n| n.to_string()).collect();
        for order in
            [Order::from(ByTransaction::new()), ByKey::new(3).into(), ByWindow::new(Duration::from_secs(7)).into()]
        {
            let sink = MemorySink::new();
            let name = order.name();
            let running = run(&fake, &sink, order).await;
            assert_eq!(notes(&sink).concat(), expected, "{dialect:?} by {name}");
            assert_eq!(sink.rows(&table(dialect)), [vec![Value::Int(10), "89".into()]]);
            running.stop().await.unwrap();
        }
    }
}

/// A thousand partitions come and go; the checkpoint does not keep them.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_partitions() {
    let mut stream = Stream::new("orders");
    let names: Vec<String> = (0..1000).map(|n| format!("p{n}")).collect();
    for name in &names {
        stream.root(name, t(0));
        stream.split(name, t(50), &[&format!("{name}-next")]);
    }
    let next: Vec<String> = names.iter().map(|n| format!("{n}-next")).collect();
    let refs = |v: &[String], n: usize| v.iter().skip(n * 7 % 900).step_by(101).cloned().collect::<Vec<_>>();
    for n in 1..100 {
        let some = refs(if n < 50 { &names } else { &next }, n as usize);
        let some: Vec<&str> = some.iter().map(String::as_str).collect();
        stream.commit(insert(t(n), &some, n, &n.to_string()));
    }
    let fake = serve(Dialect::GoogleSql, stream, t(200));
    let sink = MemorySink::new();
    let began = std::time::Instant::now();
    let running = run(&fake, &sink, ByTransaction::new()).await;
    let seen = notes(&sink).concat();
    assert!(seen.is_sorted_by_key(|n| n.parse::<u32>().unwrap()));
    assert_eq!(running.status().counters.transactions, 99);
    assert!(running.status().partitions.len() <= 1001, "{}", running.status().partitions.len());
    eprintln!("2000 partitions read and drained in {:?}", began.elapsed());
    running.stop().await.unwrap();
}

/// What is past the retention period, and what cannot be read, stops the pipeline, and says why.
#[tokio::test(flavor = "multi_thread")]
async fn gaps_and_malformed_records_stop_it() {
    let mut stream = Stream::new("orders");
    stream.root("a", t(0)).commit(insert(t(5), &["a"], 1, "one")).raw("a", t(6), json!("a broken record"));
    let fake = serve(Dialect::GoogleSql, stream, t(10));
    let sink = MemorySink::new();
    let mut running = start(pipeline(&fake, &sink, ByTransaction::new())).await;
    let error = running.wait().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fatal, "{error:?}");
    assert!(error.report().contains("a broken record"), "{error:?}");

    let mut stream = Stream::new("orders");
    stream.root("a", t(0)).commit(insert(t(5), &["a"], 1, "one")).forget_before(t(9));
    let fake = serve(Dialect::GoogleSql, stream, t(10));
    let mut running = start(pipeline(&fake, &MemorySink::new(), ByTransaction::new())).await;
    let error = running.wait().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fatal, "{error:?}");
    assert!(error.report().contains("lost"), "{error:?}");
}

/// A reader that is dropped after any number of polls loses nothing, and from the end of any of its
/// batches another one gives the rest under the same ranks.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_may_be_dropped_and_opened_anywhere() {
    let mut stream = Stream::new("orders");
    stream.root("a", t(0)).split("a", t(70), &["b"]);
    for n in 1..70 {
        stream.commit(insert(t(n / 3).plus_nanos(n), &["a"], n, &n.to_string()));
    }
    let fake = script(stream, t(100)).constant_resume_tokens().start();
    let source = source(&fake);
    source.prepare(None).await.unwrap();
    let partition = Partition {
        start: source.partitions().await.unwrap()[0].start.clone(),
        ..Partition::root(PartitionId::new("a"))
    };
    let read = async |from: Option<Position>, patient: bool| {
        let after = from.as_ref().map(|p| p.rank.clone()).unwrap_or_default();
        let mut reader = source.open(&partition, &StartFrom { position: from, ..StartFrom::default() }).await.unwrap();
        let (mut ranks, mut ends, mut polls) = (Vec::new(), Vec::new(), 0);
        loop {
            polls = polls % 5 + 1;
            let next = if patient { Some(reader.next().await) } else { poll_times(&mut *reader, polls).await };
            match next {
                None => tokio::task::yield_now().await,
                Some(Ok(Next::Batch(batch))) => {
                    ranks.extend(batch.changes().map(|c| c.rank()).filter(|r| *r > after));
                    ends.push(batch.end().clone());
                }
                Some(Ok(Next::Closed { children })) => {
                    assert_eq!(children.len(), 1);
                    return (ranks, ends);
                }
                Some(other) => panic!("{other:?}"),
            }
        }
    };
    let (all, ends) = read(None, true).await;
    assert_eq!(all.len(), 69);
    assert!(all.is_sorted_by(|a, b| a < b));
    assert_eq!(read(None, false).await.0, all);
    for end in ends {
        let expected: Vec<Rank> = all.iter().filter(|r| **r > end.rank).cloned().collect();
        assert_eq!(read(Some(end), false).await.0, expected);
    }
}

/// A partition with nothing to say answers its query late: a call that is dropped meanwhile, as the
/// runtime does for acknowledgements, goes on where it was, and does not ask anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_partition_is_asked_once() {
    let mut stream = Stream::new("orders");
    stream.root("a", t(0)).commit(insert(t(30), &["a"], 1, "1"));
    let fake = script(stream, t(0)).start();
    let source = source(&fake).heartbeat_ms(300_000);
    source.prepare(None).await.unwrap();
    let partition = Partition {
        start: source.partitions().await.unwrap()[0].start.clone(),
        ..Partition::root(PartitionId::new("a"))
    };
    let mut reader = source.open(&partition, &StartFrom::default()).await.unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while fake.asked().is_empty() {
        assert!(std::time::Instant::now() < deadline, "the query is never asked");
        assert!(poll_times(&mut *reader, 1).await.is_none());
    }
    for _ in 0..100 {
        assert!(poll_times(&mut *reader, 1).await.is_none());
        tokio::task::yield_now().await;
    }
    fake.set_time(t(400));
    let mut changes = 0;
    while changes == 0 {
        match reader.next().await.unwrap() {
            Next::Batch(batch) => changes += batch.len(),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(fake.asked().len(), 1, "{:?}", fake.asked());
}

/// The result of `next`, or `None` if it was polled so often without one: then it is dropped.
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
