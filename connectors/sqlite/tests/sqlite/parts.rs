//! A transaction in parts is seen whole or not at all, and holds no lock while it grows.

use anabranch_core::{Checkpoint, Checkpointer, Durability, ErrorKind, OldImage};

use crate::support::*;

#[tokio::test]
async fn nothing_is_seen_before_the_last_part() {
    let target = Target::new(ITEMS);
    let look = target.look();
    let mut writer = target.writer().await;
    let t = items();
    let units = parts(
        1,
        &[
            &[Do::Insert(t.clone(), item(1, "a", "x")), Do::Insert(t.clone(), item(2, "b", "y"))],
            &[Do::Update(t.clone(), row([1.into(), UNCHANGED, "later".into()]))],
            &[Do::Delete(t.clone(), OldImage::Key, row([2.into(), UNCHANGED, UNCHANGED]))],
        ],
    );
    for unit in &units[..2] {
        assert_eq!(writer.write(unit).await.unwrap().durability, Durability::Accepted);
        assert!(rows(&look, "SELECT * FROM items").is_empty());
        // The write lock is free: a checkpoint can be saved in the same file.
        let saved = target.sqlite.save(&format!("p{:?}", unit.id), None, &Checkpoint::default()).await.unwrap();
        assert!(matches!(saved, anabranch_core::Saved::Committed(_)));
    }
    assert_eq!(writer.write(&units[2]).await.unwrap().durability, Durability::Durable);
    assert_eq!(rows(&look, "SELECT * FROM items"), ["1|a|later"]);
    assert_eq!(target.rows("SELECT changes, transactions FROM anabranch_lane"), ["4|1"]);
}

#[tokio::test]
async fn a_swap_over_two_parts() {
    let target = Target::new(ITEMS);
    target.look().execute_batch("INSERT INTO items VALUES (1, 'a', 'x'), (2, 'b', 'y')").unwrap();
    let mut writer = target.writer().await;
    let t = items();
    let first = [Do::Update(t.clone(), row([1.into(), "b".into(), UNCHANGED]))];
    let last = [Do::Update(t.clone(), row([2.into(), "a".into(), UNCHANGED]))];
    for unit in parts(1, &[&first, &last]) {
        let _ = writer.write(&unit).await.unwrap();
    }
    assert_eq!(target.rows("SELECT * FROM items ORDER BY id"), ["1|b|x", "2|a|y"]);
}

#[tokio::test]
async fn parts_that_were_left_are_forgotten() {
    let target = Target::new(ITEMS);
    let mut writer = target.writer().await;
    let t = items();
    let left = parts(1, &[&[Do::Insert(t.clone(), item(1, "a", "x"))], &[]]);
    let _ = writer.write(&left[0]).await.unwrap();
    let again = parts(2, &[&[Do::Insert(t.clone(), item(2, "b", "y"))], &[Do::Insert(t.clone(), item(3, "c", "z"))]]);
    for unit in &again {
        let _ = writer.write(unit).await.unwrap();
    }
    assert_eq!(target.rows("SELECT id FROM items ORDER BY id"), ["2", "3"]);
    let error = writer.write(&again[1]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fatal);
}

#[tokio::test]
async fn a_rejected_part_leaves_nothing() {
    let target = Target::new(ITEMS);
    let mut writer = target.writer().await;
    let t = items();
    let units = parts(
        1,
        &[
            &[Do::Insert(t.clone(), item(1, "a", "x"))],
            &[Do::Update(t.clone(), row([9.into(), UNCHANGED, "y".into()]))],
            &[Do::Insert(t.clone(), item(2, "b", "y"))],
        ],
    );
    for unit in &units[..2] {
        let _ = writer.write(unit).await.unwrap();
    }
    assert_eq!(writer.write(&units[2]).await.unwrap_err().kind(), ErrorKind::Rejected);
    assert!(target.rows("SELECT * FROM items").is_empty());
}
