//! The compact values of the index: where a block is, what a file is. Encoding and decoding only, no tables, no IO.
//!
//! Integers are LEB128. Decoders are total: anything that is not exactly what an encoder writes is `None`.
//! A location is a tag (0 pack, 1 file), then pack number or the six bytes of a file id, then offset, then length.
//! What is remembered of a file comes behind its name and a NUL, which no name has; most rows have none.

use shoal_content::Cid;

use crate::{BaseId, MAX_BLOCK_BYTES, Stamp};

/// Most locations kept per block. More copies than this help nobody; the oldest goes.
pub(crate) const MAX_LOCATIONS: usize = 4;

/// Names a file in the index: 48 bits of a hash of its base and path, keyed with the store's salt, the next free id on
/// a collision. A hash and not a counter, so that a file is found by name without a second table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FileId(pub(crate) [u8; 6]);

impl FileId {
    /// The id to try when this one is taken.
    pub(crate) fn next(self) -> Self {
        let mut bytes = [0; 8];
        bytes[2..].copy_from_slice(&self.0);
        let next = u64::from_be_bytes(bytes).wrapping_add(1).to_be_bytes();
        Self([next[2], next[3], next[4], next[5], next[6], next[7]])
    }
}

/// Where a block's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Loc {
    pub(crate) place: Place,
    /// Of the first payload byte.
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

/// In which file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Place {
    Pack(u32),
    File(FileId),
}

/// Appends the encoding of one location.
pub(crate) fn put_loc(loc: &Loc, out: &mut Vec<u8>) {
    match loc.place {
        Place::Pack(id) => {
            out.push(0);
            put_varint(id.into(), out);
        }
        Place::File(id) => {
            out.push(1);
            out.extend_from_slice(&id.0);
        }
    }
    put_varint(loc.offset, out);
    put_varint(loc.len.into(), out);
}

/// Decodes the value of a block: one to [`MAX_LOCATIONS`] locations.
pub(crate) fn get_locs(mut bytes: &[u8]) -> Option<Vec<Loc>> {
    let mut locs = Vec::with_capacity(1);
    while !bytes.is_empty() {
        let place = match take(&mut bytes, 1)?[0] {
            0 => Place::Pack(get_varint(&mut bytes)?.try_into().ok()?),
            1 => Place::File(FileId(take(&mut bytes, 6)?.try_into().ok()?)),
            _ => return None,
        };
        let offset = get_varint(&mut bytes)?;
        let len = u32::try_from(get_varint(&mut bytes)?).ok()?;
        if len as usize > MAX_BLOCK_BYTES || offset.checked_add(len.into()).is_none() || locs.len() == MAX_LOCATIONS {
            return None;
        }
        locs.push(Loc { place, offset, len });
    }
    if locs.is_empty() { None } else { Some(locs) }
}

/// A row of the files table: `dir` is the id of its directory's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileRow<'a> {
    pub(crate) dir: FileId,
    pub(crate) stamp: Stamp,
    pub(crate) name: &'a str,
    pub(crate) memory: Option<Memory>,
}

/// What an import remembers of a file that it read whole, so that the next one need not read it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Eight bytes of a keyed hash of all that shows whether the file was written to since, and of the profile. Compared
    /// and nothing else, so these eight do for what would be forty.
    pub(crate) print: u64,
    /// The root of the file's own tree: a leaf or a node.
    pub(crate) cid: Cid,
    /// Bytes of all blocks below it and its own.
    pub(crate) dag_size: u64,
}

pub(crate) fn put_file(row: &FileRow<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(&row.dir.0);
    put_varint(row.stamp.size, out);
    put_varint(zigzag(row.stamp.mtime_ns), out);
    out.extend_from_slice(row.name.as_bytes());
    if let Some(memory) = &row.memory {
        out.push(0);
        out.extend_from_slice(&memory.print.to_le_bytes());
        out.extend_from_slice(&memory.cid.key());
        put_varint(memory.dag_size, out);
    }
}

pub(crate) fn get_file(mut bytes: &[u8]) -> Option<FileRow<'_>> {
    let dir = FileId(take(&mut bytes, 6)?.try_into().ok()?);
    let size = get_varint(&mut bytes)?;
    let mtime_ns = unzigzag(get_varint(&mut bytes)?);
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    let name = std::str::from_utf8(take(&mut bytes, end)?).ok()?;
    let memory = if bytes.is_empty() { None } else { Some(get_memory(bytes)?) };
    Some(FileRow { dir, stamp: Stamp { size, mtime_ns }, name, memory })
}

fn get_memory(mut bytes: &[u8]) -> Option<Memory> {
    let _nul = take(&mut bytes, 1)?;
    let print = u64::from_le_bytes(take(&mut bytes, 8)?.try_into().ok()?);
    let cid = Cid::from_key(take(&mut bytes, Cid::KEY_LEN)?)?;
    let dag_size = get_varint(&mut bytes)?;
    bytes.is_empty().then_some(Memory { print, cid, dag_size })
}

/// A row of the directories table: a directory below a base, parts joined by `/`, empty for the base itself.
pub(crate) fn put_dir(base: BaseId, path: &str, out: &mut Vec<u8>) {
    put_varint(base.0.into(), out);
    out.extend_from_slice(path.as_bytes());
}

pub(crate) fn get_dir(mut bytes: &[u8]) -> Option<(BaseId, &str)> {
    let base = BaseId(get_varint(&mut bytes)?.try_into().ok()?);
    Some((base, std::str::from_utf8(bytes).ok()?))
}

fn put_varint(mut n: u64, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// Minimal LEB128 of at most 64 bits.
fn get_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut n = 0u64;
    for i in 0..10 {
        let byte = take(bytes, 1)?[0];
        let part = u64::from(byte & 0x7f);
        if i == 9 && part > 1 {
            return None;
        }
        n |= part << (7 * i);
        if byte < 0x80 {
            return if byte == 0 && i > 0 { None } else { Some(n) };
        }
    }
    None
}

fn take<'a>(bytes: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (head, tail) = bytes.split_at_checked(n)?;
    *bytes = tail;
    Some(head)
}

fn zigzag(n: i64) -> u64 {
    ((n << 1) ^ (n >> 63)) as u64
}

fn unzigzag(n: u64) -> i64 {
    (n >> 1) as i64 ^ -((n & 1) as i64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shoal_content::{Codec, HashKind};

    use super::*;

    fn loc() -> impl Strategy<Value = Loc> {
        let place =
            prop_oneof![any::<u32>().prop_map(Place::Pack), any::<[u8; 6]>().prop_map(|b| Place::File(FileId(b)))];
        (place, 0..u64::MAX - MAX_BLOCK_BYTES as u64, 0..=MAX_BLOCK_BYTES as u32).prop_map(|(place, offset, len)| Loc {
            place,
            offset,
            len,
        })
    }

    proptest! {
        #[test]
        fn locations_survive_encoding(locs in prop::collection::vec(loc(), 1..=MAX_LOCATIONS)) {
            let mut bytes = Vec::new();
            locs.iter().for_each(|l| put_loc(l, &mut bytes));
            prop_assert_eq!(get_locs(&bytes), Some(locs));
        }

        #[test]
        fn files_survive_encoding(
            dir: [u8; 6],
            size: u64,
            mtime_ns: i64,
            name in "[^\\x00]{0,60}",
            base: u32,
            memory in prop::option::of((any::<u64>(), any::<[u8; 8]>(), any::<u64>())),
        ) {
            let mut bytes = Vec::new();
            let memory = memory.map(|(print, content, dag_size)| {
                Memory { print, cid: Cid::of(Codec::DagPb, HashKind::Blake3, &content), dag_size }
            });
            let row = FileRow { dir: FileId(dir), stamp: Stamp { size, mtime_ns }, name: &name, memory };
            put_file(&row, &mut bytes);
            prop_assert_eq!(get_file(&bytes), Some(row));
            bytes.clear();
            put_dir(BaseId(base), &name, &mut bytes);
            prop_assert_eq!(get_dir(&bytes), Some((BaseId(base), &name[..])));
        }

        /// Whatever decodes is what its own encoding decodes from: one value, one form.
        #[test]
        fn decoding_is_total_and_canonical(bytes in prop::collection::vec(prop_oneof![0u8..3, any::<u8>()], 0..64)) {
            if let Some(locs) = get_locs(&bytes) {
                let mut again = Vec::new();
                locs.iter().for_each(|l| put_loc(l, &mut again));
                prop_assert_eq!(&again, &bytes);
            }
            if let Some(row) = get_file(&bytes) {
                let mut again = Vec::new();
                put_file(&row, &mut again);
                prop_assert_eq!(&again, &bytes);
            }
            let _total = get_dir(&bytes);
        }
    }

    #[test]
    fn a_location_costs_few_bytes() {
        let mut bytes = Vec::new();
        put_loc(&Loc { place: Place::Pack(3), offset: 900 << 20, len: 256 << 10 }, &mut bytes);
        assert_eq!(bytes.len(), 1 + 1 + 5 + 3);
    }

    #[test]
    fn a_memory_costs_few_bytes_and_a_row_without_one_nothing() {
        let cid = Cid::of(Codec::Raw, HashKind::Blake3, b"x");
        let memory = Memory { print: 1, cid, dag_size: 5000 };
        let [without, with] = [None, Some(memory)].map(|memory| {
            let stamp = Stamp { size: 5000, mtime_ns: 1_700_000_000_000_000_000 };
            let mut bytes = Vec::new();
            put_file(&FileRow { dir: FileId([1; 6]), stamp, name: "name", memory }, &mut bytes);
            assert!((0..bytes.len()).all(|cut| get_file(&bytes[..cut]).is_none_or(|row| row.memory.is_none())));
            bytes.len()
        });
        assert_eq!((without, with), (6 + 2 + 9 + 4, 6 + 2 + 9 + 4 + 1 + 8 + 33 + 2));
    }

    #[test]
    fn the_next_file_id_wraps() {
        assert_eq!(FileId([0, 0, 0, 0, 0, 0xff]).next(), FileId([0, 0, 0, 0, 1, 0]));
        assert_eq!(FileId([0xff; 6]).next(), FileId([0; 6]));
    }
}
