//! Compares every value of every row of every table, shard by shard.

use std::collections::BTreeMap;

use anabranch_servers::Row;
use anabranch_testkit::history::{self, canonical};

use crate::shards::Shards;
use crate::shop::{Kind, SHARDS, Shop, TABLES, Table};
use crate::tell::{Done, say, thousands};

/// Differences that are shown of each table.
const SHOWN: usize = 3;

/// Prints the result; true if nothing differs.
pub(crate) fn tables(shop: &Shop, shards: &Shards) -> Done<bool> {
    let (mut differences, mut rows, mut each) = (0, 0, Vec::new());
    for table in TABLES {
        let mut count = 0;
        for (at, shard) in SHARDS.iter().enumerate() {
            let (there, here) = (by_key(table, shards.read(at, table)?), by_key(table, shop.read(table, shard)?));
            count += here.len() as u64;
            differences += differing(table, shard, &here, &there);
        }
        rows += count;
        each.push(format!("{} is {}, {}", table.name, table.there, thousands(count)));
    }
    say("compared", format!("every value of every row: {}", each.join("; ")));
    match differences {
        0 => say("EQUAL", format!("{} rows in 2 shards: none lost, none doubled, none different", thousands(rows))),
        n => say("DIFFERENT", format!("{} of {} rows", thousands(n), thousands(rows))),
    }
    Ok(differences == 0 && rows > 0)
}

type Rows = BTreeMap<Vec<i64>, Vec<Row>>;

/// More than one row under a key would be doubled ones.
fn by_key(table: &Table, rows: Vec<Row>) -> Rows {
    let mut map = Rows::new();
    for row in rows {
        let number = |v: &Option<String>| v.as_deref().and_then(|v| v.parse().ok()).unwrap_or(i64::MIN);
        let key = row.iter().take(table.keys).map(number).collect();
        let row = table.columns.iter().zip(row).map(|(column, value)| value.map(|v| comparable(column.kind, &v)));
        map.entry(key).or_default().push(row.collect());
    }
    map
}

fn differing(table: &Table, shard: &str, here: &Rows, there: &Rows) -> u64 {
    let keys = here.keys().chain(there.keys().filter(|key| !here.contains_key(*key)));
    let mut count = 0;
    for key in keys.filter(|key| here.get(*key) != there.get(*key)) {
        count += 1;
        if count <= SHOWN as u64 {
            let (ours, theirs) = (here.get(key), there.get(key));
            say("", format!("shard {shard}, {} {key:?}: {ours:?} in Spanner, {theirs:?} in the shard", table.name));
        }
    }
    count
}

/// One text for one value, however a database prints it.
fn comparable(kind: Kind, text: &str) -> String {
    match kind {
        Kind::Plain => canonical(
            history::Kind::Decimal,
            &canonical(history::Kind::Bool, text).replace("true", "1").replace("false", "0"),
        ),
        Kind::Instant => canonical(history::Kind::Instant, text),
        Kind::Bytes | Kind::Text => text.to_owned(),
    }
}
