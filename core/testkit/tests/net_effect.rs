//! The net effect of a unit is the effect of its changes in order.

use std::collections::BTreeMap;

use anabranch_core::memory::{MemorySink, Row};
use anabranch_core::net_effect::{NetRow, Step, TableEffect, key_bytes, steps};
use anabranch_core::{
    ChangeRef, Claim, Lane, LanePurpose, OldImage, Op, ProgressStore, RowRef, Sink, SourceIdentity, StartFrom,
    TableName, TableSchema, Unit, Value,
};
use anabranch_testkit::generator::{Generator, customers, events, lines, waits};
use anabranch_testkit::units;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn net_effect_is_in_order_effect(seed: u64, full_old_rows: bool, unsent: bool, batch in 1usize..20, keys in 2i64..10) {
        run(seed, full_old_rows, unsent, batch, keys);
    }
}

fn run(seed: u64, full_old_rows: bool, unsent: bool, batch_changes: usize, keys: i64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let tables = vec![customers(), lines(), events(), waits()];
        let mut generator = Generator::new(seed, tables.clone()).keys(keys);
        let mut source = generator.source().batch_changes(batch_changes);
        for table in &tables {
            source = if full_old_rows { source.full_old_rows(&table.name) } else { source };
            source = if unsent {
                source.unsent_columns(&table.name, &(0..table.columns.len()).collect::<Vec<_>>())
            } else {
                source
            };
        }
        generator.write(&source, 30, 12);

        let sink = MemorySink::new();
        let (pipeline, epoch) = ("p".into(), 1);
        let claim = Claim { pipeline, epoch, lanes: 1, identity: SourceIdentity::default() };
        sink.take_over(&claim).await.unwrap();
        let lane = Lane { pipeline: claim.pipeline, index: 0, count: 1, epoch, purpose: LanePurpose::Stream };
        let mut writer = sink.open(lane).await.unwrap();
        let batches = units::read_source(&source, &StartFrom::default(), &source.end()).await;
        let transactions = units::by_transaction(&batches);
        let mut model = Model { tables: BTreeMap::new(), random: StdRng::seed_from_u64(seed) };
        let mut rest = &transactions[..];
        while !rest.is_empty() {
            let (some, others) = rest.split_at(model.random.random_range(1..=rest.len().min(6)));
            let unit = units::merge(some);
            let _ = writer.write(&unit).await.unwrap();
            model.apply(&unit);
            for table in &tables {
                let mut expected = sink.rows(&table.name);
                let mut found = model.rows(&table.name);
                expected.sort_by_key(|r| format!("{r:?}"));
                found.sort_by_key(|r| format!("{r:?}"));
                assert_eq!(found, expected, "{} after {}", table.name, some.len());
            }
            rest = others;
        }
        assert_eq!(source.tables().difference(&sink.tables()), None);
    });
}

/// Applies steps as a target without constraints does.
struct Model {
    tables: BTreeMap<TableName, Vec<(Vec<u8>, Row)>>,
    random: StdRng,
}

enum Action<'u> {
    Delete(RowRef<'u>),
    Upsert(NetRow<'u>),
    Update(NetRow<'u>),
    Insert(RowRef<'u>),
}

impl Model {
    fn rows(&self, table: &TableName) -> Vec<Row> {
        self.tables.get(table).into_iter().flatten().map(|(_, row)| row.clone()).collect()
    }

    fn apply(&mut self, unit: &Unit) {
        for step in steps(unit) {
            match step {
                Step::Net(mut effects) => {
                    effects.shuffle(&mut self.random);
                    effects.into_iter().for_each(|effect| self.net(effect));
                }
                Step::InOrder(change) => self.in_order(change),
            }
        }
    }

    /// Every row of the effect, in any order.
    fn net(&mut self, effect: TableEffect<'_>) {
        let schema = effect.schema;
        let mut actions: Vec<Action<'_>> = effect.deletes.into_iter().map(Action::Delete).collect();
        actions.extend(effect.upserts.into_iter().map(Action::Upsert));
        actions.extend(effect.updates.into_iter().map(Action::Update));
        actions.extend(effect.inserts.into_iter().map(Action::Insert));
        actions.shuffle(&mut self.random);
        let rows = self.tables.entry(schema.name.clone()).or_default();
        for action in actions {
            match action {
                Action::Delete(row) => {
                    let key = key(schema, row);
                    rows.retain(|(k, _)| *k != key);
                }
                Action::Upsert(row) => {
                    let new = row.is_new();
                    let row: Row = (0..row.len()).map(|i| row.get(i).to_owned()).collect();
                    assert!(row.iter().all(|v| *v != Value::Unchanged), "an upsert lacks a column: {row:?}");
                    let key = owned_key(schema, &row);
                    let before = rows.len();
                    rows.retain(|(k, _)| *k != key);
                    assert!(!new || rows.len() == before, "a new row is there already: {row:?}");
                    rows.push((key, row));
                }
                Action::Update(row) => {
                    let row: Row = (0..row.len()).map(|i| row.get(i).to_owned()).collect();
                    let key = owned_key(schema, &row);
                    let (_, found) =
                        rows.iter_mut().find(|(k, _)| *k == key).expect("an update of a row that is there");
                    put_over(found, row);
                }
                Action::Insert(row) => rows.push((Vec::new(), row.values().map(|v| v.to_owned()).collect())),
            }
        }
    }

    fn in_order(&mut self, change: ChangeRef<'_>) {
        let schema = change.schema();
        let rows = self.tables.entry(schema.name.clone()).or_default();
        let row = |row: RowRef<'_>| -> Row { row.values().map(|v| v.to_owned()).collect() };
        let at = change.identity_row().map(|identity| {
            let same = |(_, other): &(Vec<u8>, Row)| match change.old_image() {
                OldImage::Full if schema.key.is_empty() => *other == row(identity),
                _ => owned_key(schema, other) == key(schema, identity),
            };
            rows.iter().position(same)
        });
        match (change.op(), at) {
            (Op::Truncate(_), _) => rows.clear(),
            (Op::Insert, _) => {
                let row = row(change.new_row().unwrap());
                rows.push((owned_key(schema, &row), row));
            }
            (Op::Delete, Some(at)) => drop(rows.remove(at.expect("a delete of a row that is there"))),
            (Op::Update, Some(at)) => {
                let (mut key, mut found) = rows.remove(at.expect("an update of a row that is there"));
                put_over(&mut found, row(change.new_row().unwrap()));
                if !schema.key.is_empty() {
                    key = owned_key(schema, &found);
                }
                rows.push((key, found));
            }
            (op, _) => panic!("unexpected {op:?}"),
        }
    }
}

fn put_over(found: &mut Row, row: Row) {
    for (value, new) in found.iter_mut().zip(row).filter(|(_, new)| *new != Value::Unchanged) {
        *value = new;
    }
}

fn key(schema: &TableSchema, row: RowRef<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    key_bytes(schema, row, &mut bytes);
    bytes
}

/// The same bytes for equal keys; all keys of these histories are texts.
fn owned_key(schema: &TableSchema, row: &Row) -> Vec<u8> {
    let schema_of_row = std::sync::Arc::new(schema.clone());
    let mut batch = anabranch_core::BatchBuilder::new(anabranch_core::PartitionId::new("key"));
    let at = batch.schema(&schema_of_row);
    batch.begin(Default::default(), 1);
    batch.change(Op::Insert, at);
    batch.new_row();
    row.iter().for_each(|v| batch.push(v.as_ref()));
    let batch = batch.finish(Default::default(), None).unwrap();
    key(schema, batch.change(0).new_row().unwrap())
}
