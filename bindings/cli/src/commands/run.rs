//! `anabranch run`

use std::path::Path;

use anabranch::pipeline::{MetricsConfig, RunMode, Status};
use anabranch::prometheus::{Exporter, Recorder};
use anabranch::{Error, Result};
use tokio::signal::unix::{SignalKind, signal};

use crate::progress::Progress;
use crate::say::{complain, say};
use crate::{exit, load};

/// What the command line says of a run.
pub(crate) struct How {
    pub(crate) until_drained: bool,
    pub(crate) mode: Option<RunMode>,
    /// Where to answer HTTP requests.
    pub(crate) metrics: Option<String>,
    pub(crate) json: bool,
}

/// Runs until stopped, drained or failed.
pub(crate) async fn run(file: &Path, how: How) -> Result<u8> {
    let mut config = load::config(file)?;
    config.pipeline.mode = how.mode.unwrap_or(config.pipeline.mode);
    let exporter = exporter(how.metrics, config.metrics.take()).await?;
    let until_drained = how.until_drained;
    let pipeline = load::pipeline_of(file, config)?;
    let mode = pipeline.mode();
    let replays = mode.replays();
    let listen = |kind| signal(kind).map_err(|e| Error::fatal("cannot listen for signals").because(e));
    let (mut interrupted, mut terminated) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let mut running = tokio::select! {
        biased;
        // 1. and 2. Nothing has begun: there is nothing to finish.
        _ = interrupted.recv() => return Ok(exit::DONE),
        _ = terminated.recv() => return Ok(exit::DONE),
        // 3. Both sides are checked.
        started = pipeline.start() => started?,
    };
    if let Some(exporter) = &exporter {
        exporter.watch(running.monitor());
    }
    let mut progress = Progress::new(how.json);
    let mut tick = tokio::time::interval(progress.period());
    let shown = running.monitor();
    let stopper = running.stopper();
    let mut stopping = false;
    let mut code = exit::DONE;
    let result = {
        let work = async {
            if until_drained && !replays {
                let drained = running.drain(None).await;
                let ended = match &drained {
                    Ok(_) => running.stop().await,
                    Err(_) => running.wait().await,
                };
                (ended, drained.map(Some))
            } else {
                (running.wait().await, Ok(None))
            }
        };
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                // 1. The end.
                result = &mut work => break result,
                // 2. and 3. Finish what is under way; a second signal ends at once.
                _ = interrupted.recv() => if std::mem::replace(&mut stopping, true) { return Ok(exit::FAILED) } else { stopper.cancel() },
                _ = terminated.recv() => if std::mem::replace(&mut stopping, true) { return Ok(exit::FAILED) } else { stopper.cancel() },
                // 4. The progress line.
                _ = tick.tick() => progress.show(&shown.status())?,
            }
        }
    };
    progress.show(&shown.status())?;
    progress.end();
    let (ended, drained) = result;
    ended?;
    match drained {
        Ok(Some(drained)) if !drained.drained => code = still_open(file, drained.dead_letters_open),
        Ok(_) if how.json && !replays => {}
        Ok(Some(_)) if mode.chooses_shards() && shown.status().shards.is_empty() => say(nothing_for(mode)),
        Ok(Some(_)) if mode.chooses_shards() => {
            let shards: Vec<String> = shown.status().shards.into_keys().collect();
            say(format_args!("drained: everything that was in the files is in {}", shards.join(", ")));
        }
        Ok(Some(_)) => say("drained: everything committed before the start of the drain is in the target"),
        Ok(None) if replays => code = replayed(file, &shown.status(), how.json),
        Ok(None) if mode.chooses_shards() && shown.status().shards.is_empty() => say(nothing_for(mode)),
        Ok(None) => {}
        // Asked to stop while it waited for the drain: an orderly end too.
        Err(_) if stopping => {}
        Err(e) => return Err(e),
    }
    Ok(code)
}

/// A run whose mode took no shard.
fn nothing_for(mode: RunMode) -> &'static str {
    match mode {
        RunMode::ResumeFailed => "nothing to do: no shard has failed",
        RunMode::Reprocess => "nothing to do: no shard is marked; `anabranch reprocess` marks one",
        _ => "nothing to do: there is no such shard",
    }
}

/// Listens where the command line, or else the configuration, says.
async fn exporter(asked: Option<String>, configured: Option<MetricsConfig>) -> Result<Option<Exporter>> {
    let by_flag = asked.is_some();
    let config = match (asked, configured) {
        (Some(listen), Some(configured)) => MetricsConfig { listen, ..configured },
        (Some(listen), None) => MetricsConfig { listen, dead_after_seconds: None },
        (None, Some(configured)) => configured,
        (None, None) => return Ok(None),
    };
    let address = config.address().map_err(|e| match by_flag {
        true => Error::config("--metrics", "must be an address and a port, or a port alone, as in 127.0.0.1:9187"),
        false => e,
    })?;
    let exporter = Exporter::listen(address, Recorder::install()?, config.dead_after()?).await?;
    tracing::info!(address = %exporter.address(), "listens for /metrics, /status.json and /healthz");
    Ok(Some(exporter))
}

/// What came of a run that tries dead letters again.
fn replayed(file: &Path, status: &Status, json: bool) -> u8 {
    match status.dead_letters_open {
        0 => {
            if !json {
                say("replayed: no dead letters are open");
            }
            exit::DONE
        }
        open => still_open(file, open),
    }
}

fn still_open(file: &Path, open: u64) -> u8 {
    let open = match open {
        1 => "1 dead letter is open".to_owned(),
        n => format!("{n} dead letters are open"),
    };
    complain(format_args!("{open}: see `anabranch dead-letters {} list`", file.display()));
    exit::OPERATOR
}
