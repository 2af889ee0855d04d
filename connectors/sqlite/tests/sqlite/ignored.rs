//! Triggers with RAISE(IGNORE): SQLite leaves the row out and goes on, without an error.

use anabranch_core::{ErrorKind, OldImage};

use crate::support::*;

async fn refused(target: &Target, changes: &[Do]) {
    let before = target.rows("SELECT * FROM items ORDER BY id");
    let error = apply(target, changes).await.expect_err("a row was left out in silence");
    assert_eq!(error.kind(), ErrorKind::Rejected, "{}", error.report());
    assert!(error.report().contains("a trigger of the target ignored the row"), "{}", error.report());
    assert_eq!(target.rows("SELECT * FROM items ORDER BY id"), before);
}

#[tokio::test]
async fn a_delete_that_a_trigger_ignores_is_refused() {
    let target = Target::new(ITEMS);
    target
        .look()
        .execute_batch(
            "INSERT INTO items VALUES (1, 'a', 'x'), (2, 'b', 'kept');
             CREATE TRIGGER keep BEFORE DELETE ON items WHEN OLD.note = 'kept' BEGIN SELECT RAISE(IGNORE); END",
        )
        .unwrap();
    let t = items();
    let gone = |id: i64| Do::Delete(t.clone(), OldImage::Key, row([id.into(), UNCHANGED, UNCHANGED]));
    refused(&target, &[gone(1), gone(2)]).await;
    refused(&target, &[Do::Truncate(t.clone())]).await;
    // The row with key 2 becomes 3.
    let old = row([2.into(), UNCHANGED, UNCHANGED]);
    refused(&target, &[Do::Change(t.clone(), OldImage::Key, old, item(3, "b", "kept"))]).await;
    // By way of the shadows, for two rows swap a unique value.
    refused(&target, &[Do::Update(t.clone(), item(1, "b", "x")), Do::Update(t.clone(), item(2, "a", "kept"))]).await;
    // One that is not there is no matter.
    apply(&target, &[gone(1), gone(7)]).await.unwrap();
    assert_eq!(target.rows("SELECT * FROM items"), ["2|b|kept"]);
}

#[tokio::test]
async fn a_row_that_a_trigger_ignores_on_its_way_back_is_refused() {
    let target = Target::new(ITEMS);
    target
        .look()
        .execute_batch(
            "INSERT INTO items VALUES (1, 'a', 'x'), (2, 'b', 'y');
             CREATE TRIGGER keep BEFORE INSERT ON items WHEN NEW.note = 'out' BEGIN SELECT RAISE(IGNORE); END",
        )
        .unwrap();
    let t = items();
    refused(&target, &[Do::Insert(t.clone(), item(3, "c", "out"))]).await;
    // Updates that meet no trigger by themselves; but swapping rows are moved out and inserted again.
    let swap = [
        Do::Update(t.clone(), row([1.into(), "b".into(), "out".into()])),
        Do::Update(t.clone(), row([2.into(), "a".into(), UNCHANGED])),
    ];
    refused(&target, &swap).await;
}
