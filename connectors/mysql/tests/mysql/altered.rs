//! Tables that somebody alters by hand while a writer is open.

use anabranch_core::{DataType as T, ErrorKind};

use crate::server::{Do, Maker, TEXT, database, table};
use crate::{row, server};

/// The server rounds, and cuts off, without an error: the new types must be judged before a row is written.
#[tokio::test]
async fn a_column_that_was_narrowed_takes_nothing_before_it_is_judged_again() {
    let server = server!();
    let narrowed = [
        ("decimal(12,4)", T::Decimal { precision: Some(12), scale: Some(4) }, "decimal(12,1)", "1.2345", "1.2345"),
        ("datetime(6)", T::Timestamp, "datetime", "2026-11-21 10:20:30.654321", "2026-11-21 10:20:30.654321"),
        ("double", T::Float64, "float", "0.1234567890123", "0.1234567890123"),
        ("bigint", T::Int64, "double", "9007199254740993", "9007199254740993"),
    ];
    for (before, data_type, after, value, stored) in narrowed {
        let mut db = database(server).await;
        db.run(&format!("CREATE TABLE t (id bigint PRIMARY KEY, x {before}) ENGINE=InnoDB")).await;
        let t = table("t", &[("id", T::Int64), ("x", data_type)]);
        let mut writer = db.writer(1).await;
        let mut maker = Maker::default();
        let _ = writer.write(&maker.stream(&[(&t, Do::Insert(row![1, value]))])).await.unwrap();
        db.run("DELETE FROM t").await;
        db.run(&format!("ALTER TABLE t MODIFY x {after}")).await;
        let error = writer.write(&maker.stream(&[(&t, Do::Insert(row![2, value]))])).await.expect_err(after);
        assert_eq!(error.kind(), ErrorKind::Transient, "{after}: {}", error.report());
        assert!(error.report().contains("was altered"), "{}", error.report());
        assert!(db.lines("SELECT * FROM t").await.is_empty(), "{after}");
        // Back again, and another change that does no harm, which is taken in with the next attempt.
        db.run(&format!("ALTER TABLE t MODIFY x {before}, ADD COLUMN more int NULL")).await;
        let unit = maker.stream(&[(&t, Do::Insert(row![3, value]))]);
        if writer.write(&unit).await.is_err() {
            let _ = writer.write(&unit).await.unwrap();
        }
        assert_eq!(db.lines("SELECT id, x FROM t").await, [format!("3|{stored}")], "{after}");
    }
}

/// Rows that are replaced are read first: with a column that came since.
#[tokio::test]
async fn a_column_that_was_added_keeps_what_is_in_it() {
    let server = server!();
    let mut db = database(server).await;
    db.run("CREATE TABLE t (id bigint PRIMARY KEY, x varchar(20) UNIQUE) ENGINE=InnoDB").await;
    let t = table("t", &[("id", T::Int64), ("x", TEXT)]);
    let mut writer = db.writer(1).await;
    let mut maker = Maker::default();
    let _ =
        writer.write(&maker.stream(&[(&t, Do::Insert(row![1, "a"])), (&t, Do::Insert(row![2, "b"]))])).await.unwrap();
    db.run("ALTER TABLE t ADD COLUMN own varchar(20) NULL").await;
    db.run("UPDATE t SET own = CONCAT('mine ', id)").await;
    let swap = maker.stream(&[(&t, Do::Update(row![1, "b"])), (&t, Do::Update(row![2, "a"]))]);
    if let Err(error) = writer.write(&swap).await {
        assert_eq!(error.kind(), ErrorKind::Transient, "{}", error.report());
        let _ = writer.write(&swap).await.unwrap();
    }
    assert_eq!(db.lines("SELECT * FROM t ORDER BY id").await, ["1|b|mine 1", "2|a|mine 2"]);
}
