//! Which shard of the target a change goes to.

use std::fmt;
use std::sync::Arc;

use super::Transform;
use super::pattern::{self, TablePattern};
use crate::error::{Error, Result};
use crate::model::{ChangeBatch, ChangeRef, Op, RowRef, ValueRef};

/// Sets the shard of changes.
///
/// A change must tell its shard, a delete too: shard by a column of the key, or let the source send
/// full old rows. A row must stay in its shard. A change that does not, or for which a function gives
/// [`Rejected`](crate::ErrorKind::Rejected), is left out as severe: the pipeline's policy decides.
///
/// ```
/// use anabranch_core::transform::Shard;
/// let by_column = Shard::column(["public.orders"], "region");
/// let by_table = Shard::by(|change| Ok(change.table().map(|table| table.name.name.clone())));
/// # let _ = (by_column, by_table);
/// ```
pub struct Shard {
    tables: Vec<TablePattern>,
    by: By,
}

enum By {
    Constant(Arc<str>),
    Column(String),
    Custom(Choose),
}

type Choose = Box<dyn FnMut(ChangeRef<'_>) -> Result<Option<String>> + Send>;

impl Shard {
    /// All changes of these tables go to the shard `name`.
    pub fn constant<T: Into<TablePattern>>(tables: impl IntoIterator<Item = T>, name: impl Into<Arc<str>>) -> Self {
        Self { tables: tables.into_iter().map(Into::into).collect(), by: By::Constant(name.into()) }
    }

    /// The value of this column, as text, is the shard.
    pub fn column<T: Into<TablePattern>>(tables: impl IntoIterator<Item = T>, column: impl Into<String>) -> Self {
        Self { tables: tables.into_iter().map(Into::into).collect(), by: By::Column(column.into()) }
    }

    /// `choose` gives the shard; `None` leaves it as it is. It must give the same for the same change.
    pub fn by(choose: impl FnMut(ChangeRef<'_>) -> Result<Option<String>> + Send + 'static) -> Self {
        Self { tables: vec!["*".into()], by: By::Custom(Box::new(choose)) }
    }
}

impl Transform for Shard {
    fn apply(&mut self, batch: ChangeBatch) -> Result<ChangeBatch> {
        let Self { tables, by } = self;
        let mut last: Option<Arc<str>> = None;
        batch.with_shards(|change| {
            let Some(schema) = change.table().filter(|s| pattern::any(tables, &s.name)) else { return Ok(None) };
            let chosen = match by {
                By::Constant(name) => return Ok(Some(Arc::clone(name))),
                By::Column(column) => {
                    let missing =
                        || Error::config("transform.shard.column", format!("{} has no column {column}", schema.name));
                    of_column(change, schema.index_of(column).ok_or_else(missing)?)?
                }
                By::Custom(choose) => choose(change)?,
            };
            // Neighbours are often of one shard.
            if last.as_deref() != chosen.as_deref() {
                last = chosen.map(Arc::from);
            }
            Ok(last.clone())
        })
    }

    fn digest(&self) -> Option<String> {
        match &self.by {
            By::Constant(name) => Some(format!("shard {:?} {name:?}", self.tables)),
            By::Column(column) => Some(format!("shard {:?} by {column:?}", self.tables)),
            By::Custom(_) => None,
        }
    }
}

/// The shard that a change's rows name; `None` for a change without rows.
fn of_column(change: ChangeRef<'_>, column: usize) -> Result<Option<String>> {
    if matches!(change.op(), Op::Truncate(_) | Op::Schema | Op::Message) {
        return Ok(None);
    }
    let schema = change.schema();
    let name = &schema.columns[column].name;
    let of = |row: RowRef<'_>| text(row.get(column));
    let (old, new) = (change.old_row().and_then(of), change.new_row().and_then(of));
    if let (Some(old), Some(ValueRef::Null)) = (&old, change.new_row().map(|row| row.get(column))) {
        let moved = format!("a row of {} moves from shard {old} to none: {name} is NULL", schema.name);
        return Err(Error::rejected(moved).hint("a row must stay in its shard"));
    }
    match (old, new) {
        (Some(old), Some(new)) if old != new => {
            let moved = format!("a row of {} moves from shard {old} to {new}", schema.name);
            Err(Error::rejected(moved).hint("a row must stay in its shard"))
        }
        (Some(shard), _) | (_, Some(shard)) => Ok(Some(shard)),
        (None, None) => {
            let unknown =
                format!("a change of {} does not tell its shard: {name} is NULL or was not sent", schema.name);
            Err(Error::rejected(unknown).hint("shard by a column of the key, or let the source send full old rows"))
        }
    }
}

fn text(value: ValueRef<'_>) -> Option<String> {
    match value {
        ValueRef::Unchanged | ValueRef::Null => None,
        ValueRef::Bool(v) => Some(if v { "t" } else { "f" }.to_owned()),
        ValueRef::Int(v) => Some(v.to_string()),
        ValueRef::Float(v) => Some(v.to_string()),
        ValueRef::Text(v) => Some(v.to_owned()),
        ValueRef::Bytes(v) => Some(v.iter().fold("\\x".to_owned(), |text, byte| text + &format!("{byte:02x}"))),
    }
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by: &dyn fmt::Debug = match &self.by {
            By::Constant(name) => name,
            By::Column(column) => column,
            By::Custom(_) => &"custom",
        };
        f.debug_struct("Shard").field("tables", &self.tables).field("by", by).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letter::LetterClass;
    use crate::error::ErrorKind;
    use crate::model::OldImage;
    use crate::transform::testing::{Plain, batch_of, orders, row};

    fn shards(shard: &mut Shard, changes: &[Plain]) -> Result<Vec<Option<String>>> {
        let out = shard.apply(batch_of(&Arc::new(orders()), changes))?;
        Ok(out.changes().map(|c| c.shard().map(|s| s.to_string())).collect())
    }

    #[test]
    fn by_column_constant_and_function() {
        let full = Some((OldImage::Full, row(["1", "us", "2", "-"])));
        let changes =
            [(Op::Insert, None, Some(row(["1", "eu", "2", "-"]))), (Op::Delete, full, None), (Op::Schema, None, None)];
        let eu_us = [Some("eu".to_owned()), Some("us".to_owned()), None];
        assert_eq!(shards(&mut Shard::column(["orders"], "region"), &changes).unwrap(), eu_us);
        assert_eq!(shards(&mut Shard::column(["other"], "nope"), &changes).unwrap(), [None, None, None]);
        assert_eq!(shards(&mut Shard::constant(["*"], "a"), &changes).unwrap(), vec![Some("a".to_owned()); 3]);
        let mut by = Shard::by(|change| Ok((change.op() == Op::Insert).then(|| change.sequence().to_string())));
        assert_eq!(shards(&mut by, &changes).unwrap(), [Some("1".to_owned()), None, None]);
    }

    #[test]
    fn a_change_that_hides_or_changes_its_shard_is_left_out_as_severe() {
        let key = Some((OldImage::Key, row(["1", "?", "?", "?"])));
        let full = Some((OldImage::Full, row(["1", "us", "2", "-"])));
        let to = |region| (Op::Update, full.clone(), Some(row(["1", region, "2", "-"])));
        for change in [(Op::Delete, key, None), to("eu"), to("-")] {
            let out = Shard::column(["*"], "region").apply(batch_of(&Arc::new(orders()), &[change])).unwrap();
            assert_eq!(out.change(0).left_out().unwrap().class, LetterClass::Severe);
        }
        let error = shards(&mut Shard::column(["*"], "nope"), &[(Op::Schema, None, None)]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
    }
}
