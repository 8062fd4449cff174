//! Content formats: CIDs, chunking, UnixFS DAGs (build, decode, walk), safe relative paths and links.
//!
//! Everything here is sans-IO: bytes come in as arguments and go out as values. No file, socket, clock, thread or
//! random number is touched, so the same code serves the importer, the wire and the tests. Whatever comes from a
//! stranger passes a decoder of this crate first, and those are total and bounded: see [`Node::decode`], [`Walk`],
//! [`RelPath`] and [`ShoalLink`].

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that unwraps fails at the right line"))]

mod build;
mod chunk;
mod cid;
mod dagpb;
mod directory;
mod expand;
mod gear;
mod limits;
mod link;
mod manifest;
mod murmur3;
mod node;
mod path;
mod profile;
mod seams;
mod tar;
mod unixfs;
mod walk;
mod wire;

pub use build::{Block, FileBuilder, Link};
pub use chunk::{Stitch, Stitched};
pub use cid::{Cid, CidError, Codec, HashKind};
pub use directory::{DirError, directory, symlink};
pub use limits::{
    MAX_BLOCK_BYTES, MAX_DEPTH, MAX_HAMT_FANOUT, MAX_LINK_ADDR_BYTES, MAX_LINK_ADDRS, MAX_LINK_TEXT_BYTES, MAX_LINKS,
    MAX_NAME_BYTES, MAX_PATH_BYTES, MAX_PATH_PARTS, MAX_SYMLINK_BYTES,
};
pub use link::{LinkError, ShoalLink};
pub use manifest::{Entry, EntryKind, Leaf, Manifest, Piece, Place, SelectError, Selection, Source};
pub use node::{DecodeError, DirEntry, FileLink, Node, ShardChild};
pub use path::{PathError, RelPath, case_clashes, printable};
pub use profile::{Chunking, FastCdc, Profile, SHOAL_V1, UNIXFS_V1_2025};
pub use seams::Seams;
pub use walk::{Walk, WalkError, WalkLimits};
pub use wire::WireError;
