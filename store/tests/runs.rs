//! Many blocks at once: reads and writes of what lies side by side come to the same as one block after another.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test that unwraps fails at the right line")]

mod import_support;
#[path = "../../content/tests/support/tar.rs"]
mod tar;

use std::{fs, os::unix::fs::FileExt as _, sync::Arc};

use import_support::{Bench, move_nodes, noise, share};
use shoal_content::{Cid, Leaf, Manifest};
use shoal_store::{Checkout, CheckoutError, CheckoutOptions, Run, Store};
use tar::Tar;

/// A store that shares an archive of many small entries, some of them twice, and one large one.
fn archive(bench: &Bench) -> (Store, Arc<Manifest>) {
    let mut tar = Tar::default();
    for i in 0..300_u32 {
        tar.file(&format!("file {i}"), i, &noise(u64::from(i % 280) + 1, 1100 + (i % 280) as usize * 53));
    }
    tar.file("large", 1, &noise(1000, 5 << 20));
    fs::write(bench.path("a.tar"), tar.end()).unwrap();
    let store = bench.store("from");
    let root = share(&store, &bench.path("a.tar")).unwrap().root;
    let manifest = Arc::new(store.manifest(&root).unwrap());
    (store, manifest)
}

fn cids(manifest: &Manifest) -> Vec<Cid> {
    manifest.leaves().iter().map(|leaf| leaf.cid).collect()
}

/// The bytes of each block, out of the runs that they came in.
fn apart(manifest: &Manifest, runs: &[Run]) -> Vec<Option<Vec<u8>>> {
    let mut lens = manifest.leaves().iter().map(|leaf| leaf.len as usize);
    let mut blocks = Vec::new();
    for run in runs {
        let mut rest = run.bytes.as_deref();
        for len in lens.by_ref().take(run.blocks) {
            blocks.push(rest.map(|bytes| bytes[..len].to_vec()));
            rest = rest.map(|bytes| &bytes[len..]);
        }
        assert!(rest.is_none_or(<[u8]>::is_empty));
    }
    blocks
}

#[test]
fn runs_hold_what_single_reads_give() {
    let bench = Bench::new();
    let (store, manifest) = archive(&bench);
    let runs = store.read_runs(manifest.leaves());
    assert!(runs.len() < manifest.leaves().len() / 10, "{} runs", runs.len());
    let expected: Vec<_> = cids(&manifest).iter().map(|cid| Some(store.read(cid).unwrap().to_vec())).collect();
    assert!(apart(&manifest, &runs) == expected);
    assert!(store.read_runs(&[]).is_empty());
}

#[test]
fn what_is_damaged_or_missing_takes_nothing_with_it() {
    let bench = Bench::new();
    let (store, manifest) = archive(&bench);
    let bad = [103, 200, 201];
    let file = fs::OpenOptions::new().write(true).open(bench.path("a.tar")).unwrap();
    for leaf in bad {
        let place = manifest.places(leaf)[0];
        file.write_all_at(b"not what it was", place.offset + 7).unwrap();
    }
    let mut asked = manifest.leaves().to_vec();
    let never = Cid::of(shoal_content::Codec::Raw, shoal_content::HashKind::Blake3, b"never here");
    asked.insert(0, Leaf { cid: never, len: 10 });
    let runs = store.read_runs(&asked);
    assert_eq!(runs[0], Run { blocks: 1, bytes: None, refused: false });
    let blocks = apart(&manifest, &runs[1..]);
    for (leaf, block) in (0..).zip(&blocks) {
        assert_eq!(block.is_none(), bad.contains(&leaf), "leaf {leaf}");
        assert!(block.as_ref().is_none_or(|block| manifest.leaves()[leaf as usize].cid.verify(block)));
    }
    assert_eq!(store.take_damage().iter().map(|damage| damage.blocks).sum::<u64>(), 3);
}

/// A root may lie about lengths: what it names is served as it says or not at all.
#[test]
fn a_leaf_that_is_not_as_long_as_it_says_is_missing() {
    let bench = Bench::new();
    let (store, manifest) = archive(&bench);
    for (at, more) in [(0, 1), (7, -1), (8, 1 << 19), (299, -500)] {
        let mut asked = manifest.leaves()[..300].to_vec();
        asked[at].len = asked[at].len.saturating_add_signed(more);
        let runs = store.read_runs(&asked);
        let mut leaves = asked.iter();
        for run in runs {
            let here: Vec<&Leaf> = leaves.by_ref().take(run.blocks).collect();
            let lies = here.contains(&&asked[at]);
            assert_eq!(run.bytes.is_none(), lies, "{here:?}");
            let len: usize = here.iter().map(|leaf| leaf.len as usize).sum();
            assert!(run.bytes.is_none_or(|bytes| bytes.len() == len));
        }
    }
}

#[test]
fn runs_are_written_as_single_leaves_are() {
    let bench = Bench::new();
    let (from, _) = archive(&bench);
    let root = from.roots().unwrap()[0].root;
    let to = bench.store("to");
    let manifest = move_nodes(&from, &to, root);
    let begin = |to: &Store| {
        let options = CheckoutOptions { threads: 2, ..CheckoutOptions::default() };
        Checkout::begin(to, Arc::clone(&manifest), &[], &bench.path("out"), "a.tar", options).unwrap()
    };
    let bytes_of = |leaves: &[u32]| -> Vec<u8> {
        leaves.iter().flat_map(|&leaf| from.read(&manifest.leaves()[leaf as usize].cid).unwrap()).collect()
    };
    let checkout = begin(&to);
    let all = checkout.wanted().to_vec();
    // Gaps, repetitions and an order of their own do no harm.
    let (first, rest) = all.split_at(all.len() / 3);
    let odd: Vec<u32> = first.iter().rev().step_by(3).chain(first).copied().collect();
    checkout.write_run(&odd, &bytes_of(&odd)).unwrap();
    assert_eq!(checkout.have(), first);
    for leaf in first {
        to.read(&manifest.leaves()[*leaf as usize].cid).unwrap();
    }
    let short = bytes_of(&rest[..5]);
    let error = checkout.write_run(&rest[..5], &short[..short.len() - 1]).unwrap_err();
    assert!(matches!(error, CheckoutError::WrongLength { .. }), "{error}");
    checkout.commit().unwrap();
    drop(checkout);

    let checkout = begin(&to);
    assert!(checkout.have().starts_with(first), "what was committed is still in place");
    for leaves in rest.chunks(37) {
        checkout.write_run(leaves, &bytes_of(leaves)).unwrap();
    }
    checkout.finish().unwrap();
    assert!(fs::read(bench.path("out/a.tar")).unwrap() == fs::read(bench.path("a.tar")).unwrap());
    for leaf in manifest.leaves() {
        to.read(&leaf.cid).unwrap();
    }
}
