//! Every kind of step, and the traps of unique keys.

use anabranch_core::{DataType, Durability, ErrorKind, OldImage, Value};

use crate::support::*;

fn keyless() -> std::sync::Arc<anabranch_core::TableSchema> {
    table("log", &[("at", DataType::Int64), ("line", text())], 0)
}

#[tokio::test]
async fn inserts_updates_and_deletes() {
    let target = Target::new(ITEMS);
    let mut writer = target.writer().await;
    let t = items();
    let written = writer
        .write(&unit(
            1,
            &[
                Do::Insert(t.clone(), item(1, "a", "first")),
                Do::Insert(t.clone(), item(2, "b", "second")),
                Do::Insert(t.clone(), item(3, "c", "third")),
            ],
        ))
        .await
        .unwrap();
    assert_eq!(written.durability, Durability::Durable);
    let second = [
        Do::Update(t.clone(), row([1.into(), "a".into(), NULL])),
        Do::Update(t.clone(), row([2.into(), UNCHANGED, "kept its code".into()])),
        Do::Delete(t.clone(), OldImage::Key, row([3.into(), UNCHANGED, UNCHANGED])),
        Do::Message,
    ];
    let _ = writer.write(&unit(2, &second)).await.unwrap();
    assert_eq!(target.rows("SELECT * FROM items ORDER BY id"), ["1|a|NULL", "2|b|kept its code"]);
}

#[tokio::test]
async fn rows_that_swap_a_unique_value() {
    let target = Target::new(ITEMS);
    target.look().execute_batch("INSERT INTO items VALUES (1, 'a', 'x'), (2, 'b', 'y'), (3, 'c', 'z')").unwrap();
    let t = items();
    // Complete rows, a partial one, and a chain.
    apply(
        &target,
        &[
            Do::Update(t.clone(), item(1, "b", "x")),
            Do::Update(t.clone(), row([2.into(), "c".into(), UNCHANGED])),
            Do::Update(t.clone(), item(3, "a", "z")),
        ],
    )
    .await
    .unwrap();
    assert_eq!(target.rows("SELECT * FROM items ORDER BY id"), ["1|b|x", "2|c|y", "3|a|z"]);
}

#[tokio::test]
async fn a_long_chain_over_a_unique_number() {
    let target = Target::new("CREATE TABLE queue (id INTEGER PRIMARY KEY, place INTEGER NOT NULL UNIQUE)");
    let t = table("queue", &[("id", DataType::Int64), ("place", DataType::Int64)], 1);
    let at = |shift: i64| (1..=200).map(move |id| row([Value::Int(id), Value::Int(id + shift)]));
    let mut writer = target.writer().await;
    let inserts: Vec<_> = at(0).map(|r| Do::Insert(t.clone(), r)).collect();
    let _ = writer.write(&unit(1, &inserts)).await.unwrap();
    let updates: Vec<_> = at(1).map(|r| Do::Update(t.clone(), r)).collect();
    let _ = writer.write(&unit(2, &updates)).await.unwrap();
    assert_eq!(target.rows("SELECT count(*), min(place - id), max(place - id) FROM queue"), ["200|1|1"]);
    assert_eq!(target.rows("SELECT changes, transactions FROM anabranch_lane"), ["400|2"]);
}

#[tokio::test]
async fn the_way_around_keeps_columns_that_the_source_does_not_have() {
    let target = Target::new(
        "CREATE TABLE items (id INTEGER PRIMARY KEY, code TEXT UNIQUE, note TEXT, local TEXT DEFAULT 'new');
         INSERT INTO items VALUES (1, 'a', 'x', 'mine'), (2, 'b', 'y', 'yours'), (9, 'q', 'w', 'theirs')",
    );
    let t = items();
    let swap = [
        Do::Update(t.clone(), item(1, "b", "x")),
        Do::Update(t.clone(), item(2, "a", "y")),
        Do::Insert(t.clone(), item(3, "c", "z")),
    ];
    apply(&target, &swap).await.unwrap();
    let expected = ["1|b|x|mine", "2|a|y|yours", "3|c|z|new", "9|q|w|theirs"];
    assert_eq!(target.rows("SELECT * FROM items ORDER BY id"), expected);
}

/// The column compares its values by one collation, and its unique index by another.
#[tokio::test]
async fn keys_are_compared_as_their_unique_index_compares_them() {
    let target = Target::new(
        "CREATE TABLE items (id TEXT COLLATE NOCASE NOT NULL, code TEXT, note TEXT);
         CREATE UNIQUE INDEX exact ON items (id COLLATE BINARY);
         INSERT INTO items VALUES ('a', 'x', 'y'), ('A', 'x', 'y'), ('b', 'x', 'y'), ('B', 'x', 'y')",
    );
    let t = table("items", &[("id", text()), ("code", text()), ("note", text())], 1);
    let changes = [
        Do::Delete(t.clone(), OldImage::Key, row(["A".into(), UNCHANGED, UNCHANGED])),
        Do::Update(t.clone(), row(["B".into(), "changed".into(), UNCHANGED])),
    ];
    apply(&target, &changes).await.unwrap();
    assert_eq!(target.rows("SELECT * FROM items ORDER BY id, code DESC"), ["a|x|y", "b|x|y", "B|changed|y"]);
}

#[tokio::test]
async fn a_unique_value_moves_to_another_key() {
    let target = Target::new(ITEMS);
    target.look().execute_batch("INSERT INTO items VALUES (1, 'a', 'x'), (7, 'g', 'y')").unwrap();
    let t = items();
    let moves = [
        Do::Delete(t.clone(), OldImage::Key, row([1.into(), UNCHANGED, UNCHANGED])),
        Do::Insert(t.clone(), item(2, "a", "again")),
        // The row with key 7 becomes 8 with all columns, then 9 with a part of them.
        Do::Change(t.clone(), OldImage::Key, row([7.into(), UNCHANGED, UNCHANGED]), item(8, "g", "y")),
        Do::Change(
            t.clone(),
            OldImage::Key,
            row([8.into(), UNCHANGED, UNCHANGED]),
            row([9.into(), UNCHANGED, "z".into()]),
        ),
    ];
    apply(&target, &moves).await.unwrap();
    assert_eq!(target.rows("SELECT * FROM items ORDER BY id"), ["2|a|again", "9|g|z"]);
}

#[tokio::test]
async fn a_key_changes_and_the_other_columns_were_not_sent() {
    let target = Target::new(ITEMS);
    target.look().execute_batch("INSERT INTO items VALUES (1, 'a', 'long text')").unwrap();
    let old = row([1.into(), UNCHANGED, UNCHANGED]);
    apply(&target, &[Do::Change(items(), OldImage::Key, old, row([5.into(), "A".into(), UNCHANGED]))]).await.unwrap();
    assert_eq!(target.rows("SELECT * FROM items"), ["5|A|long text"]);
}

#[tokio::test]
async fn a_partial_update_of_a_missing_row_is_rejected_and_nothing_happens() {
    let target = Target::new(ITEMS);
    let mut writer = target.writer().await;
    let t = items();
    let changes =
        [Do::Insert(t.clone(), item(1, "a", "x")), Do::Update(t.clone(), row([2.into(), UNCHANGED, "y".into()]))];
    let error = writer.write(&unit(1, &changes)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert!(error.to_string().contains("no row with key id = 2"), "{error}");
    assert!(target.rows("SELECT * FROM items").is_empty());
    assert!(target.rows("SELECT * FROM anabranch_position").is_empty());
    assert_eq!(target.rows("SELECT changes, transactions FROM anabranch_lane"), ["0|0"]);
    // The writer goes on.
    let _ = writer.write(&unit(1, &changes[..1])).await.unwrap();
    assert_eq!(target.rows("SELECT * FROM items"), ["1|a|x"]);
}

#[tokio::test]
async fn a_row_that_breaks_a_constraint_at_the_end_is_rejected() {
    let target = Target::new(
        "CREATE TABLE items (id INTEGER PRIMARY KEY, code TEXT UNIQUE, note TEXT CHECK (note <> 'bad'));
         INSERT INTO items VALUES (9, 'taken', 'other')",
    );
    let mut writer = target.writer().await;
    let unique = writer.write(&unit(1, &[Do::Insert(items(), item(1, "taken", "x"))])).await.unwrap_err();
    assert_eq!(unique.kind(), ErrorKind::Rejected);
    assert!(unique.to_string().contains("UNIQUE constraint failed: items.code"), "{unique}");
    let check = writer.write(&unit(1, &[Do::Insert(items(), item(1, "a", "bad"))])).await.unwrap_err();
    assert_eq!(check.kind(), ErrorKind::Rejected);
    assert!(check.to_string().contains("CHECK constraint failed"), "{check}");
    assert_eq!(target.rows("SELECT * FROM items"), ["9|taken|other"]);
}

#[tokio::test]
async fn conflict_clauses_of_the_table_do_not_lose_rows() {
    let target = Target::new(
        "CREATE TABLE items (id INTEGER PRIMARY KEY ON CONFLICT IGNORE, code TEXT UNIQUE ON CONFLICT REPLACE, note TEXT);
         INSERT INTO items VALUES (9, 'taken', 'other')",
    );
    let error = apply(&target, &[Do::Insert(items(), item(1, "taken", "x"))]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert_eq!(target.rows("SELECT * FROM items"), ["9|taken|other"]);
    apply(&target, &[Do::Update(items(), item(9, "moved", "x"))]).await.unwrap();
    assert_eq!(target.rows("SELECT * FROM items"), ["9|moved|x"]);
}

#[tokio::test]
async fn a_trigger_that_ignores_a_row_does_not_go_unnoticed() {
    let target = Target::new(
        "CREATE TABLE items (id INTEGER PRIMARY KEY, code TEXT, note TEXT);
         CREATE TRIGGER quiet BEFORE INSERT ON items WHEN new.id = 2 BEGIN SELECT raise(IGNORE); END",
    );
    let changes = [Do::Insert(items(), item(1, "a", "x")), Do::Insert(items(), item(2, "b", "y"))];
    let error = apply(&target, &changes).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert!(target.rows("SELECT * FROM items").is_empty());
}

#[tokio::test]
async fn rows_without_a_key_are_found_by_their_whole_old_image() {
    let target = Target::new("CREATE TABLE log (at INTEGER, line TEXT COLLATE NOCASE)");
    let t = keyless();
    let mut writer = target.writer().await;
    let inserts = [
        Do::Insert(t.clone(), row([1.into(), "x".into()])),
        Do::Insert(t.clone(), row([1.into(), "x".into()])),
        Do::Insert(t.clone(), row([1.into(), "X".into()])),
        Do::Insert(t.clone(), row([NULL, NULL])),
        Do::Insert(t.clone(), row([NULL, NULL])),
        Do::Insert(t.clone(), row([2.into(), NULL])),
    ];
    let _ = writer.write(&unit(1, &inserts)).await.unwrap();
    let changes = [
        Do::Delete(t.clone(), OldImage::Full, row([1.into(), "X".into()])),
        Do::Delete(t.clone(), OldImage::Full, row([1.into(), "x".into()])),
        Do::Delete(t.clone(), OldImage::Full, row([NULL, NULL])),
        Do::Change(t.clone(), OldImage::Full, row([2.into(), NULL]), row([2.into(), "y".into()])),
        Do::Change(t.clone(), OldImage::Full, row([2.into(), "y".into()]), row([3.into(), UNCHANGED])),
    ];
    let _ = writer.write(&unit(2, &changes)).await.unwrap();
    assert_eq!(target.rows("SELECT * FROM log ORDER BY at, line"), ["NULL|NULL", "1|x", "3|y"]);

    let gone = [Do::Delete(t.clone(), OldImage::Full, row([77.into(), NULL]))];
    assert_eq!(writer.write(&unit(3, &gone)).await.unwrap_err().kind(), ErrorKind::Rejected);
    let unknown = [Do::Update(t.clone(), row([1.into(), "z".into()]))];
    let error = writer.write(&unit(3, &unknown)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert!(error.to_string().contains("REPLICA IDENTITY FULL"), "{error}");
}

#[tokio::test]
async fn rows_without_a_key_in_tables_that_hide_the_rowid() {
    let target = Target::new(
        "CREATE TABLE log (at INTEGER, line TEXT, rowid TEXT, _rowid_ TEXT);
         CREATE TABLE pairs (at INTEGER NOT NULL, line TEXT NOT NULL, PRIMARY KEY (at, line)) WITHOUT ROWID;
         INSERT INTO log (at, line, rowid) VALUES (1, 'x', 'r'), (1, 'x', 'r');
         INSERT INTO pairs VALUES (1, 'x'), (1, 'y')",
    );
    let pairs = table("pairs", &[("at", DataType::Int64), ("line", text())], 0);
    apply(
        &target,
        &[
            Do::Delete(keyless(), OldImage::Full, row([1.into(), "x".into()])),
            Do::Delete(pairs, OldImage::Full, row([1.into(), "y".into()])),
        ],
    )
    .await
    .unwrap();
    assert_eq!(target.rows("SELECT at, line FROM log"), ["1|x"]);
    assert_eq!(target.rows("SELECT * FROM pairs"), ["1|x"]);
}

#[tokio::test]
async fn keys_whose_text_is_not_their_equality_go_one_by_one() {
    let target = Target::new("CREATE TABLE spans (span TEXT PRIMARY KEY, n INTEGER)");
    let t = table("spans", &[("span", DataType::Interval), ("n", DataType::Int64)], 1);
    let changes = [
        Do::Insert(t.clone(), row(["1 day".into(), 1.into()])),
        Do::Update(t.clone(), row(["1 day".into(), 2.into()])),
        Do::Change(t.clone(), OldImage::Key, row(["1 day".into(), UNCHANGED]), row(["24:00:00".into(), 3.into()])),
        Do::Insert(t.clone(), row(["2 days".into(), 4.into()])),
        Do::Delete(t.clone(), OldImage::Key, row(["2 days".into(), UNCHANGED])),
    ];
    apply(&target, &changes).await.unwrap();
    assert_eq!(target.rows("SELECT * FROM spans"), ["24:00:00|3"]);
}

#[tokio::test]
async fn truncate_in_the_middle_of_a_transaction() {
    let target = Target::new(ITEMS);
    target.look().execute_batch("INSERT INTO items VALUES (1, 'a', 'x'), (2, 'b', 'y')").unwrap();
    let t = items();
    let changes = [
        Do::Insert(t.clone(), item(3, "c", "before")),
        Do::Truncate(t.clone()),
        Do::Insert(t.clone(), item(4, "a", "after")),
        // A swap, so that the way around meets the truncate too.
        Do::Truncate(t.clone()),
        Do::Insert(t.clone(), item(5, "p", "x")),
        Do::Insert(t.clone(), item(6, "q", "y")),
        Do::Schema(t.clone()),
        Do::Update(t.clone(), item(5, "q", "x")),
        Do::Update(t.clone(), item(6, "p", "y")),
    ];
    apply(&target, &changes).await.unwrap();
    assert_eq!(target.rows("SELECT * FROM items ORDER BY id"), ["5|q|x", "6|p|y"]);
}

#[tokio::test]
async fn a_table_changes_on_the_way() {
    let target = Target::new(ITEMS);
    let mut writer = target.writer().await;
    let _ = writer.write(&unit(1, &[Do::Insert(items(), item(1, "a", "x"))])).await.unwrap();
    let wider =
        table("items", &[("id", DataType::Int64), ("code", text()), ("note", text()), ("price", DataType::Float64)], 1);
    let changes =
        [Do::Schema(wider.clone()), Do::Insert(wider.clone(), row([2.into(), "b".into(), NULL, Value::Float(1.5)]))];
    let error = writer.write(&unit(2, &changes)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("items.price"), "{error}");
    target.look().execute_batch("ALTER TABLE items ADD COLUMN price REAL").unwrap();
    let _ = writer.write(&unit(2, &changes)).await.unwrap();
    assert_eq!(target.rows("SELECT * FROM items ORDER BY id"), ["1|a|x|NULL", "2|b|NULL|1.5"]);
}

#[tokio::test]
async fn names_of_every_kind() {
    let target = Target::new("");
    let t = table(
        "Odd \"Table\" name; --",
        &[("Id", DataType::Int64), ("group", text()), ("a \"b\" c", text()), ("ünïcode", text())],
        2,
    );
    use anabranch_core::TargetSchema;
    target.sqlite.create(&t).await.unwrap();
    let values = |note: &str| row([1.into(), "g".into(), note.into(), "z".into()]);
    let mut writer = target.writer().await;
    let _ = writer.write(&unit(1, &[Do::Insert(t.clone(), values("x"))])).await.unwrap();
    let partial = row([1.into(), "g".into(), "y".into(), UNCHANGED]);
    let _ = writer.write(&unit(2, &[Do::Update(t.clone(), partial)])).await.unwrap();
    assert_eq!(target.rows("SELECT * FROM \"Odd \"\"Table\"\" name; --\""), ["1|g|y|z"]);
    let delete = Do::Delete(t.clone(), OldImage::Key, row([1.into(), "g".into(), UNCHANGED, UNCHANGED]));
    let _ = writer.write(&unit(3, &[delete])).await.unwrap();
    assert!(target.rows("SELECT * FROM \"Odd \"\"Table\"\" name; --\"").is_empty());
}

#[tokio::test]
async fn generated_columns() {
    let target = Target::new(
        "CREATE TABLE sums (id INTEGER PRIMARY KEY, a INTEGER, twice INTEGER GENERATED ALWAYS AS (a * 2) STORED)",
    );
    let mut t = TableParts::sums();
    let error = apply(&target, &[Do::Insert(t.table(false), row([1.into(), 2.into(), 4.into()]))]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("sums.twice"), "{error}");
    apply(&target, &[Do::Insert(t.table(true), row([1.into(), 2.into(), 4.into()]))]).await.unwrap();
    assert_eq!(target.rows("SELECT * FROM sums"), ["1|2|4"]);
}

struct TableParts(anabranch_core::TableSchema);

impl TableParts {
    fn sums() -> Self {
        let columns = [("id", DataType::Int64), ("a", DataType::Int64), ("twice", DataType::Int64)];
        Self((*table("sums", &columns, 1)).clone())
    }

    fn table(&mut self, generated: bool) -> std::sync::Arc<anabranch_core::TableSchema> {
        self.0.columns[2].generated = generated;
        std::sync::Arc::new(self.0.clone())
    }
}

#[tokio::test]
async fn what_the_target_lacks_is_named() {
    let target = Target::new("CREATE TABLE items (id INTEGER, code TEXT, note TEXT); CREATE VIEW v AS SELECT 1 AS id");
    let changes = [Do::Insert(items(), item(1, "a", "x"))];
    let error = apply(&target, &changes).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("no primary key or unique key on exactly (id)"), "{error}");
    let missing = table("nowhere", &[("id", DataType::Int64)], 1);
    let error = apply(&target, &[Do::Insert(missing, row([1.into()]))]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    let view = table("v", &[("id", DataType::Int64)], 1);
    let error = apply(&target, &[Do::Insert(view, row([1.into()]))]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("view"), "{error}");
}

#[tokio::test]
async fn a_decimal_key_is_written_in_another_way() {
    let target = Target::new("CREATE TABLE prices (price TEXT PRIMARY KEY, note TEXT)");
    let decimal = DataType::Decimal { precision: None, scale: None };
    let t = table("prices", &[("price", decimal), ("note", text())], 1);
    let mut writer = target.writer().await;
    let _ = writer.write(&unit(1, &[Do::Insert(t.clone(), row(["1.5".into(), "a".into()]))])).await.unwrap();
    let old = row(["1.5".into(), UNCHANGED]);
    let change = Do::Change(t.clone(), OldImage::Key, old, row(["1.50".into(), "b".into()]));
    let _ = writer.write(&unit(2, &[change])).await.unwrap();
    assert_eq!(target.rows("SELECT * FROM prices"), ["1.50|b"]);
}

#[tokio::test]
async fn a_part_of_a_key_changes_within_a_swap() {
    let target =
        Target::new("CREATE TABLE seats (row INTEGER, seat INTEGER, guest TEXT UNIQUE, PRIMARY KEY (row, seat))");
    target.look().execute_batch("INSERT INTO seats VALUES (1, 1, 'a'), (1, 2, 'b')").unwrap();
    let t = table("seats", &[("row", DataType::Int64), ("seat", DataType::Int64), ("guest", text())], 2);
    let at = |row: i64, seat: i64| super::support::row([row.into(), seat.into(), UNCHANGED]);
    let changes = [
        // Over an empty seat, with only what changed of the key and with no guest.
        Do::Change(t.clone(), OldImage::Key, at(1, 1), row([UNCHANGED, 3.into(), UNCHANGED])),
        Do::Change(t.clone(), OldImage::Key, at(1, 2), row([UNCHANGED, 1.into(), UNCHANGED])),
        Do::Change(t.clone(), OldImage::Key, at(1, 3), row([UNCHANGED, 2.into(), UNCHANGED])),
        Do::Update(t.clone(), row([1.into(), 1.into(), "a".into()])),
        Do::Update(t.clone(), row([1.into(), 2.into(), "b".into()])),
    ];
    apply(&target, &changes).await.unwrap();
    assert_eq!(target.rows("SELECT * FROM seats ORDER BY seat"), ["1|1|a", "1|2|b"]);
}
