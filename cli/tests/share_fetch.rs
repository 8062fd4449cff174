//! The main job through the real binary: share here, fetch there, over loopback.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod common;

use std::{ffi::OsStr, fs, os::unix::fs::PermissionsExt, path::Path};

use common::{Place, Running, noise, text};

const MB: usize = 1_000_000;

#[test]
fn a_file_arrives_identical_and_a_second_fetch_moves_nothing() {
    let place = Place::new();
    let file = place.file("in/big file.bin", 5 * MB);
    let (share, link) = place.share("a", &file);
    assert!(link.starts_with("shoal:bafy"), "{link}");

    let done = place.run("b", ["fetch", &link, "--output", "out"]).ok();
    let done = done.event("done");
    assert_eq!(text(done, "path"), place.path("out/big file.bin").to_str().unwrap());
    assert_eq!((&done["bytes"], &done["files"]), (&(5 * MB).into(), &1.into()));
    assert_eq!(done["bytes_fetched"], 5 * MB);
    assert_eq!(done["peers"].as_array().unwrap().len(), 1);
    assert_eq!(fs::read(place.path("out/big file.bin")).unwrap(), fs::read(&file).unwrap());

    let again = place.run("b", ["fetch", &link, "--output", "out"]).ok();
    assert_eq!(again.event("done")["bytes_fetched"], 0);
    // The same bytes elsewhere come from here.
    let elsewhere = place.run("b", ["fetch", &link, "-o", "other"]).ok();
    assert_eq!(elsewhere.event("done")["bytes_local"], 5 * MB);

    // Stopping what served its purpose is no failure.
    assert_eq!(share.interrupt().code, Some(0));
}

#[test]
fn a_tree_arrives_with_modes_and_symlinks_and_a_path_in_it_alone() {
    let place = Place::new();
    place.file("tree/a/one", 300_000);
    place.file("tree/a/b/two", 70);
    fs::write(place.path("tree/empty"), []).unwrap();
    fs::create_dir(place.path("tree/nothing")).unwrap();
    fs::set_permissions(place.path("tree/a/one"), fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("b/two", place.path("tree/a/link")).unwrap();
    let (_share, link) = place.share("a", &place.path("tree"));

    place.run("b", ["fetch", &link, "--output", "out", "--symlinks"]).ok();
    assert_eq!(fs::read(place.path("out/tree/a/one")).unwrap(), noise(300_000, 300_000));
    assert_eq!(fs::read(place.path("out/tree/a/link")).unwrap(), noise(70, 70));
    assert!(fs::read(place.path("out/tree/empty")).unwrap().is_empty());
    assert!(place.path("out/tree/nothing").is_dir());
    let mode = |path| fs::metadata(place.path(path)).unwrap().permissions().mode() & 0o111;
    assert_ne!(mode("out/tree/a/one"), 0);
    assert_eq!(mode("out/tree/a/b/two"), 0);

    let part = place.run("c", ["fetch", &link, "a/b", "-o", "part"]).ok();
    assert_eq!(part.event("done")["bytes"], 70);
    assert_eq!(fs::read(place.path("part/b/two")).unwrap(), noise(70, 70));

    let none = place.run("c", ["fetch", &link, "a/zzz", "-o", "part"]);
    assert!(none.failed("not-found", 3).contains("a/zzz"));

    let stat = place.run("b", ["stat", "tree"]).ok();
    assert_eq!(stat.event("root")["files"], 3);
    let paths: Vec<_> = stat.all("entry").iter().map(|entry| text(entry, "path")).collect();
    assert!(paths.contains(&"a/b/two".to_owned()) && paths.contains(&"nothing".to_owned()), "{paths:?}");
}

#[test]
fn several_paths_give_several_links_and_all_are_served() {
    let place = Place::new();
    place.file("x", 10);
    place.file("y", 20);
    let mut share = place.start("a", ["share", "x", "y"]);
    let links = [text(&share.event("shared"), "link"), text(&share.event("shared"), "link")];
    for (link, name) in links.iter().zip(["x", "y"]) {
        place.run("b", ["fetch", link, "-o", "out"]).ok();
        assert_eq!(fs::read(place.path(name)).unwrap(), fs::read(place.path("out").join(name)).unwrap());
    }
}

#[test]
fn what_was_shared_before_is_not_read_again_unless_it_is_asked_for() {
    let place = Place::new();
    // Files that nobody has written to in the last seconds, without waiting for them to be that old.
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let share = |flags: &[&str]| {
        let args = ["share"].iter().chain(flags).map(OsStr::new).chain([path.as_os_str()]);
        let mut running = place.start("a", args);
        let shared = running.event("shared");
        running.interrupt();
        ["root", "files", "bytes", "files_unread", "bytes_unread"].map(|name| shared[name].clone())
    };
    let [root, files, bytes, unread, _] = share(&[]);
    assert_eq!(unread, 0);
    assert_eq!(share(&[]), [&root, &files, &bytes, &files, &bytes].map(Clone::clone));
    let [again, .., unread, _] = share(&["--read-all"]);
    assert_eq!((again, unread), (root, 0.into()));
    // People read the same.
    let mut command = place.bare("a");
    command.args(["--listen", common::LOOPBACK, "share"]).arg(&path);
    let mut running = Running::start(command);
    running.line();
    let told = running.interrupt().stderr;
    assert!(told.contains(&format!("{files} files (")) && told.contains("not read again, 0 read"), "{told}");
}

#[test]
fn one_who_fetched_and_stays_serves_others() {
    let place = Place::new();
    let file = place.file("f", 2 * MB);
    let (share, link) = place.share("a", &file);
    let mut stay = place.start("b", ["fetch", &link, "-o", "out", "--stay"]);
    stay.event("done");
    share.interrupt();
    // Its link names itself.
    let root = text(&place.run("b", ["ls"]).ok().events[0], "link");
    assert_ne!(root, link);
    let done = place.run("c", ["fetch", &root, "-o", "out2"]).ok();
    assert_eq!(done.event("done")["bytes_fetched"], 2 * MB);
    assert_eq!(stay.interrupt().code, Some(0));
}

#[test]
fn people_get_the_link_on_stdout_and_the_rest_on_stderr() {
    let place = Place::new();
    let file = place.file("f\u{1b}[31mred", MB);
    let mut command = place.bare("a");
    command.args(["--listen", common::LOOPBACK, "share"]).arg(&file);
    let mut share = Running::start(command);
    let link = share.line();
    let mut command = place.bare("b");
    command.args(["--listen", common::LOOPBACK, "fetch", &link, "-o", "out"]);
    let fetch = Running::start(command).finish().ok();
    assert_eq!(fetch.stdout.lines().count(), 1, "{}", fetch.stdout);
    assert!(fetch.stdout.contains("out/f\\u{1b}[31mred"), "{}", fetch.stdout);
    assert!(fetch.stderr.contains("every byte verified"), "{}", fetch.stderr);
    let mut command = place.bare("b");
    command.arg("ls");
    let ls = Running::start(command).finish().ok();
    assert!(!ls.stdout.contains('\u{1b}') && ls.stdout.contains("\\u{1b}"), "{}", ls.stdout);

    let share = share.interrupt();
    assert_eq!(share.stdout.trim(), link);
    assert!(share.stderr.contains(&format!("shoal fetch '{link}'")), "{}", share.stderr);
    assert!(!share.stderr.contains('\u{1b}'), "{}", share.stderr);
}

#[test]
fn an_interrupted_fetch_says_so_and_the_next_goes_on() {
    let place = Place::new();
    let file = place.file("f", 128 * MB);
    let (share, link) = place.share("a", &file);
    let mut fetch = place.start("b", ["fetch", &link, "-o", "out"]);
    fetch.event("started");
    // From here on little more arrives, however fast this machine is.
    share.signal(rustix::process::Signal::STOP);
    let fetch = fetch.interrupt();
    assert!(fetch.failed("interrupted", 130).contains("same command"), "{fetch:?}");
    assert!(!place.path("out/f").exists());
    share.signal(rustix::process::Signal::CONT);

    let done = place.run("b", ["fetch", &link, "-o", "out"]).ok();
    let done = done.event("done");
    let (fetched, resumed) = (done["bytes_fetched"].as_u64().unwrap(), done["bytes_resumed"].as_u64().unwrap());
    assert_eq!(fetched + resumed, 128 * MB as u64);
    assert_eq!(fs::read(place.path("out/f")).unwrap(), fs::read(&file).unwrap());
}

#[test]
fn a_changed_file_is_found_by_verify_and_not_served() {
    let place = Place::new();
    let file = place.file("f", 3 * MB);
    let (mut share, link) = place.share("a", &file);
    assert_eq!(place.run("a", ["verify"]).ok().event("verified")["intact"], true);
    let mut bytes = fs::read(&file).unwrap();
    bytes[2 * MB] ^= 1;
    fs::write(&file, bytes).unwrap();
    let verify = place.run("a", ["verify", "f"]);
    verify.failed("content", 9);
    assert_eq!(text(verify.event("damaged"), "path"), file.to_str().unwrap());
    assert_eq!(verify.event("verified")["files_damaged"], 1);

    let mut command = place.shoal("b");
    command.env("SHOAL_GIVE_UP_AFTER", "2").args(["fetch", &link, "-o", "out"]);
    Running::start(command).finish().failed("no-provider", 4);
    assert!(!place.path("out/f").exists());
    // Whoever serves it is told.
    let warning = text(&share.event("warning"), "message");
    assert!(warning.contains(file.to_str().unwrap()) && warning.contains("share it again"), "{warning}");
}

#[test]
fn a_bare_cid_is_found_through_one_peer_that_has_it_not() {
    let place = Place::new();
    let file = place.file("f", 2 * MB);
    let mut meeting = place.start("meeting", ["daemon"]);
    let addr = text(&meeting.event("listening"), "/addrs/0");
    let mut share = place.start("a", ["share", file.to_str().unwrap(), "--bootstrap", &addr]);
    let root = text(&share.event("shared"), "root");
    let done = place.run("b", ["fetch", &root, "-o", "out", "--bootstrap", &addr]).ok();
    let done = done.event("done");
    assert!(done["first_provider_seconds"].is_number(), "{done}");
    // Without a link, there is no other name for it.
    assert_eq!(fs::read(place.path("out").join(&root)).unwrap(), fs::read(&file).unwrap());
}

#[test]
fn a_killed_fetch_goes_on_where_it_was() {
    let place = Place::new();
    let file = place.file("f", 128 * MB);
    let (share, link) = place.share("a", &file);
    // So that there is a middle to be killed in, however fast the machine is.
    place.run("a", ["limit", "--upload", "60 MB/s"]).ok();
    let mut fetch = place.start("b", ["fetch", &link, "-o", "out"]);
    while fetch.event("progress")["bytes_done"] == 0 {}
    fetch.signal(rustix::process::Signal::KILL);
    assert_eq!(fetch.finish().code, None);
    let ls = place.run("b", ["ls"]).ok();
    assert_eq!(ls.event("root")["complete"], false);
    let done = place.run("b", ["fetch", &link, "-o", "out"]).ok();
    let done = done.event("done");
    let (fetched, resumed) = (done["bytes_fetched"].as_u64().unwrap(), done["bytes_resumed"].as_u64().unwrap());
    assert_eq!(fetched + resumed, 128 * MB as u64);
    assert!(resumed > 0, "{done}");
    assert_eq!(fs::read(place.path("out/f")).unwrap(), fs::read(&file).unwrap());
    drop(share);
}

#[test]
fn the_demonstration_ends_by_itself_and_cleans_up() {
    let place = Place::new();
    let file = place.file("f", 8 * MB);
    let mut command = place.bare("a");
    command.args(["demo", "--json"]).arg(&file);
    let demo = Running::start(command).finish().ok();
    let peers = demo.all("demo_peer");
    assert_eq!(peers.len(), 4);
    for peer in peers {
        assert_eq!((&peer["verified"], &peer["bytes"]), (&true.into(), &(8 * MB).into()));
    }
    demo.event("demo_done");
    assert!(!Path::new(&text(demo.event("demo_shared"), "directory")).exists());
}
