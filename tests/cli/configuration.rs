//! Mistakes that are found before any connection is made: every section, key by key.

use super::Tested;
use super::command::{Anabranch, CONFIGURATION, DONE, FAILED, SECRET};

/// Right in itself, between servers that are not there.
const RIGHT: &str = r#"[pipeline]
name = "orders"
[source]
type = "postgres"
url = "postgresql://app:hunter2@127.0.0.1:1/shop"
publication = "orders"
slot = "orders"
[sink]
type = "sqlite"
path = "target.db"
create_tables = true
"#;

/// A line of [`RIGHT`], what stands there instead, and what has to be said about it.
type Mistake = (&'static str, &'static str, &'static [&'static str]);

const PIPELINE: &[Mistake] = &[
    ("name = \"orders\"", "nmae = \"orders\"", &["pipeline.nmae: ", "did you mean name?"]),
    ("name = \"orders\"", "", &["pipeline.name: is missing"]),
    ("name = \"orders\"", "name = \"\"", &["pipeline.name: must have 1 to 100 characters"]),
    ("name = \"orders\"", "name = 7", &["pipeline.name: must be text"]),
    ("name = \"orders\"", "name = \"o\"\nlane = 2", &["pipeline.lane: ", "did you mean lanes?"]),
    (
        "name = \"orders\"",
        "name = \"o\"\norder = \"txn\"",
        &["pipeline.order: must be transaction, key, window or arrival"],
    ),
    ("name = \"orders\"", "name = \"o\"\norder = \"key\"\nlanes = \"x\"", &["pipeline.lanes: must be a whole number"]),
    ("name = \"orders\"", "name = \"o\"\norder = \"key\"\nlanes = 0", &["pipeline.lanes: must be 1 for sqlite"]),
    ("name = \"orders\"", "name = \"o\"\nlanes = 4", &["pipeline.lanes: ", "order = \"key\""]),
    ("name = \"orders\"", "name = \"o\"\nwindow_seconds = 4", &["pipeline.window_seconds: ", "order = \"window\""]),
    (
        "name = \"orders\"",
        "name = \"o\"\norder = \"window\"\nwindow_seconds = 0",
        &["pipeline.window_seconds: must be at least 0.001"],
    ),
    ("name = \"orders\"", "name = \"o\"\nmemory_mib = 0", &["pipeline.memory_mib: must be at least 1"]),
    ("name = \"orders\"", "name = \"o\"\nsnapshot_workers = 0", &["pipeline.snapshot_workers: must be at least 1"]),
    (
        "name = \"orders\"",
        "name = \"o\"\nmode = \"resumeFailed\"",
        &[
            "pipeline.mode: must be regular, retry_dlq, retry_all_dlq, resume_success, resume_failed, reprocess or resume_all",
        ],
    ),
    (
        "name = \"orders\"",
        "name = \"o\"\nmode = \"resume_failed\"",
        &["pipeline.mode: resume_failed chooses shards", "set pipeline.each_shard = true"],
    ),
    ("name = \"orders\"", "name = \"o\"\neach_shard = 1", &["pipeline.each_shard: must be true or false"]),
    (
        "name = \"orders\"",
        "name = \"o\"\neach_shard = true",
        &["pipeline.each_shard: the source postgres does not keep shards apart", "leave it out"],
    ),
    ("name = \"orders\"", "name = \"o\"\nretries = -1", &["pipeline.retries: must be a whole number"]),
    ("[sink]", "[snik]", &["snik: ", "did you mean sink?"]),
];

const SOURCE: &[Mistake] = &[
    ("type = \"postgres\"", "", &["source.type: is missing (known: dynamodb, files, postgres, spanner, yugabyte)"]),
    (
        "type = \"postgres\"",
        "type = \"postgrse\"",
        &["source.type: there is no \"postgrse\" (known: dynamodb, files, postgres, spanner, yugabyte)"],
    ),
    ("type = \"postgres\"", "type = 5", &["source.type: must be text"]),
    ("url = ", "ulr = ", &["source.ulr: ", "did you mean url?"]),
    ("slot = \"orders\"", "", &["source.slot: is missing"]),
    ("slot = \"orders\"", "slot = \"Orders-DR\"", &["source.slot: ", "lower-case letters, digits and underscores"]),
    ("publication = \"orders\"", "", &["source.publication: is missing"]),
    ("publication = \"orders\"", "publication = \"\"", &["source.publication: is empty"]),
    ("slot = ", "password = 4711\nslot = ", &["source.password: must be text"]),
    (
        "slot = ",
        "password = \"env:ANABRANCH_NOT_SET\"\nslot = ",
        &["source.password: the environment variable ANABRANCH_NOT_SET is not set"],
    ),
    (
        "slot = ",
        "password = \"file:/nowhere/hidden\"\nslot = ",
        &["source.password: cannot read the file /nowhere/hidden"],
    ),
    ("slot = ", "snapshot = \"always\"\nslot = ", &["source.snapshot: must be initial, never or only"]),
    (
        "slot = ",
        "on_schema_change = \"hunter2\"\nslot = ",
        &["source.on_schema_change: must be stop, add_columns or ignore"],
    ),
    ("slot = ", "create = \"yes\"\nslot = ", &["source.create: must be true or false"]),
    ("slot = ", "tables = \"orders\"\nslot = ", &["source.tables: must be a list"]),
    ("slot = ", "tables = [\"a.b.c\"]\nslot = ", &["source.tables: \"a.b.c\" is not the name of a table"]),
    ("slot = ", "chunk_pages = 1.5\nslot = ", &["source.chunk_pages: must be a whole number"]),
];

const URLS: &[Mistake] = &[
    (
        "postgresql://app:hunter2@127.0.0.1:1/shop",
        "",
        &["source.url: names no host", "postgresql://user@host:5432/database"],
    ),
    (
        "postgresql://app:hunter2@127.0.0.1:1/shop",
        "mysql://app:hunter2@127.0.0.1/shop",
        &["source.url: is not a PostgreSQL URL", "postgresql://"],
    ),
    ("postgresql://app:hunter2@127.0.0.1:1/shop", "127.0.0.1:5432", &["source.url: is not a PostgreSQL URL"]),
    ("127.0.0.1:1/", "127.0.0.1:hunter2/", &["source.url: ", "`port`"]),
    ("127.0.0.1:1/", "127.0.0.1:99999/", &["source.url: ", "`port`"]),
    ("app:hunter2@", "", &["source.url: names no user"]),
    ("app:hunter2@", "app:a@hunter2/b@", &["source.url: has more than one @", "%40"]),
    ("/shop", "/shop?sslmode=verify", &["source.url: sslmode=verify is unknown", "verify-full"]),
    ("/shop", "/shop?sslmode=verify-full&sslrootcert=/nowhere.pem", &["source.url: sslrootcert: ", "/nowhere.pem"]),
    ("/shop", "/shop?nonsense=hunter2", &["source.url: is not a PostgreSQL URL", "`nonsense`"]),
    (
        "postgresql://app:hunter2@127.0.0.1:1/shop",
        "env:ANABRANCH_NOT_SET",
        &["source.url: the environment variable ANABRANCH_NOT_SET is not set"],
    ),
    ("postgresql://app:hunter2@127.0.0.1:1/shop", "file:/nowhere", &["source.url: cannot read the file /nowhere"]),
];

const SINK: &[Mistake] = &[
    (
        "type = \"sqlite\"",
        "",
        &["sink.type: is missing (known: dynamodb, files, mysql, postgres, sharded, spanner, sqlite, yugabyte)"],
    ),
    ("type = \"sqlite\"", "type = \"oracle\"", &["sink.type: there is no \"oracle\""]),
    ("path = \"target.db\"", "", &["sink.path: is missing"]),
    ("path = \"target.db\"", "path = 1", &["sink.path: must be "]),
    ("path = \"target.db\"", "pth = \"target.db\"", &["sink.pth: ", "did you mean path?"]),
    ("create_tables = true", "create_tables = \"yes\"", &["sink.create_tables: must be true or false"]),
    ("create_tables = true", "create_table = true", &["sink.create_table: is not a key"]),
    ("type = \"sqlite\"\npath = \"target.db\"", "type = \"mysql\"", &["sink.url: is missing"]),
    (
        "type = \"sqlite\"\npath = \"target.db\"",
        "type = \"mysql\"\nurl = \"mysql://app:hunter2@127.0.0.1\"",
        &["sink.url: names no database"],
    ),
    (
        "type = \"sqlite\"\npath = \"target.db\"",
        "type = \"mysql\"\nurl = \"postgresql://app:hunter2@127.0.0.1/x\"",
        &["sink.url: is not a MySQL URL"],
    ),
    (
        "type = \"sqlite\"\npath = \"target.db\"",
        "type = \"mysql\"\nurl = \"mysql://app:a@hunter2/b@127.0.0.1/x\"",
        &["sink.url: "],
    ),
    (
        "type = \"sqlite\"\npath = \"target.db\"",
        "type = \"mysql\"\nurl = \"mysql://app@127.0.0.1/x\"\npassword = 4711",
        &["sink.password: must be text"],
    ),
    (
        "type = \"sqlite\"\npath = \"target.db\"",
        "type = \"mysql\"\nurl = \"mysql://app@127.0.0.1/x\"\ntls = \"on\"",
        &["sink.tls: must be off, verify or insecure"],
    ),
    (
        "type = \"sqlite\"\npath = \"target.db\"",
        "type = \"postgres\"\nurl = \"mysql://app:hunter2@h/x\"",
        &["sink.url: is not a PostgreSQL URL"],
    ),
    (
        "type = \"sqlite\"\npath = \"target.db\"",
        "type = \"postgres\"\nurl = \"postgresql://app@h/x\"\norigin = \"yes\"",
        &["sink.origin: must be auto, off or required"],
    ),
];

/// Added at the end.
const REST: &[(&str, &[&str])] = &[
    ("[sinks]", &["sinks: ", "did you mean sink?"]),
    ("[metrics]", &["metrics.listen: is missing"]),
    ("[metrics]\nlisten = 9187", &["metrics.listen: must be text"]),
    ("[metrics]\nlisten = \"here\"", &["metrics.listen: must be an address and a port", "127.0.0.1:9187"]),
    ("[metrics]\nlisten = \"9187\"\ndead_after_seconds = 0", &["metrics.dead_after_seconds: must be at least 1"]),
    (
        "[metrics]\nlisten = \"9187\"\ndead_after_second = 5",
        &["metrics.dead_after_second: ", "did you mean dead_after_seconds?"],
    ),
    ("[checkpoint]", &["checkpoint.type: is missing"]),
    (
        "[checkpoint]\ntype = \"redis\"",
        &[
            "checkpoint.type: there is no \"redis\" (known: dynamodb, file, files, memory, mysql, postgres, spanner, sqlite, yugabyte)",
        ],
    ),
    ("[checkpoint]\ntype = \"file\"", &["checkpoint.path: is missing"]),
    ("[checkpoint]\ntype = \"file\"\npth = \"x\"", &["checkpoint.pth: ", "did you mean path?"]),
    ("[checkpoint]\ntype = \"sqlite\"\npth = \"x\"", &["checkpoint.pth: ", "did you mean path?"]),
    ("[checkpoint]\ntype = \"sink\"\npath = \"x\"", &["checkpoint.path: is not a key"]),
    ("[dead_letters]\non_reject = \"stop\"", &["dead_letters.on_reject: ", "did you mean on_rejected?"]),
    ("[dead_letters]\non_rejected = \"drop\"", &["dead_letters.on_rejected: must be stop, halt_shard or dead_letter"]),
    ("[dead_letters]\nmax_attempts = \"x\"", &["dead_letters.max_attempts: must be a whole number"]),
    ("[dead_letters]\ntype = \"x\"", &["dead_letters.type: there is no \"x\""]),
    ("[mapping]\nlosy = []", &["mapping.losy: ", "did you mean lossy?"]),
    ("[mapping]\nlossy = \"orders.total\"", &["mapping.lossy: must be a list"]),
    ("[mapping]\nlossy = [\"total amount\"]", &["mapping.lossy: \"total amount\" names neither a column nor a type"]),
    (
        "[[transform]]\ntype = \"x\"",
        &[
            "transform.type: there is no \"x\" (known: filter, forward_migration, mask, project, rename, session, shard, values)",
        ],
    ),
    ("[[transform]]\ntables = [\"a\"]", &["transform.type: is missing"]),
    ("[[transform]]\ntype = \"filter\"\nincludes = [\"a\"]", &["transform.includes: ", "did you mean include?"]),
    ("[[transform]]\ntype = \"project\"\ntables = [\"a\"]", &["transform"]),
    (
        "[[transform]]\ntype = \"mask\"\ntables = [\"a\"]\ncolumns = { b = { with = \"sha256\", key = \"env:ANABRANCH_NOT_SET\" } }",
        &["key: the environment variable ANABRANCH_NOT_SET is not set"],
    ),
    ("[[transforms]]\ntype = \"filter\"", &["transforms: ", "did you mean transform?"]),
    ("note = ", &["line 12: ", "it is not TOML"]),
    ("note = \"hunter2", &["line 12: ", "it is not TOML"]),
    ("[sink]\ntype = \"sqlite\"", &["line 12: ", "duplicate"]),
];

/// Every command refuses it in the same words, and nothing is made.
fn refused(command: &Anabranch, config: &str, parts: &[&str]) -> Tested {
    assert_ne!(config, RIGHT, "the mistake is not one");
    command.write(config)?;
    let said = command.check()?;
    said.expect(CONFIGURATION, parts);
    assert!(said.all().contains("pipeline.toml: "), "the file is named: {}", said.all());
    assert!(!command.folder().join("target.db").exists());
    Ok(())
}

fn all(mistakes: &[Mistake]) -> Tested {
    let Some(command) = Anabranch::new(RIGHT)? else { return Ok(()) };
    for (right, wrong, parts) in mistakes {
        assert!(RIGHT.contains(right), "{right}");
        refused(&command, &RIGHT.replacen(right, wrong, 1), parts)?;
    }
    Ok(())
}

#[test]
fn mistakes_in_the_pipeline_section_are_named() -> Tested {
    all(PIPELINE)
}

#[test]
fn mistakes_in_the_source_section_are_named() -> Tested {
    all(SOURCE)
}

#[test]
fn mistakes_in_a_url_are_named() -> Tested {
    all(URLS)
}

#[test]
fn mistakes_in_the_sink_section_are_named() -> Tested {
    all(SINK)
}

#[test]
fn mistakes_in_the_other_sections_are_named() -> Tested {
    let Some(command) = Anabranch::new(RIGHT)? else { return Ok(()) };
    for (text, parts) in REST {
        refused(&command, &format!("{RIGHT}{text}\n"), parts)?;
    }
    Ok(())
}

#[test]
fn every_command_names_the_file_that_is_missing_or_no_text() -> Tested {
    let Some(command) = Anabranch::new(RIGHT)? else { return Ok(()) };
    std::fs::write(command.folder().join("pipeline.toml"), [0xff, 0xfe, 0])?;
    command.check()?.expect(CONFIGURATION, &["pipeline.toml: cannot be read"]);
    std::fs::remove_file(command.folder().join("pipeline.toml"))?;
    for arguments in [&["run"][..], &["check"], &["status"], &["dead-letters", "list"]] {
        let said = command.call(arguments)?;
        said.expect(CONFIGURATION, &["pipeline.toml: cannot be read (`anabranch init` writes", "No such file"]);
    }
    Ok(())
}

#[test]
fn a_misspelt_command_shows_what_there_is() -> Tested {
    let Some(command) = Anabranch::new(RIGHT)? else { return Ok(()) };
    command.call(&["rnu"])?.expect(CONFIGURATION, &["unrecognized subcommand 'rnu'"]);
    command.call(&["run", "--until-draind"])?.expect(CONFIGURATION, &["--until-drained"]);
    let help = command.call(&["help"])?;
    assert!(help.code == Some(DONE) || help.code == Some(CONFIGURATION), "{help:?}");
    Ok(())
}

#[test]
fn secrets_from_the_environment_and_from_files_are_used_and_not_shown() -> Tested {
    let url = "url = \"postgresql://app:hunter2@127.0.0.1:1/shop\"";
    let Some(mut command) = Anabranch::new(&RIGHT.replace(url, "url = \"env:SHOP_URL\"\npassword = \"file:secret\""))?
    else {
        return Ok(());
    };
    command.env("SHOP_URL", "postgresql://app@127.0.0.1:1/shop");
    command.env("ANABRANCH_LOG", "trace");
    std::fs::write(command.folder().join("secret"), format!("{SECRET}\n"))?;
    // Nothing listens there: both were read, and `Said` looks for the secret.
    command.check()?.expect(FAILED, &["source.url: cannot connect to postgresql://app@127.0.0.1:1/shop"]);
    command.env("SHOP_URL", "postgresql://app:hunter2@127.0.0.1:hunter2/shop");
    command.check()?.expect(CONFIGURATION, &["source.url: "]);
    Ok(())
}

#[test]
fn debug_output_of_a_pipeline_shows_no_secret() -> Tested {
    let others = [
        RIGHT.to_owned(),
        RIGHT.replace("type = \"sqlite\"\npath = \"target.db\"", "type = \"mysql\"\nurl = \"mysql://a:hunter2@h/d\""),
        RIGHT.replace(
            "type = \"sqlite\"\npath = \"target.db\"",
            "type = \"postgres\"\nurl = \"postgresql://a:hunter2@h/d\"",
        ),
        RIGHT.to_owned()
            + "[[transform]]\ntype = \"mask\"\ntables = [\"a\"]\n\
               columns = { b = { with = \"sha256\", key = \"hunter2-hunter2-hunter2\" } }\n",
    ];
    for text in others {
        let config = anabranch::pipeline::PipelineConfig::parse(&text)?;
        assert!(!format!("{config:?}").contains(SECRET), "{config:?}");
        let pipeline = anabranch::registry().pipeline(config)?;
        assert!(!format!("{pipeline:?}").contains(SECRET), "{pipeline:?}");
    }
    Ok(())
}
