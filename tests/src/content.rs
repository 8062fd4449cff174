//! Made-up content: bytes that neither repeat nor compress, trees, random choices from a seed, and comparing.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufReader, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use shoal_content::{Cid, SHOAL_V1};
use shoal_store::{ImportOptions, Options, Store};

/// A small generator (xorshift64): the same seed, the same numbers.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Any seed will do.
    pub fn new(seed: u64) -> Self {
        Rng(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end
    }

    /// So many bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.number().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }

    /// `parts` numbers, each at least `floor`, that add up to `sum`: random moments in a stretch.
    pub fn partition(&mut self, sum: u64, parts: usize, floor: u64) -> Vec<u64> {
        let free = sum - floor * parts as u64;
        let mut cuts: Vec<u64> = (1..parts).map(|_| self.below(free + 1)).collect();
        cuts.extend([0, free]);
        cuts.sort_unstable();
        cuts.windows(2).map(|pair| pair[1] - pair[0] + floor).collect()
    }
}

/// Bytes from a seed.
pub fn noise(seed: u64, len: u64) -> Vec<u8> {
    Rng::new(seed).bytes(usize::try_from(len).unwrap())
}

/// Writes a file of bytes from a seed, with the directories above it.
pub fn write_noise(path: &Path, seed: u64, len: u64) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, noise(seed, len)).unwrap();
}

/// What a path looks like to somebody who compares trees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Thing {
    /// A directory.
    Dir,
    /// A file: its bytes, and whether it may be run.
    File {
        /// All of it.
        bytes: Vec<u8>,
        /// Its owner's executable bit.
        executable: bool,
    },
    /// A symbolic link and where it points.
    Symlink(PathBuf),
}

/// A tree as a map from relative paths, the root's being empty. For trees that fit into memory.
pub fn snapshot(root: &Path) -> BTreeMap<PathBuf, Thing> {
    let mut things = BTreeMap::new();
    let mut left = vec![PathBuf::new()];
    while let Some(rel) = left.pop() {
        let path = if rel.as_os_str().is_empty() { root.to_owned() } else { root.join(&rel) };
        let meta = fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let thing = if meta.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| rel.join(entry.unwrap().file_name())));
            Thing::Dir
        } else if meta.is_symlink() {
            Thing::Symlink(fs::read_link(&path).unwrap())
        } else {
            Thing::File { bytes: fs::read(&path).unwrap(), executable: meta.permissions().mode() & 0o100 != 0 }
        };
        things.insert(rel, thing);
    }
    things
}

/// Fails the test unless both trees hold the same. Says where they differ, not what is in them.
pub fn assert_same_tree(left: &Path, right: &Path) {
    let (a, b) = (snapshot(left), snapshot(right));
    let names = a.keys().chain(b.keys().filter(|name| !a.contains_key(*name)));
    let different: Vec<_> = names.filter(|name| a.get(*name) != b.get(*name)).collect();
    assert!(different.is_empty(), "{} and {} differ at {different:?}", left.display(), right.display());
}

/// Fails the test unless both files hold the same bytes. Streams.
pub fn assert_same_file(left: &Path, right: &Path) {
    let open = |path: &Path| {
        BufReader::new(fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    };
    let (mut a, mut b) = (open(left), open(right));
    let (mut x, mut y) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    loop {
        let (n, m) = (fill(&mut a, &mut x), fill(&mut b, &mut y));
        assert!(x[..n] == y[..m], "{} and {} differ after byte {at}", left.display(), right.display());
        if n == 0 {
            return;
        }
        at += n as u64;
    }
}

fn fill(from: &mut impl Read, into: &mut [u8]) -> usize {
    let mut done = 0;
    while done < into.len() {
        match from.read(&mut into[done..]).unwrap() {
            0 => break,
            n => done += n,
        }
    }
    done
}

/// What a path is as content, found out without the binary.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its root.
    pub root: Cid,
    /// Bytes of each leaf, by leaf index.
    pub leaf_sizes: Vec<u32>,
}

impl Plan {
    /// Reads a path. `scratch` is a directory that does not exist yet.
    pub fn of(path: &Path, scratch: &Path) -> Plan {
        let store = Store::open(scratch, Options::default()).unwrap();
        let never = AtomicBool::new(false);
        let imported =
            shoal_store::import(&store, path, &SHOAL_V1, &ImportOptions::default(), &|_| {}, &never).unwrap();
        let manifest = store.manifest(&imported.root).unwrap();
        Plan { root: imported.root, leaf_sizes: manifest.leaves().iter().map(|leaf| leaf.len).collect() }
    }
}
