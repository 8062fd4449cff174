//! Building the DAG of a file: leaves go in as they are cut, nodes come out as they fill. Balanced, as boxo lays it out.
//!
//! Memory is bounded by width times depth, not by the file. Nothing here holds file bytes.

use bytes::Bytes;

use crate::{Cid, Profile};

/// A block and its name.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Block {
    /// The name.
    pub cid: Cid,
    /// The bytes.
    pub bytes: Bytes,
}

/// What a parent records of a child.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Link {
    /// The child.
    pub cid: Cid,
    /// Bytes of file content below it.
    pub size: u64,
    /// Bytes of all blocks below it and its own, duplicates counted (dag-pb's `Tsize`).
    pub dag_size: u64,
}

/// Builds the DAG of one file from its chunks.
#[derive(Debug)]
pub struct FileBuilder {
    profile: Profile,
    mode: Option<u32>,
}

impl FileBuilder {
    /// A file of `mode` (Unix permission bits; only the executable bits count, and only where the profile keeps them).
    pub fn new(profile: &Profile, mode: Option<u32>) -> Self {
        Self { profile: *profile, mode }
    }

    /// Adds the next chunk, whose bytes the caller keeps; nodes that became full are pushed to `out`.
    pub fn leaf(&mut self, cid: Cid, len: u32, out: &mut Vec<Block>) {
        todo!("{cid} {len} {} {:?} {:?}", out.len(), self.profile, self.mode)
    }

    /// Ends the file; the remaining nodes are pushed to `out`, children before parents. A file of one chunk that is not
    /// executable is that chunk itself; an empty one is the empty raw block, which is pushed.
    pub fn finish(self, out: &mut Vec<Block>) -> Link {
        todo!("{}", out.len())
    }
}
