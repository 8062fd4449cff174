//! Disks that refuse, as the binary takes it: a sync that fails makes a daemon read-only, and loudly so; a full disk at any
//! write of any command loses nothing that was acknowledged. The faults are those of `store/src/failpoint.rs`, which only
//! debug builds have; with another binary these do nothing.

use std::{fs, path::Path};

use shoal_content::ShoalLink;
use shoal_tests::{
    MB,
    content::{assert_same_file, write_noise},
    place::{Place, link_of},
    process::{Finished, text},
};

/// The tests and the binary are built alike.
const HAS_FAULTS: bool = cfg!(debug_assertions);

#[test]
fn a_daemon_whose_sync_failed_promises_nothing_and_serves_on() {
    let place = Place::new();
    let theirs = place.file("theirs", MB + 2);
    let (_seeder, link) = place.share("seeder", &theirs);
    let [a, b] = [("a", MB), ("b", MB + 1)].map(|(name, len)| place.file(name, len));
    let switch = place.path("switch");
    if !HAS_FAULTS {
        return;
    }
    let mut daemon = place.shoal("home", ["daemon"]).env("SHOAL_TEST_FAIL_SYNCS", &switch).start();
    daemon.event("listening");
    let ours = link_of(place.shoal("home", ["share", "a"]).run().ok().event("shared"));

    fs::write(&switch, "").unwrap();
    place.shoal("home", ["share", "b"]).run().failed("disk", 7);
    // The disk works again; what it lost is lost all the same.
    fs::remove_file(&switch).unwrap();
    let link = link.to_string();
    for args in [
        &["share", "b"][..],
        &["fetch", &link, "-o", "out"],
        &["fetch", &link, "--cache"],
        &["pin", "a"],
        &["unpin", "a"],
        &["unshare", "a"],
        &["gc"],
    ] {
        let sentence = place.shoal("home", args).run().failed("disk", 7);
        for word in ["read-only", "failed to sync", "Input/output error", "check the disk", "restart shoal"] {
            assert!(sentence.contains(word), "{args:?}: {sentence}");
        }
    }
    for args in [&["ls"][..], &["df"], &["stat", "a"], &["peers"], &["id"]] {
        let shown = place.shoal("home", args).run().ok();
        let warning = text(shown.event("warning"), "message");
        assert!(warning.contains("any more") && warning.contains("Input/output error"), "{args:?}: {warning}");
    }
    let listed = place.shoal("home", ["ls"]).run().ok();
    let roots: Vec<_> = listed.events.iter().filter(|event| event["event"] == "root").collect();
    assert!(roots.len() == 1 && text(roots[0], "name") == "a" && roots[0]["pinned"] == false, "as on disk: {roots:?}");
    let verified = place.shoal("home", ["verify"]).run().ok();
    assert!(verified.event("verified")["intact"] == true, "reads go on: {verified:?}");
    daemon.until("a warning", |event| event["event"] == "warning" && text(event, "message").contains("restart shoal"));
    place.fetch("leecher", &ours, "theirs now").run().ok();
    assert_same_file(&a, &place.path("theirs now/a"));

    daemon.kill();
    let (_daemon, _) = place.daemon("home", &[]);
    let listed = place.shoal("home", ["ls"]).run().ok();
    assert!(listed.last("warning").is_none(), "{listed:?}");
    assert_eq!(text(listed.event("root"), "name"), "a", "what was acknowledged is there");
    place.shoal("home", ["share", &b.display().to_string()]).run().ok();
}

/// A home with a root that is shared, one that is cached, and one that is cached garbage; and a link to another.
struct Full {
    place: Place,
    link: ShoalLink,
    _seeder: shoal_tests::process::Running,
}

impl Full {
    fn new() -> Full {
        let place = Place::new();
        for (name, len) in [("cached", 700_000), ("forgotten", 600_000), ("theirs", 900_000)] {
            place.file(name, len);
        }
        let mut seeder = place.shoal("seeder", ["share", "cached", "forgotten", "theirs"]).start();
        let [cached, forgotten, link] = [(); 3].map(|()| link_of(&seeder.event("shared")));
        place.file("mine", 500_000);
        let share = place.shoal("template", ["share", "mine"]).start();
        let_it_share(share);
        for link in [cached, forgotten] {
            place.shoal("template", ["fetch", &link.to_string(), "--cache"]).run().ok();
        }
        place.shoal("template", ["unshare", "forgotten", "--forget"]).run().ok();
        Full { place, link, _seeder: seeder }
    }

    /// One command on a copy of the home, with no space at its `n`th write; false if it does not write so often.
    fn with_no_space(&self, n: u64, args: &[&str]) -> bool {
        let home = format!("home{n}");
        copy(&self.place.path("template"), &self.place.path(&home));
        write_noise(&self.place.path("new"), n + 1, 400_000);
        let run = |space: u64| {
            let command = self.place.shoal(&home, args).env("SHOAL_TEST_NO_SPACE", space.to_string());
            if args[0] == "share" { let_it_share(command.start()) } else { command.run() }
        };
        let tried = run(n);
        let hit = tried.stderr.contains("no space for");
        let how = format!("{args:?}, no space at write {n}: {}", tried.stderr);
        if tried.last("error").is_some() {
            let sentence = tried.failed("disk", 7);
            assert!(sentence.contains("space") && sentence.contains("; "), "{how}: {sentence}");
        } else {
            assert_eq!(tried.code.unwrap_or(0), 0, "{how}");
        }
        // What was acknowledged is there, and whole.
        let verified = self.place.shoal(&home, ["verify"]).run();
        assert_eq!(verified.code, Some(0), "{how}: {verified:?}");
        let names: Vec<String> = self.listed(&home);
        for name in ["mine", "cached"] {
            let gone = args[0] == "unshare" && args[1] == name;
            assert!(gone || names.iter().any(|there| there == name), "{how}: {name} is not among {names:?}");
        }
        if hit {
            let again = run(0);
            let done = again.last("error").is_none() && again.code.unwrap_or(0) == 0;
            // What failed may be done all the same: what is to be forgotten is not there any more.
            let moot = args[0] == "unshare" && !names.iter().any(|there| there == args[1]);
            assert!(done || moot, "{how}, and then with space: {again:?}");
        }
        fs::remove_dir_all(self.place.path(&home)).unwrap();
        if self.place.path("out").exists() {
            fs::remove_dir_all(self.place.path("out")).unwrap();
        }
        hit
    }

    fn listed(&self, home: &str) -> Vec<String> {
        let listed = self.place.shoal(home, ["ls"]).run().ok();
        listed.events.iter().filter(|event| event["event"] == "root").map(|root| text(root, "name")).collect()
    }

    fn at_every_write(&self, args: &[&str]) {
        if !HAS_FAULTS {
            return;
        }
        let writes = (1..).find(|n| !self.with_no_space(*n, args)).unwrap() - 1;
        println!("{args:?}: {writes} writes");
        assert!(writes > 1, "{args:?} writes more than that");
    }
}

/// Waits until it is shared, or was refused, and ends it.
fn let_it_share(mut share: shoal_tests::process::Running) -> Finished {
    loop {
        if share.is_over() {
            return share.finish();
        }
        if share.said().iter().any(|event| event["event"] == "shared") {
            return share.kill();
        }
        std::thread::yield_now();
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else if kind.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[test]
fn a_share_that_finds_no_space_at_any_write_loses_nothing() {
    Full::new().at_every_write(&["share", "new"]);
}

#[test]
fn a_fetch_that_finds_no_space_at_any_write_loses_nothing() {
    let full = Full::new();
    full.at_every_write(&["fetch", &full.link.to_string(), "-o", "out"]);
}

#[test]
fn a_caching_fetch_that_finds_no_space_at_any_write_loses_nothing() {
    let full = Full::new();
    full.at_every_write(&["fetch", &full.link.to_string(), "--cache"]);
}

#[test]
fn what_changes_a_home_loses_nothing_where_it_finds_no_space_at_any_write() {
    let full = Full::new();
    full.at_every_write(&["pin", "cached"]);
    full.at_every_write(&["unshare", "cached", "--forget"]);
    full.at_every_write(&["gc"]);
}
