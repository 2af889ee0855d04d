use proptest::prelude::*;

use super::*;

fn text(v: &str) -> SpannerValue {
    v.into()
}

fn list(v: impl IntoIterator<Item = SpannerValue>) -> SpannerValue {
    SpannerValue::List(v.into_iter().collect())
}

/// As the emulator 1.5.28 sends an update of two columns.
fn data_struct() -> SpannerValue {
    let column = |name, kind, key: bool, at| list([text(name), text(kind), key.into(), text(at)]);
    let columns = list([
        column("Id", r#"{"code":"INT64"}"#, true, "1"),
        column("A", r#"{"array_element_type":{"code":"STRING"},"code":"ARRAY"}"#, false, "2"),
        column("F", r#"{"code":"FLOAT64"}"#, false, "3"),
    ]);
    let mods = list([list([
        text(r#"{"Id":"9007199254740993"}"#),
        text(r#"{"A":["x",null],"F":0.1}"#),
        text(r#"{"F":null}"#),
    ])]);
    list([
        text("2026-01-02T03:04:05.000000006Z"),
        text("0000000a"),
        text("tx"),
        true.into(),
        text("sch.T"),
        columns,
        mods,
        text("UPDATE"),
        text("NEW_ROW_AND_OLD_VALUES"),
        text("3"),
        text("2"),
        text("txBy=me"),
        false.into(),
    ])
}

fn wrapped(data: Option<SpannerValue>, heartbeat: Option<&str>, children: Option<SpannerValue>) -> Row {
    let heartbeats = heartbeat.map(|t| list([text(t)]));
    vec![list([list([list(data), list(heartbeats), list(children)])])]
}

fn expected() -> DataRecord {
    let column = |name: &str, kind, key, ordinal| RecordColumn { name: name.to_owned(), kind, key, ordinal };
    DataRecord {
        commit: "2026-01-02T03:04:05.000000006Z".parse().unwrap(),
        sequence: 10,
        transaction: "tx".to_owned(),
        table: "sch.T".to_owned(),
        columns: vec![
            column("Id", Kind::Int64, true, 1),
            column("A", Kind::Array(Box::new(Kind::String)), false, 2),
            column("F", Kind::Float64, false, 3),
        ],
        mods: vec![Mod {
            keys: vec![(0, text("9007199254740993"))],
            new: vec![(1, list([text("x"), SpannerValue::Null])), (2, SpannerValue::Number(0.1))],
            old: vec![(2, SpannerValue::Null)],
        }],
        mod_type: ModType::Update,
        capture: Capture::NewRowAndOldValues,
        records_in_transaction: 3,
        partitions_in_transaction: 2,
        tag: "txBy=me".to_owned(),
        system: false,
    }
}

const JSON: &str = r#"{"data_change_record":{"column_types":[
    {"is_primary_key":true,"name":"Id","ordinal_position":1,"type":{"code":"INT64"}},
    {"is_primary_key":false,"name":"A","ordinal_position":2,"type":{"array_element_type":{"code":"STRING"},"code":"ARRAY"}},
    {"is_primary_key":false,"name":"F","ordinal_position":3,"type":{"code":"FLOAT64"}}],
    "commit_timestamp":"2026-01-02T03:04:05.000000006+00:00","is_last_record_in_transaction_in_partition":true,
    "is_system_transaction":false,"mod_type":"UPDATE",
    "mods":[{"keys":{"Id":"9007199254740993"},"new_values":{"A":["x",null],"F":0.1},"old_values":{"F":null}}],
    "number_of_partitions_in_transaction":2,"number_of_records_in_transaction":3,"record_sequence":"0000000a",
    "server_transaction_id":"tx","table_name":"sch.T","transaction_tag":"txBy=me",
    "value_capture_type":"NEW_ROW_AND_OLD_VALUES"}}"#;

#[test]
fn both_dialects_tell_the_same() {
    let record = Record::Data(Box::new(expected()));
    assert_eq!(row(Form::Structs, &wrapped(Some(data_struct()), None, None)).unwrap(), std::slice::from_ref(&record));
    assert_eq!(row(Form::Json, &vec![text(JSON)]).unwrap(), [record]);
}

#[test]
fn heartbeats_and_children_are_read_in_both_dialects() {
    let at = "2026-01-02T03:04:05Z";
    let heartbeat = [Record::Heartbeat(at.parse().unwrap())];
    assert_eq!(row(Form::Structs, &wrapped(None, Some(at), None)).unwrap(), heartbeat);
    let json = format!(r#"{{"heartbeat_record":{{"timestamp":"{at}"}}}}"#);
    assert_eq!(row(Form::Json, &vec![text(&json)]).unwrap(), heartbeat);

    let child = Child { token: "c".to_owned(), parents: vec!["p".to_owned(), "q".to_owned()] };
    let children = [Record::Children(Children { start: at.parse().unwrap(), children: vec![child] })];
    let structs = list([text(at), text("00000000"), list([list([text("c"), list([text("p"), text("q")])])])]);
    assert_eq!(row(Form::Structs, &wrapped(None, None, Some(structs))).unwrap(), children);
    let json = format!(
        r#"{{"child_partitions_record":{{"start_timestamp":"{at}","record_sequence":"00000000",
            "child_partitions":[{{"token":"c","parent_partition_tokens":["p","q"]}}]}}}}"#
    );
    assert_eq!(row(Form::Json, &vec![text(&json)]).unwrap(), children);
}

mod published {
    use super::*;
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use googleapis_tonic_google_spanner_v1::google::spanner::v1 as pb;
    use pb::change_stream_record as csr;
    use prost::Message;
    use prost_types::value::Kind as PbKind;

    fn value(kind: PbKind) -> Option<prost_types::Value> {
        Some(prost_types::Value { kind: Some(kind) })
    }

    fn encoded(record: csr::Record) -> Row {
        vec![text(&STANDARD.encode(pb::ChangeStreamRecord { record: Some(record) }.encode_to_vec()))]
    }

    fn at() -> Option<prost_types::Timestamp> {
        Some(prost_types::Timestamp { seconds: 1_767_323_045, nanos: 6 })
    }

    fn column(name: &str, code: pb::TypeCode, key: bool, at: i64) -> csr::data_change_record::ColumnMetadata {
        let element = (code == pb::TypeCode::Array)
            .then(|| Box::new(pb::Type { code: pb::TypeCode::String.into(), ..Default::default() }));
        csr::data_change_record::ColumnMetadata {
            name: name.to_owned(),
            r#type: Some(pb::Type { code: code.into(), array_element_type: element, ..Default::default() }),
            is_primary_key: key,
            ordinal_position: at,
        }
    }

    #[test]
    fn the_published_message_tells_the_same_as_the_dialects() {
        use csr::data_change_record::{Mod, ModType, ModValue, ValueCaptureType};
        let of = |at, v| ModValue { column_metadata_index: at, value: v };
        let items = vec![value(PbKind::StringValue("x".into())).unwrap(), value(PbKind::NullValue(0)).unwrap()];
        let record = csr::DataChangeRecord {
            commit_timestamp: at(),
            record_sequence: "0000000a".into(),
            server_transaction_id: "tx".into(),
            is_last_record_in_transaction_in_partition: true,
            table: "sch.T".into(),
            column_metadata: vec![
                column("Id", pb::TypeCode::Int64, true, 1),
                column("A", pb::TypeCode::Array, false, 2),
                column("F", pb::TypeCode::Float64, false, 3),
            ],
            mods: vec![Mod {
                keys: vec![of(0, value(PbKind::StringValue("9007199254740993".into())))],
                new_values: vec![
                    of(1, value(PbKind::ListValue(prost_types::ListValue { values: items }))),
                    of(2, value(PbKind::NumberValue(0.1))),
                ],
                old_values: vec![of(2, value(PbKind::NullValue(0)))],
            }],
            mod_type: ModType::Update.into(),
            value_capture_type: ValueCaptureType::NewRowAndOldValues.into(),
            number_of_records_in_transaction: 3,
            number_of_partitions_in_transaction: 2,
            transaction_tag: "txBy=me".into(),
            is_system_transaction: false,
        };
        let read = row(Form::Proto, &encoded(csr::Record::DataChangeRecord(record))).unwrap();
        assert_eq!(read, [Record::Data(Box::new(expected()))]);
    }

    #[test]
    fn partitions_begin_move_and_end() {
        let at_ours: Instant = "2026-01-02T03:04:05.000000006Z".parse().unwrap();
        let begin = csr::PartitionStartRecord {
            start_timestamp: at(),
            record_sequence: "00000001".into(),
            partition_tokens: vec!["a".into(), "b".into()],
        };
        let tokens = vec!["a".to_owned(), "b".to_owned()];
        let read = row(Form::Proto, &encoded(csr::Record::PartitionStartRecord(begin))).unwrap();
        assert_eq!(read, [Record::Start { at: at_ours, sequence: 1, tokens }]);
        let moved = csr::PartitionEventRecord {
            commit_timestamp: at(),
            record_sequence: "00000002".into(),
            partition_token: "a".into(),
            move_in_events: vec![csr::partition_event_record::MoveInEvent { source_partition_token: "s".into() }],
            move_out_events: vec![csr::partition_event_record::MoveOutEvent {
                destination_partition_token: "d".into(),
            }],
        };
        let read = row(Form::Proto, &encoded(csr::Record::PartitionEventRecord(moved))).unwrap();
        let event = Record::Event { at: at_ours, sequence: 2, from: vec!["s".to_owned()], to: vec!["d".to_owned()] };
        assert_eq!(read, [event]);
        let end = csr::PartitionEndRecord {
            end_timestamp: at(),
            record_sequence: "00000003".into(),
            partition_token: "a".into(),
        };
        let read = row(Form::Proto, &encoded(csr::Record::PartitionEndRecord(end))).unwrap();
        assert_eq!(read, [Record::End { at: at_ours, sequence: 3 }]);
    }
}

#[test]
fn what_is_malformed_is_an_error_that_keeps_the_record() {
    let broken = [
        JSON.replace("\"UPDATE\"", "\"UPSERT\""),
        JSON.replace("0000000a", "sequence"),
        JSON.replace("{\"F\":null}", "{\"G\":null}"),
        JSON.replace("INT64", "QUATERNION"),
        JSON.replace("data_change_record", "data_record"),
        JSON.replace("2026-01-02T03:04:05", "yesterday"),
        "{".to_owned(),
        "{}".to_owned(),
    ];
    for text_of in broken {
        let e = row(Form::Json, &vec![text(&text_of)]).unwrap_err().to_string();
        assert!(e.ends_with(&text_of), "{e}");
    }
    let e = row(Form::Structs, &vec![list([list([text("x")])])]).unwrap_err();
    assert!(e.record.contains("\"x\""), "{e}");
    assert!(row(Form::Proto, &vec![text("AAAA")]).is_err());
    assert!(row(Form::Proto, &vec![text("not base64")]).is_err());
    assert!(row(Form::Structs, &vec![]).is_err());
    assert!(row(Form::Structs, &vec![list([])]).is_err());
}

#[test]
fn an_error_keeps_a_bounded_part_of_a_huge_record() {
    let huge = "é".repeat(KEPT);
    let e = row(Form::Json, &vec![text(&huge)]).unwrap_err();
    assert!(e.record.len() <= KEPT + 3 && e.record.ends_with("..."));
}

fn any_value() -> impl Strategy<Value = SpannerValue> {
    let leaf = prop_oneof![
        Just(SpannerValue::Null),
        any::<bool>().prop_map(SpannerValue::Bool),
        any::<f64>().prop_map(SpannerValue::Number),
        ".{0,12}".prop_map(SpannerValue::Text),
        Just(text(r#"{"code":"INT64"}"#)),
        Just(text(r#"{"Id":"1"}"#)),
        Just(text("2026-01-02T03:04:05Z")),
        Just(text("00000001")),
    ];
    leaf.prop_recursive(4, 64, 14, |inner| proptest::collection::vec(inner, 0..14).prop_map(SpannerValue::List))
}

proptest! {
    #[test]
    fn no_value_panics(value in any_value(), form in 0..3) {
        let form = [Form::Structs, Form::Json, Form::Proto][form as usize];
        let _ = row(form, &vec![value]);
    }

    #[test]
    fn no_damaged_json_panics(at in 0..JSON.len(), with in any::<char>()) {
        let mut damaged: Vec<char> = JSON.chars().collect();
        let at = at % damaged.len();
        damaged[at] = with;
        let damaged: String = damaged.into_iter().collect();
        let _ = row(Form::Json, &vec![text(&damaged)]);
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        use base64::Engine;
        let _ = row(Form::Proto, &vec![text(&base64::engine::general_purpose::STANDARD.encode(bytes))]);
    }

    #[test]
    fn a_damaged_field_of_a_struct_is_an_error_or_read(at in 0..13usize, with in any_value()) {
        let SpannerValue::List(mut fields) = data_struct() else { unreachable!() };
        fields[at] = with;
        let _ = row(Form::Structs, &wrapped(Some(list(fields)), None, None));
    }
}
