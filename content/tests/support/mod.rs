//! Blocks by name, a builder of whole trees, and hand-made nodes such as no honest builder makes.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails at the right line")]
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part of this")]

use std::collections::HashMap;

use shoal_content::{
    Block, Chunking, Cid, Codec, EntryKind, FastCdc, FileBuilder, HashKind, Link, Manifest, Profile, SHOAL_V1, Source,
    Walk, WalkError, WalkLimits, directory, symlink,
};

/// A profile that makes deep DAGs of little content.
pub fn tiny_profile() -> Profile {
    let mut profile = SHOAL_V1;
    profile.chunking = Chunking::FastCdc(FastCdc { min: 64, normal: 256, max: 1024, level: 2 });
    profile.links_per_node = 3;
    profile.hamt_over_bytes = 400;
    profile
}

#[derive(Default)]
pub struct Blocks(pub HashMap<Cid, Vec<u8>>);

impl Blocks {
    pub fn put(&mut self, codec: Codec, bytes: &[u8]) -> Cid {
        let cid = Cid::of(codec, HashKind::Blake3, bytes);
        self.0.insert(cid, bytes.to_vec());
        cid
    }

    pub fn take(&mut self, out: Vec<Block>) {
        for block in out {
            assert!(block.cid.verify(&block.bytes));
            self.0.insert(block.cid, block.bytes.to_vec());
        }
    }

    pub fn file(&mut self, profile: &Profile, data: &[u8], executable: bool) -> Link {
        let mut out = Vec::new();
        let mut file = FileBuilder::new(profile, executable.then_some(0o700));
        let mut rest = data;
        while !rest.is_empty() {
            let (chunk, tail) = rest.split_at(profile.cut(rest));
            let cid = self.put(Codec::Raw, chunk);
            file.leaf(cid, chunk.len() as u32, &mut out);
            rest = tail;
        }
        let link = file.finish(&mut out);
        self.take(out);
        link
    }

    pub fn directory(&mut self, profile: &Profile, entries: Vec<(String, Link)>) -> Link {
        let mut out = Vec::new();
        let link = directory(profile, entries, &mut out).unwrap();
        self.take(out);
        link
    }

    pub fn symlink(&mut self, profile: &Profile, target: &str) -> Link {
        let (link, block) = symlink(profile, target).unwrap();
        self.take(vec![block]);
        link
    }

    pub fn walk(&self, root: Cid) -> Result<Manifest, WalkError> {
        self.walk_within(root, WalkLimits::default())
    }

    pub fn walk_within(&self, root: Cid, limits: WalkLimits) -> Result<Manifest, WalkError> {
        let mut walk = Walk::new(root, limits);
        while let Some(cid) = walk.next_needed() {
            walk.insert(&cid, &self.0[&cid])?;
        }
        walk.finish()
    }

    /// The bytes of a file of `manifest`.
    pub fn read(&self, manifest: &Manifest, entry: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for piece in manifest.pieces(entry) {
            assert_eq!(piece.offset, bytes.len() as u64);
            let before = bytes.len();
            match piece.source {
                Source::Leaf(leaf) => bytes.extend(&self.0[&manifest.leaves()[leaf as usize].cid]),
                Source::Inline(inline) => bytes.extend(inline),
            }
            assert_eq!(bytes.len() - before, piece.len as usize);
        }
        bytes
    }
}

/// What must hold of every manifest, whatever it was made from.
pub fn check_manifest(manifest: &Manifest) {
    let mut seen = Vec::new();
    let mut total = 0;
    let mut places: Vec<Vec<(u32, u64)>> = vec![Vec::new(); manifest.leaves().len()];
    for (index, entry) in (0u32..).zip(manifest.entries()) {
        let EntryKind::File { size, .. } = entry.kind else {
            assert_eq!(manifest.pieces(index).count(), 0);
            continue;
        };
        let mut end = 0;
        for piece in manifest.pieces(index) {
            assert_eq!(piece.offset, end);
            assert!(piece.len > 0);
            end += u64::from(piece.len);
            if let Source::Leaf(leaf) = piece.source {
                places[leaf as usize].push((index, piece.offset));
                if leaf as usize == seen.len() {
                    seen.push(leaf);
                }
                assert!((leaf as usize) < seen.len(), "leaves are numbered as they first occur");
            }
        }
        assert_eq!(end, size);
        total += size;
    }
    assert_eq!(total, manifest.total_bytes());
    assert_eq!(seen.len(), manifest.leaves().len());
    for (leaf, places) in (0u32..).zip(&places) {
        let told: Vec<_> = manifest.places(leaf).iter().map(|place| (place.entry, place.offset)).collect();
        assert_eq!(&told, places);
        assert_eq!(manifest.leaf_index(&manifest.leaves()[leaf as usize].cid), Some(leaf));
    }
    assert!(manifest.places(seen.len() as u32).is_empty());
    assert!(manifest.places(u32::MAX).is_empty());
}

/// Appends a protobuf field: a number, or bytes.
pub fn number(out: &mut Vec<u8>, field: u8, mut value: u64) {
    out.push(field << 3);
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub fn bytes(out: &mut Vec<u8>, field: u8, value: &[u8]) {
    let mut len = Vec::new();
    number(&mut len, 0, value.len() as u64);
    out.push(field << 3 | 2);
    out.extend(&len[1..]);
    out.extend(value);
}

/// A dag-pb block.
pub fn node(links: &[(&str, Cid, Option<u64>)], data: &[u8]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, cid, dag_size) in links {
        let mut link = Vec::new();
        bytes(&mut link, 1, &cid.to_bytes());
        bytes(&mut link, 2, name.as_bytes());
        if let Some(size) = dag_size {
            number(&mut link, 3, *size);
        }
        bytes(&mut block, 2, &link);
    }
    bytes(&mut block, 1, data);
    block
}

pub const DIRECTORY: &[u8] = &[0x08, 1];

/// UnixFS data of a file node, with its size left out.
pub fn file_data(inline: &[u8], sizes: &[u64]) -> Vec<u8> {
    let mut data = Vec::new();
    number(&mut data, 1, 2);
    if !inline.is_empty() {
        bytes(&mut data, 2, inline);
    }
    sizes.iter().for_each(|&size| number(&mut data, 4, size));
    data
}

/// UnixFS data of a HAMT shard, with an empty bitfield.
pub fn shard_data(fanout: u64) -> Vec<u8> {
    let mut data = Vec::new();
    number(&mut data, 1, 5);
    number(&mut data, 5, 0x22);
    number(&mut data, 6, fanout);
    data
}

/// A file node over `parts`.
pub fn file_node(inline: &[u8], parts: &[(Cid, u64)]) -> Vec<u8> {
    let links: Vec<_> = parts.iter().map(|&(cid, size)| ("", cid, Some(size))).collect();
    let sizes: Vec<_> = parts.iter().map(|&(_, size)| size).collect();
    node(&links, &file_data(inline, &sizes))
}
