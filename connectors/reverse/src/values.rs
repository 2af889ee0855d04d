//! What becomes of values that a target refuses: by default it refuses them, loudly.

use std::collections::HashMap;
use std::sync::Arc;

use anabranch_core::transform::{Transform, rewrite};
use anabranch_core::{ChangeBatch, Column, DataType, Result, TableSchema, ValueRef};
use serde::Deserialize;

/// Changes values that the shards' types cannot hold. Every key keeps the value as it is unless it is
/// set: then the sink decides, which stores it exactly or refuses it (see the table of types in the
/// README), and a refused change is treated by `dead_letters.on_rejected`.
///
/// ```toml
/// [[transform]]
/// type = "values"
/// nan = "null"                 # NaN and infinities of numbers
/// nul = "strip"                # the character 0 in text
/// arrays = "json"              # or "join": their elements with commas between, as the template does
/// timestamps = "null"          # those before year 1, after 9999, and infinities
/// seconds_digits = 6           # further digits of the second are cut off
/// ```
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ValuePolicy {
    /// NaN and the infinities of floating-point numbers and decimals.
    pub nan: OrNull,
    /// The character 0 in text, which PostgreSQL does not hold.
    pub nul: Nul,
    /// Arrays.
    pub arrays: Arrays,
    /// Dates and times that MySQL does not hold.
    pub timestamps: OrNull,
    /// How many digits of a second stay, of times and timestamps.
    pub seconds_digits: Option<u32>,
    #[serde(skip)]
    plans: Plans,
}

#[derive(Debug, Clone, Default)]
struct Plans(HashMap<usize, (Arc<TableSchema>, Arc<TableSchema>)>);

/// Keep a value, or make it NULL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrNull {
    /// As it is: the target refuses it if it cannot hold it.
    #[default]
    Refuse,
    /// NULL.
    Null,
}

/// What becomes of the character 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Nul {
    /// As it is.
    #[default]
    Refuse,
    /// It is taken out.
    Strip,
}

/// What becomes of arrays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrays {
    /// As they are.
    #[default]
    Refuse,
    /// A JSON array of texts.
    Json,
    /// Elements with commas between: an element with a comma is refused, for it would become two.
    Join,
}

impl ValuePolicy {
    fn schema(&mut self, schema: &Arc<TableSchema>) -> Arc<TableSchema> {
        let address = Arc::as_ptr(schema).addr();
        if let Some((_, new)) = self.plans.0.get(&address) {
            return Arc::clone(new);
        }
        let to = |column: &Column| match (&column.data_type, self.arrays) {
            (DataType::Array(_), Arrays::Json) => typed(column, DataType::Json),
            (DataType::Array(_), Arrays::Join) => typed(column, DataType::Text { max_chars: None }),
            _ => column.clone(),
        };
        let new = TableSchema { columns: schema.columns.iter().map(to).collect(), ..(**schema).clone() };
        let new = if new == **schema { Arc::clone(schema) } else { Arc::new(new) };
        if self.plans.0.len() >= 4096 {
            self.plans.0.clear();
        }
        self.plans.0.insert(address, (Arc::clone(schema), Arc::clone(&new)));
        new
    }

    /// What the value becomes; `None`: it stays.
    fn value(&self, column: &Column, value: ValueRef<'_>) -> Result<Option<Changed>, String> {
        let number = matches!(column.data_type, DataType::Float32 | DataType::Float64 | DataType::Decimal { .. });
        let timed = matches!(
            column.data_type,
            DataType::Timestamp | DataType::TimestampTz | DataType::Date | DataType::Time | DataType::TimeTz
        );
        let text = match value {
            ValueRef::Float(v) if !v.is_finite() && number && self.nan == OrNull::Null => {
                return Ok(Some(Changed::Null));
            }
            ValueRef::Text(text) => text,
            _ => return Ok(None),
        };
        if number && self.nan == OrNull::Null && matches!(text, "NaN" | "Infinity" | "-Infinity") {
            return Ok(Some(Changed::Null));
        }
        if timed && self.timestamps == OrNull::Null && outside(&column.data_type, text) {
            return Ok(Some(Changed::Null));
        }
        if timed && let Some(digits) = self.seconds_digits {
            return Ok(cut(text, digits as usize).map(Changed::Text));
        }
        if matches!(column.data_type, DataType::Array(_)) && self.arrays != Arrays::Refuse {
            let elements = elements(text).ok_or_else(|| format!("column {}: an array in an array", column.name))?;
            return self.array(column, elements).map(Some);
        }
        if self.nul == Nul::Strip && text.contains('\0') {
            return Ok(Some(Changed::Text(text.replace('\0', ""))));
        }
        Ok(None)
    }

    fn array(&self, column: &Column, elements: Vec<Option<String>>) -> Result<Changed, String> {
        if self.arrays == Arrays::Json {
            return Ok(Changed::Text(serde_json::Value::from(elements).to_string()));
        }
        match elements.iter().flatten().any(|e| e.contains(',')) {
            true => Err(format!("column {}: an element of the array has a comma in it", column.name)),
            false => Ok(Changed::Text(elements.into_iter().flatten().collect::<Vec<_>>().join(","))),
        }
    }
}

enum Changed {
    Null,
    Text(String),
}

fn typed(column: &Column, data_type: DataType) -> Column {
    Column { native: data_type.to_string(), data_type, ..column.clone() }
}

/// Whether MySQL's calendar, years 0001 to 9999, does not have it.
fn outside(data_type: &DataType, text: &str) -> bool {
    if matches!(data_type, DataType::Time | DataType::TimeTz) {
        return false;
    }
    text.ends_with("infinity") || text.ends_with(" BC") || text.split('-').next().is_some_and(|year| year.len() > 4)
}

/// With at most these many digits after the second's point; `None` if it has no more.
fn cut(text: &str, digits: usize) -> Option<String> {
    let point = text.find('.')?;
    let end = text[point + 1..].find(|c: char| !c.is_ascii_digit()).map_or(text.len(), |at| point + 1 + at);
    if end - point - 1 <= digits {
        return None;
    }
    let kept = if digits == 0 { point } else { point + 1 + digits };
    Some(format!("{}{}", &text[..kept], &text[end..]))
}

/// The elements of PostgreSQL's array literal, one level deep.
fn elements(text: &str) -> Option<Vec<Option<String>>> {
    let inner = text.strip_prefix('{')?.strip_suffix('}')?;
    let mut all = Vec::new();
    let mut chars = inner.chars().peekable();
    while chars.peek().is_some() {
        let mut element = String::new();
        if chars.next_if_eq(&'"').is_some() {
            loop {
                match chars.next()? {
                    '"' => break,
                    '\\' => element.push(chars.next()?),
                    c => element.push(c),
                }
            }
            all.push(Some(element));
        } else {
            while let Some(c) = chars.next_if(|c| *c != ',') {
                if c == '{' {
                    return None;
                }
                element.push(c);
            }
            all.push((element != "NULL").then_some(element));
        }
        match chars.next() {
            Some(',') | None => {}
            Some(_) => return None,
        }
    }
    Some(all)
}

impl Transform for ValuePolicy {
    fn apply(&mut self, batch: ChangeBatch) -> Result<ChangeBatch> {
        if batch.is_empty() {
            return Ok(batch);
        }
        let schemas: Vec<_> = batch.schemas().iter().map(|s| self.schema(s)).collect();
        let policy = &*self;
        rewrite(&batch, |change, out| {
            let Some(schema) = schemas.get(change.schema_index()).filter(|_| change.left_out().is_none()) else {
                out.keep(change);
                return Ok(());
            };
            let columns = &change.schema().columns;
            let mut refused = None;
            out.map_rows(change, schema, |row, out| {
                for (column, value) in columns.iter().zip(row.values()) {
                    match policy.value(column, value) {
                        Ok(None) => out.push(value),
                        Ok(Some(Changed::Null)) => out.push(ValueRef::Null),
                        Ok(Some(Changed::Text(text))) => out.push(ValueRef::Text(&text)),
                        Err(reason) => {
                            refused = Some(reason);
                            out.push(value);
                        }
                    }
                }
                Ok(())
            })?;
            if let Some(reason) = refused {
                out.leave_out_current(anabranch_core::LetterClass::Severe, reason);
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> ValuePolicy {
        let arrays = Arrays::Json;
        let (nan, timestamps) = (OrNull::Null, OrNull::Null);
        ValuePolicy { nan, nul: Nul::Strip, arrays, timestamps, seconds_digits: Some(3), ..Default::default() }
    }

    fn became(policy: &ValuePolicy, data_type: DataType, value: &str) -> String {
        match policy.value(&Column::new("c", data_type), ValueRef::Text(value)) {
            Ok(None) => value.to_owned(),
            Ok(Some(Changed::Null)) => "NULL".to_owned(),
            Ok(Some(Changed::Text(text))) => text,
            Err(reason) => format!("refused: {reason}"),
        }
    }

    #[test]
    fn every_policy_changes_only_what_it_is_about() {
        let (text, array) = (DataType::Text { max_chars: None }, DataType::Array(Box::new(DataType::Int64)));
        for (data_type, value, kept, changed) in [
            (DataType::Float64, "NaN", "NaN", "NULL"),
            (DataType::Float64, "1.5", "1.5", "1.5"),
            (text.clone(), "NaN", "NaN", "NaN"),
            (text, "a\0b", "a\0b", "ab"),
            (DataType::TimestampTz, "infinity", "infinity", "NULL"),
            (DataType::TimestampTz, "0001-01-01 00:00:00+00 BC", "0001-01-01 00:00:00+00 BC", "NULL"),
            (DataType::Timestamp, "10000-01-01 00:00:00", "10000-01-01 00:00:00", "NULL"),
            (
                DataType::TimestampTz,
                "2024-01-01 00:00:00.123456+00",
                "2024-01-01 00:00:00.123456+00",
                "2024-01-01 00:00:00.123+00",
            ),
            (DataType::Time, "01:02:03.12", "01:02:03.12", "01:02:03.12"),
            (array.clone(), "{1,NULL,\"a,\\\"b\"}", "{1,NULL,\"a,\\\"b\"}", "[\"1\",null,\"a,\\\"b\"]"),
            (array, "{}", "{}", "[]"),
        ] {
            assert_eq!(became(&ValuePolicy::default(), data_type.clone(), value), kept);
            assert_eq!(became(&policy(), data_type, value), changed, "{value}");
        }
        let join = ValuePolicy { arrays: Arrays::Join, ..ValuePolicy::default() };
        let array = DataType::Array(Box::new(DataType::Int64));
        assert_eq!(became(&join, array.clone(), "{a,NULL,b}"), "a,b");
        assert!(became(&join, array.clone(), "{\"a,b\"}").starts_with("refused: column c: an element"));
        assert!(became(&join, array, "{{1},{2}}").starts_with("refused: column c: an array in an array"));
    }
}
