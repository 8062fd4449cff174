//! Handing over: to a daemon, and to whatever process has the home open.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;

use common::{Place, text};

#[test]
fn commands_run_in_the_daemon_and_a_new_daemon_serves_what_the_old_one_did() {
    let place = Place::new();
    let file = place.file("f", 700_000);
    let mut daemon = place.start("a", ["daemon"]);
    let listening = daemon.event("listening");
    assert_eq!(listening["pid"], daemon.pid().as_raw_nonzero().get());

    // A relative path is the client's, and the client does not stay.
    let share = place.run("a", ["share", "f"]).ok();
    let link = text(share.event("shared"), "link");
    assert_eq!(share.event("shared")["pid"], listening["pid"]);
    let ls = place.run("a", ["ls"]).ok();
    assert_eq!(ls.event("root")["serving"], true);
    place.run("b", ["fetch", &link, "-o", "out"]).ok();
    assert_eq!(fs::read(place.path("out/f")).unwrap(), fs::read(&file).unwrap());

    let id = place.run("a", ["id"]).ok();
    assert_eq!(text(id.event("id"), "peer"), text(&listening, "peer"));
    assert_eq!(id.event("id")["pid"], listening["pid"]);
    place.run("a", ["peers"]).ok().event("counters");
    place.run("a", ["pin", "f"]).ok();
    assert_eq!(place.run("a", ["stat", "f"]).ok().event("root")["pinned"], true);
    assert_eq!(daemon.interrupt().code, Some(0));
    assert!(!place.path("a/control.sock").exists());

    let mut daemon = place.start("a", ["daemon"]);
    assert_eq!(text(&daemon.event("listening"), "peer"), text(&listening, "peer"));
    // The address changed, since this test listens on any port.
    let link = text(place.run("a", ["stat", "f"]).ok().event("root"), "link");
    place.run("c", ["fetch", &link, "-o", "out2"]).ok();

    place.run("a", ["unshare", "f"]).ok();
    let ls = place.run("a", ["ls"]).ok();
    assert_eq!((&ls.event("root")["serving"], &ls.event("root")["provide"]), (&false.into(), &false.into()));
}

#[test]
fn a_daemon_fetches_for_its_clients_and_forgets_the_fetch_of_one_that_leaves() {
    let place = Place::new();
    let file = place.file("f", 64_000_000);
    let (share, link) = place.share("a", &file);
    let mut daemon = place.start("b", ["daemon"]);
    daemon.event("listening");
    let mut fetch = place.start("b", ["fetch", &link, "-o", "out"]);
    fetch.event("started");
    share.signal(rustix::process::Signal::STOP);
    fetch.interrupt().failed("interrupted", 130);
    share.signal(rustix::process::Signal::CONT);

    let done = place.run("b", ["fetch", &link, "-o", "out"]).ok();
    assert_eq!(done.event("done")["bytes"], 64_000_000);
    assert_eq!(fs::read(place.path("out/f")).unwrap(), fs::read(&file).unwrap());
    // The daemon goes on serving it.
    assert_eq!(place.run("b", ["ls"]).ok().event("root")["serving"], true);
    assert_eq!(daemon.interrupt().code, Some(0));
}

#[test]
fn a_new_daemon_takes_up_what_was_not_complete() {
    let place = Place::new();
    let file = place.file("f", 64_000_000);
    let (share, link) = place.share("a", &file);
    let mut fetch = place.start("b", ["fetch", &link, "-o", "out"]);
    fetch.event("started");
    fetch.signal(rustix::process::Signal::KILL);
    fetch.finish();
    // Only the DHT tells the daemon of peers, and only through whom it is told to ask.
    let id = place.run("a", ["id"]).ok();
    let mut daemon = place.start("b", ["daemon", "--bootstrap", &text(id.event("id"), "/addrs/0")]);
    daemon.event("listening");
    // A command takes over from it, and finds what it got.
    let done = place.run("b", ["fetch", &link, "-o", "out"]).ok();
    assert_eq!(done.event("done")["bytes"], 64_000_000);
    assert_eq!(fs::read(place.path("out/f")).unwrap(), fs::read(&file).unwrap());
    drop(share);
}

#[test]
fn the_port_and_so_the_link_stay_the_same_at_the_next_start() {
    let place = Place::new();
    let start = || {
        let mut command = place.bare("a");
        command.args(["daemon", "--json"]);
        let mut daemon = common::Running::start(command);
        let addr = text(&daemon.event("listening"), "/addrs/0");
        assert_eq!(daemon.interrupt().code, Some(0));
        addr
    };
    assert_eq!(start(), start());
}

#[test]
fn what_is_forgotten_is_no_longer_listed() {
    let place = Place::new();
    let (share, _) = place.share("a", &place.file("f", 10));
    place.run("a", ["unshare", "f", "--forget"]).ok();
    assert!(place.run("a", ["ls"]).ok().events.is_empty());
    drop(share);
    assert!(place.path("f").exists());
}

#[test]
fn a_second_command_joins_the_process_that_has_the_home_open() {
    let place = Place::new();
    let (x, y) = (place.file("x", 10), place.file("y", 20));
    let (first, _) = place.share("a", &x);
    let (second, link) = place.share("a", &y);
    place.run("b", ["fetch", &link, "-o", "out"]).ok();
    // It stays like any other share, until it is told to stop.
    assert_eq!(second.interrupt().code, Some(0));
    assert_eq!(first.interrupt().code, Some(0));
}

#[test]
fn limits_are_kept_and_change_while_it_serves() {
    let place = Place::new();
    place.file("f", 8_000_000);
    let mut share = place.start("a", ["share", "f", "--upload-limit", "32 Mbit/s"]);
    let link = text(&share.event("shared"), "link");
    let seconds = |home: &str, out: &str| {
        let fetched = place.run(home, ["fetch", &link, "-o", out]).ok();
        fetched.event("done")["seconds"].as_f64().unwrap()
    };
    let shown = place.run("a", ["limit"]).ok();
    assert_eq!(text(shown.event("limits"), "upload"), "4 MB/s");
    let slow = seconds("b", "out");
    assert!(slow > 1.8, "8 MB at 4 MB/s took {slow} s");

    let changed = place.run("a", ["limit", "--upload", "none", "--download-per-peer", "1MiB"]).ok();
    let limits = changed.event("limits");
    assert_eq!((&limits["upload"], &limits["download_per_peer"]), (&"none".into(), &"1 MiB/s".into()));
    let fast = seconds("c", "out2");
    assert!(fast < slow, "{fast} s without a limit, {slow} s with");
}

#[test]
fn a_client_hears_when_its_daemon_dies() {
    let place = Place::new();
    let (x, y) = (place.file("x", 10), place.file("y", 20));
    let (first, _) = place.share("a", &x);
    let (second, _) = place.share("a", &y);
    first.signal(rustix::process::Signal::KILL);
    second.finish().failed("interrupted", 130);
    // What it left behind is in nobody's way.
    place.share("a", &x);
}
