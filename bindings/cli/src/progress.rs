//! The line that tells how a running pipeline gets on.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anabranch::pipeline::{Phase, Status};

/// How often a terminal's line is drawn, and how often a line is added elsewhere.
const TERMINAL: Duration = Duration::from_millis(500);
const ELSEWHERE: Duration = Duration::from_secs(5);

pub(crate) struct Progress {
    terminal: bool,
    last: Option<(Instant, u64)>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), last: None }
    }

    pub(crate) fn period(&self) -> Duration {
        if self.terminal { TERMINAL } else { ELSEWHERE }
    }

    /// Shows the status, over the last one on a terminal.
    pub(crate) fn show(&mut self, status: &Status) {
        let rows = status.counters.changes + status.counters.snapshot_rows;
        let now = Instant::now();
        let rate = match self.last {
            Some((then, before)) => rows.saturating_sub(before) as f64 / (now - then).as_secs_f64().max(1e-3),
            None => 0.0,
        };
        self.last = Some((now, rows));
        let line = line(status, rate);
        let mut out = std::io::stderr().lock();
        // A closed terminal must not end the replication.
        let _ = if self.terminal { write!(out, "\r\x1b[K{line}") } else { writeln!(out, "{line}") };
        let _ = out.flush();
    }

    /// Ends a terminal's line.
    pub(crate) fn end(&self) {
        if self.terminal {
            eprintln!();
        }
    }
}

fn line(s: &Status, rate: f64) -> String {
    let mut line = format!("{} {}", s.pipeline, phase(s.phase));
    if let (Phase::Snapshot, Some(snapshot)) = (s.phase, &s.snapshot) {
        line += &format!(
            " {}/{} chunks, {}/{} tables",
            snapshot.chunks_done, snapshot.chunks, snapshot.tables_done, snapshot.tables
        );
    }
    line += &format!(
        " | copied {} | changes {} in {} transactions | {:.0} rows/s",
        s.counters.snapshot_rows, s.counters.changes, s.counters.transactions, rate
    );
    if let Some(bytes) = s.lag_bytes {
        line += &format!(" | lag {}", size(bytes));
        if let Some(seconds) = s.lag_seconds {
            line += &format!(" {seconds:.1} s");
        }
    }
    if let Some(time) = s.safe_time {
        line += &format!(" | safe time {time}");
    }
    if s.dead_letters_open > 0 {
        line += &format!(" | {} dead letters", s.dead_letters_open);
    }
    if let (Phase::Retrying | Phase::Failed, Some(error)) = (s.phase, &s.last_error) {
        line += &format!(" | {error}");
    }
    line
}

pub(crate) fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Starting => "starting",
        Phase::Snapshot => "copying",
        Phase::Streaming => "streaming",
        Phase::Retrying => "retrying",
        Phase::Paused => "paused",
        Phase::Stopped => "stopped",
        Phase::Failed => "failed",
    }
}

pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
    }
}
