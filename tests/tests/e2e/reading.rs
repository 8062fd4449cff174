//! `shoal cat`: a file's bytes while they come, in order; what moves for it, what is kept, and who it is that sets the pace.

use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use rustix::process::Signal;
use shoal_content::ShoalLink;
use shoal_tests::{
    MB, MIB,
    content::{Plan, assert_same_file, noise, write_noise},
    place::{Place, Shoal},
    process::{number, poll},
    raw::{Manner, RawPeer},
    slow::SlowLink,
};

/// `shoal cat` of a link on the home of this name.
fn cat(place: &Place, home: &str, link: &ShoalLink, args: &[&str]) -> Shoal {
    place.shoal(home, ["cat", &link.to_string()]).args(args)
}

#[test]
fn a_file_is_written_in_order_kept_and_read_again_without_anybody() {
    let place = Place::new();
    let file = place.file("film", 9 * MB + 17);
    let content = fs::read(&file).unwrap();
    let (share, link) = place.share("seeder", &file);
    let (bytes, ended) = cat(&place, "home", &link, &[]).pipe().finish();
    let read = ended.ok().event("read").clone();
    assert!(bytes == content);
    assert!(number(&read, "bytes_moved") < 9 * MB + 100_000 && read["kept"] == true, "{read}");
    share.kill();
    let (bytes, ended) = cat(&place, "home", &link, &[]).pipe().finish();
    assert!(bytes == content);
    assert_eq!(number(ended.ok().event("read"), "bytes_moved"), 0);
    // by its name, and only a part
    let part = place.shoal("home", ["cat", "film", "--offset", "1MiB", "--length", "3 MB"]).pipe();
    let (bytes, ended) = part.finish();
    ended.ok();
    assert!(bytes == content[1 << 20..(1 << 20) + 3_000_000]);
    let listed = place.shoal("home", ["ls"]).run().ok();
    assert!(listed.event("root")["complete"] == true && listed.event("root")["kind"] == "cached", "{listed:?}");
}

#[test]
fn of_a_range_of_a_large_file_little_more_moves_than_the_range() {
    let place = Place::new();
    let file = place.path("film");
    // mostly a hole, as far as the disk is concerned
    let big = fs::File::create(&file).unwrap();
    big.set_len(300 * MIB).unwrap();
    let content = noise(3, 4 * MIB);
    std::os::unix::fs::FileExt::write_all_at(&big, &content, 256 * MIB).unwrap();
    let (_share, link) = place.share("seeder", &file);
    let (way, link) = SlowLink::on(&link, 1_000 * MB);
    let at = (256 * MIB + 12_345).to_string();
    let (bytes, ended) = cat(&place, "home", &link, &["--offset", &at, "--length", "1MiB"]).pipe().finish();
    ended.ok();
    assert!(bytes == content[12_345..12_345 + (1 << 20)]);
    assert!(way.passed() < 4 * MIB, "{} bytes came for a range of 1 MiB", way.passed());
}

#[test]
fn the_first_byte_is_there_long_before_the_file_could_be() {
    let place = Place::new();
    let file = place.file("film", 30 * MB);
    let content = fs::read(&file).unwrap();
    let (_share, link) = place.share("seeder", &file);
    // Slow, so that what a busy machine does meanwhile is few bytes.
    let (way, link) = SlowLink::on(&link, 2 * MB);
    let mut cat = cat(&place, "home", &link, &[]).pipe();
    assert!(cat.read(1) == content[..1]);
    let passed = way.passed();
    assert!(passed < 3 * MB, "{passed} of 30 MB had come when the first byte was there");
    let bytes = cat.read(2_000_000);
    assert!(bytes == content[1..=2_000_000] && way.passed() < 8 * MB);
    assert_eq!(cat.interrupt().code, Some(130));
}

#[test]
fn a_seeder_that_dies_and_one_that_lies_do_not_end_the_film() {
    let place = Place::new();
    let file = place.file("film", 16 * MB);
    let content = fs::read(&file).unwrap();
    let (_share, link) = place.share("honest", &file);
    let (killed, its_link) = place.share("killed", &file);
    let liar = RawPeer::start(&Plan::of(&file, &place.path("scratch")), Manner::Lies);
    let ways = [SlowLink::to(&link.via[0], 5 * MB), SlowLink::to(&its_link.via[0], 5 * MB)];
    let via = vec![liar.via(), ways[1].via(), ways[0].via()];
    let mut cat = cat(&place, "home", &ShoalLink { via, ..link }, &[]).pipe();
    let mut bytes = cat.read(4_000_000);
    killed.kill();
    let (rest, ended) = cat.finish();
    bytes.extend(rest);
    assert!(bytes == content);
    let ended = ended.ok();
    let dropped = ended.events.iter().filter(|event| event["event"] == "peer_dropped").map(|event| &event["peer"]);
    assert!(dropped.into_iter().any(|peer| *peer == liar.peer()), "{ended:?}");
}

/// What is not read is not fetched, and what does not fit into the quota is not kept, here and through a daemon.
#[test]
fn a_reader_that_takes_its_time_costs_neither_disk_nor_bandwidth() {
    let place = Place::new();
    let file = place.file("film", 80 * MB);
    let content = fs::read(&file).unwrap();
    let (_share, link) = place.share("seeder", &file);
    let small = |shoal: Shoal| shoal.env("SHOAL_QUOTA", "8");
    let mut daemon = small(place.shoal("daemon", ["daemon"])).start();
    daemon.event("listening");
    for home in ["alone", "daemon"] {
        let (way, link) = SlowLink::on(&link, 200 * MB);
        let mut cat = small(cat(&place, home, &link, &[])).pipe();
        let mut bytes = cat.read(1_000_000);
        let mut before = (0, 0);
        poll("the fetch stops", Duration::from_secs(30), || {
            std::thread::sleep(Duration::from_millis(50));
            let passed = way.passed();
            before = if passed > before.0 + 10_000 { (passed, 0) } else { (before.0, before.1 + 1) };
            (before.1 >= 10).then_some(())
        });
        assert!(way.passed() < 45 * MB, "{home}: {} bytes came for a reader that stopped", way.passed());
        let (rest, ended) = cat.finish();
        bytes.extend(rest);
        assert!(bytes == content, "{home}");
        let ended = ended.ok();
        assert_eq!((&ended.event("opened")["kept"], &ended.event("read")["kept"]), (&false.into(), &false.into()));
        let space = small(place.shoal(home, ["df"])).run().ok().event("space").clone();
        assert!(number(&space, "used") < 8 * MIB, "{space}");
    }
    daemon.signal(Signal::TERM);
}

#[test]
fn a_daemon_reads_for_others_and_serves_what_was_read() {
    let place = Place::new();
    let tree = place.path("tree");
    write_noise(&tree.join("a/film"), 5, 6 * MB);
    write_noise(&tree.join("b"), 6, 100_000);
    let (share, link) = place.share("seeder", &tree);
    let (mut daemon, _) = place.daemon("home", &[]);
    let (bytes, ended) = cat(&place, "home", &link, &["a/film"]).pipe().finish();
    ended.ok();
    assert!(bytes == noise(5, 6 * MB));
    // whoever has enough ends it, quietly
    let mut enough = cat(&place, "home", &link, &["a/film"]).pipe();
    enough.read(100_000);
    let ended = enough.hang_up();
    assert_eq!((ended.code, ended.last("error")), (Some(0), None), "{ended:?}");
    let sentence = cat(&place, "home", &link, &[]).pipe().finish().1.failed("usage", 2);
    assert!(sentence.contains("a/film") && sentence.contains("shoal cat LINK"), "{sentence}");
    cat(&place, "home", &link, &["a/none"]).pipe().finish().1.failed("not-found", 3);
    let (bytes, ended) = cat(&place, "home", &link, &["b"]).pipe().finish();
    ended.ok();
    assert!(bytes == noise(6, 100_000));
    // all of it was read: it is served like what was fetched
    share.kill();
    let root = place.shoal("home", ["stat", &link.root.to_string()]).run().ok().event("root").clone();
    assert!(root["complete"] == true && root["serving"] == true, "{root}");
    let link = shoal_tests::place::link_of(&root);
    place.fetch("other", &link, "out").run().done();
    assert_same_file(&tree.join("a/film"), &place.path("out/tree/a/film"));
    daemon.said();
}

#[test]
fn an_archive_is_unpacked_while_it_comes() {
    let place = Place::new();
    let tree = place.path("tree");
    (0..40).for_each(|i| write_noise(&tree.join(format!("d{}/f{i}", i % 7)), i, 30_000 + i * 7_001));
    let packed = Command::new("tar").args(["cf", "tree.tar", "tree"]).current_dir(place.path("")).status();
    assert!(packed.unwrap().success());
    let (_share, link) = place.share("seeder", &place.path("tree.tar"));
    let out = place.path("out");
    fs::create_dir(&out).unwrap();
    let mut tar = Command::new("tar").arg("x").current_dir(&out).stdin(Stdio::piped()).spawn().unwrap();
    let (bytes, ended) = cat(&place, "home", &link, &[]).pipe().finish();
    ended.ok();
    std::io::Write::write_all(&mut tar.stdin.take().unwrap(), &bytes).unwrap();
    assert!(tar.wait().unwrap().success());
    (0..40).for_each(|i| {
        assert_same_file(&tree.join(format!("d{}/f{i}", i % 7)), &out.join(format!("tree/d{}/f{i}", i % 7)))
    });
}
