//! Rows that the target refuses: where it stops, what is set aside, and how it is mended.

use super::Tested;
use super::command::{Anabranch, CONFIGURATION, DONE, OPERATOR};
use super::shop::Shop;

const CHEAP: &str = "ALTER TABLE orders ADD CONSTRAINT cheap CHECK (total < 1000000)";
const MENDED: &str = "ALTER TABLE orders DROP CONSTRAINT cheap";

/// Copied, then a constraint on the target that a later row of the source breaks.
fn refusing(shop: &Shop, command: &Anabranch) -> Tested {
    command.drain()?.expect(DONE, &[]);
    shop.on_target(CHEAP)?;
    shop.on_source("INSERT INTO orders VALUES (100, 'before', 1, null)")?;
    shop.on_source(
        "BEGIN; UPDATE orders SET total = 2000000 WHERE id = 1; UPDATE orders SET total = 5 WHERE id = 2; COMMIT",
    )?;
    shop.on_source("INSERT INTO orders VALUES (101, 'after', 1, null)")
}

fn on_target(shop: &Shop, sql: &str) -> Tested<String> {
    Ok(shop.target.value(&shop.name, sql)?.unwrap_or_default())
}

fn ids(command: &Anabranch) -> Tested<Vec<String>> {
    let said = command.call(&["dead-letters", "list", "--json"])?;
    said.expect(DONE, &[]);
    let id = |line: &str| -> Tested<String> {
        let letter: serde_json::Value = serde_json::from_str(line)?;
        Ok(letter["id"].as_str().ok_or("a letter has no id")?.to_owned())
    };
    said.stdout.lines().map(id).collect()
}

#[test]
fn a_refused_row_stops_the_pipeline_at_its_exact_place() -> Tested {
    let Some(shop) = Shop::open("refused")? else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    refusing(&shop, &command)?;
    let parts = [
        "the target refuses the transaction that begins with a change of public.orders [id=1]",
        "\"cheap\"",
        "] at 0/",
        "dead_letters.on_rejected",
    ];
    for _ in 0..2 {
        command.drain()?.expect(OPERATOR, &parts);
        // All before, nothing of the transaction, nothing after.
        assert_eq!(on_target(&shop, "SELECT string_agg(id::text, ' ' ORDER BY id) FROM orders WHERE id > 50")?, "100");
        assert_eq!(on_target(&shop, "SELECT total FROM orders WHERE id = 2")?, "200");
    }
    shop.on_target(MENDED)?;
    command.drain()?.expect(DONE, &[]);
    shop.assert_same()
}

#[test]
fn a_refused_transaction_is_set_aside_with_what_follows_it_and_applied_once_the_target_is_mended() -> Tested {
    let Some(shop) = Shop::open("aside")? else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    command.write(&(shop.config() + "[dead_letters]\non_rejected = \"dead_letter\"\n"))?;
    refusing(&shop, &command)?;
    command.drain()?.expect(OPERATOR, &["dead letters are open: see `anabranch dead-letters"]);
    assert_eq!(on_target(&shop, "SELECT count(*) FROM orders WHERE id IN (100, 101)")?, "2", "the others go on");
    assert_eq!(on_target(&shop, "SELECT total FROM orders WHERE id = 2")?, "200", "the transaction is whole");

    // Followers of both keys are held, others are not.
    shop.on_source("UPDATE orders SET total = 7 WHERE id = 1")?;
    shop.on_source("UPDATE orders SET customer = 'held' WHERE id = 2")?;
    shop.on_source("UPDATE orders SET customer = 'free' WHERE id = 3")?;
    command.drain()?.expect(OPERATOR, &["4 dead letters are open"]);
    assert_eq!(on_target(&shop, "SELECT customer FROM orders WHERE id = 2")?, "customer 2");
    assert_eq!(on_target(&shop, "SELECT customer FROM orders WHERE id = 3")?, "free");
    command.call(&["dead-letters", "list"])?.expect(DONE, &["Open", "Held", "\"cheap\"", "waits behind"]);
    let all = ids(&command)?;
    assert_eq!(all.len(), 4);
    command.call(&["dead-letters", "show", &all[0]])?.expect(DONE, &["\"state\": \"open\"", "2000000"]);
    for action in ["show", "retry", "skip"] {
        let said = command.call(&["dead-letters", action, "no-such-letter"])?;
        said.expect(CONFIGURATION, &["there is no letter no-such-letter"]);
    }
    assert_eq!(ids(&command)?, all);

    shop.on_target(MENDED)?;
    command.call(&["dead-letters", "retry", &all[0]])?.expect(DONE, &["will be tried again"]);
    command.drain()?.expect(DONE, &[]);
    shop.assert_same()?;
    command.call(&["dead-letters", "list"])?.expect(DONE, &["no dead letters are open"]);
    Ok(())
}

#[test]
fn a_skipped_letter_is_left_out_and_its_followers_come() -> Tested {
    let Some(shop) = Shop::open("skipped")? else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    command.write(&(shop.config() + "[dead_letters]\non_rejected = \"dead_letter\"\n"))?;
    command.drain()?.expect(DONE, &[]);
    shop.on_target(CHEAP)?;
    shop.on_source("UPDATE orders SET total = 3000000 WHERE id = 4")?;
    command.drain()?.expect(OPERATOR, &["1 dead letter is open"]);
    shop.on_source("UPDATE orders SET total = 44 WHERE id = 4")?;
    command.drain()?.expect(OPERATOR, &["2 dead letters are open"]);
    command.call(&["dead-letters", "skip", &ids(&command)?[0]])?.expect(DONE, &["skipped"]);
    command.drain()?.expect(DONE, &[]);
    shop.assert_same()
}
