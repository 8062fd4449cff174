//! Archives: cut at their entries, so that contents keep their chunks whatever surrounds them, and cut like any file where
//! they are malformed.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails at the right line")]

mod support;
#[path = "support/tar.rs"]
mod tar;

use std::{collections::HashSet, convert::Infallible};

use proptest::prelude::*;
use shoal_content::{Cid, Codec, HashKind, Profile, SHOAL_V1, Seams, Stitch, Stitched, UNIXFS_V1_2025};
use support::tiny_profile;
use tar::{Tar, header, octal, seal};

/// Pseudo-random bytes.
fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Finds the seams before `until`, as a reader would, and checks what a reader relies on.
fn find(seams: &mut Seams, data: &[u8], until: u64, found: &mut Vec<u64>) {
    let mut before = 0;
    while let Some((at, len)) = seams.poll_read().filter(|_| seams.known_to() < until) {
        assert!(at >= before && len <= 64 << 10, "reads go forward, in small pieces");
        before = at;
        let bytes = data.get(at as usize..at as usize + len).expect("reads stay inside the file");
        seams.handle_read(bytes);
        while let Some(seam) = seams.poll_seam() {
            assert!(seam > found.last().copied().unwrap_or(0) && seam < data.len() as u64);
            found.push(seam);
        }
    }
}

fn seams(profile: &Profile, data: &[u8]) -> Vec<u64> {
    let mut found = Vec::new();
    find(&mut Seams::new(profile, data.len() as u64), data, u64::MAX, &mut found);
    found
}

fn cut(profile: &Profile, data: &[u8], at: usize, seams: &[u64]) -> usize {
    let seam = seams.get(seams.partition_point(|&seam| seam <= at as u64));
    profile.cut(&data[at..seam.map_or(data.len(), |&seam| seam as usize)])
}

/// Offsets and lengths of a file's chunks, cut front to back with no more known than has to be.
fn chunks(profile: &Profile, data: &[u8]) -> Vec<(usize, usize)> {
    let mut search = Seams::new(profile, data.len() as u64);
    let (mut found, mut chunks, mut at) = (Vec::new(), Vec::new(), 0);
    while at < data.len() {
        find(&mut search, data, (at + profile.max_chunk()) as u64, &mut found);
        let len = cut(profile, data, at, &found);
        chunks.push((at, len));
        at += len;
    }
    chunks
}

fn names(profile: &Profile, data: &[u8]) -> HashSet<Cid> {
    let name = |(at, len): (usize, usize)| Cid::of(Codec::Raw, HashKind::Blake3, &data[at..at + len]);
    chunks(profile, data).into_iter().map(name).collect()
}

/// The same by segments that are cut on their own and stitched, with all seams known.
fn stitched(profile: &Profile, data: &[u8], segment: usize) -> Vec<(usize, usize)> {
    let seams = seams(profile, data);
    let (mut stitch, mut chunks) = (Stitch::new(), Vec::new());
    for start in (0..data.len()).step_by(segment) {
        let end = data.len().min(start + segment);
        let (mut lens, mut offsets, mut at) = (Vec::new(), Vec::new(), start);
        while at < end {
            let len = cut(profile, data, at, &seams);
            lens.push(len as u32);
            offsets.push(at);
            at += len;
        }
        let recut = |offset: u64| Ok::<_, Infallible>(cut(profile, data, offset as usize, &seams) as u32);
        let Ok(()) = stitch.join(start as u64, (end - start) as u64, &lens, recut, |chunk| match chunk {
            Stitched::Kept(index) => chunks.push((offsets[index], lens[index] as usize)),
            Stitched::Recut { offset, len } => chunks.push((offset as usize, len as usize)),
        });
    }
    chunks
}

fn tiny() -> Profile {
    let mut profile = tiny_profile();
    profile.entries_over = Some(100);
    profile
}

/// An archive of entries of all kinds, and the contents in it that are chunks of their own.
fn archive(entries: &[(u8, u64, usize)], depth: usize) -> (Vec<u8>, Vec<Vec<u8>>) {
    let (mut tar, mut contents) = (Tar::default(), Vec::new());
    for (i, &(kind, seed, len)) in entries.iter().enumerate() {
        let mtime = (seed % 0o7777_7777) as u32;
        let mut bytes = random(seed % 7, len);
        if kind % 8 == 7 && depth < 2 {
            (bytes, _) = archive(&entries[i + 1..], depth + 1);
        }
        let name = format!("{seed}/{i}");
        match kind % 8 {
            0 => {
                tar.dir(&name, mtime);
            }
            1 => {
                tar.block(&header(&name, b'2', &octal(len), mtime));
            }
            2 => {
                tar.long_name(&name.repeat(40));
            }
            3 => {
                tar.pax(&[("mtime", &seed.to_string()), ("path", &name)]);
            }
            4 => {
                tar.pax(&[("size", &bytes.len().to_string())]);
                tar.block(&header(&name, b'0', &octal(0), mtime)).block(&bytes);
            }
            5 => {
                let mut size = [0; 12];
                size[0] = 0x80;
                size[4..].copy_from_slice(&(bytes.len() as u64).to_be_bytes());
                tar.block(&header(&name, b'0', &size, mtime)).block(&bytes);
            }
            _ => {
                tar.file(&name, mtime, &bytes);
            }
        }
        if kind % 8 >= 4 && bytes.len() > 100 {
            contents.push(bytes);
        }
    }
    (tar.end(), contents)
}

fn entries() -> impl Strategy<Value = Vec<(u8, u64, usize)>> {
    prop::collection::vec((any::<u8>(), any::<u64>(), prop_oneof![0..300usize, 0..9000usize]), 1..12)
}

proptest! {
    #[test]
    fn contents_have_the_chunks_that_they_have_alone(entries in entries()) {
        let profile = tiny();
        let (data, contents) = archive(&entries, 0);
        let all = names(&profile, &data);
        for contents in &contents {
            prop_assert!(names(&profile, contents).is_subset(&all), "contents of {} bytes", contents.len());
        }
    }

    #[test]
    fn chunks_depend_on_neither_reads_nor_segments(entries in entries(), segment in 1..20_000usize, damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3), end in any::<prop::sample::Index>()) {
        let profile = tiny();
        let (mut data, _) = archive(&entries, 0);
        for (at, byte) in damage {
            let at = at.index(data.len());
            data[at] = byte;
        }
        data.truncate(data.len() - end.index(data.len()) / 4);
        let front_to_back = chunks(&profile, &data);
        prop_assert_eq!(front_to_back.iter().map(|(_, len)| len).sum::<usize>(), data.len());
        prop_assert!(front_to_back.iter().all(|&(_, len)| len > 0 && len <= profile.max_chunk()));
        prop_assert_eq!(stitched(&profile, &data, segment), front_to_back);
    }
}

#[test]
fn headers_that_change_move_only_headers() {
    let version = |mtime: u32| {
        let mut tar = Tar::default();
        for i in 0..200u64 {
            if i % 20 == 0 {
                tar.dir(&format!("dir{i}/"), mtime);
            }
            tar.file(&format!("file {i}"), mtime + i as u32, &random(i, 2000 + (i as usize * 3701) % 60_000));
        }
        tar.file("large", mtime, &random(1000, 3 << 20));
        tar.end()
    };
    let (old, new) = (version(1_700_000_000), version(1_700_009_999));
    let known = names(&SHOAL_V1, &old);
    let moved = |profile: &Profile| {
        let fresh =
            |&(at, len): &(usize, usize)| !known.contains(&Cid::of(Codec::Raw, HashKind::Blake3, &new[at..at + len]));
        chunks(profile, &new).iter().filter(|chunk| fresh(chunk)).map(|&(_, len)| len).sum::<usize>()
    };
    let headers = 212 * 512 + 201 * 512 + 10240;
    assert!(moved(&SHOAL_V1) < headers, "{} bytes", moved(&SHOAL_V1));
    let mut plain = SHOAL_V1;
    plain.entries_over = None;
    assert!(moved(&plain) > new.len() / 2, "the test shows nothing");
}

#[test]
fn small_entries_stay_with_their_headers() {
    let mut tar = Tar::default();
    for i in 0..50 {
        tar.file(&format!("small {i}"), i, &random(i.into(), 1024));
    }
    let first = tar.file("one byte more", 0, &random(99, 1025));
    tar.file("empty", 0, &[]);
    assert_eq!(seams(&SHOAL_V1, &tar.end()), [first as u64, first as u64 + 1025]);
}

#[test]
fn archives_in_archives_and_behind_each_other() {
    let mut inner = Tar::default();
    let a = inner.file("a", 1, &random(1, 5000));
    let inner = inner.end();
    let mut outer = Tar::default();
    let b = outer.file("b", 1, &random(2, 5000));
    let at = outer.file("inner.tar", 1, &inner);
    let outer = outer.end();
    let first = [b, b + 5000, at, at + a, at + a + 5000, at + inner.len()];
    assert_eq!(seams(&SHOAL_V1, &outer), first.iter().map(|&seam| seam as u64).collect::<Vec<_>>());
    let joined = [outer.clone(), outer.clone()].concat();
    let second = first.iter().map(|&seam| seam + outer.len());
    let both: Vec<u64> = first.iter().copied().chain(second).map(|seam| seam as u64).collect();
    assert_eq!(seams(&SHOAL_V1, &joined), both);

    // Too deep: what is innermost is contents like any.
    let nested = (0..40).fold(inner.clone(), |inner, _| {
        let mut tar = Tar::default();
        tar.file("t", 0, &inner);
        tar.end()
    });
    assert_eq!(seams(&SHOAL_V1, &nested).len(), 2 * 4 - 1 + 1);
}

#[test]
fn sparse_files_and_their_maps() {
    let mut tar = Tar::default();
    let mut first = header("sparse", b'S', &octal(6000), 1);
    first[257..265].copy_from_slice(b"ustar  \0");
    first[482] = 1;
    seal(&mut first);
    let mut map = [7; 512];
    map[504] = 1;
    tar.block(&first).block(&map);
    map[504] = 0;
    tar.block(&map);
    let at = tar.0.len();
    tar.block(&random(1, 6000));
    let next = tar.file("next", 1, &random(2, 3000));
    let expected = [at, at + 6000, next, next + 3000].map(|seam| seam as u64);
    assert_eq!(seams(&SHOAL_V1, &tar.end()), expected);
}

#[test]
fn what_is_no_archive_has_no_seams() {
    let mut tar = Tar::default();
    tar.file("a", 1, &random(1, 5000));
    let tar = tar.end();
    for data in [vec![], vec![1; 100], vec![0; 5000], random(1, 100_000), [&[0; 512], &tar[..]].concat()] {
        assert!(seams(&SHOAL_V1, &data).is_empty());
    }
    assert!(seams(&UNIXFS_V1_2025, &tar).is_empty(), "IPFS cuts archives like any file");
    let mut bad = tar.clone();
    bad[20] ^= 1;
    assert!(seams(&SHOAL_V1, &bad).is_empty());
}

#[test]
fn malformed_archives_are_cut_like_any_file_from_there_on() {
    let mut good = Tar::default();
    let a = good.file("a", 1, &random(1, 5000)) as u64;
    let known = [a, a + 5000];
    let with = |blocks: &[&[u8]]| {
        let mut tar = good.clone();
        for block in blocks {
            tar.block(block);
        }
        tar.file("never found", 1, &random(2, 5000));
        tar.end()
    };
    let huge = |size: &[u8; 12]| header("huge", b'0', size, 1);
    for (what, blocks) in [
        ("garbage", vec![&random(3, 512)[..]]),
        ("a size past 63 bits", vec![&huge(b"\x80\0\0\0\x80\0\0\0\0\0\0\0")[..]]),
        ("a negative size", vec![&huge(&[0xff; 12])[..]]),
        ("pax records past the end", vec![&header("p", b'x', &octal(60_000), 1)[..]]),
        ("a long name past the end", vec![&header("p", b'L', b"77777777777\0", 1)[..]]),
        (
            "a pax size past 63 bits",
            vec![&header("p", b'x', &octal(29), 1)[..], b"29 size=99999999999999999999\n", &huge(&[0xff; 12])[..]],
        ),
    ] {
        assert_eq!(seams(&SHOAL_V1, &with(&blocks)), known, "{what}");
    }
    // The contents of an entry that says it is longer than the archive go to the end.
    for size in [b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", b"77777777777\0"] {
        let data = with(&[&huge(size), &random(3, 512)]);
        let at = a + 5120 + 512;
        assert_eq!(seams(&SHOAL_V1, &data), [a, a + 5000, at]);
    }
    // Inside another archive, the damage ends with it.
    let inner = with(&[&random(3, 512)]);
    let mut outer = Tar::default();
    let at = outer.file("inner.tar", 1, &inner) as u64;
    let next = outer.file("next", 1, &random(4, 5000)) as u64;
    let expected = [at, at + a, at + a + 5000, at + inner.len() as u64, next, next + 5000];
    assert_eq!(seams(&SHOAL_V1, &outer.end()), expected);
}

/// A profile is a promise: the same archive has the same chunks in every version of this crate.
#[test]
fn seams_of_shoal_v1_never_change() {
    let mut tar = Tar::default();
    tar.dir("d/", 1);
    tar.file("d/small", 2, b"some bytes");
    tar.file("d/file", 3, &random(1, 70_000));
    tar.pax(&[("mtime", "4.5")]);
    tar.file("d/large", 4, &random(2, 700_000));
    let lens: Vec<usize> = chunks(&SHOAL_V1, &tar.end()).iter().map(|&(_, len)| len).collect();
    assert_eq!(lens, GOLDEN_LENGTHS);
}

const GOLDEN_LENGTHS: &[usize] =
    &[2048, 70000, 1680, 110395, 75322, 67018, 80090, 72513, 76224, 20601, 88793, 32267, 69303, 7474, 4512];
