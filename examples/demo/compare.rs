//! Compares every value of every row of every table.

use std::collections::BTreeMap;

use anabranch_servers::Row;
use anabranch_testkit::history::{self, canonical};

use crate::shop::{Kind, Shop, TABLES, Table};
use crate::target::Target;
use crate::tell::{Done, say, thousands};

/// Differences that are shown of each table.
const SHOWN: usize = 3;

/// Prints the result; true if nothing differs.
pub(crate) fn tables(shop: &Shop<'_>, target: &dyn Target) -> Done<bool> {
    let mut differences = 0;
    let mut rows = 0;
    let mut each = Vec::new();
    for table in TABLES {
        let (source, copy) = (by_key(table, shop.read(table)?), by_key(table, target.read(table)?));
        rows += source.len() as u64;
        each.push(format!("{} {}", table.0, thousands(source.len() as u64)));
        differences += differing(table, &source, &copy);
    }
    say("compared", format!("every value of every row: {}", each.join(", ")));
    match differences {
        0 => say("EQUAL", format!("{} rows: none lost, none doubled, none different", thousands(rows))),
        n => say("DIFFERENT", format!("{} of {} rows", thousands(n), thousands(rows))),
    }
    Ok(differences == 0)
}

type Rows = BTreeMap<i64, Vec<Row>>;

/// More than one row under a key would be doubled ones.
fn by_key((_, columns): &Table, rows: Vec<Row>) -> Rows {
    let mut map = Rows::new();
    for row in rows {
        let key = row.first().cloned().flatten().and_then(|key| key.parse().ok()).unwrap_or(i64::MIN);
        let row = columns.iter().zip(row).map(|((_, kind), value)| value.map(|text| comparable(*kind, &text)));
        map.entry(key).or_default().push(row.collect());
    }
    map
}

fn differing((name, _): &Table, source: &Rows, copy: &Rows) -> u64 {
    let keys = source.keys().chain(copy.keys().filter(|key| !source.contains_key(key)));
    let mut count = 0;
    for key in keys.filter(|key| source.get(key) != copy.get(key)) {
        count += 1;
        if count <= SHOWN as u64 {
            say("", format!("{name} {key}: {:?} in PostgreSQL, {:?} in the copy", source.get(key), copy.get(key)));
        }
    }
    count
}

/// One text for one value, however a database prints it.
fn comparable(kind: Kind, text: &str) -> String {
    let kind = match kind {
        Kind::Json => {
            // Spaces and the order of members do not matter.
            let value: Result<serde_json::Value, _> = serde_json::from_str(text);
            return value.map_or_else(|_| text.to_owned(), |value| value.to_string());
        }
        Kind::Int => history::Kind::Int,
        Kind::Text => history::Kind::Text,
        Kind::Decimal => history::Kind::Decimal,
        Kind::Instant => history::Kind::Instant,
        Kind::Bytes => history::Kind::Bytes,
        Kind::Bool => history::Kind::Bool,
    };
    canonical(kind, text)
}
