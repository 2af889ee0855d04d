//! Transactions: tags, limits, retries, unknown outcomes.
//!
//! On the in-process fake where the emulator cannot do it: it shows what was committed with which
//! tag, and fails commits on demand.

use std::sync::Arc;

use anabranch_core::memory::MemorySource;
use anabranch_core::{
    BatchBuilder, Claim, Column, DataType, Error, ErrorKind, Lane, LanePurpose, Op, Part, PartitionId, Position,
    Progress, ProgressStore, Rank, Selection, Sink, SinkWriter, SourceIdentity, StartFrom, TableName, TableSchema,
    Transaction, Unit, UnitId, UnitKind, UnitSlice, Value,
};
use anabranch_spanner::SpannerSink;
use anabranch_spanner_fake::{Dialect, FakeSpanner, Script, Table};
use anabranch_testkit::units;
use tonic::Code;

use crate::support::{DIALECTS, Target};

const PIPELINE: &str = "a pipeline whose name is much longer than the tag of a transaction";

/// The tables that the sink keeps for itself, and one of items. DDL goes by REST, which the fake has not.
fn fake(dialect: Dialect) -> FakeSpanner {
    let lane = Table::new("anabranch_lane").key("pipeline", "STRING").key("lane", "INT64").column("lanes", "INT64");
    let lane = ["epoch", "changes", "transactions", "snapshot_rows", "dead_letters"]
        .iter()
        .fold(lane, |t, name| t.column(name, "INT64"));
    let lane = lane.column("identity", "STRING").column("updated_at", "TIMESTAMP");
    let position = Table::new("anabranch_position").key("pipeline", "STRING").key("lane", "INT64");
    let position = position.key("partition_id", "STRING").column("position", "STRING").column("safe_time", "INT64");
    let items = Table::new("items").key("id", "INT64").column("note", "STRING");
    Script::new().dialect(dialect).table(lane).table(position).table(items).start()
}

fn items() -> TableSchema {
    let note = DataType::Text { max_chars: None };
    let columns = vec![Column::new("id", DataType::Int64), Column::new("note", note)];
    TableSchema { name: TableName::new("public", "items"), columns, key: vec![0] }
}

fn claim(epoch: u64) -> Claim {
    Claim { pipeline: PIPELINE.into(), epoch, lanes: 1, identity: SourceIdentity::default().with("slot", "s") }
}

fn lane(epoch: u64) -> Lane {
    Lane { pipeline: PIPELINE.into(), index: 0, count: 1, epoch, purpose: LanePurpose::Stream }
}

async fn writer(sink: &SpannerSink) -> Box<dyn SinkWriter> {
    sink.take_over(&claim(1)).await.unwrap();
    sink.open(lane(1)).await.unwrap()
}

/// A unit for each row that is inserted.
async fn inserts(table: &TableSchema, rows: impl IntoIterator<Item = Vec<Value>>) -> Vec<Unit> {
    let source = MemorySource::new("source").table(table.clone());
    for row in rows {
        source.transaction().insert(&table.name, row).commit().unwrap();
    }
    units::by_transaction(&units::read_source(&source, &StartFrom::default(), &source.end()).await)
}

fn item(id: i64) -> Vec<Value> {
    vec![id.into(), format!("note {id}").as_str().into()]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_transaction_is_tagged_and_left_out_of_change_streams() {
    for dialect in [Dialect::GoogleSql, Dialect::PostgreSql] {
        let fake = fake(dialect);
        let sink = SpannerSink::new(FakeSpanner::DATABASE).endpoint(fake.endpoint());
        let units = inserts(&items(), [item(1), item(2)]).await;
        let mut lane_0 = writer(&sink).await;
        let _ = lane_0.write(&units[0]).await.unwrap();
        let other = sink.clone().tag("txBy=other").exclude_from_change_streams(false);
        let mut lane_0 = other.open(lane(1)).await.unwrap();
        let _ = lane_0.write(&units[1]).await.unwrap();

        let commits = fake.commits();
        let tags: Vec<_> = commits.iter().map(|c| (c.tag.as_str(), c.excluded)).collect();
        let own = ("txBy=a pipeline whose name is much longer than the", true);
        assert_eq!(tags, [own, own, ("txBy=other", false)]);
        assert_eq!(fake.rows("items").len(), 2);
        // The lane's row, the item, the position: one transaction.
        assert_eq!(commits[1].mutations.len(), 3);
    }
}

/// A large transaction whose first part has messages and no rows.
#[tokio::test(flavor = "multi_thread")]
async fn a_part_without_rows_begins_a_transaction_too() {
    let fake = fake(Dialect::GoogleSql);
    let sink = SpannerSink::new(FakeSpanner::DATABASE).endpoint(fake.endpoint());
    let mut writer = writer(&sink).await;
    let mut batch = BatchBuilder::new(PartitionId::new("slot"));
    let schema = batch.schema(&Arc::new(items()));
    batch.begin(Transaction { rank: vec![1].into(), ..Transaction::default() }, 1);
    batch.message("outbox", b"content");
    batch.change(Op::Insert, schema);
    batch.new_row();
    item(1).iter().for_each(|v| batch.push(v.as_ref()));
    let end = Position::new(Rank::of_end(&[1]), "1");
    batch.commit(end.clone());
    let batch = Arc::new(batch.finish(end.clone(), None).unwrap());
    let part = |part, changes, progress| Unit {
        id: UnitId(1),
        kind: UnitKind::Stream,
        part,
        slices: vec![UnitSlice { batch: Arc::clone(&batch), changes: Selection::Range(changes) }],
        transactions: u64::from(part == Part::Last),
        progress,
    };
    let _ = writer.write(&part(Part::First, 0..1, Vec::new())).await.unwrap();
    let progress = Progress { partition: PartitionId::new("slot"), position: end, safe_time: None };
    let _ = writer.write(&part(Part::Last, 1..2, vec![progress])).await.unwrap();
    assert_eq!(fake.rows("items").len(), 1);
    let stored = sink.read(PIPELINE).await.unwrap().remove(0);
    assert_eq!((stored.counters.changes, stored.counters.transactions), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aborted_transaction_is_done_again_and_a_lost_commit_is_indeterminate() {
    let fake = fake(Dialect::GoogleSql);
    let sink = SpannerSink::new(FakeSpanner::DATABASE).endpoint(fake.endpoint());
    let units = inserts(&items(), (1..=4).map(item)).await;
    let mut writer = writer(&sink).await;
    fake.fail_commit(Code::Aborted, false);
    fake.fail_commit(Code::Aborted, false);
    let _ = writer.write(&units[0]).await.unwrap();
    assert_eq!(fake.rows("items").len(), 1);

    // Whether it took effect or not, the stored progress tells.
    for (unit, takes_effect) in [(&units[1], true), (&units[2], false)] {
        fake.fail_commit(Code::Internal, takes_effect);
        let error: Error = writer.write(unit).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Indeterminate, "{}", error.report());
        let stored = sink.read(PIPELINE).await.unwrap().remove(0);
        let position = stored.partitions.values().next().unwrap();
        assert_eq!(*position == unit.progress[0], takes_effect);
    }
    fake.fail_commit(Code::FailedPrecondition, false);
    let error = writer.write(&units[3]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected, "{}", error.report());
    let _ = writer.write(&units[3]).await.unwrap();
    assert_eq!(fake.rows("items").len(), 3);
}

/// The client waits for a server that is gone; what it says then, if it says anything, is to be retried.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_back_is_written_on() {
    let fake = fake(Dialect::GoogleSql);
    let sink = SpannerSink::new(FakeSpanner::DATABASE).endpoint(fake.endpoint());
    let units = inserts(&items(), (1..=2).map(item)).await;
    let mut writer = writer(&sink).await;
    let _ = writer.write(&units[0]).await.unwrap();
    fake.kill();
    let unit = units[1].clone();
    let written = tokio::spawn(async move {
        while let Err(error) = writer.write(&unit).await {
            assert!(matches!(error.kind(), ErrorKind::Transient | ErrorKind::Indeterminate), "{}", error.report());
        }
    });
    fake.restart();
    tokio::time::timeout(std::time::Duration::from_secs(120), written).await.expect("in two minutes").unwrap();
    assert_eq!(fake.rows("items").len(), 2);
}

/// Wide rows: many mutations with few rows.
fn wide(columns: usize) -> TableSchema {
    let mut all = vec![Column { nullable: false, ..Column::new("id", DataType::Int64) }];
    all.extend((1..columns).map(|n| Column::new(format!("c{n}"), DataType::Int64)));
    TableSchema { name: TableName::new("public", "wide"), columns: all, key: vec![0] }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_unit_becomes_several_transactions_and_a_transaction_beyond_the_limit_is_rejected() {
    let Some(target) = Target::new(DIALECTS[0], &[]) else { return };
    let sink = target.sink();
    let table = wide(401);
    anabranch_core::TargetSchema::create(&sink, &table).await.unwrap();
    let row = |id: i64| -> Vec<Value> { std::iter::once(id.into()).chain((1..401).map(Value::Int)).collect() };
    let mut writer = writer(&sink).await;
    let units = inserts(&table, (0..120).map(row)).await;
    // 48,120 mutations: three transactions, of which the progress is that of the last.
    let merged = units::merge(&units);
    let _ = writer.write(&merged).await.unwrap();
    let count = target.rows("SELECT COUNT(*) FROM wide");
    assert_eq!(count, [[Some("120".to_owned())]]);
    let stored = sink.read(PIPELINE).await.unwrap().remove(0);
    assert_eq!(stored.partitions.into_values().collect::<Vec<_>>(), merged.progress);
    assert_eq!((stored.counters.changes, stored.counters.transactions), (120, 120));

    // One source transaction of 80,200.
    let source = MemorySource::new("source").table(table.clone());
    let one = (1000..1200).fold(source.transaction(), |t, id| t.insert(&table.name, row(id)));
    one.commit().unwrap();
    let unit =
        units::by_transaction(&units::read_source(&source, &StartFrom::default(), &source.end()).await).remove(0);
    for parts in [vec![unit.clone()], units::in_parts(&unit, 50)] {
        let mut refused = None;
        for part in &parts {
            if let Err(error) = writer.write(part).await {
                refused = Some(error);
                break;
            }
        }
        let refused = refused.expect("more than a transaction may have");
        assert_eq!(refused.kind(), ErrorKind::Rejected, "{}", refused.report());
        assert!(refused.report().contains("80000 mutations"), "{}", refused.report());
    }
    assert_eq!(target.rows("SELECT COUNT(*) FROM wide"), [[Some("120".to_owned())]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn lanes_write_at_the_same_time() {
    let Some(target) = Target::new(DIALECTS[0], &[]) else { return };
    let sink = target.sink();
    anabranch_core::TargetSchema::create(&sink, &items()).await.unwrap();
    let lanes = 4;
    sink.take_over(&Claim { lanes, ..claim(1) }).await.unwrap();
    let units = Arc::new(inserts(&items(), (0..40).map(item)).await);
    let write = |index: u32| {
        let (sink, units) = (sink.clone(), Arc::clone(&units));
        tokio::spawn(async move {
            let mut writer = sink.open(Lane { index, count: lanes, ..lane(1) }).await.unwrap();
            for unit in units.iter().skip(index as usize).step_by(lanes as usize) {
                // The emulator has one read-write transaction at a time, and drops the others.
                while let Err(error) = writer.write(unit).await {
                    let retried = matches!(error.kind(), ErrorKind::Transient | ErrorKind::Indeterminate);
                    assert!(retried, "{}", error.report());
                }
            }
        })
    };
    for task in (0..lanes).map(write).collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert_eq!(target.rows("SELECT COUNT(*) FROM items"), [[Some("40".to_owned())]]);
}
