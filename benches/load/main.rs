//! Loads, side by side with what the databases themselves offer. `make bench` runs all of them.
//!
//! ```sh
//! cargo bench --bench load                 # everything, about ten minutes
//! cargo bench --bench load -- backlog      # only this one; also: huge, copy, python
//! BENCH_CHANGES=50000 BENCH_HUGE=200000 BENCH_COPY=200000 cargo bench --bench load   # small
//! ```
//!
//! | run | what |
//! |---|---|
//! | `backlog` | many small transactions that wait in a slot: how fast they are caught up with |
//! | `huge` | one transaction of ten million rows: the memory it takes |
//! | `copy` | a table that is copied before the stream |
//! | `python` | the same pipelines run from Rust and from Python; sinks in Python; batches to Arrow |
//!
//! Source and targets are throwaway servers on this machine, with `fsync=off`: it measures the
//! replication and not the disk. Each contender reads the same log through a slot of its own that
//! was made before the load. anabranch runs in a child process, so that its CPU time and its peak
//! memory are its own. `BENCH_ONLY` names contenders, separated by commas: `null,postgres`;
//! `BENCH_MEMORY_MIB` sets anabranch's byte budget, where it is not the default. `BENCH_PYTHON` is the
//! interpreter of an environment that has the wheel and pyarrow: `make bench-python` makes one.

mod backlog;
mod child;
mod copy;
mod huge;
mod native;
mod null_sink;
mod process;
mod python;
mod report;
mod setting;

/// What everything here may fail with.
type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--bench")).collect();
    match args.first().map(String::as_str) {
        Some(child::RUN) => child::run(args.get(1).ok_or("no configuration")?),
        Some("backlog") => backlog::run(),
        Some("huge") => huge::run(),
        Some("copy") => copy::run(),
        Some("python") => python::run(),
        Some(other) => Err(format!("there is no run {other:?}: backlog, huge, copy, python").into()),
        None => [backlog::run, huge::run, copy::run, python::run].into_iter().try_for_each(|run| run()),
    }
}
