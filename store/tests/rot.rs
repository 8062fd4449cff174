//! Bit rot in packs, in the user's files and in the index: never handed out, found by one scrub, repaired from one other
//! replica.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test that unwraps fails at the right line")]

mod import_support;

use std::{
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use import_support::{Bench, move_nodes, noise, share, write_leaves};
use shoal_content::{Cid, Codec, HashKind, Manifest};
use shoal_store::{Checked, Checkout, CheckoutOptions, ReadError, Scrub, Scrubbed, Store};

/// Files of one chunk each, in the tree that is shared and in the one that is cached.
const FILES: u64 = 600;

struct Rot {
    bench: Bench,
    replica: Store,
    shared: Cid,
    cached: Cid,
    random: u64,
}

impl Rot {
    /// A store with a tree that is shared in place and one in packs, closed; and a replica of both.
    fn new(bench: Bench) -> Self {
        let replica = bench.store("replica");
        let tree = |name: &str, seed: u64| {
            fs::create_dir(bench.path(name)).unwrap();
            for i in 0..FILES {
                let bytes = noise(seed + i, 1000 + i as usize);
                fs::write(bench.path(name).join(format!("{i:04}")), bytes).unwrap();
            }
            bench.path(name)
        };
        // The replica has files of its own.
        tree("their shared", 1);
        let shared = share(&replica, &bench.path("their shared")).unwrap().root;
        let cached = share(&replica, &tree("their cached", 10_000)).unwrap().root;
        let store = bench.store("store");
        assert_eq!(share(&store, &tree("mine", 1)).unwrap().root, shared);
        let manifest = move_nodes(&replica, &store, cached);
        let checkout = Checkout::begin_cached(&store, manifest, &[], "cached", CheckoutOptions::default()).unwrap();
        write_leaves(&replica, &checkout, &checkout.missing());
        checkout.finish().unwrap();
        drop(checkout);
        drop(store);
        println!("seed {}", 7);
        Rot { bench, replica, shared, cached, random: 7 }
    }

    fn below(&mut self, n: u64) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % n
    }

    fn open(&self) -> Store {
        self.bench.store("store")
    }

    fn pack(&self) -> PathBuf {
        self.bench.path("store").join("packs/00000000.pack")
    }

    fn manifest(&self, root: &Cid) -> Manifest {
        self.replica.manifest(root).unwrap()
    }

    /// Every block of both roots.
    fn blocks(&self) -> Vec<Cid> {
        let manifests = [self.manifest(&self.shared), self.manifest(&self.cached)];
        let all = |m: &Manifest| {
            let leaves: Vec<Cid> = m.leaves().iter().map(|leaf| leaf.cid).collect();
            [leaves, m.nodes().to_vec()].concat()
        };
        manifests.iter().flat_map(all).collect()
    }

    /// Reads everything; nothing may be wrong. Gives how many blocks cannot be read.
    fn unreadable(&self, store: &Store) -> usize {
        let wrong = |cid: &&Cid| match store.read(cid) {
            Ok(bytes) => {
                assert!(bytes == self.replica.read(cid).unwrap(), "wrong bytes were served");
                false
            }
            Err(ReadError::Io { .. }) => panic!("the disk works"),
            Err(_) => true,
        };
        self.blocks().iter().filter(wrong).count()
    }

    /// Gets what is missing from the replica.
    fn repair(&self, store: &Store) {
        for root in [self.shared, self.cached] {
            let manifest: Arc<Manifest> = move_nodes(&self.replica, store, root);
            let checkout = Checkout::begin_repair(store, manifest, &[], CheckoutOptions::default()).unwrap();
            write_leaves(&self.replica, &checkout, &checkout.missing());
            checkout.finish().unwrap();
        }
    }
}

fn scrub(store: &Store) -> Scrubbed {
    store.scrub(&Scrub::default(), &mut |_| {}).unwrap()
}

fn flip(path: &Path, at: u64, bit: u64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1 << bit], at).unwrap();
}

/// One bit in each of one chunk in a hundred, in packs and in shared files.
#[test]
fn a_bit_in_each_of_one_chunk_in_a_hundred_is_found_and_repaired() {
    flip_one_in_a_hundred(Bench::new());
    flip_one_in_a_hundred(Bench::encrypted());
}

fn flip_one_in_a_hundred(bench: Bench) {
    let mut rot = Rot::new(bench);
    let pack = fs::read(rot.pack()).unwrap();
    let mut hit = 0;
    for i in (0..FILES).step_by(100) {
        let len = 1000 + i;
        let (at, bit) = (rot.below(len), rot.below(8));
        flip(&rot.bench.path("mine").join(format!("{i:04}")), at, bit);
        // The key is in the record's header, with four bytes of check behind it; the block itself may be sealed.
        let key = Cid::of(Codec::Raw, HashKind::Blake3, &noise(10_000 + i, len as usize)).key();
        let start = (pack.windows(key.len()).position(|window| window == key).unwrap() + key.len() + 4) as u64;
        flip(&rot.pack(), start + at, bit);
        hit += 2;
    }
    let store = rot.open();
    let found = scrub(&store);
    assert_eq!((found.bad, found.mended, found.index_rebuilt), (hit, 0, false), "all of them, by one scrub");
    assert_eq!(found.damaged, {
        let mut both = vec![(rot.shared, hit / 2), (rot.cached, hit / 2)];
        both.sort();
        both
    });
    let files: u64 = store.take_damage().iter().map(|damage| damage.blocks).sum();
    assert_eq!(files, hit);
    assert_eq!(rot.unreadable(&store), hit as usize);
    rot.repair(&store);
    assert_eq!(rot.unreadable(&store), 0);
    drop(store);
    let store = rot.open();
    assert_eq!(rot.unreadable(&store), 0);
    let found = scrub(&store);
    assert_eq!((found.bad, found.damaged), (0, vec![]));
}

/// Without a scrub before: what is read is right or an error.
#[test]
fn cut_zeroed_and_swapped_packs_serve_nothing_wrong_and_are_repaired() {
    let kinds = ["cut", "zeroed", "swapped", "headers", "gone"];
    for (damage, encrypted) in kinds.into_iter().flat_map(|damage| [(damage, false), (damage, true)]) {
        let rot = Rot::new(if encrypted { Bench::encrypted() } else { Bench::new() });
        let pack = rot.pack();
        let mut bytes = fs::read(&pack).unwrap();
        let middle = bytes.len() / 2;
        match damage {
            "cut" => bytes.truncate(middle),
            "zeroed" => bytes[middle..middle + 20_000].fill(0),
            "swapped" => {
                let (a, b) = bytes.split_at_mut(middle);
                a[5000..15_000].swap_with_slice(&mut b[..10_000]);
            }
            "headers" => {
                let starts: Vec<usize> =
                    bytes.windows(4).enumerate().filter(|(_, four)| four == b"sBLK").map(|(i, _)| i).collect();
                starts.iter().step_by(50).for_each(|&start| bytes[start + 10] ^= 4);
            }
            _ => {}
        }
        match damage {
            "gone" => fs::remove_file(&pack).unwrap(),
            _ => fs::write(&pack, &bytes).unwrap(),
        }
        let store = rot.open();
        let unreadable = rot.unreadable(&store);
        assert_eq!(unreadable > 0, damage != "headers", "{damage}: {unreadable}");
        drop(store);
        let store = rot.open();
        let found = scrub(&store);
        if damage == "headers" {
            assert!(found.mended > 10 && found.bad == 0, "{found:?}");
        } else {
            assert!(found.bad > 0 && !found.damaged.is_empty(), "{damage}: {found:?}");
        }
        rot.repair(&store);
        assert_eq!(rot.unreadable(&store), 0, "{damage}");
        let found = scrub(&store);
        assert_eq!((found.bad, found.mended, found.damaged), (0, 0, vec![]), "{damage}");
    }
}

/// A bit anywhere in the index: the store opens, serves nothing wrong, and after one scrub has everything again.
#[test]
fn a_bit_in_the_index_is_found_and_the_index_made_anew() {
    flip_in_the_index(Bench::new(), 60, 1);
    flip_in_the_index(Bench::encrypted(), 15, 1);
}

/// What opens may still be damaged in what is looked at when it closes.
#[test]
fn many_bits_in_the_index_are_found_and_the_index_made_anew() {
    flip_in_the_index(Bench::new(), 40, 8);
}

fn flip_in_the_index(bench: Bench, times: u32, bits: u32) {
    let mut rot = Rot::new(bench);
    let index = rot.bench.path("store").join("index.redb");
    let store = rot.open();
    for i in 0..3 {
        let bytes = noise(20_000 + i, 500);
        store.put(&Cid::of(Codec::Raw, HashKind::Blake3, &bytes), &bytes).unwrap();
        store.commit().unwrap();
    }
    // As a process that is killed now leaves it: there is something to do at the next opening and closing.
    let good = fs::read(&index).unwrap();
    drop(store);
    let (mut rebuilt, mut harmless) = (0u32, 0u32);
    for _ in 0..times {
        let flips: Vec<_> = (0..bits).map(|_| (rot.below(good.len() as u64), rot.below(8))).collect();
        let roots = fs::read(rot.bench.path("store").join("roots")).unwrap();
        fs::write(&index, &good).unwrap();
        flips.iter().for_each(|&(at, bit)| flip(&index, at, bit));
        let store = rot.open();
        // Whatever can be read now is right.
        rot.unreadable_or_broken(&store);
        let found = scrub(&store);
        match found.index_rebuilt || store.rebuilt().is_some() {
            true => rebuilt += 1,
            false => harmless += 1,
        }
        assert_eq!(rot.unreadable(&store), 0, "bits at {flips:?}: {found:?}");
        assert_eq!(found.damaged, vec![], "bits at {flips:?}");
        assert_eq!(store.roots().unwrap().len(), 2);
        drop(store);
        fs::write(rot.bench.path("store").join("roots"), roots).unwrap();
    }
    println!("{rebuilt} times the index was made anew, {harmless} times the bit was in free space");
    assert!(rebuilt > times / 12, "{rebuilt} of {times}");
}

/// The index's header and the pages next to it say where other pages are: past the end of the file, if a bit is wrong. The
/// store opens all the same, and after one scrub it has everything again.
#[test]
fn a_bit_in_what_points_to_pages_of_the_index_is_no_fault_of_the_disk() {
    let bench = Bench::new();
    let store = bench.store("here");
    fs::write(bench.path("f"), noise(1, 5000)).unwrap();
    let root = share(&store, &bench.path("f")).unwrap().root;
    drop(store);
    let index = bench.path("here").join("index.redb");
    let whole = fs::read(&index).unwrap();
    for at in (0..320).chain(4096..4800) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(&index, &bytes).unwrap();
        let store = bench.store("here");
        scrub(&store);
        assert!(store.root(&root).unwrap().is_some(), "byte {at}: the root is gone");
        assert_eq!(store.read(&root).unwrap(), noise(1, 5000), "byte {at}");
    }
}

/// The index lost or full of rubbish, and the second copy of the roots damaged.
#[test]
fn a_lost_index_comes_back_and_a_lost_second_copy_too() {
    lose_them(Bench::new());
    lose_them(Bench::encrypted());
}

fn lose_them(bench: Bench) {
    let rot = Rot::new(bench);
    let dir = rot.bench.path("store");
    // A file of one chunk is a root without a tree.
    fs::write(rot.bench.path("one"), noise(5, 1000)).unwrap();
    let one = share(&rot.open(), &rot.bench.path("one")).unwrap().root;
    fs::remove_file(dir.join("index.redb")).unwrap();
    let store = rot.open();
    assert!(store.rebuilt().is_some());
    assert_eq!(rot.unreadable(&store), 0);
    assert_eq!(store.read(&one).unwrap(), noise(5, 1000));
    drop(store);
    flip(&dir.join("roots"), 60, 1);
    let store = rot.open();
    assert!(store.rebuilt().is_none());
    assert_eq!(store.roots().unwrap().len(), 3);
    drop(store);
    // It was written anew, so the index may be lost again.
    fs::write(dir.join("index.redb"), [7; 100_000]).unwrap();
    assert_eq!(rot.unreadable(&rot.open()), 0);
}

#[test]
fn a_scrub_that_was_stopped_goes_on_where_it_was() {
    let rot = Rot::new(Bench::new());
    let store = rot.open();
    let all = scrub(&store).copies;
    let options = Scrub { resume: true, ..Scrub::default() };
    let stop = options.cancel.clone();
    let stopped = store.scrub(&options, &mut |done| {
        stop.store(done.copies > all / 2, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(stopped.is_err());
    drop(store);
    let rest = rot.open().scrub(&Scrub { resume: true, ..Scrub::default() }, &mut |_| {}).unwrap();
    assert!(rest.copies > 0 && rest.copies < all * 3 / 4, "{} of {all}", rest.copies);
}

/// Wherever it is stopped: what it had looked up and not read yet comes again.
#[test]
fn a_scrub_that_was_stopped_leaves_nothing_out() {
    let mut rot = Rot::new(Bench::new());
    for i in 0..FILES {
        let (at, bit) = (rot.below(1000 + i), rot.below(8));
        flip(&rot.bench.path("mine").join(format!("{i:04}")), at, bit);
    }
    let (mut bad, mut damaged) = (0, Vec::new());
    for stops in 1.. {
        // What it found is durable: a process that dies after it was stopped leaves nothing out either.
        let store = rot.open();
        let options = Scrub { resume: true, ..Scrub::default() };
        let (stop, mut seen) = (options.cancel.clone(), 0);
        let ended = store.scrub(&options, &mut |done| {
            seen = done.bad;
            // Not even a whole batch further each time, at first.
            stop.store(done.copies > 100 * stops, std::sync::atomic::Ordering::Relaxed);
        });
        bad += seen;
        if let Ok(ended) = ended {
            assert!(stops > 2, "it was stopped");
            damaged = ended.damaged;
            break;
        }
    }
    assert_eq!(bad, FILES, "all of them, by one scrub in parts");
    assert_eq!(damaged, [(rot.shared, FILES)]);
}

#[test]
fn of_one_block_every_copy_is_read() {
    let rot = Rot::new(Bench::new());
    let store = rot.open();
    let bytes = noise(1, 1000);
    let cid = Cid::of(Codec::Raw, HashKind::Blake3, &bytes);
    store.put(&cid, &bytes).unwrap();
    store.commit().unwrap();
    flip(&rot.bench.path("mine/0000"), 500, 3);
    let mut done = Scrubbed::default();
    store.check_block(&cid, &mut done).unwrap();
    assert_eq!((done.copies, done.bad, done.bytes), (2, 1, 2000), "one copy of two is good");
    assert_eq!(store.take_damage()[0].path, rot.bench.path("mine/0000"));
    let mut again = Scrubbed::default();
    store.check_block(&cid, &mut again).unwrap();
    assert_eq!((again.copies, again.bad), (1, 0), "the bad one has left");

    store.commit().unwrap();
    // What was read one by one is not read again by the rest.
    let mut skip = Checked::default();
    skip.insert(&cid);
    let all = scrub(&store);
    let rest = store.scrub(&Scrub { skip, ..Scrub::default() }, &mut |_| {}).unwrap();
    assert_eq!((rest.copies, rest.bytes), (all.copies - 1, all.bytes - 1000));
    assert_eq!((rest.bytes_total, all.bytes_total), (rest.bytes, all.bytes));

    let missing = Cid::of(Codec::Raw, HashKind::Blake3, b"nowhere");
    assert!(matches!(store.check_block(&missing, &mut done), Err(ReadError::Missing(_))));
}

#[test]
fn damage_in_a_part_of_a_root_is_found() {
    let rot = Rot::new(Bench::new());
    let store = rot.bench.store("in part");
    let manifest = move_nodes(&rot.replica, &store, rot.shared);
    let paths = ["0001".parse().unwrap(), "0002".parse().unwrap()];
    let out = rot.bench.path("out");
    fs::create_dir(&out).unwrap();
    let checkout = Checkout::begin(&store, manifest, &paths, &out, "shared", CheckoutOptions::default()).unwrap();
    write_leaves(&rot.replica, &checkout, &checkout.missing());
    checkout.finish().unwrap();
    drop(checkout);
    assert_eq!(scrub(&store).damaged, [], "what was not asked for is not missing");
    flip(&out.join("0002"), 7, 0);
    assert_eq!(scrub(&store).damaged, [(rot.shared, 1)]);
}

impl Rot {
    /// [`unreadable`](Self::unreadable) where the index itself may fail.
    fn unreadable_or_broken(&self, store: &Store) {
        for cid in self.blocks() {
            if let Ok(bytes) = store.read(&cid) {
                assert!(bytes == self.replica.read(&cid).unwrap(), "wrong bytes were served");
            }
        }
    }
}
