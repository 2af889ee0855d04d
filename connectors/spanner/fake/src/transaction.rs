//! A committed transaction, as a test writes it down.

use std::sync::Arc;

use serde_json::{Map, Value as Json};

use crate::record::{Capture, Data, Mod, ModType};
use crate::table::Table;
use crate::time::Time;

/// A transaction: changes of rows, each in a partition, at one commit time.
///
/// Sequence numbers, counts of records and partitions, and the mark of the last record follow from
/// the changes: neighbours of one partition, table and kind share a record, as with Spanner.
///
/// ```
/// use std::sync::Arc;
/// use anabranch_spanner_fake::{Committed, Table, Time};
/// use serde_json::json;
/// let orders = Arc::new(Table::new("Orders").key("Id", "INT64").column("Note", "STRING"));
/// let transaction = Committed::at(Time::seconds(5)).tag("txBy=me")
///     .insert("left", &orders, json!({"Id": "1", "Note": "new"}))
///     .update("right", &orders, json!({"Id": "9", "Note": "other"}), json!({"Note": "old"}))
///     .delete("right", &orders, json!({"Id": "8", "Note": "gone"}));
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct Committed {
    pub(crate) at: Time,
    id: Option<String>,
    tag: String,
    system: bool,
    capture: Capture,
    changes: Vec<(String, Arc<Table>, ModType, Mod)>,
}

impl Committed {
    /// An empty transaction. Its identifier is made from the time unless one is given.
    pub fn at(time: Time) -> Self {
        Self { at: time, id: None, tag: String::new(), system: false, capture: Capture::default(), changes: Vec::new() }
    }

    /// Its `server_transaction_id`: another one for each transaction of one time.
    pub fn id(mut self, id: &str) -> Self {
        self.id = Some(id.to_owned());
        self
    }

    /// Its tag.
    pub fn tag(mut self, tag: &str) -> Self {
        self.tag = tag.to_owned();
        self
    }

    /// It is the database's own: a TTL's delete.
    pub fn system(mut self) -> Self {
        self.system = true;
        self
    }

    /// Which values are captured.
    pub fn capture(mut self, capture: Capture) -> Self {
        self.capture = capture;
        self
    }

    /// A new row, all its columns.
    pub fn insert(self, partition: &str, table: &Arc<Table>, row: Json) -> Self {
        let (keys, new) = split(table, row);
        self.with(partition, table, ModType::Insert, Mod { keys, new, old: Map::new() })
    }

    /// A changed row: the key with the new values of `row`, and the old values as captured.
    pub fn update(self, partition: &str, table: &Arc<Table>, row: Json, old: Json) -> Self {
        let (keys, new) = split(table, row);
        let (_, old) = split(table, old);
        self.with(partition, table, ModType::Update, Mod { keys, new, old })
    }

    /// A deleted row: its key, and its old values.
    pub fn delete(self, partition: &str, table: &Arc<Table>, row: Json) -> Self {
        let (keys, old) = split(table, row);
        self.with(partition, table, ModType::Delete, Mod { keys, new: Map::new(), old })
    }

    fn with(mut self, partition: &str, table: &Arc<Table>, kind: ModType, change: Mod) -> Self {
        self.changes.push((partition.to_owned(), Arc::clone(table), kind, change));
        self
    }

    /// Its records, each with its partition, in order.
    pub(crate) fn records(self) -> Vec<(String, Data)> {
        let mut records: Vec<(String, Data)> = Vec::new();
        let id = self.id.unwrap_or_else(|| format!("tx-{}", self.at.0));
        for (partition, table, kind, change) in self.changes {
            let last = records.last_mut().filter(|(p, d)| *p == partition && d.table == table && d.kind == kind);
            if let Some((_, data)) = last {
                data.mods.push(change);
                continue;
            }
            let sequence = records.len() as u64;
            records.push((
                partition,
                Data {
                    at: self.at,
                    sequence,
                    transaction: id.clone(),
                    last_in_partition: false,
                    table,
                    mods: vec![change],
                    kind,
                    capture: self.capture,
                    records: 0,
                    partitions: 0,
                    tag: self.tag.clone(),
                    system: self.system,
                },
            ));
        }
        number(&mut records);
        records
    }
}

fn number(records: &mut [(String, Data)]) {
    let mut partitions: Vec<String> = records.iter().map(|(p, _)| p.clone()).collect();
    partitions.sort();
    partitions.dedup();
    let (count, total) = (partitions.len() as u64, records.len() as u64);
    for (_, data) in records.iter_mut() {
        (data.records, data.partitions) = (total, count);
    }
    for partition in partitions {
        if let Some((_, data)) = records.iter_mut().rev().find(|(p, _)| *p == partition) {
            data.last_in_partition = true;
        }
    }
}

/// The key columns of a row, and the others.
fn split(table: &Table, row: Json) -> (Map<String, Json>, Map<String, Json>) {
    let Json::Object(row) = row else { return (Map::new(), Map::new()) };
    row.into_iter().partition(|(name, _)| table.find(name).is_some_and(|(_, c)| c.key))
}
