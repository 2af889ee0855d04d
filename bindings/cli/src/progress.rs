//! How a running pipeline gets on: a bar on a terminal, plain lines elsewhere, JSON if asked for.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anabranch::Result;
use anabranch::pipeline::{Phase, Status};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::say::say_json_line;

/// How often a terminal's line is drawn, and how often a line is added elsewhere.
const TERMINAL: Duration = Duration::from_millis(500);
const ELSEWHERE: Duration = Duration::from_secs(5);

/// The bar that is drawn now: the log goes above it.
static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Writes to the standard error without tearing the bar.
pub(crate) fn above(write: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let bar = BAR.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match bar {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}

fn drawn(bar: Option<ProgressBar>) {
    *BAR.lock().unwrap_or_else(PoisonError::into_inner) = bar;
}

/// What is shown while something takes its time, on a terminal alone. Gone when dropped.
pub(crate) struct Working(ProgressBar);

impl Working {
    pub(crate) fn on(what: &str) -> Self {
        // Not a terminal: nothing is drawn.
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_style(spinner());
        bar.set_message(what.to_owned());
        if io::stderr().is_terminal() {
            bar.enable_steady_tick(TERMINAL / 4);
        }
        drawn(Some(bar.clone()));
        Self(bar)
    }

    pub(crate) fn says(&self, what: String) {
        self.0.set_message(what);
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.finish_and_clear();
        drawn(None);
    }
}

fn spinner() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {wide_msg}").unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn copying() -> ProgressStyle {
    // indicatif tells the time that is left from how fast chunks have come.
    let template = "{prefix} copying [{bar:20}] {pos}/{len} chunks, {eta} left | {wide_msg}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("=> ")
}

pub(crate) struct Progress {
    how: How,
    last: Option<(Instant, u64)>,
}

enum How {
    Bar { bar: ProgressBar, copies: bool },
    Lines,
    Json,
}

impl Progress {
    pub(crate) fn new(json: bool) -> Self {
        let how = match (json, io::stderr().is_terminal()) {
            (true, _) => How::Json,
            (false, false) => How::Lines,
            (false, true) => {
                let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
                bar.set_style(spinner());
                drawn(Some(bar.clone()));
                How::Bar { bar, copies: false }
            }
        };
        Self { how, last: None }
    }

    pub(crate) fn period(&self) -> Duration {
        if matches!(self.how, How::Bar { .. }) { TERMINAL } else { ELSEWHERE }
    }

    /// Shows the status, over the last one on a terminal.
    pub(crate) fn show(&mut self, status: &Status) -> Result<()> {
        let rows = status.counters.changes + status.counters.snapshot_rows;
        let now = Instant::now();
        let rate = match self.last {
            Some((then, before)) => rows.saturating_sub(before) as f64 / (now - then).as_secs_f64().max(1e-3),
            None => 0.0,
        };
        self.last = Some((now, rows));
        match &mut self.how {
            How::Json => say_json_line(status)?,
            How::Lines => {
                // A closed pipe must not end the replication.
                let _ = writeln!(io::stderr(), "{}", line(status, rate));
            }
            How::Bar { bar, copies } => draw(bar, copies, status, rate),
        }
        Ok(())
    }

    /// Leaves the last line of a terminal where it is.
    pub(crate) fn end(&self) {
        if let How::Bar { bar, .. } = &self.how {
            bar.abandon();
            drawn(None);
        }
    }
}

fn draw(bar: &ProgressBar, copies: &mut bool, status: &Status, rate: f64) {
    let copying_now = match (status.phase, &status.snapshot) {
        (Phase::Snapshot, Some(snapshot)) if snapshot.chunks > 0 => Some(snapshot),
        _ => None,
    };
    if copying_now.is_some() != *copies {
        *copies = copying_now.is_some();
        bar.set_style(if *copies { copying() } else { spinner() });
        bar.reset();
    }
    match copying_now {
        Some(snapshot) => {
            bar.set_prefix(status.pipeline.clone());
            bar.set_length(u64::from(snapshot.chunks));
            bar.set_position(u64::from(snapshot.chunks_done));
            let (done, all) = (snapshot.tables_done, snapshot.tables);
            bar.set_message(format!("{rate:.0} rows/s, {} rows, {done}/{all} tables", snapshot.rows));
        }
        None => bar.set_message(line(status, rate)),
    }
    bar.tick();
}

fn line(s: &Status, rate: f64) -> String {
    let mut line = format!("{} {}", s.pipeline, phase(s.phase));
    if let (Phase::Snapshot, Some(snapshot)) = (s.phase, &s.snapshot) {
        line += &format!(
            " {}/{} chunks, {}/{} tables",
            snapshot.chunks_done, snapshot.chunks, snapshot.tables_done, snapshot.tables
        );
    }
    // A terminal cuts the end off: what one looks for comes first.
    if let (Phase::Retrying | Phase::Failed, Some(error)) = (s.phase, &s.last_error) {
        line += &format!(" | {error}");
    }
    if s.dead_letters_open > 0 {
        line += &format!(" | {} dead letters", s.dead_letters_open);
    }
    if let Some(bytes) = s.lag_bytes {
        line += &format!(" | lag {}", size(bytes));
        if let Some(seconds) = s.lag_seconds {
            line += &format!(" {seconds:.1} s");
        }
    }
    let c = &s.counters;
    line += &format!(
        " | {rate:.0} rows/s | {} changes in {} transactions | {} rows copied",
        c.changes, c.transactions, c.snapshot_rows
    );
    if let Some(time) = s.safe_time {
        line += &format!(" | safe time {time}");
    }
    line
}

pub(crate) fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Snapshot => "copying",
        other => other.name(),
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
