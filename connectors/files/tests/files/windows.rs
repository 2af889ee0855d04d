//! What is in the files, whatever happens to those who write and read them.

use std::fs;
use std::time::Duration;

use anabranch_core::{ErrorKind, Marker, Part, PartitionId, Position, ProgressStore, Rank, Sink, Source};
use anabranch_files::{Processed, Ranks};
use anabranch_testkit::units;

use crate::support::*;

const EU: Option<&str> = Some("eu");
const US: Option<&str> = Some("us");

#[tokio::test]
async fn a_file_for_each_window_and_shard() {
    let folder = Folder::new();
    let mut run = Run::begin(&folder.files, 1).await;
    run.write(&[tx(1, 1, &[(1, EU), (2, US)]), tx(2, 5, &[(3, EU)]), tx(3, 12, &[(4, EU)])]).await;
    run.safe_time(second(20)).await;

    let first = "20231114T221320.000000Z-20231114T221330.000000Z.jsonl";
    assert_eq!(folder.names("eu"), [first, "20231114T221330.000000Z-20231114T221340.000000Z.jsonl"]);
    assert_eq!(folder.names("us"), [first]);
    let written = fs::read_to_string(folder.file("us", first)).unwrap();
    let lines: Vec<_> = written.lines().collect();
    assert_eq!(
        lines,
        [
            r#"{"anabranch_window":1,"run":"r","shard":"us","start":"2023-11-14T22:13:20.000000Z","end":"2023-11-14T22:13:30.000000Z","part":0,"number":1,"previous":null,"pipeline":"orders","epoch":1}"#,
            r#"{"begin":{"rank":"0000000000000001","time":"2023-11-14T22:13:21.000000Z","tag":"tag 1","total":2}}"#,
            r#"{"schema":{"id":0,"table":{"name":{"schema":"public","name":"orders"},"columns":[{"name":"id","data_type":"int64","native":"int64","nullable":true,"generated":false},{"name":"body","data_type":{"text":{"max_chars":null}},"native":"text","nullable":true,"generated":false},{"name":"extra","data_type":"bytes","native":"bytes","nullable":true,"generated":false}],"key":[0]}}}"#,
            r#"{"op":"insert","t":0,"n":2,"new":[2,"row \"2\"\n",{"bytes":"00ff"}]}"#,
            r#"{"end":{"records":1,"lines":5}}"#,
        ]
    );

    let source = folder.source();
    let (eu, end) = read(&mut *open(&source, "eu", None).await, 3).await;
    assert_eq!(ids(&eu), [1, 3, 4]);
    assert_eq!(end.rank, Rank::of_end(&prefix(3)));
    assert_eq!(eu[0].rank, Rank::of_change(&prefix(1), 1));
    assert_eq!((eu[1].time, eu[1].tag.as_deref(), eu[1].shard.as_deref()), (Some(second(5)), Some("tag 2"), EU));
    let (us, _) = read(&mut *open(&source, "us", None).await, 1).await;
    assert_eq!(us[0].rank, Rank::of_change(&prefix(1), 2), "the number that it had at the source");
    assert_eq!(source.known_shards().await.unwrap(), ["eu", "us"]);
    // Of one shard alone nobody can wait for the whole transaction.
    for (source, total) in [(source.clone(), Some(2)), (source.shards(["us"]), None)] {
        let batch = next_batch(&mut *open(&source, "us", None).await).await;
        assert_eq!(batch.pieces()[0].transaction.total, total);
    }
}

#[tokio::test]
async fn a_large_window_becomes_parts_and_a_manifest() {
    let folder = Folder::new();
    let files = folder.files.clone().max_file(200);
    let mut run = Run::begin(&files, 1).await;
    for n in 1..=5 {
        run.write(&[tx(n, 1, &[(n as i64, None)])]).await;
    }
    let name = "20231114T221320.000000Z-20231114T221330.000000Z";
    let parts: Vec<_> =
        [format!("{name}.jsonl")].into_iter().chain((1..5).map(|n| format!("{name}.part-{n:05}.jsonl"))).collect();
    assert_eq!(folder.names("_unsharded"), parts);
    run.safe_time(second(11)).await;
    let manifest = fs::read_to_string(folder.file("_unsharded", &format!("{name}.manifest.json"))).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(manifest["files"], serde_json::json!(parts));

    let (all, _) = read(&mut *open(&folder.source(), "_unsharded", None).await, 5).await;
    assert_eq!(ids(&all), [1, 2, 3, 4, 5]);
}

/// The writer died after it had written files and before the ledger named them.
#[tokio::test]
async fn files_that_no_ledger_names_are_replaced() {
    let folder = Folder::new();
    let ledger = folder.path.join("r/_ledger.json");
    let mut run = Run::begin(&folder.files, 1).await;
    run.write(&[tx(1, 1, &[(1, EU), (2, US)])]).await;
    let before = fs::read(&ledger).unwrap();
    run.write(&[tx(2, 2, &[(3, EU)]), tx(3, 3, &[(4, EU), (5, US)])]).await;
    let names = (folder.names("eu"), folder.names("us"));
    fs::write(&ledger, before).unwrap();

    let mut reader = open(&folder.source(), "eu", None).await;
    let (seen, _) = read(&mut *reader, 1).await;
    assert_eq!(ids(&seen), [1], "what no ledger names is not there");

    let stored = folder.files.take_over(&claim(2)).await.unwrap();
    assert_eq!(stored[0].partitions[&PartitionId::new("slot")].position.rank, Rank::of_end(&prefix(1)));
    let mut run = Run::begin(&folder.files, 3).await;
    // The same changes, cut in another way.
    run.write(&[tx(2, 2, &[(3, EU)])]).await;
    let (more, _) = read(&mut *reader, 1).await;
    assert_eq!(ids(&more), [3]);
    run.write(&[tx(3, 3, &[(4, EU), (5, US)])]).await;
    let (more, _) = read(&mut *reader, 1).await;
    assert_eq!(ids(&more), [4]);
    let (us, _) = read(&mut *open(&folder.source(), "us", None).await, 2).await;
    assert_eq!(ids(&us), [2, 5]);
    assert!(names.0.iter().all(|name| folder.names("eu").contains(name)) && folder.names("us") == names.1);
}

/// The writer died before its commit, and its successor, whose filters were changed, has no use for the
/// name of the file that was left.
#[tokio::test]
async fn a_file_that_no_ledger_names_is_never_read() {
    // The file that is left sorts before, between and behind those that count.
    for (left, then) in [(12, 25), (25, 12), (38, 12)] {
        let folder = Folder::new();
        let ledger = folder.path.join("r/_ledger.json");
        let mut run = Run::begin(&folder.files, 1).await;
        run.write(&[tx(1, 1, &[(1, EU)])]).await;
        let mut before = open(&folder.source(), "eu", None).await;
        assert_eq!(ids(&read(&mut *before, 1).await.0), [1]);
        let stored = fs::read(&ledger).unwrap();
        run.write(&[tx(2, left, &[(2, EU)])]).await;
        fs::write(&ledger, stored).unwrap();

        let mut run = Run::begin(&folder.files, 2).await;
        run.write(&[tx(3, then, &[(3, EU)])]).await;
        run.write(&[tx(4, 45, &[(4, EU)])]).await;
        run.write(&[tx(5, 55, &[(5, EU)])]).await;
        assert_eq!(folder.names("eu").len(), 5);
        assert_eq!(ids(&read(&mut *before, 3).await.0), [3, 4, 5], "left at {left}");
        let mut anew = open(&folder.source(), "eu", None).await;
        assert_eq!(ids(&read(&mut *anew, 4).await.0), [1, 3, 4, 5], "left at {left}");
    }
}

/// Partitions of a source that are not merged (orders key and arrival): what is left of a transaction
/// comes after another one. Readers of its shard were told that it has ended.
#[tokio::test]
async fn a_transaction_does_not_go_on_behind_another_one() {
    let folder = Folder::new();
    let mut run = Run::begin(&folder.files, 1).await;
    let (first, second) = (tx(1, 1, &[(1, EU)]), tx(2, 2, &[(2, US)]));
    run.write(std::slice::from_ref(&first)).await;
    run.write(&[second]).await;
    let (_, end) = read(&mut *open(&folder.source(), "eu", None).await, 1).await;
    assert_eq!(end.rank, Rank::of_end(&prefix(1)));
    let late = async {
        let _ = run.writer.write(&rest_of(&first, "other", 2, 12)).await?;
        run.writer.flush().await
    };
    let error = late.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fatal, "{error}");
    assert!(error.report().contains("order window"), "{}", error.report());
}

/// A unit that was written in part, because a file was full, is not written twice.
#[tokio::test]
async fn a_unit_that_was_cut_by_a_crash_goes_on() {
    let folder = Folder::new();
    let files = folder.files.clone().max_file(1);
    let mut run = Run::begin(&files, 1).await;
    let whole = [tx(1, 1, &[(1, None), (2, None), (3, None)]), tx(2, 2, &[(4, None)])];
    // Each change needs a file of its own: all but the last are committed when the writer dies.
    let _ = run.writer.write(&unit(&whole)).await.unwrap();
    drop(run);
    assert_eq!(folder.names("_unsharded").len(), 3);
    let mut reader = open(&folder.source(), "_unsharded", None).await;
    let mut seen = Vec::new();
    while seen.len() < 3 {
        seen.extend(reads(&next_batch(&mut *reader).await));
    }

    let mut run = Run::begin(&files, 2).await;
    run.write(&whole).await;
    let (rest, _) = read(&mut *reader, 1).await;
    assert_eq!((ids(&seen), ids(&rest)), (vec![1, 2, 3], vec![4]));
    let stored = files.read(PIPELINE).await.unwrap();
    assert_eq!((stored[0].counters.changes, stored[0].counters.transactions), (4, 2), "a unit counts once");
}

#[tokio::test]
async fn an_old_writer_is_fenced_and_replaces_nothing() {
    let folder = Folder::new();
    let mut old = Run::begin(&folder.files, 1).await;
    old.write(&[tx(1, 1, &[(1, None)])]).await;
    // As another process has it.
    let mut new = Run::begin(&files_in(&folder.path), 2).await;
    new.write(&[tx(2, 2, &[(2, None), (3, None)])]).await;

    let _ = old.writer.write(&unit(&[tx(2, 2, &[(9, None)])])).await.unwrap();
    let error = old.writer.flush().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced, "{}", error.report());
    let error = anabranch_core::Relay::safe_time(&old.files, 1, second(9)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced, "{}", error.report());
    let error = files_in(&folder.path).take_over(&claim(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced, "{}", error.report());
    let (all, _) = read(&mut *open(&folder.source(), "_unsharded", None).await, 3).await;
    assert_eq!(ids(&all), [1, 2, 3]);
}

/// From the end of every transaction, and from within each, the rest is read, under the same ranks.
#[tokio::test]
async fn a_reader_resumes_anywhere() {
    let folder = Folder::new();
    let mut run = Run::begin(&folder.files.clone().max_file(300), 1).await;
    for n in 1..=6u64 {
        let id = n as i64 * 10;
        run.write(&[tx(n, 3 * n as i64, &[(id, EU), (id + 1, US), (id + 2, EU)])]).await;
    }
    run.safe_time(second(30)).await;
    let source = folder.source();
    let (all, _) = read(&mut *open(&source, "eu", None).await, 12).await;
    let mut reader = open(&source, "eu", None).await;
    let mut ends = Vec::new();
    while ends.len() < 6 {
        let batch = next_batch(&mut *reader).await;
        ends.extend(batch.pieces().iter().filter_map(|p| p.end.clone()));
        if ends.len() < 6 {
            ends.push(batch.end().clone());
            ends.dedup();
        }
    }
    for end in ends {
        let rest: Vec<_> = all.iter().filter(|r| r.rank > end.rank).cloned().collect();
        if rest.is_empty() {
            continue;
        }
        let mut reader = open(&source, "eu", Some(end.clone())).await;
        let mut found = Vec::new();
        while found.len() < rest.len() {
            found.extend(reads(&next_batch(&mut *reader).await).into_iter().filter(|r| r.rank > end.rank));
        }
        assert_eq!(found, rest, "after {}", source.describe(&end));
    }
}

/// A transaction of which more is to come has not ended, also where its file has.
#[tokio::test]
async fn a_transaction_ends_when_it_is_whole() {
    let folder = Folder::new();
    let files = folder.files.clone().max_file(1);
    let mut run = Run::begin(&files, 1).await;
    let parts = units::in_parts(&unit(&[tx(1, 1, &[(1, None), (2, None), (3, None)])]), 1);
    assert_eq!(parts[0].part, Part::First);
    for part in &parts[..2] {
        let _ = run.writer.write(part).await.unwrap();
    }
    let mut reader = open(&folder.source(), "_unsharded", None).await;
    let first = next_batch(&mut *reader).await;
    assert_eq!((first.len(), first.pieces()[0].first, first.pieces()[0].end.clone()), (1, true, None));
    assert_eq!(
        (first.end().rank.clone(), first.end().token.len()),
        (Rank::of_change(&prefix(1), 1), first.end().token.len())
    );
    let _ = run.writer.write(&parts[2]).await.unwrap();
    run.writer.flush().await.unwrap();
    let (rest, end) = read(&mut *reader, 2).await;
    assert_eq!((ids(&rest), end.rank), (vec![2, 3], Rank::of_end(&prefix(1))));
    // A reader that begins within it gives it whole.
    let again = read(&mut *open(&folder.source(), "_unsharded", Some(first.end().clone())).await, 3).await;
    assert_eq!(ids(&again.0), [1, 2, 3]);
}

#[tokio::test]
async fn safe_time_and_marker_follow_the_writer() {
    let folder = Folder::new();
    let source = folder.source();
    let mut reader = open(&source, "eu", None).await;
    let idle = next_batch(&mut *reader).await;
    assert_eq!((idle.len(), idle.safe_time()), (0, None), "a run that nobody has begun is waited for");
    let mut run = Run::begin(&folder.files, 1).await;
    run.safe_time(second(3)).await;
    while next_batch(&mut *reader).await.safe_time() != Some(second(3)) {}
    run.write(&[tx(1, 4, &[(1, EU)])]).await;
    let marks = source.mark().await.unwrap();
    assert_eq!(marks[&PartitionId::new("eu")].rank, Rank::of_end(&prefix(1)));
    let (read, end) = read(&mut *reader, 1).await;
    assert_eq!((ids(&read), &end.rank), (vec![1], &marks[&PartitionId::new("eu")].rank));
    run.safe_time(second(7)).await;
    while next_batch(&mut *reader).await.safe_time() != Some(second(7)) {}
}

#[tokio::test]
async fn processed_files_are_deleted_or_moved() {
    for processed in [Processed::Delete, Processed::Move] {
        let folder = Folder::new();
        let mut run = Run::begin(&folder.files, 1).await;
        for n in 1..=4 {
            run.write(&[tx(n, n as i64, &[(n as i64, EU)])]).await;
        }
        let source = folder.source().processed(processed);
        let mut reader = open(&source, "eu", None).await;
        let names = folder.names("eu");
        let (_, end) = read(&mut *reader, 4).await;
        reader.acknowledge(None).await.unwrap();
        assert_eq!(folder.names("eu"), names, "nothing is durable downstream");
        reader.acknowledge(Some(&end)).await.unwrap();
        let left: Vec<_> = folder.names("eu").into_iter().filter(|n| n.ends_with(".jsonl")).collect();
        assert_eq!(left, Vec::<String>::new());
        if processed == Processed::Move {
            assert_eq!(names_in(&folder.path.join("r/eu/_processed")), names);
        }
        // It goes on behind them, and one that begins anew is told what is gone.
        run.write(&[tx(5, 5, &[(5, EU)])]).await;
        let (more, _) = read(&mut *open(&source, "eu", Some(end)).await, 1).await;
        assert_eq!(ids(&more), [5]);
        let error = open(&source, "eu", None).await.next().await.expect_err("it began after files that are gone");
        assert_eq!(error.kind(), ErrorKind::Fatal);
        assert!(error.report().contains("missing"), "{}", error.report());
    }
}

/// Commit times that go back (clocks do) leave the changes of a shard in their order.
#[tokio::test]
async fn an_earlier_time_stays_in_the_later_window() {
    let folder = Folder::new();
    let mut run = Run::begin(&folder.files, 1).await;
    let timeless = crate::support::Tx { time: None, ..tx(3, 0, &[(3, None)]) };
    run.write(&[tx(1, 11, &[(1, None)]), tx(2, 9, &[(2, None)]), timeless]).await;
    assert_eq!(folder.names("_unsharded").len(), 1);
    let (all, _) = read(&mut *open(&folder.source(), "_unsharded", None).await, 3).await;
    assert_eq!(ids(&all), [1, 2, 3]);
    assert_eq!(all.iter().map(|r| r.time).collect::<Vec<_>>(), [Some(second(11)), Some(second(9)), None]);
}

#[tokio::test]
async fn ranks_that_do_not_grow_are_an_error_unless_time_orders_them() {
    let folder = Folder::new();
    let mut run = Run::begin(&folder.files, 1).await;
    run.write(&[tx(7, 1, &[(1, None)])]).await;
    let error = run.writer.write(&unit(&[tx(3, 2, &[(2, None)])])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fatal);
    assert!(error.report().contains("ranks = \"commit_time\""), "{}", error.report());

    let folder = Folder::new();
    let mut run = Run::begin(&folder.files.clone().ranks(Ranks::CommitTime), 1).await;
    run.write(&[tx(7, 1, &[(1, None)]), tx(3, 2, &[(2, None)])]).await;
    let (all, _) = read(&mut *open(&folder.source(), "_unsharded", None).await, 2).await;
    assert_eq!(ids(&all), [1, 2]);
    assert!(all[0].rank < all[1].rank);
}

#[tokio::test]
async fn a_run_keeps_what_it_began_with() {
    let folder = Folder::new();
    Run::begin(&folder.files, 1).await;
    let other = folder.files.clone().window(Duration::from_secs(20));
    let error = other.take_over(&claim(2)).await.unwrap_err();
    assert_eq!((error.kind(), error.to_string().contains("sink.window_seconds")), (ErrorKind::Config, true));
    let error = folder.files.clone().ranks(Ranks::CommitTime).take_over(&claim(2)).await.unwrap_err();
    assert!(error.to_string().starts_with("sink.ranks"), "{error}");
    let mut another = claim(2);
    another.pipeline = "another".into();
    let error = folder.files.take_over(&another).await.unwrap_err();
    assert!(error.to_string().starts_with("sink.run"), "{error}");
    let mut snapshot = lane(1);
    snapshot.purpose = anabranch_core::LanePurpose::Snapshot;
    let error = folder.files.open(snapshot).await.err().unwrap();
    assert!(error.to_string().contains("never"), "{error}");
    assert_eq!(folder.files.read("another").await.unwrap(), []);
}

/// A truncate concerns all shards or none.
#[tokio::test]
async fn a_truncate_without_a_shard_is_refused_in_a_sharded_run() {
    use anabranch_core::{BatchBuilder, Op, Transaction, TruncateOptions, UnitSlice};
    let folder = Folder::new();
    let mut run = Run::begin(&folder.files, 1).await;
    run.write(&[tx(1, 1, &[(1, EU)])]).await;
    let mut batch = BatchBuilder::new(PartitionId::new("slot"));
    let schema = batch.schema(&table());
    let (rank, commit_time) = (prefix(2).into(), Some(second(2)));
    batch.begin(Transaction { rank, commit_time, ..Transaction::default() }, 1);
    batch.change(Op::Truncate(TruncateOptions::default()), schema);
    let end = Position::new(Rank::of_end(&prefix(2)), "2");
    batch.commit(end.clone());
    let batch = std::sync::Arc::new(batch.finish(end, None).unwrap());
    let slices = vec![UnitSlice { batch, changes: anabranch_core::Selection::Range(0..1) }];
    let unit = anabranch_core::Unit { slices, ..unit(&[tx(2, 2, &[])]) };
    let error = run.writer.write(&unit).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected, "{}", error.report());
    run.write(&[tx(3, 3, &[(2, EU)])]).await;
    let (all, _) = read(&mut *open(&folder.source(), "eu", None).await, 2).await;
    assert_eq!(ids(&all), [1, 2]);
}
