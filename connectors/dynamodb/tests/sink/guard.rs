//! Any interleaving, any repetition: the newest version of each key wins.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anabranch_core::{
    DataType, ErrorKind, LanePurpose, PartitionId, Position, Progress, ProgressStore, Rank, Sink, SinkWriter,
    SourceIdentity, TableSchema, TargetSchema, Unit, UnitKind, Value,
};
use anabranch_dynamodb::types::Item;
use anabranch_dynamodb::{DynamoDbSink, Versions};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::support::*;

const KEYS: i64 = 4;

fn counters(name: &str) -> Arc<TableSchema> {
    table(name, &[("id", DataType::Int64), ("made_by", DataType::Int64), ("note", text())], 1)
}

/// A history over few keys: who came, changed, changed in part, and went.
fn history(random: &mut StdRng, length: u64) -> Vec<Do> {
    let mut alive: BTreeMap<i64, Vec<Value>> = BTreeMap::new();
    let mut all = Vec::new();
    for n in 1..=length as i64 {
        let id = random.random_range(1..=KEYS);
        let note = Value::from(format!("note {n}").as_str());
        all.push(match alive.get(&id).cloned() {
            None => {
                let row = vec![id.into(), n.into(), note];
                alive.insert(id, row.clone());
                Do::Insert(row)
            }
            Some(_) if random.random_bool(0.3) => {
                alive.remove(&id);
                Do::Delete(vec![id.into(), Value::Unchanged, Value::Unchanged])
            }
            Some(row) if random.random_bool(0.4) => {
                alive.insert(id, vec![id.into(), n.into(), row[2].clone()]);
                Do::Update(vec![id.into(), n.into(), Value::Unchanged])
            }
            Some(_) => {
                let row = vec![id.into(), n.into(), note];
                alive.insert(id, row.clone());
                Do::Update(row)
            }
        });
    }
    all
}

/// Which transaction made the live row of each key, and its note, after the whole history.
fn expected(history: &[Do]) -> BTreeMap<String, (String, String)> {
    let mut alive: BTreeMap<String, (String, String)> = BTreeMap::new();
    let shown = |v: &Value| match v {
        Value::Int(v) => v.to_string(),
        Value::Text(v) => v.clone(),
        other => panic!("{other:?}"),
    };
    for change in history {
        match change {
            Do::Insert(row) | Do::Update(row) => {
                let old = alive.remove(&shown(&row[0]));
                let note = match &row[2] {
                    Value::Unchanged => old.expect("a row to change").1,
                    note => shown(note),
                };
                alive.insert(shown(&row[0]), (shown(&row[1]), note));
            }
            Do::Delete(key) => drop(alive.remove(&shown(&key[0]))),
            Do::Move(..) => {}
        }
    }
    alive
}

fn live(items: &[Item]) -> BTreeMap<String, (String, String)> {
    let n = |item: &Item, name: &str| item[name].as_n().expect("a number").clone();
    let live = items.iter().filter(|i| !i.contains_key("anabranch:deleted"));
    live.map(|i| (n(i, "id"), (n(i, "made_by"), i["note"].as_s().expect("a text").clone()))).collect()
}

/// Writes runs of the history, now and then from an earlier place, until it is through; `gives_up`
/// leaves it somewhere.
async fn replay(mut writer: Box<dyn SinkWriter>, units: Arc<Vec<Unit>>, mut random: StdRng, gives_up: bool) {
    let mut at = 0;
    let mut jumps = 0;
    while at < units.len() {
        let run = random.random_range(1..=5).min(units.len() - at);
        let unit = anabranch_testkit::units::merge(&units[at..at + run]);
        match writer.write(&unit).await {
            Ok(written) => assert!(written.rejected.is_empty()),
            Err(e) => panic!("{}", e.report()),
        }
        at += run;
        if gives_up && random.random_bool(0.1) {
            return;
        }
        if jumps < 6 && random.random_bool(0.3) {
            jumps += 1;
            at = random.random_range(0..=at);
        }
    }
    writer.flush().await.expect("flush");
}

/// Two writers and a zombie, of one source, that know nothing of each other: as if each of them had
/// passed the look at the epoch before it was paused.
async fn interleave(seed: u64, versions: Versions) {
    let Some(server) = server() else { return };
    let name = format!("interleaved_{seed}_{versions:?}");
    let schema = counters(&name);
    let sink = DynamoDbSink::new(access(&server)).versions(versions);
    create(&sink, &schema).await;
    let mut random = StdRng::seed_from_u64(seed);
    let history = history(&mut random, 60);
    let units: Vec<Unit> =
        (1..).zip(&history).map(|(n, change)| unit(n, &schema, std::slice::from_ref(change))).collect();
    let units = Arc::new(units);
    let mut tasks = Vec::new();
    for w in 0..3 {
        let sink = DynamoDbSink::new(access(&server)).versions(versions);
        let writer = writer(&sink, &format!("{name}-{w}"), 1).await;
        let random = StdRng::seed_from_u64(seed * 10 + w);
        tasks.push(tokio::spawn(replay(writer, Arc::clone(&units), random, w == 2)));
    }
    let done = Arc::new(AtomicBool::new(false));
    let watching = watch(&server, name.clone(), Arc::clone(&done)).await;
    for task in tasks {
        task.await.expect("a writer");
    }
    done.store(true, Ordering::Relaxed);
    if versions == Versions::Attribute {
        watching.await.expect("the watcher");
    }
    let client = client(&server).await;
    assert_eq!(live(&items(&client, &name).await), expected(&history), "seed {seed} (left: target)");
}

/// No reader ever sees a version go back.
async fn watch(
    server: &anabranch_servers::DynamoServer,
    name: String,
    done: Arc<AtomicBool>,
) -> tokio::task::JoinHandle<()> {
    let client = client(server).await;
    tokio::spawn(async move {
        let mut newest: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        while !done.load(Ordering::Relaxed) {
            for item in items(&client, &name).await {
                let Some(version) = item.get("anabranch:version").and_then(|v| v.as_b().ok()) else { continue };
                let id = item["id"].as_n().expect("a number").clone();
                let before = newest.insert(id.clone(), version.as_ref().to_vec()).unwrap_or_default();
                assert!(before <= version.as_ref().to_vec(), "{id} went back");
            }
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_writers_and_a_zombie_in_any_order() {
    for seed in 0..6 {
        interleave(seed, Versions::Attribute).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_writers_and_a_zombie_with_versions_in_a_table() {
    for seed in 6..8 {
        interleave(seed, Versions::Table).await;
    }
}

#[tokio::test]
async fn what_is_deleted_is_not_brought_back() {
    let Some(server) = server() else { return };
    for versions in [Versions::Attribute, Versions::Table] {
        let name = format!("deleted_{versions:?}");
        let schema = counters(&name);
        let sink = DynamoDbSink::new(access(&server)).versions(versions);
        create(&sink, &schema).await;
        let row = || vec![1.into(), 1.into(), "x".into()];
        let insert = unit(1, &schema, &[Do::Insert(row())]);
        let delete = unit(2, &schema, &[Do::Delete(vec![1.into(), Value::Unchanged, Value::Unchanged])]);
        let mut writer = writer(&sink, &name, 1).await;
        for unit in [&insert, &delete, &insert, &insert] {
            let _ = writer.write(unit).await.unwrap();
        }
        let client = client(&server).await;
        assert!(live(&items(&client, &name).await).is_empty(), "{versions:?}");
        let found = items(&client, &name).await;
        match versions {
            // The time to live removes the tombstone, and nothing else.
            Versions::Attribute => {
                let expires: i64 = found[0]["anabranch:expires"].as_n().unwrap().parse().unwrap();
                let now = anabranch_core::Timestamp::now().as_micros() / 1_000_000;
                assert!((now + 6 * 86_400..now + 8 * 86_400).contains(&expires));
            }
            Versions::Table => assert!(found.is_empty(), "readers see no tombstone"),
        }
        assert!(sink.is_empty(&schema.name).await.unwrap());
        // A later insert is one.
        let _ = writer.write(&unit(3, &schema, &[Do::Insert(row())])).await.unwrap();
        assert_eq!(live(&items(&client, &name).await).len(), 1);
        assert!(!sink.is_empty(&schema.name).await.unwrap());
    }
}

#[tokio::test]
async fn an_item_that_moved_to_another_key_stays_there_when_all_is_replayed() {
    let Some(server) = server() else { return };
    for versions in [Versions::Attribute, Versions::Table] {
        let name = format!("moved_{versions:?}");
        let schema = counters(&name);
        let sink = DynamoDbSink::new(access(&server)).versions(versions);
        create(&sink, &schema).await;
        let insert = unit(1, &schema, &[Do::Insert(vec![1.into(), 1.into(), "x".into()])]);
        let old = vec![1.into(), Value::Unchanged, Value::Unchanged];
        let moved = unit(2, &schema, &[Do::Move(old, vec![2.into(), 2.into(), Value::Unchanged])]);
        let mut writer = writer(&sink, &name, 1).await;
        for unit in [&insert, &moved, &moved, &insert, &moved] {
            let _ = writer.write(unit).await.unwrap();
        }
        let there = live(&items(&client(&server).await, &name).await);
        assert_eq!(there, BTreeMap::from([("2".to_owned(), ("2".to_owned(), "x".to_owned()))]), "{versions:?}");
    }
}

#[tokio::test]
async fn a_snapshot_never_covers_a_change_of_the_stream() {
    let Some(server) = server() else { return };
    let schema = counters("copied_late");
    let sink = DynamoDbSink::new(access(&server));
    create(&sink, &schema).await;
    let mut stream = writer(&sink, "copied-late", 1).await;
    let gone = Do::Delete(vec![1.into(), Value::Unchanged, Value::Unchanged]);
    let _ = stream.write(&unit(5, &schema, &[gone, Do::Insert(vec![2.into(), 5.into(), "new".into()])])).await.unwrap();
    let mut copy = sink.open(lane("copied-late", 1, LanePurpose::Snapshot)).await.unwrap();
    let rows: Vec<Do> = (1..=3).map(|id| Do::Insert(vec![id.into(), 0.into(), "old".into()])).collect();
    let chunk = Unit { kind: UnitKind::Snapshot, progress: Vec::new(), transactions: 0, ..unit(1, &schema, &rows) };
    let _ = copy.write(&chunk).await.unwrap();
    let row = |by: &str, note: &str| (by.to_owned(), note.to_owned());
    let expected = BTreeMap::from([("2".to_owned(), row("5", "new")), ("3".to_owned(), row("0", "old"))]);
    assert_eq!(live(&items(&client(&server).await, "copied_late").await), expected);
}

#[tokio::test]
async fn a_later_generation_fences_an_earlier_one() {
    let Some(server) = server() else { return };
    let schema = counters("generations");
    let sink = DynamoDbSink::new(access(&server));
    create(&sink, &schema).await;
    let mut old = writer(&sink, "generations-old", 1).await;
    let insert = |n: u64| unit(n, &schema, &[Do::Insert(vec![1.into(), (n as i64).into(), "x".into()])]);
    let _ = old.write(&insert(9)).await.unwrap();
    // Another slot: its positions begin anew, and are not compared with those of the first.
    let identity = SourceIdentity::default().with("slot", "another");
    let claim = anabranch_core::Claim { identity, ..claim("generations-new", 1) };
    sink.take_over(&claim).await.unwrap();
    let mut new = sink.open(lane("generations-new", 1, LanePurpose::Stream)).await.unwrap();
    let _ = new.write(&insert(1)).await.unwrap();
    assert_eq!(live(&items(&client(&server).await, "generations").await)["1"].0, "1");
    let error = old.write(&insert(10)).await.expect_err("a write of an earlier generation");
    assert_eq!(error.kind(), ErrorKind::Fenced, "{}", error.report());
}

/// The runtime tries a letter again under a partition and a rank that it makes up.
#[tokio::test]
async fn a_letter_that_is_tried_again_is_as_new_as_it_was() {
    let Some(server) = server() else { return };
    let schema = counters("letters_again");
    let sink = DynamoDbSink::new(access(&server));
    create(&sink, &schema).await;
    let mut writer = writer(&sink, "letters-again", 1).await;
    let row = |by: i64| Do::Insert(vec![1.into(), by.into(), "x".into()]);
    let _ = writer.write(&unit(5, &schema, &[row(5)])).await.unwrap();
    let mut letter = unit(0, &schema, &[row(7)]);
    let id = format!("slot:{:?}", Rank::of_change(&7u64.to_be_bytes(), 1));
    let position = Position::new(Rank::of_end(&[0; 8]), id.into_bytes());
    letter.progress = vec![Progress { partition: PartitionId::new("dead-letters"), position, safe_time: None }];
    let _ = writer.write(&letter).await.unwrap();
    assert_eq!(live(&items(&client(&server).await, "letters_again").await)["1"].0, "7");
}

/// The table of versions is made by whichever lane comes first; the others find it on the way.
#[tokio::test(flavor = "multi_thread")]
async fn lanes_that_begin_together_make_one_table_of_versions() {
    let Some(server) = anabranch_servers::dynamodb() else { return };
    let schema = counters("together");
    let sink = DynamoDbSink::new(access(&server)).versions(Versions::Table);
    create(&sink, &schema).await;
    sink.take_over(&anabranch_core::Claim { lanes: 8, ..claim("together", 1) }).await.unwrap();
    let mut lanes = Vec::new();
    for index in 0..8 {
        let lane = anabranch_core::Lane { index, count: 8, ..lane("together", 1, LanePurpose::Stream) };
        lanes.push(sink.open(lane).await.unwrap());
    }
    let writes = (0..).zip(&mut lanes).map(|(at, lane)| {
        let unit = unit(1, &schema, &[Do::Insert(vec![Value::Int(at), Value::Int(1), Value::from("x")])]);
        async move { lane.write(&unit).await.map(drop) }
    });
    for written in futures_util::future::join_all(writes).await {
        written.unwrap_or_else(|e| panic!("{}", e.report()));
    }
    assert_eq!(items(&client(&server).await, "together").await.len(), 8);
}
