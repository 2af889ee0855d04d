//! Gives tables and columns the names that they have in the shards, and each change its shard.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use anabranch_core::transform::{Rewriter, Transform, rewrite};
use anabranch_core::{
    ChangeBatch, ChangeRef, Error, LetterClass, Op, Result, RowRef, TableName, TableSchema, ValueRef,
};

use crate::{overrides, session};

/// The column that the migration tool names a row's shard in.
pub(crate) const SHARD_COLUMN: &str = "migration_shard_id";

/// What becomes of each table.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rules {
    /// Every table that is known, by its name at the source; `None`: it has no counterpart. Where this
    /// is set, a table that is not here is left out.
    pub(crate) tables: Option<BTreeMap<String, Option<TableRule>>>,
    /// Tables that get another name; all others keep theirs.
    pub(crate) renamed: BTreeMap<String, TableRule>,
}

#[derive(Debug, Clone)]
pub(crate) struct TableRule {
    pub(crate) schema: Option<String>,
    pub(crate) name: String,
    pub(crate) columns: Columns,
    /// The names, in the shard, of the key. `None`: the source's own.
    pub(crate) key: Option<Vec<String>>,
    /// The source's column that names the shard.
    pub(crate) shard: Option<String>,
}

#[derive(Debug, Clone)]
pub(crate) enum Columns {
    /// All that are known; `None`: the shard does not have it.
    Listed(BTreeMap<String, Option<String>>),
    /// Those with another name; all others keep theirs.
    Renamed(BTreeMap<String, String>),
}

/// A transform from the source's tables and columns to those of the shards.
///
/// A table without a counterpart is left out, counted as skipped. A column without one (a synthetic
/// key, the shard's own name) is dropped. A column that the mapping does not know at all is an error:
/// its values would be lost. A change that does not name its shard, or the key that the shard finds
/// its row by, is left out as severe.
///
/// A shard that an earlier transform has set stays (see
/// [`Shard::by`](anabranch_core::transform::Shard::by)).
#[derive(Debug)]
pub struct Mapping {
    rules: Rules,
    shard_column: String,
    shard: Option<Arc<str>>,
    drop_shard_column: bool,
    drop: Vec<String>,
    target_schema: Option<String>,
    plans: HashMap<usize, (Arc<TableSchema>, Arc<Plan>)>,
}

/// What becomes of the changes of one version of a table.
#[derive(Debug)]
enum Plan {
    /// It has no counterpart.
    Skip(Arc<str>),
    Table(TablePlan),
}

#[derive(Debug)]
struct TablePlan {
    schema: Arc<TableSchema>,
    /// The places in the source's schema of the columns that stay.
    columns: Vec<usize>,
    /// The place in the source's schema of the column that names the shard.
    shard: Option<usize>,
}

impl Mapping {
    fn of(rules: Rules) -> Self {
        Self {
            rules,
            shard_column: SHARD_COLUMN.to_owned(),
            shard: None,
            drop_shard_column: true,
            drop: Vec::new(),
            target_schema: None,
            plans: HashMap::new(),
        }
    }

    /// Every table and column keeps its name.
    pub fn identity() -> Self {
        Self::of(Rules::default())
    }

    /// The names of a session file of the Spanner migration tool.
    ///
    /// # Errors
    /// [`Config`](anabranch_core::ErrorKind::Config), naming the file and what in it is wrong.
    pub fn session(path: impl AsRef<Path>) -> Result<Self> {
        session::read(path.as_ref()).map(Self::of)
    }

    /// The names of a schema overrides file: `{"renamedTables": {}, "renamedColumns": {}}`.
    ///
    /// # Errors
    /// As [`Mapping::session`].
    pub fn overrides_file(path: impl AsRef<Path>) -> Result<Self> {
        overrides::read(path.as_ref()).map(Self::of)
    }

    /// Overrides as the template's parameters write them: `[{Source, Spanner}]`, `[{T.a, T.b}]`.
    ///
    /// # Errors
    /// [`Config`](anabranch_core::ErrorKind::Config), naming the parameter.
    pub fn overrides(tables: &str, columns: &str) -> Result<Self> {
        overrides::parse(tables, columns).map(Self::of)
    }

    /// The column whose value is the shard, where the session file names none. `migration_shard_id`
    /// if not set. A table without it gets no shard here.
    #[must_use]
    pub fn shard_column(mut self, column: impl Into<String>) -> Self {
        self.shard_column = column.into();
        self
    }

    /// Everything goes to this shard.
    #[must_use]
    pub fn shard(mut self, name: impl Into<Arc<str>>) -> Self {
        self.shard = Some(name.into());
        self
    }

    /// Whether the shard's column stays, where the mapping does not say: the shards' tables have it.
    #[must_use]
    pub fn keep_shard_column(mut self, keep: bool) -> Self {
        self.drop_shard_column = !keep;
        self
    }

    /// Columns that the shards do not have: `column`, or `table.column`, in the source's names.
    #[must_use]
    pub fn drop<C: Into<String>>(mut self, columns: impl IntoIterator<Item = C>) -> Self {
        self.drop = columns.into_iter().map(Into::into).collect();
        self
    }

    /// The schema of the shards' tables, where they have schemas and the mapping names none.
    #[must_use]
    pub fn target_schema(mut self, schema: impl Into<String>) -> Self {
        self.target_schema = Some(schema.into());
        self
    }

    fn plan(&mut self, schema: &Arc<TableSchema>) -> Result<Arc<Plan>> {
        let address = Arc::as_ptr(schema).addr();
        if let Some((_, plan)) = self.plans.get(&address) {
            return Ok(Arc::clone(plan));
        }
        let plan = Arc::new(self.make_plan(schema)?);
        // More than tables have versions in one run; the `Arc` keeps the address from being used again.
        if self.plans.len() >= 4096 {
            self.plans.clear();
        }
        self.plans.insert(address, (Arc::clone(schema), Arc::clone(&plan)));
        Ok(plan)
    }

    fn make_plan(&self, schema: &TableSchema) -> Result<Plan> {
        let name = &schema.name;
        // Spanner's named schemas stand in front of the name: "sales.Orders".
        let full = name.to_string();
        let known = |key: &str| self.rules.tables.as_ref().and_then(|t| t.get(key));
        let rule = match (&self.rules.tables, known(&full).or_else(|| known(&name.name))) {
            (Some(_), None) => return Ok(Plan::Skip(format!("the table {full} is not in the mapping").into())),
            (_, Some(None)) => return Ok(Plan::Skip(format!("the table {full} has no counterpart").into())),
            (_, Some(Some(rule))) => Some(rule),
            (None, None) => self.rules.renamed.get(&full).or_else(|| self.rules.renamed.get(&name.name)),
        };
        let mut columns = Vec::with_capacity(schema.columns.len());
        let mut kept = Vec::with_capacity(schema.columns.len());
        for (place, column) in schema.columns.iter().enumerate() {
            if let Some(to) = self.column(schema, rule, &column.name)? {
                kept.push(place);
                columns.push(anabranch_core::Column { name: to, ..column.clone() });
            }
        }
        let key = self.key(schema, rule, &columns, &kept)?;
        let shard = rule.and_then(|r| r.shard.as_deref()).unwrap_or(&self.shard_column);
        let own_schema = || match self.rules.tables.is_some() {
            true => rule.and_then(|r| r.schema.clone()).unwrap_or_default(),
            false => name.schema.clone(),
        };
        let to = TableName {
            schema: self.target_schema.clone().unwrap_or_else(own_schema),
            name: rule.map_or_else(|| name.name.clone(), |r| r.name.clone()),
        };
        Ok(Plan::Table(TablePlan {
            schema: Arc::new(TableSchema { name: to, columns, key }),
            columns: kept,
            shard: schema.index_of(shard),
        }))
    }

    /// The column's name in the shard; `None` if it is not there.
    fn column(&self, schema: &TableSchema, rule: Option<&TableRule>, column: &str) -> Result<Option<String>> {
        let table = &schema.name;
        let named = |drop: &String| *drop == column || *drop == format!("{}.{column}", table.name);
        if self.drop.iter().any(named) {
            return Ok(None);
        }
        match rule.map(|r| &r.columns) {
            Some(Columns::Listed(names)) => match names.get(column) {
                Some(to) => Ok(to.clone()),
                None if column == self.shard_column && self.drop_shard_column => Ok(None),
                None => Err(Error::config(
                    "transform.file",
                    format!("the table {table} has a column {column} that the session file does not know"),
                )
                .hint(format!("make the session file anew, or leave it out: drop = [\"{}.{column}\"]", table.name))),
            },
            _ if column == self.shard_column && self.drop_shard_column => Ok(None),
            Some(Columns::Renamed(names)) => Ok(Some(names.get(column).cloned().unwrap_or_else(|| column.to_owned()))),
            None => Ok(Some(column.to_owned())),
        }
    }

    /// The places, among the columns that stay, of the shard's key.
    fn key(
        &self,
        schema: &TableSchema,
        rule: Option<&TableRule>,
        columns: &[anabranch_core::Column],
        kept: &[usize],
    ) -> Result<Vec<u16>> {
        let wrong = |problem: String| Error::config(format!("transform: table {}", schema.name), problem);
        let mut key = Vec::new();
        match rule.and_then(|r| r.key.as_ref()) {
            Some(names) => {
                for name in names {
                    let at = columns.iter().position(|c| c.name == *name);
                    let at = at.ok_or_else(|| wrong(format!("the shards' key column {name} is not sent")))?;
                    key.push(at as u16);
                }
            }
            // The shard's own name tells nothing apart within a shard.
            None => {
                key.extend(
                    schema
                        .key
                        .iter()
                        .filter_map(|&k| kept.iter().position(|&p| p == usize::from(k)))
                        .map(|at| at as u16),
                );
            }
        }
        if key.is_empty() && !schema.key.is_empty() {
            return Err(wrong("no column of its key is in the shards".to_owned()).hint("do not drop all of them"));
        }
        Ok(key)
    }
}

impl Transform for Mapping {
    fn apply(&mut self, batch: ChangeBatch) -> Result<ChangeBatch> {
        if batch.is_empty() {
            return Ok(batch);
        }
        let plans: Vec<Arc<Plan>> = batch.schemas().iter().map(|s| self.plan(s)).collect::<Result<_>>()?;
        rewrite(&batch, |change, out| {
            match plans.get(change.schema_index()).map(|p| &**p) {
                None => out.keep(change),
                Some(Plan::Skip(reason)) => match change.op() {
                    Op::Schema => {}
                    _ => out.leave_out(change, LetterClass::Skip, Arc::clone(reason)),
                },
                Some(Plan::Table(_)) if change.left_out().is_some() => out.keep(change),
                Some(Plan::Table(plan)) => self.map(plan, change, out)?,
            }
            Ok(())
        })
    }
}

impl Mapping {
    fn map(&self, plan: &TablePlan, change: ChangeRef<'_>, out: &mut Rewriter) -> Result<()> {
        let is_row = matches!(change.op(), Op::Insert | Op::Update | Op::Delete);
        let shard = match (&self.shard, change.shard(), plan.shard) {
            (Some(name), ..) => Some(name.to_string()),
            (None, None, Some(column)) if is_row => match shard_of(change, column) {
                Ok(shard) => Some(shard),
                Err(reason) => {
                    out.leave_out(change, LetterClass::Severe, reason);
                    return Ok(());
                }
            },
            _ => None,
        };
        if is_row && let Some(reason) = hides_key(plan, change) {
            out.leave_out(change, LetterClass::Severe, reason);
            return Ok(());
        }
        out.map_rows(change, &plan.schema, |row, out| {
            plan.columns.iter().for_each(|&column| out.push(row.get(column)));
            Ok(())
        })?;
        if let Some(shard) = shard {
            out.shard(&shard);
        }
        Ok(())
    }
}

/// The shard that a change's rows name.
fn shard_of(change: ChangeRef<'_>, column: usize) -> Result<String, String> {
    let of = |row: RowRef<'_>| match row.get(column) {
        ValueRef::Text(text) => Some(text.to_owned()),
        ValueRef::Int(number) => Some(number.to_string()),
        _ => None,
    };
    let (table, name) = (&change.schema().name, &change.schema().columns[column].name);
    let (old, new) = (change.old_row().and_then(of), change.new_row().and_then(of));
    if let (Some(old), Some(ValueRef::Null)) = (&old, change.new_row().map(|row| row.get(column))) {
        return Err(format!("a row of {table} moves from shard {old} to none: {name} is NULL"));
    }
    match (old, new) {
        (Some(old), Some(new)) if old != new => Err(format!("a row of {table} moves from shard {old} to {new}")),
        (Some(shard), _) | (_, Some(shard)) if shard.is_empty() => {
            Err(format!("a change of {table} does not tell its shard: {name} is empty"))
        }
        (Some(shard), _) | (_, Some(shard)) if shard.contains('/') => {
            Err(format!("a change of {table} names a shard with a slash: {shard}"))
        }
        (Some(shard), _) | (_, Some(shard)) => Ok(shard),
        (None, None) => Err(format!("a change of {table} does not tell its shard: {name} is NULL or was not sent")),
    }
}

/// Why the shard cannot find the row, if it cannot.
fn hides_key(plan: &TablePlan, change: ChangeRef<'_>) -> Option<String> {
    let row = change.identity_row()?;
    let hidden = plan.schema.key.iter().find(|&&k| row.get(plan.columns[usize::from(k)]).is_unchanged())?;
    let column = &plan.schema.columns[usize::from(*hidden)].name;
    Some(format!(
        "a change of {} does not tell the key column {column} of {}: let the change stream send old values \
         (NEW_ROW_AND_OLD_VALUES)",
        change.schema().name,
        plan.schema.name
    ))
}
