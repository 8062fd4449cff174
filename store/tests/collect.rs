//! Garbage collection, quota and eviction: what goes, what stays whatever happens beside it, and how long others wait.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test that unwraps fails at the right line")]

mod import_support;

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use import_support::{Bench, move_nodes, noise, share, write_leaves};
use shoal_content::{Cid, Manifest, SHOAL_V1};
use shoal_store::{
    Checkout, CheckoutError, CheckoutOptions, Collect, Collected, ImportOptions, Options, RootKind, Store, StoreError,
    import,
};

const MIB: u64 = 1 << 20;

fn open(bench: &Bench, name: &str, quota_bytes: u64) -> Store {
    let options = Options { quota_bytes, pack_bytes: 4 * MIB, ..bench.options() };
    Store::open(&bench.path(name), options).unwrap()
}

fn thorough(now_unix: u64) -> Collect {
    Collect { now_unix, thorough: true, ..Collect::default() }
}

/// Everything of a root can be read.
fn whole(store: &Store, root: &Cid) -> Manifest {
    let manifest = store.manifest(root).unwrap();
    for leaf in manifest.leaves() {
        assert_eq!(store.read(&leaf.cid).unwrap().len(), leaf.len as usize);
    }
    manifest
}

/// A source of roots, and a store that caches them.
struct Cache {
    bench: Bench,
    from: Store,
    to: Store,
}

impl Cache {
    fn new(quota: u64) -> Self {
        let bench = Bench::new();
        let (from, to) = (bench.store("from"), open(&bench, "to", quota));
        Cache { bench, from, to }
    }

    /// Shares a file of `len` bytes at the source.
    fn root(&self, seed: u64, len: usize) -> Cid {
        let path = self.bench.path(&format!("f{seed}"));
        fs::write(&path, noise(seed, len)).unwrap();
        share(&self.from, &path).unwrap().root
    }

    fn cache(&self, root: Cid, created_unix: u64) -> Result<(), CheckoutError> {
        let hold = self.to.hold();
        self.from.manifest(&root).unwrap().nodes().iter().for_each(|cid| hold.keep(cid));
        let manifest = move_nodes(&self.from, &self.to, root);
        let options = CheckoutOptions { created_unix, ..CheckoutOptions::default() };
        let checkout = Checkout::begin_cached(&self.to, Arc::clone(&manifest), &[], "cached", options)?;
        checkout.fill_local()?;
        write_leaves(&self.from, &checkout, &checkout.missing());
        checkout.finish()?;
        Ok(())
    }

    fn cached(&self) -> Vec<Cid> {
        self.to.roots().unwrap().into_iter().map(|record| record.root).collect()
    }
}

/// What somebody reads of a root: room is made for the part, and the root is complete when all of it was read.
#[test]
fn what_is_read_by_and_by_is_kept_as_far_as_the_quota_has_room() {
    let cache = Cache::new(16 * MIB);
    let (small, large, old) = (cache.root(1, 6 << 20), cache.root(2, 40 << 20), cache.root(3, 8 << 20));
    cache.cache(old, 1).unwrap();
    let begin = |root: Cid| {
        let hold = cache.to.hold();
        cache.from.manifest(&root).unwrap().nodes().iter().for_each(|cid| hold.keep(cid));
        let manifest = move_nodes(&cache.from, &cache.to, root);
        let options = CheckoutOptions { created_unix: 2, provide: true, ..CheckoutOptions::default() };
        (Checkout::begin_on_demand(&cache.to, Arc::clone(&manifest), "read", options).unwrap(), manifest, hold)
    };

    // All of the large one does not fit: nothing goes for it, and there is no record. A part of it does.
    let (checkout, manifest, _hold) = begin(large);
    let all: Vec<u32> = (0..manifest.leaves().len() as u32).collect();
    assert_eq!(checkout.admit(&all, true).unwrap(), (vec![], false));
    assert_eq!(cache.cached(), [old]);
    let part = &[3, 1, 2, 3, 3];
    assert_eq!(checkout.admit(part, true).unwrap(), (vec![], true));
    assert_eq!(checkout.admit(part, false).unwrap(), (vec![], false));
    write_leaves(&cache.from, &checkout, &[1, 2, 3]);
    assert_eq!(checkout.admit(part, true).unwrap(), (vec![1, 2, 3], true));
    let record = cache.to.root(&large).unwrap().unwrap();
    assert!(record.kind == RootKind::Cached && !record.complete && !record.provide, "{record:?}");
    assert!(matches!(
        Checkout::begin_on_demand(&cache.to, manifest, "", CheckoutOptions::default()),
        Err(CheckoutError::Busy { .. })
    ));
    drop(checkout);

    // The small one fits if the old one goes. It is whole when its last leaf is there.
    let (checkout, manifest, _hold) = begin(small);
    let all: Vec<u32> = (0..manifest.leaves().len() as u32).collect();
    assert_eq!(checkout.admit(&all, true).unwrap(), (vec![], true));
    write_leaves(&cache.from, &checkout, &all[1..]);
    assert!(matches!(checkout.finish(), Err(CheckoutError::Incomplete { missing: 1, .. })));
    write_leaves(&cache.from, &checkout, &all[..1]);
    checkout.finish().unwrap();
    let record = cache.to.root(&small).unwrap().unwrap();
    assert!(record.complete && record.provide, "{record:?}");
    whole(&cache.to, &small);
    drop(checkout);

    // What is here for another reason keeps its record.
    let (checkout, manifest, _hold) = begin(small);
    let before = cache.to.root(&small).unwrap();
    assert_eq!(checkout.admit(&[0], true).unwrap(), (vec![0], true));
    assert_eq!(cache.to.root(&small).unwrap(), before);
    drop((checkout, manifest));
    let record = shoal_store::RootRecord { kind: RootKind::Fetched, complete: false, ..before.unwrap() };
    cache.to.put_root(record.clone()).unwrap();
    let (checkout, ..) = begin(small);
    checkout.admit(&[0], true).unwrap();
    checkout.fill_local().unwrap();
    checkout.finish().unwrap();
    assert_eq!(cache.to.root(&small).unwrap(), Some(record));
}

#[test]
fn what_no_root_reaches_goes_and_the_rest_stays() {
    collect_what_no_root_reaches(&Bench::new());
    collect_what_no_root_reaches(&Bench::encrypted());
}

fn collect_what_no_root_reaches(bench: &Bench) {
    let store = open(bench, "store", u64::MAX);
    let (a, b) = (bench.tree("a"), bench.tree("b"));
    // Enough nodes to be worth a new pack: names and sizes of many files.
    for i in 0..3000 {
        fs::write(a.join(format!("file number {i}")), noise(i + 100, 10)).unwrap();
    }
    let (a, b) = (share(&store, &a).unwrap(), share(&store, &b).unwrap());
    assert_eq!(store.collect(&thorough(1)).unwrap().blocks, 0, "everything is needed");
    let before = store.stats().unwrap();
    assert!(store.remove_root(&a.root).unwrap());
    let done = store.collect(&thorough(1)).unwrap();
    assert!(done.blocks > 3000 && done.files > 3000 && done.packs > 0, "{done:?}");
    let after = store.stats().unwrap();
    assert!(after.pack_bytes < before.pack_bytes / 4, "{before:?} {after:?}");
    assert!(after.bases == 1 && after.files < 20 && after.blocks < 200, "{after:?}");
    whole(&store, &b.root);
    assert!(store.manifest(&a.root).is_err());
    assert!(store.take_damage().is_empty());
    drop(store);
    let store = open(bench, "store", u64::MAX);
    whole(&store, &b.root);
    // What went comes back as it was.
    assert_eq!(share(&store, &bench.path("a")).unwrap().root, a.root);
    whole(&store, &a.root);
    assert_eq!(store.collect(&thorough(1)).unwrap().blocks, 0);
}

#[test]
fn versions_share_what_they_share() {
    let bench = Bench::new();
    let store = open(&bench, "store", u64::MAX);
    let path = bench.path("file");
    fs::write(&path, noise(1, 4 << 20)).unwrap();
    let v1 = share(&store, &path).unwrap().root;
    fs::write(&path, [noise(1, 3 << 20), noise(2, 1 << 20)].concat()).unwrap();
    let v2 = share(&store, &path).unwrap().root;
    store.remove_root(&v1).unwrap();
    assert!(store.collect(&thorough(1)).unwrap().blocks > 0);
    whole(&store, &v2);
    assert!(store.take_damage().is_empty());
}

#[test]
fn time_to_live_and_pins_for_a_time_end() {
    let bench = Bench::new();
    let store = open(&bench, "store", u64::MAX);
    let options = ImportOptions { expires_unix: Some(100), ..ImportOptions::default() };
    let never = AtomicBool::new(false);
    let path = bench.tree("tree");
    let root = import(&store, &path, &SHOAL_V1, &options, &|_| {}, &never).unwrap().root;
    assert!(store.collect(&thorough(99)).unwrap().expired.is_empty());
    // A pin outlives the time to live, but not its own.
    store.update_root(&root, |record| (record.pinned, record.pinned_until_unix) = (true, Some(200))).unwrap();
    assert!(store.collect(&thorough(150)).unwrap().expired.is_empty());
    let done = store.collect(&thorough(200)).unwrap();
    assert_eq!(done.expired.len(), 1);
    assert!(store.roots().unwrap().is_empty());
    assert!(path.join("small").exists(), "the user's files are the user's");

    let root = share(&store, &path).unwrap().root;
    store.update_root(&root, |record| (record.pinned, record.pinned_until_unix) = (true, Some(300))).unwrap();
    assert_eq!(store.collect(&thorough(300)).unwrap().unpinned.len(), 1);
    let record = store.root(&root).unwrap().unwrap();
    assert!(!record.pinned && record.pinned_until_unix.is_none());
}

#[test]
fn the_quota_holds_and_what_is_wanted_stays_longer() {
    let quota = 24 * MIB;
    let cache = Cache::new(quota);
    let wanted = cache.root(0, 2 << 20);
    cache.cache(wanted, 0).unwrap();
    cache.to.touch(&wanted);
    cache.to.touch(&wanted);
    for seed in 1..20 {
        cache.cache(cache.root(seed, 2 << 20), seed).unwrap();
        assert!(cache.to.fill().0 <= quota, "{:?}", cache.to.fill());
        whole(&cache.to, cache.cached().iter().find(|root| **root == wanted).expect("it was wanted"));
    }
    let there = cache.cached();
    assert!(there.len() >= 5 && there.len() < 12, "{}", there.len());
    there.iter().for_each(|root| drop(whole(&cache.to, root)));
    let space = cache.to.space().unwrap();
    assert!(space.cached > 8 * MIB && space.packs + space.index <= quota, "{space:?}");
    assert!(cache.to.take_damage().is_empty());
}

#[test]
fn pinned_content_is_never_evicted_and_what_does_not_fit_says_so() {
    let cache = Cache::new(16 * MIB);
    let pinned = [1, 2, 3].map(|seed| cache.root(seed, 4 << 20));
    for (root, seed) in pinned.into_iter().zip(1..) {
        cache.cache(root, seed).unwrap();
        cache.to.set_pinned(&root, true).unwrap();
    }
    let error = cache.cache(cache.root(4, 6 << 20), 4).unwrap_err();
    assert!(matches!(error, CheckoutError::Store(StoreError::OverQuota { .. })), "{error}");
    assert!(error.to_string().contains("quota"), "{error}");
    pinned.iter().for_each(|root| drop(whole(&cache.to, root)));
    cache.to.set_pinned(&pinned[0], false).unwrap();
    cache.cache(cache.root(5, 5 << 20), 5).unwrap();
    assert_eq!(cache.to.root(&pinned[0]).unwrap(), None, "it made room");
    whole(&cache.to, &pinned[1]);
}

#[test]
fn a_cached_root_is_served_from_the_store_and_lands_without_anybody_elses_help() {
    let cache = Cache::new(u64::MAX);
    let tree = cache.bench.tree("tree");
    let root = share(&cache.from, &tree).unwrap().root;
    cache.cache(root, 7).unwrap();
    let record = cache.to.root(&root).unwrap().unwrap();
    assert_eq!((record.kind, record.complete, record.path.as_os_str().len()), (RootKind::Cached, true, 0));
    drop(cache.from);
    fs::rename(&tree, cache.bench.path("gone")).unwrap();
    let manifest = Arc::new(whole(&cache.to, &root));
    let out = cache.bench.path("out");
    let checkout = Checkout::begin(&cache.to, manifest, &[], &out, "tree", CheckoutOptions::default()).unwrap();
    checkout.fill_local().unwrap();
    checkout.finish().unwrap();
    assert_eq!(fs::read(out.join("tree/big")).unwrap(), noise(2, 3 << 20));
    let record = cache.to.root(&root).unwrap().unwrap();
    assert_eq!(record.kind, RootKind::Fetched, "it has a place of its own now");
    // The copy in the packs is not needed twice, but nobody loses anything.
    cache.to.collect(&thorough(8)).unwrap();
    whole(&cache.to, &root);
}

/// Shares, fetches and fetches into the cache, all of them over and over, beside a collector that never rests.
#[test]
fn nothing_is_lost_beside_a_collector_that_never_rests() {
    let cache = Cache::new(40 * MIB);
    let done = AtomicBool::new(false);
    let trees: Vec<_> = (0..3).map(|i| cache.bench.tree(&format!("tree{i}"))).collect();
    let roots: Vec<Cid> = (10..16).map(|seed| cache.root(seed, 1 << 20)).collect();
    std::thread::scope(|scope| {
        let collector = scope.spawn(|| {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) {
                let target_bytes = (rounds % 3 == 0).then_some(0);
                cache.to.collect(&Collect { target_bytes, ..thorough(0) }).unwrap();
                rounds += 1;
            }
            rounds
        });
        let work = [
            scope.spawn(|| {
                for round in 0..8 {
                    let path = &trees[round % 3];
                    fs::write(path.join(format!("new{round}")), noise(1000 + round as u64, 200_000)).unwrap();
                    let root = share(&cache.to, path).unwrap().root;
                    whole(&cache.to, &root);
                    if round % 2 == 0 {
                        cache.to.remove_root(&root).unwrap();
                    }
                }
            }),
            scope.spawn(|| {
                for round in 0..8 {
                    let root = roots[round % 3];
                    let hold = cache.to.hold();
                    cache.from.manifest(&root).unwrap().nodes().iter().for_each(|cid| hold.keep(cid));
                    let manifest = move_nodes(&cache.from, &cache.to, root);
                    let out = cache.bench.path(&format!("out{round}"));
                    let options = CheckoutOptions::default();
                    let checkout = Checkout::begin(&cache.to, manifest, &[], &out, "f", options).unwrap();
                    write_leaves(&cache.from, &checkout, &checkout.missing());
                    checkout.finish().unwrap();
                    whole(&cache.to, &root);
                    cache.to.remove_root(&root).unwrap();
                }
            }),
            scope.spawn(|| {
                for round in 0..8 {
                    let root = roots[3 + round % 3];
                    cache.cache(root, round as u64).unwrap();
                    cache.to.touch(&root);
                }
            }),
        ];
        let results: Vec<_> = work.into_iter().map(|work| work.join()).collect();
        done.store(true, Ordering::Relaxed);
        println!("{} collections beside the work", collector.join().unwrap());
        results.into_iter().for_each(|result| result.unwrap());
    });
    let damage = cache.to.take_damage();
    assert!(damage.is_empty(), "{damage:?}");
    for record in cache.to.roots().unwrap().iter().filter(|record| record.kind == RootKind::Shared) {
        whole(&cache.to, &record.root);
    }
}

/// Prints how long others wait for the store with and without a collection beside them, and fails if it is long.
#[test]
fn a_collection_keeps_nobody_waiting() {
    let bench = Bench::new();
    let store = open(&bench, "store", u64::MAX);
    let fill = |seed: u64| {
        let tree = bench.path(&format!("many{seed}"));
        fs::create_dir(&tree).unwrap();
        for i in 0..10_000 {
            fs::write(tree.join(format!("a file with a long name {i}")), noise(seed << 32 | i, 10)).unwrap();
        }
        share(&store, &tree).unwrap().root
    };
    let kept = fill(1);
    let gone: Vec<Cid> = (2..5).map(fill).collect();
    // What others share is fetched here: two files of 300 KB each, so that there are chunks and nodes.
    let theirs = bench.store("theirs");
    let work = |collecting: Option<&AtomicBool>, seed: u64| {
        let mut waits: [Vec<Duration>; 3] = Default::default();
        let manifest = store.manifest(&kept).unwrap();
        let mut i = 0;
        while collecting.map_or(i < 100, |collecting| collecting.load(Ordering::Relaxed)) {
            i += 1;
            let bytes = noise(seed << 32 | i, 5000);
            let cid = Cid::of(shoal_content::Codec::Raw, shoal_content::HashKind::Blake3, &bytes);
            let begun = Instant::now();
            store.put(&cid, &bytes).unwrap();
            store.commit().unwrap();
            store.read(&cid).unwrap();
            store.read(&manifest.leaves()[i as usize % manifest.leaves().len()].cid).unwrap();
            waits[0].push(begun.elapsed());

            let mine = bench.path(&format!("mine {seed} {i}"));
            fs::write(&mine, noise(seed << 33 | i, 300_000)).unwrap();
            let begun = Instant::now();
            share(&store, &mine).unwrap();
            waits[1].push(begun.elapsed());

            let path = bench.path(&format!("theirs {seed} {i}"));
            fs::write(&path, noise(seed << 34 | i, 300_000)).unwrap();
            let root = share(&theirs, &path).unwrap().root;
            let (out, name) = (bench.path("out"), format!("{seed} {i}"));
            let begun = Instant::now();
            let manifest = move_nodes(&theirs, &store, root);
            let checkout = Checkout::begin(&store, manifest, &[], &out, &name, CheckoutOptions::default()).unwrap();
            write_leaves(&theirs, &checkout, &checkout.missing());
            checkout.finish().unwrap();
            waits[2].push(begun.elapsed());
        }
        waits.iter_mut().for_each(|waits| waits.sort());
        waits
    };
    let percentile = |waits: &[Duration], p: usize| waits[(waits.len() - 1) * p / 100];
    let alone = work(None, 7);
    gone.iter().for_each(|root| _ = store.remove_root(root).unwrap());
    let collecting = AtomicBool::new(true);
    let (beside, done): ([Vec<Duration>; 3], Collected) = std::thread::scope(|scope| {
        let collector = scope.spawn(|| {
            let done = store.collect(&thorough(0));
            collecting.store(false, Ordering::Relaxed);
            done.unwrap()
        });
        (work(Some(&collecting), 8), collector.join().unwrap())
    });
    assert!(done.blocks > 30_000, "{done:?}");
    for (what, of) in ["put, commit, read", "share of 300 KB", "fetch of 300 KB"].into_iter().enumerate() {
        for (when, waits) in [("alone", &alone[what]), ("beside a collection", &beside[what])] {
            let (half, most) = (percentile(waits, 50), percentile(waits, 99));
            println!("{of} {when}: p50 {half:?}, p99 {most:?} of {}", waits.len());
        }
        assert!(percentile(&beside[what], 99) < Duration::from_secs(1), "{of}");
    }
    whole(&store, &kept);
}

#[test]
fn a_damaged_root_keeps_what_may_be_its_own() {
    let bench = Bench::new();
    let store = open(&bench, "store", u64::MAX);
    let path = bench.path("file");
    fs::write(&path, noise(1, 4 << 20)).unwrap();
    let root = share(&store, &path).unwrap().root;
    drop(store);
    // The one node of the root.
    let pack = bench.path("store").join("packs/00000000.pack");
    let len = fs::metadata(&pack).unwrap().len();
    flip(&pack, len - 10);
    let store = open(&bench, "store", u64::MAX);
    let done = store.collect(&thorough(1)).unwrap();
    assert_eq!((done.damaged, done.blocks), (vec![root], 0));
    // Sharing it again repairs it, and all of the file was still known.
    share(&store, &path).unwrap();
    whole(&store, &root);
}

fn flip(path: &Path, at: u64) {
    use std::os::unix::fs::FileExt as _;
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}
