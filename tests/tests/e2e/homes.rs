//! Homes that cannot be used: by a second process, of a newer format, held by a process that does not answer.

use std::fs;

use rustix::process::Signal;
use shoal_tests::place::Place;

#[test]
fn a_second_daemon_on_a_home_is_refused_and_harms_nothing() {
    let place = Place::new();
    let (daemon, _) = place.daemon("home", &[]);
    let sentence = place.shoal("home", ["daemon"]).run().failed("home", 10);
    assert!(sentence.contains(place.path("home").to_str().unwrap()), "{sentence}");
    place.shoal("home", ["id"]).run().ok();
    assert_eq!(daemon.interrupt().code, Some(0));
    // The lock went with the process.
    place.daemon("home", &[]);
}

#[test]
fn a_home_held_by_a_process_that_does_not_answer_is_an_error_and_no_endless_wait() {
    let place = Place::new();
    let (daemon, _) = place.daemon("home", &[]);
    daemon.signal(Signal::STOP);
    let sentence = place.shoal("home", ["ls"]).run().failed("home", 10);
    assert!(sentence.contains(place.path("home").to_str().unwrap()), "{sentence}");
    daemon.signal(Signal::CONT);
    place.shoal("home", ["ls"]).run().ok();

    // Without its socket it cannot be asked, and its lock still holds.
    fs::remove_file(place.path("home/control.sock")).unwrap();
    place.shoal("home", ["ls"]).run().failed("home", 10);
    assert_eq!(daemon.interrupt().code, Some(0));
    place.shoal("home", ["ls"]).run().ok();
}

#[test]
fn a_store_of_a_newer_format_is_refused_and_left_alone() {
    let place = Place::new();
    let file = place.file("f", 1000);
    let (share, _) = place.share("home", &file);
    share.interrupt();
    let format = place.path("home/store/format");
    let known = fs::read_to_string(&format).unwrap();
    fs::write(&format, "99\n").unwrap();
    for args in [&["ls"][..], &["daemon"], &["share", "f"]] {
        let sentence = place.shoal("home", args).run().failed("home", 10);
        assert!(sentence.contains("99") && sentence.contains("home/store"), "{sentence}");
    }
    assert_eq!(fs::read_to_string(&format).unwrap(), "99\n");
    fs::write(&format, known).unwrap();
    assert_eq!(place.shoal("home", ["ls"]).run().ok().event("root")["name"], "f");
}
