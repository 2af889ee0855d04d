//! What is wrong with the arguments, and what every help says.

use super::Tested;
use super::command::{Anabranch, CONFIGURATION, DONE};

/// Every command.
const COMMANDS: &[&str] = &[
    "init",
    "check",
    "run",
    "status",
    "verify",
    "drain",
    "pause",
    "resume",
    "reprocess",
    "dead-letters",
    "strip",
    "completions",
    "man",
];

/// Arguments, and what has to be said about them: the argument and the fix.
const MISTAKES: &[(&[&str], &[&str])] = &[
    (&[], &["Usage: anabranch", "Commands:"]),
    (&["satus"], &["unrecognized subcommand 'satus'", "'status'"]),
    (&["run"], &["<FILE>", "Usage: anabranch run"]),
    (&["run", "no.toml"], &["no.toml: cannot be read", "anabranch init"]),
    (&["run", "."], &[".: cannot be read: Is a directory"]),
    (&["run", "pipeline.toml", "--untildrained"], &["--untildrained", "'--until-drained'"]),
    (&["run", "pipeline.toml", "--mode", "again"], &["'again'", "--mode", "retry-dlq"]),
    (&["run", "pipeline.toml", "--mode", "resumeFailed"], &["'resumeFailed'", "resume-failed"]),
    (
        &["run", "pipeline.toml", "--mode", "resume-failed"],
        &["pipeline.mode: resume_failed chooses shards", "pipeline.each_shard = true", "type = \"files\""],
    ),
    (&["reprocess", "pipeline.toml"], &["<SHARD>"]),
    (&["reprocess", "pipeline.toml", "eu"], &["pipeline.each_shard: is not set"]),
    (&["run", "pipeline.toml", "--metrics", "here"], &["--metrics: must be an address and a port", "127.0.0.1:9187"]),
    (&["run", "pipeline.toml", "--metrics", "99999"], &["--metrics: must be an address and a port"]),
    (&["run", "pipeline.toml", "--metrics", "192.0.2.1:80"], &["metrics.listen: cannot listen on 192.0.2.1:80"]),
    (&["drain", "pipeline.toml", "--timeout", "soon"], &["'soon'", "--timeout"]),
    (&["drain", "pipeline.toml", "--timeout=-1"], &["--timeout: must be a number of seconds, not negative"]),
    (&["verify", "pipeline.toml", "--at-rest", "--repair"], &["--at-rest", "cannot be used with", "--repair"]),
    (&["verify", "pipeline.toml", "--wait", "x"], &["'x'", "--wait"]),
    (&["status", "pipeline.toml", "pipeline.toml"], &["unexpected argument", "pipeline.toml"]),
    (&["dead-letters", "pipeline.toml"], &["list", "retry", "skip"]),
    (&["dead-letters", "pipeline.toml", "retry"], &["<IDS>"]),
    (&["dead-letters", "pipeline.toml", "show", "7"], &["ID: there is no letter 7", "`list`"]),
    (&["strip", "pipeline.toml"], &["--table"]),
    (&["strip", "pipeline.toml", "--table", "t"], &["sink.type: only the items of a DynamoDB target"]),
    (&["completions", "csh"], &["'csh'", "bash"]),
    (&["man", "--out", "/proc/nowhere"], &["--out: cannot write into /proc/nowhere"]),
    (&["init", "new.toml"], &["--source: is missing", "postgresql://user@host/database"]),
    (&["init", "new.toml", "--source", "postgresql://u@h/d"], &["--target: is missing"]),
    (&["init", "pipeline.toml"], &["pipeline.toml is there already", "--force"]),
    (
        &["init", "new.toml", "--source", "postgresql://u@h/d", "--target", "oracle://u:hunter2@h/d"],
        &["--target: is of no database that is known here", "init --help"],
    ),
    (
        &["init", "new.toml", "--source", "postgresql://u:hunter2@h/d", "--target", "a.db", "--slot", "A-B"],
        &["source.slot: ", "lower-case letters"],
    ),
    (
        &["init", "nowhere/new.toml", "--source", "postgresql://u@h/d", "--target", "a.db"],
        &["FILE: cannot write nowhere/new.toml"],
    ),
];

const CONFIG: &str = "[pipeline]\nname = \"orders\"\n[source]\ntype = \"postgres\"\n\
    url = \"postgresql://app:hunter2@127.0.0.1:1/shop\"\npublication = \"orders\"\nslot = \"orders\"\n\
    [sink]\ntype = \"sqlite\"\npath = \"target.db\"\n[dead_letters]\ntype = \"memory\"\n";

#[test]
fn every_mistake_names_the_argument_and_the_fix() -> Tested {
    let Some(command) = Anabranch::new(CONFIG)? else { return Ok(()) };
    for (arguments, says) in MISTAKES {
        let said = command.bare(arguments)?;
        assert_eq!(said.code, Some(CONFIGURATION), "{arguments:?}: {said:?}");
        for part in *says {
            assert!(said.stderr.contains(part), "{arguments:?} does not say {part:?}:\n{}", said.stderr);
        }
        assert_eq!(said.stdout, "", "{arguments:?}");
        assert!(!command.folder().join("new.toml").exists(), "{arguments:?} has written a file");
    }
    Ok(())
}

#[test]
fn errors_are_json_too_if_asked_for() -> Tested {
    let Some(command) = Anabranch::new(CONFIG)? else { return Ok(()) };
    for arguments in [
        &["check", "no.toml"][..],
        &["status", "no.toml"],
        &["run", "no.toml"],
        &["dead-letters", "pipeline.toml", "show", "7"],
        &["init", "pipeline.toml"],
        &["drain"],
        &["drain", "pipeline.toml", "--timeout", "soon"],
        &["run", "pipeline.toml", "--mode", "sideways"],
    ] {
        let said = command.bare(&[arguments, &["--json"]].concat())?;
        said.expect(CONFIGURATION, &[]);
        let told: serde_json::Value = serde_json::from_str(&said.stdout)?;
        assert_eq!((&told["kind"], &told["exit_code"]), (&"config".into(), &CONFIGURATION.into()), "{told}");
        let error = told["error"].as_str().ok_or("no error")?;
        assert_eq!(said.stderr.trim_end(), format!("error: {error}"));
    }
    Ok(())
}

#[test]
fn every_command_explains_itself() -> Tested {
    let Some(command) = Anabranch::new("")? else { return Ok(()) };
    let help = command.bare(&["--help"])?;
    help.expect(DONE, &["Begin:", "Exit codes:", "  3  a person has to decide", "ANABRANCH_LOG"]);
    for name in COMMANDS {
        assert!(help.stdout.lines().any(|line| line.trim_start().starts_with(name)), "{name}:\n{}", help.stdout);
        for flag in ["--help", "-h"] {
            let said = command.bare(&[name, flag])?;
            said.expect(DONE, &[&format!("Usage: anabranch {name}"), "--json"]);
            let wide = said.stdout.lines().find(|line| line.chars().count() > 120);
            assert_eq!(wide, None, "{name} {flag}");
        }
    }
    let listed = help.stdout.lines().skip_while(|l| !l.starts_with("Commands:")).skip(1);
    let listed = listed.take_while(|l| !l.is_empty());
    // What a longer line goes on with stands further to the right.
    let listed = listed.filter(|l| l.as_bytes().get(2).is_some_and(|b| *b != b' '));
    let listed: Vec<&str> = listed.filter_map(|l| l.split_whitespace().next()).collect();
    assert_eq!(listed, [COMMANDS, &["help"]].concat(), "a command is not in the list of this test");
    command.bare(&["--version"])?.expect(DONE, &["anabranch 0."]);
    Ok(())
}

#[test]
fn completions_and_the_man_pages_know_every_command() -> Tested {
    let Some(command) = Anabranch::new("")? else { return Ok(()) };
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        command.bare(&["completions", shell])?.expect(DONE, COMMANDS);
    }
    command.bare(&["man"])?.expect(DONE, &[".TH anabranch 1", "Exit codes"]);
    command.bare(&["man", "--out", "pages"])?.expect(DONE, &[]);
    for name in COMMANDS {
        let page = std::fs::read_to_string(command.folder().join(format!("pages/anabranch-{name}.1")))?;
        assert!(page.contains(".SH SYNOPSIS"), "{name}");
    }
    Ok(())
}
