//! The walk: from a root CID, which nodes are needed next, and at the end the manifest.

use crate::{Cid, DecodeError, Manifest, PathError};

/// Bounds of one walk. A root past one of them is refused, whatever its blocks say.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct WalkLimits {
    /// Most nodes.
    pub nodes: usize,
    /// Most distinct leaves.
    pub leaves: usize,
    /// Most entries (files, directories, symlinks).
    pub entries: usize,
    /// Most bytes of all paths and symlink targets together.
    pub path_bytes: usize,
    /// Most stretches of all files together.
    pub extents: usize,
    /// Most file bytes held inside nodes.
    pub inline_bytes: usize,
}

impl Default for WalkLimits {
    fn default() -> Self {
        Self {
            nodes: 1 << 20,
            leaves: 1 << 23,
            entries: 1 << 22,
            path_bytes: 512 << 20,
            extents: 1 << 24,
            inline_bytes: 64 << 20,
        }
    }
}

/// Learns a DAG node by node: [`Walk::next_needed`], [`Walk::insert`] that block, until nothing is needed, then
/// [`Walk::finish`].
#[derive(Debug)]
pub struct Walk {
    root: Cid,
    limits: WalkLimits,
}

impl Walk {
    /// Begins at `root`.
    pub fn new(root: Cid, limits: WalkLimits) -> Self {
        Self { root, limits }
    }

    /// The node to insert next: depth-first pre-order, each once, the same sequence for everyone. `None` when all are in.
    pub fn next_needed(&self) -> Option<Cid> {
        todo!("{} {:?}", self.root, self.limits)
    }

    /// Takes the block that [`Walk::next_needed`] named. After an error the walk is as before.
    ///
    /// # Errors
    /// [`WalkError`]; [`WalkError::is_sender_fault`] tells a bad block from a bad root.
    pub fn insert(&mut self, cid: &Cid, bytes: &[u8]) -> Result<(), WalkError> {
        todo!("{cid} {}", bytes.len())
    }

    /// The manifest.
    ///
    /// # Errors
    /// [`WalkError`]: nodes are missing, or what they say together is not acceptable.
    pub fn finish(self) -> Result<Manifest, WalkError> {
        todo!()
    }
}

/// Why a walk cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WalkError {
    /// The bytes are not the block of that CID.
    #[error("the bytes received for {0} do not have its hash")]
    WrongHash(Cid),
    /// A block that is not needed now.
    #[error("{0} was not asked for")]
    NotNeeded(Cid),
    /// Nodes are still missing.
    #[error("the walk of the DAG is not complete: {0} is missing")]
    Incomplete(Cid),
    /// A block is no UnixFS node.
    #[error("node {cid} is malformed: {source}")]
    Node {
        /// The block.
        cid: Cid,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// A path in it is not safe.
    #[error("the content holds an unsafe name: {0}")]
    Path(#[from] PathError),
}

impl WalkError {
    /// Whether whoever sent the block is to blame. Otherwise the root itself is malformed, and no other sender helps.
    pub fn is_sender_fault(&self) -> bool {
        matches!(self, Self::WrongHash(_) | Self::NotNeeded(_))
    }
}
