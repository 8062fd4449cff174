//! Destinations of fetches: round trips through two stores, resuming after crashes, and everything that may be in the
//! way.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test that unwraps fails at the right line")]

mod import_support;

use std::{
    fs,
    os::unix::fs::{FileExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    sync::Arc,
};

use import_support::{Bench, assert_same, listing, move_nodes, names, noise, share, write_leaves};
use shoal_content::{Block, Cid, Codec, FileBuilder, HashKind, Manifest, RelPath, SHOAL_V1, directory};
use shoal_store::{Checkout, CheckoutError, CheckoutOptions, RootKind, Store, SymlinkSkip};

fn options() -> CheckoutOptions {
    CheckoutOptions { symlinks: true, threads: 2, created_unix: 1_700_000_000, ..CheckoutOptions::default() }
}

fn begin(store: &Store, manifest: &Arc<Manifest>, dir: &Path, name: &str) -> Result<Checkout, CheckoutError> {
    Checkout::begin(store, Arc::clone(manifest), &[], dir, name, options())
}

fn path(text: &str) -> RelPath {
    text.parse().unwrap()
}

/// A shared tree, and a second store that knows its nodes.
struct Fetch {
    bench: Bench,
    tree: PathBuf,
    from: Store,
    to: Store,
    manifest: Arc<Manifest>,
    out: PathBuf,
}

impl Fetch {
    fn new() -> Self {
        let bench = Bench::new();
        let tree = bench.tree("tree");
        Self::of(bench, tree)
    }

    fn of(bench: Bench, tree: PathBuf) -> Self {
        let (from, to) = (bench.store("from"), bench.store("to"));
        let root = share(&from, &tree).unwrap().root;
        let manifest = move_nodes(&from, &to, root);
        let out = bench.path("out");
        Self { bench, tree, from, to, manifest, out }
    }

    fn begin(&self) -> Result<Checkout, CheckoutError> {
        begin(&self.to, &self.manifest, &self.out, "tree")
    }

    /// The partial destination.
    fn part(&self) -> PathBuf {
        let names = names(&self.out);
        let part = names.iter().find(|name| name.ends_with(".shoal-part")).expect("a partial");
        self.out.join(part)
    }

    /// Ends the second store without committing, as a crash does, and opens it again.
    fn crash(&mut self) {
        // `to` is replaced first so that the old one closes and gives up its lock.
        self.to = self.bench.store("meanwhile");
        self.to = self.bench.store("to");
    }
}

#[test]
fn a_tree_makes_the_round_trip() {
    let mut fetch = Fetch::new();
    let checkout = fetch.begin().unwrap();
    let root = fetch.manifest.root();
    let record = fetch.to.root(&root).unwrap().unwrap();
    assert_eq!((record.kind, record.complete, record.path), (RootKind::Fetched, false, fetch.out.join("tree")));
    assert_eq!(checkout.wanted().len(), fetch.manifest.leaves().len());
    assert_eq!((checkout.have(), checkout.missing()), (vec![], checkout.wanted().to_vec()));
    assert!(matches!(checkout.finish(), Err(CheckoutError::Incomplete { .. })));

    for &leaf in checkout.wanted() {
        write_leaves(&fetch.from, &checkout, &[leaf]);
        assert!(checkout.has(leaf));
        // Served from the partial at once.
        assert!(fetch.to.read(&fetch.manifest.leaves()[leaf as usize].cid).is_ok());
    }
    assert!(checkout.is_complete() && checkout.missing().is_empty());
    assert_eq!(checkout.have_amount(), checkout.wanted_amount());
    assert!(!fetch.out.join("tree").exists());

    let finished = checkout.finish().unwrap();
    assert_eq!(finished.paths, [fetch.out.join("tree")]);
    assert_eq!(finished.skipped_symlinks, []);
    assert_eq!(checkout.finish().unwrap(), finished);
    assert_eq!(names(&fetch.out), ["tree"]);
    assert_same(&fetch.tree, &fetch.out.join("tree"));

    // Durable, and served from its final place.
    drop(checkout);
    fetch.crash();
    let record = fetch.to.root(&root).unwrap().unwrap();
    assert!(record.complete && record.selection.is_none());
    assert_eq!((record.bytes, record.files), (fetch.manifest.total_bytes(), 12));
    for leaf in fetch.manifest.leaves() {
        fetch.to.read(&leaf.cid).unwrap();
    }
    // Shared again from there, it is the same root.
    assert_eq!(share(&fetch.bench.store("third"), &fetch.out.join("tree")).unwrap().root, root);
}

#[test]
fn small_roots_make_the_round_trip() {
    let bench = Bench::new();
    let make = |name: &str, bytes: &[u8], mode: u32| {
        fs::write(bench.path(name), bytes).unwrap();
        fs::set_permissions(bench.path(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    make("zero", b"", 0o644);
    make("zero tool", b"", 0o755);
    make("one", b"1", 0o644);
    make("tool", b"#!", 0o755);
    make("big", &noise(1, 3 << 20), 0o644);
    make("big tool", &noise(1, 3 << 20), 0o755);
    fs::create_dir(bench.path("empty")).unwrap();
    let (from, to) = (bench.store("from"), bench.store("to"));
    for name in ["zero", "zero tool", "one", "tool", "big", "big tool", "empty"] {
        let shared = share(&from, &bench.path(name)).unwrap();
        let manifest = move_nodes(&from, &to, shared.root);
        let checkout = begin(&to, &manifest, &bench.path("out"), name).unwrap();
        write_leaves(&from, &checkout, checkout.wanted());
        assert_eq!(checkout.finish().unwrap().paths, [bench.path("out").join(name)]);
        assert_same(&bench.path(name), &bench.path("out").join(name));
        assert!(to.root(&shared.root).unwrap().unwrap().complete);
    }
    assert_eq!(names(&bench.path("out")).len(), 7);
}

#[test]
fn many_threads_may_write_the_same_leaves() {
    let fetch = Fetch::new();
    let checkout = fetch.begin().unwrap();
    std::thread::scope(|scope| {
        for turn in 0..4 {
            let (checkout, from) = (&checkout, &fetch.from);
            scope.spawn(move || {
                let mut leaves = checkout.wanted().to_vec();
                leaves.rotate_left(turn);
                write_leaves(from, checkout, &leaves);
                checkout.commit().unwrap();
            });
        }
    });
    checkout.finish().unwrap();
    assert_same(&fetch.tree, &fetch.out.join("tree"));
}

#[test]
fn what_was_written_before_a_crash_is_not_fetched_again() {
    for commits in [false, true] {
        let mut fetch = Fetch::new();
        let checkout = fetch.begin().unwrap();
        let half: Vec<u32> = checkout.wanted().iter().copied().step_by(2).collect();
        write_leaves(&fetch.from, &checkout, &half);
        if commits {
            checkout.commit().unwrap();
        }
        drop(checkout);
        fetch.crash();
        let checkout = fetch.begin().unwrap();
        assert_eq!(checkout.have(), half);
        assert_eq!(checkout.resumed(), checkout.have_amount());
        assert_eq!(checkout.resumed().leaves, half.len());
        for &leaf in &half {
            fetch.to.read(&fetch.manifest.leaves()[leaf as usize].cid).unwrap();
        }
        // And once more, without a difference.
        drop(checkout);
        fetch.crash();
        let checkout = fetch.begin().unwrap();
        assert_eq!(checkout.have(), half);
        write_leaves(&fetch.from, &checkout, &checkout.missing());
        checkout.finish().unwrap();
        assert_same(&fetch.tree, &fetch.out.join("tree"));
    }
}

#[test]
fn a_partial_without_its_store_is_resumed_too() {
    let mut fetch = Fetch::new();
    let checkout = fetch.begin().unwrap();
    write_leaves(&fetch.from, &checkout, checkout.wanted());
    drop(checkout);
    fetch.to = fetch.bench.store("a new home");
    fetch.manifest = move_nodes(&fetch.from, &fetch.to, fetch.manifest.root());
    let checkout = fetch.begin().unwrap();
    assert!(checkout.is_complete());
    checkout.finish().unwrap();
    assert_same(&fetch.tree, &fetch.out.join("tree"));
}

#[test]
fn what_was_damaged_meanwhile_is_fetched_again() {
    for commits in [false, true] {
        let mut fetch = Fetch::new();
        let checkout = fetch.begin().unwrap();
        let all = checkout.wanted().to_vec();
        write_leaves(&fetch.from, &checkout, &all);
        if commits {
            checkout.commit().unwrap();
        }
        drop(checkout);
        let part = fetch.part();
        fs::remove_file(part.join("small")).unwrap();
        fs::remove_dir_all(part.join("ünï")).unwrap();
        fs::write(part.join("one"), "two, and longer").unwrap();
        let open = |name: &str| fs::File::options().write(true).open(part.join(name)).unwrap();
        open("big").write_all_at(b"garbled", 1 << 20).unwrap();
        open("bin/big tool").set_len(1 << 20).unwrap();
        open("a/big copy").set_len(10 << 20).unwrap();
        fs::set_permissions(part.join("bin/tool"), fs::Permissions::from_mode(0o644)).unwrap();
        fetch.crash();

        let checkout = fetch.begin().unwrap();
        let missing = checkout.missing();
        assert!(!missing.is_empty() && missing.len() < all.len() / 2, "{} of {}", missing.len(), all.len());
        // A chunk that is good at one of its places is taken from there.
        let filled = checkout.fill_local().unwrap();
        assert!(filled.leaves >= 3 && filled.bytes > 1001, "{filled:?}");
        assert!(!checkout.is_complete());
        write_leaves(&fetch.from, &checkout, &checkout.missing());
        checkout.finish().unwrap();
        assert_same(&fetch.tree, &fetch.out.join("tree"));
    }
}

#[test]
fn a_finish_that_crashed_is_taken_up() {
    let mut fetch = Fetch::new();
    let checkout = fetch.begin().unwrap();
    write_leaves(&fetch.from, &checkout, checkout.wanted());
    checkout.commit().unwrap();
    // All is written and renamed, and nothing of that recorded: the destination is found to be complete.
    let part = fetch.part();
    symlink("../small", part.join("a/link up")).unwrap();
    drop(checkout);
    fetch.crash();
    for file in ["zero", "a/zero again"] {
        fs::write(part.join(file), "").unwrap();
    }
    fs::rename(&part, fetch.out.join("tree")).unwrap();
    let checkout = fetch.begin().unwrap();
    assert!(checkout.is_complete());
    let finished = checkout.finish().unwrap();
    let reasons: Vec<_> = finished.skipped_symlinks.iter().map(|link| (link.path.as_str(), link.reason)).collect();
    assert_eq!(reasons, [("a/link down", SymlinkSkip::DestinationKept), ("dangling", SymlinkSkip::DestinationKept)]);
    assert!(fetch.to.root(&fetch.manifest.root()).unwrap().unwrap().complete);
    for leaf in fetch.manifest.leaves() {
        fetch.to.read(&leaf.cid).unwrap();
    }
    assert_eq!(names(&fetch.out), ["tree"]);
}

/// Copies a tree. Not by another program: its process would hold the locks of the stores of other tests for a moment.
fn copy(from: &Path, to: &Path) {
    let kind = fs::symlink_metadata(from).unwrap().file_type();
    if kind.is_symlink() {
        symlink(fs::read_link(from).unwrap(), to).unwrap();
    } else if kind.is_dir() {
        fs::create_dir(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let name = entry.unwrap().file_name();
            copy(&from.join(&name), &to.join(&name));
        }
    } else {
        fs::copy(from, to).unwrap();
    }
}

#[test]
fn a_destination_with_other_content_is_not_touched() {
    let fetch = Fetch::new();
    let tree = |change: &dyn Fn(&Path)| {
        fs::create_dir_all(&fetch.out).unwrap();
        let dest = fetch.out.join("tree");
        copy(&fetch.tree, &dest);
        change(&dest);
        dest
    };
    let changes: [&dyn Fn(&Path); 7] = [
        &|dest| fs::write(dest.join("small"), noise(9, 1000)).unwrap(),
        &|dest| fs::write(dest.join("small"), noise(1, 999)).unwrap(),
        &|dest| fs::write(dest.join("a/extra"), "").unwrap(),
        &|dest| fs::remove_file(dest.join("zero")).unwrap(),
        &|dest| fs::remove_dir(dest.join("empty")).unwrap(),
        &|dest| {
            fs::remove_dir_all(dest).unwrap();
            fs::write(dest, "a file").unwrap();
        },
        &|dest| {
            fs::remove_dir_all(dest).unwrap();
            symlink(&fetch.tree, dest).unwrap();
        },
    ];
    for change in changes {
        let dest = tree(change);
        let before = listing(&dest);
        let error = fetch.begin().unwrap_err();
        assert!(matches!(&error, CheckoutError::Exists { path } if *path == dest), "{error}");
        assert!(error.to_string().contains("exists already and holds something else; move it away"), "{error}");
        assert_eq!(listing(&dest), before);
        assert_eq!(names(&fetch.out), ["tree"]);
        if dest.is_symlink() || dest.is_file() {
            fs::remove_file(dest).unwrap()
        } else {
            fs::remove_dir_all(dest).unwrap()
        }
    }

    // The same content, links and all, is done at once.
    tree(&|_| {});
    let checkout = fetch.begin().unwrap();
    assert!(checkout.is_complete());
    assert_eq!(checkout.finish().unwrap().skipped_symlinks, []);
    for leaf in fetch.manifest.leaves() {
        fetch.to.read(&leaf.cid).unwrap();
    }
}

#[test]
fn a_destination_that_appears_meanwhile_is_not_clobbered() {
    let fetch = Fetch::new();
    let checkout = fetch.begin().unwrap();
    write_leaves(&fetch.from, &checkout, checkout.wanted());
    fs::create_dir(fetch.out.join("tree")).unwrap();
    assert!(matches!(checkout.finish(), Err(CheckoutError::Exists { .. })));
    assert!(fetch.part().exists());
    assert!(!fetch.to.root(&fetch.manifest.root()).unwrap().unwrap().complete);
    fs::remove_dir(fetch.out.join("tree")).unwrap();
    checkout.finish().unwrap();
    assert_same(&fetch.tree, &fetch.out.join("tree"));
}

#[test]
fn an_equal_destination_that_appears_meanwhile_is_taken() {
    let bench = Bench::new();
    let file = bench.path("file");
    fs::write(&file, noise(1, 2 << 20)).unwrap();
    let fetch = Fetch::of(bench, file);
    let checkout = begin(&fetch.to, &fetch.manifest, &fetch.out, "file").unwrap();
    write_leaves(&fetch.from, &checkout, checkout.wanted());
    fs::copy(&fetch.tree, fetch.out.join("file")).unwrap();
    checkout.finish().unwrap();
    assert_eq!(names(&fetch.out), ["file"]);
    for leaf in fetch.manifest.leaves() {
        fetch.to.read(&leaf.cid).unwrap();
    }
}

#[test]
fn two_fetches_do_not_write_to_one_partial() {
    let fetch = Fetch::new();
    let checkout = fetch.begin().unwrap();
    let error = fetch.begin().unwrap_err();
    assert!(matches!(error, CheckoutError::Busy { .. }), "{error}");
    drop(checkout);
    fetch.begin().unwrap();
}

/// A root made of these symlinks and a file `f` in `d`.
fn links(to: &Store, targets: &[(&str, &str)]) -> Arc<Manifest> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut file = FileBuilder::new(&SHOAL_V1, None);
    file.leaf(Cid::of(Codec::Raw, HashKind::Blake3, b"f"), 1, &mut blocks);
    let file = file.finish(&mut blocks);
    let inner = directory(&SHOAL_V1, vec![("f".into(), file)], &mut blocks).unwrap();
    let mut entries = vec![("d".to_owned(), inner)];
    for (name, target) in targets {
        let (link, block) = shoal_content::symlink(&SHOAL_V1, target).unwrap();
        blocks.push(block);
        entries.push(((*name).to_owned(), link));
    }
    let root = directory(&SHOAL_V1, entries, &mut blocks).unwrap().cid;
    for block in blocks {
        to.put(&block.cid, &block.bytes).unwrap();
    }
    Arc::new(to.manifest(&root).unwrap())
}

#[test]
fn symlinks_are_written_only_where_they_stay_inside() {
    let bench = Bench::new();
    let to = bench.store("to");
    let out = bench.path("out");
    let manifest =
        links(&to, &[("good", "d/f"), ("up", "../secret"), ("absolute", "/etc/passwd"), ("winding", "d/../../secret")]);
    let checkout = begin(&to, &manifest, &out, "links").unwrap();
    checkout.write(0, b"f").unwrap();
    let finished = checkout.finish().unwrap();
    let skipped: Vec<_> = finished.skipped_symlinks.iter().map(|link| (link.path.as_str(), link.reason)).collect();
    let reason = SymlinkSkip::LeavesDestination;
    assert_eq!(skipped, [("absolute", reason), ("up", reason), ("winding", reason)]);
    assert_eq!(names(&out.join("links")), ["d", "good"]);
    assert_eq!(fs::read(out.join("links/good")).unwrap(), b"f");

    let without = CheckoutOptions { symlinks: false, ..options() };
    let checkout = Checkout::begin(&to, manifest, &[], &out, "plain", without).unwrap();
    assert_eq!(checkout.fill_local().unwrap().leaves, 1);
    let finished = checkout.finish().unwrap();
    assert!(finished.skipped_symlinks.iter().all(|link| link.reason == SymlinkSkip::NotAsked));
    assert_eq!(finished.skipped_symlinks.len(), 4);
    assert_eq!(names(&out.join("plain")), ["d"]);
}

#[test]
fn planted_symlinks_do_not_lead_out() {
    let fetch = Fetch::new();
    let outside = fetch.bench.path("outside");
    fs::create_dir_all(outside.join("c/d")).unwrap();
    fs::write(outside.join("victim"), "precious").unwrap();
    let checkout = fetch.begin().unwrap();
    let part = fetch.part();
    // A directory and files in it are replaced by ways out, while the fetch runs.
    fs::remove_dir_all(part.join("a/b")).unwrap();
    symlink(&outside, part.join("a/b")).unwrap();
    symlink(outside.join("victim"), part.join("one")).unwrap();
    symlink("../../outside/victim", part.join("big")).unwrap();
    let before = listing(&outside);
    let mut refused = 0;
    for &leaf in checkout.wanted() {
        let bytes = fetch.from.read(&fetch.manifest.leaves()[leaf as usize].cid).unwrap();
        refused += usize::from(matches!(checkout.write(leaf, &bytes), Err(CheckoutError::Io { .. })));
    }
    assert!(refused > 3);
    assert_eq!(listing(&outside), before);

    // A partial that is a symlink is no partial.
    drop(checkout);
    fs::remove_dir_all(&part).unwrap();
    symlink(&outside, &part).unwrap();
    assert!(matches!(fetch.begin(), Err(CheckoutError::Io { .. })));
    assert_eq!(listing(&outside), before);
}

#[test]
fn a_part_of_a_root_lands_under_its_own_name() {
    let fetch = Fetch::new();
    let root = fetch.manifest.root();
    let part = |paths: &[&str]| {
        let paths: Vec<_> = paths.iter().map(|text| path(text)).collect();
        Checkout::begin(&fetch.to, Arc::clone(&fetch.manifest), &paths, &fetch.out, "tree", options())
    };
    let checkout = part(&["a/b"]).unwrap();
    let needed = checkout.wanted().len();
    assert!(needed > 0 && needed < fetch.manifest.leaves().len());
    let other = (0..fetch.manifest.leaves().len() as u32).find(|leaf| !checkout.wanted().contains(leaf)).unwrap();
    assert!(matches!(checkout.write(other, b"x"), Err(CheckoutError::NotWanted { .. })));
    write_leaves(&fetch.from, &checkout, checkout.wanted());
    assert_eq!(checkout.finish().unwrap().paths, [fetch.out.join("b")]);
    assert_same(&fetch.tree.join("a/b"), &fetch.out.join("b"));
    assert_eq!(names(&fetch.out), ["b"]);
    let record = fetch.to.root(&root).unwrap().unwrap();
    assert_eq!((record.complete, record.selection), (true, Some(vec!["a/b".to_owned()])));
    assert_eq!(record.path, fetch.out.join("b"));
}

#[test]
fn several_parts_land_side_by_side() {
    let mut fetch = Fetch::new();
    let paths = [path("bin/tool"), path("a/b/c"), path("a/b"), path("ünï/日本"), path("zero")];
    let part = |fetch: &Fetch| {
        Checkout::begin(&fetch.to, Arc::clone(&fetch.manifest), &paths, &fetch.out, "tree", options()).unwrap()
    };
    let checkout = part(&fetch);
    let some: Vec<u32> = checkout.wanted().iter().copied().step_by(3).collect();
    write_leaves(&fetch.from, &checkout, &some);
    drop(checkout);
    fetch.crash();
    // One was finished before the crash: it counts, and is left alone.
    fs::copy(fetch.tree.join("bin/tool"), fetch.out.join("tool")).unwrap();
    let checkout = part(&fetch);
    assert!(checkout.have().len() >= some.len());
    write_leaves(&fetch.from, &checkout, &checkout.missing());
    let finished = checkout.finish().unwrap();
    let expected = ["b", "tool", "zero", "日本"];
    assert_eq!(finished.paths.len(), 4);
    for name in expected {
        assert!(finished.paths.contains(&fetch.out.join(name)), "{name}");
    }
    for (from, name) in [("a/b", "b"), ("ünï/日本", "日本"), ("zero", "zero"), ("bin/tool", "tool")] {
        assert_same(&fetch.tree.join(from), &fetch.out.join(name));
    }
    let record = fetch.to.root(&fetch.manifest.root()).unwrap().unwrap();
    assert_eq!((record.path, record.base, record.complete), (fetch.out.clone(), None, true));
}

#[test]
fn selections_that_cannot_be_laid_out_are_refused() {
    let fetch = Fetch::new();
    let part = |paths: &[&str], name: &str| {
        let paths: Vec<_> = paths.iter().map(|text| path(text)).collect();
        Checkout::begin(&fetch.to, Arc::clone(&fetch.manifest), &paths, &fetch.out, name, options()).unwrap_err()
    };
    assert!(matches!(part(&["no such"], "x"), CheckoutError::Select(_)));
    assert!(matches!(part(&["dangling"], "x"), CheckoutError::OnlySymlink { .. }));
    for name in ["", ".", "..", "../up", "a/b", "/etc", "nul\0", &"x".repeat(300)] {
        let error = part(&[], name);
        assert!(matches!(error, CheckoutError::Name { .. }), "{name:?}: {error}");
    }
    // The names of several parts must differ.
    let (bench, to) = (&fetch.bench, &fetch.to);
    for dir in ["same/1", "same/2"] {
        fs::create_dir_all(bench.path(dir)).unwrap();
        fs::write(bench.path(dir).join("name"), dir).unwrap();
    }
    let root = share(&fetch.from, &bench.path("same")).unwrap().root;
    let manifest = move_nodes(&fetch.from, to, root);
    let paths = [path("1/name"), path("2/name")];
    let error = Checkout::begin(to, manifest, &paths, &fetch.out, "same", options()).unwrap_err();
    assert!(matches!(error, CheckoutError::SameName { .. }), "{error}");
}

#[test]
fn the_next_version_costs_only_what_changed() {
    let bench = Bench::new();
    let mut bytes = noise(1, 16 << 20);
    fs::write(bench.path("v1"), &bytes).unwrap();
    bytes.splice(5 << 20..5 << 20, *b"an insertion in the middle");
    fs::write(bench.path("v2"), &bytes).unwrap();
    let (from, to) = (bench.store("from"), bench.store("to"));
    let one = move_nodes(&from, &to, share(&from, &bench.path("v1")).unwrap().root);
    let checkout = begin(&to, &one, &bench.path("out"), "v1").unwrap();
    write_leaves(&from, &checkout, checkout.wanted());
    checkout.finish().unwrap();

    let two = move_nodes(&from, &to, share(&from, &bench.path("v2")).unwrap().root);
    let checkout = begin(&to, &two, &bench.path("out"), "v2").unwrap();
    let filled = checkout.fill_local().unwrap();
    assert_eq!(filled, checkout.have_amount());
    let missing = checkout.missing();
    assert!(!missing.is_empty() && missing.len() <= 4, "{} missing", missing.len());
    write_leaves(&from, &checkout, &missing);
    checkout.finish().unwrap();
    assert_same(&bench.path("v2"), &bench.path("out").join("v2"));
}

#[test]
fn chunks_that_are_not_where_the_store_thinks_are_fetched() {
    let fetch = Fetch::new();
    let checkout = fetch.begin().unwrap();
    write_leaves(&fetch.from, &checkout, checkout.wanted());
    checkout.finish().unwrap();
    drop(checkout);
    // The user deletes it and fetches it again.
    fs::remove_dir_all(fetch.out.join("tree")).unwrap();
    let checkout = fetch.begin().unwrap();
    assert_eq!(checkout.fill_local().unwrap().leaves, 0);
    write_leaves(&fetch.from, &checkout, checkout.wanted());
    checkout.finish().unwrap();
    assert_same(&fetch.tree, &fetch.out.join("tree"));
    assert!(fetch.to.root(&fetch.manifest.root()).unwrap().unwrap().complete);
}

#[test]
fn a_share_stays_a_share_when_it_is_fetched_as_well() {
    let fetch = Fetch::new();
    let root = fetch.manifest.root();
    let before = fetch.from.root(&root).unwrap().unwrap();
    let checkout = begin(&fetch.from, &fetch.manifest, &fetch.out, "copy").unwrap();
    assert_eq!(fetch.from.root(&root).unwrap().unwrap(), before);
    assert_eq!(checkout.fill_local().unwrap(), checkout.wanted_amount());
    checkout.finish().unwrap();
    assert_same(&fetch.tree, &fetch.out.join("copy"));
    assert_eq!(fetch.from.root(&root).unwrap().unwrap(), before);
}

#[test]
fn a_leaf_of_the_wrong_length_is_the_roots_fault() {
    let fetch = Fetch::new();
    let checkout = fetch.begin().unwrap();
    let error = checkout.write(0, b"too short").unwrap_err();
    assert!(matches!(error, CheckoutError::WrongLength { leaf: 0, found: 9, .. }), "{error}");
    assert!(matches!(checkout.write(u32::MAX, b""), Err(CheckoutError::NotWanted { .. })));
    assert!(!checkout.has(0));
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_written() {
    let bench = Bench::new();
    let to = bench.store("to");
    // 4 TiB: the same file of 1 GiB, under many names.
    let mut blocks: Vec<Block> = Vec::new();
    let mut file = FileBuilder::new(&SHOAL_V1, None);
    for _ in 0..1024 {
        file.leaf(Cid::of(Codec::Raw, HashKind::Blake3, b"never seen"), 1 << 20, &mut blocks);
    }
    let file = file.finish(&mut blocks);
    let entries = (0..4096).map(|i| (format!("{i}"), file)).collect();
    let root = directory(&SHOAL_V1, entries, &mut blocks).unwrap().cid;
    for block in blocks {
        to.put(&block.cid, &block.bytes).unwrap();
    }
    let manifest = Arc::new(to.manifest(&root).unwrap());
    match begin(&to, &manifest, &bench.path("out"), "huge") {
        Err(error @ CheckoutError::NoSpace { needed, free, .. }) => {
            assert_eq!(needed, 4 << 40);
            assert!(free < needed);
            assert!(error.to_string().contains("not enough space for"), "{error}");
            assert_eq!(names(&bench.path("out")), [""; 0]);
            assert_eq!(to.roots().unwrap(), []);
        }
        Ok(_) => eprintln!("skipped: this disk has room for 4 TiB"),
        Err(error) => panic!("{error}"),
    }
}
