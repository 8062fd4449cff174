//! What the crash suite does to a store, what was acknowledged when, and what must therefore be there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

use shoal_content::{Block, Cid, Codec, FileBuilder, HashKind, Link, SHOAL_V1, directory};

use super::{Random, disk::Recorder};
use crate::{
    Checkout, CheckoutOptions, Collect, ImportOptions, KeyCost, Options, Passphrase, RootKind, RootRecord, Scrub,
    Stamp, Store,
    disk::{Disk, RealDisk},
    import,
};

/// Changes in one round.
const STEPS: u64 = 12;

/// The name of the root that reaches what is kept.
const KEPT: &str = "kept";

/// No position in the record.
const NEVER: usize = usize::MAX;

/// Something that was said to the store: from which position in the record on, from where on it is a promise, and where
/// it was taken back.
#[derive(Clone, Debug)]
struct Said<T> {
    from: usize,
    promised: Option<usize>,
    until: usize,
    what: T,
}

impl<T> Said<T> {
    fn new(from: usize, what: T) -> Self {
        Said { from, promised: None, until: NEVER, what }
    }

    /// Whether it must be there after a crash at this position.
    fn is_promise(&self, at: usize) -> bool {
        self.promised.is_some_and(|from| from <= at) && at < self.until
    }
}

/// A store's user.
#[derive(Debug)]
pub(super) struct Work {
    root: PathBuf,
    options: Options,
    blocks: BTreeMap<u32, Said<()>>,
    /// Everything that was said about each root, in order.
    roots: BTreeMap<u32, Vec<Said<Option<RootRecord>>>>,
    /// Fetches that ended, by root.
    fetched: BTreeMap<Cid, Said<Fetched>>,
    /// Shares and cached content, by root, with their blocks.
    whole: BTreeMap<Cid, Said<Vec<u32>>>,
    /// Which of these may be evicted.
    cached: BTreeSet<Cid>,
    next: u32,
}

/// What a fetch left: files with the blocks that they hold.
#[derive(Clone, Debug)]
struct Fetched {
    dest: PathBuf,
    files: Vec<(&'static str, Vec<u32>)>,
}

/// A fetch under way.
struct Fetch {
    checkout: Checkout,
    fetched: Fetched,
    missing: Vec<u32>,
}

/// How a store is opened; the passphrase of an encrypted one is cheap to try.
fn options(encrypted: bool) -> Options {
    let passphrase = Passphrase::new(b"correct horse".to_vec().into()).filter(|_| encrypted);
    let key_cost = KeyCost { memory_kib: 8, passes: 1, lanes: 1 };
    Options { encrypt: encrypted, passphrase, key_cost, ..Options::default() }
}

/// A block's bytes.
fn block(n: u32) -> Vec<u8> {
    let mut bytes = vec![0; 100 + (n as usize).wrapping_mul(7919) % 4000];
    blake3::Hasher::new().update(&n.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn cid(n: u32) -> Cid {
    Cid::of(Codec::Raw, HashKind::Blake3, &block(n))
}

impl Work {
    /// Begins with an empty disk at `root`.
    pub(super) fn new(root: &Path, encrypted: bool) -> Self {
        if root.exists() {
            fs::remove_dir_all(root).unwrap();
        }
        fs::create_dir_all(root.join("files")).unwrap();
        Work {
            root: root.to_owned(),
            options: Options { pack_bytes: 40_000, ..options(encrypted) },
            blocks: BTreeMap::new(),
            roots: BTreeMap::new(),
            fetched: BTreeMap::new(),
            whole: BTreeMap::new(),
            cached: BTreeSet::new(),
            next: 0,
        }
    }

    fn open(&self, disk: Arc<dyn Disk>) -> Result<Store, crate::OpenError> {
        Store::open_on(&self.root.join("store"), &self.options, disk)
    }

    /// Works for one round.
    pub(super) fn run(&mut self, disk: &Recorder, random: &mut Random) {
        let mut store = self.open(Arc::new(disk.clone())).expect("it was opened before");
        let mut fetch = None;
        for _ in 0..STEPS {
            match random.below(24) {
                0..4 => self.put(&store, disk, random),
                4..6 => self.write_file(&store, disk, random),
                6..9 => {
                    store.commit().unwrap();
                    self.acknowledged(disk.len());
                }
                9..11 => self.change_root(&store, disk, random),
                11..15 => {
                    let going_on = match fetch.take() {
                        Some(fetch) => fetch,
                        None => self.begin_fetch(&store, disk, random),
                    };
                    fetch = self.go_on_fetching(going_on, disk, random);
                }
                15..17 => self.collect(&store, disk, random),
                17..19 => self.share(&store, disk, random),
                19..21 => self.cache(&store, disk, random),
                21 => self.evict(&store, disk),
                22 => self.scrub(&store, disk, random),
                _ => {
                    fetch = None;
                    drop(store);
                    // What was not committed was never promised, and nothing will promise it any more.
                    self.acknowledged(NEVER);
                    store = self.open(Arc::new(disk.clone())).unwrap();
                }
            }
        }
        store.commit().unwrap();
        self.acknowledged(disk.len());
    }

    fn numbers(&mut self, n: u64, disk: &Recorder) -> Vec<u32> {
        let first = self.next;
        self.next += n as u32;
        let numbers: Vec<u32> = (first..self.next).collect();
        for &n in &numbers {
            self.blocks.insert(n, Said::new(disk.len(), ()));
        }
        numbers
    }

    /// Blocks into packs.
    fn put(&mut self, store: &Store, disk: &Recorder, random: &mut Random) {
        for n in self.numbers(1 + random.below(4), disk) {
            store.put(&cid(n), &block(n)).unwrap();
        }
    }

    /// Blocks into a file of ours, as a fetch does: now and then in a new directory.
    fn write_file(&mut self, store: &Store, disk: &Recorder, random: &mut Random) {
        let numbers = self.numbers(1 + random.below(4), disk);
        let disk: &dyn Disk = disk;
        let (dir, name) = (format!("d{}", random.below(4)), format!("f{}", numbers[0]));
        let at = self.root.join("files").join(&dir);
        if !at.exists() {
            disk.run(&crate::disk::Op::MakeDir, &at, &mut || fs::create_dir(&at)).unwrap();
        }
        let path = at.join(&name);
        let file = disk.create(&path).unwrap();
        let (mut refs, mut offset) = (Vec::new(), 0);
        for n in numbers {
            let bytes = block(n);
            disk.write_at(&file, &path, &bytes, offset).unwrap();
            refs.push((cid(n), offset, bytes.len() as u32));
            offset += bytes.len() as u64;
        }
        let base = store.add_base(&self.root.join("files")).unwrap();
        let stamp = Stamp { size: offset, mtime_ns: 1 };
        store.stage_file(base, &format!("{dir}/{name}"), stamp, &refs, true).unwrap();
    }

    /// Imports a directory of files of one block each, which their owner has synced.
    fn share(&mut self, store: &Store, disk: &Recorder, random: &mut Random) {
        let numbers = self.numbers(1 + random.below(3), disk);
        let recorder = disk;
        let disk: &dyn Disk = disk;
        let dir = self.root.join("files").join(format!("s{}", numbers[0]));
        disk.make_dirs(&dir).unwrap();
        for &n in &numbers {
            let path = dir.join(format!("f{n}"));
            let file = disk.create(&path).unwrap();
            disk.write_at(&file, &path, &block(n), 0).unwrap();
            disk.sync_file(&file, &path).unwrap();
        }
        disk.sync_dir(&dir).unwrap();
        disk.sync_dir(&self.root.join("files")).unwrap();
        let from = recorder.len();
        // More than one thread would change the order of the work from run to run.
        let options = ImportOptions { threads: 1, ..ImportOptions::default() };
        let shared = import(store, &dir, &SHOAL_V1, &options, &|_| {}, &AtomicBool::new(false)).unwrap();
        self.whole.insert(shared.root, Said::new(from, numbers));
        self.acknowledged(recorder.len());
    }

    /// Fetches a file into packs, as `fetch --cache` does.
    fn cache(&mut self, store: &Store, disk: &Recorder, random: &mut Random) {
        let numbers = self.numbers(2 + random.below(3), disk);
        // Until they are written.
        numbers.iter().for_each(|n| _ = self.blocks.remove(n));
        let mut nodes = Vec::new();
        let root = file_of(&numbers, &mut nodes).cid;
        let hold = store.hold();
        nodes.iter().for_each(|node| store.put(&node.cid, &node.bytes).unwrap());
        let manifest = Arc::new(store.manifest(&root).unwrap());
        let from = disk.len();
        let checkout =
            Checkout::begin_cached(store, Arc::clone(&manifest), &[], "cached", CheckoutOptions::default()).unwrap();
        drop(hold);
        self.acknowledged(disk.len());
        for leaf in 0..manifest.leaves().len() as u32 {
            let n = *numbers.iter().find(|&&n| cid(n) == manifest.leaves()[leaf as usize].cid).unwrap();
            self.blocks.insert(n, Said::new(disk.len(), ()));
            checkout.write(leaf, &block(n)).unwrap();
        }
        checkout.finish().unwrap();
        self.cached.insert(root);
        self.whole.insert(root, Said::new(from, numbers));
        self.acknowledged(disk.len());
    }

    /// Takes back every promise of cached content, and evicts it.
    fn evict(&mut self, store: &Store, disk: &Recorder) {
        for (_, said) in self.whole.iter_mut().filter(|(root, _)| self.cached.contains(root)) {
            said.until = said.until.min(disk.len());
            for n in &said.what {
                if let Some(block) = self.blocks.get_mut(n) {
                    block.until = block.until.min(disk.len());
                }
            }
        }
        // What no root reaches goes as well.
        self.blocks.values_mut().for_each(|said| said.until = said.until.min(disk.len()));
        let done = store.collect(&Collect { target_bytes: Some(0), thorough: true, ..Collect::default() }).unwrap();
        assert!(done.damaged.is_empty(), "{done:?}");
        self.acknowledged(disk.len());
    }

    /// Scrubs, now and then after a header in a pack went bad, for good.
    fn scrub(&mut self, store: &Store, disk: &Recorder, random: &mut Random) {
        store.commit().unwrap();
        self.acknowledged(disk.len());
        let packs = self.root.join("store/packs");
        let mut paths: Vec<PathBuf> = fs::read_dir(packs).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        if paths.is_empty() {
            return;
        }
        let path = &paths[random.below(paths.len() as u64) as usize];
        let bytes = fs::read(path).unwrap();
        let records: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at..].starts_with(b"sBLK")).collect();
        if !records.is_empty() {
            let at = records[random.below(records.len() as u64) as usize] as u64 + random.below(8);
            let disk: &dyn Disk = disk;
            let file = fs::File::options().write(true).open(path).unwrap();
            disk.write_at(&file, path, &[bytes[at as usize] ^ 1 << random.below(8)], at).unwrap();
            disk.sync_file(&file, path).unwrap();
        }
        let done = store.scrub(&Scrub::default(), &mut |_| {}).unwrap();
        assert!(done.mended <= 1 && !done.index_rebuilt, "{done:?}");
        self.acknowledged(disk.len());
    }

    /// Begins to fetch a tree that is small, or has many directories and files.
    fn begin_fetch(&mut self, store: &Store, disk: &Recorder, random: &mut Random) -> Fetch {
        let many = random.below(4) == 0;
        let mut files = vec![("empty", vec![]), ("a", self.numbers(1 + random.below(4), disk))];
        files.push(("copy", files[1].1.clone()));
        files.extend(MANY.iter().take(if many { MANY.len() } else { 2 }).map(|name| (*name, self.numbers(1, disk))));
        files.sort();
        // Until they are written.
        files.iter().flat_map(|(_, numbers)| numbers).for_each(|n| _ = self.blocks.remove(n));

        let mut nodes = Vec::new();
        let links: Vec<(String, Link)> =
            files.iter().map(|(name, numbers)| (name.to_string(), file_of(numbers, &mut nodes))).collect();
        let below = directory(&SHOAL_V1, links.clone(), &mut nodes).unwrap();
        let dirs = (0..if many { 20 } else { 1 }).map(|i| (format!("dir{i}"), below));
        let root = directory(&SHOAL_V1, links.into_iter().chain(dirs).collect(), &mut nodes).unwrap().cid;
        nodes.iter().for_each(|node| store.put(&node.cid, &node.bytes).unwrap());

        let manifest = Arc::new(store.manifest(&root).unwrap());
        let (out, name) = (self.root.join("files/out"), format!("{}{}", self.next, if many { "many" } else { "" }));
        let checkout =
            Checkout::begin(store, Arc::clone(&manifest), &[], &out, &name, CheckoutOptions::default()).unwrap();
        // It puts the root's record.
        self.acknowledged(disk.len());
        let missing = (0..manifest.leaves().len() as u32).collect();
        Fetch { checkout, fetched: Fetched { dest: out.join(name), files }, missing }
    }

    /// Writes some leaves in any order; ends the fetch after the last one.
    fn go_on_fetching(&mut self, mut fetch: Fetch, disk: &Recorder, random: &mut Random) -> Option<Fetch> {
        let leaves = fetch.checkout.manifest().leaves().to_vec();
        for _ in 0..(1 + random.below(3)).min(fetch.missing.len() as u64) {
            let leaf = fetch.missing.swap_remove(random.below(fetch.missing.len() as u64) as usize);
            let mut numbers = fetch.fetched.files.iter().flat_map(|(_, numbers)| numbers);
            let &n = numbers.find(|&&n| cid(n) == leaves[leaf as usize].cid).unwrap();
            self.blocks.insert(n, Said::new(disk.len(), ()));
            fetch.checkout.write(leaf, &block(n)).unwrap();
        }
        if !fetch.missing.is_empty() {
            return Some(fetch);
        }
        let from = disk.len();
        fetch.checkout.finish().unwrap();
        let (root, what) = (fetch.checkout.manifest().root(), fetch.fetched);
        self.fetched.insert(root, Said::new(from, what));
        self.acknowledged(disk.len());
        None
    }

    /// Puts a root that reaches some of the blocks, takes the promise of the others back, and collects the garbage.
    fn collect(&mut self, store: &Store, disk: &Recorder, random: &mut Random) {
        let kept_of_ten = random.below(11);
        let kept: Vec<u32> = self.blocks.keys().copied().filter(|_| random.below(10) < kept_of_ten).collect();
        let mut nodes = Vec::new();
        let root = file_of(&kept, &mut nodes).cid;
        nodes.iter().for_each(|node| store.put(&node.cid, &node.bytes).unwrap());
        let base = store.add_base(&self.root.join("files")).unwrap();
        let record = RootRecord { root, name: KEPT.into(), base: Some(base), ..root_record(0) };
        store.put_root(record).unwrap();
        self.acknowledged(disk.len());
        for (n, said) in &mut self.blocks {
            if kept.binary_search(n).is_err() {
                said.until = said.until.min(disk.len());
            }
        }
        for other in store.roots().unwrap().into_iter().filter(|other| other.name == KEPT && other.root != root) {
            store.remove_root(&other.root).unwrap();
        }
        let options = Collect { thorough: random.below(2) == 0, ..Collect::default() };
        let done = store.collect(&options).unwrap();
        assert!(done.damaged.is_empty(), "{done:?}");
        self.acknowledged(disk.len());
        for (n, said) in self.blocks.iter().filter(|(_, said)| said.until == NEVER) {
            let there = store.read(&cid(*n));
            assert!(there.is_ok() || said.promised == Some(NEVER), "block {n} was collected: {there:?}");
        }
    }

    /// Puts, changes or removes one of a few roots.
    fn change_root(&mut self, store: &Store, disk: &Recorder, random: &mut Random) {
        let n = random.below(6) as u32;
        let earlier = self.roots.entry(n).or_default();
        let before = earlier.last().and_then(|said| said.what.clone());
        let from = disk.len();
        let mut record = before.clone().unwrap_or_else(|| root_record(n));
        let what = match (before.is_some(), random.below(3)) {
            (true, 0) => None,
            (true, 1) => {
                record.pinned = !record.pinned;
                Some(record)
            }
            _ => {
                record.bytes += 1;
                Some(record)
            }
        };
        earlier.push(Said::new(from, what.clone()));
        match what {
            None => assert!(store.remove_root(&cid(n)).unwrap()),
            Some(record) if random.below(2) == 0 => store.put_root(record).unwrap(),
            Some(record) => {
                if !store.update_root(&cid(n), |there| *there = record.clone()).unwrap() {
                    store.put_root(record).unwrap();
                }
            }
        }
        // Each of them is durable on return, and everything staged before with it.
        self.acknowledged(disk.len());
    }

    /// Everything said so far is a promise now.
    fn acknowledged(&mut self, at: usize) {
        self.blocks.values_mut().for_each(|said| _ = said.promised.get_or_insert(at));
        self.roots.values_mut().flatten().for_each(|said| _ = said.promised.get_or_insert(at));
        self.fetched.values_mut().for_each(|said| _ = said.promised.get_or_insert(at));
        self.whole.values_mut().for_each(|said| _ = said.promised.get_or_insert(at));
    }

    /// Opens what a crash just before the change at `at` left. Gives how many promises it kept.
    pub(super) fn check(&self, at: usize, says: &dyn Fn() -> String) -> u64 {
        let store = self.open(Arc::new(RealDisk)).unwrap_or_else(|error| panic!("{}: {error}", says()));
        let mut kept = 0;
        for (&n, said) in self.blocks.iter().filter(|(_, said)| said.from <= at) {
            match store.read(&cid(n)) {
                Ok(bytes) => assert!(bytes == block(n), "{}: block {n} is wrong", says()),
                Err(error) => assert!(!said.is_promise(at), "{}: block {n}: {error}", says()),
            }
            kept += u64::from(said.is_promise(at));
        }
        for (&n, all) in &self.roots {
            let there = store.root(&cid(n)).unwrap();
            // What was promised last, or anything that was said since.
            let last = all.iter().rposition(|said| said.is_promise(at));
            let mut may_be = all[last.unwrap_or(0)..].iter().filter(|said| said.from <= at).map(|said| &said.what);
            let good = may_be.any(|what| *what == there) || (last.is_none() && there.is_none());
            assert!(good, "{}: root {n} is {there:?}, said was {all:?}", says());
            kept += u64::from(last.is_some());
        }
        for (root, said) in self.fetched.iter().filter(|(_, said)| said.is_promise(at)) {
            let record = store.root(root).unwrap();
            assert!(record.is_some_and(|record| record.complete), "{}: {root} is not complete", says());
            let manifest = store.manifest(root).unwrap_or_else(|error| panic!("{}: {error}", says()));
            for entry in manifest.entries() {
                let name = entry.path.file_name().unwrap_or_default();
                let Some((_, numbers)) = said.what.files.iter().find(|(known, _)| *known == name) else { continue };
                let path = said.what.dest.join(entry.path.as_str());
                let found = fs::read(&path).unwrap_or_else(|error| panic!("{}: {path:?}: {error}", says()));
                let same = found == numbers.iter().flat_map(|&n| block(n)).collect::<Vec<u8>>();
                assert!(same, "{}: {path:?} is not what was fetched", says());
            }
            kept += 1;
        }
        for (root, said) in self.whole.iter().filter(|(_, said)| said.is_promise(at)) {
            let record = store.root(root).unwrap();
            assert!(record.is_some_and(|record| record.complete), "{}: {root} is not complete", says());
            store.manifest(root).unwrap_or_else(|error| panic!("{}: {error}", says()));
            for &n in &said.what {
                let there = store.read(&cid(n));
                assert!(there.is_ok_and(|bytes| bytes == block(n)), "{}: block {n} of {root} is gone", says());
            }
            kept += 1;
        }
        // It works on.
        let new = u32::MAX;
        store.put(&cid(new), &block(new)).unwrap();
        store.commit().unwrap_or_else(|error| panic!("{}: {error}", says()));
        assert!(store.read(&cid(new)).unwrap() == block(new));
        kept
    }

    /// Goes on with a disk that was crashed just before the change at `at`.
    pub(super) fn go_on_from(&mut self, at: usize) {
        let store = self.open(Arc::new(RealDisk)).unwrap();
        store.commit().unwrap();
        self.blocks.retain(|_, said| said.is_promise(at));
        self.blocks.values_mut().for_each(|said| (said.from, said.promised, said.until) = (0, Some(0), NEVER));
        self.fetched.retain(|_, said| said.is_promise(at));
        self.fetched.values_mut().for_each(|said| (said.from, said.promised, said.until) = (0, Some(0), NEVER));
        self.whole.retain(|_, said| said.is_promise(at));
        self.whole.values_mut().for_each(|said| (said.from, said.promised, said.until) = (0, Some(0), NEVER));
        self.roots = (0..6)
            .map(|n| (n, vec![Said { from: 0, promised: Some(0), until: NEVER, what: store.root(&cid(n)).unwrap() }]))
            .collect();
    }
}

/// Names of the files of a tree that is synced as a whole.
const MANY: [&str; 18] = ["b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q", "r", "s"];

/// A file of these blocks.
fn file_of(numbers: &[u32], nodes: &mut Vec<Block>) -> Link {
    let mut builder = FileBuilder::new(&SHOAL_V1, None);
    numbers.iter().for_each(|&n| builder.leaf(cid(n), block(n).len() as u32, nodes));
    builder.finish(nodes)
}

fn root_record(n: u32) -> RootRecord {
    RootRecord {
        root: cid(n),
        name: format!("root {n}"),
        kind: RootKind::Shared,
        base: None,
        path: "/somewhere".into(),
        bytes: 0,
        files: 1,
        complete: true,
        pinned: false,
        provide: true,
        created_unix: 1,
        selection: None,
        resume: None,
        expires_unix: None,
        pinned_until_unix: None,
    }
}
