//! How fast rows go in: printed, not judged, for machines differ.

use std::time::Instant;

use anabranch_core::{DataType, OldImage, Value};

use crate::support::*;

#[tokio::test]
async fn rows_per_second() {
    let target = Target::new(
        "CREATE TABLE orders (id INTEGER PRIMARY KEY, customer INTEGER, amount TEXT, placed TEXT, note TEXT)",
    );
    let t = table(
        "orders",
        &[
            ("id", DataType::Int64),
            ("customer", DataType::Int64),
            ("amount", DataType::Decimal { precision: None, scale: None }),
            ("placed", DataType::TimestampTz),
            ("note", text()),
        ],
        1,
    );
    let order = |id: i64, note: &str| {
        let amount = format!("{}.{:02}", id % 1000, id % 100);
        row([id.into(), (id % 997).into(), amount.as_str().into(), "2024-05-06 07:08:09.1+00".into(), note.into()])
    };
    let count: i64 = if cfg!(debug_assertions) { 20_000 } else { 500_000 };
    let mut writer = target.writer().await;
    let inserts: Vec<_> = (0..count).map(|id| Do::Insert(t.clone(), order(id, "a note of some length"))).collect();
    let updates: Vec<_> = (0..count).map(|id| Do::Update(t.clone(), order(id, "another note"))).collect();
    let partial: Vec<_> = (0..count)
        .map(|id| Do::Update(t.clone(), row([id.into(), UNCHANGED, UNCHANGED, UNCHANGED, "third".into()])))
        .collect();
    let deletes: Vec<_> = (0..count)
        .map(|id| {
            let key = row([Value::Int(id), UNCHANGED, UNCHANGED, UNCHANGED, UNCHANGED]);
            Do::Delete(t.clone(), OldImage::Key, key)
        })
        .collect();
    for (n, (what, changes)) in
        [("inserts", inserts), ("updates", updates), ("partial updates", partial), ("deletes", deletes)]
            .into_iter()
            .enumerate()
    {
        let units: Vec<_> = changes.chunks(10_000).map(|c| unit(n as u64 + 1, c)).collect();
        let begun = Instant::now();
        for unit in &units {
            let _ = writer.write(unit).await.unwrap();
        }
        let rate = count as f64 / begun.elapsed().as_secs_f64();
        println!("{what}: {rate:.0} rows/s, in transactions of 10000");
    }
    assert_eq!(target.rows("SELECT changes FROM anabranch_lane"), [(count * 4).to_string()]);
}
