//! PostgreSQL's names of types, and ours.

use anabranch_core::DataType;

/// The logical type of a type as `format_type` writes it. What is not built in is [`DataType::Other`].
pub(crate) fn data_type(native: &str) -> DataType {
    if let Some(element) = native.strip_suffix("[]") {
        return DataType::Array(Box::new(data_type(element)));
    }
    let (name, arguments) = split(native);
    let first = arguments.first().copied();
    let length = || first.and_then(|n| u32::try_from(n).ok());
    match name.as_str() {
        "boolean" => DataType::Bool,
        "smallint" => DataType::Int16,
        "integer" => DataType::Int32,
        "bigint" => DataType::Int64,
        "real" => DataType::Float32,
        "double precision" => DataType::Float64,
        "numeric" => DataType::Decimal {
            precision: length(),
            scale: first.map(|_| arguments.get(1).copied().unwrap_or(0) as i32),
        },
        "text" => DataType::Text { max_chars: None },
        "character varying" | "varchar" => DataType::Text { max_chars: length() },
        "bpchar" => DataType::Text { max_chars: None },
        "character" | "char" => DataType::Char { chars: length().unwrap_or(1) },
        "bytea" => DataType::Bytes,
        "date" => DataType::Date,
        "time without time zone" | "time" => DataType::Time,
        "time with time zone" => DataType::TimeTz,
        "timestamp without time zone" | "timestamp" => DataType::Timestamp,
        "timestamp with time zone" | "timestamptz" => DataType::TimestampTz,
        // With its fields, if it is limited to some: `interval day to second`.
        name if name == "interval" || name.starts_with("interval ") => DataType::Interval,
        "uuid" => DataType::Uuid,
        "json" | "jsonb" => DataType::Json,
        "bit" => DataType::Bit { length: Some(length().unwrap_or(1)), varying: false },
        "bit varying" | "varbit" => DataType::Bit { length: length(), varying: true },
        _ => DataType::Other(native.to_owned()),
    }
}

/// `time(3) without time zone` is `time without time zone` and `[3]`.
fn split(native: &str) -> (String, Vec<i64>) {
    let Some((head, rest)) = native.split_once('(') else { return (native.to_owned(), Vec::new()) };
    let Some((arguments, tail)) = rest.split_once(')') else { return (native.to_owned(), Vec::new()) };
    let numbers: Option<Vec<i64>> = arguments.split(',').map(|n| n.trim().parse().ok()).collect();
    match numbers {
        Some(numbers) => (format!("{}{tail}", head.trim_end()), numbers),
        None => (native.to_owned(), Vec::new()),
    }
}

/// The type that holds every value of `data_type`, for a table that we create. `None`: there is none.
pub(crate) fn native(data_type: &DataType) -> Option<String> {
    Some(match data_type {
        DataType::Bool => "boolean".into(),
        DataType::Int16 => "smallint".into(),
        DataType::Int32 => "integer".into(),
        DataType::Int64 => "bigint".into(),
        DataType::UInt64 => "numeric(20,0)".into(),
        DataType::Float32 => "real".into(),
        DataType::Float64 => "double precision".into(),
        // PostgreSQL declares up to 1000 digits; without a limit it holds more than any other engine.
        DataType::Decimal { precision: Some(p @ 1..=1000), scale } => format!("numeric({p},{})", scale.unwrap_or(0)),
        DataType::Decimal { .. } => "numeric".into(),
        DataType::Text { max_chars: Some(n @ 1..=10_485_760) } => format!("character varying({n})"),
        DataType::Text { .. } => "text".into(),
        DataType::Char { chars: n @ 1..=10_485_760 } => format!("character({n})"),
        DataType::Char { .. } | DataType::Enum { .. } => "text".into(),
        DataType::Bytes => "bytea".into(),
        DataType::Date => "date".into(),
        DataType::Time => "time without time zone".into(),
        DataType::TimeTz => "time with time zone".into(),
        DataType::Timestamp => "timestamp without time zone".into(),
        DataType::TimestampTz => "timestamp with time zone".into(),
        DataType::Interval => "interval".into(),
        DataType::Uuid => "uuid".into(),
        // `json` keeps the text as it is; `jsonb` would drop repeated keys and order.
        DataType::Json => "json".into(),
        DataType::Bit { length: Some(n), varying: false } => format!("bit({n})"),
        DataType::Bit { length: Some(n), varying: true } => format!("bit varying({n})"),
        DataType::Bit { .. } => "bit varying".into(),
        DataType::Array(of) => format!("{}[]", native(of)?),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_native_type_reads_back() {
        let types = [
            "boolean",
            "smallint",
            "integer",
            "bigint",
            "real",
            "double precision",
            "numeric",
            "numeric(10,2)",
            "text",
            "character varying(20)",
            "character(5)",
            "bytea",
            "date",
            "time without time zone",
            "time with time zone",
            "timestamp without time zone",
            "timestamp with time zone",
            "interval",
            "uuid",
            "json",
            "bit(8)",
            "bit varying(9)",
            "bit varying",
            "integer[]",
            "numeric(5,1)[]",
        ];
        for name in types {
            assert_eq!(native(&data_type(name)).as_deref(), Some(name), "{name}");
        }
        assert_eq!(data_type("time(3) without time zone"), DataType::Time);
        assert_eq!(data_type("numeric(5,-2)"), DataType::Decimal { precision: Some(5), scale: Some(-2) });
        assert_eq!(data_type("public.\"odd (name)\""), DataType::Other("public.\"odd (name)\"".into()));
        assert_eq!(data_type("tinyint(1)"), DataType::Other("tinyint(1)".into()));
    }
}
