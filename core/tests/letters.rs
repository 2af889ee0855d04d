//! Open dead letters: tried again, skipped meanwhile, marked by several.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anabranch_core::dead_letter::{DeadLetterStore, MemoryDeadLetters};
use anabranch_core::memory::MemorySink;
use anabranch_core::pipeline::OnRejected;
use anabranch_core::{
    DeadLetter, LetterClass, LetterState, Op, PartitionId, Position, Rank, SourceOrder, Timestamp, Value,
};
use anabranch_testkit::faults::{FaultySink, Schedule};
use anabranch_testkit::scripted::{Scripted, Tx, items};
use scripted::{LONG, ids, scripted, start};

mod scripted;

/// An insert of the item with this number, refused before.
fn letter(number: u64, class: LetterClass) -> DeadLetter {
    let rank = Rank::of_change(&number.to_be_bytes(), 1);
    DeadLetter {
        id: format!("p:{rank:?}"),
        class,
        state: LetterState::Open,
        reason: "refused".to_owned(),
        op: Op::Insert,
        schema: items(),
        old: None,
        new: Some(vec![Value::Int(number as i64), Value::Text("x".to_owned())]),
        shard: None,
        partition: PartitionId::new("p"),
        position: Position::new(rank, &b""[..]),
        commit_time: Some(Timestamp::from_micros(number as i64)),
        attempts: 1,
        last_attempt: None,
        parked: None,
        lane: None,
    }
}

/// Polls until it is so.
async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let polls = async {
        while !so().await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(LONG.unwrap(), polls).await.expect(what);
}

/// More letters than are tried in one pass need a person; the last one would go through.
#[tokio::test(start_paused = true)]
async fn letters_that_cannot_be_tried_do_not_keep_later_ones_from_being_tried() {
    let letters = MemoryDeadLetters::new();
    let severe: Vec<_> = (1..=5_100).map(|n| letter(n, LetterClass::Severe)).collect();
    letters.put("p", &severe).await.unwrap();
    letters.put("p", &[letter(9_000, LetterClass::Retry)]).await.unwrap();
    let sink = MemorySink::new();
    let source = Scripted::new(SourceOrder::Transactions, &["p"]);
    let builder = scripted(&source, sink.clone()).dead_letters(Arc::new(letters)).on_rejected(OnRejected::DeadLetter);
    let running = start(builder).await;
    until("the letter behind them is applied", async || ids(&sink) == [9_000]).await;
    running.stop().await.unwrap();
}

/// The operator decides while the retry of the same letter is under way, and failing.
#[tokio::test(start_paused = true)]
async fn a_skip_during_a_failing_retry_stays() {
    let (letters, tries) = (MemoryDeadLetters::new(), Arc::new(AtomicU64::new(0)));
    letters.put("p", &[letter(7, LetterClass::Retry)]).await.unwrap();
    let sink = MemorySink::new();
    let (store, counted) = (letters.clone(), Arc::clone(&tries));
    let faulty = FaultySink::new(Arc::new(sink.clone()), Schedule::new()).refuses(move |change| {
        if change.op() != Op::Insert
            || !matches!(change.new_row().map(|r| r.get(0)), Some(anabranch_core::ValueRef::Int(7)))
        {
            return false;
        }
        if counted.fetch_add(1, Ordering::Relaxed) == 0 {
            let skipped =
                DeadLetter { state: LetterState::Skipped, class: LetterClass::Skip, ..letter(7, LetterClass::Retry) };
            futures_util::FutureExt::now_or_never(store.put("p", &[skipped])).unwrap().unwrap();
        }
        true
    });
    let source = Scripted::new(SourceOrder::Transactions, &["p"]);
    let builder = scripted(&source, faulty).dead_letters(Arc::new(letters.clone())).on_rejected(OnRejected::DeadLetter);
    let running = start(builder).await;
    until("the letter is tried", async || tries.load(Ordering::Relaxed) > 0).await;
    // What comes behind it goes through: nobody waits for the letter any more.
    source.give("p", &[Tx::new(20).update(7, "y")]);
    source.give("p", &[Tx::new(21).insert(8, "z")]);
    until("later changes are applied", async || ids(&sink).contains(&8)).await;
    let id = letter(7, LetterClass::Retry).id;
    assert_eq!(letters.get("p", &id).await.unwrap().unwrap().state, LetterState::Skipped);
    running.stop().await.unwrap();
}
