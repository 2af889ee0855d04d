//! PostgreSQL databases as shards.

use std::fs;

use super::Tested;
use super::command::DONE;
use super::shop::{Shop, status};

#[test]
fn shards_of_postgresql() -> Tested {
    let Some(shop) = Shop::open("reverse_pg")? else { return Ok(()) };
    let config = shop.config("transaction", "on_rejected = \"halt_shard\"");
    let config = config.replace("shards_file =", "shard_type = \"postgres\"\nshards_file =");
    let config = config.replace("accept_relaxed_durability = true", "versions = true");
    let Some(command) = shop.command(&config)? else { return Ok(()) };
    let databases = ["one", "two"].map(|shard| format!("{}_{shard}", shop.name));
    let mut entries = Vec::new();
    for (shard, database) in ["one", "two"].iter().zip(&databases) {
        shop.source.create_db(database)?;
        shop.source.exec(
            database,
            "CREATE SCHEMA shop; CREATE TABLE shop.customers (customer_id bigint PRIMARY KEY, name text); \
             CREATE TABLE shop.orders (order_id bigint PRIMARY KEY, amount numeric(10,2), placed_at timestamptz)",
        )?;
        entries.push(format!(
            r#"{{"logicalShardId":"{shard}","host":"127.0.0.1","port":{},"user":"postgres","password":"not/needed@all",
                "dbName":"{database}","namespace":"shop"}}"#,
            shop.source.port()
        ));
    }
    fs::write(command.folder().join("shards.json"), format!("[{}]", entries.join(",")))?;
    command.drain()?.expect(DONE, &["drained"]);
    shop.trade(1, 30)?;
    command.drain()?.expect(DONE, &["drained"]);
    for (shard, database) in ["one", "two"].iter().zip(&databases) {
        let of = |table: &str, columns: &str| format!("SELECT {columns} FROM {table} ORDER BY 1");
        for (source, columns, there) in [
            ("\"Customers\"", "\"Id\", \"FullName\"", of("shop.customers", "customer_id, name")),
            ("\"Orders\"", "\"Id\", \"Total\", \"At\"", of("shop.orders", "order_id, amount, placed_at")),
        ] {
            let wanted = format!("SELECT {columns} FROM {source} WHERE migration_shard_id = '{shard}' ORDER BY 1");
            let wanted = shop.source.exec(&shop.name, &wanted)?;
            assert!(!wanted.is_empty());
            assert_eq!(shop.source.exec(database, &there)?, wanted, "{shard} {source}");
        }
        let versions = shop.source.value(database, "SELECT count(*) FROM shop.shadow_customers")?;
        assert_eq!(versions.as_deref(), Some("29"));
    }
    let status = status(&command)?;
    assert_eq!(status["counters"]["stale"], 0, "{status}");
    Ok(())
}
