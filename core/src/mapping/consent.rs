//! What an operator agreed to lose.

use crate::error::{Error, Result};
use crate::model::{Column, TableName};

/// The entries of `[mapping] lossy`: columns, and types, whose lossy contracts are accepted.
///
/// ```
/// use anabranch_core::mapping::preflight::LossyConsent;
/// use anabranch_core::{Column, DataType, TableName};
/// let consent = LossyConsent::parse(&["orders.price".to_owned(), "type:json".to_owned()])?;
/// let orders = TableName::new("public", "orders");
/// assert!(consent.covers(&orders, &Column::new("price", DataType::Float64)));
/// assert!(consent.covers(&orders, &Column::new("extra", DataType::Json)));
/// assert!(!consent.covers(&orders, &Column::new("note", DataType::Text { max_chars: None })));
/// # Ok::<(), anabranch_core::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LossyConsent {
    columns: Vec<String>,
    types: Vec<String>,
}

impl LossyConsent {
    /// From entries of two forms: `table.column`, with the schema in front or without; and
    /// `type:name`, by the source's name of the type or by ours, without its length: `type:numeric`.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config), naming `mapping.lossy`, for anything else.
    pub fn parse(entries: &[String]) -> Result<Self> {
        let mut consent = Self::default();
        for entry in entries {
            match entry.strip_prefix("type:") {
                Some(name) if !name.trim().is_empty() => consent.types.push(base(name)),
                None if entry.split('.').count() > 1 && entry.split('.').all(|part| !part.is_empty()) => {
                    consent.columns.push(entry.clone());
                }
                _ => {
                    let problem = format!("{entry:?} names neither a column nor a type");
                    return Err(
                        Error::config("mapping.lossy", problem).hint("write \"table.column\", or \"type:numeric\"")
                    );
                }
            }
        }
        Ok(consent)
    }

    /// Whether a loss in this column was agreed to.
    pub fn covers(&self, table: &TableName, column: &Column) -> bool {
        let short = format!("{}.{}", table.name, column.name);
        let long = format!("{table}.{}", column.name);
        let types = [base(&column.native), base(&column.data_type.to_string())];
        self.columns.iter().any(|entry| *entry == short || *entry == long)
            || self.types.iter().any(|entry| types.contains(entry))
    }
}

/// A type's name without its length: `numeric` of `NUMERIC(10,2)`; of an array with the brackets.
pub(super) fn base(native: &str) -> String {
    let native = native.trim().to_lowercase();
    match (native.find('('), native.rfind(')')) {
        (Some(open), Some(close)) if open < close => {
            format!("{}{}", native[..open].trim_end(), &native[close + 1..])
        }
        _ => native,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::DataType;

    fn consent(entries: &[&str]) -> Result<LossyConsent> {
        LossyConsent::parse(&entries.iter().map(|e| (*e).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn columns_are_named_with_the_schema_or_without() {
        let (table, column) = (TableName::new("public", "orders"), Column::new("price", DataType::Float64));
        assert!(consent(&["orders.price"]).unwrap().covers(&table, &column));
        assert!(consent(&["public.orders.price"]).unwrap().covers(&table, &column));
        assert!(!consent(&["sales.orders.price", "orders.prices"]).unwrap().covers(&table, &column));
    }

    #[test]
    fn types_are_named_as_the_source_or_we_do() {
        let table = TableName::new("public", "orders");
        let decimal = DataType::Decimal { precision: Some(10), scale: Some(2) };
        let column = Column { native: "numeric(10,2)".to_owned(), ..Column::new("price", decimal) };
        for entry in ["type:numeric", "type:NUMERIC(12,4)", "type:decimal"] {
            assert!(consent(&[entry]).unwrap().covers(&table, &column), "{entry}");
        }
        assert!(!consent(&["type:numeric[]", "type:num"]).unwrap().covers(&table, &column));
        assert_eq!(base("timestamp(3) with time zone"), "timestamp with time zone");
    }

    #[test]
    fn anything_else_is_an_error() {
        for entry in ["price", "type:", "", "orders.", ".price"] {
            let error = consent(&[entry]).unwrap_err();
            assert!(error.to_string().starts_with("mapping.lossy: "), "{error}");
        }
    }
}
