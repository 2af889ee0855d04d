//! Rows per second, printed: `cargo test --release -p anabranch-postgres --test sink -- --ignored speed --nocapture`.

use std::time::Instant;

use anabranch_core::*;

use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures; run it by hand in a release build"]
async fn speed() {
    for db in databases() {
        db.exec("CREATE TABLE t (id bigint PRIMARY KEY, a integer, b text, c text, d timestamptz)");
        let t = table("t", &[("id", INT), ("a", INT), ("b", TEXT), ("c", TEXT), ("d", TEXT)], 1);
        let sink = db.sink();
        let mut w = db.writer(&sink, 1).await;
        let row = |id: &str, v: usize| -> [String; 5] {
            let text = format!("some text of a row, {v} of them");
            [id.to_owned(), v.to_string(), text.clone(), text, "2024-01-01 00:00:00+00".to_owned()]
        };
        let version = db.rows("SHOW server_version").concat();
        const TOTAL: usize = 200_000;
        for batch in [100, 1_000, 10_000] {
            db.exec("TRUNCATE t");
            for what in ["insert", "upsert", "update", "delete"] {
                let units: Vec<Unit> = (0..TOTAL / batch)
                    .map(|b| {
                        let mut changes = Changes::new();
                        for i in 0..batch {
                            let row = row(&(b * batch + i).to_string(), i);
                            let row: Vec<&str> = row.iter().map(String::as_str).collect();
                            changes = match what {
                                "insert" | "upsert" => changes.insert(&t, &row),
                                "update" => changes.update(&t, None, &[row[0], row[1], "?", row[3], "?"]),
                                _ => changes.delete(&t, &[row[0], "?", "?", "?", "?"]),
                            };
                        }
                        changes.unit()
                    })
                    .collect();
                let begun = Instant::now();
                for unit in &units {
                    write(&mut w, unit).await;
                }
                let rate = TOTAL as f64 / begun.elapsed().as_secs_f64() / 1000.0;
                println!("{version}: {what} by {batch}: {rate:.0} k rows/s");
            }
        }
        // What the server alone needs for the same rows, in statements of the same size.
        for twice in ["", "again "] {
            let begun = Instant::now();
            for b in 0..TOTAL / 10_000 {
                db.exec(&format!(
                    "INSERT INTO t SELECT n, n, '{twice}some text of a row, ' || n, 'some text of a row, ' || n, now() \
                     FROM generate_series({}, {}) AS n ON CONFLICT (id) DO UPDATE \
                     SET a = excluded.a, b = excluded.b, c = excluded.c, d = excluded.d",
                    b * 10_000,
                    (b + 1) * 10_000 - 1
                ));
            }
            let rate = TOTAL as f64 / begun.elapsed().as_secs_f64() / 1000.0;
            println!("{version}: server alone {twice}by 10000: {rate:.0} k rows/s");
        }
        sink.target().unwrap().clear(&t.name).await.unwrap();
        let mut s = sink.open(db.snapshot_lane(1)).await.unwrap();
        let units: Vec<Unit> = (0..TOTAL / 10_000)
            .map(|b| {
                let rows = (0..10_000).map(|i| row(&(b * 10_000 + i).to_string(), i));
                rows.fold(Changes::new(), |c, r| c.insert(&t, &r.iter().map(String::as_str).collect::<Vec<_>>()))
                    .snapshot()
            })
            .collect();
        let begun = Instant::now();
        for unit in &units {
            write(&mut s, unit).await;
        }
        println!("{version}: copy by 10000: {:.0} k rows/s", TOTAL as f64 / begun.elapsed().as_secs_f64() / 1000.0);
    }
}
