//! The table that a run prints.

use std::time::Duration;

use crate::process::Used;

/// How contenders did with the same load: `count` of `what`, compared with the one called `reference`.
#[derive(Debug)]
pub(crate) struct Report {
    count: u64,
    reference: &'static str,
    /// How long the reference took.
    native: Option<Duration>,
}

impl Report {
    /// Prints the title and the head; lines are printed as they come.
    pub(crate) fn new(title: &str, what: &str, count: u64, reference: &'static str) -> Self {
        println!("\n{title}\n");
        let per_second = format!("{what}/s");
        let cpu = format!("CPU us/{}", what.trim_end_matches('s'));
        println!("{:<42} {:>8} {per_second:>11} {:>9} {cpu:>13} {:>9}", "", "seconds", "of native", "peak MiB");
        Self { count, reference, native: None }
    }

    pub(crate) fn add(&mut self, name: &str, took: Duration, used: Used) {
        if name == self.reference {
            self.native = Some(took);
        }
        let ratio = |native: Duration| format!("{:.2} x", native.as_secs_f64() / took.as_secs_f64());
        let ratio = self.native.map_or_else(String::new, ratio);
        let peak = match used.peak_kib {
            0 => "-".to_owned(),
            kib => format!("{:.1}", kib as f64 / 1024.0),
        };
        let cpu = match used.cpu_seconds {
            0.0 => "-".to_owned(),
            seconds => format!("{:.2}", seconds * 1e6 / self.count as f64),
        };
        println!(
            "{name:<42} {:>8.2} {:>11.0} {ratio:>9} {cpu:>13} {peak:>9}",
            took.as_secs_f64(),
            self.count as f64 / took.as_secs_f64(),
        );
    }
}
