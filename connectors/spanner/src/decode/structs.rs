//! GoogleSQL: `ARRAY<STRUCT<data_change_record ARRAY<..>, heartbeat_record ARRAY<..>,
//! child_partitions_record ARRAY<..>>>`, structs as lists of their fields.

use super::{
    Child, Children, DataRecord, Json, Mod, Record, RecordColumn, Values, capture, instant, mod_type, sequence, values,
};
use crate::client::SpannerValue;
use crate::types::kind_of_record;

pub(super) fn records(value: &SpannerValue) -> Result<Vec<Record>, String> {
    let mut records = Vec::new();
    for outer in list(value, "ChangeRecord")? {
        let [data, heartbeats, children] = fields(outer, "ChangeRecord")?;
        for record in list(data, "data_change_record")? {
            records.push(Record::Data(Box::new(data_record(record)?)));
        }
        for record in list(heartbeats, "heartbeat_record")? {
            let [at] = fields(record, "heartbeat_record")?;
            records.push(Record::Heartbeat(instant(text(at, "timestamp")?)?));
        }
        for record in list(children, "child_partitions_record")? {
            records.push(Record::Children(children_record(record)?));
        }
    }
    if records.is_empty() {
        return Err("a row without a record".to_owned());
    }
    Ok(records)
}

fn data_record(record: &SpannerValue) -> Result<DataRecord, String> {
    let [commit, seq, transaction, _last, table, columns, mods, kind, captured, total, partitions, tag, system] =
        fields(record, "data_change_record")?;
    let columns: Vec<RecordColumn> = list(columns, "column_types")?.iter().map(column).collect::<Result<_, _>>()?;
    let mods = list(mods, "mods")?.iter().map(|m| modification(m, &columns)).collect::<Result<_, _>>()?;
    Ok(DataRecord {
        commit: instant(text(commit, "commit_timestamp")?)?,
        sequence: sequence(text(seq, "record_sequence")?)?,
        transaction: text(transaction, "server_transaction_id")?.to_owned(),
        table: text(table, "table_name")?.to_owned(),
        columns,
        mods,
        mod_type: mod_type(text(kind, "mod_type")?)?,
        capture: capture(text(captured, "value_capture_type")?)?,
        records_in_transaction: number(total, "number_of_records_in_transaction")?,
        partitions_in_transaction: number(partitions, "number_of_partitions_in_transaction")?,
        tag: tag.as_text().unwrap_or_default().to_owned(),
        system: system.as_bool().unwrap_or_default(),
    })
}

fn column(value: &SpannerValue) -> Result<RecordColumn, String> {
    let [name, kind, key, ordinal] = fields(value, "column_types")?;
    Ok(RecordColumn {
        name: text(name, "name")?.to_owned(),
        kind: kind_of_record(&json(kind, "type")?)?,
        key: key.as_bool().ok_or("is_primary_key is no truth value")?,
        ordinal: number(ordinal, "ordinal_position")? as i64,
    })
}

fn modification(value: &SpannerValue, columns: &[RecordColumn]) -> Result<Mod, String> {
    let [keys, new, old] = fields(value, "mods")?;
    Ok(Mod { keys: row(keys, columns)?, new: row(new, columns)?, old: row(old, columns)? })
}

fn row(value: &SpannerValue, columns: &[RecordColumn]) -> Result<Values, String> {
    match value {
        SpannerValue::Null => Ok(Values::new()),
        value => match json(value, "a row")? {
            Json::Object(object) => values(&object, columns),
            Json::Null => Ok(Values::new()),
            _ => Err("a row that is no JSON object".to_owned()),
        },
    }
}

fn children_record(record: &SpannerValue) -> Result<Children, String> {
    let [start, _sequence, children] = fields(record, "child_partitions_record")?;
    let child = |value| {
        let [token, parents] = fields(value, "child_partitions")?;
        let parents = list(parents, "parent_partition_tokens")?;
        let parents =
            parents.iter().map(|p| text(p, "a parent's token").map(str::to_owned)).collect::<Result<_, _>>()?;
        Ok(Child { token: text(token, "token")?.to_owned(), parents })
    };
    let children = list(children, "child_partitions")?.iter().map(child).collect::<Result<_, String>>()?;
    Ok(Children { start: instant(text(start, "start_timestamp")?)?, children })
}

/// The first fields of a struct: later versions may add more behind them.
fn fields<'a, const N: usize>(value: &'a SpannerValue, of: &str) -> Result<&'a [SpannerValue; N], String> {
    list(value, of)?.first_chunk().ok_or_else(|| format!("{of} has fewer than {N} fields"))
}

fn list<'a>(value: &'a SpannerValue, of: &str) -> Result<&'a [SpannerValue], String> {
    value.as_list().ok_or_else(|| format!("{of} is no list"))
}

fn text<'a>(value: &'a SpannerValue, of: &str) -> Result<&'a str, String> {
    value.as_text().ok_or_else(|| format!("{of} is no text"))
}

fn number(value: &SpannerValue, of: &str) -> Result<u64, String> {
    text(value, of)?.parse().map_err(|_| format!("{of} is no number"))
}

fn json(value: &SpannerValue, of: &str) -> Result<Json, String> {
    serde_json::from_str(text(value, of)?).map_err(|e| format!("{of} is no JSON: {e}"))
}
