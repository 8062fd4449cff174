//! Sharing a path again after edits that nobody thought of: the root is always that of a full read.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test that unwraps fails at the right line")]

mod import_support;
mod reshare_support;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use import_support::{Bench, noise};
use proptest::prelude::*;
use reshare_support::{changed, in_place, replaced, rewritten, share, sly};
use shoal_store::Collect;

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
    let mut files = BTreeSet::new();
    for dir in ["", "a", "a/b", "c"] {
        let found = fs::read_dir(tree.join(dir)).unwrap().map(|entry| entry.unwrap().path());
        files.extend(found.filter(|path| path.is_file()));
    }
    let files: Vec<_> = files.into_iter().collect();
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
