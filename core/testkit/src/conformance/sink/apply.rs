//! Rows arrive as they are.

use anabranch_core::memory::MemorySource;
use anabranch_core::{Column, DataType, ErrorKind, TableName, TableSchema, Value};
use bytes::Bytes;

use super::{Script, SinkUnderTest};
use crate::generator::{customers, events, lines};
use crate::units;

/// A row of `customers`.
fn customer(id: &str, email: &str, note: Option<&str>) -> Vec<Value> {
    vec![id.into(), email.into(), "it's \\ \"ä\" \u{1f980}".into(), note.map_or(Value::Null, Value::from)]
}

/// Each operation as a unit of its own, over a key of one column and of two.
pub(super) async fn every_operation(target: &dyn SinkUnderTest) {
    let mut tables = [customers(), lines()];
    let mut script = Script::new(target, "operations", &mut tables).await;
    let [customers, lines] = tables.map(|t| t.name);
    let source = script.source.clone();
    let line = |price: &str, line: &str, order: &str| vec![price.into(), line.into(), order.into(), Value::Null];
    let transaction = || source.transaction();
    for step in [
        transaction().insert(&customers, customer("1", "a@x", None)).insert(&customers, customer("2", "b@x", Some(""))),
        transaction().insert(&lines, line("1.50", "1", "7")).insert(&lines, line("-0.01", "2", "7")),
        transaction().update(&customers, ["1".into()], customer("1", "a@x", Some("new"))),
        transaction().update(&customers, ["1".into()], customer("-9", "a@x", Some("moved"))),
        transaction().update(&lines, ["7".into(), "1".into()], line("0.00", "1", "8")),
        transaction().delete(&customers, ["2".into()]),
        transaction().delete(&lines, ["7".into(), "2".into()]).message("prefix", b"ignored"),
        transaction().message("prefix", b"nothing else"),
        transaction().insert(&customers, customer("2", "b@x", None)),
        transaction().truncate(&customers),
        transaction().truncate(&lines).insert(&lines, line("99999999.99", "1", "1")),
    ] {
        let number = step.commit().expect("commit");
        for unit in script.units().await {
            script.write(&unit).await;
        }
        script.same_as_source(&format!("after transaction {number}")).await;
    }
}

/// A sink takes the typed variant of a value, and its canonical text.
pub(super) async fn typed_values(target: &dyn SinkUnderTest, wide_floats: bool) {
    let columns = [
        ("id", DataType::Int64),
        ("small", DataType::Int16),
        ("flag", DataType::Bool),
        ("ratio", DataType::Float64),
        ("data", DataType::Bytes),
        ("words", DataType::Text { max_chars: None }),
    ];
    let columns = columns.map(|(name, data_type)| Column::new(name, data_type)).to_vec();
    let mut tables = [TableSchema { name: TableName::new("public", "typed"), columns, key: vec![0] }];
    let mut script = Script::new(target, "typed", &mut tables).await;
    let [table] = tables.map(|t| t.name);
    let large = if wide_floats { 1e300 } else { 1e100 };
    let bytes = |bytes: &'static [u8]| Value::Bytes(Bytes::from_static(bytes));
    let rows = [
        vec![
            Value::Int(i64::MIN),
            Value::Int(-32768),
            Value::Bool(true),
            Value::Float(-0.1),
            bytes(b"\x00\xff'"),
            "".into(),
        ],
        vec![Value::Int(2), Value::Int(0), Value::Bool(false), Value::Float(large), bytes(b""), "NULL\n\t\\N".into()],
        vec!["3".into(), "-1".into(), "t".into(), "0.5".into(), "\\x00ff27".into(), " x ".into()],
        vec!["4".into(), "1".into(), "f".into(), "-2".into(), "\\x".into(), "a\r\nb;--".into()],
        vec!["5".into(), Value::Null, Value::Null, Value::Null, Value::Null, Value::Null],
    ];
    for row in rows {
        script.source.transaction().insert(&table, row).commit().expect("commit");
    }
    let found_text = |row: &Vec<Value>| {
        row.iter()
            .map(|v| match v {
                // Its shortest text depends on who prints it: compared as a number below.
                Value::Float(v) if *v == large => None,
                v => super::text(v),
            })
            .collect::<Vec<_>>()
    };
    let units = script.units().await;
    script.write(&units::merge(&units)).await;
    let expected: Vec<_> = script.source.tables().rows(&table).iter().map(found_text).collect();
    let mut found = target.read_table(&script.tables[0]).await;
    for ratio in found.iter_mut().map(|row| &mut row[3]) {
        if ratio.as_ref().is_some_and(|text| text.parse() == Ok(large)) {
            *ratio = None;
        }
    }
    let (mut found, mut expected) = (found, expected);
    found.sort();
    expected.sort();
    assert_eq!(found, expected, "typed values (left: target)");
}

/// Rows that come, change, move and go within one unit.
pub(super) async fn many_changes_of_one_row(target: &dyn SinkUnderTest) {
    let mut tables = [customers()];
    let mut script = Script::new(target, "folded", &mut tables).await;
    let [name] = tables.map(|t| t.name);
    let source = script.source.clone();
    let commit = |t: anabranch_core::memory::MemoryTransaction<'_>| t.commit().expect("commit");
    commit(source.transaction().insert(&name, customer("1", "a@x", None)).insert(&name, customer("2", "b@x", None)));
    script.write_merged().await;

    // There before, and gone; gone, and there again; never seen; moved there and back.
    commit(source.transaction().delete(&name, ["1".into()]).insert(&name, customer("1", "a@x", Some("again"))));
    commit(source.transaction().insert(&name, customer("3", "c@x", None)).delete(&name, ["3".into()]));
    commit(source.transaction().update(&name, ["2".into()], customer("20", "b@x", None)));
    commit(source.transaction().update(&name, ["20".into()], customer("2", "b@x", Some("back"))));
    script.write_merged().await;

    // Two rows exchange their keys over a third one.
    commit(source.transaction().update(&name, ["1".into()], customer("0", "a@x", None)));
    commit(source.transaction().update(&name, ["2".into()], customer("1", "b@x", None)));
    commit(source.transaction().update(&name, ["0".into()], customer("2", "a@x", None)));
    script.write_merged().await;

    commit(source.transaction().insert(&name, customer("4", "d@x", None)).truncate(&name));
    commit(source.transaction().insert(&name, customer("1", "d@x", None)));
    script.write_merged().await;
}

/// A unit ends in a state that is consistent; what is between is not the target's concern.
pub(super) async fn unique_values_change_hands(target: &dyn SinkUnderTest) {
    let mut tables = [customers()];
    let mut script = Script::new(target, "unique", &mut tables).await;
    let [name] = tables.map(|t| t.name);
    let source = script.source.clone();
    let mut first = source.transaction();
    for (id, email) in [("1", "a@x"), ("2", "b@x"), ("3", "c@x"), ("4", "d@x")] {
        first = first.insert(&name, customer(id, email, Some("a long note")));
    }
    first.commit().expect("commit");
    script.write_merged().await;

    // A swap, then a ring of three, as updates; then a row takes the email of one that is deleted.
    let swap = |t: anabranch_core::memory::MemoryTransaction<'_>, to: &[(&str, &str)]| {
        let t = to.iter().fold(t, |t, (id, _)| {
            t.update(&name, [(*id).into()], customer(id, &format!("free {id}"), Some("a long note")))
        });
        let t = to
            .iter()
            .fold(t, |t, (id, email)| t.update(&name, [(*id).into()], customer(id, email, Some("a long note"))));
        t.commit().expect("commit")
    };
    swap(source.transaction(), &[("1", "b@x"), ("2", "a@x")]);
    script.write_merged().await;
    swap(source.transaction(), &[("1", "c@x"), ("2", "b@x"), ("3", "a@x")]);
    script.write_merged().await;
    let last = source.transaction().delete(&name, ["4".into()]).insert(&name, customer("5", "d@x", None));
    last.update(&name, ["1".into()], customer("4", "c@x", None)).commit().expect("commit");
    script.write_merged().await;

    // The same with columns that are not sent: the target has to keep them.
    let unsent = MemorySource::new("unsent").unsent_columns(&TableName::new("public", "unsent_customers"), &[2, 3]);
    let mut tables = [customers()];
    let mut script = Script::over(target, "unsent", &mut tables, unsent).await;
    let [name] = tables.map(|t| t.name);
    let source = script.source.clone();
    let first = source.transaction().insert(&name, customer("1", "a@x", Some("one")));
    first.insert(&name, customer("2", "b@x", Some("two"))).commit().expect("commit");
    script.write_merged().await;
    let swap = source.transaction().update(&name, ["1".into()], customer("1", "free", Some("one")));
    let swap = swap.update(&name, ["2".into()], customer("2", "a@x", Some("two")));
    swap.update(&name, ["1".into()], customer("1", "b@x", Some("one"))).commit().expect("commit");
    script.write_merged().await;
}

/// Columns that were not sent keep their values; a row that is not there cannot keep them.
pub(super) async fn columns_that_were_not_sent(target: &dyn SinkUnderTest) {
    let source = MemorySource::new("partial").unsent_columns(&TableName::new("public", "partial_customers"), &[2, 3]);
    let mut tables = [customers()];
    let mut script = Script::over(target, "partial", &mut tables, source).await;
    let [name] = tables.map(|t| t.name);
    let source = script.source.clone();
    source.transaction().insert(&name, customer("1", "a@x", Some("kept"))).commit().expect("commit");
    script.write_merged().await;
    source.transaction().update(&name, ["1".into()], customer("1", "b@x", Some("kept"))).commit().expect("commit");
    script.write_merged().await;
    source.transaction().update(&name, ["1".into()], customer("9", "b@x", Some("kept"))).commit().expect("commit");
    script.write_merged().await;
    // The same values again: an update that matches a row and changes nothing is none that is missing.
    source.transaction().update(&name, ["9".into()], customer("9", "b@x", Some("kept"))).commit().expect("commit");
    script.write_merged().await;
    let new = source.transaction().insert(&name, customer("2", "n@x", Some("of this unit")));
    new.update(&name, ["2".into()], customer("3", "m@x", Some("of this unit"))).commit().expect("commit");
    script.write_merged().await;

    // The insert is left out, as if the target had lost the row.
    source.transaction().insert(&name, customer("5", "e@x", Some("lost"))).commit().expect("commit");
    source.transaction().update(&name, ["5".into()], customer("5", "f@x", Some("lost"))).commit().expect("commit");
    let units = script.units().await;
    let error = script.writer.write(&units[1]).await.expect_err("an update of a row that is not there");
    assert_eq!(error.kind(), ErrorKind::Rejected, "{}", error.report());
    script.write(&units::merge(&units)).await;
    script.same_as_source("after the unit with the lost row").await;
}

/// Of equal rows one is changed or deleted, not all.
pub(super) async fn equal_rows_without_a_key(target: &dyn SinkUnderTest) {
    let mut tables = [events()];
    let mut script = Script::new(target, "keyless", &mut tables).await;
    let [name] = tables.map(|t| t.name);
    let source = script.source.clone();
    let row = |at: &str, what: Option<&str>| vec![at.into(), what.map_or(Value::Null, Value::from)];
    let inserts = source.transaction().insert(&name, row("1", Some("x"))).insert(&name, row("1", Some("x")));
    inserts
        .insert(&name, row("1", Some("x")))
        .insert(&name, row("2", None))
        .insert(&name, row("2", None))
        .commit()
        .expect("commit");
    script.write_merged().await;
    source.transaction().delete(&name, row("1", Some("x"))).commit().expect("commit");
    script.write_merged().await;
    source.transaction().update(&name, row("1", Some("x")), row("3", Some("y"))).commit().expect("commit");
    script.write_merged().await;
    source.transaction().delete(&name, row("2", None)).insert(&name, row("2", Some(""))).commit().expect("commit");
    script.write_merged().await;
}

/// The schema changes in the stream, between units and within one; the target has the new column since before.
pub(super) async fn a_column_is_added(target: &dyn SinkUnderTest) {
    alter(target, "altered", false).await;
    alter(target, "altered_within", true).await;
}

async fn alter(target: &dyn SinkUnderTest, name: &'static str, within_one_unit: bool) {
    let mut wide = [customers()];
    let mut script = Script::new(target, name, &mut wide).await;
    let [wide] = wide;
    let mut narrow = wide.clone();
    narrow.columns.truncate(3);
    let source = script.source.clone();
    let before = source.transaction().schema(narrow).insert(&wide.name, ["1".into(), "a@x".into(), "a".into()]);
    before.commit().expect("commit");
    let after = source.transaction().update(&wide.name, ["1".into()], ["1".into(), "b@x".into(), "a".into()]);
    after.schema(wide.clone()).insert(&wide.name, customer("2", "a@x", Some("wide"))).commit().expect("commit");
    source
        .transaction()
        .update(&wide.name, ["1".into()], customer("1", "b@x", Some("wide now")))
        .commit()
        .expect("commit");
    if within_one_unit {
        script.write_merged().await;
        return;
    }
    for unit in script.units().await {
        script.write(&unit).await;
    }
    script.same_as_source("after a column was added").await;
}
