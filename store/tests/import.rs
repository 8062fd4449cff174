//! Sharing real trees in place: what a root is made of, and what is refused.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test that unwraps fails at the right line")]

mod import_support;
#[path = "../../content/tests/support/tar.rs"]
mod tar;

use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _, fs::symlink, net::UnixListener},
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use import_support::{Bench, noise, share, share_watched};
use shoal_content::{EntryKind, SHOAL_V1, UNIXFS_V1_2025};
use shoal_store::{ImportError, ImportEvent, ImportOptions, RootKind, import};
use tar::Tar;

#[test]
fn a_tree_is_shared_and_its_root_is_durable() {
    let bench = Bench::new();
    let tree = bench.tree("tree");
    let shared = {
        let store = bench.store("store");
        share(&store, &tree).unwrap()
    };
    assert_eq!((shared.name.as_str(), shared.files, shared.dirs, shared.symlinks), ("tree", 12, 10, 3));
    let bytes: u64 = 2 + 2 * 1000 + 9 * (1 << 20) + 70_000 + 100 + (2 << 20);
    assert_eq!(shared.bytes, bytes);

    let store = bench.store("store");
    let record = store.root(&shared.root).unwrap().unwrap();
    assert_eq!((record.kind, record.complete, record.bytes, record.files), (RootKind::Shared, true, bytes, 12));
    assert_eq!(record.path, tree.canonicalize().unwrap());
    let manifest = store.manifest(&shared.root).unwrap();
    assert_eq!(manifest.total_bytes(), bytes);
    for leaf in manifest.leaves() {
        assert_eq!(store.read(&leaf.cid).unwrap().len(), leaf.len as usize);
    }
    let executables = manifest.entries().iter().filter(|e| matches!(e.kind, EntryKind::File { executable: true, .. }));
    assert_eq!(executables.map(|e| e.path.as_str()).collect::<Vec<_>>(), ["bin/big tool", "bin/tool"]);
}

#[test]
fn the_root_depends_on_the_content_alone() {
    let bench = Bench::new();
    let (one, two) = (bench.tree("one"), bench.tree("two"));
    let roots: Vec<_> = [(&one, 1), (&one, 2), (&two, 5)]
        .into_iter()
        .enumerate()
        .map(|(i, (path, threads))| {
            let store = bench.store(&format!("store {i}"));
            share_watched(&store, path, threads, &|_| {}).unwrap().root
        })
        .collect();
    assert_eq!(roots[0], roots[1]);
    assert_eq!(roots[0], roots[2]);
    fs::set_permissions(two.join("small"), fs::Permissions::from_mode(0o755)).unwrap();
    assert_ne!(share(&bench.store("store 3"), &two).unwrap().root, roots[0]);
}

#[test]
fn a_big_file_cut_on_many_threads_has_the_chunks_of_a_sequential_cut() {
    let bench = Bench::new();
    let path = bench.path("big");
    // Repeats and zeros too: there the guesses of a segment find the true cuts late or never.
    fs::write(&path, [noise(1, 30 << 20), vec![0; 20 << 20], noise(1, 30 << 20)].concat()).unwrap();
    let (one, many) = (bench.store("one"), bench.store("many"));
    let alone = share_watched(&one, &path, 1, &|_| {}).unwrap();
    let together = share_watched(&many, &path, 4, &|_| {}).unwrap();
    assert_eq!(alone, together);
    let manifest = many.manifest(&together.root).unwrap();
    let mut end = 0;
    for piece in manifest.pieces(0) {
        assert_eq!(piece.offset, end);
        end += u64::from(piece.len);
    }
    assert_eq!(end, 80 << 20);
    for leaf in manifest.leaves() {
        assert!(many.has(&leaf.cid).unwrap());
    }
}

/// How a large file is cut depends on its length and on whether it is an archive: not on threads, nor on what is around it.
#[test]
fn a_large_file_has_longer_chunks_and_an_archive_has_not() {
    let bench = Bench::new();
    let mut profile = SHOAL_V1;
    profile.large = profile.large.map(|(_, chunking)| (4 << 20, chunking));
    let contents = noise(1, 8 << 20);
    let mut tar = Tar::default();
    tar.file("contents", 0, &contents);
    fs::create_dir(bench.path("tree")).unwrap();
    fs::write(bench.path("tree/file"), &contents).unwrap();
    fs::write(bench.path("small"), &contents[..4 << 20]).unwrap();
    fs::write(bench.path("tar"), tar.end()).unwrap();
    let chunks = |what: &str| {
        let [one, three] = [1, 3].map(|threads| {
            let options = ImportOptions { threads, ..ImportOptions::default() };
            let store = bench.store(&format!("{} {threads}", what.replace('/', " ")));
            let never = AtomicBool::new(false);
            import(&store, &bench.path(what), &profile, &options, &|_| {}, &never).unwrap()
        });
        assert_eq!(one, three, "{what}");
        one.chunks
    };
    assert_eq!(chunks("tree"), chunks("tree/file"));
    assert!((20..45).contains(&chunks("tree/file")), "{} of 256 KiB", chunks("tree/file"));
    assert!((45..90).contains(&chunks("small")), "{} of 64 KiB", chunks("small"));
    assert!((90..180).contains(&chunks("tar")), "{} of 64 KiB", chunks("tar"));
}

#[test]
fn a_profile_of_fixed_chunks_works_too() {
    let bench = Bench::new();
    fs::write(bench.path("file"), noise(1, (40 << 20) + 5)).unwrap();
    let roots = [1, 3].map(|threads| {
        let options = ImportOptions { threads, ..ImportOptions::default() };
        let store = bench.store(&format!("store {threads}"));
        let never = AtomicBool::new(false);
        import(&store, &bench.path("file"), &UNIXFS_V1_2025, &options, &|_| {}, &never).unwrap()
    });
    assert_eq!(roots[0], roots[1]);
    assert_eq!(roots[0].chunks, 41);
}

#[test]
fn sharing_again_gives_the_same_root_and_keeps_the_pin() {
    let bench = Bench::new();
    let tree = bench.tree("tree");
    let store = bench.store("store");
    let first = share(&store, &tree).unwrap();
    store.set_pinned(&first.root, true).unwrap();
    let options = ImportOptions { created_unix: 1_800_000_000, ..ImportOptions::default() };
    let again = import(&store, &tree, &SHOAL_V1, &options, &|_| {}, &AtomicBool::new(false)).unwrap();
    assert_eq!(first, again);
    let record = store.root(&first.root).unwrap().unwrap();
    assert!(record.pinned);
    assert_eq!(record.created_unix, 1_700_000_000);
    assert_eq!(store.roots().unwrap().len(), 1);
}

#[test]
fn the_name_is_the_last_part_of_the_path() {
    let bench = Bench::new();
    fs::create_dir_all(bench.path("tree/sub")).unwrap();
    fs::write(bench.path("tree/file"), "x").unwrap();
    symlink(bench.path("tree"), bench.path("link")).unwrap();
    let store = bench.store("store");
    let name = |path: &Path| share(&store, path).unwrap().name;
    assert_eq!(name(&bench.path("tree")), "tree");
    assert_eq!(name(&bench.path("tree/")), "tree");
    assert_eq!(name(&bench.path("tree/.")), "tree");
    assert_eq!(name(&bench.path("tree/sub/..")), "tree");
    assert_eq!(name(&bench.path("tree/file")), "file");
    assert_eq!(name(&bench.path("link")), "link");
}

#[test]
fn small_roots() {
    let bench = Bench::new();
    let store = bench.store("store");
    fs::create_dir(bench.path("empty")).unwrap();
    fs::write(bench.path("zero"), "").unwrap();
    fs::write(bench.path("one"), "1").unwrap();
    for (name, files, bytes) in [("empty", 0, 0), ("zero", 1, 0), ("one", 1, 1)] {
        let shared = share(&store, &bench.path(name)).unwrap();
        assert_eq!((shared.files, shared.bytes), (files, bytes));
        let manifest = store.manifest(&shared.root).unwrap();
        assert_eq!((manifest.file_count() as u64, manifest.total_bytes(), manifest.entries().len()), (files, bytes, 1));
    }
}

/// Shares a path that cannot be shared; nothing may be recorded.
fn refused(bench: &Bench, path: &Path) -> ImportError {
    let store = bench.store("store");
    let error = share(&store, path).unwrap_err();
    assert_eq!(store.roots().unwrap(), []);
    error
}

#[test]
fn a_missing_path_is_named() {
    let bench = Bench::new();
    let error = refused(&bench, Path::new("no/such\u{1b}path"));
    assert!(matches!(error, ImportError::NotFound { .. }));
    assert_eq!(error.to_string(), "there is nothing at no/such\\u{1b}path; check the path for typing errors");
}

#[test]
fn special_files_are_refused_or_skipped() {
    let bench = Bench::new();
    let tree = bench.tree("tree");
    let root = share(&bench.store("plain"), &tree).unwrap().root;
    let _socket = UnixListener::bind(tree.join("a/socket")).unwrap();
    let error = refused(&bench, &tree);
    assert!(matches!(error, ImportError::Special { kind: "socket", .. }));
    assert!(error.to_string().contains("tree/a/socket is a socket"), "{error}");
    let error = refused(&bench, &tree.join("a/socket"));
    assert!(matches!(error, ImportError::Special { .. }), "{error}");

    let store = bench.store("skipping");
    let options = ImportOptions { skip_special: true, ..ImportOptions::default() };
    let shared = import(&store, &tree, &SHOAL_V1, &options, &|_| {}, &AtomicBool::new(false)).unwrap();
    assert_eq!((shared.root, shared.skipped), (root, 1));
}

#[test]
fn names_that_are_no_utf8_are_named_escaped() {
    let bench = Bench::new();
    let tree = bench.tree("tree");
    fs::write(tree.join(OsStr::from_bytes(b"caf\xe9")), "x").unwrap();
    let error = refused(&bench, &tree).to_string();
    assert!(error.contains("tree/caf\\xe9 is not valid UTF-8; rename it"), "{error}");
    fs::remove_file(tree.join(OsStr::from_bytes(b"caf\xe9"))).unwrap();
    symlink(OsStr::from_bytes(b"\xff"), tree.join("a/bad link")).unwrap();
    assert!(matches!(refused(&bench, &tree), ImportError::TargetNotUtf8 { .. }));
}

#[test]
fn an_unreadable_file_is_named() {
    if rustix::process::geteuid().is_root() {
        // Root reads everything, so there is no unreadable file to be had.
        eprintln!("skipped: running as root");
        return;
    }
    let bench = Bench::new();
    let tree = bench.tree("tree");
    fs::set_permissions(tree.join("a/b/small copy"), fs::Permissions::from_mode(0o0)).unwrap();
    let error = refused(&bench, &tree).to_string();
    assert!(error.contains("cannot read") && error.contains("a/b/small copy"), "{error}");
    assert!(error.contains("make it readable"), "{error}");
}

#[test]
fn a_file_that_changes_while_it_is_read_is_named() {
    let bench = Bench::new();
    for (name, size) in [("small", 5000), ("big", 40 << 20)] {
        let path = bench.path(name);
        fs::write(&path, noise(1, size)).unwrap();
        let store = bench.store(&format!("{name} store"));
        // It is open and stamped by then, and not read to the end.
        let grow = |event| {
            if matches!(event, ImportEvent::Scanned { .. }) {
                fs::write(&path, noise(1, size + 1)).unwrap();
            }
        };
        let error = share_watched(&store, &path, 2, &grow).unwrap_err();
        assert!(matches!(&error, ImportError::Changed { .. }), "{error}");
        assert!(error.to_string().contains(name), "{error}");
        let shrink = |event| {
            if matches!(event, ImportEvent::Scanned { .. }) {
                fs::write(&path, "short").unwrap();
            }
        };
        let error = share_watched(&store, &path, 2, &shrink).unwrap_err();
        assert!(matches!(&error, ImportError::Changed { .. }), "{error}");
        assert_eq!(store.roots().unwrap(), []);
    }
}

#[test]
fn a_file_that_keeps_its_size_but_not_its_time_has_changed() {
    let bench = Bench::new();
    let path = bench.path("file");
    fs::write(&path, noise(1, 40 << 20)).unwrap();
    let touch = |event| {
        if matches!(event, ImportEvent::Reading { .. }) {
            fs::File::options().write(true).open(&path).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        }
    };
    let error = share_watched(&bench.store("store"), &path, 2, &touch).unwrap_err();
    assert!(matches!(error, ImportError::Changed { .. }), "{error}");
}

#[test]
fn a_file_that_vanishes_after_it_was_listed_is_named() {
    let bench = Bench::new();
    let tree = bench.tree("tree");
    let vanish = |event| {
        if matches!(event, ImportEvent::Scanned { .. }) {
            fs::remove_file(tree.join("a/big copy")).unwrap();
        }
    };
    let store = bench.store("store");
    let error = share_watched(&store, &tree, 2, &vanish).unwrap_err().to_string();
    assert!(error.contains("a/big copy") && error.contains("vanished"), "{error}");
    assert_eq!(store.roots().unwrap(), []);
}

#[test]
fn cancelling_shares_nothing() {
    let bench = Bench::new();
    let path = bench.path("file");
    fs::write(&path, noise(1, 64 << 20)).unwrap();
    let store = bench.store("store");
    let cancel = AtomicBool::new(false);
    let stop = |event| {
        if matches!(event, ImportEvent::Reading { .. }) {
            cancel.store(true, Ordering::Relaxed);
        }
    };
    let error = import(&store, &path, &SHOAL_V1, &ImportOptions::default(), &stop, &cancel).unwrap_err();
    assert!(matches!(error, ImportError::Cancelled));
    assert_eq!(store.roots().unwrap(), []);
}

#[test]
fn trees_that_nobody_could_fetch_are_refused() {
    let bench = Bench::new();
    fs::create_dir_all(bench.path("deep").join("d/".repeat(300))).unwrap();
    let error = refused(&bench, &bench.path("deep")).to_string();
    assert!(error.contains("nest 301 deep"), "{error}");
}

#[test]
fn progress_counts_up_to_the_totals() {
    let bench = Bench::new();
    let tree = bench.tree("tree");
    let events = Mutex::new(Vec::new());
    let shared = share_watched(&bench.store("store"), &tree, 2, &|event| events.lock().unwrap().push(event)).unwrap();
    let events = events.into_inner().unwrap();
    assert_eq!(events[0], ImportEvent::Scanned { files: 12, bytes: shared.bytes });
    assert_eq!(events[events.len() - 2], ImportEvent::Reading { files: 12, bytes: shared.bytes });
    assert_eq!(events[events.len() - 1], ImportEvent::Committing);
}

#[test]
fn listing_a_large_tree_tells_how_far_it_is() {
    let bench = Bench::new();
    fs::create_dir(bench.path("tree")).unwrap();
    for file in 0..1030 {
        fs::write(bench.path("tree").join(file.to_string()), "x").unwrap();
    }
    let seen = AtomicBool::new(false);
    let watch = |event| match event {
        ImportEvent::Scanning { files: 1030, bytes: 1030 } => seen.store(true, Ordering::Relaxed),
        ImportEvent::Reading { files, bytes } => assert!(files <= 1030 && bytes <= 1030),
        _ => {}
    };
    let shared = share_watched(&bench.store("store"), &bench.path("tree"), 3, &watch).unwrap();
    assert!(seen.into_inner());
    // The same content a thousand times is one chunk.
    assert_eq!((shared.files, shared.bytes, shared.chunks), (1030, 1030, 1030));
}

#[test]
fn an_archive_cut_on_many_threads_shares_its_contents_with_the_tree() {
    let bench = Bench::new();
    fs::create_dir(bench.path("tree")).unwrap();
    let (mut old, mut new) = (Tar::default(), Tar::default());
    for i in 0..400_u32 {
        // Mostly small, some long enough to be many chunks, one across several segments.
        let len = if i == 200 {
            40 << 20
        } else if i % 50 == 0 {
            2 << 20
        } else {
            1025 + i as usize * 97
        };
        let contents = noise(u64::from(i) + 1, len);
        fs::write(bench.path(&format!("tree/{i:03}")), &contents).unwrap();
        old.file(&format!("{i:03}"), i, &contents);
        new.file(&format!("{i:03}"), i + 1000, &contents);
    }
    fs::write(bench.path("old.tar"), old.end()).unwrap();
    fs::write(bench.path("new.tar"), new.end()).unwrap();
    let (one, many) = (bench.store("one"), bench.store("many"));
    let alone = share_watched(&one, &bench.path("old.tar"), 1, &|_| {}).unwrap();
    let together = share_watched(&many, &bench.path("old.tar"), 4, &|_| {}).unwrap();
    assert_eq!(alone, together);
    let manifest = many.manifest(&together.root).unwrap();
    for leaf in manifest.leaves() {
        assert_eq!(many.read(&leaf.cid).unwrap().len(), leaf.len as usize);
    }
    for (what, limit) in [("new.tar", 401 * 1024 + 10240), ("tree", 0)] {
        let store = bench.store(&format!("store of {what}"));
        let shared = share(&store, &bench.path(what)).unwrap();
        let manifest = store.manifest(&shared.root).unwrap();
        let fresh = manifest.leaves().iter().filter(|leaf| !many.has(&leaf.cid).unwrap());
        let bytes: u64 = fresh.map(|leaf| u64::from(leaf.len)).sum();
        assert!(bytes <= limit, "{bytes} bytes of {what} are not in the old archive");
    }
}
