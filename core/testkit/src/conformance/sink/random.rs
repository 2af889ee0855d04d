//! Random histories, in random units, with a new writer now and then.

use anabranch_core::{TableName, TableSchema};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Script, SinkUnderTest};
use crate::generator::{Generator, customers, events, lines};
use crate::units;

/// Histories, by seed. The seed is in the message of a failure.
const SEEDS: u64 = 6;

pub(super) async fn histories(target: &dyn SinkUnderTest, keyless: bool) {
    for (seed, name) in (0..SEEDS).zip(["random0", "random1", "random2", "random3", "random4", "random5"]) {
        history(target, seed, name, keyless).await;
    }
}

async fn history(target: &dyn SinkUnderTest, seed: u64, name: &'static str, keyless: bool) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut tables = vec![customers(), lines()];
    if keyless {
        tables.push(events());
    }
    let source = {
        let prefixed = |t: &TableSchema| TableName::new(&t.name.schema, format!("{name}_{}", t.name.name));
        let named: Vec<TableName> = tables.iter().map(prefixed).collect();
        let source = anabranch_core::memory::MemorySource::new(name).batch_changes(7);
        let source =
            if seed.is_multiple_of(2) { source } else { source.full_old_rows(&named[0]).full_old_rows(&named[1]) };
        if seed.is_multiple_of(3) {
            source
        } else {
            source.unsent_columns(&named[0], &[3]).unsent_columns(&named[1], &[0, 3])
        }
    };
    let mut script = Script::over(target, name, &mut tables, source).await;
    let mut generator = Generator::new(seed, tables.to_vec()).keys(6);
    for round in 0..12 {
        let transactions = random.random_range(1..6);
        generator.write(&script.source, transactions, 10);
        let unit = units::merge(&script.units().await);
        if random.random_bool(0.3) {
            for part in units::in_parts(&unit, 5) {
                let written = script.writer.write(&part).await;
                let _ = written.unwrap_or_else(|e| panic!("{name}: the sink refused a part: {}", e.report()));
            }
            script.writer.flush().await.expect("flush");
        } else {
            script.write(&unit).await;
        }
        script.same_as_source(&format!("in round {round}")).await;
        script.stored_is(&unit, &format!("in round {round}")).await;
        if random.random_bool(0.2) {
            script.take_over().await;
        }
    }
}
