//! Trees: everything that is in them arrives, nothing leaves the destination, and what is here already is not moved.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use shoal_tests::{
    MB, MIB,
    content::{assert_same_tree, noise, write_noise},
    place::Place,
    process::number,
};

/// A tree with one of everything.
fn make_tree(tree: &Path) {
    let names = [
        "plain",
        "größe",
        "e\u{301}",
        "日本語のファイル.txt",
        "🐟 shoal",
        "a b",
        "100%25 & #1?.txt",
        "-rf",
        "quote'\"",
        "tab\tand\nline",
        "back\\slash",
        ".hidden",
        &"x".repeat(255),
    ];
    for (n, name) in names.iter().enumerate() {
        write_noise(&tree.join("names").join(name), n as u64, 1000 + n as u64);
    }
    write_noise(&tree.join("big"), 1, 3 * MB);
    write_noise(&tree.join("one byte"), 2, 1);
    for (name, mode) in [("script.sh", 0o755), ("private", 0o600), ("tool", 0o711)] {
        write_noise(&tree.join("modes").join(name), 3, 70_000);
        fs::set_permissions(tree.join("modes").join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::write(tree.join("empty file"), []).unwrap();
    fs::create_dir_all(tree.join("empty dir/in an empty dir")).unwrap();
    fs::write(tree.join("modes/empty and executable"), []).unwrap();
    fs::set_permissions(tree.join("modes/empty and executable"), fs::Permissions::from_mode(0o755)).unwrap();
    let deep = (0..40).fold(tree.join("deep"), |path, n| path.join(format!("level {n}")));
    write_noise(&deep.join("bottom"), 4, 10);
    // Enough names that the directory has to be cut into shards.
    for n in 0..4000 {
        write_noise(&tree.join(format!("many/a file with a name of some length {n:05}")), n, n % 40);
    }
    fs::create_dir(tree.join("links")).unwrap();
    symlink("../big", tree.join("links/to a file")).unwrap();
    symlink("../many", tree.join("links/to a dir")).unwrap();
    symlink("dangling", tree.join("links/to nothing")).unwrap();
    symlink("ß/日本", tree.join("links/ünicode")).unwrap();
}

#[test]
fn a_tree_arrives_with_everything_that_is_in_it() {
    let place = Place::new();
    let tree = place.path("in/tree");
    make_tree(&tree);
    let (_share, link) = place.share("seeder", &tree);
    let done = place.fetch("leecher", &link, "out").args(["--symlinks"]).run().done();
    assert_same_tree(&tree, &place.path("out/tree"));
    assert_eq!(done["skipped"].as_array().unwrap().len(), 0, "{}", done["skipped"]);

    // The same tree has the same root wherever it lies, and what was fetched is served like what was shared.
    let (_again, same) = place.share("third", &place.path("out/tree"));
    assert_eq!(same.root, link.root);
    let verified = place.shoal("leecher", ["verify"]).run().ok();
    assert_eq!(verified.event("verified")["intact"], true);
}

#[test]
fn symlinks_are_written_when_asked_for_and_never_lead_out() {
    let place = Place::new();
    let tree = place.path("tree");
    write_noise(&tree.join("dir/file"), 1, 1000);
    fs::write(place.path("secret"), "mine").unwrap();
    symlink("dir/file", tree.join("inside")).unwrap();
    for (name, target) in [("up", "../secret"), ("absolute", "/etc/passwd"), ("through", "dir/../../secret")] {
        symlink(target, tree.join(name)).unwrap();
    }
    let (_share, link) = place.share("seeder", &tree);

    let done = place.fetch("leecher", &link, "out").args(["--symlinks"]).run().done();
    assert_eq!(fs::read_link(place.path("out/tree/inside")).unwrap(), Path::new("dir/file"));
    let skipped = done["skipped"].as_array().unwrap();
    for name in ["up", "absolute", "through"] {
        assert!(fs::symlink_metadata(place.path("out/tree").join(name)).is_err(), "{name} leads out");
        assert!(skipped.iter().any(|why| why.as_str().unwrap().contains(name)), "{name} is not in {skipped:?}");
    }
    assert_eq!(skipped.len(), 3, "{skipped:?}");

    let done = place.fetch("careful", &link, "out2").run().done();
    assert!(fs::symlink_metadata(place.path("out2/tree/inside")).is_err());
    assert_eq!(fs::read(place.path("out2/tree/dir/file")).unwrap(), noise(1, 1000));
    assert!(!done["skipped"].as_array().unwrap().is_empty(), "{done}");
}

#[test]
fn of_the_next_version_only_what_is_missing_moves() {
    let place = Place::new();
    let (v1, v2) = (place.path("v1/tree"), place.path("v2/tree"));
    for n in 0..10 {
        write_noise(&v1.join(format!("dir{}/file{n}", n % 3)), n, MB + n * 1000);
        write_noise(&v2.join(format!("dir{}/file{n}", n % 3)), n, MB + n * 1000);
    }
    let big = noise(77, 10 * MB);
    fs::write(v1.join("big"), &big).unwrap();
    // A byte more in the middle, a file renamed, one removed, one new.
    let (head, tail) = big.split_at(big.len() / 2);
    fs::write(v2.join("big"), [head, b"!", tail].concat()).unwrap();
    fs::rename(v2.join("dir0/file3"), v2.join("renamed")).unwrap();
    fs::remove_file(v2.join("dir1/file1")).unwrap();
    write_noise(&v2.join("new"), 99, 500_000);
    let (_share, first) = place.share("seeder", &v1);
    let (_also, second) = place.share("seeder", &v2);

    place.fetch("leecher", &first, "one").run().ok();
    let done = place.fetch("leecher", &second, "two").run().done();
    assert_same_tree(&v2, &place.path("two/tree"));
    assert_same_tree(&v1, &place.path("one/tree"));
    let (fetched, local) = (number(&done, "bytes_fetched"), number(&done, "bytes_local"));
    println!("next version: {fetched} bytes fetched, {local} from the version before");
    // The new file, and around the byte that came in at most three chunks of at most 1 MiB.
    assert!((500_000..=500_000 + 3 * MIB).contains(&fetched), "{done}");
    assert_eq!(fetched + local, number(&done, "bytes"), "{done}");
}
