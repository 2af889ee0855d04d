//! Goes on with copies that were interrupted in the middle of a table.
//!
//! A part of the table was copied as it was at a point P1; a new snapshot is of a later point P2. The slot
//! still has all that was committed in between, and nothing else reads it now. It is read up to P2 without
//! confirming anything, for the keys of the rows that changed. Then:
//!
//! 1. in the target, the rows with these keys are deleted. What is left of P1 did not change until P2;
//! 2. the chunks that are left are copied as of P2. A row that did not change lies where it lay, for only an
//!    update moves a row, and one that moved has changed. (VACUUM FULL and the like write another file,
//!    which is noticed.) So a row that did not change and is not in these chunks was copied with the others;
//! 3. the rows with the changed keys are copied as of P2.
//!
//! No row of P1 that is not one of P2 is in the target when rows of P2 come: unique values that moved
//! between rows are in nobody's way. And rows come whole, so no large value is missing that an update did
//! not send. That is why the stream could not mend a table of two points, and this can.
//!
//! Until the table is whole its point is P1, whatever was done: interrupted again, a copy goes on under P3
//! with all that changed from P1 on. Rows that were copied under P2 and have not changed since P1 are
//! the same under all of them, and the others are removed and copied again. A chunk whose rows are in the
//! target and that is not known to be done is copied again: its rows that changed were removed, the others are
//! taken again as they are.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anabranch_core::{ChangedRows, Chunk, Error, ErrorKind, Result, TableName, TableSchema, TableSnapshot};
use tokio_postgres::Client;

use super::changed::Search;
use super::keys::Keys;
use super::plan::{Leaf, Plan};
use super::{Changed, Exported, Part, PostgresSnapshot, published};
use crate::catalog::CatalogTable;
use crate::error::classify;
use crate::lsn::Lsn;
use crate::setup::slot;
use crate::source::Postgres;
use crate::sql;

/// Keys of a chunk: one statement of the source, and one unit of the target.
const KEYS_EACH: usize = 2000;

/// A table of which a part was copied.
struct Begun {
    plan: Plan,
    point: Lsn,
}

/// `None`: nothing of what was begun can go on.
pub(super) async fn resume(
    source: &Postgres,
    tables: &[TableSchema],
    before: &BTreeMap<TableName, TableSnapshot>,
) -> Result<Option<PostgresSnapshot>> {
    let mut begun = HashMap::new();
    for table in tables {
        let Some(copy) = before.get(&table.name).filter(|c| !c.done_chunks.is_empty()) else { continue };
        match begun_before(copy) {
            Ok(found) => drop(begun.insert(table.name.clone(), found)),
            Err(why) => gives_up(&table.name, why),
        }
    }
    drop_unreachable(source, &mut begun).await?;
    if begun.is_empty() {
        return Ok(None);
    }
    let exported = Exported::new(source).await?;
    let found = published(source, tables).await?;
    let planning = exported.transaction("anabranch snapshot plan").await?;
    let mut snapshot = PostgresSnapshot::new(exported);
    let mut operators = HashMap::new();
    for table in found {
        let name = table.schema.name.clone();
        let now = Plan::new(&planning, source, &table, &snapshot.exported.timeline).await?;
        let why = match begun.get(&name) {
            None => None,
            Some(before) => match (before.plan.differs(&now), equality(&planning, &table).await?) {
                (Some(why), _) => Some(why),
                (None, None) => Some("it has no key, or one that rows cannot be found by"),
                (None, Some(found)) => {
                    operators.insert(name.clone(), found);
                    None
                }
            },
        };
        if let Some(why) = why {
            gives_up(&name, why);
            begun.remove(&name);
        }
        let plan = begun.get(&name).map_or(&now, |before| &before.plan);
        snapshot.add(table, plan)?;
    }
    drop(planning);
    let search = search(source, &begun, snapshot.exported.point).await?;
    for (name, why) in &search.given_up {
        gives_up(name, why);
    }
    for (name, keys) in search.keys {
        let operators = operators.remove(&name).unwrap_or_default();
        let leaves = begun.remove(&name).map(|copy| copy.plan.leaves).unwrap_or_default();
        snapshot.changed.insert(name.clone(), Changed::new(&name, keys, operators, leaves)?);
    }
    Ok(Some(snapshot))
}

fn gives_up(table: &TableName, why: &str) {
    tracing::warn!(%table, "its interrupted copy begins anew: {why}");
}

fn begun_before(copy: &TableSnapshot) -> Result<Begun, &'static str> {
    let plan = copy.plan.as_deref().and_then(Plan::read).ok_or("another version of anabranch has begun it")?;
    let (point, _) = Lsn::of_rank(&copy.point).map_err(|_| "its point is not known")?;
    Ok(Begun { plan, point })
}

/// Leaves out the tables whose changes the slot does not have any more.
async fn drop_unreachable(source: &Postgres, begun: &mut HashMap<TableName, Begun>) -> Result<()> {
    if begun.is_empty() {
        return Ok(());
    }
    let client = source.session()?.client().await?;
    let slot = slot::read(&client, &source.slot).await?.ok_or_else(|| slot::missing(&source.slot, None))?;
    begun.retain(|table, copy| {
        let reaches = slot.confirmed_flush <= copy.point;
        if !reaches {
            gives_up(table, "the slot does not reach back to its point");
        }
        reaches
    });
    Ok(())
}

/// What changed in these tables. Where it cannot be read for a reason that will not go away, they all
/// begin anew.
async fn search(source: &Postgres, begun: &HashMap<TableName, Begun>, until: Lsn) -> Result<Search> {
    let mut search = Search::new(begun.iter().map(|(name, copy)| (name.clone(), copy.point)).collect());
    let known = source.catalog().await?;
    let Err(error) = search.read(source, known, until).await else { return Ok(search) };
    // Too few senders (53300) will be too few at the next try.
    if error.kind() == ErrorKind::Transient && !error.to_string().contains("53300") {
        return Err(error.context("cannot read what changed since the copy was interrupted"));
    }
    tracing::warn!(error = %error.report(), "what changed since the copy was interrupted cannot be read");
    let names: Vec<TableName> = search.keys.drain().map(|(name, _)| name).collect();
    search.given_up.extend(names.into_iter().map(|name| (name, "what changed since cannot be read")));
    Ok(search)
}

impl Changed {
    fn new(table: &TableName, keys: Keys, operators: Vec<String>, leaves: Vec<Leaf>) -> Result<Self> {
        let chunks = |part: fn(usize, usize) -> Part| -> Result<Vec<Chunk>> {
            let starts = (0..keys.len()).step_by(KEYS_EACH);
            let chunk = |(index, from): (usize, usize)| {
                let to = (from + KEYS_EACH).min(keys.len());
                let index = u32::try_from(index).map_err(|e| Error::fatal("too many keys").because(e))?;
                let token = part(from, to).token()?;
                Ok(Chunk { table: table.clone(), index, token, rows: Some((to - from) as u64) })
            };
            starts.enumerate().map(chunk).collect()
        };
        let chunks = ChangedRows { keys: chunks(Part::Keys)?, rows: chunks(Part::Rows)? };
        Ok(Self { keys: Arc::new(keys), operators, leaves, chunks })
    }
}

/// How each column of the key is compared, by the operator of its index; `None` if there is no such index.
async fn equality(client: &Client, table: &CatalogTable) -> Result<Option<Vec<String>>> {
    // FULL sends whole old rows, and the primary key tells them apart.
    let by_identity = table.identity == b'i';
    if table.schema.key.is_empty() || table.identity == b'n' {
        return Ok(None);
    }
    let rows = client
        .query(EQUALITY, &[&table.oid, &by_identity])
        .await
        .map_err(|e| classify(e, "cannot read the key of a table"))?;
    let found: HashMap<String, String> = rows
        .iter()
        .map(|r| (r.get(0), format!("OPERATOR({}.{})", sql::ident(r.get(1)), r.get::<_, &str>(2))))
        .collect();
    Ok(table.schema.key_columns().map(|c| found.get(&c.name).cloned()).collect())
}

/// 403 is the access method btree, whose strategy 3 is "equal".
const EQUALITY: &str = "
SELECT a.attname::text, n.nspname::text, o.oprname::text
FROM pg_catalog.pg_index i
CROSS JOIN LATERAL unnest(i.indkey::int2[], i.indclass::oid[]) AS k(attnum, opclass)
JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
JOIN pg_catalog.pg_opclass c ON c.oid = k.opclass AND c.opcmethod = 403
JOIN pg_catalog.pg_amop m ON m.amopfamily = c.opcfamily AND m.amoplefttype = c.opcintype
     AND m.amoprighttype = c.opcintype AND m.amopstrategy = 3
JOIN pg_catalog.pg_operator o ON o.oid = m.amopopr
JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
WHERE i.indrelid = $1 AND i.indisvalid AND CASE WHEN $2 THEN i.indisreplident ELSE i.indisprimary END";
