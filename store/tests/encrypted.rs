//! An encrypted store: it works like a plain one, says nothing to whoever has the disk, opens with its passphrase only, and
//! serves nothing that somebody changed or exchanged. Rot and crashes are in `rot` and in the crash suite.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test that unwraps fails at the right line")]

mod import_support;

use std::{
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use import_support::{Bench, PASSPHRASE, move_nodes, share, with_passphrase, write_leaves};
use redb::{ReadableDatabase, TableDefinition};
use shoal_content::{Cid, Codec, HashKind};
use shoal_store::{Checkout, CheckoutOptions, Collect, OpenError, Options, Scrub, Store};

const CONTENT: &str = "the treasure is buried under the third palm";
const NAME: &str = "map of the island";
const DIR: &str = "captain flint's chest";

const BLOCKS: TableDefinition<'_, &[u8; 33], &[u8]> = TableDefinition::new("blocks");
const ROOTS: TableDefinition<'_, &[u8; 33], &[u8]> = TableDefinition::new("roots");

/// A closed store with a shared tree and another one in packs; and where they are from.
struct Chest {
    bench: Bench,
    from: Store,
    shared: Cid,
    cached: Cid,
}

impl Chest {
    fn new(bench: Bench) -> Self {
        let tree = |name: &str, what: &str| {
            let dir = bench.path(name).join(DIR);
            fs::create_dir_all(&dir).unwrap();
            for i in 0..50 {
                fs::write(dir.join(format!("{NAME} {i}")), format!("{what} {i}: {CONTENT}")).unwrap();
            }
            bench.path(name)
        };
        let from = Store::open(&bench.path("from"), Options::default()).unwrap();
        let cached = share(&from, &tree("theirs", "cached")).unwrap().root;
        let store = bench.store("store");
        let shared = share(&store, &tree("mine", "shared")).unwrap().root;
        share(&from, &bench.path("mine")).unwrap();
        let manifest = move_nodes(&from, &store, cached);
        let checkout = Checkout::begin_cached(&store, Arc::clone(&manifest), &[], NAME, CheckoutOptions::default());
        let checkout = checkout.unwrap();
        write_leaves(&from, &checkout, &checkout.missing());
        checkout.finish().unwrap();
        drop(checkout);
        Chest { bench, from, shared, cached }
    }

    fn dir(&self) -> PathBuf {
        self.bench.path("store")
    }

    fn pack(&self) -> PathBuf {
        self.dir().join("packs/00000000.pack")
    }

    fn blocks(&self) -> Vec<Cid> {
        let of = |root: &Cid| {
            let manifest = self.from.manifest(root).unwrap();
            let leaves: Vec<Cid> = manifest.leaves().iter().map(|leaf| leaf.cid).collect();
            [leaves, manifest.nodes().to_vec()].concat()
        };
        [of(&self.shared), of(&self.cached)].concat()
    }

    /// Reads everything; nothing may be wrong. Gives what cannot be read.
    fn unreadable(&self, store: &Store) -> Vec<Cid> {
        let mut unreadable = Vec::new();
        for cid in self.blocks() {
            match store.read(&cid) {
                Ok(bytes) => assert!(bytes == self.from.read(&cid).unwrap(), "wrong bytes were served"),
                Err(_) => unreadable.push(cid),
            }
        }
        unreadable
    }
}

/// Files of the store in which the bytes occur.
fn files_with(dir: &Path, bytes: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if fs::read(&path).unwrap().windows(bytes.len()).any(|window| window == bytes) {
            found.push(path);
        }
    }
    found
}

fn scrub(store: &Store) -> shoal_store::Scrubbed {
    store.scrub(&Scrub::default(), &mut |_| {}).unwrap()
}

#[test]
fn it_is_whole_after_closing_rebuilding_collecting_and_scrubbing() {
    let chest = Chest::new(Bench::encrypted());
    let open = || chest.bench.store("store");
    assert!(chest.unreadable(&open()).is_empty());
    let roots = open().roots().unwrap();
    assert_eq!(roots.len(), 2);
    fs::remove_file(chest.dir().join("index.redb")).unwrap();
    let store = open();
    assert!(store.rebuilt().is_some());
    assert!(chest.unreadable(&store).is_empty());
    assert_eq!(store.roots().unwrap(), roots);
    assert_eq!(scrub(&store).bad, 0);

    // Garbage that is worth a new pack; what is needed moves.
    for i in 0..100u32 {
        let garbage = [&i.to_le_bytes()[..], &[7; 2000]].concat();
        store.put(&Cid::of(Codec::Raw, HashKind::Blake3, &garbage), &garbage).unwrap();
    }
    store.commit().unwrap();
    let space = store.space().unwrap();
    assert!(space.garbage >= 100 * (45 + 2004 + 16), "tags are counted: {space:?}");
    assert_eq!(space.packs, space.kept + space.cached + space.garbage);
    let done = store.collect(&Collect { thorough: true, ..Collect::default() }).unwrap();
    assert!(done.packs == 1 && done.bytes_moved > 0 && done.bytes_after < done.bytes_before, "{done:?}");
    assert!(chest.unreadable(&store).is_empty());
    let space = store.space().unwrap();
    assert_eq!(space.packs, space.kept + space.cached + 16, "all that is left is needed, but for the header");
    let found = scrub(&store);
    assert_eq!((found.bad, found.mended, found.index_rebuilt, found.damaged), (0, 0, false, vec![]));
    drop(store);
    assert!(chest.unreadable(&open()).is_empty());
    assert_eq!(files_with(&chest.dir(), CONTENT.as_bytes()), Vec::<PathBuf>::new());
}

#[test]
fn the_disk_tells_no_content_no_name_and_no_path() {
    let plain = Chest::new(Bench::new());
    let chest = Chest::new(Bench::encrypted());
    let path = chest.bench.home.path().to_str().unwrap();
    for secret in [CONTENT, NAME, DIR, "mine", path, PASSPHRASE] {
        assert_eq!(files_with(&chest.dir(), secret.as_bytes()), Vec::<PathBuf>::new(), "{secret}");
    }
    // A search that finds nothing must be one that finds something elsewhere.
    let of = |secret: &str| files_with(&plain.dir(), secret.as_bytes()).len();
    assert!(of(CONTENT) == 1 && of(DIR) > 1 && of(plain.bench.home.path().to_str().unwrap()) == 2);
    // CIDs are told.
    assert!(!files_with(&chest.dir(), &chest.cached.key()).is_empty());
}

#[test]
fn it_opens_with_its_passphrase_only() {
    let chest = Chest::new(Bench::encrypted());
    let before = fs::read(chest.pack()).unwrap();
    let open = |options| Store::open(&chest.dir(), options).map(drop);
    let sentence = |result: Result<(), OpenError>| result.unwrap_err().to_string();
    let wrong = open(with_passphrase("correct horse battery stable"));
    assert!(matches!(&wrong, Err(OpenError::WrongPassphrase { dir }) if *dir == chest.dir()), "{wrong:?}");
    assert!(sentence(wrong).contains("does not fit"));
    for options in [Options::default(), Options { encrypt: true, ..Options::default() }] {
        let missing = open(options);
        assert!(matches!(missing, Err(OpenError::NeedsPassphrase { new: false, .. })), "{missing:?}");
        assert!(sentence(missing).contains("SHOAL_PASSPHRASE_FILE"));
    }
    // Its nature is its own, whatever the setting says.
    open(Options { encrypt: false, ..with_passphrase(PASSPHRASE) }).unwrap();
    open(with_passphrase(PASSPHRASE)).unwrap();
    assert!(fs::read(chest.pack()).unwrap() == before);
    assert!(chest.unreadable(&chest.bench.store("store")).is_empty());

    // To be made: as the setting says, with a passphrase.
    let new = chest.bench.path("new");
    let missing = Store::open(&new, Options { encrypt: true, ..Options::default() }).map(drop);
    assert!(matches!(missing, Err(OpenError::NeedsPassphrase { new: true, .. })), "{missing:?}");
    drop(Store::open(&new, with_passphrase("x")).unwrap());
    assert_eq!(fs::read_to_string(new.join("format")).unwrap(), "2\n");
}

#[test]
fn a_plain_store_does_not_pass_for_an_encrypted_one() {
    let chest = Chest::new(Bench::new());
    for options in [with_passphrase(PASSPHRASE), Options { encrypt: true, ..Options::default() }] {
        let error = Store::open(&chest.dir(), options).map(drop).unwrap_err();
        assert!(matches!(error, OpenError::NotEncrypted { .. }), "{error}");
        assert!(error.to_string().contains("move it away"), "{error}");
    }
    assert!(!chest.dir().join("key").exists());
    assert_eq!(fs::read_to_string(chest.dir().join("format")).unwrap(), "1\n");
    assert!(chest.unreadable(&chest.bench.store("store")).is_empty());
}

#[test]
fn a_key_file_that_is_gone_or_rotted_is_said_to_be_so() {
    let chest = Chest::new(Bench::encrypted());
    let path = chest.dir().join("key");
    let good = fs::read(&path).unwrap();
    let try_open = || Store::open(&chest.dir(), with_passphrase(PASSPHRASE)).map(drop);
    let mut flipped = good.clone();
    flipped[70] ^= 4;
    // Four TiB of memory, and a check that is right.
    let mut absurd = good.clone();
    absurd[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    let check = blake3::hash(&absurd[..112]);
    absurd[112..].copy_from_slice(check.as_bytes());
    for (bytes, why) in [(&flipped, "not those that were written"), (&absurd, "4294967295 KiB")] {
        fs::write(&path, bytes).unwrap();
        let error = try_open().unwrap_err();
        assert!(matches!(&error, OpenError::Corrupt { path: at, .. } if *at == path), "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
    fs::remove_file(&path).unwrap();
    assert!(try_open().unwrap_err().to_string().contains("missing"));
    assert!(!path.exists(), "never made anew for a store that has one");
    fs::write(&path, &good).unwrap();
    try_open().unwrap();
}

/// Where the payload of a block begins in a pack, and its length.
fn payload(pack: &[u8], cid: &Cid) -> (usize, usize) {
    let key = cid.key();
    let at = pack.windows(key.len()).position(|window| window == key).unwrap();
    (at + key.len() + 4, u32::from_le_bytes(pack[at - 4..at].try_into().unwrap()) as usize)
}

#[test]
fn records_that_were_changed_or_exchanged_are_not_served() {
    let chest = Chest::new(Bench::encrypted());
    let mut pack = fs::read(chest.pack()).unwrap();
    let leaf = |i: u32| {
        let bytes = format!("cached {i}: {CONTENT}");
        Cid::of(Codec::Raw, HashKind::Blake3, bytes.as_bytes())
    };
    // The sealed bytes and the tag of one under the header of the other; a tag; the plain block in place of the sealed one.
    let (a, b) = (payload(&pack, &leaf(10)), payload(&pack, &leaf(11)));
    assert_eq!(a.1, b.1);
    let ours = pack[a.0..][..a.1 + 16].to_vec();
    pack.copy_within(b.0..b.0 + b.1 + 16, a.0);
    pack[b.0..][..b.1 + 16].copy_from_slice(&ours);
    let c = payload(&pack, &leaf(12));
    pack[c.0 + c.1 + 15] ^= 1;
    let d = payload(&pack, &leaf(13));
    pack[d.0..][..d.1].copy_from_slice(&chest.from.read(&leaf(13)).unwrap());
    fs::write(chest.pack(), &pack).unwrap();

    let bad: Vec<Cid> = (10..14).map(leaf).collect();
    let mut found = chest.unreadable(&chest.bench.store("store"));
    found.sort();
    let mut expected = bad.clone();
    expected.sort();
    assert_eq!(found, expected);
    let store = chest.bench.store("store");
    let found = scrub(&store);
    assert_eq!((found.bad, found.damaged), (4, vec![(chest.cached, 4)]));
    drop(store);
    // An index that is made anew does not take them on either.
    fs::remove_file(chest.dir().join("index.redb")).unwrap();
    assert_eq!(chest.unreadable(&chest.bench.store("store")).len(), 4);
    let damage = fs::File::open(chest.pack()).unwrap().read_exact_at(&mut [0], 0);
    damage.unwrap();
}

/// Exchanges the values of two rows, as whoever can write to the disk could.
fn exchange(index: &Path, table: TableDefinition<'_, &'static [u8; 33], &'static [u8]>, a: &Cid, b: &Cid) {
    let db = redb::Database::open(index).unwrap();
    let read = |cid: &Cid| {
        let table = db.begin_read().unwrap().open_table(table).unwrap();
        table.get(&cid.key()).unwrap().unwrap().value().to_vec()
    };
    let (of_a, of_b) = (read(a), read(b));
    let txn = db.begin_write().unwrap();
    {
        let mut table = txn.open_table(table).unwrap();
        table.insert(&a.key(), &of_b[..]).unwrap();
        table.insert(&b.key(), &of_a[..]).unwrap();
    }
    txn.commit().unwrap();
}

#[test]
fn values_of_the_index_that_were_exchanged_are_noticed() {
    let chest = Chest::new(Bench::encrypted());
    let index = chest.dir().join("index.redb");
    let leaf = |i: u32| Cid::of(Codec::Raw, HashKind::Blake3, format!("cached {i}: {CONTENT}").as_bytes());
    exchange(&index, BLOCKS, &leaf(10), &leaf(11));
    let store = chest.bench.store("store");
    assert!(store.rebuilt().is_none());
    assert_eq!(chest.unreadable(&store).len(), 2, "as if they were not here");
    let found = scrub(&store);
    assert!(found.index_rebuilt, "every page of the file is sound, and the scrub sees it all the same");
    assert!(chest.unreadable(&store).is_empty());
    assert!(!scrub(&store).index_rebuilt);
    drop(store);

    exchange(&index, ROOTS, &chest.shared, &chest.cached);
    let store = chest.bench.store("store");
    assert!(store.rebuilt().is_some());
    assert_eq!(store.root(&chest.cached).unwrap().unwrap().name, NAME);
    assert!(chest.unreadable(&store).is_empty());
}

#[test]
fn an_index_of_another_store_and_a_plain_one_are_not_taken_on() {
    let (plain, other) = (Chest::new(Bench::new()), Chest::new(Bench::encrypted()));
    let chest = Chest::new(Bench::encrypted());
    for from in [&plain, &other] {
        for name in ["index.redb", "roots", "packs/00000000.pack"] {
            let ours = fs::read(chest.dir().join(name)).unwrap();
            fs::copy(from.dir().join(name), chest.dir().join(name)).unwrap();
            let store = chest.bench.store("store");
            let unreadable = chest.unreadable(&store).len();
            match name {
                // Theirs has the same blocks at the same places; nothing of it opens.
                "packs/00000000.pack" => assert!(unreadable > 50, "{unreadable}"),
                _ => assert_eq!(unreadable, 0, "{name}"),
            }
            assert_eq!(store.rebuilt().is_some(), name == "index.redb", "{name}: {:?}", store.rebuilt());
            assert_eq!(store.root(&chest.cached).unwrap().unwrap().name, NAME);
            drop(store);
            fs::write(chest.dir().join(name), ours).unwrap();
        }
    }
}
