//! Three processes share 64 partitions: one is stopped past its leases and goes on, one is killed.
//!
//! The workers are this test's own executable, started with `ANABRANCH_WORKER` set.

use std::collections::BTreeMap;
use std::env;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anabranch_core::leases::CheckpointLeases;
use anabranch_core::pipeline::{SnapshotMode, Workers};
use anabranch_core::{ByKey, Leases, Pipeline};
use anabranch_sqlite::Sqlite;
use anabranch_testkit::shards::{ShardWriter, Shards};
use rusqlite::Connection;

const FOLDER: &str = "ANABRANCH_WORKER";
const FAILOVER: Duration = Duration::from_secs(4);
const PARTITIONS: usize = 64;
const DEADLINE: Duration = Duration::from_secs(180);

/// Notes every row that goes back, also over a delete.
const TARGET: &str = "
CREATE TABLE items (id INTEGER PRIMARY KEY, n INTEGER NOT NULL);
CREATE TABLE seen (id INTEGER PRIMARY KEY, n INTEGER NOT NULL);
CREATE TABLE backwards (id INTEGER, before INTEGER, after INTEGER);
CREATE TRIGGER inserted AFTER INSERT ON items BEGIN
  INSERT INTO backwards SELECT id, n, new.n FROM seen WHERE id = new.id AND n >= new.n;
  INSERT INTO seen VALUES (new.id, new.n) ON CONFLICT (id) DO UPDATE SET n = max(n, excluded.n);
END;
CREATE TRIGGER updated AFTER UPDATE ON items BEGIN
  INSERT INTO backwards SELECT id, n, new.n FROM seen WHERE id = new.id AND n >= new.n;
  INSERT INTO seen VALUES (new.id, new.n) ON CONFLICT (id) DO UPDATE SET n = max(n, excluded.n);
END;";

fn pipeline(folder: &Path) -> Pipeline {
    Pipeline::builder("shared")
        .source(Shards::new(folder.join("shards")))
        .sink(Sqlite::open(folder.join("target.db")).busy_timeout(Duration::from_secs(60)))
        .order(ByKey::new(1))
        .snapshot(SnapshotMode::Never)
        .workers(Workers::new().failover(FAILOVER))
        .build()
        .unwrap()
}

/// Not a test: what the processes run.
#[test]
fn worker_process() {
    let Some(folder) = env::var_os(FOLDER) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let ended = runtime.block_on(async {
        let mut running = pipeline(Path::new(&folder)).start().await?;
        running.wait().await
    });
    println!("ended: {ended:?}");
    ended.unwrap();
}

struct Process(Child);

impl Process {
    fn start(folder: &Path) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["worker_process", "--exact", "--nocapture"]).env(FOLDER, folder);
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.0.id().to_string()).status().unwrap();
        assert!(sent.success());
    }

    /// What its worker is called begins with the machine's name and the process id.
    fn is(&self, owner: &str) -> bool {
        owner.split('~').next().and_then(|name| name.rsplit('-').next()) == Some(&self.0.id().to_string())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Shared {
    folder: tempfile::TempDir,
    writer: ShardWriter,
    runtime: tokio::runtime::Runtime,
    leases: CheckpointLeases,
    dice: u64,
}

impl Shared {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let writer = ShardWriter::create(folder.path().join("shards"), PARTITIONS).unwrap();
        let target = folder.path().join("target.db");
        Connection::open(&target).unwrap().execute_batch(TARGET).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let store = Sqlite::open(target).busy_timeout(Duration::from_secs(60)).checkpointer();
        let leases = CheckpointLeases::new(std::sync::Arc::new(store));
        Self { folder, writer, runtime, leases, dice: 7 }
    }

    fn write(&mut self, rows: usize) {
        for _ in 0..rows {
            self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (partition, id) = ((self.dice >> 33) as usize % PARTITIONS, (self.dice >> 40) % 5);
            let id = (partition * 5) as i64 + id as i64;
            self.writer.write(&format!("p{partition:02}"), id, self.dice >> 60 == 0).unwrap();
        }
    }

    /// Who has how many partitions.
    fn owners(&self) -> BTreeMap<String, usize> {
        let mut owners = BTreeMap::new();
        for lease in self.runtime.block_on(self.leases.list("shared")).unwrap() {
            if let Some(owner) = lease.owner.filter(|_| lease.partition.id.as_str().starts_with('p')) {
                *owners.entry(owner).or_default() += 1;
            }
        }
        owners
    }

    fn of(&self, process: &Process) -> usize {
        self.owners().iter().filter(|(owner, _)| process.is(owner)).map(|(_, n)| n).sum()
    }

    /// Stops a process, but not amid a transaction: it would keep the file's lock, of which there is one.
    fn stop(&self, process: &Process) {
        let target = Connection::open(self.folder.path().join("target.db")).unwrap();
        target.busy_timeout(Duration::from_secs(5)).unwrap();
        let began = Instant::now();
        loop {
            process.signal("STOP");
            match target.execute_batch("BEGIN IMMEDIATE; ROLLBACK") {
                Ok(()) => return,
                Err(e) => assert!(began.elapsed() < DEADLINE, "the file stays locked: {e}"),
            }
            process.signal("CONT");
        }
    }

    /// Writes on until it is so; gives how long that took.
    #[track_caller]
    fn until(&mut self, what: &str, met: impl Fn(&Self) -> bool) -> Duration {
        let began = Instant::now();
        loop {
            self.write(20);
            if met(self) {
                return began.elapsed();
            }
            assert!(began.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}: {:?}", self.owners());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn rows(&self) -> BTreeMap<i64, u64> {
        let target = Connection::open(self.folder.path().join("target.db")).unwrap();
        target.busy_timeout(Duration::from_secs(60)).unwrap();
        let mut select = target.prepare("SELECT id, n FROM items").unwrap();
        let rows = select.query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)? as u64))).unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    }

    #[track_caller]
    fn assert_equal(&self) {
        let began = Instant::now();
        while self.rows() != *self.writer.rows() {
            assert!(began.elapsed() < DEADLINE, "the target is not as the source: {:?}", self.owners());
            std::thread::sleep(Duration::from_millis(50));
        }
        let target = Connection::open(self.folder.path().join("target.db")).unwrap();
        let count = |sql: &str| target.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(count("SELECT count(*) FROM backwards"), 0, "a row went back");
        assert!(count("SELECT count(*) FROM seen") > 0);
    }
}

#[test]
fn three_processes_share_64_partitions_while_one_is_stopped_and_one_is_killed() {
    if env::var_os(FOLDER).is_some() {
        return;
    }
    let mut shared = Shared::new();
    let folder = shared.folder.path().to_owned();
    let mut processes: Vec<Process> = (0..3).map(|_| Process::start(&folder)).collect();
    let took = shared.until("all partitions are taken, by all three", |s| {
        let owners = s.owners();
        owners.len() == 3 && owners.values().sum::<usize>() == PARTITIONS
    });
    println!("three processes have taken {PARTITIONS} partitions after {took:.1?}: {:?}", shared.owners());

    shared.stop(&processes[0]);
    let took = shared.until("the stopped one has lost its partitions", |s| {
        s.of(&processes[0]) == 0 && s.owners().values().sum::<usize>() == PARTITIONS
    });
    println!("a stopped process: taken over after {took:.1?} (failover {FAILOVER:?})");
    processes[0].signal("CONT");
    let took = shared.until("it has a share again", |s| s.of(&processes[0]) > 0);
    println!("it takes part again after {took:.1?}");

    let killed = processes.remove(1);
    killed.signal("KILL");
    let took = shared.until("the killed one has lost its partitions", |s| {
        s.of(&killed) == 0 && s.owners().values().sum::<usize>() == PARTITIONS
    });
    println!("a killed process: taken over after {took:.1?} (failover {FAILOVER:?})");
    shared.assert_equal();
    for mut process in processes {
        assert!(process.0.try_wait().unwrap().is_none(), "a worker has ended");
    }
}
