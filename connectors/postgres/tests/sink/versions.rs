//! Versions of rows: late, repeated and competing changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_core::*;
use anabranch_postgres::PostgresSink;

use crate::support::databases;

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

fn schema() -> Arc<TableSchema> {
    let text = DataType::Text { max_chars: None };
    let columns = vec![Column::new("id", DataType::Int64), Column::new("k", text), Column::new("v", DataType::Int64)];
    Arc::new(TableSchema { name: TableName::new("public", "t"), columns, key: vec![0, 1] })
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
    let batch = Arc::new(b.finish(end.clone(), None).unwrap());
    Unit {
        id: UnitId(number),
        kind: UnitKind::Stream,
        part: Part::Whole,
        slices: vec![UnitSlice { changes: Selection::Range(0..batch.len() as u32), batch }],
        transactions: 1,
        progress: vec![Progress { partition: PartitionId::new("slot"), position: end, safe_time: None }],
    }
}

async fn writer(sink: &PostgresSink, pipeline: &str) -> Box<dyn SinkWriter> {
    let claim = Claim { pipeline: pipeline.into(), epoch: 1, lanes: 1, identity: SourceIdentity::default() };
    sink.progress().unwrap().take_over(&claim).await.unwrap();
    let lane = Lane { pipeline: pipeline.into(), index: 0, count: 1, epoch: 1, purpose: LanePurpose::Stream };
    sink.open(lane).await.unwrap()
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
    for (seed, db) in databases().into_iter().enumerate() {
        let mut dice = Dice(seed as u64 + 7);
        db.exec("CREATE TABLE t (id bigint, k text, v bigint, PRIMARY KEY (id, k))");
        let schema = schema();
        let mut newest: BTreeMap<i64, Change> = BTreeMap::new();
        let mut given: Vec<Change> = Vec::new();
        for version in 1..=150 {
            let change = Change { version, id: dice.below(8) as i64, delete: dice.below(4) == 0 };
            newest.insert(change.id, change);
            for _ in 0..=dice.below(3) {
                given.insert(dice.below(given.len() as u64 + 1) as usize, change);
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
        // Origins are shared by all databases of a server: names of this database's own.
        let (p, q) = (format!("{}_p", db.name), format!("{}_q", db.name));
        let (first, second) = (writer(&sink, &p).await, writer(&sink, &q).await);
        let (stale, also) = tokio::join!(write_all(first, one), write_all(second, two));

        let live = newest.values().filter(|c| !c.delete);
        let expected: Vec<String> = live.map(|c| format!("{}|key {}|{}", c.id, c.id, c.version)).collect();
        assert_eq!(db.rows("SELECT id, k, v FROM t ORDER BY id"), expected);
        // The versions of rows that are gone stay; the counters are exact.
        let versions: Vec<String> =
            newest.values().map(|c| format!("{}|{:016x}|1|{}|{}", c.id, c.version, c.delete, c.version)).collect();
        let ledger = "SELECT id, encode(anabranch_transaction, 'hex'), anabranch_sequence, anabranch_deleted::text, \
                      (extract(epoch FROM anabranch_commit_time) * 1000000)::bigint - 1700000000000000 \
                      FROM shadow_t ORDER BY id";
        assert_eq!(db.rows(ledger), versions);
        let counted = db.rows("SELECT sum(changes), sum(stale) FROM anabranch.lane");
        assert_eq!(counted, [format!("{}|{}", given.len(), stale + also)]);
    }
}
