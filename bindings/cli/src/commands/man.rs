//! `anabranch man`

use std::path::Path;

use anabranch::{Error, Result};
use clap::CommandFactory;

use crate::args::Cli;
use crate::exit;
use crate::say::say;

/// Prints the page, or writes all of them into a folder.
pub(crate) fn man(out: Option<&Path>) -> Result<u8> {
    match out {
        None => {
            let mut page = Vec::new();
            let rendered = clap_mangen::Man::new(Cli::command()).render(&mut page);
            rendered.map_err(|e| Error::fatal("cannot write the page").because(e))?;
            say(String::from_utf8_lossy(&page).trim_end());
        }
        Some(folder) => {
            let cannot = |e| Error::config("--out", format!("cannot write into {}", folder.display())).because(e);
            std::fs::create_dir_all(folder).map_err(cannot)?;
            clap_mangen::generate_to(Cli::command(), folder).map_err(cannot)?;
        }
    }
    Ok(exit::DONE)
}
