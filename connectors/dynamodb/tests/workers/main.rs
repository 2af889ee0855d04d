//! Three processes share 64 shards; one is killed, and one is paused past its leases and goes on.

mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anabranch_core::{Leases, Secret};
use anabranch_dynamodb::{Access, DynamoDbLeases, bookkeeping};
use anabranch_dynamodb_fake::{Fake, n};
use anabranch_servers::{DynamoOptions, DynamoServer};
use aws_sdk_dynamodb::Client;
use process::Worker;
use tokio::sync::watch::Sender;

const SHARDS: usize = 64;
const IDS: u32 = 512;
const PIPELINE: &str = "shared";
/// After so much silence leases are taken over.
const FAILOVER: Duration = Duration::from_secs(6);
/// How long anything may take that should happen soon: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(400);
/// Between two looks at leases or rows, which announce nothing.
const POLL: Duration = Duration::from_millis(500);
/// Between two rounds of writes.
const PACE: Duration = Duration::from_millis(200);
/// Between two looks of the one who watches the target: each reads all of it.
const LOOK: Duration = Duration::from_secs(1);

struct Setup {
    fake: Arc<Fake>,
    target: DynamoServer,
    client: Client,
    leases: DynamoDbLeases,
}

impl Setup {
    async fn start() -> Option<Self> {
        let server = tokio::task::block_in_place(|| DynamoOptions::new().in_memory().start());
        let target = server.expect("DynamoDB Local starts")?;
        let fake = Fake::start().await;
        fake.create_table("orders", &[("id", "N")]);
        fake.state().spread("orders", SHARDS as u64);
        let key = || Secret::new("local");
        let access = Access::new().region("local").endpoint(target.endpoint()).credentials(key(), key(), None);
        let client = access.dynamodb("test").await.expect("a client");
        let leases = DynamoDbLeases::new(access).table("orders-task");
        Some(Self { fake: Arc::new(fake), target, client, leases })
    }

    fn config(&self, worker: &str) -> String {
        let access = |endpoint: String| {
            format!(
                "type = \"dynamodb\"\nregion = \"local\"\nendpoint = \"{endpoint}\"\naccess_key_id = \"local\"\n\
                 secret_access_key = \"local\"\n"
            )
        };
        let (source, target) = (access(self.fake.endpoint()), access(self.target.endpoint()));
        format!(
            "[pipeline]\nname = \"{PIPELINE}\"\norder = \"key\"\n\n\
             [source]\n{source}tables = [\"orders\"]\nsnapshot = \"never\"\n\
             poll_min_ms = 300\npoll_max_ms = 3000\n\n\
             [sink]\n{target}create_tables = true\n\n[checkpoint]\n{target}\n[dead_letters]\n{target}\n\
             [workers]\nid = \"{worker}\"\nfailover_seconds = {}\nmost_partitions = 100\n\n[workers.leases]\n{target}table = \"orders-task\"\n",
            FAILOVER.as_secs()
        )
    }

    /// Owners of unfinished shards and how many each has; `None` for those that nobody has.
    async fn owners(&self) -> BTreeMap<Option<String>, usize> {
        let leases = self.leases.list(PIPELINE).await.expect("the leases");
        let mut owners = BTreeMap::new();
        for lease in leases.iter().filter(|l| !l.finished && l.id().as_str().starts_with("orders/")) {
            // Without the random end of the name.
            let owner = lease.owner.as_ref().map(|o| o.chars().take_while(|c| c.is_alphabetic()).collect());
            *owners.entry(owner).or_default() += 1;
        }
        owners
    }

    /// Waits until these have all the shards, and each of them some.
    async fn shared_by(&self, workers: &mut [&mut Worker]) -> Duration {
        let begun = Instant::now();
        let names: BTreeSet<Option<String>> = workers.iter().map(|w| Some(w.name().to_owned())).collect();
        loop {
            let owners = self.owners().await;
            if owners.values().sum::<usize>() == SHARDS && owners.keys().cloned().collect::<BTreeSet<_>>() == names {
                println!("  {owners:?} after {:.1} s", begun.elapsed().as_secs_f64());
                return begun.elapsed();
            }
            workers.iter_mut().for_each(|w| w.check());
            assert!(begun.elapsed() < PATIENCE, "{owners:?}, not {names:?}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// The live items of the target: the number that each has.
    async fn copied(&self) -> BTreeMap<u32, u32> {
        let mut pages = self.client.scan().table_name("orders").consistent_read(true).into_paginator().items().send();
        let mut all = BTreeMap::new();
        // The table is created by the first worker.
        while let Some(Ok(item)) = pages.next().await {
            let number = |name: &str| item[name].as_n().expect("a number").parse().expect("a number");
            if !item.contains_key(bookkeeping::DELETED) {
                all.insert(number("id"), number("v"));
            }
        }
        all
    }

    fn source(&self) -> BTreeMap<u32, u32> {
        let number = |item: &anabranch_dynamodb_fake::Item, name: &str| {
            item[name]["N"].as_str().expect("a number").parse().expect("a number")
        };
        self.fake.items("orders").iter().map(|item| (number(item, "id"), number(item, "v"))).collect()
    }
}

/// Writes until it is told to stop: numbers that only grow, and deletes.
async fn write(fake: Arc<Fake>, stop: Arc<AtomicBool>, written: Sender<u32>) {
    let mut pace = tokio::time::interval(PACE);
    let mut v = 1;
    while !stop.load(Ordering::Relaxed) {
        for step in 0..4 {
            let id = (v * 37 + step * 101) % IDS;
            match (v + step) % 7 {
                0 => fake.delete("orders", &[("id", n(id))]),
                _ => fake.put("orders", &[("id", n(id)), ("v", n(v))]),
            }
        }
        v += 1;
        written.send_replace(v);
        pace.tick().await;
    }
}

/// No reader of the target ever sees a number go back.
async fn watch(setup: Arc<Setup>, stop: Arc<AtomicBool>) -> usize {
    let mut newest: BTreeMap<u32, u32> = BTreeMap::new();
    let mut looks = 0;
    while !stop.load(Ordering::Relaxed) {
        for (id, v) in setup.copied().await {
            let before = newest.insert(id, v).unwrap_or_default();
            assert!(before <= v, "the item {id} went from {before} back to {v}");
        }
        looks += 1;
        tokio::time::sleep(LOOK).await;
    }
    looks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_processes_share_64_shards_and_lose_nothing() {
    let Some(program) = process::program() else {
        println!("skipped: the anabranch command is not built; make test does");
        return;
    };
    let Some(setup) = Setup::start().await else { return };
    let setup = Arc::new(setup);
    (0..IDS).for_each(|id| setup.fake.put("orders", &[("id", n(id)), ("v", n(0))]));
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Sender::new(0));
    let mut rounds = written.subscribe();
    let writer = tokio::spawn(write(Arc::clone(&setup.fake), Arc::clone(&stop), written));
    let watcher = tokio::spawn(watch(Arc::clone(&setup), Arc::clone(&stop)));

    let [mut killed, mut paused, mut third] =
        ["killed", "paused", "third"].map(|name| Worker::start(&program, name, &setup.config(name)));
    println!("three workers");
    setup.shared_by(&mut [&mut killed, &mut paused, &mut third]).await;

    killed.kill();
    let took = setup.shared_by(&mut [&mut paused, &mut third]).await;
    println!("take-over of a killed worker: {:.1} s, with a failover of {} s", took.as_secs_f64(), FAILOVER.as_secs());

    paused.signal("STOP");
    let took = setup.shared_by(&mut [&mut third]).await;
    println!("take-over of a paused worker: {:.1} s", took.as_secs_f64());
    // What it held while it stood still is written by another by now.
    let seen = *rounds.borrow();
    let more = tokio::time::timeout(PATIENCE, rounds.wait_for(|round| *round >= seen + 20)).await;
    more.expect("more writes in time").expect("the writer");
    paused.signal("CONT");
    let took = setup.shared_by(&mut [&mut paused, &mut third]).await;
    println!("the paused worker has its share again after {:.1} s", took.as_secs_f64());

    stop.store(true, Ordering::Relaxed);
    writer.await.expect("the writer");
    println!("{} looks at the target, no item went back", watcher.await.expect("the watcher"));
    let begun = Instant::now();
    while setup.copied().await != setup.source() {
        [&mut paused, &mut third].into_iter().for_each(|w| w.check());
        let (copied, source) = (setup.copied().await, setup.source());
        let wrong = source.iter().filter(|(id, v)| copied.get(id) != Some(v)).take(5).collect::<Vec<_>>();
        assert!(begun.elapsed() < PATIENCE, "{} items of {}, wrong {wrong:?}", copied.len(), source.len());
        tokio::time::sleep(POLL).await;
    }
    println!("{} items are equal", setup.source().len());
    paused.stop();
    third.stop();
}
