//! Sharing a path again: what nobody wrote to is not read, and whatever was written is noticed, however it was done.
//! Every root is compared with the one that a new store gives, which has to read everything.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test that unwraps fails at the right line")]

mod import_support;

use std::{
    collections::BTreeMap,
    fs::{self, File, FileTimes},
    io::Write as _,
    os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use import_support::{Bench, noise};
use proptest::prelude::*;
use shoal_content::{Profile, SHOAL_V1, UNIXFS_V1_2025};
use shoal_store::{Collect, ImportEvent, ImportOptions, Imported, Store, import};

/// A clock by which all that the tests write was written long ago.
fn later() -> SystemTime {
    SystemTime::now() + Duration::from_secs(3600)
}

fn share_with(store: &Store, path: &Path, profile: &Profile, now: Option<SystemTime>, read_all: bool) -> Imported {
    let options = ImportOptions { threads: 2, now, read_all, ..ImportOptions::default() };
    import(store, path, profile, &options, &|_| {}, &AtomicBool::new(false)).unwrap()
}

/// Shares a path, and compares with what a new store makes of it, which has to read all of it.
fn share(store: &Store, path: &Path) -> Imported {
    let shared = share_with(store, path, &SHOAL_V1, Some(later()), false);
    let new = tempfile::tempdir().unwrap();
    let new = Store::open(new.path(), shoal_store::Options::default()).unwrap();
    let read = share_with(&new, path, &SHOAL_V1, Some(later()), false);
    assert_eq!((shared.root, shared.bytes, shared.files), (read.root, read.bytes, read.files));
    assert_eq!(read.unread_files, 0);
    let manifest = store.manifest(&shared.root).unwrap();
    for leaf in manifest.leaves() {
        assert_eq!(store.read(&leaf.cid).unwrap().len(), leaf.len as usize);
    }
    shared
}

fn times(path: &Path) -> FileTimes {
    let meta = fs::metadata(path).unwrap();
    FileTimes::new().set_accessed(meta.accessed().unwrap()).set_modified(meta.modified().unwrap())
}

fn changed(path: &Path) -> (i64, i64) {
    fs::metadata(path).map_or((0, 0), |meta| (meta.ctime(), meta.ctime_nsec()))
}

/// Does something to a file, and sets its modification time back. Again, until the file system's clock shows it: the
/// tests' own clock says that all of this is long ago, which is what the margin of a real import is for.
fn sly(path: &Path, mut edit: impl FnMut()) {
    let before = (changed(path), times(path), fs::metadata(path).unwrap().modified().unwrap());
    while changed(path) == before.0 {
        edit();
        File::options().write(true).open(path).unwrap().set_times(before.1).unwrap();
    }
    assert_eq!(fs::metadata(path).unwrap().modified().unwrap(), before.2);
}

fn in_place(path: &Path) {
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(b"other", fs::metadata(path).unwrap().len() / 2).unwrap();
}

fn rewritten(path: &Path) {
    let len = fs::metadata(path).unwrap().len() as usize;
    let mut file = File::options().write(true).truncate(true).open(path).unwrap();
    file.write_all(&noise(99, len)).unwrap();
}

fn replaced(path: &Path) {
    let beside = path.with_extension("new");
    fs::write(&beside, noise(98, fs::metadata(path).unwrap().len() as usize)).unwrap();
    File::options().write(true).open(&beside).unwrap().set_times(times(path)).unwrap();
    fs::rename(&beside, path).unwrap();
}

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

/// What is done to a tree between two shares. The numbers choose among the files there are.
#[derive(Clone, Debug)]
enum Edit {
    InPlace(usize),
    Rewrite(usize),
    Replace(usize),
    Append(usize),
    Empty(usize),
    Remove(usize),
    Create(u8, u64, usize),
    Rename(usize, u8),
    Swap(usize, usize),
    Executable(usize),
    Touch(usize),
    /// Only the share.
    Nothing,
}

fn edit() -> impl Strategy<Value = Edit> {
    let n = 0..64usize;
    prop_oneof![
        n.clone().prop_map(Edit::InPlace),
        n.clone().prop_map(Edit::Rewrite),
        n.clone().prop_map(Edit::Replace),
        n.clone().prop_map(Edit::Append),
        n.clone().prop_map(Edit::Empty),
        n.clone().prop_map(Edit::Remove),
        (any::<u8>(), 0..4u64, prop_oneof![0..2000usize, Just(300_000)]).prop_map(|(a, b, c)| Edit::Create(a, b, c)),
        (n.clone(), any::<u8>()).prop_map(|(a, b)| Edit::Rename(a, b)),
        (n.clone(), n.clone()).prop_map(|(a, b)| Edit::Swap(a, b)),
        n.clone().prop_map(Edit::Executable),
        n.prop_map(Edit::Touch),
        Just(Edit::Nothing),
    ]
}

fn place(tree: &Path, number: u8) -> PathBuf {
    tree.join(["", "a", "a/b", "c"][usize::from(number) % 4]).join(format!("f{}", number / 4 % 8))
}

fn apply(tree: &Path, edit: &Edit) {
    let mut files = BTreeMap::new();
    for dir in ["", "a", "a/b", "c"] {
        let found = fs::read_dir(tree.join(dir)).unwrap().map(|entry| entry.unwrap().path());
        files.extend(found.filter(|path| path.is_file()).map(|path| (path, ())));
    }
    let files: Vec<_> = files.into_keys().collect();
    let pick = |n: &usize| files.get(n % files.len().max(1)).cloned();
    let long_enough = |path: &PathBuf| fs::metadata(path).unwrap().len() > 10;
    match edit {
        Edit::InPlace(n) => pick(n).filter(long_enough).iter().for_each(|path| sly(path, || in_place(path))),
        Edit::Rewrite(n) => pick(n).filter(long_enough).iter().for_each(|path| sly(path, || rewritten(path))),
        Edit::Replace(n) => pick(n).filter(long_enough).iter().for_each(|path| sly(path, || replaced(path))),
        Edit::Append(n) => pick(n).iter().for_each(|path| {
            let before = changed(path);
            while changed(path) == before {
                File::options().append(true).open(path).unwrap().write_all(b"more").unwrap();
            }
        }),
        Edit::Empty(n) => pick(n).iter().for_each(|path| fs::write(path, "").unwrap()),
        Edit::Remove(n) => pick(n).iter().for_each(|path| fs::remove_file(path).unwrap()),
        Edit::Create(at, seed, len) => {
            let path = place(tree, *at);
            let before = changed(&path);
            while changed(&path) == before {
                fs::write(&path, noise(*seed, *len)).unwrap();
            }
        }
        Edit::Rename(n, to) => pick(n).iter().for_each(|path| fs::rename(path, place(tree, *to)).unwrap()),
        Edit::Swap(a, b) => {
            if let (Some(a), Some(b)) = (pick(a), pick(b)) {
                let beside = tree.join("beside");
                fs::rename(&a, &beside).unwrap();
                if a != b {
                    fs::rename(&b, &a).unwrap();
                }
                fs::rename(&beside, &b).unwrap();
            }
        }
        Edit::Executable(n) => pick(n).iter().for_each(|path| {
            let (mode, before) = (fs::metadata(path).unwrap().permissions().mode() ^ 0o111, changed(path));
            while changed(path) == before {
                fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            }
        }),
        Edit::Touch(n) => pick(n).iter().for_each(|path| {
            File::options().write(true).open(path).unwrap().set_modified(UNIX_EPOCH).unwrap();
        }),
        Edit::Nothing => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// However a tree is edited, sharing it again names what is in it.
    #[test]
    fn the_root_is_that_of_a_full_read(rounds in prop::collection::vec(prop::collection::vec(edit(), 0..4), 1..6)) {
        let bench = Bench::new();
        let tree = bench.path("tree");
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::create_dir_all(tree.join("c")).unwrap();
        for number in [0, 1, 2, 3, 4, 9, 14, 19] {
            fs::write(place(&tree, number), noise(number.into(), 100 + usize::from(number) * 10_000)).unwrap();
        }
        let mut store = bench.store("store");
        share(&store, &tree);
        for (round, edits) in rounds.iter().enumerate() {
            edits.iter().for_each(|edit| apply(&tree, edit));
            if round % 2 == 1 {
                drop(store);
                store = bench.store("store");
            }
            share(&store, &tree);
            if round % 3 == 2 {
                store.collect(&Collect::default()).unwrap();
            }
        }
    }
}
