//! Every command of the README is run, or stands on a list with the reason why not.

use super::Tested;
use super::command::{Anabranch, DONE, SECRET};
use super::documents::read;
use super::shop::{Shop, mariadb};

/// What cannot be run from within a test.
const NOT_RUN: &[(&str, &str)] = &[
    ("make demo", "it builds the workspace; examples/demo is what it runs"),
    ("make test", "it is what runs this"),
    ("cargo install --path bindings/cli", "it builds for release; `make test` builds the same command"),
    ("export TARGET_URL=", "the test sets it"),
];

/// The lines of the blocks of this language, without their remarks.
fn lines(page: &str, language: &str) -> Vec<String> {
    let mut inside = false;
    let mut found = Vec::new();
    for line in page.lines() {
        match line.trim_end() {
            "```" => inside = false,
            fence if fence.starts_with("```") => inside = fence[3..] == *language,
            line if inside => {
                let line = line.split(" #").next().unwrap_or_default().trim();
                found.extend(Some(line.to_owned()).filter(|l| !l.is_empty() && !l.starts_with('#')));
            }
            _ => {}
        }
    }
    found
}

/// The block that begins with this line.
fn block(page: &str, first: &str) -> Tested<String> {
    let (_, rest) = page.split_once(first).ok_or_else(|| format!("README.md has no block {first}"))?;
    Ok(format!("{first}{}", rest.split("```").next().unwrap_or_default()))
}

#[test]
fn every_command_of_the_readme_works() -> Tested {
    let (Some(shop), Some(maria)) = (Shop::open("readme")?, mariadb()) else { return Ok(()) };
    let Some(mut command) = Anabranch::new("")? else { return Ok(()) };
    let page = read("README.md")?;
    let db = &shop.name;
    maria.create_db(db)?;
    maria.exec("", &format!("CREATE USER {db}@'%' IDENTIFIED BY '{SECRET}'; GRANT ALL ON {db}.* TO {db}@'%'"))?;
    command.env("TARGET_URL", &format!("mysql://{db}:{SECRET}@127.0.0.1:{}/{db}", maria.port()));
    let url = shop.source.url(db);

    // The page's own configuration, between these two.
    let configuration = block(&page, "# orders.toml")?;
    let there = "postgresql://replicator@db1/shop";
    assert!(configuration.contains(there), "{configuration}");
    let lossy = "\n[mapping]\nlossy = [\"type:date\", \"type:character varying\"]\n";
    std::fs::write(command.folder().join("orders.toml"), configuration.replace(there, &url) + lossy)?;

    let mut runner = None;
    let mut seen = 0;
    for line in lines(&page, "sh") {
        if NOT_RUN.iter().any(|(start, _)| line.starts_with(start)) {
            continue;
        }
        let arguments = line.strip_prefix("anabranch ").ok_or_else(|| format!("README.md: nobody runs `{line}`"))?;
        let given = arguments.replace(there, &url);
        let arguments: Vec<&str> = given.split_whitespace().collect();
        seen += 1;
        match arguments.as_slice() {
            // The page's file is there already; this one is for a look.
            ["init", file, rest @ ..] => {
                let other = format!("init-{file}");
                command.bare(&[&["init", &other], rest].concat())?.expect(DONE, &["is written"]);
                command.bare(&["check", &other, "--json"])?;
            }
            ["run", "orders.toml", rest @ ..] if !rest.contains(&"--until-drained") => {
                let mut running = command.start(&arguments)?;
                running.says(" streaming | ")?;
                runner = Some(running);
            }
            // It takes over from the one that runs, which is started again behind it.
            ["run", ..] => {
                command.bare(&arguments)?.expect(DONE, &["drained: "]);
                let mut running = command.start(&["run", "orders.toml"])?;
                running.says(" streaming | ")?;
                runner = Some(running);
            }
            _ => command.bare(&arguments)?.expect(DONE, &[]),
        }
    }
    assert!(seen >= 8, "the page's commands are not found");
    assert_eq!(maria.exec(db, "SELECT count(*) FROM orders")?, [[Some("50".to_owned())]]);
    if let Some(running) = runner {
        running.signal("INT")?;
        running.ended()?.expect(DONE, &[]);
    }
    Ok(())
}

#[test]
fn what_is_not_run_is_on_the_page() -> Tested {
    let lines = lines(&read("README.md")?, "sh");
    for (start, _) in NOT_RUN {
        assert!(lines.iter().any(|line| line.starts_with(start)), "`{start}` is not in README.md any more");
    }
    Ok(())
}
