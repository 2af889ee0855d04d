//! Stopping, taking over, and what a run finds of an earlier one.

use super::Tested;
use super::command::{Anabranch, CONFIGURATION, DONE, FAILED};
use super::shop::{Shop, until};

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
    // The copy waits behind this lock: it is under way for certain.
    shop.on_target("CREATE TABLE orders (id int PRIMARY KEY, customer varchar(40) NOT NULL, total bigint, due date)")?;
    for signal in ["TERM", "INT"] {
        let running = command.spawn(&["run"])?;
        let copying = "SELECT count(*) FROM pg_stat_progress_copy";
        until("the copy is under way", || Ok(shop.target.value(&shop.name, copying)?.as_deref() != Some("0")))?;
        running.signal(signal)?;
        running.ended()?.expect(DONE, &[" stopped | "]);
    }
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
