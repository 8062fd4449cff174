//! Loss of power while a passphrase is changed: the store opens with the passphrase of before or with that of after, with
//! the latter once it was acknowledged, and has its blocks in any case.

use std::sync::Arc;

use shoal_content::{Cid, Codec, HashKind};

use super::{FATES, Random, SEED, disk::Model, disk::Recorder};
use crate::{KeyCost, OpenError, Options, Passphrase, Store, rekey::Rekey};

const CHEAP: KeyCost = KeyCost { memory_kib: 8, passes: 1, lanes: 1 };

fn phrase(text: &str) -> Passphrase {
    Passphrase::new(text.as_bytes().to_vec().into()).unwrap()
}

fn options(text: &str) -> Options {
    Options { encrypt: true, passphrase: Some(phrase(text)), key_cost: CHEAP, ..Options::default() }
}

#[test]
fn whatever_a_loss_of_power_leaves_of_a_change_of_passphrase_opens_with_one_of_the_two() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("disk");
    std::fs::create_dir(&root).unwrap();
    let home = root.join("store");
    let cid = Cid::of(Codec::Raw, HashKind::Blake3, b"a block");
    let store = Store::open(&home, options("old")).unwrap();
    store.put(&cid, b"a block").unwrap();
    store.commit().unwrap();
    drop(store);

    let mut model = Model::scan(&root);
    let recorder = Recorder::default();
    let rekey = Rekey::begin_on(&home, Arc::new(recorder.clone())).unwrap();
    rekey.unlock(&phrase("old")).unwrap().change(&phrase("new"), CHEAP).unwrap();
    let log = recorder.log();
    assert!(log.len() >= 5, "made, written, synced, renamed, synced: {log:?}");

    let mut random = Random(SEED);
    let mut opened = [0, 0];
    // Before each change, and after the last one.
    for at in 0..=log.len() {
        for fate in FATES {
            model.crash(fate, &mut random);
            let with = |text| match Store::open(&home, options(text)) {
                Ok(store) => {
                    assert_eq!(store.read(&cid).unwrap(), b"a block"[..]);
                    true
                }
                Err(OpenError::WrongPassphrase { .. }) => false,
                Err(error) => panic!("before change {at} of {log:?}, {fate:?}: {error}"),
            };
            let (old, new) = (with("old"), with("new"));
            assert!(old != new, "before change {at} of {log:?}, {fate:?}: one of them opens it");
            assert!(new || at < log.len(), "it was acknowledged");
            opened[usize::from(new)] += 1;
        }
        if let Some(change) = log.get(at) {
            model.apply(change);
        }
    }
    assert!(opened.iter().all(|n| *n > 0), "{opened:?}");
}
