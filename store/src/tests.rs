//! The store against adversaries: flipped bytes, changed and vanished files, failing disks, other processes, strangers'
//! directories. What needs a process of its own (kill -9) is in `tests/kill.rs`.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use shoal_content::{Cid, Codec, HashKind};
use tempfile::TempDir;

use crate::{
    DamageKind, KeyCost, MAX_BLOCK_BYTES, ManifestError, OpenError, Options, Passphrase, ReadError, RootKind,
    RootRecord, Stamp, Store, StoreError, disk::double::FaultyDisk,
};

fn raw(bytes: &[u8]) -> Cid {
    Cid::of(Codec::Raw, HashKind::Blake3, bytes)
}

/// Bytes that differ for every `seed`.
fn block(seed: u32, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

struct Fixture {
    dir: TempDir,
    disk: FaultyDisk,
    encrypted: bool,
}

impl Fixture {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), disk: FaultyDisk::default(), encrypted: false }
    }

    /// The same for an encrypted store, whose passphrase is cheap to try.
    fn encrypted() -> Self {
        Self { encrypted: true, ..Self::new() }
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn open(&self) -> Store {
        self.try_open().unwrap()
    }

    fn try_open(&self) -> Result<Store, OpenError> {
        let passphrase = Passphrase::new(b"correct horse".to_vec().into()).filter(|_| self.encrypted);
        let key_cost = KeyCost { memory_kib: 8, passes: 1, lanes: 1 };
        let options = Options { pack_bytes: 1 << 20, passphrase, key_cost, ..Options::default() };
        Store::open_on(&self.home(), &options, Arc::new(self.disk.clone()))
    }

    /// A file of `chunks` blocks of 1,000 bytes, staged.
    fn share(&self, store: &Store, name: &str, chunks: u32) -> (PathBuf, Vec<Cid>) {
        let path = self.dir.path().join(name);
        let blocks: Vec<_> = (0..chunks).map(|i| block(i, 1000)).collect();
        fs::write(&path, blocks.concat()).unwrap();
        let base = store.add_base(&path).unwrap();
        let refs: Vec<_> = blocks.iter().enumerate().map(|(i, b)| (raw(b), 1000 * i as u64, 1000)).collect();
        store.stage_file(base, "", Stamp { size: 1000 * u64::from(chunks), mtime_ns: -5 }, &refs, true).unwrap();
        (path, refs.into_iter().map(|(cid, ..)| cid).collect())
    }
}

fn record(root: Cid) -> RootRecord {
    RootRecord {
        root,
        name: "thing".into(),
        kind: RootKind::Shared,
        base: None,
        path: "/thing".into(),
        bytes: 1,
        files: 1,
        complete: true,
        pinned: false,
        provide: true,
        created_unix: 1_700_000_000,
        selection: None,
        resume: None,
        expires_unix: None,
        pinned_until_unix: None,
    }
}

#[test]
fn what_is_committed_is_there_after_reopening() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let node = block(99, 5000);
    store.put(&raw(&node), &node).unwrap();
    let (path, cids) = fixture.share(&store, "file", 10);
    let check = |store: &Store| {
        assert_eq!(store.read(&raw(&node)).unwrap(), node);
        assert_eq!(store.has_many(&cids).unwrap(), [true; 10]);
        let mut buf = vec![1; 7];
        for (i, cid) in cids.iter().enumerate() {
            store.read_into(cid, &mut buf).unwrap();
            assert_eq!(buf, block(i as u32, 1000));
        }
        assert!(!store.has(&raw(b"other")).unwrap());
        assert!(matches!(store.read(&raw(b"other")), Err(ReadError::Missing(_))));
        let base = store.add_base(&path).unwrap();
        assert_eq!(store.file_stamp(base, "").unwrap(), Some(Stamp { size: 10_000, mtime_ns: -5 }));
        assert_eq!(store.file_stamp(base, "other").unwrap(), None);
    };
    check(&store);
    store.put_root(record(cids[0])).unwrap();
    check(&store);
    drop(store);
    let store = fixture.open();
    check(&store);
    assert_eq!(store.roots().unwrap(), [record(cids[0])]);
    let stats = store.stats().unwrap();
    assert_eq!((stats.blocks, stats.staged_blocks, stats.files, stats.roots, stats.packs), (11, 0, 1, 1, 1));
}

#[test]
fn the_empty_block_is_always_here() {
    let store = Fixture::new();
    let store = store.open();
    assert!(store.has(&raw(b"")).unwrap());
    assert!(store.read(&raw(b"")).unwrap().is_empty());
    assert_eq!(store.has_many(&[raw(b""), raw(b"x")]).unwrap(), [true, false]);
}

#[test]
fn syncs_come_before_the_index_mentions_anything() {
    let fixture = Fixture::new();
    let store = fixture.open();
    store.put(&raw(b"node"), b"node").unwrap();
    fixture.share(&store, "file", 3);
    fixture.disk.take_log();
    store.commit().unwrap();
    let log = fixture.disk.take_log();
    let at = |what: &str| log.iter().position(|l| l == what).unwrap_or_else(|| panic!("no {what} in {log:?}"));
    let index = at("write index.redb");
    assert!(at("sync file") < index && at("sync 00000000.pack") < index && at("sync_dir packs") < index);
    assert_eq!(log.last().unwrap(), "sync index.redb");
    store.commit().unwrap();
    assert!(fixture.disk.take_log().is_empty(), "nothing staged, nothing done");
}

#[test]
fn many_dirty_files_are_one_sync_of_their_file_system() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let base = store.add_base(fixture.dir.path()).unwrap();
    fixture.disk.take_log();
    for i in 0..100 {
        fs::write(fixture.dir.path().join(format!("f{i}")), block(i, 10)).unwrap();
        store.stage_file(base, &format!("f{i}"), Stamp::default(), &[(raw(&block(i, 10)), 0, 10)], true).unwrap();
    }
    store.commit().unwrap();
    let log = fixture.disk.take_log();
    assert_eq!(log.iter().filter(|l| l.starts_with("sync_fs")).count(), 1);
    assert!(!log.iter().any(|l| l.starts_with("sync f")));
}

#[test]
fn a_flipped_byte_in_a_pack_is_never_served() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let (a, b) = (block(1, 3000), block(2, 3000));
    store.put(&raw(&a), &a).unwrap();
    store.put(&raw(&b), &b).unwrap();
    store.commit().unwrap();
    let pack = fixture.home().join("packs/00000000.pack");
    let file = fs::File::options().write(true).open(&pack).unwrap();
    file.write_all_at(&[a[100] ^ 1], 16 + 45 + 100).unwrap();
    let Err(ReadError::Damaged { cid, at }) = store.read(&raw(&a)) else { panic!("served") };
    assert_eq!((cid, at.path.as_path(), at.in_pack, at.offset), (raw(&a), pack.as_path(), true, 61));
    assert_eq!(at.kind, DamageKind::Mismatch);
    assert!(!store.has(&raw(&a)).unwrap());
    assert_eq!(store.read(&raw(&b)).unwrap(), b);
    assert_eq!(store.take_damage().len(), 1);
    // It can be stored again, and then both survive.
    store.put(&raw(&a), &a).unwrap();
    store.commit().unwrap();
    drop(store);
    let store = fixture.open();
    assert_eq!(store.read(&raw(&a)).unwrap(), a);
}

#[test]
fn putting_a_block_again_writes_only_what_is_damaged() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let a = block(1, 3000);
    store.put(&raw(&a), &a).unwrap();
    store.commit().unwrap();
    let before = store.stats().unwrap().pack_bytes;
    store.put(&raw(&a), &a).unwrap();
    assert_eq!(store.stats().unwrap().pack_bytes, before);
    let file = fs::File::options().write(true).open(fixture.home().join("packs/00000000.pack")).unwrap();
    file.write_all_at(&[a[0] ^ 1], 61).unwrap();
    store.put(&raw(&a), &a).unwrap();
    assert!(store.stats().unwrap().pack_bytes > before);
    assert_eq!(store.read(&raw(&a)).unwrap(), a);
}

#[test]
fn a_changed_file_loses_its_changed_blocks_only() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let (path, cids) = fixture.share(&store, "file", 10);
    store.commit().unwrap();
    assert!(store.read(&cids[0]).is_ok(), "a handle is open");
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"edited", 4500).unwrap();
    file.set_len(8500).unwrap();
    let bad: Vec<_> = cids.iter().filter(|cid| store.read(cid).is_err()).copied().collect();
    assert_eq!(bad, [cids[4], cids[8], cids[9]]);
    assert!(bad.iter().all(|cid| !store.has(cid).unwrap()));
    let damage = store.take_damage();
    assert_eq!(damage.len(), 1);
    assert_eq!((damage[0].path.as_path(), damage[0].blocks), (path.as_path(), 3));
    assert_eq!((damage[0].kind, damage[0].offset), (DamageKind::Mismatch, 4000));
    store.commit().unwrap();
    drop(store);
    let store = fixture.open();
    assert_eq!(store.has_many(&cids).unwrap().iter().filter(|has| !**has).count(), 3);
}

#[test]
fn a_replaced_or_deleted_file_is_noticed_and_another_copy_serves() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let (path, cids) = fixture.share(&store, "file", 3);
    let (copy, _) = fixture.share(&store, "copy", 3);
    store.commit().unwrap();
    for cid in &cids {
        store.read(cid).unwrap();
    }
    fs::remove_file(&copy).unwrap();
    for (i, cid) in cids.iter().enumerate() {
        assert_eq!(store.read(cid).unwrap(), block(i as u32, 1000));
    }
    let damage = store.take_damage();
    assert_eq!((damage[0].path.as_path(), damage[0].kind), (copy.as_path(), DamageKind::Vanished));
    // Something that would block or make no sense takes the place of the last copy.
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(matches!(store.read(&cids[0]), Err(ReadError::Damaged { .. })));
    fs::remove_dir(&path).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert!(matches!(store.read(&cids[1]), Err(ReadError::Damaged { .. })), "a FIFO must not block the reader");
    assert!(matches!(store.read(&cids[1]), Err(ReadError::Missing(_))));
}

#[test]
fn a_file_replaced_by_one_with_the_same_bytes_goes_on_serving() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let (path, cids) = fixture.share(&store, "file", 3);
    store.read(&cids[0]).unwrap();
    let other = fixture.dir.path().join("other");
    fs::copy(&path, &other).unwrap();
    fs::rename(&other, &path).unwrap();
    store.read(&cids[1]).unwrap();
    assert!(store.take_damage().is_empty());
}

#[test]
fn bases_move_and_go() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let (path, cids) = fixture.share(&store, "file", 3);
    let base = store.add_base(&path).unwrap();
    store.commit().unwrap();
    let moved = fixture.dir.path().join("moved");
    fs::rename(&path, &moved).unwrap();
    store.move_base(base, &moved).unwrap();
    assert_eq!(store.add_base(&moved).unwrap(), base);
    store.commit().unwrap();
    drop(store);
    let store = fixture.open();
    assert_eq!(store.base_path(base).unwrap(), moved);
    store.read(&cids[0]).unwrap();
    store.remove_base(base).unwrap();
    assert!(matches!(store.read(&cids[0]), Err(ReadError::Missing(_))));
    assert!(store.take_damage().is_empty(), "the user knows");
    assert!(matches!(store.stage_file(base, "", Stamp::default(), &[], false), Err(StoreError::UnknownBase(_))));
    assert!(matches!(store.add_base(Path::new("relative")), Err(StoreError::NotAbsolute(_))));
    let again = store.add_base(&moved).unwrap();
    assert_ne!(again, base, "numbers are never given twice");
    store.commit().unwrap();
    drop(store);
    assert_eq!(fixture.open().add_base(&moved).unwrap(), again);
}

#[test]
fn a_second_opener_is_told_who_has_it() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let clone = store.clone();
    let Err(OpenError::Locked { dir, pid }) = fixture.try_open() else { panic!("opened twice") };
    assert_eq!((dir, pid), (fixture.home(), Some(std::process::id())));
    drop(store);
    assert!(fixture.try_open().is_err(), "a clone still has it");
    drop(clone);
    fixture.open();
}

#[test]
fn what_is_not_understood_is_not_touched() {
    let fixture = Fixture::new();
    drop(fixture.open());
    let format = fixture.home().join("format");
    fs::write(&format, "3\n").unwrap();
    assert!(matches!(fixture.try_open(), Err(OpenError::NewerFormat { found: 3, known: 2, .. })));
    fs::write(&format, "what\n").unwrap();
    assert!(matches!(fixture.try_open(), Err(OpenError::Corrupt { .. })));
    fs::write(&format, "1\n").unwrap();
    let index = fixture.home().join("index.redb");
    let good = fs::read(&index).unwrap();
    // Without its second half it cannot be made anew.
    let roots = fixture.home().join("roots");
    let second = fs::read(&roots).unwrap();
    fs::remove_file(&roots).unwrap();
    for bad in [&b""[..], b"short", &[0; 4096], &good[..good.len() / 2]] {
        fs::write(&index, bad).unwrap();
        let error = fixture.try_open().unwrap_err();
        assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
        assert!(error.to_string().contains("index.redb"), "{error}");
    }
    fs::remove_file(&index).unwrap();
    assert!(matches!(fixture.try_open(), Err(OpenError::Corrupt { .. })));
    assert!(!index.exists(), "never recreated silently");
    fs::write(&roots, &second).unwrap();
    assert!(fixture.open().rebuilt().is_some_and(|why| why.contains("missing")));
    fs::write(&index, &good).unwrap();
    fixture.open();
}

#[test]
fn a_torn_tail_is_cut_and_whole_records_are_kept() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let blocks: Vec<_> = (0..6).map(|i| block(i, 2000)).collect();
    for b in &blocks[..3] {
        store.put(&raw(b), b).unwrap();
    }
    store.commit().unwrap();
    for b in &blocks[3..] {
        store.put(&raw(b), b).unwrap();
    }
    drop(store);
    let pack = fixture.home().join("packs/00000000.pack");
    let len = fs::metadata(&pack).unwrap().len();
    fs::File::options().write(true).open(&pack).unwrap().set_len(len - 10).unwrap();
    let store = fixture.open();
    let there: Vec<_> = blocks.iter().map(|b| store.has(&raw(b)).unwrap()).collect();
    assert_eq!(there, [true, true, true, true, true, false]);
    assert_eq!(fs::metadata(&pack).unwrap().len(), len - 2045);
    store.put(&raw(&blocks[5]), &blocks[5]).unwrap();
    store.commit().unwrap();
    drop(store);
    let store = fixture.open();
    for b in &blocks {
        assert_eq!(store.read(&raw(b)).unwrap(), *b);
    }
}

#[test]
fn a_pack_that_was_cut_or_lost_costs_only_what_it_held() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let (a, b) = (block(1, 2000), block(2, 2000));
    store.put(&raw(&a), &a).unwrap();
    store.commit().unwrap();
    drop(store);
    let pack = fixture.home().join("packs/00000000.pack");
    fs::File::options().write(true).open(&pack).unwrap().set_len(1000).unwrap();
    let store = fixture.open();
    store.put(&raw(&b), &b).unwrap();
    store.commit().unwrap();
    assert!(matches!(store.read(&raw(&a)), Err(ReadError::Damaged { at, .. }) if at.kind == DamageKind::Short));
    drop(store);
    fs::remove_file(&pack).unwrap();
    let store = fixture.open();
    assert_eq!(store.read(&raw(&b)).unwrap(), b);
}

#[test]
fn packs_roll() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let blocks: Vec<_> = (0..10).map(|i| block(i, 400_000)).collect();
    for b in &blocks {
        store.put(&raw(b), b).unwrap();
    }
    store.commit().unwrap();
    drop(store);
    let store = fixture.open();
    assert_eq!(store.stats().unwrap().packs, 5);
    for b in &blocks {
        assert_eq!(store.read(&raw(b)).unwrap(), *b);
    }
    let big = vec![0; MAX_BLOCK_BYTES + 1];
    assert!(matches!(store.put(&raw(&big), &big), Err(StoreError::TooLarge { .. })));
}

#[test]
fn after_a_failed_sync_nothing_is_promised_and_reads_go_on() {
    let failures = [("sync", ".pack"), ("sync", "file"), ("sync", "index.redb"), ("write", "index.redb")];
    for (i, (op, suffix)) in failures.into_iter().cycle().take(2 * failures.len()).enumerate() {
        let fixture = if i < failures.len() { Fixture::new() } else { Fixture::encrypted() };
        let store = fixture.open();
        let (old, new) = (block(1, 100), block(2, 100));
        store.put(&raw(&old), &old).unwrap();
        store.put_root(record(raw(&old))).unwrap();
        store.put(&raw(&new), &new).unwrap();
        let (_, cids) = fixture.share(&store, "file", 3);
        fixture.disk.fail(op, suffix);
        let error = store.commit().unwrap_err();
        assert!(matches!(error, StoreError::ReadOnly { .. }), "{op} {suffix}: {error}");
        assert!(error.to_string().contains(suffix), "{error}");
        // The disk works again, but who knows what it dropped.
        fixture.disk.heal();
        assert!(matches!(store.commit(), Err(StoreError::ReadOnly { .. })));
        assert!(matches!(store.put(&raw(b"x"), b"x"), Err(StoreError::ReadOnly { .. })));
        assert!(matches!(store.put_root(record(raw(&new))), Err(StoreError::ReadOnly { .. })));
        assert!(store.read_only_reason().is_some());
        assert_eq!(store.read(&raw(&old)).unwrap(), old, "{op} {suffix}");
        assert_eq!(store.read(&raw(&new)).unwrap(), new, "{op} {suffix}");
        assert!(store.read(&cids[2]).is_ok());
        assert_eq!(store.roots().unwrap().len(), 1);
        drop(store);
        let store = fixture.open();
        assert_eq!(store.read(&raw(&old)).unwrap(), old, "{op} {suffix}");
        assert_eq!(store.roots().unwrap().len(), 1);
        store.put(&raw(&new), &new).unwrap();
        store.commit().unwrap();
    }
}

/// Whatever finds no space: nothing is promised, everything can be read, and it goes on when there is space again.
#[test]
fn a_full_disk_is_waited_out() {
    for (i, suffix) in [".pack", "index.redb", "", ".pack", "index.redb", ""].into_iter().enumerate() {
        let fixture = if i < 3 { Fixture::new() } else { Fixture::encrypted() };
        let store = fixture.open();
        let (old, new, late) = (block(1, 100), block(2, 100), block(3, 100));
        store.put(&raw(&old), &old).unwrap();
        store.put_root(record(raw(&old))).unwrap();
        if suffix == "index.redb" {
            store.put(&raw(&new), &new).unwrap();
        }
        let (_, cids) = fixture.share(&store, "file", 3);
        fixture.disk.fill(suffix);
        for _ in 0..3 {
            let error = match suffix {
                ".pack" => store.put(&raw(&new), &new).unwrap_err(),
                _ => store.put_root(record(raw(&new))).unwrap_err(),
            };
            assert!(matches!(error, StoreError::Full { .. }), "{suffix}: {error}");
            assert!(error.to_string().contains("free some space"), "{error}");
            assert_eq!(store.read(&raw(&old)).unwrap(), old, "{suffix}");
            assert!(cids.iter().all(|cid| store.read(cid).is_ok()), "{suffix}");
            assert!(store.read_only_reason().is_none());
        }
        fixture.disk.heal();
        store.put(&raw(&new), &new).unwrap();
        store.put(&raw(&late), &late).unwrap();
        store.put_root(record(raw(&late))).unwrap();
        drop(store);
        let store = fixture.open();
        for block in [&old, &new, &late] {
            assert_eq!(store.read(&raw(block)).unwrap(), *block, "{suffix}");
        }
        assert!(cids.iter().all(|cid| store.read(cid).is_ok()), "{suffix}");
        assert!(store.root(&raw(&late)).unwrap().is_some());
    }
}

/// Before the store is there, nothing is lost: it is made when the disk works again, with another key.
#[test]
fn a_key_that_cannot_be_written_makes_no_store() {
    for (op, suffix) in [("write", "key.new"), ("sync", "key.new"), ("rename", "key.new")] {
        let fixture = Fixture::encrypted();
        fixture.disk.fail(op, suffix);
        let error = fixture.try_open().unwrap_err();
        assert!(matches!(&error, OpenError::Io { path, .. } if path.ends_with("key")), "{op}: {error}");
        assert!(!fixture.home().join("format").exists(), "{op}");
        fixture.disk.heal();
        let store = fixture.open();
        store.put(&raw(b"x"), b"x").unwrap();
        store.commit().unwrap();
        drop(store);
        assert_eq!(fixture.open().read(&raw(b"x")).unwrap(), &b"x"[..], "{op}");
    }
}

#[test]
fn a_failed_pack_write_promises_nothing_and_may_be_tried_again() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let (a, b) = (block(1, 100), block(2, 300));
    store.put(&raw(&a), &a).unwrap();
    fixture.disk.fail("write", ".pack");
    assert!(matches!(store.put(&raw(&b), &b), Err(StoreError::Io { .. })));
    assert!(!store.has(&raw(&b)).unwrap());
    fixture.disk.heal();
    store.put(&raw(&b), &b).unwrap();
    store.commit().unwrap();
    drop(store);
    let store = fixture.open();
    assert_eq!((store.read(&raw(&a)).unwrap(), store.read(&raw(&b)).unwrap()), (a.into(), b.into()));
}

#[test]
fn roots_change_and_go() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let (a, b) = (raw(b"a"), raw(b"b"));
    store.put_root(record(a)).unwrap();
    store.put_root(record(b)).unwrap();
    assert!(store.set_pinned(&a, true).unwrap());
    assert!(!store.set_pinned(&raw(b"c"), true).unwrap());
    assert!(store.update_root(&a, |r| r.name = "other".into()).unwrap());
    assert!(store.remove_root(&b).unwrap());
    assert!(!store.remove_root(&b).unwrap());
    drop(store);
    let store = fixture.open();
    let want = RootRecord { pinned: true, name: "other".into(), ..record(a) };
    assert_eq!(store.root(&a).unwrap(), Some(want.clone()));
    assert_eq!(store.root(&b).unwrap(), None);
    assert_eq!(store.roots().unwrap(), [want]);
}

#[test]
fn a_manifest_needs_its_nodes() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let root = Cid::of(Codec::DagPb, HashKind::Blake3, b"never a node");
    assert!(matches!(store.manifest(&root), Err(ManifestError::MissingNode(cid)) if cid == root));
    store.put(&root, b"never a node").unwrap();
    assert!(matches!(store.manifest(&root), Err(ManifestError::Malformed { .. })));
}

#[test]
fn what_is_staged_is_bounded() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let base = store.add_base(Path::new("/nowhere")).unwrap();
    let refs: Vec<_> = (0..200_000u32).map(|i| (raw(&i.to_le_bytes()), u64::from(i) * 4, 4)).collect();
    store.stage_file(base, "big", Stamp::default(), &refs, false).unwrap();
    let stats = store.stats().unwrap();
    assert!(stats.blocks > 0, "committed by itself");
    assert!(stats.staged_blocks < 200_000);
    assert!(store.has(&refs[0].0).unwrap() && store.has(&refs[199_999].0).unwrap());
    store.commit().unwrap();
    let stats = store.stats().unwrap();
    assert_eq!((stats.blocks, stats.staged_blocks), (200_000, 0));
    // The index gives back on closing what its commits left free.
    drop(store);
    let index_bytes = fixture.open().stats().unwrap().index_bytes;
    assert!(index_bytes <= 150 * 200_000, "{} bytes a chunk", index_bytes / 200_000);
}

/// Files staged by the tens of thousands, each under its own name, come back under their own names.
#[test]
fn many_small_files_keep_their_names() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let base = store.add_base(Path::new("/nowhere")).unwrap();
    let name = |i: u64| format!("dir{}/sub/file{i}", i / 16);
    for i in 0..20_000u64 {
        let stamp = Stamp { size: i, mtime_ns: -(i as i64) };
        store.stage_file(base, &name(i), stamp, &[(raw(&i.to_le_bytes()), 0, 8)], false).unwrap();
        if i == 10_000 {
            store.commit().unwrap();
        }
    }
    store.commit().unwrap();
    drop(store);
    let store = fixture.open();
    for i in (0..20_000).step_by(7) {
        let want = Stamp { size: i, mtime_ns: -(i as i64) };
        assert_eq!(store.file_stamp(base, &name(i)).unwrap(), Some(want));
    }
    assert_eq!(store.stats().unwrap().files, 20_000);
    let index_bytes = store.stats().unwrap().index_bytes;
    assert!(index_bytes <= 150 * 20_000 + (2 << 20), "{} bytes a chunk", index_bytes / 20_000);
}

/// Staging into the same file commit after commit, as a fetch does, keeps one file.
#[test]
fn a_file_staged_again_is_one_file() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let path = fixture.dir.path().join("file");
    fs::write(&path, [block(0, 1000), block(1, 1000)].concat()).unwrap();
    let base = store.add_base(fixture.dir.path()).unwrap();
    for i in 0..2u32 {
        let stamp = Stamp { size: 2000, mtime_ns: i.into() };
        store.stage_file(base, "file", stamp, &[(raw(&block(i, 1000)), u64::from(i) * 1000, 1000)], true).unwrap();
        store.commit().unwrap();
    }
    assert_eq!(store.stats().unwrap().files, 1);
    assert_eq!(store.file_stamp(base, "file").unwrap().unwrap().mtime_ns, 1);
    assert!((0..2).all(|i| store.read(&raw(&block(i, 1000))).unwrap() == block(i, 1000)));
}

/// A commit that cannot even open what it should sync changes nothing, and the next one has it all.
#[test]
fn a_commit_that_cannot_begin_is_tried_again() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let (path, cids) = fixture.share(&store, "file", 3);
    let aside = fixture.dir.path().join("aside");
    fs::rename(&path, &aside).unwrap();
    // A loop: an obstacle even to root.
    std::os::unix::fs::symlink("file", &path).unwrap();
    let error = store.commit().unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
    assert!(store.read_only_reason().is_none());
    assert!(store.has(&cids[0]).unwrap());
    fs::remove_file(&path).unwrap();
    fs::rename(&aside, &path).unwrap();
    store.commit().unwrap();
    drop(store);
    let store = fixture.open();
    assert!(cids.iter().all(|cid| store.read(cid).is_ok()));
}

/// Readers and stagers at full speed beside commits: nobody ever misses what was staged before.
#[test]
fn readers_never_miss_anything_during_commits() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for writer in 0..2u32 {
            let store = &store;
            let done = &done;
            scope.spawn(move || {
                let mut mine = Vec::new();
                for i in 0..300u32 {
                    let bytes = block(writer << 16 | i, 64 + i as usize);
                    store.put(&raw(&bytes), &bytes).unwrap();
                    mine.push(raw(&bytes));
                    let probe = mine[(i * 7) as usize % mine.len()];
                    store.read(&probe).unwrap();
                    if i % 50 == 0 {
                        assert!(store.has_many(&mine).unwrap().into_iter().all(|has| has));
                    }
                }
                done.store(true, Ordering::Relaxed);
            });
        }
        while !done.load(Ordering::Relaxed) {
            store.commit().unwrap();
        }
    });
    assert!(store.take_damage().is_empty());
}
