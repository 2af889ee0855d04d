//! Stopping, taking over, and what a run finds of an earlier one.

use super::Tested;
use super::command::{Anabranch, CONFIGURATION, DONE, FAILED, until};
use super::shop::Shop;

#[test]
fn both_signals_end_a_stream_in_an_orderly_way() -> Tested {
    let Some(shop) = Shop::open("signals")? else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    for (signal, id) in [("INT", 1), ("TERM", 2), ("INT", 3)] {
        let mut running = command.spawn(&["run"])?;
        running.says(" streaming | ")?;
        shop.on_source(&format!("UPDATE orders SET total = -1 WHERE id = {id}"))?;
        running.signal(signal)?;
        running.ended()?.expect(DONE, &[" stopped | "]);
    }
    command.drain()?.expect(DONE, &[]);
    shop.assert_same()
}

#[test]
fn a_copy_that_is_stopped_goes_on_later() -> Tested {
    let Some(shop) = Shop::open("stopped")? else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    shop.on_source("INSERT INTO orders SELECT i, repeat('x', 40), i, null FROM generate_series(100, 150000) i")?;
    shop.on_target("CREATE TABLE orders (id int PRIMARY KEY, customer varchar(40) NOT NULL, total bigint, due date)")?;
    command.write(&(shop.head() + "chunk_pages = 100\n" + &shop.sink()))?;
    // The first chunks of the copy wait behind this lock: it is under way for certain.
    let (server, name) = (shop.target, shop.name.clone());
    let lock = "BEGIN; LOCK TABLE orders IN EXCLUSIVE MODE; SELECT pg_sleep(600)";
    let holder = std::thread::spawn(move || server.exec(&name, lock).is_err());
    let some = |granted: &str| {
        let sql = format!(
            "SELECT count(*) > 0 FROM pg_locks WHERE {granted} AND relation = 'orders'::regclass
               AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        );
        Ok(server.value(&shop.name, &sql)?.as_deref() == Some("t"))
    };
    until("the table is locked", || some("granted"))?;
    let running = command.spawn(&["run"])?;
    until("the copy is under way", || some("NOT granted"))?;
    running.signal("TERM")?;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE datname = current_database() AND query LIKE 'BEGIN; LOCK TABLE%'";
    shop.on_target(end)?;
    assert!(holder.join().is_ok_and(|ended| ended));
    running.ended()?.expect(DONE, &[" stopped | "]);
    let copied = shop.target.value(&shop.name, "SELECT count(*) < 149951 FROM orders")?;
    assert_eq!(copied.as_deref(), Some("t"), "there is something left to copy");
    command.drain()?.expect(DONE, &[]);
    shop.assert_same()
}

#[test]
fn of_two_runners_the_older_stops_for_good() -> Tested {
    let Some(shop) = Shop::open("two")? else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    let mut older = command.spawn(&["run"])?;
    older.says(" streaming | ")?;
    let mut newer = command.spawn(&["run"])?;
    shop.on_source("UPDATE orders SET total = 0 WHERE id = 1")?;
    older.ended()?.expect(FAILED, &["another runner has taken over the pipeline"]);
    newer.says(" streaming | ")?;
    shop.on_source("UPDATE orders SET total = 0 WHERE id = 2")?;
    shop.until_same()?;
    newer.signal("TERM")?;
    newer.ended()?.expect(DONE, &[]);
    Ok(())
}

#[test]
fn a_checkpoint_of_a_later_version_is_refused() -> Tested {
    let Some(shop) = Shop::open("later")? else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    command.drain()?.expect(DONE, &[]);
    let format = |n: u32| {
        let sql =
            format!("UPDATE anabranch.checkpoint SET body = jsonb_set(body::jsonb, '{{format}}', '{n}')::text::json");
        shop.on_target(&sql).or_else(|_| shop.on_target(&sql.replace("::text::json", "::text")))
    };
    format(99)?;
    shop.on_source("UPDATE orders SET total = 0 WHERE id = 2")?;
    for arguments in [&["run"][..], &["check"], &["status"]] {
        command.call(arguments)?.expect(CONFIGURATION, &["checkpoint: has format 99", "the version that wrote it"]);
    }
    assert!(!shop.same()?, "nothing was written");
    format(1)?;
    command.drain()?.expect(DONE, &[]);
    shop.assert_same()
}

#[test]
fn output_that_nobody_reads_is_no_error() -> Tested {
    let Some(shop) = Shop::open("pipe")? else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    command.drain()?.expect(DONE, &[]);
    for arguments in [&["status", "--json"][..], &["check"], &["dead-letters", "list"]] {
        let mut running = command.spawn_unread(arguments)?;
        let status = running.wait()?;
        assert_eq!(status.code(), Some(DONE), "{arguments:?}");
    }
    Ok(())
}

#[test]
fn errors_and_a_log_that_nobody_reads_change_nothing() -> Tested {
    let Some(shop) = Shop::open("unheard")? else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    for (arguments, code) in [
        (&["check", "no.toml"][..], CONFIGURATION),
        (&["run", "no.toml"], CONFIGURATION),
        (&["run", "pipeline.toml", "--until-drained"], DONE),
    ] {
        let status = command.spawn_unheard(arguments)?.wait()?;
        assert_eq!(status.code(), Some(code), "{arguments:?}");
    }
    shop.assert_same()?;
    // Nobody runs it: not drained, and not heard.
    shop.on_source("UPDATE orders SET total = -7 WHERE id = 3")?;
    let status = command.spawn_unheard(&["drain", "pipeline.toml", "--timeout", "0.1"])?.wait()?;
    assert_eq!(status.code(), Some(FAILED));
    Ok(())
}

#[test]
fn a_log_in_a_file_has_no_colours() -> Tested {
    let Some(mut command) = Anabranch::new(
        "[pipeline]\nname = \"c\"\n[source]\ntype = \"postgres\"\nurl = \"postgresql://a@127.0.0.1:1/b\"\n\
         publication = \"c\"\nslot = \"c\"\n[sink]\ntype = \"sqlite\"\npath = \"c.db\"\n",
    )?
    else {
        return Ok(());
    };
    command.env("NO_COLOR", "");
    let mut running = command.spawn(&["run"])?;
    running.says("begins again")?;
    running.signal("TERM")?;
    let said = running.ended()?;
    said.expect(DONE, &[]);
    assert!(!said.all().contains('\u{1b}'), "{:?}", said.all());
    Ok(())
}

#[test]
fn status_tells_a_quiet_runner_from_one_that_is_gone() -> Tested {
    let Some(shop) = Shop::open("seen")? else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    let status = |parts: &[&str]| -> Tested {
        command.call(&["status"])?.expect(DONE, parts);
        Ok(())
    };
    let mut running = command.spawn(&["run"])?;
    running.says(" streaming | ")?;
    status(&["phase         streaming, last seen ", " s ago\n"])?;
    running.signal("KILL")?;
    assert_eq!(running.ended()?.code, None);
    // As if that had been an hour ago.
    shop.on_target(
        "UPDATE anabranch.checkpoint SET body = regexp_replace(body, '\"saved_at\":\\d+',
           '\"saved_at\":' || ((extract(epoch FROM now()) - 3600) * 1000000)::bigint)",
    )?;
    status(&["phase         streaming, last seen 60 min ago: its process has ended"])?;
    command.drain()?.expect(DONE, &[]);
    status(&["phase         stopped ", " s ago\n"])
}
