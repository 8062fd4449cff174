//! Fetches that are ended at any moment and started again: identical at the end, and next to nothing fetched twice.
//!
//! Who counts: a killed process reports nothing, and its last progress is up to 250 ms old. The seeder counts what it
//! handed to QUIC, which includes what never left or never arrived. So the account is the link's: bytes of datagrams that
//! arrived at each run of the leecher until it was dead, summed, less what one undisturbed fetch over such a link takes.
//! That charges handshakes, trees and retransmissions of the restarts to the kills as well. The seeder's count is printed.
//! And what a run said to be in place before it was killed is in place for the next one, to the byte.

use rustix::process::Signal;
use shoal_tests::{
    MB, MIB,
    content::{Rng, assert_same_file},
    place::Place,
    process::{Finished, number},
    slow::SlowLink,
};

const SPEED: u64 = 12 * MB;

#[test]
fn a_fetch_killed_ten_times_ends_identical_and_fetches_next_to_nothing_twice() {
    const SIZE: u64 = 30 * MB;
    const KILLS: usize = 10;
    const SEED: u64 = 2;
    let place = Place::new();
    let file = place.file("f", SIZE);
    let (_share, link) = place.share("seeder", &file);

    let (control, via) = SlowLink::on(&link, SPEED);
    place.fetch("undisturbed", &via, "control").run().ok();
    let undisturbed = control.passed();
    drop(control);

    let before = place.sent_by("seeder");
    let mut arrived = 0;
    let mut kept = 0;
    let moments = Rng::new(SEED).partition(SIZE * 9 / 10, KILLS, 1);
    for (kill, &bytes) in moments.iter().enumerate() {
        let (slow, via) = SlowLink::on(&link, SPEED);
        let fetch = place.fetch("leecher", &via, "out").start();
        slow.wait_for(bytes);
        let killed = fetch.kill();
        arrived += slow.passed();
        assert_eq!(killed.code, None, "seed {SEED}: it ended before kill {kill} at {bytes} bytes: {killed:?}");
        assert!(resumed(&killed).is_none_or(|have| have >= kept), "seed {SEED}: what was in place is gone: {killed:?}");
        kept = kept.max(progress(&killed).or(resumed(&killed)).unwrap_or(0));
        println!(
            "kill {kill} after {bytes} bytes; resumed {:?}, last progress {:?}",
            resumed(&killed),
            progress(&killed)
        );
    }
    let (slow, via) = SlowLink::on(&link, SPEED);
    let done = place.fetch("leecher", &via, "out").run().done();
    arrived += slow.passed();

    assert_same_file(&file, &place.path("out/f"));
    assert_eq!(number(&done, "bytes"), SIZE);
    assert!(number(&done, "bytes_resumed") >= kept, "seed {SEED}: {done}");
    assert_eq!(number(&done, "bytes_resumed") + number(&done, "bytes_fetched"), SIZE);
    let twice = arrived.saturating_sub(undisturbed);
    println!(
        "{KILLS} kills in {SIZE} bytes: {} bytes fetched twice per kill (link), {} (seeder's count); undisturbed {undisturbed}",
        twice / KILLS as u64,
        (place.sent_by("seeder") - before).saturating_sub(SIZE) / KILLS as u64,
    );
    assert!(twice <= 2 * MIB * KILLS as u64, "seed {SEED}: {twice} bytes fetched twice over {KILLS} kills");
}

#[test]
fn an_interrupted_fetch_exits_130_and_goes_on_where_it_stopped() {
    const SIZE: u64 = 20 * MB;
    let place = Place::new();
    let file = place.file("f", SIZE);
    let (_share, link) = place.share("seeder", &file);
    let mut have = 0;
    for (signal, at) in [(Signal::INT, 5 * MB), (Signal::TERM, 6 * MB)] {
        let (slow, via) = SlowLink::on(&link, SPEED);
        let fetch = place.fetch("leecher", &via, "out").start();
        slow.wait_for(at);
        fetch.signal(signal);
        let ended = fetch.finish();
        assert!(ended.failed("interrupted", 130).contains("same command"));
        assert!(!place.path("out/f").exists(), "nothing that is not whole has the name");
        // Bytes of datagrams less their headers; what was not verified when the signal came may be lost.
        let floor = resumed(&ended).unwrap_or(0) + at * 95 / 100 - 2 * MIB;
        let mut next = place.fetch("leecher", &via, "out").start();
        have = number(&next.event("started"), "bytes_resumed");
        next.interrupt().failed("interrupted", 130);
        assert!(have >= floor, "{have} bytes of at least {floor} are still there after {signal:?}");
    }
    let done = place.fetch("leecher", &link, "out").run().done();
    assert!(number(&done, "bytes_resumed") >= have, "{done}");
    assert_same_file(&file, &place.path("out/f"));
}

/// Bytes that a fetch found in place from earlier runs.
fn resumed(run: &Finished) -> Option<u64> {
    run.last("started").map(|event| number(event, "bytes_resumed"))
}

/// Bytes in place as a fetch last said.
fn progress(run: &Finished) -> Option<u64> {
    run.last("progress").map(|event| number(event, "bytes_done"))
}
