//! The JSON of the PostgreSQL dialect.

use serde_json::{Value as Json, json};

use crate::record::{Data, Entry, Record, sequence_text};

pub(super) fn json(record: &Record) -> Json {
    match &record.entry {
        Entry::Data(data) => json!({ "data_change_record": data_change(data) }),
        Entry::Heartbeat => json!({"heartbeat_record": {"timestamp": record.at.with_offset()}}),
        Entry::Children { sequence, children } => {
            let children = children.iter();
            let children = children.map(|(token, parents)| json!({"token": token, "parent_partition_tokens": parents}));
            json!({"child_partitions_record": {
                "start_timestamp": record.at.with_offset(),
                "record_sequence": sequence_text(*sequence),
                "child_partitions": children.collect::<Vec<_>>(),
            }})
        }
        // These are of mutable streams only.
        Entry::Start { .. } | Entry::End { .. } | Entry::Event { .. } | Entry::Raw(_) => json!({}),
    }
}

fn data_change(data: &Data) -> Json {
    let columns = data.table.columns.iter().enumerate().map(|(at, column)| {
        json!({
            "name": column.name,
            "type": column.kind,
            "is_primary_key": column.key,
            "ordinal_position": at + 1,
        })
    });
    let mods = data.mods.iter().map(|m| json!({"keys": m.keys, "new_values": m.new, "old_values": m.old}));
    json!({
        "commit_timestamp": data.at.with_offset(),
        "record_sequence": sequence_text(data.sequence),
        "server_transaction_id": data.transaction,
        "is_last_record_in_transaction_in_partition": data.last_in_partition,
        "table_name": data.table.name,
        "column_types": columns.collect::<Vec<_>>(),
        "mods": mods.collect::<Vec<_>>(),
        "mod_type": data.kind.name(),
        "value_capture_type": data.capture.name(),
        "number_of_records_in_transaction": data.records,
        "number_of_partitions_in_transaction": data.partitions,
        "transaction_tag": data.tag,
        "is_system_transaction": data.system,
    })
}
