//! What DynamoDB cannot hold, and how it is said.

use std::sync::Arc;

use anabranch_core::{
    BatchBuilder, Checkpoint, Checkpointer, Column, DataType, DeadLetter, DeadLetterStore, ErrorKind, Fidelity,
    LetterClass, LetterState, Op, Part, PartitionId, PartitionProgress, Progress, ProgressStore, Saved, Selection,
    TableName, TableSchema, TargetSchema, Transaction, Unit, UnitId, UnitKind, UnitSlice, Value,
};
use anabranch_dynamodb::types::{self, Item};
use anabranch_dynamodb::{Access, DynamoDbSink, DynamoDbSinkConfig, Mode, Nulls, Oversized, Stripped};
use aws_sdk_dynamodb::types::AttributeValue;

use crate::support::*;

fn wide(name: &str) -> Arc<TableSchema> {
    let decimal = DataType::Decimal { precision: None, scale: None };
    table(name, &[("id", text()), ("amount", decimal), ("body", text()), ("doc", DataType::Json)], 1)
}

fn row(id: &str, amount: &str, body: &str, doc: &str) -> Vec<Value> {
    vec![id.into(), amount.into(), body.into(), doc.into()]
}

#[tokio::test]
async fn what_does_not_fit_is_rejected_and_named() {
    let Some(server) = server() else { return };
    for mode in [Mode::Guarded, Mode::Batch, Mode::Transactional] {
        let name = format!("limits_{mode:?}");
        let schema = wide(&name);
        let sink = DynamoDbSink::new(access(&server)).mode(mode);
        create(&sink, &schema).await;
        let mut writer = writer(&sink, &name, 1).await;
        let large = "x".repeat(410_000);
        let deep = format!("{}{}", "[".repeat(40), "]".repeat(40));
        let bad = [
            (row("1", "0", &large, "1"), "400 KiB"),
            (row("1", &"9".repeat(39), "", "1"), "38 digits"),
            (row("1", "NaN", "", "1"), "38 digits"),
            (row("1", "1", "", &"9".repeat(39)), "no number"),
            (row("", "1", "", "1"), "must not be empty"),
            (row(&"k".repeat(2049), "1", "", "1"), "2048 bytes"),
            (row("1", "1", "", &deep), "nested"),
            (row("1", "1", "", "{"), "doc"),
        ];
        for (n, (row, word)) in (1..).zip(bad) {
            let both = [Do::Insert(self::row("good", "1", "", "1")), Do::Insert(row)];
            let error = writer.write(&unit(n, &schema, &both)).await.expect_err(word);
            assert_eq!(error.kind(), ErrorKind::Rejected, "{mode:?}: {}", error.report());
            assert!(error.report().contains(word), "{mode:?}: {word}: {}", error.report());
        }
        assert!(items(&client(&server).await, &name).await.is_empty(), "nothing of a refused unit was written");
        let _ =
            writer.write(&unit(99, &schema, &[Do::Insert(row("good", "1.50", "", "{\"a\":[1.0]}"))])).await.unwrap();
        let found = items(&client(&server).await, &name).await;
        assert_eq!((&found[0]["amount"], &found[0]["body"]), (&n("1.5"), &s("")));
    }
}

/// A row of each of so many partitions: each a transaction of its own, or all of them one.
fn of_partitions(count: u64, schema: &Arc<TableSchema>, one: bool) -> Unit {
    let (mut slices, mut progress) = (Vec::new(), Vec::new());
    for n in 1..=count {
        let partition = PartitionId::new(format!("shard {n}"));
        let mut batch = BatchBuilder::new(partition.clone());
        let number = if one { count } else { n };
        let rank = number.to_be_bytes().to_vec().into();
        batch.begin(Transaction { rank, ..Transaction::default() }, n);
        let at = batch.schema(schema);
        batch.change(Op::Insert, at);
        batch.new_row();
        row(&format!("{n}"), "1", "", "1").iter().for_each(|v| batch.push(v.as_ref()));
        batch.commit(position(number));
        let batch = Arc::new(batch.finish(position(number), None).unwrap());
        slices.push(UnitSlice { changes: Selection::Range(0..1), batch });
        progress.push(Progress { partition, position: position(number), safe_time: None });
    }
    let transactions = if one { 1 } else { count };
    Unit { id: UnitId(1), kind: UnitKind::Stream, part: Part::Whole, slices, transactions, progress }
}

/// A transaction takes 100 actions, and a unit of a source of many shards may have more positions than that.
#[tokio::test]
async fn progress_in_many_partitions_is_stored() {
    let Some(server) = server() else { return };
    let cases = [(Mode::Transactional, false), (Mode::Transactional, true), (Mode::Guarded, false)];
    for (at, (mode, one)) in cases.into_iter().enumerate() {
        let name = format!("many_partitions_{at}");
        let schema = wide(&name);
        let sink = DynamoDbSink::new(access(&server)).mode(mode);
        let sink = if one { sink.oversized(Oversized::Guarded) } else { sink };
        create(&sink, &schema).await;
        let mut lane = writer(&sink, &name, 1).await;
        let unit = of_partitions(120, &schema, one);
        let _ = lane.write(&unit).await.unwrap_or_else(|e| panic!("{mode:?}: {}", e.report()));
        lane.flush().await.unwrap();
        assert_eq!(items(&client(&server).await, &name).await.len(), 120);
        let stored = sink.read(&name).await.unwrap().remove(0);
        let expected: Vec<_> = unit.progress.iter().map(|p| (&p.partition, &p.position)).collect();
        let found = |p| stored.partitions.get(p).map(|progress| &progress.position);
        assert!(expected.iter().all(|(p, position)| found(*p) == Some(position)), "{mode:?}: {stored:?}");
        assert_eq!((stored.counters.changes, stored.counters.transactions), (120, unit.transactions), "{mode:?}");
    }
}

#[tokio::test]
async fn null_is_kept_or_left_out() {
    let Some(server) = server() else { return };
    let client = client(&server).await;
    for (nulls, name) in [(Nulls::Keep, "nulls_keep"), (Nulls::Omit, "nulls_omit")] {
        let schema = wide(name);
        let sink = DynamoDbSink::new(access(&server)).nulls(nulls);
        create(&sink, &schema).await;
        let mut writer = writer(&sink, name, 1).await;
        let _ = writer.write(&unit(1, &schema, &[Do::Insert(row("1", "1", "x", "1"))])).await.unwrap();
        // In part: what is not sent stays, what is NULL goes.
        let partial = vec!["1".into(), Value::Null, Value::Unchanged, Value::Unchanged];
        let _ = writer.write(&unit(2, &schema, &[Do::Update(partial)])).await.unwrap();
        let found = &items(&client, name).await[0];
        let expected = (nulls == Nulls::Keep).then_some(AttributeValue::Null(true));
        assert_eq!(found.get("amount"), expected.as_ref());
        assert_eq!(found["body"], s("x"));
    }
}

#[tokio::test]
async fn a_transaction_that_is_too_large_is_refused_or_guarded() {
    let Some(server) = server() else { return };
    let rows = |count: usize, size: usize| -> Vec<Do> {
        (0..count).map(|i| Do::Insert(row(&format!("{i:05}"), "1", &"x".repeat(size), "1"))).collect()
    };
    for (oversized, name) in [(Oversized::Reject, "large_reject"), (Oversized::Guarded, "large_guarded")] {
        let schema = wide(name);
        let sink = DynamoDbSink::new(access(&server)).mode(Mode::Transactional).oversized(oversized);
        create(&sink, &schema).await;
        let mut writer = writer(&sink, name, 1).await;
        // 98 items, the lane's row and a position are a hundred actions.
        let _ = writer.write(&unit(1, &schema, &rows(98, 10))).await.unwrap();
        assert_eq!(items(&client(&server).await, name).await.len(), 98);
        for (n, (changes, word)) in (2..).zip([(rows(99, 10), "100"), (rows(20, 300_000), "4 MB")]) {
            match (oversized, writer.write(&unit(n, &schema, &changes)).await) {
                (Oversized::Reject, Err(e)) => {
                    assert_eq!(e.kind(), ErrorKind::Rejected);
                    assert!(e.to_string().contains(word) && e.to_string().contains("oversized"), "{e}");
                }
                (Oversized::Guarded, Ok(_)) => {}
                (_, other) => panic!("{oversized:?}: {other:?}"),
            }
        }
        let expected = if oversized == Oversized::Reject { 98 } else { 99 };
        assert_eq!(items(&client(&server).await, name).await.len(), expected);
        let stored = sink.read(name).await.unwrap();
        let last = if oversized == Oversized::Reject { 1 } else { 3 };
        assert_eq!(stored[0].partitions.values().next().map(|p| p.position.clone()), Some(position(last)));
    }
}

#[tokio::test]
async fn an_item_of_a_dynamodb_source_is_the_same_item() {
    let Some(server) = server() else { return };
    let columns = vec![types::column("pk", "S").unwrap(), types::column("item", types::ITEM).unwrap()];
    let schema = Arc::new(TableSchema { name: TableName::new("", "whole_items"), columns, key: vec![0] });
    let sink = DynamoDbSink::new(access(&server));
    create(&sink, &schema).await;
    let mut writer = writer(&sink, "whole-items", 1).await;
    let nested = AttributeValue::M(Item::from([
        ("set".to_owned(), AttributeValue::Ns(vec!["1".to_owned(), "2.5".to_owned()])),
        ("nothing".to_owned(), AttributeValue::Null(true)),
        ("list".to_owned(), AttributeValue::L(vec![AttributeValue::B(aws_smithy_types::Blob::new([0, 255])), s("")])),
    ]));
    let mut item = Item::from([
        ("pk".to_owned(), s("a")),
        ("nested".to_owned(), nested),
        ("number".to_owned(), n("12345678901234567890123456789012345678")),
    ]);
    let json = types::item_to_json(&item).unwrap();
    let _ = writer.write(&unit(1, &schema, &[Do::Insert(vec!["a".into(), json.as_str().into()])])).await.unwrap();
    let mut found = items(&client(&server).await, "whole_items").await.remove(0);
    found.retain(|name, _| !name.starts_with("anabranch:"));
    assert_eq!(found, item);
    // The attribute that the next image lacks is gone.
    item.remove("number");
    let json = types::item_to_json(&item).unwrap();
    let _ = writer.write(&unit(2, &schema, &[Do::Update(vec!["a".into(), json.as_str().into()])])).await.unwrap();
    assert!(!items(&client(&server).await, "whole_items").await[0].contains_key("number"));
}

#[tokio::test]
async fn a_key_of_three_columns_becomes_two_attributes() {
    let Some(server) = server() else { return };
    let schema = table("three_keys", &[("a", text()), ("b", text()), ("c", DataType::Int32), ("v", text())], 3);
    let sink = DynamoDbSink::new(access(&server));
    create(&sink, &schema).await;
    let described = sink.describe(&schema.name).await.unwrap().unwrap();
    assert_eq!(described.schema.key_columns().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    let mut writer = writer(&sink, "three-keys", 1).await;
    let rows =
        [("x#", 1), ("x", 1), ("x\\", 1)].map(|(b, c)| Do::Insert(vec!["h".into(), b.into(), c.into(), b.into()]));
    let _ = writer.write(&unit(1, &schema, &rows)).await.unwrap();
    let found = items(&client(&server).await, "three_keys").await;
    let mut keys: Vec<&str> = found.iter().map(|i| i["b#c"].as_s().unwrap().as_str()).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["x#1", "x\\##1", "x\\\\#1"]);
}

#[tokio::test]
async fn another_key_is_a_configuration_error() {
    let Some(server) = server() else { return };
    let sink = DynamoDbSink::new(access(&server));
    create(&sink, &wide("other_key")).await;
    let schema = table("other_key", &[("number", DataType::Int64), ("id", text())], 1);
    let mut writer = writer(&sink, "other-key", 1).await;
    let insert = unit(1, &schema, &[Do::Insert(vec![1.into(), "1".into()])]);
    let error = writer.write(&insert).await.expect_err("another key");
    assert_eq!(error.kind(), ErrorKind::Config, "{}", error.report());
    let keyless = table("keyless", &[("id", text())], 0);
    let error = sink.create(&keyless).await.expect_err("no key");
    assert!(error.kind() == ErrorKind::Config && error.to_string().contains("key"), "{error}");
    let error = sink.describe(&TableName::new("", "a b")).await.expect_err("a name that DynamoDB refuses");
    assert_eq!(error.kind(), ErrorKind::Config);
    let json = Column::new("j", DataType::Json);
    let keyed = TableSchema { name: TableName::new("", "json_key"), columns: vec![json], key: vec![0] };
    assert_eq!(sink.planned(&keyed, 0).fidelity, Fidelity::Unsupported);
}

#[tokio::test]
async fn marks_are_stripped_at_a_cut_over() {
    let Some(server) = server() else { return };
    let client = client(&server).await;
    let schema = wide("stripped");
    let sink = DynamoDbSink::new(access(&server));
    create(&sink, &schema).await;
    let mut writer = writer(&sink, "stripped", 1).await;
    let rows: Vec<Do> = (0..30).map(|i| Do::Insert(row(&i.to_string(), "1", "", "1"))).collect();
    let _ = writer.write(&unit(1, &schema, &rows)).await.unwrap();
    let gone = |id: &str| Do::Delete(vec![id.into(), Value::Unchanged, Value::Unchanged, Value::Unchanged]);
    let _ = writer.write(&unit(2, &schema, &[gone("3"), gone("4"), gone("no such")])).await.unwrap();
    client.put_item().table_name("stripped").item("id", s("by somebody else")).send().await.unwrap();
    assert_eq!(sink.strip("stripped").await.unwrap(), Stripped { items: 28, tombstones: 3 });
    let found = items(&client, "stripped").await;
    assert_eq!(found.len(), 29);
    assert!(found.iter().all(|item| item.keys().all(|name| !name.starts_with("anabranch:"))));
    assert_eq!(sink.strip("stripped").await.unwrap(), Stripped::default());
}

/// DynamoDB's own time to live is told which attribute of a tombstone it goes by.
#[tokio::test]
async fn time_to_live_is_switched_on() {
    let Some(server) = server() else { return };
    let sink = DynamoDbSink::new(access(&server));
    create(&sink, &wide("with_ttl")).await;
    let described = sink.describe(&TableName::new("", "with_ttl")).await.unwrap().unwrap();
    assert!(described.warnings.is_empty(), "{:?}", described.warnings);
    let other = DynamoDbSink::new(access(&server)).expires_attribute("gone_at");
    let described = other.describe(&TableName::new("", "with_ttl")).await.unwrap().unwrap();
    assert!(described.warnings[0].contains("sink.expires_attribute"), "{:?}", described.warnings);
}

/// A letter of about so many characters.
pub(crate) fn letter(size: usize) -> DeadLetter {
    DeadLetter {
        id: "slot:01".to_owned(),
        class: LetterClass::Retry,
        state: LetterState::Open,
        reason: "too large".to_owned(),
        op: Op::Insert,
        schema: (*wide("t")).clone(),
        old: None,
        new: Some(row("1", "1", &"ä".repeat(size), "1")),
        shard: None,
        partition: PartitionId::new("slot"),
        position: position(1),
        commit_time: None,
        parked: None,
        lane: None,
        attempts: 0,
        last_attempt: None,
    }
}

#[tokio::test]
async fn what_is_larger_than_an_item_is_stored_in_several() {
    let Some(server) = server() else { return };
    let sink = DynamoDbSink::new(access(&server));
    let store = sink.checkpointer();
    let mut checkpoint = Checkpoint { epoch: 1, ..Checkpoint::default() };
    let mut version = None;
    for partitions in [9_000, 3, 12_000] {
        let id = |n: usize| PartitionId::new(format!("shardId-0000000000000000{n:05}-abcdefgh"));
        checkpoint.partitions = (0..partitions).map(|n| (id(n), PartitionProgress::default())).collect();
        let Saved::Committed(next) = store.save("large", version, &checkpoint).await.unwrap() else {
            panic!("a conflict")
        };
        assert_eq!(store.save("large", version, &checkpoint).await.unwrap(), Saved::Conflict);
        assert_eq!(store.load("large").await.unwrap(), Some((next, checkpoint.clone())));
        version = Some(next);
    }

    let letters = sink.dead_letters();
    for size in [1_000_000, 10, 400_000] {
        letters.put("large", &[letter(size)]).await.unwrap();
        assert_eq!(letters.get("large", "slot:01").await.unwrap(), Some(letter(size)));
        assert_eq!(letters.list("large", &[LetterState::Open], None, 10).await.unwrap(), [letter(size)]);
        assert_eq!(letters.open_count("large").await.unwrap(), 1);
    }
}

#[tokio::test]
async fn a_missing_right_a_missing_table_and_an_unknown_endpoint_are_named() {
    let fake = anabranch_dynamodb_fake::Fake::start().await;
    fake.create_table("orders", &[("id", "S")]);
    let at = |endpoint: &str| {
        let key = || anabranch_core::Secret::new("local");
        DynamoDbSink::new(Access::new().region("local").endpoint(endpoint).credentials(key(), key(), None))
    };
    let sink = at(&fake.endpoint());
    let name = TableName::new("", "orders");
    let denied = |operation: &str| fake.fail(operation, "AccessDeniedException", 9);
    denied("DescribeTable");
    denied("Scan");
    denied("CreateTable");
    let errors = [
        (sink.describe(&name).await.expect_err("denied"), "DescribeTable"),
        (sink.is_empty(&name).await.expect_err("denied"), "Scan"),
        (sink.create(&wide("new")).await.expect_err("denied"), "CreateTable"),
    ];
    for (error, operation) in errors {
        let said = error.report();
        assert_eq!(error.kind(), ErrorKind::Config, "{said}");
        assert!(said.contains(&format!("allow the action dynamodb:{operation}")), "{said}");
    }
    fake.heal();
    assert!(sink.describe(&TableName::new("", "no-such")).await.expect("an answer").is_none());
    let error = at("http://127.0.0.1:1").describe(&name).await.expect_err("nobody is there");
    assert!(error.kind() == ErrorKind::Transient && error.report().contains("endpoint"), "{}", error.report());
    let error = at("localhost:8000").describe(&name).await.expect_err("no address");
    assert!(error.kind() == ErrorKind::Config && error.to_string().starts_with("sink.endpoint: "), "{error}");

    let Some(server) = server() else { return };
    let mut writer = writer(&DynamoDbSink::new(access(&server)), "missing-table", 1).await;
    let insert = unit(1, &wide("not_there"), &[Do::Insert(row("1", "1", "", "1"))]);
    let error = writer.write(&insert).await.expect_err("no table");
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().starts_with("not_there: ") && error.report().contains("create_tables"), "{error}");
}

#[test]
fn a_configuration_names_what_is_wrong() {
    let config = |text: &str| -> Result<DynamoDbSink, String> {
        let config: DynamoDbSinkConfig = toml::from_str(text).map_err(|e| e.to_string())?;
        DynamoDbSink::try_from(config).map_err(|e| e.to_string())
    };
    assert!(config("mode = \"guarded\"\nversions = \"table\"\ntombstone_hours = 24").is_ok());
    for (text, word) in [
        ("mode = \"fast\"", "fast"),
        ("mode = \"batch\"\nversions = \"table\"", "sink.versions"),
        ("oversized = \"guarded\"", "sink.oversized"),
        ("concurrency = 0", "sink.concurrency"),
        ("version_attribute = \"\"", "sink.version_attribute"),
        ("access_key_id = \"x\"", "sink.secret_access_key"),
        ("endpont = \"x\"", "endpont"),
    ] {
        let error = config(text).expect_err(text);
        assert!(error.contains(word), "{text}: {error}");
    }
}

/// A row was deleted, was inserted again and refused, and is changed in part: its tombstone does not take the
/// change in silence.
#[tokio::test]
async fn a_tombstone_is_no_item_to_change() {
    let Some(server) = server() else { return };
    let schema = wide("tombstone_changed");
    let sink = DynamoDbSink::new(access(&server)).mode(Mode::Transactional).oversized(Oversized::Guarded);
    create(&sink, &schema).await;
    let mut writer = writer(&sink, "tombstone_changed", 1).await;
    let whole = row("1", "1", "x", "1");
    let part = |body: Value| {
        let mut part = whole.clone();
        part[2] = body;
        part[3] = Value::Unchanged;
        Do::Update(part)
    };
    let _ = writer.write(&unit(1, &schema, &[Do::Insert(whole.clone())])).await.unwrap();
    let _ = writer.write(&unit(2, &schema, &[part("y".into())])).await.unwrap();
    let _ = writer.write(&unit(3, &schema, &[Do::Delete(whole.clone())])).await.unwrap();
    let error = writer.write(&unit(4, &schema, &[part("z".into())])).await.expect_err("there is no such item");
    assert_eq!(error.kind(), ErrorKind::Rejected, "{}", error.report());
    assert!(error.to_string().contains("it is not there"), "{error}");
    let items = items(&client(&server).await, "tombstone_changed").await;
    assert!(items.iter().all(|i| !i.contains_key("body")), "{items:?}");
}
