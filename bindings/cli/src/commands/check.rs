//! `anabranch check`

use std::path::Path;

use anabranch::Result;
use anabranch::mapping::preflight::{Preflight, TableReport};
use serde_json::{Value, json};

use crate::say::{complain, say, say_json};
use crate::{exit, load};

/// Prints the type contract; the verdict is the exit code.
pub(crate) async fn check(file: &Path, json: bool) -> Result<u8> {
    let preflight = load::pipeline(file)?.check().await?;
    if json {
        // One document says all: the problems are in it.
        say_json(&as_json(&preflight))?;
        return match preflight.verdict() {
            Ok(()) => Ok(exit::DONE),
            Err(e) => {
                complain(e.report());
                Ok(exit::code(e.kind()))
            }
        };
    }
    say(&preflight);
    for statement in &preflight.source_statements {
        say(format_args!("would run: {statement}"));
    }
    preflight.verdict()?;
    say("ok");
    Ok(exit::DONE)
}

fn as_json(found: &Preflight) -> Value {
    json!({
        "ok": found.verdict().is_ok(),
        "tables": found.tables.iter().map(table).collect::<Vec<_>>(),
        "source_statements": found.source_statements,
    })
}

fn table(t: &TableReport) -> Value {
    let columns = t.columns.iter().map(|c| {
        json!({
            "name": c.name, "source_type": c.source_type, "target_type": c.target_type,
            "fidelity": c.fidelity.map(|f| f.to_string()), "note": c.note, "accepted": c.consented,
        })
    });
    let problems = t.problems.iter().map(|p| json!({ "key": p.key, "problem": p.problem, "fix": p.fix }));
    json!({
        "source": t.source.to_string(), "target": t.target.to_string(), "exists": t.exists,
        "create": t.create.as_ref().map(|(_, statement)| statement),
        "columns": columns.collect::<Vec<_>>(), "problems": problems.collect::<Vec<_>>(), "notes": t.notes,
    })
}
