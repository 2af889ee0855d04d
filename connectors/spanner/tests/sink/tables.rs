//! Tables: described, created, related.

use anabranch_core::memory::MemorySource;
use anabranch_core::{
    Checkpoint, Checkpointer, Claim, Column, DataType, DeadLetter, DeadLetterStore, ErrorKind, Fidelity, Lane,
    LanePurpose, LetterClass, LetterState, Op, PartitionId, PartitionProgress, Position, ProgressStore, Rank, Saved,
    Sink, SourceIdentity, StartFrom, TableName, TableSchema, TargetSchema, Unit, Value,
};
use anabranch_spanner::SpannerSink;
use anabranch_testkit::units;

use crate::support::{DIALECTS, Target};

fn table(name: &str, columns: &[(&str, DataType)], key: u16) -> TableSchema {
    let mut columns: Vec<Column> = columns.iter().map(|(n, t)| Column::new(*n, t.clone())).collect();
    columns.iter_mut().take(key.into()).for_each(|c| c.nullable = false);
    TableSchema { name: TableName::new("public", name), columns, key: (0..key).collect() }
}

fn text() -> DataType {
    DataType::Text { max_chars: None }
}

async fn written(sink: &SpannerSink, units: &[Unit]) -> anabranch_core::Result<()> {
    let claim = Claim { pipeline: "p".into(), epoch: 1, lanes: 1, identity: SourceIdentity::default() };
    sink.take_over(&claim).await?;
    let purpose = LanePurpose::Stream;
    let mut writer = sink.open(Lane { pipeline: "p".into(), index: 0, count: 1, epoch: 1, purpose }).await?;
    for unit in units {
        let _ = writer.write(unit).await?;
    }
    Ok(())
}

async fn all_units(source: &MemorySource) -> Vec<Unit> {
    units::by_transaction(&units::read_source(source, &StartFrom::default(), &source.end()).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_described_with_its_relations() {
    let ddl = [
        "CREATE TABLE Singers (Id INT64 NOT NULL, Name STRING(20) NOT NULL, Twice INT64 AS (Id * 2) STORED) PRIMARY KEY (Id)",
        "CREATE TABLE Albums (Id INT64 NOT NULL, Album INT64 NOT NULL, Title STRING(MAX), Label INT64, \
         Written TIMESTAMP OPTIONS (allow_commit_timestamp = true), Extra STRING(5) NOT NULL DEFAULT ('x'), \
         CONSTRAINT by_label FOREIGN KEY (Label) REFERENCES Labels (Id)) PRIMARY KEY (Id, Album DESC), \
         INTERLEAVE IN PARENT Singers ON DELETE CASCADE",
        "CREATE UNIQUE INDEX ByTitle ON Albums (Title, Label) STORING (Written)",
    ];
    let labels = "CREATE TABLE Labels (Id INT64 NOT NULL) PRIMARY KEY (Id)";
    let Some(target) = Target::new(DIALECTS[0], &[labels, ddl[0], ddl[1], ddl[2]]) else { return };
    let sink = target.sink();
    let albums = sink.describe(&TableName::new("public", "Albums")).await.unwrap().unwrap();
    let names: Vec<&str> = albums.schema.columns.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["Id", "Album", "Title", "Label", "Written", "Extra"]);
    assert_eq!(albums.schema.key, [0, 1]);
    assert_eq!(albums.unique, [["Title", "Label"]]);
    assert_eq!(albums.references, ["Labels", "Singers"].map(|t| TableName::new("", t)));
    assert_eq!(albums.required, ["Id", "Album"]);
    assert!(albums.warnings.iter().any(|w| w.contains("parents in Singers")), "{:?}", albums.warnings);
    assert!(
        albums.warnings.iter().any(|w| w.contains("commit_timestamps = [\"Albums.Written\"]")),
        "{:?}",
        albums.warnings
    );
    let singers = sink.describe(&TableName::new("", "Singers")).await.unwrap().unwrap();
    assert_eq!(singers.required, ["Id", "Name"]);
    assert!(singers.schema.columns[2].generated);
    assert!(sink.describe(&TableName::new("", "Nothing")).await.unwrap().is_none());
    assert!(sink.is_empty(&TableName::new("", "Albums")).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn parents_are_written_before_children_and_deleted_after_them() {
    let ddl = [
        "CREATE TABLE parents (id INT64 NOT NULL, name STRING(MAX)) PRIMARY KEY (id)",
        "CREATE TABLE children (id INT64 NOT NULL, child INT64 NOT NULL) PRIMARY KEY (id, child), INTERLEAVE IN PARENT parents",
        "CREATE TABLE notes (id INT64 NOT NULL, parent INT64, CONSTRAINT k FOREIGN KEY (parent) REFERENCES parents (id)) PRIMARY KEY (id)",
    ];
    let Some(target) = Target::new(DIALECTS[0], &ddl) else { return };
    let int = DataType::Int64;
    let parents = table("parents", &[("id", int.clone()), ("name", text())], 1);
    let children = table("children", &[("id", int.clone()), ("child", int.clone())], 2);
    let notes = table("notes", &[("id", int.clone()), ("parent", int)], 1);
    let source = MemorySource::new("s").table(children.clone()).table(notes.clone()).table(parents.clone());
    // Deferred constraints: within a transaction the order is free.
    let one = source.transaction().insert(&notes.name, [1.into(), 7.into()]);
    let one = one.insert(&children.name, [7.into(), 1.into()]);
    one.insert(&parents.name, [7.into(), "seven".into()]).commit().unwrap();
    let two = source.transaction().delete(&parents.name, [7.into()]).delete(&children.name, [7.into(), 1.into()]);
    two.update(&notes.name, [1.into()], [1.into(), Value::Null]).commit().unwrap();
    let units = all_units(&source).await;
    let sink = target.sink();
    written(&sink, &units[..1]).await.unwrap();
    assert_eq!(target.rows("SELECT p.name FROM parents p JOIN children c ON p.id = c.id").len(), 1);
    written(&sink, &units[1..]).await.unwrap();
    assert_eq!(target.rows("SELECT id FROM parents").len() + target.rows("SELECT id FROM children").len(), 0);

    // What no transaction can mend.
    let orphan = source.transaction().insert(&children.name, [99.into(), 1.into()]);
    orphan.commit().unwrap();
    let error = written(&sink, &all_units(&source).await[2..]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected, "{}", error.report());
    assert!(error.report().contains("order = \"transaction\""), "{}", error.report());
}

#[tokio::test(flavor = "multi_thread")]
async fn commit_timestamps_are_the_targets_and_computed_columns_are_left_alone() {
    let ddl = "CREATE TABLE t (id INT64 NOT NULL, written TIMESTAMP OPTIONS (allow_commit_timestamp = true), \
               twice INT64 AS (id * 2) STORED) PRIMARY KEY (id)";
    let Some(target) = Target::new(DIALECTS[0], &[ddl]) else { return };
    let mut t =
        table("t", &[("id", DataType::Int64), ("written", DataType::TimestampTz), ("twice", DataType::Int64)], 1);
    t.columns[2].generated = true;
    let source = MemorySource::new("s").table(t.clone());
    source.transaction().insert(&t.name, [1.into(), "2001-01-01 00:00:00+00".into(), 9.into()]).commit().unwrap();
    source.transaction().insert(&t.name, [2.into(), "9001-01-01 00:00:00+00".into(), 9.into()]).commit().unwrap();
    let units = all_units(&source).await;
    written(&target.sink(), &units[..1]).await.unwrap();
    let row = |n: i64| target.rows(&format!("SELECT written, twice FROM t WHERE id = {n}")).remove(0);
    assert_eq!(row(1), [Some("2001-01-01T00:00:00Z".to_owned()), Some("2".to_owned())]);
    // Spanner refuses times of the future in such a column.
    let error = written(&target.sink(), &units[1..]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected, "{}", error.report());
    written(&target.sink().commit_timestamp("t.written"), &units[1..]).await.unwrap();
    assert!(row(2)[0].as_ref().unwrap().starts_with("20"), "{:?}", row(2));
    let error = written(&target.sink().commit_timestamp("t.id"), &units[1..]).await.unwrap_err();
    assert!(error.report().contains("allow_commit_timestamp"), "{}", error.report());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_does_not_fit_is_told_by_name() {
    let ddl = [
        "CREATE TABLE nokey (id INT64 NOT NULL, other INT64) PRIMARY KEY (other)",
        "CREATE TABLE nocolumn (id INT64 NOT NULL) PRIMARY KEY (id)",
        "CREATE TABLE nofit (id INT64 NOT NULL, note DATE) PRIMARY KEY (id)",
    ];
    let Some(target) = Target::new(DIALECTS[0], &ddl) else { return };
    let cases = [
        ("missing", "create_tables = true", ErrorKind::Config),
        ("nokey", "the source's key is (id), the target's is (other)", ErrorKind::Config),
        ("nocolumn", "nocolumn.note", ErrorKind::Config),
        ("nofit", "nofit.note", ErrorKind::Config),
    ];
    for (name, said, kind) in cases {
        let second = if name == "nokey" { "other" } else { "note" };
        let t = table(
            name,
            &[("id", DataType::Int64), (second, if name == "nokey" { DataType::Int64 } else { text() })],
            1,
        );
        let source = MemorySource::new("s").table(t.clone());
        source.transaction().insert(&t.name, [1.into(), Value::Null]).commit().unwrap();
        let error = written(&target.sink(), &all_units(&source).await).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{}", error.report());
        assert!(error.report().contains(said), "{}", error.report());
    }
}

/// Each canonical type in a table of the sink's making: the values come back, or are refused.
#[tokio::test(flavor = "multi_thread")]
async fn created_tables_hold_every_type() {
    let decimal = |p, s| DataType::Decimal { precision: p, scale: s };
    let array = |of: DataType| DataType::Array(Box::new(of));
    type Case = (DataType, &'static [(&'static str, &'static str)], &'static [&'static str]);
    // The source's text, and what Spanner shows; then what is refused.
    let cases: Vec<Case> = vec![
        (DataType::Bool, &[("t", "true"), ("f", "false")], &["x"]),
        (DataType::Int16, &[("-32768", "-32768")], &[]),
        (DataType::Int64, &[("9223372036854775807", "9223372036854775807")], &["9223372036854775808"]),
        (DataType::UInt64, &[("18446744073709551615", "18446744073709551615")], &[]),
        (DataType::Float32, &[("0.5", "0.5"), ("NaN", "NaN"), ("-Infinity", "-Infinity")], &[]),
        (DataType::Float64, &[("0.1", "0.1"), ("NaN", "NaN"), ("Infinity", "Infinity")], &[]),
        (decimal(Some(10), Some(2)), &[("-1.50", "-1.5"), ("0.00", "0")], &[]),
        (decimal(Some(40), Some(2)), &[("123456789012345678901234567890.10", "123456789012345678901234567890.1")], &[]),
        (DataType::Text { max_chars: Some(3) }, &[("äöü", "äöü"), ("", "")], &["äöüß"]),
        (text(), &[("a\u{1f980}\n", "a\u{1f980}\n")], &[]),
        (DataType::Char { chars: 3 }, &[("a  ", "a  ")], &[]),
        (DataType::Bytes, &[("\\x00ff", "AP8="), ("\\x", "")], &["00ff"]),
        (DataType::Date, &[("0001-01-01", "0001-01-01"), ("9999-12-31", "9999-12-31")], &["infinity", "0044-03-15 BC"]),
        (DataType::Time, &[("24:00:00", "24:00:00")], &[]),
        (DataType::Timestamp, &[("0001-01-01 00:00:00", "0001-01-01T00:00:00Z")], &["10000-01-01 00:00:00"]),
        (
            DataType::TimestampTz,
            &[("2020-01-02 03:04:05.123456789+00", "2020-01-02T03:04:05.123456789Z")],
            &["-infinity", "0001-01-01 00:00:00+00 BC"],
        ),
        (DataType::Interval, &[("1 year 2 mons", "1 year 2 mons")], &[]),
        (DataType::Uuid, &[("f81d4fae-7dec-11d0-a765-00a0c91e6bf6", "f81d4fae-7dec-11d0-a765-00a0c91e6bf6")], &[]),
        (DataType::Json, &[("{ \"b\":1,  \"a\":2}", "{ \"b\":1,  \"a\":2}")], &[]),
        (DataType::Enum { labels: vec!["a".to_owned()] }, &[("a", "a")], &[]),
        (array(DataType::Int32), &[("{1,NULL,3}", "[\"1\",null,\"3\"]"), ("{}", "[]")], &["{{1}}", "[0:0]={1}"]),
        (array(text()), &[("{a,\"b c\",NULL}", "[\"a\",\"b c\",null]")], &[]),
    ];
    for dialect in DIALECTS {
        let Some(target) = Target::new(dialect, &[]) else { return };
        let sink = target.sink();
        for (n, (data_type, good, bad)) in cases.iter().enumerate() {
            let t = table(&format!("t{n}"), &[("id", DataType::Int64), ("v", data_type.clone())], 1);
            sink.describe(&t.name).await.unwrap();
            sink.create(&t).await.unwrap_or_else(|e| panic!("{dialect:?} {data_type}: {}", e.report()));
            let there = sink.describe(&t.name).await.unwrap().unwrap();
            let planned = sink.planned(&t, 1);
            let contract = sink.contract(&t.columns[1], Some(&there.schema.columns[1]));
            assert_eq!(
                (planned.fidelity, &planned.note),
                (contract.fidelity, &contract.note),
                "{dialect:?} {data_type}"
            );
            assert!(contract.fidelity <= Fidelity::Widening, "{dialect:?} {data_type}: {contract:?}");
            let source = MemorySource::new("s").table(t.clone());
            let mut insert = source.transaction().insert(&t.name, [0.into(), Value::Null]);
            for (id, (value, _)) in good.iter().enumerate() {
                insert = insert.insert(&t.name, [(id as i64 + 1).into(), (*value).into()]);
            }
            insert.commit().unwrap();
            for (id, value) in bad.iter().enumerate() {
                source.transaction().insert(&t.name, [(id as i64 + 100).into(), (*value).into()]).commit().unwrap();
            }
            let units = all_units(&source).await;
            let said = |e: anabranch_core::Error| panic!("{dialect:?} {data_type}: {}", e.report());
            written(&sink, &units[..1]).await.unwrap_or_else(said);
            let found = target.rows(&format!("SELECT v FROM t{n} ORDER BY id"));
            // The PostgreSQL dialect keeps zeros at the end.
            let plain = |text: String| match data_type {
                DataType::Decimal { .. } if text.contains('.') => {
                    text.trim_end_matches('0').trim_end_matches('.').to_owned()
                }
                _ => text,
            };
            let found: Vec<Vec<_>> =
                found.into_iter().map(|row| row.into_iter().map(|v| v.map(plain)).collect()).collect();
            let mut expected = vec![vec![None]];
            expected.extend(good.iter().map(|(_, shown)| vec![Some((*shown).to_owned())]));
            assert_eq!(found, expected, "{dialect:?} {data_type}");
            for (unit, value) in units[1..].iter().zip(*bad) {
                let error = written(&sink, std::slice::from_ref(unit)).await.expect_err(value);
                assert_eq!(error.kind(), ErrorKind::Rejected, "{data_type} {value}: {}", error.report());
            }
        }
    }
}

fn letter(id: &str, size: usize) -> DeadLetter {
    let position = Position::new(Rank::of_end(&[1]), "1");
    DeadLetter {
        id: id.to_owned(),
        class: LetterClass::Retry,
        state: LetterState::Open,
        reason: "too large".to_owned(),
        op: Op::Insert,
        schema: table("t", &[("id", DataType::Int64), ("body", text())], 1),
        old: None,
        new: Some(vec![1.into(), "ä".repeat(size).as_str().into()]),
        shard: None,
        partition: PartitionId::new("slot"),
        position,
        commit_time: None,
        parked: None,
        lane: None,
        attempts: 0,
        last_attempt: None,
    }
}

/// Checkpoints of thousands of partitions, and letters of the very rows that are too long for a column.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_longer_than_a_value_is_stored_in_several_rows() {
    for dialect in DIALECTS {
        let Some(target) = Target::new(dialect, &[]) else { return };
        let sink = target.sink();
        let store = sink.checkpointer();
        let mut checkpoint = Checkpoint { epoch: 1, ..Checkpoint::default() };
        let mut version = None;
        for partitions in [20_000, 3, 30_000] {
            let id = |n: usize| PartitionId::new(format!("{n:0>200}"));
            checkpoint.partitions = (0..partitions).map(|n| (id(n), PartitionProgress::default())).collect();
            let Saved::Committed(next) = store.save("large", version, &checkpoint).await.unwrap() else {
                panic!("a conflict")
            };
            assert_eq!(store.save("large", version, &checkpoint).await.unwrap(), Saved::Conflict);
            let (found, loaded) = store.load("large").await.unwrap().unwrap();
            assert!(found == next && loaded == checkpoint, "{dialect:?} {partitions}");
            version = Some(next);
        }

        let letters = sink.dead_letters();
        for size in [3_000_000, 10, 2_000_000] {
            let both = [letter("slot:01", size), letter("slot:02", 7)];
            letters.put("large", &both).await.unwrap();
            assert!(letters.get("large", "slot:01").await.unwrap().as_ref() == Some(&both[0]), "{dialect:?} {size}");
            let listed = letters.list("large", &[LetterState::Open], None, 10).await.unwrap();
            assert!(listed == both, "{dialect:?} {size}");
            assert_eq!(letters.open_count("large").await.unwrap(), 2);
        }
    }
}

/// More than a transaction may have: they are put in several.
#[tokio::test(flavor = "multi_thread")]
async fn letters_beyond_a_transaction_are_put_in_several() {
    let Some(target) = Target::new(DIALECTS[0], &[]) else { return };
    let letters = target.sink().dead_letters();
    let many: Vec<DeadLetter> = (0..60).map(|n| letter(&format!("slot:{n:02}"), 950_000)).collect();
    letters.put("many", &many).await.unwrap();
    assert_eq!(letters.open_count("many").await.unwrap(), 60);
}
