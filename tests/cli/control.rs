//! Pause and resume, and drain from another process than the one that runs the pipeline.

use super::Tested;
use super::command::{Anabranch, CONFIGURATION, DONE, FAILED, OPERATOR, until};
use super::shop::Shop;

fn phase(command: &Anabranch) -> Tested<String> {
    let said = command.call(&["status", "--json"])?;
    said.expect(DONE, &[]);
    let status: serde_json::Value = serde_json::from_str(&said.stdout)?;
    Ok(status["phase"].as_str().unwrap_or_default().to_owned())
}

/// Holds a table of the target: whoever writes it waits. Ends with the returned closure.
fn hold(shop: &Shop) -> Tested<impl FnOnce() -> Tested> {
    let (server, name) = (shop.target, shop.name.clone());
    let lock = "BEGIN; LOCK TABLE orders IN EXCLUSIVE MODE; SELECT pg_sleep(600)";
    let holder = std::thread::spawn(move || server.exec(&name, lock).is_err());
    let held = "SELECT count(*) > 0 FROM pg_locks WHERE granted AND mode = 'ExclusiveLock' \
                AND relation = 'orders'::regclass \
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    until("the table is locked", || Ok(server.value(&shop.name, held)?.as_deref() == Some("t")))?;
    let name = shop.name.clone();
    Ok(move || {
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE datname = current_database() AND query LIKE 'BEGIN; LOCK TABLE%'";
        server.exec(&name, end)?;
        assert!(holder.join().is_ok_and(|ended| ended));
        Ok(())
    })
}

#[test]
fn a_paused_pipeline_stands_still_also_after_a_restart_until_it_is_resumed() -> Tested {
    let Some(shop) = Shop::open("paused")? else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    for what in ["pause", "resume", "drain"] {
        command.call(&[what])?.expect(CONFIGURATION, &["has never run"]);
    }
    let mut running = command.spawn(&["run"])?;
    running.says(" streaming | ")?;
    command.call(&["pause"])?.expect(DONE, &["is paused"]);
    command.call(&["pause"])?.expect(DONE, &["was paused already"]);
    running.says(" paused | ")?;
    assert_eq!(phase(&command)?, "paused");
    shop.on_source("UPDATE orders SET total = 0 WHERE id = 1")?;
    // Nothing says that nothing happens: what a running pipeline does within a second does not.
    command.call(&["drain", "--timeout", "4"])?.expect(FAILED, &["drained       false", "error: not drained"]);
    assert!(!shop.same()?);

    running.signal("KILL")?;
    drop(running);
    let mut running = command.spawn(&["run"])?;
    running.says(" paused | ")?;
    assert!(!shop.same()?);
    command.call(&["resume"])?.expect(DONE, &["goes on"]);
    command.call(&["resume"])?.expect(DONE, &["was not paused"]);
    shop.until_same()?;
    running.signal("TERM")?;
    running.ended()?.expect(DONE, &[]);
    assert_eq!(phase(&command)?, "stopped");
    Ok(())
}

#[test]
fn a_paused_pipeline_can_be_stopped() -> Tested {
    let Some(shop) = Shop::open("paused_stop")? else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    command.drain()?.expect(DONE, &[]);
    command.call(&["pause"])?.expect(DONE, &[]);
    let mut running = command.spawn(&["run"])?;
    running.says(" paused | ")?;
    running.signal("INT")?;
    running.ended()?.expect(DONE, &[]);
    Ok(())
}

/// One lane is held back, then the runner is killed while a drain waits: the answer is never yes
/// before every row is there.
#[test]
fn a_drain_is_true_only_when_everything_has_arrived() -> Tested {
    for order in ["transaction", "key"] {
        let Some(shop) = Shop::open("drained")? else { return Ok(()) };
        let Some(command) = shop.command()? else { return Ok(()) };
        command.write(&shop.config().replace("[source]", &format!("order = \"{order}\"\n[source]")))?;
        let mut running = command.spawn(&["run"])?;
        running.says(" streaming | ")?;
        shop.on_source("UPDATE orders SET total = 1 WHERE id <= 10")?;
        command.call(&["drain", "--timeout", "60"])?.expect(DONE, &["drained       true"]);
        shop.assert_same()?;

        let release = hold(&shop)?;
        shop.on_source("UPDATE orders SET total = 2 WHERE id = 7")?;
        command.call(&["drain", "--timeout", "3"])?.expect(FAILED, &["drained       false"]);
        let mut waiting = command.spawn(&["drain"])?;
        running.signal("KILL")?;
        drop(running);
        let said = command.call(&["drain", "--timeout", "3", "--json"])?;
        said.expect(FAILED, &["\"drained\": false", "\"marker_reached\": false"]);
        // Killed while it waits, a drain leaves nothing behind that another would take for true.
        let killed = command.spawn(&["drain"])?;
        drop(killed);
        let mut running = command.spawn(&["run"])?;
        running.says(" streaming | ")?;
        assert!(waiting.runs()?, "{}", waiting.log());
        release()?;
        waiting.ended()?.expect(DONE, &["drained       true"]);
        shop.assert_same()?;
        running.signal("TERM")?;
        running.ended()?.expect(DONE, &[]);
    }
    Ok(())
}

#[test]
fn a_drain_with_a_dead_letter_is_not_true() -> Tested {
    let Some(shop) = Shop::open("drained_letter")? else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    command.write(&(shop.config() + "[dead_letters]\non_rejected = \"dead_letter\"\n"))?;
    let mut running = command.spawn(&["run"])?;
    running.says(" streaming | ")?;
    shop.on_target("ALTER TABLE orders ADD CONSTRAINT cheap CHECK (total < 1000000)")?;
    shop.on_source("UPDATE orders SET total = 2000000 WHERE id = 1")?;
    command
        .call(&["drain", "--timeout", "60"])?
        .expect(OPERATOR, &["drained       false", "dead letters  1 open", "error: 1 dead letters are open"]);
    // Nor is it while nobody runs the pipeline, and a drain waits.
    running.signal("KILL")?;
    drop(running);
    let said = command.call(&["drain", "--timeout", "3", "--json"])?;
    assert!(said.code != Some(DONE) && said.stdout.contains("\"drained\": false"), "{said:?}");
    assert!(said.stdout.contains("\"dead_letters_open\": 1"), "{said:?}");
    let mut running = command.spawn(&["run"])?;
    running.says(" streaming | ")?;
    shop.on_target("ALTER TABLE orders DROP CONSTRAINT cheap")?;
    until("the letter is applied", || Ok(command.call(&["drain", "--timeout", "60"])?.code == Some(DONE)))?;
    shop.assert_same()?;
    running.signal("TERM")?;
    running.ended()?.expect(DONE, &[]);
    Ok(())
}

#[test]
fn a_watched_status_is_printed_again_until_it_is_interrupted() -> Tested {
    let Some(shop) = Shop::open("watched")? else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    command.drain()?.expect(DONE, &[]);
    let running = command.spawn(&["status", "--watch", "--json"])?;
    until("it was printed twice", || Ok(running.log().lines().filter(|l| l.starts_with('{')).count() >= 2))?;
    running.signal("INT")?;
    running.ended()?.expect(DONE, &[]);
    // Nobody reads any more.
    let mut unread = command.spawn_unread(&["status", "--watch"])?;
    assert_eq!(unread.wait()?.code(), Some(DONE));
    Ok(())
}

#[test]
fn the_section_workers_is_checked() -> Tested {
    let Some(shop) = Shop::open("workers_keys")? else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    for (keys, said) in [
        ("", "pipeline.order: transaction cannot be kept by several workers"),
        ("failover_seconds = 0.1", "workers.failover_seconds: must be from 0.3 to 86400"),
        ("failover_seconds = 1e15", "workers.failover_seconds: must be from 0.3 to 86400"),
        ("failover = 3", "workers.failover: is not a key that is known here (known: id, failover_seconds, "),
        ("leases = { type = \"paper\" }", "workers.leases.type: there is no \"paper\""),
    ] {
        let order = if keys.is_empty() { "transaction" } else { "key" };
        let config = shop.config().replace("[source]", &format!("order = \"{order}\"\n[source]"));
        command.write(&format!("{config}[workers]\n{keys}\n"))?;
        command.call(&["run"])?.expect(CONFIGURATION, &[said]);
    }
    Ok(())
}

/// One partition, two processes: one of them works, the other takes over when it is killed.
#[test]
fn two_processes_with_workers_are_a_pair_of_which_one_may_die() -> Tested {
    let Some(shop) = Shop::open("workers_pair")? else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    let config = shop.config().replace("[source]", "order = \"key\"\n[source]");
    command.write(&format!("{config}[workers]\nfailover_seconds = 2\n"))?;
    let mut one = command.spawn(&["run"])?;
    one.says(" streaming | ")?;
    let mut two = command.spawn(&["run"])?;
    two.says(" streaming | ")?;
    shop.on_source("UPDATE orders SET total = 1 WHERE id <= 10")?;
    command.call(&["drain", "--timeout", "60"])?.expect(DONE, &["drained       true"]);
    shop.assert_same()?;
    command.call(&["status"])?.expect(DONE, &[", with "]);
    one.signal("KILL")?;
    drop(one);
    shop.on_source("UPDATE orders SET total = 2 WHERE id <= 10")?;
    command.call(&["drain", "--timeout", "60"])?.expect(DONE, &["drained       true"]);
    shop.assert_same()?;
    command.call(&["pause"])?.expect(DONE, &[]);
    two.says(" paused | ")?;
    shop.on_source("UPDATE orders SET total = 3 WHERE id <= 10")?;
    command.call(&["drain", "--timeout", "3"])?.expect(FAILED, &[]);
    command.call(&["resume"])?.expect(DONE, &[]);
    shop.until_same()?;
    two.signal("TERM")?;
    two.ended()?.expect(DONE, &[]);
    Ok(())
}
