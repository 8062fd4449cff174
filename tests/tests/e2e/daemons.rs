//! Daemons that are killed: what they fetch goes on and what they share is served again, by themselves.

use std::{os::unix::fs::symlink, path::Path, time::Duration};

use rustix::process::Signal;
use shoal_content::ShoalLink;
use shoal_tests::{
    MB,
    content::{assert_same_file, assert_same_tree},
    place::{Place, link_of},
    process::{number, poll},
};

#[test]
fn a_daemon_killed_in_a_fetch_goes_on_with_the_addresses_of_the_link() {
    let place = Place::new();
    place.file("tree/dir/f", 80 * MB);
    symlink("dir/f", place.path("tree/link")).unwrap();
    let (share, link) = place.share("seeder", &place.path("tree"));
    killed_in_a_fetch(&place, &link, &[], |signal| share.signal(signal));
    assert_same_tree(&place.path("tree"), &place.path("out/tree"));
}

#[test]
fn a_daemon_killed_in_a_fetch_goes_on_with_peers_from_the_dht() {
    let place = Place::new();
    let file = place.file("f", 80 * MB);
    let (seeder, addr) = place.daemon("seeder", &[]);
    let shared = place.shoal("seeder", [Path::new("share"), &file]).run().ok();
    let link = ShoalLink::new(link_of(shared.event("shared")).root);
    killed_in_a_fetch(&place, &link, &[&addr], |signal| seeder.signal(signal));
    assert_same_file(&file, &place.path("out").join(link.root.to_string()));
}

/// The daemon of `leecher` fetches a link for a client, is killed in the middle, and started again.
fn killed_in_a_fetch(place: &Place, link: &ShoalLink, bootstrap: &[&str], seeder: impl Fn(Signal)) {
    // Two seconds, so that there is a middle to be killed in.
    place.shoal("seeder", ["limit", "--upload", "40 MB/s"]).run().ok();
    let (daemon, _) = place.daemon("leecher", bootstrap);
    let mut client = place.fetch("leecher", link, "out").args(["--symlinks"]).start();
    client.until("progress", |event| event["event"] == "progress" && number(event, "bytes_done") > 0);
    // From here on little more arrives, however fast this machine is.
    seeder(Signal::STOP);
    daemon.kill();
    seeder(Signal::CONT);
    client.finish().failed("interrupted", 130);

    let (_daemon, _) = place.daemon("leecher", bootstrap);
    poll("the new daemon finishes the fetch", Duration::from_secs(20), || {
        let ls = place.shoal("leecher", ["ls"]).run().ok();
        let root = ls.event("root");
        (root["complete"] == true && root["serving"] == true).then_some(())
    });
}

#[test]
fn what_a_killed_daemon_shared_is_served_again() {
    let place = Place::new();
    let files = [("a", 1), ("b", 2), ("c", 3)].map(|(name, size)| place.file(name, size * MB));
    let (daemon, _) = place.daemon("seeder", &[]);
    for file in &files {
        place.shoal("seeder", [Path::new("share"), file]).run().ok();
    }
    daemon.kill();

    let (_daemon, _) = place.daemon("seeder", &[]);
    for name in ["a", "b", "c"] {
        let stat = place.shoal("seeder", ["stat", name]).run().ok();
        place.fetch("leecher", &link_of(stat.event("root")), "out").run().ok();
        assert_same_file(&place.path(name), &place.path("out").join(name));
    }
}
