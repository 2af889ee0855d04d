//! Session files, overrides, the shard's column, the filter.

use std::sync::Arc;

use anabranch_core::transform::{Transform, schema_after};
use anabranch_core::{
    BatchBuilder, ChangeBatch, Column, DataType, LetterClass, OldImage, Op, PartitionId, Position, Rank, TableName,
    TableSchema, Transaction, Value,
};
use anabranch_reverse::{ForwardMigration, Mapping};

const SESSION: &str = r#"{
  "SessionName": "ignored",
  "SpSchema": {
    "t1": {"Name": "Users", "ColIds": ["c1", "c2", "c9"], "ShardIdColumn": "c9",
      "PrimaryKeys": [{"ColId": "c9", "Order": 1}, {"ColId": "c1", "Order": 2}],
      "ColDefs": {"c1": {"Name": "Id", "T": {"Name": "INT64"}}, "c2": {"Name": "FullName"}, "c9": {"Name": "migration_shard_id"}}},
    "t2": {"Name": "Notes", "ColDefs": {"c1": {"Name": "Text"}, "c3": {"Name": "N"}, "s": {"Name": "synth_id"}}},
    "t3": {"Name": "OnlyInSpanner", "ColDefs": {"c1": {"Name": "Id"}}}
  },
  "SrcSchema": {
    "t1": {"Name": "users", "Schema": "shop", "PrimaryKeys": [{"ColId": "c1", "Order": 1}],
      "ColDefs": {"c1": {"Name": "user_id"}, "c2": {"Name": "name"}}},
    "t2": {"Name": "notes", "Schema": "shop", "PrimaryKeys": [{"ColId": "c3", "Order": 1}],
      "ColDefs": {"c1": {"Name": "text"}, "c3": {"Name": "n"}}}
  },
  "SyntheticPKeys": {"t2": {"ColId": "s", "Sequence": 0}}
}"#;

fn file(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.json");
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

fn session(text: &str) -> anabranch_core::Result<Mapping> {
    let (_folder, path) = file(text);
    Mapping::session(path)
}

fn table(name: &str, columns: &[&str], key: &[u16]) -> Arc<TableSchema> {
    let columns = columns.iter().map(|c| Column::new(*c, DataType::Text { max_chars: None })).collect();
    Arc::new(TableSchema { name: TableName::new("", name), columns, key: key.to_vec() })
}

fn users() -> Arc<TableSchema> {
    table("Users", &["migration_shard_id", "Id", "FullName"], &[0, 1])
}

type Row<'a> = &'a [Option<&'a str>];

/// One transaction of one change.
fn batch(
    schema: &Arc<TableSchema>,
    tag: Option<&str>,
    op: Op,
    old: Option<Row<'_>>,
    new: Option<Row<'_>>,
) -> ChangeBatch {
    let mut b = BatchBuilder::new(PartitionId::new("p"));
    let at = b.schema(schema);
    let rank = 1u64.to_be_bytes();
    b.begin(Transaction { rank: rank.to_vec().into(), tag: tag.map(Into::into), ..Default::default() }, 1);
    b.change(op, at);
    let push = |b: &mut BatchBuilder, row: Row<'_>| {
        // "?" was not sent.
        row.iter().for_each(|v| {
            let value = v.map_or(Value::Null, |v| if v == "?" { Value::Unchanged } else { Value::from(v) });
            b.push(value.as_ref());
        });
    };
    if let Some(row) = old {
        b.old_row(if row.contains(&Some("?")) { OldImage::Key } else { OldImage::Full });
        push(&mut b, row);
    }
    if let Some(row) = new {
        b.new_row();
        push(&mut b, row);
    }
    let end = Position::new(Rank::of_end(&rank), &b"1"[..]);
    b.commit(end.clone());
    b.finish(end, None).unwrap()
}

fn values(batch: &ChangeBatch) -> Vec<Value> {
    let change = batch.change(0);
    let row = change.new_row().or(change.old_row()).unwrap();
    row.values().map(|v| v.to_owned()).collect()
}

#[test]
fn a_session_file_gives_names_keys_and_the_shard() {
    let mut mapping = session(SESSION).unwrap();
    let row: Row<'_> = &[Some("shard1"), Some("7"), Some("Ann")];
    let out = mapping.apply(batch(&users(), None, Op::Insert, None, Some(row))).unwrap();
    let schema = out.change(0).schema();
    assert_eq!(schema.name, TableName::new("shop", "users"));
    assert_eq!(schema.columns.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["user_id", "name"]);
    assert_eq!(schema.key, [0]);
    assert_eq!(out.change(0).shard().map(|s| &**s), Some("shard1"));
    assert_eq!(values(&out), [Value::from("7"), Value::from("Ann")]);
    // A delete with its key alone tells the shard too: it is in Spanner's key.
    let out =
        mapping.apply(batch(&users(), None, Op::Delete, Some(&[Some("shard2"), Some("7"), Some("?")]), None)).unwrap();
    assert_eq!(out.change(0).shard().map(|s| &**s), Some("shard2"));
    assert_eq!(values(&out), [Value::from("7"), Value::Unchanged]);
}

#[test]
fn a_synthetic_key_is_dropped_and_a_delete_must_tell_the_real_one() {
    let notes = table("Notes", &["synth_id", "Text", "N"], &[0]);
    let mut mapping = session(SESSION).unwrap();
    let full: Row<'_> = &[Some("s1"), Some("hello"), Some("3")];
    let out = mapping.apply(batch(&notes, None, Op::Delete, Some(full), None)).unwrap();
    assert_eq!(values(&out), [Value::from("hello"), Value::from("3")]);
    assert_eq!(out.change(0).schema().key, [1]);
    let key: Row<'_> = &[Some("s1"), Some("?"), Some("?")];
    let out = mapping.apply(batch(&notes, None, Op::Delete, Some(key), None)).unwrap();
    let why = out.change(0).left_out().unwrap();
    assert_eq!(why.class, LetterClass::Severe);
    assert!(
        why.reason.contains("key column n of shop.notes") && why.reason.contains("NEW_ROW_AND_OLD_VALUES"),
        "{why:?}"
    );
}

#[test]
fn tables_without_a_counterpart_are_skipped_and_unknown_columns_refused() {
    let mut mapping = session(SESSION).unwrap();
    for name in ["OnlyInSpanner", "Elsewhere"] {
        let other = table(name, &["Id"], &[0]);
        let out = mapping.apply(batch(&other, None, Op::Insert, None, Some(&[Some("1")]))).unwrap();
        let why = out.change(0).left_out().unwrap();
        assert_eq!(why.class, LetterClass::Skip);
        assert!(why.reason.contains(name), "{why:?}");
        let mut all: Vec<Box<dyn Transform>> = vec![Box::new(session(SESSION).unwrap())];
        assert!(schema_after(&mut all, &other).unwrap().is_none(), "no table is made for it");
    }
    let more = table("Users", &["migration_shard_id", "Id", "FullName", "Added"], &[0, 1]);
    let row: Row<'_> = &[Some("a"), Some("1"), None, None];
    let error = mapping.apply(batch(&more, None, Op::Insert, None, Some(row))).unwrap_err();
    assert!(error.report().contains("column Added that the session file does not know"), "{}", error.report());
    let mut dropping = session(SESSION).unwrap().drop(["Users.Added"]);
    assert_eq!(
        dropping.apply(batch(&more, None, Op::Insert, None, Some(row))).unwrap().change(0).schema().columns.len(),
        2
    );
}

#[test]
fn a_row_without_a_usable_shard_is_severe() {
    let mut mapping = session(SESSION).unwrap();
    for (shard, says) in [(None, "is NULL or was not sent"), (Some(""), "is empty"), (Some("a/b"), "with a slash")] {
        let out = mapping.apply(batch(&users(), None, Op::Insert, None, Some(&[shard, Some("1"), None]))).unwrap();
        let why = out.change(0).left_out().unwrap();
        assert!(why.class == LetterClass::Severe && why.reason.contains(says), "{why:?}");
    }
    for to in [Some("b"), None] {
        let (old, new): (Row<'_>, Row<'_>) = (&[Some("a"), Some("1"), Some("x")], &[to, Some("1"), Some("y")]);
        let out = mapping.apply(batch(&users(), None, Op::Update, Some(old), Some(new))).unwrap();
        let why = out.change(0).left_out().map(|why| (why.class, why.reason.contains("moves from shard a")));
        assert_eq!(why, Some((LetterClass::Severe, true)), "to {to:?}");
    }
    let mut constant = session(SESSION).unwrap().shard("only");
    let out = constant.apply(batch(&users(), None, Op::Insert, None, Some(&[None, Some("1"), None]))).unwrap();
    assert_eq!(out.change(0).shard().map(|s| &**s), Some("only"));
}

#[test]
fn overrides_and_identity() {
    let orders = table("Orders", &["Id", "Total", "migration_shard_id"], &[0]);
    let row: Row<'_> = &[Some("1"), Some("2"), Some("s")];
    let names = |mut mapping: Mapping| {
        let out = mapping.apply(batch(&orders, None, Op::Insert, None, Some(row))).unwrap();
        let change = out.change(0);
        let columns: Vec<String> = change.schema().columns.iter().map(|c| c.name.clone()).collect();
        (change.schema().name.name.clone(), columns.join(","), change.shard().map(|s| s.to_string()))
    };
    let expected = ("orders".to_owned(), "Id,amount".to_owned(), Some("s".to_owned()));
    let (_folder, path) =
        file(r#"{"renamedTables":{"orders":"Orders"},"renamedColumns":{"orders":{"amount":"Total"}}}"#);
    assert_eq!(names(Mapping::overrides_file(path).unwrap()), expected);
    assert_eq!(names(Mapping::overrides("[{orders, Orders}]", "[{orders.amount, orders.Total}]").unwrap()), expected);
    let same = ("Orders".to_owned(), "Id,Total".to_owned(), Some("s".to_owned()));
    assert_eq!(names(Mapping::identity()), same);
    let kept = names(Mapping::identity().keep_shard_column(true));
    assert_eq!(kept.1, "Id,Total,migration_shard_id");
}

#[test]
fn every_mistake_in_a_file_is_named() {
    for (text, says) in [
        ("", "line 1"),
        ("{}", "SpSchema"),
        (r#"{"SpSchema":{},"SrcSchema":{}}"#, "SyntheticPKeys"),
        (&SESSION.replace("\"ShardIdColumn\": \"c9\"", "\"ShardIdColumn\": \"c8\""), "ShardIdColumn c8 is no column"),
        (&SESSION.replace("\"Notes\"", "\"Users\""), "two tables with the Name Users"),
        (&SESSION.replace("\"FullName\"", "\"Id\""), "two columns with the Name Id"),
        (&SESSION.replace(r#""PrimaryKeys": [{"ColId": "c3", "Order": 1}],"#, ""), "no primary key"),
        (&SESSION.replace(r#"{"ColId": "c3", "Order": 1}"#, r#"{"ColId": "c8"}"#), "key column c8 is no column"),
    ] {
        let error = session(text).unwrap_err();
        assert!(error.report().contains(says), "{text}: {}", error.report());
    }
    for (tables, columns, says) in [
        ("{a, b}", "", "table_overrides: must be written"),
        ("[{a b}]", "", "table_overrides: must be written"),
        ("[{a, c}, {b, c}]", "", "two tables are renamed to c"),
        ("", "[{a.x, b.y}]", "names two tables"),
        ("", "[{x, y}]", "does not name table.column"),
    ] {
        let error = Mapping::overrides(tables, columns).unwrap_err();
        assert!(error.report().contains(says), "{tables} {columns}: {}", error.report());
    }
}

#[test]
fn what_the_forward_migration_wrote_is_left_out() {
    let row: Row<'_> = &[Some("a"), Some("1"), None];
    for (tag, left_out) in [(Some("txBy=job-1"), true), (Some("app=1"), false), (None, false)] {
        let mut filter = ForwardMigration::default();
        let out = filter.apply(batch(&users(), tag, Op::Insert, None, Some(row))).unwrap();
        let why = out.change(0).left_out();
        assert_eq!(why.map(|w| w.class), left_out.then_some(LetterClass::Filtered), "{tag:?}");
        // It stays left out behind another transform, and its row is still there to be kept.
        let mapped = session(SESSION).unwrap().apply(out).unwrap();
        assert_eq!(mapped.change(0).left_out().is_some(), left_out);
        assert!(mapped.change(0).new_row().is_some());
    }
}
