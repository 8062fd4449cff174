//! What the tests of import and checkout share: trees with everything in them, two stores, and a comparison that
//! overlooks nothing.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test that unwraps fails at the right line")]

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

use shoal_content::{Cid, Manifest, SHOAL_V1};
use shoal_store::{
    Checkout, ImportError, ImportEvent, ImportOptions, Imported, KeyCost, Options, Passphrase, Store, import,
};
use tempfile::TempDir;

/// Bytes that do not repeat, the same for the same seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A place for two stores, a source and destinations.
pub(crate) struct Bench {
    pub(crate) home: TempDir,
    /// Its stores are encrypted.
    pub(crate) encrypted: bool,
}

/// What the encrypted stores of the tests are opened with.
pub(crate) const PASSPHRASE: &str = "correct horse battery staple";

/// How an encrypted store is opened with a passphrase. Cheap to try, so that a test may open many.
pub(crate) fn with_passphrase(text: &str) -> Options {
    let key_cost = KeyCost { memory_kib: 8, passes: 1, lanes: 1 };
    let passphrase = Passphrase::new(text.as_bytes().to_vec().into());
    Options { encrypt: true, passphrase, key_cost, ..Options::default() }
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap(), encrypted: false }
    }

    pub(crate) fn encrypted() -> Self {
        Self { encrypted: true, ..Self::new() }
    }

    pub(crate) fn options(&self) -> Options {
        if self.encrypted { with_passphrase(PASSPHRASE) } else { Options::default() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub(crate) fn store(&self, name: &str) -> Store {
        Store::open(&self.path(name), self.options()).unwrap()
    }

    /// A tree with everything in it: nested and empty directories, executables, symlinks, names of all kinds, files of
    /// 0 bytes, 1 byte and many chunks, and contents that occur more than once.
    pub(crate) fn tree(&self, name: &str) -> PathBuf {
        let root = self.path(name);
        for dir in ["empty", "a/b/c/d", "a/empty too", "bin", "ünï/日本"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        let files: [(&str, Vec<u8>); 12] = [
            ("zero", vec![]),
            ("a/zero again", vec![]),
            ("one", vec![7]),
            ("a/b/c/d/one more", vec![7]),
            ("small", noise(1, 1000)),
            ("a/b/small copy", noise(1, 1000)),
            ("big", noise(2, 3 << 20)),
            ("a/big copy", noise(2, 3 << 20)),
            ("a/b/big with a difference", [noise(2, 2 << 20), noise(3, 1 << 20)].concat()),
            ("ünï/日本/\u{1f980} crab 'n' \"quotes\" \\ back", noise(4, 70_000)),
            ("bin/tool", noise(5, 100)),
            ("bin/big tool", noise(6, 2 << 20)),
        ];
        for (path, bytes) in files {
            fs::write(root.join(path), bytes).unwrap();
        }
        for tool in ["bin/tool", "bin/big tool"] {
            fs::set_permissions(root.join(tool), fs::Permissions::from_mode(0o755)).unwrap();
        }
        symlink("../small", root.join("a/link up")).unwrap();
        symlink("b/c", root.join("a/link down")).unwrap();
        symlink("nowhere", root.join("dangling")).unwrap();
        root
    }
}

pub(crate) fn share(store: &Store, path: &Path) -> Result<Imported, ImportError> {
    share_watched(store, path, 2, &|_| {})
}

pub(crate) fn share_watched(
    store: &Store,
    path: &Path,
    threads: usize,
    progress: &(dyn Fn(ImportEvent) + Sync),
) -> Result<Imported, ImportError> {
    let options = ImportOptions { threads, created_unix: 1_700_000_000, ..ImportOptions::default() };
    import(store, path, &SHOAL_V1, &options, progress, &AtomicBool::new(false))
}

/// Brings the nodes of a root from one store to another, as a fetch does first.
pub(crate) fn move_nodes(from: &Store, to: &Store, root: Cid) -> Arc<Manifest> {
    let manifest = from.manifest(&root).unwrap();
    for cid in manifest.nodes() {
        to.put(cid, &from.read(cid).unwrap()).unwrap();
    }
    Arc::new(to.manifest(&root).unwrap())
}

/// Writes these leaves, from the store that has them.
pub(crate) fn write_leaves(from: &Store, checkout: &Checkout, leaves: &[u32]) {
    for &leaf in leaves {
        let cid = checkout.manifest().leaves()[leaf as usize].cid;
        checkout.write(leaf, &from.read(&cid).unwrap()).unwrap();
    }
}

/// What is at a path, as text: kind, executable bit, bytes or target.
pub(crate) fn listing(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let what = if meta.is_symlink() {
            format!("-> {}", fs::read_link(&path).unwrap().display())
        } else if meta.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            "dir".to_owned()
        } else {
            let bytes = fs::read(&path).unwrap();
            let hash = shoal_content::HashKind::Blake3.digest(&bytes);
            format!("file {} {:?} x={}", bytes.len(), hash, meta.permissions().mode() & 0o100 != 0)
        };
        found.insert(path.strip_prefix(root).unwrap().display().to_string(), what);
    }
    found
}

pub(crate) fn assert_same(a: &Path, b: &Path) {
    let (a, b) = (listing(a), listing(b));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (path, what) in &a {
        assert_eq!(what, &b[path], "{path}");
    }
}

/// Names in a directory.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
