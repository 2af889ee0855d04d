//! The messages of streams with mutable key ranges.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use googleapis_tonic_google_spanner_v1::google::spanner::v1::change_stream_record as wire;
use googleapis_tonic_google_spanner_v1::google::spanner::v1::{ChangeStreamRecord, Type, TypeAnnotationCode, TypeCode};
use prost::Message as _;
use prost_types::Value;
use serde_json::{Map, Value as Json};
use wire::data_change_record as data_wire;
use wire::partition_event_record::{MoveInEvent, MoveOutEvent};

use super::{of_json, text};
use crate::record::{Capture, Data, Entry, ModType, Record, sequence_text};
use crate::table::Table;

/// A message is base64 in a value of the protocol.
pub(super) fn value(token: &str, record: &Record) -> Value {
    text(STANDARD.encode(message(token, record).encode_to_vec()))
}

fn message(token: &str, record: &Record) -> ChangeStreamRecord {
    let at = Some(record.at.proto());
    let entry = match &record.entry {
        Entry::Data(data) => wire::Record::DataChangeRecord(data_change(data)),
        Entry::Heartbeat => wire::Record::HeartbeatRecord(wire::HeartbeatRecord { timestamp: at }),
        Entry::Start { sequence, tokens } => wire::Record::PartitionStartRecord(wire::PartitionStartRecord {
            start_timestamp: at,
            record_sequence: sequence_text(*sequence),
            partition_tokens: tokens.clone(),
        }),
        Entry::End { sequence } => wire::Record::PartitionEndRecord(wire::PartitionEndRecord {
            end_timestamp: at,
            record_sequence: sequence_text(*sequence),
            partition_token: token.to_owned(),
        }),
        Entry::Event { sequence, moved_in, moved_out } => {
            let source = |t: &String| MoveInEvent { source_partition_token: t.clone() };
            let destination = |t: &String| MoveOutEvent { destination_partition_token: t.clone() };
            wire::Record::PartitionEventRecord(wire::PartitionEventRecord {
                commit_timestamp: at,
                record_sequence: sequence_text(*sequence),
                partition_token: token.to_owned(),
                move_in_events: moved_in.iter().map(source).collect(),
                move_out_events: moved_out.iter().map(destination).collect(),
            })
        }
        // Child records are of immutable streams only.
        Entry::Children { .. } | Entry::Raw(_) => return ChangeStreamRecord::default(),
    };
    ChangeStreamRecord { record: Some(entry) }
}

fn data_change(data: &Data) -> wire::DataChangeRecord {
    let columns = data.table.columns.iter().enumerate().map(|(at, column)| data_wire::ColumnMetadata {
        name: column.name.clone(),
        r#type: Some(kind(&column.kind)),
        is_primary_key: column.key,
        ordinal_position: at as i64 + 1,
    });
    let mods = data.mods.iter().map(|m| data_wire::Mod {
        keys: values(&data.table, &m.keys),
        old_values: values(&data.table, &m.old),
        new_values: values(&data.table, &m.new),
    });
    wire::DataChangeRecord {
        commit_timestamp: Some(data.at.proto()),
        record_sequence: sequence_text(data.sequence),
        server_transaction_id: data.transaction.clone(),
        is_last_record_in_transaction_in_partition: data.last_in_partition,
        table: data.table.name.clone(),
        column_metadata: columns.collect(),
        mods: mods.collect(),
        mod_type: match data.kind {
            ModType::Insert => data_wire::ModType::Insert,
            ModType::Update => data_wire::ModType::Update,
            ModType::Delete => data_wire::ModType::Delete,
        }
        .into(),
        value_capture_type: match data.capture {
            Capture::OldAndNewValues => data_wire::ValueCaptureType::OldAndNewValues,
            Capture::NewValues => data_wire::ValueCaptureType::NewValues,
            Capture::NewRow => data_wire::ValueCaptureType::NewRow,
            Capture::NewRowAndOldValues => data_wire::ValueCaptureType::NewRowAndOldValues,
        }
        .into(),
        number_of_records_in_transaction: data.records as i32,
        number_of_partitions_in_transaction: data.partitions as i32,
        transaction_tag: data.tag.clone(),
        is_system_transaction: data.system,
    }
}

fn values(table: &Table, map: &Map<String, Json>) -> Vec<data_wire::ModValue> {
    let value = |(name, value): (&String, &Json)| {
        let index = table.find(name)?.0 as i32;
        Some(data_wire::ModValue { column_metadata_index: index, value: Some(of_json(value)) })
    };
    map.iter().filter_map(value).collect()
}

/// A type from the JSON in which the other forms write it.
fn kind(json: &Json) -> Type {
    let name = |key: &str| json[key].as_str().unwrap_or_default();
    let annotation = TypeAnnotationCode::from_str_name(name("type_annotation")).unwrap_or_default();
    let element = json.get("array_element_type").map(|of| Box::new(kind(of)));
    Type {
        code: TypeCode::from_str_name(name("code")).unwrap_or_default().into(),
        array_element_type: element,
        type_annotation: annotation.into(),
        ..Type::default()
    }
}
