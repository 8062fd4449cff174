//! Disks that are full: a sentence, an exit code of its own, and nothing lost. These need root; without, they say so and
//! do nothing.

use std::{fs, io::Write, path::Path, time::Duration};

use shoal_tests::{
    MB, MIB,
    content::assert_same_file,
    disk::Disk,
    place::Place,
    process::{number, poll},
    slow::SlowLink,
};

/// Writes until nothing more fits.
fn fill(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    let block = vec![7; 64 << 10];
    while file.write_all(&block).is_ok() {}
}

#[test]
fn a_disk_that_is_too_small_is_noticed_before_anything_moves() {
    let place = Place::new();
    let Some(disk) = Disk::mount(&place.path("small"), 8 * MIB) else { return };
    let file = place.file("f", 20 * MB);
    let (_share, link) = place.share("seeder", &file);
    let failed = place.fetch("leecher", &link, "small").run();
    let sentence = failed.failed("disk", 7);
    assert!(sentence.contains("20000000") && sentence.contains("small/f"), "{sentence}");
    assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 0, "it leaves nothing behind");
}

#[test]
fn a_disk_that_fills_up_in_the_middle_stops_the_fetch_and_more_space_lets_it_go_on() {
    const SIZE: u64 = 30 * MB;
    let place = Place::new();
    let Some(disk) = Disk::mount(&place.path("small"), 40 * MIB) else { return };
    let file = place.file("f", SIZE);
    let (_share, link) = place.share("seeder", &file);
    let (slow, via) = SlowLink::on(&link, 8 * MB);
    let fetch = place.fetch("leecher", &via, "small").start();
    slow.wait_for(6 * MB);
    fill(&disk.path().join("filler"));
    let sentence = fetch.finish().failed("disk", 7);
    assert!(sentence.contains("space") && sentence.contains(disk.path().to_str().unwrap()), "{sentence}");
    assert!(!disk.path().join("f").exists());

    // The same command again says the same, and loses nothing.
    let sentence = place.fetch("leecher", &link, "small").run().failed("disk", 7);
    assert!(sentence.contains("space"), "{sentence}");

    disk.resize(80 * MIB);
    let done = place.fetch("leecher", &link, "small").run().done();
    assert!(number(&done, "bytes_resumed") > 3 * MB, "{done}");
    assert_same_file(&file, &disk.path().join("f"));
}

#[test]
fn a_home_on_a_full_disk_says_so_and_works_again_when_there_is_space() {
    let place = Place::new();
    let Some(disk) = Disk::mount(&place.path("homes"), 24 * MIB) else { return };
    let file = place.file("f", 20 * MB);
    let (_share, link) = place.share("seeder", &file);
    // A home that exists, and one that is to be made.
    place.shoal("homes/old", ["id"]).run().ok();
    fill(&disk.path().join("filler"));
    for home in ["homes/old", "homes/new"] {
        let failed = place.fetch(home, &link, "out").run();
        let code = failed.code.unwrap();
        assert!([7, 10].contains(&code), "{failed:?}");
        let sentence = failed.failed(if code == 7 { "disk" } else { "home" }, code);
        assert!(sentence.contains("space") || sentence.contains("full"), "{home}: {sentence}");
    }
    fs::remove_file(disk.path().join("filler")).unwrap();
    for home in ["homes/old", "homes/new"] {
        place.fetch(home, &link, "out").run().ok();
    }
    assert_same_file(&file, &place.path("out/f"));
}

/// There is room for the file, but not for it and for the last twentieth, which a cache leaves to others.
#[test]
fn a_cache_leaves_the_last_of_a_disk_alone() {
    let place = Place::new();
    let Some(disk) = Disk::mount(&place.path("small"), 160 * MIB) else { return };
    let file = place.file("f", MB);
    let (_share, link) = place.share("seeder", &file);
    place.shoal("small/home", ["id"]).run().ok();
    let filler = disk.path().join("filler");
    fill(&filler);
    let full = fs::metadata(&filler).unwrap().len();
    fs::File::options().write(true).open(&filler).unwrap().set_len(full - 5 * MIB).unwrap();
    let args = ["fetch", &link.to_string(), "--cache"];
    let sentence = place.shoal("small/home", args).run().failed("disk", 7);
    assert!(sentence.contains("1000000"), "{sentence}");
    fs::remove_file(&filler).unwrap();
    place.shoal("small/home", args).run().ok();
}

#[test]
fn a_daemon_goes_on_by_itself_when_there_is_space_again() {
    let place = Place::new();
    let Some(disk) = Disk::mount(&place.path("small"), 24 * MIB) else { return };
    let file = place.file("f", 10 * MB);
    let (_share, link) = place.share("seeder", &file);
    let filler = disk.path().join("filler");
    // The home and the destination are on the full disk, one after the other.
    let (mut daemon, _) = place.daemon("small/home", &[]);
    fill(&filler);
    let sentence = place.fetch("small/home", &link, "small/out").run().failed("disk", 7);
    assert!(sentence.contains("space"), "{sentence}");
    assert_eq!(place.shoal("small/home", ["ls"]).run().code, Some(0), "it goes on answering");
    fs::remove_file(&filler).unwrap();
    let landed = disk.path().join("out/f");
    poll("it goes on", Duration::from_secs(20), || {
        place.shoal("small/home", ["ls"]).run().ok();
        landed.exists().then_some(())
    });
    assert_same_file(&file, &landed);
    // The same process, and it shares as if nothing had been.
    fs::write(disk.path().join("mine"), "mine").unwrap();
    let shared = place.shoal("small/home", ["share", "small/mine"]).run().ok();
    assert_eq!(number(shared.event("shared"), "pid"), u64::try_from(daemon.pid().as_raw_nonzero().get()).unwrap());
    daemon.said();
}
