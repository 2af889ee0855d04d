//! The structs of GoogleSQL.

use googleapis_tonic_google_spanner_v1::google::spanner::v1::struct_type::Field;
use googleapis_tonic_google_spanner_v1::google::spanner::v1::{StructType, Type, TypeCode};
use prost_types::Value;
use prost_types::value::Kind;
use serde_json::{Map, Value as Json};

use super::{list, of_kind, scalar, text};
use crate::record::{Data, Entry, Mod, Record, sequence_text};

/// One struct in the row's array; of its three lists the one of the record's kind has one element.
pub(super) fn value(record: &Record) -> Value {
    let (mut data, mut heartbeat, mut children) = (Vec::new(), Vec::new(), Vec::new());
    match &record.entry {
        Entry::Data(change) => data.push(data_change(change)),
        Entry::Heartbeat => heartbeat.push(list(vec![text(record.at.to_string())])),
        Entry::Children { sequence, children: tokens } => {
            let tokens =
                tokens.iter().map(|(token, parents)| list(vec![text(token), list(parents.iter().map(text).collect())]));
            let tokens = list(tokens.collect());
            children.push(list(vec![text(record.at.to_string()), text(sequence_text(*sequence)), tokens]));
        }
        // These are of mutable streams only.
        Entry::Start { .. } | Entry::End { .. } | Entry::Event { .. } | Entry::Raw(_) => {}
    }
    list(vec![list(vec![list(data), list(heartbeat), list(children)])])
}

fn data_change(data: &Data) -> Value {
    let columns = data.table.columns.iter().enumerate().map(|(at, column)| {
        let place = text((at + 1).to_string());
        list(vec![text(&column.name), text(column.kind.to_string()), truth(column.key), place])
    });
    let json = |map: &Map<String, Json>| text(Json::Object(map.clone()).to_string());
    let mods = data.mods.iter().map(|Mod { keys, new, old }| list(vec![json(keys), json(new), json(old)]));
    list(vec![
        text(data.at.to_string()),
        text(sequence_text(data.sequence)),
        text(&data.transaction),
        truth(data.last_in_partition),
        text(&data.table.name),
        list(columns.collect()),
        list(mods.collect()),
        text(data.kind.name()),
        text(data.capture.name()),
        text(data.records.to_string()),
        text(data.partitions.to_string()),
        text(&data.tag),
        truth(data.system),
    ])
}

fn truth(value: bool) -> Value {
    of_kind(Kind::BoolValue(value))
}

/// The type of the column `ChangeRecord`.
pub(super) fn kind() -> Type {
    use TypeCode::{Bool, Int64, Json, String, Timestamp};
    let columns = [
        ("name", scalar(String)),
        ("type", scalar(Json)),
        ("is_primary_key", scalar(Bool)),
        ("ordinal_position", scalar(Int64)),
    ];
    let mods = [("keys", scalar(Json)), ("new_values", scalar(Json)), ("old_values", scalar(Json))];
    let data = [
        ("commit_timestamp", scalar(Timestamp)),
        ("record_sequence", scalar(String)),
        ("server_transaction_id", scalar(String)),
        ("is_last_record_in_transaction_in_partition", scalar(Bool)),
        ("table_name", scalar(String)),
        ("column_types", structs(&columns)),
        ("mods", structs(&mods)),
        ("mod_type", scalar(String)),
        ("value_capture_type", scalar(String)),
        ("number_of_records_in_transaction", scalar(Int64)),
        ("number_of_partitions_in_transaction", scalar(Int64)),
        ("transaction_tag", scalar(String)),
        ("is_system_transaction", scalar(Bool)),
    ];
    let child = [("token", scalar(String)), ("parent_partition_tokens", array(scalar(String)))];
    let children = [
        ("start_timestamp", scalar(Timestamp)),
        ("record_sequence", scalar(String)),
        ("child_partitions", structs(&child)),
    ];
    structs(&[
        ("data_change_record", structs(&data)),
        ("heartbeat_record", structs(&[("timestamp", scalar(Timestamp))])),
        ("child_partitions_record", structs(&children)),
    ])
}

fn array(of: Type) -> Type {
    Type { array_element_type: Some(Box::new(of)), ..scalar(TypeCode::Array) }
}

fn structs(fields: &[(&str, Type)]) -> Type {
    let field = |(name, kind): &(&str, Type)| Field { name: (*name).to_owned(), r#type: Some(kind.clone()) };
    let fields = fields.iter().map(field).collect();
    array(Type { struct_type: Some(StructType { fields }), ..scalar(TypeCode::Struct) })
}
