//! The checkpointer and the dead-letter store.

use std::sync::Arc;

use anabranch_core::{
    Checkpoint, Checkpointer, DeadLetter, DeadLetterStore, LetterClass, LetterState, Op, PartitionId, Saved, Value,
    Version,
};
use anabranch_sqlite::{Sqlite, SqliteConfig};

use crate::support::*;

fn numbered(epoch: u64) -> Checkpoint {
    Checkpoint { epoch, ..Checkpoint::default() }
}

#[tokio::test]
async fn of_two_who_save_over_one_version_one_succeeds() {
    let target = Target::new("");
    // Two files handles that know nothing of each other.
    let (a, b) = (target.sqlite.checkpointer(), Sqlite::open(&target.path).checkpointer());
    assert_eq!(a.load(PIPELINE).await.unwrap(), None);
    assert_eq!(a.save(PIPELINE, None, &numbered(1)).await.unwrap(), Saved::Committed(Version(1)));
    assert_eq!(b.save(PIPELINE, None, &numbered(2)).await.unwrap(), Saved::Conflict);
    assert_eq!(b.load(PIPELINE).await.unwrap(), Some((Version(1), numbered(1))));
    assert_eq!(b.save(PIPELINE, Some(Version(1)), &numbered(3)).await.unwrap(), Saved::Committed(Version(2)));
    assert_eq!(a.save(PIPELINE, Some(Version(1)), &numbered(4)).await.unwrap(), Saved::Conflict);
    assert_eq!(a.load(PIPELINE).await.unwrap(), Some((Version(2), numbered(3))));
    assert_eq!(a.load("another").await.unwrap(), None);
}

#[test]
fn compare_and_set_from_threads() {
    let target = Target::new("");
    let winners: Vec<usize> = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..4)
            .map(|_| {
                let path = target.path.clone();
                scope.spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                    let store = Sqlite::open(path);
                    runtime.block_on(async {
                        let mut won = 0;
                        while won < 25 {
                            let version = store.load(PIPELINE).await.unwrap().map(|(v, _)| v);
                            let next = numbered(version.map_or(1, |v| v.0 + 1));
                            won += usize::from(store.save(PIPELINE, version, &next).await.unwrap() != Saved::Conflict);
                        }
                        won
                    })
                })
            })
            .collect();
        racers.into_iter().map(|r| r.join().unwrap()).collect()
    });
    // Every success took one version: none was lost, none counted twice.
    assert_eq!(winners.iter().sum::<usize>(), 100);
    assert_eq!(target.rows("SELECT version, body ->> 'epoch' FROM anabranch_checkpoint"), ["100|100"]);
}

fn letter(id: &str, state: LetterState) -> DeadLetter {
    DeadLetter {
        id: id.to_owned(),
        class: LetterClass::Severe,
        state,
        reason: "UNIQUE constraint failed".to_owned(),
        op: Op::Insert,
        schema: (*items()).clone(),
        old: None,
        new: Some(vec![Value::Int(1), Value::Float(f64::INFINITY), Value::Bytes(vec![0, 255].into())]),
        shard: None,
        partition: PartitionId::new("slot"),
        position: position(1),
        commit_time: None,
        attempts: 1,
        last_attempt: None,
        parked: None,
        lane: None,
    }
}

#[tokio::test]
async fn dead_letters_are_kept_replaced_and_listed() {
    use LetterState::*;
    let target = Target::new("");
    let letters = target.sqlite.dead_letters();
    assert_eq!(letters.open_count(PIPELINE).await.unwrap(), 0);
    assert!(letters.list(PIPELINE, &[Open], None, 10).await.unwrap().is_empty());
    assert!(letters.get(PIPELINE, "1").await.unwrap().is_none());

    let all = [letter("1", Open), letter("2", Held), letter("3", Open), letter("4", Skipped)];
    letters.put(PIPELINE, &all).await.unwrap();
    letters.put(PIPELINE, &all[..2]).await.unwrap();
    letters.put("another", &[letter("9", Open)]).await.unwrap();
    assert_eq!(letters.open_count(PIPELINE).await.unwrap(), 3);
    assert_eq!(letters.get(PIPELINE, "2").await.unwrap(), Some(all[1].clone()));

    let again = Arc::new(Sqlite::open(&target.path).dead_letters());
    let ids = |list: Vec<DeadLetter>| list.into_iter().map(|l| l.id).collect::<Vec<_>>();
    assert_eq!(ids(again.list(PIPELINE, &[Open], None, 10).await.unwrap()), ["1", "3"]);
    assert_eq!(ids(again.list(PIPELINE, &[Open, Held, Skipped], Some("1"), 2).await.unwrap()), ["2", "3"]);
    assert!(again.list(PIPELINE, &[], None, 10).await.unwrap().is_empty());
    again.put(PIPELINE, &[letter("1", Applied)]).await.unwrap();
    assert_eq!(again.open_count(PIPELINE).await.unwrap(), 2);
    assert_eq!(
        target.rows("SELECT DISTINCT state, class FROM anabranch_dead_letter WHERE id = '1'"),
        ["applied|severe"]
    );
}

#[test]
fn configuration() {
    let read = |json: &str| serde_json::from_str::<SqliteConfig>(json);
    let config = read(r#"{"path": "state.db", "busy_timeout_ms": 100}"#).unwrap();
    assert!(Sqlite::try_from(config).is_ok());
    assert!(read(r#"{"path": "state.db", "pth": 1}"#).is_err());
    let error = Sqlite::try_from(read(r#"{"path": ""}"#).unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "sink.path: is empty (name the SQLite file)");
}
