//! `anabranch status`

use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use anabranch::pipeline::{Phase, Status};
use anabranch::yugabyte::xcluster::{self, YbAdmin};
use anabranch::{Error, Pipeline, Result, Timestamp};

use crate::say::{is_heard, say, say_json, say_json_line};
use crate::{exit, load, progress};

/// Between two looks of `--watch`.
const WATCH: Duration = Duration::from_secs(2);

/// Prints what the stores tell, once or again and again.
pub(crate) async fn status(file: &Path, json: bool, watch: bool) -> Result<u8> {
    let subject = match load::xcluster(file)? {
        Some(target) => Subject::XCluster(target),
        None => Subject::Pipeline(Box::new(load::pipeline(file)?)),
    };
    let mut tick = tokio::time::interval(WATCH);
    loop {
        tokio::select! {
            biased;
            // 1. Seen enough.
            _ = tokio::signal::ctrl_c(), if watch => return Ok(exit::DONE),
            // 2. Time to look; the first time at once.
            _ = tick.tick() => {}
        }
        if !json && watch && std::io::stdout().is_terminal() {
            // The screen's beginning, and nothing below it.
            say("\x1b[H\x1b[2J");
        }
        subject.tell(json, watch).await?;
        if !watch || !is_heard() {
            return Ok(exit::DONE);
        }
    }
}

/// What a file is about.
enum Subject {
    Pipeline(Box<Pipeline>),
    /// YugabyteDB replicates by itself; one status for each of its databases.
    XCluster(YbAdmin),
}

impl Subject {
    async fn tell(&self, json: bool, one_line: bool) -> Result<()> {
        match self {
            Self::Pipeline(pipeline) => {
                let Some(status) = pipeline.stored_status().await? else {
                    let problem = format!("the pipeline {} has never run", pipeline.name());
                    return Err(Error::config("pipeline.name", problem));
                };
                if json {
                    return tell_json(&status, one_line);
                }
                print(&status);
                Ok(())
            }
            Self::XCluster(target) => {
                let databases = xcluster::status(target).await?;
                if json {
                    return tell_json(&databases, one_line);
                }
                for database in &databases {
                    print(database);
                    if let Some(skew) = database.skew_seconds {
                        say(format_args!("skew          {skew:.1} s between tablets"));
                    }
                }
                Ok(())
            }
        }
    }
}

fn tell_json(status: &impl serde::Serialize, one_line: bool) -> Result<()> {
    if one_line { say_json_line(status) } else { say_json(status) }
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

fn print(s: &Status) {
    let none = || "unknown".to_owned();
    say(format_args!("pipeline      {}", s.pipeline));
    say(format_args!("phase         {}{}", progress::phase(s.phase), seen(s)));
    say(format_args!("safe time     {}", s.safe_time.map_or_else(none, |t| t.to_string())));
    say(format_args!("lag           {}", s.lag_seconds.map_or_else(none, |l| format!("{l:.1} s"))));
    if let Some(bytes) = s.lag_bytes {
        say(format_args!("unread        {:.1} MB of the source's log", bytes as f64 / 1e6));
    }
    if let Some(skew) = s.skew_seconds.filter(|_| s.partitions.len() > 1) {
        say(format_args!("skew          {skew:.1} s between {} partitions", s.partitions.len()));
    }
    if let Some(retention) = &s.retention {
        say(format_args!("retention     {retention}"));
    }
    if let Some(error) = &s.last_error {
        say(format_args!("last error    {error}"));
    }
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
            shard.phase.name(),
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
