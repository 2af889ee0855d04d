//! Packets and statements have limits.

use anabranch_core::{DataType as T, ErrorKind, OldImage, Sink, Value};

use crate::row;
use crate::server::{Do, Maker, TEXT, database, keyed, table};

/// Rows near max_allowed_packet go alone, larger ones are refused, and many small ones are divided.
#[tokio::test]
async fn statements_fit_into_packets() {
    let options = crate::server::options().setting("max-allowed-packet", "1M");
    let Some(server) = options.start().expect("starts") else { return };
    let mut db = database(&server).await;
    let t = table("t", &[("k", T::Int64), ("v", TEXT), ("b", T::Bytes)]);
    db.sink().target().expect("tables").create(&t).await.expect("create");
    let mut writer = db.writer(1).await;
    let mut m = Maker::default();
    let sizes = [10, 900_000, 20, 1_040_000, 600_000, 600_000, 300_000, 300_000, 300_000, 1];
    let rows: Vec<_> = sizes
        .iter()
        .zip(1..)
        .map(|(size, k)| (&t, Do::Insert(row![k, "x".repeat(*size).as_str(), Value::Null])))
        .collect();
    let _ = writer.write(&m.stream(&rows)).await.expect("large rows");
    let found = db.lines("SELECT LENGTH(v) FROM t ORDER BY k").await;
    assert_eq!(found, sizes.map(|s| s.to_string()));

    for too_large in
        [row![50, "x".repeat(1_048_576).as_str(), Value::Null], row![50, "", Value::Bytes(vec![1; 530_000].into())]]
    {
        let unit = m.stream(&[(&t, Do::Insert(row![49, "", Value::Null])), (&t, Do::Insert(too_large))]);
        let error = writer.write(&unit).await.expect_err("too large");
        assert_eq!(error.kind(), ErrorKind::Rejected, "{}", error.report());
        assert!(error.report().contains("max_allowed_packet") && error.report().contains("table public.t"));
    }
    let partial = m.stream(&[(&t, Do::Update(row![1, "y".repeat(1_048_576).as_str(), Value::Unchanged]))]);
    let error = writer.write(&partial).await.expect_err("too large");
    assert_eq!(error.kind(), ErrorKind::Rejected, "{}", error.report());
    assert_eq!(db.lines("SELECT COUNT(*) FROM t WHERE k >= 49").await, ["0"]);
    let _ = writer.write(&m.stream(&[(&t, Do::Insert(row![49, "", Value::Null]))])).await.expect("goes on");
}

/// Many rows of each kind, in several statements each, and a key of two columns.
#[tokio::test]
async fn many_rows_of_each_kind() {
    let Some(server) = crate::server::options().setting("max-allowed-packet", "64K").start().expect("starts") else {
        return;
    };
    let mut db = database(&server).await;
    db.run(
        "CREATE TABLE other (id BIGINT AUTO_INCREMENT PRIMARY KEY, a BIGINT, b VARCHAR(9), v LONGTEXT, UNIQUE (a, b))",
    )
    .await;
    let columns = [("a", T::Int64), ("b", T::Text { max_chars: Some(9) }), ("v", TEXT)];
    let upserted = keyed("upserted", &columns, &[0, 1]);
    let other = keyed("other", &columns, &[0, 1]);
    db.sink().target().expect("tables").create(&upserted).await.expect("create");
    const N: i64 = 3000;
    let mut writer = db.writer(1).await;
    for t in [&upserted, &other] {
        let mut m = Maker::default();
        let all = |f: &dyn Fn(i64) -> Do| (0..N).map(|k| (t, f(k))).collect::<Vec<_>>();
        let v = "v".repeat(50);
        let _ = writer.write(&m.stream(&all(&|k| Do::Insert(row![k, "x", v.as_str()])))).await.expect("insert");
        let _ = writer.write(&m.stream(&all(&|k| Do::Update(row![k, "x", "new"])))).await.expect("update");
        let sum = format!("SELECT COUNT(*), SUM(a), MIN(v), MAX(v) FROM {}", t.name.name);
        assert_eq!(db.lines(&sum).await, [format!("{N}|{}|new|new", N * (N - 1) / 2)]);
        let partial = all(&|k| Do::Move(OldImage::Key, row![k, "x", Value::Unchanged], row![k, "y", Value::Unchanged]));
        let _ = writer.write(&m.stream(&partial)).await.expect("partial moves");
        let delete =
            all(&|k| Do::Delete(OldImage::Key, row![k, if k % 3 == 0 { "none" } else { "y" }, Value::Unchanged]));
        let _ = writer.write(&m.stream(&delete)).await.expect("delete");
        let count = format!("SELECT COUNT(*), MAX(b), MAX(v) FROM {}", t.name.name);
        assert_eq!(db.lines(&count).await, [format!("{}|y|new", N / 3)]);
    }
}
