//! Any set of blocks is a manifest that is consistent in itself, or an error.
//!
//! The input is a sequence of blocks, each behind its length (two bytes, big-endian). In each, the bytes `[1, 0x70 or
//! 0x55, 0x1e, 32]` followed by a byte `n` below the number of blocks before it are a link to the `n`th of those, whatever
//! digest the input has there: a fuzzer cannot find a hash.

#![no_main]

use libfuzzer_sys::fuzz_target;
use shoal_content::{Cid, Codec, EntryKind, HashKind, Walk, WalkLimits};

fuzz_target!(|input: &[u8]| {
    let mut blocks: Vec<Vec<u8>> = Vec::new();
    let mut rest = input;
    while let [high, low, tail @ ..] = rest {
        let len = usize::from(u16::from_be_bytes([*high, *low])).min(tail.len());
        let (block, tail) = tail.split_at(len);
        rest = tail;
        blocks.push(link_up(block, &blocks));
        if blocks.len() == 64 {
            break;
        }
    }
    let Some(root) = blocks.last() else { return };
    let limits = WalkLimits { entries: 1000, extents: 1000, path_bytes: 100_000, ..WalkLimits::default() };
    let mut walk = Walk::new(Cid::of(Codec::DagPb, HashKind::Blake3, root), limits);
    while let Some(cid) = walk.next_needed() {
        let Some(block) = blocks.iter().find(|block| cid.verify(block)) else { return };
        if walk.insert(&cid, block).is_err() {
            return;
        }
    }
    let Ok(manifest) = walk.finish() else { return };
    let mut places = 0;
    for (index, entry) in (0u32..).zip(manifest.entries()) {
        let size = manifest.pieces(index).map(|piece| u64::from(piece.len)).sum::<u64>();
        match entry.kind {
            EntryKind::File { size: claimed, .. } => assert_eq!(size, claimed),
            _ => assert_eq!(size, 0),
        }
        assert_eq!(entry.path.as_str().parse().as_ref(), Ok(&entry.path));
        manifest.select(std::slice::from_ref(&entry.path)).expect("an entry can be selected");
    }
    for leaf in 0..manifest.leaves().len() as u32 {
        assert!(!manifest.places(leaf).is_empty());
        places += manifest.places(leaf).len();
    }
    assert!(places <= 1000);
});

fn link_up(block: &[u8], before: &[Vec<u8>]) -> Vec<u8> {
    let mut block = block.to_vec();
    for at in 0..block.len() {
        if let Some([1, codec @ (0x70 | 0x55), 0x1e, 32, digest @ ..]) = block.get_mut(at..)
            && let Some(digest) = digest.get_mut(..32)
            && let Some(target) = before.get(usize::from(digest[0]))
        {
            let codec = if *codec == 0x55 { Codec::Raw } else { Codec::DagPb };
            digest.copy_from_slice(Cid::of(codec, HashKind::Blake3, target).digest());
        }
    }
    block
}
