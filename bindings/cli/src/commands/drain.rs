//! `anabranch drain`

use std::path::Path;
use std::time::Duration;

use anabranch::pipeline::Drained;
use anabranch::{Error, Result};

use crate::say::{complain, say, say_json};
use crate::{exit, load};

/// Waits until another process has brought everything into the target. True or false, never a guess.
pub(crate) async fn drain(file: &Path, timeout: Option<f64>, json: bool) -> Result<u8> {
    let seconds = |s| {
        Duration::try_from_secs_f64(s)
            .map_err(|_| Error::config("--timeout", "must be a number of seconds, not negative"))
    };
    let deadline = timeout.map(seconds).transpose()?;
    let drained = load::pipeline(file)?.drain(deadline).await?;
    if json {
        say_json(&drained)?;
    } else {
        print(&drained);
    }
    if drained.drained {
        return Ok(exit::DONE);
    }
    if drained.marker_reached {
        complain(format_args!(
            "{} dead letters are open: see `anabranch dead-letters {} list`",
            drained.dead_letters_open,
            file.display()
        ));
        return Ok(exit::OPERATOR);
    }
    complain(format_args!("not drained: is the pipeline running? see `anabranch status {}`", file.display()));
    Ok(exit::FAILED)
}

fn print(d: &Drained) {
    say(format_args!("drained       {}", d.drained));
    for (id, position) in &d.marker {
        let reached = d.reached.get(id).map_or("nothing yet", String::as_str);
        say(format_args!("position      {id} to reach {position}, reached {reached}"));
    }
    say(format_args!("dead letters  {} open", d.dead_letters_open));
}
