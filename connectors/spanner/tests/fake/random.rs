//! Random partition trees and transactions spread over them: what arrives is what a sequential oracle
//! says, whatever is cut on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anabranch_core::ByKey;
use anabranch_core::memory::MemorySink;
use anabranch_spanner_fake::{Committed, Dialect, Mode, Script, Stream, Time};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use tonic::Code;

use crate::support::{STREAM, Ticking, drained, kv, kv_name, pipeline, rows, script, start};

const KEYS: i64 = 24;
const STEPS: usize = 60;

type Rows = BTreeMap<i64, i64>;
/// Keys with what they have then.
type Done = Vec<(i64, Option<i64>)>;

/// A stream, and what the table is after each of its transactions, in order.
struct Scripted {
    stream: Stream,
    states: Vec<Rows>,
    /// The values that each key had, in order.
    values: BTreeMap<i64, Vec<Option<i64>>>,
    end: Time,
}

struct Builder {
    random: StdRng,
    stream: Stream,
    mode: Mode,
    /// The open partitions, with their keys.
    live: BTreeMap<String, BTreeSet<i64>>,
    now: Time,
    rows: Rows,
    /// By commit time and transaction.
    done: BTreeMap<(Time, String), Done>,
    next_value: i64,
    next_token: usize,
    /// Keys that a transaction of this very time has changed.
    busy: BTreeSet<i64>,
}

impl Builder {
    fn new(seed: u64, mode: Mode) -> Self {
        let stream = if mode == Mode::Immutable { Stream::new(STREAM) } else { Stream::mutable(STREAM) };
        Self {
            random: StdRng::seed_from_u64(seed),
            stream,
            mode,
            live: BTreeMap::new(),
            now: Time::seconds(1_000_000),
            rows: Rows::new(),
            done: BTreeMap::new(),
            next_value: 1,
            next_token: 0,
            busy: BTreeSet::new(),
        }
    }

    fn token(&mut self) -> String {
        self.next_token += 1;
        format!("p{:03}", self.next_token)
    }

    /// Commit times have microseconds (Spanner's documentation, "Commit timestamps").
    fn pass(&mut self, micros: i64) {
        self.now = self.now.plus_nanos(micros * 1_000);
        self.busy.clear();
    }

    fn build(mut self) -> Scripted {
        let roots = self.random.random_range(1..=3);
        for root in 0..roots {
            let token = self.token();
            self.stream.root(&token, self.now);
            self.live.insert(token, (0..KEYS).filter(|k| k % roots == root).collect());
        }
        for _ in 0..STEPS {
            match self.random.random_range(0..20) {
                0..=11 => self.commit(),
                12..=13 => self.pass(1),
                14..=15 => {
                    let micros = self.random.random_range(1..3_000_000);
                    self.pass(micros);
                }
                16..=17 => self.split(),
                18 => self.merge(),
                _ if self.mode == Mode::MutableKeyRange => self.exchange(),
                _ => self.cut(),
            }
        }
        self.pass(1);
        self.commit();
        self.scripted()
    }

    fn holder(&self, key: i64) -> String {
        let found = self.live.iter().find(|(_, keys)| keys.contains(&key));
        found.map(|(token, _)| token.clone()).expect("every key is in one partition")
    }

    fn commit(&mut self) {
        if self.random.random_ratio(2, 3) {
            self.pass(10);
        }
        let id = format!("{:08}", self.random.random_range(0..100_000_000));
        let table = kv();
        let mut transaction = Committed::at(self.now).id(&id);
        let mut changes = Vec::new();
        for _ in 0..self.random.random_range(1..=6) {
            let key = self.random.random_range(0..KEYS);
            if !self.busy.insert(key) {
                continue;
            }
            let holder = self.holder(key);
            let row = |v: i64| json!({"id": key.to_string(), "v": v.to_string()});
            let value = self.next_value;
            self.next_value += 1;
            match self.rows.get(&key).copied() {
                Some(old) if self.random.random_ratio(1, 4) => {
                    transaction = transaction.delete(&holder, &table, row(old));
                    self.rows.remove(&key);
                    changes.push((key, None));
                }
                old => {
                    transaction = match old {
                        Some(old) => transaction.update(&holder, &table, row(value), json!({"v": old.to_string()})),
                        None => transaction.insert(&holder, &table, row(value)),
                    };
                    self.rows.insert(key, value);
                    changes.push((key, Some(value)));
                }
            }
        }
        if !changes.is_empty() {
            self.stream.commit(transaction);
            self.done.insert((self.now, id), changes);
        }
    }

    fn pick(&mut self) -> String {
        let at = self.random.random_range(0..self.live.len());
        self.live.keys().nth(at).cloned().expect("a partition is open")
    }

    fn split(&mut self) {
        self.pass(1);
        let token = self.pick();
        let count = self.random.random_range(1..=3);
        let children: Vec<String> = (0..count).map(|_| self.token()).collect();
        let names: Vec<&str> = children.iter().map(String::as_str).collect();
        self.stream.split(&token, self.now, &names);
        let keys = self.live.remove(&token).unwrap_or_default();
        // The old partition of a mutable stream keeps a share.
        let mut shares = children;
        if self.mode == Mode::MutableKeyRange {
            shares.push(token);
        }
        let count = shares.len();
        for (at, child) in shares.into_iter().enumerate() {
            let share = keys.iter().enumerate().filter(|(n, _)| n % count == at).map(|(_, k)| *k).collect();
            self.live.insert(child, share);
        }
        self.pass(1);
    }

    fn merge(&mut self) {
        if self.live.len() < 2 {
            return;
        }
        self.pass(1);
        let mut parents = BTreeSet::new();
        while parents.len() < 2 {
            let token = self.pick();
            parents.insert(token);
        }
        let child = self.token();
        let names: Vec<&str> = parents.iter().map(String::as_str).collect();
        self.stream.merge(&names, self.now, &child);
        let keys = parents.iter().flat_map(|p| self.live.remove(p).unwrap_or_default()).collect();
        self.live.insert(child, keys);
        self.pass(1);
    }

    /// Keys move between partitions that exist.
    fn exchange(&mut self) {
        if self.live.len() < 2 {
            return;
        }
        self.pass(1);
        let (from, to) = (self.pick(), self.pick());
        if from == to {
            return;
        }
        let moved = self.give(&from, &to, &BTreeSet::new());
        // Sometimes others move at the very same time.
        if self.random.random_ratio(1, 2) {
            let (from, to) = (self.pick(), self.pick());
            if from != to {
                self.give(&from, &to, &moved);
            }
        }
        self.pass(1);
    }

    /// Half of the keys, but for these.
    fn give(&mut self, from: &str, to: &str, but: &BTreeSet<i64>) -> BTreeSet<i64> {
        self.stream.move_keys(&[from], self.now, &[to]);
        let keys = self.live.remove(from).unwrap_or_default();
        let (moved, kept) = keys.iter().partition(|k| **k % 2 == 0 && !but.contains(k));
        let moved: BTreeSet<i64> = moved;
        self.live.insert(from.to_owned(), kept);
        self.live.entry(to.to_owned()).or_default().extend(moved.iter().copied());
        moved
    }

    /// One of the next queries of a partition breaks off, with an error or as if it were finished.
    fn cut(&mut self) {
        let token = self.pick();
        let query = self.random.random_range(1..=2);
        let after = self.random.random_range(1..=3);
        let codes = [Some(Code::Unavailable), Some(Code::Internal), Some(Code::Aborted), None];
        let code = codes[self.random.random_range(0..codes.len())];
        self.stream.fail(&token, Some(query), after, code);
    }

    fn scripted(self) -> Scripted {
        let (mut rows, mut states) = (Rows::new(), vec![Rows::new()]);
        let mut values: BTreeMap<i64, Vec<Option<i64>>> = BTreeMap::new();
        for changes in self.done.into_values() {
            for (key, value) in changes {
                match value {
                    Some(value) => rows.insert(key, value),
                    None => rows.remove(&key),
                };
                values.entry(key).or_default().push(value);
            }
            states.push(rows.clone());
        }
        Scripted { stream: self.stream, states, values, end: self.now }
    }
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("CASES").unwrap_or(12),
    }
}

/// Reads a scripted stream with stops on the way, while the clock runs through it in random steps.
async fn read(seed: u64, dialect: Dialect, scripted: &Scripted, script: Script, by_key: bool) -> MemorySink {
    let mut random = StdRng::seed_from_u64(seed ^ 0x5eed);
    let from = Time::seconds(1_000_000);
    let fake = Arc::new(script.start());
    let sink = MemorySink::new();
    let build = || {
        let builder = pipeline(&fake, from, &sink);
        if by_key { builder.order(ByKey::new(3)) } else { builder }
    };
    let mut running = start(build()).await;
    while fake.now() < scripted.end {
        let left = scripted.end.0 - fake.now().0;
        fake.set_time(fake.now().plus_nanos(random.random_range(1..=left.max(2) / 2 + 1)));
        tokio::time::sleep(Duration::from_millis(random.random_range(0..10))).await;
        if random.random_ratio(1, 10) {
            running.stop().await.unwrap_or_else(|e| panic!("seed {seed} {dialect:?}: {}", e.report()));
            running = start(build()).await;
        }
    }
    let ticking = Ticking::start(&fake, Duration::from_secs(1));
    drained(&mut running).await;
    drop(ticking);
    running.stop().await.unwrap_or_else(|e| panic!("seed {seed} {dialect:?}: {}", e.report()));
    sink
}

fn chunked(script: Script, seed: u64) -> Script {
    let script = if seed.is_multiple_of(3) { script.constant_resume_tokens() } else { script };
    if seed.is_multiple_of(4) { script.chunked(100) } else { script }
}

async fn whole_transactions_in_commit_order(mode: Mode, dialect: Dialect, seed: u64) {
    println!("SEED={seed} {mode:?} {dialect:?}");
    let scripted = Builder::new(seed, mode).build();
    let begin = script(dialect, scripted.stream.clone(), Time::seconds(1_000_000));
    let sink = read(seed, dialect, &scripted, chunked(begin, seed), false).await;
    let mut reached = 0;
    sink.replay(|_, tables| {
        let now = rows(&tables.rows(&kv_name(dialect)));
        let next = (reached..scripted.states.len()).find(|&at| scripted.states[at] == now);
        reached = next.unwrap_or_else(|| {
            let behind = scripted.states.iter().position(|s| *s == now);
            panic!("seed {seed} {mode:?} {dialect:?}: after state {reached} of the source comes {behind:?}: {now:?}")
        });
    });
    let last = scripted.states.last().expect("a first state");
    let end = rows(&sink.rows(&kv_name(dialect)));
    assert_eq!(end, *last, "seed {seed} {mode:?} {dialect:?}");
}

async fn every_key_in_its_order(mode: Mode, dialect: Dialect, seed: u64) {
    println!("SEED={seed} {mode:?} {dialect:?} by key");
    let scripted = Builder::new(seed, mode).build();
    let begin = script(dialect, scripted.stream.clone(), Time::seconds(1_000_000));
    let sink = read(seed, dialect, &scripted, begin, true).await;
    let mut reached: BTreeMap<i64, usize> = BTreeMap::new();
    sink.replay(|commit, _| {
        let mut last: BTreeMap<i64, Option<i64>> = BTreeMap::new();
        for (_, before, after) in commit.rows() {
            let one = |row: &Vec<_>| rows(std::slice::from_ref(row)).into_iter().next().expect("one row");
            match (before.map(one), after.map(one)) {
                (_, Some((key, value))) => last.insert(key, Some(value)),
                (Some((key, _)), None) => last.insert(key, None),
                (None, None) => None,
            };
        }
        for (key, value) in last {
            let values = &scripted.values[&key];
            let from = reached.get(&key).copied().unwrap_or(0);
            let at = (from..values.len()).find(|&at| values[at] == value);
            let at = at.unwrap_or_else(|| {
                panic!("seed {seed} {mode:?}: key {key} goes to {value:?} after {from} of {values:?}")
            });
            reached.insert(key, at + 1);
        }
    });
    let last = scripted.states.last().expect("a first state");
    assert_eq!(rows(&sink.rows(&kv_name(dialect))), *last, "seed {seed} {mode:?}");
}

const DIALECTS: [Dialect; 2] = [Dialect::GoogleSql, Dialect::PostgreSql];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_of_any_partition_tree_arrive_whole_and_in_order() {
    for seed in seeds() {
        whole_transactions_in_commit_order(Mode::Immutable, DIALECTS[(seed % 2) as usize], seed).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_of_mutable_key_ranges_arrive_whole_and_in_order() {
    for seed in seeds() {
        whole_transactions_in_commit_order(Mode::MutableKeyRange, DIALECTS[(seed % 2) as usize], seed).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_any_partition_tree_keep_their_order() {
    for seed in seeds() {
        every_key_in_its_order(Mode::Immutable, DIALECTS[(seed % 2) as usize], seed).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_mutable_key_ranges_keep_their_order() {
    for seed in seeds() {
        every_key_in_its_order(Mode::MutableKeyRange, DIALECTS[(seed % 2) as usize], seed).await;
    }
}
