//! `anabranch status`

use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use anabranch::pipeline::Status;
use anabranch::{Error, Result};

use crate::say::{is_heard, say};
use crate::{exit, load, progress};

/// Between two looks of `--watch`.
const WATCH: Duration = Duration::from_secs(2);

/// Prints what the stores tell, once or again and again.
pub(crate) async fn status(file: &Path, json: bool, watch: bool) -> Result<u8> {
    let pipeline = load::pipeline(file)?;
    let mut tick = tokio::time::interval(WATCH);
    loop {
        tokio::select! {
            biased;
            // 1. Seen enough.
            _ = tokio::signal::ctrl_c(), if watch => return Ok(exit::DONE),
            // 2. Time to look; the first time at once.
            _ = tick.tick() => {}
        }
        let Some(status) = pipeline.stored_status().await? else {
            return Err(Error::config("pipeline.name", format!("the pipeline {} has never run", pipeline.name())));
        };
        if json {
            let text = if watch { serde_json::to_string(&status) } else { serde_json::to_string_pretty(&status) };
            say(text.map_err(|e| Error::fatal("cannot write JSON").because(e))?);
        } else {
            if watch && std::io::stdout().is_terminal() {
                // The screen's beginning, and nothing below it.
                say("\x1b[H\x1b[2J");
            }
            print(&status);
        }
        if !watch || !is_heard() {
            return Ok(exit::DONE);
        }
    }
}

fn print(s: &Status) {
    let none = || "unknown".to_owned();
    say(format_args!("pipeline      {}", s.pipeline));
    say(format_args!("phase         {} (as stored; a running process knows better)", progress::phase(s.phase)));
    say(format_args!("safe time     {}", s.safe_time.map_or_else(none, |t| t.to_string())));
    say(format_args!("lag           {}", s.lag_seconds.map_or_else(none, |l| format!("{l:.1} s"))));
    if let Some(snapshot) = &s.snapshot {
        say(format_args!(
            "snapshot      {} rows, {}/{} tables{}",
            snapshot.rows,
            snapshot.tables_done,
            snapshot.tables,
            if snapshot.done { ", done" } else { "" }
        ));
    }
    say(format_args!("changes       {} in {} transactions", s.counters.changes, s.counters.transactions));
    say(format_args!("dead letters  {} open", s.dead_letters_open));
    for (id, partition) in &s.partitions {
        let owner = partition.owner.as_ref().map_or_else(String::new, |o| format!(", with {o}"));
        say(format_args!("position      {id} at {}{owner}", partition.position));
    }
    for (key, value) in &s.identity.0 {
        say(format_args!("source        {key} {value}"));
    }
}
