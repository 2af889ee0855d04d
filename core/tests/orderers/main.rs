//! Orderers against a sequential oracle.

mod cases;
mod drive;
mod keys;
mod windows;

use std::time::Duration;

use anabranch_core::Orderer;
use anabranch_core::orderer::{Arrival, ByKey, ByTransaction, ByWindow, UnitLimits};
use anabranch_testkit::generators::{History, Shape};
use drive::{check_transactions, drive, drive_with_crash};
use proptest::prelude::*;

fn limits(max_changes: usize) -> UnitLimits {
    UnitLimits { max_bytes: 1 << 20, max_changes }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn transactions_of_one_partition(
        seed: u64, turns: u64, transactions in 0..40usize, max_changes in 1..30usize, max_batch in 1..12usize, limit in 1..10usize,
    ) {
        let shape = Shape { transactions, max_changes, max_batch, special: 10, ..Shape::of_seed(seed) };
        let history = History::new(&shape)?;
        let emitted = drive(&history, Box::new(ByTransaction::single(limits(limit))), turns);
        check_transactions(&history, &emitted, limit);
    }

    #[test]
    fn transactions_over_partitions(
        seed: u64, turns: u64, partitions in 1..5usize, transactions in 0..40usize, max_changes in 1..30usize,
        max_batch in 1..12usize, limit in 1..10usize, lineage in 0..30usize, ends: bool, totals: bool, closes: bool,
    ) {
        let shape = Shape {
            partitions, transactions, max_changes, max_batch, lineage, ends, totals, closes, special: 10, ..Shape::of_seed(seed)
        };
        let history = History::new(&shape)?;
        let emitted = drive(&history, Box::new(ByTransaction::merged(limits(limit))), turns);
        check_transactions(&history, &emitted, limit);
    }

    #[test]
    fn as_they_arrive(
        seed: u64, turns: u64, partitions in 1..4usize, transactions in 0..40usize, max_batch in 1..12usize,
        limit in 1..10usize, lineage in 0..30usize, ends: bool,
    ) {
        let shape = Shape { partitions, transactions, max_batch, lineage, ends, special: 10, ..Shape::of_seed(seed) };
        let history = History::new(&shape)?;
        let emitted = drive(&history, Box::new(Arrival::new(limits(limit))), turns);
        for log in 0..history.logs.len() {
            let order = emitted.iter().flat_map(|e| &e.changes).filter(|at| at.0 == log).map(|at| at.1);
            prop_assert!(order.eq(0..history.logs[log].changes.len()));
        }
        prop_assert!(emitted.iter().all(|e| e.changes.len() <= limit && e.unit.lane == 0));
        if ends && partitions == 1 && lineage == 0 {
            prop_assert_eq!(emitted.iter().map(|e| e.unit.transactions).sum::<u64>(), drive::transactions(&history));
        }
    }

    #[test]
    fn per_key(
        seed: u64, turns: u64, partitions in 1..4usize, transactions in 0..40usize, max_batch in 1..12usize,
        limit in 1..10usize, lanes in 1..5u32, lineage in 0..30usize, special in 0..30usize, ends: bool, pin: bool,
    ) {
        let shape = Shape { partitions, transactions, max_batch, lineage, ends, special, ..Shape::of_seed(seed) };
        let history = History::new(&shape)?;
        let pinned = keys::pinned(&history, pin);
        let emitted = drive(&history, Box::new(ByKey::new(lanes, limits(limit)).pinned(pinned)), turns);
        prop_assert!(emitted.iter().all(|e| e.changes.len() <= limit && e.unit.lane < lanes));
        keys::check(&history, &emitted);
        if ends && partitions == 1 && lineage == 0 {
            prop_assert_eq!(emitted.iter().map(|e| e.unit.transactions).sum::<u64>(), drive::transactions(&history));
        }
    }

    #[test]
    fn per_window(
        seed: u64, turns: u64, partitions in 1..4usize, transactions in 0..40usize, max_batch in 1..12usize,
        limit in 1..10usize, lanes in 1..5u32, lineage in 0..30usize, ends: bool, totals: bool, window in 1..60u64,
    ) {
        let shape = Shape {
            partitions, transactions, max_batch, lineage, ends, totals, closes: true, special: 10, ..Shape::of_seed(seed)
        };
        let history = History::new(&shape)?;
        let orderer = ByWindow::new(Duration::from_micros(window), lanes, limits(limit));
        let emitted = drive(&history, Box::new(orderer), turns);
        prop_assert!(emitted.iter().all(|e| e.changes.len() <= limit && e.unit.lane < lanes));
        windows::check(&history, &emitted, window as i64, limit);
    }

    #[test]
    fn transactions_of_one_partition_after_a_crash(
        seed: u64, turns: u64, crash in 0..60usize, transactions in 0..40usize, max_changes in 1..30usize,
        max_batch in 1..12usize, limit in 1..10usize,
    ) {
        let shape = Shape { transactions, max_changes, max_batch, special: 10, ..Shape::of_seed(seed) };
        let history = History::new(&shape)?;
        let orderer = || -> Box<dyn Orderer> { Box::new(ByTransaction::single(limits(limit))) };
        let applied = drive_with_crash(&history, orderer, 1, crash, turns >> 1);
        check_transactions(&history, &applied, limit);
    }

    #[test]
    fn transactions_over_partitions_after_a_crash(
        seed: u64, turns: u64, crash in 0..60usize, partitions in 1..5usize, transactions in 0..40usize,
        max_batch in 1..12usize, limit in 1..10usize, ends: bool, totals: bool,
    ) {
        let shape = Shape { partitions, transactions, max_batch, ends, totals, special: 10, ..Shape::of_seed(seed) };
        let history = History::new(&shape)?;
        let orderer = || -> Box<dyn Orderer> { Box::new(ByTransaction::merged(limits(limit))) };
        let applied = drive_with_crash(&history, orderer, 1, crash, turns >> 1);
        check_transactions(&history, &applied, limit);
    }

    #[test]
    fn per_key_after_a_crash(
        seed: u64, turns: u64, crash in 0..60usize, partitions in 1..4usize, transactions in 0..40usize,
        max_batch in 1..12usize, limit in 1..10usize, lanes in 1..5u32, special in 0..30usize, ends: bool,
    ) {
        let shape = Shape { partitions, transactions, max_batch, special, ends, ..Shape::of_seed(seed) };
        let history = History::new(&shape)?;
        let orderer = || -> Box<dyn Orderer> {
            Box::new(ByKey::new(lanes, limits(limit)).pinned(keys::pinned(&history, false)))
        };
        let applied = drive_with_crash(&history, orderer, lanes, crash, turns >> 1);
        keys::check(&history, &applied);
    }

    #[test]
    fn per_window_after_a_crash(
        seed: u64, turns: u64, crash in 0..60usize, partitions in 1..4usize, transactions in 0..40usize,
        max_batch in 1..12usize, limit in 1..10usize, lanes in 1..5u32, ends: bool, totals: bool, window in 1..60u64,
    ) {
        let shape = Shape {
            partitions, transactions, max_batch, ends, totals, closes: true, special: 10, ..Shape::of_seed(seed)
        };
        let history = History::new(&shape)?;
        let orderer = || -> Box<dyn Orderer> {
            Box::new(ByWindow::new(Duration::from_micros(window), lanes, limits(limit)))
        };
        let applied = drive_with_crash(&history, orderer, lanes, crash, turns >> 1);
        windows::check_order(&history, &applied);
    }
}
