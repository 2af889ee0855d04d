//! Versions of rows: late, repeated and competing changes; children before their parents; local times.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_core::{
    BatchBuilder, Claim, DataType, ErrorKind, Lane, LanePurpose, OldImage, Op, Part, PartitionId, Position, Progress,
    Rank, Selection, Sink, SinkWriter, SourceIdentity, TableSchema, Timestamp, Transaction, Unit, UnitId, UnitKind,
    UnitSlice, Value,
};

use crate::server::{Do, Maker, TEXT, database, keyed, lane, table, take_over};
use crate::{row, server};

/// A change of one row, by its version.
#[derive(Debug, Clone, Copy)]
struct Change {
    version: u64,
    id: i64,
    delete: bool,
}

/// A generator of numbers, the same for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// A unit of these changes, each under its own rank.
fn unit(schema: &Arc<TableSchema>, number: u64, changes: &[Change]) -> Unit {
    let mut b = BatchBuilder::new(PartitionId::new("slot"));
    let at = b.schema(schema);
    for change in changes {
        let rank = change.version.to_be_bytes().to_vec().into();
        let commit_time = Some(Timestamp::from_micros(1_700_000_000_000_000 + change.version as i64));
        b.begin(Transaction { rank, commit_time, ..Transaction::default() }, 1);
        let text = Value::from(format!("key {}", change.id).as_str());
        if change.delete {
            b.change(Op::Delete, at);
            b.old_row(OldImage::Key);
            [Value::Int(change.id), text, Value::Unchanged].iter().for_each(|v| b.push(v.as_ref()));
        } else {
            b.change(if change.version % 2 == 0 { Op::Insert } else { Op::Update }, at);
            b.new_row();
            [Value::Int(change.id), text, Value::Int(change.version as i64)].iter().for_each(|v| b.push(v.as_ref()));
        }
    }
    let end = Position::new(Rank::of_end(&number.to_be_bytes()), number.to_string().into_bytes());
    let batch = Arc::new(b.finish(end.clone(), None).expect("a batch"));
    let count = batch.len() as u32;
    Unit {
        id: UnitId(number),
        kind: UnitKind::Stream,
        part: Part::Whole,
        slices: vec![UnitSlice { batch, changes: Selection::Range(0..count) }],
        transactions: 1,
        progress: vec![Progress { partition: PartitionId::new("slot"), position: end, safe_time: None }],
    }
}

async fn writer(sink: &anabranch_mysql::MySql, pipeline: &str) -> Box<dyn SinkWriter> {
    let claim = Claim { pipeline: pipeline.into(), epoch: 1, lanes: 1, identity: SourceIdentity::default() };
    sink.progress().expect("progress").take_over(&claim).await.expect("take over");
    let lane = Lane { pipeline: pipeline.into(), index: 0, count: 1, epoch: 1, purpose: LanePurpose::Stream };
    sink.open(lane).await.expect("open")
}

/// Writes units until each is in; two writers may meet in a deadlock. Gives how many were stale.
async fn write_all(mut writer: Box<dyn SinkWriter>, units: Vec<Unit>) -> u64 {
    let mut stale = 0;
    for unit in units {
        loop {
            match writer.write(&unit).await {
                Ok(written) => break stale += written.stale,
                Err(e) if e.kind() == ErrorKind::Transient => {}
                Err(e) => panic!("{}", e.report()),
            }
        }
    }
    stale
}

/// Any interleaving and repetition, out of order and by two writers at once, ends in the newest row.
#[tokio::test(flavor = "multi_thread")]
async fn the_newest_row_wins_in_any_interleaving() {
    let server = server!();
    for seed in 0..6u64 {
        eprintln!("seed {seed}");
        let mut dice = Dice(seed.wrapping_add(99));
        let mut db = database(server).await;
        db.run("CREATE TABLE t (id bigint, k varchar(20) CHARACTER SET utf8mb4, v bigint, PRIMARY KEY (id, k))").await;
        let schema = keyed("t", &[("id", DataType::Int64), ("k", TEXT), ("v", DataType::Int64)], &[0, 1]);
        let changes: Vec<Change> =
            (1..=150).map(|version| Change { version, id: dice.below(8) as i64, delete: dice.below(4) == 0 }).collect();
        let mut newest: BTreeMap<i64, Change> = BTreeMap::new();
        let mut given: Vec<Change> = Vec::new();
        for change in &changes {
            newest.insert(change.id, *change);
            for _ in 0..=dice.below(3) {
                given.insert(dice.below(given.len() as u64 + 1) as usize, *change);
            }
        }
        let sink = db.sink().versions("shadow_");
        let (mut one, mut two, mut at, mut number) = (Vec::new(), Vec::new(), 0, 0);
        while at < given.len() {
            let count = (dice.below(12) as usize + 1).min(given.len() - at);
            number += 1;
            let unit = unit(&schema, number, &given[at..at + count]);
            if dice.below(2) == 0 {
                one.push(unit)
            } else {
                two.push(unit)
            }
            at += count;
        }
        let (first, second) = (writer(&sink, "p").await, writer(&sink, "q").await);
        let (stale, also) = tokio::join!(write_all(first, one), write_all(second, two));

        let live = newest.values().filter(|c| !c.delete);
        let expected: Vec<String> = live.map(|c| format!("{}|key {}|{}", c.id, c.id, c.version)).collect();
        assert_eq!(db.lines("SELECT id, k, v FROM t ORDER BY id").await, expected, "seed {seed}");
        // The versions of rows that are gone stay; the counters are exact.
        let ledger = db
            .lines(
                "SELECT id, CONV(HEX(anabranch_transaction), 16, 10), anabranch_deleted, \
                 TIMESTAMPDIFF(MICROSECOND, '2023-11-14 22:13:20', anabranch_commit_time) FROM shadow_t ORDER BY id",
            )
            .await;
        let versions: Vec<String> =
            newest.values().map(|c| format!("{}|{}|{}|{}", c.id, c.version, u8::from(c.delete), c.version)).collect();
        assert_eq!(ledger, versions, "seed {seed}");
        let counted = db.lines("SELECT SUM(changes), SUM(stale) FROM anabranch_lane").await;
        assert_eq!(counted, [format!("{}|{}", given.len(), stale + also)], "seed {seed}");
    }
}

#[tokio::test]
async fn an_equal_version_is_stale_and_what_has_none_is_refused() {
    let server = server!();
    let mut db = database(server).await;
    db.run("CREATE TABLE t (id bigint, k varchar(20) CHARACTER SET utf8mb4, v bigint, PRIMARY KEY (id, k))").await;
    let schema = keyed("t", &[("id", DataType::Int64), ("k", TEXT), ("v", DataType::Int64)], &[0, 1]);
    let sink = db.sink().versions("shadow_");
    let mut writer = writer(&sink, "p").await;
    let same = unit(&schema, 1, &[Change { version: 5, id: 1, delete: false }]);
    assert_eq!(writer.write(&same).await.unwrap().stale, 0);
    let again = unit(&schema, 2, &[Change { version: 5, id: 1, delete: false }]);
    assert_eq!(writer.write(&again).await.unwrap().stale, 1);
    let mut maker = Maker::default();
    let truncate = maker.stream(&[(&schema, Do::Truncate)]);
    let error = writer.write(&truncate).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Rejected && error.report().contains("has no version"), "{}", error.report());
    let keyless = keyed("t", &[("id", DataType::Int64), ("k", TEXT), ("v", DataType::Int64)], &[]);
    let error = writer.write(&maker.stream(&[(&keyless, Do::Insert(row![1, "a", 1]))])).await.unwrap_err();
    assert!(error.report().contains("no key"), "{}", error.report());
}

/// Constraints that cannot be deferred: within one transaction, and in units of several, a child may
/// come before its parent, and a parent go before its child.
#[tokio::test]
async fn children_may_come_before_their_parents() {
    let server = server!();
    let mut db = database(server).await;
    db.run("CREATE TABLE parent (id bigint PRIMARY KEY)").await;
    db.run(
        "CREATE TABLE child (id bigint PRIMARY KEY, parent bigint NOT NULL, \
         FOREIGN KEY (parent) REFERENCES parent (id) ON DELETE CASCADE)",
    )
    .await;
    let parent = table("parent", &[("id", DataType::Int64)]);
    let child = table("child", &[("id", DataType::Int64), ("parent", DataType::Int64)]);
    let mut maker = Maker::default();
    let mut writer = db.writer(1).await;
    let unit = maker.stream(&[(&child, Do::Insert(row![1, 7])), (&parent, Do::Insert(row![7]))]);
    assert!(writer.write(&unit).await.is_ok());
    assert_eq!(db.lines("SELECT c.id, p.id FROM child c JOIN parent p ON p.id = c.parent").await, ["1|7"]);
    let gone = maker.stream(&[
        (&parent, Do::Delete(OldImage::Key, row![7])),
        (&child, Do::Move(OldImage::Key, row![1, 7], row![1, 8])),
        (&parent, Do::Insert(row![8])),
    ]);
    assert!(writer.write(&gone).await.is_ok());
    assert_eq!(db.lines("SELECT c.id, p.id FROM child c JOIN parent p ON p.id = c.parent").await, ["1|8"]);
}

#[tokio::test]
async fn instants_become_local_times_where_they_are_asked_for() {
    let server = server!();
    let mut db = database(server).await;
    db.run("CREATE TABLE t (id bigint PRIMARY KEY, at datetime(6), instant timestamp(6) NULL, local datetime(6))")
        .await;
    let columns = [
        ("id", DataType::Int64),
        ("at", DataType::TimestampTz),
        ("instant", DataType::TimestampTz),
        ("local", DataType::Timestamp),
    ];
    let schema = table("t", &columns);
    let sink = db.sink().time_zone("-03:30".parse().unwrap());
    take_over(&sink, 1).await;
    let mut writer = sink.open(lane(1, LanePurpose::Stream)).await.unwrap();
    let instant = "2024-03-01 01:02:03.456789+00";
    let unit = Maker::default().stream(&[
        (&schema, Do::Insert(row![1, instant, instant, "2024-03-01 01:02:03.456789"])),
        (&schema, Do::Insert(row![2, Value::Null, Value::Null, Value::Null])),
    ]);
    assert!(writer.write(&unit).await.is_ok());
    let expected = [
        "1|2024-02-29 21:32:03.456789|2024-03-01 01:02:03.456789|2024-03-01 01:02:03.456789".to_owned(),
        "2|~|~|~".to_owned(),
    ];
    assert_eq!(db.lines("SELECT * FROM t ORDER BY id").await, expected);
    for wrong in ["10:00", "+1:00", "+15:00", "+10:60", "Z", "", "+10:0a"] {
        assert!(wrong.parse::<anabranch_mysql::TimeZone>().is_err(), "{wrong}");
    }
}
