//! From PostgreSQL's types to logical ones.

use std::collections::{BTreeSet, HashMap};

use anabranch_core::{DataType, Result};
use postgres_types::{Kind, Type};
use tokio_postgres::Client;

use crate::error::classify;

/// What the catalog says about types that are not built in.
#[derive(Debug, Clone, Default)]
pub(crate) struct Types {
    own: HashMap<u32, Own>,
}

#[derive(Debug, Clone)]
struct Own {
    name: String,
    shape: Shape,
}

#[derive(Debug, Clone)]
enum Shape {
    Domain {
        base: u32,
        modifier: i32,
    },
    Enum {
        labels: Vec<String>,
    },
    Array {
        element: u32,
    },
    /// Composites, ranges and base types of extensions.
    Opaque,
}

impl Types {
    /// Looks up those of `oids` that are neither built in nor known yet, and what they are made of.
    pub(crate) async fn load(&mut self, client: &Client, oids: impl IntoIterator<Item = u32>) -> Result<()> {
        let mut wanted: BTreeSet<u32> = oids.into_iter().filter(|oid| self.is_unknown(*oid)).collect();
        while !wanted.is_empty() {
            let asked: Vec<u32> = wanted.iter().copied().collect();
            wanted.clear();
            let rows = client.query(TYPES, &[&asked]).await.map_err(|e| classify(e, "cannot read pg_type"))?;
            for row in rows {
                let (oid, name): (u32, String) = (row.get(0), row.get(1));
                let (kind, element, base): (&str, u32, u32) = (row.get(2), row.get(3), row.get(4));
                let shape = match kind {
                    "d" => Shape::Domain { base, modifier: row.get(5) },
                    "e" => Shape::Enum { labels: row.get(6) },
                    "A" => Shape::Array { element },
                    _ => Shape::Opaque,
                };
                if let Shape::Domain { base: part, .. } | Shape::Array { element: part } = shape
                    && self.is_unknown(part)
                    && part != oid
                {
                    wanted.insert(part);
                }
                self.own.insert(oid, Own { name, shape });
            }
            // A type that was dropped in the meantime stays unknown, and is not asked for again.
            wanted.retain(|oid| self.is_unknown(*oid));
        }
        Ok(())
    }

    fn is_unknown(&self, oid: u32) -> bool {
        Type::from_oid(oid).is_none() && !self.own.contains_key(&oid)
    }

    /// The logical type of a column of this type and modifier.
    pub(crate) fn data_type(&self, oid: u32, modifier: i32) -> DataType {
        self.nested(oid, modifier, 0)
    }

    fn nested(&self, oid: u32, modifier: i32, depth: u32) -> DataType {
        if let Some(built_in) = Type::from_oid(oid) {
            return built_in_type(&built_in, modifier);
        }
        let Some(own) = self.own.get(&oid) else { return DataType::Other(format!("type {oid}")) };
        match &own.shape {
            // Domains over domains end after a few steps; the limit guards against a broken catalog.
            _ if depth > 16 => DataType::Other(own.name.clone()),
            Shape::Domain { base, modifier } => self.nested(*base, *modifier, depth + 1),
            Shape::Enum { labels } => DataType::Enum { labels: labels.clone() },
            Shape::Array { element } => DataType::Array(Box::new(self.nested(*element, modifier, depth + 1))),
            Shape::Opaque => DataType::Other(own.name.clone()),
        }
    }
}

/// `typcategory` A with a variable length tells true arrays from types that only can be subscripted.
const TYPES: &str = "
SELECT t.oid, pg_catalog.format_type(t.oid, NULL),
       CASE WHEN t.typcategory = 'A' AND t.typlen = -1 AND t.typelem <> 0 THEN 'A' ELSE t.typtype::text END,
       t.typelem, t.typbasetype, t.typtypmod,
       ARRAY(SELECT e.enumlabel::text FROM pg_catalog.pg_enum e WHERE e.enumtypid = t.oid ORDER BY e.enumsortorder)
FROM pg_catalog.pg_type t WHERE t.oid = ANY ($1)";

fn built_in_type(built_in: &Type, modifier: i32) -> DataType {
    if let Kind::Array(element) = built_in.kind() {
        return match *built_in {
            // Printed without braces.
            Type::INT2_VECTOR | Type::OID_VECTOR => DataType::Other(built_in.name().to_owned()),
            _ => DataType::Array(Box::new(built_in_type(element, modifier))),
        };
    }
    // Modifiers of character types count the 4 bytes of a length word.
    let length = modifier.checked_sub(4).and_then(|length| u32::try_from(length).ok());
    match *built_in {
        Type::BOOL => DataType::Bool,
        Type::INT2 => DataType::Int16,
        Type::INT4 => DataType::Int32,
        Type::INT8 | Type::OID => DataType::Int64,
        Type::FLOAT4 => DataType::Float32,
        Type::FLOAT8 => DataType::Float64,
        Type::NUMERIC => match length {
            // 16 bits of precision, then 11 bits of signed scale.
            Some(packed) => DataType::Decimal {
                precision: Some(packed >> 16),
                scale: Some((((packed & 0x7ff) ^ 0x400) as i32) - 0x400),
            },
            None => DataType::Decimal { precision: None, scale: None },
        },
        Type::TEXT => DataType::Text { max_chars: None },
        Type::VARCHAR => DataType::Text { max_chars: length },
        // 63 bytes are at most 63 characters.
        Type::NAME => DataType::Text { max_chars: Some(63) },
        Type::BPCHAR => match length {
            Some(chars) => DataType::Char { chars },
            None => DataType::Text { max_chars: None },
        },
        Type::BYTEA => DataType::Bytes,
        Type::DATE => DataType::Date,
        Type::TIME => DataType::Time,
        Type::TIMETZ => DataType::TimeTz,
        Type::TIMESTAMP => DataType::Timestamp,
        Type::TIMESTAMPTZ => DataType::TimestampTz,
        Type::INTERVAL => DataType::Interval,
        Type::UUID => DataType::Uuid,
        Type::JSON | Type::JSONB => DataType::Json,
        Type::BIT => DataType::Bit { length: u32::try_from(modifier).ok().or(Some(1)), varying: false },
        Type::VARBIT => DataType::Bit { length: u32::try_from(modifier).ok(), varying: true },
        _ => DataType::Other(built_in.name().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modifiers_are_unpacked() {
        let types = Types::default();
        let packed = |precision: i32, scale: i32| ((precision << 16) | (scale & 0x7ff)) + 4;
        for (oid, modifier, text) in [
            (1700, packed(10, 2), "decimal(10,2)"),
            (1700, packed(3, -2), "decimal(3,-2)"),
            (1700, -1, "decimal"),
            (1043, 24, "text(20)"),
            (1043, -1, "text"),
            // What no server sends.
            (1043, i32::MIN, "text"),
            (1042, 9, "char(5)"),
            (1560, 8, "bit(8)"),
            (1562, -1, "varbit"),
            (1015, 24, "text(20)[]"),
            (869, -1, "inet"),
            (16_999_999, -1, "type 16999999"),
        ] {
            assert_eq!(types.data_type(oid, modifier).to_string(), text);
        }
    }

    #[test]
    fn own_types_are_followed_to_their_base() {
        let own = |name: &str, shape| Own { name: name.to_owned(), shape };
        let types = Types {
            own: HashMap::from([
                (20_001, own("public.price", Shape::Domain { base: 1700, modifier: (8 << 16 | 3) + 4 })),
                (20_002, own("public.price[]", Shape::Array { element: 20_001 })),
                (20_003, own("public.circle", Shape::Domain { base: 20_003, modifier: -1 })),
                (20_004, own("public.mood", Shape::Enum { labels: vec!["sad".into()] })),
            ]),
        };
        assert_eq!(types.data_type(20_002, -1).to_string(), "decimal(8,3)[]");
        assert_eq!(types.data_type(20_003, -1), DataType::Other("public.circle".into()));
        assert_eq!(types.data_type(20_004, -1), DataType::Enum { labels: vec!["sad".into()] });
    }
}
