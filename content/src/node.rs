//! Decoding UnixFS nodes that strangers made.

use crate::Cid;

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
        /// Its entries, in the order of the block.
        entries: Vec<DirEntry>,
    },
    /// One shard of a large directory.
    HamtShard {
        /// Its entries and sub-shards, in the order of the block.
        children: Vec<ShardChild>,
        /// Its width.
        fanout: u64,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points, as recorded. Not judged here.
        target: String,
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
    /// The name: never empty, `.`, `..`, or with `/` or NUL in it.
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
        todo!("{cid} {}", bytes.len())
    }
}

/// Why a block is not a UnixFS node.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Not a dag-pb CID: a leaf has nothing to decode.
    #[error("a raw block is file content, not a node")]
    Raw,
}
