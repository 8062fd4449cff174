//! A home whose store is encrypted: where its passphrase comes from, what is said without it, and what the disk tells.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;

use common::{Finished, Place, Running, text};

const PASSPHRASE: &str = "correct horse battery staple";
const NAME: &str = "a name that tells";

/// Starts a command on a home, with `encrypt = true` and these variables.
fn start(place: &Place, home: &str, variables: &[(&str, &str)], args: &[&str]) -> Running {
    let mut command = place.shoal(home);
    command.env("SHOAL_ENCRYPT", "true").envs(variables.iter().copied()).args(args);
    Running::start(command)
}

fn run(place: &Place, home: &str, variables: &[(&str, &str)], args: &[&str]) -> Finished {
    start(place, home, variables, args).finish()
}

/// Whether any file below a directory holds these bytes.
fn tells(dir: &std::path::Path, bytes: &[u8]) -> bool {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).any(|path| {
        if path.is_dir() {
            tells(&path, bytes)
        } else {
            fs::read(&path).is_ok_and(|file| file.windows(bytes.len()).any(|window| window == bytes))
        }
    })
}

#[test]
fn an_encrypted_cache_serves_with_its_passphrase_and_tells_nothing_without() {
    let place = Place::new();
    let file = place.file(NAME, 700_000);
    let content = fs::read(&file).unwrap();
    let (seeder, link) = place.share("seeder", &file);
    let at = place.path("passphrase");
    fs::write(&at, format!("{PASSPHRASE}\n")).unwrap();
    let by_file = [("SHOAL_PASSPHRASE_FILE", at.to_str().unwrap())];
    run(&place, "cache", &by_file, &["fetch", &link, "--cache"]).ok();
    seeder.interrupt();
    for secret in [NAME.as_bytes(), &content[..64], &content[300_000..300_064], PASSPHRASE.as_bytes()] {
        assert!(!tells(&place.path("cache"), secret), "{}", String::from_utf8_lossy(secret));
    }
    assert!(tells(&place.path("seeder"), NAME.as_bytes()), "or the search would find nothing anywhere");

    // Another process, and the passphrase another way. The setting is not needed any more.
    let by_variable = [("SHOAL_PASSPHRASE", PASSPHRASE)];
    let ls = run(&place, "cache", &[by_variable[0], ("SHOAL_ENCRYPT", "false")], &["ls"]).ok();
    assert_eq!(text(ls.event("root"), "name"), NAME);
    let mut daemon = start(&place, "cache", &by_variable, &["daemon"]);
    daemon.event("listening");
    // Who hands over to a daemon needs no passphrase.
    let link = text(place.run("cache", ["stat", NAME]).ok().event("root"), "link");
    place.run("there", ["fetch", &link, "-o", "out"]).ok();
    assert!(fs::read(place.path("out").join(NAME)).unwrap() == content);
    assert_eq!(daemon.interrupt().code, Some(0));
}

#[test]
fn without_the_passphrase_there_is_a_sentence_and_no_store() {
    let place = Place::new();
    // Nobody sits here who could be asked.
    for command in ["daemon", "ls"] {
        let sentence = run(&place, "new", &[], &[command]).failed("home", 10);
        assert!(sentence.contains("to be encrypted") && sentence.contains("SHOAL_PASSPHRASE_FILE"), "{sentence}");
    }
    assert!(!place.path("new/store/format").exists());
    run(&place, "new", &[("SHOAL_PASSPHRASE", PASSPHRASE)], &["ls"]).ok();
    let sentence = place.run("new", ["daemon"]).failed("home", 10);
    assert!(sentence.contains("is encrypted"), "{sentence}");
    let sentence = run(&place, "new", &[("SHOAL_PASSPHRASE", "another")], &["ls"]).failed("home", 10);
    assert!(sentence.contains("does not fit") && sentence.contains("new/store"), "{sentence}");
    let none = place.path("none");
    let sentence = run(&place, "new", &[("SHOAL_PASSPHRASE_FILE", none.to_str().unwrap())], &["ls"]).failed("home", 10);
    assert!(sentence.contains("none"), "{sentence}");
    let config = run(&place, "new", &[("SHOAL_PASSPHRASE", PASSPHRASE)], &["config"]).ok();
    assert!(!config.stdout.contains(PASSPHRASE) && !config.stderr.contains("SHOAL_PASSPHRASE"), "{config:?}");
}

#[test]
fn a_plain_home_that_is_to_be_encrypted_says_what_to_do() {
    let place = Place::new();
    place.run("plain", ["ls"]).ok();
    // With the passphrase and without: it is not taken for encrypted.
    for variables in [&[("SHOAL_PASSPHRASE", PASSPHRASE)][..], &[]] {
        let sentence = run(&place, "plain", variables, &["ls"]).failed("home", 10);
        assert!(sentence.contains("not encrypted") && sentence.contains("move it away"), "{sentence}");
    }
    // A passphrase in the environment alone changes nothing about a plain home.
    let mut command = place.shoal("plain");
    command.env("SHOAL_PASSPHRASE", PASSPHRASE).arg("ls");
    Running::start(command).finish().ok();
    assert_eq!(fs::read_to_string(place.path("plain/store/format")).unwrap(), "1\n");
}

#[test]
fn the_passphrase_of_a_home_can_be_changed_while_nothing_has_it_open() {
    let place = Place::new();
    let file = place.file("mine", 10_000);
    let (old, new) = (("SHOAL_PASSPHRASE", PASSPHRASE), ("SHOAL_PASSPHRASE", "another one"));
    let to_new = ("SHOAL_NEW_PASSPHRASE", new.1);
    let mut share = start(&place, "home", &[old], &["share", file.to_str().unwrap()]);
    share.event("shared");
    let sentence = run(&place, "home", &[old, to_new], &["passphrase"]).failed("home", 10);
    assert!(sentence.contains("in use") && sentence.contains("stop that process"), "{sentence}");
    share.interrupt();

    for (variables, word) in [
        (&[to_new][..], "SHOAL_PASSPHRASE_FILE"),
        (&[old], "SHOAL_NEW_PASSPHRASE_FILE"),
        (&[new, to_new], "does not fit"),
    ] {
        let sentence = run(&place, "home", variables, &["passphrase"]).failed("home", 10);
        assert!(sentence.contains(word), "{sentence}");
    }
    let by_file = place.path("new passphrase");
    fs::write(&by_file, format!("{}\n", new.1)).unwrap();
    let by_file = ("SHOAL_NEW_PASSPHRASE_FILE", by_file.to_str().unwrap());
    let changed = run(&place, "home", &[old, by_file], &["passphrase"]).ok();
    assert!(text(changed.event("passphrase_changed"), "home").ends_with("home"));

    let sentence = run(&place, "home", &[old], &["ls"]).failed("home", 10);
    assert!(sentence.contains("does not fit"), "{sentence}");
    let ls = run(&place, "home", &[new], &["ls"]).ok();
    assert_eq!(text(ls.event("root"), "name"), "mine");

    place.run("plain", ["ls"]).ok();
    for home in ["plain", "none at all"] {
        let sentence = run(&place, home, &[old, to_new], &["passphrase"]).failed("home", 10);
        assert!(sentence.contains("no encrypted store"), "{sentence}");
    }
}
