//! The pack format: a file header, then records that each tell what they are, so that the index can be rebuilt, and a
//! torn tail found, by scanning. Format and scanner only; which packs there are is `packs`'s to know.
//!
//! ```text
//! file    "SHOALPAK" · version u32 LE (1; 2 in an encrypted store) · 4 zero bytes
//! record  "sBLK" · payload length u32 LE · CID key (33) · check (4: BLAKE3 of the 41 bytes before) · payload
//! ```
//! The payload needs no checksum: its CID is one. In an encrypted store the payload is sealed, with these 41 bytes as
//! associated data, and 16 bytes of tag follow it; the length is that of the payload all the same.

use std::{fs::File, io};

use shoal_content::Cid;

use crate::{
    MAX_BLOCK_BYTES,
    cipher::{Seal, TAG_BYTES},
    disk::read_exact_at,
};

/// Length of the file header in bytes.
pub(crate) const FILE_HEADER: u64 = 16;
/// Length of a record's header in bytes.
pub(crate) const RECORD_HEADER: usize = 4 + 4 + Cid::KEY_LEN + 4;

const RECORD_MAGIC: &[u8; 4] = b"sBLK";
const CHECKED: usize = RECORD_HEADER - 4;

/// The header of every pack file of a store.
pub(crate) fn file_header(seal: &Seal) -> [u8; FILE_HEADER as usize] {
    *if seal.is_on() { b"SHOALPAK\x02\0\0\0\0\0\0\0" } else { b"SHOALPAK\x01\0\0\0\0\0\0\0" }
}

/// What a block of `len` bytes takes in a pack.
pub(crate) fn record_bytes(len: u32, seal: &Seal) -> u64 {
    (RECORD_HEADER + seal.tag_bytes()) as u64 + u64::from(len)
}

/// The part of a record's header that its check is of.
fn checked_header(cid: &Cid, len: u32) -> [u8; CHECKED] {
    let mut header = [0; CHECKED];
    header[..4].copy_from_slice(RECORD_MAGIC);
    header[4..8].copy_from_slice(&len.to_le_bytes());
    header[8..].copy_from_slice(&cid.key());
    header
}

/// Appends a whole record.
pub(crate) fn put_record(cid: &Cid, payload: &[u8], seal: &Seal, out: &mut Vec<u8>) {
    // The caller bounds payloads by MAX_BLOCK_BYTES.
    let header = checked_header(cid, payload.len() as u32);
    out.extend_from_slice(&header);
    out.extend_from_slice(&blake3::hash(&header).as_bytes()[..4]);
    let start = out.len();
    out.extend_from_slice(payload);
    if let Some(tag) = seal.seal_record(cid, &header, &mut out[start..]) {
        out.extend_from_slice(&tag);
    }
}

/// Reads the payload at `offset` of a block into `buf`, which is as long as the block. False if it is sealed, and not for
/// this block; `UnexpectedEof` if the file ends before it does. Whether it is the block is for the caller to verify.
pub(crate) fn read_payload(file: &File, cid: &Cid, buf: &mut [u8], offset: u64, seal: &Seal) -> io::Result<bool> {
    read_exact_at(file, buf, offset)?;
    if !seal.is_on() {
        return Ok(true);
    }
    // By itself: a buffer with room for it would be of the next size in the pool.
    let mut tag = [0; TAG_BYTES];
    read_exact_at(file, &mut tag, offset + buf.len() as u64)?;
    Ok(seal.open_record(cid, &checked_header(cid, buf.len() as u32), buf, &tag))
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
pub(crate) fn scan(file: &File, from: u64, seal: &Seal, mut each: impl FnMut(Cid, u64, u32)) -> io::Result<u64> {
    let mut at = from;
    if at < FILE_HEADER {
        let mut header = [0; FILE_HEADER as usize];
        if !read_whole(file, &mut header, 0)? || header != file_header(seal) {
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
        if whole(read_payload(file, &cid, &mut payload, start, seal))? != Some(true) || !cid.verify(&payload) {
            return Ok(at);
        }
        each(cid, start, len);
        at += record_bytes(len, seal);
    }
}

/// [`scan`] of a pack that may be damaged anywhere: what makes no sense is passed over, up to the next record that does.
pub(crate) fn scan_damaged(file: &File, seal: &Seal, mut each: impl FnMut(Cid, u64, u32)) -> io::Result<()> {
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
        match whole(read_payload(file, &cid, &mut payload, start, seal))? {
            // Cut off, or the length is that of a record inside a block.
            None => at = next_magic(file, at + 1, len)?,
            Some(true) if cid.verify(&payload) => {
                each(cid, start, block);
                at += record_bytes(block, seal);
            }
            Some(_) => at = next_magic(file, start, len)?,
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
    Ok(whole(read_exact_at(file, buf, offset))?.is_some())
}

/// `None` if the file ended before what was read.
fn whole<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;
    use shoal_content::{Codec, HashKind};

    use super::*;

    fn sealed() -> Seal {
        Seal::new(&[7; 32].into()).unwrap()
    }

    fn pack_of(blocks: &[Vec<u8>], seal: &Seal) -> Vec<u8> {
        let mut bytes = file_header(seal).to_vec();
        for block in blocks {
            put_record(&Cid::of(Codec::Raw, HashKind::Blake3, block), block, seal, &mut bytes);
        }
        bytes
    }

    fn scanned(bytes: &[u8], seal: &Seal) -> (Vec<(Cid, u64, u32)>, u64) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let mut found = Vec::new();
        let end = scan(&file, 0, seal, |cid, at, len| found.push((cid, at, len))).unwrap();
        (found, end)
    }

    /// What a record that was found holds.
    fn block_at(bytes: &[u8], cid: &Cid, at: u64, len: u32, seal: &Seal) -> Vec<u8> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let mut block = vec![0; len as usize];
        assert!(read_payload(&file, cid, &mut block, at, seal).unwrap());
        block
    }

    #[test]
    fn the_format_byte_by_byte() {
        let bytes = pack_of(&[b"hello".to_vec()], &Seal::default());
        assert_eq!(&bytes[..16], b"SHOALPAK\x01\0\0\0\0\0\0\0");
        assert_eq!(&bytes[16..24], b"sBLK\x05\0\0\0");
        assert_eq!(bytes[24], 0, "raw, BLAKE3");
        assert_eq!(&bytes[25..57], blake3::hash(b"hello").as_bytes());
        assert_eq!(&bytes[57..61], &blake3::hash(&bytes[16..57]).as_bytes()[..4]);
        assert_eq!(&bytes[61..], b"hello");
    }

    #[test]
    fn the_format_of_an_encrypted_store_byte_by_byte() {
        use chacha20poly1305::{AeadInPlace, KeyInit, XChaCha20Poly1305, XNonce};
        let bytes = pack_of(&[b"hello".to_vec()], &sealed());
        assert_eq!(&bytes[..16], b"SHOALPAK\x02\0\0\0\0\0\0\0");
        assert_eq!(&bytes[16..24], b"sBLK\x05\0\0\0", "the length of the block");
        assert_eq!(bytes[24], 0, "raw, BLAKE3");
        assert_eq!(&bytes[25..57], blake3::hash(b"hello").as_bytes());
        assert_eq!(&bytes[57..61], &blake3::hash(&bytes[16..57]).as_bytes()[..4]);
        // By hand: the keys, the nonce and what is authenticated.
        let key = blake3::derive_key("shoal store 2026 records of packs", &[7; 32]);
        let names = blake3::derive_key("shoal store 2026 nonces of records", &[7; 32]);
        let nonce = blake3::keyed_hash(&names, &bytes[24..57]);
        let mut payload = *b"hello";
        let tag = XChaCha20Poly1305::new(&key.into())
            .encrypt_in_place_detached(XNonce::from_slice(&nonce.as_bytes()[..24]), &bytes[16..57], &mut payload)
            .unwrap();
        assert_eq!(&bytes[61..66], &payload);
        assert_eq!(&bytes[66..], &tag[..]);
    }

    /// Neither kind of store takes the packs of the other, nor those of another key.
    #[test]
    fn a_pack_of_another_store_holds_nothing() {
        let blocks = [b"hello".to_vec()];
        let kinds = [Seal::default(), sealed(), Seal::new(&[8; 32].into()).unwrap()];
        for (i, seal) in kinds.iter().enumerate() {
            for (j, other) in kinds.iter().enumerate() {
                let bytes = pack_of(&blocks, other);
                assert_eq!(scanned(&bytes, seal).0.len(), usize::from(i == j));
                let mut file = tempfile::tempfile().unwrap();
                file.write_all(&bytes).unwrap();
                let mut found = 0;
                scan_damaged(&file, seal, |_, _, _| found += 1).unwrap();
                assert_eq!(found, usize::from(i == j));
            }
        }
    }

    /// The payload of one record under the header of another of the same length is no block.
    #[test]
    fn swapped_payloads_are_noticed() {
        let seal = sealed();
        let mut bytes = pack_of(&[b"hello".to_vec(), b"world".to_vec()], &seal);
        let len = 45 + 5 + 16;
        let (a, b) = bytes.split_at_mut(16 + len);
        a[16 + 45..].swap_with_slice(&mut b[45..]);
        assert_eq!(scanned(&bytes, &seal), (vec![], 16));
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        scan_damaged(&file, &seal, |cid, _, _| panic!("{cid} was found")).unwrap();
        let mut buf = [0; 5];
        let cid = Cid::of(Codec::Raw, HashKind::Blake3, b"hello");
        assert!(!read_payload(&file, &cid, &mut buf, 61, &seal).unwrap());
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
            encrypted: bool,
        ) {
            let seal = if encrypted { sealed() } else { Seal::default() };
            let whole = pack_of(&blocks, &seal);
            let mut bytes = whole[..cut.index(whole.len() + 1)].to_vec();
            if flips > 0 && !bytes.is_empty() {
                let i = flip.index(bytes.len());
                bytes[i] ^= 0x10;
            }
            let (found, end) = scanned(&bytes, &seal);
            prop_assert!(end <= bytes.len() as u64);
            for (cid, at, len) in found {
                prop_assert!(cid.verify(&block_at(&bytes, &cid, at, len, &seal)));
            }
        }

        /// With one bit flipped anywhere, all records but the one that was hit are found.
        #[test]
        fn damage_costs_the_record_that_it_hits(
            blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..200), 1..8),
            bit in any::<prop::sample::Index>(), encrypted: bool,
        ) {
            let seal = if encrypted { sealed() } else { Seal::default() };
            let mut bytes = pack_of(&blocks, &seal);
            let bit = bit.index(8 * bytes.len());
            bytes[bit / 8] ^= 1 << (bit % 8);
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&bytes).unwrap();
            let mut found = 0;
            scan_damaged(&file, &seal, |cid, at, len| {
                assert!(cid.verify(&block_at(&bytes, &cid, at, len, &seal)));
                found += 1;
            }).unwrap();
            prop_assert!(found + 1 >= blocks.len(), "{found} of {}", blocks.len());
        }

        #[test]
        fn every_whole_record_is_found(
            blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..6),
            encrypted: bool,
        ) {
            let seal = if encrypted { sealed() } else { Seal::default() };
            let bytes = pack_of(&blocks, &seal);
            let (found, end) = scanned(&bytes, &seal);
            prop_assert_eq!(end, bytes.len() as u64);
            prop_assert_eq!(found.len(), blocks.len());
        }
    }
}
