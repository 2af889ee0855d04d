//! The shop in Spanner: its tables, its first rows, and who writes to it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anabranch_servers::{Row, SpannerDialect, SpannerServer};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::tell::Done;

/// The values of `migration_shard_id`.
pub(crate) const SHARDS: [&str; 2] = ["north", "south"];

/// What a column holds: how it is written and compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A number or a truth value.
    Plain,
    Text,
    Instant,
    Bytes,
}

/// A column, and what the shards call it.
#[derive(Debug)]
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) there: &'static str,
    pub(crate) kind: Kind,
}

/// A table, and what the shards call it. Its first columns are the key.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) name: &'static str,
    pub(crate) there: &'static str,
    pub(crate) keys: usize,
    pub(crate) columns: &'static [Column],
}

const fn column(name: &'static str, there: &'static str, kind: Kind) -> Column {
    Column { name, there, kind }
}

/// Parents before children.
pub(crate) const TABLES: &[Table] = &[
    Table {
        name: "Customers",
        there: "customer",
        keys: 1,
        columns: &[
            column("Id", "customer_no", Kind::Plain),
            column("FullName", "name", Kind::Text),
            column("Since", "created", Kind::Instant),
        ],
    },
    Table {
        name: "Orders",
        there: "purchase",
        keys: 1,
        columns: &[
            column("Id", "purchase_no", Kind::Plain),
            column("CustomerId", "customer_no", Kind::Plain),
            column("Total", "amount", Kind::Plain),
            column("Paid", "paid", Kind::Plain),
            column("Placed", "placed_at", Kind::Instant),
            column("Note", "remark", Kind::Text),
        ],
    },
    Table {
        name: "OrderLines",
        there: "purchase_line",
        keys: 2,
        columns: &[
            column("Id", "purchase_no", Kind::Plain),
            column("Line", "line_no", Kind::Plain),
            column("Quantity", "quantity", Kind::Plain),
            column("Picture", "picture", Kind::Bytes),
        ],
    },
];

const SCHEMA: [&str; 3] = [
    "CREATE TABLE Customers (migration_shard_id STRING(50) NOT NULL, Id INT64 NOT NULL, FullName STRING(100), \
     Since TIMESTAMP) PRIMARY KEY (migration_shard_id, Id)",
    "CREATE TABLE Orders (migration_shard_id STRING(50) NOT NULL, Id INT64 NOT NULL, CustomerId INT64, Total NUMERIC, \
     Paid BOOL, Placed TIMESTAMP, Note STRING(1000)) PRIMARY KEY (migration_shard_id, Id)",
    "CREATE TABLE OrderLines (migration_shard_id STRING(50) NOT NULL, Id INT64 NOT NULL, Line INT64 NOT NULL, \
     Quantity INT64, Picture BYTES(16)) PRIMARY KEY (migration_shard_id, Id, Line), \
     INTERLEAVE IN PARENT Orders ON DELETE CASCADE",
];

const CUSTOMERS: u64 = 100;
/// Orders that are there before the writer begins.
pub(crate) const ORDERS: u64 = 200;
/// Rows of each shard at the beginning.
pub(crate) const LOADED: u64 = CUSTOMERS + ORDERS * 3;

/// A database of the emulator.
pub(crate) struct Shop {
    server: Arc<SpannerServer>,
    database: String,
}

impl Shop {
    /// Makes and fills it.
    pub(crate) fn open(server: SpannerServer) -> Done<Self> {
        let database = server.create_db(SpannerDialect::GoogleSql, &SCHEMA)?;
        let shop = Self { server: Arc::new(server), database };
        for shard in SHARDS {
            let rows = |count: u64, one: &dyn Fn(u64) -> String| (1..=count).map(one).collect::<Vec<_>>().join(", ");
            let customer = |n| format!("('{shard}', {n}, 'O\\'Brien \"{n}\" Łódź', TIMESTAMP '2026-01-01 00:00:00Z')");
            let order = |n| {
                let customer = 1 + n % CUSTOMERS;
                format!("('{shard}', {n}, {customer}, {n}.75, {}, TIMESTAMP '2026-02-01 00:00:00Z', NULL)", n % 2 == 0)
            };
            let line = |n: u64| format!("('{shard}', {}, {}, {}, b'\\x00\\xff')", n.div_ceil(2), n % 2, 1 + n % 4);
            let statements = [
                format!(
                    "INSERT INTO Customers (migration_shard_id, Id, FullName, Since) VALUES {}",
                    rows(CUSTOMERS, &customer)
                ),
                format!(
                    "INSERT INTO Orders (migration_shard_id, Id, CustomerId, Total, Paid, Placed, Note) VALUES {}",
                    rows(ORDERS, &order)
                ),
                format!(
                    "INSERT INTO OrderLines (migration_shard_id, Id, Line, Quantity, Picture) VALUES {}",
                    rows(ORDERS * 2, &line)
                ),
            ];
            let statements: Vec<&str> = statements.iter().map(String::as_str).collect();
            shop.server.transaction(&shop.database, &statements)?;
        }
        Ok(shop)
    }

    pub(crate) fn database(&self) -> &str {
        &self.database
    }

    pub(crate) fn host(&self) -> String {
        self.server.host()
    }

    /// All rows of a shard's part of a table, by key.
    pub(crate) fn read(&self, table: &Table, shard: &str) -> Done<Vec<Row>> {
        let column = |c: &Column| match c.kind {
            Kind::Bytes => format!("TO_HEX({})", c.name),
            _ => c.name.to_owned(),
        };
        let columns: Vec<String> = table.columns.iter().map(column).collect();
        let (columns, name) = (columns.join(", "), table.name);
        let sql = format!("SELECT {columns} FROM {name} WHERE migration_shard_id = '{shard}' ORDER BY 1, 2");
        Ok(self.server.exec(&self.database, &sql)?)
    }
}

/// What a writer did.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Written {
    pub(crate) transactions: u64,
    pub(crate) changes: u64,
}

/// Takes orders, one a transaction, until it is stopped.
pub(crate) struct Writer {
    stop: Arc<AtomicBool>,
    newest: Arc<AtomicU64>,
    /// The newest orders with the moment after their commit.
    committed: Arc<Mutex<Vec<(u64, Instant)>>>,
    thread: JoinHandle<Done<Written>>,
}

impl Writer {
    /// Starts it.
    pub(crate) fn start(shop: &Shop) -> Self {
        let (stop, newest) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let committed = Arc::new(Mutex::new(Vec::new()));
        let (server, database) = (Arc::clone(&shop.server), shop.database.clone());
        let shared = (Arc::clone(&stop), Arc::clone(&newest), Arc::clone(&committed));
        let thread = thread::spawn(move || {
            let (stop, newest, committed) = shared;
            let (mut rng, mut written) = (StdRng::seed_from_u64(1), Written::default());
            for number in 1.. {
                if stop.load(Ordering::Acquire) {
                    break;
                }
                let (statements, changes) = purchase(&mut rng, number);
                let statements: Vec<&str> = statements.iter().map(String::as_str).collect();
                server.transaction(&database, &statements)?;
                written.transactions += 1;
                written.changes += changes;
                newest.store(number, Ordering::Release);
                committed.lock().unwrap_or_else(PoisonError::into_inner).push((number, Instant::now()));
            }
            Ok(written)
        });
        Self { stop, newest, committed, thread }
    }

    /// The newest committed order, counted from the writer's first.
    pub(crate) fn newest(&self) -> u64 {
        self.newest.load(Ordering::Acquire)
    }

    /// The commits since the last call.
    pub(crate) fn take_committed(&self) -> Vec<(u64, Instant)> {
        std::mem::take(&mut self.committed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Stops it after its transaction.
    pub(crate) fn stop(self) -> Done<Written> {
        self.stop.store(true, Ordering::Release);
        self.thread.join().map_err(|_| "the writer panicked")?
    }
}

/// One transaction: an order with its lines in both shards, a customer who is renamed, now and then an
/// older order paid, or cancelled with all its lines; and how many rows it changes.
fn purchase(rng: &mut StdRng, number: u64) -> (Vec<String>, u64) {
    let id = ORDERS + number;
    let (mut statements, mut changes) = (Vec::new(), 0);
    let lines = rng.random_range(1..=3_u64);
    for shard in SHARDS {
        let customer = rng.random_range(1..=CUSTOMERS);
        let (minute, second) = (number / 60 % 60, number % 60);
        statements.push(format!(
            "INSERT INTO Orders (migration_shard_id, Id, CustomerId, Total, Paid, Placed, Note) VALUES ('{shard}', {id}, \
             {customer}, {number}.125, false, TIMESTAMP '2026-03-01 12:{minute:02}:{second:02}Z', 'it\\'s \"new\" ü')"
        ));
        let rows: Vec<String> =
            (1..=lines).map(|n| format!("('{shard}', {id}, {n}, {n}, b'\\x{:02x}\\x00')", number % 256)).collect();
        statements.push(format!(
            "INSERT INTO OrderLines (migration_shard_id, Id, Line, Quantity, Picture) VALUES {}",
            rows.join(", ")
        ));
        statements.push(format!(
            "UPDATE Customers SET FullName = 'buyer of {number}' WHERE migration_shard_id = '{shard}' AND Id = {customer}"
        ));
        changes += 2 + lines;
    }
    if number > 20 {
        let (older, shard) = (id - 1 - rng.random_range(0..20_u64), SHARDS[rng.random_range(0..2)]);
        let of = format!("WHERE migration_shard_id = '{shard}' AND Id = {older}");
        statements.push(match rng.random_range(0..3) {
            0 => format!("DELETE FROM Orders {of}"),
            1 => format!("UPDATE OrderLines SET Quantity = Quantity + 1 {of}"),
            _ => format!("UPDATE Orders SET Paid = true, Note = NULL {of}"),
        });
        changes += 1;
    }
    (statements, changes)
}
