//! Copies that are interrupted in the middle of a table and go on: every row is compared, and finished
//! chunks are not copied again.

mod bed;
mod fallbacks;
mod random;

use anabranch::ErrorKind;
use anabranch_testkit::faults::Fault;

use super::Tested;
use bed::{Bed, Side};

/// Changes of every kind, between two points.
const CHANGES: [&str; 12] = [
    // Large values that are not sent.
    "UPDATE docs SET n = n + 1 WHERE id % 7 = 0",
    // Keys, of rows in copied chunks and in others; to a free one, and through each other.
    "UPDATE docs SET id = id + 10000 WHERE id IN (3, 4, 150, 190)",
    "UPDATE docs SET id = -1 WHERE id = 11; UPDATE docs SET id = 11 WHERE id = 180; UPDATE docs SET id = 180 WHERE id = -1",
    "DELETE FROM docs WHERE id IN (1, 2, 20, 100, 199, 200)",
    // Unique values change hands, within copied chunks and between copied ones and others.
    "UPDATE docs SET code = 'x' WHERE id = 30; UPDATE docs SET code = 'code 30' WHERE id = 31; \
     UPDATE docs SET code = 'code 31' WHERE id = 30",
    "UPDATE docs SET code = 'x' WHERE id = 32; UPDATE docs SET code = 'code 32' WHERE id = 170; \
     UPDATE docs SET code = 'code 170' WHERE id = 32",
    // The first pages move to the end, and their room is used again.
    "UPDATE docs SET pad = pad || '.' WHERE ctid < '(2,0)'",
    "VACUUM docs",
    "INSERT INTO docs SELECT i, 'code ' || i, repeat('new', 1000), i, repeat('p', 700) FROM generate_series(500, 520) i",
    // Deleted and there again; there and gone again.
    "DELETE FROM docs WHERE id = 40; INSERT INTO docs VALUES (40, 'again', 'b', 1, 'p')",
    "INSERT INTO docs VALUES (600, 'short', 'b', 1, 'p'); DELETE FROM docs WHERE id = 600",
    "UPDATE parts SET b = b + 1000 WHERE b % 9 = 0; DELETE FROM parts WHERE b % 11 = 0; \
     UPDATE \"full Rows\" SET v = v || '!' WHERE \"Id\" % 5 = 0; UPDATE \"full Rows\" SET \"Id\" = -\"Id\" WHERE \"Id\" % 13 = 0; \
     UPDATE scoded SET v = v || '!' WHERE code LIKE '%5'; DELETE FROM keyless WHERE n % 4 = 0",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_copy_goes_on_in_the_middle_of_a_table() -> Tested {
    for side in Side::all()? {
        let Some(mut bed) = Bed::start(side).await? else { return Ok(()) };
        let name = bed.side.name();
        // Before, and between the commit and the news of it.
        for fault in [Fault::Fail(ErrorKind::Fatal), Fault::DoneThenFail(ErrorKind::Fatal)] {
            bed.anew().await?;
            bed.interrupted(1, 16, fault).await?;
            let before = bed.table("docs").await?;
            assert_eq!((before.done, before.finished), (15, false), "{name}: {before:?}");
            bed.change(&CHANGES)?;
            bed.finished(1).await?;
            let after = bed.table("docs").await?;
            let rows = bed.count("docs")?;
            assert!(after.finished && after.point.rank > before.point.rank, "{name}: {after:?}");
            assert!(after.plan.is_none() && after.done_chunks.is_empty(), "{name}: {after:?}");
            // Fifteen chunks of twenty were not read again; changed rows were.
            let again = after.rows - before.rows;
            assert!(again < rows, "{name}: {again} of {rows} rows were copied after the interruption");
            bed.compare(&format!("{name}, {fault:?}"))?;
            bed.streams(&["UPDATE docs SET n = n + 1", "UPDATE docs SET id = id + 5000 WHERE id > 500"]).await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_copy_that_is_interrupted_at_every_step_goes_on() -> Tested {
    let Some(mut bed) = Bed::start(Side::sqlite()?).await? else { return Ok(()) };
    bed.anew().await?;
    bed.interrupted(1, 6, Fault::Fail(ErrorKind::Fatal)).await?;
    let mut step: usize = 1;
    // In the removal of keys, in the chunks, in the rows that come back: each run does one more write.
    while !bed.table("docs").await?.finished {
        // Other rows each time: those of the times before must be found again.
        let changes = [
            format!("UPDATE docs SET n = n + 1 WHERE id % 40 = {step}"),
            format!("UPDATE docs SET id = id + 10000 WHERE id % 40 = {step} + 20 AND id < 10000"),
            format!("DELETE FROM docs WHERE id = {step}"),
        ];
        bed.change(&changes.each_ref().map(String::as_str))?;
        let kind =
            if step.is_multiple_of(2) { Fault::Fail(ErrorKind::Fatal) } else { Fault::DoneThenFail(ErrorKind::Fatal) };
        bed.runs(1, Some((step as u64, kind))).await?;
        step += 1;
    }
    // A run copies three chunks or so less than the one before: each removes the keys, and then goes further.
    assert!(step > 5, "only {step} steps");
    bed.compare_table("every step", "docs", "id, code, big, n, pad")?;
    bed.streams(&CHANGES).await
}
