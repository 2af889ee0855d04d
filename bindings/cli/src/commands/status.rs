//! `anabranch status`

use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use anabranch::pipeline::{Phase, ShardPhase, Status};
use anabranch::{Error, Result, Timestamp};

use crate::say::{is_heard, say, say_json, say_json_line};
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
        if json && watch {
            say_json_line(&status)?;
        } else if json {
            say_json(&status)?;
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

/// A process stores something every ten seconds at least; after some of these it is not there any more,
/// or cannot reach its stores.
pub(crate) const SILENCE: f64 = 35.0;

/// When the process was last seen.
fn seen(s: &Status) -> String {
    let Some(at) = s.last_seen else { return String::new() };
    let seconds = (Timestamp::now().micros_since(at) as f64 / 1e6).max(0.0);
    let ago = match seconds {
        ..120.0 => format!("{seconds:.0} s"),
        ..7200.0 => format!("{:.0} min", seconds / 60.0),
        ..172_800.0 => format!("{:.0} h", seconds / 3600.0),
        _ => format!("{:.0} days", seconds / 86_400.0),
    };
    match s.phase {
        Phase::Stopped => format!(" {ago} ago"),
        _ if seconds < SILENCE => format!(", last seen {ago} ago"),
        _ => format!(", last seen {ago} ago: its process has ended, or cannot reach its stores"),
    }
}

fn phase_of(phase: ShardPhase) -> &'static str {
    match phase {
        ShardPhase::Running => "running",
        ShardPhase::Waiting => "waiting",
        ShardPhase::Halted => "halted",
    }
}

fn print(s: &Status) {
    let none = || "unknown".to_owned();
    say(format_args!("pipeline      {}", s.pipeline));
    say(format_args!("phase         {}{}", progress::phase(s.phase), seen(s)));
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
    let c = &s.counters;
    if c.stale + c.filtered + c.skipped > 0 {
        say(format_args!("left out      {} filtered, {} skipped; {} were stale", c.filtered, c.skipped, c.stale));
    }
    say(format_args!("dead letters  {} open", s.dead_letters_open));
    for (name, shard) in &s.shards {
        let c = &shard.counters;
        let lag = shard.lag_seconds.map_or_else(none, |l| format!("{l:.1} s"));
        say(format_args!(
            "shard         {name} {}: lag {lag}, {} applied, {} stale, {} filtered, {} skipped, {} retryable, {} severe",
            phase_of(shard.phase),
            c.applied(),
            c.stale,
            c.filtered,
            c.skipped,
            shard.retryable,
            shard.severe
        ));
        if let Some(reason) = &shard.reason {
            say(format_args!("              {reason}"));
        }
    }
    for (id, partition) in &s.partitions {
        let owner = partition.owner.as_ref().map_or_else(String::new, |o| format!(", with {o}"));
        say(format_args!("position      {id} at {}{owner}", partition.position));
    }
    for (key, value) in &s.identity.0 {
        say(format_args!("source        {key} {value}"));
    }
}
