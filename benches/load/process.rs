//! CPU time and memory of a process, from `/proc` (proc(5)).

use std::fs;
use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::Result;

/// Ticks of `/proc/pid/stat` in a second. Linux shows this value to every program (`USER_HZ`).
const TICKS: f64 = 100.0;

/// What a process has used.
#[derive(Debug, Clone, Copy, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct Used {
    /// User and system time of all its threads, in seconds. To 10 ms.
    pub(crate) cpu_seconds: f64,
    /// The most resident memory it ever had, in KiB.
    pub(crate) peak_kib: u64,
}

/// What the process has used so far; `None` once it is gone.
pub(crate) fn used(pid: &str) -> Option<Used> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may have spaces; utime and stime are fields 14 and 15.
    let fields: Vec<&str> = stat.get(stat.rfind(')')? + 1..)?.split_whitespace().collect();
    let ticks: f64 = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak_kib = peak.and_then(|text| text.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0);
    Some(Used { cpu_seconds: ticks / TICKS, peak_kib })
}

/// Waits for a child and says how long that took and what the child used.
pub(crate) fn wait(mut child: Child, since: Instant) -> Result<(Duration, Used)> {
    let pid = child.id().to_string();
    let mut last = Used::default();
    loop {
        // A process that has ended keeps its times, and no memory, until it is waited for.
        if let Some(now) = used(&pid) {
            last = Used { cpu_seconds: now.cpu_seconds, peak_kib: last.peak_kib.max(now.peak_kib) };
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')) {
            break;
        }
        sleep(Duration::from_millis(5));
    }
    let took = since.elapsed();
    let status = child.wait()?;
    if !status.success() {
        return Err(format!("a contender failed: {status}").into());
    }
    Ok((took, last))
}
