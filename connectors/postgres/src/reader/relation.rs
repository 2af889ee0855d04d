//! Tables as the stream describes them, and what to do when a description changes.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use anabranch_core::{Column, Error, Result, TableName, TableSchema};

use super::leaf::{Leaves, OldRows, may_be_of};
use crate::catalog::{self, CatalogTable};
use crate::config::SchemaChange;
use crate::decode::message::Relation as RelationMessage;
use crate::lsn::Lsn;
use crate::session::Session;
use crate::sql;

/// A relation message, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Described {
    pub(crate) oid: u32,
    pub(crate) name: TableName,
    pub(crate) identity: u8,
    pub(crate) columns: Vec<DescribedColumn>,
}

/// A column of a relation message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DescribedColumn {
    pub(crate) name: String,
    pub(crate) key: bool,
    pub(crate) type_oid: u32,
    pub(crate) modifier: i32,
}

impl Described {
    pub(crate) fn of(message: RelationMessage<'_>) -> Self {
        let schema = if message.schema.is_empty() { "pg_catalog" } else { message.schema };
        Self {
            oid: message.oid,
            name: TableName::new(schema, message.name),
            identity: message.identity,
            columns: message
                .columns()
                .map(|c| DescribedColumn {
                    name: c.name.to_owned(),
                    key: c.key,
                    type_oid: c.type_oid,
                    modifier: c.type_modifier,
                })
                .collect(),
        }
    }

    /// Whether this is the table that the catalog has.
    fn is(&self, table: &CatalogTable) -> bool {
        self.name == table.schema.name
            && self.identity == table.identity
            && self.columns.len() == table.types.len()
            && self.columns.iter().zip(&table.schema.columns).all(|(a, b)| a.name == b.name)
            && self.columns.iter().zip(&table.types).all(|(a, b)| (a.type_oid, a.modifier) == *b)
            && (self.is_unflagged() || self.columns.iter().enumerate().all(|(i, c)| c.key == table.schema.is_key(i)))
    }

    /// Whether the message's flags do not tell the primary key: with full identity they name every
    /// column, and YugabyteDB's identity CHANGE is no index.
    fn is_unflagged(&self) -> bool {
        matches!(self.identity, b'f' | b'c')
    }

    /// The schema as described. `now` gives what the message leaves out: whether NULL is possible,
    /// the order of the key, and with full identity the primary key.
    fn schema(&self, now: Option<&CatalogTable>, names: Vec<String>, types: &crate::types::Types) -> TableSchema {
        let known = |name: &str| now.and_then(|t| t.schema.columns.iter().find(|c| c.name == name));
        let columns: Vec<Column> = self
            .columns
            .iter()
            .zip(names)
            .map(|(c, native)| Column {
                name: c.name.clone(),
                data_type: types.data_type(c.type_oid, c.modifier),
                native,
                nullable: known(&c.name).is_none_or(|k| k.nullable),
                generated: known(&c.name).is_some_and(|k| k.generated),
            })
            .collect();
        let place = |name: &str| self.columns.iter().position(|c| c.name == name).map(|p| p as u16);
        let current: Option<Vec<u16>> = now.and_then(|t| t.schema.key_columns().map(|c| place(&c.name)).collect());
        let flagged: Vec<u16> = self.columns.iter().enumerate().filter(|(_, c)| c.key).map(|(i, _)| i as u16).collect();
        let same_columns = |key: &Vec<u16>| key.len() == flagged.len() && key.iter().all(|k| flagged.contains(k));
        let key = match self.identity {
            b'f' => current.unwrap_or_default(),
            b'c' => current.unwrap_or(flagged),
            _ => current.filter(same_columns).unwrap_or(flagged),
        };
        TableSchema { name: self.name.clone(), columns, key }
    }
}

/// What the changes of one table refer to.
#[derive(Debug)]
pub(crate) struct Relation {
    pub(crate) described: Described,
    pub(crate) schema: Arc<TableSchema>,
    /// Changes of transactions that committed before this are in the table's copy.
    pub(crate) copied_until: Lsn,
    /// Its schema changed; the next change is preceded by one that says so.
    pub(crate) announce: bool,
    /// What its old rows are.
    pub(crate) old_rows: OldRows,
    /// Its index in the batch of this number.
    pub(crate) slot: (u64, usize),
}

impl Relation {
    fn new(described: Described, schema: Arc<TableSchema>, copied_until: Lsn, announce: bool) -> Self {
        Self { described, schema, copied_until, announce, old_rows: OldRows::default(), slot: (0, 0) }
    }

    /// Whether the column's old value is sent where the old row is a key.
    pub(crate) fn is_key(&self, at: usize) -> bool {
        if self.described.is_unflagged() { self.schema.is_key(at) } else { self.described.columns[at].key }
    }
}

/// A description and the schema that was found for it.
#[derive(Debug)]
pub(crate) struct Resolved {
    described: Described,
    schema: Arc<TableSchema>,
    /// The catalog described the table so when it was asked.
    current: bool,
    /// The table as the catalog has it now.
    now: Option<CatalogTable>,
    /// It is a partition, as the catalog has it now, that is published through this table.
    root: Option<u32>,
    /// The partitioned tables that are published as such.
    partitioned: Vec<u32>,
}

/// The tables of a stream.
#[derive(Debug)]
pub(crate) struct Relations {
    by_oid: HashMap<u32, Relation>,
    /// The tables as they were when the pipeline was checked, by oid.
    known: HashMap<u32, CatalogTable>,
    copied_until: HashMap<TableName, Lsn>,
    policy: SchemaChange,
    leaves: Leaves,
    /// The table that the last message described, and the one that the message right before it did.
    latest: (Option<u32>, Option<u32>),
}

impl Relations {
    pub(crate) fn new(
        known: impl IntoIterator<Item = CatalogTable>,
        copied_until: HashMap<TableName, Lsn>,
        policy: SchemaChange,
    ) -> Self {
        let known = known.into_iter().map(|t| (t.oid, t)).collect();
        Self { by_oid: HashMap::new(), known, copied_until, policy, leaves: Leaves::default(), latest: (None, None) }
    }

    /// A message came that describes no table.
    pub(crate) fn interrupted(&mut self) {
        self.latest = (None, None);
    }

    pub(crate) fn get(&mut self, oid: u32) -> Option<&mut Relation> {
        self.by_oid.get_mut(&oid)
    }

    /// Takes a description; gives it back if the catalog has to be asked about it.
    pub(crate) fn describe(&mut self, described: Described, at: Lsn) -> Result<Option<Described>> {
        self.latest = (Some(described.oid), self.latest.0);
        if self.by_oid.get(&described.oid).is_some_and(|r| r.described == described) {
            return Ok(None);
        }
        match self.known.get(&described.oid) {
            Some(known) if described.is(known) => {
                let schema = Arc::clone(&known.schema);
                let (now, root, partitioned) = (None, None, Vec::new());
                self.resolved(Resolved { described, schema, current: true, now, root, partitioned }, at)?;
                Ok(None)
            }
            _ => Ok(Some(described)),
        }
    }

    /// Takes the schema that was found for a description.
    pub(crate) fn resolved(&mut self, mut found: Resolved, at: Lsn) -> Result<()> {
        if found.schema.name.schema == catalog::OWN_SCHEMA {
            let Resolved { described, schema, .. } = found;
            // As if all that ever comes of it were in a copy.
            let relation = Relation::new(described, schema, Lsn(u64::MAX), false);
            self.by_oid.insert(relation.described.oid, relation);
            return Ok(());
        }
        if let Some(root) = self.root_of(&found) {
            // No change refers to it. It may be renamed, and come and go.
            let Resolved { described, schema, .. } = found;
            self.leaves.add(described.oid, root);
            self.insert(Relation::new(described, schema, Lsn::default(), false));
            return Ok(());
        }
        let before = self
            .by_oid
            .get(&found.described.oid)
            .or_else(|| self.by_oid.values().find(|r| r.schema.name == found.schema.name))
            .map(|r| Arc::clone(&r.schema));
        let compared = before.or_else(|| {
            let known = self.known.get(&found.described.oid)?;
            // The stream may be behind the catalog: a table that was checked in its present shape first
            // comes in its older one, and that is no change.
            let behind = !found.current
                && found.now.as_ref().is_some_and(|now| now.types == known.types && *now.schema == *known.schema);
            (!behind).then(|| Arc::clone(&known.schema))
        });
        // As it was checked when the run began: its changes of before then are looked at already, in both databases.
        let checked = self.known.get(&found.described.oid).is_some_and(|known| *known.schema == *found.schema);
        let mut differences = match &compared {
            Some(before) if !checked => differences(before, &found.schema),
            _ => Vec::new(),
        };
        if self.takes_a_name(&found) {
            differences.push(Difference::Recreated);
        }
        if !differences.is_empty() {
            self.consent(&found.schema.name, &differences, at)?;
        }
        let changed = match &compared {
            Some(before) if **before == *found.schema => {
                found.schema = Arc::clone(before);
                false
            }
            other => other.is_some(),
        };
        // A table that nobody has checked yet announces itself.
        let new = !self.known.contains_key(&found.described.oid);
        let copied_until = self.copied_until.get(&found.schema.name).copied().unwrap_or_default();
        let announce = changed || (new && compared.is_none());
        let Resolved { described, schema, .. } = found;
        self.insert(Relation::new(described, schema, copied_until, announce));
        Ok(())
    }

    /// Keeps it, and judges anew what old rows of it, or of the table that it is a partition of, are.
    fn insert(&mut self, relation: Relation) {
        let root = self.leaves.root(relation.described.oid);
        self.by_oid.insert(relation.described.oid, relation);
        let judged = self.by_oid.get(&root).map(|root| self.leaves.judge(root, &self.by_oid));
        if let (Some(judged), Some(root)) = (judged, self.by_oid.get_mut(&root)) {
            root.old_rows = judged;
        }
    }

    /// The table through which this one is published: by the catalog; or, for a partition that is gone by now,
    /// because the server describes a partition right after its table.
    fn root_of(&self, found: &Resolved) -> Option<u32> {
        if found.now.is_some() || self.known.contains_key(&found.described.oid) {
            return None;
        }
        found.root.or_else(|| {
            let before = self.latest.1.filter(|oid| found.partitioned.contains(oid))?;
            let root = self.by_oid.get(&before)?;
            may_be_of(&found.described, root).then_some(before)
        })
    }

    /// Whether another table had its name until now.
    fn takes_a_name(&self, found: &Resolved) -> bool {
        let (oid, name) = (found.described.oid, &found.schema.name);
        let described =
            |r: &Relation| r.described.oid != oid && r.schema.name == *name && !self.leaves.contains(r.described.oid);
        // A table that the catalog does not have any more may be the one before that of this name.
        let checked = |t: &CatalogTable| t.oid != oid && t.schema.name == *name && found.now.is_some();
        self.by_oid.values().any(described) || self.known.values().any(checked)
    }

    fn consent(&self, table: &TableName, differences: &[Difference], at: Lsn) -> Result<()> {
        let only_added = differences.iter().all(|d| matches!(d, Difference::Added(_)));
        match self.policy {
            SchemaChange::Ignore => return Ok(()),
            SchemaChange::AddColumns if only_added => return Ok(()),
            SchemaChange::AddColumns | SchemaChange::Stop => {}
        }
        let mut text = String::new();
        for difference in differences {
            let _ = write!(text, "{}{difference}", if text.is_empty() { "" } else { ", " });
        }
        let error = Error::fatal(format!(
            "the table {table} changed on the source: {text}. Everything before the transaction at {at} was read"
        ));
        if differences.contains(&Difference::Recreated) {
            return Err(error.hint(format!(
                "make {} in the target what it is on the source before this transaction (empty, most likely), and start \
                 the pipeline again, which goes on with this transaction; `anabranch verify FILE --repair` then finds what \
                 differs",
                sql::table(table)
            )));
        }
        Err(error.hint(format!(
            "make the same change, its DEFAULT too, to {} in the target and start the pipeline again, which goes on with this \
             transaction; or set source.on_schema_change to \"add_columns\" or \"ignore\"",
            sql::table(table)
        )))
    }
}

/// Asks the catalog about a description.
pub(crate) async fn resolve(session: Session, publication: String, described: Described) -> Result<Resolved> {
    let client = session.client().await?;
    let (tables, mut types) = catalog::published(&client, &publication).await?;
    let partitioned: Vec<u32> = tables.iter().filter(|t| t.partitioned).map(|t| t.oid).collect();
    let now = tables.into_iter().find(|t| t.oid == described.oid);
    if let Some(table) = now.as_ref().filter(|t| described.is(t)) {
        let schema = Arc::clone(&table.schema);
        return Ok(Resolved { described, schema, current: true, now, root: None, partitioned });
    }
    let root = match now.is_none() && !partitioned.is_empty() {
        true => catalog::ancestors(&client, described.oid).await?.into_iter().find(|oid| partitioned.contains(oid)),
        false => None,
    };
    types.load(&client, described.columns.iter().map(|c| c.type_oid)).await?;
    let names: Vec<_> = described.columns.iter().map(|c| (c.type_oid, c.modifier)).collect();
    let names = catalog::type_names(&client, &names).await?;
    let schema = Arc::new(described.schema(now.as_ref(), names, &types));
    Ok(Resolved { described, schema, current: false, now, root, partitioned })
}

/// One way in which a table differs from what it was.
#[derive(Debug, PartialEq, Eq)]
enum Difference {
    Renamed(TableName),
    Added(String),
    Dropped(String),
    Retyped(String, String, String),
    Key(Vec<String>),
    Order,
    Recreated,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Renamed(from) => write!(f, "it was {from} before"),
            Self::Added(column) => write!(f, "column {column} was added"),
            Self::Dropped(column) => write!(f, "column {column} was dropped"),
            Self::Retyped(column, from, to) => write!(f, "column {column} was {from} and is {to}"),
            Self::Key(columns) if columns.is_empty() => f.write_str("it has no key any more"),
            Self::Key(columns) => write!(f, "its key is ({})", columns.join(", ")),
            Self::Order => f.write_str("its columns stand in another order"),
            Self::Recreated => {
                f.write_str("it was dropped and created again, or another table took its name, with rows of its own")
            }
        }
    }
}

fn differences(before: &TableSchema, after: &TableSchema) -> Vec<Difference> {
    let mut found = Vec::new();
    if before.name != after.name {
        found.push(Difference::Renamed(before.name.clone()));
    }
    for column in &before.columns {
        match after.columns.iter().find(|c| c.name == column.name) {
            None => found.push(Difference::Dropped(column.name.clone())),
            Some(c) if c.native != column.native || c.data_type != column.data_type => {
                found.push(Difference::Retyped(column.name.clone(), column.native.clone(), c.native.clone()));
            }
            Some(_) => {}
        }
    }
    for column in after.columns.iter().filter(|c| before.index_of(&c.name).is_none()) {
        found.push(Difference::Added(format!("{} {}", column.name, column.native)));
    }
    let key = |s: &TableSchema| s.key_columns().map(|c| c.name.clone()).collect::<Vec<_>>();
    if key(before) != key(after) {
        found.push(Difference::Key(key(after)));
    }
    let order = |s: &TableSchema, other: &TableSchema| {
        s.columns.iter().filter(|c| other.index_of(&c.name).is_some()).map(|c| c.name.clone()).collect::<Vec<_>>()
    };
    if order(before, after) != order(after, before) {
        found.push(Difference::Order);
    }
    found
}

#[cfg(any(test, fuzzing))]
impl Resolved {
    /// As the catalog would have answered, for tests.
    pub(crate) fn for_test(described: Described) -> Self {
        let names = described.columns.iter().map(|c| format!("type {}", c.type_oid)).collect();
        let schema = Arc::new(described.schema(None, names, &crate::types::Types::default()));
        Self { described, schema, current: true, now: None, root: None, partitioned: Vec::new() }
    }
}
