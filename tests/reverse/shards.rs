//! Shards that go away and come back, and a runner that is killed.

use super::Tested;
use super::command::{DONE, until};
use super::shop::{Shop, status};

/// In every order: live writes, kill -9 of the runner, one shard down while the other goes on, kill
/// -9 while it is down, and every row as it should be in the end, each change counted once.
fn survives(order: &str) -> Tested {
    let Some(shop) = Shop::open(&format!("reverse_{order}"))? else { return Ok(()) };
    let Some(command) = shop.command(&shop.config(order, "on_rejected = \"halt_shard\""))? else { return Ok(()) };
    let mut running = command.spawn(&["run"])?;
    running.says("streaming")?;
    shop.trade(1, 20)?;
    running.signal("KILL")?;
    drop(running);
    let running = command.spawn(&["run"])?;
    shop.trade(20, 40)?;
    shop.until_same(0)?;
    shop.until_same(1)?;

    // Shard two goes away: its changes are parked, and shard one goes on.
    shop.shards[1].stop()?;
    shop.trade(40, 80)?;
    shop.until_same(0)?;
    until("letters of shard two", || {
        let status = status(&command)?;
        Ok(status["shards"]["two"]["retryable"].as_u64() > Some(0) && status["shards"]["two"]["phase"] == "halted")
    })?;
    running.signal("KILL")?;
    drop(running);
    let running = command.spawn(&["run"])?;
    shop.trade(80, 100)?;
    shop.until_same(0)?;

    // It comes back: what was parked is applied first.
    shop.shards[1].start()?;
    shop.trade(100, 120)?;
    shop.until_same(1)?;
    drop(running);
    command.drain()?.expect(DONE, &["drained"]);
    shop.assert_same()?;
    // Table "Scratch" is in no shard; the equation of the cut-back is exact.
    shop.write("INSERT INTO \"Scratch\" VALUES (1), (2)")?;
    command.drain()?.expect(DONE, &["drained"]);
    let status = status(&command)?;
    assert_eq!(status["dead_letters_open"], 0, "{status}");
    assert_eq!(status["counters"]["skipped"], 2, "{status}");
    let rows = |sql: &str| -> Tested<u64> { Ok(shop.source.value(&shop.name, sql)?.unwrap_or_default().parse()?) };
    // 119 transactions; of five runs of trade, all but the first four rows of each change and delete.
    let changed: u64 = [20 - 1, 40 - 20, 80 - 40, 100 - 80, 120 - 100].iter().map(|n| n - 4).sum();
    let deleted = 119 - rows("SELECT count(*) FROM \"Orders\"")?;
    assert_eq!(status["counters"]["changes"], 119 * 3 + changed * 2 + deleted, "{status}");
    Ok(())
}

#[test]
fn by_transaction() -> Tested {
    survives("transaction")
}

#[test]
fn by_key() -> Tested {
    survives("key")
}
