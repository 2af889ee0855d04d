//! `anabranch verify`

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anabranch::control::verify::{TableVerified, VerifyOptions};
use anabranch::{Error, Result, TableName};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::progress::{self, Working};
use crate::say::{complain, note, say, say_json};
use crate::{exit, load};

/// What to compare.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Compare only this table (schema.table, as the source calls it); may be given several times.
    #[arg(long = "table", value_name = "TABLE")]
    tables: Vec<String>,
    /// Put the source's rows into the target where they differ. A runner that is alive ends: start it again.
    #[arg(long)]
    repair: bool,
    /// Do not wait for rows that are on their way: for databases at rest, when no pipeline runs.
    #[arg(long, conflicts_with = "repair")]
    at_rest: bool,
    /// Seconds to wait for the target to reach the source's present while rows differ.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    wait: u64,
    /// Rows read of each side per second, at most.
    #[arg(long, value_name = "ROWS")]
    rate: Option<u64>,
    /// Differences shown of each table; all are counted.
    #[arg(long, default_value_t = 100, value_name = "ROWS")]
    list: usize,
    /// Write down here which tables were found equal, and leave those out: goes on with a comparison
    /// that was interrupted. Delete it to begin anew.
    #[arg(long, value_name = "FILE")]
    progress: Option<PathBuf>,
}

/// Compares both sides; equal is 0, different 1.
pub(crate) async fn verify(file: &Path, options: Options, json: bool) -> Result<u8> {
    let pipeline = load::pipeline(file)?;
    let mut equal = match &options.progress {
        Some(path) => read_progress(path, pipeline.name())?,
        None => BTreeSet::new(),
    };
    if let (Some(path), false) = (&options.progress, equal.is_empty()) {
        let (tables, path) = (equal.len(), path.display());
        note(format_args!("{tables} tables were found equal before and are left out now: delete {path} to begin anew"));
    }
    let asked = VerifyOptions {
        tables: options.tables.iter().map(|name| table_name(name)).collect(),
        skip: equal.clone(),
        wait: (!options.at_rest).then(|| Duration::from_secs(options.wait)),
        rows_per_second: options.rate,
        list: options.list,
        repair: options.repair,
        ..VerifyOptions::default()
    };
    let mut unwritten = None;
    let (working, mut compared) = (Working::on("comparing"), 0);
    let mut tell = |table: &TableVerified| {
        if !json {
            let _ = progress::above(|| {
                say(table);
                Ok(())
            });
        }
        compared += 1;
        working.says(format!("comparing: {compared} tables done"));
        if let (Some(path), true) = (&options.progress, table.equal) {
            equal.insert(table.table.clone());
            unwritten = unwritten.take().or(write_progress(path, pipeline.name(), &equal).err());
        }
    };
    let verified = pipeline.verify(&asked, &mut tell).await?;
    drop(working);
    if let Some(error) = unwritten {
        return Err(error);
    }
    if json {
        say_json(&verified)?;
    } else {
        let repaired: u64 = verified.tables.iter().map(|t| t.repaired).sum();
        if options.repair {
            say(format_args!("{repaired} rows repaired"));
        }
        for (partition, at) in &verified.target_to {
            say(format_args!("the target was at {at} of {partition}"));
        }
        if verified.equal {
            say("equal");
        }
    }
    if !verified.equal {
        complain("the two sides are NOT equal");
        return Ok(exit::FAILED);
    }
    Ok(exit::DONE)
}

/// `schema.table`, or a table where there are no schemas.
fn table_name(name: &str) -> TableName {
    match name.split_once('.') {
        Some((schema, table)) => TableName::new(schema, table),
        None => TableName::new("", name),
    }
}

/// What `--progress` keeps.
#[derive(Serialize, Deserialize)]
struct Progress {
    /// Whose tables they are: those of another pipeline may have the same names.
    pipeline: String,
    equal: BTreeSet<TableName>,
}

fn read_progress(path: &Path, pipeline: &str) -> Result<BTreeSet<TableName>> {
    let wrong = |problem: &str| Error::config("--progress", format!("{} {problem}", path.display()));
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(e) => return Err(wrong("cannot be read").because(e)),
    };
    let progress: Progress =
        serde_json::from_str(&text).map_err(|e| wrong("is not what verify wrote").because(e).hint("delete it"))?;
    if progress.pipeline != pipeline {
        return Err(wrong(&format!("is of the pipeline {}", progress.pipeline)).hint("name another file"));
    }
    Ok(progress.equal)
}

/// By way of a second file: one that is interrupted leaves the first as it was.
fn write_progress(path: &Path, pipeline: &str, equal: &BTreeSet<TableName>) -> Result<()> {
    let progress = Progress { pipeline: pipeline.to_owned(), equal: equal.clone() };
    let text = serde_json::to_string(&progress).map_err(|e| Error::fatal("cannot write JSON").because(e))?;
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    fs::write(&new, text)
        .and_then(|()| fs::rename(&new, path))
        .map_err(|e| Error::config("--progress", format!("cannot write {}", path.display())).because(e))
}
