//! The office in PostgreSQL: products and sales, to DynamoDB; and the shop's copy, from DynamoDB.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use anabranch_dynamodb::types::{Item, item_from_json, item_to_json};
use anabranch_servers::PgServer;
use anabranch_testkit::history::{Kind, canonical};
use aws_sdk_dynamodb::types::AttributeValue;

use crate::tell::Done;

pub(crate) const DATABASE: &str = "office";
pub(crate) const COPIED: &str = "from_dynamodb";

/// Products that are there at first.
pub(crate) const PRODUCTS: u64 = 500;
const SALES: u64 = 900;
/// Between two transactions.
const PAUSE: Duration = Duration::from_millis(25);

const SCHEMA: &str = "
CREATE TABLE products (id int PRIMARY KEY, title text NOT NULL, price numeric(12,2) NOT NULL, stock int NOT NULL,
    picture bytea, details jsonb);
CREATE TABLE sales (region text, id bigint, at timestamptz NOT NULL, paid bool, amount numeric(20,4), PRIMARY KEY (region, id));
CREATE PUBLICATION office FOR TABLE products, sales;";

/// A table: its name, the number of its key columns, and its columns.
pub(crate) type Table = (&'static str, usize, &'static [(&'static str, Option<Kind>)]);

/// Columns without a kind are JSON.
pub(crate) const TABLES: [Table; 2] = [
    (
        "products",
        1,
        &[
            ("id", Some(Kind::Int)),
            ("title", Some(Kind::Text)),
            ("price", Some(Kind::Decimal)),
            ("stock", Some(Kind::Int)),
            ("picture", Some(Kind::Bytes)),
            ("details", None),
        ],
    ),
    (
        "sales",
        2,
        &[
            ("region", Some(Kind::Text)),
            ("id", Some(Kind::Int)),
            ("at", Some(Kind::Instant)),
            ("paid", Some(Kind::Bool)),
            ("amount", Some(Kind::Decimal)),
        ],
    ),
];

/// Rows as text, by the text of their keys.
pub(crate) type Rows = BTreeMap<String, Vec<Option<String>>>;

/// Makes and fills it.
pub(crate) fn open(server: &PgServer) -> Done {
    server.create_db(DATABASE)?;
    server.create_db(COPIED)?;
    server.exec(DATABASE, SCHEMA)?;
    server.exec(
        DATABASE,
        &format!(
            r#"INSERT INTO products SELECT i, 'Thing "' || i || '" ä', i * 1.25, 1000, decode(md5(i::text), 'hex'),
                 jsonb_build_object('tier', i % 3, 'tags', jsonb_build_array('a"b', i, NULL)) FROM generate_series(1, {PRODUCTS}) i;
               INSERT INTO sales SELECT 'region ' || i % 5, i, timestamptz '2026-02-01Z' + i * interval '61.000001 seconds',
                 CASE WHEN i % 3 > 0 THEN i % 3 = 1 END, i * 0.7500 FROM generate_series(1, {SALES}) i;"#
        ),
    )?;
    Ok(())
}

/// How many rows it was filled with.
pub(crate) fn loaded() -> u64 {
    PRODUCTS + SALES
}

/// How far the writer is.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub(crate) stop: AtomicBool,
    pub(crate) newest: AtomicU64,
    pub(crate) changes: AtomicU64,
}

/// Sells things until it is told to stop.
pub(crate) fn sell<'s>(
    scope: &'s Scope<'s, '_>,
    server: &'s PgServer,
    progress: &'s Progress,
) -> ScopedJoinHandle<'s, Result<(), String>> {
    scope.spawn(move || {
        for id in PRODUCTS + 1.. {
            if progress.stop.load(Ordering::Acquire) {
                break;
            }
            let (product, sale) = (1 + id * 37 % PRODUCTS, SALES + id);
            // A sale that is taken back stays so.
            let sql = format!(
                "INSERT INTO products VALUES ({id}, 'New', {id}.5, 1, NULL, '{{\"n\": {id}}}');
                 UPDATE products SET stock = stock - 1 WHERE id = {product};
                 INSERT INTO sales VALUES ('region {}', {sale}, clock_timestamp(), false, {id} * 0.5);
                 DELETE FROM sales WHERE id = {};",
                sale % 5,
                id - PRODUCTS
            );
            server.exec(DATABASE, &sql).map_err(|e| e.to_string())?;
            progress.newest.store(id, Ordering::Release);
            progress.changes.fetch_add(4, Ordering::AcqRel);
            std::thread::sleep(PAUSE);
        }
        Ok(())
    })
}

/// The rows of a table, each value as one text however it is printed.
pub(crate) fn rows(server: &PgServer, (name, key, columns): &Table) -> Done<Rows> {
    let select: Vec<String> = columns.iter().map(|(column, _)| format!("{column}::text")).collect();
    let rows = server.exec(DATABASE, &format!("SELECT {} FROM {name}", select.join(", ")))?;
    Ok(rows.into_iter().map(|row| keyed(*key, columns, row)).collect())
}

/// The same of items.
pub(crate) fn rows_of(items: BTreeMap<String, Item>, (_, key, columns): &Table) -> Rows {
    let row = |item: Item| columns.iter().map(|(column, _)| item.get(*column).and_then(text)).collect();
    items.into_values().map(|item| keyed(*key, columns, row(item))).collect()
}

fn keyed(key: usize, columns: &[(&str, Option<Kind>)], row: Vec<Option<String>>) -> (String, Vec<Option<String>>) {
    let row: Vec<Option<String>> =
        row.into_iter().zip(columns).map(|(value, (_, kind))| value.map(|v| comparable(*kind, &v))).collect();
    (row[..key].iter().flatten().cloned().collect::<Vec<_>>().join("/"), row)
}

fn comparable(kind: Option<Kind>, text: &str) -> String {
    match kind {
        Some(Kind::Instant) => canonical(Kind::Instant, text.trim_end_matches('Z')),
        Some(kind) => canonical(kind, text),
        // Spaces and the order of members do not matter.
        None => serde_json::from_str(text).map_or_else(|_| text.to_owned(), |v: serde_json::Value| v.to_string()),
    }
}

fn text(value: &AttributeValue) -> Option<String> {
    match value {
        AttributeValue::S(v) | AttributeValue::N(v) => Some(v.clone()),
        AttributeValue::Bool(v) => Some(v.to_string()),
        AttributeValue::B(v) => Some(v.as_ref().iter().fold("\\x".to_owned(), |t, byte| format!("{t}{byte:02x}"))),
        AttributeValue::Null(_) => None,
        other => Some(json(other).to_string()),
    }
}

fn json(value: &AttributeValue) -> serde_json::Value {
    match value {
        AttributeValue::M(all) => all.iter().map(|(name, v)| (name.clone(), json(v))).collect(),
        AttributeValue::L(all) => all.iter().map(json).collect(),
        AttributeValue::N(v) => serde_json::from_str(v).unwrap_or_default(),
        AttributeValue::S(v) => v.as_str().into(),
        AttributeValue::Bool(v) => (*v).into(),
        _ => serde_json::Value::Null,
    }
}

/// The items of a table that was copied from DynamoDB, from their documents; with the column `total`,
/// which was declared, against the attribute.
pub(crate) fn copied(server: &PgServer, table: &str, key: &[&str]) -> Done<BTreeMap<String, String>> {
    let total = if table == "orders" { "total::text" } else { "NULL" };
    let mut all = BTreeMap::new();
    for row in server.exec(COPIED, &format!("SELECT item::text, {total} FROM {table}"))? {
        let [Some(item), total] = &row[..] else { return Err("a row without its document".into()) };
        let item = item_from_json(item)?;
        let attribute = item.get("total").and_then(text).filter(|_| table == "orders");
        let total = total.as_ref().map(|v| canonical(Kind::Decimal, v));
        if attribute != total {
            return Err(format!("{table}: the column total is {total:?}, the attribute {attribute:?}").into());
        }
        let key: HashMap<_, _> = key.iter().filter_map(|n| Some(((*n).to_owned(), item.get(*n)?.clone()))).collect();
        all.insert(item_to_json(&key)?, item_to_json(&item)?);
    }
    Ok(all)
}
