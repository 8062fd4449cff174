//! The UnixFS `Data` message, the inner format of a node (IPFS specification "UnixFS"; `mode` is of version 1.5).
//! Reads what IPFS implementations write, writes what boxo writes. Knows nothing of links.

use crate::{
    MAX_LINKS,
    node::DecodeError,
    wire::{Fields, Value, WireError, put_bytes, put_number, varint},
};

const TYPE_RAW: u64 = 0;
const TYPE_DIRECTORY: u64 = 1;
const TYPE_FILE: u64 = 2;
const TYPE_SYMLINK: u64 = 4;
const TYPE_HAMT: u64 = 5;

/// The multihash code of murmur3-x64-64, the only hash a HAMT may use.
const HAMT_MURMUR3: u64 = 0x22;

/// Permission bits that count: rwx three times, setuid, setgid, sticky.
const MODE_BITS: u64 = 0o7777;

/// What a node is.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Kind {
    /// A file or a part of one (types `File` and `Raw`).
    File,
    Directory,
    Symlink,
    Hamt,
}

/// A decoded `Data` message.
#[derive(Debug)]
pub(crate) struct Data<'a> {
    pub(crate) kind: Kind,
    pub(crate) bytes: &'a [u8],
    pub(crate) file_size: Option<u64>,
    pub(crate) block_sizes: Vec<u64>,
    pub(crate) fanout: Option<u64>,
    pub(crate) mode: Option<u32>,
}

impl<'a> Data<'a> {
    pub(crate) fn decode(message: &'a [u8]) -> Result<Self, DecodeError> {
        let mut kind = None;
        let mut hash = None;
        let mut data =
            Data { kind: Kind::File, bytes: &[], file_size: None, block_sizes: Vec::new(), fanout: None, mode: None };
        for field in Fields::new(message) {
            // As protobuf has it: the last of a repeated scalar counts, an unknown field is passed over.
            match field? {
                (1, Value::Varint(number)) => kind = Some(number),
                (2, Value::Bytes(bytes)) => data.bytes = bytes,
                (3, Value::Varint(size)) => data.file_size = Some(size),
                (4, Value::Varint(size)) => data.push_block_size(size)?,
                (4, Value::Bytes(mut packed)) => {
                    while !packed.is_empty() {
                        data.push_block_size(varint(&mut packed)?)?;
                    }
                }
                (5, Value::Varint(code)) => hash = Some(code),
                (6, Value::Varint(fanout)) => data.fanout = Some(fanout),
                (7, Value::Varint(mode)) => data.mode = Some((mode & MODE_BITS) as u32),
                (number @ 1..=7, _) => return Err(WireError::Type(number).into()),
                _ => {}
            }
        }
        data.kind = match kind.ok_or(DecodeError::NoType)? {
            TYPE_RAW | TYPE_FILE => Kind::File,
            TYPE_DIRECTORY => Kind::Directory,
            TYPE_SYMLINK => Kind::Symlink,
            TYPE_HAMT if hash == Some(HAMT_MURMUR3) => Kind::Hamt,
            TYPE_HAMT => return Err(DecodeError::HamtHash(hash)),
            other => return Err(DecodeError::Type(other)),
        };
        Ok(data)
    }

    fn push_block_size(&mut self, size: u64) -> Result<(), DecodeError> {
        if self.block_sizes.len() == MAX_LINKS {
            return Err(DecodeError::TooManyLinks);
        }
        self.block_sizes.push(size);
        Ok(())
    }
}

/// The data of a node of a file.
pub(crate) fn file(sizes: impl Iterator<Item = u64>, total: u64, mode: Option<u32>) -> Vec<u8> {
    let mut out = Vec::with_capacity(16 + 4 * sizes.size_hint().0);
    put_number(&mut out, 1, TYPE_FILE);
    put_number(&mut out, 3, total);
    for size in sizes {
        put_number(&mut out, 4, size);
    }
    if let Some(mode) = mode {
        put_number(&mut out, 7, u64::from(mode));
    }
    out
}

/// The data of every plain directory.
pub(crate) const DIRECTORY: &[u8] = &[0x08, TYPE_DIRECTORY as u8];

/// The data of a symlink.
pub(crate) fn symlink(target: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + target.len());
    put_number(&mut out, 1, TYPE_SYMLINK);
    put_bytes(&mut out, 2, target.as_bytes());
    out
}

/// The data of a HAMT shard. `bitfield` says which slots are taken, as a big-endian number without leading zeros.
pub(crate) fn hamt(bitfield: &[u8], fanout: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(16 + bitfield.len());
    put_number(&mut out, 1, TYPE_HAMT);
    put_bytes(&mut out, 2, bitfield);
    put_number(&mut out, 5, HAMT_MURMUR3);
    put_number(&mut out, 6, fanout);
    out
}
