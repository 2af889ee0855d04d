//! `anabranch init`: writes a configuration that `check` accepts, from two URLs.

mod ask;
mod endpoint;
mod template;

use std::io::{self, BufReader, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anabranch::pipeline::PipelineConfig;
use anabranch::{Error, Result, registry};
use clap::{Args, ValueEnum, ValueHint};

use crate::exit;
use crate::say::{say, say_json};
use ask::Ask;
use endpoint::{Endpoint, Role};
use template::{Plan, Secrets};

/// What the URLs of both sides look like.
const URLS: &str = "\
URLs:
  postgresql://user:password@host:5432/database   source, target
  mysql://user:password@host:3306/database        target (mariadb:// too)
  yugabyte://user:password@host:5433/database     source, target
  sqlite:orders.db                                target, a file
  spanner://projects/P/instances/I/databases/D    source, target
  dynamodb://REGION/TABLE,TABLE                   source; dynamodb://REGION as a target
  gs://bucket/folder, s3://bucket/folder, file:///folder   window files, source, target
  env:NAME                                        any of these, in an environment variable

A URL with a password does not go into the file, but is referred to: see --secrets.
On a terminal, what is not given is asked for.";

/// What to write.
#[derive(Debug, Args)]
#[command(after_help = URLS)]
pub(crate) struct Options {
    /// The configuration file to write.
    #[arg(default_value = "anabranch.toml", value_hint = ValueHint::FilePath)]
    file: PathBuf,
    /// Where changes come from.
    #[arg(long, value_name = "URL")]
    source: Option<String>,
    /// Where they go.
    #[arg(long, value_name = "URL")]
    target: Option<String>,
    /// The pipeline's name, under which its progress is kept. Default: the file's name.
    #[arg(long)]
    name: Option<String>,
    /// The order of changes in the target. Default: transaction where both sides can, else key or window.
    #[arg(long, value_enum)]
    order: Option<OrderName>,
    /// A table to carry (schema.table), where the publication or change stream is created; may be given
    /// several times. Default: all.
    #[arg(long = "table", value_name = "TABLE")]
    tables: Vec<String>,
    /// The publication of a PostgreSQL source, or the change stream of a Spanner source. Default:
    /// anabranch_ and the name.
    #[arg(long, value_name = "NAME")]
    publication: Option<String>,
    /// The replication slot of a PostgreSQL source. Default: anabranch_ and the name.
    #[arg(long, value_name = "NAME")]
    slot: Option<String>,
    /// Do not create missing tables in the target: they are there already.
    #[arg(long)]
    no_create_tables: bool,
    /// Where URLs with a password go: env refers to the variables SOURCE_URL and TARGET_URL; file writes
    /// them into files beside the configuration that only you can read; inline writes them into it.
    #[arg(long, value_enum, default_value_t = SecretsIn::Env)]
    secrets: SecretsIn,
    /// Write over a file that is there.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OrderName {
    Transaction,
    Key,
    Window,
    Arrival,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SecretsIn {
    Env,
    File,
    Inline,
}

/// Asks for what is missing, writes, and says what to do next.
pub(crate) fn init(options: Options, json: bool) -> Result<u8> {
    free(&options.file, options.force)?;
    let terminal = io::stdin().is_terminal() && io::stderr().is_terminal() && !json;
    let plan = match terminal {
        true => plan(&options, &mut Some(Ask::new(BufReader::new(io::stdin()), io::stderr())))?,
        false => plan(&options, &mut None::<Ask<BufReader<io::Stdin>, io::Stderr>>)?,
    };
    // With the passwords, which the file may only refer to: what the connectors have to say is said now.
    let config = PipelineConfig::parse(&template::render(&plan, &Secrets::Shown))?;
    registry().pipeline(config)?;
    let secrets = write(&options, &plan)?;
    tell(&options.file, &plan, &secrets, json)?;
    Ok(exit::DONE)
}

fn free(file: &Path, force: bool) -> Result<()> {
    if file.exists() && !force {
        return Err(Error::config("FILE", format!("{} is there already", file.display()))
            .hint("choose another name, or write over it with --force"));
    }
    Ok(())
}

/// What to write: from the arguments, and from a person where they say nothing.
fn plan<R: io::BufRead, W: Write>(options: &Options, ask: &mut Option<Ask<R, W>>) -> Result<Plan> {
    let source = side(options.source.as_deref(), Role::Source, ask)?;
    let target = side(options.target.as_deref(), Role::Target, ask)?;
    let stem = options.file.file_stem().map_or_else(|| "anabranch".to_owned(), |s| s.to_string_lossy().into_owned());
    let name = match (&options.name, ask.as_mut()) {
        (Some(name), _) => name.clone(),
        (None, Some(ask)) => ask.text("Name of the pipeline", Some(&stem))?,
        (None, None) => stem,
    };
    let create_tables = match ask.as_mut() {
        Some(ask) if !options.no_create_tables && target.has_tables() => {
            ask.yes("Create missing tables in the target?")?
        }
        _ => !options.no_create_tables && target.has_tables(),
    };
    Ok(Plan::new(name, source, target, options, create_tables))
}

fn side<R: io::BufRead, W: Write>(given: Option<&str>, role: Role, ask: &mut Option<Ask<R, W>>) -> Result<Endpoint> {
    if let Some(url) = given {
        return Endpoint::parse(role, url);
    }
    let Some(ask) = ask else {
        return Err(Error::config(role.flag(), "is missing").hint(format!("give the URL: {}", role.example())));
    };
    loop {
        let url = ask.text(&format!("URL of the {} (such as {})", role.name(), role.example()), None)?;
        match Endpoint::parse(role, &url) {
            Ok(endpoint) => return Ok(endpoint),
            Err(e) => ask.say(&e.report()),
        }
    }
}

/// Writes the file, and those with secrets. Gives the secrets that the configuration refers to.
fn write(options: &Options, plan: &Plan) -> Result<Secrets> {
    let any = plan.sides().iter().any(|side| side.has_password());
    let secrets = match options.secrets {
        SecretsIn::Env => Secrets::Env,
        SecretsIn::File => Secrets::Files(options.file.clone()),
        SecretsIn::Inline => Secrets::Shown,
    };
    if let Secrets::Files(config) = &secrets {
        for side in plan.sides().into_iter().filter(|s| s.has_password()) {
            let path = template::secret_file(config, side.role());
            free(&path, options.force)?;
            put(&path, &format!("{}\n", side.url()), true)?;
        }
    }
    let private = any && secrets == Secrets::Shown;
    put(&options.file, &template::render(plan, &secrets), private)?;
    Ok(secrets)
}

/// Writes a file, readable by its owner alone if it holds a secret.
fn put(path: &Path, text: &str, private: bool) -> Result<()> {
    let cannot = |e: io::Error| Error::config("FILE", format!("cannot write {}", path.display())).because(e);
    let mut open = std::fs::OpenOptions::new();
    open.write(true).create(true).truncate(true);
    #[cfg(unix)]
    if private {
        use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
        open.mode(0o600);
        // One that is there keeps its mode otherwise.
        if path.exists() {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(cannot)?;
        }
    }
    #[cfg(not(unix))]
    let _ = private;
    open.open(path).and_then(|mut file| file.write_all(text.as_bytes())).map_err(cannot)
}

fn tell(file: &Path, plan: &Plan, secrets: &Secrets, json: bool) -> Result<()> {
    let hidden: Vec<&Endpoint> = plan.sides().into_iter().filter(|s| s.has_password()).collect();
    let variables: Vec<&str> = match secrets {
        Secrets::Env => hidden.iter().map(|s| s.role().variable()).collect(),
        _ => Vec::new(),
    };
    let files: Vec<String> = match secrets {
        Secrets::Files(config) => {
            hidden.iter().map(|s| template::secret_file(config, s.role()).display().to_string()).collect()
        }
        _ => Vec::new(),
    };
    if json {
        return say_json(&serde_json::json!({
            "file": file.display().to_string(), "pipeline": plan.name(),
            "source_type": plan.source().kind(), "sink_type": plan.target().kind(),
            "environment": variables, "secret_files": files,
        }));
    }
    say(format_args!("{} is written: {} to {}", file.display(), plan.source().kind(), plan.target().kind()));
    for path in &files {
        say(format_args!("{path} holds a URL with its password; only you can read it"));
    }
    say("next:");
    for side in hidden.iter().filter(|_| !variables.is_empty()) {
        say(format_args!("  export {}='{}'   # with the password", side.role().variable(), side.shown()));
    }
    for (command, does) in [("check", "what would be stored how"), ("run", "copies, then carries changes")] {
        say(format_args!("  anabranch {command:<5} {}   # {does}", file.display()));
    }
    Ok(())
}

/// Reads a configuration as `check` would, for the tests.
#[cfg(test)]
fn accepted(text: &str) -> Result<()> {
    PipelineConfig::parse(text).and_then(|config| registry().pipeline(config)).map(drop)
}

#[cfg(test)]
mod tests;
