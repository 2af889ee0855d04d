//! One primary feeds two regions; one of them is down for a while. The same story as
//! `cargo run --example two_regions`.

use anabranch::pipeline::Phase;

use super::Tested;

#[path = "../../examples/two_regions/region.rs"]
mod region;
#[path = "../../examples/two_regions/story.rs"]
mod story;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_region_that_is_down_harms_no_other_and_its_countdown_is_seen() -> Tested {
    let mut said = Vec::new();
    let Some(story) = story::tell(&mut |line| said.push(line)).await? else { return Ok(()) };
    let said = said.join("\n");
    println!("{said}");
    assert!(story.equal, "{said}");
    assert!(story.transactions > 100, "{said}");

    // The other region was drained again and again meanwhile, in the same run and without a failure.
    let (unaffected, down) = (&story.unaffected, &story.down);
    assert_eq!((unaffected.phase, unaffected.failures), (Phase::Streaming, 0), "{unaffected:?}");
    assert_eq!(unaffected.last_error, None, "{unaffected:?}");
    assert!(story.worst_lag.is_finite(), "{said}");
    assert!(unaffected.safe_time > down.safe_time, "{unaffected:?} {down:?}");

    // The one that is down says so, what is kept for it, and that this shrinks.
    assert!(down.last_error.is_some() && down.failures > 0, "{down:?}");
    let (left, before) =
        (down.retention.clone().unwrap_or_default(), story.before.retention.clone().unwrap_or_default());
    assert!(left.bytes.is_some() && left.bytes < before.bytes, "{before:?} {left:?}");
    assert!(left.unread_bytes > before.unread_bytes, "{before:?} {left:?}");
    assert!(left.to_string().contains("until what is needed is dropped: in about"), "{left}");
    Ok(())
}
