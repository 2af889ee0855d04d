//! One primary, two regions: a PostgreSQL feeds two others, each through a slot, a publication, a
//! checkpoint and a pipeline of its own. The database of one region is killed for a while: the other
//! region does not notice, and the status of the one that is down tells how much log the primary keeps
//! for it and how long it will. At the end both are compared with the primary, row by row.
//!
//! ```sh
//! cargo run --example two_regions
//! ```
//!
//! `docs/two_regions.md` says how to set this up for databases of yours.

mod region;
mod story;

use std::error::Error;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let Some(told) = story::tell(&mut |line| println!("{line}")).await? else { return Ok(()) };
    match told.equal {
        true => Ok(()),
        false => Err("a region differs from the primary".into()),
    }
}
