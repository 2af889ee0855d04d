//! `/metrics`, `/status.json` and `/healthz` of a run between real databases.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anabranch_servers::{PgOptions, PgVersion};
use serde_json::Value;

use super::Tested;
use super::command::{Anabranch, CONFIGURATION, DONE, Running, until};
use super::shop::ORDERS;

/// An answer: the status code and the body.
fn get(port: u16, path: &str) -> Tested<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no head")?;
    let code = head.split(' ').nth(1).ok_or("no status")?.parse()?;
    Ok((code, body.to_owned()))
}

/// The samples of a pipeline, by their name and labels without that of the pipeline.
fn samples(text: &str, pipeline: &str) -> BTreeMap<String, f64> {
    let label = format!("pipeline=\"{pipeline}\"");
    let lines = text.lines().filter(|line| !line.starts_with('#') && line.contains(&label));
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ')?;
        let name = name.replace(&format!("{{{label}}}"), "").replace(&format!("{label},"), "");
        Some((name.replace(&format!(",{label}"), ""), value.parse().ok()?))
    };
    lines.filter_map(sample).collect()
}

/// Where it says that it listens.
fn port(running: &mut Running) -> Tested<u16> {
    running.says("address=127.0.0.1:")?;
    let log = running.log();
    let (_, rest) = log.split_once("address=127.0.0.1:").ok_or("it does not listen")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Ok(digits.parse()?)
}

fn life(port: u16) -> Tested<(u16, String, String)> {
    let (code, body) = get(port, "/healthz")?;
    let told: Value = serde_json::from_str(&body)?;
    let text = |key: &str| told[key].as_str().unwrap_or_default().to_owned();
    Ok((code, text("life"), text("reason")))
}

#[test]
fn figures_are_the_statuss_and_a_dead_source_is_bad_health() -> Tested {
    let Some(source) = PgOptions::new(PgVersion::Any).start()? else { return Ok(()) };
    source.create_db("shop")?;
    source.exec("shop", ORDERS)?;
    let config = format!(
        "[pipeline]\nname = \"figures\"\n[source]\ntype = \"postgres\"\nurl = \"{}\"\npublication = \"p\"\nslot = \"s\"\n\
         [sink]\ntype = \"sqlite\"\npath = \"target.db\"\ncreate_tables = true\n\
         [metrics]\nlisten = \"localhost:0\"\ndead_after_seconds = 8\n",
        source.url("shop")
    );
    let Some(mut command) = Anabranch::new(&config)? else { return Ok(()) };
    command.env("ANABRANCH_LOG", "anabranch_cli=info,warn");
    let mut running = command.spawn(&["run"])?;
    let port = port(&mut running)?;
    running.says(" streaming | ")?;
    source.exec("shop", "BEGIN; DELETE FROM orders WHERE id < 3; UPDATE orders SET total = 1 WHERE id > 48; COMMIT")?;

    // Both are asked until they say the same of the same moment.
    until("the figures are the status's", || {
        let status: Value = serde_json::from_str(&get(port, "/status.json")?.1)?;
        let now = samples(&get(port, "/metrics")?.1, "figures");
        let count = |name: &str| status["counters"][name].as_f64();
        let partitions = status["partitions"].as_object().map(|p| p.len() as f64);
        let wanted = [
            ("anabranch_changes_total", count("changes")),
            ("anabranch_transactions_total", count("transactions")),
            ("anabranch_snapshot_rows_total", count("snapshot_rows")),
            ("anabranch_dead_letters_total", count("dead_letters")),
            ("anabranch_filtered_total", count("filtered")),
            ("anabranch_skipped_total", count("skipped")),
            ("anabranch_stale_total", count("stale")),
            ("anabranch_epoch", status["epoch"].as_f64()),
            ("anabranch_waiting_changes", status["lag_changes"].as_f64()),
            ("anabranch_open_dead_letters", status["dead_letters_open"].as_f64()),
            ("anabranch_partitions", partitions),
            ("anabranch_snapshot_tables{state=\"done\"}", status["snapshot"]["tables_done"].as_f64()),
            ("anabranch_snapshot_chunks{state=\"planned\"}", status["snapshot"]["chunks"].as_f64()),
            ("anabranch_phase{phase=\"streaming\"}", Some(1.0)),
            ("anabranch_phase{phase=\"starting\"}", Some(0.0)),
        ];
        let same = wanted.iter().all(|(name, value)| value.is_some() && now.get(*name) == value.as_ref());
        Ok(same && count("changes") == Some(4.0) && count("snapshot_rows") == Some(50.0))
    })?;
    until("there is a safe time", || {
        Ok(samples(&get(port, "/metrics")?.1, "figures").contains_key("anabranch_safe_time_seconds"))
    })?;
    let (_, text) = get(port, "/metrics")?;
    let now = samples(&text, "figures");
    for name in ["anabranch_read_changes_total", "anabranch_read_bytes_total", "anabranch_write_seconds_count"] {
        assert!(now.get(name).is_some_and(|v| *v > 0.0), "{name}:\n{text}");
    }
    assert!(text.contains("# HELP anabranch_changes_total Changes of rows applied"), "{text}");
    assert!(text.contains("# TYPE anabranch_write_seconds histogram"), "{text}");
    // Whoever asks for something else hears what there is.
    assert_eq!(get(port, "/")?, (404, "there are /metrics, /status.json and /healthz\n".to_owned()));
    // A second run cannot have the port, and says so before it takes the pipeline over.
    let second = command.call(&["run", "--metrics", &port.to_string()])?;
    second.expect(CONFIGURATION, &["metrics.listen: cannot listen on 127.0.0.1", "choose another port"]);

    // Idle and heard from.
    until("it is idle", || Ok(life(port)? == (200, "idle".to_owned(), String::new())))?;
    source.kill9()?;
    until("its health is bad", || {
        let (code, life, reason) = life(port)?;
        assert_eq!((code == 503), life == "dead", "{reason}");
        Ok(code == 503 && (reason.contains("nothing was heard") || reason.contains("nothing has succeeded")))
    })?;
    assert!(get(port, "/status.json")?.1.contains("\"retrying\""));
    source.start()?;
    until("its health is good again", || Ok(life(port)?.0 == 200))?;
    let now = samples(&get(port, "/metrics")?.1, "figures");
    assert!(now.iter().any(|(name, n)| name.starts_with("anabranch_failures_total{kind=") && *n > 0.0), "{now:?}");

    // Paused is no illness.
    command.call(&["pause"])?.expect(DONE, &["is paused"]);
    until("it is paused", || Ok(life(port)? == (200, "paused".to_owned(), String::new())))?;
    let told = command.call(&["resume", "--json"])?;
    let told: Value = serde_json::from_str(&told.stdout)?;
    assert_eq!((&told["paused"], &told["changed"]), (&false.into(), &true.into()), "{told}");
    running.signal("INT")?;
    running.ended()?.expect(DONE, &[]);
    Ok(())
}
