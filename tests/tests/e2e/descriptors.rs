//! Daemons without free file descriptors: a sentence, clients that wait, and a fetch that goes on by itself when there are
//! some. The limit is one on the daemon's process, changed while it runs.

use std::{fs, time::Duration};

use rustix::process::{Resource, Rlimit, getrlimit, prlimit};
use shoal_tests::{
    MB,
    content::assert_same_tree,
    place::Place,
    process::{Running, poll},
};

fn limit(process: &Running, to: Rlimit) {
    prlimit(Some(process.pid()), Resource::Nofile, to).unwrap();
}

/// How many file descriptors a process has, once it has come to rest.
fn used(place: &Place, home: &str, process: &Running) -> u64 {
    let dir = format!("/proc/{}/fd", process.pid().as_raw_nonzero());
    let mut last = 0;
    poll("its descriptors stay the same", Duration::from_secs(10), || {
        place.shoal(home, ["id"]).run().ok();
        let now = fs::read_dir(&dir).unwrap().count() as u64;
        (std::mem::replace(&mut last, now) == now).then_some(now)
    })
}

#[test]
fn a_daemons_fetch_goes_on_when_there_are_descriptors_again() {
    let place = Place::new();
    for n in 0..40 {
        place.file(&format!("tree/{n}"), 100_000 + n);
    }
    place.file("tree/large", 4 * MB);
    let (_share, link) = place.share("seeder", &place.path("tree"));
    let (daemon, _) = place.daemon("home", &[]);
    // A child is given the limit of its parent. One for the client, and one more.
    let before = getrlimit(Resource::Nofile);
    limit(&daemon, Rlimit { current: Some(used(&place, "home", &daemon) + 2), ..before });
    let sentence = place.fetch("home", &link, "out").run().failed("disk", 7);
    assert!(sentence.contains("open files"), "{sentence}");
    assert!(!place.path("out/tree").exists());

    limit(&daemon, before);
    let landed = place.path("out/tree");
    poll("it goes on", Duration::from_secs(10), || {
        place.shoal("home", ["ls"]).run().ok();
        landed.exists().then_some(())
    });
    assert_same_tree(&place.path("tree"), &landed);
}

#[test]
fn clients_wait_for_a_descriptor_and_one_warning_says_why() {
    let place = Place::new();
    let mut daemon = place.shoal("home", ["daemon"]).env("SHOAL_LOG", "warn").start();
    daemon.event("listening");
    let before = getrlimit(Resource::Nofile);
    limit(&daemon, Rlimit { current: Some(1), ..before });
    let client = place.shoal("home", ["id"]).start();
    let said = || daemon.stderr().matches("cannot accept").count();
    poll("it says that it cannot accept", Duration::from_secs(10), || {
        std::thread::yield_now();
        (said() > 0).then_some(())
    });
    // How often it is said in a while is what is tried here; nothing is waited for.
    std::thread::sleep(Duration::from_millis(600));
    limit(&daemon, before);
    client.finish().ok();
    assert_eq!(said(), 1, "{}", daemon.stderr());
}
