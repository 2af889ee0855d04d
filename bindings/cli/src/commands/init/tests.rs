use super::*;

fn options(arguments: &[&str]) -> Options {
    use clap::Parser;
    #[derive(Parser)]
    struct Alone {
        #[command(flatten)]
        options: Options,
    }
    Alone::parse_from(std::iter::once("init").chain(arguments.iter().copied())).options
}

fn planned(arguments: &[&str]) -> Result<Plan> {
    plan(&options(arguments), &mut None::<Ask<&[u8], Vec<u8>>>)
}

fn asked(arguments: &[&str], answers: &str) -> (Result<Plan>, String) {
    let mut said = Vec::new();
    let plan = plan(&options(arguments), &mut Some(Ask::new(answers.as_bytes(), &mut said)));
    (plan, String::from_utf8(said).unwrap())
}

const PG: &str = "postgresql://replicator:hunter2@db1/shop?sslmode=require";

#[test]
fn every_pair_of_urls_gives_a_configuration_that_is_accepted() {
    let sources = [
        PG,
        "postgres://replicator@db1:5433/shop",
        "yugabyte://replicator:hunter2@yb1:5433/shop",
        "spanner://projects/p/instances/i/databases/d",
        "projects/p/instances/i/databases/d",
        "dynamodb://eu-west-1/orders,customers",
        "file:///tmp/windows",
    ];
    let folder = tempfile::tempdir().unwrap();
    let file = format!("sqlite:{}", folder.path().join("target.db").display());
    let targets = [
        "postgresql://app:hunter2@db2/shop",
        "mysql://app:hunter2@db2/shop",
        "mariadb://app@db2/shop",
        "yugabytedb://app@yb2:5433/shop",
        file.as_str(),
        "spanner://projects/p/instances/i/databases/e",
        "dynamodb://eu-west-1",
        "file:///tmp/target",
    ];
    for source in sources {
        for target in targets {
            let plan = planned(&["orders-dr.toml", "--source", source, "--target", target]).unwrap();
            let text = render(&plan);
            accepted(&text).unwrap_or_else(|e| panic!("{source} to {target}: {}\n{text}", e.report()));
        }
    }
}

fn render(plan: &Plan) -> String {
    template::render(plan, &Secrets::Shown)
}

#[test]
fn a_password_is_referred_to_and_stands_nowhere() {
    let plan = planned(&["orders.toml", "--source", PG, "--target", "mysql://app:hunter2@db2/shop"]).unwrap();
    let text = template::render(&plan, &Secrets::Env);
    assert!(text.contains("url = \"env:SOURCE_URL\"") && text.contains("url = \"env:TARGET_URL\""), "{text}");
    assert!(text.contains("# postgresql://replicator@db1/shop?sslmode=require, with the password"), "{text}");
    let text = text + &template::render(&plan, &Secrets::Files("here/orders.toml".into()));
    assert!(text.contains("url = \"file:here/orders.source-url\""), "{text}");
    assert!(!text.contains("hunter2") && !format!("{plan:?}").contains("hunter2"), "{text}");
    let hidden = planned(&["--source", "postgresql://u@h/d?password=hunter2", "--target", "a.db"]).unwrap();
    assert!(!template::render(&hidden, &Secrets::Env).contains("hunter2"));
    assert!(render(&plan).contains("hunter2"));
}

#[test]
fn names_are_made_of_the_files_name_and_can_be_given() {
    let plan = planned(&["Orders-DR.toml", "--source", PG, "--target", "orders.db"]).unwrap();
    let text = render(&plan);
    assert!(text.contains("name = \"Orders-DR\"") && text.contains("slot = \"anabranch_orders_dr\""), "{text}");
    let plan = planned(&[
        "--source",
        PG,
        "--target",
        "orders.db",
        "--name",
        "o\"x",
        "--slot",
        "s",
        "--publication",
        "p",
        "--table",
        "public.a",
        "--table",
        "b",
        "--order",
        "arrival",
        "--no-create-tables",
    ])
    .unwrap();
    let text = render(&plan);
    for part in [
        "name = 'o\"x'",
        "slot = \"s\"",
        "publication = \"p\"",
        "tables = [\"public.a\", \"b\"]",
        "order = \"arrival\"",
        "create_tables = false",
    ] {
        assert!(text.contains(part), "{part}:\n{text}");
    }
    accepted(&text).unwrap();
}

#[test]
fn what_is_missing_is_asked_for_until_it_makes_sense() {
    let (plan, said) = asked(&["orders.toml"], "nonsense\nsqlite:x.db\npostgresql://u@h/d\n\nx.db\n\nperhaps\nn\n");
    let text = render(&plan.unwrap());
    assert!(text.contains("name = \"orders\"") && text.contains("create_tables = false"), "{text}");
    for part in
        ["URL of the source", "--source: is no URL", "can be a target", "URL of the target", "[orders]", "y or n"]
    {
        assert!(said.contains(part), "{part}:\n{said}");
    }
    let (ended, _) = asked(&["orders.toml"], "postgresql://u@h/d\n");
    assert!(ended.unwrap_err().report().contains("give the answers as flags"));
}

#[test]
fn what_cannot_be_meant_names_the_flag_and_the_fix() {
    for (source, target, says) in [
        ("", "a.db", "--source: is no URL"),
        ("mysql://u@h/d", "a.db", "--source: MySQL and MariaDB can be a target"),
        ("oracle://u:hunter2@h/d", "a.db", "--source: is of no database that is known here"),
        (PG, "hunter2", "--target: is no URL"),
        (PG, "sqlite:", "--target: names no file"),
        ("env:ANABRANCH_NOT_SET", "a.db", "--source: the environment variable ANABRANCH_NOT_SET is not set"),
    ] {
        let error = planned(&["--source", source, "--target", target]).unwrap_err().report();
        assert!(error.contains(says) && !error.contains("hunter2"), "{error}");
    }
    assert!(planned(&["--target", "a.db"]).unwrap_err().report().contains("--source: is missing"));
}
