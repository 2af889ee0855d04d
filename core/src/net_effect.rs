//! The net effect of a unit: what sinks apply in bulk instead of change by change.
//!
//! A unit ends where its source was consistent, so only the state at its end matters to a
//! transactional target. Per table and key the last state wins: many changes become one upsert, one
//! partial update or one delete. What cannot be folded without guessing is left in order, as a step
//! of its own: truncates, schema changes, a key change of a row whose other columns were not sent,
//! rows without a key, keys whose equality is not that of their text.

use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::model::{ChangeRef, DataType, Op, RowRef, TableSchema, Unit, ValueRef};

/// A step of applying a unit. Steps are applied in order.
#[derive(Debug)]
pub enum Step<'u> {
    /// Rows of several tables, each key at most once. Any order of rows gives the same end.
    Net(Vec<TableEffect<'u>>),
    /// A change to apply by itself, after everything before it and before everything after it.
    InOrder(ChangeRef<'u>),
}

/// What happens to one table. Tables stand in the order of their first change.
#[derive(Debug)]
pub struct TableEffect<'u> {
    /// The table.
    pub schema: &'u Arc<TableSchema>,
    /// Rows that are gone, by the row that identifies each: only its key columns count.
    /// Apply them first, so that a unique value is free before another row takes it.
    pub deletes: Vec<RowRef<'u>>,
    /// Rows that are there afterwards, complete: insert, or replace the row with this key.
    pub upserts: Vec<NetRow<'u>>,
    /// Rows of which some columns were not sent: update the others.
    pub updates: Vec<NetRow<'u>>,
    /// Rows of a table without a key: insert.
    pub inserts: Vec<RowRef<'u>>,
}

/// A row after several changes: for each column the latest value that was sent.
#[derive(Debug, Clone)]
pub struct NetRow<'u> {
    last: RowRef<'u>,
    /// Older rows, latest last; only as long as `last` is not complete.
    earlier: Vec<RowRef<'u>>,
    new: bool,
}

impl<'u> NetRow<'u> {
    fn of(row: RowRef<'u>) -> Self {
        Self { last: row, earlier: Vec::new(), new: false }
    }

    fn then(self, row: RowRef<'u>) -> Self {
        if row.is_complete() {
            return Self { new: self.new, ..Self::of(row) };
        }
        let mut earlier = self.earlier;
        earlier.push(self.last);
        Self { last: row, earlier, new: self.new }
    }

    /// Whether it began with an insert: a target that is where the source was has no such row yet. A
    /// target that is not may have one; to rely on it needs a way back.
    pub fn is_new(&self) -> bool {
        self.new
    }

    /// The value of the column at `index`.
    pub fn get(&self, index: usize) -> ValueRef<'u> {
        let mut value = self.last.get(index);
        let mut older = self.earlier.iter().rev();
        while let (ValueRef::Unchanged, Some(row)) = (value, older.next().copied()) {
            value = row.get(index);
        }
        value
    }

    /// How many columns it has.
    pub fn len(&self) -> usize {
        self.last.len()
    }

    /// Whether it has no columns.
    pub fn is_empty(&self) -> bool {
        self.last.is_empty()
    }

    /// Whether every column was sent.
    pub fn is_complete(&self) -> bool {
        if self.earlier.is_empty() {
            return self.last.is_complete();
        }
        (0..self.len()).all(|i| !self.get(i).is_unchanged())
    }
}

/// The steps that apply this unit.
pub fn steps(unit: &Unit) -> Vec<Step<'_>> {
    let mut folding = Folding::default();
    for change in unit.changes() {
        folding.add(change);
    }
    folding.end_step();
    folding.steps
}

/// Every change as a step of its own, in order: for a target whose constraints refuse the net effect.
pub fn steps_in_order(unit: &Unit) -> Vec<Step<'_>> {
    unit.changes().filter(|c| c.op() != Op::Message).map(Step::InOrder).collect()
}

/// Whether a key of this table can be compared by [`key_bytes`].
pub fn has_comparable_key(schema: &TableSchema) -> bool {
    !schema.key.is_empty() && schema.key_columns().all(|c| c.data_type.text_equality())
}

/// Appends the key of `row` to `out`, so that equal keys of one table give equal bytes. Stable over
/// versions of this library: lanes and held keys are found by it.
pub fn key_bytes(schema: &TableSchema, row: RowRef<'_>, out: &mut Vec<u8>) {
    for &k in &schema.key {
        let index = usize::from(k);
        value_bytes(&schema.columns[index].data_type, row.get(index), out);
    }
}

/// One value of a key: equal values of one type give equal bytes.
pub(crate) fn value_bytes(data_type: &DataType, value: ValueRef<'_>, out: &mut Vec<u8>) {
    match value {
        ValueRef::Unchanged => out.push(b'u'),
        ValueRef::Null => out.push(b'n'),
        ValueRef::Bool(v) => put(out, if v { b"t" } else { b"f" }),
        ValueRef::Int(v) => put(out, v.to_string().as_bytes()),
        ValueRef::Float(v) => put(out, (v + 0.0).to_string().as_bytes()),
        ValueRef::Text(v) => put(out, plain_number(data_type, v).as_bytes()),
        ValueRef::Bytes(v) => put(out, v),
    }
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'v');
    out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// `1.50` and `1.5`, `-0` and `0` are one key.
pub(crate) fn plain_number<'a>(data_type: &DataType, text: &'a str) -> &'a str {
    let text = match data_type {
        DataType::Decimal { .. } if text.contains('.') => text.trim_end_matches('0').trim_end_matches('.'),
        DataType::Decimal { .. } | DataType::Float32 | DataType::Float64 => text,
        _ => return text,
    };
    if text == "-0" { "0" } else { text }
}

#[derive(Default)]
struct Folding<'u> {
    steps: Vec<Step<'u>>,
    tables: Vec<Table<'u>>,
    scratch: Vec<u8>,
}

struct Table<'u> {
    schema: &'u Arc<TableSchema>,
    comparable: bool,
    keys: Keys,
    effects: Vec<Effect<'u>>,
    inserts: Vec<RowRef<'u>>,
}

/// Numbers keys in the order in which they are first seen. One buffer holds all of them, for a unit has
/// thousands; the hash is seeded anew for each table of each unit.
#[derive(Default)]
struct Keys {
    numbers: HashTable<usize>,
    hasher: DefaultHashBuilder,
    bytes: Vec<u8>,
    /// Where each key ends in `bytes`.
    ends: Vec<usize>,
}

impl Keys {
    fn number(&mut self, key: &[u8]) -> usize {
        let Self { numbers, hasher, bytes, ends } = self;
        let of = |n: usize| &bytes[if n == 0 { 0 } else { ends[n - 1] }..ends[n]];
        let hash = hasher.hash_one(key);
        if let Some(&number) = numbers.find(hash, |&n| of(n) == key) {
            return number;
        }
        let number = ends.len();
        numbers.insert_unique(hash, number, |&n| hasher.hash_one(of(n)));
        bytes.extend_from_slice(key);
        ends.push(bytes.len());
        number
    }
}

enum Effect<'u> {
    Delete(RowRef<'u>),
    Upsert(NetRow<'u>),
    Update(NetRow<'u>),
}

impl<'u> Folding<'u> {
    fn add(&mut self, change: ChangeRef<'u>) {
        match change.op() {
            Op::Message => {}
            Op::Truncate(_) | Op::Schema => self.in_order(change),
            Op::Insert | Op::Update | Op::Delete => {
                let at = self.table(change.schema());
                if !self.fold(at, change) {
                    self.in_order(change);
                }
            }
        }
    }

    /// Folds the change into its table's effect; false if it must stand by itself.
    fn fold(&mut self, at: usize, change: ChangeRef<'u>) -> bool {
        let table = &mut self.tables[at];
        if !table.comparable {
            if let (Op::Insert, true, Some(row)) = (change.op(), table.schema.key.is_empty(), change.new_row()) {
                table.inserts.push(row);
                return true;
            }
            return false;
        }
        match (change.op(), change.new_row(), change.identity_row()) {
            (Op::Insert, Some(new), _) => {
                let slot = table.slot(&NetRow::of(new), &mut self.scratch);
                let row = NetRow { new: table.effect(slot).is_none(), ..NetRow::of(new) };
                table.set(slot, Effect::Upsert(row));
            }
            (Op::Delete, _, Some(old)) => {
                let slot = table.slot(&NetRow::of(old), &mut self.scratch);
                table.set(slot, Effect::Delete(old));
            }
            (Op::Update, Some(new), Some(old)) if change.changes_key() => {
                let from = table.slot(&NetRow::of(old), &mut self.scratch);
                let row = match table.effect(from) {
                    Some(Effect::Upsert(row)) => row.clone().then(new),
                    _ => NetRow::of(old).then(new),
                };
                if !row.is_complete() {
                    return false;
                }
                // What the other key held before is not known.
                let row = NetRow { new: false, ..row };
                table.set(from, Effect::Delete(old));
                let to = table.slot(&row, &mut self.scratch);
                table.set(to, Effect::Upsert(row));
            }
            (Op::Update, Some(new), Some(old)) => {
                // The old row, if it was sent, has what the new one lacks: a long key column that
                // did not change, or every column.
                let slot = table.slot(&NetRow::of(old), &mut self.scratch);
                let row = match table.effect(slot) {
                    Some(Effect::Upsert(row) | Effect::Update(row)) => row.clone().then(new),
                    Some(Effect::Delete(_)) => return false,
                    None => NetRow::of(old).then(new),
                };
                let complete = row.is_complete();
                table.set(slot, if complete { Effect::Upsert(row) } else { Effect::Update(row) });
            }
            _ => return false,
        }
        true
    }

    fn table(&mut self, schema: &'u Arc<TableSchema>) -> usize {
        let same = |t: &Table<'u>| Arc::ptr_eq(t.schema, schema);
        if let Some(at) = self.tables.iter().rposition(same) {
            return at;
        }
        if let Some(at) = self.tables.iter().position(|t| t.schema.name == schema.name) {
            if self.tables[at].schema == schema {
                return at;
            }
            // Another version of the table: what came before it is applied before it.
            self.end_step();
        }
        self.tables.push(Table {
            schema,
            comparable: has_comparable_key(schema),
            keys: Keys::default(),
            effects: Vec::new(),
            inserts: Vec::new(),
        });
        self.tables.len() - 1
    }

    fn in_order(&mut self, change: ChangeRef<'u>) {
        self.end_step();
        self.steps.push(Step::InOrder(change));
    }

    fn end_step(&mut self) {
        let effects: Vec<_> = self.tables.drain(..).filter_map(Table::effect_of_all).collect();
        if !effects.is_empty() {
            self.steps.push(Step::Net(effects));
        }
    }
}

impl<'u> Table<'u> {
    /// The slot of this row's key; it may be one past the effects, for a key not seen before.
    fn slot(&mut self, row: &NetRow<'u>, scratch: &mut Vec<u8>) -> usize {
        scratch.clear();
        for &k in &self.schema.key {
            let index = usize::from(k);
            value_bytes(&self.schema.columns[index].data_type, row.get(index), scratch);
        }
        self.keys.number(scratch)
    }

    fn effect(&self, slot: usize) -> Option<&Effect<'u>> {
        self.effects.get(slot)
    }

    fn set(&mut self, slot: usize, effect: Effect<'u>) {
        if slot < self.effects.len() {
            self.effects[slot] = effect;
        } else {
            self.effects.push(effect);
        }
    }

    fn effect_of_all(self) -> Option<TableEffect<'u>> {
        let mut all = TableEffect {
            schema: self.schema,
            deletes: Vec::new(),
            upserts: Vec::new(),
            updates: Vec::new(),
            inserts: self.inserts,
        };
        for effect in self.effects {
            match effect {
                Effect::Delete(row) => all.deletes.push(row),
                Effect::Upsert(row) => all.upserts.push(row),
                Effect::Update(row) => all.updates.push(row),
            }
        }
        let empty =
            all.deletes.is_empty() && all.upserts.is_empty() && all.updates.is_empty() && all.inserts.is_empty();
        (!empty).then_some(all)
    }
}
