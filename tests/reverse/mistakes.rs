//! Mistakes of a new user: each is found at the start, named, with its fix.

use std::fs;

use super::Tested;
use super::command::CONFIGURATION;
use super::shop::Shop;

#[test]
fn files_and_shards() -> Tested {
    let Some(shop) = Shop::open("mistakes")? else { return Ok(()) };
    let Some(command) = shop.command(&shop.config("transaction", ""))? else { return Ok(()) };
    let shards = command.folder().join("shards.json");
    let session = command.folder().join("session.json");
    let good = shop.shards_file();

    for (text, says) in [
        ("[", "is not JSON"),
        ("[]", "names no shard"),
        (&good.replace("\"two\"", "\"one\""), "shard one comes twice"),
        (&good.replace("\"dbName\":\"shop\"", "\"dbName\":\"\""), "dbName is missing or empty"),
        (&good.replace("\"password\":\"\",", ""), "neither a password nor a secretManagerUri"),
    ] {
        fs::write(&shards, text)?;
        command.check()?.expect(CONFIGURATION, &["shards.json", says]);
    }
    // What is wrong with several shards is told at once.
    fs::write(&shards, good.replace("\"dbName\":\"shop\"", "\"dbName\":\"elsewhere\""))?;
    command.drain()?.expect(CONFIGURATION, &["shard one", "shard two", "elsewhere"]);
    fs::write(&shards, &good)?;
    shop.shards[0].exec("shop", "DROP TABLE orders")?;
    command.drain()?.expect(CONFIGURATION, &["orders"]);
    shop.shards[0].exec(
        "shop",
        "CREATE TABLE orders (order_id bigint PRIMARY KEY, amount decimal(10,2), placed_at datetime(6))",
    )?;
    shop.shards[1].exec("shop", "ALTER TABLE orders MODIFY amount decimal(12,4)")?;
    command.drain()?.expect(CONFIGURATION, &["shard two", "amount is decimal(12,4)"]);
    shop.shards[1].exec("shop", "ALTER TABLE orders MODIFY amount decimal(10,2)")?;

    fs::write(&session, "{}")?;
    command.check()?.expect(CONFIGURATION, &["session.json", "SpSchema"]);
    Ok(())
}

#[test]
fn a_read_only_shard_is_found_at_the_start() -> Tested {
    let Some(shop) = Shop::open("mistakes_read_only")? else { return Ok(()) };
    let Some(command) = shop.command(&shop.config("transaction", ""))? else { return Ok(()) };
    for shard in &shop.shards {
        shard.exec("", "CREATE USER app; GRANT ALL ON shop.* TO app; SET GLOBAL read_only = 1")?;
    }
    fs::write(command.folder().join("shards.json"), shop.shards_file().replace("\"root\"", "\"app\""))?;
    command.drain()?.expect(CONFIGURATION, &["shard one", "shard two", "read-only"]);
    Ok(())
}
