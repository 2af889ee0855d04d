//! Which lane a change goes to.

use std::collections::HashMap;
use std::sync::Arc;

use crate::hash::Fnv;
use crate::model::{ChangeBatch, ChangeRef, Op, RowRef, TableName, TableSchema};
use crate::net_effect::{has_comparable_key, key_bytes};

/// Where a change goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) lane: u32,
    /// It concerns other lanes too.
    pub(super) alone: bool,
}

/// Which lanes write to which shard: those of a shard stand together, in the order of the shards.
///
/// A change of a shard that is not known, or of none, goes to the first lane: whoever writes there
/// finds out that it is not its own.
#[derive(Debug, Clone)]
pub struct ShardLanes {
    places: HashMap<Arc<str>, u32>,
    lanes: u32,
}

impl ShardLanes {
    /// These shards, with this many lanes each.
    pub fn new(names: impl IntoIterator<Item = Arc<str>>, lanes: u32) -> Self {
        Self { places: names.into_iter().zip(0..).collect(), lanes: lanes.max(1) }
    }

    /// The number of all lanes.
    pub fn count(&self) -> u32 {
        self.places.len() as u32 * self.lanes
    }

    /// The first lane of the change's shard.
    pub(super) fn first(&self, change: ChangeRef<'_>) -> u32 {
        change.shard().and_then(|shard| self.places.get(shard)).copied().unwrap_or(0) * self.lanes
    }
}

/// Sends tables and keys to lanes.
#[derive(Debug)]
pub(super) struct Router {
    /// Of each shard, where there are shards.
    lanes: u32,
    pinned: HashMap<TableName, u32>,
    shards: Option<ShardLanes>,
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
pub(super) struct Routes<'r> {
    lanes: u32,
    shards: Option<&'r ShardLanes>,
    tables: Vec<TableRoute>,
    scratch: Vec<u8>,
}

impl Router {
    pub(super) fn new(lanes: u32) -> Self {
        Self { lanes, pinned: HashMap::new(), shards: None }
    }

    pub(super) fn shards(&mut self, shards: ShardLanes) {
        self.lanes = shards.lanes;
        self.shards = Some(shards);
    }

    pub(super) fn pin(&mut self, groups: HashMap<TableName, u32>) {
        self.pinned = groups;
    }

    pub(super) fn of_batch(&self, batch: &ChangeBatch) -> Routes<'_> {
        let tables = batch.schemas().iter().map(|s| self.of_table(s)).collect();
        Routes { lanes: self.lanes, shards: self.shards.as_ref(), tables, scratch: Vec::new() }
    }

    fn of_table(&self, table: &TableSchema) -> TableRoute {
        if let Some(group) = self.pinned.get(&table.name) {
            return TableRoute::Lane(group % self.lanes);
        }
        let name = Fnv::new().with(table.name.schema.as_bytes()).with(&[0]).with(table.name.name.as_bytes()).with(&[0]);
        if has_comparable_key(table) { TableRoute::Key(name) } else { TableRoute::Lane(name.modulo(self.lanes)) }
    }
}

impl Routes<'_> {
    pub(super) fn of(&mut self, change: ChangeRef<'_>) -> Route {
        let route = self.within(change);
        match self.shards {
            Some(shards) => Route { lane: shards.first(change) + route.lane, ..route },
            None => route,
        }
    }

    /// The route among the lanes of its shard.
    fn within(&mut self, change: ChangeRef<'_>) -> Route {
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
