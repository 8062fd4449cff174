//! A process without free file descriptors: errors that can be tried again, nothing reported as damaged, nothing lost.
//! In a test binary of its own, since the limit is the whole process's.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that unwraps fails at the right line")]

use std::fs::{self, File};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use shoal_content::{Cid, Codec, HashKind};
use shoal_store::{Options, ReadError, Stamp, Store, StoreError};

#[test]
fn without_descriptors_nothing_is_lost_and_nothing_is_called_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store"), Options::default()).unwrap();
    let bytes = |n: u8| vec![n; 1000];
    let cid = |n: u8| Cid::of(Codec::Raw, HashKind::Blake3, &bytes(n));
    let base = store.add_base(dir.path()).unwrap();
    for n in 0..10 {
        fs::write(dir.path().join(n.to_string()), bytes(n)).unwrap();
        store.stage_file(base, &n.to_string(), Stamp::default(), &[(cid(n), 0, 1000)], true).unwrap();
    }

    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(64), ..before }).unwrap();
    let mut taken = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        taken.push(file);
    }
    // It cannot even open what it should sync.
    let error = store.commit().unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
    assert!(store.read_only_reason().is_none());
    for n in 0..10 {
        let error = store.read(&cid(n)).unwrap_err();
        assert!(matches!(error, ReadError::Io { .. }), "{error}");
    }
    assert!(store.take_damage().is_empty());

    drop(taken);
    for n in 0..10 {
        assert_eq!(store.read(&cid(n)).unwrap(), bytes(n));
    }
    store.commit().unwrap();
    setrlimit(Resource::Nofile, before).unwrap();
    drop(store);
    let store = Store::open(&dir.path().join("store"), Options::default()).unwrap();
    assert!((0..10).all(|n| store.read(&cid(n)).unwrap() == bytes(n)));
}
