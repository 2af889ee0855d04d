//! A transformed stream gives the transformed tables.

use std::sync::Arc;

use anabranch_core::memory::{MemorySink, MemorySource, Row};
use anabranch_core::transform::{Comparison, Filter, Mask, MaskRule, Project, Rename, Transform, schema_after};
use anabranch_core::{
    ChangeBatch, Claim, Lane, LanePurpose, ProgressStore, Sink, SourceIdentity, StartFrom, TableName, Value,
};
use anabranch_testkit::generator::{Generator, customers, events, lines};
use anabranch_testkit::units;
use proptest::prelude::*;

/// Writes a random history through transforms, one transaction after another.
fn through(
    seed: u64,
    source: MemorySource,
    generator: &mut Generator,
    transforms: &mut [Box<dyn Transform>],
) -> MemorySink {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        generator.write(&source, 40, 10);
        let batches = units::read_source(&source, &StartFrom::default(), &source.end()).await;
        let transform = |batch: &Arc<ChangeBatch>| {
            let transformed = transforms.iter_mut().try_fold(ChangeBatch::clone(batch), |b, t| t.apply(b)).unwrap();
            assert_eq!((transformed.end(), transformed.safe_time()), (batch.end(), batch.safe_time()), "{seed}");
            Arc::new(transformed)
        };
        let batches: Vec<_> = batches.iter().map(transform).collect();
        let sink = MemorySink::new();
        let claim = Claim { pipeline: "p".into(), epoch: 1, lanes: 1, identity: SourceIdentity::default() };
        sink.take_over(&claim).await.unwrap();
        let lane = Lane { pipeline: "p".into(), index: 0, count: 1, epoch: 1, purpose: LanePurpose::Stream };
        let mut writer = sink.open(lane).await.unwrap();
        let transactions = units::by_transaction(&batches);
        assert_eq!(transactions.len() as u64, source.committed(), "{seed}: no transaction is lost");
        for unit in &transactions {
            let _ = writer.write(unit).await.unwrap();
        }
        sink
    })
}

fn sorted(mut rows: Vec<Row>) -> Vec<Row> {
    rows.sort_by_key(|row| format!("{row:?}"));
    rows
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn a_filter_leaves_the_rows_that_match(seed: u64, batch in 1usize..20, unsent: bool, limit in 1i64..7) {
        let mut generator = Generator::new(seed, vec![customers(), lines(), events()]);
        let mut source = generator.source().batch_changes(batch);
        for table in [customers(), lines()] {
            source = source.full_old_rows(&table.name);
            source = if unsent { source.unsent_columns(&table.name, &[0, 1, 2, 3]) } else { source };
        }
        let filter = Filter::new()
            .exclude("*.events")
            .rows("customers", "name", Comparison::Ne, "it's 1 \\ \"ä\"")
            .rows("customers", "id", Comparison::Lt, limit)
            .rows("public.lines", "price", Comparison::Ge, 2);
        let sink = through(seed, source.clone(), &mut generator, &mut [Box::new(filter)]);

        let number = |value: &Value| match value {
            Value::Text(text) => text.parse::<f64>().unwrap(),
            _ => f64::NAN,
        };
        let name = Value::from("it's 1 \\ \"ä\"");
        let stays = |row: &Row| number(&row[0]) < limit as f64 && row[2] != name && row[2] != Value::Null;
        let expected: Vec<_> = source.tables().rows(&customers().name).into_iter().filter(stays).collect();
        prop_assert_eq!(sorted(sink.rows(&customers().name)), sorted(expected));
        let expected = source.tables().rows(&lines().name).into_iter().filter(|row| number(&row[0]) >= 2.0).collect();
        prop_assert_eq!(sorted(sink.rows(&lines().name)), sorted(expected));
        prop_assert_eq!(sink.rows(&events().name), Vec::<Row>::new());
    }

    #[test]
    fn columns_go_names_change_and_values_are_masked(seed: u64, batch in 1usize..20, full: bool, unsent: bool) {
        let mut generator = Generator::new(seed, vec![customers(), lines(), events()]);
        let mut source = generator.source().batch_changes(batch);
        for table in [customers(), lines()] {
            source = if full { source.full_old_rows(&table.name) } else { source };
            source = if unsent { source.unsent_columns(&table.name, &[0, 1, 2, 3]) } else { source };
        }
        let key = |key: &str| MaskRule::Sha256 { key: key.into() };
        let rules = [("id".to_owned(), key("k")), ("email".to_owned(), MaskRule::Null {})];
        let mut transforms: Vec<Box<dyn Transform>> = vec![
            Box::new(Project::drop(["*.lines"], ["body", "price"])),
            Box::new(Mask::new(["public.customers"], rules).unwrap()),
            Box::new(Rename::new().schema("public", "shop").table("public.events", "log.entries")),
        ];
        let sink = through(seed, source.clone(), &mut generator, &mut transforms);

        let (customers_there, lines_there) = (TableName::new("shop", "customers"), TableName::new("shop", "lines"));
        let expected = source.tables().rows(&lines().name).into_iter().map(|row| row[1..3].to_vec()).collect();
        prop_assert_eq!(sorted(sink.rows(&lines_there)), sorted(expected));
        let entries = sink.rows(&TableName::new("log", "entries"));
        prop_assert_eq!(sorted(entries), sorted(source.tables().rows(&events().name)));
        // All of it but the id, which is hashed: as many ids as rows.
        let rest = |rows: Vec<Row>| sorted(rows.into_iter().map(|row| row[2..].to_vec()).collect());
        let rows = sink.rows(&customers_there);
        prop_assert!(rows.iter().all(|row| row[1] == Value::Null && matches!(&row[0], Value::Text(t) if t.len() == 64)));
        prop_assert_eq!(rest(rows), rest(source.tables().rows(&customers().name)));

        let after = schema_after(&mut transforms, &Arc::new(lines())).unwrap().unwrap();
        prop_assert_eq!(after.columns.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["line", "order_id"]);
        prop_assert_eq!((&after.name, &after.key), (&lines_there, &vec![1, 0]));
    }
}
