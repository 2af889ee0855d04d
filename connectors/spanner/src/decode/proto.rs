//! Streams with mutable key ranges: `google.spanner.v1.ChangeStreamRecord`, of which these are the
//! fields that are used (googleapis, `google/spanner/v1/change_stream.proto`).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost::Message;

use super::{Capture, DataRecord, Mod, ModType, Record, RecordColumn, Values, sequence};
use crate::client::{Instant, Kind, SpannerValue};

#[derive(Clone, PartialEq, Message)]
pub(super) struct ChangeStreamRecord {
    #[prost(message, optional, tag = "1")]
    data: Option<Data>,
    #[prost(message, optional, tag = "2")]
    heartbeat: Option<Heartbeat>,
    #[prost(message, optional, tag = "3")]
    start: Option<Start>,
    #[prost(message, optional, tag = "4")]
    end: Option<End>,
    #[prost(message, optional, tag = "5")]
    event: Option<Event>,
}

#[derive(Clone, PartialEq, Message)]
struct Data {
    #[prost(message, optional, tag = "1")]
    commit_timestamp: Option<prost_types::Timestamp>,
    #[prost(string, tag = "2")]
    record_sequence: String,
    #[prost(string, tag = "3")]
    server_transaction_id: String,
    #[prost(string, tag = "5")]
    table: String,
    #[prost(message, repeated, tag = "6")]
    columns: Vec<Column>,
    #[prost(message, repeated, tag = "7")]
    mods: Vec<WireMod>,
    #[prost(int32, tag = "8")]
    mod_type: i32,
    #[prost(int32, tag = "9")]
    value_capture_type: i32,
    #[prost(int32, tag = "10")]
    number_of_records_in_transaction: i32,
    #[prost(int32, tag = "11")]
    number_of_partitions_in_transaction: i32,
    #[prost(string, tag = "12")]
    transaction_tag: String,
    #[prost(bool, tag = "13")]
    is_system_transaction: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Column {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    kind: Option<Type>,
    #[prost(bool, tag = "3")]
    is_primary_key: bool,
    #[prost(int64, tag = "4")]
    ordinal_position: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Type {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(message, optional, boxed, tag = "2")]
    array_element_type: Option<Box<Type>>,
    #[prost(int32, tag = "4")]
    type_annotation: i32,
    #[prost(string, tag = "5")]
    proto_type_fqn: String,
}

#[derive(Clone, PartialEq, Message)]
struct WireMod {
    #[prost(message, repeated, tag = "1")]
    keys: Vec<ModValue>,
    #[prost(message, repeated, tag = "2")]
    old_values: Vec<ModValue>,
    #[prost(message, repeated, tag = "3")]
    new_values: Vec<ModValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ModValue {
    #[prost(int32, tag = "1")]
    column_metadata_index: i32,
    #[prost(message, optional, tag = "2")]
    value: Option<prost_types::Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Heartbeat {
    #[prost(message, optional, tag = "1")]
    timestamp: Option<prost_types::Timestamp>,
}

#[derive(Clone, PartialEq, Message)]
struct Start {
    #[prost(message, optional, tag = "1")]
    start_timestamp: Option<prost_types::Timestamp>,
    #[prost(string, tag = "2")]
    record_sequence: String,
    #[prost(string, repeated, tag = "3")]
    partition_tokens: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct End {
    #[prost(message, optional, tag = "1")]
    end_timestamp: Option<prost_types::Timestamp>,
    #[prost(string, tag = "2")]
    record_sequence: String,
}

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(message, optional, tag = "1")]
    commit_timestamp: Option<prost_types::Timestamp>,
    #[prost(string, tag = "2")]
    record_sequence: String,
    #[prost(message, repeated, tag = "4")]
    move_in_events: Vec<Peer>,
    #[prost(message, repeated, tag = "5")]
    move_out_events: Vec<Peer>,
}

/// `MoveInEvent` and `MoveOutEvent`: the other partition's token.
#[derive(Clone, PartialEq, Message)]
struct Peer {
    #[prost(string, tag = "1")]
    token: String,
}

/// A PROTO or bytea value: base64.
pub(super) fn record(value: &SpannerValue) -> Result<Record, String> {
    let text = value.as_text().ok_or("the record is no text")?;
    let bytes = STANDARD.decode(text).map_err(|e| format!("the record is no base64: {e}"))?;
    let wire = ChangeStreamRecord::decode(bytes.as_slice()).map_err(|e| e.to_string())?;
    Ok(match wire {
        ChangeStreamRecord { data: Some(data), .. } => Record::Data(Box::new(data_record(data)?)),
        ChangeStreamRecord { heartbeat: Some(h), .. } => Record::Heartbeat(instant(h.timestamp)?),
        ChangeStreamRecord { start: Some(s), .. } => Record::Start {
            at: instant(s.start_timestamp)?,
            sequence: sequence(&s.record_sequence)?,
            tokens: s.partition_tokens,
        },
        ChangeStreamRecord { end: Some(e), .. } => {
            Record::End { at: instant(e.end_timestamp)?, sequence: sequence(&e.record_sequence)? }
        }
        ChangeStreamRecord { event: Some(e), .. } => Record::Event {
            at: instant(e.commit_timestamp)?,
            sequence: sequence(&e.record_sequence)?,
            from: e.move_in_events.into_iter().map(|p| p.token).collect(),
            to: e.move_out_events.into_iter().map(|p| p.token).collect(),
        },
        _ => return Err("a record of none of the known kinds".to_owned()),
    })
}

fn data_record(data: Data) -> Result<DataRecord, String> {
    let columns: Vec<RecordColumn> = data.columns.into_iter().map(column).collect::<Result<_, _>>()?;
    let width = columns.len();
    let row = |values: Vec<ModValue>| values.into_iter().map(|v| value(v, width)).collect::<Result<Values, String>>();
    let mods = data
        .mods
        .into_iter()
        .map(|m| Ok(Mod { keys: row(m.keys)?, new: row(m.new_values)?, old: row(m.old_values)? }))
        .collect::<Result<_, String>>()?;
    Ok(DataRecord {
        commit: instant(data.commit_timestamp)?,
        sequence: sequence(&data.record_sequence)?,
        transaction: data.server_transaction_id,
        table: data.table,
        columns,
        mods,
        mod_type: match data.mod_type {
            10 => ModType::Insert,
            20 => ModType::Update,
            30 => ModType::Delete,
            other => return Err(format!("{other} is no mod_type")),
        },
        capture: match data.value_capture_type {
            10 => Capture::OldAndNewValues,
            20 => Capture::NewValues,
            30 => Capture::NewRow,
            40 => Capture::NewRowAndOldValues,
            other => return Err(format!("{other} is no value_capture_type")),
        },
        records_in_transaction: count(data.number_of_records_in_transaction)?,
        partitions_in_transaction: count(data.number_of_partitions_in_transaction)?,
        tag: data.transaction_tag,
        system: data.is_system_transaction,
    })
}

fn count(n: i32) -> Result<u64, String> {
    u64::try_from(n).map_err(|_| "a negative count".to_owned())
}

fn column(wire: Column) -> Result<RecordColumn, String> {
    let kind = kind(&wire.kind.ok_or("a column without a type")?)?;
    Ok(RecordColumn { name: wire.name, kind, key: wire.is_primary_key, ordinal: wire.ordinal_position })
}

/// By the numbers of `google.spanner.v1.TypeCode` and `TypeAnnotationCode`.
fn kind(of: &Type) -> Result<Kind, String> {
    Ok(match (of.code, of.type_annotation) {
        (1, _) => Kind::Bool,
        (2, 4) => Kind::PgOid,
        (2, _) => Kind::Int64,
        (3, _) => Kind::Float64,
        (4, _) => Kind::Timestamp,
        (5, _) => Kind::Date,
        (6, _) => Kind::String,
        (7, _) => Kind::Bytes,
        (8, _) => {
            let element = of.array_element_type.as_deref().ok_or("an array type without an element type")?;
            Kind::Array(Box::new(kind(element)?))
        }
        (10, 2) => Kind::PgNumeric,
        (10, _) => Kind::Numeric,
        (11, 3) => Kind::PgJsonb,
        (11, _) => Kind::Json,
        (13, _) => Kind::Proto(of.proto_type_fqn.clone()),
        (14, _) => Kind::Enum(of.proto_type_fqn.clone()),
        (15, _) => Kind::Float32,
        (16, _) => Kind::Interval,
        (17, _) => Kind::Uuid,
        (other, _) => return Err(format!("a column of the unknown type {other}")),
    })
}

fn value(wire: ModValue, columns: usize) -> Result<(usize, SpannerValue), String> {
    let at = usize::try_from(wire.column_metadata_index).ok().filter(|at| *at < columns);
    let at = at.ok_or_else(|| format!("a value of column {}, of {columns}", wire.column_metadata_index))?;
    Ok((at, wire.value.map_or(Ok(SpannerValue::Null), plain)?))
}

fn plain(value: prost_types::Value) -> Result<SpannerValue, String> {
    use prost_types::value::Kind as K;
    Ok(match value.kind {
        None | Some(K::NullValue(_)) => SpannerValue::Null,
        Some(K::BoolValue(v)) => SpannerValue::Bool(v),
        Some(K::NumberValue(v)) => SpannerValue::Number(v),
        Some(K::StringValue(v)) => SpannerValue::Text(v),
        Some(K::ListValue(list)) => SpannerValue::List(list.values.into_iter().map(plain).collect::<Result<_, _>>()?),
        Some(K::StructValue(_)) => return Err("a value of an unexpected shape".to_owned()),
    })
}

fn instant(of: Option<prost_types::Timestamp>) -> Result<Instant, String> {
    let at = of.ok_or("a record without its time")?;
    let nanos = u32::try_from(at.nanos).ok();
    nanos.and_then(|nanos| Instant::new(at.seconds, nanos)).ok_or_else(|| "a time out of range".to_owned())
}
