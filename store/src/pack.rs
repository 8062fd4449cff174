//! The pack format: a file header, then records that each tell what they are, so that the index can be rebuilt, and a
//! torn tail found, by scanning. Format and scanner only; which packs there are is `packs`'s to know.
//!
//! ```text
//! file    "SHOALPAK" · version u32 LE (1) · 4 zero bytes
//! record  "sBLK" · payload length u32 LE · CID key (33) · check (4: BLAKE3 of the 41 bytes before) · payload
//! ```
//! The payload needs no checksum: its CID is one.

use std::{fs::File, io};

use shoal_content::Cid;

use crate::{MAX_BLOCK_BYTES, disk::read_exact_at};

/// Length of the file header in bytes.
pub(crate) const FILE_HEADER: u64 = 16;
/// Length of a record's header in bytes.
pub(crate) const RECORD_HEADER: usize = 4 + 4 + Cid::KEY_LEN + 4;

const RECORD_MAGIC: &[u8; 4] = b"sBLK";
const CHECKED: usize = RECORD_HEADER - 4;

/// The header of every pack file.
pub(crate) fn file_header() -> [u8; FILE_HEADER as usize] {
    *b"SHOALPAK\x01\0\0\0\0\0\0\0"
}

/// Appends a whole record.
pub(crate) fn put_record(cid: &Cid, payload: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(RECORD_MAGIC);
    // The caller bounds payloads by MAX_BLOCK_BYTES.
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&cid.key());
    let check = blake3::hash(&out[start..]);
    out.extend_from_slice(&check.as_bytes()[..4]);
    out.extend_from_slice(payload);
}

/// Reads a record's header: the block's name and the length of its payload. `None` for anything else.
pub(crate) fn get_record_header(bytes: &[u8; RECORD_HEADER]) -> Option<(Cid, u32)> {
    let (checked, check) = bytes.split_at(CHECKED);
    if &checked[..4] != RECORD_MAGIC || blake3::hash(checked).as_bytes()[..4] != *check {
        return None;
    }
    let len = u32::from_le_bytes(checked[4..8].try_into().ok()?);
    let cid = Cid::from_key(&checked[8..])?;
    (len as usize <= MAX_BLOCK_BYTES).then_some((cid, len))
}

/// Walks the records of a pack from `from` and hands each valid one to `each` (its name, the offset of its payload,
/// its length). Returns where the last valid record ends: there the file ends, or something torn begins.
pub(crate) fn scan(file: &File, from: u64, mut each: impl FnMut(Cid, u64, u32)) -> io::Result<u64> {
    let mut at = from;
    if at < FILE_HEADER {
        let mut header = [0; FILE_HEADER as usize];
        if !read_whole(file, &mut header, 0)? || header != file_header() {
            return Ok(0);
        }
        at = FILE_HEADER;
    }
    let mut payload = Vec::new();
    loop {
        let mut header = [0; RECORD_HEADER];
        if !read_whole(file, &mut header, at)? {
            return Ok(at);
        }
        let Some((cid, len)) = get_record_header(&header) else { return Ok(at) };
        payload.resize(len as usize, 0);
        let start = at + RECORD_HEADER as u64;
        if !read_whole(file, &mut payload, start)? || !cid.verify(&payload) {
            return Ok(at);
        }
        each(cid, start, len);
        at = start + u64::from(len);
    }
}

/// [`scan`] of a pack that may be damaged anywhere: what makes no sense is passed over, up to the next record that does.
pub(crate) fn scan_damaged(file: &File, mut each: impl FnMut(Cid, u64, u32)) -> io::Result<()> {
    let len = file.metadata()?.len();
    let (mut at, mut payload) = (FILE_HEADER, Vec::new());
    while at + RECORD_HEADER as u64 <= len {
        let mut header = [0; RECORD_HEADER];
        read_exact_at(file, &mut header, at)?;
        let start = at + RECORD_HEADER as u64;
        let Some((cid, block)) = get_record_header(&header) else {
            at = next_magic(file, at + 1, len)?;
            continue;
        };
        payload.resize(block as usize, 0);
        if !read_whole(file, &mut payload, start)? {
            // Cut off, or the length is that of a record inside a block.
            at = next_magic(file, at + 1, len)?;
        } else if cid.verify(&payload) {
            each(cid, start, block);
            at = start + u64::from(block);
        } else {
            at = next_magic(file, start, len)?;
        }
    }
    Ok(())
}

/// Where the next thing that looks like a record begins; the end of the file if nothing does.
fn next_magic(file: &File, from: u64, len: u64) -> io::Result<u64> {
    const WINDOW: usize = 64 << 10;
    let (mut at, mut window) = (from, Vec::new());
    while at < len {
        window.resize(usize::try_from(len - at).unwrap_or(WINDOW).min(WINDOW), 0);
        read_exact_at(file, &mut window, at)?;
        if let Some(found) = window.windows(RECORD_MAGIC.len()).position(|bytes| bytes == RECORD_MAGIC) {
            return Ok(at + found as u64);
        }
        if window.len() < WINDOW {
            return Ok(len);
        }
        at += (WINDOW - RECORD_MAGIC.len() + 1) as u64;
    }
    Ok(len)
}

/// False if the file ends before `buf` is full.
fn read_whole(file: &File, buf: &mut [u8], offset: u64) -> io::Result<bool> {
    match read_exact_at(file, buf, offset) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;
    use shoal_content::{Codec, HashKind};

    use super::*;

    fn pack_of(blocks: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = file_header().to_vec();
        for block in blocks {
            put_record(&Cid::of(Codec::Raw, HashKind::Blake3, block), block, &mut bytes);
        }
        bytes
    }

    fn scanned(bytes: &[u8]) -> (Vec<(Cid, u64, u32)>, u64) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let mut found = Vec::new();
        let end = scan(&file, 0, |cid, at, len| found.push((cid, at, len))).unwrap();
        (found, end)
    }

    #[test]
    fn the_format_byte_by_byte() {
        let bytes = pack_of(&[b"hello".to_vec()]);
        assert_eq!(&bytes[..16], b"SHOALPAK\x01\0\0\0\0\0\0\0");
        assert_eq!(&bytes[16..24], b"sBLK\x05\0\0\0");
        assert_eq!(bytes[24], 0, "raw, BLAKE3");
        assert_eq!(&bytes[25..57], blake3::hash(b"hello").as_bytes());
        assert_eq!(&bytes[57..61], &blake3::hash(&bytes[16..57]).as_bytes()[..4]);
        assert_eq!(&bytes[61..], b"hello");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_header_is_read_or_refused_never_more(bytes: [u8; RECORD_HEADER]) {
            prop_assert_eq!(get_record_header(&bytes), None, "a random check of 32 bits");
        }

        /// Scanning random bytes, and a good pack cut and flipped anywhere, finds only true records and an end within.
        #[test]
        fn scanning_is_total(
            blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..6),
            cut in any::<prop::sample::Index>(), flip in any::<prop::sample::Index>(), flips in 0..2u8,
        ) {
            let whole = pack_of(&blocks);
            let mut bytes = whole[..cut.index(whole.len() + 1)].to_vec();
            if flips > 0 && !bytes.is_empty() {
                let i = flip.index(bytes.len());
                bytes[i] ^= 0x10;
            }
            let (found, end) = scanned(&bytes);
            prop_assert!(end <= bytes.len() as u64);
            for (cid, at, len) in found {
                prop_assert!(cid.verify(&bytes[at as usize..at as usize + len as usize]));
            }
        }

        /// With one bit flipped anywhere, all records but the one that was hit are found.
        #[test]
        fn damage_costs_the_record_that_it_hits(
            blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..200), 1..8),
            bit in any::<prop::sample::Index>(),
        ) {
            let mut bytes = pack_of(&blocks);
            let bit = bit.index(8 * bytes.len());
            bytes[bit / 8] ^= 1 << (bit % 8);
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&bytes).unwrap();
            let mut found = 0;
            scan_damaged(&file, |cid, at, len| {
                assert!(cid.verify(&bytes[at as usize..at as usize + len as usize]));
                found += 1;
            }).unwrap();
            prop_assert!(found + 1 >= blocks.len(), "{found} of {}", blocks.len());
        }

        #[test]
        fn every_whole_record_is_found(blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..6)) {
            let bytes = pack_of(&blocks);
            let (found, end) = scanned(&bytes);
            prop_assert_eq!(end, bytes.len() as u64);
            prop_assert_eq!(found.len(), blocks.len());
        }
    }
}
