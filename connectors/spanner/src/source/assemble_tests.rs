use anabranch_core::{OldImage, Op, Rank, ValueRef};
use proptest::prelude::*;

use super::*;
use crate::client::{Kind, SpannerValue};
use crate::decode::{Capture, Mod, ModType, RecordColumn};
use crate::source::catalog::Dialect;

fn at(nanos: u32) -> Instant {
    Instant::new(1_000, nanos).unwrap()
}

fn column(name: &str, key: bool, ordinal: i64) -> RecordColumn {
    let kind = if key { Kind::Int64 } else { Kind::String };
    RecordColumn { name: name.to_owned(), kind, key, ordinal }
}

fn record(time: u32, transaction: &str, sequence: u32, ids: &[i64], of: usize) -> DataRecord {
    let modification = |id: &i64| Mod {
        keys: vec![(0, (*id).into())],
        new: vec![(1, SpannerValue::Text(format!("{transaction}-{sequence}")))],
        old: Vec::new(),
    };
    DataRecord {
        commit: at(time),
        sequence,
        transaction: transaction.to_owned(),
        table: "t".to_owned(),
        columns: vec![column("id", true, 1), column("v", false, 2)],
        mods: ids.iter().map(modification).collect(),
        mod_type: ModType::Insert,
        capture: Capture::NewRowAndOldValues,
        records_in_transaction: of as u64,
        partitions_in_transaction: 1,
        tag: String::new(),
        system: false,
    }
}

fn assembler(from: Position) -> Assembler {
    let tables = Tables::new(Dialect::GoogleSql, BTreeMap::new());
    Assembler::new(PartitionId::new("p"), tables, from, Skip::default(), true)
}

/// Rank and key of each row, of what lies behind `after`.
type Rows = Vec<(Rank, i64)>;

fn rows(batch: &ChangeBatch, after: &Rank) -> Rows {
    let row = |c: anabranch_core::ChangeRef<'_>| match c.identity_row()?.get(0) {
        ValueRef::Int(id) => Some((c.rank(), id)),
        other => panic!("{other:?}"),
    };
    batch.changes().filter(|c| c.rank() > *after).filter_map(row).collect()
}

/// Feeds `records`, a heartbeat after every `beat`th, and gives the rows and the ends of batches.
fn read(records: &[DataRecord], beat: usize, from: Position) -> (Rows, Vec<Position>) {
    let after = from.rank.clone();
    let mut a = assembler(from);
    let (mut out, mut ends) = (Rows::new(), Vec::new());
    let mut take = |a: &mut Assembler, flush: bool| {
        while let Some(batch) = a.take(flush).unwrap() {
            assert!(ends.last().is_none_or(|p: &Position| p.rank <= batch.end().rank));
            out.extend(rows(&batch, &after));
            assert!(out.last().is_none_or(|(rank, _)| *rank <= batch.end().rank));
            ends.push(batch.end().clone());
        }
    };
    for (n, record) in records.iter().enumerate() {
        a.data(record.clone()).unwrap();
        take(&mut a, n % 3 == 0);
        let next = records.get(n + 1);
        if n % beat == 0 && next.is_none_or(|r| r.commit > record.commit) {
            a.heartbeat(record.commit);
            take(&mut a, true);
        }
    }
    a.heartbeat(at(999_999_999));
    take(&mut a, true);
    (out, ends)
}

#[test]
fn what_is_held_goes_out_once_its_time_is_over() {
    let mut a = assembler(place::before(at(0)));
    a.data(record(5_000, "b", 1, &[3], 2)).unwrap();
    a.data(record(5_000, "a", 0, &[1], 1)).unwrap();
    a.data(record(5_000, "b", 0, &[2], 2)).unwrap();
    // Proven: everything before it.
    assert_eq!(a.take(true).unwrap().map(|b| (b.len(), b.safe_time())), None);
    a.heartbeat(at(5_000));
    let batch = a.take(true).unwrap().unwrap();
    let ids: Vec<i64> = rows(&batch, &Rank::default()).into_iter().map(|(_, id)| id).collect();
    assert_eq!(ids, [1, 2, 3]);
    assert_eq!(batch.pieces().iter().filter(|p| p.end.is_some()).count(), 2);
    assert_eq!(batch.safe_time(), Some(at(5_000).all_through()));
    assert_eq!(place::time(batch.end()).unwrap(), at(5_000));
}

#[test]
fn a_transaction_of_which_records_are_missing_is_an_error() {
    let mut a = assembler(place::before(at(0)));
    a.data(record(5, "a", 0, &[1], 2)).unwrap();
    a.heartbeat(at(5));
    let error = a.take(true).unwrap_err();
    assert_eq!(error.kind(), anabranch_core::ErrorKind::Fatal);
    assert!(error.to_string().contains("2 records"), "{error}");
}

#[test]
fn copied_tables_are_skipped_up_to_their_point() {
    let tables = Tables::new(Dialect::GoogleSql, BTreeMap::new());
    let skip = Skip { copied: HashMap::from([(TableName::new("", "t"), at(5))]), amid: None };
    let mut a = Assembler::new(PartitionId::new("p"), tables, place::before(at(0)), skip, true);
    for time in [4, 5, 6] {
        a.data(record(time, "a", 0, &[i64::from(time)], 1)).unwrap();
    }
    a.heartbeat(at(7));
    let batch = a.take(true).unwrap().unwrap();
    assert_eq!(rows(&batch, &Rank::default()).into_iter().map(|(_, id)| id).collect::<Vec<_>>(), [6]);
}

#[test]
fn own_tables_are_left_out() {
    let mut a = assembler(place::before(at(0)));
    let own = DataRecord { table: "anabranch_lane".to_owned(), ..record(5, "a", 0, &[1], 2) };
    a.data(own).unwrap();
    a.data(record(5, "a", 1, &[2], 2)).unwrap();
    a.heartbeat(at(7));
    let batch = a.take(true).unwrap().unwrap();
    assert_eq!(rows(&batch, &Rank::default()).into_iter().map(|(_, id)| id).collect::<Vec<_>>(), [2]);
    assert_eq!(batch.schemas().len(), 1);
}

#[test]
fn a_huge_transaction_comes_in_parts_and_waits_on_disk() {
    let ids: Vec<i64> = (0..200).collect();
    let mut records: Vec<DataRecord> = (0..100).map(|n| record(5, "a", n, &ids, 100)).collect();
    for record in &mut records {
        record.mods.iter_mut().for_each(|m| m.new[0].1 = SpannerValue::Text("x".repeat(500)));
    }
    let (out, ends) = read(&records, 1, place::before(at(0)));
    assert_eq!(out.len(), 20_000);
    assert!(out.is_sorted_by(|a, b| a.0 < b.0));
    assert!(ends.len() > 5, "{}", ends.len());
    // Within it the token is that of the place before it.
    assert!(ends[..ends.len() - 2].iter().all(|p| place::time(p).unwrap() == at(0)));
}

#[test]
fn old_values_complete_the_old_row_of_an_update() {
    let mut update = record(5, "a", 0, &[1], 1);
    update.mod_type = ModType::Update;
    update.columns.push(column("w", false, 3));
    update.mods[0].new = vec![(1, "new".into()), (2, "same".into())];
    update.mods[0].old = vec![(1, "old".into())];
    let changed = |capture, update: &DataRecord| {
        let mut a = assembler(place::before(at(0)));
        a.data(DataRecord { capture, ..update.clone() }).unwrap();
        a.heartbeat(at(5));
        a.take(true).unwrap().unwrap()
    };
    let batch = changed(Capture::NewRowAndOldValues, &update);
    let change = batch.changes().find(|c| c.op() == Op::Update).unwrap();
    assert_eq!(change.old_image(), OldImage::Full);
    let texts = |row: anabranch_core::RowRef<'_>| row.values().map(|v| format!("{v:?}")).collect::<Vec<_>>().join(" ");
    assert_eq!(texts(change.old_row().unwrap()), r#"Int(1) Text("old") Text("same")"#);
    assert_eq!(texts(change.new_row().unwrap()), r#"Int(1) Text("new") Text("same")"#);

    update.mods[0].new = vec![(1, "new".into())];
    let batch = changed(Capture::OldAndNewValues, &update);
    let change = batch.changes().find(|c| c.op() == Op::Update).unwrap();
    assert_eq!((change.old_image(), change.old_row().is_some()), (OldImage::None, false));
    assert_eq!(texts(change.new_row().unwrap()), r#"Int(1) Text("new") Unchanged"#);

    let mut delete = DataRecord { mod_type: ModType::Delete, ..update };
    delete.mods[0].new.clear();
    delete.mods[0].old = vec![(1, "old".into()), (2, "same".into())];
    let batch = changed(Capture::NewRow, &delete);
    let change = batch.changes().find(|c| c.op() == Op::Delete).unwrap();
    assert_eq!((change.old_image(), change.new_row().is_some()), (OldImage::Full, false), "{change:?}");
    delete.mods[0].old.clear();
    let batch = changed(Capture::NewRow, &delete);
    let change = batch.changes().find(|c| c.op() == Op::Delete).unwrap();
    assert_eq!(change.old_image(), OldImage::Key);
    assert_eq!(texts(change.old_row().unwrap()), "Int(1) Unchanged Unchanged");
}

/// Transactions at a few times; within a time their records in any order.
fn history() -> impl Strategy<Value = (Vec<DataRecord>, Vec<DataRecord>)> {
    let transaction = (0u32..6, 0u8..4, proptest::collection::vec(1usize..4, 1..4));
    proptest::collection::vec(transaction, 1..12).prop_flat_map(|transactions| {
        let mut seen = std::collections::BTreeSet::new();
        let mut id = 0;
        let mut records = Vec::new();
        for (time, name, sizes) in transactions {
            if !seen.insert((time, name)) {
                continue;
            }
            for (sequence, size) in sizes.iter().enumerate() {
                let ids: Vec<i64> = (id..id + *size as i64).collect();
                id += *size as i64;
                records.push(record(time * 700, &format!("tx{name}"), sequence as u32, &ids, sizes.len()));
            }
        }
        records.sort_by_key(|r| r.commit);
        let sorted = records.clone();
        Just(records).prop_shuffle().prop_map(move |mut shuffled| {
            shuffled.sort_by_key(|r| r.commit);
            (sorted.clone(), shuffled)
        })
    })
}

proptest! {
    /// However records of one time are interleaved, and wherever heartbeats fall: the same rows under the
    /// same ranks, in rank order, each once.
    #[test]
    fn the_order_does_not_depend_on_the_interleaving((sorted, shuffled) in history(), beat in 1usize..5) {
        let (expected, _) = read(&sorted, 1, place::before(at(0)));
        let (found, _) = read(&shuffled, beat, place::before(at(0)));
        prop_assert!(expected.is_sorted_by(|a, b| a.0 < b.0));
        prop_assert_eq!(&found, &expected);
        prop_assert_eq!(found.len(), sorted.iter().map(|r| r.mods.len()).sum::<usize>());
    }

    /// From the end of every batch the rest comes, under the same ranks.
    #[test]
    fn reading_resumes_anywhere((sorted, shuffled) in history(), beat in 1usize..5) {
        let (all, ends) = read(&sorted, beat, place::before(at(0)));
        for end in ends {
            let from = place::time(&end).unwrap();
            let rest: Vec<DataRecord> = shuffled.iter().filter(|r| r.commit >= from).cloned().collect();
            let expected: Rows = all.iter().filter(|(rank, _)| *rank > end.rank).cloned().collect();
            prop_assert_eq!(read(&rest, beat, end).0, expected);
        }
    }

    /// A connection that is mended sends again what came since some record.
    #[test]
    fn what_comes_twice_is_given_once((sorted, shuffled) in history(), back in 0usize..20, cut in 0usize..20) {
        let cut = cut % (shuffled.len() + 1);
        let mut twice = shuffled[..cut].to_vec();
        twice.extend_from_slice(&shuffled[cut.saturating_sub(back)..]);
        let mut a = assembler(place::before(at(0)));
        let mut out = Rows::new();
        for record in twice {
            a.data(record).unwrap();
            while let Some(batch) = a.take(true).unwrap() {
                out.extend(rows(&batch, &Rank::default()));
            }
        }
        a.heartbeat(at(999_999_999));
        while let Some(batch) = a.take(true).unwrap() {
            out.extend(rows(&batch, &Rank::default()));
        }
        prop_assert_eq!(out, read(&sorted, 1, place::before(at(0))).0);
    }
}
