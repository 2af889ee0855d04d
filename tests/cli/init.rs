//! `init`, `check`, `run` from nothing, on running databases.

use std::fs;

use super::Tested;
use super::command::{Anabranch, CONFIGURATION, DONE, SECRET};
use super::shop::Shop;

/// Databases with a user who has to give a password, the URLs of both, and an empty folder.
fn from_nothing(what: &str) -> Tested<Option<(Shop, Anabranch, String, String)>> {
    let Some(shop) = Shop::open(what)? else { return Ok(None) };
    let Some(command) = Anabranch::new("")? else { return Ok(None) };
    let name = shop.name.clone();
    let role = format!("CREATE ROLE {name} LOGIN SUPERUSER PASSWORD '{SECRET}'");
    shop.on_source(&role)?;
    shop.on_target(&role)?;
    let url = |port: u16| format!("postgresql://{name}:{SECRET}@127.0.0.1:{port}/{name}");
    let (source, target) = (url(shop.source.port()), url(shop.target.port()));
    Ok(Some((shop, command, source, target)))
}

#[test]
fn three_commands_replicate_a_database() -> Tested {
    let Some((shop, mut command, source, target)) = from_nothing("nothing")? else { return Ok(()) };
    let said = command.bare(&["init", "orders.toml", "--source", &source, "--target", &target])?;
    said.expect(
        DONE,
        &["orders.toml is written: postgres to postgres", "export SOURCE_URL=", "anabranch check orders.toml"],
    );
    let text = fs::read_to_string(command.folder().join("orders.toml"))?;
    assert!(text.contains("url = \"env:SOURCE_URL\"") && !text.contains(SECRET), "{text}");
    // Without what it was told to do, a person hears which variable is missing.
    command.bare(&["check", "orders.toml"])?.expect(CONFIGURATION, &["source.url: ", "SOURCE_URL is not set"]);

    command.env("SOURCE_URL", &source);
    command.env("TARGET_URL", &target);
    command
        .bare(&["check", "orders.toml"])?
        .expect(DONE, &["public.orders", "would run: CREATE PUBLICATION", "\nok\n"]);
    let told = command.bare(&["check", "orders.toml", "--json"])?;
    let told: serde_json::Value = serde_json::from_str(&told.stdout)?;
    assert_eq!((&told["ok"], &told["tables"][0]["source"]), (&true.into(), &"public.orders".into()), "{told}");
    assert_eq!(told["tables"][0]["columns"].as_array().map(Vec::len), Some(4), "{told}");
    command.bare(&["run", "orders.toml", "--until-drained"])?.expect(DONE, &["drained: "]);
    shop.assert_same()?;
    shop.on_source("UPDATE orders SET total = 1 WHERE id = 1")?;
    let said = command.bare(&["run", "orders.toml", "--until-drained", "--json"])?;
    said.expect(DONE, &[]);
    let last = said.stdout.lines().last().ok_or("nothing was said")?;
    let last: serde_json::Value = serde_json::from_str(last)?;
    assert_eq!((&last["pipeline"], &last["phase"]), (&"orders".into(), &"stopped".into()), "{last}");
    assert_eq!(said.stderr, "");
    shop.assert_same()
}

#[test]
fn passwords_go_into_files_of_their_own_or_into_the_configuration_if_asked() -> Tested {
    let Some((shop, command, source, _)) = from_nothing("secrets")? else { return Ok(()) };
    let folder = command.folder();
    let init = |file: &str, more: &[&str]| {
        let target = format!("sqlite:{file}.db");
        command.bare(&[&["init", file, "--source", &source, "--target", &target, "--slot", &shop.name], more].concat())
    };
    init("a.toml", &["--secrets", "file"])?.expect(DONE, &["a.source-url holds a URL with its password"]);
    let text = fs::read_to_string(folder.join("a.toml"))?;
    assert!(text.contains("url = \"file:a.source-url\"") && !text.contains(SECRET), "{text}");
    command.bare(&["check", "a.toml"])?.expect(DONE, &["\nok\n"]);
    private(&folder.join("a.source-url"))?;

    let said = init("b.toml", &["--secrets", "inline", "--json"])?;
    let told: serde_json::Value = serde_json::from_str(&said.stdout)?;
    assert_eq!((&told["source_type"], &told["sink_type"]), (&"postgres".into(), &"sqlite".into()), "{told}");
    assert!(fs::read_to_string(folder.join("b.toml"))?.contains(SECRET));
    private(&folder.join("b.toml"))?;
    command.bare(&["check", "b.toml"])?.expect(DONE, &["\nok\n"]);

    // Never over what is there, unless it is forced.
    fs::write(folder.join("b.toml"), "mine")?;
    init("b.toml", &[])?.expect(CONFIGURATION, &["b.toml is there already", "--force"]);
    assert_eq!(fs::read_to_string(folder.join("b.toml"))?, "mine");
    init("b.toml", &["--force"])?.expect(DONE, &[]);
    assert!(!fs::read_to_string(folder.join("b.toml"))?.contains(SECRET));
    Ok(())
}

fn private(path: &std::path::Path) -> Tested {
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(path)?.permissions().mode() & 0o777, 0o600);
    Ok(())
}
