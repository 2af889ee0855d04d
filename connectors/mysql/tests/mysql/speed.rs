//! How fast rows go in. Figures for people: run with `--nocapture`, best with `--release`.

use std::time::Instant;

use anabranch_core::{DataType as T, LanePurpose, Part, Sink, UnitKind};
use anabranch_mysql::LocalInfile;

use crate::server::{Do, Maker, TEXT, database, lane, table, take_over};
use crate::{row, server};

const ROWS: i64 = 20_000;
const UNIT: i64 = 1000;

#[tokio::test]
async fn rows_a_second() {
    let mut db = database(server!()).await;
    let columns = [
        ("k", T::Int64),
        ("name", TEXT),
        ("price", T::Decimal { precision: Some(10), scale: Some(2) }),
        ("at", T::TimestampTz),
    ];
    let sink = db.sink();
    take_over(&sink, 1).await;
    for (name, what) in
        [("plain", "upsert"), ("uniq", "upsert, guarded"), ("load", "LOAD DATA"), ("insert", "snapshot by INSERT")]
    {
        let t = table(name, &columns);
        sink.target().expect("tables").create(&t).await.expect("create");
        if name == "uniq" {
            db.run("ALTER TABLE uniq ADD COLUMN u INT UNIQUE").await;
        }
        let snapshot = matches!(name, "load" | "insert");
        let kind = if snapshot { UnitKind::Snapshot } else { UnitKind::Stream };
        let infile = if name == "load" { LocalInfile::Auto } else { LocalInfile::Off };
        let purpose = if snapshot { LanePurpose::Snapshot } else { LanePurpose::Stream };
        let mut writer = db.sink().local_infile(infile).open(lane(1, purpose)).await.expect("open");
        let mut m = Maker::default();
        let row = |k: i64| {
            let (name, price) = (format!("customer number {k}"), format!("{k}.25"));
            (&t, Do::Insert(row![k, name.as_str(), price.as_str(), "2024-01-01 12:34:56.789+00"]))
        };
        // A snapshot's chunks are larger than the units of a stream.
        let size = if snapshot { ROWS / 2 } else { UNIT };
        let units: Vec<_> = (0..ROWS / size)
            .map(|n| m.unit(kind, Part::Whole, &(n * size..(n + 1) * size).map(row).collect::<Vec<_>>()))
            .collect();
        let rounds = if snapshot { 1 } else { 2 };
        for round in 0..rounds {
            let start = Instant::now();
            for unit in &units {
                let _ = writer.write(unit).await.expect("write");
            }
            let rate = ROWS as f64 / start.elapsed().as_secs_f64();
            let how = if snapshot { "" } else { ["of new rows", "of rows that are there"][round] };
            println!("{what} {how} x{size}: {rate:.0} rows/s");
        }
        assert_eq!(db.lines(&format!("SELECT COUNT(*) FROM `{name}`")).await, [ROWS.to_string()]);
    }
}
