//! The shop: its tables, its first rows, and who writes to it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anabranch_servers::{PgServer, Row};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio_postgres::NoTls;

use crate::tell::Done;

/// What a column holds: how its text is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Int,
    Text,
    Decimal,
    Instant,
    Json,
    Bytes,
    Bool,
}

/// A table: name, columns, the first one being the key.
pub(crate) type Table = (&'static str, &'static [(&'static str, Kind)]);

/// Parents before children.
pub(crate) const TABLES: &[Table] = &[
    ("customers", &[("id", Kind::Int), ("name", Kind::Text), ("profile", Kind::Json), ("since", Kind::Instant)]),
    (
        "products",
        &[
            ("id", Kind::Int),
            ("title", Kind::Text),
            ("price", Kind::Decimal),
            ("stock", Kind::Int),
            ("picture", Kind::Bytes),
        ],
    ),
    (
        "orders",
        &[
            ("id", Kind::Int),
            ("customer_id", Kind::Int),
            ("placed", Kind::Instant),
            ("paid", Kind::Bool),
            ("total", Kind::Decimal),
            ("note", Kind::Text),
        ],
    ),
    (
        "order_lines",
        &[
            ("id", Kind::Int),
            ("order_id", Kind::Int),
            ("product_id", Kind::Int),
            ("quantity", Kind::Int),
            ("price", Kind::Decimal),
        ],
    ),
];

const CUSTOMERS: u64 = 3_000;
const PRODUCTS: u64 = 500;
const ORDERS: u64 = 12_000;
const LINES_EACH: u64 = 3;

const SCHEMA: &str = "
CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL, profile jsonb, since timestamptz NOT NULL);
CREATE TABLE products (id int PRIMARY KEY, title text NOT NULL, price numeric(12,2) NOT NULL, stock int NOT NULL, picture bytea);
CREATE TABLE orders (id bigint PRIMARY KEY, customer_id int NOT NULL REFERENCES customers,
    placed timestamptz NOT NULL, paid bool NOT NULL, total numeric(12,2), note text);
CREATE TABLE order_lines (id bigint PRIMARY KEY, order_id bigint NOT NULL REFERENCES orders ON DELETE CASCADE,
    product_id int NOT NULL REFERENCES products, quantity int NOT NULL, price numeric(12,2) NOT NULL);
CREATE INDEX ON order_lines (order_id);
CREATE PUBLICATION shop FOR TABLE customers, products, orders, order_lines;";

/// A database of the server.
pub(crate) struct Shop<'a> {
    server: &'a PgServer,
    database: String,
}

impl<'a> Shop<'a> {
    /// Makes and fills it.
    pub(crate) fn open(server: &'a PgServer, target: &str) -> Done<Self> {
        let shop = Self { server, database: format!("shop for {target}") };
        server.create_db(&shop.database)?;
        server.exec(&shop.database, SCHEMA)?;
        server.exec(&shop.database, &first_rows())?;
        Ok(shop)
    }

    /// Its address.
    pub(crate) fn url(&self) -> String {
        self.server.url(&self.database.replace(' ', "%20"))
    }

    /// How many rows it was filled with.
    pub(crate) fn loaded(&self) -> u64 {
        CUSTOMERS + PRODUCTS + ORDERS + ORDERS * LINES_EACH
    }

    /// How many rows of `table` nobody removes: what a complete copy has at least.
    pub(crate) fn at_least(table: &str) -> u64 {
        match table {
            "customers" => CUSTOMERS,
            "products" => PRODUCTS,
            "orders" => ORDERS,
            _ => ORDERS * LINES_EACH,
        }
    }

    /// How many rows it has.
    pub(crate) fn rows(&self) -> Done<u64> {
        let counts: Vec<String> = TABLES.iter().map(|(name, _)| format!("(SELECT count(*) FROM {name})")).collect();
        let sum = self.server.value(&self.database, &format!("SELECT {}", counts.join(" + ")))?;
        Ok(sum.unwrap_or_default().parse()?)
    }

    /// All rows of a table, by key.
    pub(crate) fn read(&self, (name, columns): &Table) -> Done<Vec<Row>> {
        let columns: Vec<String> = columns.iter().map(|(column, _)| format!("{column}::text")).collect();
        Ok(self.server.exec(&self.database, &format!("SELECT {} FROM {name} ORDER BY id", columns.join(", ")))?)
    }

    /// Removes its slots: the server keeps what they have not read.
    pub(crate) fn close(self) -> Done {
        let slots = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
                     WHERE database = current_database() AND NOT active";
        self.server.exec(&self.database, slots)?;
        Ok(())
    }
}

fn first_rows() -> String {
    format!(
        r#"INSERT INTO customers SELECT i, 'O''Brien "' || i || '" \ Łódź',
             jsonb_build_object('tier', i % 3, 'tags', jsonb_build_array('a"b', 'ü', i), 'vip', i % 7 = 0),
             timestamptz '2026-01-01 00:00:00Z' + i * interval '61.000001 seconds' FROM generate_series(1, {CUSTOMERS}) i;
           INSERT INTO products SELECT i, 'Thing ' || i, i * 1.25, 1000000, decode(md5(i::text), 'hex')
             FROM generate_series(1, {PRODUCTS}) i;
           INSERT INTO orders SELECT i, 1 + i % {CUSTOMERS}, timestamptz '2026-02-01 00:00:00Z' + i * interval '1 second',
             i % 2 = 0, i * 0.75, CASE WHEN i % 5 = 0 THEN E'line one\nline ''two''' END FROM generate_series(1, {ORDERS}) i;
           INSERT INTO order_lines SELECT i, 1 + i % {ORDERS}, 1 + i % {PRODUCTS}, 1 + i % 4, (i % 100) * 0.25
             FROM generate_series(1, {ORDERS} * {LINES_EACH}) i;"#
    )
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
    thread: JoinHandle<Result<Written, tokio_postgres::Error>>,
}

impl Writer {
    /// Starts it.
    pub(crate) fn start(shop: &Shop<'_>) -> Self {
        let (stop, newest) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(ORDERS)));
        let committed = Arc::new(Mutex::new(Vec::new()));
        let url = shop.url();
        let shared = (stop.clone(), newest.clone(), committed.clone());
        let thread = thread::spawn(move || write(&url, shared));
        Self { stop, newest, committed, thread }
    }

    /// The newest committed order.
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
        let written = self.thread.join().map_err(|_| "the writer panicked")??;
        Ok(written)
    }
}

type Shared = (Arc<AtomicBool>, Arc<AtomicU64>, Arc<Mutex<Vec<(u64, Instant)>>>);

fn write(url: &str, (stop, newest, committed): Shared) -> Result<Written, tokio_postgres::Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    // Without its runtime this thread has nothing to do.
    let Ok(runtime) = runtime else { return Ok(Written::default()) };
    runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        tokio::spawn(connection);
        let (mut rng, mut written) = (StdRng::seed_from_u64(1), Written::default());
        for order in ORDERS + 1.. {
            if stop.load(Ordering::Acquire) {
                break;
            }
            let (sql, changes) = order_sql(&mut rng, order);
            client.batch_execute(&sql).await?;
            written.transactions += 1;
            written.changes += changes;
            newest.store(order, Ordering::Release);
            committed.lock().unwrap_or_else(PoisonError::into_inner).push((order, Instant::now()));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(written)
    })
}

/// One transaction: an order with its lines, the stock it takes, now and then an older order of this
/// session paid or cancelled; and how many rows it changes.
fn order_sql(rng: &mut StdRng, order: u64) -> (String, u64) {
    let customer = rng.random_range(1..=CUSTOMERS);
    let mut sql = format!(
        "BEGIN; INSERT INTO orders VALUES ({order}, {customer}, clock_timestamp(), false, {order} * 0.5, 'it''s \"new\"');"
    );
    let mut changes = 1;
    for line in 0..rng.random_range(1..=4_u64) {
        let (id, product) = (ORDERS * LINES_EACH + order * 10 + line, rng.random_range(1..=PRODUCTS));
        sql.push_str(&format!(
            "INSERT INTO order_lines VALUES ({id}, {order}, {product}, 1, 9.99);
             UPDATE products SET stock = stock - 1 WHERE id = {product};"
        ));
        changes += 2;
    }
    let older = order.saturating_sub(rng.random_range(2..50));
    if older > ORDERS {
        match rng.random_range(0..4) {
            0 => sql.push_str(&format!("UPDATE order_lines SET quantity = quantity + 1 WHERE order_id = {older};")),
            1 => sql.push_str(&format!("DELETE FROM order_lines WHERE order_id = {older};")),
            _ => sql.push_str(&format!("UPDATE orders SET paid = true, note = NULL WHERE id = {older};")),
        }
        changes += 1;
    }
    sql.push_str("COMMIT");
    (sql, changes)
}
