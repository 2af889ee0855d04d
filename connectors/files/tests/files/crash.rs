//! kill -9 of a process that writes window files: every file is whole, none is missing, none there twice.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anabranch_core::{PartitionId, ProgressStore};
use anabranch_testkit::generators::Dice;

use crate::support::*;

const FOLDER: &str = "ANABRANCH_CRASH_FOLDER";
const EPOCH: &str = "ANABRANCH_CRASH_EPOCH";

const SHARDS: [Option<&str>; 3] = [Some("eu"), Some("us"), None];

/// Transaction `n`, always the same: some rows of some shards, a third of a second after the one before.
fn transaction(n: u64) -> Tx {
    let mut dice = Dice::new(n);
    let rows = (0..1 + dice.below(6)).map(|row| ((n * 10) as i64 + row as i64, SHARDS[dice.below(3)])).collect();
    let time = anabranch_core::Timestamp::from_micros(second(0).as_micros() + n as i64 * 333_333);
    Tx { number: n, time: Some(time), rows }
}

/// The process that is killed: this test binary, run again with the folder in its environment.
#[tokio::test]
async fn child() {
    let Ok(path) = std::env::var(FOLDER) else { return };
    let files = files_in(path.as_ref()).window(Duration::from_secs(1)).max_file(600);
    let epoch = std::env::var(EPOCH).unwrap().parse().unwrap();
    let mut run = Run::begin(&files, epoch).await;
    let stored = files.read(PIPELINE).await.unwrap();
    let done = stored[0]
        .partitions
        .get(&PartitionId::new("slot"))
        .map_or(0, |p| String::from_utf8(p.position.token.to_vec()).unwrap().parse::<u64>().unwrap());
    // Units of another size in each run, some of them in parts.
    let size = 1 + epoch % 5;
    for first in (done + 1..).step_by(size as usize) {
        let whole = unit(&(first..first + size).map(transaction).collect::<Vec<_>>());
        for part in anabranch_testkit::units::in_parts(&whole, 4 + first as usize % 7) {
            let _ = run.writer.write(&part).await.unwrap();
        }
        run.writer.flush().await.unwrap();
        run.safe_time(transaction(first + size - 1).time.unwrap()).await;
    }
}

#[tokio::test]
async fn files_are_whole_after_kill_9() {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| std::process::id().into());
    println!("SEED={seed}");
    let kills = std::env::var("KILLS").ok().and_then(|s| s.parse().ok()).unwrap_or(8u64);
    let mut dice = Dice::new(seed);
    let folder = Folder::new();
    let mut readers = Vec::new();
    for shard in SHARDS {
        let name = shard.unwrap_or("_unsharded");
        readers.push((shard, name, Vec::new(), open(&folder.source(), name, None).await));
    }
    let mut done = 0;
    for round in 1..=kills {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["crash::child", "--exact", "--nocapture"])
            .env(FOLDER, &folder.path)
            .env(EPOCH, round.to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        wait_for(&folder, done + 3 + dice.below(12) as u64).await;
        // At whatever instant that falls.
        tokio::time::sleep(Duration::from_micros(dice.below(20_000) as u64)).await;
        child.kill().unwrap();
        child.wait().unwrap();
        done = progress(&folder).await;

        // One who reads all the while, and one who begins anew, find the same.
        for (shard, name, seen, reader) in &mut readers {
            let all = (1..=done).flat_map(|n| transaction(n).rows).filter(|(_, s)| s == shard).map(|(id, _)| id);
            let expected: Vec<i64> = all.collect();
            while seen.len() < expected.len() {
                seen.extend(ids(&reads(&next_batch(&mut **reader).await)));
            }
            // Of a unit that was cut there may be more.
            assert_eq!(seen[..expected.len()], expected, "{name} after {round} kills (left: read)");
            let again = {
                let mut reader = open(&folder.source(), name, None).await;
                let mut again = Vec::new();
                while again.len() < seen.len() {
                    again.extend(ids(&reads(&next_batch(&mut *reader).await)));
                }
                again
            };
            assert_eq!(again[..seen.len()], *seen, "{name} read anew");
        }
    }
    println!("killed {kills} times within {done} transactions");
}

async fn progress(folder: &Folder) -> u64 {
    let stored = files_in(&folder.path).read(PIPELINE).await.unwrap();
    let at = stored.first().and_then(|l| l.partitions.get(&PartitionId::new("slot")).cloned());
    at.map_or(0, |p| String::from_utf8(p.position.token.to_vec()).unwrap().parse().unwrap())
}

async fn wait_for(folder: &Folder, transactions: u64) {
    let deadline = Instant::now() + PATIENCE;
    while progress(folder).await < transactions {
        assert!(Instant::now() < deadline, "the child does not get on");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
