//! Runs the tests in Python, on the module that cargo has built: within `cargo test`, so that nothing is
//! compiled twice. `tests/run.sh` makes their virtual environment; without Python they are skipped.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The module, beside the tests that cargo built with it.
fn module() -> PathBuf {
    let name = if cfg!(target_os = "macos") { "lib_anabranch.dylib" } else { "lib_anabranch.so" };
    let deps = std::env::current_exe().expect("the path of this test").parent().expect("its folder").to_owned();
    let above = deps.parent().expect("the folder of the profile");
    let found = [deps.join(name), above.join(name)].into_iter().filter(|path| path.exists());
    // The newer one: cargo does not copy it up for every kind of build.
    found.max_by_key(|path| path.metadata().and_then(|m| m.modified()).ok()).expect("the module was built")
}

#[test]
fn pytest() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let status = Command::new(here.join("tests/run.sh"))
        .arg(module())
        .env("ANABRANCH_PYTEST_SERVERS", std::env::current_exe().expect("the path of this test"))
        .status()
        .expect("tests/run.sh");
    assert!(status.success(), "the tests in Python failed");
}

/// Not a test: what the tests in Python start, to have a PostgreSQL without a crate of its own to build.
/// `python-<hash> --ignored --exact serve_postgres --nocapture`
#[test]
#[ignore = "it is started by the tests in Python"]
fn serve_postgres() {
    use std::io::BufRead as _;
    let Some(server) = anabranch_servers::postgres(anabranch_servers::PgVersion::Any) else {
        println!("{}", serde_json::json!({ "skipped": "PostgreSQL is not installed" }));
        return;
    };
    println!("{}", serde_json::json!({ "url": server.url("postgres"), "port": server.port() }));
    for line in std::io::stdin().lock().lines() {
        let asked: serde_json::Value = serde_json::from_str(&line.expect("a line")).unwrap_or_default();
        let (db, sql) = (asked["db"].as_str().unwrap_or_default(), asked["sql"].as_str().unwrap_or_default());
        match server.exec(db, sql) {
            Ok(rows) => println!("{}", serde_json::json!({ "rows": rows })),
            Err(e) => println!("{}", serde_json::json!({ "error": e.to_string() })),
        }
    }
}
