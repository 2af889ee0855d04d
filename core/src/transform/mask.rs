//! Values that must not leave the source.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use serde::Deserialize;
use sha2::Sha256;

use super::Transform;
use super::pattern::{self, TablePattern};
use super::rewrite::rewrite;
use super::schemas::Schemas;
use crate::error::{Error, Result};
use crate::model::{ChangeBatch, Column, DataType, RowRef, TableSchema, ValueRef};
use crate::net_effect::plain_number;
use crate::secret::Secret;

/// Replaces the values of columns, in old rows and in new ones. NULL stays NULL, and a column that
/// was not sent stays so.
///
/// ```
/// use anabranch_core::transform::{Mask, MaskRule};
/// let mask = Mask::new(
///     ["public.customers"],
///     [
///         ("email".to_owned(), MaskRule::Sha256 { key: "env:PATH".into() }),
///         ("phone".to_owned(), MaskRule::Constant { value: "-".to_owned() }),
///     ],
/// )?;
/// # let _ = mask;
/// # Ok::<(), anabranch_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Mask {
    tables: Vec<TablePattern>,
    columns: BTreeMap<String, Rule>,
    plans: Schemas<Option<Plan>>,
}

/// What a value becomes.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case", tag = "with", deny_unknown_fields)]
pub enum MaskRule {
    /// NULL.
    Null {},
    /// The same text everywhere.
    Constant {
        /// The canonical text of the column's type.
        value: String,
    },
    /// HMAC-SHA-256 of the canonical text, as 64 hexadecimal digits: equal values stay equal, and
    /// keys stay keys. The column becomes a text column.
    Sha256 {
        /// The key of the HMAC. Whoever has it can test guesses.
        key: Secret,
    },
}

#[derive(Clone)]
enum Rule {
    Null,
    Constant(String),
    Sha256(Hmac<Sha256>),
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Null => "Null",
            Self::Constant(_) => "Constant",
            Self::Sha256(_) => "Sha256",
        })
    }
}

/// What becomes of one table.
#[derive(Debug)]
struct Plan {
    old: Arc<TableSchema>,
    new: Arc<TableSchema>,
    /// For each column its rule.
    rules: Vec<Option<Rule>>,
}

impl Mask {
    /// Masks these columns of these tables.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) if a key cannot be read.
    pub fn new<T: Into<TablePattern>>(
        tables: impl IntoIterator<Item = T>,
        columns: impl IntoIterator<Item = (String, MaskRule)>,
    ) -> Result<Self> {
        let mut rules = BTreeMap::new();
        for (column, rule) in columns {
            let rule = match rule {
                MaskRule::Null {} => Rule::Null,
                MaskRule::Constant { value } => Rule::Constant(value),
                MaskRule::Sha256 { key } => {
                    let name = format!("transform.mask.columns.{column}.key");
                    let key = key.resolve(&name)?;
                    if key.expose().is_empty() {
                        return Err(Error::config(name, "is empty"));
                    }
                    let hmac = Hmac::new_from_slice(key.expose().as_bytes());
                    Rule::Sha256(hmac.map_err(|e| Error::config(name, "cannot be used").because(e))?)
                }
            };
            rules.insert(column, rule);
        }
        let tables = tables.into_iter().map(Into::into).collect();
        Ok(Self { tables, columns: rules, plans: Schemas::default() })
    }
}

fn plan(tables: &[TablePattern], columns: &BTreeMap<String, Rule>, schema: &Arc<TableSchema>) -> Result<Option<Plan>> {
    if !pattern::any(tables, &schema.name) {
        return Ok(None);
    }
    let refuse = |column: &str, problem: &str| {
        Error::config(format!("transform.mask.columns.{column}"), format!("{} {problem}", schema.name))
    };
    let exact = tables.iter().any(|p| p.is_exact() && p.matches(&schema.name));
    let mut new = TableSchema::clone(schema);
    let mut rules = vec![None; schema.columns.len()];
    for (name, rule) in columns {
        let Some(at) = schema.index_of(name) else {
            if exact {
                return Err(refuse(name, "has no such column"));
            }
            continue;
        };
        let column = &mut new.columns[at];
        match rule {
            Rule::Sha256(_) => {
                let masked = Column::new(name.as_str(), DataType::Text { max_chars: Some(64) });
                *column = Column { nullable: column.nullable, generated: column.generated, ..masked };
            }
            _ if schema.is_key(at) => {
                return Err(refuse(name, "has it in its key: rows would become one").hint("mask it with sha256"));
            }
            Rule::Null if !column.nullable => {
                return Err(refuse(name, "has it NOT NULL").hint("mask it with a constant"));
            }
            Rule::Null | Rule::Constant(_) => {}
        }
        rules[at] = Some(rule.clone());
    }
    let changed = rules.iter().any(Option::is_some);
    Ok(changed.then(|| Plan { old: Arc::clone(schema), new: Arc::new(new), rules }))
}

impl Plan {
    fn mask(&self, row: RowRef<'_>, mut push: impl FnMut(ValueRef<'_>)) {
        for (at, (value, rule)) in row.values().zip(&self.rules).enumerate() {
            match (rule, value) {
                (None, value) | (Some(_), value @ (ValueRef::Unchanged | ValueRef::Null)) => push(value),
                (Some(Rule::Null), _) => push(ValueRef::Null),
                (Some(Rule::Constant(text)), _) => push(ValueRef::Text(text)),
                (Some(Rule::Sha256(hmac)), value) => {
                    let digest = hash(hmac.clone(), &self.old.columns[at].data_type, value);
                    push(ValueRef::Text(&digest));
                }
            }
        }
    }
}

/// A rule of a column, without its secret: what stands there for it is what a text becomes by it.
fn told((column, rule): (&String, &Rule)) -> String {
    let settings = match rule {
        Rule::Null => "null".to_owned(),
        Rule::Constant(text) => format!("{text:?}"),
        Rule::Sha256(hmac) => hash(hmac.clone(), &DataType::Text { max_chars: None }, ValueRef::Text("anabranch")),
    };
    format!("{column:?}: {settings} ")
}

/// Of the canonical text, so that a typed value and its text give the same.
fn hash(mut hmac: Hmac<Sha256>, data_type: &DataType, value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Unchanged | ValueRef::Null => {}
        ValueRef::Bool(v) => hmac.update(if v { b"t" } else { b"f" }),
        ValueRef::Int(v) => hmac.update(v.to_string().as_bytes()),
        ValueRef::Float(v) => hmac.update(v.to_string().as_bytes()),
        ValueRef::Text(v) => hmac.update(plain_number(data_type, v).as_bytes()),
        ValueRef::Bytes(v) => {
            hmac.update(b"\\x");
            v.iter().for_each(|byte| hmac.update(format!("{byte:02x}").as_bytes()));
        }
    }
    hmac.finalize().into_bytes().iter().fold(String::with_capacity(64), |text, byte| text + &format!("{byte:02x}"))
}

impl Transform for Mask {
    fn apply(&mut self, batch: ChangeBatch) -> Result<ChangeBatch> {
        let Self { tables, columns, plans } = self;
        let of_batch = batch.schemas().iter().map(|s| plans.get(s, |s| plan(tables, columns, s)));
        let of_batch: Vec<_> = of_batch.collect::<Result<_>>()?;
        if of_batch.iter().all(|plan| plan.is_none()) {
            return Ok(batch);
        }
        rewrite(&batch, |change, out| match of_batch.get(change.schema_index()).map(|plan| &**plan) {
            Some(Some(plan)) => out.map_rows(change, &plan.new, |row, out| {
                plan.mask(row, |value| out.push(value));
                Ok(())
            }),
            _ => {
                out.keep(change);
                Ok(())
            }
        })
    }

    /// A key is masked by its hash alone.
    fn keeps_keys(&self) -> bool {
        true
    }

    fn digest(&self) -> Option<String> {
        Some(format!("mask {:?} {}", self.tables, self.columns.iter().map(told).collect::<String>()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::model::{OldImage, Op, Value};
    use crate::transform::testing::{batch_of, orders, plain, row};

    fn mask(column: &str, rule: MaskRule) -> Mask {
        Mask::new(["public.orders"], [(column.to_owned(), rule)]).unwrap()
    }

    fn sha256() -> MaskRule {
        MaskRule::Sha256 { key: "key".into() }
    }

    #[test]
    fn the_hash_is_hmac_sha256_and_keys_stay_keys() {
        // The well-known example of HMAC-SHA-256: key "key".
        let fox = "The quick brown fox jumps over the lazy dog";
        let schema = Arc::new(orders());
        let out =
            mask("note", sha256()).apply(batch_of(&schema, &[(Op::Insert, None, Some(row(["1", "-", "?", fox])))]));
        let expected = "f7bc83f430538424b13298e6aa6fb143ef4d59a14946175997479dbc2d1a3cd8";
        assert_eq!(plain(&out.unwrap())[0].2, Some(row(["1", "-", "?", expected])));

        let mut typed = row(["1", "-", "-", "-"]);
        typed[0] = Value::Int(1);
        let key = Some((OldImage::Key, row(["1", "?", "?", "?"])));
        let out =
            mask("id", sha256()).apply(batch_of(&schema, &[(Op::Insert, None, Some(typed)), (Op::Delete, key, None)]));
        let out = out.unwrap();
        assert_eq!(out.change(0).new_row().unwrap().get(0), out.change(1).old_row().unwrap().get(0));
        assert_eq!(out.change(0).schema().columns[0].data_type, DataType::Text { max_chars: Some(64) });
    }

    #[test]
    fn the_digest_tells_secrets_apart_and_does_not_show_them() {
        let with = |key: &str| mask("note", MaskRule::Sha256 { key: key.into() }).digest().unwrap();
        assert_eq!(with("hunter2"), with("hunter2"));
        assert_ne!(with("hunter2"), with("hunter3"));
        assert!(!with("hunter2").contains("hunter2"));
        let constant = |value: &str| mask("note", MaskRule::Constant { value: value.to_owned() }).digest();
        assert_ne!(constant("-"), constant("x"));
    }

    #[test]
    fn null_and_unsent_values_stay() {
        let schema = Arc::new(orders());
        let rule = MaskRule::Constant { value: "x".to_owned() };
        let changes = ["secret", "-", "?"].map(|note| (Op::Insert, None, Some(row(["1", "eu", "2", note]))));
        let out = mask("note", rule).apply(batch_of(&schema, &changes)).unwrap();
        let notes: Vec<_> = plain(&out).into_iter().map(|(_, _, new)| new.unwrap()[3].clone()).collect();
        assert_eq!(notes, ["x".into(), Value::Null, Value::Unchanged]);
    }

    #[test]
    fn what_would_lose_rows_is_refused() {
        let mut schema = orders();
        schema.columns[3].nullable = false;
        for (column, rule) in [("id", MaskRule::Null {}), ("note", MaskRule::Null {}), ("nope", sha256())] {
            let error =
                mask(column, rule).apply(batch_of(&Arc::new(schema.clone()), &[(Op::Schema, None, None)])).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
        }
        assert!(Mask::new(["*"], [("a".to_owned(), MaskRule::Sha256 { key: "".into() })]).is_err());
    }
}
