//! PostgreSQL dialect: one JSONB value with one of three keys.

use serde::Deserialize;

use super::{
    Child, Children, DataRecord, Json, Mod, Record, RecordColumn, capture, instant, mod_type, sequence, values,
};
use crate::client::SpannerValue;
use crate::types::kind_of_record;

#[derive(Deserialize)]
enum Wire {
    #[serde(rename = "data_change_record")]
    Data(Box<Data>),
    #[serde(rename = "heartbeat_record")]
    Heartbeat { timestamp: String },
    #[serde(rename = "child_partitions_record")]
    ChildPartitions { start_timestamp: String, child_partitions: Vec<WireChild> },
}

#[derive(Deserialize)]
struct Data {
    commit_timestamp: String,
    record_sequence: String,
    server_transaction_id: String,
    table_name: String,
    column_types: Vec<WireColumn>,
    mods: Vec<WireMod>,
    mod_type: String,
    value_capture_type: String,
    number_of_records_in_transaction: Number,
    number_of_partitions_in_transaction: Number,
    #[serde(default)]
    transaction_tag: Option<String>,
    #[serde(default)]
    is_system_transaction: bool,
}

#[derive(Deserialize)]
struct WireColumn {
    name: String,
    #[serde(rename = "type")]
    kind: Json,
    is_primary_key: bool,
    ordinal_position: Number,
}

#[derive(Deserialize)]
struct WireMod {
    #[serde(default)]
    keys: Json,
    #[serde(default)]
    new_values: Json,
    #[serde(default)]
    old_values: Json,
}

#[derive(Deserialize)]
struct WireChild {
    token: String,
    #[serde(default)]
    parent_partition_tokens: Vec<String>,
}

/// INT64 is a string in GoogleSQL's JSON and a number in PostgreSQL's.
#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Number(i64),
    Text(String),
}

impl Number {
    fn value(&self) -> Result<i64, String> {
        match self {
            Self::Number(n) => Ok(*n),
            Self::Text(text) => text.parse().map_err(|_| format!("{text:?} is no number")),
        }
    }
}

pub(super) fn record(value: &SpannerValue) -> Result<Record, String> {
    let text = value.as_text().ok_or("the record is no text")?;
    let wire: Wire = serde_json::from_str(text).map_err(|e| e.to_string())?;
    Ok(match wire {
        Wire::Data(data) => Record::Data(Box::new(data_record(*data)?)),
        Wire::Heartbeat { timestamp } => Record::Heartbeat(instant(&timestamp)?),
        Wire::ChildPartitions { start_timestamp, child_partitions } => Record::Children(Children {
            start: instant(&start_timestamp)?,
            children: child_partitions
                .into_iter()
                .map(|c| Child { token: c.token, parents: c.parent_partition_tokens })
                .collect(),
        }),
    })
}

fn data_record(data: Data) -> Result<DataRecord, String> {
    let columns: Vec<RecordColumn> = data.column_types.into_iter().map(column).collect::<Result<_, _>>()?;
    let mods = data.mods.iter().map(|m| modification(m, &columns)).collect::<Result<_, _>>()?;
    let count = |n: Number| u64::try_from(n.value()?).map_err(|_| "a negative count".to_owned());
    Ok(DataRecord {
        commit: instant(&data.commit_timestamp)?,
        sequence: sequence(&data.record_sequence)?,
        transaction: data.server_transaction_id,
        table: data.table_name,
        columns,
        mods,
        mod_type: mod_type(&data.mod_type)?,
        capture: capture(&data.value_capture_type)?,
        records_in_transaction: count(data.number_of_records_in_transaction)?,
        partitions_in_transaction: count(data.number_of_partitions_in_transaction)?,
        tag: data.transaction_tag.unwrap_or_default(),
        system: data.is_system_transaction,
    })
}

fn column(wire: WireColumn) -> Result<RecordColumn, String> {
    Ok(RecordColumn {
        kind: kind_of_record(&wire.kind)?,
        key: wire.is_primary_key,
        ordinal: wire.ordinal_position.value()?,
        name: wire.name,
    })
}

fn modification(wire: &WireMod, columns: &[RecordColumn]) -> Result<Mod, String> {
    let row = |value: &Json| match value {
        Json::Null => Ok(Vec::new()),
        Json::Object(object) => values(object, columns),
        // As in GoogleSQL: JSON within a string.
        Json::String(text) => match serde_json::from_str(text).map_err(|e| format!("a row is no JSON: {e}"))? {
            Json::Object(object) => values(&object, columns),
            Json::Null => Ok(Vec::new()),
            _ => Err("a row that is no JSON object".to_owned()),
        },
        _ => Err("a row that is no JSON object".to_owned()),
    };
    Ok(Mod { keys: row(&wire.keys)?, new: row(&wire.new_values)?, old: row(&wire.old_values)? })
}
