//! Files that change while they are shared: nobody gets wrong bytes, a fetch goes on elsewhere or says that it cannot, and
//! whoever shares is told which file it is.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
};

use shoal_content::ShoalLink;
use shoal_tests::{
    MB,
    content::{assert_same_file, assert_same_tree, noise, write_noise},
    place::Place,
    process::{Running, text},
    slow::SlowLink,
};

const SIZE: u64 = 20 * MB;

/// Other bytes over the second half.
fn change(path: &Path) {
    File::options().write(true).open(path).unwrap().write_all_at(&noise(5, SIZE / 2), SIZE / 2).unwrap();
}

/// Whoever shares hears of each of these files, in any order: an event that names it.
fn told(share: &mut Running, paths: &[&Path]) {
    let mut left: Vec<_> = paths.iter().map(|path| path.to_str().unwrap()).collect();
    share.until("word of every changed file", |event| {
        left.retain(|path| event["event"] == "shared" || !event.to_string().contains(path));
        left.is_empty()
    });
}

#[test]
fn a_fetch_goes_on_with_a_seeder_whose_file_is_as_it_was() {
    let place = Place::new();
    let (file, other) = (place.file("f", SIZE), place.file("other/f", SIZE));
    let (_good, link) = place.share("good", &file);
    let (_bad, bad_link) = place.share("bad", &other);
    let good_way = SlowLink::to(&link.via[0], 5 * MB);
    let bad_way = SlowLink::to(&bad_link.via[0], 5 * MB);
    let link = ShoalLink { via: vec![bad_way.via(), good_way.via()], ..link };
    let fetch = place.fetch("leecher", &link, "out").start();
    bad_way.wait_for(MB);
    change(&other);
    let done = fetch.finish().done();
    println!("{} s: {}", done["seconds"], done["peers"]);
    assert_same_file(&file, &place.path("out/f"));
}

#[test]
fn a_fetch_from_nobody_else_fails_and_goes_on_when_the_file_is_back() {
    let place = Place::new();
    let file = place.file("f", SIZE);
    let (_share, link) = place.share("seeder", &file);
    let (slow, via) = SlowLink::on(&link, 5 * MB);
    let fetch = place.fetch("leecher", &via, "out").env("SHOAL_GIVE_UP_AFTER", "2").start();
    slow.wait_for(2 * MB);
    change(&file);
    fetch.finish().failed("no-provider", 4);
    assert!(!place.path("out/f").exists(), "what is not whole has no name");

    fs::write(&file, noise(SIZE, SIZE)).unwrap();
    let (_again, link) = place.share("seeder", &file);
    let done = place.fetch("leecher", &link, "out").run().done();
    assert!(done["bytes_resumed"].as_u64().unwrap() > 0, "{done}");
    assert_same_file(&file, &place.path("out/f"));
}

#[test]
fn whoever_shares_hears_which_file_changed() {
    let place = Place::new();
    let tree = place.path("tree");
    for n in 0..7 {
        write_noise(&tree.join(format!("dir/file{n}")), n, MB);
    }
    let (mut share, link) = place.share("seeder", &tree);
    let (changed, gone, shorter) = (tree.join("dir/file1"), tree.join("dir/file3"), tree.join("dir/file4"));
    write_noise(&changed, 77, MB);
    fs::remove_file(&gone).unwrap();
    File::options().write(true).open(&shorter).unwrap().set_len(MB / 2).unwrap();
    let (moved, replaced) = (tree.join("dir/file5"), tree.join("dir/file6"));
    fs::rename(&moved, tree.join("moved")).unwrap();
    write_noise(&tree.join("new"), 78, MB);
    fs::rename(tree.join("new"), &replaced).unwrap();
    let fetch = place.fetch("leecher", &link, "out").env("SHOAL_GIVE_UP_AFTER", "2").run();
    let sentence = fetch.failed("no-provider", 4);
    assert!(!sentence.is_empty() && !place.path("out/tree").exists(), "{sentence}");
    told(&mut share, &[&changed, &gone, &shorter, &moved, &replaced]);

    // What is as it was can be had all the same.
    let done = place.shoal("other", ["fetch", &link.to_string(), "dir/file0", "--output", "part"]).run().done();
    assert_eq!(fs::read(place.path("part/file0")).unwrap(), noise(0, MB), "{done}");

    // Shared again, it is another root, with the bytes of now.
    let (_again, new) = place.share("seeder", &tree);
    assert_ne!(new.root, link.root);
    let done = place.fetch("other", &new, "new").run().done();
    assert_eq!(text(&done, "path"), place.path("new/tree").to_str().unwrap());
    assert_same_tree(&tree, &place.path("new/tree"));
}
