//! kill -9 of a process that writes: afterwards, progress and data say the same.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anabranch_core::{PartitionId, ProgressStore, Sink};
use anabranch_sqlite::Sqlite;
use rusqlite::Connection;

use crate::support::*;

const FILE: &str = "ANABRANCH_CRASH_FILE";
const EPOCH: &str = "ANABRANCH_CRASH_EPOCH";

/// The process that is killed: this test binary, run again with the file in its environment.
#[tokio::test]
async fn child() {
    let Ok(path) = std::env::var(FILE) else { return };
    let sqlite = Sqlite::open(&path);
    let epoch = std::env::var(EPOCH).unwrap().parse().unwrap();
    let stored = sqlite.take_over(&claim(epoch)).await.unwrap();
    let done = stored.first().and_then(|l| l.partitions.get(&PartitionId::new("slot")).cloned());
    let done: u64 = done.map_or(0, |p| String::from_utf8(p.position.token.to_vec()).unwrap().parse().unwrap());
    let mut writer = sqlite.open(lane(epoch)).await.unwrap();
    let t = items();
    for n in done + 1.. {
        let id = n as i64;
        // Two new rows and a swap of the unique value of two old ones.
        let changes = [
            Do::Insert(t.clone(), item(id * 2, &format!("{}", id * 2), "x")),
            Do::Insert(t.clone(), item(id * 2 + 1, &format!("{}", id * 2 + 1), "x")),
            Do::Update(t.clone(), item(id * 2, &format!("{}", id * 2 + 1), "y")),
            Do::Update(t.clone(), item(id * 2 + 1, &format!("{}", id * 2), "y")),
        ];
        if n % 3 == 0 {
            for part in parts(n, &[&changes[..1], &changes[1..3], &changes[3..]]) {
                let _ = writer.write(&part).await.unwrap();
            }
        } else {
            let _ = writer.write(&unit(n, &changes)).await.unwrap();
        }
    }
}

#[tokio::test]
async fn progress_equals_data_after_kill_9() {
    let target = Target::new(ITEMS);
    let mut seen = 0;
    for round in 0..6u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["crash::child", "--exact", "--nocapture"])
            .env(FILE, &target.path)
            .env(EPOCH, (round + 1).to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // Some more transactions than last time, then the axe: at whatever instant that falls.
        wait_for(&target.look(), seen + 5 + round * 7);
        child.kill().unwrap();
        child.wait().unwrap();

        let stored = target.sqlite.read(PIPELINE).await.unwrap();
        let progress = &stored[0].partitions[&PartitionId::new("slot")];
        let done: u64 = std::str::from_utf8(&progress.position.token).unwrap().parse().unwrap();
        assert!(done >= seen);
        let counted = target.rows("SELECT count(*), count(DISTINCT code), coalesce(max(id), 0), min(note) FROM items");
        assert_eq!(counted, [format!("{}|{}|{}|y", done * 2, done * 2, done * 2 + 1)]);
        assert_eq!(stored[0].counters.transactions, done);
        assert_eq!(stored[0].counters.changes, done * 4);
        assert_eq!(target.rows("PRAGMA integrity_check"), ["ok"]);
        seen = done;
    }
    println!("killed 6 times within {seen} transactions");
}

fn wait_for(conn: &Connection, transactions: u64) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let sql = "SELECT coalesce(max(id) / 2, 0) FROM items";
        let done: u64 = rows(conn, sql)[0].parse().unwrap();
        if done >= transactions {
            return;
        }
        assert!(Instant::now() < deadline, "the child did {done} of {transactions} transactions");
        std::thread::yield_now();
    }
}
