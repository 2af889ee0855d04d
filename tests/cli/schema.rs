//! A table that changes on the source while it is replicated, under each policy.

use super::Tested;
use super::command::{Anabranch, DONE, OPERATOR};
use super::shop::Shop;

/// A running pipeline of a shop, with this policy.
fn command(shop: &Shop, policy: &str) -> Tested<Option<Anabranch>> {
    let Some(command) = shop.command()? else { return Ok(None) };
    command.write(&(shop.head() + &format!("on_schema_change = \"{policy}\"\n") + &shop.sink()))?;
    Ok(Some(command))
}

/// The statement is made on both sides while it runs, the target's first, and a row follows it.
fn goes_on(shop: &Shop, command: &Anabranch, change: &str) -> Tested {
    let mut running = command.spawn(&["run"])?;
    running.says(" streaming | ")?;
    shop.on_target(change)?;
    shop.on_source(change)?;
    shop.on_source("UPDATE orders SET total = coalesce(total, 0) + 1 WHERE id < 4")?;
    shop.until_same()?;
    running.signal("TERM")?;
    running.ended()?.expect(DONE, &[]);
    Ok(())
}

/// It stops, says what changed and what to do; then it goes on from there.
fn stops(shop: &Shop, command: &Anabranch, change: &str, parts: &[&str]) -> Tested {
    let mut running = command.spawn(&["run"])?;
    running.says(" streaming | ")?;
    shop.on_source(change)?;
    shop.on_source("UPDATE orders SET total = coalesce(total, 0) + 1 WHERE id < 4")?;
    let said = running.ended()?;
    said.expect(OPERATOR, &["the table public.orders changed on the source", "make the same change"]);
    said.expect(OPERATOR, parts);
    shop.on_target(change)?;
    command.drain()?.expect(DONE, &[]);
    shop.assert_same()
}

#[test]
fn by_default_it_stops_at_every_change() -> Tested {
    let Some(shop) = Shop::open("stop")? else { return Ok(()) };
    let Some(command) = command(&shop, "stop")? else { return Ok(()) };
    stops(&shop, &command, "ALTER TABLE orders ADD note text", &["column note text was added"])?;
    stops(&shop, &command, "ALTER TABLE orders DROP note", &["column note was dropped"])?;
    stops(&shop, &command, "ALTER TABLE orders ALTER total TYPE numeric", &["column total was bigint and is numeric"])
}

#[test]
fn added_columns_can_be_let_through() -> Tested {
    let Some(shop) = Shop::open("add")? else { return Ok(()) };
    let Some(command) = command(&shop, "add_columns")? else { return Ok(()) };
    goes_on(&shop, &command, "ALTER TABLE orders ADD note text DEFAULT 'new'")?;
    stops(&shop, &command, "ALTER TABLE orders DROP note", &["column note was dropped"])
}

#[test]
fn every_change_can_be_let_through() -> Tested {
    let Some(shop) = Shop::open("ignore")? else { return Ok(()) };
    let Some(command) = command(&shop, "ignore")? else { return Ok(()) };
    goes_on(&shop, &command, "ALTER TABLE orders ADD note text DEFAULT 'new'")?;
    goes_on(&shop, &command, "ALTER TABLE orders DROP note")?;
    goes_on(&shop, &command, "ALTER TABLE orders ALTER total TYPE numeric")
}
