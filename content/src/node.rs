//! Decoding UnixFS nodes that strangers made: one block in, one [`Node`] or one [`DecodeError`] out. Accepts what IPFS
//! implementations make (inline data, raw-type nodes, HAMT shards, UnixFS 1.5 metadata); follows no link.

use std::collections::HashSet;

use crate::{
    Cid, CidError, Codec, MAX_BLOCK_BYTES, MAX_HAMT_FANOUT, MAX_SYMLINK_BYTES, PathError,
    dagpb::{PbLink, PbNode},
    path::check_name,
    unixfs::{Data, Kind},
    wire::WireError,
};

/// A decoded UnixFS node.
#[derive(Clone, Eq, PartialEq, Debug)]
#[non_exhaustive]
pub enum Node {
    /// A file, or an inner or inline part of one.
    File {
        /// Bytes held in the node itself; they come before those of the links.
        inline: Box<[u8]>,
        /// The parts below, in file order.
        links: Vec<FileLink>,
        /// Bytes of the file below this node: `inline` and all links.
        size: u64,
        /// Permission bits, if recorded (UnixFS 1.5).
        mode: Option<u32>,
    },
    /// A directory that fits in one block.
    Directory {
        /// Its entries, in the order of the block. No two have the same name.
        entries: Vec<DirEntry>,
    },
    /// One shard of a large directory.
    HamtShard {
        /// Its entries and sub-shards, in the order of the block.
        children: Vec<ShardChild>,
        /// Its width: a power of two.
        fanout: u64,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points, as recorded: not empty, no NUL, bounded. Not judged beyond that.
        target: Box<str>,
    },
}

/// A part of a file.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct FileLink {
    /// The block: a leaf (raw) or a node (dag-pb).
    pub cid: Cid,
    /// Bytes of the file below it, as the parent claims.
    pub size: u64,
}

/// An entry of a directory.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct DirEntry {
    /// The name: one safe part of a path.
    pub name: Box<str>,
    /// The file, directory or symlink.
    pub cid: Cid,
    /// `Tsize` as claimed: for a raw block its length.
    pub dag_size: Option<u64>,
}

/// A child of a HAMT shard.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum ShardChild {
    /// A directory entry.
    Entry(DirEntry),
    /// A shard one level further down.
    Shard(Cid),
}

impl Node {
    /// Decodes the block `bytes` of `cid`. Total: every malformed or oversized input is an error, and nothing is
    /// allocated beyond a small multiple of `bytes.len()`. Does not hash; [`Cid::verify`] does.
    ///
    /// # Errors
    /// [`DecodeError`], all of which blame whoever built the DAG.
    pub fn decode(cid: &Cid, bytes: &[u8]) -> Result<Self, DecodeError> {
        if cid.codec() == Codec::Raw {
            return Err(DecodeError::Raw);
        }
        let PbNode { links, data } = PbNode::decode(bytes)?;
        let data = Data::decode(data)?;
        match data.kind {
            Kind::File => file(&links, &data),
            Kind::Directory => directory(&links),
            Kind::Hamt => shard(&links, &data),
            Kind::Symlink => symlink(&links, &data),
        }
    }

    /// The nodes and leaves that this one refers to, in order.
    pub fn links(&self) -> impl Iterator<Item = Cid> + '_ {
        let (files, entries, children): (&[FileLink], &[DirEntry], &[ShardChild]) = match self {
            Self::File { links, .. } => (links, &[], &[]),
            Self::Directory { entries } => (&[], entries, &[]),
            Self::HamtShard { children, .. } => (&[], &[], children),
            Self::Symlink { .. } => (&[], &[], &[]),
        };
        let files = files.iter().map(|link| link.cid);
        let entries = entries.iter().map(|entry| entry.cid);
        let children = children.iter().map(|child| match child {
            ShardChild::Entry(entry) => entry.cid,
            ShardChild::Shard(cid) => *cid,
        });
        files.chain(entries).chain(children)
    }
}

fn file(links: &[PbLink<'_>], data: &Data<'_>) -> Result<Node, DecodeError> {
    if data.block_sizes.len() != links.len() {
        return Err(DecodeError::BlockSizes { links: links.len(), sizes: data.block_sizes.len() });
    }
    let mut size = data.bytes.len() as u64;
    let mut parts = Vec::with_capacity(links.len());
    for (link, &part) in links.iter().zip(&data.block_sizes) {
        if link.cid.codec() == Codec::Raw && part > MAX_BLOCK_BYTES as u64 {
            return Err(DecodeError::LeafTooLarge(part));
        }
        size = size.checked_add(part).ok_or(DecodeError::FileSize)?;
        parts.push(FileLink { cid: link.cid, size: part });
    }
    if data.file_size.is_some_and(|claimed| claimed != size) {
        return Err(DecodeError::FileSize);
    }
    Ok(Node::File { inline: data.bytes.into(), links: parts, size, mode: data.mode })
}

fn entry(link: &PbLink<'_>, name: &[u8]) -> Result<DirEntry, DecodeError> {
    Ok(DirEntry { name: check_name(name)?.into(), cid: link.cid, dag_size: link.dag_size })
}

fn directory(links: &[PbLink<'_>]) -> Result<Node, DecodeError> {
    let entries = links.iter().map(|link| entry(link, link.name)).collect::<Result<Vec<_>, _>>()?;
    // Blocks have their names in order, so that this is nearly always enough to see that none comes twice.
    if !entries.is_sorted_by(|a, b| a.name < b.name) {
        let mut names = HashSet::with_capacity(entries.len());
        if let Some(entry) = entries.iter().find(|entry| !names.insert(&entry.name)) {
            return Err(DecodeError::Duplicate(crate::printable(&entry.name).to_string()));
        }
    }
    Ok(Node::Directory { entries })
}

fn shard(links: &[PbLink<'_>], data: &Data<'_>) -> Result<Node, DecodeError> {
    let fanout = data.fanout.unwrap_or(0);
    if !fanout.is_power_of_two() || !(8..=MAX_HAMT_FANOUT).contains(&fanout) {
        return Err(DecodeError::Fanout(fanout));
    }
    // Every name begins with the number of its slot, in as many upper-case hex digits as the last slot needs.
    let digits = (fanout - 1).ilog2() as usize / 4 + 1;
    let mut taken = [false; MAX_HAMT_FANOUT as usize];
    let mut children = Vec::with_capacity(links.len());
    for link in links {
        let (slot, name) = link.name.split_at_checked(digits).ok_or(DecodeError::Slot)?;
        let slot = slot_number(slot).filter(|&slot| (slot as u64) < fanout).ok_or(DecodeError::Slot)?;
        if std::mem::replace(&mut taken[slot], true) {
            return Err(DecodeError::Slot);
        }
        children.push(match name {
            [] if link.cid.codec() == Codec::Raw => return Err(DecodeError::Slot),
            [] => ShardChild::Shard(link.cid),
            name => ShardChild::Entry(entry(link, name)?),
        });
    }
    Ok(Node::HamtShard { children, fanout })
}

fn slot_number(digits: &[u8]) -> Option<usize> {
    digits.iter().try_fold(0, |number, &digit| {
        let value = (digit as char).to_digit(16).filter(|_| !digit.is_ascii_lowercase())?;
        Some(number << 4 | value as usize)
    })
}

fn symlink(links: &[PbLink<'_>], data: &Data<'_>) -> Result<Node, DecodeError> {
    if !links.is_empty() {
        return Err(DecodeError::Field("a link below a symlink"));
    }
    check_target(data.bytes).map(|target| Node::Symlink { target: target.into() }).ok_or(DecodeError::Target)
}

/// The target of a symlink as text, if it is one that could exist.
pub(crate) fn check_target(target: &[u8]) -> Option<&str> {
    if target.is_empty() || target.len() > MAX_SYMLINK_BYTES || target.contains(&0) {
        return None;
    }
    std::str::from_utf8(target).ok()
}

/// Why a block is not a UnixFS node. Whoever built the DAG is to blame, not whoever sent the block.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Not a dag-pb CID: a leaf has nothing to decode.
    #[error("a raw block is file content, not a node")]
    Raw,
    /// A block longer than [`MAX_BLOCK_BYTES`].
    #[error("the block has {0} bytes; at most 2 MiB are accepted")]
    BlockTooLarge(usize),
    /// Not protobuf.
    #[error("{0}")]
    Wire(#[from] WireError),
    /// More links, or more sizes of links, than [`crate::MAX_LINKS`].
    #[error("the node has more than 8,192 links")]
    TooManyLinks,
    /// Something that should not be there, or not twice.
    #[error("the node has {0} where none belongs")]
    Field(&'static str),
    /// No UnixFS data.
    #[error("the node holds no UnixFS data")]
    NoData,
    /// No UnixFS type.
    #[error("the node's UnixFS data has no type")]
    NoType,
    /// A UnixFS type that is no file, directory or symlink.
    #[error("the node is of UnixFS type {0}, which is no file, directory or symlink")]
    Type(u64),
    /// A link without a CID.
    #[error("a link of the node has no CID")]
    NoCid,
    /// A link with a CID that cannot be used.
    #[error("a link of the node cannot be followed: {0}")]
    Cid(#[from] CidError),
    /// An unsafe name.
    #[error(transparent)]
    Name(#[from] PathError),
    /// A name twice in one directory. It is printable as it is.
    #[error("the directory has two entries named \"{0}\"")]
    Duplicate(String),
    /// The number of sizes is not that of the links.
    #[error("the file node has {links} links but {sizes} sizes for them")]
    BlockSizes {
        /// Links of the node.
        links: usize,
        /// Sizes recorded for them.
        sizes: usize,
    },
    /// The size of a file node is not the sum of its parts, or the sum has more than 64 bits.
    #[error("the size of the file node is not the sum of its parts")]
    FileSize,
    /// A leaf longer than any block.
    #[error("the file node claims a leaf of {0} bytes; at most 2 MiB are accepted")]
    LeafTooLarge(u64),
    /// A HAMT width that is not a power of two between 8 and [`MAX_HAMT_FANOUT`].
    #[error("the directory shard has a width of {0}; only powers of two from 8 to 1,024 are possible")]
    Fanout(u64),
    /// A HAMT over another hash.
    #[error("the directory shard uses hash function {0:?}; only murmur3-x64-64 (0x22) is known")]
    HamtHash(Option<u64>),
    /// A name in a HAMT shard that does not begin with the number of a free slot.
    #[error("an entry of the directory shard is not in a slot of its own")]
    Slot,
    /// A symlink target that no file system could hold, or that is not UTF-8.
    #[error("the symlink's target is empty, longer than 4,096 bytes, not UTF-8 or has a NUL in it")]
    Target,
}
