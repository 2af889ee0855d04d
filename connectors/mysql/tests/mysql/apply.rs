//! Changes of rows, where MySQL has traps for them.

use anabranch_core::{ErrorKind, LanePurpose, OldImage, Part, Sink, UnitKind, Value};
use anabranch_mysql::LocalInfile;

use crate::server::{Do, Maker, TEXT, database, keyed, lane, table, take_over};
use crate::{row, server};

const INT: anabranch_core::DataType = anabranch_core::DataType::Int64;

/// INSERT ... ON DUPLICATE KEY UPDATE would write the new row over another one.
#[tokio::test]
async fn a_row_is_never_merged_into_another_one() {
    let mut db = database(server!()).await;
    // AUTO_INCREMENT takes NULL as 0, so that a guard by NULL would fail in silence.
    for (name, key) in [("plain", "k BIGINT PRIMARY KEY"), ("auto", "k BIGINT AUTO_INCREMENT PRIMARY KEY")] {
        db.run(&format!("CREATE TABLE {name} ({key}, u BIGINT UNIQUE, v VARCHAR(9))")).await;
        let t = table(name, &[("k", INT), ("u", INT), ("v", TEXT)]);
        let mut writer = db.writer(1).await;
        let mut m = Maker::default();
        let _ = writer
            .write(&m.stream(&[(&t, Do::Insert(row![1, 10, "a"])), (&t, Do::Insert(row![2, 20, "b"]))]))
            .await
            .expect("insert");
        // The target has 20 in row 2; the source says it is in row 3. Nothing may be lost in silence.
        let error = writer.write(&m.stream(&[(&t, Do::Insert(row![3, 20, "c"]))])).await.expect_err("a duplicate");
        assert_eq!(error.kind(), ErrorKind::Rejected);
        assert!(error.report().contains("Duplicate entry '20'"), "{}", error.report());
        assert!(error.report().contains("table public."), "{}", error.report());
        assert_eq!(db.lines(&format!("SELECT * FROM {name} ORDER BY k")).await, ["1|10|a", "2|20|b"]);
        // The writer goes on.
        let _ = writer.write(&m.stream(&[(&t, Do::Insert(row![3, 30, "c"]))])).await.expect("goes on");
        assert_eq!(db.lines(&format!("SELECT * FROM {name} ORDER BY k")).await, ["1|10|a", "2|20|b", "3|30|c"]);
        let stored = db.sink().progress().expect("progress").read("p").await.expect("read");
        assert_eq!(stored[0].counters.changes % 3, 0, "the refused unit is not counted");
    }
}

/// An index that somebody adds while a pipeline runs, as before a switchover.
#[tokio::test]
async fn a_unique_index_that_comes_later_merges_no_rows() {
    let mut db = database(server!()).await;
    db.run("CREATE TABLE late (k BIGINT PRIMARY KEY, u BIGINT, v VARCHAR(9))").await;
    let t = table("late", &[("k", INT), ("u", INT), ("v", TEXT)]);
    let mut writer = db.writer(1).await;
    let mut m = Maker::default();
    let _ = writer.write(&m.stream(&[(&t, Do::Insert(row![2, 20, "b"]))])).await.expect("insert");
    db.run("ALTER TABLE late ADD UNIQUE (u)").await;
    // 20 moves from row 2 to row 3, of which the first is heard of earlier.
    let moved =
        [(&t, Do::Insert(row![3, 30, "c"])), (&t, Do::Update(row![2, 40, "b"])), (&t, Do::Update(row![3, 20, "c"]))];
    let _ = writer.write(&m.stream(&moved)).await.expect("a value moves");
    assert_eq!(db.lines("SELECT * FROM late ORDER BY k").await, ["2|40|b", "3|20|c"]);
}

/// 1.5 and 1.50 are one number, and two texts.
#[tokio::test]
async fn a_decimal_key_that_is_kept_as_text_is_written_in_another_way() {
    let mut db = database(server!()).await;
    db.run("CREATE TABLE texts (k VARCHAR(40) PRIMARY KEY, v BIGINT) CHARSET ascii COLLATE ascii_bin").await;
    let t = table("texts", &[("k", anabranch_core::DataType::Decimal { precision: None, scale: None }), ("v", INT)]);
    let mut writer = db.writer(1).await;
    let mut m = Maker::default();
    let _ = writer.write(&m.stream(&[(&t, Do::Insert(row!["1.5", 1]))])).await.expect("insert");
    let old = vec!["1.5".into(), Value::Unchanged];
    let _ = writer.write(&m.stream(&[(&t, Do::Move(OldImage::Key, old, row!["1.50", 2]))])).await.expect("update");
    assert_eq!(db.lines("SELECT * FROM texts").await, ["1.50|2"]);
}

#[tokio::test]
async fn unique_values_swap_chain_and_move_with_columns_not_sent() {
    let mut db = database(server!()).await;
    // A column that only the target has keeps its value through a replace.
    db.run(
        "CREATE TABLE t (k BIGINT PRIMARY KEY, u VARCHAR(9) UNIQUE NOT NULL, big LONGTEXT, f FLOAT, d DOUBLE, \
         b BIT(9), raw BLOB, own INT DEFAULT 7, own_at DATETIME(6) DEFAULT '2001-02-03 04:05:06.7') \
         CHARSET utf8mb4",
    )
    .await;
    let real = anabranch_core::DataType::Float32;
    let double = anabranch_core::DataType::Float64;
    let bits = anabranch_core::DataType::Bit { length: Some(9), varying: false };
    let bytes = anabranch_core::DataType::Bytes;
    let t =
        table("t", &[("k", INT), ("u", TEXT), ("big", TEXT), ("f", real), ("d", double), ("b", bits), ("raw", bytes)]);
    let mut writer = db.writer(1).await;
    let mut m = Maker::default();
    let rest = || row!["big \u{1F600}", "3.4028235e+38", "1e-300", "100000001", "\\x00ff"];
    let full = |k: i64, u: &str| [row![k, u], rest()].concat();
    let part = |k: i64, u: &str| [row![k, u], vec![Value::Unchanged; 5]].concat();
    let first: Vec<_> = (1..=4).map(|k| (&t, Do::Insert(full(k, &format!("u{k}"))))).collect();
    let _ = writer.write(&m.stream(&first)).await.expect("insert");
    db.run("UPDATE t SET own = k * 100, own_at = '2020-01-01 00:00:00.123456' + INTERVAL k DAY").await;
    let before = db.lines("SELECT k, big, CAST(f AS DOUBLE), d, b+0, HEX(raw), own, own_at FROM t ORDER BY k").await;
    // 1 and 2 swap (partial), 3 takes 4's value (complete), 4 moves on.
    let changes = [part(1, "u2"), part(2, "u1"), full(3, "u4"), part(4, "new")];
    let changes: Vec<_> = changes.into_iter().map(|row| (&t, Do::Update(row))).collect();
    let _ = writer.write(&m.stream(&changes)).await.expect("swap");
    assert_eq!(db.lines("SELECT k, u FROM t ORDER BY k").await, ["1|u2", "2|u1", "3|u4", "4|new"]);
    let after = db.lines("SELECT k, big, CAST(f AS DOUBLE), d, b+0, HEX(raw), own, own_at FROM t ORDER BY k").await;
    assert_eq!(after, before, "what was not sent, and the target's own columns, are kept");
}

#[tokio::test]
async fn keys_that_differ_in_case_and_blanks_are_different_rows() {
    let mut db = database(server!()).await;
    let t = table("exact", &[("k", TEXT), ("v", INT)]);
    db.sink().target().expect("tables").create(&t).await.expect("create");
    let mut writer = db.writer(1).await;
    let mut m = Maker::default();
    let keys = ["a", "A", "a ", "\u{e4}", "a\u{308}", "\u{1F600}", "\u{1F601}", "", "ß", "ss"];
    let inserts: Vec<_> = keys.iter().zip(1..).map(|(k, v)| (&t, Do::Insert(row![*k, v]))).collect();
    let _ = writer.write(&m.stream(&inserts)).await.expect("insert");
    let delete = m.stream(&[(&t, Do::Delete(OldImage::Key, vec!["a".into(), Value::Unchanged]))]);
    let _ = writer.write(&delete).await.expect("delete");
    let _ = writer.write(&m.stream(&[(&t, Do::Update(row!["A", 100]))])).await.expect("update");
    assert_eq!(
        db.lines("SELECT CONCAT('[',k,']'), v FROM exact ORDER BY v").await,
        [
            "[a ]|3",
            "[\u{e4}]|4",
            "[a\u{308}]|5",
            "[\u{1F600}]|6",
            "[\u{1F601}]|7",
            "[]|8",
            "[ß]|9",
            "[ss]|10",
            "[A]|100"
        ]
    );
}

/// A table that somebody made with a collation that ignores case.
#[tokio::test]
async fn keys_that_the_target_does_not_tell_apart_are_refused() {
    let mut db = database(server!()).await;
    db.run("CREATE TABLE ci (k VARCHAR(9) PRIMARY KEY, v BIGINT) CHARSET utf8mb4 COLLATE utf8mb4_general_ci").await;
    let t = table("ci", &[("k", TEXT), ("v", INT)]);
    let mut writer = db.writer(1).await;
    let mut m = Maker::default();
    let _ = writer.write(&m.stream(&[(&t, Do::Insert(row!["a", 1]))])).await.expect("insert");
    for other in ["A", "a "] {
        let error = writer.write(&m.stream(&[(&t, Do::Insert(row![other, 2]))])).await.expect_err("not told apart");
        assert_eq!(error.kind(), ErrorKind::Rejected, "{}", error.report());
        // What names another row does nothing to this one.
        let delete = m.stream(&[(&t, Do::Delete(OldImage::Key, vec![other.into(), Value::Unchanged]))]);
        let _ = writer.write(&delete).await.expect("delete of a row that is not there");
        assert_eq!(db.lines("SELECT * FROM ci").await, ["a|1"]);
    }
    // Its own key may change its case.
    let moved = m.stream(&[(&t, Do::Move(OldImage::Key, vec!["a".into(), Value::Unchanged], row!["A", 5]))]);
    let _ = writer.write(&moved).await.expect("move");
    let _ = writer.write(&m.stream(&[(&t, Do::Update(row!["A", 6]))])).await.expect("update");
    assert_eq!(db.lines("SELECT * FROM ci").await, ["A|6"]);
}

#[tokio::test]
async fn columns_that_the_server_sets_by_itself_keep_the_sources_values() {
    let mut db = database(server!()).await;
    db.run(
        "CREATE TABLE o (k INT PRIMARY KEY AUTO_INCREMENT, v VARCHAR(9), \
         ts TIMESTAMP(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6) ON UPDATE CURRENT_TIMESTAMP(6))",
    )
    .await;
    let at = anabranch_core::DataType::TimestampTz;
    let t = table("o", &[("k", anabranch_core::DataType::Int32), ("v", TEXT), ("ts", at)]);
    let mut writer = db.writer(1).await;
    let mut m = Maker::default();
    let old = "2001-02-03 04:05:06.789+00";
    // A zero in an AUTO_INCREMENT column is a zero, not the next number.
    let _ = writer.write(&m.stream(&[(&t, Do::Insert(row![0, "a", old]))])).await.expect("insert");
    assert_eq!(db.lines("SELECT * FROM o").await, ["0|a|2001-02-03 04:05:06.789000"]);
    let _ = writer.write(&m.stream(&[(&t, Do::Update(row![0, "b", old]))])).await.expect("update");
    let partial = m.stream(&[(&t, Do::Update(row![0, "c", Value::Unchanged]))]);
    let _ = writer.write(&partial).await.expect("partial update");
    assert_eq!(db.lines("SELECT * FROM o").await, ["0|c|2001-02-03 04:05:06.789000"]);
    let described = db.sink();
    let target = described.target().expect("tables").describe(&t.name).await.expect("describe").expect("there");
    assert!(target.warnings.iter().any(|w| w.contains("ts has ON UPDATE")), "{:?}", target.warnings);
}

#[tokio::test]
async fn partial_updates_need_their_row() {
    let mut db = database(server!()).await;
    let t = keyed("t", &[("a", INT), ("b", TEXT), ("v", TEXT), ("w", TEXT)], &[0, 1]);
    db.sink().target().expect("tables").create(&t).await.expect("create");
    let mut writer = db.writer(1).await;
    let mut m = Maker::default();
    let _ = writer.write(&m.stream(&[(&t, Do::Insert(row![1, "x", "v", "w"]))])).await.expect("insert");
    // The same value again matches, though it changes nothing.
    for value in ["v2", "v2"] {
        let unit = m.stream(&[(&t, Do::Update(row![1, "x", value, Value::Unchanged]))]);
        let _ = writer.write(&unit).await.expect("partial update");
    }
    assert_eq!(db.lines("SELECT * FROM t").await, ["1|x|v2|w"]);
    let lost = m.stream(&[
        (&t, Do::Update(row![1, "x", "not kept", Value::Unchanged])),
        (&t, Do::Update(row![2, "x", "v", Value::Unchanged])),
    ]);
    let error = writer.write(&lost).await.expect_err("no such row");
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert!(error.report().contains("the target has no row with `a`=2 AND `b`='x'"), "{}", error.report());
    assert_eq!(db.lines("SELECT * FROM t").await, ["1|x|v2|w"], "nothing of the unit is left");
    // Only a part of the key moves, and the other columns were not sent.
    let old = row![1, "x", Value::Unchanged, Value::Unchanged];
    let moved = Do::Move(OldImage::Key, old, row![9, Value::Unchanged, "v3", Value::Unchanged]);
    let _ = writer.write(&m.stream(&[(&t, moved)])).await.expect("a move");
    assert_eq!(db.lines("SELECT * FROM t").await, ["9|x|v3|w"]);
}

#[tokio::test]
async fn tables_without_a_key_and_truncates() {
    let mut db = database(server!()).await;
    db.run("CREATE TABLE n (a VARCHAR(9) COLLATE latin1_swedish_ci, f FLOAT, g DOUBLE, j JSON)").await;
    let t = keyed(
        "n",
        &[
            ("a", TEXT),
            ("f", anabranch_core::DataType::Float32),
            ("g", anabranch_core::DataType::Float64),
            ("j", anabranch_core::DataType::Json),
        ],
        &[],
    );
    let mut writer = db.writer(1).await;
    let mut m = Maker::default();
    let x = || row!["x", "0.1", "0.1", "{\"a\": 1}"];
    let big = || row!["X", Value::Null, "0.1", Value::Null];
    let unit = m.stream(&[(&t, Do::Insert(x())), (&t, Do::Insert(x())), (&t, Do::Insert(big()))]);
    let _ = writer.write(&unit).await.expect("insert");
    // One of two equal rows goes, and the one that differs in case stays.
    let _ = writer.write(&m.stream(&[(&t, Do::Delete(OldImage::Full, x()))])).await.expect("delete");
    let moved = Do::Move(OldImage::Full, big(), row!["Y", "1", "2", "[]"]);
    let _ = writer.write(&m.stream(&[(&t, moved)])).await.expect("update");
    assert_eq!(db.lines("SELECT * FROM n ORDER BY a").await, ["x|0.1|0.1|{\"a\": 1}", "Y|1|2|[]"]);
    let error = writer.write(&m.stream(&[(&t, Do::Delete(OldImage::Full, big()))])).await.expect_err("not there");
    assert_eq!(error.kind(), ErrorKind::Rejected, "{}", error.report());
    let unit = m.stream(&[(&t, Do::Insert(x())), (&t, Do::Truncate), (&t, Do::Insert(big()))]);
    let _ = writer.write(&unit).await.expect("truncate");
    assert_eq!(db.lines("SELECT a FROM n").await, ["X"]);
}

/// The source's key is another one than the target's primary key.
#[tokio::test]
async fn a_target_with_another_primary_key_keeps_its_own_columns() {
    let mut db = database(server!()).await;
    db.run(
        "CREATE TABLE s (id BIGINT AUTO_INCREMENT PRIMARY KEY, k BIGINT NOT NULL, v VARCHAR(9), own INT DEFAULT 5, \
         twice BIGINT AS (k * 2) STORED, UNIQUE (k))",
    )
    .await;
    let t = table("s", &[("k", INT), ("v", TEXT)]);
    let mut writer = db.writer(1).await;
    let mut m = Maker::default();
    let unit = m.stream(&[(&t, Do::Insert(row![1, "a"])), (&t, Do::Insert(row![2, "b"]))]);
    let _ = writer.write(&unit).await.expect("insert");
    db.run("UPDATE s SET own = k * 10").await;
    let unit = m.stream(&[
        (&t, Do::Update(row![1, "a2"])),
        (&t, Do::Insert(row![3, "c"])),
        (&t, Do::Delete(OldImage::Key, row![2, Value::Unchanged])),
    ]);
    let _ = writer.write(&unit).await.expect("mixed");
    assert_eq!(db.lines("SELECT id, k, v, own, twice FROM s ORDER BY id").await, ["1|1|a2|10|2", "3|3|c|5|6"]);
}

/// Neither deleting nor updating a parent runs the target's referential actions.
#[tokio::test]
async fn foreign_keys_do_not_act() {
    let mut db = database(server!()).await;
    db.run("CREATE TABLE parent (k BIGINT PRIMARY KEY, u BIGINT UNIQUE)").await;
    db.run(
        "CREATE TABLE child (k BIGINT PRIMARY KEY, p BIGINT, FOREIGN KEY (p) REFERENCES parent (k) ON DELETE CASCADE \
         ON UPDATE CASCADE)",
    )
    .await;
    let parent = table("parent", &[("k", INT), ("u", INT)]);
    let child = table("child", &[("k", INT), ("p", INT)]);
    let mut writer = db.writer(1).await;
    let mut m = Maker::default();
    // The child first: the unit is consistent at its end.
    let unit = m.stream(&[
        (&child, Do::Insert(row![1, 1])),
        (&parent, Do::Insert(row![1, 10])),
        (&parent, Do::Insert(row![2, 20])),
    ]);
    let _ = writer.write(&unit).await.expect("insert");
    // A swap makes both parents be deleted and inserted again.
    let unit = m.stream(&[(&parent, Do::Update(row![1, 20])), (&parent, Do::Update(row![2, 10]))]);
    let _ = writer.write(&unit).await.expect("swap");
    assert_eq!(db.lines("SELECT * FROM child").await, ["1|1"]);
    assert_eq!(db.lines("SELECT * FROM parent ORDER BY k").await, ["1|20", "2|10"]);
    let sink = db.sink();
    let described = sink.target().expect("tables").describe(&child.name).await.expect("describe").expect("there");
    assert_eq!(described.references.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["parent"]);
}

/// LOAD DATA and INSERT store the same, and a load that the server adjusted does not count.
#[tokio::test]
async fn snapshots_by_load_and_by_insert_are_equal() {
    use anabranch_core::DataType as T;
    let columns = [
        ("k", INT),
        ("t", TEXT),
        ("b", T::Bytes),
        ("n", T::Decimal { precision: Some(20), scale: Some(5) }),
        ("f", T::Float64),
        ("at", T::TimestampTz),
        ("bits", T::Bit { length: Some(11), varying: false }),
        ("yes", T::Bool),
    ];
    let mut dumps = Vec::new();
    for infile in [LocalInfile::Auto, LocalInfile::Off] {
        let mut db = database(server!()).await;
        let t = table("t", &columns);
        let sink = db.sink().local_infile(infile);
        sink.target().expect("tables").create(&t).await.expect("create");
        take_over(&sink, 1).await;
        let mut writer = sink.open(lane(1, LanePurpose::Snapshot)).await.expect("open");
        let rows: Vec<_> = (0..1000)
            .map(|k| {
                let text = format!("it's \\ {k}\t\n\r\0\u{1a}\u{1F600}\"\\N");
                let null = |v: &str| if k % 7 == 0 { Value::Null } else { Value::from(v) };
                let bytes = Value::Bytes(vec![0, 255, b'\'', b'\\', k as u8, b'\n'].into());
                let bits = format!("{k:011b}");
                let n = format!("-{k}.50000");
                let f = format!("{}e-{}", k + 1, k % 300);
                let at = format!("0001-01-01 00:00:{:02}.{k:06}+00", k % 60);
                Do::Insert(row![k, null(&text), bytes, null(&n), null(&f), null(&at), null(&bits), null("t")])
            })
            .collect();
        let changes: Vec<_> = rows.into_iter().map(|r| (&t, r)).collect();
        let unit = Maker::default().unit(UnitKind::Snapshot, Part::Whole, &changes);
        assert!(writer.write(&unit).await.expect("a chunk").durability == anabranch_core::Durability::Durable);
        dumps.push(db.rows("SELECT k, HEX(t), HEX(b), n, f, at, bits+0, yes FROM t ORDER BY k").await);
    }
    assert_eq!(dumps[0].len(), 1000);
    assert_eq!(dumps[0], dumps[1]);
}

#[tokio::test]
async fn a_load_with_warnings_is_undone() {
    let mut db = database(server!()).await;
    db.run("CREATE TABLE w (k INT PRIMARY KEY, v TINYINT, u INT UNIQUE)").await;
    let t = table("w", &[("k", INT), ("v", INT), ("u", INT)]);
    let sink = db.sink();
    take_over(&sink, 1).await;
    let mut writer = sink.open(lane(1, LanePurpose::Snapshot)).await.expect("open");
    let mut m = Maker::default();
    let chunk = |m: &mut Maker, rows: &[[i64; 3]]| {
        let rows: Vec<_> = rows.iter().map(|r| (&t, Do::Insert(row![r[0], r[1], r[2]]))).collect();
        m.unit(UnitKind::Snapshot, Part::Whole, &rows)
    };
    // LOAD DATA would store 127 and skip the duplicate.
    let error = writer.write(&chunk(&mut m, &[[1, 1, 1], [2, 1000, 2]])).await.expect_err("out of range");
    assert_eq!(error.kind(), ErrorKind::Rejected, "{}", error.report());
    let error = writer.write(&chunk(&mut m, &[[1, 1, 1], [2, 2, 1]])).await.expect_err("a duplicate");
    assert_eq!(error.kind(), ErrorKind::Rejected, "{}", error.report());
    assert!(db.lines("SELECT * FROM w").await.is_empty());
    let _ = writer.write(&chunk(&mut m, &[[1, 1, 1], [2, 2, 2]])).await.expect("a clean chunk");
    // The same chunk again, as after a commit whose answer was lost.
    let _ = writer.write(&chunk(&mut m, &[[1, 1, 1], [2, 2, 2]])).await.expect("the chunk again");
    assert_eq!(db.lines("SELECT * FROM w ORDER BY k").await, ["1|1|1", "2|2|2"]);
}
