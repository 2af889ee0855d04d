//! A shard that refuses a row: every dead-letter mode and every run mode, with the shard repaired.

use super::Tested;
use super::command::{DONE, OPERATOR, until};
use super::shop::{Shop, status};

const REFUSE: &str = "ALTER TABLE customers ADD CONSTRAINT polite CHECK (name <> 'rude')";
const REPAIR: &str = "ALTER TABLE customers DROP CONSTRAINT polite";
const RUDE: &str = "INSERT INTO \"Customers\" VALUES ('two', 100, 'rude')";

/// By default the pipeline stops at its place, and goes on once the shard is repaired.
#[test]
fn stop_and_go_on() -> Tested {
    let Some(shop) = Shop::open("letters_stop")? else { return Ok(()) };
    let Some(command) = shop.command(&shop.config("transaction", ""))? else { return Ok(()) };
    command.drain()?.expect(DONE, &["drained"]);
    shop.shards[1].exec("shop", REFUSE)?;
    shop.trade(1, 10)?;
    shop.write(RUDE)?;
    command.drain()?.expect(OPERATOR, &["customers", "100", "polite"]);
    shop.shards[1].exec("shop", REPAIR)?;
    command.drain()?.expect(DONE, &["drained"]);
    shop.assert_same()
}

/// The shard is halted alone; the first try after the repair applies everything, in order.
#[test]
fn halt_and_resume() -> Tested {
    let Some(shop) = Shop::open("letters_halt")? else { return Ok(()) };
    let config = shop.config("transaction", "on_rejected = \"halt_shard\"");
    let Some(command) = shop.command(&config)? else { return Ok(()) };
    command.drain()?.expect(DONE, &["drained"]);
    shop.shards[1].exec("shop", REFUSE)?;
    shop.write(RUDE)?;
    shop.trade(1, 20)?;
    command.drain()?.expect(OPERATOR, &["dead letter"]);
    shop.until_same(0)?;
    let halted = status(&command)?;
    assert_eq!(halted["shards"]["two"]["phase"], "waiting", "{halted}");
    shop.shards[1].exec("shop", REPAIR)?;
    let running = command.spawn(&["run"])?;
    shop.until_same(1)?;
    running.signal("TERM")?;
    running.ended()?.expect(DONE, &[]);
    shop.assert_same()
}

/// `regular` gives up after the attempts it has; `retry_dlq` takes the severe ones, `retry_all_dlq` all.
#[test]
fn run_modes() -> Tested {
    for (mode, severe) in [("retry-dlq", true), ("retry-all-dlq", false)] {
        let Some(shop) = Shop::open("letters_modes")? else { return Ok(()) };
        let attempts = if severe { 1 } else { 500 };
        let letters = format!("on_rejected = \"dead_letter\"\nmax_attempts = {attempts}\nretry_minutes = 0.01");
        let Some(command) = shop.command(&shop.config("key", &letters))? else { return Ok(()) };
        command.drain()?.expect(DONE, &["drained"]);
        shop.shards[1].exec("shop", REFUSE)?;
        shop.write(RUDE)?;
        let running = command.spawn(&["run"])?;
        until("the row was refused", || Ok(status(&command)?["dead_letters_open"].as_u64() == Some(1)))?;
        shop.write("UPDATE \"Customers\" SET \"FullName\" = 'still here' WHERE \"Id\" = 100")?;
        shop.trade(1, 10)?;
        until("the letter was tried again", || {
            let two = status(&command)?["shards"]["two"].clone();
            Ok(if severe { two["severe"].as_u64() == Some(1) } else { two["retryable"].as_u64() >= Some(2) })
        })?;
        shop.until_same(0)?;
        running.signal("TERM")?;
        running.ended()?.expect(DONE, &[]);
        // Not mended yet: tried, refused, and still open.
        command.call(&["run", "--mode", mode])?.expect(OPERATOR, &["2 dead letters are open"]);
        shop.shards[1].exec("shop", REPAIR)?;
        command.call(&["run", "--mode", mode])?.expect(DONE, &["replayed: no dead letters are open"]);
        command.drain()?.expect(DONE, &["drained"]);
        shop.assert_same()?;
    }
    Ok(())
}

/// A shard that nobody knows is severe at once, and the others go on.
#[test]
fn an_unknown_shard() -> Tested {
    let Some(shop) = Shop::open("letters_unknown")? else { return Ok(()) };
    let Some(command) = shop.command(&shop.config("key", "on_rejected = \"dead_letter\""))? else { return Ok(()) };
    command.drain()?.expect(DONE, &["drained"]);
    shop.write("INSERT INTO \"Customers\" VALUES ('three', 1, 'lost')")?;
    shop.trade(1, 10)?;
    command.drain()?.expect(OPERATOR, &["1 dead letter is open"]);
    command.call(&["dead-letters", "list"])?.expect(DONE, &["there is no shard three (known: one, two)", "Severe"]);
    shop.write("DELETE FROM \"Customers\" WHERE migration_shard_id = 'three'")?;
    command.drain()?.expect(OPERATOR, &["2 dead letters are open"]);
    shop.until_same(0)?;
    shop.until_same(1)
}
