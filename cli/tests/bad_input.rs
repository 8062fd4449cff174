//! What bad input gets: one sentence that says what, where and what to do, and an exit code of its class.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod common;

use std::{fs, net::UdpSocket, os::unix::ffi::OsStrExt};

use common::{Place, Running, text};

const UNKNOWN: &str = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e";

#[test]
fn a_missing_path() {
    let place = Place::new();
    assert!(place.run("a", ["share", "no/such"]).failed("not-found", 3).contains("no/such"));
}

#[test]
fn a_malformed_link() {
    let place = Place::new();
    for link in ["shoal:", "shoal:zzz", "hello", "ipfs://x", &format!("{UNKNOWN}/../x"), "http://example.org/x"] {
        place.run("a", ["fetch", link]).failed("bad-link", 5);
    }
}

#[test]
fn an_unknown_root() {
    let place = Place::new();
    for args in
        [&["stat", UNKNOWN][..], &["pin", "nothing"], &["unpin", "nothing"], &["verify", "x"], &["unshare", "x"]]
    {
        place.run("a", args).failed("not-found", 3);
    }
    assert!(place.run("a", ["peers"]).failed("not-found", 3).contains("shoal daemon"));
    assert!(place.run("a", ["limit", "--upload", "none"]).failed("not-found", 3).contains("shoal daemon"));
}

#[test]
fn nobody_who_has_it() {
    let place = Place::new();
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let peer = text(place.run("other", ["id"]).ok().event("id"), "peer");
    let link =
        format!("shoal:{UNKNOWN}?via=/ip4/127.0.0.1/udp/{}/quic-v1/p2p/{peer}", silent.local_addr().unwrap().port());
    for link in [link.as_str(), UNKNOWN] {
        let mut command = place.shoal("a");
        command.env("SHOAL_GIVE_UP_AFTER", "1").args(["fetch", link]);
        assert!(Running::start(command).finish().failed("no-provider", 4).contains("via="));
    }
}

#[test]
fn a_destination_that_is_something_else() {
    let place = Place::new();
    let (_share, link) = place.share("a", &place.file("f", 100));
    fs::create_dir(place.path("out")).unwrap();
    fs::write(place.path("out/f"), "mine").unwrap();
    assert!(place.run("b", ["fetch", &link, "-o", "out"]).failed("exists", 8).contains("out/f"));
    assert_eq!(fs::read(place.path("out/f")).unwrap(), b"mine");
    // A file where a directory should be.
    let failed = place.run("b", ["fetch", &link, "-o", "out/f"]);
    assert!(matches!(failed.code, Some(7 | 8)), "{failed:?}");
}

#[test]
fn a_name_that_is_not_utf8_and_a_thing_that_is_no_file() {
    let place = Place::new();
    fs::create_dir(place.path("t")).unwrap();
    fs::write(place.path("t").join(std::ffi::OsStr::from_bytes(b"caf\xe9")), "x").unwrap();
    assert!(place.run("a", ["share", "t"]).failed("content", 9).contains("UTF-8"));
    let socket = std::os::unix::net::UnixListener::bind(place.path("s")).unwrap();
    assert!(place.run("a", ["share", "s"]).failed("content", 9).contains("socket"));
    drop(socket);
}

#[test]
fn an_unreadable_file() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    let file = place.file("t/secret", 10);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::read(&file).is_ok() {
        // For root every file is readable.
        return;
    }
    assert!(place.run("a", ["share", "t"]).failed("disk", 7).contains("secret"));
}

#[test]
fn a_port_in_use_and_an_address_that_is_not_ours() {
    let place = Place::new();
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    for (addr, class, code) in [
        (format!("/ip4/127.0.0.1/udp/{port}/quic-v1"), "network", 6),
        ("/ip4/192.0.2.77/udp/0/quic-v1".to_owned(), "network", 6),
        ("/ip4/127.0.0.1/tcp/1".to_owned(), "usage", 2),
        ("nonsense".to_owned(), "usage", 2),
    ] {
        let mut command = place.bare("a");
        command.args(["daemon", "--json", "--listen", &addr]);
        Running::start(command).finish().failed(class, code);
    }
}

#[test]
fn a_broken_line_in_the_settings() {
    let place = Place::new();
    fs::create_dir(place.path("a")).unwrap();
    let config = place.path("a/config.toml");
    for (content, line, part) in [
        ("mdns = true\nfoo = 1\n", 2, "foo"),
        ("\n\nmdns = 7\n", 3, "true or false"),
        ("mdns = [\n", 1, "array"),
        ("bootstrap = [\"/ip4/1.2.3.4/udp/1/quic-v1\"]", 1, "p2p"),
    ] {
        fs::write(&config, content).unwrap();
        let message = place.run("a", ["ls"]).failed("home", 10);
        assert!(message.contains(&format!("config.toml, line {line}: ")), "{message}");
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn a_home_of_a_newer_format_and_a_directory_of_something_else() {
    let place = Place::new();
    place.run("a", ["ls"]).ok();
    fs::write(place.path("a/format"), "2\n").unwrap();
    assert!(place.run("a", ["ls"]).failed("home", 10).contains("upgrade"));
    fs::write(place.path("a/format"), "1\n").unwrap();
    place.run("a", ["ls"]).ok();

    place.file("b/thesis.tex", 10);
    assert!(place.run("b", ["ls"]).failed("home", 10).contains("thesis.tex"));
    place.file("c", 10);
    place.run("c", ["ls"]).failed("home", 10);
}

#[test]
fn a_command_line_that_makes_no_sense() {
    let place = Place::new();
    for args in [&["frobnicate"][..], &["share"], &["fetch"], &["ls", "--nope"], &["completions", "klingon"]] {
        let finished = place.run("a", args);
        finished.failed("usage", 2);
        assert_eq!(finished.stderr, "");
    }
    let mut command = place.bare("a");
    command.arg("frobnicate");
    let finished = Running::start(command).finish();
    assert_eq!((finished.code, finished.stdout.as_str()), (Some(2), ""));
    assert!(finished.stderr.contains("frobnicate"));
}

#[test]
fn people_read_one_line_on_stderr_and_nothing_on_stdout() {
    let place = Place::new();
    let mut command = place.bare("a");
    command.args(["share", "no\u{1b}such"]);
    let finished = Running::start(command).finish();
    assert_eq!((finished.code, finished.stdout.as_str()), (Some(3), ""));
    assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
    assert!(finished.stderr.contains("no\\u{1b}such"), "{}", finished.stderr);
}

#[test]
fn a_reader_that_goes_away() {
    let place = Place::new();
    let mut command = place.bare("a");
    command.args(["config"]).stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn an_interrupt_while_it_looks_for_peers() {
    let place = Place::new();
    let mut fetch = place.start("a", ["fetch", UNKNOWN]);
    fetch.event("searching");
    fetch.interrupt().failed("interrupted", 130);
}
