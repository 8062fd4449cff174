//! Quota, cache, time to live: what goes, what stays, and what `gc` and `df` say about it.

use std::{
    fs,
    time::{Duration, Instant},
};

use shoal_tests::{
    AT_MOST, MB, MIB,
    content::assert_same_file,
    place::{Place, link_of},
    process::{number, poll, text},
};

#[test]
fn a_cache_serves_others_and_stays_within_its_quota() {
    let place = Place::new();
    let files: Vec<_> = (1..5).map(|i| place.file(&format!("f{i}"), 5 * MB + i)).collect();
    let quota = 16 * MIB;
    let cache = |args: &[&str]| place.shoal("cache", args).env("SHOAL_QUOTA", (quota / MIB).to_string());
    let mut last = None;
    for file in &files {
        let (_share, link) = place.share("seeder", file);
        let done = cache(&["fetch", &link.to_string(), "--cache"]).run().done();
        assert_eq!(number(&done, "bytes_fetched"), fs::metadata(file).unwrap().len());
        assert!(done["paths"].as_array().unwrap().is_empty(), "nothing lands: {done}");
        last = Some(link.root);
    }
    let listed = cache(&["ls"]).run().ok();
    let roots: Vec<_> = listed.events.iter().filter(|event| event["event"] == "root").collect();
    assert!(roots.len() < files.len(), "something had to go: {listed:?}");
    assert!(roots.iter().all(|root| root["kind"] == "cached" && root["complete"] == true), "{listed:?}");
    let space = cache(&["df"]).run().ok().event("space").clone();
    assert!(number(&space, "used") <= quota && number(&space, "cached") > 5 * MB, "{space}");

    // The sharers are gone; the cache has the last one.
    let last = last.unwrap().to_string();
    let mut daemon = cache(&["daemon"]).start();
    daemon.event("listening");
    let link = poll("the cache serves", Duration::from_secs(10), || {
        let root = cache(&["stat", &last]).run().ok().event("root").clone();
        (root["serving"] == true).then(|| link_of(&root))
    });
    place.fetch("other", &link, "out").run().done();
    assert_same_file(&files[3], &place.path("out").join("f4"));

    // Pinned, it stays; what does not fit beside it is refused with a sentence.
    cache(&["pin", &last]).run().ok();
    let big = place.file("big", 12 * MB);
    let (_share, link) = place.share("seeder", &big);
    let sentence = cache(&["fetch", &link.to_string(), "--cache"]).run().failed("disk", 7);
    assert!(sentence.contains("quota"), "{sentence}");
    cache(&["stat", &last]).run().ok();
}

#[test]
fn what_has_expired_is_forgotten_and_its_space_comes_back() {
    let place = Place::new();
    let tree = place.path("tree");
    fs::create_dir(&tree).unwrap();
    for i in 0..2000 {
        fs::write(tree.join(format!("a file with a name that takes some space {i}")), i.to_string()).unwrap();
    }
    let mut share = place.shoal("home", ["share", "tree", "--ttl", "1s"]).start();
    share.event("shared");
    assert!(number(place.shoal("home", ["ls"]).run().ok().event("root"), "expires_unix") > 0);
    // Through the process that serves it, which serves it no longer then.
    let collected = poll("a second is over", Duration::from_secs(20), || {
        let collected = place.shoal("home", ["gc"]).run().ok().event("collected").clone();
        (collected["expired"][0] == "tree").then_some(collected)
    });
    assert!(number(&collected, "bytes_freed") > 100_000 && number(&collected, "blocks") > 2000, "{collected}");
    assert!(place.shoal("home", ["ls"]).run().ok().last("root").is_none());
    let space = place.shoal("home", ["df"]).run().ok().event("space").clone();
    assert_eq!((number(&space, "kept"), number(&space, "in_place")), (0, 0), "{space}");
    share.interrupt();
    assert_eq!(fs::read_dir(&tree).unwrap().count(), 2000);
}

#[test]
fn a_pin_for_a_time_says_until_when() {
    let place = Place::new();
    let (_share, link) = place.share("home", &place.file("f", 1000));
    let pinned = place.shoal("home", ["pin", &link.root.to_string(), "--for", "12h"]).run().ok();
    assert_eq!(text(pinned.event("pinned"), "name"), "f");
    let root = place.shoal("home", ["stat", "f"]).run().ok().event("root").clone();
    assert!(number(&root, "pinned_until_unix") > number(&root, "created_unix") + 40_000, "{root}");
    place.shoal("home", ["unpin", "f"]).run().ok();
    let root = place.shoal("home", ["stat", "f"]).run().ok().event("root").clone();
    assert!(root["pinned"] == false && root["pinned_until_unix"].is_null(), "{root}");
}

#[test]
fn what_rotted_is_found_named_and_repaired_from_another_peer() {
    let place = Place::new();
    let file = place.file("f", 6 * MB);
    let (_share, link) = place.share("seeder", &file);
    place.fetch("home", &link, "out").run().done();
    let sound = place.shoal("home", ["verify"]).run().ok();
    let (progress, cost) = (sound.event("verifying"), sound.event("scrubbed"));
    assert_eq!(number(progress, "bytes_total"), 6 * MB, "it says how far it is");
    assert!(number(cost, "bytes") >= 6 * MB && number(cost, "copies") > 6 && number(cost, "bad") == 0, "{cost}");
    // One bit of the landed file, and one of the index.
    for (path, at) in [(place.path("out/f"), 3_000_000), (place.path("home/store/index.redb"), 9000)] {
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
    }
    let found = place.shoal("home", ["verify"]).run();
    let sentence = found.failed("content", 9);
    assert!(sentence.contains("--repair"), "{sentence}");
    assert!(text(found.event("damaged"), "path").ends_with("out/f"), "{found:?}");
    assert_eq!(number(found.event("scrubbed"), "bad"), 1);
    let repaired = place.shoal("home", ["verify", &link.to_string(), "--repair"]).run().ok();
    assert_eq!(repaired.last("verified").unwrap()["intact"], true);
    let fetched = number(repaired.event("done"), "bytes_fetched");
    assert!(fetched > 0 && fetched <= 1 << 20, "one chunk: {fetched}");
    place.shoal("home", ["verify"]).run().ok();
}

/// At its pace, saying how far it is, with what is bad fetched again from a peer that it finds.
#[test]
fn a_daemon_looks_for_rot_by_itself_and_repairs() {
    let place = Place::new();
    let file = place.file("f", 4 * MB);
    let (_seeder, seeds) = place.daemon("seeder", &[]);
    let link = link_of(place.shoal("seeder", ["share"]).args([&file]).run().ok().event("shared"));
    place.fetch("home", &link, "out").run().done();
    let mut bytes = fs::read(place.path("out/f")).unwrap();
    bytes[1_000_000] ^= 1;
    fs::write(place.path("out/f"), bytes).unwrap();

    let begun = Instant::now();
    let daemon = place.shoal("home", ["daemon", "--bootstrap", &seeds]);
    let mut daemon = daemon.env("SHOAL_SCRUB_EVERY", "1s").env("SHOAL_SCRUB_RATE", "1").start();
    daemon.event("listening");
    let space = || place.shoal("home", ["df"]).run().ok().event("space").clone();
    let scrub = poll("a scrub", AT_MOST, || space().get("scrub").filter(|scrub| scrub["bytes_done"] != 0).cloned());
    assert!(number(&scrub, "bytes_total") >= 4 * MB && number(&scrub, "bytes_done") < 4 * MB, "{scrub}");
    poll("the end of the scrub", AT_MOST, || space()["scrubbed_unix"].as_u64());
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(3), "4 MB at 1 MiB/s in {took:?}");
    let repaired = || place.shoal("home", ["verify", &link.root.to_string()]).run();
    poll("a repair", AT_MOST, || (repaired().code == Some(0)).then_some(()));
    assert_eq!(daemon.interrupt().code, Some(0));
}
