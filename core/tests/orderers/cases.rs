//! Cases made by hand: what merges, what waits, what is refused.

use std::sync::Arc;

use anabranch_core::orderer::{Arrival, ByKey, ByTransaction, ByWindow, UnitLimits};
use anabranch_core::{
    BatchBuilder, BatchId, ChangeBatch, Column, DataType, Error, ErrorKind, Op, OrderedUnit, Orderer, Part, Partition,
    PartitionId, Position, Progress, Rank, TableName, TableSchema, Timestamp, Transaction, ValueRef,
};

const LIMITS: UnitLimits = UnitLimits { max_bytes: 1 << 20, max_changes: 100 };

/// A transaction for [`batch`]: number, commit time, and how many changes.
struct Tx(u64, i64, usize);

fn table(key: Vec<u16>) -> Arc<TableSchema> {
    let name = TableName::new("public", "t");
    Arc::new(TableSchema { name, columns: vec![Column::new("id", DataType::Int64)], key })
}

fn partition(name: &str, parents: &[&str]) -> Partition {
    let parents = parents.iter().map(|p| PartitionId::new(*p)).collect();
    Partition { parents, ..Partition::root(PartitionId::new(name)) }
}

/// Whole transactions whose rows have the keys 1, 2, 3...; `total` is what each is told to have.
fn batch(of: &str, transactions: &[Tx], safe_time: Option<i64>, total: Option<u64>) -> ChangeBatch {
    let schema = table(vec![0]);
    let mut b = BatchBuilder::new(PartitionId::new(of));
    let t = b.schema(&schema);
    let mut end = Position::default();
    for &Tx(number, time, changes) in transactions {
        let rank = number.to_be_bytes().to_vec().into();
        end = Position::new(Rank::of_end(&number.to_be_bytes()), number.to_string());
        b.begin(Transaction { rank, commit_time: Some(Timestamp::from_micros(time)), total, ..Default::default() }, 1);
        for key in 1..=changes {
            b.change(Op::Insert, t);
            b.new_row();
            b.push(ValueRef::Int(key as i64));
        }
        b.commit(end.clone());
    }
    b.finish(end, safe_time.map(Timestamp::from_micros)).expect("a valid batch")
}

fn heartbeat(of: &str, number: u64, safe_time: i64) -> ChangeBatch {
    let end = Position::new(Rank::of_end(&number.to_be_bytes()), number.to_string());
    BatchBuilder::new(PartitionId::new(of)).finish(end, Some(Timestamp::from_micros(safe_time))).expect("a valid batch")
}

fn ready(orderer: &mut impl Orderer) -> Vec<OrderedUnit> {
    std::iter::from_fn(|| orderer.next_ready().expect("a valid history")).collect()
}

fn low<'o>(orderer: &'o impl Orderer, of: &str) -> &'o Progress {
    &orderer.low_watermark()[of]
}

fn fatal<T: std::fmt::Debug>(result: Result<T, Error>, says: &str) {
    let error = result.expect_err("an error");
    assert_eq!(error.kind(), ErrorKind::Fatal);
    assert!(error.to_string().contains(says), "{error}");
}

#[test]
fn small_transactions_merge_while_the_writer_is_busy() {
    let mut o = ByTransaction::single(LIMITS);
    o.opened(&partition("p", &[]), None);
    let mut units = Vec::new();
    for n in 1..=6 {
        o.push(BatchId(n), &batch("p", &[Tx(n, n as i64, 1)], None, None)).expect("in order");
        units.extend(ready(&mut o));
    }
    assert_eq!(units.iter().map(|u| u.transactions).collect::<Vec<_>>(), [1, 1]);
    o.complete(units[0].id);
    let merged = ready(&mut o);
    assert_eq!((merged.len(), merged[0].transactions, merged[0].part), (1, 4, Part::Whole));
    assert_eq!(merged[0].progress[0].position.token, "6");
}

#[test]
fn bytes_cut_a_unit_and_one_change_always_fits() {
    let whole = batch("p", &[Tx(1, 1, 2), Tx(2, 2, 2), Tx(3, 3, 4)], None, None);
    let max_bytes = whole.memory_size() / 2 + 8;
    let mut o = ByTransaction::single(UnitLimits { max_bytes, max_changes: 100 });
    o.opened(&partition("p", &[]), None);
    o.push(BatchId(1), &whole).expect("in order");
    assert_eq!(ready(&mut o).iter().map(|u| u.transactions).collect::<Vec<_>>(), [2, 1]);

    let mut o = ByTransaction::single(UnitLimits { max_bytes: 1, max_changes: 100 });
    o.opened(&partition("p", &[]), None);
    o.push(BatchId(1), &batch("p", &[Tx(1, 1, 1), Tx(2, 2, 3)], None, None)).expect("in order");
    let parts: Vec<Part> = ready(&mut o).iter().map(|u| u.part).collect();
    assert_eq!(parts, [Part::Whole, Part::First, Part::Middle, Part::Last]);
}

#[test]
fn a_heartbeat_moves_the_low_watermark_when_what_is_before_it_is_durable() {
    let mut o = ByTransaction::single(LIMITS);
    o.opened(&partition("p", &[]), None);
    o.push(BatchId(1), &heartbeat("p", 0, 5)).expect("in order");
    assert_eq!(low(&o, "p").safe_time, Some(Timestamp::from_micros(5)));
    o.push(BatchId(2), &batch("p", &[Tx(1, 10, 1)], Some(10), None)).expect("in order");
    let units = ready(&mut o);
    o.push(BatchId(3), &heartbeat("p", 2, 20)).expect("in order");
    o.push(BatchId(4), &heartbeat("p", 3, 30)).expect("in order");
    assert!(ready(&mut o).is_empty(), "a heartbeat makes no unit");
    assert_eq!(low(&o, "p").safe_time, Some(Timestamp::from_micros(5)));
    o.complete(units[0].id);
    assert_eq!(low(&o, "p").safe_time, Some(Timestamp::from_micros(30)));
    assert_eq!(low(&o, "p").position.token, "3");
}

#[test]
fn a_source_that_breaks_its_order_is_refused() {
    let mut o = ByTransaction::single(LIMITS);
    fatal(o.push(BatchId(1), &heartbeat("p", 0, 5)), "before it was opened");
    o.opened(&partition("p", &[]), None);
    o.push(BatchId(2), &batch("p", &[Tx(5, 5, 1)], None, None)).expect("in order");
    fatal(o.push(BatchId(3), &batch("p", &[Tx(4, 6, 1)], None, None)), "went back");

    let mut o = ByTransaction::merged(LIMITS);
    o.opened(&partition("p", &[]), None);
    o.opened(&partition("q", &[]), None);
    o.push(BatchId(1), &batch("p", &[Tx(1, 10, 1)], Some(10), None)).expect("in order");
    o.push(BatchId(2), &heartbeat("q", 0, 10)).expect("in order");
    assert_eq!(ready(&mut o).len(), 1);
    fatal(o.push(BatchId(3), &batch("q", &[Tx(1, 10, 1)], None, None)), "had passed");
    fatal(o.push(BatchId(4), &batch("p", &[Tx(2, 9, 1)], None, None)), "gave a change committed at");
}

#[test]
fn a_transaction_that_is_not_complete_is_refused() {
    let mut o = ByTransaction::merged(LIMITS);
    o.opened(&partition("p", &[]), None);
    o.push(BatchId(1), &batch("p", &[Tx(1, 10, 2)], Some(10), Some(3))).expect("in order");
    fatal(o.next_ready(), "told of 3 changes");
    fatal(o.next_ready(), "told of 3 changes");
}

#[test]
fn a_change_proves_only_what_is_before_it() {
    let mut o = ByTransaction::merged(LIMITS);
    o.opened(&partition("p", &[]), None);
    o.opened(&partition("q", &[]), None);
    o.push(BatchId(1), &batch("p", &[Tx(1, 10, 1), Tx(2, 20, 1)], None, None)).expect("in order");
    assert!(ready(&mut o).is_empty(), "q is silent");
    o.push(BatchId(2), &batch("q", &[Tx(1, 10, 1)], None, None)).expect("in order");
    assert!(ready(&mut o).is_empty(), "q may have more at 10");
    o.push(BatchId(3), &heartbeat("q", 1, 10)).expect("in order");
    let units = ready(&mut o);
    assert_eq!((units.len(), units[0].transactions, units[0].slices.len()), (1, 1, 2));
}

#[test]
fn a_child_holds_nothing_back_while_a_parent_is_open_and_takes_over_what_they_proved() {
    let mut o = ByTransaction::merged(LIMITS);
    for p in ["p", "q"] {
        o.opened(&partition(p, &[]), None);
    }
    o.opened(&partition("child", &["p", "q"]), None);
    o.push(BatchId(1), &batch("p", &[Tx(1, 10, 1)], None, None)).expect("in order");
    o.closed(&PartitionId::new("p"));
    assert!(ready(&mut o).is_empty());
    o.push(BatchId(2), &heartbeat("q", 1, 15)).expect("in order");
    assert_eq!(ready(&mut o).len(), 1, "the silent child has an open parent, which speaks for it");
    o.push(BatchId(3), &batch("q", &[Tx(2, 20, 1)], None, None)).expect("in order");
    assert!(ready(&mut o).is_empty());
    o.closed(&PartitionId::new("q"));
    assert_eq!(ready(&mut o).len(), 1, "else the child could never be opened");
}

#[test]
fn a_window_waits_for_its_end() {
    let mut o = ByWindow::new(std::time::Duration::from_micros(10), 2, LIMITS);
    o.opened(&partition("p", &[]), None);
    o.push(BatchId(1), &batch("p", &[Tx(1, 11, 1), Tx(2, 19, 1), Tx(3, 20, 1)], Some(28), None)).expect("in order");
    let units = ready(&mut o);
    assert_eq!((units.len(), units[0].transactions), (1, 2));
    o.push(BatchId(2), &heartbeat("p", 3, 29)).expect("in order");
    assert_eq!(ready(&mut o).len(), 1);
}

/// Computed with another implementation of the hash. The lanes are stored with the progress: another hash would apply changes twice after an update.
#[test]
fn the_lane_of_a_key_is_the_same_in_every_version() {
    let mut o = ByKey::new(4, LIMITS);
    o.opened(&partition("p", &[]), None);
    o.push(BatchId(1), &batch("p", &[Tx(1, 1, 12)], None, None)).expect("in order");
    let mut lanes = vec![9; 12];
    for unit in ready(&mut o) {
        for slice in &unit.slices {
            slice.changes.iter().for_each(|i| lanes[i as usize] = unit.lane);
        }
    }
    assert_eq!(lanes, [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3]);
}

#[test]
fn a_table_that_loses_its_key_waits_for_all_lanes() {
    let keyed = table(vec![0]);
    let keyless = table(vec![]);
    let mut b = BatchBuilder::new(PartitionId::new("p"));
    let (with, without) = (b.schema(&keyed), b.schema(&keyless));
    b.begin(Transaction { rank: vec![1].into(), ..Default::default() }, 1);
    let insert = |b: &mut BatchBuilder, schema, key| {
        b.change(Op::Insert, schema);
        b.new_row();
        b.push(ValueRef::Int(key));
    };
    (1..=12).for_each(|key| insert(&mut b, with, key));
    b.change(Op::Schema, without);
    (1..=12).for_each(|key| insert(&mut b, without, key));
    let end = Position::new(Rank::of_end(&[1]), "1");
    b.commit(end.clone());
    let mut o = ByKey::new(4, LIMITS);
    o.opened(&partition("p", &[]), None);
    o.push(BatchId(1), &b.finish(end, None).expect("a valid batch")).expect("in order");

    let before = ready(&mut o);
    assert_eq!(before.iter().map(|u| u.slices[0].changes.len()).sum::<usize>(), 12);
    before.iter().for_each(|u| o.complete(u.id));
    let schema = ready(&mut o);
    assert_eq!((schema.len(), schema[0].slices[0].changes.iter().collect::<Vec<_>>()), (1, vec![12]));
    o.complete(schema[0].id);
    let after = ready(&mut o);
    assert_eq!((after.len(), after[0].slices[0].changes.len()), (1, 12));
    assert_eq!(after[0].progress[0].position.token, "1");
}

/// Partitions split and end for years: what is kept is that of those which are read.
#[test]
fn partitions_that_ended_are_forgotten() {
    let orderers: [Box<dyn Orderer>; 4] = [
        Box::new(ByTransaction::merged(LIMITS)),
        Box::new(ByKey::new(2, LIMITS)),
        Box::new(ByWindow::new(std::time::Duration::from_micros(1), 2, LIMITS)),
        Box::new(Arrival::new(LIMITS)),
    ];
    for mut o in orderers {
        o.opened(&partition("p0", &[]), None);
        for n in 1..500_u64 {
            let (this, next) = (format!("p{}", n - 1), format!("p{n}"));
            o.push(BatchId(n), &batch(&this, &[Tx(n, n as i64, 3)], Some(n as i64), None)).expect("in order");
            o.opened(&partition(&next, &[&this]), None);
            o.closed(&PartitionId::new(&*this));
            let mut rows = 0;
            while let Some(unit) = o.next_ready().expect("a valid history") {
                rows += unit.slices.iter().map(|s| s.changes.len()).sum::<usize>();
                for progress in &unit.progress {
                    assert_eq!(progress.partition.as_str(), this, "of a partition that was forgotten");
                }
                o.complete(unit.id);
            }
            assert_eq!(rows, 3, "{n} {o:?}");
            assert_eq!(o.low_watermark()[&*this].position.rank, Rank::of_end(&n.to_be_bytes()));
            o.forget(&PartitionId::new(&*this));
            assert!(o.low_watermark().is_empty());
        }
        assert!(format!("{o:?}").len() < 4000, "{o:?}");
    }
}
