//! `anabranch status`

use std::path::Path;

use anabranch::pipeline::{ShardPhase, Status};
use anabranch::{Error, Result};

use crate::say::say;
use crate::{exit, load, progress};

/// Prints what the stores tell.
pub(crate) async fn status(file: &Path, json: bool) -> Result<u8> {
    let pipeline = load::pipeline(file)?;
    let Some(status) = pipeline.stored_status().await? else {
        return Err(Error::config("pipeline.name", format!("the pipeline {} has never run", pipeline.name())));
    };
    if json {
        let text = serde_json::to_string_pretty(&status).map_err(|e| Error::fatal("cannot write JSON").because(e))?;
        say(format_args!("{text}"));
    } else {
        print(&status);
    }
    Ok(exit::DONE)
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
        say(format_args!("position      {id} at {}", partition.position));
    }
    for (key, value) in &s.identity.0 {
        say(format_args!("source        {key} {value}"));
    }
}
