//! `anabranch dead-letters`

use std::path::Path;

use anabranch::dead_letter::{Mark, mark};
use anabranch::{DeadLetter, DeadLetterStore, Error, LetterClass, LetterState, Result};
use clap::Subcommand;

use crate::say::{say, say_json, say_json_line};
use crate::{exit, load};

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// List those that are open or held, one line each; with --json as JSON lines.
    List {
        /// At most this many.
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Print one with its row, as JSON.
    Show {
        /// Its id.
        id: String,
    },
    /// Have the running pipeline (or the next run) try these again, also if they were given up.
    Retry {
        /// Their ids.
        #[arg(required_unless_present = "severe")]
        ids: Vec<String>,
        /// Every one that needs a person, beside the ids.
        #[arg(long)]
        severe: bool,
    },
    /// Leave these out for good: their changes will be missing in the target.
    Skip {
        /// Their ids.
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

/// Lists or marks dead letters. Marks are obeyed by whichever process runs the pipeline.
pub(crate) async fn dead_letters(file: &Path, action: Action, json: bool) -> Result<u8> {
    let pipeline = load::pipeline(file)?;
    let name = pipeline.name().to_owned();
    let store = pipeline
        .dead_letters()
        .ok_or_else(|| Error::config("dead_letters.type", "this pipeline has no dead-letter store"))?;
    let find = async |id: &str| {
        store.get(&name, id).await?.ok_or_else(|| {
            Error::config("ID", format!("there is no letter {id}")).hint("`list` shows the ids of those that are open")
        })
    };
    match action {
        Action::List { limit } => {
            let letters = store.list(&name, &[LetterState::Open, LetterState::Held], None, limit).await?;
            for letter in &letters {
                if json { say_json_line(letter)? } else { print_line(letter) }
            }
            if letters.is_empty() && !json {
                say("no dead letters are open");
            }
        }
        Action::Show { id } => say_json(&find(&id).await?)?,
        Action::Retry { mut ids, severe } => {
            if severe {
                ids.extend(severe_ids(store.as_ref(), &name).await?);
            }
            for id in ids {
                mark(store.as_ref(), &name, &id, Mark::Retry).await?;
                marked(&id, "will be tried again", "retry", json)?;
            }
        }
        Action::Skip { ids } => {
            for id in ids {
                mark(store.as_ref(), &name, &id, Mark::Skip).await?;
                marked(&id, "skipped", "skip", json)?;
            }
        }
    }
    Ok(exit::DONE)
}

fn marked(id: &str, told: &str, mark: &str, json: bool) -> Result<()> {
    if json {
        return say_json_line(&serde_json::json!({ "id": id, "mark": mark }));
    }
    say(format_args!("{id}: {told}"));
    Ok(())
}

async fn severe_ids(store: &dyn DeadLetterStore, pipeline: &str) -> Result<Vec<String>> {
    let (mut ids, mut after) = (Vec::new(), None);
    loop {
        let page = store.list(pipeline, &[LetterState::Open, LetterState::Held], after.as_deref(), 500).await?;
        let Some(last) = page.last() else { return Ok(ids) };
        after = Some(last.id.clone());
        ids.extend(page.into_iter().filter(|l| l.class == LetterClass::Severe).map(|l| l.id));
    }
}

fn print_line(letter: &DeadLetter) {
    say(format_args!(
        "{}  {:?} {:?}  {:?} on {}  tried {} times: {}",
        letter.id, letter.state, letter.class, letter.op, letter.schema.name, letter.attempts, letter.reason
    ));
}
