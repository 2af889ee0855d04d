//! Source transactions as DynamoDB transactions: items, progress and fence in one call.
//!
//! A transaction takes 100 actions and 4 MB (developer guide, "Transactions"). Small source
//! transactions share one, at their boundaries; each call carries the progress that goes with it.

use std::collections::HashMap;
use std::sync::Arc;

use anabranch_core::{ChangeRef, Error, Op, PartitionId, Position, Progress, Rank, Result, Unit};
use aws_sdk_dynamodb::types::{Delete, Put, TransactWriteItem};
use bytes::Bytes;

use super::Oversized;
use super::fold::{Action, Move, Step, Write, missing, moved_item, overlaid};
use super::guarded::{Guarded, Scan, get, update_of_existing};
use super::item::key_bytes;
use super::progress::{incomplete, transact_by};
use super::table::Table;
use super::version::{RETRIED, Version};
use super::writer::Owned;
use crate::calls::Stop;
use crate::types::Item;

/// How many actions a transaction takes.
const ACTIONS: usize = 100;

/// How many bytes, with room for what progress and expressions need.
const BYTES: usize = 4 * 1024 * 1024 - 256 * 1024;

/// One source transaction, folded.
#[derive(Debug)]
pub(crate) struct Folded {
    pub(crate) steps: Vec<Step>,
    pub(crate) progress: Vec<Progress>,
    pub(crate) transactions: u64,
    pub(crate) changes: u64,
}

/// Applies source transactions, for one lane.
#[derive(Debug)]
pub(crate) struct Transactional<'a> {
    owned: &'a Owned,
    done: &'a mut HashMap<PartitionId, Progress>,
    open: Open,
}

/// The transaction that is being put together.
#[derive(Debug, Default)]
struct Open {
    writes: Vec<Write>,
    places: HashMap<(String, Vec<u8>), usize>,
    size: usize,
    progress: HashMap<PartitionId, Progress>,
    transactions: u64,
    changes: u64,
}

/// What does not fit.
enum Limit {
    Actions(usize),
    Bytes(usize),
}

impl<'a> Transactional<'a> {
    /// `done` is how far the lane is in each partition; it moves with every call that succeeds.
    pub(crate) fn new(owned: &'a Owned, done: &'a mut HashMap<PartitionId, Progress>) -> Self {
        Self { owned, done, open: Open::default() }
    }

    /// Applies these in order. What was applied when it fails stays, and `done` tells how far it is.
    pub(crate) async fn apply(mut self, all: Vec<Folded>) -> Result<()> {
        for one in &all {
            self.refuse_oversized(one)?;
        }
        for one in all {
            self.add(one).await?;
        }
        self.commit().await
    }

    /// Before anything is sent: so that a unit that is refused was not applied in part.
    fn refuse_oversized(&self, one: &Folded) -> Result<()> {
        if self.owned.shared.settings.oversized == Oversized::Guarded {
            return Ok(());
        }
        let mut alone = Open::default();
        for step in &one.steps {
            match step {
                Step::Writes(writes) => writes.iter().for_each(|w| alone.count(w)),
                // What these come to is only known when they are looked up.
                Step::Truncate(..) | Step::Move(_) => return Ok(()),
            }
        }
        match alone.limit(one.progress.len()) {
            Some(limit) => Err(limit.error()),
            None => Ok(()),
        }
    }

    async fn add(&mut self, one: Folded) -> Result<()> {
        let plain = one.steps.iter().all(|s| matches!(s, Step::Writes(_)));
        if !plain || !self.open.has_room_for(&one) {
            self.commit().await?;
        }
        let steps =
            if self.owned.shared.settings.oversized == Oversized::Guarded { Some(one.steps.clone()) } else { None };
        for step in one.steps {
            match step {
                Step::Writes(writes) => writes.into_iter().try_for_each(|w| self.open.write(w))?,
                Step::Move(moved) => self.moved(&moved).await?,
                Step::Truncate(table, version) => self.truncate(&table, &version).await?,
            }
        }
        self.open.transactions += one.transactions;
        self.open.changes += one.changes;
        self.open.progress.extend(one.progress.into_iter().map(|p| (p.partition.clone(), p)));
        match (self.open.limit(0), steps) {
            (None, _) => Ok(()),
            (Some(_), Some(steps)) => {
                // Only this one is open: a larger one than fits was not put to others.
                self.open.clear_writes();
                Guarded(self.owned).apply(steps).await?;
                self.commit().await
            }
            (Some(limit), None) => {
                self.open = Open::default();
                Err(limit.error())
            }
        }
    }

    async fn moved(&mut self, moved: &Move) -> Result<()> {
        let found = match self.open.get(&moved.table, &moved.from) {
            Some(Action::Put(item)) => Some(item.clone()),
            Some(Action::Delete) => None,
            Some(Action::Update { set, remove }) => {
                let (set, remove) = (set.clone(), remove.clone());
                self.stored(moved).await?.map(|item| overlaid(item, set, &remove))
            }
            None => self.stored(moved).await?,
        };
        let Some(item) = found else { return Err(missing(&moved.table, &moved.from)) };
        let write = |key: &Item, action| {
            let (table, version) = (Arc::clone(&moved.table), moved.version.clone());
            Write { table, key: key.clone(), action, version, size: 0 }
        };
        let item = self.owned.without_marks(moved_item(item, moved));
        self.open.write(write(&moved.from, Action::Delete))?;
        self.open.write(write(&moved.to, Action::Put(item)))
    }

    async fn stored(&self, moved: &Move) -> Result<Option<Item>> {
        let found = get(self.owned, &moved.table, &moved.from).await?;
        Ok(found.filter(|item| !item.contains_key(&self.owned.shared.settings.deleted_attribute)))
    }

    async fn truncate(&mut self, table: &Arc<Table>, version: &Version) -> Result<()> {
        self.open.forget(table);
        let limiter = self.owned.shared.limiter(&table.name);
        let mut scan = Scan::keys(table, &self.owned.shared.settings.deleted_attribute);
        while let Some(keys) = scan.next(self.owned.shared.client().await?, &limiter).await? {
            for key in keys {
                let (table, version) = (Arc::clone(table), version.clone());
                self.open.write(Write { table, key, action: Action::Delete, version, size: 64 })?;
            }
            if self.open.limit(0).is_some() {
                break;
            }
        }
        Ok(())
    }

    /// Sends what is open.
    async fn commit(&mut self) -> Result<()> {
        let open = std::mem::take(&mut self.open);
        if open.writes.is_empty() && open.progress.is_empty() && open.transactions == 0 && open.changes == 0 {
            return Ok(());
        }
        let owned = self.owned;
        let mut positions: Vec<&Progress> = open.progress.values().collect();
        // Of items that were applied one by one: their progress needs not be stored at once.
        while open.writes.is_empty() && positions.len() >= ACTIONS {
            let mut actions = vec![owned.row.check()?];
            for progress in positions.drain(..ACTIONS - 1) {
                actions.push(owned.row.position(owned.lane.index, progress)?);
            }
            match transact_by(&owned.shared, &owned.shared.store.limiter, "the bookkeeping", actions).await {
                Ok(()) => {}
                Err(Stop::Cancelled(_)) => return Err(owned.row.fenced(&owned.shared).await),
                Err(stop) => return Err(stop.into_error()),
            }
        }
        let mut actions = vec![owned.row.count(open.changes, open.transactions)?];
        for progress in positions {
            actions.push(owned.row.position(owned.lane.index, progress)?);
        }
        let first = actions.len();
        for write in &open.writes {
            actions.push(action(owned, write)?);
        }
        let name = open.writes.first().map_or("the bookkeeping", |w| w.table.name.as_str());
        let limiter = owned.shared.limiter(name);
        match transact_by(&owned.shared, &limiter, name, actions).await {
            Ok(()) => {}
            Err(Stop::Cancelled(reasons)) => {
                let failed = |at: usize| reasons.get(at).and_then(|r| r.code()) == Some("ConditionalCheckFailed");
                if failed(0) {
                    return Err(owned.row.fenced(&owned.shared).await);
                }
                let lost = open.writes.iter().enumerate().find(|(n, _)| failed(first + n));
                return Err(match lost {
                    Some((_, write)) => missing(&write.table, &write.key),
                    None => Stop::Cancelled(reasons).into_error(),
                });
            }
            Err(stop) => return Err(stop.into_error()),
        }
        self.done.extend(open.progress);
        Ok(())
    }
}

/// Whether these steps, with so many positions, are more than a transaction takes.
pub(crate) fn too_many_actions(steps: &[Step], positions: usize) -> bool {
    let writes = |s: &Step| if let Step::Writes(writes) = s { writes.len() } else { 2 };
    1 + positions + steps.iter().map(writes).sum::<usize>() > ACTIONS
}

/// Rows of a copy: in transactions of their own, fenced, without progress.
pub(crate) async fn copy(owned: &Owned, writes: Vec<Write>) -> Result<()> {
    let mut left = writes.into_iter().peekable();
    while left.peek().is_some() {
        let mut actions = vec![owned.row.check()?];
        let mut size = 0;
        let mut name = String::new();
        while let Some(write) = left.next_if(|w| actions.len() < ACTIONS && size + w.size <= BYTES) {
            size += write.size;
            actions.push(action(owned, &write)?);
            name.clone_from(&write.table.name);
        }
        match transact_by(&owned.shared, &owned.shared.limiter(&name), &name, actions).await {
            Ok(()) => {}
            Err(Stop::Cancelled(reasons))
                if reasons.first().is_some_and(|r| r.code() == Some("ConditionalCheckFailed")) =>
            {
                return Err(owned.row.fenced(&owned.shared).await);
            }
            Err(stop) => return Err(stop.into_error()),
        }
    }
    Ok(())
}

fn action(owned: &Owned, write: &Write) -> Result<TransactWriteItem> {
    let Owned { shared, lane, .. } = owned;
    let settings = &shared.settings;
    let table = &write.table.name;
    let put = |item: Item| -> Result<TransactWriteItem> {
        let put = Put::builder().table_name(table).set_item(Some(item)).build().map_err(incomplete)?;
        Ok(TransactWriteItem::builder().put(put).build())
    };
    match &write.action {
        Action::Put(item) => {
            let mut item = item.clone();
            settings.stamp(&mut item, &lane.pipeline, &write.version);
            put(item)
        }
        // An item that was written by the guarded way may have to outlive a late write.
        Action::Delete if settings.stamps_versions() => {
            put(settings.tombstone(&write.key, &lane.pipeline, &write.version))
        }
        Action::Delete => {
            let delete = Delete::builder().table_name(table).set_key(Some(write.key.clone()));
            Ok(TransactWriteItem::builder().delete(delete.build().map_err(incomplete)?).build())
        }
        Action::Update { set, remove } => {
            let mut set = set.clone();
            settings.stamp(&mut set, &lane.pipeline, &write.version);
            // A deleted item stands there as a tombstone, which is no item to change.
            let deleted = settings.stamps_versions().then_some(settings.deleted_attribute.as_str());
            update_of_existing(&write.table, &write.key, &set, remove, deleted)
        }
    }
}

/// How far a lane is after the last of these changes, where the source says no boundary: in each
/// partition the rank of its last change, with the token of the boundary before.
pub(crate) fn progress_after<'u>(
    changes: impl Iterator<Item = ChangeRef<'u>>,
    done: &HashMap<PartitionId, Progress>,
) -> Vec<Progress> {
    let mut last: HashMap<&PartitionId, Rank> = HashMap::new();
    for change in changes {
        last.insert(change.partition(), change.rank());
    }
    let one = |(partition, rank): (&PartitionId, Rank)| {
        let token = done.get(partition).map_or_else(Bytes::new, |p| p.position.token.clone());
        Progress { partition: partition.clone(), position: Position::new(rank, token), safe_time: None }
    };
    last.into_iter().map(one).collect()
}

/// The changes of a unit that the lane has not applied yet.
pub(crate) fn not_done(unit: &Unit, done: &HashMap<PartitionId, Progress>) -> Unit {
    unit.retain(|c| {
        // Letters that are tried again all have the same rank.
        let applied = done.get(c.partition()).filter(|p| p.partition.as_str() != RETRIED);
        matches!(c.op(), Op::Schema) || applied.is_none_or(|p| c.rank() > p.position.rank)
    })
}

impl Open {
    fn count(&mut self, write: &Write) {
        let place = (write.table.name.clone(), key_bytes(&write.table, &write.key));
        let next = self.places.len();
        self.places.entry(place).or_insert(next);
        self.size += write.size;
    }

    /// With the lane's row, and so many more positions.
    fn limit(&self, positions: usize) -> Option<Limit> {
        let actions = 1 + self.progress.len() + positions + self.places.len();
        if actions > ACTIONS {
            return Some(Limit::Actions(actions));
        }
        (self.size > BYTES).then_some(Limit::Bytes(self.size))
    }

    fn has_room_for(&self, one: &Folded) -> bool {
        let writes = || one.steps.iter().flat_map(|s| if let Step::Writes(w) = s { w.as_slice() } else { &[] });
        let actions = 1 + self.progress.len() + one.progress.len() + self.places.len() + writes().count();
        actions <= ACTIONS && self.size + writes().map(|w| w.size).sum::<usize>() <= BYTES
    }

    fn get(&self, table: &Table, key: &Item) -> Option<&Action> {
        let place = (table.name.clone(), key_bytes(table, key));
        self.places.get(&place).and_then(|&at| self.writes.get(at)).map(|w| &w.action)
    }

    fn write(&mut self, mut write: Write) -> Result<()> {
        let place = (write.table.name.clone(), key_bytes(&write.table, &write.key));
        self.size += write.size;
        let Some(&at) = self.places.get(&place) else {
            self.places.insert(place, self.writes.len());
            self.writes.push(write);
            return Ok(());
        };
        if let Action::Update { set, remove } = write.action {
            write.action = match self.writes[at].action.clone() {
                Action::Put(item) => Action::Put(overlaid(item, set, &remove)),
                Action::Delete => return Err(missing(&write.table, &write.key)),
                Action::Update { set: before, remove: mut all } => {
                    all.retain(|name| !set.contains_key(name));
                    all.extend(remove.iter().filter(|name| !all.contains(name)).cloned().collect::<Vec<_>>());
                    Action::Update { set: overlaid(before, set, &remove), remove: all }
                }
            };
        }
        self.writes[at] = write;
        Ok(())
    }

    /// Drops what is to be written to a table.
    fn forget(&mut self, table: &Table) {
        let all = std::mem::take(&mut self.writes);
        self.places.clear();
        for write in all.into_iter().filter(|w| w.table.name != table.name) {
            self.places.insert((write.table.name.clone(), key_bytes(&write.table, &write.key)), self.writes.len());
            self.writes.push(write);
        }
    }

    fn clear_writes(&mut self) {
        self.writes.clear();
        self.places.clear();
        self.size = 0;
    }
}

impl Limit {
    fn error(&self) -> Error {
        let hint = "set oversized = \"guarded\" in [sink] to apply it item by item, or mode = \"guarded\"";
        Error::rejected(match self {
            Self::Actions(n) => format!(
                "a source transaction needs {n} actions, its progress included; DynamoDB's transactions take {ACTIONS}"
            ),
            Self::Bytes(n) => format!("a source transaction has {n} bytes; DynamoDB's transactions take 4 MB"),
        })
        .hint(hint)
    }
}
