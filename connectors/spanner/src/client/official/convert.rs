//! Our values, statements and errors, and the client's.

use google_cloud_spanner::Error;
use google_cloud_spanner::key::{Key, KeySet};
use google_cloud_spanner::mutation::{Mutation as TheirMutation, WriteBuilder};
use google_cloud_spanner::statement::Statement as TheirStatement;
use google_cloud_spanner::types::{self, Type};
use google_cloud_spanner::value::{Kind as TheirKind, Timestamp, Value};

use crate::client::{Code, Instant, Kind, Mutation, Row, SpannerError, SpannerValue, Statement, Write};

pub(super) fn error(e: &Error) -> SpannerError {
    let code = match e.status() {
        Some(status) => Code::from_number(status.code as i32),
        // The emulator's REST does not wrap its errors as Google's does.
        None if code_of_payload(e).is_some() => code_of_payload(e).unwrap_or(Code::Unknown),
        None if e.is_authentication() => Code::Unauthenticated,
        None if e.is_timeout() => Code::DeadlineExceeded,
        None if e.is_binding() || e.is_serialization() => Code::InvalidArgument,
        // Among them: a stream that ends before its first message.
        None if e.is_deserialization() => Code::Internal,
        None => Code::Unavailable,
    };
    let message = match e.status() {
        Some(status) => format!("{}: {}", status.code.name(), status.message),
        None => chain(e),
    };
    SpannerError::new(code, message)
}

fn code_of_payload(e: &Error) -> Option<Code> {
    let payload: serde_json::Value = serde_json::from_slice(e.http_payload()?).ok()?;
    payload.get("code")?.as_i64().map(|code| Code::from_number(code as i32))
}

/// An error and its causes in one line: the client's own errors say little without them.
pub(super) fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut cause = e.source();
    while let Some(c) = cause {
        let said = c.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = c.source();
    }
    text
}

pub(super) fn statement(statement: Statement) -> TheirStatement {
    let mut builder = TheirStatement::builder(statement.sql);
    for param in statement.params {
        builder = match kind(&param.kind) {
            Some(kind) => builder.add_typed_param(param.name, value(param.value), kind),
            None => builder.add_param(param.name, value(param.value)),
        };
    }
    builder.build()
}

fn kind(of: &Kind) -> Option<Type> {
    Some(match of {
        Kind::Untyped => return None,
        Kind::Bool => types::bool(),
        Kind::Int64 => types::int64(),
        Kind::Float32 => types::float32(),
        Kind::Float64 => types::float64(),
        Kind::Numeric => types::numeric(),
        Kind::PgNumeric => types::pg_numeric(),
        Kind::String => types::string(),
        Kind::Bytes => types::bytes(),
        Kind::Date => types::date(),
        Kind::Timestamp => types::timestamp(),
        Kind::Json => types::json(),
        Kind::PgJsonb => types::pg_jsonb(),
        Kind::PgOid => types::pg_oid(),
        Kind::Uuid => types::uuid(),
        Kind::Interval => types::interval(),
        Kind::Proto(name) => types::proto(name.clone()),
        Kind::Enum(name) => types::proto_enum(name.clone()),
        Kind::Array(of) => types::array(kind(of)?),
    })
}

pub(super) fn value(of: SpannerValue) -> Value {
    match of {
        SpannerValue::Null => Value::null(),
        SpannerValue::Bool(v) => Value::from(v),
        SpannerValue::Number(v) => Value::from(v),
        SpannerValue::Text(v) => Value::from(v),
        SpannerValue::List(v) => Value::from(v.into_iter().map(value).collect::<Vec<Value>>()),
    }
}

pub(super) fn row(values: Vec<Value>) -> Result<Row, SpannerError> {
    values.into_iter().map(ours).collect()
}

fn ours(value: Value) -> Result<SpannerValue, SpannerError> {
    Ok(match value.kind() {
        TheirKind::Null => SpannerValue::Null,
        TheirKind::Bool => SpannerValue::Bool(value.as_bool().unwrap_or_default()),
        TheirKind::Number => SpannerValue::Number(value.as_f64().unwrap_or_default()),
        TheirKind::String => SpannerValue::Text(value.into_string().unwrap_or_default()),
        TheirKind::List => {
            let list = value.into_list().map(|l| l.into_values()).unwrap_or_default();
            SpannerValue::List(list.into_iter().map(ours).collect::<Result<_, _>>()?)
        }
        TheirKind::Unknown => {
            return Err(SpannerError::new(
                Code::DataLoss,
                "Spanner sent a value of a kind that the protocol does not have",
            ));
        }
    })
}

pub(super) fn mutation(of: Mutation) -> TheirMutation {
    match of {
        Mutation::Insert(w) => write(TheirMutation::new_insert_builder(&*w.table), w),
        Mutation::Update(w) => write(TheirMutation::new_update_builder(&*w.table), w),
        Mutation::InsertOrUpdate(w) => write(TheirMutation::new_insert_or_update_builder(&*w.table), w),
        Mutation::Replace(w) => write(TheirMutation::new_replace_builder(&*w.table), w),
        Mutation::Delete { table, keys } => {
            let key = |values: Vec<SpannerValue>| Key::new(values.into_iter().map(value).collect());
            let keys = keys.into_iter().fold(KeySet::builder(), |set, values| set.add_key(key(values)));
            TheirMutation::delete(table, keys.build())
        }
        Mutation::DeleteAll { table } => TheirMutation::delete(table, KeySet::all()),
    }
}

fn write(builder: WriteBuilder, write: Write) -> TheirMutation {
    write.values.into_iter().fold(builder, |b, (column, v)| b.set(column).to(value(v))).build()
}

pub(super) fn instant(t: Timestamp) -> Option<Instant> {
    Instant::new(t.seconds(), u32::try_from(t.nanos()).ok()?)
}

pub(super) fn timestamp(t: Instant) -> Timestamp {
    Timestamp::clamp(t.seconds(), t.nanos() as i32)
}
