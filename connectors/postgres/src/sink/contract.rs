//! How faithfully each type is stored: checked before the first row.

use anabranch_core::{Column, Contract, DataType, Fidelity};

use super::native;

use Fidelity::{Exact, Lossy, Unsupported, Widening};

/// How `column` is stored in `existing`, or in the column that we would create.
pub(crate) fn contract(column: &Column, existing: Option<&Column>) -> Contract {
    match existing {
        None => created(column),
        Some(there) => stored_in(column, there),
    }
}

/// The type of a column that we create.
fn created(column: &Column) -> Contract {
    if is_postgres(column) {
        return Contract::new(&column.native, Exact);
    }
    let Some(name) = native::native(&column.data_type) else {
        return Contract::new("text", Widening).note(format!("{} is stored as its text", column.native));
    };
    match &column.data_type {
        DataType::UInt64 => Contract::new(name, Widening).note("PostgreSQL has no unsigned 64-bit type"),
        DataType::Enum { .. } => Contract::new(name, Widening).note("the labels are stored as text, unchecked"),
        _ => Contract::new(name, Exact),
    }
}

/// Whether the column's native type is one of PostgreSQL's. Other engines have names that look alike
/// (MySQL's `timestamp` is an instant); what tells is that name and logical type agree.
fn is_postgres(column: &Column) -> bool {
    let native = column.native.as_str();
    match (native::data_type(native), &column.data_type) {
        (_, DataType::Enum { .. }) => !native.is_empty() && !native.contains('(') && native != "enum",
        (DataType::Other(parsed), DataType::Other(said)) => parsed == *said || !native.contains('('),
        (DataType::Array(a), DataType::Array(b)) => {
            a == *b || matches!((*a, &**b), (DataType::Other(_), DataType::Enum { .. } | DataType::Other(_)))
        }
        // A domain, or another engine's name: created as the type that it is made of.
        (DataType::Other(_), _) => false,
        (parsed, said) => parsed == *said,
    }
}

fn stored_in(column: &Column, there: &Column) -> Contract {
    let (from, to) = (&column.data_type, &there.data_type);
    if same_native(&column.native, &there.native) {
        return Contract::new(&there.native, Exact);
    }
    if let Some(lost) = less_precise(column, there) {
        return Contract::new(&there.native, Lossy).note(lost);
    }
    let (mut fidelity, mut note) = fits(from, to);
    if from == to && *from == DataType::Json && column.native != there.native {
        (fidelity, note) = match there.native.as_str() {
            "jsonb" => (Lossy, "jsonb drops repeated keys, their order, and white space, and refuses \\u0000"),
            _ => (Exact, ""),
        };
    } else if *to == DataType::Json && there.native == "jsonb" && fidelity < Lossy {
        (fidelity, note) = (Lossy, "jsonb drops repeated keys, their order, and white space");
    } else if from == to && matches!(from, DataType::Other(_)) {
        (fidelity, note) = (Exact, "");
    }
    let contract = Contract::new(&there.native, fidelity);
    if note.is_empty() { contract } else { contract.note(note) }
}

/// `public.mood` and `mood` are one type: what a search path hides differs between two databases.
fn same_native(a: &str, b: &str) -> bool {
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let qualified = |name: &str| name.contains('.') && !name.contains('(');
    a == b || (qualified(a) != qualified(b) && last(a) == last(b))
}

/// What is lost where the target's column of a date and time type has fewer digits, or fewer fields,
/// than the source's: [`DataType`] does not tell them.
fn less_precise(column: &Column, there: &Column) -> Option<&'static str> {
    let timed = |t: &DataType| match t {
        DataType::Array(of) => (**of).clone(),
        other => other.clone(),
    };
    match timed(&there.data_type) {
        DataType::Interval => {
            let limited = there.native.trim_end_matches("[]") != "interval" && there.native != column.native;
            limited.then_some("fields and digits that the column leaves out are cut off")
        }
        DataType::Time | DataType::TimeTz | DataType::Timestamp | DataType::TimestampTz => {
            let known = matches!(
                timed(&column.data_type),
                DataType::Time | DataType::TimeTz | DataType::Timestamp | DataType::TimestampTz
            );
            (known && digits(&there.native) < digits(&column.native)).then_some("digits of the second are rounded")
        }
        _ => None,
    }
}

/// The digits of the second of `timestamp(3) without time zone`; 6 if it does not say.
fn digits(native: &str) -> u32 {
    let inside = native.split_once('(').and_then(|(_, rest)| rest.split_once(')'));
    inside.and_then(|(number, _)| number.trim().parse().ok()).unwrap_or(6)
}

/// How values of one type fit into another.
fn fits(from: &DataType, to: &DataType) -> (Fidelity, &'static str) {
    use DataType::*;
    match (from, to) {
        (a, b) if a == b && !matches!(a, Other(_)) => (Exact, ""),
        (Int16, Int32 | Int64) | (Int32, Int64) => (Widening, ""),
        (Int16 | Int32, Float64) | (Int16, Float32) => (Widening, ""),
        (Int16 | Int32 | Int64 | UInt64, Decimal { precision, scale }) => {
            let digits = match from {
                Int16 => 5,
                Int32 => 10,
                Int64 => 19,
                _ => 20,
            };
            let room = precision.is_none_or(|p| i64::from(p) - i64::from(scale.unwrap_or(0)) >= digits);
            if room { (Widening, "") } else { (Exact, "refuses larger numbers") }
        }
        (Int32 | Int64 | UInt64, Int16 | Int32 | Int64) => (Exact, "refuses larger numbers"),
        (Int16 | Int32 | Int64, UInt64) => (Exact, "refuses negative numbers"),
        (Bool, Int16 | Int32 | Int64 | Decimal { .. }) => (Widening, "as 1 and 0"),
        (Int16 | Int32 | Int64, Bool) => (Exact, "refuses all but 0 and 1"),
        (Float32, Float64) => (Widening, "the same digits, as the nearest number of 64 bits"),
        (Float64, Float32) => (Lossy, "digits are lost, large numbers are refused"),
        (Float32 | Float64, Decimal { precision: None, .. }) => (Widening, ""),
        (Decimal { .. } | Int64 | UInt64 | Int32, Float32 | Float64) => (Lossy, "digits are lost"),
        (Float32 | Float64, Decimal { .. }) => (Lossy, "digits are rounded, large numbers are refused"),
        (Decimal { .. }, Decimal { precision: None, .. }) => (Widening, ""),
        (Decimal { precision: Some(p), scale: s }, Decimal { precision: Some(q), scale: t }) => {
            let (s, t) = (s.unwrap_or(0), t.unwrap_or(0));
            let whole = |p: &u32, s: i32| i64::from(*p) - i64::from(s);
            match (t >= s, whole(q, t) >= whole(p, s)) {
                (true, true) => (Widening, ""),
                (true, false) => (Exact, "refuses larger numbers"),
                (false, _) => (Lossy, "digits after the point are rounded; refuses larger numbers"),
            }
        }
        (Decimal { .. }, Decimal { .. }) => (Lossy, "digits after the point are rounded; refuses larger numbers"),
        (Decimal { scale: Some(..=0), .. }, Int16 | Int32 | Int64) => (Exact, "refuses larger numbers, and NaN"),
        (Bytes, Text { .. } | Char { .. }) => (Lossy, "bytes that are not UTF-8 become \\x and hexadecimal digits"),
        (_, Text { max_chars: None }) => (Widening, text_note(from)),
        (Text { max_chars: Some(a) } | Char { chars: a }, Text { max_chars: Some(b) }) if a <= b => (Widening, ""),
        (Text { .. } | Char { .. }, Text { .. }) => (Lossy, "blanks beyond its length are lost; refuses longer texts"),
        (Char { chars: a }, Char { chars: b }) if a <= b => (Widening, ""),
        (Char { .. }, Char { .. }) => (Exact, "refuses longer texts"),
        (Text { .. }, Char { .. }) => (Lossy, "trailing blanks are lost; refuses longer texts"),
        (Enum { labels }, Text { max_chars: Some(n) } | Char { chars: n }) => {
            let fits = |l: &String| l.chars().count() <= *n as usize && !l.ends_with(' ');
            if !labels.is_empty() && labels.iter().all(fits) {
                (Widening, "")
            } else {
                (Lossy, "trailing blanks are lost; refuses longer labels")
            }
        }
        (Enum { labels: a }, Enum { labels: b }) if !a.is_empty() && a.iter().all(|l| b.contains(l)) => (Widening, ""),
        (Text { .. } | Char { .. } | Enum { .. }, Enum { .. }) => (Exact, "refuses other labels"),
        (Date, Timestamp) => (Widening, "as midnight"),
        (Timestamp, TimestampTz) => (Widening, "read as UTC"),
        (TimestampTz, Timestamp) => (Exact, "as UTC, without saying so"),
        (Timestamp | TimestampTz, Date) => (Lossy, "the time of day is lost"),
        (Time, TimeTz) => (Widening, "read as UTC"),
        (TimeTz, Time) => (Lossy, "the zone is lost"),
        (Time, Interval) => (Widening, ""),
        (Text { .. }, Json) => (Exact, "refuses texts that are not JSON"),
        (Bit { length: Some(a), .. }, Bit { length: Some(b), varying: true }) if a <= b => (Widening, ""),
        (Bit { .. }, Bit { length: None, .. }) => (Widening, ""),
        (Bit { .. }, Bit { .. }) => (Exact, "refuses other lengths"),
        (Text { .. } | Char { .. }, Uuid | Other(_)) => (Lossy, "written as the type prints them; refuses other texts"),
        (Array(a), Array(b)) => fits(a, b),
        _ => (Unsupported, "no value of this type fits"),
    }
}

fn text_note(from: &DataType) -> &'static str {
    match from {
        DataType::Text { .. } | DataType::Char { .. } | DataType::Enum { .. } | DataType::Json => "",
        _ => "stored as its text",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(data_type: DataType, native: &str) -> Column {
        Column { native: native.to_owned(), ..Column::new("c", data_type) }
    }

    fn there(native: &str) -> Column {
        column(native::data_type(native), native)
    }

    #[test]
    fn a_postgres_type_is_created_as_it_is() {
        for native in ["numeric(10,2)", "jsonb", "timestamp with time zone", "integer[]", "inet", "tstzrange"] {
            assert_eq!(contract(&there(native), None), Contract::new(native, Exact));
        }
        let positive = column(DataType::Int32, "public.positive");
        assert_eq!(contract(&positive, None), Contract::new("integer", Exact));
        assert_eq!(contract(&positive, Some(&positive)).fidelity, Exact);
        let mood = column(DataType::Enum { labels: vec!["a".into()] }, "public.mood");
        assert_eq!(contract(&mood, None), Contract::new("public.mood", Exact));
    }

    #[test]
    fn another_engines_type_is_created_by_its_meaning() {
        let cases = [
            (DataType::Bool, "tinyint(1)", "boolean"),
            (DataType::TimestampTz, "timestamp", "timestamp with time zone"),
            (DataType::Timestamp, "datetime", "timestamp without time zone"),
            (DataType::Float64, "double", "double precision"),
            (DataType::UInt64, "bigint unsigned", "numeric(20,0)"),
            (DataType::Bytes, "blob", "bytea"),
            (DataType::Enum { labels: vec!["a".into()] }, "enum('a')", "text"),
            (DataType::Int64, "INTEGER", "bigint"),
        ];
        for (data_type, native, expected) in cases {
            assert_eq!(contract(&column(data_type, native), None).native, expected, "{native}");
        }
    }

    #[test]
    fn what_can_lose_something_says_so() {
        let cases = [
            ("integer", "bigint", Widening),
            ("bigint", "integer", Exact),
            ("numeric(10,2)", "numeric(12,2)", Widening),
            ("numeric(10,2)", "numeric(10,1)", Lossy),
            ("numeric(10,2)", "numeric(8,2)", Exact),
            ("numeric", "numeric(10,2)", Lossy),
            ("json", "jsonb", Lossy),
            ("jsonb", "json", Exact),
            ("character varying(10)", "text", Widening),
            ("text", "character varying(10)", Lossy),
            ("integer[]", "bigint[]", Widening),
            ("uuid", "integer", Unsupported),
            ("bytea", "bytea", Exact),
            ("timestamp with time zone", "timestamp without time zone", Exact),
            ("timestamp without time zone", "timestamp(3) without time zone", Lossy),
            ("timestamp(0) without time zone", "timestamp(3) without time zone", Exact),
            ("timestamp without time zone[]", "timestamp(3) without time zone[]", Lossy),
            ("interval", "interval day to second", Lossy),
            ("interval day to second", "interval", Exact),
            ("boolean", "integer", Widening),
            ("text", "jsonb", Lossy),
            ("text", "json", Exact),
            ("inet", "text", Widening),
        ];
        for (from, to, expected) in cases {
            assert_eq!(contract(&there(from), Some(&there(to))).fidelity, expected, "{from} -> {to}");
        }
    }
}
