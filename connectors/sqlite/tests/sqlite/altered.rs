//! A table that somebody makes anew by hand while a writer is open.

use anabranch_core::{DataType, ErrorKind};

use crate::support::*;

/// The way to alter a table of SQLite: make another one, and rename it.
#[tokio::test]
async fn a_column_of_another_type_takes_nothing_before_it_is_judged_again() {
    let target = Target::new("CREATE TABLE prices (id INTEGER PRIMARY KEY, price TEXT) STRICT");
    let t =
        table("prices", &[("id", DataType::Int64), ("price", DataType::Decimal { precision: None, scale: None })], 1);
    let mut writer = target.writer().await;
    let insert = |n: i64| unit(n as u64, &[Do::Insert(t.clone(), row([n.into(), "1234567890.12345678901".into()]))]);
    let _ = writer.write(&insert(1)).await.unwrap();
    let anew = |columns: &str| {
        let sql = format!(
            "BEGIN; CREATE TABLE other ({columns}); INSERT INTO other (id, price) SELECT id, price FROM prices;
             DROP TABLE prices; ALTER TABLE other RENAME TO prices; COMMIT"
        );
        target.look().execute_batch(&sql).unwrap();
    };
    anew("id INTEGER PRIMARY KEY, price NUMERIC");
    let error = writer.write(&insert(2)).await.expect_err("it was rounded");
    assert_eq!(error.kind(), ErrorKind::Transient, "{}", error.report());
    assert!(error.report().contains("was altered"), "{}", error.report());
    assert_eq!(target.rows("SELECT id FROM prices"), ["1"]);

    // Back again, with a column more; and a change of another table, which is no matter.
    target.look().execute_batch("DELETE FROM prices").unwrap();
    anew("id INTEGER PRIMARY KEY, price TEXT, more TEXT");
    let _ = writer.write(&insert(3)).await.unwrap();
    target.look().execute_batch("CREATE TABLE elsewhere (x)").unwrap();
    let _ = writer.write(&insert(4)).await.unwrap();
    assert_eq!(target.rows("SELECT id, price FROM prices"), ["3|1234567890.12345678901", "4|1234567890.12345678901"]);
}
