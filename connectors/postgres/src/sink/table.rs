//! A table of the target, as its catalog describes it.

use anabranch_core::{DataType, Error, Result, TableName};
use futures_util::future;
use tokio_postgres::{Client, Row};

use super::flight::is_aftermath;
use super::native;
use super::params::Encoding;
use crate::error::classify;
use crate::sql::ident;

/// A table of the target.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) oid: u32,
    pub(crate) name: TableName,
    /// Other tables inherit from it, whose rows would count as its own; and no trigger puts its rows into them.
    has_heirs: bool,
    /// A trigger or a rule puts its rows into tables that inherit from it, or one leaves out updates that change
    /// nothing (`suppress_redundant_updates_trigger`): what a statement counts says nothing.
    pub(crate) uncounted: bool,
    pub(crate) columns: Vec<TargetColumn>,
    pub(crate) unique: Vec<UniqueIndex>,
    /// Tables that its foreign keys refer to.
    pub(crate) references: Vec<(u32, TableName)>,
    /// Another table's foreign key refers to it.
    pub(crate) referenced: bool,
    /// ... and does something when a row goes (`CASCADE`, `SET NULL`, `SET DEFAULT`).
    pub(crate) referenced_with_action: bool,
    pub(crate) triggers: Vec<Trigger>,
    pub(crate) rules: Vec<String>,
    /// Its columns with their types, as [`SHAPE`] gives them: to notice that somebody altered the table.
    pub(crate) shape: String,
    /// A crash of the server empties it, or a partition of it.
    pub(crate) unlogged: bool,
}

/// A column of the target.
#[derive(Debug)]
pub(crate) struct TargetColumn {
    pub(crate) name: String,
    /// The type with its modifier.
    pub(crate) native: String,
    /// The type without its modifier, for casts that must not cut a value off.
    pub(crate) base: String,
    pub(crate) data_type: DataType,
    pub(crate) not_null: bool,
    pub(crate) has_default: bool,
    pub(crate) identity: Option<Identity>,
    pub(crate) generated: bool,
    /// An array of it can be unnested into a column of it. Not so for arrays (they flatten), for
    /// composites (they expand), and for the few types with another delimiter or no array type.
    pub(crate) unnests: bool,
    /// Different texts count as equal: `citext`, a collation that ignores case.
    pub(crate) loose: bool,
    pub(crate) encoding: Encoding,
}

impl TargetColumn {
    /// Whether a row cannot be inserted without a value for it.
    pub(crate) fn is_required(&self) -> bool {
        self.not_null && !self.has_default && !self.generated && self.identity.is_none()
    }
}

/// How an identity column gives out values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Identity {
    Always,
    ByDefault,
}

/// A unique index.
#[derive(Debug)]
pub(crate) struct UniqueIndex {
    /// Its columns, in order; empty if it has expressions.
    pub(crate) columns: Vec<String>,
    pub(crate) primary: bool,
    /// Covers every row, is checked at once and valid: `ON CONFLICT` can name it.
    pub(crate) arbiter: bool,
}

/// A trigger that a user made.
#[derive(Debug)]
pub(crate) struct Trigger {
    pub(crate) name: String,
    /// Fires in a session with `session_replication_role = replica`.
    pub(crate) on_replica: bool,
    /// Fires in an ordinary session.
    pub(crate) on_origin: bool,
}

/// 7: BEFORE INSERT FOR EACH ROW (`pg_trigger.h`), which is how rows came into partitions before PostgreSQL 10.
const TABLE: &str = "SELECT c.oid::int8, n.nspname::text, c.relname::text, c.relkind = 'r' AND c.relhassubclass, EXISTS ( \
      SELECT FROM pg_catalog.pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgtype & 7 = 7 \
        AND t.tgenabled = ANY (CASE current_setting('session_replication_role') \
                               WHEN 'replica' THEN '{R,A}' ELSE '{O,A}' END::\"char\"[])), EXISTS ( \
      SELECT FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid WHERE t.tgrelid = c.oid \
        AND p.proname = 'suppress_redundant_updates_trigger'), \
      c.relpersistence = 'u' OR EXISTS (SELECT FROM pg_catalog.pg_partition_tree(c.oid) l \
        JOIN pg_catalog.pg_class k ON k.oid = l.relid WHERE k.relpersistence = 'u') \
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relname = $2::text AND c.relkind IN ('r', 'p', 'v', 'f') \
      AND (n.nspname = $1::text OR $1::text = '' AND n.nspname = ANY (current_schemas(false))) \
    ORDER BY array_position(current_schemas(false), n.nspname) LIMIT 1";

/// The columns of a table with all that tells how values are stored in them.
pub(crate) const SHAPE: &str = "SELECT coalesce(string_agg(concat_ws(' ', a.attnum, a.attname, a.atttypid, a.atttypmod, a.attcollation, \
        a.attnotnull, a.attidentity, a.attgenerated), ',' ORDER BY a.attnum), '') AS shape \
    FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1::int8::oid AND a.attnum > 0 AND NOT a.attisdropped";

const COLUMNS: &str = "SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), format_type(a.atttypid, -1), \
      a.attnotnull, a.atthasdef, a.attidentity::text, a.attgenerated::text, t.typcategory::text, \
      t.typarray <> 0 AND t.typdelim = ',' AND t.typcategory <> 'A' AND b.typtype <> 'c', \
      ARRAY(SELECT e.enumlabel::text FROM pg_catalog.pg_enum e WHERE e.enumtypid = d.oid ORDER BY e.enumsortorder), \
      format_type(d.oid, d.modifier), \
      b.typname = 'citext' OR EXISTS (SELECT FROM pg_catalog.pg_collation k \
        WHERE k.oid = a.attcollation AND to_jsonb(k) ->> 'collisdeterministic' = 'false') \
    FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid \
    CROSS JOIN LATERAL (WITH RECURSIVE d(oid, modifier) AS ( \
        SELECT t.oid, a.atttypmod UNION ALL \
        SELECT p.typbasetype, p.typtypmod FROM d JOIN pg_catalog.pg_type p ON p.oid = d.oid WHERE p.typtype = 'd') \
        SELECT d.oid, d.modifier FROM d JOIN pg_catalog.pg_type p ON p.oid = d.oid WHERE p.typtype <> 'd') AS d \
    JOIN pg_catalog.pg_type b ON b.oid = d.oid \
    WHERE a.attrelid = $1::int8::oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";

const INDEXES: &str = "SELECT ARRAY(SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, n) \
        JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum \
        WHERE k.n <= i.indnkeyatts AND i.indexprs IS NULL ORDER BY k.n), \
      i.indisprimary, i.indimmediate AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL \
    FROM pg_catalog.pg_index i WHERE i.indrelid = $1::int8::oid AND i.indisunique \
    ORDER BY i.indisprimary DESC, i.indexrelid";

const FOREIGN_KEYS: &str = "SELECT k.conrelid = $1::int8::oid, c.oid::int8, n.nspname::text, c.relname::text, \
      k.confrelid = $1::int8::oid, k.confdeltype IN ('c', 'n', 'd') OR k.confupdtype IN ('c', 'n', 'd') \
    FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_class c ON c.oid = k.confrelid \
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    WHERE k.contype = 'f' AND $1::int8::oid IN (k.conrelid, k.confrelid)";

const TRIGGERS: &str = "SELECT t.tgname::text, t.tgenabled::text, false \
    FROM pg_catalog.pg_trigger t WHERE t.tgrelid = $1::int8::oid AND NOT t.tgisinternal \
    UNION ALL SELECT r.rulename::text, r.ev_enabled::text, true \
    FROM pg_catalog.pg_rewrite r WHERE r.ev_class = $1::int8::oid AND r.rulename <> '_RETURN' ORDER BY 1";

impl Table {
    /// Reads the table's description; `None` if there is no such table.
    pub(crate) async fn read(client: &Client, name: &TableName) -> Result<Option<Self>> {
        let what = |e| classify(e, "cannot read the target's catalog");
        let Some(row) = client.query_opt(TABLE, &[&name.schema, &name.name]).await.map_err(what)? else {
            return Ok(None);
        };
        let oid: i64 = row.get(0);
        // All answers are taken: within a transaction, what is refused first has the others refused too,
        // and those may be seen before it.
        let mut answers = future::join_all(
            // The shape first: what is altered in between is noticed, and read again.
            [SHAPE, COLUMNS, INDEXES, FOREIGN_KEYS, TRIGGERS]
                .map(|sql| async move { client.query(sql, &[&oid]).await }),
        )
        .await;
        let of_its_own = |a: &Result<_, tokio_postgres::Error>| a.as_ref().is_err_and(|e| !is_aftermath(e));
        if let Some(at) = answers.iter().position(of_its_own) {
            answers.swap(0, at);
        }
        let mut rows = Vec::with_capacity(answers.len());
        for answer in answers {
            rows.push(answer.map_err(what)?);
        }
        let [shape, columns, indexes, keys, triggers] = &rows[..] else {
            return Err(Error::fatal("five questions have other than five answers"));
        };
        let is_rule = |r: &&Row| r.get::<_, bool>(2);
        Ok(Some(Self {
            oid: oid as u32,
            name: TableName::new(row.get::<_, String>(1), row.get::<_, String>(2)),
            has_heirs: row.get::<_, bool>(3) && !row.get::<_, bool>(4),
            uncounted: row.get(5) || row.get(3) && (row.get(4) || triggers.iter().any(|r| r.get(2))),
            columns: columns.iter().map(column).collect(),
            unique: indexes
                .iter()
                .map(|r| UniqueIndex { columns: r.get(0), primary: r.get(1), arbiter: r.get(2) })
                .collect(),
            references: keys
                .iter()
                .filter(|r| r.get(0))
                .map(|r| (r.get::<_, i64>(1) as u32, TableName::new(r.get::<_, String>(2), r.get::<_, String>(3))))
                .collect(),
            referenced: keys.iter().any(|r| r.get(4)),
            referenced_with_action: keys.iter().any(|r| r.get(4) && r.get(5)),
            triggers: triggers.iter().filter(|r| !is_rule(r)).map(trigger).collect(),
            rules: triggers.iter().filter(is_rule).map(|r| r.get(0)).collect(),
            shape: shape.first().map(|r| r.get(0)).unwrap_or_default(),
            unlogged: row.get(6),
        }))
    }

    /// Whether triggers or rules of it act on what a session does.
    pub(crate) fn acts(&self, replica: bool) -> bool {
        !self.rules.is_empty() || self.triggers.iter().any(|t| if replica { t.on_replica } else { t.on_origin })
    }

    /// Its name, quoted.
    pub(crate) fn sql(&self) -> String {
        format!("{}.{}", ident(&self.name.schema), ident(&self.name.name))
    }

    /// Its own rows, for a statement that reads, changes or removes some: without those of tables that inherit
    /// from it, which are tables of the source by themselves.
    pub(crate) fn rows(&self) -> String {
        format!("{}{}", if self.has_heirs { "ONLY " } else { "" }, self.sql())
    }

    /// The place of a column.
    pub(crate) fn index_of(&self, column: &str) -> Option<usize> {
        self.columns.iter().position(|c| c.name == column)
    }

    /// What finds a conflict on exactly these columns.
    pub(crate) fn unique_on(&self, columns: &[&str]) -> Option<&UniqueIndex> {
        let same = |i: &&UniqueIndex| {
            i.columns.len() == columns.len() && columns.iter().all(|c| i.columns.iter().any(|have| have == c))
        };
        self.unique.iter().filter(same).max_by_key(|i| i.arbiter)
    }
}

/// Names are compared as they are stored; types are named with their schema unless it is `pg_catalog`.
pub(crate) async fn read_qualified(client: &Client, name: &TableName) -> Result<Option<Table>> {
    let what = |e| classify(e, "cannot read the target's catalog");
    // The users' search path is kept: functions behind their triggers and checks may count on it.
    let before: String = client.query_one("SELECT current_setting('search_path')", &[]).await.map_err(what)?.get(0);
    let name = if name.schema.is_empty() {
        let found = client.query_opt(TABLE, &[&name.schema, &name.name]).await.map_err(what)?;
        match found {
            Some(row) => TableName::new(row.get::<_, String>(1), row.get::<_, String>(2)),
            None => return Ok(None),
        }
    } else {
        name.clone()
    };
    client.execute("SELECT set_config('search_path', 'pg_catalog', false)", &[]).await.map_err(what)?;
    let table = Table::read(client, &name).await;
    client.execute("SELECT set_config('search_path', $1, false)", &[&before]).await.map_err(what)?;
    table
}

fn column(row: &Row) -> TargetColumn {
    let native: String = row.get(1);
    let category: String = row.get(7);
    let labels: Vec<String> = row.get(9);
    // What a domain is made of, its own and those of the domains below it.
    let storage: String = row.get(10);
    TargetColumn {
        name: row.get(0),
        data_type: if labels.is_empty() { native::data_type(&storage) } else { DataType::Enum { labels } },
        base: row.get(2),
        not_null: row.get(3),
        has_default: row.get(4),
        identity: match row.get::<_, String>(5).as_str() {
            "a" => Some(Identity::Always),
            "d" => Some(Identity::ByDefault),
            _ => None,
        },
        generated: !row.get::<_, String>(6).is_empty(),
        unnests: row.get(8),
        loose: row.get(11),
        encoding: match (storage.as_str(), category.as_str()) {
            ("bytea", _) => Encoding::Bytea,
            (_, "N") => Encoding::Number,
            _ => Encoding::Other,
        },
        native,
    }
}

fn trigger(row: &Row) -> Trigger {
    let enabled: String = row.get(1);
    Trigger {
        name: row.get(0),
        on_replica: matches!(enabled.as_str(), "R" | "A"),
        on_origin: matches!(enabled.as_str(), "O" | "A"),
    }
}

/// The error for a table that is not there.
pub(crate) fn missing(name: &TableName) -> Error {
    Error::config(format!("target table {name}"), "does not exist").hint("create it, or set sink.create_tables = true")
}
