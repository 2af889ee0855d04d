//! Orderers against a sequential oracle.

mod drive;

use anabranch_core::orderer::{ByTransaction, UnitLimits};
use anabranch_testkit::generators::{History, Shape};
use drive::{check_transactions, drive};
use proptest::prelude::*;

fn limits(max_changes: usize) -> UnitLimits {
    UnitLimits { max_bytes: 1 << 20, max_changes }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

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
        max_batch in 1..12usize, limit in 1..10usize, lineage in 0..30usize, ends: bool, totals: bool,
    ) {
        let shape = Shape {
            partitions, transactions, max_changes, max_batch, lineage, ends, totals, special: 10, ..Shape::of_seed(seed)
        };
        let history = History::new(&shape)?;
        let emitted = drive(&history, Box::new(ByTransaction::merged(limits(limit))), turns);
        check_transactions(&history, &emitted, limit);
    }
}
