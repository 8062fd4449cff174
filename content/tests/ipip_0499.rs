//! The seven published CIDs of the profile `unixfs-v1-2025` (IPFS specification IPIP-0499, "Test fixtures"). The
//! contents are those of kubo's `test/cli/cid_profiles_test.go`: a ChaCha20 key stream under the SHA-256 of a seed, and
//! directories of one-byte files whose names come from such a stream.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails at the right line")]

use sha2::{Digest, Sha256};
use shoal_content::{
    Block, Cid, Codec, FileBuilder, HashKind, Link, MAX_LINKS, Node, UNIXFS_V1_2025, Walk, WalkLimits, directory,
};

const MIB: usize = 1 << 20;

/// SHA-256 of each chunk of the two fixtures of 1 GiB: 1,024 chunks of 1 MiB, and one of one byte. That the published
/// roots come out proves them; a release build also makes all of the contents, a debug build some (it is slow there).
const MAX_LINKS_LEAVES: &[u8] = include_bytes!("data/ipip-0499-max-links.sha2-256");

/// The ChaCha20 key stream (RFC 8439) with a nonce of zeros, from any block on.
struct KeyStream {
    key: [u32; 8],
}

impl KeyStream {
    fn new(seed: &str) -> Self {
        let digest = Sha256::digest(seed.as_bytes());
        let (words, _) = digest.as_chunks::<4>();
        Self { key: std::array::from_fn(|i| u32::from_le_bytes(words[i])) }
    }

    /// `len` bytes from `offset` on, which is a multiple of 64.
    fn bytes(&self, offset: usize, len: usize) -> Vec<u8> {
        let blocks = (offset / 64) as u32..(offset + len).div_ceil(64) as u32;
        let mut bytes: Vec<u8> = blocks.flat_map(|counter| self.block(counter)).collect();
        bytes.truncate(len);
        bytes
    }

    fn block(&self, counter: u32) -> [u8; 64] {
        let mut start = [0u32; 16];
        start[..4].copy_from_slice(&[0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574]);
        start[4..12].copy_from_slice(&self.key);
        start[12] = counter;
        let mut state = start;
        for _ in 0..10 {
            for [a, b, c, d] in [[0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15]] {
                quarter_round(&mut state, a, b, c, d);
            }
            for [a, b, c, d] in [[0, 5, 10, 15], [1, 6, 11, 12], [2, 7, 8, 13], [3, 4, 9, 14]] {
                quarter_round(&mut state, a, b, c, d);
            }
        }
        let mut out = [0; 64];
        for (i, bytes) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            *bytes = state[i].wrapping_add(start[i]).to_le_bytes();
        }
        out
    }
}

fn quarter_round(s: &mut [u32; 16], a: usize, b: usize, c: usize, d: usize) {
    for (x, y, z, bits) in [(a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)] {
        s[x] = s[x].wrapping_add(s[y]);
        s[z] = (s[z] ^ s[x]).rotate_left(bits);
    }
}

fn add_file(data: &[u8], out: &mut Vec<Block>) -> Link {
    let mut file = FileBuilder::new(&UNIXFS_V1_2025, None);
    let mut rest = data;
    while !rest.is_empty() {
        let (chunk, tail) = rest.split_at(UNIXFS_V1_2025.cut(rest));
        file.leaf(Cid::of(Codec::Raw, HashKind::Sha2_256, chunk), chunk.len() as u32, out);
        rest = tail;
    }
    file.finish(out)
}

fn file_root(data: &[u8]) -> String {
    add_file(data, &mut Vec::new()).cid.to_string()
}

#[test]
fn small_file() {
    assert_eq!(file_root(b"hello world"), "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e");
}

#[test]
fn file_at_and_over_chunk_size() {
    let data = KeyStream::new("chunk-v1-seed").bytes(0, MIB + 1);
    assert_eq!(file_root(&data[..MIB]), "bafkreiacndfy443ter6qr2tmbbdhadvxxheowwf75s6zehscklu6ezxmta");
    assert_eq!(file_root(&data), "bafybeigmix7t42i6jacydtquhet7srwvgpizfg7gjbq7627d35mjomtu64");
}

#[test]
fn file_at_and_over_max_links() {
    let (leaves, _) = MAX_LINKS_LEAVES.as_chunks::<32>();
    let stream = KeyStream::new("v1-2025-seed");
    let step = if cfg!(debug_assertions) { 341 } else { 1 };
    let mut over = FileBuilder::new(&UNIXFS_V1_2025, None);
    let mut at = FileBuilder::new(&UNIXFS_V1_2025, None);
    let mut out = Vec::new();
    for (i, &digest) in leaves.iter().enumerate() {
        let len = if i < 1024 { MIB } else { 1 };
        let cid = Cid::new(Codec::Raw, HashKind::Sha2_256, digest);
        if i % step == 0 || i == 1024 {
            assert!(cid.verify(&stream.bytes(i * MIB, len)), "chunk {i}");
        }
        if i < 1024 {
            at.leaf(cid, len as u32, &mut out);
        }
        over.leaf(cid, len as u32, &mut out);
    }
    let (at, over) = (at.finish(&mut out), over.finish(&mut out));
    assert_eq!(at.cid.to_string(), "bafybeihmf37wcuvtx4hpu7he5zl5qaf2ineo2lqlfrapokkm5zzw7zyhvm");
    assert_eq!(over.cid.to_string(), "bafybeibdsi225ugbkmpbdohnxioyab6jsqrmkts3twhpvfnzp77xtzpyhe");
    assert_eq!((at.size, over.size), (1 << 30, (1 << 30) + 1));
}

/// 4,766 files of one byte: names of 11 characters, the last of `last`.
fn add_directory(last: usize, out: &mut Vec<Block>) -> Link {
    const FILES: usize = 4766;
    const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz01234567890-_";
    let stream = KeyStream::new("hamt-unixfs-v1-2025").bytes(0, FILES * 11 + last);
    let names: String = stream.iter().map(|&byte| ALPHABET[byte as usize % ALPHABET.len()] as char).collect();
    let file = add_file(b"x", out);
    let mut entries = Vec::new();
    for i in 0..FILES {
        let len = if i == FILES - 1 { last } else { 11 };
        entries.push((names[i * 11..i * 11 + len].to_string(), file));
    }
    directory(&UNIXFS_V1_2025, entries, out).unwrap()
}

#[test]
fn directory_at_hamt_threshold() {
    let mut out = Vec::new();
    let root = add_directory(21, &mut out);
    assert_eq!(root.cid.to_string(), "bafybeic3h7rwruealwxkacabdy45jivq2crwz6bufb5ljwupn36gicplx4");
    let block = out.last().unwrap();
    assert_eq!(block.bytes.len(), UNIXFS_V1_2025.hamt_over_bytes);
    let Node::Directory { entries } = Node::decode(&root.cid, &block.bytes).unwrap() else { panic!("not plain") };
    assert!(entries.len() == 4766 && entries.len() <= MAX_LINKS);
}

#[test]
fn directory_over_hamt_threshold() {
    let mut out = Vec::new();
    let root = add_directory(22, &mut out);
    assert_eq!(root.cid.to_string(), "bafybeiegvuterwurhdtkikfhbxcldohmxp566vpjdofhzmnhv6o4freidu");
    let mut walk = Walk::new(root.cid, WalkLimits::default());
    while let Some(cid) = walk.next_needed() {
        let block = out.iter().find(|block| block.cid == cid).unwrap();
        walk.insert(&cid, &block.bytes).unwrap();
    }
    let manifest = walk.finish().unwrap();
    assert_eq!((manifest.file_count(), manifest.total_bytes(), manifest.leaves().len()), (4766, 4766, 1));
    assert_eq!(manifest.places(0).len(), 4766);
    assert!(manifest.nodes().len() > 200, "sharded");
}

#[test]
fn empty_directory_and_empty_file() {
    let empty = directory(&UNIXFS_V1_2025, Vec::new(), &mut Vec::new()).unwrap();
    assert_eq!(empty.cid.to_string(), "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354");
    assert_eq!(file_root(b""), "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku");
}
