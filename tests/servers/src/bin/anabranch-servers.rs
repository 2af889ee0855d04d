//! Starts a PostgreSQL for tests that are not written in Rust: `anabranch-servers postgres`.
//!
//! It prints one line of JSON, `{"url": .., "port": ..}`, or `{"skipped": ..}`. Then each line of its
//! input, `{"db": .., "sql": ..}`, is carried out and answered with a line, `{"rows": ..}` or
//! `{"error": ..}`. The server is gone when the input ends.

use std::io::{self, BufRead as _, Write as _};

use anabranch_servers::{PgServer, PgVersion, postgres};
use serde_json::{Value, json};

fn main() -> io::Result<()> {
    let kind = std::env::args().nth(1).unwrap_or_default();
    if kind != "postgres" {
        eprintln!("usage: anabranch-servers postgres");
        std::process::exit(2);
    }
    let Some(server) = postgres(PgVersion::Any) else {
        return say(&json!({ "skipped": "PostgreSQL is not installed" }));
    };
    say(&json!({ "url": server.url("postgres"), "port": server.port() }))?;
    for line in io::stdin().lock().lines() {
        say(&answer(&server, &line?))?;
    }
    Ok(())
}

fn answer(server: &PgServer, line: &str) -> Value {
    let asked: Value = serde_json::from_str(line).unwrap_or_default();
    let (Some(db), Some(sql)) = (asked["db"].as_str(), asked["sql"].as_str()) else {
        return json!({ "error": "give {\"db\": .., \"sql\": ..}" });
    };
    match server.exec(db, sql) {
        Ok(rows) => json!({ "rows": rows }),
        Err(e) => json!({ "error": e.to_string() }),
    }
}

fn say(value: &Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{value}")?;
    out.flush()
}
