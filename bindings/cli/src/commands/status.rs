//! `anabranch status`

use std::path::Path;

use anabranch::pipeline::Status;
use anabranch::{Error, Result};

use crate::{exit, load, progress};

/// Prints what the stores tell.
pub(crate) async fn status(file: &Path, json: bool) -> Result<u8> {
    let pipeline = load::pipeline(file)?;
    let Some(status) = pipeline.stored_status().await? else {
        return Err(Error::config("pipeline.name", format!("the pipeline {} has never run", pipeline.name())));
    };
    if json {
        let text = serde_json::to_string_pretty(&status).map_err(|e| Error::fatal("cannot write JSON").because(e))?;
        println!("{text}");
    } else {
        print(&status);
    }
    Ok(exit::DONE)
}

fn print(s: &Status) {
    let none = || "unknown".to_owned();
    println!("pipeline      {}", s.pipeline);
    println!("phase         {} (as stored; a running process knows better)", progress::phase(s.phase));
    println!("safe time     {}", s.safe_time.map_or_else(none, |t| t.to_string()));
    println!("lag           {}", s.lag_seconds.map_or_else(none, |l| format!("{l:.1} s")));
    if let Some(snapshot) = &s.snapshot {
        println!(
            "snapshot      {} rows, {}/{} tables{}",
            snapshot.rows,
            snapshot.tables_done,
            snapshot.tables,
            if snapshot.done { ", done" } else { "" }
        );
    }
    println!("changes       {} in {} transactions", s.counters.changes, s.counters.transactions);
    println!("dead letters  {} open", s.dead_letters_open);
    for (id, partition) in &s.partitions {
        println!("position      {id} at {}", partition.position);
    }
    for (key, value) in &s.identity.0 {
        println!("source        {key} {value}");
    }
}
