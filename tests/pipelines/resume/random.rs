//! Random changes between several interruptions at random writes.

use std::env;

use anabranch::ErrorKind;
use anabranch_testkit::faults::Fault;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::Tested;
use super::bed::{Bed, Side};

const DOCS: &str = "id, code, big, n, pad";

/// One statement, or several of one transaction.
fn change(rng: &mut StdRng) -> Vec<String> {
    let (a, b) = (rng.random_range(1..220), rng.random_range(1..220));
    let n: u32 = rng.random_range(0..1_000_000);
    let one = match rng.random_range(0..24) {
        0..=2 => format!("UPDATE docs SET n = {n} WHERE id % 17 = {a} % 17"),
        3 => format!("UPDATE docs SET big = repeat('{n}', 900) WHERE id = {a}"),
        4..=5 => format!("UPDATE docs SET id = {n} + 1000 WHERE id = {a}"),
        6..=7 => format!("DELETE FROM docs WHERE id IN ({a}, {b})"),
        8..=9 => format!(
            "INSERT INTO docs VALUES ({a}, 'new {n}', repeat('{n}', 700), 1, repeat('q', 500)) ON CONFLICT DO NOTHING"
        ),
        10..=12 => format!(
            "CREATE TEMP TABLE swap ON COMMIT DROP AS SELECT id, code FROM docs WHERE id IN ({a}, {b}); \
             UPDATE docs SET code = 'swap {n}' WHERE id = {a} AND (SELECT count(*) FROM swap) = 2; \
             UPDATE docs SET code = (SELECT code FROM swap WHERE id = {a}) WHERE id = {b} AND (SELECT count(*) FROM swap) = 2; \
             UPDATE docs SET code = (SELECT code FROM swap WHERE id = {b}) WHERE id = {a} AND (SELECT count(*) FROM swap) = 2"
        ),
        13 => format!("UPDATE docs SET id = -{a} WHERE id = {a}; UPDATE docs SET id = {a} WHERE id = {b}"),
        14 => format!("UPDATE docs SET pad = pad || '.' WHERE ctid < '({},0)'", a % 12),
        15 => "VACUUM docs".to_owned(),
        16 => format!("DELETE FROM docs WHERE id = {a}; INSERT INTO docs VALUES ({a}, 'again {n}', 'b', {n}, 'p')"),
        17 => {
            format!("BEGIN; UPDATE docs SET n = 0; SAVEPOINT s; DELETE FROM docs WHERE id < {a}; ROLLBACK TO s; COMMIT")
        }
        18 => format!("UPDATE parts SET b = b + {n} WHERE b % 23 = {a} % 23; DELETE FROM parts WHERE b = {b}"),
        19 => format!(
            "UPDATE \"full Rows\" SET v = 'v{n}' WHERE \"Id\" % 5 = {a} % 5; UPDATE \"full Rows\" SET \"Id\" = {n} + 1000 WHERE \"Id\" = {a}"
        ),
        20 => format!(
            "UPDATE scoded SET code = 'n{n}' WHERE id = {a} % 60; UPDATE scoded SET v = 'v{n}' WHERE id % 9 = {b} % 9"
        ),
        21 => format!("UPDATE keyless SET v = 'v{n}' WHERE n = {a} % 60; DELETE FROM keyless WHERE n = {b} % 60"),
        22 if n.is_multiple_of(8) => "TRUNCATE docs".to_owned(),
        22 if n % 8 == 1 => "VACUUM FULL docs".to_owned(),
        _ => format!(
            "INSERT INTO docs SELECT {n} + i, 'more ' || {n} + i, 'b', i, repeat('r', 300) FROM generate_series(2000, 2020) i ON CONFLICT DO NOTHING"
        ),
    };
    vec![one]
}

fn changes(rng: &mut StdRng) -> Vec<String> {
    let count = rng.random_range(0..20);
    (0..count).flat_map(|_| change(rng)).collect()
}

async fn round(bed: &mut Bed, rng: &mut StdRng) -> Tested<bool> {
    bed.anew().await?;
    let mut went_on = false;
    // The chunks of all tables are about fifty.
    for n in 0..rng.random_range(2..6) {
        let workers = rng.random_range(1..4);
        let before = bed.table("docs").await.unwrap_or_default();
        // First in the middle of `docs`, which has about twenty chunks; then wherever it goes on.
        let write = if n == 0 { rng.random_range(2..22) } else { rng.random_range(1..16) };
        let kind =
            if rng.random_bool(0.5) { Fault::Fail(ErrorKind::Fatal) } else { Fault::DoneThenFail(ErrorKind::Fatal) };
        let interrupted = bed.runs(workers, Some((write, kind))).await?;
        let now = bed.table("docs").await?;
        went_on |= before.done > 0 && !before.finished && now.rows > before.rows && now.done >= before.done;
        if now.finished && !before.finished {
            bed.compare_table("between", "docs", DOCS)?;
        }
        let changes = changes(rng);
        bed.change(&changes.iter().map(String::as_str).collect::<Vec<_>>())?;
        if !interrupted {
            break;
        }
    }
    let before = bed.table("docs").await?;
    bed.finished(rng.random_range(1..4)).await?;
    let now = bed.table("docs").await?;
    went_on |= before.done > 0 && !before.finished && now.rows > bed.count("docs")?;
    if !before.finished {
        bed.compare_table("finished", "docs", DOCS)?;
    }
    let changes = changes(rng);
    bed.streams(&changes.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    Ok(went_on)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn random_changes_between_random_interruptions() -> Tested {
    // The same in every run, unless another one is asked for; `ROUNDS` makes it longer.
    let given = |name: &str| env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let (seed, factor) = (given("SEED").unwrap_or(742_238_986), given("ROUNDS").unwrap_or(1));
    println!("random interruptions: SEED={seed}");
    for side in Side::all()? {
        let rounds = factor * if matches!(side, Side::Sqlite(_)) { 4 } else { 2 };
        let Some(mut bed) = Bed::start(side).await? else { return Ok(()) };
        let mut went_on = 0;
        for n in 0..rounds {
            let mut rng = StdRng::seed_from_u64(seed.wrapping_add(n));
            match round(&mut bed, &mut rng).await {
                Ok(one) => went_on += u32::from(one),
                Err(e) => {
                    return Err(format!("{}, SEED={}: {e}", bed.side.name(), seed.wrapping_add(n)).into());
                }
            }
        }
        println!("{}: {went_on} of {rounds} copies went on in the middle of a table", bed.side.name());
    }
    Ok(())
}
