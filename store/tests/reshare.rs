//! Sharing a path again: what nobody wrote to is not read, and whatever was written is noticed, however it was done.
//! Every root is compared with the one that a new store gives, which has to read everything.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test that unwraps fails at the right line")]

mod import_support;
mod reshare_support;

use std::{
    fs::{self, File},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use import_support::{Bench, noise};
use reshare_support::{in_place, later, replaced, rewritten, share, share_with, sly, times};
use shoal_content::{SHOAL_V1, UNIXFS_V1_2025};
use shoal_store::{Collect, ImportEvent, ImportOptions, import};

#[test]
fn what_nobody_wrote_to_is_not_read_again() {
    let bench = Bench::new();
    let tree = bench.tree("tree");
    let first = share(&bench.store("store"), &tree);
    assert_eq!((first.unread_files, first.unread_bytes), (0, 0));
    // Opened anew: it is remembered on disk.
    let store = bench.store("store");
    let again = share(&store, &tree);
    // The two empty files have nothing to be read.
    assert_eq!((again.unread_files, again.unread_bytes), (first.files - 2, first.bytes));
    assert_eq!(again.chunks, first.chunks);
    assert_eq!(store.roots().unwrap().len(), 1);
}

/// The kernel says what is opened.
#[cfg(target_os = "linux")]
#[test]
fn what_nobody_wrote_to_is_not_even_opened() {
    use rustix::fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags, add_watch, init};
    let bench = Bench::new();
    let tree = bench.path("tree");
    fs::create_dir(&tree).unwrap();
    for (name, len) in [("one", 100), ("two", 5000), ("many chunks", 3 << 20)] {
        fs::write(tree.join(name), noise(1, len)).unwrap();
    }
    let store = bench.store("store");
    let share = || share_with(&store, &tree, &SHOAL_V1, Some(later()), false);
    let first = share();
    let watch = init(CreateFlags::NONBLOCK).unwrap();
    add_watch(&watch, &tree, WatchFlags::OPEN).unwrap();
    let opened = || {
        let mut names = Vec::new();
        let mut buf = [std::mem::MaybeUninit::uninit(); 4096];
        let mut events = Reader::new(&watch, &mut buf);
        while let Ok(event) = events.next() {
            if !event.events().contains(ReadFlags::ISDIR) {
                names.extend(event.file_name().map(|name| name.to_string_lossy().into_owned()));
            }
        }
        names.sort();
        names.dedup();
        names
    };
    assert_eq!(share().root, first.root);
    assert_eq!(opened(), [""; 0]);
    sly(&tree.join("two"), || in_place(&tree.join("two")));
    assert_eq!(opened(), ["two"], "the test itself");
    assert_ne!(share().root, first.root);
    assert_eq!(opened(), ["two"]);
    share_with(&store, &tree, &SHOAL_V1, Some(later()), true);
    assert_eq!(opened(), ["many chunks", "one", "two"]);
}

#[test]
fn every_way_to_write_is_noticed_although_size_and_time_stay() {
    for edit in [in_place, rewritten, replaced] {
        // One chunk, many chunks, and a root of its own.
        for name in ["tree/small", "tree/big", "tree/bin/tool"] {
            let bench = Bench::new();
            let tree = bench.tree("tree");
            let store = bench.store("store");
            let before = share(&store, &tree);
            let alone = share(&store, &bench.path(name));
            sly(&bench.path(name), || edit(&bench.path(name)));
            let after = share(&store, &tree);
            assert_ne!(before.root, after.root);
            assert_eq!(after.unread_files, before.files - 3, "all but the edited one and the empty ones");
            let after = share(&store, &bench.path(name));
            assert_ne!(alone.root, after.root);
            assert_eq!(after.unread_files, 0);
            assert_eq!(share(&store, &bench.path(name)).unread_files, 1);
        }
    }
}

#[test]
fn files_that_come_go_and_move_give_the_tree_that_is_there() {
    let bench = Bench::new();
    let tree = bench.tree("tree");
    let store = bench.store("store");
    let first = share(&store, &tree);
    fs::write(tree.join("a/new"), "new").unwrap();
    fs::remove_file(tree.join("a/b/small copy")).unwrap();
    let second = share(&store, &tree);
    assert_eq!(second.unread_files, first.files - 3);
    // What moved is at a path of which nothing is known; a file may become a symlink to what it was.
    fs::rename(tree.join("big"), tree.join("moved")).unwrap();
    fs::rename(tree.join("small"), tree.join("a/kept")).unwrap();
    symlink("a/kept", tree.join("small")).unwrap();
    share(&store, &tree);
    // Two of one length change places.
    fs::write(tree.join("left"), noise(7, 1000)).unwrap();
    fs::write(tree.join("right"), noise(8, 1000)).unwrap();
    share(&store, &tree);
    let time = times(&tree.join("left"));
    fs::rename(tree.join("left"), tree.join("middle")).unwrap();
    fs::rename(tree.join("right"), tree.join("left")).unwrap();
    fs::rename(tree.join("middle"), tree.join("right")).unwrap();
    for name in ["left", "right"] {
        File::options().write(true).open(tree.join(name)).unwrap().set_times(time).unwrap();
    }
    share(&store, &tree);
    fs::set_permissions(tree.join("a/kept"), fs::Permissions::from_mode(0o755)).unwrap();
    share(&store, &tree);
}

#[test]
fn a_file_written_to_just_before_it_is_read_is_read_again() {
    let bench = Bench::new();
    let tree = bench.tree("tree");
    let store = bench.store("store");
    let share = || share_with(&store, &tree, &SHOAL_V1, Some(SystemTime::now()), false);
    let first = share();
    // No waiting for the clock here: the stamps may be what they were.
    let path = tree.join("small");
    let time = times(&path);
    in_place(&path);
    File::options().write(true).open(&path).unwrap().set_times(time).unwrap();
    let second = share();
    assert_ne!(first.root, second.root);
    assert_eq!(second.unread_files, 0);
}

#[test]
fn a_clock_that_went_back_or_is_not_told_means_reading() {
    let bench = Bench::new();
    let tree = bench.tree("tree");
    let store = bench.store("store");
    let first = share(&store, &tree);
    for now in [Some(UNIX_EPOCH), Some(SystemTime::now() - Duration::from_secs(3600)), None] {
        share_with(&store, &tree, &SHOAL_V1, Some(later()), false);
        let again = share_with(&store, &tree, &SHOAL_V1, now, false);
        assert_eq!((again.root, again.unread_files), (first.root, 0));
        // Nor is anything remembered by such a clock.
        let again = share_with(&store, &tree, &SHOAL_V1, Some(later()), false);
        assert_eq!((again.root, again.unread_files), (first.root, 0));
    }
}

#[test]
fn everything_is_read_on_request_and_under_another_profile() {
    let bench = Bench::new();
    let tree = bench.tree("tree");
    let store = bench.store("store");
    let first = share(&store, &tree);
    let all = share_with(&store, &tree, &SHOAL_V1, Some(later()), true);
    assert_eq!((all.root, all.unread_files), (first.root, 0));
    assert_eq!(share(&store, &tree).unread_files, first.files - 2);
    let other = share_with(&store, &tree, &UNIXFS_V1_2025, Some(later()), false);
    let alone = share_with(&bench.store("another"), &tree, &UNIXFS_V1_2025, Some(later()), false);
    assert_eq!((other.root, other.unread_files), (alone.root, 0));
}

#[test]
fn nodes_that_were_collected_are_made_anew() {
    let bench = Bench::new();
    let tree = bench.tree("tree");
    let store = bench.store("store");
    let first = share(&store, &tree);
    {
        // The references stay, the nodes go.
        let hold = store.hold();
        hold.add_base(&first.path).unwrap();
        store.remove_root(&first.root).unwrap();
        assert!(store.collect(&Collect { thorough: true, ..Collect::default() }).unwrap().blocks > 0);
        assert!(store.manifest(&first.root).is_err());
    }
    let again = share(&store, &tree);
    // Five files are leaves by themselves and need no node; one has the nodes of another, which was read before it.
    assert_eq!((again.root, again.unread_files), (first.root, 6));
    assert_eq!(share(&store, &tree).unread_files, first.files - 2);
    // Without the base nothing is left.
    store.remove_root(&first.root).unwrap();
    store.collect(&Collect::default()).unwrap();
    assert_eq!(share(&store, &tree).unread_files, 0);
}

#[test]
fn nodes_that_rotted_are_made_anew() {
    let bench = Bench::new();
    let tree = bench.tree("tree");
    let first = share(&bench.store("store"), &tree);
    for pack in fs::read_dir(bench.path("store/packs")).unwrap() {
        let pack = pack.unwrap().path();
        let mut bytes = fs::read(&pack).unwrap();
        bytes.iter_mut().step_by(16).for_each(|byte| *byte ^= 1);
        fs::write(&pack, bytes).unwrap();
    }
    let store = bench.store("store");
    let again = share(&store, &tree);
    assert_eq!((again.root, again.unread_files), (first.root, 6));
}

#[test]
fn an_index_that_was_made_anew_remembers_nothing() {
    let bench = Bench::new();
    let tree = bench.tree("tree");
    let first = share(&bench.store("store"), &tree);
    fs::remove_file(bench.path("store/index.redb")).unwrap();
    let store = bench.store("store");
    assert!(store.rebuilt().is_some());
    assert_eq!(share(&store, &tree).unread_files, 0);
    assert_eq!(share(&store, &tree).unread_files, first.files - 2);
}

#[test]
fn a_content_in_more_files_than_the_index_keeps_places_is_not_read_again() {
    let bench = Bench::new();
    let tree = bench.path("tree");
    fs::create_dir(&tree).unwrap();
    for i in 0..20 {
        fs::write(tree.join(i.to_string()), noise(1, 500)).unwrap();
    }
    // Many places within one file, too.
    fs::write(tree.join("zeros"), vec![0; 12 << 20]).unwrap();
    let store = bench.store("store");
    share(&store, &tree);
    assert_eq!(share(&store, &tree).unread_files, 21);
    for i in 0..18 {
        sly(&tree.join(i.to_string()), || in_place(&tree.join(i.to_string())));
    }
    share(&store, &tree);
}

#[test]
fn a_file_of_which_anything_changed_while_it_was_read_is_not_remembered() {
    let bench = Bench::new();
    let path = bench.path("file");
    fs::write(&path, noise(1, 12 << 20)).unwrap();
    let store = bench.store("store");
    // Its content does not change, so that it is shared all the same.
    let link = |event| {
        if matches!(event, ImportEvent::Reading { bytes, .. } if bytes < 12 << 20) {
            while fs::metadata(&path).unwrap().nlink() == 1 {
                fs::hard_link(&path, bench.path("link")).unwrap();
            }
        }
    };
    let options = ImportOptions { threads: 1, now: Some(later()), ..ImportOptions::default() };
    let first = import(&store, &path, &SHOAL_V1, &options, &link, &AtomicBool::new(false)).unwrap();
    assert!(bench.path("link").exists());
    let again = share(&store, &path);
    assert_eq!((again.root, again.unread_files), (first.root, 0));
    assert_eq!(share(&store, &path).unread_files, 1);
}

#[test]
fn progress_counts_what_is_not_read() {
    let bench = Bench::new();
    let tree = bench.tree("tree");
    let store = bench.store("store");
    let first = share(&store, &tree);
    let whole = AtomicBool::new(false);
    let watch = |event| match event {
        ImportEvent::Reading { files, bytes } => {
            assert!(files <= first.files && bytes <= first.bytes);
            whole.fetch_or(files == first.files && bytes == first.bytes, Ordering::Relaxed);
        }
        ImportEvent::Scanned { files, bytes } => assert_eq!((files, bytes), (first.files, first.bytes)),
        _ => {}
    };
    let options = ImportOptions { now: Some(later()), ..ImportOptions::default() };
    import(&store, &tree, &SHOAL_V1, &options, &watch, &AtomicBool::new(false)).unwrap();
    assert!(whole.into_inner());
}
