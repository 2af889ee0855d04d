//! The workload's tables as SQL, and the queries that read the history back.

use std::fmt::Write as _;

use super::tables::{TABLES, Table};

/// Tables of the source, in PostgreSQL: `(columns and constraints)`.
const DEFINITIONS: &[(&str, &str)] = &[
    ("journal", "writer int4, seq int8, PRIMARY KEY (writer, seq)"),
    ("accounts", "id int4 PRIMARY KEY, owner text NOT NULL, balance int8 NOT NULL"),
    ("ledger", "id int4 PRIMARY KEY, version int8 NOT NULL, note text"),
    (
        "items",
        "id int4 PRIMARY KEY, code varchar(40) NOT NULL UNIQUE, \
         place int4 UNIQUE DEFERRABLE INITIALLY DEFERRED, price numeric(12,2)",
    ),
    ("parents", "id int4 PRIMARY KEY, name text"),
    ("children", "id int4 PRIMARY KEY, parent_id int4 REFERENCES parents DEFERRABLE INITIALLY DEFERRED, note text"),
    ("documents", "id int4 PRIMARY KEY, title text, body text, attachment bytea, revision int4 NOT NULL"),
    ("measures", "id int4 PRIMARY KEY, reading float8, at timestamptz, good bool"),
    ("Mixed Case", r#""the ""value""" text, "Region" varchar(20), "select" int4, PRIMARY KEY ("Region", "select")"#),
    ("log_lines", "writer int4, line text"),
];

/// Everything the source needs, as one script: tables, the publication `workload` of all of them,
/// the schema `history` with the audit table and its triggers, the slot `history` (and a publication
/// of that name, of `journal` alone), the functions that the transactions of the [`Workload`](super::Workload) call.
pub fn source_ddl() -> Vec<String> {
    let mut ddl = String::new();
    for (name, columns) in DEFINITIONS {
        let _ = writeln!(ddl, "CREATE TABLE {} ({columns});", quoted(name));
    }
    // Stored out of line and not compressed, or an update would carry them after all.
    ddl.push_str("ALTER TABLE documents ALTER body SET STORAGE EXTERNAL, ALTER attachment SET STORAGE EXTERNAL;\n");
    let names: Vec<String> = TABLES.iter().map(|t| quoted(t.name)).collect();
    let _ = writeln!(ddl, "CREATE PUBLICATION workload FOR TABLE {};", names.join(", "));
    ddl.push_str(HISTORY);
    for (place, table) in TABLES.iter().enumerate() {
        ddl.push_str(&trigger(place, table));
    }
    ddl.push_str(FUNCTIONS);
    // A slot cannot be made in a transaction that has written.
    vec![ddl, "SELECT pg_create_logical_replication_slot('history', 'pgoutput')".to_owned()]
}

/// The same tables for a PostgreSQL target, constraints included, without what keeps the history.
pub fn target_ddl() -> String {
    let define = |(name, columns): &(&str, &str)| format!("CREATE TABLE {} ({columns});\n", quoted(name));
    DEFINITIONS.iter().map(define).collect()
}

/// Reads, without consuming them, the transaction ids and the ends of the commits since the slot
/// `history` was advanced, in commit order.
pub fn commits_query() -> &'static str {
    // 67 is `C`, the message of a commit (manual, "Logical Replication Message Formats"). Of the changes,
    // the plugin writes only those of `journal`: writing all of them would take most of the time.
    "SELECT xid::text, lsn::text
     FROM pg_logical_slot_peek_binary_changes('history', NULL, NULL, 'proto_version', '1', 'publication_names', 'history')
     WHERE get_byte(data, 0) = 67"
}

/// Reads the changes of the transactions `$1` (`text[]`): transaction id, table, old and new row
/// (`text[]`), in no particular order of transactions.
pub fn audit_query() -> &'static str {
    "SELECT xid, tab, old_row, new_row FROM history.audit WHERE xid = ANY($1) ORDER BY seq"
}

const HISTORY: &str = r#"
CREATE SCHEMA history;
CREATE PUBLICATION history FOR TABLE journal WITH (publish = 'insert');
CREATE TABLE history.audit (seq bigserial PRIMARY KEY, xid text NOT NULL, tab int4 NOT NULL, old_row text[], new_row text[]);
CREATE INDEX ON history.audit (xid);
CREATE FUNCTION history.short(t text) RETURNS text IMMUTABLE LANGUAGE sql AS $$
    SELECT CASE WHEN length(t) > 256 THEN 'sha256:' || encode(sha256(convert_to(t, 'UTF8')), 'hex') ELSE t END
$$;
"#;

/// Keeps the rows before and after each change.
fn trigger(place: usize, table: &Table) -> String {
    let row = |record: &str| {
        let short = |(name, _): &(&str, _)| format!("history.short({record}.{}::text)", quoted(name));
        table.columns.iter().map(short).collect::<Vec<_>>().join(", ")
    };
    let table = quoted(table.name);
    format!(
        "CREATE FUNCTION history.audit_{place}() RETURNS trigger LANGUAGE plpgsql AS $$
         DECLARE before text[]; after text[];
         BEGIN
             IF TG_OP <> 'INSERT' THEN before := ARRAY[{old}]; END IF;
             IF TG_OP <> 'DELETE' THEN after := ARRAY[{new}]; END IF;
             INSERT INTO history.audit (xid, tab, old_row, new_row)
             VALUES (pg_current_xact_id()::text, {place}, before, after);
             RETURN NULL;
         END $$;
         CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON {table}
             FOR EACH ROW EXECUTE FUNCTION history.audit_{place}();\n",
        old = row("OLD"),
        new = row("NEW"),
    )
}

/// What a transaction cannot write without knowing the rows.
const FUNCTIONS: &str = r#"
CREATE FUNCTION history.swap_codes(a int, b int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE first text; second text;
BEGIN
    PERFORM 1 FROM items WHERE id IN (a, b) ORDER BY id FOR UPDATE;
    SELECT code INTO first FROM items WHERE id = a;
    SELECT code INTO second FROM items WHERE id = b;
    IF first IS NULL OR second IS NULL OR a = b THEN RETURN; END IF;
    UPDATE items SET code = 'moving ' || a WHERE id = a;
    UPDATE items SET code = first WHERE id = b;
    UPDATE items SET code = second WHERE id = a;
END $$;
CREATE FUNCTION history.rotate_places(a int, b int, c int) RETURNS void LANGUAGE sql AS $$
    WITH chosen AS (SELECT id, place FROM items WHERE id IN (a, b, c) ORDER BY id FOR UPDATE),
    rotated AS (SELECT id, coalesce(lead(place) OVER (ORDER BY id), first_value(place) OVER (ORDER BY id)) AS place FROM chosen)
    UPDATE items SET place = rotated.place FROM rotated WHERE items.id = rotated.id
$$;
CREATE FUNCTION history.reinsert(a int, b int) RETURNS void LANGUAGE sql AS $$
    WITH gone AS (DELETE FROM items WHERE id = a AND NOT EXISTS (SELECT 1 FROM items WHERE id = b) RETURNING *)
    INSERT INTO items SELECT b, code || '+', place, price FROM gone;
    UPDATE items SET code = rtrim(code, '+') WHERE id = b AND NOT EXISTS
        (SELECT 1 FROM items other WHERE other.code = rtrim(items.code, '+') AND other.id <> b)
$$;
CREATE FUNCTION history.swap_ids(a int, b int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM items WHERE id IN (a, b) ORDER BY id FOR UPDATE;
    UPDATE items SET id = -a WHERE id = a;
    UPDATE items SET id = a WHERE id = b;
    UPDATE items SET id = b WHERE id = -a;
END $$;
"#;

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
