//! The checks.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::task::Poll;

use anabranch_core::{
    ChangeReader, Checkpoint, Chunk, GoesOn, HEARTBEAT, Next, Position, Snapshot, SourceIdentity, StartFrom,
    TableSnapshot,
};

use super::Statement;
use super::story::{PATIENCE, Story, Transcript, apply, next_batch, same, statement};

/// What is committed is read, in order.
pub(super) async fn every_statement(story: &mut Story<'_>) {
    let expected = story.commit_some(9).await;
    story.read(&expected).await;
    // A reader that is open already gets what comes.
    let at = story.at.clone();
    let mut reader = story.open(at).await;
    let expected = story.commit_some(3).await;
    let mut transcript = Transcript::default();
    while transcript.ended.len() < expected.len() {
        transcript.add(&next_batch(&mut *reader).await);
    }
    same(&transcript.ended, &expected);
    story.done(reader, &transcript.ended).await;
}

/// From the end of any transaction that was not acknowledged a reader gives the rest, under the same ranks.
pub(super) async fn a_reader_resumes_anywhere(story: &mut Story<'_>) {
    let expected = story.commit_some(12).await;
    let mut reader = story.open(story.at.clone()).await;
    let mut transcript = Transcript::default();
    while transcript.ended.len() < expected.len() {
        transcript.add(&next_batch(&mut *reader).await);
    }
    let all = transcript.ended;
    same(&all, &expected);
    // What is acknowledged was recorded before: a source may refuse to prepare for less.
    story.at = Some(all[3].end.clone());
    reader.acknowledge(Some(&all[3].end)).await.expect("acknowledge");
    drop(reader);

    for from in [3, 4, 7, 10] {
        let mut reader = story.open(Some(all[from].end.clone())).await;
        let mut transcript = Transcript::default();
        while transcript.ended.len() < all.len() - from - 1 {
            transcript.add(&next_batch(&mut *reader).await);
        }
        assert_eq!(transcript.ended, all[from + 1..], "after a reader resumed from transaction {from}");
        // Nothing moved: that takes nothing away.
        reader.acknowledge(None).await.expect("acknowledge nothing");
    }
    // A position is resumed from when all before it is durable, so the source may have forgotten that.
    story.at = Some(all[10].end.clone());
    story.read(&expected[11..]).await;
}

/// Within the first transaction of a partition no place is known yet to resume from but the
/// partition's start, which an empty token means. What was given may be given again.
pub(super) async fn an_empty_token_is_the_start(story: &mut Story<'_>) {
    let expected = story.commit_some(2).await;
    let mut reader = story.open(None).await;
    let mut transcript = Transcript::default();
    while transcript.ended.len() < expected.len() {
        transcript.add(&next_batch(&mut *reader).await);
    }
    drop(reader);
    let all = transcript.ended;
    same(&all, &expected);

    let within = Position::new(all[0].ranks[1].clone(), Vec::new());
    story.at = Some(within.clone());
    let mut reader = story.open(story.at.clone()).await;
    reader.acknowledge(Some(&within)).await.expect("acknowledge a place without a token");
    let mut rest = Vec::new();
    loop {
        let batch = next_batch(&mut *reader).await;
        let new = batch.changes().filter(|c| c.rank() > within.rank);
        rest.extend(new.filter_map(|c| Some((c.rank(), statement(c)?))));
        if batch.end().rank >= all[1].end.rank {
            break;
        }
    }
    let given = all.iter().flat_map(|t| t.ranks.iter().cloned().zip(t.statements.iter().cloned()));
    let expected: Vec<_> = given.filter(|(rank, _)| *rank > within.rank).collect();
    assert_eq!(rest, expected, "after a reader resumed within the first transaction");
    story.done(reader, &all).await;
}

/// Checking finds what preparing finds, and that there is nothing left to do.
pub(super) async fn a_check_finds_what_is_prepared(story: &mut Story<'_>) {
    let source = story.target.connect().await;
    let statements = source.check(story.checkpoint().as_ref()).await.expect("check");
    assert_eq!(statements, Vec::<String>::new(), "what would be run, though the source is prepared");
    assert!(source.tables().await.expect("tables").iter().any(|t| t.name == story.target.table()));
    let other = SourceIdentity(story.identity.0.keys().map(|key| (key.clone(), "another".to_owned())).collect());
    let foreign = Checkpoint { identity: other, ..story.checkpoint().unwrap_or_default() };
    assert!(source.check(Some(&foreign)).await.is_err(), "the checkpoint of another source is accepted");
}

/// However often a call is polled before it is dropped.
pub(super) async fn a_dropped_call_loses_nothing(story: &mut Story<'_>) {
    let expected = story.commit_some(12).await;
    let mut reader = story.open(story.at.clone()).await;
    let mut transcript = Transcript::default();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut polls = 0;
    while transcript.ended.len() < expected.len() {
        assert!(tokio::time::Instant::now() < deadline, "calls that are dropped get nowhere");
        polls = polls % 7 + 1;
        match poll_times(&mut *reader, polls).await {
            Some(Ok(Next::Batch(batch))) => transcript.add(&batch),
            Some(other) => panic!("the reader gave {other:?}"),
            // Lets the sockets move on.
            None => tokio::task::yield_now().await,
        }
    }
    same(&transcript.ended, &expected);
    story.done(reader, &transcript.ended).await;
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
            // Polled again at once: what is awaited first may be done by then.
            context.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await
}

/// It may come in several batches; numbers go on over them.
pub(super) async fn a_long_transaction_is_numbered_through(story: &mut Story<'_>) {
    let mut statements = Vec::new();
    for _ in 0..5000 {
        let id = story.fresh_id();
        statements.push(Statement::Insert(id, "x".repeat(50)));
    }
    let long = story.commit(statements).await;
    let after = story.commit_some(1).await.remove(0);
    let read = story.read(&[long, after]).await;
    let prefix = |rank: &anabranch_core::Rank| rank.as_bytes()[..rank.as_bytes().len() - 8].to_vec();
    let first = &read[0].ranks[0];
    assert!(read[0].ranks.iter().all(|rank| prefix(rank) == prefix(first)), "one transaction has one rank prefix");
    assert_ne!(prefix(first), prefix(&read[1].ranks[0]), "two transactions have two rank prefixes");
}

/// An empty batch comes in time, and does not go back.
pub(super) async fn an_idle_source_gives_heartbeats(story: &mut Story<'_>) {
    let mut reader = story.open(story.at.clone()).await;
    let mut transcript = Transcript::default();
    for _ in 0..2 {
        let next = tokio::time::timeout(2 * HEARTBEAT, reader.next()).await;
        match next.expect("a heartbeat within twice the time that acknowledgements have").expect("next") {
            Next::Batch(batch) => transcript.add(&batch),
            other => panic!("the reader gave {other:?}"),
        }
    }
    same(&transcript.ended, &[]);
    story.done(reader, &[]).await;
}

/// What was committed before a mark lies before it, and the mark is reached without another commit.
pub(super) async fn a_marker_is_reached(story: &mut Story<'_>) {
    if story.source.marker().is_none() {
        return;
    }
    for count in [3, 0] {
        let expected = story.commit_some(count).await;
        let mut reader = story.open(story.at.clone()).await;
        let source = story.source.clone();
        let marks = source.marker().expect("a marker").mark().await.expect("mark");
        let mark = marks.get(&story.partition.id).expect("a mark for the partition").clone();
        let mut transcript = Transcript::default();
        loop {
            let batch = next_batch(&mut *reader).await;
            transcript.add(&batch);
            if batch.end().rank >= mark.rank {
                break;
            }
        }
        same(&transcript.ended, &expected);
        story.done(reader, &transcript.ended).await;
    }
}

/// Copied rows and the changes after them make up the table: no change is missing or there twice.
pub(super) async fn a_snapshot_hands_over_exactly(story: &mut Story<'_>) {
    let source = story.source.clone();
    let Some(snapshotter) = source.snapshotter() else { return };
    // Changes that the stream has not been read for, but the copy has.
    story.commit_some(4).await;
    let copied_rows = story.rows.clone();
    let tables = source.tables().await.expect("tables");
    let tables: Vec<_> = tables.into_iter().filter(|t| t.name == story.target.table()).collect();
    let snapshot = snapshotter.begin(&tables).await.expect("begin");
    let after = story.commit_some(4).await;

    let mut rows = BTreeMap::new();
    for chunk in snapshot.chunks() {
        for s in copied(&*snapshot, chunk).await {
            apply(&mut rows, &s);
        }
    }
    assert_eq!(rows, copied_rows, "the rows that were copied (left) are those of the point");

    let copy = TableSnapshot { point: snapshot.point(), ..TableSnapshot::default() };
    drop(snapshot);
    let snapshots = BTreeMap::from([(story.target.table(), copy)]);
    let mut reader = story.open_from(StartFrom { position: story.at.clone(), snapshots }).await;
    let mut transcript = Transcript::default();
    while transcript.ended.len() < after.len() {
        transcript.add(&next_batch(&mut *reader).await);
    }
    same(&transcript.ended, &after);
    transcript.ended.iter().flat_map(|t| &t.statements).for_each(|s| apply(&mut rows, s));
    assert_eq!(rows, story.rows, "the copy and the changes after it (left)");
    story.done(reader, &transcript.ended).await;
}

/// What a chunk of a copy does.
async fn copied(snapshot: &dyn Snapshot, chunk: &Chunk) -> Vec<Statement> {
    let mut reader = snapshot.open(chunk).await.expect("open a chunk");
    let mut statements = Vec::new();
    loop {
        match reader.next().await.unwrap_or_else(|e| panic!("a chunk: {}", e.report())) {
            Next::Batch(batch) => statements.extend(batch.changes().filter_map(statement)),
            Next::Closed { children } => {
                assert_eq!(children, [], "children of a chunk");
                return statements;
            }
            Next::Stopped => panic!("a chunk stopped"),
        }
    }
}

/// A copy of which a part was done goes on under a later point, twice: then the table is as it is at the
/// last one. Only of a source that can.
pub(super) async fn an_interrupted_copy_goes_on(story: &mut Story<'_>) {
    let source = story.source.clone();
    let Some(snapshotter) = source.snapshotter() else { return };
    let tables = source.tables().await.expect("tables");
    let tables: Vec<_> = tables.into_iter().filter(|t| t.name == story.target.table()).collect();
    let name = story.target.table();
    let first = snapshotter.begin(&tables).await.expect("begin");
    let mut copy = TableSnapshot { point: first.point(), plan: first.plan(&name), ..TableSnapshot::default() };
    copy.chunks = first.chunks().len() as u32;
    let mut rows = BTreeMap::new();
    for chunk in &first.chunks()[..first.chunks().len().div_ceil(2)] {
        copied(&*first, chunk).await.iter().for_each(|s| apply(&mut rows, s));
        copy.done_chunks.insert(chunk.index);
        copy.done += 1;
    }
    drop(first);
    let mut streamed = Vec::new();
    let mut point = copy.point.clone();
    for stops in [true, false] {
        streamed.extend(story.commit_some(6).await);
        let before = BTreeMap::from([(name.clone(), copy.clone())]);
        let resumed = snapshotter.resume(&tables, &before).await.expect("resume");
        let Some((GoesOn::But(changed), snapshot)) = resumed.map(|s| (s.goes_on(&name), s)) else {
            println!("skipped: the source does not go on in the middle of a table");
            story.read(&streamed).await;
            return;
        };
        assert_eq!(snapshot.chunks().len() as u32, copy.chunks, "as many chunks as before");
        for chunk in &changed.keys {
            for s in copied(&*snapshot, chunk).await {
                let Statement::Delete(id) = s else { panic!("{s:?} among deletes of keys") };
                rows.remove(&id);
            }
        }
        let expected = story.rows.clone();
        // What is left of the old point was not changed.
        assert!(rows.iter().all(|(id, body)| expected.get(id) == Some(body)), "{rows:?} is no part of {expected:?}");
        if stops {
            // Interrupted before anything else: the next finds these changes again.
            continue;
        }
        point = snapshot.point();
        let left = snapshot.chunks().iter().filter(|c| !copy.done_chunks.contains(&c.index));
        for chunk in left.chain(&changed.rows) {
            for s in copied(&*snapshot, chunk).await {
                let Statement::Insert(id, body) = s else { panic!("{s:?} among rows") };
                let there = rows.insert(id, body.clone());
                assert!(there.is_none_or(|there| there == body), "another row {id}");
            }
        }
        assert_eq!(rows, expected, "the copy that went on (left) is not that of its point");
    }
    let after = story.commit_some(3).await;
    let copy = TableSnapshot { point, finished: true, ..TableSnapshot::default() };
    let snapshots = BTreeMap::from([(name, copy)]);
    let mut reader = story.open_from(StartFrom { position: story.at.clone(), snapshots }).await;
    let mut transcript = Transcript::default();
    while transcript.ended.len() < after.len() {
        transcript.add(&next_batch(&mut *reader).await);
    }
    same(&transcript.ended, &after);
    story.done(reader, &transcript.ended).await;
}

/// Another handle finds the same source, and resumes without a gap.
pub(super) async fn the_identity_stays(story: &mut Story<'_>) {
    let identity = story.identity.clone();
    let again = story.target.connect().await.prepare(story.checkpoint().as_ref()).await.expect("prepare to resume");
    assert_eq!(again, identity, "the identity changes");
    let expected = story.commit_some(1).await;
    story.read(&expected).await;
}
