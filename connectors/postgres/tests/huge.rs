//! A transaction of a million rows through the reader alone. Run by hand:
//! `cargo test -p anabranch-postgres --test huge -- --ignored --nocapture`.

mod support;

use anabranch_core::*;
use anabranch_postgres::Postgres;
use support::{BOTH, start};

const ROWS: u64 = 1_000_000;

/// What the reader may use: its receive buffer, one batch here and one being built, a file's buffer,
/// and what the allocator keeps. Less than a tenth of the transaction.
const FLAT_KIB: u64 = 16 * 1024;

/// The most memory this process had resident, in KiB, since [`forget_the_peak`].
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn forget_the_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

/// Open files of this process that have no name any more: spill files.
fn unnamed_files() -> usize {
    let files = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    files
        .filter_map(|f| std::fs::read_link(f.path()).ok())
        .filter(|p| p.to_string_lossy().ends_with("(deleted)"))
        .count()
}

#[tokio::test]
#[ignore = "takes a minute"]
async fn memory_stays_flat() {
    for version in BOTH {
        for streaming in [false, true] {
            let Some(server) = start(version, &[]) else { continue };
            let sql = server.client().await;
            sql.batch_execute("CREATE TABLE t (id int PRIMARY KEY, v text, at timestamptz DEFAULT now())")
                .await
                .unwrap();
            let source = Postgres::new(server.url("postgres")).publication("pub").slot("slot").streaming(streaming);
            source.prepare(None).await.unwrap();
            sql.batch_execute(&format!("INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, {ROWS}) i"))
                .await
                .unwrap();
            let partition = source.partitions().await.unwrap().remove(0);
            let mut reader = source.open(&partition, &StartFrom::default()).await.unwrap();
            forget_the_peak();
            let (before, begun) = (peak(), std::time::Instant::now());
            let (mut rows, mut batches, mut files, mut ended) = (0, 0, 0, false);
            while !ended {
                let Next::Batch(batch) = reader.next().await.unwrap() else { panic!("the reader ended") };
                files = files.max(unnamed_files());
                batches += 1;
                rows += batch.len() as u64;
                ended = rows > 0 && batch.pieces().iter().any(|p| p.end.is_some());
                reader.acknowledge(Some(batch.end())).await.unwrap();
            }
            let after = peak();
            println!(
                "{version:?}, streaming {streaming}: {rows} rows in {batches} batches and {:.1?}; \
                 VmHWM {before} KiB before, {after} KiB after; {files} spill files at a time",
                begun.elapsed()
            );
            assert_eq!(rows, ROWS);
            assert!(after - before < FLAT_KIB, "{} KiB more", after - before);
            assert_eq!(files, usize::from(streaming), "spill files");
            assert_eq!(unnamed_files(), 0, "a spill file stays");
        }
    }
}
