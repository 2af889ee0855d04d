//! Tables, items, shards and the clock.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};

use crate::spoiled::Spoiled;

/// An item: attributes by name, as on the wire.
pub type Item = BTreeMap<String, Value>;

/// What runs after a call: the operation, its number, and what to do.
type Hook = (String, usize, Box<dyn FnOnce(&mut State) + Send>);

/// How long records are kept.
const DAY_MS: u64 = 24 * 3600 * 1000;

/// Everything that the server knows, and how it behaves.
pub struct State {
    /// The tables.
    pub tables: BTreeMap<String, Table>,
    /// Streams by their ARN, those of the past included.
    pub streams: BTreeMap<String, Stream>,
    /// Shards on a page of `DescribeStream`.
    pub shards_a_page: usize,
    /// Records on a page of `GetRecords`.
    pub records_a_page: usize,
    /// Items on a page of `Scan`.
    pub items_a_page: usize,
    /// So many operations of each `BatchWriteItem` are taken, the others come back as unprocessed.
    pub batch_takes: usize,
    /// So many of the next `GetRecords` give an empty page although records are there.
    pub empty_pages: usize,
    /// So many of the next `DescribeStream` do not show shards that have a parent which is closed.
    pub hide_children: usize,
    /// So many of the next `DescribeStream` show only the first child of a shard that was split.
    pub hide_second_child: usize,
    /// Whether `ShardFilter` is known. Old servers ignore it.
    pub knows_filter: bool,
    /// The shards that an iterator was asked for.
    pub asked: BTreeSet<String>,
    /// Capacity units that each page of a scan tells to have consumed.
    pub scan_units: f64,
    pub(crate) clock_ahead: Duration,
    pub(crate) iterators: u64,
    pub(crate) iterators_from: u64,
    pub(crate) calls: HashMap<String, usize>,
    pub(crate) failures: HashMap<String, VecDeque<String>>,
    pub(crate) spoiled: HashMap<String, VecDeque<Spoiled>>,
    pub(crate) hooks: Vec<Hook>,
    sequence: u128,
    shard_number: u64,
}

/// A table.
#[derive(Debug)]
pub struct Table {
    /// Name and type of the key attributes, the partition key first.
    pub key: Vec<(String, String)>,
    /// By the bytes of their keys.
    pub items: BTreeMap<String, Item>,
    /// The ARN of its latest stream.
    pub stream: Option<String>,
}

/// A stream.
#[derive(Debug)]
pub struct Stream {
    /// When it was enabled.
    pub label: String,
    /// Whether it is.
    pub enabled: bool,
    /// Its view type.
    pub view: String,
    /// Its shards by name.
    pub shards: BTreeMap<String, Shard>,
}

/// A shard.
#[derive(Debug)]
pub struct Shard {
    /// Its parent, which may be gone.
    pub parent: Option<String>,
    /// The number that it begins with.
    pub first: u128,
    /// The number that it ended with, and when.
    pub ended: Option<(u128, u64)>,
    /// The records that are not trimmed.
    pub records: VecDeque<Record>,
    /// Records up to this number are trimmed.
    pub trimmed: u128,
    /// Hashes of partition keys that it takes, both inclusive.
    pub range: (u64, u64),
}

/// A record.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its sequence number.
    pub sequence: u128,
    /// When it was made, in milliseconds since 1970.
    pub time: u64,
    /// As on the wire.
    pub json: Value,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("tables", &self.tables).field("streams", &self.streams).finish_non_exhaustive()
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            tables: BTreeMap::new(),
            streams: BTreeMap::new(),
            shards_a_page: 100,
            records_a_page: 1000,
            items_a_page: 1000,
            batch_takes: usize::MAX,
            empty_pages: 0,
            hide_children: 0,
            hide_second_child: 0,
            knows_filter: true,
            asked: BTreeSet::new(),
            scan_units: 0.5,
            clock_ahead: Duration::ZERO,
            iterators: 0,
            iterators_from: 0,
            calls: HashMap::new(),
            failures: HashMap::new(),
            spoiled: HashMap::new(),
            hooks: Vec::new(),
            // 21 digits, as real ones have at least.
            sequence: 100_000_000_000_000_000_000,
            shard_number: 0,
        }
    }
}

impl State {
    /// The clock, in milliseconds since 1970.
    pub fn now(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + self.clock_ahead;
        now.as_millis() as u64
    }

    pub(crate) fn http_date(&self) -> String {
        let seconds = self.now() / 1000;
        let (year, month, day, weekday) = calendar(seconds / 86_400);
        let names = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
        let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
        let (h, m, s) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        let month = months[month as usize - 1];
        format!("{}, {day:02} {month} {year} {h:02}:{m:02}:{s:02} GMT", names[weekday as usize])
    }

    /// Moves the clock.
    pub fn advance(&mut self, by: Duration) {
        self.clock_ahead += by;
        let horizon = self.now().saturating_sub(DAY_MS);
        for stream in self.streams.values_mut() {
            for shard in stream.shards.values_mut() {
                while shard.records.front().is_some_and(|r| r.time < horizon) {
                    if let Some(record) = shard.records.pop_front() {
                        shard.trimmed = record.sequence;
                    }
                }
            }
            stream.shards.retain(|_, s| s.ended.is_none_or(|(_, at)| at >= horizon));
        }
    }

    pub(crate) fn create_table(&mut self, name: &str, key: Vec<(String, String)>) {
        self.tables.insert(name.to_owned(), Table { key, items: BTreeMap::new(), stream: None });
    }

    /// Enables a new stream, with one shard.
    pub fn enable_stream(&mut self, table: &str, view: &str) {
        // Two streams of a table have two labels, whatever the clock says.
        let ms = self.now() + self.streams.len() as u64;
        let (year, month, day, _) = calendar(ms / 86_400_000);
        let (h, m, s) = (ms / 3_600_000 % 24, ms / 60_000 % 60, ms / 1000 % 60);
        let label = format!("{year}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{:03}", ms % 1000);
        let arn = format!("arn:aws:dynamodb:local:000000000000:table/{table}/stream/{label}");
        let stream = Stream { label, enabled: true, view: view.to_owned(), shards: BTreeMap::new() };
        self.streams.insert(arn.clone(), stream);
        if let Some(table) = self.tables.get_mut(table) {
            table.stream = Some(arn.clone());
        }
        self.open_shard(&arn, None, (0, u64::MAX));
    }

    /// Gives a stream that was just enabled `count` shards, of as many keys each.
    pub fn spread(&mut self, table: &str, count: u64) {
        let arn = self.tables[table].stream.clone().expect("the table has a stream");
        self.stream_mut(table).shards.clear();
        let width = u64::MAX / count;
        for n in 0..count {
            let last = if n + 1 == count { u64::MAX } else { (n + 1) * width - 1 };
            self.open_shard(&arn, None, (n * width, last));
        }
    }

    /// Disables the stream of a table: its shards close, and stay readable.
    pub fn disable_stream(&mut self, table: &str) {
        let (now, sequence) = (self.now(), self.next_sequence());
        let stream = self.stream_mut(table);
        stream.enabled = false;
        for shard in stream.shards.values_mut() {
            shard.ended.get_or_insert((sequence, now));
        }
    }

    fn open_shard(&mut self, arn: &str, parent: Option<String>, range: (u64, u64)) -> String {
        self.shard_number += 1;
        let id = format!("shardId-{:020}-{:08x}", self.shard_number, self.shard_number);
        let first = self.next_sequence();
        let shard = Shard { parent, first, ended: None, records: VecDeque::new(), trimmed: 0, range };
        if let Some(stream) = self.streams.get_mut(arn) {
            stream.shards.insert(id.clone(), shard);
        }
        id
    }

    fn next_sequence(&mut self) -> u128 {
        self.sequence += 1;
        self.sequence
    }

    /// Makes the next `times` calls of an operation fail with this code, as
    /// [`Fake::fail`](crate::Fake::fail) does.
    pub fn fail(&mut self, operation: &str, code: &str, times: usize) {
        self.failures.entry(operation.to_owned()).or_default().extend(vec![code.to_owned(); times]);
    }

    /// Closes a shard and opens two children, of half its keys each.
    pub fn split(&mut self, table: &str, shard: &str) -> [String; 2] {
        let (arn, (low, high)) = self.close(table, shard);
        let middle = low + (high - low) / 2;
        let first = self.open_shard(&arn, Some(shard.to_owned()), (low, middle));
        [first, self.open_shard(&arn, Some(shard.to_owned()), (middle + 1, high))]
    }

    /// Closes a shard and opens one child.
    pub fn roll(&mut self, table: &str, shard: &str) -> String {
        let (arn, range) = self.close(table, shard);
        self.open_shard(&arn, Some(shard.to_owned()), range)
    }

    fn close(&mut self, table: &str, shard: &str) -> (String, (u64, u64)) {
        let (now, sequence) = (self.now(), self.next_sequence());
        let arn = self.tables[table].stream.clone().expect("the table has a stream");
        let shard = self.stream_mut(table).shards.get_mut(shard).expect("the shard is there");
        shard.ended = Some((sequence, now));
        (arn, shard.range)
    }

    /// The stream of a table.
    ///
    /// # Panics
    /// If it has none.
    pub fn stream(&self, table: &str) -> &Stream {
        let arn = self.tables[table].stream.as_ref().expect("the table has a stream");
        &self.streams[arn]
    }

    /// The stream of a table, to change it.
    ///
    /// # Panics
    /// If it has none.
    pub fn stream_mut(&mut self, table: &str) -> &mut Stream {
        let arn = self.tables[table].stream.clone().expect("the table has a stream");
        self.streams.get_mut(&arn).expect("a stream of that name")
    }

    /// Writes an item, or deletes one by its key. Gives what was there.
    pub(crate) fn write(&mut self, table: &str, change: Result<Item, Item>, by: Option<Value>) -> Option<Item> {
        let sequence = self.next_sequence();
        let time = self.now();
        let entry = self.tables.get_mut(table)?;
        let (given, new) = match change {
            Ok(key) => (key, None),
            Err(item) => (item.clone(), Some(item)),
        };
        let keys: Item =
            entry.key.iter().filter_map(|(name, _)| Some((name.clone(), given.get(name)?.clone()))).collect();
        let place = place(&entry.key, &given);
        let old = match &new {
            Some(item) => entry.items.insert(place, item.clone()),
            None => entry.items.remove(&place),
        };
        // A write that changes nothing leaves no record.
        if old != new {
            let hash = hash(entry.key.first().and_then(|(name, _)| given.get(name)));
            let stream = entry.stream.as_ref().and_then(|arn| self.streams.get_mut(arn)).filter(|s| s.enabled);
            if let Some(stream) = stream {
                stream.append(hash, sequence, time, &keys, old.as_ref(), new.as_ref(), by);
            }
        }
        old
    }
}

impl Stream {
    /// The open shards.
    pub fn open_shards(&self) -> Vec<String> {
        self.shards.iter().filter(|(_, s)| s.ended.is_none()).map(|(id, _)| id.clone()).collect()
    }

    #[allow(clippy::too_many_arguments, reason = "a record has as many parts")]
    fn append(
        &mut self,
        hash: u64,
        sequence: u128,
        time: u64,
        keys: &Item,
        old: Option<&Item>,
        new: Option<&Item>,
        by: Option<Value>,
    ) {
        let takes = |s: &&mut Shard| s.ended.is_none() && (s.range.0..=s.range.1).contains(&hash);
        let Some(shard) = self.shards.values_mut().find(takes) else { return };
        let event = match (old, new) {
            (None, _) => "INSERT",
            (Some(_), Some(_)) => "MODIFY",
            (Some(_), None) => "REMOVE",
        };
        let mut data = Map::new();
        // Whole seconds, as the service gives them.
        data.insert("ApproximateCreationDateTime".to_owned(), Value::from(time / 1000));
        data.insert("Keys".to_owned(), object(keys));
        data.insert("SequenceNumber".to_owned(), Value::from(sequence.to_string()));
        data.insert("SizeBytes".to_owned(), Value::from(100));
        data.insert("StreamViewType".to_owned(), Value::from(self.view.as_str()));
        if let Some(new) = new.filter(|_| self.view != "KEYS_ONLY" && self.view != "OLD_IMAGE") {
            data.insert("NewImage".to_owned(), object(new));
        }
        if let Some(old) = old.filter(|_| self.view == "NEW_AND_OLD_IMAGES" || self.view == "OLD_IMAGE") {
            data.insert("OldImage".to_owned(), object(old));
        }
        let mut json = serde_json::json!({
            "eventID": format!("{sequence:x}"), "eventName": event, "eventVersion": "1.1",
            "eventSource": "aws:dynamodb", "awsRegion": "local", "dynamodb": data,
        });
        if let Some(by) = by {
            json["userIdentity"] = by;
        }
        shard.records.push_back(Record { sequence, time, json });
    }
}

pub(crate) fn object(item: &Item) -> Value {
    Value::Object(item.iter().map(|(name, value)| (name.clone(), value.clone())).collect())
}

/// The place of an item among the others.
pub(crate) fn place(key: &[(String, String)], item: &Item) -> String {
    let part = |(name, _): &(String, String)| item.get(name).map(Value::to_string).unwrap_or_default();
    key.iter().map(part).collect::<Vec<_>>().join("\u{0}")
}

pub(crate) fn hash(value: Option<&Value>) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.map(Value::to_string).hash(&mut hasher);
    hasher.finish()
}

/// Year, month, day and day of the week (0 is a Thursday) of a number of days since 1970
/// (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn calendar(days: u64) -> (u64, u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    (year, month, doy - (153 * mp + 2) / 5 + 1, days % 7)
}
