//! Which lane a change goes to.

use std::collections::HashMap;

use crate::model::{ChangeBatch, ChangeRef, Op, RowRef, TableName, TableSchema};
use crate::net_effect::{has_comparable_key, key_bytes};

/// The 64-bit FNV-1a hash, <https://datatracker.ietf.org/doc/html/draft-eastlake-fnv>. Small, and
/// stable over versions and machines, as the hashers of the standard library are not.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fnv(u64);

impl Fnv {
    pub(super) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    #[must_use]
    pub(super) fn with(mut self, bytes: &[u8]) -> Self {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        self
    }

    pub(super) fn modulo(self, lanes: u32) -> u32 {
        (self.0 % u64::from(lanes.max(1))) as u32
    }
}

/// Where a change goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) lane: u32,
    /// It concerns other lanes too.
    pub(super) alone: bool,
}

/// Sends tables and keys to lanes.
#[derive(Debug)]
pub(super) struct Router {
    lanes: u32,
    pinned: HashMap<TableName, u32>,
}

/// How the rows of a table are sent.
#[derive(Debug, Clone, Copy)]
enum TableRoute {
    /// All to one lane.
    Lane(u32),
    /// By key; the hash so far.
    Key(Fnv),
}

/// The routes of one batch.
pub(super) struct Routes {
    lanes: u32,
    tables: Vec<TableRoute>,
    scratch: Vec<u8>,
}

impl Router {
    pub(super) fn new(lanes: u32) -> Self {
        Self { lanes, pinned: HashMap::new() }
    }

    pub(super) fn pin(&mut self, groups: HashMap<TableName, u32>) {
        self.pinned = groups;
    }

    pub(super) fn of_batch(&self, batch: &ChangeBatch) -> Routes {
        let tables = batch.schemas().iter().map(|s| self.of_table(s)).collect();
        Routes { lanes: self.lanes, tables, scratch: Vec::new() }
    }

    fn of_table(&self, table: &TableSchema) -> TableRoute {
        if let Some(group) = self.pinned.get(&table.name) {
            return TableRoute::Lane(group % self.lanes);
        }
        let name = Fnv::new().with(table.name.schema.as_bytes()).with(&[0]).with(table.name.name.as_bytes()).with(&[0]);
        if has_comparable_key(table) { TableRoute::Key(name) } else { TableRoute::Lane(name.modulo(self.lanes)) }
    }
}

impl Routes {
    pub(super) fn of(&mut self, change: ChangeRef<'_>) -> Route {
        if change.op() == Op::Message {
            return Route { lane: 0, alone: false };
        }
        let name = match self.tables[change.schema_index()] {
            _ if self.lanes == 1 => return Route { lane: 0, alone: false },
            // A table may lose its key by it, and with that change lanes.
            TableRoute::Lane(lane) if change.op() == Op::Schema => return Route { lane, alone: true },
            // Everything of the table is on one lane, in order.
            TableRoute::Lane(lane) => return Route { lane, alone: false },
            TableRoute::Key(name) => name,
        };
        let old = change.identity_row().and_then(|row| self.of_key(name, change.schema(), row));
        let new = match change.changes_key() {
            true => change.new_row().and_then(|row| self.of_key(name, change.schema(), row)),
            false => old,
        };
        match (old, new) {
            (Some(old), Some(new)) => Route { lane: new, alone: old != new },
            // A truncate, a schema, or a key of which not every column was sent.
            _ => Route { lane: name.modulo(self.lanes), alone: true },
        }
    }

    fn of_key(&mut self, name: Fnv, table: &TableSchema, row: RowRef<'_>) -> Option<u32> {
        if table.key.iter().any(|&k| row.get(usize::from(k)).is_unchanged()) {
            return None;
        }
        self.scratch.clear();
        key_bytes(table, row, &mut self.scratch);
        Some(name.with(&self.scratch).modulo(self.lanes))
    }
}
