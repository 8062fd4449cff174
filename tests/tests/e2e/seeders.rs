//! Several seeders of which some fail: the fetch ends identical, and its report says who was let go and why.

use rustix::process::Signal;
use serde_json::Value;
use shoal_content::ShoalLink;
use shoal_tests::{
    MB,
    content::{Plan, assert_same_file},
    place::Place,
    process::{number, text},
    raw::{Manner, RawPeer},
    slow::SlowLink,
};

#[test]
fn of_four_seeders_one_lies_one_stalls_one_is_killed_and_one_is_enough() {
    const SIZE: u64 = 40 * MB;
    let place = Place::new();
    let file = place.file("f", SIZE);
    let (_honest, link) = place.share("honest", &file);
    let (killed, its_link) = place.share("killed", &file);
    let plan = Plan::of(&file, &place.path("scratch"));
    assert_eq!((plan.root, its_link.root), (link.root, link.root));
    let liar = RawPeer::start(&plan, Manner::Lies);
    let staller = RawPeer::start(&plan, Manner::Stalls);
    let honest_way = SlowLink::to(&link.via[0], 8 * MB);
    let killed_way = SlowLink::to(&its_link.via[0], 8 * MB);
    let via = vec![liar.via(), staller.via(), killed_way.via(), honest_way.via()];
    let link = ShoalLink { via, ..link };

    let fetch = place.fetch("leecher", &link, "out").start();
    killed_way.wait_for(3 * MB);
    killed.kill();
    let fetch = fetch.finish();
    let done = fetch.event("done").clone();
    fetch.ok();
    println!("{} s, {} bytes came twice: {}", done["seconds"], done["bytes_duplicate"], done["peers"]);

    assert_same_file(&file, &place.path("out/f"));
    let peers = [&liar.peer(), &staller.peer(), peer_of(&its_link), peer_of(&link)];
    let [lied, stalled, was_killed, honest] = peers.map(|peer| share_of(&done, peer));
    assert!(text(lied, "dropped").contains("wrong bytes"), "{done}");
    assert_eq!(number(lied, "bytes"), 0, "{done}");
    assert!(text(stalled, "dropped").contains("stalled"), "{done}");
    assert_eq!(number(stalled, "bytes"), 0, "{done}");
    assert!(!text(was_killed, "dropped").is_empty(), "{done}");
    assert!(number(was_killed, "bytes") > 0, "{done}");
    assert_eq!(honest["dropped"], Value::Null, "{done}");
    let sum: u64 = done["peers"].as_array().unwrap().iter().map(|share| number(share, "bytes")).sum();
    assert_eq!((sum, number(&done, "bytes_fetched")), (SIZE, SIZE), "{done}");
}

#[test]
fn a_seeder_that_freezes_in_the_middle_is_passed_over() {
    const SIZE: u64 = 20 * MB;
    let place = Place::new();
    let file = place.file("f", SIZE);
    let (_honest, link) = place.share("honest", &file);
    let (frozen, its_link) = place.share("frozen", &file);
    let honest_way = SlowLink::to(&link.via[0], 5 * MB);
    let frozen_way = SlowLink::to(&its_link.via[0], 5 * MB);
    let both = ShoalLink { via: vec![frozen_way.via(), honest_way.via()], ..link.clone() };

    let fetch = place.fetch("leecher", &both, "out").start();
    frozen_way.wait_for(2 * MB);
    frozen.signal(Signal::STOP);
    let done = fetch.finish().done();
    println!("{} s: {}", done["seconds"], done["peers"]);

    assert_same_file(&file, &place.path("out/f"));
    // Whether it is let go as well depends on how soon the other one is through with everything.
    let passed_over = share_of(&done, peer_of(&its_link));
    assert!((1..SIZE / 2).contains(&number(passed_over, "bytes")), "{done}");
    // 20 MB at 5 MB/s, and what it takes to be sure that somebody is frozen.
    assert!(done["seconds"].as_f64().unwrap() < 12.0, "{done}");
}

/// The peer that a link of one seeder names.
fn peer_of(link: &ShoalLink) -> &str {
    link.via.last().and_then(|via| via.rsplit('/').next()).unwrap()
}

/// What the report says of a peer.
fn share_of<'a>(done: &'a Value, peer: &str) -> &'a Value {
    let peers = done["peers"].as_array().unwrap();
    peers.iter().find(|share| share["peer"] == peer).unwrap_or_else(|| panic!("{peer} is not named in {done}"))
}
