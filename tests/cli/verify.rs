//! `verify`: beside a runner, at rest, with a repair, and what it refuses.

use super::Tested;
use super::command::{CONFIGURATION, DONE, FAILED};
use super::shop::Shop;

#[test]
fn differences_are_shown_counted_and_repaired() -> Tested {
    let Some(shop) = Shop::open("verify")? else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    let mut running = command.spawn(&["run"])?;
    running.says(" streaming | ")?;
    command.call(&["verify"])?.expect(DONE, &["public.orders: ", "equal"]);

    shop.on_target("UPDATE orders SET total = total + 1 WHERE id = 1; DELETE FROM orders WHERE id = 2")?;
    let found = command.call(&["verify"])?;
    found.expect(FAILED, &["1 missing, 0 extra, 1 changed", "changed [id=1]: total", "missing [id=2]", "NOT equal"]);
    let json = command.call(&["verify", "--json", "--table", "public.orders", "--list", "1"])?;
    let told: serde_json::Value = serde_json::from_str(&json.stdout)?;
    assert_eq!((json.code, &told["equal"]), (Some(FAILED), &false.into()), "{json:?}");
    assert_eq!(told["tables"][0]["missing"], 1, "{told}");
    assert_eq!(told["tables"][0]["differences"].as_array().map(Vec::len), Some(1), "{told}");

    command.call(&["verify", "--repair"])?.expect(DONE, &["2 rows repaired"]);
    // The repair took the pipeline over.
    running.ended()?.expect(FAILED, &["another runner has taken over the pipeline"]);
    shop.assert_same()?;
    command.drain()?.expect(DONE, &[]);
    command.call(&["verify", "--at-rest"])?.expect(DONE, &["equal"]);
    shop.assert_same()
}

#[test]
fn without_a_runner_it_says_that_rows_may_be_on_their_way() -> Tested {
    let Some(shop) = Shop::open("verify_at_rest")? else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    command.drain()?.expect(DONE, &[]);
    shop.on_source("UPDATE orders SET total = -7 WHERE id = 3")?;
    command
        .call(&["verify", "--wait", "1"])?
        .expect(FAILED, &["did not reach the source's present", "let the pipeline run"]);
    command.call(&["verify", "--at-rest"])?.expect(FAILED, &["changed [id=3]: total"]);
    command.call(&["verify", "--table", "public.nothing"])?.expect(CONFIGURATION, &["public.nothing"]);
    command.drain()?.expect(DONE, &[]);
    // What was found equal is not read again.
    command.call(&["verify", "--progress", "seen.json"])?.expect(DONE, &["public.orders: "]);
    let again = command.call(&["verify", "--progress", "seen.json"])?;
    assert!(!again.stdout.contains("public.orders"), "{again:?}");
    assert!(again.stderr.contains("note: 1 tables were found equal before"), "{again:?}");
    // Of another pipeline's tables that says nothing.
    let path = command.folder().join("seen.json");
    let told = std::fs::read_to_string(&path)?;
    let name = serde_json::from_str::<serde_json::Value>(&told)?["pipeline"].to_string();
    std::fs::write(&path, told.replace(&name, "\"another\""))?;
    command.call(&["verify", "--progress", "seen.json"])?.expect(CONFIGURATION, &["seen.json", "another"]);
    Ok(())
}
