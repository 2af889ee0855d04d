//! A column's type in the target, as the information schema writes it.

use anabranch_core::DataType;

use crate::client::Kind;

/// A type, with its limit in characters or bytes if it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Native {
    pub(crate) kind: Kind,
    pub(crate) limit: Option<u32>,
}

impl Native {
    /// From `spanner_type`; `None` for a type that nothing can be written to.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if let Some(of) = text.strip_suffix("[]") {
            return Some(Self { kind: Kind::Array(Box::new(Self::parse(of)?.kind)), limit: None });
        }
        if let Some(of) = text.strip_prefix("ARRAY<") {
            let of = of.split('>').next().unwrap_or(of);
            return Some(Self { kind: Kind::Array(Box::new(Self::parse(of)?.kind)), limit: None });
        }
        let (name, limit) = match text.split_once('(') {
            Some((name, limit)) => (name, limit.trim_end_matches(')').parse().ok()),
            None => (text, None),
        };
        let kind = match name.trim() {
            "BOOL" | "boolean" => Kind::Bool,
            "INT64" | "bigint" => Kind::Int64,
            "FLOAT32" | "real" => Kind::Float32,
            "FLOAT64" | "double precision" => Kind::Float64,
            "NUMERIC" => Kind::Numeric,
            "numeric" => Kind::PgNumeric,
            "STRING" | "character varying" | "text" => Kind::String,
            "BYTES" | "bytea" => Kind::Bytes,
            "DATE" | "date" => Kind::Date,
            "TIMESTAMP" | "timestamp with time zone" | "spanner.commit_timestamp" => Kind::Timestamp,
            "JSON" => Kind::Json,
            "jsonb" => Kind::PgJsonb,
            "UUID" | "uuid" => Kind::Uuid,
            _ => return None,
        };
        Some(Self { kind, limit })
    }

    /// The nearest logical type, for people.
    pub(crate) fn data_type(&self) -> DataType {
        of_kind(&self.kind, self.limit)
    }
}

fn of_kind(kind: &Kind, limit: Option<u32>) -> DataType {
    match kind {
        Kind::Bool => DataType::Bool,
        Kind::Int64 => DataType::Int64,
        Kind::Float32 => DataType::Float32,
        Kind::Float64 => DataType::Float64,
        Kind::Numeric => DataType::Decimal { precision: Some(38), scale: Some(9) },
        Kind::PgNumeric => DataType::Decimal { precision: None, scale: None },
        Kind::Bytes => DataType::Bytes,
        Kind::Date => DataType::Date,
        Kind::Timestamp => DataType::TimestampTz,
        Kind::Json | Kind::PgJsonb => DataType::Json,
        Kind::Uuid => DataType::Uuid,
        Kind::Array(of) => DataType::Array(Box::new(of_kind(of, None))),
        _ => DataType::Text { max_chars: limit },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_of_both_dialects() {
        let cases = [
            ("STRING(36)", "text(36)"),
            ("STRING(MAX)", "text"),
            ("character varying(36)", "text(36)"),
            ("ARRAY<STRING(36)>", "text[]"),
            ("character varying[]", "text[]"),
            ("numeric", "decimal"),
            ("NUMERIC", "decimal(38,9)"),
            ("timestamp with time zone", "timestamptz"),
        ];
        for (native, expected) in cases {
            assert_eq!(Native::parse(native).unwrap().data_type().to_string(), expected, "{native}");
        }
        for nothing in ["TOKENLIST", "PROTO<a.B>", "ARRAY<TOKENLIST>"] {
            assert_eq!(Native::parse(nothing), None);
        }
    }
}
