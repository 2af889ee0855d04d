//! PostgreSQL to SQLite: copies the tables, then keeps the file up to date.
//!
//! ```sh
//! cargo run --example quickstart                                    # a throwaway PostgreSQL
//! cargo run --example quickstart -- postgresql://me@db1/shop        # yours; `wal_level = logical`
//! cargo run --example quickstart -- postgresql://me@db1/shop copy.db
//! SOURCE_URL=postgresql://me@db1/shop cargo run --example quickstart
//! ```
//!
//! On a server of yours it creates the publication `anabranch` (all tables) and the replication slot
//! `anabranch_quickstart`, and leaves both: a second run goes on where the first one stopped. A slot
//! that nobody reads keeps the server's log: remove it when you are done, with
//! `SELECT pg_drop_replication_slot('anabranch_quickstart')`.

use std::error::Error;

use anabranch::{ByTransaction, Pipeline, Postgres, Sqlite};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let given = args.next().or_else(|| std::env::var("SOURCE_URL").ok());
    let path = args.next().unwrap_or_else(|| "quickstart.db".to_owned());

    // Without a URL: a server in a temporary folder, gone when `shop` is dropped.
    let shop = if given.is_none() { throwaway_shop()? } else { None };
    let Some(url) = given.or_else(|| shop.as_ref().map(|server| server.url("shop"))) else {
        return Err("give the URL of a PostgreSQL, or install one".into());
    };
    if shop.is_some() {
        // The copy of a server that is gone is of no use to the next one.
        let _ = std::fs::remove_file(&path);
    }

    let source = Postgres::new(url.as_str()).publication("anabranch").slot("anabranch_quickstart");
    let mut running = Pipeline::builder("quickstart")
        .source(source)
        .sink(Sqlite::open(&path))
        .order(ByTransaction::new())
        .create_tables(true)
        .build()?
        .start()
        .await?;

    if let Some(server) = &shop {
        running.drain(None).await?; // the tables are copied; what follows is streamed
        server.exec("shop", "UPDATE orders SET state = 'paid' WHERE id <= 2; DELETE FROM orders WHERE id = 3")?;
    }
    // Everything committed before this call is in the file when it returns.
    let drained = running.drain(None).await?;
    let status = running.status();
    println!(
        "drained: {}, {} rows copied, {} changes",
        drained.drained, status.counters.snapshot_rows, status.counters.changes
    );
    if let Some(time) = status.safe_time {
        println!("{path} has everything that was committed at or before {time}");
    }
    running.stop().await?;

    if shop.is_some() {
        for row in rows(&path)? {
            println!("{row}");
        }
    }
    Ok(())
}

/// A PostgreSQL with a few orders, if one is installed.
fn throwaway_shop() -> Result<Option<anabranch_servers::PgServer>, anabranch_servers::Error> {
    let Some(server) = anabranch_servers::postgres(anabranch_servers::PgVersion::Any) else { return Ok(None) };
    server.create_db("shop")?;
    server.exec(
        "shop",
        "CREATE TABLE orders (id bigint PRIMARY KEY, state text NOT NULL, price numeric(10, 2));
         INSERT INTO orders SELECT id, 'new', id * 9.99 FROM generate_series(1, 5) id",
    )?;
    Ok(Some(server))
}

/// What the file holds.
fn rows(path: &str) -> rusqlite::Result<Vec<String>> {
    let file = rusqlite::Connection::open(path)?;
    let mut orders = file.prepare("SELECT id, state, price FROM orders ORDER BY id")?;
    let line = |row: &rusqlite::Row<'_>| {
        let (id, state, price): (i64, String, rusqlite::types::Value) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok(format!("order {id}: {state}, {price:?}"))
    };
    orders.query_map([], line)?.collect()
}
