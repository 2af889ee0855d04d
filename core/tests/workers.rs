//! Several workers share the partitions of one source: they die, freeze and come back.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anabranch_core::Leases;
use anabranch_core::checkpointer::MemoryCheckpointer;
use anabranch_core::leases::CheckpointLeases;
use anabranch_core::memory::{MemorySink, MemorySource};
use anabranch_core::pipeline::{PipelineBuilder, SnapshotMode, Workers};
use anabranch_core::{ByKey, ByTransaction, Checkpointer, ErrorKind, Pipeline, Sink, Status, TableName, Value};
use anabranch_testkit::shards::{ShardWriter, Shards, items};
use tempfile::TempDir;
use tokio::sync::mpsc as commands;

const FAILOVER: Duration = Duration::from_millis(800);
/// How long anything may take that should happen soon.
const DEADLINE: Duration = Duration::from_secs(60);

enum Command {
    /// The whole worker stands still until the sender is dropped, like a process after SIGSTOP.
    Freeze(mpsc::Receiver<()>),
    Stop,
    Status(mpsc::Sender<Status>),
}

/// A worker on a thread and a runtime of its own.
struct Worker {
    commands: commands::UnboundedSender<Command>,
    thread: Option<JoinHandle<anabranch_core::Result<()>>>,
}

impl Worker {
    fn start(pipeline: PipelineBuilder) -> Self {
        let (commands, mut inbox) = commands::unbounded_channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let ended = runtime.block_on(async {
                let mut running = pipeline.build()?.start().await?;
                let monitor = running.monitor();
                loop {
                    tokio::select! {
                        ended = running.wait() => return ended,
                        command = inbox.recv() => match command {
                            Some(Command::Freeze(until)) => drop(until.recv()),
                            Some(Command::Status(to)) => to.send(monitor.status()).unwrap(),
                            Some(Command::Stop) => return running.stop().await,
                            // Killed: nothing of it runs any more.
                            None => {
                                std::mem::forget(running);
                                return Ok(());
                            }
                        },
                    }
                }
            });
            runtime.shutdown_background();
            if let Err(e) = &ended {
                println!("a worker ended: {}", e.report());
            }
            ended
        });
        Self { commands, thread: Some(thread) }
    }

    fn kill(self) {
        drop(self.commands);
        self.thread.unwrap().join().unwrap().unwrap();
    }

    fn stop(self) {
        self.commands.send(Command::Stop).unwrap();
        self.thread.unwrap().join().unwrap().unwrap();
    }

    fn freeze(&self) -> mpsc::Sender<()> {
        let (held, until) = mpsc::channel();
        self.commands.send(Command::Freeze(until)).unwrap();
        held
    }

    fn status(&self) -> Status {
        let (to, told) = mpsc::channel();
        self.commands.send(Command::Status(to)).unwrap();
        told.recv().unwrap()
    }
}

struct Setup {
    folder: TempDir,
    sink: MemorySink,
    checkpoints: MemoryCheckpointer,
    writer: ShardWriter,
    /// The ids that each open partition has.
    ids: BTreeMap<String, Vec<i64>>,
    dice: u64,
    /// Partitions split until there are more than this; then two merge.
    partitions: usize,
}

impl Setup {
    fn new(partitions: usize, seed: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let writer = ShardWriter::create(folder.path(), partitions).unwrap();
        let names = writer.open_partitions().into_iter().enumerate();
        let ids = names.map(|(n, name)| (name, (0..8).map(|i| n as i64 * 8 + i).collect())).collect();
        Self {
            folder,
            sink: MemorySink::new(),
            checkpoints: MemoryCheckpointer::new(),
            writer,
            ids,
            dice: seed,
            partitions,
        }
    }

    fn pipeline(&self) -> PipelineBuilder {
        Pipeline::builder("shared")
            .source(Shards::new(self.folder.path()))
            .sink(self.sink.clone())
            .checkpointer(self.checkpoints.clone())
            .order(ByKey::new(1))
            .snapshot(SnapshotMode::Never)
            .create_tables(true)
            .workers(Workers::new().failover(FAILOVER))
    }

    fn worker(&self) -> Worker {
        Worker::start(self.pipeline())
    }

    fn below(&mut self, bound: usize) -> usize {
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.dice >> 33) as usize % bound
    }

    /// Rows for a while, with a split or a merge now and then.
    fn write_for(&mut self, time: Duration, reshard: bool) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            for _ in 0..20 {
                let names = self.writer.open_partitions();
                let name = names[self.below(names.len())].clone();
                let ids = self.ids[&name].clone();
                let (id, delete) = (ids[self.below(ids.len())], self.below(5) == 0);
                self.writer.write(&name, id, delete).unwrap();
            }
            if reshard && self.below(12) == 0 {
                self.reshard();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn reshard(&mut self) {
        let names = self.writer.open_partitions();
        let (one, two) = (names[self.below(names.len())].clone(), names[self.below(names.len())].clone());
        let name = |this: &mut Self, n: usize| format!("{}x{n}", this.below(1 << 30));
        if one != two && names.len() > self.partitions {
            let child = name(self, 0);
            self.writer.close(&[&one, &two], &[&child]).unwrap();
            let mut ids = self.ids.remove(&one).unwrap();
            ids.extend(self.ids.remove(&two).unwrap());
            self.ids.insert(child, ids);
        } else if self.ids[&one].len() > 1 {
            let children = [name(self, 1), name(self, 2)];
            self.writer.close(&[&one], &[&children[0], &children[1]]).unwrap();
            let mut ids = self.ids.remove(&one).unwrap();
            let rest = ids.split_off(ids.len() / 2);
            self.ids.insert(children[0].clone(), ids);
            self.ids.insert(children[1].clone(), rest);
        }
    }

    /// The rows of the target: id and number.
    fn target(&self) -> BTreeMap<i64, u64> {
        let int = |v: &Value| if let Value::Int(n) = v { *n } else { panic!("{v:?}") };
        self.sink.rows(&items().name).iter().map(|r| (int(&r[0]), int(&r[1]) as u64)).collect()
    }

    #[track_caller]
    fn until_equal(&self) {
        let deadline = Instant::now() + DEADLINE;
        while self.target() != *self.writer.rows() {
            if Instant::now() > deadline {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let leases = CheckpointLeases::new(std::sync::Arc::new(self.checkpoints.clone()));
                for lease in runtime.block_on(leases.list("shared")).unwrap().iter().filter(|l| !l.finished) {
                    println!("{lease:?}");
                }
                panic!("the target is not as the source after {DEADLINE:?}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// No row ever went back, and no change was applied twice: the sink is strict, and every number
    /// of a row that a reader saw is higher than all before. Every commit was of the highest epoch.
    #[track_caller]
    fn assert_in_order(&self) {
        let mut last: BTreeMap<i64, i64> = BTreeMap::new();
        let int = |v: &Value| if let Value::Int(n) = v { *n } else { panic!("{v:?}") };
        for commit in self.sink.history() {
            for (table, _, after) in commit.rows().filter(|(t, ..)| **t == items().name) {
                assert_eq!(*table, TableName::new("", "items"));
                if let Some(row) = after {
                    let before = last.insert(int(&row[0]), int(&row[1]));
                    assert!(before < Some(int(&row[1])), "{row:?} after {before:?}");
                }
            }
        }
        assert!(!last.is_empty());
    }
}

#[track_caller]
fn until(what: &str, met: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !met() {
        assert!(Instant::now() < deadline, "{what}: not within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn owners(status: &Status) -> Vec<usize> {
    let mut by: BTreeMap<&str, usize> = BTreeMap::new();
    for owner in status.partitions.values().filter_map(|p| p.owner.as_deref()) {
        *by.entry(owner).or_default() += 1;
    }
    let mut shares: Vec<_> = by.into_values().collect();
    shares.sort_unstable();
    shares
}

#[test]
fn three_workers_share_while_partitions_split_and_merge() {
    let mut setup = Setup::new(12, 1);
    let workers: Vec<_> = (0..3).map(|_| setup.worker()).collect();
    setup.write_for(Duration::from_secs(3), true);
    setup.until_equal();
    until("the shares are fair", || {
        let shares = owners(&workers[0].status());
        shares.len() == 3 && shares[2] - shares[0] <= 2
    });
    let changes = workers[1].status().counters.changes;
    assert!(changes > 0);
    workers.into_iter().for_each(Worker::stop);
    setup.assert_in_order();
}

#[test]
fn what_a_killed_worker_had_goes_on_with_the_others() {
    let mut setup = Setup::new(9, 2);
    let mut workers: Vec<_> = (0..3).map(|_| setup.worker()).collect();
    setup.write_for(Duration::from_secs(2), true);
    workers.remove(0).kill();
    let killed = Instant::now();
    setup.write_for(Duration::from_millis(100), false);
    setup.until_equal();
    println!("taken over within {:?} (failover {FAILOVER:?})", killed.elapsed());
    workers.push(setup.worker());
    setup.write_for(Duration::from_secs(1), true);
    workers.remove(0).kill();
    workers.remove(0).kill();
    setup.write_for(Duration::from_secs(1), true);
    setup.until_equal();
    setup.assert_in_order();
    workers.into_iter().for_each(Worker::stop);
}

#[test]
fn a_worker_that_was_frozen_past_its_leases_writes_nothing_more_and_joins_again() {
    let mut setup = Setup::new(8, 3);
    let workers: Vec<_> = (0..2).map(|_| setup.worker()).collect();
    setup.write_for(Duration::from_secs(2), false);
    until("both have some", || owners(&workers[1].status()).len() == 2);
    for _ in 0..3 {
        let frozen = workers[0].freeze();
        // In the middle of whatever it does.
        setup.write_for(FAILOVER * 4, true);
        setup.until_equal();
        drop(frozen);
        setup.write_for(Duration::from_millis(500), true);
    }
    setup.until_equal();
    setup.assert_in_order();
    until("both have some", || owners(&workers[1].status()).len() == 2);
    workers.into_iter().for_each(Worker::stop);
}

/// The tables are copied once, by one of them, though the first dies while it copies.
#[test]
fn one_worker_copies_the_tables_for_all() {
    let source = MemorySource::new("db").table(items()).chunk_rows(10).heartbeat(Duration::from_millis(100));
    let sink = MemorySink::new();
    let mut filling = source.transaction();
    for id in 0..2_000 {
        filling = filling.insert(&items().name, vec![Value::Int(id), Value::Int(0)]);
    }
    filling.commit().unwrap();
    let pipeline = || {
        Pipeline::builder("copied")
            .source(source.clone())
            .sink(sink.clone())
            .order(ByKey::new(1))
            .create_tables(true)
            .workers(Workers::new().failover(FAILOVER))
    };
    let first = Worker::start(pipeline());
    until("it copies", || !sink.rows(&items().name).is_empty());
    let workers: Vec<_> = (0..2).map(|_| Worker::start(pipeline())).collect();
    first.kill();
    until("all is copied", || sink.rows(&items().name).len() == 2_000);
    source
        .transaction()
        .update(&items().name, vec![Value::Int(5)], vec![Value::Int(5), Value::Int(1)])
        .commit()
        .unwrap();
    until("the stream goes on", || source.tables().difference(&sink.tables()).is_none());
    until("the status tells it", || workers[0].status().counters.snapshot_rows >= 2_000);
    until("safe time is known", || workers[1].status().safe_time.is_some());
    workers.into_iter().for_each(Worker::stop);
}

#[tokio::test]
async fn the_order_transaction_is_refused_and_a_shared_pipeline_is_not_run_alone() {
    let setup = Setup::new(2, 4);
    let refused = setup.pipeline().order(ByTransaction::new()).build().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Config);
    assert!(refused.to_string().starts_with("pipeline.order: transaction cannot be kept"), "{refused}");

    let running = setup.pipeline().build().unwrap().start().await.unwrap();
    running.stop().await.unwrap();
    let alone = || {
        Pipeline::builder("shared")
            .source(Shards::new(setup.folder.path()))
            .sink(setup.sink.clone())
            .checkpointer(setup.checkpoints.clone())
            .order(ByKey::new(1))
            .snapshot(SnapshotMode::Never)
    };
    let refused = alone().build().unwrap().start().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Config, "{refused:?}");
    // And the other way round.
    let sink = MemorySink::new();
    let stores = sink.checkpointer().unwrap();
    let builder = |b: PipelineBuilder| b.sink(sink.clone()).checkpointer_arc(stores.clone()).create_tables(true);
    builder(alone()).build().unwrap().start().await.unwrap().stop().await.unwrap();
    let refused = builder(setup.pipeline()).build().unwrap().start().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Config, "{refused:?}");
    assert!(setup.checkpoints.load("shared").await.unwrap().unwrap().1.sharing.is_some());
}
