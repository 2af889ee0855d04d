//! Encrypted connections that are checked: to the right server, and to one that is not.

use anabranch_servers::{MariaOptions, PgOptions, PgServer, PgVersion};

use super::Tested;
use super::command::{CONFIGURATION, DONE, SECRET};
use super::shop::{ORDERS, Shop};

fn server() -> Tested<Option<PgServer>> {
    // Only encrypted connections are let in.
    let options = PgOptions::new(PgVersion::Any).tls();
    let options = options.hba("hostssl all all 127.0.0.1/32 scram-sha-256");
    let options = options.hba("hostssl replication all 127.0.0.1/32 scram-sha-256");
    let options = options.hba("host all all 127.0.0.1/32 reject").hba("host replication all 127.0.0.1/32 reject");
    let Some(server) = options.start()? else { return Ok(None) };
    server.exec("postgres", &format!("ALTER ROLE postgres PASSWORD '{SECRET}'"))?;
    server.create_db("shop")?;
    Ok(Some(server))
}

#[test]
fn both_sides_of_postgres_are_verified() -> Tested {
    let (Some(shop), Some(source), Some(target)) = (Shop::open("tls")?, server()?, server()?) else { return Ok(()) };
    let Some(command) = shop.command()? else { return Ok(()) };
    source.exec("shop", ORDERS)?;
    let url = |server: &PgServer, host: &str, ca: &std::path::Path| {
        let (port, ca) = (server.port(), ca.display());
        format!("postgresql://postgres:{SECRET}@{host}:{port}/shop?sslmode=verify-full&sslrootcert={ca}")
    };
    let (of_source, of_target) = (source.tls().ok_or("no TLS")?, target.tls().ok_or("no TLS")?);
    let sink = |url: &str| format!("[sink]\ntype = \"postgres\"\nurl = \"{url}\"\ncreate_tables = true\n");
    let (from, to) = (url(&source, "localhost", &of_source.ca), url(&target, "localhost", &of_target.ca));

    // Another authority, another name, and no encryption at all: of the source, then of the target.
    // 127.0.0.2 is the same server under a name that its certificate does not have.
    for (from, to, key) in [
        (url(&source, "localhost", &of_source.other_ca), to.clone(), "source.url: "),
        (from.clone(), url(&target, "localhost", &of_target.other_ca), "sink.url: "),
        (from.clone(), url(&target, "localhost", &of_source.ca), "sink.url: "),
    ] {
        command.write(&(shop.head_of(&from) + &sink(&to)))?;
        command.check()?.expect(CONFIGURATION, &[key, "certificate"]);
        command.call(&["run"])?.expect(CONFIGURATION, &[key, "certificate"]);
    }
    let named = from.replace("localhost", "elsewhere.test") + "&hostaddr=127.0.0.1";
    command.write(&(shop.head_of(&named) + &sink(&to)))?;
    command.check()?.expect(CONFIGURATION, &["source.url: ", "certificate", "elsewhere.test"]);
    let plain = format!("postgresql://postgres:{SECRET}@localhost:{}/shop?sslmode=disable", source.port());
    command.write(&(shop.head_of(&plain) + &sink(&to)))?;
    command.check()?.expect(CONFIGURATION, &["source.url: ", "pg_hba.conf"]);

    command.write(&(shop.head_of(&from) + &sink(&to)))?;
    command.check()?.expect(DONE, &["\nok\n"]);
    command.drain()?.expect(DONE, &[]);
    source.exec("shop", "UPDATE orders SET total = 1 WHERE id = 1")?;
    command.drain()?.expect(DONE, &[]);
    let rows = "SELECT * FROM orders ORDER BY id";
    assert_eq!(source.exec("shop", rows)?, target.exec("shop", rows)?);
    Ok(())
}

#[test]
fn mariadb_is_verified() -> Tested {
    let (Some(shop), Some(server)) = (Shop::open("mariatls")?, MariaOptions::new().tls().start()?) else {
        return Ok(());
    };
    let Some(command) = shop.command()? else { return Ok(()) };
    server.create_db("shop")?;
    server.exec(
        "",
        &format!("CREATE USER app@'%' IDENTIFIED BY '{SECRET}' REQUIRE SSL; GRANT ALL ON shop.* TO app@'%'"),
    )?;
    let tls = server.tls().ok_or("no TLS")?;
    let sink = |tls: &str| {
        let port = server.port();
        format!(
            "[sink]\ntype = \"mysql\"\nurl = \"mysql://app@localhost:{port}/shop\"\npassword = \"{SECRET}\"\n\
             create_tables = true\n{tls}[mapping]\nlossy = [\"type:date\", \"type:character varying\"]\n"
        )
    };
    let verified = |ca: &std::path::Path| format!("tls = \"verify\"\ntls_ca = \"{}\"\n", ca.display());
    command.write(&(shop.head() + &sink(&verified(&tls.other_ca))))?;
    command.check()?.expect(CONFIGURATION, &["sink.tls: ", "certificate"]);
    command.write(&(shop.head() + &sink("tls = \"verify\"\ntls_ca = \"/nowhere.pem\"\n")))?;
    command.check()?.expect(CONFIGURATION, &["sink.tls_ca: cannot read the file /nowhere.pem"]);
    command.write(&(shop.head() + &sink("tls = \"off\"\n")))?;
    command.check()?.expect(CONFIGURATION, &["sink.url", "Access denied"]);
    command.write(&(shop.head() + &sink(&verified(&tls.ca))))?;
    command.drain()?.expect(DONE, &[]);
    assert_eq!(server.exec("shop", "SELECT count(*) FROM orders")?, [[Some("50".to_owned())]]);
    Ok(())
}
