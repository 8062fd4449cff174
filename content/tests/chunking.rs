//! Cutting: the promises of `Profile::cut`, segments cut on their own and stitched, and cut points that never change.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails at the right line")]

mod support;

use std::convert::Infallible;

use proptest::prelude::*;
use shoal_content::{Chunking, Cid, Codec, HashKind, Profile, SHOAL_V1, Stitch, Stitched, UNIXFS_V1_2025};
use support::{Blocks, tiny_profile};

/// Pseudo-random bytes.
fn random(seed: &[u8], len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(seed).finalize_xof().fill(&mut bytes);
    bytes
}

/// Offsets and lengths.
type Chunks = Vec<(u64, u32)>;

fn sequential(profile: &Profile, data: &[u8]) -> Chunks {
    let mut chunks = Vec::new();
    let mut at = 0;
    while at < data.len() {
        // A reader's window: as much as was promised, and no more.
        let end = data.len().min(at + profile.max_chunk());
        let len = profile.cut(&data[at..end]);
        chunks.push((at as u64, len as u32));
        at += len;
    }
    chunks
}

/// Chunks by segments, and how many of them the segments had guessed.
fn stitched(profile: &Profile, data: &[u8], segment: usize) -> (Chunks, usize) {
    let mut stitch = Stitch::new();
    let (mut chunks, mut kept) = (Vec::new(), 0);
    for (i, part) in data.chunks(segment).enumerate() {
        let start = i * segment;
        let window = &data[start..data.len().min(start + segment + profile.max_chunk())];
        let lens = profile.cut_segment(window, part.len());
        let offsets: Vec<u64> = lens
            .iter()
            .scan(start as u64, |at, &len| {
                *at += u64::from(len);
                Some(*at - u64::from(len))
            })
            .collect();
        let recut = |offset: u64| Ok::<_, Infallible>(profile.cut(&data[offset as usize..]) as u32);
        let Ok(()) = stitch.join(start as u64, part.len() as u64, &lens, recut, |chunk| match chunk {
            Stitched::Kept(index) => {
                kept += 1;
                chunks.push((offsets[index], lens[index]));
            }
            Stitched::Recut { offset, len } => chunks.push((offset, len)),
        });
    }
    assert_eq!(stitch.position(), data.len() as u64);
    (chunks, kept)
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        (any::<[u8; 4]>(), 0..4000usize).prop_map(|(seed, len)| random(&seed, len)),
        (any::<u8>(), 0..6000usize).prop_map(|(byte, len)| vec![byte; len]),
        // Few seeds, so that content repeats.
        (0..3u8, 0..40usize).prop_map(|(seed, times)| random(&[seed], 97).repeat(times)),
    ];
    prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn stitching_equals_cutting_in_sequence(data in content(), segment in 1..5000usize, fixed in any::<bool>()) {
        let mut profile = tiny_profile();
        if fixed {
            profile.chunking = Chunking::Fixed(777);
        }
        prop_assert_eq!(stitched(&profile, &data, segment).0, sequential(&profile, &data));
    }

    #[test]
    fn chunks_cover_the_file_within_their_bounds(data in content()) {
        let profile = tiny_profile();
        let chunks = sequential(&profile, &data);
        let total: u64 = chunks.iter().map(|&(_, len)| u64::from(len)).sum();
        prop_assert_eq!(total, data.len() as u64);
        if let Some((_, rest)) = chunks.split_last() {
            prop_assert!(rest.iter().all(|&(_, len)| (64..=1024).contains(&len)));
        }
    }
}

#[test]
fn a_guess_is_right_after_a_few_chunks() {
    let data = random(b"guess", 48 << 20);
    let (chunks, kept) = stitched(&SHOAL_V1, &data, 8 << 20);
    assert_eq!(chunks, sequential(&SHOAL_V1, &data));
    let lost = chunks.len() - kept;
    assert!(lost <= 30, "{lost} of {} chunks had to be cut again at 5 seams", chunks.len());
}

#[test]
fn an_insertion_moves_only_the_chunks_around_it() {
    let mut data = random(b"versions", 16 << 20);
    let names = |data: &[u8]| -> Vec<Cid> {
        let chunk = |(at, len): (u64, u32)| &data[at as usize..at as usize + len as usize];
        sequential(&SHOAL_V1, data).into_iter().map(|c| Cid::of(Codec::Raw, HashKind::Blake3, chunk(c))).collect()
    };
    let before = names(&data);
    data.splice(5_000_000..5_000_000, *b"inserted");
    let after = names(&data);
    let new = after.iter().filter(|cid| !before.contains(cid)).count();
    assert!(new <= 4, "{new} of {} chunks are new", after.len());
}

#[test]
fn lengths_gather_around_the_normal_size() {
    let data = random(b"lengths", 64 << 20);
    let chunks = sequential(&SHOAL_V1, &data);
    let mean = data.len() / chunks.len();
    assert!((60 << 10..80 << 10).contains(&mean), "{mean}");
    assert!(!chunks.iter().any(|&(_, len)| len as usize == SHOAL_V1.max_chunk()), "forced cuts on random data");
}

/// A file over 512 MiB has chunks of four times the length; whatever is not longer, and every other profile, has its own.
#[test]
fn large_plain_files_have_longer_chunks() {
    let large = SHOAL_V1.for_plain_file((512 << 20) + 1);
    let data = random(b"large", 16 << 20);
    let mean = data.len() / sequential(&large, &data).len();
    assert!((240 << 10..320 << 10).contains(&mean), "{mean}");
    assert_eq!(large.for_plain_file(u64::MAX), large);
    assert_eq!(SHOAL_V1.for_plain_file(512 << 20), SHOAL_V1);
    assert_eq!(UNIXFS_V1_2025.for_plain_file(u64::MAX), UNIXFS_V1_2025);
}

/// A profile is a promise: the same content has the same name in every version of this crate.
#[test]
fn shoal_v1_never_changes() {
    let data = random(b"shoal-v1", 3 << 20);
    let lens = |profile: &Profile| -> Vec<u32> { sequential(profile, &data).iter().map(|&(_, len)| len).collect() };
    assert_eq!(lens(&SHOAL_V1), GOLDEN_LENGTHS);
    assert_eq!(lens(&SHOAL_V1.for_plain_file(1 << 30)), GOLDEN_LARGE_LENGTHS);
    let mut blocks = Blocks::default();
    let file = blocks.file(&SHOAL_V1, &data, false);
    let program = blocks.file(&SHOAL_V1, b"#!/bin/sh\n", true);
    let link = blocks.symlink(&SHOAL_V1, "file");
    let root =
        blocks.directory(&SHOAL_V1, vec![("file".into(), file), ("program".into(), program), ("link".into(), link)]);
    assert_eq!(root.cid.to_string(), GOLDEN_ROOT);
    assert_eq!(blocks.directory(&SHOAL_V1, Vec::new()).cid.to_string(), GOLDEN_EMPTY_DIRECTORY);
}

const GOLDEN_LENGTHS: &[u32] = &[
    60713, 43026, 67680, 75469, 49939, 92965, 76736, 74117, 74195, 22819, 77825, 94784, 75782, 77320, 55157, 66589,
    104903, 88995, 79375, 67584, 74960, 80789, 97152, 82533, 120867, 99842, 90109, 72390, 72439, 76286, 65986, 100378,
    117292, 120153, 91530, 74081, 86463, 67112, 22532, 67032, 39829,
];
const GOLDEN_LARGE_LENGTHS: &[u32] =
    &[103739, 193088, 307548, 263282, 338289, 326742, 319294, 475645, 313163, 271062, 127015, 106861];
const GOLDEN_ROOT: &str = "bafyb4ia2mpsqtqwbhuoamnts6cthachcsh6nxbuwees4ujtrm5vfz62vme";
const GOLDEN_EMPTY_DIRECTORY: &str = "bafyb4igcwu4aknzxeunla7d6swhtgjcpcdpi7hk5twl4ubnlczrqh3gmme";

#[test]
fn all_zeros_are_cut_at_the_maximum() {
    let zeros = vec![0; 3 << 20];
    assert_eq!(SHOAL_V1.cut(&zeros), SHOAL_V1.max_chunk());
    assert_eq!(stitched(&SHOAL_V1, &zeros, 1_000_000).0, sequential(&SHOAL_V1, &zeros));
    assert_eq!(UNIXFS_V1_2025.cut(&zeros), 1 << 20);
    assert_eq!((SHOAL_V1.cut(&[]), UNIXFS_V1_2025.cut(&[])), (0, 0));
    assert_eq!((SHOAL_V1.cut(&[1]), UNIXFS_V1_2025.cut(&[1])), (1, 1));
}
