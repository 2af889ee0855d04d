//! Whole pipelines with the least rights, granted by the very statements of `docs/rights.md`.

use std::collections::BTreeMap;

use anabranch_servers::{MariaOptions, PgOptions, PgServer, PgVersion};

use super::Tested;
use super::command::{Anabranch, CONFIGURATION, DONE, SECRET};
use super::shop::{ORDERS, with_passwords};

const TABLE: &str = "CREATE TABLE orders (id int PRIMARY KEY, customer varchar(40) NOT NULL, total bigint, due date)";
const CHANGES: &str = "UPDATE orders SET total = 5 WHERE id = 2; DELETE FROM orders WHERE id = 3;
    UPDATE orders SET id = 1000 WHERE id = 4; TRUNCATE orders;
    INSERT INTO orders VALUES (1, 'one', 2, null), (2, 'two', null, '2024-02-29')";
const ROWS: &str = "SELECT id, customer, total, due FROM orders ORDER BY id";

/// The statements of the page, by the comment that each block begins with. The page's password is
/// one that the tests look for in all output.
fn statements() -> Tested<BTreeMap<String, String>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/rights.md");
    let page = std::fs::read_to_string(path)?.replace("'secret'", &format!("'{SECRET}'"));
    let blocks = page.split("```sql\n").skip(1).filter_map(|rest| rest.split("```").next());
    let named = blocks.filter_map(|block| {
        let (title, sql) = block.split_once('\n')?;
        Some((title.strip_prefix("-- ")?.to_owned(), sql.to_owned()))
    });
    let found: BTreeMap<_, _> = named.collect();
    assert_eq!(found.len(), 9, "every block of the page is run by a test: {:?}", found.keys());
    Ok(found)
}

fn server() -> Tested<Option<PgServer>> {
    let Some(server) = with_passwords(PgOptions::new(PgVersion::Any)).start()? else { return Ok(None) };
    server.create_db("shop")?;
    // As PostgreSQL 15 and later have it by themselves, and a careful administrator more so.
    server.exec("shop", "REVOKE ALL ON SCHEMA public FROM public")?;
    Ok(Some(server))
}

/// A source with exactly the rights of the page, and its `[pipeline]` and `[source]`.
fn source(page: &BTreeMap<String, String>) -> Tested<Option<(PgServer, String)>> {
    let Some(server) = server()? else { return Ok(None) };
    server.exec("shop", ORDERS)?;
    for block in ["source: role", "source: database", "source: slot"] {
        server.exec("shop", &page[block])?;
    }
    let url = format!("postgresql://replicator:{SECRET}@127.0.0.1:{}/shop", server.port());
    let head = format!(
        "[pipeline]\nname = \"orders\"\n[source]\ntype = \"postgres\"\nurl = \"{url}\"\npublication = \"orders\"\n\
         slot = \"orders_dr\"\ncreate = false\n"
    );
    Ok(Some((server, head)))
}

/// Copies, streams every kind of change, and compares.
fn runs(command: &Anabranch, source: &PgServer, target: &PgServer, warned: bool) -> Tested {
    command.check()?.expect(DONE, &["\nok\n"]);
    let said = command.drain()?;
    said.expect(DONE, &[]);
    assert_eq!(said.all().contains("writes carry no replication origin"), warned, "{}", said.all());
    source.exec("shop", CHANGES)?;
    command.drain()?.expect(DONE, &[]);
    let rows = source.exec("shop", ROWS)?;
    assert_eq!(rows.len(), 2);
    assert_eq!(rows, target.exec("shop", ROWS)?);
    Ok(())
}

#[test]
fn postgres_needs_no_more_than_the_page_says() -> Tested {
    let page = statements()?;
    for (block, create) in [("postgres sink: database", false), ("postgres sink: create_tables", true)] {
        let (Some((source, head)), Some(target)) = (source(&page)?, server()?) else { return Ok(()) };
        target.exec("shop", &page["postgres sink: role"])?;
        if !create {
            target.exec("shop", TABLE)?;
        }
        target.exec("shop", &page[block])?;
        let url = format!("postgresql://app:{SECRET}@127.0.0.1:{}/shop", target.port());
        let sink = format!("[sink]\ntype = \"postgres\"\nurl = \"{url}\"\ncreate_tables = {create}\n");
        let Some(command) = Anabranch::new(&(head + &sink))? else { return Ok(()) };
        runs(&command, &source, &target, true)?;
    }
    Ok(())
}

#[test]
fn what_is_optional_can_be_insisted_on_once_it_is_granted() -> Tested {
    let page = statements()?;
    let (Some((source, head)), Some(target)) = (source(&page)?, server()?) else { return Ok(()) };
    for block in ["role", "create_tables", "optional, by a superuser"] {
        target.exec("shop", &page[&format!("postgres sink: {block}")])?;
    }
    let url = format!("postgresql://app:{SECRET}@127.0.0.1:{}/shop", target.port());
    let insists = "replica_role = \"required\"\norigin = \"required\"\n";
    let sink = format!("[sink]\ntype = \"postgres\"\nurl = \"{url}\"\ncreate_tables = true\n{insists}");
    let Some(command) = Anabranch::new(&(head + &sink))? else { return Ok(()) };
    runs(&command, &source, &target, false)
}

#[test]
fn mariadb_needs_no_more_than_the_page_says() -> Tested {
    let page = statements()?;
    let (Some((source, head)), Some(target)) = (source(&page)?, MariaOptions::new().start()?) else { return Ok(()) };
    target.create_db("shop")?;
    target.exec("", &page["mariadb sink: role"])?;
    let url = format!("mysql://app:{SECRET}@127.0.0.1:{}/shop", target.port());
    let sink = format!(
        "[sink]\ntype = \"mysql\"\nurl = \"{url}\"\ncreate_tables = true\n\
         [mapping]\nlossy = [\"type:date\", \"type:character varying\"]\n"
    );
    let Some(command) = Anabranch::new(&(head + &sink))? else { return Ok(()) };
    command.check()?.expect(DONE, &["\nok\n"]);
    command.drain()?.expect(DONE, &[]);
    target.exec("", &page["mariadb sink: later"])?;
    source.exec("shop", CHANGES)?;
    command.drain()?.expect(DONE, &[]);
    assert_eq!(source.exec("shop", ROWS)?, target.exec("shop", ROWS)?);
    Ok(())
}

#[test]
fn a_right_to_create_that_is_missing_is_found_before_the_start() -> Tested {
    let page = statements()?;
    let (Some((_source, head)), Some(target)) = (source(&page)?, server()?) else { return Ok(()) };
    for block in ["role", "create_tables"] {
        target.exec("shop", &page[&format!("postgres sink: {block}")])?;
    }
    target.exec("shop", "REVOKE CREATE ON SCHEMA public FROM app")?;
    let url = format!("postgresql://app:{SECRET}@127.0.0.1:{}/shop", target.port());
    let sink = format!("[sink]\ntype = \"postgres\"\nurl = \"{url}\"\ncreate_tables = true\n");
    let Some(command) = Anabranch::new(&(head + &sink))? else { return Ok(()) };
    let says = ["may not create target table public.orders", "GRANT USAGE, CREATE ON SCHEMA \"public\" TO \"app\""];
    command.check()?.expect(CONFIGURATION, &says);
    command.drain()?.expect(CONFIGURATION, &says);
    target.exec("shop", "GRANT USAGE, CREATE ON SCHEMA \"public\" TO \"app\"")?;
    command.check()?.expect(DONE, &["\nok\n"]);
    Ok(())
}

#[test]
fn rights_that_are_missing_on_mariadb_are_found_before_the_start() -> Tested {
    let page = statements()?;
    let (Some((_source, head)), Some(target)) = (source(&page)?, MariaOptions::new().start()?) else { return Ok(()) };
    target.create_db("shop")?;
    target.exec(
        "",
        &format!("CREATE USER app@'%' IDENTIFIED BY '{SECRET}'; CREATE ROLE writer; GRANT writer TO app@'%'"),
    )?;
    target.exec("", "SET DEFAULT ROLE writer FOR app@'%'")?;
    let url = format!("mysql://app:{SECRET}@127.0.0.1:{}/shop", target.port());
    let sink = format!(
        "[sink]\ntype = \"mysql\"\nurl = \"{url}\"\ncreate_tables = true\n\
         [mapping]\nlossy = [\"type:date\", \"type:character varying\"]\n"
    );
    let Some(command) = Anabranch::new(&(head + &sink))? else { return Ok(()) };
    // By way of the role, and of a pattern: neither is the user's own row of rights on the database.
    target.exec("", "GRANT SELECT, INSERT, UPDATE, DELETE ON `sh%`.* TO writer")?;
    let says = ["app@%", "no right to CREATE on target table orders", "GRANT CREATE ON `shop`.`orders` TO `app`@`%`"];
    command.check()?.expect(CONFIGURATION, &says);
    target.exec("", "GRANT CREATE ON `sh%`.* TO writer")?;
    command.check()?.expect(DONE, &["\nok\n"]);
    target.exec("shop", TABLE)?;
    target.exec("", "REVOKE INSERT, DELETE ON `sh%`.* FROM writer")?;
    let says = ["no right to INSERT, DELETE on target table orders", "GRANT INSERT, DELETE ON `shop`.`orders`"];
    command.check()?.expect(CONFIGURATION, &says);
    target.exec("", "GRANT INSERT, DELETE ON `sh%`.* TO writer")?;
    command.check()?.expect(DONE, &["\nok\n"]);
    command.drain()?.expect(DONE, &[]);
    Ok(())
}
