//! The forms in which records go over the wire.
//!
//! | dialect | mode | column |
//! |---|---|---|
//! | GoogleSQL | immutable | `ARRAY<STRUCT<..>>` with one element, of which one of three lists has one element |
//! | PostgreSQL | immutable | `JSONB` with one of three keys |
//! | GoogleSQL | mutable | `PROTO<google.spanner.v1.ChangeStreamRecord>` |
//! | PostgreSQL | mutable | `bytea`, the same message |

mod google;
mod message;
mod postgres;

use googleapis_tonic_google_spanner_v1::google::spanner::v1::struct_type::Field;
use googleapis_tonic_google_spanner_v1::google::spanner::v1::{Type, TypeAnnotationCode, TypeCode};
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use serde_json::Value as Json;

use crate::record::{Entry, Record};
use crate::stream::{Mode, Stream};

/// Which SQL a database speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Dialect {
    /// Spanner's own.
    #[default]
    GoogleSql,
    /// PostgreSQL's.
    PostgreSql,
}

/// A record as the value of the query's one column.
pub(crate) fn value(dialect: Dialect, mode: Mode, token: &str, record: &Record) -> Value {
    if let Entry::Raw(row) = &record.entry {
        // JSON is text in a JSON column.
        return match (dialect, mode, row) {
            (Dialect::PostgreSql, Mode::Immutable, Json::Object(_)) => text(row.to_string()),
            _ => of_json(row),
        };
    }
    match (dialect, mode) {
        (Dialect::GoogleSql, Mode::Immutable) => google::value(record),
        (Dialect::PostgreSql, Mode::Immutable) => text(postgres::json(record).to_string()),
        (_, Mode::MutableKeyRange) => message::value(token, record),
    }
}

/// The query's one column.
pub(crate) fn column(dialect: Dialect, stream: &Stream) -> Field {
    let (name, kind) = match (dialect, stream.mode) {
        (Dialect::GoogleSql, Mode::Immutable) => ("ChangeRecord".to_owned(), google::kind()),
        (Dialect::PostgreSql, Mode::Immutable) => {
            let mut kind = scalar(TypeCode::Json);
            kind.type_annotation = TypeAnnotationCode::PgJsonb.into();
            (format!("read_json_{}", stream.name), kind)
        }
        (Dialect::GoogleSql, Mode::MutableKeyRange) => {
            let mut kind = scalar(TypeCode::Proto);
            kind.proto_type_fqn = "google.spanner.v1.ChangeStreamRecord".to_owned();
            ("ChangeRecord".to_owned(), kind)
        }
        (Dialect::PostgreSql, Mode::MutableKeyRange) => {
            (format!("read_proto_bytes_{}", stream.name), scalar(TypeCode::Bytes))
        }
    };
    Field { name, r#type: Some(kind) }
}

pub(crate) fn scalar(code: TypeCode) -> Type {
    Type { code: code.into(), ..Type::default() }
}

pub(crate) fn of_kind(kind: Kind) -> Value {
    Value { kind: Some(kind) }
}

pub(crate) fn text(text: impl Into<String>) -> Value {
    of_kind(Kind::StringValue(text.into()))
}

pub(crate) fn list(values: Vec<Value>) -> Value {
    of_kind(Kind::ListValue(ListValue { values }))
}

/// JSON as the protocol's value.
pub(crate) fn of_json(json: &Json) -> Value {
    match json {
        Json::Null => of_kind(Kind::NullValue(0)),
        Json::Bool(value) => of_kind(Kind::BoolValue(*value)),
        Json::Number(number) => of_kind(Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN))),
        Json::String(value) => text(value),
        Json::Array(values) => list(values.iter().map(of_json).collect()),
        Json::Object(map) => {
            let fields = map.iter().map(|(name, value)| (name.clone(), of_json(value))).collect();
            of_kind(Kind::StructValue(Struct { fields }))
        }
    }
}
