//! Single cases.

use std::sync::Arc;
use std::time::Duration;

use anabranch_core::ErrorKind;
use anabranch_core::memory::MemorySink;
use anabranch_spanner_fake::{Committed, Dialect, FakeSpanner, Script, Stream, Time};
use serde_json::json;

use crate::support::{STREAM, Ticking, drained, kv, kv_name, pipeline, rows, script, start};

const DIALECTS: [Dialect; 2] = [Dialect::GoogleSql, Dialect::PostgreSql];

fn t(seconds: i64) -> Time {
    Time::seconds(1_000_000 + seconds)
}

fn row(id: usize, v: usize) -> serde_json::Value {
    json!({"id": id.to_string(), "v": v.to_string()})
}

/// Reads everything up to the time.
async fn all(fake: Arc<FakeSpanner>) -> MemorySink {
    all_with(fake, Duration::from_millis(10)).await
}

/// With this pause between the steps of the clock.
async fn all_with(fake: Arc<FakeSpanner>, pause: Duration) -> MemorySink {
    let sink = MemorySink::new();
    let mut running = start(pipeline(&fake, t(0), &sink)).await;
    let ticking = Ticking::every(pause, &fake, Duration::from_secs(1));
    drained(&mut running).await;
    drop(ticking);
    running.stop().await.unwrap();
    sink
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_partitions_and_one_transaction_over_all_of_them() {
    const PARTITIONS: usize = 1000;
    let mut stream = Stream::new(STREAM);
    let names: Vec<String> = (0..PARTITIONS).map(|n| format!("p{n:04}")).collect();
    let (mut first, mut second) = (Committed::at(t(1)), Committed::at(t(5)));
    for (n, name) in names.iter().enumerate() {
        stream.root(name, t(0));
        first = first.insert(name, &kv(), row(n, 1));
        second = second.update(name, &kv(), row(n, 2), json!({"v": "1"}));
    }
    stream.commit(first).commit(second);
    for (n, name) in names.iter().enumerate() {
        let at = t(2).plus_nanos(n as i64);
        stream.commit(Committed::at(at).update(name, &kv(), row(n, 1000 + n), json!({"v": "1"})));
    }
    let fake = Arc::new(script(Dialect::GoogleSql, stream, t(10)).start());
    let sink = all_with(fake, Duration::from_secs(1)).await;
    let found = rows(&sink.rows(&kv_name(Dialect::GoogleSql)));
    assert!(found.len() == PARTITIONS && found.values().all(|v| *v == 2), "{found:?}");
    let sizes: Vec<usize> = sink.history().iter().map(|c| c.rows().count()).filter(|n| *n > 0).collect();
    assert!(sizes[0] >= PARTITIONS, "the first transaction is whole: {sizes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_come_with_their_transactions() {
    for dialect in DIALECTS {
        let mut stream = Stream::new(STREAM);
        stream.root("a", t(0)).root("b", t(0));
        let tagged = Committed::at(t(1)).tag("txBy=job").insert("a", &kv(), row(1, 1)).insert("b", &kv(), row(2, 1));
        let expired = Committed::at(t(3)).system().tag("RowDeletionPolicy").delete("b", &kv(), row(2, 1));
        stream.commit(tagged).commit(Committed::at(t(2)).insert("a", &kv(), row(3, 1))).commit(expired);
        let fake = script(dialect, stream, t(10)).start();
        let source: Box<dyn anabranch_core::Source> = Box::new(crate::support::source(&fake, t(0)));
        source.prepare(None).await.unwrap();
        let mut open: Vec<_> = source.partitions().await.unwrap();
        let mut tags = Vec::new();
        while let Some(partition) = open.pop() {
            let mut reader = source.open(&partition, &anabranch_core::StartFrom::default()).await.unwrap();
            let mut seen = 0;
            while seen < 2 {
                match reader.next().await.unwrap() {
                    anabranch_core::Next::Batch(batch) => {
                        seen += usize::from(batch.is_empty());
                        let of = |p: &anabranch_core::Piece| (p.transaction.tag.clone(), p.changes.len());
                        tags.extend(batch.pieces().iter().map(of).filter(|(_, changes)| *changes > 0));
                        fake.set_time(fake.now().plus(Duration::from_secs(2)));
                    }
                    anabranch_core::Next::Closed { children } => {
                        open.extend(children);
                        break;
                    }
                    anabranch_core::Next::Stopped => break,
                }
            }
        }
        let tagged = tags.iter().filter(|(tag, _)| tag.as_deref() == Some("txBy=job")).count();
        let system = tags.iter().filter(|(tag, _)| tag.as_deref() == Some("RowDeletionPolicy")).count();
        let plain = tags.iter().filter(|(tag, _)| tag.is_none()).count();
        assert_eq!((tagged, plain, system), (2, 1, 1), "{dialect:?}: {tags:?}");
    }
}

/// A query that ends without children is read on from what was heard last, never taken for the
/// partition's end.
#[tokio::test(flavor = "multi_thread")]
async fn an_end_without_children_is_not_the_end() {
    // With three rows, the third query comes to the children before it is cut.
    for (dialect, after, expected) in [(DIALECTS[0], 1, 4), (DIALECTS[1], 2, 4), (DIALECTS[0], 3, 3)] {
        let mut stream = Stream::new(STREAM);
        stream.root("a", t(0));
        for n in 1..=5 {
            stream.commit(Committed::at(t(n)).insert("a", &kv(), row(n as usize, 1)));
        }
        stream.split("a", t(8), &["b"]);
        stream.commit(Committed::at(t(9)).insert("b", &kv(), row(9, 1)));
        for query in 1..=3 {
            stream.fail("a", Some(query), after, None);
        }
        let fake = Arc::new(script(dialect, stream, t(20)).start());
        let sink = all(Arc::clone(&fake)).await;
        assert_eq!(rows(&sink.rows(&kv_name(dialect))).len(), 6, "{dialect:?} {after}");
        let asked: Vec<_> = fake.asked().into_iter().filter(|a| a.token.as_deref() == Some("a")).collect();
        assert_eq!(asked.len(), expected, "{dialect:?} {after}: {asked:?}");
    }
}

/// A merged child is read once, though both parents report it, and not before both are done.
#[tokio::test(flavor = "multi_thread")]
async fn a_merged_child_is_read_once() {
    let mut stream = Stream::new(STREAM);
    stream.root("a", t(0)).root("b", t(0)).merge(&["a", "b"], t(5), "c");
    stream.commit(Committed::at(t(1)).insert("a", &kv(), row(1, 1)));
    stream.commit(Committed::at(t(4)).insert("b", &kv(), row(2, 1)));
    stream.commit(Committed::at(t(6)).insert("c", &kv(), row(3, 1)));
    let fake = Arc::new(script(Dialect::GoogleSql, stream, t(20)).start());
    let sink = all(Arc::clone(&fake)).await;
    assert_eq!(rows(&sink.rows(&kv_name(Dialect::GoogleSql))).len(), 3);
    let mut asked: Vec<_> = fake.asked().iter().map(|a| a.token.clone().unwrap_or_default()).collect();
    asked[1..3].sort();
    assert_eq!(asked, ["", "a", "b", "c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_retention_took_is_told() {
    let mut stream = Stream::new(STREAM);
    stream.root("a", t(0)).forget_before(t(5));
    let fake = script(Dialect::GoogleSql, stream, t(20)).start();
    let sink = MemorySink::new();
    let started = pipeline(&fake, t(0), &sink).build().unwrap().start().await;
    let error = match started {
        Ok(mut running) => running.wait().await.unwrap_err(),
        Err(error) => error,
    };
    assert!(matches!(error.kind(), ErrorKind::Fatal | ErrorKind::Config), "{}", error.report());
}

/// A record that cannot be read stops the pipeline, and the error has the record.
#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_record_is_an_error_that_keeps_it() {
    let cases = [
        (Dialect::GoogleSql, json!([[["marker-1"], [], []]])),
        (Dialect::GoogleSql, json!("marker-2")),
        (Dialect::GoogleSql, json!([[[], [["marker-3"]], []]])),
        (Dialect::PostgreSql, json!({"data_change_record": {"marker": "marker-4"}})),
        (Dialect::PostgreSql, json!({"no_record": "marker-5"})),
    ];
    for (dialect, malformed) in cases {
        let mut stream = Stream::new(STREAM);
        stream.root("a", t(0)).commit(Committed::at(t(1)).insert("a", &kv(), row(1, 1)));
        stream.raw("a", t(2), malformed.clone());
        let fake: FakeSpanner = Script::start(script(dialect, stream, t(20)));
        let sink = MemorySink::new();
        let mut running = start(pipeline(&fake, t(0), &sink)).await;
        let ended = tokio::time::timeout(Duration::from_secs(60), running.wait()).await;
        let error = ended.expect("the pipeline ends").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Fatal, "{}", error.report());
        let marker = malformed.to_string();
        let marker = &marker[marker.find("marker-").unwrap()..][..8];
        assert!(error.report().contains(marker), "{marker}: {}", error.report());
    }
}

/// The server dies and comes back, with every query open.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_back_is_read_on() {
    let mut stream = Stream::new(STREAM);
    stream.root("a", t(0)).root("b", t(0));
    for n in 1..=20 {
        let holder = if n % 2 == 0 { "a" } else { "b" };
        stream.commit(Committed::at(t(n)).insert(holder, &kv(), row(n as usize, 1)));
    }
    let fake = Arc::new(script(Dialect::GoogleSql, stream, t(7)).start());
    let sink = MemorySink::new();
    let mut running = start(pipeline(&fake, t(0), &sink)).await;
    for time in [10, 15, 20] {
        tokio::task::block_in_place(|| fake.kill());
        fake.set_time(t(time));
        tokio::task::block_in_place(|| fake.restart());
    }
    let ticking = Ticking::start(&fake, Duration::from_secs(1));
    drained(&mut running).await;
    drop(ticking);
    running.stop().await.unwrap();
    assert_eq!(rows(&sink.rows(&kv_name(Dialect::GoogleSql))).len(), 20);
}

/// Rows come to one partition from several others, and leave it, all at one time, each told by a record of
/// its own; a partition begins then, too.
#[tokio::test(flavor = "multi_thread")]
async fn moves_of_one_time_are_one_cut() {
    for dialect in DIALECTS {
        let mut stream = Stream::mutable(STREAM);
        stream.root("a", t(0)).root("b", t(0)).root("c", t(0));
        for (n, holder) in ["a", "b", "c"].into_iter().enumerate() {
            stream.commit(Committed::at(t(1)).id(holder).insert(holder, &kv(), row(n, 1)));
        }
        stream.move_keys(&["b"], t(5), &["a"]).move_keys(&["c"], t(5), &["a"]).move_keys(&["a"], t(5), &["b"]);
        stream.split("a", t(5), &["d"]);
        for (n, holder) in ["b", "a", "d"].into_iter().enumerate() {
            let update = |at, v| Committed::at(at).id(holder).update(holder, &kv(), row(n, v), json!({"v": "1"}));
            stream.commit(update(t(6), 2)).commit(update(t(12), 3));
        }
        let fake = Arc::new(script(dialect, stream, t(20)).start());
        let sink = all(Arc::clone(&fake)).await;
        let found = rows(&sink.rows(&kv_name(dialect)));
        assert_eq!(found, (0..3).map(|n| (n, 3)).collect(), "{dialect:?}");
    }
}

/// With changes in between nobody can tell which of them come before which: it is told, nothing is lost.
#[tokio::test(flavor = "multi_thread")]
async fn moves_of_one_time_around_a_change_are_an_error() {
    let mut stream = Stream::mutable(STREAM);
    stream.root("a", t(0)).root("b", t(0)).root("c", t(0)).move_keys(&["b"], t(5), &["a"]);
    stream.commit(Committed::at(t(5)).insert("a", &kv(), row(1, 1))).move_keys(&["c"], t(5), &["a"]);
    let fake = script(Dialect::GoogleSql, stream, t(20)).start();
    let mut running = start(pipeline(&fake, t(0), &MemorySink::new())).await;
    let ended = tokio::time::timeout(Duration::from_secs(60), running.wait()).await;
    let error = ended.expect("the pipeline ends").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fatal, "{}", error.report());
    assert!(error.report().contains("rows moved twice"), "{}", error.report());
}

/// What a change stream leaves out is lost to the target: told before the first row.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_change_stream_leaves_out_is_told() {
    let mut stream = Stream::new(STREAM);
    stream.root("a", t(0)).option("exclude_delete", "true").option("exclude_ttl_deletes", "TRUE");
    stream.option("exclude_insert", "false");
    let fake = script(Dialect::GoogleSql, stream, t(20)).start();
    let source: Box<dyn anabranch_core::Source> = Box::new(crate::support::source(&fake, t(0)));
    let told = source.check(None).await.unwrap();
    let excludes: Vec<_> = told.iter().filter(|line| line.contains("exclude_")).collect();
    assert_eq!(excludes.len(), 2, "{told:?}");
    assert!(excludes[0].contains("leaves out deletes (exclude_delete)"), "{told:?}");
    assert!(excludes[1].contains("row deletion policy"), "{told:?}");
}

/// What was committed a moment ago has the very time that the database tells now: it is drained too.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_waits_for_what_was_committed_at_this_very_time() {
    let mut stream = Stream::new(STREAM);
    stream.root("a", t(0)).commit(Committed::at(t(10)).insert("a", &kv(), row(1, 1)));
    let fake = Arc::new(script(Dialect::GoogleSql, stream, t(10)).start());
    let source: Box<dyn anabranch_core::Source> = Box::new(crate::support::source(&fake, t(0)));
    let marks = source.marker().unwrap().mark().await.unwrap();
    let mark = marks.values().next().unwrap().rank.clone();
    source.prepare(None).await.unwrap();
    let root = source.partitions().await.unwrap().remove(0);
    let mut reader = source.open(&root, &anabranch_core::StartFrom::default()).await.unwrap();
    let child = loop {
        if let anabranch_core::Next::Closed { mut children } = reader.next().await.unwrap() {
            break children.remove(0);
        }
    };
    fake.set_time(t(20));
    let mut reader = source.open(&child, &anabranch_core::StartFrom::default()).await.unwrap();
    let rank = loop {
        match reader.next().await.unwrap() {
            anabranch_core::Next::Batch(batch) if !batch.is_empty() => break batch.change(0).rank(),
            anabranch_core::Next::Batch(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert!(mark >= rank, "{mark:?} {rank:?}");
}

/// The clock that told where the stream is to begin was ahead: no copy is made of a time before that.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_never_older_than_the_start_of_the_stream() {
    let mut stream = Stream::new(STREAM);
    stream.root("a", t(0));
    let ahead = vec![vec![json!(t(11).to_string())]];
    let script = script(Dialect::GoogleSql, stream, t(10)).answer("CURRENT_TIMESTAMP", &[("now", "TIMESTAMP")], ahead);
    let fake = script.start();
    let source = anabranch_spanner::Spanner::new(FakeSpanner::DATABASE).change_stream(STREAM).endpoint(fake.endpoint());
    let source: Box<dyn anabranch_core::Source> = Box::new(source.create(false));
    source.prepare(None).await.unwrap();
    let tables = source.tables().await.unwrap();
    let error = source.snapshotter().unwrap().begin(&tables).await.err().expect("it would leave a gap");
    assert_eq!(error.kind(), ErrorKind::Transient, "{}", error.report());
    fake.set_time(t(11));
    let copy = source.snapshotter().unwrap().begin(&tables).await.unwrap();
    assert!(copy.point().rank > source.partitions().await.unwrap()[0].start.clone().unwrap().rank);
}
