//! Dead letters in their folders.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anabranch_core::{
    Column, DataType, DeadLetter, DeadLetterStore, LetterClass, LetterState, Op, PartitionId, Position, Rank,
    TableName, TableSchema, Timestamp,
};
use anabranch_files::FilesDeadLetters;

const ALL: &[LetterState] = &[LetterState::Open, LetterState::Held, LetterState::Applied, LetterState::Skipped];

fn letter(n: u64, class: LetterClass, state: LetterState) -> DeadLetter {
    let rank = Rank::of_change(&n.to_be_bytes(), 1);
    let columns = vec![Column::new("id", DataType::Int64)];
    DeadLetter {
        id: format!("slot:{rank:?}"),
        class,
        state,
        reason: "no such parent".to_owned(),
        op: Op::Update,
        schema: TableSchema { name: TableName::new("public", "orders"), columns, key: vec![0] },
        old: Some(vec![7.into()]),
        new: Some(vec![8.into()]),
        shard: Some("eu".to_owned()),
        partition: PartitionId::new("slot"),
        position: Position::new(rank, ""),
        // In the last week of a year of the calendar that is the first of the next year of weeks.
        commit_time: Some(Timestamp::from_micros(1_735_559_999_000_000)),
        attempts: 0,
        last_attempt: None,
        parked: None,
        lane: None,
    }
}

/// All files below a folder, in order.
fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path.strip_prefix(folder).unwrap().to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn folders_tell_class_and_state_and_time() {
    let folder = tempfile::tempdir().unwrap();
    let store = FilesDeadLetters::new(folder.path().to_path_buf());
    let put = [
        letter(1, LetterClass::Retry, LetterState::Open),
        letter(2, LetterClass::Retry, LetterState::Held),
        letter(3, LetterClass::Severe, LetterState::Open),
        letter(4, LetterClass::Skip, LetterState::Skipped),
        letter(5, LetterClass::Filtered, LetterState::Skipped),
        letter(6, LetterClass::Retry, LetterState::Applied),
        DeadLetter { commit_time: None, ..letter(7, LetterClass::Severe, LetterState::Open) },
    ];
    store.put("orders", &put).await.unwrap();
    let id = |n: u64| format!("slot=3a{n:016x}0000000000000001.000001");
    let minute = "2024/12/30/11/59";
    assert_eq!(
        files(&folder.path().join("orders")),
        [
            format!("applied/{minute}/{}.applied.jsonl", id(6)),
            format!("filtered/{minute}/{}.skipped.jsonl", id(5)),
            format!("retry/{minute}/{}.open.jsonl", id(1)),
            format!("retry/{minute}/{}.held.jsonl", id(2)),
            format!("severe/{minute}/{}.open.jsonl", id(3)),
            format!("severe/undated/{}.open.jsonl", id(7)),
            format!("skip/{minute}/{}.skipped.jsonl", id(4)),
        ]
    );
    let text = fs::read_to_string(folder.path().join(format!("orders/severe/{minute}/{}.open.jsonl", id(3)))).unwrap();
    assert_eq!(text.lines().count(), 1);
    assert!(text.contains("no such parent") && text.contains("\"old\":[{\"int\":7}]"), "{text}");
    assert_eq!(store.open_count("orders").await.unwrap(), 4);

    // Its retries are used up: it moves.
    let severe = DeadLetter { attempts: 10, ..letter(1, LetterClass::Severe, LetterState::Open) };
    store.put("orders", std::slice::from_ref(&severe)).await.unwrap();
    let now = files(&folder.path().join("orders"));
    let moved = format!("severe/{minute}/{}2.open.jsonl", id(1).strip_suffix('1').unwrap());
    assert!(now.contains(&moved), "{now:?}");
    assert_eq!(store.get("orders", &severe.id).await.unwrap(), Some(severe));
    assert_eq!(now.len(), 7);
}

/// A writer died after it had put the new form and before it removed the old one.
#[tokio::test]
async fn a_letter_that_was_left_twice_counts_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = FilesDeadLetters::new(folder.path().to_path_buf()).names_in_memory(1);
    let open = letter(1, LetterClass::Retry, LetterState::Open);
    store.put("orders", std::slice::from_ref(&open)).await.unwrap();
    let before = files(&folder.path().join("orders"));
    let old = fs::read(folder.path().join("orders").join(&before[0])).unwrap();
    let applied = letter(1, LetterClass::Retry, LetterState::Applied);
    store.put("orders", std::slice::from_ref(&applied)).await.unwrap();
    fs::write(folder.path().join("orders").join(&before[0]), old).unwrap();

    assert_eq!(store.open_count("orders").await.unwrap(), 0);
    assert_eq!(store.list("orders", ALL, None, 9).await.unwrap(), std::slice::from_ref(&applied));
    assert_eq!(store.list("orders", &[LetterState::Open], None, 9).await.unwrap(), []);
    // The next put of it tidies up.
    store.put("orders", std::slice::from_ref(&applied)).await.unwrap();
    assert_eq!(files(&folder.path().join("orders")).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writers_at_the_same_time_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_path_buf();
    let tasks: Vec<_> = (0..8u64)
        .map(|task| {
            let store = Arc::new(FilesDeadLetters::new(path.clone()));
            tokio::spawn(async move {
                for n in 0..10 {
                    let state = if task % 2 == 0 { LetterState::Open } else { LetterState::Skipped };
                    // One of everybody, and one of its own.
                    let letters = [
                        letter(n, LetterClass::Severe, state),
                        letter(1000 * (task + 1) + n, LetterClass::Retry, LetterState::Open),
                    ];
                    store.put("orders", &letters).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let store = FilesDeadLetters::new(path);
    let all = store.list("orders", ALL, None, 1000).await.unwrap();
    assert_eq!(all.len(), 10 + 80);
    assert!(all.is_sorted_by_key(|l| l.id.clone()));
    let open = all.iter().filter(|l| l.state.is_open()).count() as u64;
    assert_eq!(store.open_count("orders").await.unwrap(), open);
}

#[tokio::test]
async fn a_damaged_letter_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let store = FilesDeadLetters::new(folder.path().to_path_buf());
    let open = letter(1, LetterClass::Retry, LetterState::Open);
    store.put("orders", std::slice::from_ref(&open)).await.unwrap();
    let name = files(&folder.path().join("orders")).remove(0);
    fs::write(folder.path().join("orders").join(&name), "{").unwrap();
    let error = store.get("orders", &open.id).await.unwrap_err();
    assert!(error.report().contains(&name), "{}", error.report());
}
